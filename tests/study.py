"""The latent cache in each of its types beside an ordinary key/value cache of the same model, measured here
and now.

    make study [STUDY_TEXT=FILE]      python tests/study.py [FILE]

Two models: the demo at the end of its context, judged on FILE (without one, on stories that it tells itself),
and two layers of DeepSeek-V2-Lite's shape with random weights behind 4096 rows, where only memory and speed
mean something. What is measured:

    cache     bytes a token and layer times rows and layers, as --info computes them
    memory    the most anonymous resident memory of the process (RssAnon in Linux's /proc, read every few
              milliseconds): cache and buffers, without the checkpoint, which is a mapped file
    tokens/s  of the text after the prompt, the fastest of the runs: what else the machine does can only slow
              one down

Takes a minute or two on two cores and, meanwhile, 0.6 GB below build/. Needs Linux, and numpy for export.py.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import ROOT, export, run

DEMO = ROOT / "demo" / "stories.bin"
STORIES, STORY_TOKENS = 12, 400


def cache_types(model):
    """{type: bytes a token of the layers in the file}, from --info."""
    info = run(model, "--info").decode()
    layers, published = map(
        int, re.search(r"^layers +(\d+) of the published model's (\d+)", info, re.M).groups()
    )
    rows = re.findall(r"^-k ([\w-]+).*? [\d,]+ +([\d,]+) +[\d,]+ +-?[\d.]+ %$", info, re.M)
    return {name: int(bytes.replace(",", "")) * layers // published for name, bytes in rows}


def resident(process):
    """Anonymous resident bytes; 0 if the process has just ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    except OSError:
        found = None
    return 1024 * int(found[1]) if found else 0


def decode(model, kind, prompt, tokens, runs):
    """`tokens` tokens after the ids of the prompt: (most memory, tokens a second)."""
    command = [
        ROOT / "run",
        model,
        "--ids",
        " ".join(map(str, prompt)),
        "-n",
        tokens,
        "-t",
        0,
        "-k",
        kind,
        "--ignore-eos",
    ]
    memory = speed = 0
    for _ in range(runs):
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            memory = max(memory, resident(process))
            time.sleep(0.003)
        report = process.stderr.read()
        if process.returncode:
            raise RuntimeError(report)
        speed = max(speed, float(re.search(r"text \d+ tokens, ([\d.]+) tokens/s", report)[1]))
    return memory, speed


def own_text():
    """What the demo tells by itself, the same every time."""
    return b"\n\n".join(
        run(DEMO, "-q", "--echo", "-p", "Once upon a time", "-s", seed, "-n", STORY_TOKENS)
        for seed in range(1, STORIES + 1)
    )


def quality(kind, text):
    """Perplexity, and how far the predictions are from those of an f32 cache (Kullback-Leibler divergence in
    nats)."""
    out = run(DEMO, "--perplexity", text, "-c", 512, "-k", kind, "--against", "f32").decode()
    return re.search(r"^perplexity ([\d.]+)", out)[1], re.search(r" kl ([\d.e+-]+)", out)[1]


def print_row(cells):
    print("".join(f"{cell:>16}" for cell in cells), flush=True)


def study(model, prompt, tokens, runs, text=None):
    """The table of one model; the perplexity of `text` where there is one."""
    rows = len(prompt) + tokens - 1  # the last token is never read
    print(f"rows 1 .. {len(prompt)} are the prompt, tokens/s is that of rows {len(prompt) + 1} .. {rows}")
    print_row(
        [
            "cache",
            "bytes a token",
            "cache, MB",
            "memory, MB",
            "tokens/s",
            *(["perplexity", "KL to f32"] if text else []),
        ]
    )
    for kind, bytes in cache_types(model).items():
        memory, speed = decode(model, kind, prompt, tokens, runs)
        print_row(
            [
                kind,
                f"{bytes:,}",
                f"{bytes * rows / 1e6:.2f}",
                f"{memory / 1e6:.1f}",
                f"{speed:.1f}",
                *(quality(kind, text) if text else []),
            ]
        )


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("text", nargs="?", metavar="FILE", help="a text for the perplexity")
    args = options.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("study.py: memory is read from Linux's /proc, which this system lacks")
    ids = random.Random(1)

    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        text = Path(args.text or Path(folder) / "stories.txt")
        if not args.text:
            text.write_bytes(own_text())
        judged_on = args.text or f"{STORIES} stories of its own (seeds 1 to {STORIES})"
        print(f"The demo: 6 layers, 8 heads. Perplexity of {judged_on}")
        study(DEMO, [ids.randrange(2, 4096) for _ in range(464)], 48, 15, text)

        print("\nDeepSeek-V2-Lite's shape: 2 of 27 layers, 16 heads, random weights in q4", flush=True)
        export("--random", "deepseek-v2-lite", Path(folder) / "v2-lite.bin", "--layers", "2", "--type", "q4")
        study(Path(folder) / "v2-lite.bin", [ids.randrange(100_000) for _ in range(4096)], 64, 2)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError) as problem:
        sys.exit(f"study.py: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
