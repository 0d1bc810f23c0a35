"""Exports that end before their time, and --check. What the tests protect:

the name      whenever the process is killed, the file under its name is whole or not there
--resume      what is finished is used after it was checked; what is damaged, or of another source, is not
one at a time two exports never write one file, and nobody's file is taken for an unfinished checkpoint
the source    a file that changes while it is read is one line and no checkpoint
--check       says sizes without writing, and what is missing as an export would"""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from support import ROOT, copy_model

from exporter import command, sources, writer
from exporter.writer import PARTIAL_MAGIC

EXPORT = [sys.executable, str(ROOT / "export.py")]


@pytest.fixture
def source(tmp_path):
    return copy_model(tmp_path / "source")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes that the source gives."""
    folder = tmp_path_factory.mktemp("whole")
    assert command.main([str(copy_model(folder / "source")), str(folder / "model.bin")]) == 0
    return (folder / "model.bin").read_bytes()


@pytest.fixture
def written(monkeypatch):
    """The names of the tensors that are written; after `written.stop` of them comes Ctrl-C."""

    class Written(list):
        stop = 1 << 30

    names, write = Written(), writer.write_tensor

    def counted(out, entry, offset, end, pieces):
        if len(names) == names.stop:
            raise KeyboardInterrupt
        names.append(entry.name)
        return write(out, entry, offset, end, pieces)

    monkeypatch.setattr(writer, "write_tensor", counted)
    return names


def test_killed_at_any_moment(source, tmp_path, whole):
    """SIGKILL gives no chance to clean up. No process is left that would go on writing."""
    out = tmp_path / "out" / "model.bin"
    out.parent.mkdir()
    choose = random.Random(1)
    for _ in range(12):
        run = subprocess.Popen([*EXPORT, source, out], stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(choose.uniform(0.2, 0.9))
        run.kill()
        run.wait()
        assert set(os.listdir(out.parent)) <= {"model.bin", "model.bin.partial"}
        assert not out.exists() or out.read_bytes() == whole
        out.unlink(missing_ok=True)
        end = time.monotonic() + 20
        while subprocess.run(["pgrep", "-s", str(run.pid)], capture_output=True).stdout:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert subprocess.run([*EXPORT, source, out], capture_output=True).returncode == 0
    assert os.listdir(out.parent) == ["model.bin"] and out.read_bytes() == whole


def test_resumed(source, tmp_path, whole, written):
    out, written.stop = tmp_path / "model.bin", 40
    assert command.main([str(source), str(out), "--resume"]) == 130
    assert not out.exists() and (tmp_path / "model.bin.partial").exists()
    first, written.stop = list(written), 1 << 30
    written.clear()
    assert command.main([str(source), str(out), "--resume"]) == 0
    assert len(first) == 40 and not set(first) & set(written) and out.read_bytes() == whole
    assert not (tmp_path / "model.bin.partial").exists()


@pytest.mark.parametrize("before", [False, True], ids=["written", "not written"])
def test_interrupted_while_it_writes(before, source, tmp_path, whole, monkeypatch):
    """What was being written, and what waited behind it, is written then; the next run goes on from there."""
    out, write, pages = tmp_path / "model.bin", os.pwrite, itertools.count()

    def pwrite(descriptor, data, offset):
        interrupted = len(data) % 4096 == 0 and next(pages) == 20
        count = 0 if interrupted and before else write(descriptor, data, offset)
        if interrupted:
            raise KeyboardInterrupt
        return count

    monkeypatch.setattr(writer, "HUGE_PAGE", 4096)
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert command.main([str(source), str(out), "--resume"]) == 130
    assert command.main([str(source), str(out), "--resume"]) == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize("damage", ["tensor", "source", "option", "shorter", "other front"])
def test_what_is_not_used_again(damage, source, tmp_path, whole, written):
    """A tensor that is not as it was written is made anew, and all of them if the source is another one or
    the checkpoint is to be another one."""
    out, partial, written.stop = tmp_path / "model.bin", tmp_path / "model.bin.partial", 40
    options = ["--type", "q8"] if damage == "option" else []
    assert command.main([str(source), str(out), "--resume", *options]) == 130
    first, written.stop = list(written), 1 << 30
    written.clear()
    if damage == "tensor":
        raw = bytearray(partial.read_bytes())
        raw[-1] ^= 1
        partial.write_bytes(raw)
    elif damage == "shorter":
        os.truncate(partial, partial.stat().st_size - 1)
    elif damage == "source":
        os.utime(source / "model.safetensors")
    elif damage == "other front":
        text = (source / "config.json").read_text()
        (source / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert command.main([str(source), str(out), "--resume"]) == 0
    used = set(first) - set(written)
    if damage in ("tensor", "shorter"):
        assert len(used) == 39
    elif damage != "other front":
        assert not used
    assert damage == "other front" or out.read_bytes() == whole


def test_nobodys_file_is_touched(source, tmp_path, capsys):
    partial = tmp_path / "model.bin.partial"
    partial.write_bytes(b"mine")
    assert command.main([str(source), str(tmp_path / "model.bin")]) == 1
    assert "is no unfinished checkpoint" in capsys.readouterr().err and partial.read_bytes() == b"mine"
    partial.unlink()
    (tmp_path / "other").write_bytes(PARTIAL_MAGIC)
    partial.symlink_to(tmp_path / "other")
    assert command.main([str(source), str(tmp_path / "model.bin")]) == 1
    assert partial.is_symlink() and (tmp_path / "other").read_bytes() == PARTIAL_MAGIC


def test_two_exports_of_one_name(source, tmp_path, capsys):
    with writer.Output(tmp_path / "model.bin"):
        assert command.main([str(source), str(tmp_path / "model.bin")]) == 1
        assert "another export is writing it" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["time", "longer", "shorter"])
def test_a_source_that_changes(change, source, tmp_path, capsys, monkeypatch):
    path = source / "model.safetensors"
    check = sources.Source.check_unchanged

    def changed(self):
        with open(path, "r+b") as file:
            file.seek(0, 2)
            if change == "longer":
                file.write(b"x")
            elif change == "shorter":
                file.truncate(file.tell() - 1)
        os.utime(path)
        check(self)

    monkeypatch.setattr(sources.Source, "check_unchanged", changed)
    assert command.main([str(source), str(tmp_path / "model.bin")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "model.safetensors: changed while it was read" in line
    assert not list(tmp_path.glob("model.bin*"))


def test_a_worker_that_is_ended(source, tmp_path, capsys, monkeypatch):
    """As the system does when memory runs out."""
    monkeypatch.setattr(command.Packer, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert command.main([str(source), str(tmp_path / "model.bin")]) == 1
    assert "out of memory?" in capsys.readouterr().err and not list(tmp_path.glob("model.bin*"))


def test_check(source, tmp_path, capsys, whole):
    """The sizes are those of the files; nothing is written, and what is missing is told as by an export."""
    before = sorted(tmp_path.rglob("*"))
    assert command.main(["--check", str(source)]) == 0
    said = capsys.readouterr()
    assert re.search(rf"^mixed +{len(whole) / 1e6:.2f} MB ", said.out, re.M), said.out
    assert all(re.search(rf"^{name} ", said.out, re.M) for name in ("f32", "bf16", "q8", "q4"))
    assert "--ids" in said.out and sorted(tmp_path.rglob("*")) == before
    (source / "model.safetensors").unlink()
    assert command.main(["--check", str(source)]) == 1
    assert "no *.safetensors" in capsys.readouterr().err
    for wrong in (["--check", "a", "b"], ["--check", "a", "--resume"], ["--check", "--random", "moonlight"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(wrong)
