"""Quantized weights: how FP8 numbers share scales, and the names of the forms that are not read.

quantized.py says which forms are read. Every other form is refused by the name that people know it by. What
tells is, in this order: quantization_config, or MLX's "quantization", in config.json; hf_quant_config.json,
which NVIDIA's ModelOpt may write alone; the names and types of the tensors, for files whose configuration
was lost.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from .errors import ExportError, printable
from .keys import Keys

WHOLE = 1 << 40  # more rows and columns than a tensor has: one scale for all of it


class Block(NamedTuple):
    """The rows and columns that share one scale of an FP8 tensor."""

    rows: int
    cols: int


USUAL = Block(128, 128)  # DeepSeek's

# What the quant_method of a quantization_config is known as.
METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "fbgemm_fp8": "FP8 of FBGEMM",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "mlx": "MLX",
    "modelopt": "NVIDIA ModelOpt",
    "modelopt_fp4": "NVFP4 (NVIDIA ModelOpt)",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
# Of compressed-tensors: the formats that are not read.
FORMATS = {
    "mxfp8-quantized": "MXFP8",
    "naive-quantized": "8-bit numbers without a layout",
    "marlin-24": "Marlin 2:4",
    "sparse-24-bitmask": "2:4 sparsity",
}
# Of tensors whose configuration says nothing: the endings of names, with the type that a tensor of that name
# must have (None: any), all of which are there.
SIGNS = (
    ("MXFP4", {"_blocks": "U8", "_scales": "U8"}),
    ("GPTQ", {".qweight": "I32", ".qzeros": "I32", ".scales": None, ".g_idx": "I32"}),
    ("MLX", {".weight": "U32", ".scales": None}),
    ("bitsandbytes (4 bits)", {".weight": "U8", ".weight.absmax": None}),
    ("bitsandbytes (8 bits)", {".weight": "I8", ".SCB": None}),
    ("bitsandbytes (8 bits)", {".weight": "I8", ".weight_format": None}),
    ("HQQ", {".W_q": None}),
    ("FP8 E5M2", {".weight": "F8_E5M2"}),
)


def refuse_form(where: str, form: str) -> NoReturn:
    raise ExportError(
        f"{where}: the weights are quantized as {form}, which is not read; "
        "take the model as it was published, in BF16 or FP8, or a GGUF file of it"
    )


def _modelopt(quant: Mapping[str, Any]) -> str:
    """What ModelOpt's quant_algo is known as; "" if it is read."""
    algorithm = quant.get("quant_algo")
    if algorithm in ("NVFP4", "FP8"):
        return ""
    return f"{printable(algorithm, 40)} (NVIDIA ModelOpt)" if algorithm else METHODS["modelopt"]


def refuse_config(values: Mapping[str, Any], where: str) -> None:
    """Refuses a configuration whose quantization_config, or MLX's quantization, names a form that is not
    read."""
    stated = values.get("quantization_config")
    quant = stated if isinstance(stated, dict) else {}
    method = quant.get("quant_method")
    method = method.lower() if isinstance(method, str) else method
    if method is None and ("load_in_4bit" in quant or "load_in_8bit" in quant):
        method = "bitsandbytes"  # which wrote no quant_method at first
    of_modelopt = method == "modelopt" or (method is None and quant.get("quant_algo"))
    if of_modelopt and (algorithm := _modelopt(quant)):
        refuse_form(where, algorithm)
    if isinstance(method, str) and method in METHODS and method != "modelopt":
        bits = 4 if quant.get("load_in_4bit") is True else 8 if quant.get("load_in_8bit") is True else None
        bits = bits or quant.get("bits")
        sizes = f", {bits} bits" if type(bits) is int else ""
        refuse_form(where, f"{METHODS[method]} (quant_method {method}{sizes})")
    if method == "compressed-tensors":
        groups = quant.get("config_groups")
        groups = list(groups.values()) if isinstance(groups, dict) else []
        for block in [quant, *groups]:
            form = block.get("format") if isinstance(block, dict) else None
            if isinstance(form, str) and form in FORMATS:
                refuse_form(where, f"{FORMATS[form]} (compressed-tensors, {form})")
    for block in (values.get("quantization"), quant if method is None else None):
        if isinstance(block, dict) and "group_size" in block and "bits" in block:
            mode = block.get("mode")
            mode = f", {printable(mode, 20)}" if mode else ""
            refuse_form(where, f"MLX ({printable(block['bits'], 20)} bits{mode})")


def refuse_statement(values: Mapping[str, Any], where: str) -> None:
    """Refuses what hf_quant_config.json states; `values`: that file."""
    quant = values.get("quantization")
    if isinstance(quant, dict) and quant.get("quant_algo") and (form := _modelopt(quant)):
        refuse_form(where, form)


def refuse_tensors(types: Mapping[str, str], where: str) -> None:
    """Refuses tensors that together are a known form that is not read. `types`: {name: type}."""
    endings: dict[str, dict[str, str]] = {}  # ending -> {what is before it: type}
    wanted = {ending for _, signs in SIGNS for ending in signs}
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(wanted, key=len, reverse=True))) + ")$")
    for name, kind in types.items():
        match = pattern.search(name)
        if match:
            endings.setdefault(match.group(), {})[name[: match.start()]] = kind
    for form, signs in SIGNS:
        stems = [
            {stem for stem, kind in endings.get(ending, {}).items() if needed in (None, kind)}
            for ending, needed in signs.items()
        ]
        if set.intersection(*stems):
            refuse_form(where, form)


def refuse_forms(
    directory: str, types: Mapping[str, str], read_json: Callable[[str], dict[str, Any]]
) -> None:
    """What the files of a directory say, beside config.json: hf_quant_config.json and the tensors. `types`:
    {name of a tensor: type}; `read_json(path)`: the object in a file."""
    path = os.path.join(directory, "hf_quant_config.json")
    if os.path.exists(path):
        refuse_statement(read_json(path), path)
    refuse_tensors(types, directory)


def fp8_block(keys: Keys) -> Block:
    """The numbers that share one scale of an FP8 tensor. Which tensors are FP8, and which four-bit integers,
    they say themselves."""
    values = keys.get("quantization_config", None)
    if values is None:
        return USUAL
    if not isinstance(values, dict):
        keys.fail("quantization_config", "an object was expected")
    quant = Keys(values, f"{keys.where}: quantization_config")
    if quant.get("quant_algo", None):  # ModelOpt's may have no quant_method
        return _of_modelopt(quant)
    if isinstance(quant.get("quant_method", None), str):
        quant.values["quant_method"] = quant.values["quant_method"].lower()
    method = quant.one_of("quant_method", "fp8", "compressed-tensors", "awq")
    if method == "compressed-tensors":
        return _compressed(quant)
    if method == "awq":
        return _awq(quant)
    quant.one_of("fmt", "e4m3")
    whole = Block(WHOLE, WHOLE)
    block = _block(quant, "weight_block_size") if quant.get("weight_block_size", None) else whole
    quant.one_of("expert_dtype", "fp8", "fp4")
    # How activations are quantized elsewhere, how the scales were rounded, and which modules are not FP8
    # (their type says so).
    activations = {"activation_scheme", "scale_fmt", "dequantize"}
    quant.finish(activations | {"modules_to_not_convert", "modules_to_convert", "ignored_layers"})
    return block


def _of_modelopt(quant: Keys) -> Block:
    quant.one_of("quant_method", None, "modelopt", "modelopt_fp4")
    quant.one_of("quant_algo", "NVFP4", "FP8")
    # The sizes of groups the shapes say, and the layers that are not quantized their types.
    sizes, layers = {"config_groups", "group_size"}, {"ignore", "exclude_modules"}
    quant.finish(sizes | layers | {"producer", "kv_cache_scheme", "kv_cache_quant_algo", "quant_library"})
    return Block(WHOLE, WHOLE)


def _awq(quant: Keys) -> Block:
    quant.one_of("bits", 4)
    quant.one_of("zero_point", True)
    version = quant.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        quant.fail("version", "gemm was expected: other packings are not read")
    running = {"backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config"}
    quant.finish(running | {"group_size", "modules_to_not_convert"})
    return USUAL


def _block(quant: Keys, key: str) -> Block:
    block = quant.get(key)
    pair = isinstance(block, list) and len(block) == 2
    if not pair or any(type(n) is not int or not 1 <= n <= 1 << 20 for n in block):
        quant.fail(key, "two positive integers were expected")
    return Block(*block)


def _compressed(quant: Keys) -> Block:
    """The same of the compressed-tensors format, whose groups of modules may be FP8 or integers of four
    bits."""
    groups = quant.get("config_groups")
    if not isinstance(groups, dict) or not all(
        isinstance(group, dict) and isinstance(group.get("weights"), dict) for group in groups.values()
    ):
        quant.fail("config_groups", "groups with their weights were expected")
    found = [_group(Keys(group["weights"], f"{quant.where}: weights")) for group in groups.values()]
    blocks = {block for block in found if block}
    if len(blocks) > 1:
        quant.fail("config_groups", "all FP8 tensors must have scales for blocks of the same size")
    floats = "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"
    quant.one_of("format", None, *floats, "pack-quantized", "int-quantized", "mixed-precision")
    quant.one_of("quantization_status", "compressed")
    for key in ("sparsity_config", "transform_config"):
        quant.one_of(key, {}, {"format": "dense"})
    quant.finish({"ignore", "kv_cache_scheme", "global_compression_ratio", "version"})
    return blocks.pop() if blocks else USUAL


def _group(weights: Keys) -> Block | None:
    """The block of one group; None if it is of integers or of floats of four bits, which say their groups
    themselves."""
    kind = weights.one_of("type", "int", "float")
    bits = weights.one_of("num_bits", 4, 8)
    if not weights.boolean("symmetric", True) and kind == "float":
        weights.fail("symmetric", "floats have no zero points")
    weights.one_of("dynamic", False)
    block = None
    if kind == "int":
        weights.one_of("strategy", "group", "channel", *(["tensor"] if bits == 8 else []))
    elif bits == 4:
        weights.one_of("strategy", "group", "tensor_group")
    else:
        strategy = weights.one_of("strategy", "tensor", "channel", "block")
        block = Block(1 if strategy == "channel" else WHOLE, WHOLE)
        if strategy == "block":
            block = _block(weights, "block_structure")
    # A group's size the shapes say; an order of columns would come with a tensor of its own.
    sizes, made = {"group_size", "block_structure"}, {"observer", "observer_kwargs", "actorder"}
    weights.finish(sizes | made | {"scale_dtype", "zp_dtype"})
    return block
