"""A Hugging Face directory as a set of named tensors.

Reads safetensors (own parser of the header: nothing in the file is believed before it is checked), one file or many, and hands
out rows of a tensor as float32, whatever the stored type: F32, F16, BF16 or FP8 E4M3 with one scale per block. It reads what it is
asked for and keeps nothing, so memory does not grow with the model. It knows no model: names and shapes are plan.py's.
"""

import json
import math
import os
import re

import numpy as np

from .errors import ExportError, printable

HEADER_LIMIT = 100_000_000  # bytes of JSON; the safetensors library has the same limit
JSON_LIMIT = 200_000_000    # an index of a 1T model is 20 MB
CHUNK = 1 << 20             # elements read at once when a whole tensor is looked at

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
              "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
READABLE = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2"), "F8_E4M3": np.dtype("u1")}
# Bits without the sign: from this value on they are infinite or not a number.
NOT_FINITE = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F}

INSIDE = "language_model."  # begins the names of a language model's tensors where they are part of a model that sees
SEEING = ("vision_tower.", "vision_model.", "mm_projector.", "multi_modal_projector.")


def _e4m3_table():
    """The 256 values of FP8 E4M3 "fn": bias 7, largest 448, no infinity, 0x7F and 0xFF not a number."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    value[0x7F] = value[0xFF] = np.nan
    return np.where(code & 0x80, -value, value).astype(np.float32)


E4M3 = _e4m3_table()


def parse_json(text, path):
    """`text` (bytes) as a JSON object."""
    try:
        value = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ExportError(f"{path}: JSON nested too deeply; is this file damaged?") from None
    except ValueError as error:  # of UTF-8 or of JSON
        raise ExportError(f"{path}: not JSON: {printable(error)}") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def read_json(path, required=True):
    """The JSON object in the file at `path`; an empty one if the file is absent and not required."""
    if not required and not os.path.exists(path):
        return {}
    with open(path, "rb") as file:
        text = file.read(JSON_LIMIT + 1)
    if len(text) > JSON_LIMIT:
        raise ExportError(f"{path}: larger than {JSON_LIMIT} bytes; this is not a model's {os.path.basename(path)}")
    return parse_json(text, path)


class Shard:
    """One safetensors file: 8 bytes length of the header, the header (JSON), the tensors' bytes."""

    def __init__(self, path):
        self.path = path
        self.file = open(path, "rb", buffering=0)
        size = os.fstat(self.file.fileno()).st_size
        length = int.from_bytes(self.pread(8, 0), "little") if size >= 8 else 0
        if length < 2 or length > HEADER_LIMIT or length > size - 8:
            raise ExportError(f"{path}: not a safetensors file, or cut short: its header is said to be {length} bytes long and the file has {size}")
        self.data = 8 + length
        self.bytes = size - self.data
        header = parse_json(self.pread(length, 8), path)
        header.pop("__metadata__", None)
        self.tensors = {name: Tensor(self, name, entry) for name, entry in header.items()}

    def pread(self, count, offset):
        """Exactly `count` bytes. Thread-safe, and unlike a mapping no crash when the file shrinks meanwhile."""
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

    def __init__(self, shard, name, entry):
        def fail(what):
            raise ExportError(f"{shard.path}: tensor {printable(name)}: {what}")

        def naturals(value, count=None):
            right_length = isinstance(value, list) and len(value) in ([count] if count else range(9))
            return right_length and all(type(n) is int and 0 <= n < 1 << 60 for n in value)

        if not isinstance(entry, dict) or not naturals(entry.get("shape")) or not naturals(entry.get("data_offsets"), 2):
            fail("its header entry is damaged")
        dtype, shape, (begin, end) = entry.get("dtype"), entry["shape"], entry["data_offsets"]
        if dtype not in ITEM_BYTES:
            fail(f"unknown type {printable(dtype)}")
        if begin > end or end > shard.bytes:
            fail(f"lies at {begin} .. {end} of {shard.bytes} bytes of data: the file is cut short or damaged; download it again")
        if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
            fail(f"shape {shape} of {dtype} does not take {end - begin} bytes")
        self.shard, self.name, self.dtype, self.shape = shard, name, dtype, tuple(shape)
        self.offset = shard.data + begin
        self.cols = shape[-1] if shape else 1
        self.rows = math.prod(shape[:-1])

    def bits(self, low, high):
        """Rows low .. high - 1 as stored, as unsigned integers."""
        if self.dtype not in READABLE:
            raise ExportError(f"{self.shard.path}: tensor {printable(self.name)}: type {self.dtype} cannot be read; F32, F16, BF16 and F8_E4M3 can")
        dtype = READABLE[self.dtype]
        row_bytes = self.cols * dtype.itemsize
        raw = self.shard.pread((high - low) * row_bytes, self.offset + low * row_bytes)
        return np.frombuffer(raw, dtype).reshape(high - low, self.cols)

    def floats(self, low, high):
        bits = self.bits(low, high)
        if self.dtype == "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F16":
            return bits.view(np.float16).astype(np.float32)
        if self.dtype == "F8_E4M3":
            return E4M3[bits]
        return bits.view(np.float32)

    def largest(self):
        """The largest magnitude, before any scale. Refuses numbers that are not finite."""
        mask = NOT_FINITE.get(self.dtype, 0) | (NOT_FINITE.get(self.dtype, 1) - 1)
        step, top = max(1, CHUNK // max(1, self.cols)), 0
        for low in range(0, self.rows, step):
            bits = self.bits(low, min(self.rows, low + step))
            if bits.size:
                top = max(top, int((bits & bits.dtype.type(mask)).max()))
        if self.dtype in NOT_FINITE and top >= NOT_FINITE[self.dtype]:
            raise ExportError(f"{self.shard.path}: tensor {printable(self.name)} holds numbers that are infinite or not a number; "
                              "the file is damaged")
        if self.dtype == "F8_E4M3":
            return float(E4M3[top])
        if self.dtype == "BF16":
            return float(np.array([top << 16], np.uint32).view(np.float32)[0])
        return float(np.array([top], READABLE[self.dtype]).view(np.float32 if self.dtype == "F32" else np.float16)[0])


class Source:
    """All tensors of a directory. `block` = (rows, columns) that share one scale of an FP8 tensor."""

    def __init__(self, directory, block=(128, 128)):
        self.directory, self.block = directory, block
        self.scales = {}  # of FP8 tensors: [block rows, block columns], read once
        self.tensors = {}
        shards, index = _shards(directory)
        for name in shards:
            shard = Shard(os.path.join(directory, name))
            for tensor in shard.tensors.values():
                if tensor.name in self.tensors:
                    raise ExportError(f"{shard.path}: tensor {printable(tensor.name)} is also in {self.tensors[tensor.name].shard.path}")
                self.tensors[tensor.name] = tensor
            for tensor in index.get(name, ()):
                if tensor not in shard.tensors:
                    raise ExportError(f"{shard.path}: the index says that tensor {printable(tensor)} is here, and it is not; download both again")
        if any(name.startswith(INSIDE) for name in self.tensors):
            self._take_out()

    def _take_out(self):
        """A language model inside a larger one: its tensors get the names that they have alone, and what sees is left behind."""
        tensors = [tensor for name, tensor in self.tensors.items() if not name.startswith(SEEING)]
        for tensor in tensors:
            tensor.name = tensor.name.removeprefix(INSIDE)
        self.tensors = {tensor.name: tensor for tensor in tensors}

    def _scale(self, tensor):
        """The scales of an FP8 tensor, checked; weight = fp8 * scale of its block ("weight_scale_inv", and yet a factor)."""
        if tensor.name not in self.scales:
            name = tensor.name + "_scale_inv"
            scale = self.tensors.get(name)
            if scale is None:
                raise ExportError(f"{tensor.shard.path}: tensor {printable(tensor.name)} is FP8 and {printable(name)} is missing")
            wanted = tuple(-(-n // b) for n, b in zip(tensor.shape, self.block))
            if len(tensor.shape) != 2 or scale.shape != wanted:
                raise ExportError(f"{scale.shard.path}: tensor {printable(name)} has shape {list(scale.shape)}, and {list(tensor.shape)} "
                                  f"in blocks of {self.block[0]} x {self.block[1]} needs {list(wanted)}")
            scale.largest()
            self.scales[tensor.name] = scale.floats(0, scale.rows)
        return self.scales[tensor.name]

    def largest(self, name):
        """An upper bound of the magnitudes in a tensor; refuses infinities and what is not a number."""
        tensor = self.tensors[name]
        bound = tensor.largest()
        return bound * float(np.abs(self._scale(tensor)).max(initial=0)) if tensor.dtype == "F8_E4M3" else bound

    def rows(self, name, low, high):
        """Rows low .. high - 1 as float32 [high - low, columns]."""
        tensor = self.tensors[name]
        values = tensor.floats(low, high)
        if tensor.dtype == "F8_E4M3":
            scale = self._scale(tensor)[np.arange(low, high) // self.block[0]]
            values *= np.repeat(scale, self.block[1], axis=1)[:, : tensor.cols]
        return values


def _shards(directory):
    """(the files to read, {file: tensors that the index says are in it})."""
    index_path = os.path.join(directory, "model.safetensors.index.json")
    try:
        files = sorted(name for name in os.listdir(directory) if name.endswith(".safetensors"))
    except NotADirectoryError:
        raise ExportError(f"{directory}: not a directory; give the directory that holds config.json and *.safetensors") from None
    except FileNotFoundError:
        raise ExportError(f"{directory}: no such directory") from None
    if "model.safetensors" in files:
        return ["model.safetensors"], {}
    if not os.path.exists(index_path):
        if not files:
            raise ExportError(f"{directory}: no *.safetensors in it")
        _complete(directory, files)
        return files, {}
    index = {}
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{index_path}: has no weight_map")
    for tensor, name in weight_map.items():
        # A name, and nothing that could lead out of the directory (where a download cache may still link to).
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
            raise ExportError(f"{index_path}: tensor {printable(tensor)} is said to be in {printable(name)!r}, which is not a plain file name")
        index.setdefault(name, []).append(tensor)
    missing = [name for name in sorted(index) if name not in files]
    if missing:
        raise ExportError(f"{directory}: {len(missing)} of {len(index)} files are missing, the first is {missing[0]}; download the model completely")
    return sorted(index), index


def _complete(directory, files):
    """Files named ...-00001-of-00003 must be all there."""
    for name in files:
        match = re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})\.safetensors", name)
        for i in range(1, min(int(match.group(3)), 100_000) + 1) if match else ():
            wanted = f"{match.group(1)}{i:05d}-of-{match.group(3)}.safetensors"
            if wanted not in files:
                raise ExportError(f"{directory}: {wanted} is missing; download the model completely")
