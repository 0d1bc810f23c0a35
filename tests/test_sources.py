"""The forms in which people have models, each exported and compared with what is known of it from outside:

GGUF        written by the gguf package from the tiny models of tests/models, in llama.cpp's layout: exported
            like the original directory, byte for byte; quantized blocks arrive as the gguf package has them
FP8, INT4   every layout of scales; words packed by the compressed-tensors library
Mistral     params.json and its names: the same checkpoint as transformers' form
refusals    what is damaged, cut short or lies about its size is one line and no file"""

import json
import struct
from types import SimpleNamespace

import compare
import gguf
import numpy as np
import pytest
from support import MODELS, safetensors, tensors, to_bf16

from exporter import gguf_config, mistral
from exporter.errors import ExportError
from exporter.gguf_source import read_gguf
from exporter.sources import E4M3, UNIFORM, File

# ---- GGUF


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("model", ["v2lite", "v2_236b", "v3_fp8"])
def test_gguf_is_the_model(model, split, write_gguf, exported):
    """In f32 nothing is lost on the way, so the checkpoint is that of the original directory: its
    configuration, names and numbers."""
    path, _ = write_gguf(model, "F32", split)
    assert exported(path, "--type", "f32").file == exported(MODELS / model, "--type", "f32").file


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_gguf_halves(kind, write_gguf, exported):
    path, stored = write_gguf("v2lite", kind)
    got = exported(path, "--type", "f32")
    if kind == "BF16":  # all but the latent projections are bf16 in the original, too
        assert (
            got.bytes("layers.1.experts.5.down").tobytes()
            == exported(MODELS / "v2lite", "--type", "f32").bytes("layers.1.experts.5.down").tobytes()
        )
    np.testing.assert_array_equal(got.read("layers.0.q")[0], stored["blk.0.attn_q.weight"])


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize(
    "kind, type", [("Q8_0", "q8"), ("Q4_0", "q4"), ("Q4_0", "mixed"), ("Q5_0", "q8"), ("Q8_0", "q4")]
)
def test_gguf_blocks(kind, type, split, write_gguf, exported):
    """Blocks of q8_0 in a q8 tensor, and of q4_0 in q4 or q8, keep their integers and scales: the numbers are
    exactly those that llama.cpp has. Others are rounded again, q8 from q5_0 to within half a step."""
    path, stored = write_gguf("v2lite", kind, split)
    got = exported(path, "--type", type, "--no-rotation")
    names = {
        "embed": "token_embd",
        "head": "output",
        "layers.0.q": "blk.0.attn_q",
        "layers.1.kv_a": "blk.1.attn_kv_a_mqa",
        "layers.2.o": "blk.2.attn_output",
        "layers.0.down": "blk.0.ffn_down",
        "layers.1.shared.up": "blk.1.ffn_up_shexp",
    }
    want = {ours: stored[theirs + ".weight"] for ours, theirs in names.items()}
    want["layers.0.w_uv"] = (
        stored["blk.0.attn_v_b.weight"]
        if split
        else stored["blk.0.attn_kv_b.weight"].reshape(2, 96, 32)[:, 32:]
    )
    want |= {
        f"layers.2.experts.{e}.{part}": stored[f"blk.2.ffn_{part}_exps.weight"][e]
        for e in range(6)
        for part in ("gate", "up", "down")
    }
    for name, x in want.items():
        y = got.read(name).reshape(x.shape)
        if kind == "Q5_0":
            assert np.abs(x - y).max() <= np.abs(x).max() * (0.5 / 127 + 2.0**-11 + 1e-6), name
        elif (kind, type) == ("Q8_0", "q4"):
            assert np.abs(x - y).max() <= np.abs(x).max() * 0.2, name
        else:
            np.testing.assert_array_equal(y, x, err_msg=name)
            if got.names[name]["type"] == 4:
                assert (
                    got.names[name]["codebook"]
                    == UNIFORM.tobytes()
                    == bytes(range(248, 256)) + bytes(range(8))
                )


def test_same_logits_from_four_and_eight_bits(tmp_path, write_gguf, exported):
    """A q4_0 model as q4 and as q8: the same integers, found through a codebook and directly, so the same
    logits to the last bit."""
    path, _ = write_gguf("v2lite", "Q4_0")
    found = []
    for type in ("q4", "q8"):
        exported(path, "--type", type, "--no-rotation")
        found.append(compare.logits(tmp_path / "model.bin", range(100)).tobytes())
    assert found[0] == found[1]


def test_rotation_rounds_again(write_gguf, exported):
    """What the latent's rotation changes cannot keep its integers; the rest of the file still does."""
    path, _ = write_gguf("v2lite", "Q8_0")
    got, plain = exported(path, "--type", "q8"), exported(path, "--type", "q8", "--no-rotation")
    assert got.bytes("layers.0.w_uk").tobytes() != plain.bytes("layers.0.w_uk").tobytes()
    assert got.bytes("layers.0.o").tobytes() == plain.bytes("layers.0.o").tobytes()


def test_integer_that_q8_lacks(write_gguf, exported):
    """-128 may stand in a q8_0 block and not in a q8 tensor: that tensor is rounded again."""
    path, stored = write_gguf("v2lite", "Q8_0")
    raw = bytearray(path.read_bytes())
    tensor = read_gguf(File(path))[1]["blk.0.attn_q.weight"]
    raw[tensor.offset + 2] = 0x80
    path.write_bytes(raw)
    scale = float(np.frombuffer(raw, np.float16, 1, tensor.offset)[0])
    y = exported(path, "--type", "q8", "--no-rotation").read("layers.0.q")[0, 0]
    assert (
        y[0] == pytest.approx(-128 * scale, rel=1e-3)
        and not (y[1:32] == stored["blk.0.attn_q.weight"][0, 1:32]).all()
    )


OURS = {gguf.GGMLQuantizationType[kind] for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0")}


def test_other_types_of_blocks(tmp_path):
    """K-quants and the like, every type that the gguf package turns into numbers: its numbers, whichever rows
    are asked for."""
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "deepseek2")
    want = {}
    for kind in set(gguf.quants._type_traits) - OURS:
        raw = rng.integers(0, 256, (5, 2, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8).reshape(5, -1)
        raw &= 0xBF  # scales below 2
        want[kind.name] = gguf.quants.dequantize(raw, kind)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
    (
        writer.write_header_to_file(),
        writer.write_kv_data_to_file(),
        writer.write_tensors_to_file(),
        writer.close(),
    )
    found = read_gguf(File(tmp_path / "x.gguf"))[1]
    for name, x in want.items():
        assert found[name].shape == x.shape
        np.testing.assert_array_equal(found[name].floats(1, 4), x[1:4])


def test_gguf_in_parts(write_gguf, exported):
    """...-00001-of-00003.gguf: the first is named, all are read; one that is missing is named."""
    whole, _ = write_gguf("v2lite", "F32")
    want = exported(whole, "--type", "f32").file
    parts = [whole.with_name(f"v2lite-0000{i}-of-00002.gguf") for i in (1, 2)]
    reader = gguf.GGUFReader(whole)
    for part, tensors_of in zip(parts, (reader.tensors[::2], reader.tensors[1::2]), strict=True):
        writer = gguf.GGUFWriter(part, "deepseek2")
        for key, field in reader.fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture" and part == parts[0]:
                writer.add_key_value(key, field.contents(), field.types[0])
        writer.add_uint16("split.count", 2), writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors_of:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        (
            writer.write_header_to_file(),
            writer.write_kv_data_to_file(),
            writer.write_tensors_to_file(),
            writer.close(),
        )
    assert exported(parts[0], "--type", "f32").file == want
    assert "give the first" in exported(parts[1])
    parts[1].unlink()
    assert parts[1].name in exported(parts[0])


def test_what_a_gguf_leaves_out():
    """Group limits, scoring and YaRN's ends are not in older files: those of the published model of the same
    shape, and told where there is none."""

    source = SimpleNamespace(
        directory="x.gguf",
        tensors={"model.embed_tokens.weight": SimpleNamespace(shape=(163840, 7168))},
        metadata={
            "general.architecture": "deepseek2",
            **{
                f"deepseek2.{key}": value
                for key, value in {
                    "rope.dimension_count": 64,
                    "attention.head_count": 64,
                    "embedding_length": 7168,
                    "block_count": 61,
                    "attention.q_lora_rank": 1536,
                    "attention.kv_lora_rank": 512,
                    "attention.key_length": 192,
                    "attention.value_length": 128,
                    "feed_forward_length": 18432,
                    "context_length": 131072,
                    "attention.layer_norm_rms_epsilon": 1e-6,
                    "rope.freq_base": 50000.0,
                    "expert_count": 384,
                    "expert_used_count": 8,
                    "expert_shared_count": 1,
                    "expert_feed_forward_length": 2048,
                    "leading_dense_block_count": 1,
                    "rope.scaling.type": "yarn",
                    "rope.scaling.factor": 32.0,
                    "rope.scaling.original_context_length": 4096,
                    "rope.scaling.yarn_log_multiplier": 0.1,
                }.items()
            },
        },
    )
    values, notes = gguf_config.config(source)
    assert (
        values["rope_scaling"]["beta_fast"] == 1 and values["rope_scaling"]["mscale_all_dim"] == 1
    )  # Kimi-K2's
    assert (values["scoring_func"], values["norm_topk_prob"], values["routed_scaling_factor"], notes) == (
        "sigmoid",
        True,
        2.827,
        [],
    )
    source.metadata["deepseek2.expert_count"] = 380
    assert gguf_config.config(source)[1] == [
        "n_group 1",
        "topk_group 1",
        "routed_scaling_factor 1.0",
        "norm_topk_prob False",
    ]


def replaced(old, new):
    return lambda raw: raw.replace(old, new)


def patched(at, value):
    """Eight bytes of the header: the number of tensors is at 8, of keys at 16, the length of the first key at
    24."""
    return lambda raw: raw[:at] + struct.pack("<Q", value) + raw[at + 8 :]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda raw: raw[:3], "cut short"),
        (lambda raw: raw[:30], "cut short"),
        (lambda raw: raw[:400], "cut short"),
        (lambda raw: raw[:-40000], "cut short"),
        (lambda raw: b"GGUF" + struct.pack(">I", 3) + raw[8:], "kind of machine"),
        (patched(8, 1 << 62), "x.gguf"),
        (patched(16, 1 << 62), "x.gguf"),
        (patched(24, 1 << 62), "cut short"),
        (lambda raw: raw[:24] + bytes(1 << 16), "twice"),
        (replaced(b"deepseek2", b"llama3.14"), "llama3.14"),
        (replaced(b"blk.1.attn_norm", b"blk.1.attn_mask"), "layers.1.input_layernorm.weight is missing"),
        (replaced(b"deepseek2.block_count", b"deepseek2.block_cousi"), "block_count is missing"),
    ],
)
def test_damaged_gguf(change, says, write_gguf, exported):
    path, _ = write_gguf("v2lite", "Q8_0", name="x")
    path.write_bytes(change(path.read_bytes()))
    message = exported(path)
    assert says in message and "x.gguf" in message


@pytest.mark.parametrize("type", ["q8", "mixed"])
def test_scale_that_is_not_finite(type, write_gguf, exported):
    path, _ = write_gguf("v2lite", "Q8_0")
    raw = bytearray(path.read_bytes())
    offset = read_gguf(File(path))[1]["blk.1.ffn_up_exps.weight"].offset
    raw[offset : offset + 2] = struct.pack("<H", 0x7C00)
    path.write_bytes(raw)
    message = exported(path, "--type", type)
    assert "infinite" in message and "ffn_up_exps" in message


def test_package_is_asked_for(write_gguf, exported, monkeypatch):
    path, _ = write_gguf("v2lite", "Q5_0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    monkeypatch.setitem(__import__("sys").modules, "gguf.quants", None)
    assert "pip install gguf" in exported(path)


# ---- FP8 and INT4

WEIGHT = "model.layers.0.self_attn.o_proj.weight"  # [72, 36]


def fp8(strategy, block=None):
    """The quantization_config of the compressed-tensors library."""
    weights = {
        "num_bits": 8,
        "type": "float",
        "strategy": strategy,
        "symmetric": True,
        "dynamic": False,
        "block_structure": block,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": {"dynamic": True}}
        },
    }


PER_TENSOR = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
POWERS = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]}


@pytest.mark.parametrize(
    "config, suffix, shape, kind",
    [
        (POWERS, "_scale_inv", (3, 2), "F8_E8M0"),
        (POWERS, "_scale_inv", (3, 2), "F32"),
        (PER_TENSOR, "_scale_inv", (), "F32"),
        (PER_TENSOR, "_scale", (1,), "BF16"),
        (fp8("tensor"), "_scale", (1,), "F32"),
        (fp8("channel"), "_scale", (72, 1), "BF16"),
        (fp8("block", [32, 32]), "_scale", (3, 2), "F32"),
    ],
    ids=[
        "e8m0",
        "powers of two",
        "per tensor",
        "one bf16",
        "compressed: tensor",
        "compressed: channel",
        "compressed: block",
    ],
)
def test_fp8_scales(config, suffix, shape, kind, source, exported):
    rng = np.random.default_rng(5)
    code = rng.integers(0, 0x7F, (72, 36), np.uint8) | rng.integers(0, 2, (72, 36), np.uint8) << 7
    exponent = rng.integers(-20, -5, shape)
    scale = np.ldexp(np.float32(1), exponent)  # which every kind holds
    stored = {
        "F8_E8M0": (exponent + 127).astype(np.uint8),
        "F32": scale,
        "BF16": to_bf16(np.atleast_1d(scale)).reshape(shape),
    }[kind]
    names = {
        WEIGHT: code,
        WEIGHT + suffix: (kind, stored),
        WEIGHT.replace("weight", "input_scale"): np.ones(1, np.float32),
    }
    got = (
        exported(source({"quantization_config": config}, names), "--type", "f32")
        .read("layers.0.o")
        .reshape(72, 3, 32)[:, :, :12]
        .reshape(72, 36)
    )
    whole = {
        0: lambda: scale * np.ones((72, 36)),
        1: lambda: scale[0] * np.ones((72, 36)),
        2: lambda: (
            scale * np.ones((72, 36)) if shape == (72, 1) else np.kron(scale, np.ones((32, 32)))[:72, :36]
        ),
    }[len(shape)]()
    np.testing.assert_array_equal(got, (E4M3[code] * whole.astype(np.float32)).astype(np.float64))


@pytest.mark.parametrize(
    "scale, says",
    [
        (("F8_E8M0", np.full((3, 2), 255, np.uint8)), "not a number"),
        (("F32", np.full((3, 2), np.inf, np.float32)), "infinite"),
        (("F32", np.full((3, 2), 3e38, np.float32)), "too large"),
        (("F32", np.ones((2, 3), np.float32)), "needs [3, 2]"),
        (("F32", np.ones((0, 2), np.float32)), "needs [3, 2]"),
    ],
)
def test_fp8_scales_refused(scale, says, source, exported):
    changes = {WEIGHT: np.full((72, 36), 0x7E, np.uint8), WEIGHT + "_scale_inv": scale}
    message = exported(source({"quantization_config": POWERS}, changes))
    assert says in message and WEIGHT in message


# 2 x 64 numbers (7 i + i // 5) mod 16 - 8, i counting them, as pack_to_int32 of compressed-tensors 0.20 packs
# them.
PACKED = (
    "705e4c2b09f8d6c4a381705e4c2b09f8d6c4a381705e4c2b09f8d6c4a381705e"
    "4c2b09f8d6c4a381705e4c2b09f8d6c4a381705e4c2b09f8d6c4a381705e4c2b"
)
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["re:.*self_attn.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "weights": {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": 32,
                "symmetric": True,
                "dynamic": False,
                "actorder": None,
            },
        }
    },
}


def wide():
    """Changes to the tiny model's tensors for experts of 64: their down_proj then has two groups of 32
    columns."""
    widths = {
        name: 128 if "shared" in name else 64
        for name in tensors()
        if name.startswith("model.layers.1.mlp.") and "expert" in name
    }
    return {
        name: np.resize(tensors()[name], (72, n) if "down" in name else (n, 72)) for name, n in widths.items()
    }


DOWN = "model.layers.1.mlp.experts.0.down_proj.weight"


def int4(group=32, size=1.0, **parts):
    """(changes to the tiny model that have DOWN packed, its numbers [72, 64]); a part may be given
    instead."""
    i = np.arange(2 * 64).reshape(2, 64)
    q = np.tile((i * 7 + i // 5) % 16 - 8, (36, 1))
    scale = (
        (1 + np.random.default_rng(1).integers(0, 128, (72, 64 // group)) / 128) * 2.0**-7 * size
    ).astype(np.float32)  # bf16 holds it
    words = np.tile(np.frombuffer(bytes.fromhex(PACKED), "<i4").reshape(2, 8), (36, 1))
    parts = {
        "packed": ("I32", words),
        "scale": ("BF16", to_bf16(scale)),
        "shape": ("I64", np.array([72, 64])),
    } | parts
    return wide() | {DOWN: None, **{f"{DOWN}_{part}": x for part, x in parts.items()}}, q * np.repeat(
        scale.astype(np.float64), group, axis=1
    )


@pytest.mark.parametrize(
    "group, size, kept",
    [(32, 1.0, True), (32, 2.0**-60, True), (64, 1.0, True), (16, 1.0, False)],
    ids=["32", "32 with tiny scales", "64", "16"],
)
@pytest.mark.parametrize("type", ["q4", "q8", "f32"])
def test_int4(type, group, size, kept, source, exported):
    """compressed-tensors' pack-quantized: with groups of 32 columns integers and scales are kept; others are
    rounded again."""
    changes, want = int4(group, size)
    y = exported(
        source({"moe_intermediate_size": 64, "quantization_config": INT4}, changes), "--type", type
    ).read("layers.1.experts.0.down")[0]
    if kept or type == "f32":
        np.testing.assert_array_equal(y, want)
    else:
        assert np.abs(y - want).max() <= np.abs(want).max() * (0.2 if type == "q4" else 0.005)


@pytest.mark.parametrize(
    "part, x",
    [
        ("packed", ("I32", np.zeros((72, 7), np.int32))),
        ("packed", ("I64", np.zeros((72, 8), np.int64))),
        ("scale", None),
        ("scale", ("BF16", np.zeros((71, 2), np.uint16))),
        ("scale", ("BF16", np.full((72, 2), 0x7F80, np.uint16))),
        ("shape", ("I64", np.array([72, 1 << 40]))),
        ("shape", ("I64", np.array([0, 0]))),
        ("shape", ("I64", np.array([-72, 64]))),
    ],
)
def test_int4_refused(part, x, source, exported):
    assert DOWN in exported(
        source({"moe_intermediate_size": 64, "quantization_config": INT4}, int4(**{part: x})[0])
    )


@pytest.mark.parametrize(
    "weights, says",
    [
        ({"num_bits": 3}, "num_bits"),
        ({"symmetric": False}, "symmetric"),
        ({"strategy": "group"}, "strategy"),
        ({"x": 1}, "key x"),
    ],
)
def test_quantisations_refused(weights, says, source, exported):
    config = fp8("channel")
    config["config_groups"]["group_0"]["weights"] |= weights
    assert says in exported(source({"quantization_config": config}))


def test_fused_experts(source, exported):
    """As transformers 5 saves them: the same checkpoint as one tensor for each expert."""
    t, mlp = tensors(), "model.layers.1.mlp.experts."
    want = exported(source(), "--type", "mixed").file
    gone = {name: None for name in t if name.startswith(mlp)}
    stack = [
        np.concatenate([t[f"{mlp}{e}.gate_proj.weight"], t[f"{mlp}{e}.up_proj.weight"]]) for e in range(4)
    ]
    fused = {
        mlp + "gate_up_proj": np.stack(stack),
        mlp + "down_proj": np.stack([t[f"{mlp}{e}.down_proj.weight"] for e in range(4)]),
    }
    assert exported(source({}, gone | fused), "--type", "mixed").file == want


# ---- Mistral

MISTRAL = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attention.wq_a",
    "self_attn.q_a_layernorm": "attention.q_a_norm",
    "self_attn.q_b_proj": "attention.wq_b",
    "self_attn.kv_a_proj_with_mqa": "attention.wkv_a_with_mqa",
    "self_attn.kv_a_layernorm": "attention.kv_a_norm",
    "self_attn.kv_b_proj": "attention.wkv_b",
    "self_attn.o_proj": "attention.wo",
}
PARTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
PARAMS = {
    "dim": 72,
    "n_layers": 2,
    "head_dim": 28,
    "hidden_dim": 100,
    "n_heads": 3,
    "n_kv_heads": 3,
    "norm_eps": 1e-5,
    "vocab_size": 37,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tied_embeddings": False,
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "yarn": {
        "alpha": 1,
        "beta": 32,
        "factor": 36,
        "original_max_position_embeddings": 64,
        "apply_scale": False,
    },
    "moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "expert_hidden_dim": 36,
        "num_shared_experts": 2,
        "first_k_dense_replace": 1,
        "route_every_n": 1,
        "routed_scale": 1.0,
        "num_expert_groups": 1,
        "num_expert_groups_per_tok": 1,
        "expert_parallel": 1,
        "expert_model_parallel": 1,
    },
    "vision_encoder": {"image_size": 1540},
    "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
}


def test_mistral(tmp_path, source, exported):
    """The tiny model under the names of Mistral Large 3's files, one tensor in FP8: the checkpoint of the
    same model in transformers' form."""
    t = {
        name: x
        for name, x in tensors().items()
        if not name.startswith("model.layers.2.") and not name.endswith("bias")
    }
    code, wo = (
        np.random.default_rng(5).integers(0, 0x7F, (72, 36), np.uint8),
        "model.layers.0.self_attn.o_proj.weight",
    )
    theirs = {
        "tok_embeddings.weight": t.pop("model.embed_tokens.weight"),
        "norm.weight": t.pop("model.norm.weight"),
        "output.weight": t.pop("lm_head.weight"),
        "vision_encoder.ln_pre.weight": np.ones(4, np.float32),
    }
    for name, x in t.items():
        _, _, layer, rest = name.split(".", 3)
        stem = rest.removesuffix(".weight")
        mlp, _, part = stem.rpartition(".")
        other = MISTRAL.get(stem) or {"mlp": "feed_forward"}.get(
            mlp, mlp.removeprefix("mlp.")
        ) + "." + PARTS.get(part, part)
        theirs[f"layers.{layer}.{other if stem != 'mlp.gate' else 'gate'}.weight"] = x
    theirs |= {
        "layers.0.attention.wo.weight": code,
        "layers.0.attention.wo.qscale_weight": ("F32", np.float32(0.01).reshape(())),
        "layers.0.attention.wo.qscale_act": ("F32", np.float32(1).reshape(())),
    }
    folder = tmp_path / "mistral" / "source"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(PARAMS))
    (folder / "consolidated.safetensors").write_bytes(safetensors(theirs))
    got = exported(folder, "--type", "q8")
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 36,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "attention_factor": 1.0,
        "mscale_all_dim": 0,
    }
    same = {
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "n_group": 1,
        "routed_scaling_factor": 1.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_scaling": None,
        "rope_theta": None,
        "rope_parameters": rope,
        "quantization_config": PER_TENSOR,
    }
    changes = {
        wo: code,
        wo + "_scale_inv": np.float32(0.01).reshape(1),
        "model.layers.1.mlp.gate.e_score_correction_bias": None,
    }
    assert got.file == exported(source(same, changes), "--type", "q8").file


def test_mistral_params():
    """Large 3's position-dependent scaling in transformers' words; a scale of YaRN's own is not
    understood."""
    values = mistral.config(
        {**PARAMS, "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 64}}, "params.json"
    )
    assert values["rope_parameters"]["llama_4_scaling_beta"] == 0.1 and values["model_type"] == "mistral4"
    with pytest.raises(ExportError, match="apply_scale"):
        mistral.config({**PARAMS, "yarn": {**PARAMS["yarn"], "apply_scale": True}}, "params.json")


# ---- what is not read


def test_pickles(tmp_path, source, exported):
    folder = source()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for path in (folder, folder / "pytorch_model.bin"):
        assert "pytorch_model.bin" in (message := exported(path)) and "save_pretrained" in message


def test_one_file_of_a_directory(source, exported):
    assert "give the directory" in exported(source() / "model.safetensors")
    assert "not a GGUF" in exported(source() / "config.json")


def test_keys_that_are_there_twice(source, exported):
    folder = source()
    (folder / "config.json").write_text('{"hidden_size": 72, "hidden_size": 36}')
    assert "'hidden_size' is there twice" in exported(folder)


def test_empty_tensor(source, exported):
    assert "has shape [0, 36]" in exported(source(changes={WEIGHT: np.zeros((0, 36), np.float32)}))
