"""exporter/bounded.py: a function in a process of its own, with limits of CPU time and memory."""

import os
import subprocess
import sys
import time

import pytest
from support import ROOT

from exporter.bounded import ChildFailed, LimitExceeded, run_bounded
from exporter.errors import ExportError, printable
from exporter.sources import parse_json, read_json

SMALL = {"seconds": 2, "memory": 1 << 28}


def test_result_and_arguments():
    """A result comes back whole, even where the function prints, and even a large one."""
    assert run_bounded(printable, "a\nb", 120, **SMALL) == "a\\nb"
    assert run_bounded(print, "not the result", **SMALL) is None
    assert run_bounded(bytes, 50 << 20, **SMALL) == bytes(50 << 20)


def test_modules_are_found_from_anywhere(tmp_path):
    """The current directory does not matter, and its modules take no other's place."""
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong module')")
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}\n"
        "from exporter.bounded import run_bounded; from exporter.errors import printable\n"
        "print(run_bounded(printable, 'found', seconds=2, memory=1 << 28))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "found\n", done.stderr


def test_cpu_time_is_what_counts():
    """Work without an end ends after its CPU time; a child that only waits is given the time."""
    start = time.monotonic()
    with pytest.raises(LimitExceeded, match="2 seconds of CPU time"):
        run_bounded(pow, 7, 7**12, **SMALL)
    assert time.monotonic() - start < 60
    run_bounded(time.sleep, 4, **SMALL)  # twice the limit, by the clock on the wall


def test_memory():
    with pytest.raises(LimitExceeded, match="256 MB of memory"):
        run_bounded(bytes, 1 << 40, **SMALL)


def test_errors():
    """A refusal arrives as it was raised; anything else is a defect of the program and says where."""
    with pytest.raises(ExportError, match="not JSON") as refused:
        run_bounded(parse_json, b"{", "config.json", **SMALL)
    assert not isinstance(refused.value, LimitExceeded)
    with pytest.raises(FileNotFoundError) as absent:
        run_bounded(read_json, "/does/not/exist.json", **SMALL)
    assert absent.value.filename == "/does/not/exist.json"
    with pytest.raises(ChildFailed, match=r"ValueError at .*: invalid literal"):
        run_bounded(int, "no number", **SMALL)
    with pytest.raises(ChildFailed, match="status"):
        run_bounded(os.abort, **SMALL)
