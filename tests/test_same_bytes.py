"""The same file, prompt, seed and options give the same bytes on every machine: threads, instruction sets,
compilers, x86-64 and aarch64.

One run of ./run with one thread is the reference; every other way must give the same logits, bit for bit, and
the same text."""

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import compare
import matrix
import numpy as np
import pytest
from support import MODELS, ROOT, has

STORIES = ROOT / "demo" / "stories.bin"
TINY = MODELS / "v2_236b"  # low-rank queries, expert groups, sizes that are no multiples of 32
TYPES = ["f32", "bf16", "q8", "q4"]  # of it
FEATURES = [
    "glm53flash",
    "kimi_linear",
    "ling_flash",
    "longcat",
    "mistral4",
    "plm",
    "sandwich",
    "v32",
    "llama_rope3",
    "v4_fp4",
]  # other models, with code of their own in the forward pass
CHECKPOINTS = [*TYPES, *FEATURES, "stories"]
WITHOUT_LATENT = ["llama_rope3", "v4_fp4"]  # nor for -k full..: there MLA_PATH changes nothing
# An emulator is slow: where a way differs from the one before in its kernels alone, files with other kernels.
KERNELS = [*TYPES, "kimi_linear", "v4_fp4"]

# name: (build or None for ./run itself, environment, options)
WAYS = {
    "2 threads": (None, {}, ["-j", "2"]),
    "3 threads": (None, {}, ["-j", "3"]),
    "portable": (None, {"MLA_ISA": "portable"}, ["-j", "1"]),
    "avx2": (None, {"MLA_ISA": "avx2"}, ["-j", "1"]),
    "avx512": (None, {"MLA_ISA": "avx512"}, ["-j", "1"]),
    "clang": ("clang", {}, ["-j", "1"]),
    "clang, portable": ("clang", {"MLA_ISA": "portable"}, ["-j", "1"]),
    "gcc -O1, without OpenMP": ("without OpenMP", {}, []),
    "aarch64, neon": ("aarch64", {"MLA_ISA": "neon"}, ["-j", "1"]),
    "aarch64, portable": ("aarch64", {"MLA_ISA": "portable"}, ["-j", "1"]),
}
WAYS = {name: way for name, way in WAYS.items() if has(way[1].get("MLA_ISA"))}


def checkpoint(name, export):
    return (
        STORIES
        if name == "stories"
        else export(TINY, name)
        if name in TYPES
        else export(MODELS / name, "mixed")
    )


def results(name, model, program, environment, options):
    """What one way of running gives: a hash of each set of logits and of a sampled text."""
    ids = " ".join(str(i % 40) for i in np.load(TINY / "expected.npz")["ids"])
    prompt = ["-p", compare.TEXT[:400]] if name == "stories" else ["--ids", ids]
    caches = ["f32", "bf16", "q8", "q6", "q4"] if name in [*TYPES, "llama_rope3", "v4_fp4"] else ["q8"]
    caches += ["full", "full-bf16", "full-q8"] if name in TYPES else []
    cases = {f"logits {cache}": ["-k", cache] for cache in caches} | {
        "text": ["-t", "0.8", "-s", "7", "-n", "24"]
    }
    hashes = {}
    for path, (case, more) in itertools.product(("absorbed", "decompressed"), cases.items()):
        if path == "absorbed" or not (name in WITHOUT_LATENT or "full" in case):
            hashes[path, case] = one(
                model,
                [*prompt, *more, *options],
                "logits" in case,
                program,
                {**environment, "MLA_PATH": path},
            )
    return hashes


def one(model, options, wants_logits, program, environment):
    if not wants_logits:
        return compare.run(model, *options, program=program, **environment)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits"
        compare.run(model, *options, "--logits", out, program=program, **environment)
        return hashlib.sha256(out.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def reference(export):
    """The results of ./run with one thread, computed once for each checkpoint."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = results(name, checkpoint(name, export), compare.RUN, {}, ["-j", "1"])
        return known[name]

    return of


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name, way in itertools.product(CHECKPOINTS, WAYS)
        if way != "aarch64, portable" or name in KERNELS
    ],
)
def test_same_bytes(name, way, reference, export, build):
    build_name, environment, options = WAYS[way]
    program = build(build_name) if build_name else compare.RUN
    assert results(name, checkpoint(name, export), program, environment, options) == reference(name)


def test_the_test_can_fail(reference):
    """Hashes that were the same whatever is run would prove nothing. (f32 and bf16 do give the same: the tiny
    model's weights are bf16.)"""
    assert len({str(reference(name)) for name in ("f32", "q8", "q4", "v32", "stories")}) == 5
    assert reference("f32")["absorbed", "logits f32"] != reference("f32")["absorbed", "logits q8"]


def test_only_the_hashes_asked_for_are_written(tmp_path, monkeypatch):
    """A change that is meant for some cases must not let others change unseen."""
    monkeypatch.setattr(matrix, "HASHES", tmp_path / "hashes.json")
    known = {"f32 -k q6 session": "old", "f32 -k q4 session": "kept"}
    matrix.write("* -k q6 *", known, dict.fromkeys(known, "new"))
    assert json.loads(matrix.HASHES.read_text()) == {**known, "f32 -k q6 session": "new"}
    with pytest.raises(SystemExit, match="no case has such a name"):
        matrix.write("* -k q7 *", known, known)


def test_the_hashes_of_other_builds(tmp_path):
    """tests/hashes.json was made elsewhere, by another build: the numbers of this one are the same. (`make
    matrix` compares all of them, and writes those whose numbers are meant to change: matrix.py.)"""
    assert matrix.hashes(matrix.checkpoints(tmp_path), compare.RUN) == json.loads(matrix.HASHES.read_text())
