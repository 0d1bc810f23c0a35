"""The sampler against its definition in numpy: which tokens remain, and which of them a seed chooses.

The generator is splitmix64; its first outputs for the seed 1234567 are published with the reference
implementation, and they tie the copy below to the outside. A seed's first number u in [0, 1) then picks the
first token, in descending order of probability, whose cumulative probability is above u times the probability
of all that remain."""

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
