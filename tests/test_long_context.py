"""Positions up to the longest contexts: rotations judged by double precision and by transformers, and a text
longer than every stretch that attention is cut into, judged by transformers. tests/long_context.json says
what transformers computed (make_long_context_vectors.py made it)."""

import json
import subprocess

import compare
import numpy as np
import pytest
from make_long_context_vectors import ROWS, VECTORS, long_text, raised_limit
from support import PATHS, TOLERANCE

from exporter import config as model_config
from exporter.shapes import SHAPES

WANT = json.loads(VECTORS.read_text())


def inv_freq(shape):
    return model_config.parse(SHAPES[shape], shape).inv_freq


def rotations(frequencies, positions):
    """What the program computes: cos and sin, [positions, pairs] float32."""
    command = [compare.BUILD / "rope_driver", *map(str, positions)]
    out = subprocess.run(command, input=frequencies.tobytes(), capture_output=True, check=True).stdout
    both = np.frombuffer(out, np.float32).reshape(len(positions), 2, len(frequencies))
    return both[:, 0], both[:, 1]


def ulps(got, want):
    """Distance in units of the last place of float32."""
    return float((np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32))).max())


@pytest.mark.parametrize("shape", ["deepseek-v2-lite", "deepseek-v3"])
def test_cos_and_sin(shape):
    """To the last place of float32 of the angle that models are trained with, which is a product in float32:
    beyond the published limit of 163,840, at ends of pages and at random."""
    positions = [
        0,
        1,
        127,
        128,
        4095,
        4096,
        131071,
        163839,
        1_000_000,
        *np.random.default_rng(1).integers(1_000_000, size=4000),
    ]
    frequencies = inv_freq(shape)
    angles = (np.array(positions, np.float32)[:, None] * frequencies).astype(np.float64)
    cos, sin = rotations(frequencies, positions)
    assert ulps(cos, np.cos(angles)) <= 1 and ulps(sin, np.sin(angles)) <= 1


@pytest.mark.parametrize("shape", WANT["rotations"])
def test_rotations_of_transformers(shape):
    """The same frequencies give the same rotations to the last place of 1. An export's frequencies differ
    from transformers' by one place at most, and what that place is worth grows with the position."""
    want = {key: np.array(value, np.float32) for key, value in WANT["rotations"][shape].items()}
    own = inv_freq(shape)
    assert ulps(own, want["inv_freq"]) <= 1
    drift = (
        np.array(WANT["positions"])[:, None] * want["inv_freq"] * 2.0**-22
    )  # one place of the frequency and the rounding of the product
    for frequencies, tolerance in ((want["inv_freq"], 2.0**-23), (own, 2.0**-23 + drift)):
        cos, sin = rotations(frequencies, WANT["positions"])
        assert (np.abs(cos - want["cos"]) <= tolerance).all() and (
            np.abs(sin - want["sin"]) <= tolerance
        ).all()


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    compare.export(raised_limit(folder / "source"), folder / "model.bin", "--type", "f32")
    return folder / "model.bin"


# The definition reads every row again for every row: the whole text would take it a minute. What is long here
# is cut into pieces by the other ways alone.
ROWS_OF_DEFINITION = 2049


@pytest.mark.parametrize("path", PATHS)
def test_long_text(path, long_model):
    """More rows than are decompressed at once, several pages in each part of an absorbed context, and a
    prefill of many calls."""
    options, environment = PATHS[path]
    ids = long_text()[: ROWS_OF_DEFINITION if path == "definition" else None]
    rows = [row for row in ROWS if row < len(ids)]
    got = compare.logits(long_model, ids, *options, **environment)[rows]
    want = np.array(WANT["logits"], np.float32)
    assert len(rows) >= 5 and compare.relative_difference(got, want[: len(rows)]) <= TOLERANCE
