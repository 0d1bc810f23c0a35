"""The command line of export.py: options, the order of the work, messages and the exit status.

Everything that can be refused is refused before a weight is read: where the checkpoint goes, what the source
is, its configuration, its list of tensors, its tokenizer, its chat template. An ExportError's text is the
line that the user reads; what is no ExportError and no fault of the machine is a defect of this program.
"""

import argparse
import dataclasses
import hashlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .errors import PROGRAM, ExportError, printable, warn

try:
    import numpy as np
except ImportError:
    sys.exit(f"{PROGRAM}: needs numpy: pip install numpy")

from . import config as model_config
from . import gguf_config, mistral
from .chat import Found, compile_chat, find_template, gguf_template
from .check import report
from .config import ModelConfig
from .families import language_model
from .gguf_source import Gguf
from .names import usual_name
from .plan import TYPE_NAMES, Entry, make_plan
from .quantize import CODEBOOK
from .quantized import decode
from .shapes import SHAPES
from .sources import CONVERT, PICKLES, Safetensors, Source, read_json
from .stream import Packer, Progress, random_tensors, source_tensors
from .text_fields import text_fields
from .tokenizer import Compiled, bounded_gguf_tokenizer, bounded_tokenizer
from .workers import Workers, processors
from .writer import Front, Output, find_target, finished, layout, tensor_bytes, write_checkpoint

# ---- source


# What a source is read from. model.bin beside them is none of its files.
SOURCE_FILES = (".safetensors", ".json", ".gguf", ".jinja", ".model", ".tiktoken")


class Opened(NamedTuple):
    """A source. values: its config.json, or what that would say; config_path: where that is written;
    directory: where texts beside it may be, None for a GGUF file; metadata: of a GGUF file."""

    source: Source
    values: dict[str, Any]
    config_path: str
    directory: str | None
    metadata: dict[str, Any]


def open_source(path: str) -> Opened:
    """Raises ExportError, OSError."""
    if os.path.isfile(path):
        return open_file(path)
    if not os.path.isdir(path):
        name = os.path.basename(path)
        hint = ""
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
            hint = (
                f"; is it a name on Hugging Face? `hf download {path} --local-dir {name}`, then give {name}"
            )
        raise ExportError(f"{path}: no such directory or file{hint}")
    config_path, params_path = os.path.join(path, "config.json"), os.path.join(path, "params.json")
    if os.path.exists(params_path) and not os.path.exists(config_path):
        source = Safetensors(path, "consolidated", mistral.transformers_name)
        return Opened(source, mistral.config(read_json(params_path), params_path), params_path, path, {})
    source = Safetensors(path, rename=usual_name)
    values = language_model(read_json(config_path), config_path)
    return Opened(source, values, config_path, path, {})


def open_file(path: str) -> Opened:
    if path.endswith(PICKLES):
        raise ExportError(f"{path}: {CONVERT}")
    if path.endswith(".safetensors"):
        raise ExportError(f"{path}: give the directory that it is in: config.json is needed, too")
    source = Gguf(path)
    values, assumed = gguf_config.config(source)
    if assumed:
        warn(f"{path} does not say, and no published model has its shape; taken: {', '.join(assumed)}")
    return Opened(source, values, path, None, source.metadata)


# ---- export


def refuse_source(out_path: str, path: str) -> None:
    """The checkpoint must not replace a file of its source, nor be taken for one by the next export."""
    target = find_target(out_path).path
    if os.path.isdir(path):
        places = [p for p in (os.path.abspath(out_path), target) if p.endswith(SOURCE_FILES)]
        if os.path.realpath(path) in (os.path.realpath(os.path.dirname(p)) for p in places):
            raise ExportError(f"{out_path}: lies among the source's files; choose another name")
    elif os.path.exists(path) and os.path.exists(target) and os.path.samefile(path, target):
        raise ExportError(f"{out_path}: is the source itself; choose another name")


def readable_tokenizer(where: str, read: Callable[[], Compiled | None], without: str) -> Compiled | None:
    """What `read` gives. Raises ExportError if it cannot be used; `without` says how to do without it."""
    try:
        return read()
    except (ExportError, OSError) as error:
        raise ExportError(
            f"{where}: the tokenizer cannot be used: {printable(error, 300)}; {without}"
        ) from None


def compiled_tokenizer(opened: Opened) -> Compiled | None:
    """None, with a warning, if the source has no tokenizer: the model still runs on --ids."""
    where, directory = opened.source.directory, opened.directory
    compiled = readable_tokenizer(
        where,
        lambda: bounded_tokenizer(directory) if directory else bounded_gguf_tokenizer(opened.metadata),
        "--no-tokenizer exports the model without it (--ids is then the only prompt)",
    )
    if compiled is None:
        warn(f"{where} has no tokenizer: the checkpoint takes --ids alone as a prompt")
    return compiled


def chat_section(opened: Opened) -> bytes:
    def template() -> Found:
        if opened.directory:
            return find_template(opened.directory, opened.values.get("model_type"))
        return gguf_template(opened.metadata, opened.values.get("model_type"))

    return compile_chat(template, warn)


def with_begin(config: ModelConfig, begin: tuple[int, ...] | None) -> ModelConfig:
    """Where no configuration says whether a text begins with a token, the tokenizer does."""
    if begin is None:
        return config
    if len(begin) > 1 or any(i >= config.vocab_size for i in begin):
        ids = printable(" ".join(map(str, begin)), 40)
        warn(
            f"the tokenizer puts the tokens {ids} before a text, and a checkpoint can say one: none is added"
        )
        begin = ()
    first = begin[0] if begin else config.bos_token_id
    return dataclasses.replace(config, add_bos_token=len(begin), bos_token_id=first)


class Job(NamedTuple):
    """A source that is understood, and what its checkpoint is made of."""

    opened: Opened
    config: ModelConfig
    front: Front
    entries: list[Entry]


class Options(NamedTuple):
    """type: of the matrices, as --type has it. mtp: with the multi-token prediction layer. rotation: of the
    latent. tokenizer, chat: whether to take them."""

    type: str
    mtp: bool = False
    rotation: bool = True
    tokenizer: bool = True
    chat: bool = True


def understand(path: str, options: Options) -> Job:
    """Everything that can be refused, without a weight read. Raises ExportError, OSError."""
    opened = open_source(path)
    source = opened.source
    name = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", os.path.basename(os.path.abspath(path)))
    config = model_config.parse(opened.values, name, opened.config_path, source.has)
    text = text_fields(opened.values, config.vocab_size, opened.directory)
    if options.mtp and (config.kda_heads or config.sliding_window):
        kind = "residual streams" if config.sliding_window else "linear attention"
        raise ExportError(f"{path}: the MTP layer of a model with {kind} is not read: leave --mtp out")
    config = dataclasses.replace(config, **text, mtp_layers=int(options.mtp))
    decode(source, config.block)
    entries = make_plan(config, options.type, source, options.mtp, options.rotation)
    compiled = compiled_tokenizer(opened) if options.tokenizer else None
    section, template = b"", b""
    if compiled:
        config = with_begin(config, compiled.begin)
        section, template = compiled.section, chat_section(opened) if options.chat else b""
    return Job(opened, config, Front(config.packed(), section, template), entries)


def identity(job: Job) -> bytes:
    """Equal for exports that write the same bytes: of the same files, unchanged, into the same tensors."""
    found = hashlib.sha256(repr((CODEBOOK.tobytes(), *job.front)).encode())
    for file in job.opened.source.files:
        found.update(repr((os.path.basename(file.path), file.size, file.changed)).encode())
    for entry in job.entries:
        for value in vars(entry).values():
            found.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return found.digest()


def export_source(
    path: str | os.PathLike[str], out_path: str | os.PathLike[str], options: Options, resume: bool = False
) -> None:
    """Makes the checkpoint `out_path` of the source `path`. resume: what an export that was ended has written
    is used, and if this one is ended it is kept. Raises ExportError, OSError."""
    path, out_path = os.fspath(path), os.fspath(out_path)
    refuse_source(out_path, path)
    output = Output(out_path, resume)
    job = understand(path, options)
    source = job.opened.source
    with output as out:
        lines = finished(out, job.front, job.entries, identity(job)) if resume else {}
        left = [entry for i, entry in enumerate(job.entries) if i not in lines]
        with Workers(Packer(left, source), processors()) as workers:
            tensors = source_tensors(left, workers, Progress(sum(map(tensor_bytes, left))))
            write_checkpoint(out, job.front, job.entries, tensors, lines)
        source.check_unchanged()


def export_random(
    shape: str,
    out_path: str | os.PathLike[str],
    type_name: str,
    layers: int | None,
    seed: int,
    tokenizer: str | None = None,
) -> None:
    """A checkpoint of a published shape with random weights. layers: the first so many alone. tokenizer: a
    directory whose tokenizer and chat template it gets; the text that it writes has no meaning."""
    output = Output(out_path)
    values = SHAPES[shape]
    config = model_config.parse(values, shape, shape)
    text = text_fields(values, config.vocab_size, tokenizer)
    config = dataclasses.replace(config, **text, num_hidden_layers=layers or config.published_layers)
    section, template = b"", b""
    if tokenizer:
        directory = tokenizer
        compiled = readable_tokenizer(
            directory, lambda: bounded_tokenizer(directory), "leave --tokenizer out"
        )
        if compiled is None:
            raise ExportError(f"{tokenizer}: has no tokenizer")
        config = with_begin(config, compiled.begin)
        section = compiled.section
        template = compile_chat(lambda: find_template(directory, values.get("model_type")), warn)
    entries = make_plan(config, type_name)
    with output as out:
        tensors = random_tensors(entries, seed, Progress(sum(map(tensor_bytes, entries))))
        write_checkpoint(out, Front(config.packed(), section, template), entries, tensors)


# ---- check


def print_check(path: str, options: Options) -> None:
    """On standard output: what the source is, what of it would be exported, and what each type takes."""
    job = understand(path, options)
    sizes = {}
    for name in ("mixed", *TYPE_NAMES):
        entries = make_plan(job.config, name, job.opened.source, options.mtp, options.rotation)
        sizes[name] = layout(entries, *map(len, job.front)).end
    print("\n".join(report(job.config, job.opened.source, job.front, job.entries, sizes)))


# ---- options


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {message}; try {PROGRAM} --help\n")


def parser_of_options() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} SOURCE OUT [options]\n       {PROGRAM} --check SOURCE [options]\n"
        f"       {PROGRAM} --random SHAPE OUT [options]",
        allow_abbrev=False,
        description="Makes the checkpoint OUT of the model in SOURCE, or one with random weights in a "
        "published SHAPE.",
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        metavar="SOURCE OUT",
        help="directory with config.json and *.safetensors, or GGUF file; file to write",
    )
    add(
        "--type",
        default="mixed",
        choices=["mixed", *TYPE_NAMES],
        help="of every matrix; mixed (the default): 4 bits for MLPs and experts, 8 for the rest",
    )
    add("--mtp", action="store_true", help="carry the multi-token prediction layer along")
    add(
        "--no-rotation",
        action="store_true",
        help="leave the latent as it is; q8, q4 and mixed rotate it (f32 and bf16 never do), "
        "so that ./run -k q6 and q4 lose less",
    )
    add(
        "--no-tokenizer",
        action="store_true",
        help="leave the tokenizer out, and the chat template: --ids is then the only prompt",
    )
    add("--no-chat", action="store_true", help="leave the chat template out")
    add(
        "--resume",
        action="store_true",
        help="go on where an export that was ended stopped, and keep what is finished if this one is ended, "
        "in OUT.partial",
    )
    add(
        "--check",
        action="store_true",
        help="say what would be exported, and the size of each type; write nothing",
    )
    add("--random", metavar="SHAPE", choices=SHAPES, help="one of " + ", ".join(SHAPES))
    add("--layers", type=int, metavar="N", help="with --random: the first N layers alone")
    add("--seed", type=int, metavar="N", help="with --random: another draw (default 0)")
    add("--tokenizer", metavar="DIR", help="with --random: the tokenizer and chat template of a directory")
    return parser


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Wrong usage ends the program with status 2."""
    parser = parser_of_options()
    args = parser.parse_args(argv)
    wanted = ["OUT"] if args.random else ["SOURCE"] if args.check else ["SOURCE", "OUT"]
    if len(args.paths) != len(wanted):
        parser.error(f"{' and '.join(wanted)} expected, {len(args.paths)} paths given")
    if not args.random and any(x is not None for x in (args.layers, args.seed, args.tokenizer)):
        parser.error("--layers, --seed and --tokenizer go with --random")
    of_source = ("mtp", "no_rotation", "no_tokenizer", "no_chat", "resume", "check")
    given = [f"--{name.replace('_', '-')}" for name in of_source if getattr(args, name)]
    if args.random and given:
        parser.error(f"{given[0]} does not go with --random")
    if args.check and args.resume:
        parser.error("--resume does not go with --check")
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


def ended(number: int, _: object) -> NoReturn:
    """A signal ends the program as an exception, so that the temporary file goes."""
    sys.exit(128 + number)


def catch_signals() -> None:
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, ended)


def main(argv: list[str] | None = None) -> int:
    """argv: without the program's name; None: the process's own. The exit status: 0 done, 1 failed, 130 after
    Ctrl-C; 143 after SIGTERM, as an exception."""
    args = arguments(argv)
    out = args.paths[-1]
    catch_signals()
    try:
        if args.random:
            export_random(args.random, out, args.type, args.layers, args.seed or 0, args.tokenizer)
        else:
            rotation = args.type not in ("f32", "bf16") and not args.no_rotation
            take = Options(args.type, args.mtp, rotation, not args.no_tokenizer, not args.no_chat)
            if args.check:
                print_check(args.paths[0], take)
            else:
                export_source(args.paths[0], out, take, args.resume)
        return 0
    except ExportError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{PROGRAM}: {error.filename or out}: {error.strerror or error}", file=sys.stderr)
    except MemoryError:
        print(f"{PROGRAM}: out of memory", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # a defect of this program, whatever the source is like
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(at.filename)}:{at.lineno}"
        what = f"{type(error).__name__} at {where}: {printable(error)}"
        print(f"{PROGRAM}: {what}; please report this", file=sys.stderr)
    return 1
