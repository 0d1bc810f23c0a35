"""What people and programs write differently, and what they write wrongly, in the files beside the weights.
What the tests protect:

    classes     architectures says what model_type does; where both are missing nothing is guessed
    spellings   what several versions of transformers write for one thing; models inside larger ones
    text        begin tokens of a GGUF as llama.cpp has them; strange sampling defaults; files that disagree
    forms       a quantized form that is not read is named as what it is
    hostility   a small source cannot take much time or memory, and no value is a fault of the program"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys

import compare
import gguf
import numpy as np
import pytest
import transformers
from support import CONFIG, MODELS, Checkpoint, tensors
from test_sources import PARAMS

from exporter import config as model_config
from exporter import gguf_config, mistral
from exporter.errors import ExportError
from exporter.experts import GROUP_MAX, GROUP_TOP2_SUM
from exporter.families import language_model
from exporter.gguf_source import Gguf
from exporter.ids import check_ids
from exporter.plan import make_plan
from exporter.shapes import SHAPES
from exporter.text_fields import text_fields

NAMES = ("model_type", "architectures")

# ---- the class of a model


def without(model, keys, folder):
    """A copy of a directory of tests/models whose config.json lacks `keys`."""
    copy = shutil.copytree(MODELS / model, folder / model)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in keys}))
    return copy


@pytest.mark.parametrize("model", sorted(path.name for path in MODELS.iterdir() if path.is_dir()))
def test_either_name_is_enough(model, tmp_path, exported):
    """Nothing hangs on model_type alone, or on architectures alone: the same checkpoint. Without both it is
    the same or none."""
    want = exported(MODELS / model).file
    for i, key in enumerate(NAMES):
        assert exported(without(model, [key], tmp_path / str(i))).file == want
    nameless = exported(without(model, NAMES, tmp_path / "both"))
    assert nameless.file == want if isinstance(nameless, Checkpoint) else "model_type" in nameless


SPARSE = {"q_lora_rank": 40, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8}


@pytest.mark.parametrize(
    "names, pairs",
    [
        ({"model_type": "glm_moe_dsa"}, True),
        ({"model_type": None, "architectures": ["GlmMoeDsaForCausalLM"]}, True),
        ({"model_type": "deepseek_v32"}, False),
        ({"model_type": None, "architectures": ["DeepseekV32ForCausalLM"]}, False),
        ({"model_type": None, "architectures": ["DeepseekV32Model"]}, False),
        ({"model_type": "deepseek_v3"}, None),
        ({"model_type": "new_sparse"}, None),
        ({"model_type": None, "architectures": "x", "rope_interleave": True}, None),
    ],
)
def test_rotation_of_the_indexer(names, pairs):
    """GLM-5's indexer turns interleaved pairs, DeepSeek-V3.2's halves (modeling_glm_moe_dsa.py and
    modeling_deepseek_v32.py of transformers). Where nothing says which, it is asked for."""
    values = {**CONFIG, **SPARSE, **names}
    if pairs is None:
        with pytest.raises(ExportError, match="indexer_rope_interleave is missing"):
            model_config.parse(values, "")
        values["indexer_rope_interleave"] = True
    assert model_config.parse(values, "").index_rope_interleave is (pairs is not False)


def test_the_class_is_named_for_all():
    """What else asks for model_type, the chat template, finds it where architectures alone names the
    class."""
    for name, model_type in (("DeepseekV32", "deepseek_v32"), ("KimiK2", "deepseek_v3"), ("Other", None)):
        assert language_model({"architectures": [name + "ForCausalLM"]}, "").get("model_type") == model_type


def test_unknown_class_of_softmax_router():
    """DeepSeek-V2's class does not scale weights that it normalizes, Mistral's does; another must say which
    it is, where that makes a difference."""
    soft = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": True, "n_group": 1}
    for name, scaling in (("deepseek_v2", 1.0), ("mistral4", 2.5)):
        cfg = model_config.parse({**CONFIG, **soft, "model_type": name}, "")
        assert cfg.routed_scaling_factor == scaling
    with pytest.raises(ExportError, match="routed_scaling_factor"):
        model_config.parse({**CONFIG, **soft, "model_type": "new"}, "")
    assert model_config.parse({**CONFIG, **soft, "model_type": "new", "routed_scaling_factor": 1.0}, "")


def test_groups_of_a_softmax_router():
    """In Mistral4's class a group counts as the sum of its two best experts, in DeepSeek-V2's as its best."""
    soft = {"scoring_func": "softmax", "norm_topk_prob": False, "topk_method": None}
    groups = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
    for name, score in (("deepseek_v2", GROUP_MAX), ("mistral4", GROUP_TOP2_SUM)):
        cfg = model_config.parse({**CONFIG, **soft, **groups, "model_type": name}, "")
        assert (cfg.n_group, cfg.topk_group, cfg.group_score) == (4, 2, score)


def test_mistral4_as_transformers_saves_it(tmp_path, exported):
    """Its save_pretrained adds sizes that follow from others and the rotated part of a head: the same
    checkpoint, whose logits test_oracle.py holds against transformers without YaRN's mscale."""
    copy = shutil.copytree(MODELS / "mistral4", tmp_path / "mistral4")
    written = transformers.Mistral4Config(**json.loads((copy / "config.json").read_text()))
    written.save_pretrained(copy)
    config = json.loads((copy / "config.json").read_text())
    assert "head_dim" in config and "partial_rotary_factor" in config["rope_parameters"]
    assert exported(copy).file == exported(MODELS / "mistral4").file


# ---- spellings

CLASSES = (
    "DeepseekV3",
    "DeepseekV32",
    "GlmMoeDsa",
    "Glm4MoeLite",
    "MiniCPM3",
    "Youtu",
    "Mistral4",
    "LongcatFlash",
)


@pytest.mark.parametrize("diff", [True, False], ids=["differences", "everything"])
@pytest.mark.parametrize("name", (*CLASSES, "SarvamMLA"))
def test_what_transformers_writes(name, diff):
    """The configuration of each class, as the installed transformers writes it, with all keys or with those
    that differ from every model's defaults."""
    written = getattr(transformers, name + "Config")(architectures=[name + "ForCausalLM"])
    values = json.loads(written.to_json_string(use_diff=diff))
    cfg = model_config.parse(values, "")
    assert cfg.kv_lora_rank == written.kv_lora_rank and cfg.num_hidden_layers == written.num_hidden_layers
    del values["model_type"]
    assert model_config.parse(values, "").packed() == cfg.packed()


@pytest.mark.parametrize("name, inner", [("Kimi_K25", "DeepseekV3"), ("Mistral3", "Mistral4")])
def test_wrappers_of_transformers(name, inner):
    """A language model inside one that reads images: its own fields, whatever stands beside it."""
    text = getattr(transformers, inner + "Config")()
    outer = getattr(transformers, name + "Config")(text_config=text.to_dict())
    values = language_model(json.loads(outer.to_json_string(use_diff=False)), "")
    alone = json.loads(text.to_json_string(use_diff=False))
    assert model_config.parse(values, "").packed() == model_config.parse(alone, "").packed()


@pytest.mark.parametrize(
    "written, same",
    [
        ({"n_routed_experts": None, "num_experts": 4}, {}),
        ({"n_routed_experts": None, "num_local_experts": 4}, {}),
        ({"num_experts": 4, "num_local_experts": 4}, {}),
        # transformers 5.11: the default of a field that its class does not use
        (
            {**SPARSE, "model_type": "glm_moe_dsa", "num_experts": 256},
            {**SPARSE, "model_type": "glm_moe_dsa"},
        ),
        ({"n_shared_experts": None, "num_shared_experts": 2}, {}),
        ({"num_nextn_predict_layers": None, "num_mtp_layers": 1, "mtp_layer_types": ["x"]}, {}),
        ({"q_head_dim": 28, "head_dim": 32}, {}),
        ({"layer_types": ["full_attention"] * 2}, {}),
        ({"layer_types": ["attention"] * 2}, {}),
        ({"rope_interleave": None, "model_type": "deepseek_v3"}, {"rope_interleave": True}),
        ({**SPARSE, "layer_types": ["deepseek_sparse_attention"] * 2}, SPARSE),
        ({**SPARSE, "layer_types": ["indexed_attention"] * 2}, SPARSE),
        ({"rope_scaling": {"type": "deepseek_yarn"}}, {"rope_scaling": {"type": "yarn"}}),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "deepseek_yarn", "rope_theta": 10000}},
            {"rope_scaling": {"type": "yarn"}},
        ),
    ],
)
def test_two_spellings(written, same):
    """One model, two spellings: the same Config."""

    def packed(keys):
        values = {**CONFIG, "model_type": "glm_moe_dsa", **keys}
        for key in ("rope_scaling", "rope_parameters"):
            if values.get(key):
                values[key] = {"factor": 40, "original_max_position_embeddings": 64, **values[key]}
        cfg = model_config.parse(values, "")
        return cfg.packed(), cfg.inv_freq.tobytes()

    assert packed(written) == packed(same)


@pytest.mark.parametrize(
    "keys, says",
    [
        ({"num_experts": 8}, "n_routed_experts says 4"),
        ({"num_local_experts": 8}, "n_routed_experts says 4"),
        ({"num_shared_experts": 1}, "n_shared_experts says 2"),
        ({"layer_types": ["indexed_attention"] * 2}, "layer_types"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "all 2 layers"),
        ({**SPARSE, "layer_types": ["deepseek_sparse_attention", "full_attention"]}, "layer_types"),
        ({**SPARSE, "layer_types": [["indexed_attention"]] * 2}, "layer_types"),
        ({"rope_scaling": {"type": "yarn"}, "rope_parameters": {"type": "default"}}, "rope_parameters says"),
        ({"rope_parameters": {"rope_theta": 5000}}, "says 5000"),
        ({"q_head_dim": 24}, "qk_head_dim"),
    ],
)
def test_contradictions(keys, says):
    with pytest.raises(ExportError, match=says):
        model_config.parse({**CONFIG, "model_type": "glm_moe_dsa", **keys}, "")


IMAGES = {
    "kimi_k25": {
        "media_placeholder_token_id": 7,
        "video_token_id": 9,
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
        "projection_hidden_size": 32,
        "projection_layer_norm_eps": 1e-5,
    },
    "mistral3": {
        "image_token_index": 10,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "multimodal_projector_bias": False,
        "spatial_merge_size": 2,
    },
}
PREFIXES = {
    "transformers 4": ("language_model.", "language_model.", ""),
    "transformers 5": ("model.language_model.", "", "model."),
    "transformers 5.24": ("language_model.model.blocks.", "language_model.", ""),
}


@pytest.mark.parametrize("named", ["model_type", "architectures"])
@pytest.mark.parametrize("version", PREFIXES)
@pytest.mark.parametrize("wrapper", IMAGES)
def test_names_inside_a_larger_model(wrapper, version, named, source, exported):
    """language_model.model.layers..., or model.language_model.layers... with lm_head at the top: the same
    checkpoint as of the language model alone."""
    begin, head, images = PREFIXES[version]
    names = (
        {"model_type": "deepseek_v3"}
        if named == "model_type"
        else {"architectures": ["DeepseekV3ForCausalLM"]}
    )
    inner = {key: value for key, value in CONFIG.items() if key != "model_type"} | names
    outer = {**dict.fromkeys(CONFIG), **IMAGES[wrapper], "model_type": wrapper, "vision_config": {"depth": 1}}
    outer |= {"architectures": ["SomethingForConditionalGeneration"], "text_config": inner}
    changes = dict.fromkeys(tensors())
    for name, x in tensors().items():
        if begin.endswith("blocks."):
            layer = name.startswith("model.layers.")
            inside = begin + name.removeprefix("model.layers.") if layer else head + name
        else:
            inside = begin + (name.removeprefix("model.") if begin.startswith("model.") else name)
        changes[head + name if name.startswith("lm_head") else inside] = x
    for name in ("vision_tower.x.weight", "multi_modal_projector.norm.weight", "mm_projector.in_proj.bias"):
        changes[images + name] = np.ones(4, np.float32)
    assert exported(source(outer, changes)).file == exported(source()).file


def test_one_name_twice_inside_a_larger_model(source, exported):
    norm = np.ones(72, np.float32)
    changes = {"language_model.model.norm.weight": norm, "model.language_model.norm.weight": norm}
    assert "model.norm.weight is also in" in exported(source({}, changes))


# ---- text


@pytest.mark.parametrize(
    "keys, begin",
    [
        # llama.cpp, llama-vocab.cpp: add_bos of each pre-tokenizer, and bos_token_id of SentencePiece
        ({"model": "gpt2", "pre": "tekken", "bos_token_id": 3}, (3, 1)),
        ({"model": "gpt2", "pre": "llama-bpe", "bos_token_id": 3}, (3, 1)),
        ({"model": "gpt2", "pre": "chameleon", "bos_token_id": 3}, (3, 1)),
        ({"model": "gpt2", "pre": "deepseek-v3", "bos_token_id": 3}, (3, 0)),
        ({"model": "gpt2", "pre": "kimi-k2", "bos_token_id": 3}, (3, 0)),
        ({"model": "gpt2", "pre": "glm4"}, (-1, 0)),
        ({"model": "gpt2", "bos_token_id": 3}, (3, 0)),
        ({"model": "llama", "bos_token_id": 3}, (3, 1)),
        ({"model": "llama"}, (1, 1)),
        ({"model": "gpt2", "pre": "tekken", "bos_token_id": 3, "add_bos_token": False}, (3, 0)),
        ({"model": "gpt2", "pre": "deepseek-v3", "bos_token_id": 3, "add_bos_token": True}, (3, 1)),
        ({"model": "llama", "bos_token_id": 3, "add_bos_token": False}, (3, 0)),
    ],
)
def test_begin_token_of_a_gguf(keys, begin, write_gguf):
    path, _ = write_gguf("v2lite")
    found = Gguf(str(path))
    left = {key: value for key, value in found.metadata.items() if not key.startswith("tokenizer.")}
    found.metadata = left | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    fields = text_fields(gguf_config.config(found).values, 300)
    assert (fields["bos_token_id"], fields["add_bos_token"]) == begin


SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 0.0}


@pytest.mark.parametrize(
    "written, means, warned",
    [
        ({"top_k": -1}, {}, None),
        ({"top_k": 0}, {}, None),
        ({"top_k": 50.0}, {"top_k": 50}, None),
        ({"top_k": -2}, {}, "top_k"),
        ({"top_k": "all"}, {}, "top_k"),
        ({"top_k": 1 << 40}, {}, "top_k"),
        ({"top_p": 0}, {}, "top_p"),
        ({"top_p": 1.5}, {}, "top_p"),
        ({"top_p": float("nan")}, {}, "top_p"),
        ({"top_p": 1}, {"top_p": 1.0}, None),
        ({"temperature": -1}, {}, "temperature"),
        ({"temperature": 0}, {"temperature": 0.0}, None),
        ({"temperature": float("inf")}, {}, "temperature"),
        ({"temperature": None}, {}, None),
        ({"do_sample": False, "temperature": -1}, {"temperature": 0.0}, None),
        ({"do_sample": "yes", "temperature": 0.5}, {"temperature": 0.5}, "do_sample"),
        ({"min_p": 0.05}, {"min_p": 0.05}, None),
        ({"min_p": -1}, {}, "min_p"),
        ({"min_p": 2}, {}, "min_p"),
        ({"repetition_penalty": 1.05}, {"repetition_penalty": 1.05}, None),
        ({"repetition_penalty": 1}, {"repetition_penalty": 1.0}, None),
        ({"repetition_penalty": 0}, {}, "repetition_penalty"),
        ({"repetition_penalty": [1.1]}, {}, "repetition_penalty"),
    ],
)
def test_sampling_defaults(written, means, warned, source, tmp_path):
    """A strange default costs one warning that names it, never the export; top_k -1 is "off". What is
    written reaches the file."""
    folder, out = source(), tmp_path / "model.bin"
    (folder / "generation_config.json").write_text(json.dumps(written))
    done = subprocess.run(
        [sys.executable, compare.ROOT / "export.py", folder, out], capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if "generation_config.json" in line]
    assert done.returncode == 0 and len(lines) == bool(warned)
    assert not warned or ("warning" in lines[0] and f": {warned} is " in lines[0])
    config = Checkpoint(out).config
    for key, value in {**SAMPLING, **means}.items():
        assert config[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize("ends", [-1, 37, "2", [2, None], [2.5], list(range(9)), True, {"a": 2}])
def test_end_tokens_stay_strict(ends, source, exported):
    folder = source()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert "eos_token_id" in exported(folder)


ADDED = {5: "<|im_end|>", 7: "<|im_user|>"}  # with a gap between them, as Kimi's have


def beside(folder, decoder, name="tokenizer_config.json"):
    stated = {str(i): {"content": text} for i, text in decoder.items()}
    content = (
        {"added_tokens_decoder": stated}
        if name == "tokenizer_config.json"
        else {v: k for k, v in decoder.items()}
    )
    (folder / name).write_text(json.dumps(content))


def tokenizer_json(added):
    listed = [{"id": i, "content": text, "special": True} for i, text in added.items()]
    return {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": listed}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize(
    "added, says",
    [
        (ADDED, None),
        ({5: "<|im_end|>"}, None),
        ({5: "<|im_end|>", 6: "<|im_user|>"}, "<|im_user|> is 6 in the one and 7 in the other"),
        ({5: "<|im_user|>", 7: "<|im_end|>"}, "im_end"),
        ({5: "<|im_end|>", 7: "<|other|>"}, "7 is <|other|> in the one and <|im_user|> in the other"),
    ],
)
def test_files_that_disagree_about_ids(added, says, name, tmp_path):
    """A tokenizer.json in which special tokens lost the gaps of the model's own file is refused; the message
    names both files, both ids and what to delete."""
    beside(tmp_path, ADDED, name)
    path = tmp_path / "tokenizer.json"
    if says is None:
        check_ids(tokenizer_json(added), path)
        return
    for own, do in (
        (None, "delete the file that is wrong"),
        ("tiktoken.model", "delete tokenizer.json: tiktoken.model"),
    ):
        if own:
            (tmp_path / own).write_bytes(b"")
        with pytest.raises(ExportError) as error:
            check_ids(tokenizer_json(added), path)
        assert all(part in str(error.value) for part in (says, do, name, "tokenizer.json"))


@pytest.mark.parametrize(
    "ids, ends, refused",
    [
        ({257: "[BOS]", 258: "[EOS]", 259: "<|im_end|>", 261: "<|im_user|>"}, [259], False),
        # as transformers 5.11 and 5.15 write it
        ({257: "<|im_end|>", 258: "<|im_user|>", 259: "[BOS]", 260: "[EOS]"}, [259], True),
        ({257: "<|im_end|>", 258: "<|im_user|>", 259: "[BOS]", 260: "[EOS]"}, 258, True),
        ({257: "[BOS]", 258: "<|im_end|>", 259: "[EOS]"}, 258, False),
        ({257: "<|im_end|>", 258: "[EOS]", 259: "[BOS]"}, 258, False),
        ({257: "<|im_end|>", 258: "[BOS]", 259: "[EOS]"}, None, False),
    ],
)
def test_begin_and_end_by_name(ids, ends, refused, tmp_path):
    """Where no file lists the added tokens: a tokenizer.json whose begin and end tokens both have other ids
    than the configuration says is another model's, or lost gaps."""
    named = {"bos_token": "[BOS]", "eos_token": {"content": "[EOS]"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"bos_token_id": 257, "eos_token_id": ends}})
    )
    (tmp_path / "tiktoken.model").write_bytes(b"")
    if not refused:
        check_ids(tokenizer_json(ids), tmp_path / "tokenizer.json")
        return
    with pytest.raises(
        ExportError, match=r"bos_token_id 257 in the other; delete tokenizer.json: tiktoken.model"
    ):
        check_ids(tokenizer_json(ids), tmp_path / "tokenizer.json")


# ---- forms of weights that are not read

QUANT = "quantization_config"
GROUP = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}}}


@pytest.mark.parametrize(
    "config, says",
    [
        ({QUANT: {"quant_method": "gptq", "bits": 8, "desc_act": False}}, ["GPTQ", "8 bits"]),
        ({QUANT: {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ["bitsandbytes", "4 bits"]),
        ({QUANT: {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ["bitsandbytes", "8 bits"]),
        ({QUANT: {"load_in_8bit": True, "load_in_4bit": False}}, ["bitsandbytes", "8 bits"]),
        ({QUANT: {"quant_method": "mxfp4"}}, ["MXFP4"]),
        ({QUANT: {"quant_method": "nvfp4"}}, ["NVFP4"]),
        ({QUANT: {"quant_algo": "W4A8_AWQ", "producer": {"name": "modelopt"}}}, ["W4A8_AWQ", "ModelOpt"]),
        ({QUANT: {"quant_method": "modelopt"}}, ["ModelOpt"]),
        ({QUANT: {"quant_method": "torchao"}}, ["torchao"]),
        ({QUANT: {"quant_method": "fbgemm_fp8"}}, ["FBGEMM"]),
        ({QUANT: {"quant_method": "auto-round", "bits": 4}}, ["AutoRound"]),
        (
            {
                QUANT: {
                    "quant_method": "compressed-tensors",
                    "format": "mixed-precision",
                    "config_groups": {"a": {"format": "mxfp8-quantized", "weights": {}}},
                }
            },
            ["MXFP8"],
        ),
        ({QUANT: {"quant_method": "awq", "bits": 4, "version": "gemv"}}, ["version", "gemv"]),
        ({QUANT: {"quant_method": "awq", "bits": 8}}, ["bits"]),
        ({"quantization": {"group_size": 64, "bits": 4}}, ["MLX", "4 bits"]),
        (
            {
                "quantization": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
                QUANT: {"group_size": 32, "bits": 8},
            },
            ["MLX", "8 bits", "mxfp8"],
        ),
        ({QUANT: {"quant_method": "new"}}, ["quant_method", "new"]),
    ],
)
def test_forms_that_the_configuration_names(config, says, source, exported):
    message = exported(source(config))
    assert all(part in message for part in says) and "missing" not in message


@pytest.mark.parametrize(
    "algorithm, says",
    [
        ("FP8_PB_WO", "FP8_PB_WO"),
        ("MIXED_PRECISION", "MIXED_PRECISION"),
        ("NVFP4_AWQ", "NVFP4_AWQ"),
        ("NVFP4", None),
        ("FP8", None),
        (None, None),
    ],
)
def test_forms_of_modelopt(algorithm, says, source, exported):
    """hf_quant_config.json may be the only sign; null there means that nothing is quantized."""
    folder = source()
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm, "group_size": 16}}
    (folder / "hf_quant_config.json").write_text(json.dumps(stated))
    message = exported(folder)
    if says is None:
        assert isinstance(message, Checkpoint)
    else:
        assert says in message and "ModelOpt" in message and "hf_quant_config.json" in message


UP = "model.layers.0.mlp.up_proj"
BYTES, HALF = np.zeros((100, 36), np.uint8), np.zeros((100, 4), np.uint16)
WORDS = np.zeros((9, 100), np.int32)


@pytest.mark.parametrize(
    "stored, form",
    [
        ({"_blocks": ("U8", BYTES), "_scales": ("U8", BYTES)}, "MXFP4"),
        (
            {
                ".qweight": ("I32", WORDS),
                ".qzeros": ("I32", WORDS),
                ".scales": ("F16", HALF),
                ".g_idx": ("I32", WORDS[0]),
            },
            "GPTQ",
        ),
        ({".weight": ("U32", WORDS.T), ".scales": ("F16", HALF), ".biases": ("F16", HALF)}, "MLX"),
        (
            {
                ".weight": ("U8", BYTES),
                ".weight.absmax": ("U8", BYTES[0]),
                ".weight.quant_map": np.ones(16, np.float32),
            },
            "bitsandbytes",
        ),
        ({".weight": ("I8", BYTES), ".SCB": np.ones(100, np.float32)}, "bitsandbytes"),
        ({".weight": ("F8_E5M2", BYTES)}, "E5M2"),
        ({".weight": ("F4", BYTES), ".weight_scale": ("F8_E8M0", BYTES)}, "4 bits"),
        ({".weight": ("F6_E2M3", BYTES)}, "6 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forms_that_the_tensors_show(stored, form, source, exported):
    """The configuration says nothing: what the tensors look like is named, never one that is missing."""
    message = exported(source({}, {UP + ".weight": None, **{UP + end: x for end, x in stored.items()}}))
    assert form in message and "missing" not in message


# ---- hostility


def limited(*arguments):
    """(exit status, the line on standard error, seconds of CPU, bytes of memory at most) of export.py."""
    # in a small process between: a child's memory begins with that of the process that forked it
    measure = (
        "import resource, subprocess, sys\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "status = subprocess.call(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(status, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)\n"
    )
    export = [sys.executable, str(compare.ROOT / "export.py"), *map(str, arguments)]
    done = subprocess.run([sys.executable, "-c", measure, *export], capture_output=True, text=True)
    status, seconds, memory = done.stdout.split()
    return int(status), done.stderr, float(seconds), int(memory)


def cheap(*arguments):
    """The message of an export that fails within little time and memory."""
    status, line, seconds, memory = limited(*arguments)
    assert (status, line.count("\n")) == (1, 1) and "please report" not in line, line
    assert seconds < 4 and memory < 200e6, (seconds, memory)
    return line


HUGE = {
    "heads": {
        "num_attention_heads": 4096,
        "qk_nope_head_dim": 4096,
        "qk_rope_head_dim": 4096,
        "num_hidden_layers": 1024,
    },
    "halves": {"num_attention_heads": 4096, "qk_rope_head_dim": 4096, "rope_interleave": False},
    "multiplier": {
        "num_attention_heads": 4096,
        "qk_rope_head_dim": 4096,
        "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.7, "original_max_position_embeddings": 64},
    },
    "experts": {"n_routed_experts": 1024, "num_experts_per_tok": 2, "num_hidden_layers": 1024},
    "stretches": {
        "model_type": "mistral4",
        "max_position_embeddings": 1 << 24,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 1,
        },
    },
    "indexer": {**SPARSE, "model_type": "deepseek_v32", "index_n_heads": 4096, "index_head_dim": 4096},
    "list of layers": {"moe_layer_freq": [0, 1, 1, 0] * 500000, "num_hidden_layers": 1024},
    "list of indexers": {**SPARSE, "model_type": "deepseek_v32", "index_topk_pattern": "FS" * 1000000},
}


@pytest.mark.parametrize("what", HUGE)
def test_configurations_that_promise_much(what, source, tmp_path):
    """The tensors of a tiny model are there, so that the first ones are found and a later one is not."""
    cheap(source({**HUGE[what], "vocab_size": 37}), tmp_path / "model.bin")


def test_gguf_without_end(tmp_path):
    """Stacked experts of size zero, or more of them than the file says, are not counted through."""

    def write(shape, count):
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "deepseek2")
        writer.add_expert_count(count)
        writer.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 1, 1), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        raw = (tmp_path / "x.gguf").read_bytes()
        at = raw.index(b"ffn_gate_exps.weight") + len("ffn_gate_exps.weight") + 4
        (tmp_path / "x.gguf").write_bytes(raw[:at] + np.array(shape[::-1], "<u8").tobytes() + raw[at + 24 :])
        return cheap(tmp_path / "x.gguf", tmp_path / "model.bin")

    assert "not possible" in write([1 << 39, 1, 0], 2)
    assert "not possible" in write([0, 1, 1], 2)
    assert "not possible" in write([1 << 62, 1, 1], 2)
    assert "ends after" in write([1 << 39, 1, 1], 2)
    assert "expert_count is 5" in write([2, 1, 1], 5)


def test_files_without_end(source, tmp_path, exported):
    """A device, a pipe or a directory under the name of a file is refused, and not opened."""
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "hf_quant_config.json",
        "model.safetensors",
    ):
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
            folder = source()
            (folder / name).unlink(missing_ok=True)
            make(folder / name)
            message = cheap(folder, tmp_path / "model.bin")
            assert name in message and "not a regular file" in message
            shutil.rmtree(folder)
    folder = source()
    (folder / "config.json").write_bytes(b"[" * 21_000_000)
    assert "has more than" in cheap(folder, tmp_path / "model.bin")
    (folder / "config.json").write_bytes(b'{"a":' + b"[" * 1_000_000)
    assert "nested" in cheap(folder, tmp_path / "model.bin")


def test_pointers_of_git_lfs(source, exported):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    for name in ("model.safetensors", "config.json"):
        folder = source()
        (folder / name).write_bytes(pointer)
        assert name in (message := exported(folder)) and "git lfs pull" in message


STRANGE = [
    0,
    -1,
    1,
    2,
    7,
    1000,
    1 << 24,
    1 << 31,
    1 << 63,
    10**300,
    1e-300,
    0.5,
    1e30,
    1e308,
    math.nan,
    math.inf,
]
STRANGE += [
    "",
    "x",
    "yarn",
    "longrope",
    [],
    [0],
    [1] * 2000,
    ["full"] * 2000,
    "F" * 2000,
    {},
    {"a": 1},
    [[]],
    True,
    False,
]


def variants(values):
    """`values` with each key, and each key of an object in it, replaced by each of STRANGE."""
    for key, old in values.items():
        for x in STRANGE:
            yield {**values, key: x}
            for inner in old if isinstance(old, dict) else ():
                yield {**values, key: {**old, inner: x}}


def survives(read):
    """`read` gives a Config that can be packed, or an ExportError, and no other exception."""
    with contextlib.suppress(ExportError):
        read().packed()


@pytest.mark.parametrize(
    "shape", ["deepseek-v3.2", "glm-5.2", "minicpm3-4b", "mistral-small-4", "longcat-flash"]
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_value_is_a_fault_of_the_program(shape):
    """Any value of any key: a Config or a refusal."""
    quant = {"quant_method": "fp8", "weight_block_size": [128, 128], "format": None, "config_groups": None}
    keys = (
        "mlp_layer_types",
        "layer_types",
        "indexer_types",
        "architectures",
        "text_config",
        "num_experts",
        "tie_word_embeddings",
    )
    for values in variants({**dict.fromkeys(keys), QUANT: quant, **SHAPES[shape]}):
        survives(lambda values=values: model_config.parse(language_model(values, "c"), "n", "c"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_value_of_params_is_a_fault_of_the_program():
    params = {**PARAMS, "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 64}}
    for values in variants(params):
        survives(lambda values=values: model_config.parse(mistral.config(values, "p"), "n", "p"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_value_of_metadata_is_a_fault_of_the_program(write_gguf):
    found = Gguf(str(write_gguf("v2lite")[0]))
    more = dict.fromkeys(
        ["tokenizer.ggml.pre", "tokenizer.ggml.model", "deepseek2.attention.temperature_scale"], 0
    )
    for metadata in variants({**found.metadata, **more}):
        found.metadata = metadata
        survives(lambda: model_config.parse(gguf_config.config(found).values, "n", "x"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_damaged_header_of_a_gguf(write_gguf, tmp_path):
    """Bytes of the header changed, counts made large, parts left out: refused in a moment, or the same kind
    of model."""
    path, _ = write_gguf("v2lite", "Q8_0")
    raw, rng = path.read_bytes(), np.random.default_rng(4)
    end = raw.index(b"blk.2.")
    for _ in range(1500):
        changed, at = bytearray(raw), int(rng.integers(end))
        what = rng.integers(3)
        if what == 0:
            changed[at] = int(rng.integers(256))
        elif what == 1:
            changed[at : at + 8] = int(rng.choice([0, 1, 1 << 31, 1 << 40, 1 << 62])).to_bytes(8, "little")
        else:
            del changed[at : at + int(rng.integers(1, 16))]
        (tmp_path / "x.gguf").write_bytes(changed)
        try:
            found = Gguf(str(tmp_path / "x.gguf"))
            cfg = model_config.parse(gguf_config.config(found).values, "n", "x", found.has)
            make_plan(cfg, "mixed", found)
        except ExportError:
            pass
