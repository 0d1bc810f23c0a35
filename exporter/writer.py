"""Writes model.bin as engine/checkpoint.h says: header, Config, tokenizer, table of tensors, tensors.

The tensors are streamed: what they need to be known in the table (offset, checksum, scale) is noted as they
pass, and the front of the file is written last. The file appears under its name only when it is complete.
"""

import os
import stat
import struct
import zlib

from .errors import ExportError
from .plan import BF16, F32, Q4, Q8, VECTOR
from .quantize import PANEL

MAGIC, VERSION = b"MLA.C\r\n\x1a", 2
HEADER = struct.Struct("<8sIIQQIIII16x")  # FileHeader
TENSOR = struct.Struct("<56sQQIIIIfI16s16x")  # TensorInfo
PAGE = 4096


def round_up(n, to):
    return -(-n // to) * to


def panel_bytes(kind, cols):
    """Of 16 rows: kernels.h, panel_bytes()."""
    if kind == F32:
        return cols * PANEL * 4
    if kind == BF16:
        return cols * PANEL * 2
    return round_up(cols, 64) // 64 * {Q8: 1088, Q4: 576}[kind]


def tensor_bytes(entry):
    if entry.type == VECTOR:
        return 4 * entry.rows
    return entry.count * (round_up(entry.rows, PANEL) // PANEL) * panel_bytes(entry.type, entry.cols)


def layout(entries, config_bytes, tokenizer_bytes, chat_bytes):
    """(offset of the tokenizer, of the chat template, of the table, of the first tensor, of each tensor;
    bytes of the file)."""
    tokenizer = round_up(HEADER.size + config_bytes, 64)
    chat = round_up(tokenizer + tokenizer_bytes, 64)
    table = round_up(chat + chat_bytes, 64)
    data = end = round_up(table + TENSOR.size * len(entries), PAGE)
    offsets = []
    for entry in entries:
        offsets.append(round_up(end, entry.align))
        end = offsets[-1] + tensor_bytes(entry)
    return tokenizer, chat, table, data, offsets, end


class Output:
    """The file at `path` while it is made: under a temporary name in the same directory, which is removed if
    anything goes wrong."""

    def __init__(self, path):
        self.path, self.temporary = path, f"{path}.{os.getpid()}.tmp"

    def __enter__(self):
        if os.path.exists(self.path) and not stat.S_ISREG(os.stat(self.path).st_mode):
            raise ExportError(f"{self.path}: exists and is not a regular file; choose another name")
        try:
            self.file = open(self.temporary, "xb", buffering=0)
        except OSError as error:
            raise ExportError(f"{self.path}: cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                os.fsync(self.file.fileno())
                os.replace(self.temporary, self.path)
        finally:
            self.file.close()
            if os.path.exists(self.temporary):
                os.unlink(self.temporary)

    def write(self, data):
        view = memoryview(data).cast("B")
        while view:
            view = view[self.file.write(view) :]

    def seek(self, offset):
        """What is passed over reads as zeros."""
        self.file.seek(offset)


def write_checkpoint(out, config, tokenizer, chat, entries, tensors):
    """`tensors`: for each entry an iterable of (scale, codebook, bytes), its pieces in order; scale and
    codebook (empty if it is not Q4) are the same in all pieces of a tensor. `tokenizer`, `chat`: their
    sections as bytes, or empty."""
    config_bytes = config.packed()
    tokenizer_at, chat_at, table_at, data_at, offsets, file_bytes = layout(
        entries, len(config_bytes), len(tokenizer), len(chat)
    )
    table = []
    for entry, offset, pieces in zip(entries, offsets, tensors):
        out.seek(offset)
        checksum = written = 0
        for scale, codebook, piece in pieces:
            out.write(piece)
            checksum, written = zlib.crc32(piece, checksum), written + piece.nbytes
        assert written == tensor_bytes(entry), entry.name
        table.append(
            TENSOR.pack(
                entry.name.encode(),
                offset,
                written,
                entry.type,
                entry.count,
                entry.rows,
                entry.cols,
                scale,
                checksum,
                codebook,
            )
        )
    front = bytearray(data_at)
    front[HEADER.size : HEADER.size + len(config_bytes)] = config_bytes
    front[tokenizer_at : tokenizer_at + len(tokenizer)] = tokenizer
    front[chat_at : chat_at + len(chat)] = chat
    front[table_at : table_at + TENSOR.size * len(table)] = b"".join(table)

    def header(checksum):
        return HEADER.pack(
            MAGIC,
            VERSION,
            checksum,
            file_bytes,
            data_at,
            len(config_bytes),
            len(tokenizer),
            len(table),
            len(chat),
        )

    front[: HEADER.size] = header(0)
    front[: HEADER.size] = header(zlib.crc32(front))
    out.seek(0)
    out.write(front)
    return file_bytes
