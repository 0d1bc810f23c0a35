"""kernels/pack.c, which packs for export.py, against its definition in exporter/quantize.py. What the tests
protect:

the same bytes  of matrices of every shape and size of numbers, by gcc and clang, for each instruction set
the export      is the same file with it and without it
another version is not used, and said"""

import numpy as np
import pytest
from support import MODELS, Q4, Q8, make, need

from exporter import command, compiled, quantize

SHAPES = [(16, 64), (32, 2048), (17, 100), (1, 1), (40, 96), (16, 32), (48, 33), (5, 1000), (3, 65)]


@pytest.fixture(autouse=True)
def forget():
    """What was found is not kept from one test to the next."""
    quantize.fast.cache_clear()
    yield
    quantize.fast.cache_clear()


@pytest.fixture
def library(monkeypatch):
    """library(compiler): the library by that compiler is the one that is found."""

    def use(compiler):
        need(compiler)
        build = {"gcc": "without OpenMP", "clang": "clang"}[compiler]  # of BUILDS
        monkeypatch.setattr(compiled, "PLACES", (str(make(build, "pack.so")),))

    return use


def matrices():
    """Normal numbers of many sizes, some of them zeros of both signs, some far larger than the others; what
    rounds to a scale of infinity, of nothing, and halves of integers, whose rounding is that of ties."""
    random = np.random.default_rng(5)
    for shape in SHAPES:
        for size in (1, 1e4, 1e-3, 1e7, 1e-9, 1e-38, 1e-44):
            for zeros in (0, 0.3, 1):
                with np.errstate(under="ignore"):
                    x = (random.standard_normal(shape) * size).astype(np.float32)
                x[random.random(shape) < zeros] *= 0
                x[random.random(shape) < 0.002] *= 30
                yield x
        yield -np.zeros(shape, np.float32)
        halves = random.integers(-254, 255, shape).astype(np.float32) / 2
        halves[:, ::32] = 127
        yield halves
        yield np.where(random.random(shape) < 0.1, np.float32(3e38), np.float32(-1e-30))


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_same_bytes(compiler, isa, library, monkeypatch):
    """MLA_ISA names what another processor would use; what this one has not is not tried."""
    monkeypatch.setenv("MLA_ISA", isa)
    library(compiler)
    assert quantize.fast()
    with np.errstate(all="ignore"):
        for x in matrices():
            for kind in (Q8, Q4):
                want, got = quantize.define(x, kind), quantize.pack(x, kind)
                assert np.array_equal(want, got), (x.shape, kind, np.abs(x).max())


def test_what_is_not_finite_does_no_harm(library):
    """It is refused before it is packed (test_export_robust.py); here every byte is still in its place."""
    library("gcc")
    x = np.full((16, 64), np.nan, np.float32)
    x[::3], x[1::3] = np.inf, -np.inf
    for kind, block in ((Q8, 1088), (Q4, 576)):
        assert quantize.pack(x, kind).shape == (1, block)


@pytest.mark.parametrize("type", ["mixed", "q4"])
@pytest.mark.parametrize("model", ["v2lite", "minicpm3"])
def test_the_same_file(model, type, library, tmp_path, monkeypatch):
    library("gcc")
    assert quantize.fast()
    files = []
    for name in ("with", "without"):
        assert command.main([str(MODELS / model), str(tmp_path / name), "--type", type]) == 0
        files.append((tmp_path / name).read_bytes())
        quantize.fast.cache_clear()
        monkeypatch.setattr(compiled, "PLACES", ())
    assert files[0] == files[1]


def test_another_version_is_not_used(library, monkeypatch, capsys):
    library("gcc")
    monkeypatch.setattr(quantize, "_pack_compiled", lambda found, x, kind: np.zeros(1, np.uint8))
    assert quantize.fast() is None and "make" in capsys.readouterr().err
    quantize.fast.cache_clear()
    monkeypatch.setattr(compiled, "PLACES", ("libc.so.6", "/nowhere"))  # another library, and none
    assert quantize.fast() is None and capsys.readouterr().err == ""
