"""What export.py makes of DeepSeek-V4.

Protected: a published directory, what transformers saves of it and what it makes of the published names are
the same checkpoint; FP4 experts reach q4, q8 and the floats without loss, FP8 the floats; a table that names
an expert which is not there, a layer of an unknown kind, a rotation that multiplies, another place of hash
layers are one line each; layers for multi-token prediction stay behind. The arithmetic is judged in
test_oracle.py."""

import re

import numpy as np
import pytest
import v4_models
from support import Checkpoint
from v4_models import CONFIG, QUANTIZED

from exporter import command
from exporter.shapes import SHAPES
from exporter.sources import E4M3


@pytest.fixture
def v4(tmp_path):
    """v4(config, tensors, fp4): a directory; `config`: other keys, `tensors`: {published name: other bits,
    None removes}."""

    def write(config=None, changes=None, fp4=False):
        found = v4_models.tensors(CONFIG, fp4) | (changes or {})
        found = {name: x for name, x in found.items() if x is not None}
        values = CONFIG | (QUANTIZED if fp4 else {}) | (config or {})
        return v4_models.write(tmp_path / "v4", values, found)

    return write


def saved_name(name):
    """What transformers 5.24 calls a published tensor when it saves the model as it was published."""
    name = re.sub(r"^layers\.", "model.layers.", name)
    name = re.sub(r"^hc_head_", "model.hc_head.hc_", name).replace("attn.kv_norm.", "attn.norm.")
    return re.sub(
        r"^(embed|norm)\.", lambda m: {"e": "model.embed_tokens.", "n": "model.norm."}[m[0][0]], name
    )


def test_spellings(v4, exported, tmp_path):
    """All forms are the same checkpoint, but for nothing."""
    want = exported(v4(), "--type", "f32").file
    found = v4_models.tensors(CONFIG)
    own = v4_models.write(tmp_path / "v4", v4_models.own_config(CONFIG), v4_models.own_tensors(CONFIG, found))
    assert exported(own, "--type", "f32").file == want
    saved = {saved_name(name): x for name, x in found.items() if not name.startswith("mtp.")}
    assert len(saved) == sum(not name.startswith("mtp.") for name in found)
    assert exported(v4_models.write(own, CONFIG, saved), "--type", "f32").file == want


def test_configuration(v4, exported):
    """Each fact of the configuration in its field."""
    config = exported(v4()).config
    expected = {
        "kv_lora_rank": 0, "num_key_value_heads": 0, "q_lora_rank": 136, "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 16, "v_head_dim": 40, "sliding_window": 128, "o_groups": 2, "o_lora_rank": 24,
        "csa_ratio": 4, "hca_ratio": 128, "num_hash_layers": 1, "hc_mult": 4, "hc_sinkhorn_iters": 20,
        "scoring_func": 2, "norm_topk_prob": 1, "first_k_dense_replace": 0, "n_group": 1, "swiglu_limits": 2,
        "index_n_heads": 2, "index_head_dim": 24, "index_topk": 16, "rope_theta": 10000, "rope_factor": 16,
        "compress_rope_theta": 160000, "mtp_layers": 0,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert (config["csa_layers"][0], config["hca_layers"][0]) == (0b010, 0b100)
    assert config["softmax_scale"] == np.float32(40**-0.5)


def test_rotations(v4, exported):
    """Sliding layers turn as theta says; the others by YaRN with theta 160000, whose ramp lies here between
    the pairs 0 (32 turns in 64 positions: no pair) and 2 (one turn: corr = 1.55, rounded up)."""
    got = exported(v4())
    plain = 160000.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(got.read("inv_freq"), 10000.0 ** (-np.arange(8) / 8), rtol=1e-6)
    ramp = np.array([0, 0.5, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(got.read("compress_inv_freq"), plain * (1 - ramp + ramp / 16), rtol=1e-6)
    sliding = exported(v4({"compress_ratios": [0, 0, 0, 0]}, without_rows()))
    assert "compress_inv_freq" not in sliding.names and sliding.config["compress_rope_theta"] == 0


def without_rows():
    """Changes to the tensors: no layer has compressed rows."""
    return {name: None for name in v4_models.shapes(CONFIG) if "compressor" in name or "indexer" in name}


@pytest.mark.parametrize("type", ["mixed", "q4", "q8", "bf16", "f32"])
def test_fp4_is_exact(type, v4, exported):
    """Every number of every expert, as the program reads it from the checkpoint."""
    got, found = exported(v4(fp4=True), "--type", type), v4_models.tensors(CONFIG, True)
    for layer in range(3):
        for e in range(4):
            for ours, w in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
                stem = f"layers.{layer}.ffn.experts.{e}.{w}"
                want = v4_models.fp4_numbers(found[f"{stem}.weight"][1], found[f"{stem}.scale"][1])
                np.testing.assert_array_equal(got.read(f"layers.{layer}.experts.{e}.{ours}")[0], want)


STEM = "layers.1.ffn.experts.2.w2"


@pytest.mark.parametrize("lowest, largest", [(0, 37), (90, 127), (217, 254)])
def test_scales_far_apart(lowest, largest, v4, exported):
    """Powers of two that lie 2^37 apart, wherever, are kept; and a group of zeros may have any scale."""
    packed = v4_models.tensors(CONFIG, True)[f"{STEM}.weight"][1].copy()
    packed[5, :16] = 0
    scale = np.full((64, 3), lowest, np.uint8)
    scale[::2, 1], scale[5, 0] = largest, 254 - lowest
    changes = {f"{STEM}.weight": ("I8", packed), f"{STEM}.scale": ("F8_E8M0", scale)}
    got = exported(v4(changes=changes, fp4=True), "--type", "q4")
    assert not isinstance(got, str), got
    np.testing.assert_array_equal(
        got.read("layers.1.experts.2.down")[0], v4_models.fp4_numbers(packed, scale)
    )


def test_scales_too_far_apart(v4, exported):
    """What is lost then is less than 2^-38 of the largest number."""
    scale = np.full((64, 3), 60, np.uint8)
    scale[:, 0] = 127
    found = v4_models.tensors(CONFIG, True)
    got = exported(v4(changes={f"{STEM}.scale": ("F8_E8M0", scale)}, fp4=True), "--type", "q4")
    want = v4_models.fp4_numbers(found[f"{STEM}.weight"][1], scale)
    difference = np.abs(got.read("layers.1.experts.2.down")[0] - want)
    assert not difference[:, :32].any() and 0 < difference.max() < 6 * 2.0**-38


def test_a_scale_that_is_no_number(v4, exported):
    scale = v4_models.tensors(CONFIG, True)[f"{STEM}.scale"][1].copy()
    scale[3, 1] = 255
    message = exported(v4(changes={f"{STEM}.scale": ("F8_E8M0", scale)}, fp4=True))
    assert "experts.2.down_proj" in message and "not a number" in message


def test_fp8_in_blocks(v4, exported):
    """Blocks of 128 x 128, the last ones cut short; wo_a's matrices one below the other."""
    got, found = exported(v4(fp4=True), "--type", "f32"), v4_models.tensors(CONFIG, True)
    for name, ours in (("attn.wq_b", "q_b"), ("attn.wo_a", "o_a"), ("ffn.shared_experts.w2", "shared.down")):
        codes, scale = (found[f"layers.2.{name}{ending}"][1] for ending in (".weight", ".scale"))
        blocks = np.kron(2.0 ** (scale.astype(float) - 127), np.ones((128, 128)))
        want = E4M3[codes].astype(float) * blocks[: codes.shape[0], : codes.shape[1]]
        np.testing.assert_array_equal(got.read(f"layers.2.{ours}").reshape(want.shape), want)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_table_of_experts(kind, v4, exported):
    name = "layers.0.ffn.gate.tid2eid"
    table = v4_models.tensors(CONFIG)[name][1].astype(kind)
    changes = {name: ("I32" if kind is np.int32 else "I64", table)}
    got = exported(v4(changes=changes))
    np.testing.assert_array_equal(got.read("layers.0.token_experts").reshape(table.shape), table)
    assert "layers.0.router_bias" not in got.names and "layers.1.token_experts" not in got.names
    for wrong in (4, -1, 1 << 20):
        table[7, 1] = wrong
        message = exported(v4(changes=changes))
        assert "mlp.gate.tid2eid" in message and str(wrong) in message


def test_layers_for_prediction(v4, exported):
    """They stay behind, whatever they hold; asked for, the export is refused."""
    want = exported(v4()).file
    assert not any(name.startswith("mtp") for name in exported(v4()).names)
    odd = {
        "mtp.0.e_proj.weight": ("F8_E4M3", np.zeros((64, 64), np.uint8)),
        "mtp.2.markov": ("I8", np.zeros(3, np.int8)),
    }
    draft = {"num_nextn_predict_layers": 3, "compress_ratios": [0, 4, 128, 0, 0, 0], "dspark_block_size": 5}
    assert exported(v4(draft, odd)).file == want
    assert "leave --mtp out" in exported(v4(), "--mtp")


@pytest.mark.parametrize(
    "config, words",
    [
        ({"compress_ratios": [0, 4]}, ["compress_ratios", "each of 3 layers"]),
        ({"compress_ratios": [0, 4, 64, 0]}, ["compress_ratios"]),
        ({"compress_ratios": [0, True, 128, 0]}, ["compress_ratios"]),
        ({"compress_ratios": "0"}, ["compress_ratios"]),
        ({"compress_ratios": None}, ["compress_ratios is missing"]),
        ({"layer_types": ["sliding_attention"] * 3}, ["layer_types"]),
        ({"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, ["layer_types"]),
        ({"compress_rates": {"compressed_sparse_attention": 4}}, ["compress_rates"]),
        ({"compress_rates": 4}, ["compress_rates"]),
        ({"mlp_layer_types": ["moe", "hash_moe", "moe"]}, ["mlp_layer_types", "hash_moe first"]),
        ({"mlp_layer_types": ["hash_moe", "hash_moe", "moe"]}, ["num_hash_layers"]),
        ({"num_hash_layers": -1}, ["num_hash_layers"]),
        ({"rope_scaling": {**CONFIG["rope_scaling"], "mscale": 1.0}}, ["rope_scaling", "mscale"]),
        ({"rope_scaling": {**CONFIG["rope_scaling"], "attention_factor": 1.2}}, ["attention_factor"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_scaling", "linear"]),
        ({"rope_scaling": 16}, ["rope_scaling"]),
        ({"compress_rope_theta": None}, ["compress_rope_theta"]),
        ({"rope_parameters": {"main": {}}}, ["rope_parameters"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"qk_rope_head_dim": 15}, ["qk_rope_head_dim"]),
        ({"qk_rope_head_dim": 42}, ["qk_rope_head_dim"]),
        ({"o_groups": 3}, ["o_groups", "4 heads"]),
        ({"hc_mult": 0}, ["hc_mult"]),
        ({"hc_sinkhorn_iters": 10**6}, ["hc_sinkhorn_iters"]),
        ({"sliding_window": 0}, ["sliding_window"]),
        ({"swiglu_limit": -1}, ["swiglu_limit"]),
        ({"num_key_value_heads": 2}, ["num_key_value_heads"]),
        ({"scoring_func": "sigmoid"}, ["scoring_func"]),
        ({"expert_dtype": "int3"}, ["expert_dtype"]),
        ({"index_topk": None}, ["index_topk"]),
        ({"head_dim": None}, ["head_dim is missing"]),
        ({"kv_source_layer_ids": [2]}, ["DeepSeek-V4.1 is not supported"]),
        ({"model_type": "deepseek_v41"}, ["DeepSeek-V4.1 is not supported", "Engram"]),
        ({"attention_gate": True}, ["attention_gate"]),
    ],
)
def test_configurations_that_are_refused(config, words, v4, exported):
    message = exported(v4(config))
    assert isinstance(message, str) and all(word in message for word in words), message


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layers.1.attn.compressor.ape": None}, ["compressor.position_bias is missing"]),
        ({"layers.1.attn.attn_sink": ("F32", np.zeros(5, np.float32))}, ["sinks has shape [5]"]),
        ({"layers.0.attn.indexer.wq_b.weight": ("F32", np.zeros((48, 136), np.float32))}, ["nothing in"]),
        ({"layers.0.ffn.gate.bias": ("F32", np.zeros(4, np.float32))}, ["e_score_correction_bias"]),
        ({"layers.1.ffn.engram.weight": ("F32", np.zeros(4, np.float32))}, ["ffn.engram"]),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(changes, words, v4, exported):
    message = exported(v4(changes=changes))
    assert isinstance(message, str) and all(word in message for word in words), message


@pytest.mark.parametrize("ending, x", [(".scale", None), (".scale", ("F8_E8M0", np.zeros((9, 3), np.uint8)))])
def test_scales_that_are_missing_or_misshapen(ending, x, v4, exported):
    for stem in (STEM, "layers.1.attn.wq_b"):
        message = exported(v4(changes={stem + ending: x}, fp4=True))
        assert isinstance(message, str) and stem.split(".")[1] in message, message


def test_random(monkeypatch, tmp_path):
    """The published kinds of layers, and a table that names different experts, all of which are there."""
    small = {
        "hidden_size": 64, "vocab_size": 50, "moe_intermediate_size": 32, "q_lora_rank": 32,
        "n_routed_experts": 16, "o_lora_rank": 32,
    }  # fmt: skip
    for shape, csa, hca in (("deepseek-v4-flash", 0b0100, 0b1000), ("deepseek-v4-pro", 0b0100, 0b1011)):
        monkeypatch.setitem(SHAPES, shape, SHAPES[shape] | small)
        assert command.main(["--random", shape, str(tmp_path / "x.bin"), "--layers", "4"]) == 0
        got = Checkpoint(tmp_path / "x.bin")
        assert (got.config["csa_layers"][0] & 15, got.config["hca_layers"][0] & 15) == (csa, hca)
        table = got.read("layers.2.token_experts").reshape(50, 6)
        assert all(len(set(row)) == 6 for row in table) and table.min() >= 0
        assert table.max() < 16 and len(np.unique(table)) > 10
        assert got.names["layers.1.experts.3.up"]["type"] == 4


def test_check(v4, capsys):
    """--check counts the cache: here a row of 48 bytes and a key of 32 for every 4 tokens, a row for every
    128, and the rows of three windows."""
    assert command.main(["--check", str(v4())]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("context"))
    tokens = 1024
    size = tokens // 4 * (48 + 32) + tokens // 128 * 48 + 3 * 128 * 48
    assert f"{size / 1e6:.2f} MB" in line


def test_both_spellings_together(v4, exported):
    """As an edited file may have them."""
    own = v4_models.own_config(CONFIG)
    both = {key: value for key, value in own.items() if key != "rope_parameters"}
    assert exported(v4(both)).file == exported(v4()).file
