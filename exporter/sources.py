"""Safetensors as a set of named tensors, and what every source has in common.

A source hands out rows of a tensor as float32, whatever the stored type: F32, F16, BF16, and what is made of
several tensors (quantized.py). Integers that stand in groups with one scale can also be had as they are. Own
parser of the header: nothing in a file is believed before it is checked. It reads what it is asked
for and keeps nothing, so memory does not grow with the model. It knows no model: names and shapes are
plan.py's. GGUF files are gguf_source.py's, Mistral's own names mistral.py's; pickles are refused, because
reading one runs the code in it.
"""

import copy
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .errors import ExportError, printable
from .files import read_file, refuse_pointer, regular
from .weight_formats import refuse_form, refuse_forms

HEADER_LIMIT = 100_000_000  # bytes of JSON; the safetensors library has the same limit
INDEX_LIMIT = 200_000_000  # an index of a 1T model is 20 MB
JSON_LIMIT = 20_000_000  # any other JSON; a configuration that lists modules may have a few 100 KB
CHUNK = 1 << 18  # elements read at once when a whole tensor is looked at

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
READABLE: dict[str, np.dtype] = {
    "F32": np.dtype("<u4"),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
}
# Bits without the sign (E8M0 has none): from this value on they are infinite or not a number.
NOT_FINITE = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E8M0": 0xFF}
MAGNITUDE = {"F32": 0x7FFFFFFF, "F16": 0x7FFF, "BF16": 0x7FFF, "F8_E4M3": 0x7F, "F8_E8M0": 0xFF}

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
CONVERT = (
    "PyTorch's pickles are not read, because reading one runs the code in it; "
    "have transformers write safetensors: "
    'AutoModelForCausalLM.from_pretrained("SOURCE", dtype="auto").save_pretrained("NEW")'
)

# What begins the names of a language model's tensors where it is part of a model that reads images, and what
# they begin with alone. Versions of transformers differ; 5.24 writes the layers of Kimi-K2.5 as blocks.
INSIDE = {
    "language_model.model.blocks.": "model.layers.",
    "language_model.": "",
    "model.language_model.": "model.",
}
# the other parts of such a model, with or without "model." in front
OF_IMAGES = (
    "vision_tower.", "vision_model.", "visual.", "mm_projector.", "multi_modal_projector.", "image_newline",
)  # fmt: skip


def _e4m3_table() -> np.ndarray:
    """The 256 values of FP8 E4M3 "fn": bias 7, largest 448, no infinity, 0x7F and 0xFF not a number."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    value[0x7F] = value[0xFF] = np.nan
    return np.where(code & 0x80, -value, value).astype(np.float32)


E4M3 = _e4m3_table()
# powers of two alone; 0xFF is not a number
E8M0 = np.append(2.0 ** np.arange(-127, 128), np.nan).astype(np.float32)


UNIFORM = np.arange(-8, 8, dtype=np.int8)  # what integers of four bits are usually


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: which of two equal ones holds, readers decide differently."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in value if keys.count(key) > 1)!r} is there twice")
    return value


def parse_json(text: bytes, path: str) -> dict[str, Any]:
    """`text` as a JSON object; `path` for messages."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ExportError(f"{path}: JSON nested too deeply; is this file damaged?") from None
    except ValueError as error:  # of UTF-8 or of JSON
        raise ExportError(f"{path}: not JSON: {printable(error)}") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def read_json(path: str, required: bool = True, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in the file at `path`, of at most `limit` bytes; an empty one if the file is absent and
    not required."""
    if not required and not os.path.exists(path):
        return {}
    return parse_json(read_file(path, limit), path)


class File:
    """A regular file that is read in pieces, from any thread."""

    def __init__(self, path: str) -> None:
        regular(path)
        self.path = path
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (as long as its tensors are used)
        self.size, self.changed = self.state()
        refuse_pointer(path, self.pread(min(self.size, 64), 0))

    def state(self) -> tuple[int, int]:
        """(bytes, time of the last change in nanoseconds)."""
        status = os.fstat(self.file.fileno())
        return status.st_size, status.st_mtime_ns

    def pread(self, count: int, offset: int) -> bytes:
        """Exactly `count` bytes. Thread-safe, and unlike a mapping no crash when the file shrinks."""
        parts = []
        while count:
            part = os.pread(self.file.fileno(), min(count, 1 << 30), offset)
            if not part:
                raise ExportError(f"{self.path}: ends too early; download it again")
            parts.append(part)
            count, offset = count - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Tensor:
    """Where one tensor lies. `rows` are all dimensions but the last, flattened; a vector is one row."""

    bits, group = 0, 0  # of a tensor of integers: 4 or 8, and how many of a row share one scale
    codebook = UNIFORM  # of one with four bits: its sixteen values, int8

    def __init__(self, shard: File, name: str, dtype: str, shape: Sequence[int], offset: int) -> None:
        self.shard, self.name, self.dtype, self.shape, self.offset = shard, name, dtype, tuple(shape), offset
        self.cols = shape[-1] if shape else 1
        self.rows = math.prod(shape[:-1])
        self.row_bytes = self.cols * ITEM_BYTES.get(dtype, 0)  # other types set their own

    def fail(self, what: str) -> NoReturn:
        raise ExportError(f"{self.shard.path}: tensor {printable(self.name)}{what}")

    def part(self, first: int, rows: int) -> "Tensor":
        """`rows` rows from `first` on as a matrix of their own."""
        part = copy.copy(self)
        part.shape, part.rows, part.offset = (rows, self.cols), rows, self.offset + first * self.row_bytes
        return part

    def integers(self, low: int, high: int) -> "Groups | None":
        """Rows low .. high - 1 as integers with their scales; None where they are not stored so."""
        return None

    def raw(self, low: int, high: int) -> np.ndarray:
        """The bytes of rows low .. high - 1 [high - low, bytes of a row]."""
        data = self.shard.pread((high - low) * self.row_bytes, self.offset + low * self.row_bytes)
        return np.frombuffer(data, np.uint8).reshape(high - low, self.row_bytes)

    def stored(self, low: int, high: int) -> np.ndarray:
        """Rows low .. high - 1 as stored, as unsigned integers."""
        if self.dtype not in READABLE:
            self.fail(f": type {self.dtype} cannot be read; F32, F16, BF16 and F8_E4M3 can")
        return self.raw(low, high).view(READABLE[self.dtype])

    def floats(self, low: int, high: int) -> np.ndarray:
        """Rows low .. high - 1 as float32 [high - low, columns]."""
        return self.decoded(self.stored(low, high))

    def decoded(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers as float32."""
        if self.dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F16":
            return stored.view(np.float16).astype(np.float32)
        if self.dtype in ("F8_E4M3", "F8_E8M0"):
            return np.take(E4M3 if self.dtype == "F8_E4M3" else E8M0, stored)
        return stored.view(np.float32)

    def largest(self, low: int, high: int) -> float:
        """The largest magnitude in rows low .. high - 1. Refuses numbers that are not finite."""
        top = 0
        for begin, end in steps(self, low, high):
            stored = self.stored(begin, end)
            top = max(top, int((stored & stored.dtype.type(MAGNITUDE[self.dtype])).max(initial=0)))
        if top >= NOT_FINITE[self.dtype]:
            self.not_finite()
        return float(self.decoded(np.array([top], READABLE[self.dtype]))[0])

    def not_finite(self) -> NoReturn:
        self.fail(" holds numbers that are infinite or not a number; the file is damaged")


def steps(tensor: Tensor, low: int, high: int) -> Iterator[tuple[int, int]]:
    """(first row, last row + 1) pieces of about CHUNK numbers."""
    step = max(1, CHUNK // max(1, tensor.cols))
    return ((begin, min(high, begin + step)) for begin in range(low, high, step))


class Groups(NamedTuple):
    """Rows of integers."""

    integers: np.ndarray  # int8 [rows, columns]
    scale: np.ndarray  # float32 [rows, columns / group]


def used(integers: np.ndarray, scale: np.ndarray) -> Groups:
    """Where all integers of a group are 0 its scale is made 0, too: a scale that nothing needs may be any
    number, and that would be kept."""
    zeros = ~integers.reshape(*scale.shape, -1).any(axis=2)
    return Groups(integers, np.where(zeros & np.isfinite(scale), np.float32(0), scale))


class Integers(Tensor):
    """A tensor of integers [rows, cols] with one scale for each `group` of a row. A kind of it says how they
    are stored: integers()."""

    def integers(self, low: int, high: int) -> Groups | None:
        """Rows low .. high - 1; None if they are too large for int8."""
        raise NotImplementedError

    def floats(self, low: int, high: int) -> np.ndarray:
        groups = self.integers(low, high)
        assert groups is not None  # or a kind that overrides this
        integers, scale = groups
        values = integers.reshape(*scale.shape, self.group).astype(np.float32)
        values *= scale[:, :, None]
        return values.reshape(high - low, self.cols)

    def largest(self, low: int, high: int) -> float:
        top = 0.0
        for begin, end in steps(self, low, high):
            with np.errstate(all="ignore"):
                values = self.floats(begin, end)
                # numpy's maximum, and not Python's, passes on what is not a number
                piece = float(np.maximum(values.max(initial=0), -values.min(initial=0)))
            if not np.isfinite(piece):
                self.not_finite()
            top = max(top, piece)
        return top


class Source:
    """Named tensors, by the names that transformers gives them. `directory`: where they are from, for
    messages; it may be a file."""

    def __init__(self, directory: str) -> None:
        self.directory, self.tensors, self.files = directory, dict[str, Tensor](), list[File]()

    def has(self, suffix: str) -> bool:
        """Is there a tensor whose name ends so?"""
        endings = suffix, f"{suffix}_packed", suffix.replace(".weight", ".qweight")
        return any(name.endswith(endings) for name in self.tensors)

    def add(self, name: str, tensor: Tensor) -> None:
        if name in self.tensors:
            raise ExportError(
                f"{tensor.shard.path}: tensor {printable(name)} is also in {self.tensors[name].shard.path}"
            )
        self.tensors[name] = tensor

    def check_unchanged(self) -> None:
        """Raises ExportError if a file is not as it was when it was opened."""
        for file in self.files:
            if file.state() != (file.size, file.changed):
                raise ExportError(f"{file.path}: changed while it was read; export again")

    def rows(self, name: str, low: int, high: int) -> np.ndarray:
        """Rows low .. high - 1 as float32 [high - low, columns]."""
        return self.tensors[name].floats(low, high)

    def largest(self, name: str, low: int = 0, high: int = 1) -> float:
        """An upper bound of the magnitudes in rows low .. high - 1; refuses infinities and what is not a
        number."""
        return self.tensors[name].largest(low, high)

    def part(self, tensor: Tensor, name: str, *suffixes: str) -> Tensor:
        """Takes out what belongs to `tensor`, under `name` and one of the suffixes."""
        for suffix in suffixes:
            if name + suffix in self.tensors:
                return self.tensors.pop(name + suffix)
        tensor.fail(f" is {tensor.dtype}, and {printable(name + suffixes[0])} is missing")


class Safetensors(Source):
    """The safetensors of a directory: `stem`.safetensors, or what `stem`.safetensors.index.json lists, or all
    that there are. `rename`: a tensor's name -> what transformers calls it, or None for one that is left
    behind."""

    def __init__(
        self,
        directory: str,
        stem: str = "model",
        rename: Callable[[str], str | None] = lambda name: name,
    ) -> None:
        super().__init__(directory)
        shards, index = _shards(directory, stem)
        for shard in shards:
            self.files.append(File(os.path.join(directory, shard)))
            tensors = read_header(self.files[-1])
            for name, tensor in tensors.items():
                ours = rename(name)
                if ours is not None:
                    self.add(ours, tensor)
            for name in index.get(shard, ()):
                if name not in tensors:
                    raise ExportError(
                        f"{os.path.join(directory, shard)}: the index says that tensor {printable(name)} "
                        "is here, and it is not; download both again"
                    )
        refuse_forms(directory, {name: tensor.dtype for name, tensor in self.tensors.items()}, read_json)
        if any(name.startswith(tuple(INSIDE)) for name in self.tensors):
            self._take_out()

    def _take_out(self) -> None:
        """A language model inside a larger one: its tensors get the names that they have alone, and what is
        for images is left behind."""
        found, self.tensors = self.tensors, {}
        for name, tensor in found.items():
            if name.removeprefix("model.").startswith(OF_IMAGES):
                continue
            inside = next((begin for begin in INSIDE if name.startswith(begin)), "")
            self.add(INSIDE.get(inside, "") + name.removeprefix(inside), tensor)


def read_header(file: File) -> dict[str, Tensor]:
    """{name: Tensor} of one safetensors file: 8 bytes length of the header, the header (JSON), the tensors'
    bytes."""
    length = int.from_bytes(file.pread(8, 0), "little") if file.size >= 8 else 0
    if length < 2 or length > HEADER_LIMIT or length > file.size - 8:
        raise ExportError(
            f"{file.path}: not a safetensors file, or cut short: its header is said to be {length} bytes "
            f"long, and the file has {file.size}"
        )
    header = parse_json(file.pread(length, 8), file.path)
    header.pop("__metadata__", None)
    return {name: _tensor(file, 8 + length, name, entry) for name, entry in header.items()}


def _tensor(file: File, data: int, name: str, entry: Any) -> Tensor:
    """The header's `entry` as a Tensor; the tensors' bytes begin at `data`."""

    def fail(what: str) -> NoReturn:
        raise ExportError(f"{file.path}: tensor {printable(name)}: {what}")

    def naturals(value: Any, count: int | None = None) -> bool:
        right_length = isinstance(value, list) and len(value) in ([count] if count else range(9))
        return right_length and all(type(n) is int and 0 <= n < 1 << 60 for n in value)

    if (
        not isinstance(entry, dict)
        or not naturals(entry.get("shape"))
        or not naturals(entry.get("data_offsets"), 2)
    ):
        fail("its header entry is damaged")
    dtype, shape, (begin, end) = entry.get("dtype"), entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and re.fullmatch(r"F[46](_\w+)?", dtype):
        refuse_form(file.path, f"floating-point numbers of {dtype[1]} bits ({printable(dtype, 20)})")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        fail(f"unknown type {printable(dtype)}")
    if begin > end or end > file.size - data:
        fail(
            f"lies at {begin} .. {end} of {file.size - data} bytes of data: "
            "the file is cut short or damaged; download it again"
        )
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        fail(f"shape {shape} of {dtype} does not take {end - begin} bytes")
    return Tensor(file, name, dtype, shape, data + begin)


class Shards(NamedTuple):
    files: list[str]  # to read, names in the directory
    listed: dict[str, list[str]]  # file -> tensors that the index says are in it


def _shards(directory: str, stem: str) -> Shards:
    """The files of a model, and that all of them are there."""
    index_path = os.path.join(directory, f"{stem}.safetensors.index.json")
    names = os.listdir(directory)
    # Some models come in both forms, transformers' and Mistral's, in one directory.
    files = sorted(
        name
        for name in names
        if name.endswith(".safetensors") and name.startswith("consolidated") == (stem == "consolidated")
    )
    if f"{stem}.safetensors" in files:
        return Shards([f"{stem}.safetensors"], {})
    if not os.path.exists(index_path):
        if not files:
            pickles = [name for name in names if name.endswith(PICKLES)]
            raise ExportError(
                f"{directory}: no *.safetensors in it"
                + (f", but {printable(pickles[0])}: {CONVERT}" if pickles else "")
            )
        _complete(directory, files)
        return Shards(files, {})
    return _indexed(directory, index_path, files)


def _indexed(directory: str, index_path: str, files: list[str]) -> Shards:
    """What the index lists; all of it must be among `files`."""
    index: dict[str, list[str]] = {}
    weight_map = read_json(index_path, limit=INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{index_path}: has no weight_map")
    for tensor, name in weight_map.items():
        # A name, and nothing that could lead out of the directory (where a download cache may still link to).
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
            raise ExportError(
                f"{index_path}: tensor {printable(tensor)} is said to be in {printable(name)!r}, "
                "which is not a plain file name"
            )
        index.setdefault(name, []).append(tensor)
    missing = [name for name in sorted(index) if name not in files]
    if missing:
        raise ExportError(
            f"{directory}: {len(missing)} of {len(index)} files are missing, the first is {missing[0]}; "
            "download the model completely"
        )
    return Shards(sorted(index), index)


def parts(name: str, ending: str) -> list[str]:
    """The files that belong together with one named ...-00001-of-00003`ending`, in order; [name] for
    another."""
    match = re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})" + re.escape(ending), name)
    return (
        [f"{match.group(1)}{i:05d}-of-{match.group(3)}{ending}" for i in range(1, int(match.group(3)) + 1)]
        if match
        else [name]
    )


def _complete(directory: str, files: list[str]) -> None:
    """Files named ...-00001-of-00003 must be all there."""
    for name in files:
        for wanted in parts(name, ".safetensors"):
            if wanted not in files:
                raise ExportError(f"{directory}: {wanted} is missing; download the model completely")
