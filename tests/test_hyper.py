"""Hyper-connections alone (engine/hyper.c), behind tests/hyper_driver.c. Their place in a model is judged in
test_oracle.py.

Protected: what a branch and the head read, and the streams behind a branch, are those of the equations, here
in float64; the fast way and the definition agree; no byte depends on threads, instruction sets or on how
many rows are computed together; a number that is infinite or not a number is not lost in a sigmoid."""

import os
import subprocess

import numpy as np
import pytest
from compare import BUILD
from support import has

HC_EPS, RMS_EPS = 1e-6, 1e-6


def case(streams, hidden, rows, seed=1):
    """X, fn, base, scale, norm, branch output, and the head's fn, base, scale."""
    random = np.random.default_rng(seed)
    f = lambda *shape: random.standard_normal(shape).astype(np.float32)
    outputs, n = streams * (2 + streams), streams * hidden
    return [
        f(rows, n) * 3,
        f(outputs, n) * 0.1,
        f(outputs),
        f(3),
        f(hidden),
        f(rows, hidden),
        f(streams, n) * 0.1,
        f(streams),
        f(1),
    ]


def compute(arrays, iterations=20, threads=1, plain=False, isa=None):
    rows, n = arrays[0].shape
    hidden = arrays[4].size
    numbers = [n // hidden, hidden, rows, iterations, threads, plain]
    head = np.array(numbers, "<u4").tobytes() + np.array([HC_EPS, RMS_EPS], "<f4").tobytes()
    given = head + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)
    env = {**os.environ, **({"MLA_ISA": isa} if isa else {})}
    done = subprocess.run([BUILD / "hyper_driver"], input=given, capture_output=True, env=env)
    assert done.returncode == 0, done
    y = np.frombuffer(done.stdout, "<f4")
    assert y.size == rows * (2 * hidden + n)
    read, streams, head = np.split(y, [rows * hidden, rows * (hidden + n)])
    return read.reshape(rows, hidden), streams.reshape(rows, n), head.reshape(rows, hidden)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def judge(arrays, iterations=20):
    """The equations of mHC (arXiv 2512.24880) with DeepSeek-V4's epsilons."""
    X, fn, base, scale, norm, y, head_fn, head_base, head_scale = (a.astype(np.float64) for a in arrays)
    rows, n = X.shape
    hidden = norm.size
    S = n // hidden
    unit = lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + RMS_EPS)
    m = unit(X) @ fn.T
    pre = sigmoid(m[:, :S] * scale[0] + base[:S]) + HC_EPS
    post = 2 * sigmoid(m[:, S : 2 * S] * scale[1] + base[S : 2 * S])
    C = np.exp((m[:, 2 * S :] * scale[2] + base[2 * S :]).reshape(rows, S, S))
    C = C / C.sum(2, keepdims=True) + HC_EPS
    C /= C.sum(1, keepdims=True) + HC_EPS
    for _ in range(iterations - 1):
        C /= C.sum(2, keepdims=True) + HC_EPS
        C /= C.sum(1, keepdims=True) + HC_EPS
    streams = X.reshape(rows, S, hidden)
    read = unit(np.einsum("ts,tsd->td", pre, streams)) * norm
    behind = post[:, :, None] * y[:, None] + np.einsum("tjk,tjd->tkd", C, streams)
    X = behind.reshape(rows, n)
    pre = sigmoid(unit(X) @ head_fn.T * head_scale[0] + head_base) + HC_EPS
    return read, X, np.einsum("ts,tsd->td", pre, behind)


# a row that ends within a panel; one that ends a piece of columns, and one column more; the most streams
SHAPES = [(1, 7), (2, 33), (4, 256), (4, 257), (4, 1000), (16, 96)]


@pytest.mark.parametrize("streams, hidden", SHAPES)
@pytest.mark.parametrize("iterations", [1, 20])
def test_equations(streams, hidden, iterations):
    arrays = case(streams, hidden, rows=3)
    expected = judge(arrays, iterations)
    for plain in (False, True):
        for got, right in zip(compute(arrays, iterations, plain=plain), expected, strict=True):
            assert np.abs(got - right).max() < 2e-5 * np.abs(right).max(), plain


@pytest.mark.parametrize(
    "way", [{"threads": 3}, *({"isa": isa} for isa in ("portable", "avx2", "avx512") if has(isa))]
)
def test_same_bytes(way):
    arrays = case(4, 1000, rows=19)
    for a, b in zip(compute(arrays, **way), compute(arrays), strict=True):
        assert a.tobytes() == b.tobytes()


def test_row_by_row():
    arrays = case(4, 1000, rows=19)
    expected = compute(arrays)
    for i in range(19):
        one = [a[i : i + 1] if k in (0, 5) else a for k, a in enumerate(arrays)]
        for a, b in zip(compute(one, threads=2), expected, strict=True):
            assert a.tobytes() == b[i : i + 1].tobytes()


@pytest.mark.parametrize(
    "array, value",
    [(i, value) for i in (0, 1, 2, 3, 5) for value in (np.inf, -np.inf, np.nan)] + [(0, 3e38)],
)
def test_non_finite_is_not_lost(array, value):
    """All that the branch reads is not a number, or all that the head reads. (3e38 is a number, and its
    square is not.)"""
    arrays = case(4, 40, rows=2)
    arrays[array][(0,) * arrays[array].ndim] = value
    read, _, head = compute(arrays)
    assert not np.isfinite(read[0]).any() or not np.isfinite(head[0]).any()
