"""Writes model.bin as engine/checkpoint.h says: header, Config, tokenizer, chat template, table of tensors,
tensors.

The tensors are streamed: what they need to be known in the table (offset, checksum, scale) is noted as they
pass, and the front of the file is written last. The file appears under its name only when it is complete;
before, it has the ending .partial, and says of each tensor when it is there, so that an export can go on.
Refuses to replace a file that is no checkpoint. Which tensors there are is plan.py's, how they are packed
quantize.py's.
"""

import contextlib
import os
import re
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from io import FileIO
from types import TracebackType
from typing import NamedTuple

import numpy as np

from .errors import ExportError
from .plan import BF16, F32, Q4, Q8, VECTOR, Entry
from .quantize import PANEL

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

MAGIC, VERSION = b"MLA.C\r\n\x1a", 2
HEADER = struct.Struct("<8sIIQQIIII16x")  # FileHeader
TENSOR = struct.Struct("<56sQQIIIIfI16s16x")  # TensorInfo
PAGE = 4096
# An unfinished checkpoint: its name's ending; what it begins with, and what its numbers are made from.
PARTIAL, PARTIAL_MAGIC, PARTIAL_HEADER = ".partial", b"MLA.PART", struct.Struct("<8s32s")
COPY = 1 << 20  # bytes copied at once
HUGE_PAGE = 2 << 20  # bytes


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
    """The file at `path` while it is made: in the same directory, with the ending PARTIAL. That file is
    removed if anything goes wrong, and with `resume` kept. What cannot be replaced (Target.direct) gets a
    copy at the end. Raises ExportError, OSError.

    Bytes wait in memory until whole huge pages of the file can be written at once: Linux then keeps them in
    huge pages, and ./run, which maps the file, reads it faster (doc/performance.md)."""

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self.path, self.resume = os.fspath(path), resume
        self.waiting, self.at = bytearray(), 0  # bytes, and their place in the file
        self.target = find_target(self.path)
        self.temporary = self.target.path + PARTIAL
        if self.target.direct:
            self._check_direct()
        elif os.path.exists(self.target.path):
            self._check_replaced()

    def _check_direct(self) -> None:
        mode = os.stat(self.target.path).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            raise ExportError(f"{self.path}: exists and is not a regular file; choose another name")
        if self.resume:
            raise ExportError(f"{self.path}: is not a file in a directory: nothing can be kept for --resume")

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
                self.file = self._open_partial()
        except OSError as error:
            raise ExportError(f"{self.path}: cannot be written: {error.strerror}") from None
        return self

    def _open_partial(self) -> FileIO:
        """The file under the other name: new, or left there by an export that was ended. No link is followed,
        nothing that is something else is touched, and no two exports write it."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = FileIO(os.open(self.temporary, flags, 0o666), "rb+")
        try:
            begin = os.pread(file.fileno(), len(PARTIAL_MAGIC), 0)
            # it begins as a checkpoint between its last byte and its new name
            ours = begin in (b"", PARTIAL_MAGIC, MAGIC)
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or not ours:
                raise ExportError(f"{self.temporary}: exists and is no unfinished checkpoint; remove it")
            lock(file, self.temporary)
            if not self.resume:
                file.truncate(0)
            if os.fstat(file.fileno()).st_size == 0:
                file.write(PARTIAL_MAGIC)
        except BaseException:
            file.close()
            raise
        return file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        renamed = False
        try:
            if kind is None or self.resume:  # with resume, tensors that wait need not be packed again
                self._write_waiting(len(self.waiting))
            if kind is None and self.target.direct:
                self._copy()
            elif kind is None:
                os.fsync(self.file.fileno())
                os.replace(self.temporary, self.target.path)
                renamed = True
        finally:
            if self.target.direct:
                os.close(self.sink)
            elif not renamed and not self.resume:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.temporary)
            self.file.close()

    def _copy(self) -> None:
        self.file.seek(0)
        while data := self.file.read(COPY):
            while data:
                data = data[os.write(self.sink, data) :]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Continues where the last write ended, or where seek() put it."""
        self.waiting += memoryview(data).cast("B")
        whole = (self.at + len(self.waiting)) // HUGE_PAGE * HUGE_PAGE - self.at
        if whole > 0:
            self._write_waiting(whole)

    def _write_waiting(self, count: int) -> None:
        """Writes the first `count` bytes. If that is interrupted they still wait: written again, they are the
        same."""
        self.put(self.at, memoryview(self.waiting)[:count])
        # a new object: an interrupted put() may still hold views of the old one, which can then not shrink
        self.waiting, self.at = self.waiting[count:], self.at + count

    def seek(self, offset: int) -> None:
        """Sets the place of the next write(). Bytes in between stay as they are; new ones read as zeros."""
        if offset != self.at + len(self.waiting):
            self._write_waiting(len(self.waiting))
            self.at = offset

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes at `offset` without waiting. Where write() goes on stays the same."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.file.fileno(), view, offset)
            view, offset = view[count:], offset + count

    def read(self, count: int, offset: int) -> bytes:
        """As many of `count` bytes from `offset` on as the file has. Bytes that still wait are not in it."""
        return os.pread(self.file.fileno(), count, offset)


def lock(file: FileIO, path: str) -> None:
    """Raises ExportError if another process has the file. The lock ends with the process."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ExportError(f"{path}: another export is writing it") from None
    if not os.path.exists(path) or not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
        raise ExportError(f"{path}: another export has just ended; try again")


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


def write_tensor(out: Output, entry: Entry, offset: int, end: int, pieces: Iterable[Piece]) -> bytes:
    """Writes a tensor, and zeros up to `end`, where the next one begins: without a gap, whole huge pages can
    be written. Returns its line of the table."""
    out.seek(offset)
    checksum = written = 0
    scale, codebook = 1.0, b""
    for piece in pieces:
        scale, codebook, data = piece.scale, piece.codebook, piece.data.data
        out.write(data)
        checksum, written = zlib.crc32(data, checksum), written + data.nbytes
    if written != tensor_bytes(entry):
        raise RuntimeError(f"{entry.name} has {tensor_bytes(entry)} bytes, and {written} were written")
    out.write(bytes(end - offset - written))
    shape = entry.type, entry.count, entry.rows, entry.cols
    return TENSOR.pack(entry.name.encode(), offset, written, *shape, scale, checksum, codebook)


class Front(NamedTuple):
    """What stands before the tensors, but for their table."""

    config: bytes
    tokenizer: bytes  # a section, or empty
    chat: bytes


def finished(out: Output, front: Front, entries: list[Entry], identity: bytes) -> dict[int, bytes]:
    """{index: line of the table} of the entries that an export which was ended had written: each is read and
    checked. identity: 32 bytes, equal if the same numbers come from the same source; of another one nothing
    is used. From now on the file says that it is of this identity."""
    at = layout(entries, *map(len, front))
    found = {}
    if out.read(PARTIAL_HEADER.size, 0) == PARTIAL_HEADER.pack(PARTIAL_MAGIC, identity):
        for i, entry in enumerate(entries):
            line = out.read(TENSOR.size, at.table + i * TENSOR.size)
            if len(line) == TENSOR.size and _is_whole(out, entry, at.tensors[i], line):
                found[i] = line
    else:
        out.file.truncate(0)
    out.put(0, PARTIAL_HEADER.pack(PARTIAL_MAGIC, identity))
    return found


def _is_whole(out: Output, entry: Entry, offset: int, line: bytes) -> bool:
    """Is the tensor that a line of the table speaks of this one, and there as it was written?"""
    name, begin, size, *shape, _, checksum, _ = TENSOR.unpack(line)
    expected = offset, tensor_bytes(entry), [entry.type, entry.count, entry.rows, entry.cols]
    if name.rstrip(b"\0") != entry.name.encode() or (begin, size, shape) != expected:
        return False
    sum_, done = 0, 0
    while done < size:
        data = out.read(min(COPY, size - done), offset + done)
        if not data:
            return False
        sum_, done = zlib.crc32(data, sum_), done + len(data)
    return bool(sum_ == checksum)


def write_checkpoint(
    out: Output,
    front: Front,
    entries: list[Entry],
    tensors: Iterable[Iterable[Piece]],
    lines: Mapping[int, bytes] | None = None,
) -> None:
    """tensors: for each entry its pieces in order, but for those whose `lines` of the table are there. A line
    is written as soon as its tensor is."""
    at = layout(entries, *map(len, front))
    lines, source = dict(lines or {}), iter(tensors)
    for i, (entry, begin, end) in enumerate(zip(entries, at.tensors, [*at.tensors[1:], at.end], strict=True)):
        if i not in lines:
            lines[i] = write_tensor(out, entry, begin, end, next(source))
            out.put(at.table + i * TENSOR.size, lines[i])
    text = bytearray(at.data)
    text[HEADER.size : HEADER.size + len(front.config)] = front.config
    text[at.tokenizer : at.tokenizer + len(front.tokenizer)] = front.tokenizer
    text[at.chat : at.chat + len(front.chat)] = front.chat
    text[at.table : at.table + TENSOR.size * len(lines)] = b"".join(lines[i] for i in range(len(lines)))

    def header(checksum: int) -> bytes:
        counts = len(front.config), len(front.tokenizer), len(lines), len(front.chat)
        return HEADER.pack(MAGIC, VERSION, checksum, at.end, at.data, *counts)

    text[: HEADER.size] = header(0)
    text[: HEADER.size] = header(zlib.crc32(text))
    out.seek(0)  # writes what still waits: a file with this header must be whole
    out.put(0, text)
