"""The one exception that the exporter raises on purpose: its text is the line that the user reads."""


class ExportError(Exception):
    pass


def printable(text, limit=120):
    """`text` from a file that may be hostile, fit for one line of an error message."""
    text = str(text).encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[:limit] + "..."
