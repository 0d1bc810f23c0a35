"""The speed of ./run beside that of another commit, in turns:  make bench BASE=commit [MODEL=file]

    python3 tests/bench.py COMMIT PROGRAM MODEL [--runs N] [options of --bench, such as -c 4200 or -j 1]

The commit is built in build/base, a worktree of git that stays for the next time (git worktree remove --force
build/base). Then both programs measure themselves with --bench, in turns, N times. Printed are the medians in
tokens a second, and of the N ratios, each of two neighbours in time, the median, the least and the largest
(above 1: faster than the commit). On a shared machine the speed of memory changes within minutes: a ratio
that is not far outside its own spread means nothing."""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "base"


def build(commit):
    """The program of a commit, built with the Makefile that it had."""

    def step(*command):
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench: {' '.join(map(str, command))}: {done.stderr.strip()}")

    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    step("git", "rev-parse", "--verify", commit + "^{commit}")
    step("git", "worktree", "prune")
    if FOLDER.exists():
        step("git", "-C", FOLDER, "checkout", "--quiet", "--detach", commit)
    else:
        step("git", "worktree", "add", "--quiet", "--force", "--detach", FOLDER, commit)
    step("make", "-C", FOLDER, "-s", "-j2", "run")
    return FOLDER / "run"


def measure(program, model, options):
    """{(test, context, rows): tokens a second} of one run of --bench."""
    done = subprocess.run(
        [program, model, "--bench", "--csv", *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"bench: {program} {model} --bench ended with status {done.returncode}")
    return {
        (line["test"], line["context"], line["rows"]): float(line["tokens_per_s"])
        for line in csv.DictReader(done.stdout.splitlines())
        if line["test"] != "bandwidth"
    }


def table(base, new):
    """base and new: what `runs` runs of measure() gave, in turns. The lines of the table."""
    yield f"{'test':10} {'context':>8} {'rows':>6} {'base':>10} {'now':>10} {'ratio':>7}  spread"
    for case in new[0]:
        before, now = [run[case] for run in base if case in run], [run[case] for run in new]
        if len(before) < len(now):
            continue
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        yield (
            f"{case[0]:10} {case[1]:>8} {case[2]:>6} {statistics.median(before):10.2f} "
            f"{statistics.median(now):10.2f} {statistics.median(ratios):7.3f}  "
            f"{min(ratios):.3f} to {max(ratios):.3f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    args, options = parser.parse_known_args()
    base, runs = build(args.commit), []
    for i in range(args.runs):
        both = [base, args.program] if i % 2 == 0 else [args.program, base]  # neither is always the first
        runs.append({program: measure(program, args.model, options) for program in both})
    for line in table([run[base] for run in runs], [run[args.program] for run in runs]):
        print(line)


if __name__ == "__main__":
    main()
