"""Sparse attention (engine/indexer.c) where the oracle does not look: what is dense stays dense to the bit,
several sequences and sessions, whatever form a configuration gives it. That the right rows are chosen is
transformers' word (test_oracle.py: v32, glm52)."""

import json
import struct
import sys
import zlib

import compare
import numpy as np
import pytest
from support import FAILED, MODELS, ROOT, refused, run, text

sys.path.insert(0, str(ROOT))

from exporter import config as model_config
from exporter.errors import ExportError

V32, GLM = MODELS / "v32", MODELS / "glm52"
CONFIG = json.loads((GLM / "config.json").read_text())
TOPK = json.loads((V32 / "config.json").read_text())["index_topk"]


def tensors(source):
    """{name: (type, shape, bytes)}"""
    raw = (source / "model.safetensors").read_bytes()
    size = 8 + struct.unpack_from("<Q", raw)[0]
    return {
        name: (info["dtype"], info["shape"], raw[size:][slice(*info["data_offsets"])])
        for name, info in json.loads(raw[8:size]).items()
        if name != "__metadata__"
    }


def variant(source, folder, config=None, left=None):
    """A copy of a model with keys changed (None: removed), and with the tensors `left` if they are given."""
    folder.mkdir()
    values = {**json.loads((source / "config.json").read_text()), **(config or {})}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in values.items() if value is not None})
    )
    header, data = {}, b""
    for name, (kind, shape, raw) in (tensors(source) if left is None else left).items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    packed = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed + data)
    return folder


def checkpoint(source, *options):
    compare.export(source, source / "model.bin", "--type", "f32", *options)
    return source / "model.bin"


@pytest.mark.parametrize("path", ["absorbed", "decompressed"])
@pytest.mark.parametrize("cache", ["f32", "q8", "full"])
def test_dense_as_long_as_nothing_is_left_out(cache, path, export, tmp_path):
    """Up to index_topk rows the logits are those of the same model without indexer; the first row with one
    more to see differs."""
    none = {"model_type": "deepseek_v3", "index_topk": None, "index_n_heads": None, "index_head_dim": None}
    dense = checkpoint(
        variant(
            V32,
            tmp_path / "dense",
            none,
            {name: t for name, t in tensors(V32).items() if ".indexer." not in name},
        )
    )
    ids, _ = compare.expected(V32, None, None)
    a, b = (compare.logits(model, ids, "-k", cache, MLA_PATH=path) for model in (dense, export(V32, "f32")))
    assert np.array_equal(a[:TOPK], b[:TOPK]) and not np.array_equal(a[TOPK], b[TOPK])


def test_more_than_a_page_is_chosen(tmp_path):
    """140 rows, copied together into two pages of 128 or masked where they are: both as ordinary attention to
    them."""
    model = checkpoint(variant(V32, tmp_path / "v32", {"index_topk": 140}))
    ids, _ = compare.expected(V32, None, None)
    full = compare.logits(model, ids, "-k", "full")
    for path in ("absorbed", "decompressed"):
        assert (
            compare.relative_difference(compare.logits(model, ids, "-k", "f32", MLA_PATH=path), full) <= 3e-4
        )


@pytest.mark.parametrize("cache", ["bf16", "q8", "full"])
@pytest.mark.parametrize("source", [V32, GLM], ids=lambda source: source.name)
def test_sessions_carry_the_index_keys(source, cache, export, tmp_path):
    """In three pieces, across the end of the first page of 128 rows, as in one."""
    model, session = export(source, "f32"), tmp_path / "session"
    greedy = ["-t", 0, "--ignore-eos", "-k", cache]
    prompt = ["--ids", " ".join(map(str, compare.expected(source, None, None)[0][:110]))]
    pieces = [text(*prompt, *greedy, "-n", 8, "--session", session, model=model)]
    pieces += [
        text(*greedy, "-n", 12, "-j", threads, "--session", session, model=model) for threads in (1, 2)
    ]
    assert b" ".join(map(bytes.strip, pieces)) == text(*prompt, *greedy, "-n", 32, model=model).strip()


def test_indexers_that_are_not_used_stay_behind(export, tmp_path):
    """Some files have an indexer in layers that share another's choice."""
    t = tensors(GLM)
    unused = {
        f"model.layers.3.self_attn.indexer.{name}": t[f"model.layers.1.self_attn.indexer.{name}"]
        for name in ("wk.weight", "k_norm.bias")
    }
    model = checkpoint(variant(GLM, tmp_path / "glm52", left=t | unused))
    assert model.read_bytes() == export(GLM, "f32").read_bytes()
    unknown = {"model.layers.1.self_attn.indexer.scale": t["model.norm.weight"]}
    with pytest.raises(RuntimeError, match=r"indexer.scale: nothing in config.json asks for it"):
        checkpoint(variant(GLM, tmp_path / "unknown", left=t | unknown))


def test_mtp_layers_have_an_indexer(tmp_path):
    """Whatever the schedule says of a layer with their number: layer 5 would share."""
    t, D = tensors(GLM), CONFIG["hidden_size"]
    mtp = {name.replace("layers.4.", "layers.5."): x for name, x in t.items() if "layers.4." in name}
    mtp |= {
        f"model.layers.5.{name}.weight": t["model.norm.weight"]
        for name in ("enorm", "hnorm", "shared_head.norm")
    }
    mtp["model.layers.5.eh_proj.weight"] = "BF16", [D, 2 * D], bytes(4 * D * D)
    model = checkpoint(variant(GLM, tmp_path / "whole", left=t | mtp), "--mtp")
    assert text("--check", model=model)
    with pytest.raises(RuntimeError, match=r"layers.5.self_attn.indexer.wq_b.weight is missing"):
        checkpoint(
            variant(
                GLM,
                tmp_path / "without",
                left=t | {name: x for name, x in mtp.items() if ".indexer." not in name},
            ),
            "--mtp",
        )


F, S = "full", "shared"


@pytest.mark.parametrize(
    "keys, has",
    [
        ({"indexer_types": [F, F, S, S, F]}, [1, 1, 0, 0, 1]),
        ({"index_topk_pattern": "FFSFS"}, [1, 1, 0, 1, 0]),
        ({"indexer_types": [F] * 6}, [1] * 5),
        ({"indexer_types": [F, S, S, S, S]}, [1, 0, 0, 0, 0]),
        ({"index_topk_freq": 2}, [1, 1, 0, 1, 0]),
        ({"index_topk_freq": 1}, [1] * 5),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, [1, 1, 1, 0, 0]),
    ],
)
def test_schedules(keys, has):
    """Which layers have an indexer, by a list or by two numbers, as transformers reads them."""
    c = model_config.parse({**CONFIG, "index_topk_freq": None, "index_skip_topk_offset": None, **keys}, "")
    assert [c.has_indexer(i) for i in range(5)] == list(map(bool, has))


@pytest.mark.parametrize(
    "keys, says",
    [
        ({"indexer_types": [S, F, F, F, F]}, "first layer"),
        ({"indexer_types": [F, F]}, "each of 5"),
        ({"indexer_types": [F, S, F, F, S]}, "every n-th"),
        ({"index_topk_pattern": "FFXFF"}, "index_topk_pattern"),
        ({"index_topk_pattern": 7}, "index_topk_pattern"),
        ({"index_topk_freq": 0}, "index_topk_freq"),
        ({"index_skip_topk_offset": 0}, "first layer"),
        ({"index_topk": 0}, "index_topk"),
        ({"index_topk": True}, "index_topk"),
        ({"index_head_dim": 4}, "index_head_dim"),
        ({"index_n_heads": None}, "index_n_heads is missing"),
        ({"q_lora_rank": None}, "q_lora_rank"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types"),
    ],
)
def test_schedules_refused(keys, says):
    with pytest.raises(ExportError, match=says):
        model_config.parse({**CONFIG, **keys}, "")


@pytest.mark.parametrize(
    "field, value",
    [
        ("index_n_heads", 1 << 20),
        ("index_head_dim", 4),
        ("index_head_dim", 1 << 30),
        ("index_topk", 0),
        ("index_topk_freq", 0),
        ("index_skip_topk_offset", 0),
        ("q_lora_rank", 0),
    ],
)
def test_hostile_fields(field, value, export, tmp_path):
    """A checkpoint whose checksum is right and whose fields no model can have."""
    raw, fields = bytearray(export(GLM, "f32").read_bytes()), model_config.FIELDS
    before = fields[: [name for name, _ in fields].index(field)]
    struct.pack_into("<I", raw, 64 + struct.calcsize("<" + "".join(form for _, form in before)), value)
    struct.pack_into("<I", raw, 12, 0)
    struct.pack_into("<I", raw, 12, zlib.crc32(raw[: struct.unpack_from("<Q", raw, 24)[0]]))
    (tmp_path / "model.bin").write_bytes(raw)
    refused(
        run("--info", model=tmp_path / "model.bin"),
        FAILED,
        "index_n_heads" if field == "q_lora_rank" else field,
    )


@pytest.mark.parametrize("cache", ["f32", "bf16", "q8", "q4"])
@pytest.mark.parametrize("source", [V32, GLM], ids=lambda source: source.name)
def test_paths_follow_from_the_place_alone(source, cache, export, tmp_path):
    """From some place on rows are absorbed, before it decompressed in a long prompt. The text and all that
    the cache holds do not depend on how many rows are computed in a call, nor on whether a thread takes whole
    rows or parts of their contexts. (Within the prompt lies the border: one path alone gives others.)"""
    prompt = ["--ids", " ".join(str((37 * i + i // 7) % 32) for i in range(300)), "-t", "0.8", "-s", "7"]

    def of(threads, **environment):
        session = tmp_path / "session"
        session.unlink(missing_ok=True)
        options = ["-n", "6", "--ignore-eos", "-k", cache, "-j", threads, "--session", session]
        written = compare.run(export(source, "q8"), *prompt, *options, **environment)
        return written, session.read_bytes()

    want = of(1)
    for chunk, threads in ((1, 2), (5, 1), (13, 3), (300, 3)):
        assert of(threads, MLA_CHUNK=str(chunk)) == want
    for path in ("absorbed", "decompressed"):
        assert of(1, MLA_PATH=path)[1] != want[1]
