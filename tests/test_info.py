"""--info beside what was published: the figures that the papers give for their own models must come out of
their shapes.

DeepSeek-V2, arXiv 2405.04434     table 1: r + p = 4.5 head sizes a layer, as GQA with 2.25 groups; table 9:
110.6K numbers a token for the small
                                  model with MHA, 15.6K with MLA, and 34.6K for the large one with MLA
DeepSeek-V3, arXiv 2505.09343     table 1: 70.272 KB a token in bf16"""

import json
import math
import re
import subprocess
import sys

import compare
import pytest

sys.path.insert(0, str(compare.ROOT))
from support import MODELS
from test_chat import source

from exporter import command
from exporter.shapes import SHAPES

# The cache does not depend on these; small ones make a checkpoint of the shape small.
SMALL = {
    "hidden_size": 256,
    "vocab_size": 256,
    "intermediate_size": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """table(shape): the cache's part of --info, {name: (numbers a token, bytes a token, bytes of a full
    context, percent saved)}."""

    def read(shape):
        monkeypatch.setitem(SHAPES, shape, {**SHAPES[shape], **SMALL})
        assert command.main(["--random", shape, str(tmp_path / shape), "--layers", "1", "--type", "q4"]) == 0
        out = compare.run(tmp_path / shape, "--info").decode()
        rows = re.findall(
            r"^(-k [\w-]+|full K and V|MHA|GQA-8|MQA)\b.*? ([\d,]+) +([\d,]+) +([\d,]+) "
            r"+(?:([\d.]+) %|none, x ([\d.]+))$",
            out,
            re.M,
        )
        return {
            name: (
                *(int(x.replace(",", "")) for x in counts),
                float(saved) if saved else 100 - 100 * float(times),
            )
            for name, *counts, saved, times in rows
        }

    return read


@pytest.mark.parametrize(
    "shape, mla, mha", [("deepseek-v2", 34_560, None), ("deepseek-v2-lite", 15_552, 110_592)]
)
def test_numbers_a_token(shape, mla, mha, table):
    """The paper's table 9 before it is rounded, with all layers of the published model although the file has
    one."""
    rows = table(shape)
    assert all(rows[f"-k {kind}"][0] == mla for kind in ("f32", "bf16", "q8", "q6", "q4"))
    assert mha is None or rows["MHA"][0] == mha
    assert mla / rows["MQA"][0] == 4.5 / 2 and mla / rows["GQA-8"][0] == 2.25 / 8


def test_bytes_a_token(table):
    assert table("deepseek-v3")["-k bf16"][1] == 70_272


def test_saved(table):
    """In percent of every head's keys and values in two bytes a number; and 2405.04434's 93.3 %:
    DeepSeek-V2's cache in 6 bits against the 389,120 bytes a token of DeepSeek 67B (95 layers, 8 groups,
    keys and values of 128, 2 bytes)."""
    rows = table("deepseek-v2")
    for _numbers, bytes, context, saved in rows.values():
        assert context == bytes * SHAPES["deepseek-v2"]["max_position_embeddings"]
        assert saved == pytest.approx(100 - 100 * bytes / (2 * rows["full K and V"][0]), abs=0.051)
    assert len(rows) == 12
    assert 100 - 100 * rows["-k q6"][1] / (95 * 8 * 2 * 128 * 2) == pytest.approx(93.3, abs=0.05)


def test_grouped_heads(table):
    """The paper's baseline: DeepSeek 67B's 8 groups of heads keep 389,120 bytes a token. Without a latent
    there is no other cache to compare with."""
    rows = table("deepseek-67b")
    assert rows["-k bf16"][:2] == (194_560, 389_120)
    assert rows["GQA-8"] == rows["-k bf16"] and rows["MHA"][0] == 8 * rows["GQA-8"][0]
    assert not [name for name in rows if "full" in name]


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir()))
def test_parameters(name, export):
    """As many as the model's own files hold, whatever is stored twice or folded."""
    with open(MODELS / name / "model.safetensors", "rb") as file:
        tensors = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    held = sum(
        math.prod(entry["shape"]) * (2 if entry["dtype"] == "I8" else 1)  # FP4: two in a byte
        for key, entry in tensors.items()
        if key != "__metadata__"
        and not key.endswith(("_scale_inv", ".scale", ".tid2eid"))  # tables of experts are no weights
        # A.X-K1 stores it for its dense layer, too, which does not use it
        and (name, key) != ("axk1", "model.layers.0.post_mlp_layernorm.weight")
    )
    assert re.search(
        rf"^parameters +{held:,}$", compare.run(export(MODELS / name, "f32"), "--info").decode(), re.M
    )


def test_no_cache_saves_a_negative_share(table):
    """--cache full takes 4 bytes a number, GQA-8 of fewer than eight heads more than all heads: a factor says
    so."""
    assert table("deepseek-v2-lite")["-k full"][-1] == -100


@pytest.mark.parametrize(
    "kind, says",
    [
        ("plain", "yes"),
        ("thoughts", "yes, with thoughts before the answer"),
        (None, "no: the file has no chat template"),
    ],
)
def test_chat_and_thoughts(kind, says, tmp_path):
    """Whether --chat works on the file, and whether its template treats thoughts, is known before it is
    tried."""
    answer = {"plain": "m['content']", "thoughts": "m['content'].split('</think>')[-1]", None: ""}[kind]
    template = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + ANSWER + eos_token }}"
        "{% else %}{{ m['content'] + '\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    ).replace("ANSWER", answer)
    folder = source(tmp_path / "model", template if kind else None)
    compare.export(folder, tmp_path / "model.bin", "--type", "f32")
    out = compare.run(tmp_path / "model.bin", "--info").decode()
    assert re.search(r"^chat +(.*)$", out, re.M)[1] == says
    talks = subprocess.run(
        [compare.RUN[0], tmp_path / "model.bin", "--chat", "-p", "x", "-n", "1"], capture_output=True
    )
    assert (talks.returncode == 0) == (kind is not None), talks.stderr


@pytest.mark.parametrize(
    "name, says",
    [
        ("longcat", ["2 pairs with shortcut experts", "any of 3 zero experts (output = input)"]),
        ("minicpm3", ["scaled by 12"]),
        ("plm", ["relu^2 without gate"]),
        ("mistral4", ["queries scaled anew every 32 positions"]),
        ("sandwich", ["before and after attention and MLP"]),
    ],
)
def test_features_are_named(name, says, export):
    out = compare.run(export(MODELS / name, "f32"), "--info").decode()
    assert all(text in out for text in says), out
