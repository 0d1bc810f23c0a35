"""Builds that no result should depend on, and what only they can see: memory errors (AddressSanitizer,
UndefinedBehaviorSanitizer, valgrind), data races (ThreadSanitizer), what cppcheck finds, and the promise
of a program without OpenMP to say that it has one thread. Every build is without a warning
(support.make)."""

import platform
import subprocess
from pathlib import Path

import compare
import pytest
from support import C_TESTS, MODELS, ROOT, judge, make, need

DEMO = ROOT / "demo" / "stories.bin"
STORY = ["-p", "Once upon a time", "-n", "8", "-s", "1"]
# What the programs of tests/ are told here, because sanitizers are slow: one in so many random rounds (no
# divisor of what rounds are taken modulo), every shape once. In test_c.py they run without sanitizers, whole.
LESS = {"test_kernels": ["11"], "test_attention": ["once"]}


def c_test(build, program):
    return [make(build, program), *LESS.get(program, [])]


@pytest.mark.parametrize("program", C_TESTS)
def test_sanitizers_on_c_tests(program, subtests):
    judge(c_test("debug", program), subtests)


@pytest.mark.parametrize("type", ["f32", "q8", "q4"])
@pytest.mark.parametrize("path", ["absorbed", "decompressed"])
@pytest.mark.parametrize("name", ["v2lite", "v32"])
def test_sanitizers_on_a_tiny_model(name, type, path, export, build):
    ids, _ = compare.expected(MODELS / name, None, None)
    compare.logits(export(MODELS / name, type), ids, program=build("debug"), MLA_PATH=path)


def test_sanitizers_on_a_story(build):
    compare.run(DEMO, *STORY, program=build("debug"))


@pytest.mark.parametrize("program", C_TESTS)
def test_undefined_behaviour_in_c_tests(program, subtests):
    """UndefinedBehaviorSanitizer alone: AddressSanitizer's allocator aligns more than malloc does, and hides
    accesses that are not aligned."""
    judge(c_test("undefined", program), subtests)


@pytest.mark.parametrize("cache", ["f32", "q8", "q4", "full"])
def test_undefined_behaviour_in_a_story(cache, build):
    compare.run(DEMO, *STORY, "-k", cache, program=build("undefined"))


def test_32_bits(tmp_path, subtests):
    """No warning (support.make), and the kernels' tests."""
    if platform.machine() != "x86_64":
        return  # gcc knows no 32 bits there
    need("gcc")
    probe = ["gcc", "-m32", "-fopenmp", "-x", "c", "-", "-o", tmp_path / "probe"]
    if subprocess.run(probe, input=b"int main(void) { return 0; }", capture_output=True).returncode:
        pytest.skip("gcc's libraries for 32 bits are not installed")
    make("32 bits", "run")
    judge(c_test("32 bits", "test_kernels"), subtests)


def test_valgrind_on_a_story():
    """Reads of bytes that nothing has written, which the sanitizers cannot see."""
    need("valgrind")
    compare.run(
        DEMO,
        *STORY,
        "-j",
        "1",
        program=["valgrind", "-q", "--error-exitcode=9", *compare.RUN],
    )


@pytest.mark.parametrize("options", [["-k", "q8"], ["-k", "full"]], ids=" ".join)
def test_no_data_races(options, build):
    """ThreadSanitizer. What OpenMP itself orders, the beginning and end of a parallel region, it is told by
    libarcher, which comes with clang's OpenMP."""
    program = build("threads")
    resources = subprocess.run(
        ["clang", "-print-resource-dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    archer = Path(resources).parents[1] / "libarcher.so"
    if not archer.exists():
        pytest.skip("libarcher is not installed")
    environment = {
        "OMP_TOOL_LIBRARIES": str(archer),
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 exitcode=9",
    }
    compare.run(DEMO, *STORY, "-j", "3", *options, program=program, **environment)


def test_threads_without_openmp_are_an_error(build):
    command = [*build("without OpenMP"), DEMO, *STORY, "-j", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "OpenMP" in done.stderr and done.stdout == ""


def test_analysis():
    """cppcheck has nothing to say."""
    need("cppcheck")
    done = subprocess.run(["make", "analyse"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
