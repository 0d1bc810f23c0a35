"""Many texts in one run (--prompts, --samples, --choose, --from): each is what it is alone.

The judge of a line is ./run with that prompt and seed and nothing beside it; of choices, the logits of
the whole text (--logits) and numpy's logarithms; of what comes behind a session, a run with --session on
a copy."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import compare
import numpy as np
import pytest
from support import FAILED, INTERRUPTED, MODEL, MODELS, ROOT, RUN, USAGE, refused, run, text
from test_chat import TEMPLATES, quick_export, source

SAMPLED = ["-t", "1", "--top-p", "0.9", "--repeat-penalty", "1.2", "--stop", "was so", "-n", "14"]
WORDS = (
    "Once upon a time there was little dog Tom saw the big red \u00e9l\u00e8ve \\n \\ and <s> 12 ,".split()
)


def prompts_of(n, longest=90, seed=1):
    """Lines of any kind: empty, with white space at the ends, bytes that are no UTF-8, short and long ones;
    and some of more than 112 tokens, which are read in another way than short ones."""
    r = random.Random(seed)
    lines = [b"", b" ", b"\xff\xfe\x80", b"a\x00b", b"\tOnce\r", b"Once upon a time"]
    while len(lines) < n:
        words = r.choices(WORDS, k=r.choice([1, 3, 5, 8, 20, longest]))
        lines.append(" ".join(words).encode())
    return lines


def plain(line):
    """An answer as it is, from its line."""
    return re.sub(rb"\\(.)", lambda m: {b"n": b"\n", b"r": b"\r", b"\\": b"\\"}[m[1]], line, flags=re.DOTALL)


def answers(done):
    """Of a run whose lines are whole."""
    assert done.stdout == b"" or done.stdout.endswith(b"\n")
    return [plain(line) for line in done.stdout.split(b"\n")[:-1]]


def batch(lines, *options, status=0, **how):
    done = run("--prompts", "-", *options, stdin=b"".join(line + b"\n" for line in lines), **how)
    assert done.returncode == status, done.stderr.decode()
    return answers(done)


def alone(line, *options, **how):
    """NUL bytes cannot stand on a command line."""
    return text("-f", "-", *options, stdin=line, **how)


# ---- the same text


@pytest.fixture(scope="module")
def sixty():
    lines = prompts_of(60)
    return lines, [alone(line, *SAMPLED, "-s", 100 + i) for i, line in enumerate(lines)]


@pytest.mark.parametrize("parallel, threads", [(1, 2), (7, 1), (130, 2)])
def test_each_line_is_what_it_is_alone(parallel, threads, sixty):
    lines, want = sixty
    assert batch(lines, *SAMPLED, "-s", 100, "--parallel", parallel, "-j", threads) == want


@pytest.mark.parametrize("cut", [{"MLA_CHUNK": "5"}, {"MLA_PAGES": "8"}, {"MLA_ISA": "portable"}], ids=str)
def test_calls_memory_and_instructions_do_not_matter(cut, sixty):
    """Small calls cut prompts anywhere; few pages make texts wait for others."""
    lines, want = sixty
    got = batch(lines[:30], *SAMPLED, "-s", 100, "-c", 512, env={**os.environ, **cut})
    assert got == want[:30]


@pytest.mark.parametrize("cache", ["f32", "bf16", "q6", "q4", "full"])
def test_every_cache_type(cache):
    lines = prompts_of(12, seed=2)
    want = [alone(line, *SAMPLED, "-s", i, "-k", cache) for i, line in enumerate(lines)]
    assert batch(lines, *SAMPLED, "-s", 0, "-k", cache, "--parallel", 5) == want


@pytest.mark.parametrize("pages", ["", "9"], ids=["much memory", "few pages"])
@pytest.mark.parametrize("name", ["v2_236b", "v32", "glm52", "kimi_linear"])
def test_every_kind_of_attention(name, pages, export):
    """Sparse ones, and linear ones, whose sequences have a constant part that forks and rewinds take along.
    Prompts by ids, short ones and long ones, with samples."""
    model = export(MODELS / name, "mixed")
    r = random.Random(6)
    prompts = [[r.randrange(30) for _ in range(n)] for n in (1, 20, 113, 112, 260, 150, 3)]
    options = ["-n", 7, "-t", 1, "--repeat-penalty", "1.3", "--ignore-eos", "-c", 420]
    lines = [{"ids": ids, "seed": 50 + i} for i, ids in enumerate(prompts)]
    for parallel in (1, 5):
        done = run(
            *("--batch", "-", *options, "--samples", 3, "--parallel", parallel),
            stdin="".join(json.dumps(line) + "\n" for line in lines).encode(),
            model=model,
            env={**os.environ, "MLA_PAGES": pages},
        )
        assert done.returncode == 0, done.stderr
        replies = [json.loads(line) for line in done.stdout.splitlines()]
        got = [sample["ids"] for reply in replies for sample in reply["samples"]]
        want = [
            [
                int(i)
                for i in text("--ids", " ".join(map(str, ids)), *options, "-s", seed, model=model).split()
            ]
            for n, ids in enumerate(prompts)
            for seed in range(50 + n, 53 + n)
        ]
        assert got == want


def test_a_model_without_tokenizer(export):
    """It takes no lines of text, and says so for each."""
    done = run("--prompts", "-", stdin=b"a\nb\n", model=export(MODELS / "v32", "f32"))
    assert (done.returncode, done.stdout) == (FAILED, b"\n\n")
    assert done.stderr.count(b"no tokenizer") == 2


# ---- lines


def test_nothing_is_interpreted(tmp_path):
    """Every byte but the line feed belongs to the prompt; the last line may lack its end."""
    lines = [b"\\n\\t\\x41", b"", b"a\rb\r", b"\0", b"\xc3", b"<s>"]
    want = [alone(line, "-t", 0, "-n", 4) for line in lines]
    assert batch(lines, "-t", 0, "-n", 4) == want
    (tmp_path / "file").write_bytes(b"\n".join(lines))
    assert answers(run("--prompts", tmp_path / "file", "-t", 0, "-n", 4)) == want
    assert answers(run("--prompts", "/dev/null")) == []


def test_answers_are_lines():
    """Line feed, carriage return and backslash in an answer are \\n, \\r and \\\\: of nearly random tokens
    some are there."""
    options = ["-t", 100, "--top-p", 1, "-n", 450, "--ignore-eos"]
    want = [text("-p", "a", *options, "-s", seed) for seed in range(8)]
    assert answers(run("-p", "a", *options, "-s", 0, "--samples", 8)) == want
    assert all(any(c in answer for answer in want) for c in (b"\n", b"\\"))


def test_a_line_that_does_not_fit():
    """An empty answer and a line with its number; the others go on."""
    lines = [b"Once", b"word " * 600, b"Once"]
    done = run("--prompts", "-", "-t", 0, "-n", 5, stdin=b"\n".join(lines))
    once = alone(b"Once", "-t", 0, "-n", 5)
    assert (done.returncode, answers(done)) == (FAILED, [once, b"", once])
    wrong = [line for line in done.stderr.splitlines() if line.startswith(b"run: ")]
    assert len(wrong) == 1 and b"line 2: " in wrong[0] and b"context of 512" in wrong[0]


def test_a_line_that_is_too_long():
    """64 MB are no prompt. Memory stays bounded, and the lines behind it are answered."""
    process = subprocess.Popen(
        [RUN, MODEL, "--prompts", "-", "-t", "0", "-n", "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    block = b"x" * (1 << 20)
    for _ in range(65):
        process.stdin.write(block)
    out, err = process.communicate(b"\nOnce\n", timeout=100)
    assert process.returncode == FAILED and b"line 1: longer than" in err
    assert out == b"\n" + alone(b"Once", "-t", 0, "-n", 3) + b"\n"


def test_the_context_fills_up():
    long = b"word " * 220
    want = alone(long, "-t", 0, "-n", -1, "--ignore-eos")
    assert batch([b"a", long], "-t", 0, "-n", -1, "--ignore-eos")[1] == want
    assert batch([long], "-t", 0, "-n", -1, "--ignore-eos", "-c", 300)[0] == alone(
        long, "-t", 0, "-n", -1, "--ignore-eos", "-c", 300
    )


def test_no_begin_token():
    """An empty line has nothing to start from then."""
    got = batch([b"Once", b""], "--no-bos", "-t", 0, "-n", 5, status=FAILED)
    assert got == [alone(b"Once", "--no-bos", "-t", 0, "-n", 5), b""]


# ---- samples


def test_samples(tmp_path):
    """N consecutive answers for a line, seeds s + i N + k; one prompt gives lines, too."""
    lines = prompts_of(9, seed=3)
    got = batch(lines, *SAMPLED, "-s", 7, "--samples", 3)
    assert got == [
        alone(line, *SAMPLED, "-s", 7 + 3 * i + k) for i, line in enumerate(lines) for k in range(3)
    ]
    for pages in ("8", "9"):
        env = {**os.environ, "MLA_PAGES": pages}
        assert batch(lines, *SAMPLED, "-s", 7, "--samples", 3, "-c", 512, env=env) == got
    done = run("-p", "Once upon", "--samples", 5, *SAMPLED, "-s", 4)
    assert answers(done) == [text("-p", "Once upon", *SAMPLED, "-s", 4 + k) for k in range(5)]
    (tmp_path / "file").write_bytes(b"Once\nupon")
    done = run("-f", tmp_path / "file", "--samples", 2, *SAMPLED, "-s", 4)
    assert answers(done) == [alone(b"Once\nupon", *SAMPLED, "-s", 4 + k) for k in range(2)]
    assert answers(run("--samples", 2, "-n", 5, "-s", 1)) == [text("-n", 5, "-s", 1 + k) for k in range(2)]


def test_the_prompt_of_samples_is_read_once():
    done = run("-p", "Once upon a time", "--samples", 8, "-n", 2)
    assert re.search(rb"prompts (\d+) tokens", done.stderr)[1] == b"5"


def test_seeds_are_random_without_s():
    done = [run("-p", "Once", "--samples", 3, "-t", 1, "-n", 12) for _ in range(2)]
    assert done[0].stdout != done[1].stdout
    seed = re.search(rb"seed (\d+)", done[0].stderr)[1]
    assert text("-p", "Once", "--samples", 3, "-t", 1, "-n", 12, "-s", seed) == done[0].stdout


def test_a_broken_run_goes_on(tmp_path):
    """--first N writes from line N of the output on, whatever is one line: the whole is what it would have
    been."""
    lines = prompts_of(8, seed=4)
    for samples in (1, 3):
        options = [*SAMPLED, "-s", 5, "--samples", samples]
        whole = batch(lines, *options)
        for first in (1, 2, 5, 8 * samples, 8 * samples + 1):
            assert batch(lines, *options, "--first", first) == whole[first - 1 :]


# ---- choices


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """sums(prompt, choices): the summed log-probability of each choice behind the prompt."""
    out = tmp_path_factory.mktemp("choices") / "logits"

    def ids(what):
        return [int(i) for i in text("--tokenize", what).split()]

    def sums(prompt, choices, *options):
        found = []
        for choice in choices:
            before, behind = [0, *ids(prompt)], ids(choice)
            run("--ids", " ".join(map(str, before + behind)), "--logits", out, *options)
            x = np.fromfile(out, np.float32).reshape(len(before + behind), -1).astype(np.float64)
            x = (
                x
                - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
                - x.max(1, keepdims=True)
            )
            places = range(len(before) - 1, len(before) + len(behind) - 1)
            found.append(sum(x[place, token] for place, token in zip(places, behind, strict=True)))
        return found

    return sums


CHOICES = [" happy", " sad and wanted to go home", " red", "\n", " a big dog", " x"]


@pytest.mark.parametrize("parallel", [1, 4, 32])
def test_choices(parallel, vocabulary):
    """The likeliest by the logits of the whole text."""
    prompts = ["Tom was", "The ball is", "She saw", "One day", ""]
    given = [word for choice in CHOICES for word in ("--choose", choice)]
    want = []
    for prompt in prompts:
        sums = vocabulary(prompt, CHOICES)
        assert sorted(sums)[-1] - sorted(sums)[-2] > 1e-3, "too close for two ways of computing it"
        want.append(CHOICES[int(np.argmax(sums))].strip().encode())
    assert batch([p.encode() for p in prompts], *given, "--parallel", parallel) == want
    assert text("-p", prompts[0], *given) == want[0] + b"\n"


def test_equal_choices_go_by_order():
    """Text of the same tokens: the first is written. White space at the ends is not."""
    assert text("-p", "Tom was", "--choose", " so\n", "--choose", " so\n") == b"so\n"


def test_choices_need_a_token():
    done = run("-p", "Tom was", "--choose", "", "--choose", " b")
    assert done.returncode == USAGE and b"--choose" in done.stderr


# ---- a session that many begin with


@pytest.fixture(params=[0, 3], ids=["prompt", "prompt and text"])
def session(request, tmp_path):
    """Ends behind a prompt, whose logits it holds, or with a token that is not in the cache yet."""
    path = tmp_path / "session"
    prompt = "The little dog ran to the park. " * 18
    text("-p", prompt, "-n", request.param, "-s", 3, "--session", path)
    return path


def behind(session, line, *options):
    """What --session on a copy gives."""
    copy = session.with_name("copy")
    shutil.copyfile(session, copy)
    return alone(line, *options, "--session", copy)


def test_from(session):
    """Alone, in a batch and as samples: as --session, with its penalty of the last 64 tokens, but FILE stays
    as it is, also where nobody may write it."""
    before = session.read_bytes()
    session.chmod(0o444)
    lines = [b" Tom", b"", b" She saw a big", b" park " * 30]
    want = [behind(session, line, *SAMPLED, "-s", 9 + i) for i, line in enumerate(lines)]
    assert [alone(line, *SAMPLED, "-s", 9 + i, "--from", session) for i, line in enumerate(lines)] == want
    for parallel in (1, 3):
        assert batch(lines, *SAMPLED, "-s", 9, "--from", session, "--parallel", parallel) == want
    done = run("-p", " Tom", "--samples", 3, *SAMPLED, "-s", 9, "--from", session)
    assert answers(done) == [behind(session, b" Tom", *SAMPLED, "-s", 9 + k) for k in range(3)]
    assert session.read_bytes() == before and sorted(os.listdir(session.parent)) == ["copy", "session"]


def test_from_goes_on_with_the_random_numbers(session):
    assert alone(b" Tom", *SAMPLED, "--from", session) == behind(session, b" Tom", *SAMPLED)


def test_from_is_not_locked(session):
    """Many runs read it at once, also while one with --session has it."""
    holder = subprocess.Popen(
        [RUN, MODEL, "--session", session, "-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    time.sleep(0.3)
    assert run("-p", " Tom", "-n", 3, "--from", session).returncode == 0
    holder.communicate(b"", timeout=60)


def test_from_refuses_what_is_no_session(tmp_path, session):
    refused(run("--from", tmp_path / "none", "-p", "a"), FAILED, "none", "No such file")
    refused(run("--from", MODEL, "--prompts", "/dev/null"), FAILED, "not a session")
    refused(run("--from", tmp_path, "-p", "a"), FAILED, str(tmp_path))
    refused(run("--from", session, "-p", "a", "-k", "f32"), FAILED, "-k q8")
    (tmp_path / "short").write_bytes(session.read_bytes()[:-1])
    refused(run("--from", tmp_path / "short", "-p", "a"), FAILED, "cut short")
    refused(run("--from", "", "-p", "a"), USAGE, "--from")


# ---- ends


def test_answers_come_at_once():
    """A pipe that waits for an answer before it sends the next line gets it."""
    process = subprocess.Popen(
        [RUN, MODEL, "--prompts", "-", "-t", "0", "-n", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for line in (b"Once\n", b"Tom\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert plain(process.stdout.readline()[:-1]) == alone(line[:-1], "-t", 0, "-n", 5)
    assert process.communicate(timeout=60)[0] == b"" and process.returncode == 0


def endless(**how):
    lines = b"Once upon a time\nTom\nThe dog\n" * 1000
    process = subprocess.Popen(
        [RUN, MODEL, "--prompts", "-", "-s", "1", "-n", "30", "--parallel", "4"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    process.stdin.write(lines[:50000])
    process.stdin.flush()
    return process


@pytest.fixture(scope="module")
def beginning():
    """The first answers of endless()."""
    return batch([b"Once upon a time", b"Tom", b"The dog"] * 20, "-s", 1, "-n", 30)


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signals_leave_whole_lines(number, status, beginning):
    """Every line that was written is whole and right, and what killed the run lost none."""
    process = endless()
    lines = [process.stdout.readline() for _ in range(5)]
    process.send_signal(number)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == status
    whole = b"".join(lines) + rest
    assert whole.endswith(b"\n")
    got = [plain(line) for line in whole.split(b"\n")[:-1]]
    assert len(got) < 3000 and got[:60] == beginning[: len(got)]
    assert number == signal.SIGKILL or re.search(rb"\d+ answers.*seed 1\n$", err)


def test_a_reader_that_leaves():
    process = endless()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")


def test_a_full_disk():
    with open("/dev/full", "wb") as full:
        done = run("--prompts", "-", "-n", 3, stdin=b"a\n", stdout=full)
    assert done.returncode == FAILED and b"No space left" in done.stderr


def test_bench_with_many_texts():
    """A line for each number of texts at each context that the model allows."""
    lines = text("--bench", "--parallel", "1,3", "-c", "64", "--csv").decode().splitlines()
    names, *rows = (line.split(",") for line in lines)
    rows = [dict(zip(names, map(float, row), strict=True)) for row in rows]
    assert [(row["texts"], row["context"]) for row in rows] == [(1, 0), (3, 0)]
    one, three = rows
    assert one["rows_per_expert"] == 1 <= three["rows_per_expert"] <= 3
    assert 1 < three["bytes"] / one["bytes"] < 3 and 2.9 < three["multiply_adds"] / one["multiply_adds"] < 3.1
    for row in rows:
        bound = min(row["read_bound"], row["product_bound"])
        assert row["share"] == pytest.approx(row["tokens_per_s"] / bound, rel=0.01)


# ---- which options go together

TOGETHER = [
    (["--prompts", "x", "-p", "a"], "-p", "--prompts"),
    (["--prompts", "x", "-f", "a"], "-f", "--prompts"),
    (["--prompts", "x", "--ids", "1"], "--ids", "--prompts"),
    (["--prompts", "x", "--echo"], "--echo", "--prompts"),
    (["--prompts", "x", "--session", "a"], "--session", "--prompts"),
    (["--prompts", "x", "--logits", "a"], "--logits", "--prompts"),
    (["--prompts", "x", "--info"], "--info", "--prompts"),
    (["--prompts", "x", "--system", "a"], "--system", "--chat"),
    (["--prompts", "x", "--chat", "--special"], "--special", "--chat"),
    (["--prompts", "x", "--chat", "--no-bos"], "--no-bos", "--chat"),
    (["--prompts", "x", "--batch", "y"], "--prompts", "--batch"),
    (["--samples", "2", "--session", "a"], "--session", "--samples"),
    (["--samples", "2", "--ids", "1"], "--ids", "--samples"),
    (["--samples", "2", "--echo"], "--echo", "--samples"),
    (["--choose", "a", "--samples", "2"], "--samples", "--choose"),
    (["--choose", "a", "-n", "2"], "-n", "--choose"),
    (["--choose", "a", "-t", "0"], "-t", "--choose"),
    (["--choose", "a", "-s", "1"], "-s", "--choose"),
    (["--choose", "a", "--stop", "x"], "--stop", "--choose"),
    (["--choose", "a", "-p", "a", "--prompts", "x"], "-p", "--prompts"),
    (["--choose", "a", "--batch", "x"], "--choose", "--batch"),
    (["--from", "x", "--session", "y"], "--from", "--session"),
    (["--from", "x", "--logits", "y"], "--from", "--logits"),
    (["--chat", "--samples", "2"], "--chat", "--samples"),
    (["--bench", "--parallel", "1,2", "--profile"], "--profile", "--parallel"),
]


@pytest.mark.parametrize(
    "options, one, other", TOGETHER, ids=lambda x: " ".join(x) if type(x) is list else None
)
def test_what_does_not_go_together(options, one, other):
    """Refused with a line that names both."""
    refused(run(*options), USAGE, one, other)


WRONG = [
    ["--parallel", "4"],
    ["--first", "2"],
    ["--prompts", "x", "--parallel", "0"],
    ["--prompts", "x", "--parallel", "1025"],
    ["--prompts", "x", "--parallel", "1,2"],
    ["--prompts", "x", "--parallel", "1,"],
    ["--prompts", "x", "--samples", "0"],
    ["--prompts", "x", "--samples", "-1"],
    ["--prompts", "x", "--first", "0"],
    ["--prompts"],
    ["--choose"],
]


@pytest.mark.parametrize("options", WRONG, ids=" ".join)
def test_wrong_values(options):
    refused(run(*options), USAGE, options[-2] if len(options) > 1 else options[0])


# ---- conversations


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """chat(family): a checkpoint with the chat template of a family. Made once."""
    made = {}

    def make(family):
        if family not in made:
            folder = source(tmp_path_factory.mktemp("chat") / family, TEMPLATES[family])
            compare.export(folder, folder / "model.bin", "--type", "q8")
            made[family] = folder / "model.bin"
        return made[family]

    return make


LONG_SYSTEM = "You are a helpful assistant, and you answer in one word. " * 4  # a token is a byte


@pytest.mark.parametrize("family", ["V2", "V3", "R1", "Kimi", "GLM", "MiniCPM3", "LongCat"])
@pytest.mark.parametrize("system", [None, LONG_SYSTEM], ids=["no system", "system"])
def test_lines_are_first_turns(family, system, chat):
    """What --chat -p gives, without the newline behind it; the opening is computed once. White space at the
    ends and texts that look like marks are as in a conversation."""
    model = chat(family)
    turns = ["Hello", " b \t", "<think>x</think>", "a" * 150, "Who?"] * 2
    options = ["--chat", *(["--system", system] if system else []), "-t", 1, "-n", 12, "-c", 700]
    want = [text(*options, "-p", turn, "-s", 5 + i, model=model)[:-1] for i, turn in enumerate(turns)]
    for parallel in (1, 4):
        lines = [turn.encode() for turn in turns]
        assert batch(lines, *options, "-s", 5, "--parallel", parallel, model=model) == want
    shown = text(*options, "-p", "Hello", "--samples", 3, "-s", 5, model=model).split(b"\n")[:-1]
    assert [plain(line) for line in shown] == [
        text(*options, "-p", "Hello", "-s", 5 + k, model=model)[:-1] for k in range(3)
    ]


def test_a_shared_opening_is_computed_once(chat):
    model = chat("V3")
    done = run(
        *("--prompts", "-", "--chat", "--system", LONG_SYSTEM, "-n", 2, "--parallel", 3),
        stdin=b"a\nb\nc\nd\ne\n",
        model=model,
    )
    read, shared = map(int, re.search(rb"prompts (\d+) tokens and (\d+) shared", done.stderr).groups())
    opening = 1 + len(LONG_SYSTEM) + 1  # the mark of the user belongs to it
    assert (read, shared) == (opening + 5 * 2, 4 * opening)


@pytest.mark.parametrize("pages", ["8", "9"])
def test_openings_give_way_when_pages_are_few(pages, chat):
    """No page is free for a text unless a kept opening is forgotten."""
    model = chat("V3")
    options = ["--chat", "--system", LONG_SYSTEM, "-t", 1, "-n", 60, "-s", 1, "-c", "512"]
    lines = [b"a" * n for n in (1, 120, 180, 3, 70)]
    want = batch(lines, *options, model=model)
    env = {**os.environ, "MLA_PAGES": pages}
    assert batch(lines, *options, "--samples", 1, model=model, env=env) == want


def test_a_conversation_goes_on_from_a_session(chat, tmp_path):
    """--from with --chat: each line is the next turn of the same conversation."""
    model, session = chat("V3"), tmp_path / "talk"
    text("--chat", "-p", "Hello", "-n", 5, "-s", 2, "--session", session, model=model)
    turns, want = ["And?", "a" * 130, "So"], []
    for i, turn in enumerate(turns):
        shutil.copyfile(session, tmp_path / "copy")
        options = ["--chat", "-t", 1, "-n", 9, "-s", 3 + i, "-p", turn]
        want.append(text(*options, "--session", tmp_path / "copy", model=model)[:-1])
        assert text(*options, "--from", session, model=model)[:-1] == want[-1]
    options = ["--chat", "-t", 1, "-n", 9, "-s", 3, "--from", session]
    assert batch([turn.encode() for turn in turns], *options, model=model) == want
    (tmp_path / "text").unlink(missing_ok=True)
    text("-p", "a", "-n", 1, "--session", tmp_path / "text", model=model)
    refused(
        run(*options[:-1], tmp_path / "text", "-p", "a", model=model), FAILED, "no conversation", "--from"
    )
    refused(
        run("--prompts", "/dev/null", *options[:-1], tmp_path / "text", model=model),
        FAILED,
        "no conversation",
    )


def test_a_model_without_template(tmp_path):
    model = quick_export(source(tmp_path / "model", None), tmp_path / "model.bin")
    refused(run("--chat", "--prompts", "/dev/null", model=model), FAILED, "no chat template", "--chat")


VALUES = {
    **dict.fromkeys("-n -c --top-k -s --samples --parallel --first".split(), "1"),
    **dict.fromkeys("-t --top-p --min-p --repeat-penalty".split(), "0.5"),
    **dict.fromkeys("-p -f --prompts --from --session --system --stop --choose --batch".split(), "x"),
    "--ids": "1",
    "-k": "q8",
    "--think": "on",
}


def test_the_documented_table():
    """doc/batch.md says of every option whether it goes with each use; the program agrees. A model that does
    not exist is found out after the options."""
    rows = [line for line in (ROOT / "doc" / "batch.md").read_text().splitlines() if line.startswith("| ")]
    uses, *rows = ([cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows)
    given = lambda name: [name, VALUES[name]] if name in VALUES else [name]
    for option, *cells in rows:
        for use, cell in zip(uses[1:], cells, strict=True):
            words = given(use) if use != "a text" else []
            words += [] if option == use else given(option)
            if option in ("--system", "--think") and use not in ("--chat", "--batch"):
                words += ["--chat"] if cell else []
            status = run(*words, model="no such file").returncode
            assert status == (FAILED if cell == "yes" else USAGE), (words, cell)
    assert len(rows) > 20 and len(uses) == 7
