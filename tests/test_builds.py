"""Builds that no result should depend on, and what only they can see: memory errors (AddressSanitizer, UndefinedBehaviorSanitizer, valgrind),
and the promise of a program without OpenMP to say that it has one thread. Every build is without a warning (conftest.make)."""

import subprocess

import pytest

import compare
from conftest import MODELS, ROOT, make, need
from test_c import judge

STORY = ["-p", "Once upon a time", "-n", "8", "-s", "1"]


@pytest.mark.parametrize("program", ["test_kernels", "test_attention"])
def test_sanitizers_on_c_tests(program, subtests):
    judge([make("debug", program)], subtests)


@pytest.mark.parametrize("type", ["f32", "q8", "q4"])
@pytest.mark.parametrize("path", ["absorbed", "decompressed"])
@pytest.mark.parametrize("name", ["v2lite", "v32"])
def test_sanitizers_on_a_tiny_model(name, type, path, export, build):
    ids, _ = compare.expected(MODELS / name, None, None)
    compare.logits(export(MODELS / name, type), ids, program=build("debug"), MLA_PATH=path)


def test_sanitizers_on_a_story(build):
    compare.run(ROOT / "demo" / "stories.bin", *STORY, program=build("debug"))


def test_valgrind_on_a_story():
    """Reads of bytes that nothing has written, which the sanitizers cannot see."""
    need("valgrind")
    compare.run(ROOT / "demo" / "stories.bin", *STORY, "-j", "1", program=["valgrind", "-q", "--error-exitcode=9", *compare.RUN])


def test_threads_without_openmp_are_an_error(build):
    command = [*build("without OpenMP"), ROOT / "demo" / "stories.bin", *STORY, "-j", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "OpenMP" in done.stderr and done.stdout == ""
