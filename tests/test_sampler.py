"""The sampler against its definition in numpy: which tokens remain, and which of them a seed chooses.

The generator is splitmix64; its first outputs for the seed 1234567 are published with the reference
implementation, and they tie the copy below to the outside. A seed's first number u in [0, 1) then picks the
first token, in descending order of probability, whose cumulative probability is above u times the probability
of all that remain."""

import struct
import subprocess

import compare
import numpy as np
import pytest
from support import MODELS

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
MASK = 2**64 - 1


def splitmix64(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def test_splitmix64_vectors():
    numbers = splitmix64(1234567)
    assert [next(numbers) for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def remaining(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0):
    """Ids that remain, likeliest first and the smaller id first of equals, and their probabilities."""
    x = logits.astype(np.float64)
    for token in set(PROMPT[-64:]):
        x[token] = x[token] / repeat_penalty if x[token] > 0 else x[token] * repeat_penalty
    x /= temperature
    ids = np.lexsort((np.arange(len(x)), -x))
    if top_k:
        ids = ids[:top_k]
    p = np.exp(x[ids] - x[ids[0]])
    p /= p.sum()
    keep = np.searchsorted(np.cumsum(p), top_p) + 1 if top_p < 1 else len(p)
    keep = min(keep, int((p >= min_p * p[0]).sum()))
    return ids[:keep], p[:keep]


@pytest.fixture(scope="module")
def model(export):
    return export(MODELS / "v2lite", "f32")


@pytest.fixture(scope="module")
def logits(model):
    return compare.logits(model, PROMPT)[-1]


CASES = [
    {},
    {"temperature": 0.3},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.4},
    {"repeat_penalty": 3.0},
    {"top_k": 1},
    {"top_p": 0.0},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.3},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_choice(case, model, logits):
    """Every seed gives the token that the definition gives. A seed whose number lies on a border of two
    tokens proves nothing and is left out."""
    ids, p = remaining(logits, **case)
    borders = np.cumsum(p)
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **case}
    words = [w for key, value in options.items() for w in ("--" + key.replace("_", "-"), value)]
    judged = 0
    for seed in range(40):
        u = (next(splitmix64(seed)) >> 11) * 2.0**-53 * borders[-1]
        if len(p) > 1 and np.abs(borders[:-1] - u).min() < 1e-5:
            continue
        judged += 1
        out = compare.run(model, "--ids", " ".join(map(str, PROMPT)), "-n", 1, "-s", seed, "-j", 1, *words)
        assert int(out) == ids[np.searchsorted(borders, u, side="right")], (case, seed)
    assert judged > 30


def test_greedy_is_the_penalised_maximum(model, logits):
    for penalty in (1.0, 5.0, 0.2):
        out = compare.run(
            model, "--ids", " ".join(map(str, PROMPT)), "-n", 1, "-t", 0, "--repeat-penalty", penalty
        )
        assert int(out) == remaining(logits, repeat_penalty=penalty)[0][0]


def test_extreme_temperatures(model, logits):
    """No temperature makes infinities meet: the smallest is greedy, the largest still chooses a token."""
    assert (
        int(compare.run(model, "--ids", " ".join(map(str, PROMPT)), "-n", 1, "-t", "1e-40", "-s", 1))
        == logits.argmax()
    )
    assert (
        0
        <= int(compare.run(model, "--ids", " ".join(map(str, PROMPT)), "-n", 1, "-t", "1000", "-s", 1))
        < len(logits)
    )


def adversarial(random, V):
    """Logits [V] of one of many kinds, among them those that a partial order gets wrong: equal ones, ones on
    the borders of the batches that are sorted together, ones without difference after the division, signed
    zeros, and the largest floats."""
    x = random.standard_normal(V) * random.choice([1e-30, 0.1, 1, 3, 10, 100])
    kind = random.integers(10)
    if kind == 0:
        x[:] = random.choice([0.0, -0.0, 5.5])
    elif kind == 1:
        x = np.round(x)
    elif kind == 2:
        x = np.sort(x)[:: random.choice([-1, 1])]
    elif kind == 3:
        x[random.integers(V)] = random.choice([50, 1e30, 3e38])
    elif kind == 4:
        x[random.random(V) < 0.9] = -3e38
    elif kind == 5:  # the largest is 0: borders of the batches are 8 and 16 below it
        near = np.float32([0, -8, -16, -104])
        near = np.concatenate([near, np.nextafter(near, np.float32(-200)), np.nextafter(near, np.float32(9))])
        x = random.choice(near[near < 0], V)
        x[random.integers(V)] = 0
    elif kind == 6:
        x = random.choice(np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-38]), V)
    return x.astype(np.float32)


def case(random, V):
    seen = random.integers(V, size=random.choice([0, 1, 7, 64]))
    seed = int(random.integers(2**63))
    options = [
        (0, 1, 2, 5, 40, V - 1, V, V + 5),
        (1e-40, 0.1, 0.8, 1, 1, 2, 1000, 0),
        (0, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 2**-24, 1, 1),
        (0, 0, 0.01, 0.3, 1),
        (1, 1, 1.3, 0.5, 1e30),
    ]
    top_k, *rest = [random.choice(np.array(values, np.float64)) for values in options]
    unit = (next(splitmix64(seed)) >> 11) * 2.0**-53
    return (
        struct.pack("<dQ3I4f4x", unit, seed, V, len(seen), int(max(top_k, 0)), *rest)
        + seen.astype(np.int32).tobytes()
        + adversarial(random, V).tobytes()
    )


@pytest.mark.parametrize("V, cases", [(1, 60), (2, 200), (17, 2000), (1000, 1500), (4099, 300), (129280, 12)])
def test_partial_order_and_plain_sort(V, cases):
    """What is sorted only as far as it is needed gives the choice of the definition that sorts everything,
    for all options together and logits of every kind."""
    random = np.random.default_rng(V)
    done = subprocess.run(
        [compare.BUILD / "sampler_driver"],
        input=b"".join(case(random, V) for _ in range(cases)),
        capture_output=True,
        check=True,
    )
    choices = np.array(done.stdout.split(), int).reshape(cases, 2)
    assert np.array_equal(choices[:, 0], choices[:, 1])
    assert len(set(choices[:, 0])) >= min(V, cases // 20)  # they differ from case to case
