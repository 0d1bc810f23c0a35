"""--session: a text put away and gone on with is the text that never stopped, and a file that is not what it
should be is refused.

The judge of what goes on is always one run without a session. Where a test makes a file, it is written here
after the description in cli/session.c, with zlib's checksum."""

import fcntl
import os
import pty
import random
import resource
import shutil
import signal
import struct
import subprocess
import termios
import time
import zlib

import pytest
from compare import BUILD
from support import (
    FAILED,
    MODEL,
    MODELS,
    RUN,
    TEMPORARY,
    USAGE,
    header,
    prompt_tokens,
    refused,
    run,
    start,
    text,
    with_fields,
)

GREEDY = ["-t", "0"]
SAMPLED = ["-t", "1", "--top-p", "0.9", "--repeat-penalty", "1.1"]
BEGIN = ["-p", "Once upon a time", "-s", "7"]


@pytest.fixture(scope="module")
def tiny(export):
    """A checkpoint without tokenizer: ids in, ids out, a few milliseconds a run."""
    return export(MODELS / "v2lite", "f32")


@pytest.fixture
def session(tmp_path):
    return tmp_path / "session"


@pytest.fixture
def put_away(tiny, session):
    """The bytes of a session with two pages, the second one filled in part."""
    text("--ids", " ".join(["5"] * 140), "-n", 3, "-t", 0, "-s", 1, "--session", session, model=tiny)
    return session.read_bytes()


def with_header(raw, size, more=b""):
    """The same session with a header of `size` bytes, the new ones zero but for `more` at their end."""
    h = header(raw)
    lists = raw[192 : 192 + 4 * (h["tokens"] + h["logits"] + h["pages"])]
    front = raw[:192] + (bytes(size) + more)[-(size - 192) :] if size > 192 else raw[:192]
    data_offset = (len(front + lists) + 4095) // 4096 * 4096
    whole = (front + lists).ljust(data_offset, b"\0") + raw[h["data_offset"] :]
    return with_fields(whole, header_bytes=size, data_offset=data_offset, file_bytes=len(whole))


# ---- going on


@pytest.mark.parametrize("cache", ["f32", "bf16", "q8", "q6", "q4", "full", "full-bf16", "full-q8"])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_as_if_it_had_never_stopped(options, cache, session):
    """In three pieces, each with another number of threads, across the end of the first page of 128 rows.
    Without -k the session's type is used."""
    begin = ["-p", "Once upon a time there was a little dog. " * 10, "-s", "7", "-k", cache]
    options = [*options, "--ignore-eos"]
    pieces = text(*begin, *options, "-n", 8, "-j", 1, "--session", session)
    pieces += text(*options, "-n", 8, "-j", 2, "--session", session)
    assert header(session.read_bytes())["pages"] == 1
    pieces += text(*options, "-n", 8, "-j", 3, "-k", cache, "-c", 200, "--session", session)
    assert header(session.read_bytes())["pages"] == 2
    assert pieces == text(*begin, *options, "-n", 24)


def test_nothing_is_computed_again(session, tiny):
    """A prompt is appended, without a begin token, to what was read and written before: one long prompt gives
    the same. Only the new tokens and the one that was written last are computed."""
    first, second = "3 1 4 1 5", "9 2 6"
    greedy = ["-t", 0, "-n", 7, "-k", "f32"]
    written = text("--ids", first, *greedy, "--session", session, model=tiny).decode().strip()
    done = run("--ids", second, *greedy, "--session", session, model=tiny)
    assert done.stdout == text("--ids", f"{first} {written} {second}", *greedy, model=tiny)
    assert prompt_tokens(done) == 1 + 3


def test_no_begin_token_in_the_middle(session):
    text(*BEGIN, "-n", 5, "--session", session)
    before = header(session.read_bytes())["tokens"]
    text("-p", " dog", "-n", 0, "--session", session)
    assert header(session.read_bytes())["tokens"] - before == len(text("--tokenize", " dog").split())


def test_a_prompt_alone(session):
    """-n 0 reads a prompt; the first token is then chosen from the logits that were put away."""
    assert text(*BEGIN, *SAMPLED, "-n", 0, "--session", session) == b""
    done = run(*SAMPLED, "-n", 20, "--session", session)
    assert done.stdout == text(*BEGIN, *SAMPLED, "-n", 20) and prompt_tokens(done) == 0


def test_after_an_end_token(session):
    """A text that has ended stays so, as in one run, and goes on with --ignore-eos as it would have."""
    whole = text(*BEGIN, *SAMPLED, "-n", -1)
    assert whole != text(*BEGIN, *SAMPLED, "-n", -1, "--ignore-eos")  # or there is no end token to test with
    assert text(*BEGIN, *SAMPLED, "-n", -1, "--session", session) == whole
    assert text(*SAMPLED, "-n", 10, "--session", session) == b""
    more = text(*SAMPLED, "-n", 10, "--ignore-eos", "--session", session)
    assert more and text(*BEGIN, *SAMPLED, "-n", -1, "--ignore-eos").startswith(whole + more)


def test_after_a_stop_text(session):
    """What --stop kept back comes first when the text goes on by itself or after --echo's prompt; another
    prompt takes its place."""
    whole = text(*BEGIN, *GREEDY, "-n", 60)
    at = whole.index(b"little")
    before = text(*BEGIN, *GREEDY, "-n", 60, "--stop", "itt", "--session", session)
    assert before == whole[: at + 1]
    kept = shutil.copy(session, session.with_name("copy"))
    assert whole.startswith(before + text(*GREEDY, "-n", 10, "--session", session))
    shutil.copy(kept, session)
    assert text("-n", 0, "-p", " dog", "--echo", "--session", session) == b"ittle dog"
    shutil.copy(kept, session)
    assert text("-n", 0, "-p", " dog", "--session", session) == b""


def test_a_full_context(session):
    """The token that found no room is put away as well; a larger -c goes on with it, the same one is
    refused."""
    done = run(*BEGIN, *GREEDY, "-n", -1, "-c", 20, "--session", session)
    refused(run("-n", 5, "-c", 20, "--session", session), FAILED, "-c", "20")
    more = text(*GREEDY, "-n", 5, "-c", 30, "--session", session)
    assert done.stdout + more == text(*BEGIN, *GREEDY, "-n", 21 - prompt_tokens(done) + 5)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted(name, session):
    """Ctrl-C, SIGTERM and SIGHUP put away what was written; the exit status is the one shells give."""
    number = getattr(signal, name)
    endless = [*GREEDY, "--ignore-eos", "-k", "full"]
    process = start(*BEGIN, *endless, "-n", "-1", "-j", "1", "--session", str(session))
    before = os.read(process.stdout.fileno(), 1)  # not read(): Python would keep more than that to itself
    process.send_signal(number)
    before += process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    after = text(*endless, "-n", 5, "--session", session)
    assert after and text(*BEGIN, *endless, "-n", -1).startswith(before + after)


@pytest.mark.parametrize("again", [False, True], ids=["once", "and again"])
def test_a_window_is_closed(again, session):
    """The terminal is gone: writing to it fails, SIGHUP comes, from the kernel and perhaps from the shell
    too. The session holds the text so far."""
    endless = [*GREEDY, "--ignore-eos", "-k", "full"]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [RUN, MODEL, *BEGIN, *endless, "-n", "-1", "-j", "1", "--session", session],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    before = os.read(master, 1)
    os.close(master)
    if again:
        process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert os.listdir(session.parent) == [session.name]
    h = header(session.read_bytes())
    whole = text(*BEGIN, *endless, "-n", -1)
    after = text(*endless, "-n", 5, "--session", session)
    ids = struct.unpack_from(f"<{h['tokens']}i", session.read_bytes(), 192)
    shown = text("--ids", " ".join(map(str, ids)), "--echo", "-n", 0)
    assert after and (b"Once upon a time" + whole).startswith(shown + after) and whole.startswith(before)


@pytest.mark.parametrize("where", ["at once", "after a token"])
def test_a_reader_that_leaves(where, session):
    """A closed pipe is no failure, but the session is as it was: a line says so, also under -q, and no
    temporary file is left."""
    text(*BEGIN, "-n", 3, "--session", session)
    before = session.read_bytes()
    for options in ([], ["-q"]):
        process = start(*GREEDY, "-n", "-1", "--ignore-eos", "-k", "q8", "--session", str(session), *options)
        if where == "after a token":
            assert process.stdout.read(1)
        process.stdout.close()
        lines = process.stderr.read().decode().splitlines()
        assert process.wait(60) == 0
        assert len([line for line in lines if "session" in line and "was not written" in line]) == 1, lines
        assert len(lines) == 1 or (not options and lines[0].startswith("session "))
        assert session.read_bytes() == before and os.listdir(session.parent) == [session.name]


def test_a_full_disk_for_the_text(session):
    """One line says both, and no temporary file is left."""
    with open("/dev/full", "wb") as full:
        done = run(*BEGIN, "-n", 3, "--session", session, stdout=full)
    assert done.returncode == FAILED and done.stderr.count(b"\n") == 1
    assert b"standard output" in done.stderr and b"session" in done.stderr
    assert os.listdir(session.parent) == []


def test_seed(session):
    """The generator goes on and the statistics name its first seed; -s begins anew."""
    text(*BEGIN, *SAMPLED, "-n", 20, "--session", session)
    kept = shutil.copy(session, session.with_name("copy"))
    done = run(*SAMPLED, "-n", 20, "--session", session)
    assert b"seed 7\n" in done.stderr
    anew = []
    for _ in range(2):
        shutil.copy(kept, session)
        anew.append(run(*SAMPLED, "-s", 9, "-n", 20, "--session", session))
        assert b"seed 9\n" in anew[-1].stderr
    assert anew[0].stdout == anew[1].stdout != done.stdout


# ---- the file


def test_the_file_is_what_its_description_says(put_away, tiny):
    """Offsets, checksums and ids, read by another program."""
    h = header(put_away)
    assert (
        h["magic"] == b"MLA.S\r\n\x1a" and h["version"] == 1 and h["cache"].rstrip(b"\0") in (b"bf16", b"q8")
    )
    assert h["file_bytes"] == len(put_away) and (h["tokens"], h["rows"], h["pages"], h["logits"]) == (
        143,
        142,
        2,
        0,
    )
    assert with_fields(put_away) == put_away  # its checksum is zlib's
    assert struct.unpack_from("<140i", put_away, 192) == (5,) * 140
    sums = struct.unpack_from("<2I", put_away, 192 + 4 * (h["tokens"] + h["logits"]))
    pages = [put_away[h["data_offset"] + i * h["page_bytes"] :][: h["page_bytes"]] for i in range(2)]
    assert sums == tuple(map(zlib.crc32, pages))
    assert h["data_offset"] % 4096 == 0 and len(put_away) == h["data_offset"] + 2 * h["page_bytes"]


@pytest.mark.parametrize("size", [200, 256, 1024, 4096])
def test_a_longer_header(size, put_away, session, tiny):
    """Of a later version: what is new must be zero, which means what this version does. Reserved fields
    too."""
    session.write_bytes(put_away)
    want = text("-n", 5, "-t", 0, "--session", session, model=tiny)
    session.write_bytes(with_header(put_away, size))
    assert text("-n", 5, "-t", 0, "--session", session, model=tiny) == want
    for raw in (
        with_header(put_away, size, b"\1"),
        with_header(put_away, size, b"\1" + bytes(size - 193)),
        with_fields(with_header(put_away, size), reserved=bytes(19) + b"\1"),
        with_fields(put_away, reserved=b"\1" + bytes(19)),
    ):
        session.write_bytes(raw)
        refused(run("-n", 1, "--session", session, model=tiny), FAILED, "session", "newer version")
        assert session.read_bytes() == raw


def test_no_header_of_this_size(put_away, session, tiny):
    for size in (1, 8, 184, 191, 193, 196, 4104, 2**31, 2**32 - 8):
        session.write_bytes(with_fields(put_away, header_bytes=size))
        refused(run("-n", 1, "--session", session, model=tiny), FAILED, "session", "damaged")
    session.write_bytes(with_fields(put_away, header_bytes=192))  # as much as none
    assert text("-n", 1, "--session", session, model=tiny)


def test_refused(put_away, session, tiny, export):
    """One line that says which, nothing on standard output, nothing changed, nothing left behind."""
    cache = header(put_away)["cache"].rstrip(b"\0").decode()
    other = "f32" if cache != "f32" else "bf16"
    cases = [
        (put_away, ["-k", other], tiny, f"-k {cache}"),
        (put_away, ["-c", 100], tiny, "-c"),
        (put_away, [], export(MODELS / "v2lite", "q8"), "model"),
        (put_away, [], MODEL, "model"),
        (b"Once upon a time\n" * 100, [], tiny, "not a session"),
        (b"", [], tiny, "not a session"),
        (tiny.read_bytes(), [], tiny, "not a session"),
        (with_fields(put_away, version=2), [], tiny, "version"),
        (put_away[:-1], [], tiny, "cut short"),
        (put_away + b"\0", [], tiny, "damaged"),
    ]
    for raw, options, model, word in cases:
        session.write_bytes(raw)
        refused(run("-n", 1, "--session", session, *options, model=model), FAILED, "session", word)
        assert session.read_bytes() == raw and os.listdir(session.parent) == [session.name]
    refused(run("-n", 1, "--session", session.parent, model=tiny), FAILED, "regular file")
    refused(run("-n", 1, "--session", "/dev/null", model=tiny), FAILED, "regular file")
    refused(run("-n", 1, "--session", "", model=tiny), USAGE, "--session")
    refused(run("--info", "--session", session, model=tiny), USAGE, "--session")


def places(raw):
    """Bytes all over the file: every one of the header, some of the lists, some of each page."""
    chance = random.Random(3)
    h = header(raw)
    lists = range(192, h["data_offset"])
    return [
        *range(192),
        *chance.sample(lists, 60),
        *chance.sample(range(h["data_offset"], len(raw)), 60),
        len(raw) - 1,
    ]


def test_cut_anywhere(put_away, session, tiny):
    for length in places(put_away):
        session.write_bytes(put_away[:length])
        refused(
            run("-n", 1, "--session", session, model=tiny),
            FAILED,
            "not a session" if length < 8 else "cut short",
        )


def test_one_flipped_bit_anywhere(put_away, session, tiny):
    for at in places(put_away):
        damaged = bytearray(put_away)
        damaged[at] ^= 1 << at % 8
        session.write_bytes(damaged)
        refused(run("-n", 1, "--session", session, model=tiny), FAILED, "session")
        assert session.read_bytes() == damaged


def test_hostile_fields(put_away, session, tiny, build):
    """Fields that lie, under a checksum that is right, in a build with sanitizers: refused in one line, or
    harmless."""
    chance = random.Random(4)
    numbers = {
        "file_bytes": 64,
        "data_offset": 64,
        "page_bytes": 64,
        "tokens": 32,
        "rows": 32,
        "cut": 32,
        "logits": 32,
        "pages": 32,
    }
    h = header(put_away)
    for _ in range(100):
        changed = {}
        for name in chance.sample(list(numbers), chance.choice((1, 1, 2, 3))):
            top, old = 2 ** numbers[name] - 1, h[name]
            changed[name] = min(
                max(
                    chance.choice(
                        [0, 1, old - 1, old + 1, old + 128, 2 * old, top, top // 2, chance.randint(0, top)]
                    ),
                    0,
                ),
                top,
            )
        if "data_offset" not in changed:  # where the lists would then end
            lists = 192 + 4 * sum(changed.get(name, h[name]) for name in ("tokens", "logits", "pages"))
            changed["data_offset"] = (lists + 4095) // 4096 * 4096
        hostile(with_fields(put_away, **changed), session, tiny, build)


def test_hostile_contents(put_away, session, tiny, build):
    """Ids beyond the vocabulary, rows that are no numbers, model and cache names without end."""
    first = bytearray(put_away)
    struct.pack_into("<i", first, 192, 10**9)
    assert hostile(with_fields(first), session, tiny, build) == FAILED
    struct.pack_into("<i", first, 192, -1)
    assert hostile(with_fields(first), session, tiny, build) == FAILED
    assert hostile(with_fields(put_away, model=1, model_name=b"\xff" * 64), session, tiny, build) == FAILED
    assert hostile(with_fields(put_away, cache=b"x" * 8), session, tiny, build) == FAILED
    h = header(put_away)
    noise = bytearray(put_away[: h["data_offset"]] + random.Random(5).randbytes(2 * h["page_bytes"]))
    pages = [noise[h["data_offset"] + i * h["page_bytes"] :][: h["page_bytes"]] for i in range(2)]
    struct.pack_into("<2I", noise, 192 + 4 * h["tokens"], *map(zlib.crc32, pages))
    hostile(with_fields(noise), session, tiny, build)


def hostile(raw, session, model, build):
    session.write_bytes(raw)
    done = subprocess.run(
        [*build("debug"), model, "-n", "2", "-t", "0", "--session", session], capture_output=True, timeout=60
    )
    assert done.returncode in (0, FAILED), done.stderr.decode()
    if done.returncode:
        line = done.stderr.decode(errors="replace").splitlines()[-1]
        assert line.startswith("run: ") and "runtime error" not in line
    return done.returncode


# ---- the moment of writing


def test_in_use(session):
    """A run that waits for its prompt has the session, and under every name; a second one is refused at once.
    When the first is killed, what is left of it is in nobody's way."""
    text(*BEGIN, "-n", 2, "--session", session)
    (link := session.with_name("link")).symlink_to(session)
    process = subprocess.Popen(
        [RUN, MODEL, "-f", "-", "--session", session], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    temporary = session.with_name(session.name + TEMPORARY)
    while not locked(temporary):
        time.sleep(0.01)
    for name in session, link:
        refused(run("-n", 1, "--session", name), FAILED, name.name, "in use")
    process.kill()
    process.communicate()
    assert temporary.exists()
    before = session.stat().st_ino
    text("-n", 1, "--session", link)
    assert link.is_symlink() and session.stat().st_ino != before and not temporary.exists()


def locked(path):
    if not path.exists():
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o555])
def test_a_read_only_session_is_not_replaced(mode, put_away, session, tiny):
    """Known at the start, for root too, who may write everywhere."""
    session.write_bytes(put_away)
    session.chmod(mode)
    refused(run("-n", 1, "--session", session, model=tiny), FAILED, "session", "read-only")
    assert session.read_bytes() == put_away and session.stat().st_mode & 0o777 == mode
    assert os.listdir(session.parent) == [session.name]


def test_links(session, tiny):
    """A session by the name of a link is the link's target, which may not exist yet; the link stays."""
    (folder := session.parent / "folder").mkdir()
    for name, target in (("link", "folder/session"), ("chain", "link"), ("dangling", "folder/new")):
        (session.parent / name).symlink_to(target)
    want = text("--ids", "1 2 3", "-t", 0, "-n", 6, model=tiny).split()
    text("--ids", "1 2 3", "-t", 0, "-n", 3, "--session", session.parent / "chain", model=tiny)
    assert text("-t", 0, "-n", 3, "--session", folder / "session", model=tiny).split() == want[3:]
    text("--ids", "1 2 3", "-t", 0, "-n", 3, "--session", session.parent / "dangling", model=tiny)
    assert text("-t", 0, "-n", 3, "--session", session.parent / "dangling", model=tiny).split() == want[3:]
    assert all((session.parent / name).is_symlink() for name in ("link", "chain", "dangling"))
    assert sorted(os.listdir(folder)) == ["new", "session"]


def test_no_session_is_a_stream(session, tiny):
    """By no name: it is refused, and nothing under /dev or /proc is replaced."""
    (session.parent / "link").symlink_to("/proc/self/fd/1")
    for name in ("/proc/self/fd/1", "/dev/fd/1", session.parent / "link"):
        with open(session.parent / "out", "wb") as out:
            done = run("--ids", "1", "-n", 1, "--session", name, model=tiny, stdout=out)
        assert done.returncode == FAILED and b"not a regular file" in done.stderr
    assert sorted(os.listdir(session.parent)) == ["link", "out"]
    assert (session.parent / "link").is_symlink() and (session.parent / "out").read_bytes() == b""


@pytest.mark.parametrize("what", ["session", "notes", "hard link", "hard link to nothing", "link", "folder"])
def test_another_file_of_the_temporary_name(what, put_away, session, tiny):
    """Is left alone, whatever it is: a session of that name, notes, and through a link or a hard link a file
    elsewhere."""
    temporary, other = session.with_name(session.name + TEMPORARY), session.with_name("other")
    session.write_bytes(put_away)
    if what == "folder":
        temporary.mkdir()
    elif what == "link":
        other.write_bytes(b"precious")
        temporary.symlink_to(other)
    elif what.startswith("hard link"):
        other.write_bytes(b"" if "nothing" in what else b"precious")
        os.link(other, temporary)
    else:
        temporary.write_bytes(b"notes" if what == "notes" else put_away)
    before = {path.name: path.is_file() and path.read_bytes() for path in session.parent.iterdir()}
    refused(run("-n", 1, "--session", session, model=tiny), FAILED, TEMPORARY)
    assert {path.name: path.is_file() and path.read_bytes() for path in session.parent.iterdir()} == before


def test_a_session_with_the_name_of_a_temporary_file(session, tiny):
    """May be made and gone on with; the session that would take it for its temporary file may not."""
    name = session.with_name(session.name + TEMPORARY)
    text("--ids", "1", "-n", 1, "--session", name, model=tiny)
    text("-n", 1, "--session", name, model=tiny)
    before = name.read_bytes()
    refused(run("--ids", "1", "-n", 1, "--session", session, model=tiny), FAILED, name.name)
    assert name.read_bytes() == before and os.listdir(session.parent) == [name.name]


def test_what_is_left_is_taken_over(session, tiny):
    """Of a run that was killed at any moment while it wrote: pages, a whole session, of whatever
    permissions."""
    text("--ids", "1", "-t", 0, "-n", 1, "--session", session, model=tiny)
    whole, temporary = session.read_bytes(), session.with_name(session.name + TEMPORARY)
    for left in (b"", bytes(100), whole[:-1], whole):
        temporary.write_bytes(left)
        temporary.chmod(0o744)
        text("-n", 1, "--session", session, model=tiny)
        assert os.listdir(session.parent) == [session.name] and not session.stat().st_mode & 0o111


def test_saved_again_and_again(session, tiny):
    """As after each turn of a conversation: the file is right after each save, and locked from the beginning
    to the end, although a save takes the temporary file away."""
    turns = ["1 2 3", "4 5", "", "6 7 8 9"]
    process = subprocess.Popen(
        [BUILD / "session_driver", tiny, session, *turns],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for i in range(len(turns)):
        assert process.stdout.readline() == b"saved\n"
        raw = session.read_bytes()
        ids = [int(word) for turn in turns[: i + 1] for word in turn.split()]
        assert list(struct.unpack_from(f"<{header(raw)['tokens']}i", raw, 192)) == ids
        others = [
            subprocess.Popen([RUN, tiny, "-n", "1", "--session", session], stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        process.stdin.write(b"\n"), process.stdin.flush()  # the next save meets them
        if i + 1 < len(turns):
            assert all(b"in use" in other.communicate()[1] and other.returncode == FAILED for other in others)
        else:
            for other in others:
                other.communicate()
    assert process.wait(10) == 0
    assert os.listdir(session.parent) == [session.name] and text("-n", 1, "--session", session, model=tiny)


def test_in_use_after_a_save(session):
    """A session that a run has open is locked by itself, not by its temporary file alone, which a save takes
    away."""
    text(*BEGIN, "-n", 2, "--session", session)
    with open(session, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(run("-n", 1, "--session", session), FAILED, "in use")
    assert os.listdir(session.parent) == [session.name]
    text("-n", 1, "--session", session)


def test_two_at_once(session, tiny):
    """However runs meet, each is refused or goes on from what the one before it wrote: no token is lost."""
    text("--ids", "1", "-n", 1, "--session", session, model=tiny)
    runs = [
        subprocess.Popen(
            [RUN, tiny, "-q", "-n", "1", "--session", session],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(40)
    ]
    done = [process.wait() for process in runs]
    assert set(done) <= {0, FAILED} and 0 in done
    assert header(session.read_bytes())["tokens"] == 2 + done.count(0)


def test_killed_at_any_time(session, tiny):
    """kill -9 leaves the session as it was or as it will be, and one temporary file at most."""
    options = ["-t", "0", "-n", "2", "-k", "full", "-q", "--session", session]
    whole = [1, *map(int, text("--ids", "1", "-t", 0, "-n", 200, "-k", "full", model=tiny).split())]
    begun = time.monotonic()
    text("--ids", "1", *options, model=tiny)
    usual = time.monotonic() - begun
    chance, tokens, seen = random.Random(6), 3, set()
    for _ in range(100):
        process = subprocess.Popen([RUN, tiny, *options], stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, 1.3 * usual))
        process.kill()
        process.wait()
        raw = session.read_bytes()
        h = header(raw)
        seen.add(h["tokens"] - tokens)
        tokens = h["tokens"]
        assert with_fields(raw) == raw and len(raw) == h["file_bytes"]
        assert list(struct.unpack_from(f"<{tokens}i", raw, 192)) == whole[:tokens]
        assert set(os.listdir(session.parent)) <= {session.name, session.name + TEMPORARY}
    assert seen == {0, 2}  # or no kill was early, or none late enough
    after = text(*options, model=tiny)
    assert [int(i) for i in after.split()] == whole[tokens : tokens + 2]
    assert os.listdir(session.parent) == [session.name]


def test_no_place_to_write(session, tiny):
    """Known before the first token where that is possible; a disk that fills up all the same is a failure,
    and the session stays what it was."""
    refused(run("--ids", "1", "--session", session / "none" / "session", model=tiny), FAILED, "none")
    options = ["-t", "0", "-n", "200", "--ignore-eos", "-q", "--session", session]
    text("--ids", "1", "-n", 1, "--session", session, model=tiny)
    before = session.read_bytes()
    done = run(
        *options,
        model=tiny,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), len(before))),
    )
    assert done.returncode == FAILED and b"cannot write" in done.stderr
    assert session.read_bytes() == before and os.listdir(session.parent) == [session.name]


def test_permissions_stay(session, tiny):
    text("--ids", "1", "-n", 1, "--session", session, model=tiny)
    session.chmod(0o600)
    text("-n", 1, "--session", session, model=tiny)
    assert session.stat().st_mode & 0o777 == 0o600
