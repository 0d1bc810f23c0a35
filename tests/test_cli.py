"""What the command line promises, byte by byte: standard output, standard error, exit status, terminals,
signals.

Everything runs ./run as a user would, on the model that ships (or the one that MLA_MODEL names) and on a tiny
one without tokenizer. What a right answer is comes from the contract or from a second way to ask for the same
thing, never from an earlier run's output."""

import json
import os
import pty
import random
import re
import resource
import select
import signal
import subprocess

import compare
import numpy as np
import pytest
from support import FAILED, INTERRUPTED, MODEL, MODELS, ROOT, RUN, STORY, USAGE, refused, run, start, text


def on_terminal(command, stdin=subprocess.DEVNULL):
    """What a command writes to a terminal, and its exit status."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdin=stdin, stdout=slave, stderr=subprocess.DEVNULL)
    os.close(slave)
    out = b""
    try:
        while chunk := os.read(master, 65536):
            out += chunk
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(master)
    return out.replace(b"\r\n", b"\n"), process.wait()


@pytest.fixture(scope="module")
def without_tokenizer(export):
    return export(MODELS / "v2lite", "f32")


@pytest.fixture(scope="module")
def limit():
    """The longest context of the model."""
    return int(re.search(rb"longest context +(\d+)", text("--info"))[1])


@pytest.fixture(scope="module")
def story():
    return text(*STORY, "-n", "40")


# ---- wrong usage

WRONG = [
    (["-n", "12x"], "-n"),
    (["-n", "-2"], "-n"),
    (["-n", ""], "-n"),
    (["-n", "1.5"], "-n"),
    (["--tokens", " 5"], "--tokens"),
    (["-t", "nan"], "-t"),
    (["-t", "-1"], "-t"),
    (["-t", "inf"], "-t"),
    (["-t", "1e999"], "-t"),
    (["-t", "0x1"], "-t"),
    (["-t", "0,5"], "-t"),
    (["--top-p", "1.5"], "--top-p"),
    (["--top-k", "-1"], "--top-k"),
    (["--min-p", "-0.1"], "--min-p"),
    (["--repeat-penalty", "0"], "--repeat-penalty"),
    (["-j", "0"], "-j"),
    (["--threads=two"], "--threads"),
    (["-c", "-5"], "-c"),
    (["-c", "0"], "-c"),
    (["-c", "4000000000"], "-c"),
    (["-s", "-1"], "-s"),
    (["-s", "18446744073709551616"], "-s"),
    (["-k", "f64"], "-k"),
    (["--ids", "1 x"], "--ids"),
    (["--ids", ""], "--ids"),
    (["--ids", "-1"], "--ids"),
    (["--ids", "99999999999999999999"], "--ids"),
    (["--stop", ""], "--stop"),
    (["--stop"], "--stop"),
    (["--frobnicate"], "--frobnicate"),
    (["-x"], "-x"),
    (["--echo=1"], "--echo"),
    (["-e"], "-e"),
    (["-e", "-p", "\\q"], "-p"),
    (["-e", "-p", "\\x4"], "-p"),
    (["-e", "-p", "\\ud800"], "-p"),
    (["-e", "-p", "a\\"], "-p"),
    (["-p", "a", "-f", "b"], "-f"),
    (["--info", "--check"], "--check"),
    (["--info", "-t", "0"], "-t"),
    (["--no-bos"], "--no-bos"),
    (["a prompt"], "-p"),
]


@pytest.mark.parametrize("options, named", WRONG, ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_wrong_usage(options, named):
    """A value that is not entirely what the option takes, or an option without effect, is refused by name and
    never guessed at."""
    refused(run(*options), USAGE, named)


GNU = [
    (["-j1"], ["-j", "1"]),
    (["-n20"], ["-n", "20"]),
    (["--tokens=20"], ["--tokens", "20"]),
    (["-qn20"], ["-q", "-n", "20"]),
    (["-qt0"], ["-q", "-t", "0"]),
    (["-n20", "-s7", "-kq8"], ["-n", "20", "-s", "7", "-k", "q8"]),
    (["-pOnce"], ["-p", "Once"]),
    (["--prompt=-p"], ["-p", "-p"]),
    (["--prompt="], ["-p", ""]),
]


@pytest.mark.parametrize("short, long", GNU, ids=lambda x: " ".join(x))
def test_gnu_habits(short, long):
    """A value may follow its letter at once, letters may stand together, a long name may have its value
    behind =; also under POSIXLY_CORRECT the model may come before the options."""
    rest = ["-s", "3", "-n", "5"]  # the last one given counts
    want = text(*rest[:2], *long)
    assert text(*rest[:2], *short) == want
    posix = {**os.environ, "POSIXLY_CORRECT": "1"}
    assert text(*rest[:2], *short, env=posix) == want


def test_the_model_comes_anywhere(tmp_path):
    """Before the options, behind them, and behind -- also if its name begins with -."""
    want = text("-n", 5, "-s", 3)
    assert text("-n5", "-s", "3", MODEL, model=None) == want
    assert text("-n5", MODEL, "-s3", model=None) == want
    (tmp_path / "-x").symlink_to(MODEL)
    assert text("-n5", "-s3", "--", "-x", model=None, cwd=tmp_path) == want
    refused(run("-n5", "--", "-x", "-p", model=None, cwd=tmp_path), USAGE, "-p", "-x")
    refused(run("-n5", "--", model=None), USAGE, "MODEL")
    assert text("--help", "-n", "x", model=None).startswith(b"usage")  # what is behind it is not looked at


def test_as_typed():
    """A message names the option as it was written, and what is wrong with a value that stands behind it."""
    for words, named in (
        (["-n20x"], "-n takes a whole number from -1 to 4294967295, not '20x'"),
        (["--tokens=20x"], "--tokens takes a whole number"),
        (["--tokens="], "--tokens takes a whole number"),
        (["-qjx"], "-j takes a whole number"),
        (["-n"], "-n takes a value, N,"),
        (["--tokens"], "--tokens takes a value, N,"),
        (["--quiet=1"], "--quiet takes no value"),
        (["-qx"], "'-x'"),
    ):
        refused(run(*words), USAGE, named)


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("-m", "MODEL"),
        ("--model", "MODEL"),
        ("--temp", "--temperature"),
        ("--temp=0.5", "--temperature"),
        ("--n-predict", "--tokens"),
        ("--n_predict", "--tokens"),
        ("--max-tokens", "--tokens"),
        ("--ctx-size", "--context"),
        ("--ctx_size=4", "--context"),
        ("--top_p", "--top-p"),
        ("--top_k", "--top-k"),
        ("--topk", "--top-k"),
        ("--min_p", "--min-p"),
        ("--repeat_penalty", "--repeat-penalty"),
        ("--ignore_eos", "--ignore-eos"),
        ("--reverse-prompt", "--stop"),
        ("-cnv", "--chat"),
        ("-sys", "--system"),
        ("--system-prompt", "--system"),
        ("-ctk", "--cache"),
        ("--cache-type-k", "--cache"),
        ("--prompt-cache", "--session"),
        ("--thread", "--threads"),  # cut short: getopt_long would take it, and it may mean more one day
        ("--quie", "--quiet"),
    ],
)
def test_names_of_other_programs(theirs, ours):
    """An option as llama.cpp or vLLM have it is refused with the name that it has here."""
    refused(run(theirs, "x"), USAGE, theirs, ours)


def test_unlike_everything():
    for name in ("--to", "--frobnicate", "-x", "---", "--=", "--=x"):
        refused(run(name), USAGE, name, "--help")


def test_a_temperature_that_means_threads():
    """-t is the number of threads elsewhere: above 2 it is allowed, and a remark names -j."""
    done = run("-t8", "-n1", "-s1")
    assert done.returncode == 0 and b"-t 8" in done.stderr and b"-j" in done.stderr
    assert b"-j" not in run("-t2", "-n1", "-s1").stderr
    assert run("-t8", "-n1", "-s1", "-q").stderr == b""


@pytest.mark.parametrize("name", ["MLA_ISA", "MLA_PATH", "MLA_CHUNK"])
def test_an_empty_variable_is_unset(name):
    assert text("-n1", "-s1", env={**os.environ, name: ""}) == text("-n1", "-s1")


def test_no_model():
    refused(run(model=None), USAGE, "MODEL")


def test_hostile_option_values_stay_on_one_line():
    refused(run("-n", "1\n2\033[2J" + "x" * 100000), USAGE, "-n")


def test_help_and_version():
    """Help is asked for, so it goes to standard output, and it knows every option of the README's table."""
    for option in ("-h", "--help"):
        out = text(option, model=None).decode()
        assert out.startswith("usage: run MODEL")
    for option in (
        "--escape",
        "--ids",
        "--chat",
        "--system",
        "--ignore-eos",
        "--repeat-penalty",
        "--logits",
        "--perplexity",
        "--tokenize",
        "--check",
        "--cache",
    ):
        assert option in out
    version = r"mla\.c \d+\.\d+\.\d+\nkernels \w+, (built without )?OpenMP, \d+ threads?\n"
    assert re.fullmatch(version, text("--version", model=None).decode())


# ---- files that are no models


def test_a_file_that_is_no_checkpoint(tmp_path):
    whole = MODEL.read_bytes()
    cases = {
        "missing": None,
        "empty": b"",
        "text": b"Once upon a time",
        "short": whole[: len(whole) // 2],
        "header": whole[:70] + b"\xff" + whole[71:],
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        refused(run(model=path), FAILED, name)
    refused(run(model=tmp_path), FAILED)


def test_check(tmp_path):
    """Every byte of the tensors counts, and the damaged tensor is named."""
    assert text("--check").count(b"\n") == 1
    damaged = bytearray(MODEL.read_bytes())
    damaged[-4096] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    refused(run("--check", model=tmp_path / "damaged"), FAILED, "damaged", "tensor", "checksum")


# ---- standard output


def test_the_text_alone(story, tmp_path):
    """Nothing before and nothing behind it, to a pipe and to a file; statistics go elsewhere and -q silences
    them."""
    assert story and not story.endswith(b"\n\n")
    with open(tmp_path / "out", "wb") as out:
        run(*STORY, "-n", "40", stdout=out)
    assert (tmp_path / "out").read_bytes() == story
    assert run(*STORY, "-n", "40", "-q").stderr == b""
    assert text(*STORY, "-n", "0") == b""


def test_echo_gives_back_every_byte(tmp_path):
    """The prompt's bytes are written as they are: NULs, broken UTF-8 and all."""
    every = bytes(range(256)) + b"\xe2\x82" + "\u00e9\u4e16\U0001f600\r\n".encode()
    (tmp_path / "prompt").write_bytes(every)
    assert text("-f", tmp_path / "prompt", "--echo", "-n", "0", "-c", 500) == every
    assert text("-f", "-", "--echo", "-n", "0", "-c", 500, stdin=every) == every


def test_echo_comes_first(story):
    assert text(*STORY, "-n", "40", "--echo") == b"Once upon a time" + story


def test_escapes():
    r"""-e: \n \t \\ \xHH \uHHHH, the last also as a pair of surrogates, as JSON has it. Without it a
    backslash is a backslash."""
    prompt = r"a\n\t\\\x00\xff\u00e9\ud83d\ude00"
    assert text("-e", "-p", prompt, "--echo", "-n", "0") == b"a\n\t\\\x00\xff" + "\u00e9\U0001f600".encode()
    assert text("-p", prompt, "--echo", "-n", "0") == prompt.encode()


def test_prompt_by_text_file_and_ids(story, tmp_path):
    """Three ways to give a prompt, one text. --tokenize adds nothing, --ids adds nothing: the begin token is
    the difference."""
    (tmp_path / "prompt").write_bytes(b"Once upon a time")
    greedy = ["-t", "0", "-n", "40"]
    assert text("-f", tmp_path / "prompt", *greedy) == story
    assert text("-f", "-", *greedy, stdin=b"Once upon a time") == story
    ids = text("--tokenize", "Once upon a time").decode()
    assert re.fullmatch(r"\d+( \d+)*\n", ids)
    begin = re.search(rb"begin (\d+)", text("--info"))[1].decode()
    assert text("--ids", f"{begin} {ids}", *greedy) == story
    assert text("--ids", ids, *greedy) == text("-p", "Once upon a time", "--no-bos", *greedy)
    assert text(*greedy) == text("-p", "", *greedy) == text("--ids", begin, *greedy)


def test_tokenize_a_file_and_count(tmp_path):
    """--tokenize takes its text from the command line or from -f, as bytes; --count says how many ids there
    are."""
    words = b"Once upon a time\0\xff there was -f\r\n"
    (tmp_path / "-f").write_bytes(words)
    ids = text("--tokenize", "-f", tmp_path / "-f")
    assert ids == text("-f", "-", "--tokenize", stdin=words) == text("--tokenize", "--file=-", stdin=words)
    assert text("-f", tmp_path / "-f", "--tokenize", "--count") == b"%d\n" % len(ids.split())
    assert text("--count", "--tokenize", "Once upon") == b"%d\n" % len(
        text("--tokenize", "Once upon").split()
    )
    assert text("--tokenize=-f") == text("-f", "-", "--tokenize", stdin=b"-f")
    assert text("--tokenize", "", "--count") == b"0\n" and text("--tokenize", "") == b"\n"
    refused(run("--tokenize"), USAGE, "--tokenize", "-f")
    refused(run("--tokenize", "a", "-f", tmp_path / "-f"), USAGE, "--tokenize", "-f")
    refused(run("--tokenize", "-f", tmp_path / "-f", "-e"), USAGE, "-e")
    refused(run("--tokenize", "-f", tmp_path / "none"), FAILED, "none")
    refused(run("--count"), USAGE, "--count")


def test_special_tokens_are_matched_on_request_only():
    mark = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    assert len(text("--tokenize", mark, "--special").split()) == 1
    assert len(text("--tokenize", mark).split()) > 1


def test_standard_input_is_left_alone(story):
    """Without `-f -` nothing reads it: a script that pipes into its own `read` loses nothing, and an open
    pipe blocks nothing."""
    read, write = os.pipe()
    os.write(write, b"mine")
    done = subprocess.run([RUN, MODEL, *STORY, "-n", "40"], stdin=read, capture_output=True, timeout=60)
    assert done.stdout == story and os.read(read, 9) == b"mine"


def test_waiting_input_gets_a_remark(tmp_path):
    """Who pipes a text into the program and gives no prompt means it as one: a line says what reads it,
    whatever kind of file it is. Where a prompt is given, or nothing waits, there is none."""
    remark = b"-f - "
    (tmp_path / "text").write_bytes(b"Once")
    with open(tmp_path / "text", "rb") as file:
        done = subprocess.run([RUN, MODEL, "-n1"], stdin=file, capture_output=True)
    assert done.returncode == 0 and remark in done.stderr
    assert remark in run("-n1", stdin=b"Once").stderr
    assert remark in run("--logits", tmp_path / "logits", stdin=b"Once").stderr
    for options in (["-p", "a"], ["-f", "-"], ["--ids", "1"], ["-q"]):
        assert remark not in run("-n1", *options, stdin=b"Once").stderr
    assert remark not in run("-n1", stdin=b"").stderr
    for nothing in (subprocess.DEVNULL, os.open(tmp_path, os.O_RDONLY)):
        assert remark not in subprocess.run([RUN, MODEL, "-n1"], stdin=nothing, capture_output=True).stderr


# ---- how a text ends


def test_stop_text(story):
    for stop in (story[7:12], story[-3:], story[:1], story):
        assert text(*STORY, "-n", "40", "--stop", stop.decode()) == story[: story.index(stop)]
    assert (
        text(*STORY, "-n", "40", "--stop", "\u00e9\u00e9", "--stop", story[9:11].decode())
        == story[: story.index(story[9:11])]
    )
    assert text(*STORY, "-n", "40", "--stop", story[-8:].decode() + "never") == story
    assert text(*STORY, "-n", "40", "-e", "--stop", f"\\x{story[5]:02x}") == story[: story.index(story[5:6])]


def test_end_tokens():
    """A text that the end token ends goes on with --ignore-eos."""
    for seed in range(30):
        options = ["-p", "Once upon a time", "-s", seed, "-n", "-1"]
        done = run(*options)
        if b"context" not in done.stderr:
            assert text(*options, "--ignore-eos").startswith(done.stdout)
            assert b"context" in run(*options, "--ignore-eos").stderr
            return
    pytest.fail("no text ended by itself")


def ended(done):
    assert done.returncode in (0, INTERRUPTED, 143, 129), done.stderr
    return re.search(rb"ended: (\w+); seed \d+\n$", done.stderr)[1].decode()


def test_the_statistics_say_why_a_text_ended(story):
    """An end token, a stop text, -n, the context or a signal."""
    assert ended(run(*STORY, "-n", 5)) == ended(run(*STORY, "-n", 0)) == "length"
    assert ended(run(*STORY, "-n", 40, "--stop", story[9:12].decode())) == "stop"
    assert ended(run(*STORY, "-n", -1, "--ignore-eos")) == ended(run(*STORY, "-c", 8)) == "context"
    reasons = {ended(run("-p", "Once upon a time", "-s", seed, "-n", -1)) for seed in range(30)}
    assert "end" in reasons and reasons <= {"end", "context"}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process = start(*STORY, "-n", "-1", "--ignore-eos", "-j", "1", "-k", "full")
        process.stdout.read(1)
        process.send_signal(number)
        process.stdout.read()
        done = subprocess.CompletedProcess([], process.wait(60), b"", process.stderr.read())
        assert done.returncode == 128 + number and ended(done) == "signal"


def test_context_full(story):
    done = run(*STORY, "-c", 8, "-n", 40)
    assert done.returncode == 0 and b"context of 8 tokens is full" in done.stderr
    assert story.startswith(done.stdout) and done.stdout


def test_prompt_longer_than_the_context(limit):
    refused(run(*STORY, "-c", 3), FAILED, "-c", "3")
    refused(run("-f", "-", stdin=b"All work and no play. " * 50000), FAILED, str(limit))
    refused(run("-f", "-", stdin=b"x" * 1000000), FAILED, str(limit))


def test_a_prompt_is_read_no_further_than_it_can_go(tmp_path, limit):
    """A file far longer than the context is refused by its size, and a source without end when it has given
    as much; neither by its tokens. What fits is read whatever its tokens are."""
    with open(tmp_path / "long", "wb") as file:
        file.truncate(200_000_000)
    begun = os.times()
    refused(run("-f", tmp_path / "long", "-c", 100), FAILED, "long", "100", "-c")
    refused(run("-f", tmp_path / "long"), FAILED, "long", str(limit))
    spent = os.times()
    assert spent.children_user + spent.children_system - begun.children_user - begun.children_system < 2
    endless = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    done = subprocess.run([RUN, MODEL, "-f", "-"], stdin=endless.stdout, capture_output=True, timeout=60)
    endless.kill(), endless.communicate()
    refused(done, FAILED, str(limit))
    longest = max((text("--ids", i, "--echo", "-n", 0) for i in range(200, 300)), key=len)
    prompt = longest * (limit - 20)
    assert text("-f", "-", "--echo", "-n", 0, stdin=prompt) == prompt


def test_a_prompt_that_fills_the_context(limit):
    ids = " ".join(["5"] * limit)
    assert run("--ids", ids, "-t", "0").returncode == 0
    refused(run("--ids", ids + " 5"), FAILED, str(limit))


def test_unreadable_prompt(tmp_path):
    refused(run("-f", tmp_path / "none"), FAILED, "none")
    refused(run("-f", tmp_path), FAILED, str(tmp_path))


# ---- chance


def test_seeds():
    """The same seed gives the same text whatever the number of threads, another one another; a random one is
    told and can be used again."""
    sample = ["-p", "Once upon a time", "-n", "40", "-t", "1"]
    first = text(*sample, "-s", "18446744073709551615", "-j", "1")
    assert first == text(*sample, "-s", "18446744073709551615", "-j", "2") != text(*sample, "-s", "1")
    random_run, other = run(*sample), run(*sample)
    seed = re.search(rb"seed (\d+)", random_run.stderr)[1].decode()
    assert text(*sample, "-s", seed) == random_run.stdout
    assert seed.encode() not in other.stderr


# ---- streams that fail


@pytest.mark.parametrize(
    "options", [STORY, ["--info"], ["--help"], ["--tokenize", "a"], ["--check"]], ids=lambda o: o[0]
)
def test_full_disk(options):
    with open("/dev/full", "wb") as full:
        done = run(*options, stdout=full)
    assert done.returncode == FAILED and done.stderr.count(b"\n") == 1 and b"standard output" in done.stderr


@pytest.mark.parametrize("options", [[*STORY, "-n", "-1", "--ignore-eos"], ["--help"]], ids=lambda o: o[0])
def test_closed_pipe(options):
    """`run ... | head -c 1` ends quietly and is no failure."""
    read, write = os.pipe()
    os.close(read)
    done = run(*options, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_reader_that_leaves():
    process = start(*STORY, "-n", "-1", "--ignore-eos")
    assert len(process.stdout.read(1)) == 1
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")


def test_closed_streams():
    """A checkpoint opened as file 1 must not be what text is written to; text that cannot be written is a
    failure."""
    before = MODEL.read_bytes()
    done = subprocess.run(["sh", "-c", '"$0" "$1" -p Once -t 0 -n 3 >&- 2>&-', RUN, MODEL])
    assert done.returncode == FAILED and MODEL.read_bytes() == before


def test_interrupt():
    """Ctrl-C ends the text, not the program's manners: what was written is whole, statistics follow."""
    process = start(*STORY, "-n", "-1", "--ignore-eos", "-j", "1", "-k", "full")
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED and re.search(rb"text \d+ tokens.*seed \d+\n", err)
    assert text(*STORY, "-n", "-1", "--ignore-eos", "-k", "full").startswith(first + out)


@pytest.mark.parametrize("kind", ["text", "logits"])
def test_a_file_that_may_not_grow(kind, tmp_path):
    """The user's limit of a file's size is an error like a full disk, not a signal."""
    limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    if kind == "text":
        with open(tmp_path / "out", "wb") as out:
            done = run(*STORY, "-n", "200", "--ignore-eos", stdout=out, preexec_fn=limited)
        assert (
            done.returncode == FAILED
            and b"standard output: " in done.stderr
            and done.stderr.count(b"\n") == 1
        )
    else:
        refused(run(*STORY[:2], "--logits", tmp_path / "logits", preexec_fn=limited), FAILED, "logits")
        assert os.listdir(tmp_path) == []


# ---- terminals


def test_a_newline_on_a_terminal_only(story):
    assert on_terminal([RUN, MODEL, *STORY, "-n", "40"]) == (story + b"\n", 0)


def test_statistics_on_a_line_of_their_own(story, tmp_path):
    """On a terminal that may show both streams; not behind a text in a file, nor where the text has ended its
    line."""

    def shown(**streams):
        master, slave = pty.openpty()
        streams = {name: slave if where == "terminal" else where for name, where in streams.items()}
        done = subprocess.run([RUN, MODEL, *STORY, "-n", "40"], stdin=subprocess.DEVNULL, **streams)
        assert done.returncode == 0
        out = b""
        while chunk := waiting(master):
            out += chunk
        os.close(master), os.close(slave)
        return out.replace(b"\r\n", b"\n")

    assert shown(stdout=subprocess.PIPE, stderr="terminal").startswith(b"\nprompt ")
    assert shown(stdout="terminal", stderr="terminal").startswith(story + b"\nprompt ")
    assert shown(stdout="terminal", stderr=subprocess.PIPE) == story + b"\n"
    with open(tmp_path / "out", "wb") as out:
        assert shown(stdout=out, stderr="terminal").startswith(b"prompt ")


def test_progress_on_a_terminal_only():
    """A long prompt shows its progress on standard error if that is a terminal, and cleans up behind
    itself."""
    ids = " ".join(["5"] * 100)
    environment = {**os.environ, "MLA_CHUNK": "8"}
    assert b"\r" not in run("--ids", ids, "-n", "1", env=environment).stderr
    master, slave = pty.openpty()
    run("--ids", ids, "-n", "1", env=environment, stderr=slave)
    assert b"prompt: 8 of 100" in (shown := os.read(master, 65536)) and b"\r\033[K" in shown
    run("--ids", ids, "-n", "1", "-q", env=environment, stderr=slave)
    assert not select.select([master], [], [], 0.1)[0]
    os.close(master), os.close(slave)


@pytest.fixture(scope="module")
def text_driver(tmp_path_factory):
    program = tmp_path_factory.mktemp("driver") / "text_driver"
    subprocess.run(
        [
            "cc",
            "-std=gnu11",
            "-I",
            ROOT,
            "-o",
            program,
            ROOT / "tests" / "text_driver.c",
            ROOT / "cli" / "output.c",
        ],
        check=True,
    )
    return program


class Driver:
    """Tokens into text_driver, one by one; what stands on its standard output after each."""

    def __init__(self, program, stops, out):
        self.process = subprocess.Popen(
            [program, *stops], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE
        )

    def token(self, token):
        self.process.stdin.write(bytes([len(token)]) + token)
        self.process.stdin.flush()
        return self.process.stderr.read(1) == b"."

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0


def waiting(fd, seconds=0.02):
    """The bytes that can be read now."""
    return os.read(fd, 65536) if select.select([fd], [], [], seconds)[0] else b""


def test_characters_on_a_terminal(text_driver):
    """Half a character is held back until the rest comes; bytes that begin none, or whose rest never comes,
    are passed on."""
    steps = [
        (b"a\xc3", b"a"),
        (b"\xa9", b"\xc3\xa9"),
        (b"\xe4", b""),
        (b"\xb8", b""),
        (b"\x96b", b"\xe4\xb8\x96b"),
        (b"\xf0\x9f\x98", b""),
        (b"\x80\xf0", b"\xf0\x9f\x98\x80"),
        (b"c", b"\xf0c"),
        (b"\x80\xff", b"\x80\xff"),
        (b"\xe2\x82", b""),
    ]
    master, slave = pty.openpty()
    driver = Driver(text_driver, [], slave)
    for token, shown in steps:
        assert driver.token(token)
        assert waiting(master) == shown, token
    driver.end()
    assert waiting(master) == b"\xe2\x82\r\n"
    os.close(master), os.close(slave)


def plain_stop(written, stops):
    """The text so far, cut before the first stop text to be complete, the longest if several are; and whether
    one is."""
    for end in range(1, len(written) + 1):
        if complete := [s for s in stops if written[:end].endswith(s)]:
            return written[: end - max(map(len, complete))], True
    return written, False


def test_stop_texts_split_anywhere(text_driver):
    """Against a plain definition, on random texts, stop texts and splits: never a byte of a stop text, never
    one held back for nothing."""
    chance = random.Random(1)
    for _ in range(60):
        letters = lambda most: bytes(chance.choices(b"ab", k=chance.randint(1, most)))
        stops = [letters(5) for _ in range(chance.randint(1, 3))]
        read, write = os.pipe()
        driver = Driver(text_driver, stops, write)
        given, seen, stopped = b"", b"", False
        while not stopped and len(given) < 40:
            token = letters(4)
            given += token
            go_on = driver.token(token)
            want, stopped = plain_stop(given, stops)
            held = (
                0
                if stopped
                else max(
                    n for n in range(len(want) + 1) if n == 0 or any(s.startswith(want[-n:]) for s in stops)
                )
            )
            seen += waiting(read, 0)
            assert (seen, go_on) == (want[: len(want) - held], not stopped), (stops, given)
        driver.end()
        seen += waiting(read, 0)
        assert seen == want
        os.close(read), os.close(write)


# ---- numbers


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def test_logits_file(tmp_path, story):
    """[T, V] in float32; the largest of the last row is the first greedy token. A file that exists is
    replaced when all is well, and only then."""
    ids = [int(i) for i in text("--tokenize", "Once upon a time").split()]
    out = tmp_path / "logits"
    out.write_bytes(b"old")
    assert text("-p", "Once upon a time", "--logits", out) == b""
    rows = np.fromfile(out, np.float32).reshape(len(ids) + 1, -1)
    assert np.isfinite(rows).all()
    first = text(*STORY, "-n", "1")
    assert text("--ids", int(rows[-1].argmax()), "--echo", "-n", "0") == first
    refused(run("-p", "x", "--logits", tmp_path / "none" / "logits"), FAILED, "none")
    refused(run("-p", "x", "--logits", "/dev/full"), FAILED, "/dev/full")
    assert os.listdir(tmp_path) == ["logits"]


def logits_of(*options, **how):
    """What --logits writes, wherever it goes."""
    return run("-p", "Once upon a time", "--logits", *options, **how)


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    file = tmp_path_factory.mktemp("logits") / "file"
    assert logits_of(file).returncode == 0
    return file.read_bytes()


def test_links_as_output(logits, tmp_path):
    """The target of a link is written or replaced, never the link: links to files, to links, to a file that
    does not exist yet, from another folder."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"old")
    for name, target in (
        ("absolute", tmp_path / "folder" / "file"),
        ("relative", "folder/file"),
        ("chain", "relative"),
        ("dangling", "folder/new"),
        ("folder/up", "../other"),
    ):
        link = tmp_path / name
        link.symlink_to(target)
        assert logits_of(link).returncode == 0
        assert link.is_symlink() and os.readlink(link) == str(target) and link.read_bytes() == logits, name
        link.resolve().write_bytes(b"old")
    assert logits_of("dangling", cwd=tmp_path).returncode == 0
    assert (tmp_path / "folder" / "new").read_bytes() == logits
    (tmp_path / "circle").symlink_to("circle")
    refused(logits_of(tmp_path / "circle"), FAILED, "circle")
    (tmp_path / "nowhere").symlink_to("none/file")
    refused(logits_of(tmp_path / "nowhere"), FAILED, "nowhere")
    assert sorted(os.listdir(tmp_path / "folder")) == ["file", "new", "up"]  # and no temporary file


@pytest.mark.parametrize("name", ["/proc/self/fd/1", "/dev/fd/1", "link", "chain"])
def test_streams_as_output(name, logits, tmp_path):
    """A stream of the process by any name, also a link of one's own, is written in place: to a pipe, to a
    file that the shell has opened, behind what stands in it."""
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    (tmp_path / "chain").symlink_to("link")
    before = sorted(os.listdir("/dev"))
    how = {"cwd": tmp_path}
    assert logits_of(name, **how).stdout == logits
    with open(tmp_path / "file", "wb") as file:
        inode = os.fstat(file.fileno()).st_ino
        assert logits_of(name, stdout=file, **how).returncode == 0
    assert (tmp_path / "file").read_bytes() == logits and (tmp_path / "file").stat().st_ino == inode
    with open(tmp_path / "file", "ab") as file:
        assert logits_of(name, stdout=file, **how).returncode == 0
    assert (tmp_path / "file").read_bytes() == 2 * logits
    assert sorted(os.listdir(tmp_path)) == ["chain", "file", "link"] and sorted(os.listdir("/dev")) == before
    assert os.readlink(tmp_path / "link") == "/proc/self/fd/1" and (tmp_path / "chain").is_symlink()


def test_pipes_and_devices_as_output(logits, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
        assert logits_of(tmp_path / name).returncode == 0
        assert reader.communicate(timeout=60)[0] == logits
    assert logits_of("/dev/null").returncode == 0 and not os.path.isfile("/dev/null")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_perplexity(tmp_path):
    """The same figure as from --logits of each window: a begin token, then c - 1 tokens, each of them scored
    once."""
    c, sample = 48, compare.TEXT.encode()
    (tmp_path / "text").write_bytes(sample)
    ids = [int(i) for i in text("--tokenize", sample.decode()).split()]
    begin = int(re.search(rb"begin (\d+)", text("--info"))[1])
    for options, before in ([], [begin]), (["--no-bos"], []):
        losses = []
        for i in range(0, len(ids), c - 1):
            window = before + ids[i : i + c - 1]
            p = log_softmax(compare.logits(MODEL, window, "-k", "f32"))
            losses += [-p[t, window[t + 1]] for t in range(len(window) - 1)]
        want, error = (
            np.exp(np.mean(losses)),
            np.exp(np.mean(losses)) * np.std(losses, ddof=1) / len(losses) ** 0.5,
        )
        line = text("--perplexity", tmp_path / "text", "-c", c, "-k", "f32", *options).decode()
        got = re.fullmatch(r"perplexity (\d+\.\d+) \+- (\d+\.\d+) tokens (\d+)\n", line)
        assert int(got[3]) == len(losses)
        assert float(got[1]) == pytest.approx(want, rel=1e-2)
        assert float(got[2]) == pytest.approx(error, rel=2e-2)
    refused(run("--perplexity", "/dev/null"), FAILED)
    refused(run("--perplexity", tmp_path / "text", "--against", "q7"), USAGE, "q7")
    refused(run("-p", "x", "--against", "q8"), USAGE, "--against")
    refused(run("--perplexity", tmp_path / "text", "-c", 1), USAGE)


def test_against(tmp_path):
    """Kullback-Leibler divergence and equal likeliest tokens, as from the logits that both cache types give;
    a type against itself differs by nothing."""
    sample = compare.TEXT[:200]
    (tmp_path / "text").write_text(sample)
    ids = [int(re.search(rb"begin (\d+)", text("--info"))[1]), *map(int, text("--tokenize", sample).split())]
    p, q = (log_softmax(compare.logits(MODEL, ids, "-k", cache)[:-1]) for cache in ("f32", "q4"))
    kl, top = (np.exp(p) * (p - q)).sum(axis=1).mean(), 100 * (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    alone = text("--perplexity", tmp_path / "text", "-k", "f32").split()
    first, second = (
        text("--perplexity", tmp_path / "text", "-k", "q4", "--against", "f32").decode().splitlines()
    )
    got = re.fullmatch(r"against f32: perplexity (\d+\.\d+) kl (\d+\.\d+) top (\d+\.\d+)%", second)
    assert (
        first == text("--perplexity", tmp_path / "text", "-k", "q4").decode().strip()
        and got[1] == alone[1].decode()
    )
    assert (
        float(got[2]) == pytest.approx(kl, rel=1e-2)
        and kl > 0
        and float(got[3]) == pytest.approx(top, abs=0.01)
    )
    assert text("--perplexity", tmp_path / "text", "-k", "q6", "--against", "q6").endswith(
        b" kl 0.000000 top 100.00%\n"
    )


def test_info(export):
    """The cache's cost is arithmetic on the shape: r + p numbers a token and layer against H (n + p + v)."""
    source = MODELS / "v2lite"
    config = json.loads((source / "config.json").read_text())
    out = text("--info", model=export(source, "f32")).decode()
    H, n, p, v = (
        config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    r, layers, latent = config["kv_lora_rank"], config["num_hidden_layers"], config["kv_lora_rank"] + p
    # 6 bits a number; 4 bits and a byte for 16 of the latent, 8 bits of the key; both: in groups of 16, with
    # two halves a row
    q6, q4 = 12 * -(-r // 16) + 12 * -(-p // 16) + 4, 9 * -(-r // 16) + 16 * -(-p // 16) + 4
    for line, numbers, size in (
        ("-k q6", latent, q6 / latent),
        ("-k q4", latent, q4 / latent),
        ("-k f32", latent, 4),
        ("-k bf16", latent, 2),
        ("-k full", H * (n + p + v), 4),
        ("full K and V", H * (n + p + v), 2),
        ("MHA", H * (n + v), 2),
        ("GQA-8", 8 * (n + v), 2),
        ("MQA", n + v, 2),
    ):
        row = next(row for row in out.splitlines() if row.startswith(line))
        token = round(numbers * size * layers)
        assert (
            f" {numbers * layers:,} " in row
            and f" {token:,} " in row
            and f" {token * config['max_position_embeddings']:,} " in row
        ), row


def test_bench_refuses_what_the_model_cannot(limit):
    refused(run("--bench", "-c", limit + 1), USAGE, "-c", str(limit))


def test_bench_on_a_busy_machine():
    """No measurement claims more than the whole speed of memory, whatever other programs take of it and
    whatever is read from the processor's caches."""
    busy = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        table, csv = text("--bench", "-c", 96).decode(), text("--bench", "-c", 96, "--csv").decode()
    finally:
        for process in busy:
            process.kill(), process.wait()
    shares = re.findall(r"(cached|[\d.]+ %)(?: +\d+ %)?$", table, re.M)
    assert len(shares) == len(table.splitlines()) - 1
    assert all(share == "cached" or float(share.split()[0]) <= 100 for share in shares)
    assert all(float(share) <= 1 for line in csv.splitlines()[1:] for share in line.split(",")[-2:])


def test_bench():
    """A line for each measurement that the context has room for: the speed of memory, prefill, decode; rows a
    second and seconds agree. A step of writing reads what --info says."""
    done = run("--bench", "-c", 96, "--csv", "--profile")
    head, *lines = [line.split(",") for line in done.stdout.decode().splitlines()]
    assert (
        done.returncode == 0
        and head == "test,context,rows,seconds,tokens_per_s,gb_per_s,of_read_bandwidth,waiting".split(",")
    )
    assert [line[:3] for line in lines] == [
        ["bandwidth", "0", "0"],
        ["prefill", "0", "64"],
        ["bandwidth", "0", "0"],
        ["decode", "0", "1"],
    ]
    assert all(
        float(rows) / float(seconds) == pytest.approx(float(rate), rel=0.05)
        for _, _, rows, seconds, rate, *_ in lines
    )
    assert all(stage in done.stderr for stage in (b"attention", b"experts", b"head", b"waiting"))
    read = int(re.search(rb"read per token +([\d,]+)", text("--info"))[1].replace(b",", b""))
    assert float(lines[3][5]) * float(lines[3][3]) * 1e9 == pytest.approx(read, rel=0.1)
    assert text("--bench", "-c", 16).count(b"\n") == 2  # no room for a prefill


# ---- a checkpoint without tokenizer


def test_ids_in_ids_out(without_tokenizer):
    """Ids separated by spaces, one newline, on a terminal too; greedy ones are those of the logits."""
    out = text("--ids", "1 2 3", "-t", "0", "-n", "3", model=without_tokenizer)
    assert re.fullmatch(rb"\d+ \d+ \d+\n", out)
    ids = [1, 2, 3]
    for token in out.split():
        assert int(token) == compare.logits(without_tokenizer, ids)[-1].argmax()
        ids.append(int(token))
    echo = ["--ids", "1 2 3", "-t", "0", "-n", "3", "--echo"]
    assert text(*echo, model=without_tokenizer) == b"1 2 3 " + out
    assert on_terminal([RUN, without_tokenizer, *echo]) == (b"1 2 3 " + out, 0)


def test_text_needs_a_tokenizer(without_tokenizer):
    for options in (["-p", "x"], ["-f", "-"], ["--tokenize", "x"], ["--ids", "1", "--stop", "x"]):
        refused(run(*options, model=without_tokenizer, stdin=b"x"), FAILED, "tokenizer")
