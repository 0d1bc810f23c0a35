"""DeepSeek-V4 without its attention: layers whose experts come from a table of the token (engine/moe.c), and
which configurations are refused (engine/config.c). The arithmetic is judged in test_oracle.py.

Protected: a table may name an expert twice for a token, and then it has both weights; a table with numbers
that are no experts is refused before anything is computed; a router's number that is infinite or not a number
is not lost, although nothing is chosen by it; fields that no model can have are named."""

import json
import struct
import zlib

import compare
import numpy as np
import pytest
from support import FAILED, MODELS, TOLERANCE, config_fields, copy_model, refused, run, tensor

V4 = "v4_fp4"
LAYER = "layers.0.ffn."
IDS = " ".join(str(7 * i % 80) for i in range(40))


def places(raw):
    """{tensor: (first byte, one past the last)} of a safetensors file."""
    length = struct.unpack_from("<Q", raw)[0]
    entries = json.loads(raw[8 : 8 + length])
    return {
        name: [8 + length + at for at in entry["data_offsets"]]
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def test_an_expert_twice(tmp_path):
    """Expert 1 becomes a copy of expert 0, in the router as well: a token that has both has all of one. The
    same logits as with 0 twice. Some tokens, so that the copies have rows of others, too."""
    models = []
    for second in (1, 0):
        folder = copy_model(tmp_path / str(second), V4)
        raw = bytearray((folder / "model.safetensors").read_bytes())
        at = places(raw)
        for name, (begin, end) in at.items():
            if name.startswith(LAYER + "experts.0."):
                copy = at[name.replace("experts.0.", "experts.1.")]
                raw[slice(*copy)] = raw[begin:end]
        begin, end = at[LAYER + "gate.weight"]
        row = (end - begin) // 4
        raw[begin + row : begin + 2 * row] = raw[begin : begin + row]
        begin, end = at[LAYER + "gate.tid2eid"]
        table = np.frombuffer(raw[begin:end], "<i4").reshape(80, 2).copy()
        table[::3] = [0, second]
        raw[begin:end] = table.tobytes()
        (folder / "model.safetensors").write_bytes(raw)
        compare.export(folder, folder / "model.bin", "--type", "f32")
        models.append(folder / "model.bin")
    ids = [int(i) for i in IDS.split()]
    both, twice = (compare.logits(model, ids, "-k", "f32") for model in models)
    assert compare.relative_difference(twice, both) <= TOLERANCE
    alone = compare.logits(models[1], ids, "-k", "f32", MLA_CHUNK="1")
    assert alone.tobytes() == twice.tobytes()


@pytest.mark.parametrize("number", [4, -1, 0.5, 1e30, float("nan")])
def test_tables_without_experts(number, export, tmp_path):
    raw = bytearray(export(MODELS / V4, "f32").read_bytes())
    offset = tensor(raw, b"layers.0.token_experts")[1][1]
    struct.pack_into("<f", raw, offset + 4 * 11, number)
    (tmp_path / "damaged.bin").write_bytes(raw)
    done = run("--info", model=tmp_path / "damaged.bin")
    refused(done, FAILED, "layers.0.token_experts", "non-finite" if number != number else "names an expert")


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_router_that_is_not_finite(layer, bits, export, tmp_path):
    """One number of one expert, which the tokens of this prompt may not even have."""
    raw = bytearray(export(MODELS / V4, "f32").read_bytes())
    offset = tensor(raw, f"layers.{layer}.router".encode())[1][1]
    struct.pack_into("<I", raw, offset + 4 * 16 * 3 + 4 * 2, bits)
    (tmp_path / "damaged.bin").write_bytes(raw)
    done = run("--ids", IDS, "-n", 1, model=tmp_path / "damaged.bin")
    refused(done, FAILED, "non-finite")


BEYOND = [0, 1] + [0] * 30  # layer 32


@pytest.mark.parametrize(
    "field, value",
    [
        ("kv_lora_rank", 8),
        ("num_key_value_heads", 1),
        ("q_lora_rank", 0),
        ("qk_nope_head_dim", (1 << 12) + 1),
        ("v_head_dim", 39),
        ("head_gate", 1),
        ("sandwich_norm", 1),
        ("query_scale_span", 64),
        ("mtp_layers", 1),
        ("shortcut_moe", 1),
        ("experts_out_norm", 1),
        ("index_n_heads", 0),
        ("index_topk", 0),
        ("index_head_dim", 15),
        ("sliding_window", (1 << 14) + 1),
        ("o_groups", 3),
        ("o_groups", 0),
        ("o_lora_rank", 0),
        ("o_lora_rank", 1 << 31),
        ("csa_ratio", 0),
        ("csa_ratio", 65),
        ("hca_ratio", 0),
        ("hca_ratio", 1025),
        ("csa_layers", BEYOND),
        ("hca_layers", BEYOND),
        ("hca_layers", [6] + [0] * 31),  # layer 1 is one of csa_layers
        ("kda_layers", [1] + [0] * 31),
        ("hc_mult", 17),
        ("hc_sinkhorn_iters", 0),
        ("hc_sinkhorn_iters", 1 << 31),
        ("hc_eps", -1.0),
        ("hc_eps", float("nan")),
        ("swiglu_limits", 3),
        ("scoring_func", 3),
        ("num_hash_layers", 1025),
    ],
)
def test_hostile_fields(field, value, export, tmp_path):
    """A checkpoint whose checksum is right and whose fields no model can have."""
    raw = bytearray(export(MODELS / V4, "f32").read_bytes())
    names = [name for name, _ in config_fields()]
    forms = [form for _, form in config_fields()]
    at = 64 + struct.calcsize("<" + "".join(forms[: names.index(field)]))
    struct.pack_into("<" + forms[names.index(field)], raw, at, *(value if type(value) is list else [value]))
    struct.pack_into("<I", raw, 12, 0)
    struct.pack_into("<I", raw, 12, zlib.crc32(raw[: struct.unpack_from("<Q", raw, 24)[0]]))
    (tmp_path / "model.bin").write_bytes(raw)
    refused(run("--info", model=tmp_path / "model.bin"), FAILED, f"configuration field {field}")
