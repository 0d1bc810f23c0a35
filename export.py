#!/usr/bin/env python3
"""Makes model.bin, the checkpoint that ./run reads, out of a Hugging Face directory, or one with random weights out of a published shape.

    python export.py SOURCE OUT [--type mixed|f32|bf16|q8|q4] [--mtp] [--no-rotation]
    python export.py --random SHAPE OUT [--layers N] [--type ...] [--seed N]

Streams: whatever the model's size, a few slabs of rows are in memory at a time. Refuses what it does not understand. The parts, in exporter/:
sources.py reads safetensors, config.py the configuration, tokenizer.py the tokenizer, chat.py the chat template; plan.py lists the checkpoint's
tensors; quantise.py packs them; writer.py writes the file; shapes.py holds the published shapes. Needs numpy; a chat template needs jinja2.
"""

import argparse
import collections
import itertools
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

try:
    import numpy as np
except ImportError:
    sys.exit("export.py: needs numpy: pip install numpy")

from exporter import config as model_config
from exporter.chat import compile_chat
from exporter.errors import ExportError, printable
from exporter.plan import TYPE_NAMES, VECTOR, check_plan, make_plan
from exporter.quantise import multiplier, pack
from exporter.shapes import SHAPES
from exporter.sources import Source, read_json
from exporter.writer import Output, tensor_bytes, write_checkpoint

SLAB = 1 << 16       # weights packed at once: the temporaries stay in a core's cache, and malloc reuses them
RANDOM_STD = 0.02    # initializer_range of the published models
RANDOM_PANELS = 61   # different panels of 16 random rows for each type and width; a prime, so that no pattern lines up


def warn(text):
    print(f"export.py: warning: {text}", file=sys.stderr)


class Progress:
    """One line on standard error, on a terminal only."""

    def __init__(self, total):
        self.total, self.done, self.begin, self.shown = total, 0, time.monotonic(), 0.0
        self.visible = sys.stderr.isatty()

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if self.visible and (now - self.shown > 0.2 or self.done == self.total):
            self.shown = now
            rate = self.done / 1e6 / max(now - self.begin, 1e-9)
            end = "\n" if self.done == self.total else ""
            percent = 100 * self.done // max(self.total, 1)
            print(f"\r{percent:3d} % of {self.total / 1e6:.0f} MB, {rate:.0f} MB/s ", end=end, file=sys.stderr, flush=True)


def in_order(pool, work, ahead):
    """The results of `work` (calls to make), in order; at most `ahead` calls are made before their results are taken."""
    running = collections.deque()
    for call in work:
        running.append(pool.submit(*call))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def slabs(entry):
    """(matrix, first row, last row + 1) pieces of a tensor: whole panels, at most about SLAB weights, or as many rows as are rotated together."""
    step = max(16, SLAB // entry.cols // 16 * 16)
    if entry.hadamard_rows:
        unit = max(16, entry.hadamard)  # both are powers of two
        step = -(-step // unit) * unit
    for m in range(entry.count):
        for low in range(0, entry.rows, step):
            yield m, low, min(entry.rows, low + step)


def scale_of(entry, source):
    """The tensor's multiplier; looks at all its numbers, so that infinities and what is not a number are found before they are packed."""
    if not entry.source:
        return 1.0
    largest = source.largest(entry.source)
    if entry.factor is not None:
        largest *= max(1.0, float(np.abs(entry.factor).max()))
    if entry.hadamard:
        largest *= entry.hadamard ** 0.5  # more than any does become, but a scale has room
    if entry.gain:
        largest *= source.largest(entry.gain)
    if largest > 3.3e38:
        raise ExportError(f"tensor {printable(entry.source)} holds {largest:g}, too large to be a weight")
    return multiplier(largest, entry.type)


def packed(entry, source, scale, m, low, high):
    """One slab of a tensor: (scale, bytes)."""
    values = entry.load(source, m, low, high)
    if entry.type == VECTOR:
        return 1.0, np.ascontiguousarray(values, np.float32)
    return scale, pack(values * np.float32(1 / scale) if scale != 1 else values, entry.type)


def source_tensors(entries, source, pool, progress):
    """For write_checkpoint: the slabs of each tensor, packed by all cores."""
    ahead = 2 * os.cpu_count()

    def work():
        for entry, scale in zip(entries, in_order(pool, ((scale_of, entry, source) for entry in entries), ahead)):
            for slab in slabs(entry):
                yield packed, entry, source, scale, *slab

    done = in_order(pool, work(), ahead)
    for entry in entries:
        yield itertools.islice(done, sum(1 for _ in slabs(entry)))
        progress.add(tensor_bytes(entry))


def random_vector(entry):
    if entry.constant is not None:
        return entry.constant
    return (np.zeros if entry.name.endswith("router_bias") else np.ones)(entry.rows, np.float32)  # the others are norms


def random_tensors(entries, seed, progress):
    """For write_checkpoint: normally distributed weights. A few panels are drawn for each type and width and then repeated in random order:
    writing is then all that takes time, and no kernel can tell."""
    random = np.random.default_rng(seed)
    scale_for = {kind: multiplier(8 * RANDOM_STD, kind) for kind in TYPE_NAMES.values()}
    panels = {}

    def draw(entry, rows):
        values = random.standard_normal((rows, entry.cols), np.float32)
        return pack(values * np.float32(RANDOM_STD / scale_for[entry.type]), entry.type)

    def pieces(entry):
        if entry.type == VECTOR:
            yield 1.0, random_vector(entry)
            return
        key = entry.type, entry.cols
        if key not in panels:
            panels[key] = draw(entry, 16 * RANDOM_PANELS)
        scale = scale_for[entry.type]
        for _, low, high in slabs(entry):
            whole, rest = divmod(high - low, 16)
            if whole:
                yield scale, panels[key][random.integers(RANDOM_PANELS, size=whole)]
            if rest:
                yield scale, draw(entry, rest)

    for entry in entries:
        yield pieces(entry)
        progress.add(tensor_bytes(entry))


def compiled_tokenizer(directory):
    """The tokenizer section; empty, with a warning, if the source has none that can be used: the model still runs on --ids."""
    try:
        from exporter.tokenizer import compile_tokenizer
        section = compile_tokenizer(directory)
    except Exception as error:  # whatever is wrong with a tokenizer must not cost the weights
        text = str(error) or type(error).__name__
        warn(f"no tokenizer in the checkpoint: {printable(text, 300)}")
        return b""
    if section is None:
        warn(f"{directory} has no tokenizer: the checkpoint takes --ids alone as a prompt")
    return section or b""


def export_source(directory, out_path, type_name, mtp, rotation):
    config_path = os.path.join(directory, "config.json")
    source = Source(directory)
    values = read_json(config_path)
    name = os.path.basename(os.path.abspath(directory))
    config = model_config.parse(values, name, config_path, lambda suffix: any(n.endswith(suffix) for n in source.tensors))
    model_config.text_fields(config, values, directory)
    source.block = config.block
    config.fields["mtp_layers"] = int(mtp)
    entries = make_plan(config, type_name, source.tensors.__contains__, mtp, rotation)
    check_plan(entries, source, mtp)
    tokenizer = compiled_tokenizer(directory)
    chat = compile_chat(directory, values.get("model_type"), warn) if tokenizer else b""
    with Output(out_path) as out, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            tensors = source_tensors(entries, source, pool, Progress(sum(map(tensor_bytes, entries))))
            write_checkpoint(out, config, tokenizer, chat, entries, tensors)
        finally:
            pool.shutdown(cancel_futures=True)


def export_random(shape, out_path, type_name, layers, seed):
    values = SHAPES[shape]
    config = model_config.parse(values, shape, shape)
    model_config.text_fields(config, values)
    config.fields["num_hidden_layers"] = layers or config.published_layers
    entries = make_plan(config, type_name)
    with Output(out_path) as out:
        write_checkpoint(out, config, b"", b"", entries, random_tensors(entries, seed, Progress(sum(map(tensor_bytes, entries)))))


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"export.py: {message}; try export.py --help\n")


def arguments(argv):
    parser = Parser(prog="export.py", usage="export.py SOURCE OUT [options]\n       export.py --random SHAPE OUT [options]", allow_abbrev=False,
                    description="Makes the checkpoint OUT of the Hugging Face directory SOURCE, or with random weights in a published SHAPE.")
    parser.add_argument("paths", nargs="*", metavar="SOURCE OUT", help="directory with config.json and *.safetensors; file to write")
    parser.add_argument("--type", default="mixed", choices=["mixed", *TYPE_NAMES],
                        help="of every matrix; mixed (the default): 4 bits for MLPs and experts, 8 for the rest")
    parser.add_argument("--mtp", action="store_true", help="carry the multi-token prediction layer along")
    parser.add_argument("--no-rotation", action="store_true", help="leave the latent as it is; q8, q4 and mixed rotate it (f32 and bf16 never do), "
                        "so that ./run -k q6 and q4 lose less")
    parser.add_argument("--random", metavar="SHAPE", choices=SHAPES, help="one of " + ", ".join(SHAPES))
    parser.add_argument("--layers", type=int, metavar="N", help="with --random: the first N layers alone")
    parser.add_argument("--seed", type=int, metavar="N", help="with --random: another draw (default 0)")
    args = parser.parse_args(argv)
    wanted = ["OUT"] if args.random else ["SOURCE", "OUT"]
    if len(args.paths) != len(wanted):
        parser.error(f"{' and '.join(wanted)} expected, {len(args.paths)} paths given")
    if not args.random and (args.layers is not None or args.seed is not None):
        parser.error("--layers and --seed go with --random")
    if args.random and (args.mtp or args.no_rotation):
        parser.error(f"{'--mtp' if args.mtp else '--no-rotation'} does not go with --random")
    if args.random and args.layers is not None and not 1 <= args.layers <= SHAPES[args.random]["num_hidden_layers"]:
        parser.error(f"--layers {args.layers}: {args.random} has {SHAPES[args.random]['num_hidden_layers']}")
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed {args.seed}: an integer from 0 on expected")
    return args


def interrupted(*_):
    raise KeyboardInterrupt


def main(argv):
    args = arguments(argv)
    out = args.paths[-1]
    signal.signal(signal.SIGTERM, interrupted)  # the temporary file must go then, too
    try:
        if args.random:
            export_random(args.random, out, args.type, args.layers, args.seed or 0)
        else:
            rotation = args.type not in ("f32", "bf16") and not args.no_rotation
            export_source(args.paths[0], out, args.type, args.mtp, rotation)
        return 0
    except ExportError as error:
        print(f"export.py: {error}", file=sys.stderr)
    except OSError as error:
        print(f"export.py: {error.filename or out}: {error.strerror or error}", file=sys.stderr)
    except MemoryError:
        print("export.py: out of memory", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
