"""When the machine fails: memory, disks, pipes, clocks, signals, files that change while they are read. The
program ends with one line that says so, or goes on as if nothing had happened; never with a crash, half a
file, or a text as if all were well.

Memory and clock fail by tests/faults.c in front of libc, system calls by strace. What a right answer is comes
from the same run without a fault."""

import os
import random
import re
import resource
import signal
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from support import (
    FAILED,
    INFO,
    MODEL,
    MODELS,
    ROOT,
    RUN,
    STORY,
    TEMPORARY,
    header,
    need,
    refused,
    run,
    tensor,
    text,
    with_fields,
)
from test_fuzz import field, mended, set_field


@pytest.fixture(scope="module")
def tiny(export):
    return export(MODELS / "v2lite", "f32")


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """faults(**what): an environment in which it fails."""
    if os.uname().sysname != "Linux":
        pytest.skip("LD_PRELOAD is Linux's")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests" / "faults.c", "-ldl"], check=True)
    return lambda **what: {
        **os.environ,
        "LD_PRELOAD": str(library),
        **{f"FAULT_{key}".upper(): str(value) for key, value in what.items()},
    }


# ---- memory

MEMORY = {
    "text": [*STORY, "-n", 3, "--stop", "dragon"],
    "ids": ["--ids", "1 2 3", "-t", "0.5", "-s", 1, "-n", 2],
    "session": [*STORY, "-s", 1, "-n", 2, "--session", "FILE"],
    "logits": ["-p", "Once", "--logits", "FILE"],
    "perplexity": ["--perplexity", "TEXT", "-c", 16, "--against", "f32"],
    "info": ["--info"],
    "check": ["--check"],
    "tokenize": ["--tokenize", "Once upon a time"],
    "help": ["--help"],
}


@pytest.mark.parametrize("what", MEMORY)
def test_out_of_memory_anywhere(what, faults, tmp_path):
    """Each request for memory fails once. What the OpenMP library cannot get it reports itself."""
    (tmp_path / "text").write_text("Once upon a time there was a dog.")
    file = tmp_path / "file"
    options = [
        {"FILE": file, "TEXT": tmp_path / "text"}.get(word, word) for word in [*MEMORY[what], "-j", 2, "-q"]
    ]
    whole = run(*options, env=faults(count=1))
    made = file.read_bytes() if file.exists() else None
    assert whole.returncode == 0
    for n in range(1, int(re.search(rb"(\d+) requests\n", whole.stderr)[1]) + 1):
        file.unlink(missing_ok=True)
        done = run(*options, env=faults(memory=n))
        if done.returncode == 0:
            assert done.stdout == whole.stdout and (not made or file.read_bytes() == made), n
        else:
            lines = [line for line in done.stderr.decode().splitlines() if line]
            assert (
                done.returncode == FAILED and len(lines) == 1 and lines[0].startswith(("run: ", "libgomp: "))
            ), (n, done)
            assert whole.stdout.startswith(done.stdout) and not file.exists(), n
            assert "libgomp" in lines[0] or set(os.listdir(tmp_path)) == {"text"}, n


CRC = """
#include "engine/crc32.h"
#include <stdio.h>
static char all[1 << 16];
int main(void) {
    size_t n = fread(all, 1, sizeof all, stdin);
    uint32_t pieces = 0;
    for (size_t i = 0; i < n; i += 7)
        pieces = crc32(pieces, all + i, n - i < 7 ? n - i : 7);
    printf("%08x %08x", crc32(0, all, n), pieces);
}
"""


def test_checksums_need_no_open_model(tmp_path):
    """zlib's CRC-32 whoever asks first, in one piece and in pieces."""
    (tmp_path / "crc.c").write_text(CRC)
    files = [tmp_path / "crc.c", ROOT / "engine" / "crc32.c"]
    subprocess.run(["cc", "-std=gnu11", "-I", ROOT, *files, "-o", tmp_path / "crc"], check=True)
    for data in (b"", b"123456789", random.Random(1).randbytes(50000)):
        out = subprocess.run([tmp_path / "crc"], input=data, capture_output=True, check=True).stdout
        assert out.decode() == f"{zlib.crc32(data):08x} {zlib.crc32(data):08x}"


@pytest.mark.parametrize("chosen", [1, 8, 2**20, 2**31, 2**32 - 1])
def test_a_dense_model_that_chooses_experts(chosen, export, tmp_path):
    """A header that names chosen experts where there are none would ask for buffers of any size: it is
    refused, as whatever no model can have."""
    raw = bytearray(export(MODELS / "plm", "f32").read_bytes())
    assert struct.unpack_from("<I", raw, field("n_routed_experts")) == (0,)
    set_field("num_experts_per_tok", chosen)(raw)
    (tmp_path / "model.bin").write_bytes(mended(raw))
    for options in (["--info"], ["--ids", "1", "-n", 1]):
        refused(run(*options, model=tmp_path / "model.bin"), FAILED, "model.bin", "num_experts_per_tok")


def test_a_prompt_of_100_megabytes(tmp_path):
    """Refused because the context is shorter, in bounded time and memory."""
    (tmp_path / "prompt").write_bytes(b"Once upon a time there was a little dog. \n" * 2_500_000)
    limit = 2 << 30
    refused(
        run(
            "-f",
            tmp_path / "prompt",
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        ),
        FAILED,
        "context",
    )


# ---- system calls


def injected(call, fault, n, log, *options, model):
    """A run whose n-th system call `call` has the fault (as strace names it); None if there are fewer."""
    inject = [
        "strace",
        "-f",
        "-o",
        str(log),
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{fault}:when={n}",
    ]
    done = subprocess.run([*inject, RUN, model, *map(str, options)], capture_output=True, timeout=60)
    return done if b"(INJECTED)" in log.read_bytes() or done.returncode == -signal.SIGKILL else None


@pytest.fixture
def strace(tmp_path):
    need("strace")
    if subprocess.run(["strace", "-o", tmp_path / "log", "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    return tmp_path / "log"


@pytest.mark.parametrize(
    "call, error",
    [
        ("write", "ENOSPC"),
        ("write", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("fsync", "EIO"),
        ("rename", "EACCES"),
        ("ftruncate", "EIO"),
        ("flock", "ENOLCK"),
        ("pread64", "EIO"),
    ],
    ids=lambda x: x,
)
def test_a_session_when_a_system_call_fails(call, error, tiny, strace, tmp_path):
    """The session is what it was or what it would have been, and a text that could not be written is a
    failure."""
    session, options = (
        tmp_path / "session",
        ["-t", 0, "-n", 3, "-j", 1, "-q", "--session", tmp_path / "session"],
    )
    text("--ids", "1 2 3", *options, model=tiny)
    old = session.read_bytes()
    want = text(*options, model=tiny)
    new, n = session.read_bytes(), 0
    while True:
        session.write_bytes(old)
        n += 1
        done = injected(call, f"error={error}", n, strace, *options, model=tiny)
        if not done:
            break
        now = session.read_bytes()
        assert now in (old, new) and set(os.listdir(tmp_path)) <= {"session", "session" + TEMPORARY, "log"}, n
        if b"shared libraries" in done.stderr:  # it was not the program's call
            continue
        assert done.returncode in (0, FAILED) and want.startswith(done.stdout), (n, done)
        if done.returncode == 0:
            assert done.stdout == want and now == new, n
        elif done.stderr:  # the call that failed may be the one that tells of it
            assert done.stderr.startswith(b"run: ") and done.stderr.count(b"\n") == 1, n
    assert n > 1


@pytest.mark.parametrize("call", ["fchmod", "ftruncate", "pwrite64", "fsync", "rename"])
def test_a_session_killed_at_a_system_call(call, tiny, strace, tmp_path):
    """kill -9 as a call begins: the session is what it was or what it would have been, and the next run takes
    over what is left."""
    folder = tmp_path / "folder"
    folder.mkdir()
    session, n = folder / "session", 1
    options = ["-t", 0, "-n", 3, "-j", 1, "-q", "--session", session]
    text("--ids", "1 2 3", *options, model=tiny)
    old = session.read_bytes()
    want = text(*options, model=tiny)
    new = session.read_bytes()
    while True:
        session.write_bytes(old)
        if not injected(call, "signal=SIGKILL", n, strace, *options, model=tiny):
            break
        assert session.read_bytes() in (old, new), n
        session.write_bytes(old)
        assert text(*options, model=tiny) == want, n
        assert session.read_bytes() == new and os.listdir(folder) == ["session"], n
        n += 1
    assert n > 1


@pytest.mark.parametrize(
    "options",
    [[*STORY, "-n", 5], ["--info"], ["--help"], ["--perplexity", "/etc/hostname"]],
    ids=lambda o: o[0],
)
@pytest.mark.parametrize("error, status", [("ENOSPC", FAILED), ("EPIPE", 0)])
def test_any_write_may_be_the_last(options, error, status, strace):
    """A disk that is full is a failure and a pipe that is closed none, whichever write it is that finds
    out."""
    want, n = text(*options, "-j", 1), 1
    while done := injected("write", f"error={error}", n, strace, *options, "-j", 1, "-q", model=MODEL):
        assert done.returncode == status and want.startswith(done.stdout) and done.stdout != want
        assert done.stderr.count(b"\n") == (status == FAILED)
        n += 1
    assert n > 1


# ---- files


@pytest.mark.parametrize("option", ["-f", "--perplexity"])
def test_a_checkpoint_cut_short_while_in_use(option, tmp_path):
    """A read of what is gone is a signal (SIGBUS), wherever it happens and in whatever thread."""
    model = tmp_path / "model.bin"
    model.write_bytes(MODEL.read_bytes())
    read, write = os.pipe()  # the run waits for its text until the file is cut
    process = subprocess.Popen(
        [RUN, model, option, "-"], stdin=read, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while b"model.bin" not in Path(f"/proc/{process.pid}/maps").read_bytes():
        time.sleep(0.01)
    time.sleep(0.1)
    os.truncate(model, 200_000)
    os.write(write, b"Once upon a time there was a dog.")
    os.close(write), os.close(read)
    out, err = process.communicate(timeout=60)
    assert (
        (process.returncode, out) == (FAILED, b"")
        and err.startswith(b"run: ")
        and b"model.bin" in err
        and err.count(b"\n") == 1
    )


def test_places_that_cannot_be_written(tmp_path, tiny):
    """Known before the first token. (Root may write everywhere but into the kernel's own files.)"""
    tmp_path.chmod(0o500)
    folder = "/proc/self" if os.geteuid() == 0 else tmp_path
    refused(run("--ids", "1", "--session", f"{folder}/session", model=tiny), FAILED, str(folder))
    refused(run("--ids", "1", "--logits", f"{folder}/logits", model=tiny), FAILED, str(folder))
    tmp_path.chmod(0o700)


def test_no_mode_goes_on_without_numbers(tmp_path):
    """A checkpoint with a weight that is none opens, for its header is right: every mode that computes says
    so, and no file is left."""
    raw = bytearray(MODEL.read_bytes())
    text_file, model = tmp_path / "text", tmp_path / "model.bin"
    text_file.write_text("Once upon a time")
    struct.pack_into("<H", raw, tensor(raw, b"layers.1.o")[1][1], 0x7E00)  # the first scale
    model.write_bytes(raw)
    for mode in (
        ["-p", "Once", "-n", 2],
        ["-p", "Once", "--logits", tmp_path / "logits"],
        ["--perplexity", text_file],
    ):
        refused(run(*mode, model=model), FAILED, "model.bin", "logits are non-finite")
    refused(
        run("-p", "Once", "-n", 0, "--session", tmp_path / "session", model=model),
        FAILED,
        "model.bin",
        "logits are non-finite",
    )
    refused(run("--check", model=model), FAILED, "model.bin", "layers.1.o")
    bench = run("--bench", "-c", 96, "-q", "--csv", model=model)
    assert (
        bench.returncode == FAILED
        and b"logits are non-finite" in bench.stderr
        and bench.stdout.count(b"\n") == 2
    )  # no speed of rubbish
    assert set(os.listdir(tmp_path)) == {"model.bin", "text"}


NAN, INF = (
    {0: f32, 1: f32, 2: f32[2:], 3: f16, 4: f16}
    for f32, f16 in ((b"\0\0\xc0\x7f", b"\0\x7e"), (b"\0\0\x80\xff", b"\0\xfc"))
)  # f16: scales
PROMPT = " ".join(
    str(i * 7 % 40) for i in range(200)
)  # every expert is chosen, and the context has two parts
UNUSED = {"absorbed": ("w_uk",), "decompressed": ("w_uk_t",), "full": ("w_uk_t",)}


@pytest.mark.parametrize("number", [NAN, INF], ids=["nan", "inf"])
@pytest.mark.parametrize(
    "name, kind, cache",
    [
        ("v2_236b", "q4", "q6"),
        ("v2_236b", "mixed", "full"),
        ("v32", "q8", "q8"),
        ("sandwich", "q8", "q4"),
        ("plm", "mixed", "f32"),
    ],
)
def test_no_weight_hides(name, kind, cache, number, export, tmp_path):
    """A number that is none, second in any tensor, reaches the logits by either path: integers, maxima and
    choices between it and them let it pass."""
    raw = bytearray(export(MODELS / name, kind).read_bytes())
    config, tokenizer, tensors, chat = struct.unpack_from("<4I", raw, 32)
    first, model = 64, tmp_path / "model.bin"
    for part in (config, tokenizer, chat):
        first += -(-part // 64) * 64
    for at in range(first, first + 128 * tensors, 128):
        tensor_name, offset, _, type, *_ = INFO.unpack_from(raw, at)
        tensor_name = tensor_name.rstrip(b"\0").decode()
        bad = number[type]
        offset += len(bad)
        kept, raw[offset : offset + len(bad)] = raw[offset : offset + len(bad)], bad
        model.write_bytes(raw)
        raw[offset : offset + len(bad)] = kept
        for path in ("absorbed", "decompressed"):
            if tensor_name.startswith("mtp") or tensor_name.endswith(
                UNUSED["full" if cache == "full" else path]
            ):
                continue
            done = run(
                "--ids",
                PROMPT,
                "-k",
                cache,
                "--logits",
                tmp_path / "logits",
                model=model,
                env={**os.environ, "MLA_PATH": path},
            )
            assert (
                done.returncode == FAILED
                and (tensor_name if type == 0 else "logits are non-finite").encode() in done.stderr
            ), (tensor_name, path)
        if (
            tensor_name.endswith("w_uk_t") and cache != "full"
        ):  # a sound prompt, and each token behind it is not
            refused_at_last = run("--ids", PROMPT, "-k", cache, "-n", 3, "-t", 0, model=model)
            assert refused_at_last.returncode == FAILED and b"logits are non-finite" in refused_at_last.stderr


# ---- signals, clock, locale, standard input


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_at_any_time(name, tiny, tmp_path):
    """The session is the old one or a new one, never torn, and the next run goes on from it as if nothing had
    been."""
    session, chance = tmp_path / "session", random.Random(1)
    options = ["-t", "0", "-n", "8", "-k", "full", "-q", "-j", "1", "--session", str(session)]
    whole = [1, *map(int, text("--ids", "1", "-t", 0, "-n", 400, "-k", "full", model=tiny).split())]
    begun = time.monotonic()
    text("--ids", "1", *options, model=tiny)
    usual = time.monotonic() - begun
    for _ in range(20):
        before = header(session.read_bytes())["tokens"]
        process = subprocess.Popen(
            [RUN, tiny, *options],
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        time.sleep(chance.uniform(0, 1.2 * usual))
        process.send_signal(getattr(signal, name))
        process.wait(60)
        raw = session.read_bytes()
        tokens = header(raw)["tokens"]
        assert (
            before <= tokens <= before + 8
            and with_fields(raw) == raw
            and len(raw) == header(raw)["file_bytes"]
        )
        assert list(struct.unpack_from(f"<{tokens}i", raw, 192)) == whole[:tokens]
        assert set(os.listdir(tmp_path)) <= {"session", "session" + TEMPORARY}
    assert [int(i) for i in text(*options, model=tiny).split()] == whole[tokens : tokens + 8]


def test_a_clock_that_goes_backwards(faults):
    """Time is for people: it is printed and decides nothing."""
    done = run(*STORY, "-n", 20, env=faults(clock=1))
    assert done.returncode == 0 and done.stdout == text(*STORY, "-n", 20)


def test_locale():
    """A locale with decimal commas changes nothing: the program never asks for one."""
    comma = {**os.environ, "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}
    options = ["-p", "Once", "-t", "0.5", "--top-p", "0.9", "-s", "1", "-n", 8]
    assert text(*options, env=comma) == text(*options) and text("--info", env=comma) == text("--info")
    assert b"setlocale" not in subprocess.run(["nm", "-D", RUN], capture_output=True, check=True).stdout


def test_standard_input_byte_by_byte(tmp_path):
    """A prompt that comes in pieces of one byte, NULs and half characters among them, is the prompt."""
    prompt = "Once\0upon für\n".encode() + b"\xc3"
    (tmp_path / "prompt").write_bytes(prompt)
    process = subprocess.Popen(
        [RUN, MODEL, "-t", "0", "-n", "10", "--echo", "-f", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for byte in prompt:
        process.stdin.write(bytes([byte]))
        process.stdin.flush()
        time.sleep(0.002)
    out = process.communicate(timeout=60)[0]
    assert out == text("-t", 0, "-n", 10, "--echo", "-f", tmp_path / "prompt") and out.startswith(prompt)
