"""Writes model.bin as engine/checkpoint.h says: header, Config, tokenizer, chat template, table of tensors,
tensors.

The tensors are streamed: what they need to be known in the table (offset, checksum, scale) is noted as they
pass, and the front of the file is written last. The file appears under its name only when it is complete.
Refuses to replace a file that is no checkpoint. Which tensors there are is plan.py's, how they are packed
quantize.py's.
"""

import os
import re
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

import numpy as np

from .config import ModelConfig
from .errors import ExportError
from .plan import BF16, F32, Q4, Q8, VECTOR, Entry
from .quantize import PANEL

MAGIC, VERSION = b"MLA.C\r\n\x1a", 2
HEADER = struct.Struct("<8sIIQQIIII16x")  # FileHeader
TENSOR = struct.Struct("<56sQQIIIIfI16s16x")  # TensorInfo
PAGE = 4096
COPY = 1 << 20  # bytes copied at once


# ---- where it goes


class Target(NamedTuple):
    """Where an output's name leads. direct: to something that is written to as it is (a pipe, a device, a
    file that is already open), and not to a file that is replaced."""

    path: str  # no link
    direct: bool


def find_target(path: str) -> Target:
    """Follows the links one by one: what /proc/self/fd/1 leads to is an open file, although its name may be
    that of any other file. Raises ExportError, OSError."""
    given = path
    for _ in range(40):
        folder = os.path.realpath(os.path.dirname(path) or ".")
        path = os.path.join(folder, os.path.basename(path))
        inside = f"{folder}/"
        if inside.startswith(("/proc/", "/dev/")) and not inside.startswith("/dev/shm/"):
            return Target(path, True)
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    else:
        raise ExportError(f"{given}: too many links")
    return Target(path, os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode))


def open_direct(target: Target) -> int:
    """A descriptor to write to. A descriptor of our own is copied: opened by name it would begin anew. Raises
    OSError."""
    ours = re.fullmatch(rf"(?:/proc/{os.getpid()}(?:/task/\d+)?|/dev)/fd/(\d+)", target.path)
    return os.dup(int(ours.group(1))) if ours else os.open(target.path, os.O_WRONLY)


class Output:
    """The file at `path` while it is made: under a temporary name in the same directory, which is removed if
    anything goes wrong. What cannot be replaced (Target.direct) gets a copy at the end.
    Raises ExportError, OSError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.target = find_target(self.path)
        self.temporary = f"{self.target.path}.{os.getpid()}.tmp"
        if self.target.direct:
            self._check_direct()
        elif os.path.exists(self.target.path):
            self._check_replaced()

    def _check_direct(self) -> None:
        mode = os.stat(self.target.path).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            raise ExportError(f"{self.path}: exists and is not a regular file; choose another name")

    def _check_replaced(self) -> None:
        """An empty file may be replaced, too: the shell makes one of `> FILE`, and mktemp."""
        with open(self.target.path, "rb") as file:
            begin = file.read(len(MAGIC))
        if begin not in (b"", MAGIC):
            raise ExportError(f"{self.path}: exists and is not a checkpoint; choose another name")

    def __enter__(self) -> "Output":
        try:
            if self.target.direct:
                self.sink = open_direct(self.target)
                if os.isatty(self.sink):
                    raise ExportError(f"{self.path}: is a terminal; send the checkpoint to a file")
                self.file = tempfile.TemporaryFile(buffering=0)
            else:
                self.file = open(self.temporary, "xb", buffering=0)
        except OSError as error:
            raise ExportError(f"{self.path}: cannot be written: {error.strerror}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.target.direct:
                self._copy()
            elif kind is None:
                os.fsync(self.file.fileno())
                os.replace(self.temporary, self.target.path)
        finally:
            self.file.close()
            if self.target.direct:
                os.close(self.sink)
            elif os.path.exists(self.temporary):
                os.unlink(self.temporary)

    def _copy(self) -> None:
        self.file.seek(0)
        while data := self.file.read(COPY):
            while data:
                data = data[os.write(self.sink, data) :]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self.file.write(view) :]

    def seek(self, offset: int) -> None:
        """What is passed over reads as zeros."""
        self.file.seek(offset)


# ---- what it holds


class Piece(NamedTuple):
    """Some rows of a tensor, packed. scale, codebook (empty if it is not Q4): the same in all its pieces."""

    scale: float
    codebook: bytes
    data: np.ndarray


class Layout(NamedTuple):
    """Offsets in the file, and its size, in bytes."""

    tokenizer: int
    chat: int
    table: int
    data: int  # the first tensor
    tensors: list[int]
    end: int


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to


def panel_bytes(kind: int, cols: int) -> int:
    """Of 16 rows: kernels.h, panel_bytes()."""
    if kind == F32:
        return cols * PANEL * 4
    if kind == BF16:
        return cols * PANEL * 2
    return round_up(cols, 64) // 64 * {Q8: 1088, Q4: 576}[kind]


def tensor_bytes(entry: Entry) -> int:
    if entry.type == VECTOR:
        return 4 * entry.rows
    return entry.count * (round_up(entry.rows, PANEL) // PANEL) * panel_bytes(entry.type, entry.cols)


def layout(entries: list[Entry], config_bytes: int, tokenizer_bytes: int, chat_bytes: int) -> Layout:
    tokenizer = round_up(HEADER.size + config_bytes, 64)
    chat = round_up(tokenizer + tokenizer_bytes, 64)
    table = round_up(chat + chat_bytes, 64)
    data = end = round_up(table + TENSOR.size * len(entries), PAGE)
    offsets = []
    for entry in entries:
        offsets.append(round_up(end, entry.align))
        end = offsets[-1] + tensor_bytes(entry)
    return Layout(tokenizer, chat, table, data, offsets, end)


def write_tensor(out: Output, entry: Entry, offset: int, pieces: Iterable[Piece]) -> bytes:
    """Writes a tensor; its line of the table."""
    out.seek(offset)
    checksum = written = 0
    scale, codebook = 1.0, b""
    for piece in pieces:
        scale, codebook, data = piece.scale, piece.codebook, piece.data.data
        out.write(data)
        checksum, written = zlib.crc32(data, checksum), written + data.nbytes
    if written != tensor_bytes(entry):
        raise RuntimeError(f"{entry.name} has {tensor_bytes(entry)} bytes, and {written} were written")
    shape = entry.type, entry.count, entry.rows, entry.cols
    return TENSOR.pack(entry.name.encode(), offset, written, *shape, scale, checksum, codebook)


def write_checkpoint(
    out: Output,
    config: ModelConfig,
    tokenizer: bytes,
    chat: bytes,
    entries: list[Entry],
    tensors: Iterable[Iterable[Piece]],
) -> None:
    """tensors: for each entry its pieces in order. tokenizer, chat: their sections, or empty."""
    config_bytes = config.packed()
    at = layout(entries, len(config_bytes), len(tokenizer), len(chat))
    lines = [
        write_tensor(out, entry, offset, pieces)
        for entry, offset, pieces in zip(entries, at.tensors, tensors, strict=True)
    ]
    front = bytearray(at.data)
    front[HEADER.size : HEADER.size + len(config_bytes)] = config_bytes
    front[at.tokenizer : at.tokenizer + len(tokenizer)] = tokenizer
    front[at.chat : at.chat + len(chat)] = chat
    front[at.table : at.table + TENSOR.size * len(lines)] = b"".join(lines)

    def header(checksum: int) -> bytes:
        counts = len(config_bytes), len(tokenizer), len(lines), len(chat)
        return HEADER.pack(MAGIC, VERSION, checksum, at.end, at.data, *counts)

    front[: HEADER.size] = header(0)
    front[: HEADER.size] = header(zlib.crc32(front))
    out.seek(0)
    out.write(front)
