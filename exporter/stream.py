"""The tensors of a checkpoint as a stream of packed pieces: out of a source, or drawn at random.

Whatever the model's size, a few slabs of rows are in memory at a time; all processors pack. plan.py says
which rows make a tensor, quantize.py packs them, writer.py writes the pieces.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .errors import ExportError, printable
from .plan import Q4, TYPE_NAMES, VECTOR, Entry
from .quantize import CODEBOOK, fast, kept_multiplier, multiplier, pack, pack_integers
from .sources import Groups, Source
from .workers import Call, Workers, processors
from .writer import Piece, tensor_bytes

SLAB = 1 << 16  # weights packed at once: the temporaries stay in a core's cache, and malloc reuses them
KEPT_MEMORY = 16 << 20  # bytes; several times what a slab needs
RANDOM_STD = 0.02  # initializer_range of the published models
# Different panels of 16 random rows for each type and width; a prime, so that no pattern lines up.
RANDOM_PANELS = 61


def time_left(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min left"
    return f"{minutes} min left" if minutes > 1 else f"{seconds:.0f} s left"


class Progress:
    """One line on standard error, on a terminal only. total, count: bytes."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begin, self.shown = total, 0, time.monotonic(), 0.0
        self.visible = sys.stderr.isatty()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.visible and (now - self.shown > 0.2 or self.done == self.total):
            self.shown = now
            rate = self.done / max(now - self.begin, 1e-9)
            percent = 100 * self.done // max(self.total, 1)
            left = time_left((self.total - self.done) / max(rate, 1e-9))
            line = f"\r{percent:3d} % of {self.total / 1e6:.0f} MB, {rate / 1e6:.0f} MB/s, {left}   "
            print(line, end="\n" if self.done == self.total else "", file=sys.stderr, flush=True)


class Slab(NamedTuple):
    """Rows low .. high - 1 of a matrix of a tensor."""

    matrix: int
    low: int
    high: int


def slabs(entry: Entry) -> Iterator[Slab]:
    """The pieces of a tensor: whole panels, at most about SLAB weights, or as many rows as are rotated
    together."""
    step = max(16, SLAB // entry.cols // 16 * 16)
    if entry.hadamard_rows:
        unit = max(16, entry.hadamard)  # both are powers of two
        step = -(-step // unit) * unit
    for m in range(entry.count):
        for low in range(0, entry.rows, step):
            yield Slab(m, low, min(entry.rows, low + step))


def scale_of(entry: Entry, source: Source) -> tuple[float, bool]:
    """(the tensor's multiplier, are its integers carried over as they are?); looks at all its numbers, so
    that infinities and what is not a number are found before they are packed."""
    if not entry.source:
        return 1.0, False
    if entry.keeps_groups():
        tensor = source.tensors[entry.source]
        kept = kept_multiplier(tensor, entry.ranges(), entry.type)
        if kept is not None:
            return kept, True
    largest = max(source.largest(entry.source, low, high) for low, high in entry.ranges())
    if entry.below and largest >= entry.below:
        what = f"{largest:.0f} is in it, and whole numbers from 0 to {entry.below - 1} were expected"
        source.tensors[entry.source].fail(f": {what}")
    if entry.factor is not None:
        largest *= max(1.0, float(np.abs(entry.factor).max()))
    largest *= max(1.0, entry.times)
    if entry.hadamard:
        largest *= entry.hadamard**0.5  # more than any does become, but a scale has room
    if entry.gain:
        largest *= source.largest(entry.gain)
    if largest > 3.3e38:
        raise ExportError(f"tensor {printable(entry.source)} holds {largest:g}, too large to be a weight")
    return multiplier(largest, entry.type), False


def packed(entry: Entry, source: Source, scale: float, kept: bool, slab: Slab) -> Piece:
    """One slab of a tensor. scale, kept: scale_of()."""
    if kept:
        begin, end, which = entry.place(*slab)
        tensor = source.tensors[entry.source]
        found = tensor.integers(begin, end)
        assert found is not None  # or scale_of() had not kept them
        groups = Groups(found.integers[which], found.scale[which] / np.float32(scale))
        data = pack_integers(groups, entry.type, tensor.codebook)
        return Piece(scale, codebook(entry, tensor.codebook), data)
    values = entry.load(source, *slab)
    if entry.type == VECTOR:
        return Piece(1.0, b"", np.ascontiguousarray(values, np.float32))
    data = pack(values * np.float32(1 / scale) if scale != 1 else values, entry.type)
    return Piece(scale, codebook(entry, CODEBOOK), data)


def codebook(entry: Entry, values: np.ndarray) -> bytes:
    return values.tobytes() if entry.type == Q4 else b""


class Packer:
    """Packs the tensors of a source: what a worker's process is copied with."""

    def __init__(self, entries: list[Entry], source: Source) -> None:
        self.entries, self.source = entries, source

        # The C library keeps freed memory for the next arrays, up to the largest that it has seen freed;
        # otherwise each slab's arrays would be new pages from the system.
        np.empty(KEPT_MEMORY, np.uint8)
        fast()  # once, and not in every worker

    def __call__(self, index: int, *part: Any) -> Any:
        """scale_of() of entry `index`, or, where a scale and a slab are given, packed()."""
        entry = self.entries[index]
        return packed(entry, self.source, *part) if part else scale_of(entry, self.source)


def source_tensors(entries: list[Entry], workers: Workers, progress: Progress) -> Iterator[Iterator[Piece]]:
    """For write_checkpoint: the slabs of each tensor, packed by all processors. workers: of a Packer of the
    entries."""
    ahead = 2 * processors()

    def work() -> Iterator[Call]:
        scales = workers.in_order(((i,) for i in range(len(entries))), ahead)
        for i, scale in enumerate(scales):
            for slab in slabs(entries[i]):
                yield i, *scale, slab

    def counted() -> Iterator[Piece]:
        for piece in workers.in_order(work(), ahead):
            progress.add(piece.data.nbytes)
            yield piece

    done = counted()
    for entry in entries:
        yield itertools.islice(done, sum(1 for _ in slabs(entry)))


# What stands in a random vector whose name ends so; in others, which are norms, 1. A router's bias is there,
# and prefers none.
RANDOM_VECTORS = {"router_bias": 2.0**-10, "_bias": 0.0, "_base": 0.0, "sinks": 0.0, "_ape": 0.0}


def random_vector(entry: Entry, random: np.random.Generator) -> np.ndarray:
    if entry.constant is not None:
        return entry.constant
    if entry.below:  # a table of experts, different ones for each token
        rows, cols = entry.shape
        first, step = random.integers(entry.below, size=(rows, 1)), max(1, entry.below // cols)
        table = (first + step * np.arange(cols)) % entry.below
        return table.astype(np.float32).reshape(-1)
    value = next((value for end, value in RANDOM_VECTORS.items() if entry.name.endswith(end)), 1.0)
    return np.full(entry.rows, value, np.float32)


def random_tensors(entries: list[Entry], seed: int, progress: Progress) -> Iterator[Iterator[Piece]]:
    """For write_checkpoint: normally distributed weights. A few panels are drawn for each type and width and
    then repeated in random order: writing is then all that takes time, and no kernel can tell."""
    random = np.random.default_rng(seed)
    scale_for = {kind: multiplier(8 * RANDOM_STD, kind) for kind in TYPE_NAMES.values()}
    panels: dict[tuple[int, int], np.ndarray] = {}  # of a type and a width

    def draw(entry: Entry, rows: int) -> np.ndarray:
        values = random.standard_normal((rows, entry.cols), np.float32)
        return pack(values * np.float32(RANDOM_STD / scale_for[entry.type]), entry.type)

    def pieces(entry: Entry) -> Iterator[Piece]:
        if entry.type == VECTOR:
            yield Piece(1.0, b"", random_vector(entry, random))
            return
        key = entry.type, entry.cols
        if key not in panels:
            panels[key] = draw(entry, 16 * RANDOM_PANELS)
        same = scale_for[entry.type], codebook(entry, CODEBOOK)
        for slab in slabs(entry):
            whole, rest = divmod(slab.high - slab.low, 16)
            if whole:
                yield Piece(*same, panels[key][random.integers(RANDOM_PANELS, size=whole)])
            if rest:
                yield Piece(*same, draw(entry, rest))

    for entry in entries:
        yield pieces(entry)
        progress.add(tensor_bytes(entry))
