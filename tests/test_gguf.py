"""GGUF files of every architecture that is read, in the layout of the converters of llama.cpp and
ik_llama.cpp: in f32 the checkpoint is that of the directory of Hugging Face, byte for byte, and so are its
logits (test_oracle.py holds those against transformers). What a file leaves out is what the class means."""

import json
import shutil

import gguf_converted
import pytest
from support import MODELS

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


@pytest.mark.parametrize("architecture", ["kimi-linear", "bailingmoe3", "llama", "deepseek4"])
def test_other_architectures(architecture, tmp_path, exported):
    """What is not read is named before anything else is said of the file."""
    message = exported(gguf_converted.write(tmp_path, "v2lite", "deepseek2", said=architecture))
    assert f"general.architecture is {architecture};" in message and "glm-dsa" in message
