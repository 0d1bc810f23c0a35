"""Logarithms of probabilities (engine/logprob.c): numpy's float64 is the judge, and every instruction set
gives the same bytes."""

import os
import subprocess

import numpy as np
import pytest
from compare import BUILD
from support import has, make, need

DRIVER = BUILD / "logprob_driver"
NEAR = 3e-7  # exp is in float32, within an ulp


def judged(logits, n=5, isa=None, program=(DRIVER,)):
    """(log of the sum of exp, ids of the n likeliest) of each row [rows, V]."""
    rows, vocab = logits.shape
    environment = {**os.environ, **({"MLA_ISA": isa} if isa else {})}
    done = subprocess.run(
        [*program, str(vocab), str(n)],
        input=logits.astype(np.float32).tobytes(),
        env=environment,
        capture_output=True,
        check=True,
    )
    kind = np.dtype([("sum", "<f8"), ("ids", "<i4", (min(n, vocab),))])
    out = np.frombuffer(done.stdout, kind)
    assert len(out) == rows
    return out["sum"], out["ids"]


def definition(logits):
    x = logits.astype(np.float32).astype(np.float64)
    largest = x.max(axis=1)
    return largest + np.log(np.exp(x - largest[:, None]).sum(axis=1))


def random_logits():
    draw = np.random.default_rng(3)
    for vocab in (1, 2, 15, 16, 17, 511, 512, 513, 5000, 129280):
        for spread in (0, 1e-3, 1, 10, 1000):
            yield draw.standard_normal((3, vocab)) * spread + draw.standard_normal() * spread
    yield np.array([[3e38, -3e38, 3e38], [0, -3e38, -104], [-1e-40, 1e-40, 0]])


def test_log_sum_exp():
    """For vocabularies around the kernel's widths, flat and steep, and the largest floats."""
    for logits in random_logits():
        got, want = judged(logits)[0], definition(logits)
        assert np.abs(got - want).max() <= NEAR * max(1, np.abs(want).max() * 2**-24), logits.shape


def test_likeliest():
    """The largest first, of equal ones the lower id; more than there are is all."""
    draw = np.random.default_rng(4)
    for vocab, n in ((1, 1), (3, 7), (40, 20), (5000, 1), (5000, 0), (5000, 20)):
        logits = np.round(draw.standard_normal((20, vocab)) * 3).astype(np.float32)
        want = [np.lexsort((np.arange(vocab), -row))[:n] for row in logits]
        assert np.array_equal(judged(logits, n)[1].reshape(20, -1), want)


@pytest.mark.parametrize("isa", [isa for isa in ("avx2", "avx512") if has(isa)])
def test_same_bytes_of_instruction_sets(isa):
    for logits in random_logits():
        assert judged(logits, 3, isa)[0].tobytes() == judged(logits, 3, "portable")[0].tobytes()


def test_same_bytes_of_another_machine():
    """The logarithm is ours: no libm has a say in it."""
    need("aarch64-linux-gnu-gcc")
    need("qemu-aarch64")
    program = ["qemu-aarch64", make("aarch64", "logprob_driver")]
    for logits in random_logits():
        assert judged(logits, 3, program=program)[0].tobytes() == judged(logits, 3)[0].tobytes()
