"""Threads: nothing hangs and no byte changes when OpenMP gives fewer than were asked for, or when the machine
has fewer cores than that; beside busy programs more threads are not slower than one."""

import os
import re
import statistics
import subprocess

import compare
import pytest

DEMO = compare.ROOT / "demo" / "stories.bin"


def tell(*options, cores=None, **environment):
    """(the text, tokens a second) of a greedy story, on the processors `cores`."""
    done = subprocess.run(
        [*compare.RUN, DEMO, "-p", "Once upon a time", "-t", "0", "--ignore-eos", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, float(re.search(r"text .* tokens, ([\d.]+) tokens/s", done.stderr)[1])


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_THREAD_LIMIT": "2"},
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_DYNAMIC": "true"},
        {"OMP_WAIT_POLICY": "passive"},
        {"OMP_WAIT_POLICY": "active"},
        {"OMP_MAX_ACTIVE_LEVELS": "0"},
    ],
    ids=lambda e: " ".join(map("=".join, e.items())),
)
def test_a_team_smaller_than_asked_for(environment):
    """The program ends, with the same text."""
    alone, _ = tell("-n", "60", "-j", "1")
    assert tell("-n", "60", "-j", "4", **environment)[0] == alone


def test_more_threads_than_cores():
    alone, _ = tell("-n", "60", "-j", "1")
    core = {min(os.sched_getaffinity(0))}
    assert tell("-n", "60", "-j", "8", cores=core)[0] == alone


@pytest.mark.alone
@pytest.mark.parametrize("programs", [1, 2])
def test_beside_busy_programs(programs):
    """A barrier that only spins made two threads up to twenty times slower than one. Both in turn; the bound,
    for nine of up to 27 pairs, is far below what a machine without further load gives (0.9): other work may
    be running."""
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    if len(cores) < 2:
        pytest.skip("one processor")
    pin = lambda: os.sched_setaffinity(0, cores)
    busy = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL, preexec_fn=pin) for _ in range(programs)]
    ratios = []
    try:
        while len(ratios) < 27 and (len(ratios) < 9 or statistics.median(ratios[-9:]) < 0.5):
            alone, together = (tell("-n", "200", "-j", threads, cores=cores)[1] for threads in "12")
            ratios.append(together / alone)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert statistics.median(ratios[-9:]) >= 0.5, ratios
