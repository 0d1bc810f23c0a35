"""Hostile files: every fuzz target for some seconds (`make fuzz` is the same for longer), and what fuzzing or
thought has found before, each as a checkpoint whose checksum is right and which one line refuses."""

import re
import struct
import subprocess
import zlib

import pytest
from support import FAILED, MODELS, ROOT, need, refused, run, tensor

from exporter.config import FIELDS


def field(name):
    """Where a field of Config lies in a checkpoint."""
    at = 64
    for known, form in FIELDS:
        if known == name:
            return at
        at += struct.calcsize("<" + form)


def mended(raw):
    """The same with the checksum of header and tables that belongs to it."""
    struct.pack_into("<I", raw, 12, 0)
    struct.pack_into("<I", raw, 12, zlib.crc32(raw[: struct.unpack_from("<Q", raw, 24)[0]]))
    return raw


def set_field(name, value):
    return lambda raw: struct.pack_into("<I", raw, field(name), value)


def move(name, to):
    """Two tensors in one place: a small file would be a large model."""
    return lambda raw: struct.pack_into("<Q", raw, tensor(raw, name)[0] + 56, tensor(raw, to)[1][1])


def change(name, at, form, value):
    """Another number at `at` of a tensor's TensorInfo."""
    return lambda raw: struct.pack_into(form, raw, tensor(raw, name)[0] + at, value)


def set_float(name, value):
    return lambda raw: struct.pack_into("<f", raw, tensor(raw, name)[1][1], value)


HOSTILE = {
    "a begin token beyond all integers": (set_field("bos_token_id", 2**31 - 1), "bos_token_id"),
    "tensors that overlap": (move(b"layers.0.o", b"layers.0.kv_a"), "layers.0.o"),
    "an endless frequency": (set_float(b"inv_freq", float("inf")), "inv_freq"),
    "a frequency that is no number": (set_float(b"inv_freq", float("nan")), "inv_freq"),
    "a tensor less": (
        lambda raw: struct.pack_into("<I", raw, 40, struct.unpack_from("<I", raw, 40)[0] - 1),
        "layers.2.experts.5.down",
    ),
    "a layer less": (set_field("num_hidden_layers", 2), "layers.2.input_norm"),
    "a tensor of another name": (change(b"norm", 0, "<8s", b"abnormal"), "norm"),
    "a tensor of another type": (change(b"norm", 72, "<I", 3), "norm"),
    "a tensor of another shape": (change(b"norm", 80, "<I", 63), "norm"),
    "a tensor beyond the file": (change(b"norm", 56, "<Q", 2**63), "norm"),
    "a scale that is no number": (change(b"embed", 88, "<f", float("nan")), "embed"),
    "-128 in a codebook": (change(b"embed", 96, "<b", -128), "embed"),
    "an odd rotation": (set_field("qk_rope_head_dim", 15), "qk_rope_head_dim"),
    "an end token beyond the vocabulary": (set_field("eos_token_id", 128), "eos_token_id"),
    "an epsilon that is no number": (set_field("rms_norm_eps", 0x7FC00000), "rms_norm_eps"),
    "no group of experts": (set_field("n_group", 0), "n_group"),
    "more experts for a token than there are": (set_field("num_experts_per_tok", 7), "num_experts_per_tok"),
    "no room for the layers": (set_field("num_hidden_layers", 1000), "published_layers"),
    "no room for the vocabulary": (set_field("vocab_size", 1 << 24), "embed"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_refused(what, export, build, tmp_path):
    change, word = HOSTILE[what]
    raw = bytearray(export(MODELS / "v2lite", "f32").read_bytes())
    change(raw)
    model = tmp_path / "model.bin"
    model.write_bytes(mended(raw))
    refused(run("--ids", "1 2 3", "-n", 1, model=model), FAILED, "model.bin", word)
    debug = subprocess.run([*build("debug"), model, "--info"], capture_output=True, text=True)
    assert debug.returncode == FAILED and debug.stderr.count("\n") == 1


def test_fuzz():
    """Eight seconds for each target find nothing; what they do find is left in build/fuzz."""
    need("clang")
    if subprocess.run(
        ["clang", "-fsanitize=fuzzer", "-x", "c", "-", "-o", "/dev/null"],
        input=b"int LLVMFuzzerTestOneInput(void) { return 0; }",
        capture_output=True,
    ).returncode:
        pytest.skip("clang has no libFuzzer")
    done = subprocess.run(
        ["make", "-j2", "fuzz", "FUZZ_SECONDS=8"], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    targets = re.search(r"^FUZZ_TARGETS *= (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert done.stderr.count("stat::number_of_executed_units") == len(targets) >= 5


NO_WEIGHT = [
    (b"layers.0.kv_a", "q8", 64, b"\0"),
    (b"embed", "f32", 4, b"\0\0\x80\xff"),
    (b"embed", "bf16", 2, b"\x80\x7f"),
    (b"layers.1.experts.0.up", "q4", 2, b"\0\xfc"),
]


@pytest.mark.parametrize("name, type, offset, bytes", NO_WEIGHT)
def test_check_knows_what_no_weight_can_be(name, type, offset, bytes, export, tmp_path):
    """-128 in q8, infinite scales, weights that are no numbers, under checksums that are right."""
    raw = bytearray(export(MODELS / "v2lite", type).read_bytes())
    at, info = tensor(raw, name)
    raw[info[1] + offset : info[1] + offset + len(bytes)] = bytes
    struct.pack_into("<I", raw, at + 92, zlib.crc32(raw[info[1] : info[1] + info[2]]))
    model = tmp_path / "model.bin"
    model.write_bytes(mended(raw))
    refused(run("--check", model=model), FAILED, name.decode(), "infinite, NaN or -128")
