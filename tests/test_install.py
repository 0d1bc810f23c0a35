"""make install and make uninstall, and what is made from the table of options: --help, man page, completions.
The judges are the programs that read them: mandoc, groff, bash, zsh, fish, pip's reader of pyproject.toml."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from support import MODEL, ROOT, RUN, need, refused, run, text

FILES = {
    "bin/mla",
    "bin/mla-export",
    "share/man/man1/mla.1",
    "share/bash-completion/completions/mla",
    "share/zsh/site-functions/_mla",
    "share/fish/vendor_completions.d/mla.fish",
    "share/mla/export.py",
    "share/mla/exporter/pack.so",
}


def make(goal, prefix, destination, status=0):
    env = {key: value for key, value in os.environ.items() if not key.startswith("M") or key == "MLA_BUILD"}
    built = [f"PROGRAM={RUN}", "-o", RUN, "BUILD=build/install"]  # as it is, whoever compiled it
    command = ["make", goal, f"PREFIX={prefix}", f"DESTDIR={destination}", *built]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A prefix with everything in it."""
    prefix = tmp_path_factory.mktemp("installed") / "usr"
    make("install", prefix, "")
    return prefix


def test_uninstall_leaves_what_was_there(tmp_path):
    """Twice installed, used once, uninstalled: nothing is left of ours, and all that was there before is."""
    there = ["usr/bin", "usr/share/man", "usr/share/fish/vendor_completions.d"]
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    before = tree(tmp_path)
    make("install", "/usr", tmp_path)
    make("install", "/usr", tmp_path)
    assert tree(tmp_path / "usr") >= FILES
    program = tmp_path / "usr" / "bin" / "mla-export"
    done = subprocess.run([program, "--help"], env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})
    assert done.returncode == 0 and (tmp_path / "usr/share/mla/exporter/__pycache__").exists()
    other = tmp_path / "usr/share/zsh/site-functions/_other"
    other.write_text("of another program")
    make("uninstall", "/usr", tmp_path)
    assert tree(tmp_path) == before | {str(p.relative_to(tmp_path)) for p in [other, *other.parents[:3]]} - {
        "."
    }
    assert "nothing of mla" in make("uninstall", "/usr", tmp_path, status=2)
    assert "PREFIX" in make("install", "usr", tmp_path, status=2)


def test_installed_programs_work_anywhere(installed, tmp_path):
    """Under their new names, from another folder."""
    story = ["-p", "Once", "-t", "0", "-n", "8", "-q"]
    done = subprocess.run([installed / "bin" / "mla", MODEL, *story], cwd=tmp_path, capture_output=True)
    assert done.stdout == text(*story)
    for program in ("mla", "mla-export"):
        done = subprocess.run([installed / "bin" / program, "--nonsense"], capture_output=True, text=True)
        assert (
            done.returncode == 2 and done.stderr.startswith(f"{program}: ") and done.stderr.count("\n") == 1
        )
    command = [sys.executable, installed / "bin" / "mla-export", "--random", "youtu-2b", "--layers", "1"]
    subprocess.run([*command, "--type", "q4", tmp_path / "x.bin"], check=True, stderr=subprocess.DEVNULL)
    assert b"youtu-2b" in text("--info", model=tmp_path / "x.bin")


def test_help_fits_a_terminal():
    lines = text("--help", model=None).decode().splitlines()
    assert lines and not [line for line in lines if len(line) > 80 or line != line.rstrip()]


def options():
    """{name: letter or ""} of --help."""
    shown = re.findall(r"^  (?:-(\w),|   ) --([\w-]+)", text("--help", model=None).decode(), re.M)
    assert len(shown) > 30
    return {name: letter for letter, name in shown}


def test_formats():
    refused(run("--generate", "pdf", model=None), 2, "--generate", "man", "pdf")
    for kind in ("man", "bash", "zsh", "fish"):
        written = text("--generate", kind, model=None).decode().replace("\\-", "-")
        for name, letter in options().items():
            assert re.search(rf"(--|-l ){name}\b", written), f"{kind} lacks --{name}"
            assert re.search(rf"(-|-s ){letter}\b", written), f"{kind} lacks -{letter}"


def test_written_without_memory_errors(build):
    """The same text with sanitizers, which end the program at a read or write out of bounds."""
    for options in (["--help"], *(["--generate", kind] for kind in ("man", "bash", "zsh", "fish"))):
        written = subprocess.check_output([*build("debug"), *options])
        assert written == text(*options, model=None)


def test_man_page_is_in_order(installed):
    """mandoc misses nothing but a date. groff warns of nothing, and shows the text whole."""
    page = installed / "share/man/man1/mla.1"
    need("mandoc")
    found = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True).stdout
    assert [line for line in found.splitlines() if "missing date" not in line] == []
    need("groff")
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tascii", "-P-cbou", page], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    words = re.sub(r"\s+", " ", done.stdout)
    assert r"interpret \n \t \\ \xHH" in words and 'mla model.bin -p "Once upon a time"' in words
    for variable in ("MLA_ISA", "MLA_PATH", "MLA_CHUNK", "MLA_PAGES", "OMP_NUM_THREADS"):
        assert variable in words


def bash_offers(script, *words):
    """What bash would complete the last word to."""
    line = " ".join(f"'{word}'" for word in words)
    ask = (
        f". {script} && [[ $(complete -p mla) == 'complete -o default -F _mla mla' ]] || exit 9\n"
        f"COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}; _mla && printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    return subprocess.check_output(["bash", "-c", ask], text=True).split()


def test_bash(installed):
    need("bash")
    script = installed / "share/bash-completion/completions/mla"
    assert bash_offers(script, "mla", "m.bin", "--to") == ["--tokens", "--top-k", "--top-p", "--tokenize"]
    assert bash_offers(script, "mla", "-k", "q") == ["q8", "q6", "q4"]
    assert bash_offers(script, "mla", "--cache", "=", "q") == ["q8", "q6", "q4"]
    assert bash_offers(script, "mla", "--cache", "=") == [
        *("f32", "bf16", "q8", "q6", "q4"),
        *("full", "full-bf16", "full-q8"),
    ]
    assert bash_offers(script, "mla", "-p", "--to") == []  # a value is no option
    assert bash_offers(script, "mla", "demo") == []  # files: bash does it, by -o default
    for name, letter in options().items():
        assert f"--{name}" in bash_offers(script, "mla", f"--{name}")
        assert not letter or f"-{letter}" in bash_offers(script, "mla", f"-{letter}")


def test_fish(installed):
    need("fish")
    script = installed / "share/fish/vendor_completions.d/mla.fish"

    def offers(line):
        done = subprocess.check_output(["fish", "-c", f"source {script}; complete -C '{line}'"], text=True)
        return dict((f"{row}\t").split("\t")[:2] for row in done.splitlines())

    assert set(offers("mla m.bin -k q")) == {"q8", "q6", "q4"}
    shown = offers("mla m.bin --")
    assert set(shown) == {f"--{name}" for name in options()}
    assert shown["--escape"].startswith(r"interpret \n \t \\ \xHH")


def test_zsh(installed, tmp_path):
    """At a terminal, because zsh completes nowhere else: Tab, then a key that writes the line into a file."""
    need("zsh")
    cases = {
        "mla m.bin --repe": "mla m.bin --repeat-penalty=",
        "mla -k bf": "mla -k bf16 ",
        "mla --generate=fi": "mla --generate=fish ",
        "mla --stop a --sto": "mla --stop a --stop=",  # may come again
        "mla -c 9 --conte": "mla -c 9 --conte",  # may not
    }
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, start_new_session=True
    )
    os.close(slave)
    try:
        folder = installed / "share/zsh/site-functions"
        setup = (
            f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word\n"
        )
        show = "show() { print -r -- \"$BUFFER\" >>shown; BUFFER= }; zle -N show; bindkey '^X' show\n"
        os.write(master, (setup + show + ": >shown\n").encode())
        shown = tmp_path / "shown"
        for count, line in enumerate([*cases, ""]):
            deadline = time.monotonic() + 60
            while not shown.exists() or shown.read_text().count("\n") < count:
                assert time.monotonic() < deadline, "zsh does not answer"
                if select.select([master], [], [], 0.05)[0]:
                    os.read(master, 65536)
            if line:
                os.write(master, f"{line}\t\x18".encode())
        assert shown.read_text().split("\n")[:-1] == list(cases.values())
    finally:
        shell.kill()
        shell.wait()
        os.close(master)


def test_one_version():
    """VERSION is what the program, the man page and the package of the exporter say."""
    version = (ROOT / "VERSION").read_text().strip()
    assert text("--version", model=None).decode().startswith(f"mla.c {version}\n")
    assert f'"mla.c {version}"' in text("--generate", "man", model=None).decode()
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"file": "VERSION"}
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
