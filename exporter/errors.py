"""What the exporter tells its user: the one exception that it raises on purpose, whose text is the line that
the user reads, and warnings, which cost nothing."""

import sys


class ExportError(Exception):
    pass


def printable(text: object, limit: int = 120) -> str:
    """`text` from a file that may be hostile, fit for one line of an error message."""
    text = str(text).encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[:limit] + "..."


def warn(text: str) -> None:
    """One line on standard error; the export goes on."""
    print(f"export.py: warning: {text}", file=sys.stderr)
