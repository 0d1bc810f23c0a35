"""The arithmetic of every model family, judged by transformers: tiny random models with the logits that
transformers computed in f32.

Each is run through all forms of attention (absorbed, decompressed, ordinary K/V cache, definition; without a
latent the kernel's and the definition), in one call and in small pieces: a mistake in any of them, in RoPE,
YaRN, a router, a norm's epsilon or in the export moves the logits by a thousand times the tolerance.
tests/models holds one model for each feature (tests/make_sandwich_model.py made the one that transformers has
no class for, tests/make_llama_models.py those without a latent); MLA_ORACLE may name a
directory with more of the same form (config.json, model.safetensors, expected.npz)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import compare
import numpy as np
import pytest
from support import MODELS, PATHS, TOLERANCE

# Models without a latent have one way and its definition.
ONE_WAY = {"kernel": (["-k", "f32"], {}), "definition": (["-k", "f32"], {"MLA_PATH": "definition"})}
WITHOUT_LATENT = {"llama", "deepseek_v4"}

# One such feature each, put into a configuration that is otherwise supported.
FEATURES = {
    "linear_attn_config": {"num_heads": 2},
    "layer_group_size": 4,
    "sliding_window": 128,
    "hidden_act": "gelu",
    "made_up_key": 1,
}

# What a type of weights may cost on random models: the median difference, in units of the spread (rounding
# moves some rows to other experts; two models that have nothing to do with each other are 0.95 apart).
COST = {"bf16": 0.04, "q8": 0.1, "mixed": 0.3}
# A memory goes on with what rounding did to it.
OF_MEMORY = 1.5

# Rows of a call: all, one, and an odd number.
CHUNKS = [None, 1, 7]
# Around the four taps of linear attention's convolution and the rows of a small call.
AROUND_FOUR = [None, 1, 3, 4, 5, 7]
# Around the windows of DeepSeek-V4, which are of 4 and of 128 rows, and the pools of GLM-5.3-Flash, of 4.
AROUND_WINDOWS = [*AROUND_FOUR, 127, 128, 129]
CHUNKS_OF = {
    "kimi_linear": AROUND_FOUR,
    "bailing_hybrid": AROUND_FOUR,
    "deepseek_v4": AROUND_WINDOWS,
    "glm5_next": AROUND_WINDOWS,
}


def sources():
    folders = [MODELS] + ([Path(os.environ["MLA_ORACLE"])] if "MLA_ORACLE" in os.environ else [])
    return {
        path.parent.name: path.parent for folder in folders for path in sorted(folder.glob("*/expected.npz"))
    }


def family(source):
    return json.loads((source / "config.json").read_text())["model_type"]


SUPPORTED = list(sources().values())


def chooses(source):
    """Has the model an indexer? Random ones choose other rows with rounded weights."""
    return '"index_topk"' in (source / "config.json").read_text()


DENSE = [source for source in SUPPORTED if not chooses(source)]


def test_models_are_there():
    assert {
        "v2lite",
        "v3_fp8",
        "v2_236b",
        "v32",
        "glm52",
        "minicpm3",
        "plm",
        "mistral4",
        "longcat",
        "sandwich",
        "llama_mha",
        "llama_gqa",
        "llama_mqa",
        "llama_rope3",
        "kimi_linear",
        "ling_flash",
        "sarvam",
        "axk1",
        "v4_fp4",
        "glm53flash",
    } <= {path.name for path in MODELS.iterdir()}


def ways(source):
    return ONE_WAY if family(source) in WITHOUT_LATENT else PATHS


def cases():
    for source in SUPPORTED:
        for path in ways(source):
            for chunk in CHUNKS_OF.get(family(source), CHUNKS):
                name = f"{chunk} rows a call" if chunk else "one call"
                yield pytest.param(source, path, chunk, id=f"{source.name}-{path}-{name}")


@pytest.mark.parametrize(("source", "path", "chunk"), list(cases()))
def test_logits(source, path, chunk, export):
    ids, want = compare.expected(source, None, None)
    options, environment = ways(source)[path]
    cut = {"MLA_CHUNK": str(chunk)} if chunk else {}
    got = compare.logits(export(source, "f32"), ids, *options, **environment, **cut)
    assert compare.relative_difference(got, want) <= TOLERANCE


@pytest.mark.parametrize("type", COST)
@pytest.mark.parametrize("source", DENSE, ids=lambda source: source.name)
def test_weight_types(source, type, export):
    """What export.py folds into the weights (scales of branches, queries, latents) survives their
    rounding."""
    ids, want = compare.expected(source, None, None)
    got = compare.logits(export(source, type), ids)
    allowed = COST[type] * (OF_MEMORY if family(source) in ("kimi_linear", "bailing_hybrid") else 1)
    assert np.median(np.abs(got - want)) <= allowed * want.std()


# What rounding the queries, weights and cached rows of attention may cost beside the definition, which reads
# all of them in f32: the root mean square of the logits' difference, in units of their spread, on the demo's
# q8 weights.
DISTANCE = {"f32": 0.04, "bf16": 0.04, "q8": 0.06, "q6": 0.08, "q4": 0.08}


@pytest.mark.parametrize("path", ["absorbed", "decompressed"])
@pytest.mark.parametrize("cache", DISTANCE)
def test_distance_from_the_definition(cache, path):
    """With quantized weights the fast paths are near the definition, not equal to it: they round activations.
    (With f32 weights and cache all paths agree with transformers, and so with each other: test_logits.)"""
    model = compare.ROOT / "demo" / "stories.bin"
    ids = [int(i) for i in compare.run(model, "--tokenize", compare.TEXT).split()][:150]
    want, got = (compare.logits(model, ids, "-k", cache, MLA_PATH=way) for way in ("definition", path))
    distance = float(np.sqrt(np.mean((got.astype(np.float64) - want) ** 2)) / want.std())
    print(f"-k {cache}, {path}: {distance:.4f} of the spread from the definition")
    assert 0 < distance <= DISTANCE[cache]


def test_compare_reports_agreement(export):
    """tests/compare.py, which people with real weights use, on a model whose logits are known."""
    command = [sys.executable, compare.__file__, MODELS / "v3_fp8", export(MODELS / "v3_fp8", "f32")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "all equal" in report and float(report.split("std")[1].split()[0]) <= TOLERANCE


@pytest.mark.parametrize("feature", FEATURES)
def test_other_features_are_refused(feature, tmp_path):
    """Leaving out what is not implemented would give a checkpoint that runs and writes nonsense."""
    config = json.loads((MODELS / "v2lite" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, feature: FEATURES[feature]}))
    (tmp_path / "model.safetensors").write_bytes((MODELS / "v2lite" / "model.safetensors").read_bytes())
    with pytest.raises(RuntimeError) as refusal:
        compare.export(tmp_path, tmp_path / "model.bin")
    assert feature in str(refusal.value) and "Traceback" not in str(refusal.value)
    assert not (tmp_path / "model.bin").exists()
