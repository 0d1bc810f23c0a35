"""A GGUF file, or several that are one model, as a source: tensors under transformers' names, and the
metadata.

F32, F16, BF16, Q8_0, Q4_0, MXFP4 and tables of I32 are read here; for every other type that the gguf package
can turn into numbers, that package is asked for. The header's reader is our own: the package's believes every
length and count that a file claims. Reads slabs of rows and keeps none. Which keys and names a model has is
gguf_config.py's.
"""

import math
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .errors import ExportError, printable
from .gguf_config import EXPERTS, check_architecture, transformers_name
from .keys import LIMITS
from .quantized import E2M1
from .sources import File, Groups, Integers, Source, Tensor, parts, used

SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
FLOAT32, STRING, ARRAY = 6, 8, 9
PLAIN = {0: "F32", 1: "F16", 26: "I32", 30: "BF16"}
Q4_0, Q8_0, MXFP4 = 2, 8, 39
COUNT_LIMIT = 1 << 24  # of an array's elements; a vocabulary has 2^18


class Header:
    """A cursor over the header: every length is checked against what is left of the file before it is
    used."""

    def __init__(self, file: File) -> None:
        self.file, self.at, self.begin, self.window = file, 0, 0, b""

    def take(self, count: int) -> bytes:
        if count > self.file.size - self.at:
            raise ExportError(
                f"{self.file.path}: cut short or damaged: {count} bytes expected at {self.at}, "
                f"and the file has {self.file.size}"
            )
        if self.at + count > self.begin + len(self.window):
            self.begin = self.at
            self.window = self.file.pread(min(max(count, 1 << 20), self.file.size - self.at), self.at)
        self.at += count
        return self.window[self.at - count - self.begin : self.at - self.begin]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            if count > COUNT_LIMIT:
                raise ExportError(f"{self.file.path}: an array of {count} values; this file is damaged")
            if kind in SCALARS:
                form = SCALARS[kind]
                return np.frombuffer(self.take(count * struct.calcsize(form)), form).tolist()
            if kind == STRING:
                return [self.string() for _ in range(count)]
        elif kind == FLOAT32:
            # the decimal that was meant: 0.1, not 0.10000000149
            return float(str(np.float32(self.number("<f"))))
        elif kind in SCALARS:
            return self.number(SCALARS[kind])
        raise ExportError(
            f"{self.file.path}: a value of unknown type {kind}; damaged, or newer than this program"
        )


class Blocks(Integers):
    """A tensor in blocks of 32 columns, each an f16 scale and 32 integers: Q8_0, or Q4_0, where byte i has
    columns i (low) and 16 + i (high)."""

    group = 32

    def __init__(self, file: File, name: str, kind: int, shape: list[int], offset: int) -> None:
        super().__init__(file, name, {Q4_0: "Q4_0", Q8_0: "Q8_0"}[kind], shape, offset)
        self.bits, self.block_bytes = (4, 18) if kind == Q4_0 else (8, 34)
        self.row_bytes = self.cols // 32 * self.block_bytes

    def integers(self, low: int, high: int) -> Groups:
        blocks = self.raw(low, high).reshape(high - low, -1, self.block_bytes)
        scale = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[:, :, 0].astype(np.float32)
        stored = blocks[:, :, 2:]
        if self.bits == 4:
            stored = np.concatenate([stored & 15, stored >> 4], axis=2) - np.uint8(8)
        integers = np.ascontiguousarray(stored).view(np.int8).reshape(high - low, self.cols)
        return Groups(integers, scale)


class Mxfp4(Integers):
    """A tensor in blocks of 32 columns, each a power of two in E8M0 and 32 numbers in E2M1: byte i has
    columns i (low) and 16 + i (high)."""

    bits, group, codebook, block_bytes = 4, 32, E2M1, 17

    def __init__(self, file: File, name: str, shape: list[int], offset: int) -> None:
        super().__init__(file, name, "MXFP4", shape, offset)
        self.row_bytes = self.cols // 32 * self.block_bytes

    def integers(self, low: int, high: int) -> Groups:
        blocks = self.raw(low, high).reshape(high - low, -1, self.block_bytes)
        # E2M1 is doubled; 255 is a power of two here as any other
        scale = np.ldexp(np.float32(1), blocks[:, :, 0].astype(np.int32) - 128)
        stored = blocks[:, :, 1:]
        codes = np.concatenate([stored & 15, stored >> 4], axis=2).reshape(high - low, self.cols)
        return used(np.take(E2M1, codes), scale)


class Dequantized(Integers):
    """A tensor of any other type, as the gguf package turns it into numbers."""

    def __init__(self, file: File, name: str, kind: int, shape: list[int], offset: int) -> None:
        try:
            import gguf.quants
        except ImportError:
            raise ExportError(
                f"{file.path}: tensor {printable(name)} has type {kind}, which the gguf package may know: "
                "pip install gguf"
            ) from None
        self.package = gguf
        try:
            self.kind = gguf.GGMLQuantizationType(kind)
        except ValueError:
            raise ExportError(
                f"{file.path}: tensor {printable(name)} has type {kind}, which the gguf package does not know"
            ) from None
        super().__init__(file, name, self.kind.name, shape, offset)
        self.block, self.block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        self.row_bytes = self.cols // self.block * self.block_bytes

    def floats(self, low: int, high: int) -> np.ndarray:
        try:
            return np.asarray(self.package.quants.dequantize(self.raw(low, high), self.kind))
        except NotImplementedError:
            self.fail(f": the gguf package cannot read type {self.dtype}")


class Run(NamedTuple):
    """Rows of one part of a tensor."""

    part: Tensor
    begin: int
    end: int  # last + 1
    columns: slice | None  # that stand for its rows; None: it is not turned


class Joined(Tensor):
    """kv_b_proj, each head's n rows of keys and then its v rows of values, which converters cut into k_b [H,
    r, n], transposed, and v_b [H, v, r]."""

    def __init__(self, name: str, k: Tensor, v: Tensor, heads: int) -> None:
        r, n, values = v.cols, k.cols, v.rows // heads
        super().__init__(k.shard, name, k.dtype, (heads * (n + values), r), 0)
        if (k.rows, v.rows) != (heads * r, heads * values):
            self.fail(f": attn_k_b {list(k.shape)} and attn_v_b {list(v.shape)} do not fit {heads} heads")
        self.k, self.v, self.head = k, v, (n, values, r)
        # of the values: their rows are as they were, and keys are turned
        self.bits, self.group = v.bits, v.group

    def pieces(self, low: int, high: int) -> Iterator[Run]:
        """Each run of rows within one head's keys or values."""
        n, values, r = self.head
        while low < high:
            head, row = divmod(low, n + values)
            end = min(high - low + row, n if row < n else n + values)
            if row < n:
                yield Run(self.k, head * r, (head + 1) * r, slice(row, end))
            else:
                yield Run(self.v, head * values + row - n, head * values + end - n, None)
            low += end - row

    def integers(self, low: int, high: int) -> Groups | None:
        """As Integers has them, if they are rows of one head's values alone."""
        (part, begin, end, which), *more = self.pieces(low, high)
        return None if more or which else part.integers(begin, end)

    def floats(self, low: int, high: int) -> np.ndarray:
        found = [(part.floats(begin, end), which) for part, begin, end, which in self.pieces(low, high)]
        return np.concatenate([x if which is None else x[:, which].T for x, which in found])

    def largest(self, low: int, high: int) -> float:
        return max((part.largest(begin, end) for part, begin, end, _ in self.pieces(low, high)), default=0.0)


class Logarithms(Tensor):
    """A vector as the logarithms of its magnitudes: a rate of decay, which files hold as exp(A_log) or as
    -exp(A_log)."""

    def __init__(self, stored: Tensor) -> None:
        super().__init__(stored.shard, stored.name, stored.dtype, (math.prod(stored.shape),), stored.offset)
        if stored.dtype not in PLAIN.values():
            self.fail(f": type {stored.dtype} cannot be read here; F32, F16 and BF16 can")

    def floats(self, low: int, high: int) -> np.ndarray:
        with np.errstate(divide="ignore"):  # what that gives is refused by largest()
            return np.log(np.abs(super().floats(low, high).astype(np.float64))).astype(np.float32)

    def largest(self, low: int, high: int) -> float:
        top = float(np.abs(self.floats(low, high)).max(initial=0))
        if not math.isfinite(top):
            self.fail(" holds a rate of decay that is 0 or not finite; the file is damaged")
        return top


class Info(NamedTuple):
    """What the header says of a tensor."""

    shape: list[int]
    kind: int
    offset: int  # from where the tensors begin


class Contents(NamedTuple):
    metadata: dict[str, Any]  # int, float, bool, str or a list of one of them
    tensors: dict[str, Tensor]


def read_gguf(file: File) -> Contents:
    """What one file holds."""
    header = Header(file)
    magic, version = header.take(4), header.number("<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ExportError(f"{file.path}: not a GGUF file of version 2 or 3 for this kind of machine")
    tensors, keys = header.number("<Q"), header.number("<Q")
    metadata: dict[str, Any] = {}
    infos: dict[str, Info] = {}
    for _ in range(keys):
        key = header.string()
        if key in metadata:
            raise ExportError(f"{file.path}: key {printable(key)} is there twice")
        metadata[key] = header.value(header.number("<I"))
    for _ in range(tensors):
        name, dimensions = header.string(), header.number("<I")
        if name in infos or not 1 <= dimensions <= 4:
            raise ExportError(
                f"{file.path}: tensor {printable(name)}: is there twice, or its entry is damaged"
            )
        shape = [header.number("<Q") for _ in range(dimensions)][::-1]  # rows of `shape`[-1] numbers
        infos[name] = Info(shape, header.number("<I"), header.number("<Q"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
        raise ExportError(f"{file.path}: general.alignment is {printable(alignment)}; this file is damaged")
    data = -(-header.at // alignment) * alignment
    return Contents(
        metadata,
        {
            name: _tensor(file, name, info.kind, info.shape, data + info.offset)
            for name, info in infos.items()
        },
    )


def _tensor(file: File, name: str, kind: int, shape: list[int], offset: int) -> Tensor:
    if not all(1 <= n < 1 << 40 for n in shape):
        raise ExportError(
            f"{file.path}: tensor {printable(name)}: shape {shape} is not possible; this file is damaged"
        )
    if kind in PLAIN:
        tensor, block = Tensor(file, name, PLAIN[kind], shape, offset), 1
    elif kind in (Q4_0, Q8_0):
        tensor, block = Blocks(file, name, kind, shape, offset), 32
    elif kind == MXFP4:
        tensor, block = Mxfp4(file, name, shape, offset), 32
    else:
        tensor = Dequantized(file, name, kind, shape, offset)
        block = tensor.block
    if tensor.cols % block:
        tensor.fail(f": rows of {tensor.cols} numbers cannot be of type {tensor.dtype}")
    if offset + math.prod(shape[:-1]) * tensor.row_bytes > file.size:
        tensor.fail(
            f" ends after the file's {file.size} bytes: it is cut short or damaged; download it again"
        )
    return tensor


class Gguf(Source):
    """`metadata`: that of the first file."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.metadata: dict[str, Any] = {}
        found: dict[str, Tensor] = {}
        for part in self._files(path):
            self.files.append(File(part))
            metadata, tensors = read_gguf(self.files[-1])
            self.metadata = self.metadata or metadata
            for name, tensor in tensors.items():
                if name in found:
                    raise ExportError(f"{part}: tensor {printable(name)} is also in {found[name].shard.path}")
                found[name] = tensor
        declared = self.metadata.get("split.tensors.count", len(found))
        if declared != len(found):
            raise ExportError(
                f"{path}: {declared} tensors are declared, and {len(found)} are there; "
                "download the model again"
            )
        self.architecture = self.metadata.get("general.architecture")
        check_architecture(self.architecture, path)
        for name, tensor in found.items():
            self._take(name, tensor, found)

    @staticmethod
    def _files(path: str) -> list[str]:
        directory, name = os.path.split(path)
        files = parts(name, ".gguf")
        if files[0] != name and name in files:
            raise ExportError(f"{path}: part of a model in {len(files)} files; give the first, {files[0]}")
        for file in files:
            if not os.path.exists(os.path.join(directory, file)):
                raise ExportError(
                    f"{os.path.join(directory, file)}: no such file; all {len(files)} parts must be in one "
                    "directory"
                )
        return [os.path.join(directory, file) for file in files]

    def _take(self, name: str, tensor: Tensor, found: dict[str, Tensor]) -> None:
        """Adds a tensor under transformers' name or names: stacked experts are taken apart, the two parts of
        kv_b_proj put together."""
        ours = transformers_name(name, str(self.architecture))
        stem, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind == "attn_k_b":
            v = found.get(f"{stem}.attn_v_b.weight")
            heads = self.metadata.get(f"{self.architecture}.attention.head_count")
            if f"{stem}.attn_kv_b.weight" not in found and v is not None and type(heads) is int and heads > 0:
                self.add(ours, Joined(ours, tensor, v, heads))
        elif kind in EXPERTS and len(tensor.shape) == 3:
            self._take_apart(ours, tensor, EXPERTS[kind])
        elif kind == "ssm_a":
            self.add(ours, Logarithms(tensor))
        elif kind.startswith("ssm_conv1d_"):  # [1, channels, 1, taps], or without the first
            self.add(ours, tensor.part(0, tensor.rows))
        elif kind != "attn_v_b":
            self.add(ours, tensor)

    def _take_apart(self, ours: str, tensor: Tensor, matrices: list[str]) -> None:
        """Adds each matrix of each of the stacked experts; `ours`: their names, with {e} and {matrix} in
        them."""
        experts, rows = tensor.shape[0], tensor.shape[1] // len(matrices)
        declared = self.metadata.get(f"{self.architecture}.expert_count")
        if experts > LIMITS["n_routed_experts"] or experts != declared:
            tensor.fail(f" holds {experts} experts, and expert_count is {printable(declared, 20)}")
        if tensor.shape[1] % len(matrices):
            tensor.fail(
                f" has shape {list(tensor.shape)}, which is not {len(matrices)} matrices of each expert"
            )
        for i in range(experts * len(matrices)):
            e, matrix = divmod(i, len(matrices))
            name = ours.replace("{e}", str(e)).replace("{matrix}", matrices[matrix])
            self.add(name, tensor.part(i * rows, rows))
