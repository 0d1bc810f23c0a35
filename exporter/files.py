"""Reads whole files of a source: tokenizers and what stands beside them. Refuses what is no regular file (a
pipe would never end, a device neither), what is too large, and Git LFS pointers. The files with weights are
read in pieces, by sources.py and gguf_source.py."""

import os
import stat

from exporter.errors import ExportError

FILE_LIMIT = 64 << 20  # bytes; the largest published tokenizer has 33 MB
POINTER = b"version https://git-lfs.github.com/spec/"


def read_file(path, limit: int = FILE_LIMIT) -> bytes:
    """The contents. Raises ExportError, OSError."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ExportError(f"{path}: is no regular file")
    data = b""
    if found.st_size <= limit:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    if max(found.st_size, len(data)) > limit:
        raise ExportError(f"{path}: has more than {limit} bytes")
    refuse_pointer(path, data)
    return data


def refuse_pointer(path, data: bytes) -> None:
    """Raises ExportError if `data`, the begin of a file, says that Git LFS has the contents."""
    if data.startswith(POINTER):
        raise ExportError(
            f"{path}: is a Git LFS pointer, not the file itself: run `git lfs pull` in its directory"
        )
