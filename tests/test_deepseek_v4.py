"""Models with windows and compressed rows (DeepSeek-V4): other sizes than the published ones, the edges of
windows, rings and pages, sessions, what a rounded cache costs, what is refused, and what --info says. Their
arithmetic beside transformers' is in test_oracle.py, threads and instruction sets in test_same_bytes.py,
marks and broken calls in test_sequences.py.

Protected: a text does not depend on where a window, a ring or a page ends, in a call, a session or a fork;
windows of any length are those of the definition; what is not finite in any matrix of such a layer never
becomes a text."""

import json
import re
import struct

import compare
import numpy as np
import pytest
from support import FAILED, MODELS, TOLERANCE, refused, run, tensor, text
from test_sequences import alone, ids_of, last, opened, pieces
from test_sequences import run as drive

from exporter import command
from exporter.shapes import SHAPES

V4 = MODELS / "v4_fp4"  # sliding, CSA, HCA; a window of 128 rows
KINDS = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]


def changed(out, rates=None, layers=3, **config):
    """A copy of the model with other sizes; rates: tokens for a row of CSA and of HCA, at most 4 and 128;
    layers: the first ones alone."""
    values = json.loads((V4 / "config.json").read_text()) | config
    raw = (V4 / "model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", raw)[0]
    entries, data = json.loads(raw[8 : 8 + length]), b""
    entries.pop("__metadata__", None)
    if rates:
        del values["compress_ratios"]
        values |= {"layer_types": KINDS, "compress_rates": dict(zip(KINDS[1:], rates, strict=True))}
    if layers < 3:
        values |= {"num_hidden_layers": layers, "compress_ratios": values["compress_ratios"][:layers]}
        entries = {
            name: x
            for name, x in entries.items()
            if all(f"layers.{n}." not in name for n in range(layers, 3))
        }
    for name, entry in entries.items():
        begin, end = (8 + length + at for at in entry["data_offsets"])
        if rates and name.endswith("ape"):
            rows, entry["shape"][0] = entry["shape"][0], rates["layers.2" in name]
            end = begin + (end - begin) // rows * entry["shape"][0]
        entry["data_offsets"] = [len(data), len(data) + end - begin]
        data += raw[begin:end]
    header = json.dumps(entries).encode()
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(values))
    (out / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return out


@pytest.fixture(scope="module")
def small_pages(export, tmp_path_factory):
    """One row of CSA for 2 tokens, of HCA for 8: a page is 256 tokens."""
    return export(changed(tmp_path_factory.mktemp("rates") / "v4_small_pages", rates=(2, 8)), "mixed")


# ---- windows of any length


@pytest.mark.parametrize(
    "name, rates, config",
    [
        ("window_1", None, {"sliding_window": 1}),
        ("window_40", None, {"sliding_window": 40}),
        ("window_129", None, {"sliding_window": 129}),
        ("window_200", (3, 7), {"sliding_window": 200}),
        ("rates_1_16", (1, 16), {"sliding_window": 64}),
        ("few_rows", (4, 128), {"index_topk": 1}),
    ],
)
def test_sizes(name, rates, config, export, tmp_path):
    """The ring of whole tiles hides what is older than the window; pages of any rates. The judge is the
    definition in plain loops, which transformers judges at the published sizes."""
    model = export(changed(tmp_path / f"v4_{name}", rates, **config), "f32")
    ids = [1 + i * 37 % 79 for i in range(300)]
    want = compare.logits(model, ids, "-k", "f32", MLA_PATH="definition")
    got = compare.logits(model, ids, "-k", "f32")
    assert compare.relative_difference(got, want) <= TOLERANCE
    for rows in ("1", "7", "129"):
        assert np.array_equal(compare.logits(model, ids, "-k", "f32", MLA_CHUNK=rows), got), rows


def test_what_is_older_than_the_window_is_forgotten(export, tmp_path):
    """A layer without compressed rows: a window of three rows ends two tokens back."""
    model = export(changed(tmp_path / "v4_short", layers=1, sliding_window=3), "f32")
    ids = ids_of(50, 1)
    want = compare.logits(model, ids)
    for back, same in ((3, True), (2, False)):
        other = [*ids]
        other[49 - back] = 30 - other[49 - back]
        assert np.array_equal(compare.logits(model, other)[49], want[49]) == same


# ---- the edges of windows and pages

EDGES = [3, 4, 5, 127, 128, 129, 255, 256, 257]


@pytest.mark.parametrize("cache", ["f32", "bf16", "q8", "q6", "q4"])
def test_cuts_of_calls(cache, small_pages):
    """At the edges of compressed rows, of the ring and of pages; the judge is the text in one call."""
    ids = ids_of(400, 2)
    want = alone(small_pages, cache, ids)
    for cuts in [*[(edge,) for edge in EDGES], tuple(EDGES), tuple(range(250, 262))]:
        got = drive(small_pages, cache, ["open 0", *pieces(0, ids, *cuts)])
        assert np.array_equal(last(got, small_pages), want), cuts


@pytest.mark.parametrize("rows", EDGES)
def test_forks_and_cuts_across_pages(rows, small_pages):
    """A sequence that goes back to a mark far behind, and a fork of it, go on as if nothing had been there;
    so does a third one whose pages both shared."""
    first, one, other = ids_of(300, 3), ids_of(150, 4), ids_of(20, 5)
    append = [f"append {n} {','.join(map(str, ids))}" for n, ids in ((0, one), (1, other), (2, other))]
    got = drive(
        small_pages,
        "q8",
        [
            *("open 0", *pieces(0, first[:rows]), "mark 0", *pieces(0, first[rows:])),
            *(f"fork 1 0 {rows}", "fork 2 0 300", f"cut 0 {rows}", "rows 0", *append[:1], append[1]),
            *(append[2], "run 100"),
        ],
    )
    texts = [first[:rows] + one, first[:rows] + other, first + other]
    want = np.concatenate([alone(small_pages, "q8", ids) for ids in texts])
    assert got[-len(want) - 1] == rows
    assert np.array_equal(got[-len(want) :], want)


@pytest.mark.parametrize("layer", range(3))
def test_a_broken_call_across_a_page(layer, small_pages):
    """What a broken call wrote into a page, beside closed windows, is not seen by the one that follows."""
    ids, other = ids_of(300, 6), ids_of(60, 7)
    begin = [*opened(0, ids[:250]), "run 9999"]
    want = drive(small_pages, "q8", [*begin, *pieces(0, ids[250:]), *pieces(0, other)])
    again = [*begin, f"append 0 {','.join(map(str, ids[250:]))}", f"break {layer}", "run 9999"]
    got = drive(small_pages, "q8", [*again, *pieces(0, other)])
    assert np.array_equal(got, want)


@pytest.mark.parametrize("rows", EDGES)
@pytest.mark.parametrize("cache", ["f32", "q8", "q4"])
def test_sessions(cache, rows, small_pages, tmp_path):
    """Saved at the edges of windows and pages, continued as the text that was never saved."""
    ids, options = ids_of(300, 8), ("-n", 9, "-s", 5, "-k", cache)
    want = text("--ids", " ".join(map(str, ids)), *options, model=small_pages)
    for begin, end in ((0, rows), (rows, rows + 1)):
        more = " ".join(map(str, ids[begin:end]))
        text("--ids", more, "-n", 0, "-k", cache, "--session", tmp_path / "session", model=small_pages)
    rest = " ".join(map(str, ids[rows + 1 :]))
    assert text("--ids", rest, *options, "--session", tmp_path / "session", model=small_pages) == want


# ---- rounded caches

# Kullback-Leibler in nats against the logits with an f32 cache, the mean over all rows, on random weights,
# whose experts are chosen by small differences: measured 0.003, 0.004, 0.02, 0.2.
DIVERGENCE = {"bf16": 0.01, "q8": 0.01, "q6": 0.05, "q4": 0.4}


def divergence(model, ids, cache):
    want, got = (compare.logits(model, ids, "-k", kind).astype(np.float64) for kind in ("f32", cache))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (want, got))
    found = (np.exp(p) * (p - q)).sum(-1).mean()
    print(f"-k {cache}: {found:.2g} nats")
    return found


@pytest.mark.parametrize("cache", DIVERGENCE)
def test_what_a_cache_costs(cache, export):
    ids, _ = compare.expected(V4, None, None)
    assert 0 < divergence(export(V4, "f32"), ids, cache) <= DIVERGENCE[cache]


def test_numbers_that_stand_out(tmp_path, monkeypatch):
    """Heads of the published size, in whose rows four numbers are ten times larger than the others, raw and
    compressed: a q6 cache costs no more than a q8 one, because its rows are rotated by a Hadamard matrix.
    Without that it costs twenty times as much."""
    small = {"hidden_size": 128, "vocab_size": 128, "num_attention_heads": 16, "q_lora_rank": 128}
    small |= {"o_groups": 4, "o_lora_rank": 64, "index_n_heads": 16, "index_topk": 32, "n_routed_experts": 8}
    small |= {"moe_intermediate_size": 64, "bos_token_id": None, "eos_token_id": None}
    monkeypatch.setitem(SHAPES, "deepseek-v4-flash", {**SHAPES["deepseek-v4-flash"], **small})
    model = tmp_path / "m"
    assert command.main(["--random", "deepseek-v4-flash", str(model), "--layers", "4", "--type", "f32"]) == 0
    raw = bytearray(model.read_bytes())
    names = [f"layers.{layer}.kv_norm" for layer in range(4)]
    for name in [*names, "layers.2.compress_norm", "layers.3.compress_norm"]:
        offset = tensor(raw, name.encode())[1][1]
        for number in (5, 130, 301, 440):
            struct.pack_into("<f", raw, offset + 4 * number, 10)
    model.write_bytes(raw)
    ids = [1 + i * i * 37 % 127 for i in range(300)]
    assert divergence(model, ids, "q6") <= divergence(model, ids, "q8")


@pytest.mark.parametrize("cache", ["full", "full-bf16", "full-q8"])
def test_a_full_cache_is_for_latents(cache, export):
    refused(run("--ids", "1", "-k", cache, model=export(V4, "f32")), FAILED, "no latent", "-k f32")


# ---- numbers that are not finite

MATRICES = ["q_a", "q_b", "kv", "o_a", "o", "compress_kv", "compress_gate"]
INDEX = ["index_q", "index_weights", "index_compress_kv", "index_compress_gate"]


@pytest.mark.parametrize(
    "name", [f"layers.1.{name}" for name in MATRICES + INDEX] + ["layers.2.compress_gate"]
)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000, 0xFF800000])
def test_non_finite_weights(name, bits, export, tmp_path):
    """No choice and no softmax hides one: there is no text."""
    raw = bytearray(export(V4, "f32").read_bytes())
    offset = tensor(raw, name.encode())[1][1]
    struct.pack_into("<I", raw, offset + 4 * 16 * 3, bits)
    (tmp_path / "damaged.bin").write_bytes(raw)
    ids = " ".join(map(str, ids_of(200, 9)))
    for cache in ("f32", "q8"):
        done = run("--ids", ids, "-n", 1, "-k", cache, model=tmp_path / "damaged.bin")
        refused(done, FAILED, "non-finite")


# ---- what --info says


@pytest.mark.parametrize(
    "shape, numbers, floats, layers",
    [
        ("deepseek-v4-flash", 21 * 640 // 4 + 20 * 512 // 128, 21 * 6 * 640 + 20 * 3 * 512, 43),
        ("deepseek-v4-pro", 30 * 640 // 4 + 31 * 512 // 128, 30 * 6 * 640 + 31 * 3 * 512, 61),
    ],
)
def test_info(shape, numbers, floats, layers, tmp_path, monkeypatch):
    """3,440 numbers a token in V4-Flash and 4,924 in V4-Pro, where V3 has 35,136."""
    small = {"hidden_size": 64, "vocab_size": 64, "moe_intermediate_size": 64, "n_routed_experts": 8}
    small |= {"bos_token_id": None, "eos_token_id": None}
    monkeypatch.setitem(SHAPES, shape, {**SHAPES[shape], **small})
    assert command.main(["--random", shape, str(tmp_path / "m"), "--layers", "1", "--type", "q4"]) == 0
    out = compare.run(tmp_path / "m", "--info").decode()
    number = lambda line: int(re.search(rf"^{line} +([\d,]+)", out, re.M)[1].replace(",", ""))
    for cache in ("f32", "q8"):
        assert number(f"-k {cache}") == numbers == {43: 3440, 61: 4924}[layers]
    assert number("constant part of a sequence, f32") == floats
    assert number("  and its last rows") == layers * 128 * 512


def test_bytes_of_a_token(small_pages, tmp_path):
    """What --info says of a token is what a session holds of it: pages of 256 tokens."""
    info = text("--info", model=small_pages).decode()
    for cache in ("f32", "bf16", "q8", "q6", "q4"):
        token = int(re.search(rf"^-k {cache} +[\d,]+ +([\d,]+)", info, re.M)[1].replace(",", ""))
        sizes = []
        for rows in (3, 300):
            session = tmp_path / f"{cache}{rows}"
            ids = " ".join(["5"] * rows)
            text("--ids", ids, "-n", 0, "-k", cache, "--session", session, model=small_pages)
            sizes.append(session.stat().st_size)
        assert abs(sizes[1] - sizes[0] - 256 * token) <= 4096 + 256  # ids; a fraction of a byte each
