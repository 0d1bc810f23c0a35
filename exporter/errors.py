"""What the exporter tells its user: the one exception that it raises on purpose, whose text is the line that
the user reads, and warnings, which cost nothing."""

import os
import sys

# The name in messages: what the program is called, in the repository or installed.
PROGRAM = "mla-export" if os.path.basename(sys.argv[0]) == "mla-export" else "export.py"


class ExportError(Exception):
    pass


def printable(text: object, limit: int = 120) -> str:
    """`text` from a file that may be hostile, fit for one line of an error message."""
    text = str(text).encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[:limit] + "..."


def warn(text: str) -> None:
    """One line on standard error; the export goes on."""
    print(f"{PROGRAM}: warning: {text}", file=sys.stderr)
