#!/usr/bin/env python3
"""Makes model.bin, the checkpoint that ./run reads, out of a published model, or one with random weights out
of a published shape.

    python export.py SOURCE OUT [--type mixed|f32|bf16|q8|q4] [--mtp] [--no-rotation]
    python export.py --random SHAPE OUT [--layers N] [--type ...] [--seed N]

SOURCE is a directory as on Hugging Face (config.json and *.safetensors; or params.json and
consolidated*.safetensors, Mistral's form), or a GGUF file. Streams: whatever the model's size, a few slabs of
rows are in memory at a time. Refuses what it does not understand. The parts, in exporter/: sources.py reads
safetensors, gguf_source.py GGUF; config.py reads the configuration, gguf_config.py and mistral.py put theirs
into its words; tokenizer.py reads the tokenizer, chat.py the chat template; plan.py lists the checkpoint's
tensors; quantize.py packs them; writer.py writes the file; shapes.py holds the published shapes. Needs numpy;
a chat template needs jinja2.
"""

import argparse
import collections
import dataclasses
import itertools
import os
import re
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

try:
    import numpy as np
except ImportError:
    sys.exit("export.py: needs numpy: pip install numpy")

from exporter import config as model_config
from exporter import gguf_config, mistral
from exporter.chat import compile_chat, find_template, gguf_template
from exporter.errors import ExportError, printable, warn
from exporter.families import language_model
from exporter.gguf_source import Gguf
from exporter.plan import Q4, TYPE_NAMES, VECTOR, make_plan
from exporter.quantize import CODEBOOK, UNIFORM, kept_multiplier, multiplier, pack, pack_integers
from exporter.shapes import SHAPES
from exporter.sources import CONVERT, PICKLES, Safetensors, read_json
from exporter.text_fields import text_fields
from exporter.writer import Output, tensor_bytes, write_checkpoint

SLAB = 1 << 16  # weights packed at once: the temporaries stay in a core's cache, and malloc reuses them
RANDOM_STD = 0.02  # initializer_range of the published models
RANDOM_PANELS = (
    61  # different panels of 16 random rows for each type and width; a prime, so that no pattern lines up
)


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
            print(
                f"\r{percent:3d} % of {self.total / 1e6:.0f} MB, {rate:.0f} MB/s ",
                end=end,
                file=sys.stderr,
                flush=True,
            )


def in_order(pool, work, ahead):
    """The results of `work` (calls to make), in order; at most `ahead` calls are made before their results
    are taken."""
    running = collections.deque()
    for call in work:
        running.append(pool.submit(*call))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def slabs(entry):
    """(matrix, first row, last row + 1) pieces of a tensor: whole panels, at most about SLAB weights, or as
    many rows as are rotated together."""
    step = max(16, SLAB // entry.cols // 16 * 16)
    if entry.hadamard_rows:
        unit = max(16, entry.hadamard)  # both are powers of two
        step = -(-step // unit) * unit
    for m in range(entry.count):
        for low in range(0, entry.rows, step):
            yield m, low, min(entry.rows, low + step)


def scale_of(entry, source):
    """(the tensor's multiplier, is it carried over as it is?); looks at all its numbers, so that infinities
    and what is not a number are found before they are packed."""
    if not entry.source:
        return 1.0, False
    if entry.keeps_groups():
        kept = kept_multiplier(source.tensors[entry.source], entry.ranges(), entry.type)
        if kept is not None:
            return kept, True
    largest = max(source.largest(entry.source, low, high) for low, high in entry.ranges())
    if entry.factor is not None:
        largest *= max(1.0, float(np.abs(entry.factor).max()))
    largest *= max(1.0, entry.times)
    if entry.hadamard:
        largest *= entry.hadamard**0.5  # more than any does become, but a scale has room
    if entry.gain:
        largest *= source.largest(entry.gain)
    if largest > 3.3e38:
        raise ExportError(f"tensor {printable(entry.source)} holds {largest:g}, too large to be a weight")
    return multiplier(largest, entry.type), False


def packed(entry, source, scale, kept, m, low, high):
    """One slab of a tensor: (scale, codebook, bytes)."""
    if kept:
        begin, end, which = entry.place(m, low, high)
        q, scales = source.tensors[entry.source].integers(begin, end)
        return (
            scale,
            codebook(entry, UNIFORM),
            pack_integers(q[which], scales[which] / np.float32(scale), entry.type),
        )
    values = entry.load(source, m, low, high)
    if entry.type == VECTOR:
        return 1.0, b"", np.ascontiguousarray(values, np.float32)
    return (
        scale,
        codebook(entry, CODEBOOK),
        pack(values * np.float32(1 / scale) if scale != 1 else values, entry.type),
    )


def codebook(entry, values):
    return values.tobytes() if entry.type == Q4 else b""


def source_tensors(entries, source, pool, progress):
    """For write_checkpoint: the slabs of each tensor, packed by all cores."""
    ahead = 2 * os.cpu_count()

    def work():
        for entry, scale in zip(
            entries, in_order(pool, ((scale_of, entry, source) for entry in entries), ahead)
        ):
            for slab in slabs(entry):
                yield packed, entry, source, *scale, *slab

    done = in_order(pool, work(), ahead)
    for entry in entries:
        yield itertools.islice(done, sum(1 for _ in slabs(entry)))
        progress.add(tensor_bytes(entry))


def random_vector(entry):
    if entry.constant is not None:
        return entry.constant
    # a router's bias is there, and prefers none; the others are norms
    value = 2.0**-10 if entry.name.endswith("router_bias") else 0.0 if entry.name.endswith("_bias") else 1.0
    return np.full(entry.rows, value, np.float32)


def random_tensors(entries, seed, progress):
    """For write_checkpoint: normally distributed weights. A few panels are drawn for each type and width and
    then repeated in random order: writing is then all that takes time, and no kernel can tell."""
    random = np.random.default_rng(seed)
    scale_for = {kind: multiplier(8 * RANDOM_STD, kind) for kind in TYPE_NAMES.values()}
    panels = {}

    def draw(entry, rows):
        values = random.standard_normal((rows, entry.cols), np.float32)
        return pack(values * np.float32(RANDOM_STD / scale_for[entry.type]), entry.type)

    def pieces(entry):
        if entry.type == VECTOR:
            yield 1.0, b"", random_vector(entry)
            return
        key = entry.type, entry.cols
        if key not in panels:
            panels[key] = draw(entry, 16 * RANDOM_PANELS)
        scale = scale_for[entry.type]
        for _, low, high in slabs(entry):
            whole, rest = divmod(high - low, 16)
            if whole:
                yield (
                    scale,
                    codebook(entry, CODEBOOK),
                    panels[key][random.integers(RANDOM_PANELS, size=whole)],
                )
            if rest:
                yield scale, codebook(entry, CODEBOOK), draw(entry, rest)

    for entry in entries:
        yield pieces(entry)
        progress.add(tensor_bytes(entry))


def compiled_tokenizer(source, directory):
    """The tokenizer section; empty, with a warning, if the source has none that can be used: the model still
    runs on --ids."""
    try:
        from exporter.tokenizer import compile_gguf_tokenizer, compile_tokenizer

        section = compile_tokenizer(directory) if directory else compile_gguf_tokenizer(source.metadata)
    except Exception as error:  # whatever is wrong with a tokenizer must not cost the weights
        text = str(error) or type(error).__name__
        warn(f"no tokenizer in the checkpoint: {printable(text, 300)}")
        return b""
    if section is None:
        warn(f"{source.directory} has no tokenizer: the checkpoint takes --ids alone as a prompt")
    return section or b""


def open_source(path):
    """(source, its config.json or what that would say, where that is written, the directory with other texts
    or None)."""
    if os.path.isfile(path):
        if path.endswith(PICKLES):
            raise ExportError(f"{path}: {CONVERT}")
        if path.endswith(".safetensors"):
            raise ExportError(f"{path}: give the directory that it is in: config.json is needed, too")
        source = Gguf(path)
        values, assumed = gguf_config.config(source)
        if assumed:
            warn(f"{path} does not say, and no published model has its shape; taken: {', '.join(assumed)}")
        return source, values, path, None
    if not os.path.isdir(path):
        raise ExportError(f"{path}: no such directory or file")
    config_path, params_path = os.path.join(path, "config.json"), os.path.join(path, "params.json")
    if os.path.exists(params_path) and not os.path.exists(config_path):
        source = Safetensors(path, "consolidated", mistral.transformers_name)
        return source, mistral.config(read_json(params_path), params_path), params_path, path
    return (
        Safetensors(path),
        language_model(read_json(config_path), config_path),
        config_path,
        path,
    )


def export_source(path, out_path, type_name, mtp, rotation):
    source, values, config_path, directory = open_source(path)
    name = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", os.path.basename(os.path.abspath(path)))
    config = model_config.parse(values, name, config_path, source.has)
    text = text_fields(values, config.vocab_size, directory)
    config = dataclasses.replace(config, **text, mtp_layers=int(mtp))
    source.decode(config.block)
    entries = make_plan(config, type_name, source, mtp, rotation)
    tokenizer = compiled_tokenizer(source, directory)

    def template():
        return (
            find_template(directory, values.get("model_type"))
            if directory
            else gguf_template(source.metadata)
        )

    chat = compile_chat(template, warn) if tokenizer else b""
    with Output(out_path) as out, ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            tensors = source_tensors(entries, source, pool, Progress(sum(map(tensor_bytes, entries))))
            write_checkpoint(out, config, tokenizer, chat, entries, tensors)
        finally:
            pool.shutdown(cancel_futures=True)


def export_random(shape, out_path, type_name, layers, seed):
    values = SHAPES[shape]
    config = model_config.parse(values, shape, shape)
    text = text_fields(values, config.vocab_size)
    config = dataclasses.replace(config, **text, num_hidden_layers=layers or config.published_layers)
    entries = make_plan(config, type_name)
    with Output(out_path) as out:
        write_checkpoint(
            out,
            config,
            b"",
            b"",
            entries,
            random_tensors(entries, seed, Progress(sum(map(tensor_bytes, entries)))),
        )


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"export.py: {message}; try export.py --help\n")


def arguments(argv):
    parser = Parser(
        prog="export.py",
        usage="export.py SOURCE OUT [options]\n       export.py --random SHAPE OUT [options]",
        allow_abbrev=False,
        description="Makes the checkpoint OUT of the model in SOURCE, or one with random weights in a published SHAPE.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="SOURCE OUT",
        help="directory with config.json and *.safetensors, or GGUF file; file to write",
    )
    parser.add_argument(
        "--type",
        default="mixed",
        choices=["mixed", *TYPE_NAMES],
        help="of every matrix; mixed (the default): 4 bits for MLPs and experts, 8 for the rest",
    )
    parser.add_argument("--mtp", action="store_true", help="carry the multi-token prediction layer along")
    parser.add_argument(
        "--no-rotation",
        action="store_true",
        help="leave the latent as it is; q8, q4 and mixed rotate it (f32 and bf16 never do), "
        "so that ./run -k q6 and q4 lose less",
    )
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
    if args.random and args.layers is not None:
        shape = model_config.parse(SHAPES[args.random], args.random)
        if not 1 <= args.layers <= shape.num_hidden_layers:
            parser.error(f"--layers {args.layers}: {args.random} has {shape.num_hidden_layers}")
        if shape.shortcut_moe and args.layers % 2:
            parser.error(
                f"--layers {args.layers}: the layers of {args.random} are pairs, give an even number"
            )
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
    except Exception as error:  # a defect of this program, whatever the source is like
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(at.filename)}:{at.lineno}"
        print(
            f"export.py: {type(error).__name__} at {where}: {printable(error)}; please report this",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
