"""What a quantized tensor of safetensors is made of, put behind its one name: decode().

The forms: FP8 E4M3 with scales by block, channel or tensor; compressed-tensors' integers of four and eight
bits, with zero points or without; AWQ's; floats of four bits, E2M1, as NVFP4 (of ModelOpt and of
compressed-tensors), as MXFP4 and as DeepSeek-V4 has them. The names and types of the tensors tell which;
weight_formats.py says of what the configuration names whether it is among them. Integers, and E2M1 doubled,
stand in groups with one scale, so that quantize.py can carry them over where a type of the checkpoint has
them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .sources import ITEM_BYTES, Groups, Integers, Source, Tensor, steps, used
from .weight_formats import WHOLE, Block

# Scales of activations: how other programs round what flows through the model, and no part of it.
OF_ACTIVATIONS = (
    "activation_scale", ".input_scale", ".output_scale", ".qscale_act", ".k_scale", ".v_scale",
    ".input_global_scale",
)  # fmt: skip

TABLES = (".tid2eid",)  # which hold whole numbers, and no weights

# The sixteen numbers of E2M1 by their codes, doubled: integers. The highest bit is the sign; -0 is 0 here.
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
# AWQ puts the columns 0 .. 7 of a word into these of its eight nibbles, the lowest being 0.
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


class Scaled(Tensor):
    """FP8 numbers, each to be multiplied with the scale of its block (also where that is called "scale_inv").
    `block` = (rows, columns) that share a scale; larger than the tensor for one scale in all."""

    def __init__(self, weight: Tensor, scale: Tensor, block: Block) -> None:
        super().__init__(weight.shard, weight.name, weight.dtype, weight.shape, weight.offset)
        wanted = (*self.shape[:-2], *(-(-n // b) for n, b in zip(self.shape[-2:], block, strict=False)))
        if len(self.shape) < 2 or [n for n in scale.shape if n != 1] != [n for n in wanted if n != 1]:
            scale.fail(
                f" has shape {list(scale.shape)}, and {list(self.shape)} in blocks of "
                f"{block[0]} x {block[1]} needs {list(wanted)}"
            )
        self.block, self.scale = block, Tensor(scale.shard, scale.name, scale.dtype, wanted, scale.offset)

    def scale_rows(self, rows: np.ndarray) -> np.ndarray:
        """The rows of scales that belong to `rows` of the weights."""
        matrix = max(1, self.shape[-2])
        return np.asarray(rows // matrix * self.scale.shape[-2] + rows % matrix // self.block[0])

    def floats(self, low: int, high: int) -> np.ndarray:
        values = super().floats(low, high)
        if not values.size:
            return values
        at = self.scale_rows(np.arange(low, high))
        scale = self.scale.floats(int(at[0]), int(at[-1]) + 1)[at - at[0]]
        values *= np.repeat(scale, min(self.block[1], self.cols), axis=1)[:, : self.cols]
        return values

    def largest(self, low: int, high: int) -> float:
        if low >= high:
            return 0.0
        first, last = (int(row) for row in self.scale_rows(np.array([low, high - 1])))
        return super().largest(low, high) * self.scale.largest(first, last + 1)


class Table(Tensor):
    """Whole numbers from 0 on, in 32 or 64 bits."""

    def stored(self, low: int, high: int) -> np.ndarray:
        return self.raw(low, high).view("<i4" if self.dtype == "I32" else "<i8")

    def floats(self, low: int, high: int) -> np.ndarray:
        return self.stored(low, high).astype(np.float32)

    def largest(self, low: int, high: int) -> float:
        most = 0
        for begin, end in steps(self, low, high):
            numbers = self.stored(begin, end)
            if numbers.min(initial=0) < 0:
                self.fail(f": {numbers.min()} is in it, and whole numbers from 0 on were expected")
            most = max(most, int(numbers.max(initial=0)))
        return float(most)


class Stored(NamedTuple):
    """Rows of integers as they are stored."""

    codes: np.ndarray  # int16 [rows, columns]
    zeros: np.ndarray | None  # int16 [rows, columns / group]: what codes to take for 0; None: 0
    scale: np.ndarray  # float32 [rows, columns / group]


class Grouped(Integers):
    """Integers with one scale, and perhaps one zero point, for each `group` of a row. A kind of it says how
    they are stored: load()."""

    def __init__(self, name: str, first: Tensor, dtype: str, shape: tuple[int, int], groups: int) -> None:
        """first: any of its parts, for messages; groups: of a row."""
        super().__init__(first.shard, name, dtype, shape, 0)
        if groups < 1 or self.cols % groups:
            self.fail(f": {self.cols} columns do not make {groups} groups")
        self.group = self.cols // groups

    def load(self, low: int, high: int) -> Stored:
        """Rows low .. high - 1."""
        raise NotImplementedError

    def differences(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """(codes less zero points, int16 [rows, columns]; their scales)."""
        codes, zeros, scale = self.load(low, high)
        if zeros is not None:
            codes = (codes.reshape(*zeros.shape, self.group) - zeros[:, :, None]).reshape(codes.shape)
        return codes, scale

    def integers(self, low: int, high: int) -> Groups | None:
        codes, scale = self.differences(low, high)
        if codes.max(initial=0) > 127 or codes.min(initial=0) < -128:
            return None
        return Groups(codes.astype(np.int8), scale)

    def floats(self, low: int, high: int) -> np.ndarray:
        codes, scale = self.differences(low, high)
        values = codes.reshape(*scale.shape, self.group).astype(np.float32)
        values *= scale[:, :, None]
        return values.reshape(high - low, self.cols)


class Packed(Grouped):
    """compressed-tensors' "pack-quantized": int32 words of four- or eight-bit integers, first column lowest,
    each as value + 8 or + 128. Zero points are packed in the same way along the rows."""

    def __init__(self, name: str, packed: Tensor, scale: Tensor, shape: Tensor, zero: Tensor | None) -> None:
        if (
            packed.dtype != "I32"
            or shape.shape != (2,)
            or shape.dtype not in ("I32", "I64")
            or len(scale.shape) != 2
        ):
            packed.fail(": only integers in words of 32 bits with their scales in rows can be read")
        raw = shape.shard.pread(2 * ITEM_BYTES[shape.dtype], shape.offset)
        rows, cols = (int(n) for n in np.frombuffer(raw, {"I32": "<i4", "I64": "<i8"}[shape.dtype]))
        self.bits = 8 if packed.shape == (rows, -(-cols // 4)) and cols > 4 else 4
        self.in_word = 32 // self.bits
        fits = packed.shape == (rows, -(-cols // self.in_word)) and scale.shape[0] == rows
        if not fits or min(rows, cols, scale.shape[1]) < 1 or cols % scale.shape[1]:
            packed.fail(
                f": {list(packed.shape)} words and {list(scale.shape)} scales do not hold {rows} x {cols} "
                "integers of four or eight bits"
            )
        groups = scale.shape[1]
        super().__init__(name, packed, f"INT{self.bits}", (rows, cols), groups)
        self.packed, self.scale, self.zero = packed, scale, zero
        if zero and (zero.dtype != "I32" or zero.shape != (-(-rows // self.in_word), groups)):
            zero.fail(f" has shape {list(zero.shape)}, and {rows} x {groups} zero points were expected")

    def unpacked(self, words: np.ndarray) -> np.ndarray:
        """int16 values of the bytes of words [n, 4 * words], along the rows."""
        values = words.astype(np.int16)
        if self.bits == 4:
            values = np.stack([values & 15, values >> 4], axis=2).reshape(len(words), -1)
        return values - np.int16(1 << (self.bits - 1))

    def load(self, low: int, high: int) -> Stored:
        codes = self.unpacked(self.packed.raw(low, high))[:, : self.cols]
        return Stored(codes, self.zeros(low, high), self.scale.floats(low, high))

    def zeros(self, low: int, high: int) -> np.ndarray | None:
        if self.zero is None:
            return None
        first, last = low // self.in_word, -(-high // self.in_word)
        words = self.zero.raw(first, last).reshape(last - first, -1, 4).transpose(1, 0, 2)
        begin = low - first * self.in_word
        return self.unpacked(words.reshape(words.shape[0], -1)).T[begin : begin + high - low]


class Bytes(Grouped):
    """Integers of eight bits, as they are ("int-quantized" of compressed-tensors), with a scale for all, for
    each row, or for each group of a row."""

    bits = 8

    def __init__(self, weight: Tensor, scale: Tensor, zero: Tensor | None) -> None:
        if len(weight.shape) != 2:
            weight.fail(f" has shape {list(weight.shape)}: integers in a matrix were expected")
        rows, cols = weight.shape
        whole = math.prod(scale.shape) == 1
        if not whole and (len(scale.shape) != 2 or scale.shape[0] != rows):
            scale.fail(f" has shape {list(scale.shape)}, and the integers {list(weight.shape)}")
        super().__init__(weight.name, weight, "I8", (rows, cols), 1 if whole else scale.shape[1])
        self.weight, self.scale, self.zero, self.whole = weight, scale, zero, whole
        if zero and (zero.dtype != "I8" or math.prod(zero.shape) != math.prod(scale.shape)):
            zero.fail(f" has shape {list(zero.shape)}, and the scales {list(scale.shape)}")

    def of_rows(self, x: np.ndarray, count: int) -> np.ndarray:
        """What one number for all, if it is that, is for `count` rows."""
        return np.broadcast_to(x.reshape(1, 1), (count, 1)) if self.whole else x

    def load(self, low: int, high: int) -> Stored:
        rows = (0, 1) if self.whole else (low, high)
        zeros = None
        if self.zero:
            zeros = self.of_rows(self.zero.raw(*rows).view(np.int8).astype(np.int16), high - low)
        codes = self.weight.raw(low, high).view(np.int8).astype(np.int16)
        return Stored(codes, zeros, self.of_rows(self.scale.floats(*rows), high - low))


class Floats4(Grouped):
    """E2M1, two columns in a byte, the first one lower, with scales for groups of a row: of NVFP4 in E4M3,
    times one number for the whole tensor; of MXFP4 and of DeepSeek-V4's experts in E8M0."""

    bits, codebook = 4, E2M1

    def __init__(self, name: str, weight: Tensor, scale: Tensor, factor: float) -> None:
        """factor: what the scales of NVFP4 are multiplied by, and 1."""
        shape = weight.shape[0] if weight.shape else 0, 2 * weight.cols
        kinds = ("F8_E4M3", "F8_E8M0")
        if len(weight.shape) != 2 or weight.dtype not in ("U8", "I8") or scale.dtype not in kinds:
            weight.fail(f" is {weight.dtype} {list(weight.shape)}, and bytes in a matrix were expected")
        if len(scale.shape) != 2 or scale.shape[0] != shape[0]:
            scale.fail(f" has shape {list(scale.shape)}, and the bytes {list(weight.shape)}")
        super().__init__(name, weight, "E2M1", shape, scale.shape[1])
        self.weight, self.scale, self.factor = weight, scale, np.float32(factor)

    def load(self, low: int, high: int) -> Stored:
        pairs = self.weight.raw(low, high)
        codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(high - low, self.cols)
        with np.errstate(all="ignore"):  # what is not finite is found by whoever looks at all numbers
            scale = self.scale.floats(low, high) * self.factor * np.float32(0.5)  # E2M1 is doubled
        return Stored(np.take(E2M1, codes).astype(np.int16), None, scale)

    def integers(self, low: int, high: int) -> Groups | None:
        codes, scale = self.differences(low, high)
        return used(codes.astype(np.int8), scale)


class Awq(Grouped):
    """AWQ's: qweight [columns, rows / 8] and qzeros [groups, rows / 8] in words of eight nibbles, scales
    [groups, rows]: its matrices are turned, and the rows in a word are out of order."""

    bits = 4

    def __init__(self, name: str, weight: Tensor, zeros: Tensor, scale: Tensor) -> None:
        matrices = all(len(part.shape) == 2 for part in (weight, zeros, scale))
        if not matrices or {weight.dtype, zeros.dtype} != {"I32"}:
            weight.fail(": AWQ's words of 32 bits in matrices were expected")
        groups, rows = scale.shape
        if weight.shape[1] * 8 != rows or zeros.shape != (groups, weight.shape[1]):
            weight.fail(
                f" has shape {list(weight.shape)}, the zero points {list(zeros.shape)}, "
                f"the scales {list(scale.shape)}"
            )
        super().__init__(name, weight, "AWQ", (rows, weight.shape[0]), groups)
        self.weight, self.zero, self.scale = weight, zeros, scale
        self.read: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bytes of words and zero points, and the scales. A slab of rows is a strip of columns, for which
        all must be read: they are kept until another tensor is."""
        if Awq.last is not self:
            if Awq.last:
                Awq.last.read = None
            Awq.last = self
        if self.read is None:
            whole = [part.raw(0, part.rows) for part in (self.weight, self.zero)]
            self.read = whole[0], whole[1], self.scale.floats(0, self.scale.rows)
        return self.read

    last: "Awq | None" = None

    def load(self, low: int, high: int) -> Stored:
        first, last = low // 8, -(-high // 8)

        def rows(words: np.ndarray) -> np.ndarray:
            strip = words[:, 4 * first : 4 * last]
            nibbles = np.stack([strip & 15, strip >> 4], axis=2).reshape(len(strip), last - first, 8)
            turned = nibbles[:, :, AWQ_NIBBLES].reshape(len(strip), -1).T
            return turned[low - 8 * first : high - 8 * first].astype(np.int16)

        weight, zeros, scale = self.parts()
        return Stored(rows(weight), rows(zeros), np.ascontiguousarray(scale[:, low:high].T))


# ---- which is which


def decode(source: Source, block: Block) -> None:
    """Puts what a quantized tensor of `source` is made of behind its one name. `block` = (rows, columns) that
    share one scale of an FP8 tensor. Raises ExportError."""
    for name in [name for name in source.tensors if name.endswith(OF_ACTIVATIONS)]:
        del source.tensors[name]
    for name, tensor in list(source.tensors.items()):
        if name not in source.tensors:  # a part of one that came before
            continue
        if name.endswith("_packed"):
            _packed(source, name.removesuffix("_packed"), source.tensors.pop(name))
        elif name.endswith(".qweight"):
            _awq(source, name.removesuffix(".qweight"), source.tensors.pop(name))
        elif name.endswith(TABLES) and tensor.dtype in ("I32", "I64"):
            source.tensors[name] = Table(tensor.shard, name, tensor.dtype, tensor.shape, tensor.offset)
        elif tensor.dtype == "U8" and f"{name}_scale_2" in source.tensors:
            scale, whole = source.part(tensor, name, "_scale"), source.part(tensor, name, "_scale_2")
            source.tensors[name] = Floats4(name, tensor, scale, _number(whole))
        elif tensor.dtype == "I8" and f"{name}_scale" in source.tensors:
            scale = source.part(tensor, name, "_scale")
            if scale.dtype == "F8_E8M0":  # DeepSeek-V4's experts
                source.tensors[name] = Floats4(name, tensor, scale, 1.0)
                continue
            source.tensors[name] = Bytes(tensor, scale, source.tensors.pop(f"{name}_zero_point", None))
    for name, tensor in list(source.tensors.items()):
        if tensor.dtype == "F8_E4M3" and name in source.tensors and not name.endswith("_scale"):
            scale = source.part(tensor, name, "_scale_inv", "_scale")
            one = math.prod(scale.shape) == 1
            source.tensors[name] = Scaled(tensor, scale, Block(WHOLE, WHOLE) if one else block)


def _number(tensor: Tensor) -> float:
    """The one number that a tensor holds."""
    if math.prod(tensor.shape) != 1:
        tensor.fail(f" has shape {list(tensor.shape)}, and one number was expected")
    return tensor.largest(0, 1)


def _packed(source: Source, name: str, packed: Tensor) -> None:
    part: Callable[[str], Tensor] = lambda suffix: source.part(packed, name, suffix)
    if packed.dtype != "U8":
        zero = source.tensors.pop(f"{name}_zero_point", None)
        source.add(name, Packed(name, packed, part("_scale"), part("_shape"), zero))
        return
    scale, factor = part("_scale"), 1.0
    if scale.dtype == "U8":  # MXFP4
        scale = Tensor(scale.shard, scale.name, "F8_E8M0", scale.shape, scale.offset)
    else:  # NVFP4, whose number for the whole tensor divides here
        whole = part("_global_scale")
        if not (number := _number(whole)):
            whole.fail(" is 0")
        factor = 1 / number
    source.add(name, Floats4(name, packed, scale, factor))


def _awq(source: Source, stem: str, weight: Tensor) -> None:
    zeros, scale = (source.part(weight, stem, suffix) for suffix in (".qzeros", ".scales"))
    source.add(f"{stem}.weight", Awq(f"{stem}.weight", weight, zeros, scale))
