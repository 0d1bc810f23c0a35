"""export.py, judged by a second reader of the format: `Checkpoint` is written from engine/checkpoint.h,
model.h and kernels/kernels.h (Config's fields are parsed out of model.h itself) and shares no code with
the exporter. What the tests protect:

    contents    every number of the source arrives, in its place: exactly as f32 and bf16, within the rounding
                of q8 and q4
    format      offsets, alignment, checksums, zeros where there is nothing
    rotation    of the latent, where it belongs and nowhere else; it does not change what the model computes
    knowledge   YaRN, routers, parameter totals: against published numbers
    refusals    what is damaged, missing or unknown is one line on standard error, exit status 1, and no file
"""

import json
import os
import re
import shutil
import struct
import zlib

import compare
import numpy as np
import pytest
from support import (
    CONFIG,
    CONFIG_BYTES,
    F32,
    FIRST_CONFIG_BYTES,
    MODELS,
    Q4,
    Q8,
    VECTOR,
    Checkpoint,
    config_fields,
    safetensors,
    tensors,
    to_bf16,
)

from exporter import command, writer
from exporter import config as model_config
from exporter.errors import ExportError
from exporter.plan import make_plan, parameters
from exporter.quantize import CODEBOOK, multiplier, pack
from exporter.shapes import SHAPES
from exporter.sources import E4M3

# ---- a source ------------------------------------------------------------------------------------


def expected():
    """{name in the checkpoint: array [count, rows, cols] or [n]} of the tiny model, from its published
    tensors."""
    t, want = tensors(), {}
    c = CONFIG
    H, n, v = c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"]

    def layer(to, at, moe):
        names = {
            "input_norm": "input_layernorm",
            "post_norm": "post_attention_layernorm",
            "q_a": "self_attn.q_a_proj",
            "q_a_norm": "self_attn.q_a_layernorm",
            "q_b": "self_attn.q_b_proj",
            "kv_a": "self_attn.kv_a_proj_with_mqa",
            "kv_a_norm": "self_attn.kv_a_layernorm",
        }
        mlps = (
            {"shared.": "mlp.shared_experts."} | {f"experts.{e}.": f"mlp.experts.{e}." for e in range(4)}
            if moe
            else {"": "mlp."}
        )
        names |= {
            mlp + part: f"{source}{part}_proj"
            for mlp, source in mlps.items()
            for part in ("gate", "up", "down")
        }
        names |= {"router": "mlp.gate"} if moe else {}
        want.update({to + name: t[f"{at}{source}.weight"] for name, source in names.items()})
        heads = t[at + "self_attn.kv_b_proj.weight"].reshape(H, n + v, -1)
        want.update(
            {
                to + "w_uk": heads[:, :n],
                to + "w_uk_t": heads[:, :n].transpose(0, 2, 1),
                to + "w_uv": heads[:, n:],
            }
        )
        # Each head's 12 columns begin a block of 32, with zeros behind them.
        want[to + "o"] = np.pad(
            t[at + "self_attn.o_proj.weight"].reshape(-1, H, v), ((0, 0), (0, 0), (0, 32 - v))
        ).reshape(-1, H * 32)
        if moe:
            want[to + "router_bias"] = t[at + "mlp.gate.e_score_correction_bias"]

    want |= {
        "embed": t["model.embed_tokens.weight"],
        "head": t["lm_head.weight"],
        "norm": t["model.norm.weight"],
        "inv_freq": 10000.0 ** (-np.arange(4) / 4),
    }
    layer("layers.0.", "model.layers.0.", False)
    layer("layers.1.", "model.layers.1.", True)
    at = "model.layers.2."
    want |= {
        "mtp.enorm": t[at + "enorm.weight"],
        "mtp.hnorm": t[at + "hnorm.weight"],
        "mtp.eh_proj": t[at + "eh_proj.weight"],
    }
    layer("mtp.", at, True)
    want["mtp.norm"] = t[at + "shared_head.norm.weight"]
    return {name: x if x.ndim == 3 or x.ndim == 1 else x[None] for name, x in want.items()}


def rotated(want):
    """The same model with every latent c replaced by R c: R is block-diagonal, its blocks Hadamard matrices
    of the largest power of two that divides r."""
    r = CONFIG["kv_lora_rank"]
    block = next(size for size in (64, 32, 16, 8, 4, 2, 1) if r % size == 0)
    signs = [[(-1) ** (i & j).bit_count() for j in range(block)] for i in range(block)]
    R = np.kron(np.eye(r // block), np.array(signs) / np.sqrt(block))
    assert np.allclose(R @ R.T, np.eye(r))
    for to in ("layers.0.", "layers.1.", "mtp."):
        gain = np.diag(want[to + "kv_a_norm"].astype(np.float64))
        kv_a = want[to + "kv_a"][0]
        want[to + "kv_a"] = np.concatenate([R @ kv_a[:r], kv_a[r:]])[None]
        want[to + "kv_a_norm"] = np.ones(r)
        for name in ("w_uk", "w_uv"):
            want[to + name] = want[to + name] @ gain @ R.T
        want[to + "w_uk_t"] = want[to + "w_uk"].transpose(0, 2, 1)
    return want


# ---- contents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["f32", "bf16"])
def test_every_number_arrives(type, source, exported):
    got, want = exported(source(), "--type", type, "--mtp"), expected()
    assert got.names.keys() == want.keys()
    for name, x in want.items():
        # inv_freq is computed, and rounded to f32 once.
        np.testing.assert_allclose(
            got.read(name), x, rtol=1e-7 if name == "inv_freq" else 0, atol=0, err_msg=name
        )


@pytest.mark.parametrize("rotation", [True, False], ids=["rotated", "not rotated"])
@pytest.mark.parametrize("type", ["q8", "q4", "mixed"])
def test_quantized_numbers_are_near(type, rotation, source, exported):
    got = exported(source(), "--type", type, *([] if rotation else ["--no-rotation"]))
    for name, x in (rotated(expected()) if rotation else expected()).items():
        if name.startswith("mtp."):
            continue
        kind, y = got.names[name]["type"], got.read(name)
        if kind in (VECTOR, F32):
            np.testing.assert_allclose(y, x, rtol=1e-7, err_msg=name)
            continue
        for begin in range(0, x.shape[2], 32):
            a, b = x[:, :, begin : begin + 32], y[:, :, begin : begin + 32]
            largest = np.abs(a).max(axis=2)
            # q8: half a step, and the scale's own rounding to f16. q4: no worse than half of the widest gap
            # of the best fixed scale.
            bound = largest * (0.5 / 127 + 2.0**-11 + 1e-6) if kind == Q8 else largest * 0.2
            assert (np.abs(a - b).max(axis=2) <= bound).all(), name


def test_types(source, exported):
    """What --type says of each matrix; norms, the router and its bias stay f32, and both copies of W_uk are
    q8 in a q4 file."""
    q4 = exported(source(), "--type", "q4")
    kinds = {name.split(".")[-1]: info["type"] for name, info in q4.names.items()}
    assert {name for name, kind in kinds.items() if kind == VECTOR} == {
        "norm",
        "inv_freq",
        "input_norm",
        "q_a_norm",
        "kv_a_norm",
        "post_norm",
        "router_bias",
    }
    assert {name for name, kind in kinds.items() if kind == F32} == {"router"}
    assert {name for name, kind in kinds.items() if kind == Q8} == {"w_uk", "w_uk_t"}


def test_q4_is_better_than_uniform():
    """On normally distributed weights: better than the usual symmetric four bits (an f16 scale of max / -8
    for 32 weights)."""
    x = np.random.default_rng(3).standard_normal((64, 2048)).astype(np.float32) * 0.02
    scale = multiplier(0.1, Q4)
    blocks = pack(x / np.float32(scale), Q4).reshape(4, 32, -1)
    y = Checkpoint.integers(blocks, Q4, CODEBOOK) * scale
    groups = x.reshape(-1, 32)
    d = (
        (groups[np.arange(len(groups)), np.abs(groups).argmax(axis=1)] / -8)
        .astype(np.float16)
        .astype(np.float32)[:, None]
    )
    uniform = (np.clip(np.floor(groups / d + 8.5), 0, 15) - 8) * d

    def error(z):
        return np.sqrt(((z.reshape(-1) - x.reshape(-1)) ** 2).sum() / (x**2).sum())

    assert error(y) < 0.85 * error(uniform)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1.0, 1e30])
def test_scales_stay_in_range(magnitude, source, exported):
    """Weights far from 1 keep their precision: the tensor's multiplier takes the magnitude out of the f16
    scales."""
    name = "model.layers.0.mlp.up_proj.weight"
    x = (to_bf16(tensors()[name] * magnitude).astype(np.uint32) << 16).view(np.float32)
    got = exported(source(changes={name: x}), "--type", "q8").read("layers.0.up")[0]
    np.testing.assert_allclose(got, x, rtol=0, atol=np.abs(x).max() / 200)


def test_whole_huge_pages_are_written_at_once(source, exported, monkeypatch):
    """Linux keeps a new file in pages as large as what is written at once, if that begins on such a page."""
    written, page = [], 4096

    def pwrite(descriptor, data, offset, write=os.pwrite):
        written.append((offset, len(data)))
        return write(descriptor, data, offset)

    monkeypatch.setattr(writer, "HUGE_PAGE", page)
    monkeypatch.setattr(os, "pwrite", pwrite)
    got = exported(source())
    tensors = [(offset, size) for offset, size in written if offset >= got.data]
    *full, (last, _) = tensors
    assert len(full) > 10 and all(offset % page == size % page == 0 for offset, size in full)
    assert last % page == 0 and sum(size for _, size in tensors) == len(got.file) - got.data


def test_layout(source, exported):
    got = exported(source(), "--type", "mixed", "--mtp")
    front = bytearray(got.file[: got.data])
    front[12:16] = bytes(4)
    assert zlib.crc32(front) == got.checksum
    end = got.data
    for info in got.infos:
        page = 4096 if re.search(r"\.experts\.\d+\.gate$", info["name"]) else 64
        assert info["offset"] % page == 0 and end <= info["offset"] < end + page
        assert not any(got.file[end : info["offset"]])
        end = info["offset"] + info["bytes"]
        assert zlib.crc32(got.file[info["offset"] : end]) == info["checksum"]
        assert (info["codebook"] == CODEBOOK.tobytes()) == (info["type"] == Q4)
    assert end == len(got.file)


def test_configuration(source, exported):
    c = exported(source()).config
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "intermediate_size",
        "vocab_size",
        "n_routed_experts",
        "n_shared_experts",
        "moe_intermediate_size",
        "n_group",
        "topk_group",
        "bos_token_id",
        "routed_scaling_factor",
    ):
        assert c[key] == CONFIG[key], key
    assert (
        c["name"].rstrip(b"\0"),
        c["published_layers"],
        c["mtp_layers"],
        c["scoring_func"],
        c["group_score"],
        c["norm_topk_prob"],
    ) == (b"source", 2, 0, 1, 1, 1)
    assert (
        c["softmax_scale"] == np.float32(28**-0.5)
        and c["rms_norm_eps"] == np.float32(1e-5)
        and c["latent_norm_eps"] == np.float32(1e-6)
    )
    assert (c["eos_tokens"], c["eos_token_id"][0], c["add_bos_token"]) == (1, 2, 1)
    assert (c["temperature"], c["top_p"], c["top_k"]) == (np.float32(0.8), np.float32(0.95), 0)


def test_sampling_defaults(source, exported):
    folder = source()
    (folder / "generation_config.json").write_text(
        '{"do_sample": false, "top_k": 20, "top_p": 0.5, "eos_token_id": [5, 6], "bos_token_id": 4}'
    )
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    c = exported(folder).config
    assert (c["temperature"], c["top_p"], c["top_k"], c["bos_token_id"], c["add_bos_token"]) == (
        0,
        0.5,
        20,
        4,
        0,
    )
    assert c["eos_tokens"] == 2 and c["eos_token_id"][:2] == [5, 6]


def test_fused_experts(source, exported):
    """transformers 5 stores a layer's experts in two tensors; the checkpoint is the same."""
    t = tensors()
    changes = {}
    for i in (1, 2):
        at = f"model.layers.{i}.mlp.experts."
        parts = {
            part: np.stack([t[f"{at}{e}.{part}_proj.weight"] for e in range(4)])
            for part in ("gate", "up", "down")
        }
        changes |= {name: None for name in t if name.startswith(at)}
        changes |= {
            at + "gate_up_proj": np.concatenate([parts["gate"], parts["up"]], axis=1),
            at + "down_proj": parts["down"],
        }
    assert exported(source(), "--mtp").file == exported(source(changes=changes), "--mtp").file


def test_language_model_inside_another(source, exported):
    """Kimi-K2.5 and Mistral publish models that see: the configuration is in text_config, or beside it, and
    images cost nothing."""
    beside = ("tie_word_embeddings", "bos_token_id")
    inner = {key: value for key, value in CONFIG.items() if key not in beside}
    outer = {
        **dict.fromkeys(CONFIG),
        **{key: CONFIG[key] for key in beside},
        "model_type": "kimi_k25",
        "vision_config": {"depth": 2},
        "text_config": inner,
    }
    changes = {"language_model." + name: x for name, x in tensors().items()} | dict.fromkeys(tensors())
    changes |= {
        "vision_tower.patch_embed.weight": np.ones((4, 4), np.float32),
        "mm_projector.bias": np.ones(4, np.float32),
    }
    assert "audio_tower.x: nothing" in exported(
        source(outer, changes | {"audio_tower.x": np.ones(4, np.float32)})
    )
    assert exported(source(outer, changes)).file == exported(source()).file


def test_first_spelling(tmp_path, exported):
    """openPangu-Ultra's first release has names of its own for DeepSeek's keys."""
    old = {
        "q_lora_rank": "attention_q_lora_dim",
        "kv_lora_rank": "attention_kv_lora_dim",
        "qk_nope_head_dim": "attention_qk_dim",
        "qk_rope_head_dim": "attention_qk_rope_dim",
        "v_head_dim": "attention_v_dim",
        "n_routed_experts": "num_routed_experts",
        "n_shared_experts": "num_shared_experts",
        "first_k_dense_replace": "num_dense_layers",
    }
    folder = shutil.copytree(MODELS / "sandwich", tmp_path / "sandwich")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({old.get(key, key): value for key, value in config.items()})
    )
    assert exported(folder).file == exported(MODELS / "sandwich").file


def test_what_identity_experts_are_stored_with_stays_behind(tmp_path, exported):
    """transformers writes matrices for LongCat-Flash's identity experts too (here 4 to 6), and MTP layers
    have a name of their own."""
    folder = shutil.copytree(MODELS / "longcat", tmp_path / "longcat")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    other = {"model.layers.0.mlp.experts.7.gate_proj.weight": np.ones((16, 32), np.float32)}
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors(other))
    assert "experts.7.gate_proj.weight: nothing" in exported(folder)
    unused = {
        f"model.layers.0.mlp.experts.{e}.gate_proj.weight": np.ones((16, 32), np.float32) for e in (4, 5, 6)
    } | {"model.mtp.norm.weight": np.ones(32, np.float32)}
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors(unused))
    assert exported(folder).file == exported(MODELS / "longcat").file


def test_rotation_is_exact(source, tmp_path):
    """Before it is quantized a rotated tensor differs from the exact product by the rounding to f32 alone."""
    command.export_source(source(), tmp_path / "model.bin", command.Options("f32", mtp=True))
    got = Checkpoint(tmp_path / "model.bin")
    for name, x in rotated(expected()).items():
        np.testing.assert_allclose(got.read(name), x, rtol=0, atol=2e-7 * np.abs(x).max(), err_msg=name)


@pytest.mark.parametrize("name", ["v2lite", "v2_236b", "v3_fp8", "longcat", "minicpm3"])
def test_rotation_changes_nothing(name, tmp_path):
    """A rotated model, in f32, gives the logits that transformers computed without any rotation."""
    command.export_source(MODELS / name, tmp_path / "model.bin", command.Options("f32"))
    ids, want = compare.expected(MODELS / name, None, None)
    for path in ("absorbed", "decompressed"):
        got = compare.logits(tmp_path / "model.bin", ids, "-k", "f32", MLA_PATH=path)
        assert compare.relative_difference(got, want) <= 3e-4


def test_half_split_rotation(source, exported):
    """rope_interleave false: pair i is rows i and i + p / 2; the checkpoint has them side by side, in every
    head and in the shared key."""
    got, want = exported(source({"rope_interleave": False}), "--type", "f32"), expected()
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    q, k = want["layers.0.q_b"][0].reshape(3, 28, -1), want["layers.0.kv_a"][0]
    np.testing.assert_array_equal(
        got.read("layers.0.q_b")[0].reshape(3, 28, -1),
        np.concatenate([q[:, :20], q[:, 20:][:, order]], axis=1),
    )
    np.testing.assert_array_equal(got.read("layers.0.kv_a")[0], np.concatenate([k[:24], k[24:][order]]))


def test_rotation_multiplier_is_folded(source, exported):
    """mscale and mscale_all_dim differ: cosine and sine are multiplied by g(mscale) / g(mscale_all_dim), here
    by scaling what is rotated."""
    yarn = {
        "type": "yarn",
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "original_max_position_embeddings": 128,
    }
    got, want = exported(source({"rope_scaling": yarn}), "--type", "f32"), expected()
    a = (0.1 * np.log(40) + 1) / (0.05 * np.log(40) + 1)
    k = want["layers.0.kv_a"][0].astype(np.float64)
    np.testing.assert_allclose(got.read("layers.0.kv_a")[0], np.concatenate([k[:24], a * k[24:]]), rtol=1e-6)


def test_shared_embedding(source, exported):
    tied = exported(source({"tie_word_embeddings": True}, {"lm_head.weight": None}))
    assert tied.config["tie_word_embeddings"] == 1 and "head" not in tied.names
    # A head that is stored is used, whatever the flag says: published models exist that need it.
    assert "head" in exported(source({"tie_word_embeddings": True})).names


def test_fp8():
    """E4M3's values, from the OCP 8-bit floating point specification, table 2."""
    known = {
        0x00: 0.0,
        0x01: 2.0**-9,
        0x07: 7 * 2.0**-9,
        0x08: 2.0**-6,
        0x38: 1.0,
        0x3C: 1.5,
        0x7E: 448.0,
        0x81: -(2.0**-9),
        0xC0: -2.0,
        0xFE: -448.0,
    }
    assert (
        {code: float(E4M3[code]) for code in known} == known
        and np.isnan(E4M3[[0x7F, 0xFF]]).all()
        and np.isnan(E4M3).sum() == 2
    )


def test_fp8_blocks(source, exported):
    """One scale for each 128 x 128 block, the last ones partial; blocks of 32 here, so that a small tensor
    has several."""
    rng = np.random.default_rng(5)
    code = rng.integers(0, 0x7F, (72, 36), np.uint8) | rng.integers(0, 2, (72, 36), np.uint8) << 7
    scale = rng.random((3, 2)).astype(np.float32) * 1e-3
    name = "model.layers.0.self_attn.o_proj.weight"
    quantized = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [32, 32],
        "activation_scheme": "dynamic",
    }
    got = exported(
        source({"quantization_config": quantized}, {name: code, name + "_scale_inv": scale}), "--type", "f32"
    )
    np.testing.assert_allclose(
        got.read("layers.0.o").reshape(72, 3, 32)[:, :, :12].reshape(72, 36),
        E4M3[code] * np.kron(scale, np.ones((32, 32)))[:72, :36],
        rtol=1e-7,
    )


def test_many_files(source, exported, tmp_path):
    """Split over two files with an index: the same bytes."""
    folder, t = source(), tensors()
    whole = exported(folder).file
    (folder / "model.safetensors").unlink()
    files = {
        "model-00001-of-00002.safetensors": list(t)[::2],
        "model-00002-of-00002.safetensors": list(t)[1::2],
    }
    for name, some in files.items():
        (folder / name).write_bytes(safetensors({k: t[k] for k in some}))
    assert exported(folder).file == whole
    index = {"weight_map": {k: name for name, some in files.items() for k in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert exported(folder).file == whole


def test_random(monkeypatch, exported):
    monkeypatch.setitem(SHAPES, "tiny", CONFIG)
    first = exported("--random", "tiny", "--type", "q8")
    assert (
        exported("--random", "tiny", "--type", "q8", "--seed", "0").file
        == first.file
        != exported("--random", "tiny", "--seed", "1", "--type", "q8").file
    )
    assert 0.018 < first.read("layers.0.up").std() < 0.022 and (first.read("norm") == 1).all()
    cut = exported("--random", "tiny", "--layers", "1").config
    assert (cut["num_hidden_layers"], cut["published_layers"]) == (1, 2)


def test_random_with_a_tokenizer(monkeypatch, exported, tmp_path, capsys):
    """It reads and writes text as the model whose tokenizer and template it has."""
    from test_chat import TEMPLATES, source

    capsys.readouterr()  # transformers has something to say when it is imported
    folder = source(tmp_path / "source", TEMPLATES["V3"])
    whole = exported(folder)
    for size in (
        384,
        200,
    ):  # of the second shape some tokens are beyond the vocabulary: texts with them are refused
        monkeypatch.setitem(SHAPES, "tiny", CONFIG | {"vocab_size": size})
        made = exported("--random", "tiny", "--tokenizer", str(folder))
        assert (made.tokenizer, made.chat) == (whole.tokenizer, whole.chat)
    assert "has no tokenizer" in exported("--random", "tiny", "--tokenizer", str(tmp_path))


# ---- knowledge -----------------------------------------------------------------------------------

# Sums of the published tensors' sizes; they agree with the sizes that the models are known by (15.7B, 236B,
# 671B, ...), and for OpenSeek-Small with the length of its published file.
TOTALS = {
    # embedding and head, 95 layers, norms; a layer: queries and output, 8 groups of keys and values, MLP
    "deepseek-67b": 2 * 102400 * 8192 + 95 * (2 * 8192 + 2 * 1024 + 3 * 22016 + 2) * 8192 + 8192,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
    "moonlight": 15_960_110_208,
    "kimi-k2": 1_026_408_232_448,
    "kimi-k2.5": 1_026_408_232_448,
    "glm-4.7-flash": 29_943_393_920,
    "youtu-2b": 1_961_560_064,
    "openseek-small": 1_588_968_512,
    "minicpm3-4b": 4_073_875_968,
    "plm-1.8b": 1_825_458_176,
    "mistral-large-3": 673_421_089_792,
    "mistral-small-4": 118_972_826_624,
    "longcat-flash": 560_664_980_480,
    "openpangu-ultra": 719_093_767_680,
    # and what the indexers add: wq_b, wk, k_norm and weights_proj in 61 layers, in 78, and in 21 of 78
    "deepseek-v3.2": 671_026_419_200 + 61 * (64 * 128 * 1536 + 128 * 7168 + 2 * 128 + 64 * 7168),
    "glm-5": 743_180_209_920 + 78 * (32 * 128 * 2048 + 128 * 6144 + 2 * 128 + 32 * 6144),
    "glm-5.2": 743_180_209_920 + 21 * (32 * 128 * 2048 + 128 * 6144 + 2 * 128 + 32 * 6144),
}


def latent(D, H, ql, gate):
    """Parameters of a layer's attention: r 512, heads of 128 + 64, values of 128; and a gate of each head."""
    queries = ql * D + ql + H * 192 * ql if ql else H * 192 * D
    return queries + 576 * D + 512 + H * 256 * 512 + D * H * 128 + gate * H * D


def linear(D, H, rank):
    """The same of linear attention with heads of 128 and four taps: q, k, v and their filters, decay and
    gate, bias, rate, beta, norm, output."""
    C, low = H * 128, 2 * (rank * D + H * 128 * rank) if rank else 2 * H * 128 * D
    return 3 * C * D + 3 * 4 * C + low + C + H + H * D + 128 + D * C


def mixtures(D, V, layers, dense, I, E, M, bias=1, norms=2):  # noqa: E741
    """Everything but attention: embedding and head, norms, dense MLPs, routers, experts, a shared one."""
    every = 2 * V * D + D + layers * 2 * D + dense * 3 * D * I
    return every + (layers - dense) * (E * D + bias * E + (E + 1) * 3 * D * M + (norms - 2) * D)


TOTALS |= {
    "ling-3.0-tiny": mixtures(1536, 157184, 24, 1, 4608, 128, 512)
    + 18 * linear(1536, 16, 0)
    + 6 * latent(1536, 16, 256, 1),
    "ling-3.0-flash": mixtures(2560, 157184, 42, 2, 9216, 512, 768)
    + 35 * linear(2560, 32, 0)
    + 7 * latent(2560, 32, 0, 1),
    "kimi-linear-48b": mixtures(2304, 163840, 27, 1, 9216, 256, 1024)
    + 20 * linear(2304, 32, 128)
    + 7 * latent(2304, 32, 0, 0),
    "sarvam-105b": mixtures(4096, 262144, 32, 1, 16384, 128, 2048) + 32 * latent(4096, 64, 0, 0),
    "ax-k1": mixtures(7168, 163840, 61, 1, 18432, 192, 2048, bias=0, norms=3)
    + 61 * latent(7168, 64, 1536, 0),
}


def window(D, H, ql, g, E, M, kinds, topk=6, V=129280, hashed=3):
    """All of a model with rows of 512 numbers; kinds: how many layers are sliding, CSA and HCA. Four streams,
    64 index heads of 128, 1024 numbers for each of g groups of heads."""
    streams = 24 * 4 * D + 24 + 3
    attention = ql * D + ql + H * 512 * ql + 512 * D + 512 + H + 1024 * H * 512 + D * g * 1024
    experts = E * D + (E + 1) * 3 * D * M
    csa = (2 * 1024 + 2 * 256 + 64) * D + 4 * (1024 + 256) + 512 + 128 + 64 * 128 * ql
    hca = 2 * 512 * D + 128 * 512 + 512
    layers = sum(kinds)
    chosen = (layers - hashed) * E + hashed * V * topk
    every = layers * (2 * streams + 2 * D + attention + experts) + chosen
    return 2 * V * D + D + (4 * 4 * D + 4 + 1) + every + kinds[1] * csa + kinds[2] * hca


TOTALS |= {
    "deepseek-v4-flash": window(4096, 64, 1024, 8, 256, 2048, (2, 21, 20)),
    "deepseek-v4-pro": window(7168, 128, 1536, 16, 384, 3072, (0, 30, 31)),
}

# and of GLM-5.3-Flash: heads of 256 without positions, pools of 4, streams that the head reads the mean of
TOTALS["glm-5.3-flash"] = (
    mixtures(4096, 154880, 45, 3, 12288, 288, 2048)
    + 45 * 2 * (24 * 4 * 4096 + 24 + 3)
    + 34 * linear(4096, 64, 128)
    + 11 * (1536 * 4096 + 1536 + 64 * 256 * 1536 + 512 * 4096 + 512 + 64 * 512 * 512 + 4096 * 64 * 256)
    + 11 * (32 * 128 * 1536 + 2 * 128 * 4096 + 2 * 128 + 32 * 4096 + 4 * 128)
)

PUBLISHED = {
    "deepseek-v4-flash": 284e9,
    "ling-3.0-tiny": 7.9e9,
    "ling-3.0-flash": 124e9,
    "kimi-linear-48b": 49e9,
    "sarvam-105b": 106e9,
    "ax-k1": 519e9,
}


def test_published_totals():
    """What the models' makers say of them."""
    assert all(TOTALS[shape] == pytest.approx(total, rel=0.005) for shape, total in PUBLISHED.items())


@pytest.mark.parametrize("shape", SHAPES)
def test_parameter_totals(shape):
    assert parameters(make_plan(model_config.parse(SHAPES[shape], shape), "mixed")) == TOTALS[shape]


# theta, factor, original length, beta_fast, mscale; the last pair left alone, the first divided fully;
# softmax scale for n + p = 192. From the published configurations and the formulas of DeepSeek-V3's
# precompute_freqs_cis.
YARN = {
    "V2-Lite": (1e4, 40, 4096, 32, 0.707, 10, 23, 0.1147214),
    "V3": (1e4, 40, 4096, 32, 1.0, 10, 23, 0.1352338),
    "Kimi-K2": (5e4, 32, 4096, 1, 1.0, 19, 20, 0.1308608),
    "Kimi-K2.5": (5e4, 64, 4096, 32, 1.0, 8, 20, 0.1446796),
}


@pytest.mark.parametrize("model", YARN)
def test_yarn(model):
    theta, factor, original, beta_fast, mscale, low, high, softmax_scale = YARN[model]
    block = {
        "type": "yarn",
        "factor": factor,
        "beta_fast": beta_fast,
        "beta_slow": 1,
        "mscale": mscale,
        "mscale_all_dim": mscale,
        "original_max_position_embeddings": original,
    }
    c = model_config.parse({**SHAPES["deepseek-v3"], "rope_theta": theta, "rope_scaling": block}, "")
    plain = theta ** (-np.arange(32) / 32)
    ratio = c.inv_freq / plain
    np.testing.assert_allclose(ratio[: low + 1], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[high:], 1 / factor, rtol=1e-6)
    assert (np.diff(ratio[low : high + 1]) < 0).all()
    assert c.softmax_scale == pytest.approx(softmax_scale, rel=1e-6) and c.rope_multiplier == 1
    # transformers 5 writes the same under another name.
    again = model_config.parse(
        {
            **SHAPES["deepseek-v3"],
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": {**block, "rope_type": "yarn", "rope_theta": theta},
        },
        "",
    )
    assert (again.inv_freq == c.inv_freq).all() and again.packed() == c.packed()


def test_yarn_that_changes_nothing():
    block = {
        "type": "yarn",
        "factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0,
        "original_max_position_embeddings": 4096,
    }
    with_block = model_config.parse({**SHAPES["youtu-2b"], "rope_scaling": block}, "")
    without = model_config.parse(SHAPES["youtu-2b"], "")
    np.testing.assert_allclose(with_block.inv_freq, without.inv_freq, rtol=1e-7)
    assert with_block.softmax_scale == without.softmax_scale


def router(**keys):
    c = model_config.parse({**CONFIG, **keys}, "", has=lambda suffix: suffix in keys.get("_tensors", ()))
    return c.scoring_func, c.group_score, c.norm_topk_prob, c.routed_scaling_factor, c.n_group


def test_routers():
    v2 = dict(
        scoring_func="softmax",
        topk_method="group_limited_greedy",
        norm_topk_prob=False,
        routed_scaling_factor=16.0,
    )
    assert router(**v2) == (0, 0, 0, 16.0, 2)
    # In DeepSeek-V2's MoEGate normalizing and scaling exclude each other; one expert alone is scaled.
    assert router(**{**v2, "norm_topk_prob": True}) == (0, 0, 1, 1.0, 2)
    assert router(**{**v2, "norm_topk_prob": True, "num_experts_per_tok": 1}) == (0, 0, 0, 16.0, 2)
    assert router(**{**v2, "topk_method": "greedy"}) == (0, 0, 0, 16.0, 1)  # plain top-k: groups mean nothing
    assert router(scoring_func=None) == router() == (1, 1, 1, 2.5, 2)  # GLM-4.7-Flash leaves it out


def test_router_without_a_name(source, exported):
    """Neither scoring_func nor topk_method, as transformers 5 saves DeepSeek-V3: the correction bias
    tells."""
    assert exported(source({"scoring_func": None, "topk_method": None})).config["scoring_func"] == 1


@pytest.mark.parametrize(
    "keys, placement",
    [
        ({"moe_layer_freq": [0, 1, 1, 1]}, (1, 1)),
        ({"moe_layer_freq": [0, 0, 1, 0]}, (1, 2)),
        ({"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, (1, 1)),
    ],
)
def test_layers_listed(keys, placement):
    c = model_config.parse({**CONFIG, "num_hidden_layers": 4, **keys}, "")
    listed = [bool(x) for x in keys.get("moe_layer_freq", [0, 1, 1, 1])]
    assert [c.is_moe(i) for i in range(4)] == listed
    with pytest.raises(ExportError, match="layer"):
        model_config.parse({**CONFIG, "num_hidden_layers": 4, "moe_layer_freq": [1, 0, 0, 1]}, "")


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, says",
    [
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"index_topk": 2048}, "index_n_heads is missing"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": "72"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"kv_lora_rank": None}, "kv_lora_rank is missing"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"num_experts_per_tok": 3}, "cannot be chosen"),
        ({"scoring_func": "tanh"}, "tanh"),
        ({"rope_scaling": {"type": "su"}}, "'su'"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1] * 3, "long_factor": [1] * 4}},
            "4 numbers",
        ),
        (
            {
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1] * 4,
                    "long_factor": [2] * 4,
                    "original_max_position_embeddings": 64,
                }
            },
            "short_factor must",
        ),
        ({"zero_expert_num": 2}, "cannot be chosen"),
        ({"n_group": 1, "zero_expert_num": 2, "zero_expert_type": "drop"}, "drop"),
        ({"moe_topk": 3}, "num_experts_per_tok says 2"),
        ({"text_config": []}, "text_config"),
        ({"text_config": {"clip_qkv": 8.0}}, "clip_qkv"),
        ({"model_type": "longcat_flash", "num_layers": 1, "norm_topk_prob": True}, "norm_topk_prob"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "x": 1}},
            "key x",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"eos_token_id": 37}, "eos_token_id"),
        ({"qk_rope_head_dim": 7}, "even"),
        ({"vocab_size": 38}, "embed_tokens"),
    ],
)
def test_configurations_refused(config, says, source, exported):
    assert says in exported(source(config))


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("minicpm3", "embed_scale", np.nan),
        ("plm", "hidden_act", 2),
        ("sandwich", "sandwich_norm", 2),
        ("longcat", "zero_expert_num", 1021),
        ("plm", "zero_expert_num", 1),
        ("plm", "shortcut_moe", 1),
        ("longcat", "shortcut_moe", 2),
        ("sandwich", "shortcut_moe", 1),
        ("longcat", "n_group", 2),
        ("longcat", "num_experts_per_tok", 8),
        ("longcat", "moe_layer_freq", 1),
        ("longcat", "sandwich_norm", 1),
        ("mistral4", "query_scale_span", 0),
        ("mistral4", "query_scale_span", 33),
    ],
)
def test_fields_refused(name, field, value, exported, tmp_path):
    """Whatever a checkpoint says of its features, ./run refuses what does not fit together before it reads a
    weight."""
    file, at = bytearray(exported(MODELS / name).file), 64
    for other, form in config_fields():
        if other == field:
            struct.pack_into("<" + form, file, at, value)
        at += struct.calcsize("<" + form)
    data = struct.unpack_from("<Q", file, 24)[0]
    file[12:16] = bytes(4)
    file[12:16] = struct.pack("<I", zlib.crc32(file[:data]))
    (tmp_path / "model.bin").write_bytes(file)
    with pytest.raises(
        RuntimeError, match="exit status 1\n.*(shortcut_moe|query_scale|" + field + ").*export it again"
    ):
        compare.run(tmp_path / "model.bin", "--info")


def whole_config(file):
    """The bytes of a checkpoint's Config, with the fields that are left out at its end."""
    (config_bytes,) = struct.unpack_from("<I", file, 32)
    return file[64 : 64 + config_bytes].ljust(CONFIG_BYTES, b"\0")


def test_file_of_a_model_without_new_fields(source, exported):
    """Fields that were added to Config later are in the file only where they say something: the session of
    an older file goes on with the same model exported again."""
    folder, first = source(), FIRST_CONFIG_BYTES
    assert struct.unpack_from("<I", exported(folder).file, 32) == (first,)
    for keys, config_bytes in (({"min_p": 0.1}, first + 4), ({"repetition_penalty": 1.1}, first + 8)):
        (folder / "generation_config.json").write_text(json.dumps(keys))
        got = exported(folder)
        assert struct.unpack_from("<I", got.file, 32) == (config_bytes,)
        assert all(got.config[key] == np.float32(value) for key, value in keys.items())


def with_config(file, config):
    """The checkpoint `file` with the bytes `config` as its Config; its tensors move by whole pages if that
    needs room."""
    size, data, old, tokenizer, count, chat = struct.unpack_from("<QQIIII", file, 16)
    up = lambda n, to=64: -(-n // to) * to
    old_at, new_at = up(64 + old), up(64 + len(config))
    sections = up(tokenizer) + up(chat) + 128 * count
    moved = max(0, up(new_at + sections, 4096) - data)
    front = bytearray(data + moved)
    front[:64] = file[:64]
    front[64 : 64 + len(config)] = config
    front[new_at : new_at + sections] = file[old_at : old_at + sections]
    for at in range(new_at + sections - 128 * count, new_at + sections, 128):
        struct.pack_into("<Q", front, at + 56, struct.unpack_from("<Q", front, at + 56)[0] + moved)
    struct.pack_into("<IQQI", front, 12, 0, size + moved, data + moved, len(config))
    struct.pack_into("<I", front, 12, zlib.crc32(front))
    return bytes(front) + file[data:]


@pytest.mark.parametrize(
    "shape, says",
    [
        (lambda config: config[:FIRST_CONFIG_BYTES], None),
        (lambda config: config + bytes(4), None),
        (lambda config: config + bytes(100), None),
        (lambda config: config + bytes(96) + b"\1\0\0\0", "does not know: build a newer run"),
        (lambda config: config[: FIRST_CONFIG_BYTES - 4], "damaged header"),
        (lambda config: config[:-2], "damaged header"),
        (lambda config: config + bytes(1 << 16), "damaged header"),
        (lambda config: config[:FIRST_CONFIG_BYTES] + struct.pack("<ff", 1.5, 0), "min_p"),
        (lambda config: config[:FIRST_CONFIG_BYTES] + struct.pack("<ff", np.nan, 0), "min_p"),
        (lambda config: config[:FIRST_CONFIG_BYTES] + struct.pack("<ff", 0, -1), "repetition_penalty"),
        (lambda config: config[:FIRST_CONFIG_BYTES] + struct.pack("<ff", 0, np.inf), "repetition_penalty"),
    ],
)
def test_config_of_another_version(shape, says, exported, tmp_path):
    """Config grows at its end only. A file from before a field was added means 0 by it, one from after that
    is read as long as it says nothing that this program does not know; the text stays the same."""
    file, path = exported(MODELS / "plm").file, tmp_path / "model.bin"
    text = ["--ids", "1 2 3", "-n", 8, "-t", 1, "-s", 7, "-q"]
    path.write_bytes(file)
    before = compare.run(path, *text)
    data = struct.unpack_from("<Q", file, 24)[0]
    if says == "damaged header" and len(shape(bytes(300))) > 4096:
        changed = bytearray(file)
        struct.pack_into("<I", changed, 32, 1 << 20)
        struct.pack_into("<I", changed, 12, 0)
        struct.pack_into("<I", changed, 12, zlib.crc32(changed[:data]))
    else:
        changed = with_config(file, shape(whole_config(file)))
    path.write_bytes(changed)
    if says:
        with pytest.raises(RuntimeError, match="exit status 1\n.*" + says):
            compare.run(path, "--info")
    else:
        assert compare.run(path, *text) == before


def test_sampling_defaults_of_the_file(exported, tmp_path):
    """min_p and repetition_penalty of a file are the defaults of --min-p and --repeat-penalty, and the
    options win over them."""
    file, path = exported(MODELS / "plm").file, tmp_path / "model.bin"
    config = whole_config(file)
    text = ["--ids", "1 2 3", "-n", 40, "-t", 2, "--top-p", 1, "-s", 7, "-q"]

    def run(min_p, penalty, *options):
        path.write_bytes(with_config(file, config[:FIRST_CONFIG_BYTES] + struct.pack("<ff", min_p, penalty)))
        return compare.run(path, *text, *options)

    plain, small, penal = run(0, 0), run(0.3, 0), run(0, 1.5)
    assert len({plain, small, penal}) == 3
    assert small == run(0, 0, "--min-p", "0.3") and penal == run(0, 0, "--repeat-penalty", "1.5")
    assert plain == run(0.3, 1.5, "--min-p", 0, "--repeat-penalty", 1)
    run(0.3, 1.5)
    assert b"min-p 0.3, repeat-penalty 1.5" in compare.run(path, "--info")


@pytest.mark.parametrize(
    "name, change, says",
    [
        ("model.layers.1.mlp.experts.3.up_proj.weight", None, "is missing"),
        ("model.layers.1.self_attn.q_norm.weight", np.ones(4, np.float32), "q_norm.weight: nothing"),
        ("model.layers.0.self_attn.o_proj.bias", np.ones(72, np.float32), "o_proj.bias: nothing"),
        ("model.layers.0.self_attn.o_proj.weight", np.ones((72, 35), np.float32), "has shape [72, 35]"),
        ("model.layers.0.self_attn.o_proj.weight", np.full((72, 36), np.nan, np.float32), "not a number"),
        ("model.norm.weight", np.full(72, np.inf, np.float32), "infinite"),
        ("model.layers.0.self_attn.o_proj.weight", np.ones((72, 36), np.uint8), "_scale_inv"),
        ("bad\nname", np.ones(4, np.float32), "bad\\nname"),
    ],
)
def test_tensors_refused(name, change, says, source, exported):
    message = exported(source(changes={name: change}))
    assert says in message and name.replace("\n", "\\n") in message


def test_inv_freq_may_stay_behind(source, exported):
    assert isinstance(
        exported(source(changes={"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)})),
        Checkpoint,
    )


def test_no_mtp_layer(source, exported):
    gone = {name: None for name in tensors() if name.startswith("model.layers.2.")}
    assert "without --mtp" in exported(source(changes=gone), "--mtp")


def header(entry, data=b"\0" * 64):
    text = entry if isinstance(entry, bytes) else json.dumps({"x": entry}).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "file, says",
    [
        (b"", "cut short"),
        (b"\xff" * 64, "cut short"),
        (header(b"[1]"), "object"),
        (header(b"{" * 9), "not JSON"),
        (header(b"\xff{}"), "not JSON"),
        (header(b'{"a":' * 100_000), "nested"),
        (header({"dtype": "BF16", "shape": [40], "data_offsets": [0, 80]}), "cut short"),
        (
            header({"dtype": "BF16", "shape": [1 << 59, 1 << 59], "data_offsets": [0, 64]}),
            "does not take 64 bytes",
        ),
        (header({"dtype": "BF16", "shape": [-1], "data_offsets": [0, 64]}), "damaged"),
        (header({"dtype": "BF16", "shape": [32], "data_offsets": [64, 0]}), "damaged"),
        (header({"dtype": "Q9", "shape": [32], "data_offsets": [0, 64]}), "Q9"),
        (header(7), "damaged"),
    ],
)
def test_damaged_files(file, says, source, exported):
    folder = source()
    (folder / "model.safetensors").write_bytes(file)
    message = exported(folder)
    assert says in message and "model.safetensors" in message


def test_cut_short(source, exported):
    folder = source()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "cut short" in exported(folder)


@pytest.mark.parametrize(
    "shard, says",
    [
        ("../model.safetensors", "plain file name"),
        ("/etc/passwd", "plain file name"),
        ("..", "plain file name"),
        (7, "plain file name"),
        ("model-00002-of-00002.safetensors", "missing"),
    ],
)
def test_index_stays_in_the_directory(shard, says, source, exported):
    folder = source()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert says in exported(folder)
    if says == "missing":  # nor without an index
        (folder / "model.safetensors.index.json").unlink()
        assert "model-00002-of-00002.safetensors is missing" in exported(folder)


def test_configuration_nested_too_deeply(source, exported):
    folder = source()
    (folder / "config.json").write_text('{"a":' * 100_000)
    assert "nested" in exported(folder)


def test_paths_refused(source, exported, tmp_path, capsys):
    assert "no such directory" in exported(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no *.safetensors" in exported(tmp_path / "empty")
    assert command.main([str(source()), str(tmp_path)]) == 1 and "regular file" in capsys.readouterr().err
    assert (
        command.main([str(source()), str(tmp_path / "absent" / "x.bin")]) == 1
        and "cannot be written" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x"],
        ["x", "y", "z"],
        ["x", "y", "--type", "q3"],
        ["--random", "gpt-2", "y"],
        ["--random", "moonlight"],
        ["x", "y", "--layers", "2"],
        ["--random", "moonlight", "y", "--layers", "28"],
        ["--random", "longcat-flash", "y", "--layers", "3"],
        ["--random", "moonlight", "y", "--mtp"],
        ["x", "y", "--tokenizer", "z"],
        ["--random", "moonlight", "y", "--no-rotation"],
        ["--nonsense", "x", "y"],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_committed_models(exported):
    for folder in MODELS.iterdir():
        assert isinstance(exported(folder, "--type", "q4"), Checkpoint)
