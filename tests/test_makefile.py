"""The Makefile: what it asks the compiler and when, what it writes where, what it prints."""

import os
import pty
import re
import subprocess
import sys

import bench
import pytest
from support import ROOT, make, need, variables

STORY = b"> Tell me a story about a dog and a red ball.\n"


def environment(**more):
    """Without the variables of an outer make."""
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "CC", "CFLAGS", "LDFLAGS", "V")
    return {**{key: value for key, value in os.environ.items() if key not in outer}, **more}


def run_make(*arguments, **more):
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment(**more), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compiler(folder, script):
    """A compiler: a shell script that notes each call in `folder`/calls."""
    path = folder / "cc"
    path.write_text(f'#!/bin/sh\necho "$*" >>{folder}/calls\n{script}\n')
    path.chmod(0o755)
    return f"CC={path}", folder / "calls"


def answers(path):
    """What compiler.mk says: {variable: words}."""
    found = {}
    for name, value in re.findall(r"(\w+) \+?= ?(.*)", path.read_text()):
        found[name] = f"{found.get(name, '')} {value}".split()
    return found


def test_probes_come_once_and_write_into_build(tmp_path):
    """-o /dev/null, as root, makes some compilers replace the device by a file."""
    need("gcc")
    cc, calls = compiler(tmp_path, 'exec gcc "$@"')
    folder = tmp_path / "build"
    for goal in ("clean", "help", "analyse", "format"):
        run_make("-n", goal, cc, f"BUILD={folder}")
    assert not calls.exists() and not folder.exists()
    goal = [f"{folder}/compiler.mk", cc, f"BUILD={folder}"]
    run_make(*goal)
    lines = calls.read_text().splitlines()
    assert lines and not any("-o /dev" in line for line in lines)
    assert sum("-fopenmp" in line for line in lines) == 1
    run_make(*goal)
    assert calls.read_text().splitlines() == lines
    run_make(*goal, "CFLAGS=-O1")  # another compilation, another answer
    assert len(calls.read_text().splitlines()) == 2 * len(lines)


# What stands in for gcc, and whether programs with OpenMP run then.
COMPILERS = {
    "gcc": ('exec gcc "$@"', True),
    "has no OpenMP": ('case "$*" in *-fopenmp*) exit 1;; esac; exec gcc "$@"', False),
    "its programs with OpenMP die": (
        'case "$*" in *-fopenmp*) ;; *) exec gcc "$@";; esac\n'
        'for last; do :; done; printf "#!/bin/sh\\nexit 127" >"$last"; chmod +x "$last"',
        False,
    ),
}


@pytest.mark.parametrize("name", COMPILERS)
def test_openmp_counts_if_it_runs(name, tmp_path):
    need("gcc")
    script, openmp = COMPILERS[name]
    cc, _ = compiler(tmp_path, script)
    folder = tmp_path / "build"
    run_make(f"{folder}/compiler.mk", cc, f"BUILD={folder}")
    assert answers(folder / "compiler.mk")["OPENMP"] == (["-fopenmp"] if openmp else [])


def test_no_openmp_is_said(build):
    """When the program is linked, by --version, and by -j (test_builds.py)."""
    program = build("without OpenMP")[0]
    program.unlink()
    folder = program.parent.relative_to(ROOT)
    said = run_make(f"{folder}/run", f"BUILD={folder}", f"PROGRAM={folder}/run", *variables("without OpenMP"))
    assert "without OpenMP" in said
    assert b"built without OpenMP, 1 thread\n" in subprocess.check_output([program, "--version"])


def test_quiet_unless_asked():
    need("gcc")
    folder = make("without OpenMP", "run").parent.relative_to(ROOT)
    goal = [
        f"{folder}/run",
        *variables("without OpenMP"),
        f"BUILD={folder}",
        f"PROGRAM={folder}/run",
        "-W",
        "tokenizer.c",
    ]
    said = run_make(*goal).splitlines()
    assert said[:2] == ["compile  tokenizer.c", f"link     {folder}/run"]
    assert len(said) == 3 and "without OpenMP" in said[2]
    assert "gcc -O1" in run_make(*goal, "V=1")


def test_help_names_every_goal():
    makefile = (ROOT / "Makefile").read_text()
    goals = set(re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split()) - {"all", "help", "probe-again"}
    said = run_make("help")
    assert {goal for goal in goals if f"make {goal} " in said} == goals


def test_demo_of_any_build():
    """With what it was asked, and on a terminal too."""
    need("gcc")
    folder = make("without OpenMP", "run").parent.relative_to(ROOT)
    goal = ["make", "demo", *variables("without OpenMP"), f"BUILD={folder}", f"PROGRAM={folder}/run"]
    done = subprocess.run(goal, cwd=ROOT, env=environment(), capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(STORY), done
    master, slave = pty.openpty()
    process = subprocess.Popen(goal, cwd=ROOT, env=environment(), stdout=slave, stderr=subprocess.DEVNULL)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(master)
    assert process.wait() == 0 and shown.replace(b"\r", b"") == done.stdout


def test_bench_beside_a_commit():
    """Ratios are those of neighbours in time, and what one of the two did not measure is left out."""
    prefill, decode = ("prefill", "0", "64"), ("decode", "0", "1")
    base = [{prefill: 10.0, decode: 1.0}, {prefill: 20.0}]
    now = [{prefill: 11.0, decode: 1.0}, {prefill: 20.0, decode: 1.0}]
    _, line, *more = bench.table(base, now)
    assert line.split() == "prefill 0 64 15.00 15.50 1.050 1.000 to 1.100".split()
    assert not more
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "bench.py", "no-such-commit", "run", "model"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no-such-commit" in done.stderr
