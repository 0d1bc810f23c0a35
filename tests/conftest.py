"""What every test shares:

programs   build(name): a build of ./run by another compiler, for another machine or with sanitizers
models     export(name, type): a model of tests/models as a checkpoint
the lines  a line for each file, and at the end "N passed, N failed", with ", N skipped" where a judge (a
           compiler, qemu, valgrind) is not installed. With MLA_NO_SKIP=1 in the environment a skip is a
           failure: .ci/run installs every judge and sets it."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import compare

ROOT = compare.ROOT
MODELS = ROOT / "tests" / "models"
NO_SKIP = os.environ.get("MLA_NO_SKIP") == "1"

# What `make` is told for each build, beside where to put it; "./run" itself is whatever the user built.
BUILDS = {
    "gcc": ["CC=gcc"],
    "clang": ["CC=clang"],
    "without OpenMP": ["OPENMP="],
    "aarch64": [
        "CC=aarch64-linux-gnu-gcc",
        "LDFLAGS=-static",
        "OPENMP=",
    ],  # static: qemu-user then needs no other file
    "debug": [],  # `make debug`
    "undefined": ["CFLAGS=-O1 -g1 -fsanitize=undefined -fno-sanitize-recover=undefined"],
    "32 bits": ["CC=gcc -m32"],
    "threads": ["CC=clang", "ISAS=portable", "CFLAGS=-O1 -g1 -fsanitize=thread"],
}


def need(tool):
    """Skips the test where the program `tool` is not installed."""
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")


@functools.cache
def make(name, target):
    # Variables of an outer `make test CC=...` must not leak into a build whose point is another compiler.
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "CC", "CFLAGS", "LDFLAGS")
    }
    folder = f"build/{name.replace(' ', '-')}"
    goal = f"{folder}/{target}"
    where = ["debug", f"GOAL={goal}"] if name == "debug" else [goal, f"BUILD={folder}"]
    done = subprocess.run(
        ["make", "-j2", f"PROGRAM={folder}/run", *where, *BUILDS[name]],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"make for {name} failed:\n{done.stderr}"
    assert "warning:" not in done.stderr, f"make for {name} warns:\n{done.stderr}"
    return ROOT / folder / target


@pytest.fixture(scope="session")
def build():
    """build(name): the command, as a list, that starts the build `name` of BUILDS. Made once; skips where its
    tools are missing."""

    def command(name):
        if name == "aarch64":
            need("aarch64-linux-gnu-gcc")
            need("qemu-aarch64")
            return ["qemu-aarch64", make(name, "run")]
        if name in ("gcc", "clang", "threads"):
            need("gcc" if name == "gcc" else "clang")
        return [make(name, "run")]

    return command


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """export(source, type): the checkpoint that export.py makes of a Hugging Face directory. Made once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def checkpoint(source, type):
        out = folder / f"{Path(source).name}-{type}.bin"
        compare.export(source, out, "--type", type)
        return out

    return checkpoint


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, and MLA_NO_SKIP=1 allows no skip: {call.excinfo.value if call.excinfo else report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus():
    """A line for each file, with a letter for each test that is no success: not hundreds of dots."""
    category, letter, word = yield
    return category, "" if category.endswith("passed") else letter, word


# The last hook of a run: pytest's own summary stands above.
def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not reporter or config.option.collectonly:
        return
    count = {key: len(reports) for key, reports in reporter.stats.items()}
    passed = count.get("passed", 0) + count.get("subtests passed", 0)
    failed = count.get("failed", 0) + count.get("error", 0)
    skipped = count.get("skipped", 0) + count.get("subtests skipped", 0)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
