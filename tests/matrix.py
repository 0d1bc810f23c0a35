"""The same bytes from every build:  python tests/matrix.py [--write CASES]   (make matrix)

tests/hashes.json holds a hash of the logits, or of a text, for every case: three weight types, six cache
types, prompts of 1, 7 and 300 tokens, and a text that goes on from a session. `--write '* -k q6 *'` computes
the hashes of the cases with such names anew, with ./run on one thread, and leaves all others as they are.
Without it, every build here must give the same: gcc and clang, -O0, -O2 and -O3 (this with 1
to 8 threads), with and without OpenMP, each instruction set, aarch64 under qemu. A build whose tools are
missing is an error. (`make test` compares ./run alone with the file: test_same_bytes.py.)"""

import argparse
import fnmatch
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare
from support import has

ROOT = compare.ROOT
HASHES = ROOT / "tests" / "hashes.json"
SOURCE = ROOT / "tests" / "models" / "v2_236b"
TYPES = ["f32", "q8", "mixed"]
CACHES = ["f32", "bf16", "q8", "q6", "q4", "full"]
PROMPTS = [1, 7, 300]

X86 = ["portable", "avx2", "avx512"]
# name: (arguments of make, what runs it, instruction sets, most threads)
BUILDS = {}
for cc, level in itertools.product(["gcc", "clang"], ["-O0", "-O2", "-O3"]):
    BUILDS[f"{cc} {level}"] = ([f"CC={cc}", f"CFLAGS={level}"], [], X86, 8 if level == "-O3" else 2)
    BUILDS[f"{cc} {level} without OpenMP"] = ([f"CC={cc}", f"CFLAGS={level}", "OPENMP="], [], X86, 1)
BUILDS["aarch64"] = (
    ["CC=aarch64-linux-gnu-gcc", "LDFLAGS=-static", "OPENMP="],
    ["qemu-aarch64"],
    ["portable", "neon"],
    1,
)


def checkpoints(folder):
    """{type: the tiny model as a checkpoint}"""
    for kind in TYPES:
        compare.export(SOURCE, folder / kind, "--type", kind)
    return {kind: folder / kind for kind in TYPES}


def digest(data):
    return hashlib.sha256(data).hexdigest()[:24]


def hashes(models, program, *options, **environment):
    """{case: hash} of one way to run."""
    found = {}
    run = lambda model, *more: compare.run(model, *more, *options, program=program, **environment)
    with tempfile.TemporaryDirectory() as folder:
        file, session = Path(folder) / "logits", Path(folder) / "session"
        for kind, cache in itertools.product(TYPES, CACHES):
            for tokens in PROMPTS:
                prompt = ["--ids", " ".join(str((37 * i + 11) % 96) for i in range(tokens)), "-k", cache]
                run(models[kind], *prompt, "--logits", file)
                found[f"{kind} -k {cache} prompt {tokens}"] = digest(file.read_bytes())
            run(models[kind], *prompt, "-n", "4", "-t", "0.8", "-s", "7", "--session", session)
            found[f"{kind} -k {cache} session"] = digest(
                run(models[kind], "-n", "8", "-t", "0.8", "--session", session) + session.read_bytes()
            )
            session.unlink()
    return found


def make(name):
    folder = f"build/matrix/{name.replace(' ', '-')}"
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS")
    }
    command = [
        "make",
        "-s",
        "-j2",
        f"{folder}/run",
        f"BUILD={folder}",
        f"PROGRAM={folder}/run",
        *BUILDS[name][0],
    ]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    return [*BUILDS[name][1], ROOT / folder / "run"]


def ways(isas, most):
    """(instruction set, threads): each set alone, and the threads with the fastest."""
    return [(isa, 1) for isa in isas] + [(isas[-1], threads) for threads in range(2, most + 1)]


def write(pattern, known, now):
    """Puts the hashes `now` of the cases that match the pattern into hashes.json, and says which changed."""
    chosen = fnmatch.filter(now, pattern)
    if not chosen:
        sys.exit(f"matrix: --write {pattern}: no case has such a name; {next(iter(now))!r} is one")
    changed = [case for case in chosen if known.get(case) != now[case]]
    HASHES.write_text(json.dumps({**known, **{case: now[case] for case in chosen}}, indent=0) + "\n")
    print(f"{len(chosen)} of {len(now)} cases written, {len(changed)} changed", *changed, sep="\n")


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument(
        "--write", metavar="CASES", help="a pattern of names, as shells have them: '* -k q6 *'"
    )
    pattern = options.parse_args().write
    missing = sorted(
        {
            tool
            for arguments, runner, *_ in BUILDS.values()
            for tool in (*runner, arguments[0].removeprefix("CC="))
            if not shutil.which(tool)
        }
    )
    if missing and not pattern:
        sys.exit(f"matrix: not installed: {', '.join(missing)}; .ci/run installs all")
    with tempfile.TemporaryDirectory() as folder:
        models = checkpoints(Path(folder))
        want, wrong, begun = json.loads(HASHES.read_text()), 0, time.monotonic()
        if pattern:
            return write(pattern, want, hashes(models, compare.RUN, "-j", "1"))
        for name, (_, _, isas, most) in BUILDS.items():
            program = make(name)
            isas = [isa for isa in isas if has(isa)]
            for isa, threads in ways(isas, most):
                got = hashes(models, program, "-j", str(threads), MLA_ISA=isa)
                differ = [case for case in want if got.get(case) != want[case]]
                wrong += len(differ)
                verdict = (
                    f"{len(differ)} of {len(want)} differ: {', '.join(differ[:3])}" if differ else "the same"
                )
                print(f"{name}, {isa}, -j {threads}: {verdict}", flush=True)
        print(f"{wrong} differences, {time.monotonic() - begun:.0f} seconds")
        return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
