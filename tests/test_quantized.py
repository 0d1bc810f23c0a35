"""Quantized safetensors, each form packed and unpacked here by plain loops over its published description:

NVFP4       two E2M1 in a byte, the first one lower; a scale in E4M3 for 16, and one f32 for the tensor: times
            it in ModelOpt's files, divided by it in compressed-tensors'
MXFP4       the same with a scale in E8M0, a power of two, for 32: q4 and q8 hold it without loss
integers    compressed-tensors' of 4 and 8 bits, with and without zero points, in words or as bytes
AWQ         turned matrices of words whose eight nibbles are rows 0 2 4 6 1 3 5 7
refusals    a part that is missing or has another shape is one line that names the tensor"""

import numpy as np
import pytest
from support import tensors, to_bf16

from exporter.sources import E4M3

QUANT = "quantization_config"
STEM = "model.layers.1.mlp.experts.0.down_proj"
ROWS, COLS = 72, 128
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 += [-x for x in FP4]


def model():
    """Changes to the tiny model's tensors for experts of 128: down_proj then has groups of 16 to 128."""
    sizes = {
        name: 2 * COLS if "shared" in name else COLS
        for name in tensors()
        if name.startswith("model.layers.1.mlp.") and "expert" in name
    }
    return {
        name: np.resize(tensors()[name], (ROWS, n) if "down" in name else (n, ROWS))
        for name, n in sizes.items()
    }


def compressed(form, **weights):
    weights = {"symmetric": True, "dynamic": False, "strategy": "group"} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def codes(least, most, seed=1, shape=(ROWS, COLS)):
    return np.random.default_rng(seed).integers(least, most + 1, shape)


def halves(groups, seed=2):
    """Scales that f16 and bf16 hold."""
    return ((64 + codes(0, 63, seed, (ROWS, groups))) * 2.0**-14).astype(np.float32)


def nibbles(code):
    """Two columns in a byte, the first one lower."""
    out = np.zeros((len(code), code.shape[1] // 2), np.uint8)
    for j in range(out.shape[1]):
        out[:, j] = code[:, 2 * j] | code[:, 2 * j + 1] << 4
    return out


def words(values, bits):
    """int32 words along the columns, first column lowest, each value + half of the range."""
    count = 32 // bits
    out = np.zeros((len(values), -(-values.shape[1] // count)), np.uint32)
    for j in range(values.shape[1]):
        code = (values[:, j] + (1 << bits - 1)).astype(np.uint32)
        out[:, j // count] |= code << np.uint32(bits * (j % count))
    return out.view(np.int32)


def spread(x, group):
    return np.repeat(x.astype(np.float64), group, axis=1)


def nvfp4(modelopt):
    code, scale = codes(0, 15), codes(0x20, 0x77, 3, (ROWS, COLS // 16)).astype(np.uint8)
    number = np.float32(0.0078125 if modelopt else 128)
    parts = {
        ".weight" if modelopt else ".weight_packed": ("U8", nibbles(code)),
        ".weight_scale": ("F8_E4M3", scale),
        ".weight_scale_2" if modelopt else ".weight_global_scale": ("F32", number.reshape(1)),
        ".input_scale" if modelopt else ".input_global_scale": ("F32", np.ones(1, np.float32)),
    }
    factor = number if modelopt else 1 / number
    return parts, np.array(FP4)[code] * spread(E4M3[scale] * factor, 16)


def mxfp4():
    code, scale = codes(0, 15), codes(110, 125, 3, (ROWS, COLS // 32)).astype(np.uint8)
    parts = {".weight_packed": ("U8", nibbles(code)), ".weight_scale": ("U8", scale)}
    return parts, np.array(FP4)[code] * spread(2.0 ** (scale.astype(float) - 127), 32)


def integers(bits, group, zeros):
    half = 1 << bits - 1
    value, scale = codes(-half + (bits == 8), half - 1), halves(COLS // group)
    parts = {
        ".weight_packed": ("I32", words(value, bits)),
        ".weight_scale": ("BF16", to_bf16(scale)),
        ".weight_shape": ("I64", np.array([ROWS, COLS])),
    }
    zero = codes(-half, half - 1, 4, scale.shape) if zeros else np.zeros(scale.shape, int)
    if zeros:
        parts[".weight_zero_point"] = ("I32", np.ascontiguousarray(words(zero.T, bits).T))
    return parts, (value - np.repeat(zero, group, axis=1)) * spread(scale, group)


def bytes_(groups, zeros):
    value = codes(-127, 127).astype(np.int8)
    scale = halves(max(groups, 1))[: ROWS if groups else 1]
    parts = {".weight": ("I8", value), ".weight_scale": ("F32", scale if groups else scale.reshape(1))}
    zero = np.zeros(scale.shape, np.int8)
    if zeros:
        zero = codes(-128, 127, 4, scale.shape).astype(np.int8)
        parts[".weight_zero_point"] = ("I8", zero)
    centred = value - np.repeat(zero.astype(int), COLS // scale.shape[1], axis=1)
    return parts, centred * spread(scale, COLS // scale.shape[1])


def awq(group):
    value, zero = codes(0, 15), codes(0, 15, 4, (ROWS, COLS // group))
    scale = halves(COLS // group)

    def turned(x):
        out = np.zeros((x.shape[1], ROWS // 8), np.uint32)
        for i in range(ROWS):
            place = [0, 2, 4, 6, 1, 3, 5, 7].index(i % 8)  # AutoAWQ: word |= row[order[place]] << 4 * place
            out[:, i // 8] |= x[i].astype(np.uint32) << np.uint32(4 * place)
        return out.view(np.int32)

    parts = {
        ".qweight": ("I32", turned(value)),
        ".qzeros": ("I32", turned(zero)),
        ".scales": ("F16", np.ascontiguousarray(scale.T.astype(np.float16)).view(np.uint16)),
    }
    return parts, (value - np.repeat(zero, group, axis=1)) * spread(scale, group)


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "producer": {}}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FORMS = {
    "nvfp4 of ModelOpt": (nvfp4(True), MODELOPT, ""),
    "nvfp4": (nvfp4(False), compressed("nvfp4-pack-quantized", type="float", num_bits=4, group_size=16), ""),
    "mxfp4": (mxfp4(), compressed("mxfp4-pack-quantized", type="float", num_bits=4, group_size=32), "q4 q8"),
    "int4 by 128": (integers(4, 128, False), compressed("pack-quantized", type="int", num_bits=4), "q4 q8"),
    "int4 by 16": (integers(4, 16, False), compressed("pack-quantized", type="int", num_bits=4), ""),
    "int4 with zeros": (
        integers(4, 32, True),
        compressed("pack-quantized", type="int", num_bits=4, symmetric=False),
        "q8",
    ),
    "int8 packed": (integers(8, 64, False), compressed("pack-quantized", type="int", num_bits=8), "q8"),
    "int8 packed with zeros": (
        integers(8, 64, True),
        compressed("pack-quantized", type="int", num_bits=8, symmetric=False),
        "",
    ),
    "int8 by row": (
        bytes_(1, False),
        compressed("int-quantized", type="int", num_bits=8, strategy="channel"),
        "q8",
    ),
    "int8 of a tensor": (
        bytes_(0, False),
        compressed("int-quantized", type="int", num_bits=8, strategy="tensor"),
        "q8",
    ),
    "int8 with zeros": (
        bytes_(1, True),
        compressed("int-quantized", type="int", num_bits=8, strategy="channel", symmetric=False),
        "",
    ),
    "awq": (awq(128), AWQ, "q8"),
    "awq by 64": (awq(64), AWQ, "q8"),
}


def changes(parts):
    return model() | {f"{STEM}.weight": None} | {STEM + ending: x for ending, x in parts.items()}


@pytest.mark.parametrize("type", ["f32", "q8", "q4"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, type, source, exported):
    """In f32 the numbers are those of the form; q8 and q4 carry them over unchanged where they have them, and
    round them once where not."""
    (parts, want), config, kept = FORMS[form]
    got = exported(source({"moe_intermediate_size": COLS, QUANT: config}, changes(parts)), "--type", type)
    y = got.read("layers.1.experts.0.down")[0]
    if type == "f32":
        np.testing.assert_allclose(y, want, rtol=2e-7, atol=0)
    elif type in kept:
        np.testing.assert_array_equal(y, want)
    else:
        assert np.abs(y - want).max() <= np.abs(want).max() * (0.2 if type == "q4" else 0.006)


def test_a_statement_of_modelopt_alone(source, exported):
    """hf_quant_config.json, and nothing in config.json."""
    folder = source({"moe_intermediate_size": COLS}, changes(FORMS["nvfp4 of ModelOpt"][0][0]))
    (folder / "hf_quant_config.json").write_text(
        '{"quantization": {"quant_algo": "NVFP4", "group_size": 16}}'
    )
    got = exported(folder, "--type", "f32")
    assert not isinstance(got, str), got
    y = got.read("layers.1.experts.0.down")[0]
    np.testing.assert_allclose(y, FORMS["nvfp4 of ModelOpt"][0][1], rtol=2e-7)


@pytest.mark.parametrize("form", FORMS)
def test_parts_that_are_missing_or_misshapen(form, source, exported):
    (parts, _), config, _ = FORMS[form]
    inputs = (".input_scale", ".input_global_scale")
    for ending in [ending for ending in parts if ending not in inputs]:
        kind, x = parts[ending]
        for wrong in (None, (kind, np.concatenate([x, x]))):
            if wrong is None and ending.endswith("zero_point"):
                continue  # without it the integers are symmetric
            folder = source({"moe_intermediate_size": COLS, QUANT: config}, changes(parts | {ending: wrong}))
            message = exported(folder)
            assert STEM in message and message.count("\n") <= 1, (ending, message)
