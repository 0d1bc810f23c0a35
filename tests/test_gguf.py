"""GGUF files of every architecture that is read, in the layout of the converters of llama.cpp and
ik_llama.cpp: in f32 the checkpoint is that of the directory of Hugging Face, byte for byte, and so are its
logits (test_oracle.py holds those against transformers). What a file leaves out is what the class means."""

import json
import shutil

import compare
import gguf_converted
import numpy as np
import pytest
import v4_models
from support import MODELS, TOLERANCE

# MiniCPM3's scalings are constants of llama.cpp
MINICPM3 = {"dim_model_base": 256}


@pytest.fixture
def directory(tmp_path):
    """directory(model, config): the directory of Hugging Face with other values in its configuration."""

    def make(model, config):
        folder = tmp_path / "directory" / model
        shutil.copytree(MODELS / model, folder)
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return make


@pytest.mark.parametrize(
    "model, architecture, config",
    [
        ("v2lite", "deepseek2", {}),
        ("v3_fp8", "deepseek2", {}),
        ("v32", "deepseek32", {}),
        ("glm52", "glm-dsa", {}),
        ("mistral4", "mistral4", {}),
        ("longcat", "longcat-flash", {}),
        ("minicpm3", "minicpm3", MINICPM3),
        ("plm", "plm", {}),
    ],
)
def test_converted(model, architecture, config, directory, tmp_path, exported):
    change = lambda writer: None
    if model == "glm52":
        kinds = [max(i - 1, 0) % 3 == 0 for i in range(5)]
        change = lambda writer: writer.add_array("glm-dsa.attention.indexer.types", kinds)
    path = gguf_converted.write(tmp_path, model, architecture, config, change)
    want = exported(directory(model, config), "--type", "f32").file
    assert exported(path, "--type", "f32").file == want


def test_layers_that_share_an_indexer(directory, tmp_path, exported):
    """Without a list llama.cpp goes by the context: that of GLM-5.2 means its layout, every fourth layer from
    the third on, and a shorter one an indexer in every layer."""
    long = {"max_position_embeddings": 1 << 20, "index_topk_freq": 4, "index_skip_topk_offset": 3}
    path = gguf_converted.write(tmp_path, "glm52", "glm-dsa", long)
    got = exported(path, "--type", "f32", "--no-tokenizer")
    assert "model.layers.2.self_attn.indexer" in got  # which this model does not have
    path = gguf_converted.write(tmp_path, "v32", "glm-dsa")
    assert exported(path, "--type", "f32").names["layers.1.index_q"]


HYBRIDS = [("kimi_linear", "kimi-linear"), ("ling_flash", "bailingmoe3")]


@pytest.mark.parametrize("model, architecture", HYBRIDS)
def test_linear_attention(model, architecture, tmp_path, exported):
    """The checkpoint of a model with linear attention has the tensors of the directory's, byte for byte. The
    rates of decay alone went through an exponential; the logits are those of transformers."""
    want = exported(MODELS / model, "--type", "f32")
    got = exported(gguf_converted.write_hybrid(tmp_path, model, architecture), "--type", "f32")
    text = ("name", "bos_token_id", "add_bos_token", "eos_token_id", "eos_tokens")
    assert not isinstance(got, str), got
    assert {k: v for k, v in got.config.items() if k not in text} == {
        k: v for k, v in want.config.items() if k not in text
    }
    assert list(got.names) == list(want.names)
    for name in want.names:
        if name.endswith("kda_rate"):
            np.testing.assert_allclose(got.read(name), want.read(name), rtol=1e-6, atol=1e-6)
        else:
            assert np.array_equal(got.bytes(name), want.bytes(name)), name
    ids, logits = compare.expected(MODELS / model, None, None)
    found = compare.logits(tmp_path / "model.bin", ids, "-k", "f32")
    assert compare.relative_difference(found, logits) <= TOLERANCE


def test_linear_attention_of_other_converters(tmp_path, exported):
    """Files of Ling that hold other names for its decay and gate, count layers for multi-token prediction
    that are not there, and say nothing of the low-rank queries that they have."""

    def rename(tensors):
        for name in list(tensors):
            if ".ssm_f_a." in name or ".ssm_g_a." in name:
                tensors[name.replace("_a.", ".")] = tensors.pop(name)

    want = exported(gguf_converted.write_hybrid(tmp_path, "ling_flash", "bailingmoe3"), "--type", "f32")
    path = gguf_converted.write_hybrid(
        tmp_path, "ling_flash", "bailingmoe3", say={"nextn_predict_layers": 1}, change=rename
    )
    assert exported(path, "--type", "f32").file == want.file

    def low_rank(tensors):
        for name in [name for name in tensors if ".attn_gate." in name]:
            query = tensors.pop(name.replace("gate", "q"))
            tensors[name.replace("gate", "q_a")] = np.zeros((16, query.shape[1]), np.float32)
            tensors[name.replace("gate", "q_a_norm")] = np.ones(16, np.float32)
            tensors[name.replace("gate", "q_b")] = np.zeros((len(query), 16), np.float32)

    path = gguf_converted.write_hybrid(tmp_path, "ling_flash", "bailingmoe3", change=low_rank)
    assert exported(path, "--type", "f32").config["q_lora_rank"] == 16


def test_the_prediction_layer_of_ling_stays_behind(tmp_path, exported):
    """Where the file has it, it counts as a block, and its norms and limits are nobody's."""
    want = exported(gguf_converted.write_hybrid(tmp_path, "ling_flash", "bailingmoe3"), "--type", "f32")

    def add(tensors):
        ones = np.ones((24, 24), np.float32)
        for name in ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "layer_output_norm", "attn_gate"):
            tensors[f"blk.6.{name}.weight"] = ones

    counts = [0, 0, 1, 0, 0, 1, 1]
    say = {"block_count": 7, "nextn_predict_layers": 1, "attention.head_count_kv": counts}
    path = gguf_converted.write_hybrid(tmp_path, "ling_flash", "bailingmoe3", say=say, change=add)
    assert exported(path, "--type", "f32").file == want.file


@pytest.mark.parametrize(
    "model, architecture, say, word",
    [
        ("ling_flash", "bailingmoe3", {"attention.head_count_kv": [0, 1, 0, 0, 0, 1]}, "head_count_kv"),
        ("ling_flash", "bailingmoe3", {"attention.head_count_kv": 1}, "head_count_kv"),
        ("ling_flash", "bailingmoe3", {"swiglu_clamp_exp": 2.0}, "swiglu_limit"),
        ("kimi_linear", "kimi-linear", {"attention.head_count_kv": [0, 1]}, "head_count_kv"),
        ("kimi_linear", "kimi-linear", {"kda.gate_lower_bound": -5.0}, "gate_lower_bound"),
    ],
)
def test_linear_attention_that_is_refused(model, architecture, say, word, tmp_path, exported):
    message = exported(gguf_converted.write_hybrid(tmp_path, model, architecture, say=say))
    assert isinstance(message, str) and word in message


def test_a_decay_that_is_damaged(tmp_path, exported):
    """A rate of 0 has no logarithm."""

    def change(tensors):
        tensors["blk.0.ssm_a"][..., 0] = 0

    message = exported(gguf_converted.write_hybrid(tmp_path, "kimi_linear", "kimi-linear", change=change))
    assert isinstance(message, str) and "ssm_a" in message and "decay" in message


@pytest.mark.parametrize("architecture", ["kimi-k3", "bailingmoe2", "llama", "deepseek41"])
def test_other_architectures(architecture, tmp_path, exported):
    """What is not read is named before anything else is said of the file."""
    message = exported(gguf_converted.write(tmp_path, "v2lite", "deepseek2", said=architecture))
    assert f"general.architecture is {architecture};" in message and "glm-dsa" in message


def test_deepseek_v4(tmp_path, exported):
    """With numbers as they are the checkpoint is that of the directory; with FP4 as MXFP4 in q4, too."""
    config = v4_models.CONFIG | {"hc_eps": 2.0**-20, "rms_norm_eps": 2.0**-20}  # which a file holds exactly
    found = v4_models.tensors(config)
    want = exported(v4_models.write(tmp_path / "v4", config, found), "--type", "f32").file
    path = gguf_converted.write_v4(tmp_path / "v4.gguf", config, v4_models.numbers(found))
    assert exported(path, "--type", "f32").file == want

    found = v4_models.tensors(config, fp4=True)
    folder = v4_models.write(tmp_path / "v4", config | v4_models.QUANTIZED, found)
    packed = {}
    for i in range(3):
        for w, part in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            stems = [f"layers.{i}.ffn.experts.{e}.{w}" for e in range(config["n_routed_experts"])]
            parts = [[found[stem + ending][1] for ending in (".weight", ".scale")] for stem in stems]
            packed[f"blk.{i}.ffn_{part}_exps.weight"] = np.stack([gguf_converted.mxfp4(*x) for x in parts])
    path = gguf_converted.write_v4(tmp_path / "v4.gguf", config, v4_models.numbers(found), packed=packed)
    assert exported(path, "--type", "q4").file == exported(folder, "--type", "q4").file


@pytest.mark.parametrize(
    "said, word",
    [
        ({"swiglu_clamp_shexp": [10.0, 10.0, 7.0]}, "one limit for all layers"),
        ({"expert_gating_func": 2}, "expert_gating_func"),
        ({"attention.compress_ratios": [0, 4]}, "compress_ratios"),
    ],
)
def test_deepseek_v4_that_is_refused(said, word, tmp_path, exported):
    numbers = v4_models.numbers(v4_models.tensors(v4_models.CONFIG))
    path = gguf_converted.write_v4(tmp_path / "v4.gguf", v4_models.CONFIG, numbers, said=said)
    message = exported(path)
    assert isinstance(message, str) and word in message
