"""Ordinary attention (MHA, GQA, MQA): that it is a special case of MLA, what its caches cost, what it
refuses. Its logits beside those of transformers are in test_oracle.py, calls that are cut and shared in
test_sequences.py."""

import dataclasses
import json
import re

import compare
import numpy as np
import pytest
from support import FAILED, MODELS, refused, run, safetensors, text

from exporter import config as model_config
from exporter.plan import interleave, make_plan
from exporter.sources import Safetensors
from exporter.stream import Packer, Progress, source_tensors
from exporter.workers import Workers
from exporter.writer import Front, Output, write_checkpoint

GROUPED = MODELS / "llama_gqa"  # heads of 32, as many as q8_0 has to a block


def published(folder):
    """(config.json, {name: float32 array}) of a model of tests/models."""
    source = Safetensors(str(folder))
    tensors = {
        name: source.rows(name, 0, int(np.prod(tensor.shape[:-1]))).reshape(tensor.shape)
        for name, tensor in source.tensors.items()
    }
    return json.loads((folder / "config.json").read_text()), tensors


# ---- GQA is MLA with a W_uv that selects


def latent_weights(attention, heads, groups, size):
    """A GQA layer's weights as those of latent attention. The latent is the values of all groups side by
    side, and W_uv of a head takes its group's out of it. The rotated keys of all groups are one key, and a
    head's query is zero but at its group's place. Nothing is left for W_uk: one number, which is zero."""
    of = [head // (heads // groups) for head in range(heads)]  # the group of each head
    q, k, v, o = (attention[f"{letter}_proj.weight"] for letter in "qkvo")
    hidden = q.shape[1]
    pairs = interleave(size)  # neighbours, so that every group's frequencies lie together
    query = np.zeros((heads, 1 + groups * size, hidden), np.float32)
    key = k.reshape(groups, size, hidden)[:, pairs].reshape(groups * size, hidden)
    kv_b = np.zeros((heads, 1 + size, groups * size), np.float32)
    for head, group in enumerate(of):
        place = slice(1 + group * size, 1 + (group + 1) * size)
        query[head, place] = q.reshape(heads, size, hidden)[head, pairs]
        kv_b[head, 1:, group * size : (group + 1) * size] = np.eye(size)
    return {
        "q_proj.weight": query.reshape(-1, hidden),
        "kv_a_proj_with_mqa.weight": np.concatenate([v, key]),
        "kv_a_layernorm.weight": np.full(groups * size, EPS**0.5, np.float32),
        "kv_b_proj.weight": kv_b.reshape(-1, groups * size),
        "o_proj.weight": o,
    }


# MLA norms its latent, and GQA nothing: beside an epsilon as large as this the mean square of the values does
# not count, and the norm divides by its square root, which the gain multiplies.
EPS = 2.0**60


def write_latent(folder, out):
    """The checkpoint `out` of the GQA model in `folder`, written as a model with latent attention."""
    values, tensors = published(folder)
    heads, groups, size = (values[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    latent = {k: v for k, v in values.items() if k not in ("num_key_value_heads", "head_dim")} | {
        "model_type": "deepseek_v2",
        "architectures": ["DeepseekV2ForCausalLM"],
        "kv_lora_rank": groups * size,
        "qk_nope_head_dim": 1,
        "qk_rope_head_dim": groups * size,
        "v_head_dim": size,
    }
    for layer in range(values["num_hidden_layers"]):
        at = f"model.layers.{layer}.self_attn."
        attention = {name.removeprefix(at): x for name, x in tensors.items() if name.startswith(at)}
        tensors = {name: x for name, x in tensors.items() if not name.startswith(at)}
        tensors |= {at + name: x for name, x in latent_weights(attention, heads, groups, size).items()}
    source = out.parent / "latent"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(latent))
    (source / "model.safetensors").write_bytes(safetensors({k: ("F32", x) for k, x in tensors.items()}))
    opened, ordinary = Safetensors(str(source)), model_config.parse(values, "gqa")
    config = dataclasses.replace(
        model_config.parse(latent, "gqa as mla", has=opened.has),
        latent_norm_eps=EPS,
        softmax_scale=ordinary.softmax_scale,
        inv_freq=np.tile(ordinary.inv_freq, groups),
    )
    entries = make_plan(config, "f32", opened)
    with Output(str(out)) as file, Workers(Packer(entries, opened), 1) as workers:
        pieces = source_tensors(entries, workers, Progress(1))
        write_checkpoint(file, Front(config.packed(), b"", b""), entries, pieces)


@pytest.mark.parametrize("path", ["absorbed", "decompressed", "definition"])
@pytest.mark.parametrize("name", ["llama_mha", "llama_gqa", "llama_mqa"])
def test_it_is_latent_attention_that_selects(name, path, export, tmp_path):
    """doc/study.md says so: the same weights, written as a latent layer, give the same logits. (Two roundings
    of f32 in another order are what is left.)"""
    ids = compare.expected(MODELS / name, None, None)[0][:150]
    write_latent(MODELS / name, tmp_path / "latent.bin")
    want = compare.logits(export(MODELS / name, "f32"), ids, "-k", "f32")
    got = compare.logits(tmp_path / "latent.bin", ids, "-k", "f32", MLA_PATH=path)
    assert compare.relative_difference(got, want) <= 5e-6


# ---- what its caches cost


def q8_0(x):
    """llama.cpp's q8_0 and back: 32 numbers have one scale, their largest over 127, in f16."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    integers = np.round(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    return (integers * scale.astype(np.float16).astype(np.float64)).reshape(x.shape)


def reference(values, tensors, ids, rounded, rounded_query=lambda x: x):
    """The logits [T, V] of a Llama in float64, keys and values as `rounded` gives them back, and queries as
    `rounded_query` does."""
    heads, groups, size = (values[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    count = len(ids)

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + values["rms_norm_eps"]) * tensors[name]

    angles = np.outer(np.arange(count), values["rope_theta"] ** (-np.arange(0, size, 2) / size))
    cosine, sine = np.cos(angles), np.sin(angles)

    def rope(x):
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)

    x = tensors["model.embed_tokens.weight"].astype(np.float64)[ids]
    future = np.triu(np.full((count, count), -np.inf), 1)
    for layer in range(values["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (y @ tensors[f"{at}self_attn.{n}_proj.weight"].T).reshape(count, -1, size).transpose(1, 0, 2)
            for n in "qkv"
        )
        k, v = (np.repeat(rounded(z), heads // groups, 0) for z in (rope(k), v))
        score = rounded_query(rope(q)) @ k.transpose(0, 2, 1) / size**0.5 + future
        weight = np.exp(score - score.max(-1, keepdims=True))
        out = weight / weight.sum(-1, keepdims=True) @ v
        x = x + out.transpose(1, 0, 2).reshape(count, -1) @ tensors[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (y @ tensors[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ tensors[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ tensors["lm_head.weight"].T


def divergence(want, got):
    """Kullback-Leibler, nats, the mean over all rows."""

    def logs(x):
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = logs(want), logs(got)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_q8_is_as_good_as_q8_0(export):
    """The q8 cache of grouped heads must lose no more than the rounding of keys and values alone does in
    llama.cpp's q8_0, whose blocks are as long as these heads; queries and weights of 8 bits would. The judge
    of the reference is transformers."""
    ids, judge = compare.expected(GROUPED, None, None)
    values, tensors = published(GROUPED)
    exact = reference(values, tensors, ids, lambda x: x)
    assert compare.relative_difference(exact, judge) <= 1e-5
    theirs = divergence(exact, reference(values, tensors, ids, q8_0))
    ours = divergence(exact, compare.logits(export(GROUPED, "f32"), ids, "-k", "q8"))
    assert 0 < ours <= 1.05 * theirs, (ours, theirs)


@pytest.mark.parametrize("cache", ["bf16", "q8", "q6", "q4"])
@pytest.mark.parametrize("name", ["llama_mha", "llama_gqa", "llama_mqa", "llama_rope3"])
def test_the_kernel_is_its_definition(name, cache, export):
    """With rounded rows the kernel is as near the plain loops, which read the same rows, as 16 bits of a
    query and of a weight are."""
    ids, want = compare.expected(MODELS / name, None, None)
    model = export(MODELS / name, "f32")
    got, defined = (compare.logits(model, ids, "-k", cache, **way) for way in ({}, DEFINITION))
    assert np.sqrt(np.mean((got - defined) ** 2)) <= 5e-3 * want.std()


DEFINITION = {"MLA_PATH": "definition"}


def test_values_are_rotated(export, tmp_path):
    """The rotation of values, folded into W_v and W_o, leaves the model as it was, and is there: a q4 cache
    sees other numbers."""
    ids, want = compare.expected(GROUPED, None, None)
    compare.export(GROUPED, tmp_path / "plain.bin", "--type", "q8", "--no-rotation")
    rotated, plain = export(GROUPED, "q8"), tmp_path / "plain.bin"
    for model in (rotated, plain):
        assert np.median(np.abs(compare.logits(model, ids, "-k", "f32") - want)) <= 0.1 * want.std()
    assert not np.array_equal(compare.logits(rotated, ids), compare.logits(plain, ids))


# ---- sizes and refusals


def test_bytes_of_a_token(export, tmp_path):
    """What --info says is what a session holds: pages of 128 rows."""
    model, session = export(GROUPED, "q8"), tmp_path / "session"
    info = text("--info", model=model).decode()
    for cache in ("f32", "bf16", "q8", "q6", "q4"):
        token = int(re.search(rf"^-k {cache} +[\d,]+ +([\d,]+)", info, re.M)[1].replace(",", ""))
        session.unlink(missing_ok=True)
        text("--ids", "1 2 3", "-n", 1, "-t", 0, "-k", cache, "--session", session, model=model)
        one = session.stat().st_size
        text("--ids", " ".join(["5"] * 140), "-n", 1, "-t", 0, "--session", session, model=model)
        assert abs(session.stat().st_size - one - 128 * token) <= 4096  # ids, and a page's rounding


@pytest.mark.parametrize("cache", ["full", "full-bf16", "full-q8"])
def test_a_full_cache_is_for_latents(cache, export):
    model = export(GROUPED, "q8")
    refused(run("--ids", "1", "-k", cache, model=model), FAILED, "no latent", "-k f32")
