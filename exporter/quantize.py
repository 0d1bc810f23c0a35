"""float32 rows -> panels of 16 rows, as kernels/kernels.h lays them out: f32, bf16, q8 and q4.

Whole arrays at a time, so that numpy's loops do the work; callers bring so few rows that the arrays stay in a
core's cache. What is written here is the definition. kernels/pack.c does the same in a fraction of the time,
to the last bit, and is used where it was built (compiled.py).
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import compiled
from .errors import warn
from .plan import BF16, F32, Q4, Q8
from .sources import UNIFORM, Groups, Tensor, steps

PANEL, BLOCK, GROUP = 16, 64, 32
LINE = 64  # bytes of a cache line and of the widest vector register

# The sixteen values of a q4 weight, before its scale. Dense near zero, where most weights are: these minimize
# the squared error of normally distributed weights when every 32 of them have the best of all scales (found
# by Lloyd's alternation of "best scales for the values" and "best values for the scales", then rounded). The
# scale may be negative: the longer side then serves either sign.
CODEBOOK = np.array([-127, -99, -78, -61, -47, -34, -21, -9, 2, 13, 24, 36, 49, 64, 82, 105], np.int8)

# The scale of 32 weights is searched among those that put the one of largest magnitude at these values, which
# lie around both ends.
TRIES = (-140, -130, -120, -110, 95, 105, 115)


def _nearest() -> np.ndarray:
    """For every int8, as a byte: the index of the codebook's nearest value."""
    value = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int32)
    distance = np.abs(value[:, None] - CODEBOOK.astype(np.int32))
    return np.asarray(distance.argmin(axis=1), np.uint8)


def _pairs(table: np.ndarray, pair: npt.DTypeLike) -> np.ndarray:
    """A table for one byte as one for two, seen as the type `pair`: half as many look-ups take half the
    time."""
    return np.stack([np.tile(table, 256), np.repeat(table, 256)], axis=1).view(pair)[:, 0]


NEAREST = _pairs(_nearest(), np.uint16)
NEAREST_VALUE = _pairs(CODEBOOK[_nearest()].astype(np.float32), np.float64)


def multiplier(largest: float, kind: int) -> float:
    """The factor that a quantized tensor's scales leave out: a power of two that puts the largest of them
    near 2^9. Halves then have 23 binades of full precision below it."""
    if kind not in (Q8, Q4) or largest == 0:
        return 1.0
    return float(2.0 ** np.clip(np.floor(np.log2(largest)) - 15, -126, 127))


def kept_multiplier(tensor: Tensor, ranges: list[tuple[int, int]], kind: int) -> float | None:
    """The multiplier with which the rows in `ranges` [(first, last + 1)] of `tensor`, integers with one scale
    for each 32 of a row or a multiple of that, can be packed as they are: every integer is one that `kind`
    has, and every scale a half, but for what is less than 2^-38 of the largest. None where that is not so,
    and its numbers must be rounded."""
    if not tensor.group or tensor.group % GROUP or tensor.bits not in {Q8: (4, 8), Q4: (4,)}.get(kind, ()):
        return None

    held = np.zeros(256, bool)
    held[tensor.codebook.view(np.uint8)] = True

    def pieces() -> Iterator[Groups | None]:
        for low, high in ranges:
            yield from (tensor.integers(begin, end) for begin, end in steps(tensor, low, high))

    def fits(scale: np.ndarray, factor: np.float32, slack: float) -> bool:
        with np.errstate(all="ignore"):
            return bool((np.abs((scale / factor).astype(np.float16) * factor - scale) <= slack).all())

    largest, one = 0.0, True
    for piece in pieces():
        if piece is None or piece.integers.min(initial=0) < -127:
            return None
        if kind == Q4 and not np.take(held, piece.integers.view(np.uint8)).all():
            return None
        scale = piece.scale
        largest, one = (
            max(largest, float(np.abs(scale).max(initial=0))),
            one and fits(scale, np.float32(1), 0),
        )
    if one and largest < np.inf:
        return 1.0
    if not 0 < largest < np.inf:
        return None
    factor = 2.0 ** np.clip(np.floor(np.log2(largest)) - 14, -126, 127)
    all_fit = all(piece and fits(piece.scale, np.float32(factor), largest * 2.0**-38) for piece in pieces())
    return float(factor) if all_fit else None


def pack_integers(groups: Groups, kind: int, codebook: np.ndarray = UNIFORM) -> np.ndarray:
    """The panels of integers with their scales, each for a multiple of 32 columns, as they are; of Q4 with
    the codebook that holds them."""
    q = _padded(groups.integers, PANEL, BLOCK)
    per_group = groups.integers.shape[1] // groups.scale.shape[1] // GROUP
    scale = np.repeat(groups.scale.astype(np.float16), per_group, axis=1)
    scale = _padded(scale, PANEL, BLOCK // GROUP)
    if kind == Q8:
        return _blocks_q8(q, scale)
    code = np.zeros(256, np.uint8)
    code[codebook[::-1].view(np.uint8)] = np.arange(15, -1, -1)  # the first of two that are equal
    return _blocks_q4(np.take(code, q.view(np.uint8)).reshape(-1, GROUP).T, scale)


@functools.cache
def fast() -> compiled.Compiled | None:
    """pack.c, if it is there and gives the bytes of this file: it may be of another version, and compilers
    have faults."""
    found = compiled.load()
    if found is None:
        return None
    x = np.random.default_rng(0).standard_normal((24, 160)).astype(np.float32)
    for part in (x, x[:, :100].copy()):
        if not all(
            np.array_equal(_pack_compiled(found, part, kind), define(part, kind)) for kind in (Q8, Q4)
        ):
            warn(f"{found.path} is not used: it packs otherwise than {__name__}; run make again")
            return None
    return found


def _pack_compiled(found: compiled.Compiled, x: np.ndarray, kind: int) -> np.ndarray:
    return found.q8(x) if kind == Q8 else found.q4(x, CODEBOOK, np.array(TRIES, np.float32))


def pack(x: np.ndarray, kind: int) -> np.ndarray:
    """x [rows, cols] float32, finite -> its panels as bytes [panels, bytes of a panel]."""
    found = fast() if kind in (Q8, Q4) else None
    return _pack_compiled(found, np.ascontiguousarray(x), kind) if found else define(x, kind)


def define(x: np.ndarray, kind: int) -> np.ndarray:
    """What pack() gives."""
    cols = x.shape[1]
    return {F32: _pack_f32, BF16: _pack_bf16, Q8: _pack_q8, Q4: _pack_q4}[kind](
        _padded(x, PANEL, BLOCK if kind in (Q8, Q4) else 1), cols
    )


def _padded(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """x with zeros up to multiples of `rows` and `cols`."""
    if x.shape[0] % rows == 0 and x.shape[1] % cols == 0:
        return np.ascontiguousarray(x)
    out = np.zeros((-(-x.shape[0] // rows) * rows, -(-x.shape[1] // cols) * cols), x.dtype)
    out[: x.shape[0], : x.shape[1]] = x
    return out


def _pack_f32(x: np.ndarray, cols: int) -> np.ndarray:
    return (
        np.ascontiguousarray(x.reshape(-1, PANEL, cols).transpose(0, 2, 1))
        .view(np.uint8)
        .reshape(-1, cols * PANEL * 4)
    )


def _pack_bf16(x: np.ndarray, cols: int) -> np.ndarray:
    bits = x.view(np.uint32)
    bits = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even
    return (
        np.ascontiguousarray(bits.reshape(-1, PANEL, cols).transpose(0, 2, 1))
        .view(np.uint8)
        .reshape(-1, cols * PANEL * 2)
    )


def _blocks(scale: np.ndarray, words: np.ndarray, unit_words: int) -> np.ndarray:
    """scale [rows, groups of 32] f16 and words [rows, blocks * unit_words] uint32 (4 bytes of one row each)
    -> panels."""
    panels, blocks = scale.shape[0] // PANEL, scale.shape[1] // 2
    out = np.empty((panels, blocks, 16 + 16 * unit_words), np.uint32)
    out[:, :, 16:] = (
        words.reshape(panels, PANEL, blocks, unit_words).transpose(0, 2, 3, 1).reshape(panels, blocks, -1)
    )
    halves = scale.reshape(panels, PANEL, blocks, 2).transpose(0, 2, 3, 1).reshape(panels, blocks, -1)
    out[:, :, :16] = np.ascontiguousarray(halves).view(np.uint32)
    return out.view(np.uint8).reshape(panels, -1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale as float32, 0 where it is (next to) nothing."""
    scale = scale.astype(np.float32)
    inverse = np.zeros_like(scale)
    np.divide(1, scale, out=inverse, where=np.abs(scale) > 1e-30)
    return inverse


def _aligned(shape: tuple[int, ...], kind: npt.DTypeLike) -> np.ndarray:
    """Fresh memory from an address on that a vector register likes: a third of the time of products."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    memory = np.empty(size + LINE, np.uint8)
    begin = -memory.ctypes.data % LINE
    return memory[begin : begin + size].view(kind).reshape(shape)


def _columns(x: np.ndarray) -> np.ndarray:
    """x [rows, cols] as [32, rows * groups]: each group is a column, so that its sums and maxima run over
    whole arrays."""
    groups = _aligned((GROUP, x.size // GROUP), x.dtype)
    np.copyto(groups, x.reshape(-1, GROUP).T)
    return groups


def _pack_q8(x: np.ndarray, cols: int) -> np.ndarray:
    groups = _columns(x)
    largest = np.maximum(groups.max(axis=0), -groups.min(axis=0))
    # rounded first, then the integers; of zeros numpy's maximum has now this sign, now that
    scale = (np.abs(largest) / np.float32(127)).astype(np.float16)
    np.multiply(groups, _inverse(scale), out=groups)
    np.clip(np.rint(groups, out=groups), -127, 127, out=groups)
    q = np.ascontiguousarray(groups.astype(np.int8).T)
    return _blocks_q8(q.reshape(x.shape), scale.reshape(x.shape[0], -1))


def _blocks_q8(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return _blocks(scale, (q.view(np.uint8) ^ 128).view(np.uint32), 16)  # weight + 128


class Fit(NamedTuple):
    """Of each group, float32 [n]."""

    scale: np.ndarray
    gain: np.ndarray


class Trial:
    """n groups of 32 weights, x [32, n], and the arrays that trying a scale on them needs, allocated once:
    fresh memory for every try would cost as much as the arithmetic. present [32, n] is 0 where a weight is
    only padding, or None."""

    def __init__(self, x: np.ndarray, present: np.ndarray | None) -> None:
        self.x, self.present = x, present
        self.value, self.code = _aligned(x.shape, np.float32), _aligned(x.shape, np.int8)

    def round(self, inverse: np.ndarray, clip: bool) -> np.ndarray:
        """x * inverse as int8, two bytes at a time, which index NEAREST. Without `clip` all must be below
        127.5 as they are."""
        np.multiply(self.x, inverse, out=self.value)
        if clip:
            np.clip(self.value, -127, 127, out=self.value)
        np.rint(self.value, out=self.value)
        np.copyto(self.code, self.value, casting="unsafe")
        return self.code.view(np.uint16)

    def fit(self, inverse: np.ndarray, clip: bool = True) -> Fit:
        """The best scale for the codes that 1 / inverse gives, and by how much it lowers the squared
        error."""
        np.take(NEAREST_VALUE, self.round(inverse, clip), out=self.value.view(np.float64), mode="clip")
        value = self.value
        if self.present is not None:
            value *= self.present
        vv = np.einsum("jn,jn->n", value, value)  # exact, in any order
        # column by column, and no product fused with a sum, as einsum does on some processors
        xv = np.multiply(self.x, value, out=value).sum(axis=0, initial=0)
        scale = np.divide(xv, vv, out=np.zeros_like(xv), where=vv != 0)
        return Fit(scale, xv * scale)

    def search(self) -> np.ndarray:
        """The scales of least squared error, as f16."""
        top, bottom = self.x.max(axis=0), self.x.min(axis=0)
        inverse = _inverse(np.where(top >= -bottom, top, bottom))  # of the weight of largest magnitude
        best, most = np.zeros_like(top), np.zeros_like(top)
        for value in TRIES:
            scale, gain = self.fit(inverse * np.float32(value), abs(value) > 127)
            np.copyto(best, scale, where=gain > most)
            np.maximum(gain, most, out=most)
        return self.fit(_inverse(best)).scale.astype(np.float16)


def _pack_q4(x: np.ndarray, cols: int) -> np.ndarray:
    rows = x.shape[0]
    groups, present = _columns(x), None
    if cols % GROUP:
        present = (
            np.broadcast_to(np.arange(x.shape[1]) < cols, x.shape).reshape(-1, GROUP).T.astype(np.float32)
        )
    trial = Trial(groups, present)
    scale = trial.search()
    return _blocks_q4(
        np.take(NEAREST, trial.round(_inverse(scale), True), mode="clip").view(np.uint8),
        scale.reshape(rows, -1),
    )


def _blocks_q4(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """codes [32, rows * groups]"""
    pairs = codes[:16] | codes[16:] << 4  # byte i: columns i and 16 + i
    words = np.ascontiguousarray(pairs.T).view(np.uint32)  # [rows * groups, 4 words]
    return _blocks(scale, words.reshape(scale.shape[0], -1), 8)
