"""What it costs to cache keys and values, and what MQA, GQA and MLA give for it, measured here and now.

    make study [STUDY_TEXT=FILE]      python tests/study.py [FILE]

Four parts, each a table on standard output and in build/study as CSV and as a figure (SVG):

    shapes    the cache of published models by count: --info of a file with one narrow layer of each
    siblings  demo/siblings, four small models that differ in their attention alone (demo/siblings.py): bytes
              a token in each type of cache, and the perplexity of FILE's first 80,000 bytes, about 20,000
              tokens; without FILE, of stories that demo/stories.bin tells
    decode    how fast they write at growing context, beside the bytes that must be read for each token and
              what a plain loop reads in a second
    parallel  MHA, GQA and MLA in layers of DeepSeek-V2-Lite's width, equally large: how many texts of 2048
              rows fit into a given cache, and how fast so many are written together

The first two print the same on every machine; doc/study.md has them. Takes less than five minutes on two
cores and, meanwhile, 0.5 GB below build/. Needs numpy, for export.py.
"""

import argparse
import csv
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import ROOT, RUN, run

sys.path[:0] = [str(ROOT), str(ROOT / "doc")]

from svg import bars_chart, lines_chart  # noqa: E402 (not before the path)

from exporter import command  # noqa: E402
from exporter.shapes import SHAPES  # noqa: E402

OUT = ROOT / "build" / "study"
SIBLINGS = "mha", "gqa", "mqa", "mla"
CACHES = "f32", "bf16", "q8", "q6", "q4"
TEXT_BYTES, STORIES = 80_000, 112
SEPARATOR = b"<|endoftext|>\n"  # of stories
CONTEXTS, TOKENS, TIMES = (16, 128, 256, 448), 48, 9  # of decode
ROWS, BUDGET = 2048, 160_000_000  # of parallel: rows of a text, bytes of all caches


class Table:
    """Rows that are printed as they come, in the form of Markdown, and kept for a CSV file."""

    def __init__(self, name, title, *columns):
        self.name, self.columns, self.rows = name, columns, []
        print(f"\n{title}\n", flush=True)
        self.print(columns)
        self.print(["---", *["---:"] * (len(columns) - 1)])

    def print(self, cells):
        columns = zip(cells[1:], self.columns[1:], strict=True)
        rest = [f"{cell:>{max(len(column), 10)}}" for cell, column in columns]
        print(f"| {' | '.join([f'{cells[0]:<17}', *rest])} |", flush=True)

    def add(self, *cells):
        self.rows.append(cells)
        self.print([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells])

    def save(self):
        path = OUT / f"{self.name}.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])
        print(f"\nstudy/{path.name}", flush=True)


def sibling(name):
    return ROOT / "demo" / "siblings" / f"{name}.bin"


def info_rows(model):
    """{type: (numbers, bytes) of a token in the cache} as --info counts them."""
    rows = re.findall(
        r"^-k ([\w-]+).*? ([\d,]+) +([\d,]+) +[\d,]+ +[^ ]", run(model, "--info").decode(), re.M
    )
    return {name: tuple(int(x.replace(",", "")) for x in counts) for name, *counts in rows}


def random_checkpoint(name, shape, out, *options):
    """A checkpoint with random weights of a shape that need not be a published one."""
    SHAPES[name] = shape
    if command.main(["--random", name, str(out), *options]):
        raise RuntimeError(f"no checkpoint of {name}")


# ---- shapes

SHOWN = (
    "deepseek-67b",
    "deepseek-v2-lite",
    "deepseek-v2",
    "deepseek-v3",
    "kimi-k2",
    "mistral-small-4",
    "deepseek-v3.2",
    "glm-5",
    "glm-5.2",
    "kimi-linear-48b",
    "deepseek-v4-flash",
)
# The cache does not depend on these; small ones make a small checkpoint.
SMALL = {
    "hidden_size": 256,
    "vocab_size": 256,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


def attention_of(shape):
    """In words."""
    heads = shape["num_attention_heads"]
    if shape["model_type"] == "llama":
        return f"GQA, {shape['num_key_value_heads']} groups of {heads} heads"
    if shape["model_type"] == "deepseek_v4":
        return f"compressed rows, {heads} heads, index keys"
    linear = shape.get("linear_attn_config")
    layers = f" in {len(linear['full_attn_layers'])} layers" if linear else ""
    index = ", index keys" if shape.get("index_topk") else ""
    shared = " shared by layers" if shape.get("index_topk_freq") else ""
    return f"MLA, {heads} heads{layers}{index}{shared}"


def study_shapes(folder):
    table = Table(
        "shapes",
        "Bytes of a token in the cache, all layers of the published model:",
        *("shape", "layers", "numbers", "bf16", "q8", "q6", "attention"),
    )
    for name in SHOWN:
        shape = SHAPES[name]
        small = {key: SMALL.get(key, value) for key, value in shape.items()}
        random_checkpoint(name, small, folder / "shape.bin", "--layers", "1", "--type", "q4")
        SHAPES[name] = shape
        rows = info_rows(folder / "shape.bin")
        counts = rows["bf16"][0], *(rows[kind][1] for kind in ("bf16", "q8", "q6"))
        table.add(name, shape["num_hidden_layers"], *counts, attention_of(shape))
    table.save()
    bars = [(name, bf16, f"{bf16:,} bytes, {what}") for name, _, _, bf16, *_, what in table.rows]
    bars_chart(OUT / "shapes.svg", "What one token costs in the cache", "bf16, all layers", bars)


# ---- siblings


def own_stories():
    """What the demonstration model tells by itself, the same every time."""
    begin = "Once upon a time"
    model = ROOT / "demo" / "stories.bin"
    told = run(model, "-p", begin, "--samples", STORIES, "-s", 1, "-n", 400, "-q").decode()
    return "".join(f"{begin}{line}\n" for line in told.rstrip("\n").split("\n")).replace("\\n", "\n").encode()


def study_siblings(folder, text, source):
    cut = folder / "text.txt"
    cut.write_bytes(text.replace(SEPARATOR, b"")[:TEXT_BYTES])
    table = Table(
        "siblings",
        f"Four small models, weights in q8. Perplexity of {source}, windows of 511 tokens:",
        *("attention", "cache", "bytes a token", "perplexity", "+-", "tokens"),
    )
    for name in SIBLINGS:
        rows = info_rows(sibling(name))
        for kind in CACHES:
            said = run(sibling(name), "--perplexity", cut, "-c", 512, "-k", kind, "-q").decode()
            found = re.search(r"^perplexity ([\d.]+) \+- ([\d.]+) tokens (\d+)", said)
            table.add(name.upper(), kind, rows[kind][1], *found.groups())
    table.save()
    series = {}
    for name, _, bytes, perplexity, *_ in table.rows:
        series.setdefault(name, []).append((bytes, float(perplexity)))
    lines_chart(
        OUT / "siblings.svg",
        "What a cache costs, and what it gives",
        f"models of 2.6 million parameters; from the right: {', '.join(CACHES)}",
        ("bytes a token", "perplexity"),
        series,
        log=True,
    )


# ---- decode


def bandwidth():
    """Bytes a second that a plain loop reads, as --bench measures it."""
    first = next(csv.DictReader(run(sibling("mla"), "--bench", "--csv", "-c", 32).decode().splitlines()))
    return float(first["gb_per_s"]) * 1e9


def weight_bytes(model):
    """Read for each token."""
    found = re.search(r"^read per token +([\d,]+)", run(model, "--info").decode(), re.M)
    return int(found[1].replace(",", ""))


def decode_speed(model, kind, context):
    """Tokens a second of TOKENS tokens behind `context` others, the fastest of some runs: what else the
    machine does can only slow one down."""
    ids = random.Random(1)
    prompt = " ".join(str(ids.randrange(2, 4096)) for _ in range(context))
    call = [*RUN, model, "--ids", prompt, "-n", TOKENS, "-t", 0, "-k", kind, "--ignore-eos"]
    speeds = []
    for _ in range(TIMES):
        done = subprocess.run([str(word) for word in call], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        speeds.append(float(re.search(r"text \d+ tokens, ([\d.]+) tokens/s", done.stderr)[1]))
    return max(speeds)


def study_decode():
    reads = bandwidth()
    table = Table(
        "decode",
        f"Writing {TOKENS} tokens. A plain loop reads {reads / 1e9:.1f} GB/s from memory; these models lie "
        "in the processor's caches:",
        *("attention", "cache", "context", "bytes read", "tokens/s", "GB/s", "loop: tokens/s"),
    )
    series = {}
    for name in SIBLINGS:
        rows, weights = info_rows(sibling(name)), weight_bytes(sibling(name))
        for kind in ("f32", "q8"):
            for context in CONTEXTS:
                speed = decode_speed(sibling(name), kind, context)
                bytes = weights + rows[kind][1] * (context + TOKENS // 2)
                table.add(name.upper(), kind, context, bytes, f"{speed:.0f}", f"{bytes * speed / 1e9:.1f}",
                          f"{reads / bytes:.0f}")  # fmt: skip
                if kind == "q8":
                    series.setdefault(name.upper(), []).append((context, speed))
    table.save()
    labels = "tokens before", "tokens/s"
    lines_chart(OUT / "decode.svg", "Writing at growing context", "-k q8", labels, series)


# ---- parallel


def wide_shapes():
    """{name: shape}: a layer's attention as V2-Lite has it, or ordinary attention of its 16 heads; MLPs as
    V2-Lite has its first one, but for what makes the layers equally large. The vocabulary is cut as the
    layers are, so that the head has its share of the work."""
    lite = SHAPES["deepseek-v2-lite"]
    ordinary = {**SHAPES["deepseek-67b"], **{k: lite[k] for k in ("hidden_size", "num_attention_heads")}}
    both = {"num_hidden_layers": 4, "vocab_size": 16384, "bos_token_id": None, "eos_token_id": None}
    both["max_position_embeddings"] = 8192
    dense = {k: v for k, v in lite.items() if k != "n_routed_experts"} | both
    return {
        "MHA": {**ordinary, **both, "num_key_value_heads": 16, "intermediate_size": 10432},
        "GQA-8": {**ordinary, **both, "num_key_value_heads": 8, "intermediate_size": 11136},
        "MLA": dense,
    }


def parallel_speeds(model, texts):
    """{(texts, context): line} of --bench --parallel, each the faster one of two runs."""
    lines = {}
    for _ in range(2):
        said = run(model, "--bench", "--parallel", f"1,{texts}", "--csv", "-k", "q8", "-c", ROWS + 11)
        for line in csv.DictReader(said.decode().splitlines()):
            key = int(line["texts"]), int(line["context"])
            lines[key] = max(lines.get(key, line), line, key=lambda r: float(r["tokens_per_s"]))
    return lines


def study_parallel(folder):
    table = Table(
        "parallel",
        f"Four layers of V2-Lite's width, weights and cache in q8, {BUDGET / 1e6:.0f} MB of cache for texts "
        f"of {ROWS} rows. Tokens a second of one text and of all, the last beside the bound that reading and "
        "multiplying set:",
        *("attention", "parameters", "bytes a token", "texts that fit"),
        *("one, empty", f"one, {ROWS}", f"all, {ROWS}", "of bound"),
    )
    for name, shape in wide_shapes().items():
        model = folder / "wide.bin"
        random_checkpoint(name, shape, model, "--type", "q8")
        token = info_rows(model)["q8"][1]
        texts = BUDGET // (token * ROWS)
        said = re.search(r"^parameters +([\d,]+)", run(model, "--info").decode(), re.M)[1]
        lines = parallel_speeds(model, texts)
        one, full, all = (lines[key] for key in ((1, 0), (1, ROWS), (texts, ROWS)))
        speeds = (f"{float(line['tokens_per_s']):.1f}" for line in (one, full, all))
        table.add(
            name, int(said.replace(",", "")), token, texts, *speeds, f"{100 * float(all['share']):.0f} %"
        )
        model.unlink()
    table.save()
    bars = [
        (name, float(speed), f"{speed} tokens/s, {texts} texts")
        for name, _, _, texts, _, _, speed, _ in table.rows
    ]
    note = f"{BUDGET / 1e6:.0f} MB of cache, texts of {ROWS} rows, q8"
    bars_chart(OUT / "parallel.svg", "As many texts as fit, written together", note, bars)


# ---- the command line


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("text", nargs="?", type=Path, metavar="FILE", help="a text for the perplexity")
    args = options.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        study_shapes(folder)
        text = args.text.read_bytes() if args.text else own_stories()
        study_siblings(folder, text, args.text.name if args.text else "stories of demo/stories.bin")
        study_decode()
        study_parallel(folder)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError) as problem:
        sys.exit(f"study.py: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
