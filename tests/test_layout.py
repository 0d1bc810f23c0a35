"""The house rules that a program can check: which way includes point, lengths of files, functions and lines,
what stays in kernels/, the form that `make format` gives, and what ruff and mypy find.

    kernels/ <- model.h <- engine/ <- mla.c, tokenizer.c <- run.c <- cli/

A file includes only what stands to its left or beside it. The one exception is main, which stands at the end
of run.c: it calls the modes and reports errors."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compare import BUILD
from support import ROOT, need

FLOORS = {"kernels": 0, "model.h": 1, "engine": 2, "mla": 3, "tokenizer": 3, "run": 4, "cli": 5}
EXCEPTIONS = {("run.c", "cli/modes.h"), ("run.c", "cli/output.h")}
MOST_COLUMNS, MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 110, 600, 60


def tracked(*patterns):
    """{path: text} of the files that git knows; of a copy without git, all."""
    listed = subprocess.run(["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = listed.stdout.split("\n")[:-1]
    else:
        paths = [path.relative_to(ROOT) for pattern in patterns for path in ROOT.rglob(pattern)]
    return {
        str(path): (ROOT / path).read_text(encoding="utf-8")
        for path in paths
        if (ROOT / path).exists() and Path(path).parts[0] != "build"
    }


C, PYTHON = tracked("*.c", "*.h"), tracked("*.py")
SOURCES = {path: text for path, text in C.items() if not path.startswith("tests/")}


def floor(path):
    first = Path(path).parts[0]
    return FLOORS.get(first if first in FLOORS else first.split(".")[0], 5)


def includes(path):
    """The files of ours that a file includes."""
    found = re.findall(r'^#include "(.*)"', C[path], re.M)
    beside = [str(Path(path).parent / name) for name in found]
    return [near if near in C else name for near, name in zip(beside, found, strict=True)]


def test_every_source_has_a_floor():
    top = {path for path in SOURCES if "/" not in path}
    assert top == {"run.c", "mla.c", "model.h", "tokenizer.c", "tokenizer.h"}
    assert {path.split("/")[0] for path in set(SOURCES) - top} == {"kernels", "engine", "cli"}


def test_includes_point_one_way():
    wrong = [
        f"{path} includes {name}"
        for path in SOURCES
        for name in includes(path)
        if floor(name) > floor(path) and (path, name) not in EXCEPTIONS
    ]
    assert not wrong


def test_no_cycle_of_includes():
    """Of files, and of pairs of .c and .h: state.c -> cache.h and cache.c -> state.h is one, too. kernels.c
    is the sum of its headers."""
    unit = lambda path: str(Path(path).with_suffix(""))
    edges = {}
    for path in SOURCES.keys() - {"kernels/kernels.c"}:
        for name in includes(path):
            if unit(name) != unit(path) and (path, name) not in EXCEPTIONS:
                edges.setdefault(unit(path), set()).add(unit(name))
    done, cycles = set(), []

    def visit(name, way):
        if name in way:
            cycles.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for following in sorted(edges.get(name, ())):
                visit(following, [*way, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    assert not cycles


def test_conditions_and_intrinsics_stay_in_kernels():
    """Outside there are include guards, OpenMP, and what Linux alone knows of mapped files."""
    wrong = []
    for path, text in SOURCES.items():
        if path.startswith("kernels/"):
            continue
        name = re.sub(r"\W", "_", Path(path).name).upper()
        guard = f"({Path(path).parent.name.upper()}_)?{name}"
        for line in text.splitlines():
            condition = re.match(r"#\s*(?:if|ifdef|ifndef|elif)\b(.*)", line)
            if condition and not re.search(rf"\b((?:ENGINE_)?{guard}|_OPENMP|MADV_HUGEPAGE)\b", condition[1]):
                wrong.append(f"{path}: {line}")
            if re.search(r"\b_mm\d*_|\bv\w+q_[fsu]\d+\(|__builtin_ia32|immintrin|arm_neon", line):
                wrong.append(f"{path}: {line}")
    assert not wrong


def test_length_of_lines():
    files = {**C, **PYTHON}
    long = [
        f"{path}:{number} has {len(line)} columns"
        for path, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > MOST_COLUMNS
    ]
    assert not long


def test_length_of_files():
    files = {**SOURCES, **{path: text for path, text in PYTHON.items() if not path.startswith("tests/")}}
    lengths = {path: len(text.splitlines()) for path, text in files.items()}
    assert not {path: lines for path, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE}


def c_functions(text):
    """(name, lines) of the functions of a file that clang-format has formed. Tables end with `};`."""
    lines = text.splitlines()
    begin, name = None, ""
    for number, line in enumerate(lines):
        if begin is None and line.endswith("{") and not line.startswith((" ", "#", "}")):
            begin = number  # a definition over several lines begins where the last empty line or brace ends
            while begin and lines[begin - 1].startswith((" ", "__attribute__")) and lines[begin - 1].strip():
                begin -= 1
            name = (re.findall(r"(\w+)\s*\(", "".join(lines[begin : number + 1])) or [line])[0]
        elif begin is not None and line.startswith("}"):
            if line == "}":
                yield name, number + 1 - begin
            begin = None


def python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno + 1 - node.lineno


def test_length_of_functions():
    long = []
    for path, text in {**SOURCES, **PYTHON}.items():
        if not path.startswith("tests/"):
            functions = python_functions(text) if path.endswith(".py") else c_functions(text)
            long += [f"{path}: {name} has {n} lines" for name, n in functions if n > MOST_LINES_OF_A_FUNCTION]
    assert not long


def test_c_is_formatted():
    need("clang-format")
    done = subprocess.run(
        ["clang-format", "--dry-run", "--Werror", *C], cwd=ROOT, capture_output=True, text=True
    )
    others = sorted(set(re.findall(r"^(\S+?):\d+:\d+: error", done.stderr, re.M)))
    assert others == [] and done.returncode == 0, "make format mends it"


def tool(name):
    """A program beside the interpreter of the tests, or on the path."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return str(beside)
    need(name)
    return name


def clean(*command):
    """The command finds nothing to say."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_is_formatted():
    clean(tool("ruff"), "format", "--check", "--no-cache", *PYTHON)


def test_python_has_no_likely_mistake():
    """The rules are in pyproject.toml."""
    clean(tool("ruff"), "check", "--no-cache", *PYTHON)


def test_exporter_has_types():
    """mypy's strict mode: every function says what it takes and gives, and keeps to it."""
    pytest.importorskip("jinja2")
    clean(tool("mypy"), "--python-executable", sys.executable, "--cache-dir", str(BUILD / "mypy"))
