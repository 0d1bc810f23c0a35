"""Reads whole files of a source: configurations, tokenizers. Refuses what is no regular file (a pipe would
never end, a device neither), what is too large, and Git LFS pointers. The files with weights are read in
pieces, by sources.py and gguf_source.py, which ask the same questions."""

import os
import stat

from .errors import ExportError

FILE_LIMIT = 64 << 20  # bytes; the largest published tokenizer has 33 MB
POINTER = b"version https://git-lfs.github.com/spec/"


class PointerError(ExportError):
    """The file was never downloaded."""


def read_file(path: str | os.PathLike[str], limit: int = FILE_LIMIT) -> bytes:
    """The contents. Raises ExportError, OSError."""
    regular(path)
    data = b""
    if os.path.getsize(path) <= limit:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    if max(os.path.getsize(path), len(data)) > limit:
        raise ExportError(
            f"{path}: has more than {limit} bytes; this is not a model's {os.path.basename(path)}"
        )
    refuse_pointer(path, data)
    return data


def regular(path: str | os.PathLike[str]) -> None:
    """Raises ExportError for devices, pipes and directories under the name of a file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ExportError(f"{path}: not a regular file")


def refuse_pointer(path: str | os.PathLike[str], data: bytes) -> None:
    """Raises PointerError if `data`, the begin of a file, says that Git LFS has the contents."""
    if data.startswith(POINTER):
        raise PointerError(
            f"{path}: is a Git LFS pointer, not the file itself: run `git lfs pull` in its directory"
        )
