"""The C tests: each program prints a line `ok NAME` or `FAIL NAME ...` for every case, and each line counts."""

import subprocess

import pytest

import compare
from conftest import ROOT


def judge(command, subtests):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAIL "))]
    assert lines, f"no case was run:\n{done.stdout}{done.stderr}"
    for line in lines:
        with subtests.test(line):
            assert line.startswith("ok ")
    assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stderr}"


@pytest.mark.parametrize("program", ["test_kernels", "test_attention", "test_team"])
def test_program(program, subtests):
    judge([compare.BUILD / program], subtests)
