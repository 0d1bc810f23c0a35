#!/usr/bin/env python3
"""Draws the figures of README.md and doc/ as SVG files beside this script, and prints what it drew.

    python doc/figures.py

cache.svg       what one token costs in the cache as MHA, GQA, MQA and MLA, to scale
attention.svg   the two ways to attend to the latent cache
layout.svg      the parts of a checkpoint, and how a matrix lies in it

No number is written by hand. Sizes of models come from exporter/shapes.py, the parts of a checkpoint from
demo/stories.bin, and where ./run is built, the formulas are held against what its --info says of that file.
Needs the standard library alone. The SVG files are committed; a change of this script makes them anew.
"""

import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from svg import EDGE, KEY, LATENT, ROPE, SOFT, VALUE, WEIGHT, Svg  # noqa: E402 (not before the path)

from exporter.shapes import SHAPES  # noqa: E402

MODEL = "deepseek-v3"
GROUPS = 8  # of GQA, as in Llama 3
CONTEXT = 32768

# ---- what a token costs in the cache ----------------------------------------------------------------------


class Sizes(NamedTuple):
    """The sizes of one layer's attention, by their names in the papers."""

    H: int  # heads
    n: int  # a key without position
    p: int  # rotated part
    v: int  # a value
    r: int  # the latent
    layers: int


def sizes_of(shape):
    s = SHAPES[shape]
    return Sizes(
        s["num_attention_heads"],
        s["qk_nope_head_dim"],
        s["qk_rope_head_dim"],
        s["v_head_dim"],
        s["kv_lora_rank"],
        s["num_hidden_layers"],
    )


class Kind(NamedTuple):
    """One way to cache a token: `count` times the parts (numbers, colour)."""

    name: str
    formula: str
    count: int
    parts: tuple

    def numbers(self):
        return self.count * sum(number for number, _ in self.parts)


def kinds_of(s):
    plain = (s.n, KEY), (s.v, VALUE)
    return (
        Kind(
            "MLA with keys and values of all heads kept",
            "H (n + p + v)",
            s.H,
            ((s.n + s.p, KEY), (s.v, VALUE)),
        ),
        Kind("MHA: every head has its own", "H (n + v)", s.H, plain),
        Kind(f"GQA: {GROUPS} groups of heads share", f"{GROUPS} (n + v)", GROUPS, plain),
        Kind("MQA: all heads share one", "n + v", 1, plain),
        Kind("MLA as it is: all heads share one latent", "r + p", 1, ((s.r, LATENT), (s.p, ROPE))),
    )


def draw_cache():
    s = sizes_of(MODEL)
    kinds = kinds_of(s)
    width, left, row = 860, 24, 62
    scale = (width - 2 * left) / max(kind.numbers() for kind in kinds)
    title = f"Numbers in the cache for one token and one layer, in the shape of {MODEL}, to scale"
    svg = Svg(width, 112 + row * len(kinds), title)
    svg.text(left, 34, "What one token costs in the cache, for one layer of DeepSeek-V3", 17, weight="bold")
    note = f"H = {s.H}, n = {s.n}, p = {s.p}, v = {s.v}, r = {s.r}; the widths are to scale"
    svg.text(left, 56, note, 13, SOFT)
    for i, kind in enumerate(kinds):
        y = 76 + i * row
        total = kind.numbers()
        gigabytes = total * s.layers * CONTEXT * 2 / 1e9
        bold = "bold" if kind.formula == "r + p" else "normal"
        svg.text(left, y + 14, f"{kind.name}: {kind.formula} = {total:,} numbers", 14, weight=bold)
        svg.text(width - left, y + 14, f"{gigabytes:,.1f} GB", 14, SOFT, "end", bold)
        x = left
        for _ in range(kind.count):
            for number, color in kind.parts:
                svg.box(x, y + 22, number * scale, 22, color)
                x += number * scale
        print(f"  {kind.name}: {kind.formula} = {total:,} numbers, {gigabytes:.1f} GB")
    y = svg.height - 18
    legend = ("keys", KEY), ("values", VALUE), ("latent c", LATENT), ("rotated key k_pe", ROPE)
    x = left
    for name, color in legend:
        svg.box(x, y - 11, 12, 12, color)
        svg.text(x + 18, y, name, 13, SOFT)
        x += 42 + 7.2 * len(name)
    note = f"right: {CONTEXT:,} tokens, {s.layers} layers, 2 bytes a number"
    svg.text(width - left, y, note, 13, SOFT, "end")
    svg.save(HERE / "cache.svg")


def check_formulas():
    """The same formulas, for the demonstration model, beside ./run --info. Exits where they differ."""
    program = ROOT / "run"
    if not program.exists():
        print("  ./run is not built: the formulas were not held against --info")
        return
    info = subprocess.run(
        [program, ROOT / "demo" / "stories.bin", "--info"], capture_output=True, text=True, check=True
    ).stdout
    last = re.search(r"\((\d+) layers, H = (\d+), n = (\d+), p = (\d+), v = (\d+);", info)
    latent = re.search(r"^latent +keys and values (\d+)", info, re.MULTILINE)
    layers, H, n, p, v = map(int, last.groups())
    s = Sizes(H, n, p, v, int(latent[1]), layers)
    labels = "full K and V, H", "MHA, H", "GQA-8, 8", "MQA, n", "-k f32"
    for kind, label in zip(kinds_of(s), labels, strict=True):
        line = next(line for line in info.splitlines() if line.startswith(label))
        numbers = int(re.findall(r" {2,}([\d,]+)", line)[0].replace(",", ""))
        if numbers != layers * kind.numbers():
            sys.exit(f"figures.py: {kind.name}: {layers * kind.numbers()}, and --info says {numbers}")
    print("  ./run --info says the same of the demonstration model")


# ---- the two ways to attend -------------------------------------------------------------------------------


def label(svg, x, y, width, height, fill, *lines):
    """A box with lines of text in its middle."""
    svg.box(x, y, width, height, fill, EDGE, 5)
    for i, line in enumerate(lines):
        at = y + height / 2 + 5 + 17 * (i - (len(lines) - 1) / 2)
        svg.text(x + width / 2, at, line, 13, anchor="middle")


def draw_cached_rows(svg, x, y, s):
    """A few rows [ c | k_pe ], lengths to scale."""
    c, k_pe = 100 * s.r / (s.r + s.p), 100 * s.p / (s.r + s.p)
    for i in range(7):
        svg.box(x, y + 15 * i, c, 11, LATENT)
        svg.box(x + c + 2, y + 15 * i, k_pe, 11, ROPE)
    svg.text(x + 51, y + 124, "cached rows", 13, anchor="middle")
    svg.text(x + 51, y + 141, "[ c | k_pe ]", 13, SOFT, "middle")


def draw_attention():
    s = sizes_of(MODEL)
    absorbed, pair, expand = 2 * s.r + s.p, s.n + s.p + s.v, (s.n + s.v) * s.r
    crossing = expand // (absorbed - pair)
    svg = Svg(860, 496, "The two ways to attend to the latent cache: absorbed and decompressed")
    svg.text(24, 34, "Absorbed: few new rows (decode)", 17, weight="bold")
    svg.text(24, 55, "The query moves into the latent space; the cached rows are used as they are.", 13, SOFT)
    y = 92
    label(svg, 20, y, 104, 48, "#f3f4f6", "query", "q_nope | q_pe")
    label(svg, 160, y, 84, 48, WEIGHT, "W_uk^T")
    label(svg, 284, y, 110, 48, "#dff3ec", "query in the", "latent space")
    draw_cached_rows(svg, 440, y - 28, s)
    label(svg, 590, y, 96, 48, "#dff3ec", "sum of", "latents")
    label(svg, 726, y, 60, 48, WEIGHT, "W_uv")
    for start, end in ((124, 157), (244, 281), (394, 435), (546, 587), (686, 723), (786, 822)):
        svg.arrow((start, y + 24), (end, y + 24))
    svg.text(828, y + 29, "o", 15, weight="bold")
    cost = f"{absorbed:,} multiplications for each query, head and row (2 r + p); nothing is expanded"
    svg.text(24, 225, cost, 13)
    svg.box(24, 243, 812, 1, EDGE)

    svg.text(24, 276, "Decompressed: many new rows (prefill)", 17, weight="bold")
    note = "Keys and values of a page of rows are expanded, used for many queries, and forgotten."
    svg.text(24, 297, note, 13, SOFT)
    y = 338
    draw_cached_rows(svg, 24, y - 28, s)
    label(svg, 176, y, 84, 48, WEIGHT, "W_uk, W_uv")
    label(svg, 300, y - 10, 110, 32, "#dfe9fc", "keys k_h")
    label(svg, 300, y + 28, 110, 32, "#fdecdb", "values v_h")
    label(svg, 470, y, 130, 48, "#f3f4f6", "attention")
    label(svg, 640, y, 146, 48, "#f3f4f6", "queries of many", "new rows")
    svg.arrow((132, y + 24), (173, y + 24))
    svg.arrow((260, y + 18), (297, y + 6))
    svg.arrow((260, y + 30), (297, y + 44))
    svg.arrow((410, y + 6), (467, y + 18))
    svg.arrow((410, y + 44), (467, y + 30))
    svg.arrow((640, y + 24), (603, y + 24))
    svg.arrow((535, y + 48), (535, y + 80))
    svg.text(535, y + 97, "o", 15, anchor="middle", weight="bold")
    svg.text(
        836, y + 120, f"{pair} multiplications for each query, head and row (n + p + v),", 13, anchor="end"
    )
    svg.text(836, y + 138, f"and {expand:,} for each row and head, once ((n + v) r)", 13, anchor="end")
    svg.save(HERE / "attention.svg")
    print(f"  {absorbed:,} or {pair:,} + {expand:,} once: by multiplications they cross at {crossing} rows")


# ---- the file ---------------------------------------------------------------------------------------------


class Part(NamedTuple):
    offset: int
    bytes: int
    name: str
    note: str


def parts_of(path):
    """The parts of a checkpoint, from its header: engine/checkpoint.h, struct FileHeader."""
    with open(path, "rb") as file:
        header = struct.unpack("<8sIIQQIIII", file.read(48))
    _, _, _, file_bytes, data, config, tokenizer, tensors, chat = header
    parts, at = [Part(0, 64, "header", "magic, version, sizes, checksum")], 64
    for size, name, note in (
        (config, "configuration", "every fact that changes the arithmetic"),
        (tokenizer, "tokenizer", "tokens, merges, pre-tokenizer"),
        (chat, "chat template", "its pieces" if chat else "this file has none"),
        (tensors * 128, "table of tensors", f"{tensors} entries: name, shape, type, offset"),
    ):
        parts.append(Part(at, size, name, note))
        at = -(-(at + size) // 64) * 64
    parts.append(Part(data, file_bytes - data, "tensors", "each on a multiple of 64 bytes"))
    return parts


def draw_layout():
    parts = parts_of(ROOT / "demo" / "stories.bin")
    title = "The parts of demo/stories.bin, and a q8 matrix in a checkpoint"
    svg = Svg(860, 400, title)
    svg.text(24, 34, "A checkpoint (numbers of demo/stories.bin)", 16, weight="bold")
    colors = "#f3f4f6", "#dfe9fc", "#fdecdb", "#fdecdb", "#f3f4f6", "#dff3ec"
    for i, (part, color) in enumerate(zip(parts, colors, strict=True)):
        y, height = 54 + i * 46, 40 if i < 5 else 74
        svg.box(24, y, 396, height, color, EDGE, 3)
        svg.text(36, y + 17, part.name, 14, weight="bold")
        svg.text(36, y + 33, part.note, 12, SOFT)
        svg.text(408, y + 17, f"{part.bytes:,} bytes", 13, anchor="end")
        svg.text(408, y + 33, f"offset {part.offset:,}", 12, SOFT, "end")
        print(f"  {part.name}: {part.bytes:,} bytes at {part.offset:,}")
    svg.text(36, 336, "an expert's gate, up and down side by side, on a page", 12, SOFT)
    svg.text(24, 384, "Mapped and used in place; nothing is repacked at the start.", 13, SOFT)

    left = 460
    svg.text(left, 34, "A matrix: blocks of 16 rows x 64 columns", 16, weight="bold")
    for i in range(3):
        for j in range(5):
            chosen = i == 0 and j == 0
            svg.box(left + j * 76, 54 + i * 30, 72, 26, LATENT if chosen else "#dff3ec", EDGE, 2)
    svg.arrow((left + 35, 146), (left + 35, 176))
    svg.text(left + 48, 168, "one block, in the order in which it is read", 13, SOFT)
    svg.box(left, 182, 376, 30, "#fdecdb", EDGE, 2)
    svg.text(left + 188, 202, "64 bytes: 2 x 16 scales, for 32 columns each", 13, anchor="middle")
    for i, note in enumerate(("unit 0: columns 0 to 3 of 16 rows", "unit 1: columns 4 to 7 of 16 rows")):
        svg.box(left, 218 + 34 * i, 376, 30, "#dff3ec", EDGE, 2)
        svg.text(left + 188, 238 + 34 * i, f"64 bytes: {note}", 13, anchor="middle")
    svg.text(left + 188, 300, "... q8: 16 units, q4: 8 units (4 bits a number)", 13, SOFT, "middle")
    svg.text(left, 334, "A unit is one operand of an int8 dot product: one load", 13)
    svg.text(left, 352, "advances 16 outputs by 4 columns.", 13)
    svg.text(left, 384, "q8: 8.5 bits a weight, q4: 4.5 (kernels/kernels.h)", 13, SOFT)
    svg.save(HERE / "layout.svg")


if __name__ == "__main__":
    draw_cache()
    check_formulas()
    draw_attention()
    draw_layout()
