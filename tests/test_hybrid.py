"""Models with linear attention (Kimi Delta Attention) in most of their layers: files that are not right,
sessions, and what --info says. Their arithmetic is judged in test_oracle.py, going back to marks in
test_sequences.py.

Protected: a gate of another shape, a list of limits of another length, a convolution with a number that is
not finite are one line each, never a checkpoint that runs; a model whose arithmetic is not there is refused
by its name; a session of such a model holds its constant part, and rows behind the last one never leave the
program."""

import json
import re
import shutil
import struct
import subprocess
import zlib

import compare
import numpy as np
import pytest
from support import FAILED, MODELS, ROOT, header, refused, run, safetensors, text, with_fields

from exporter import command
from exporter.errors import ExportError
from exporter.families import refuse_by_name
from exporter.shapes import SHAPES

LING, KIMI = MODELS / "ling_flash", MODELS / "kimi_linear"
IDS = [str(37 * i % 31) for i in range(60)]


@pytest.fixture
def changed(tmp_path):
    """changed(model, config, tensors): a copy of a model; `config`: other keys, None removes; `tensors`:
    {name: function of its numbers}."""

    def write(model, config=None, tensors=None):
        folder = shutil.copytree(model, tmp_path / "changed" / model.name)
        values = json.loads((folder / "config.json").read_text()) | (config or {})
        values = {key: value for key, value in values.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(values))
        if tensors:
            raw = (folder / "model.safetensors").read_bytes()
            length = struct.unpack_from("<Q", raw)[0]
            entries, arrays = json.loads(raw[8 : 8 + length]), {}
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                begin, end = (8 + length + at for at in entry["data_offsets"])
                kind = {"BF16": np.uint16, "F32": np.float32}[entry["dtype"]]
                values = np.frombuffer(raw[begin:end], kind).reshape(entry["shape"])
                arrays[name] = (entry["dtype"], tensors.get(name, lambda x: x)(values))
            (folder / "model.safetensors").write_bytes(safetensors(arrays))
        return folder

    return write


def gate(layer):
    return f"model.layers.{layer}.attention.g_proj.weight"


@pytest.mark.parametrize(
    "layer, shape",
    [
        (2, lambda x: np.repeat(x, 20, axis=0)),  # of each number, not of each head
        (2, lambda x: x[:1]),
        (2, lambda x: x[:, :-1]),
        (0, lambda x: x[:2]),  # of each head, not of each number
    ],
)
def test_a_gate_of_another_shape(layer, shape, changed, exported):
    message = exported(changed(LING, tensors={gate(layer): shape}))
    assert re.search(r"g_proj.weight has shape \[.*\], and config.json implies", message)


@pytest.mark.parametrize("key", ["expert_swiglu_limit_list", "share_expert_swiglu_limit_list"])
@pytest.mark.parametrize(
    "limits",
    [[0] * 5, [0] * 7, [], 0.5, [0, 0, 0, 0, 0, "a"], [0, 0, 0, 0, 0, -1], [0, 0, 0, 0, 0, True], {}],
)
def test_limits_that_are_none(key, limits, changed, exported):
    message = exported(changed(LING, {key: limits}))
    assert key in message and "for each of 6 layers" in message


def test_a_limit_without_experts(changed, exported):
    """The first two layers are dense, and nothing says what a limit would do there."""
    message = exported(changed(LING, {"expert_swiglu_limit_list": [0, 1, 0, 0, 0, 0]}))
    assert "expert_swiglu_limit_list" in message and "no experts" in message


def test_lists_of_limits_may_count_layers_for_prediction(changed, exported):
    limits = [0, 0, 0, 0.5, 0, 0.4, 3]
    folder = changed(LING, {"num_nextn_predict_layers": 1, "expert_swiglu_limit_list": limits})
    assert exported(folder).file == exported(LING).file


@pytest.mark.parametrize(
    "model, part", [(LING, "attention.k_conv1d.weight"), (KIMI, "self_attn.v_conv1d.weight")]
)
def test_a_convolution_that_is_not_finite(model, part, changed, exported):
    def damage(x):
        x = x.copy()
        x[5, 0, 2] = 0x7FC0
        return x

    message = exported(changed(model, tensors={f"model.layers.1.{part}": damage}))
    assert "conv1d.weight holds numbers that are infinite or not a number" in message


def test_a_checkpoint_with_such_a_convolution_is_refused(export, tmp_path):
    """The program looks at every vector, whoever made the file."""
    raw = bytearray(export(KIMI, "f32").read_bytes())
    at = next(i for i in range(64, len(raw), 64) if raw[i : i + 22] == b"layers.0.kda_q_filter\0")
    offset = struct.unpack_from("<Q", raw, at + 56)[0]
    raw[offset : offset + 4] = b"\0\0\xc0\x7f"
    (tmp_path / "damaged.bin").write_bytes(raw)
    done = run("--info", model=tmp_path / "damaged.bin")
    refused(done, FAILED, "kda_q_filter", "non-finite")


@pytest.mark.parametrize(
    "config, word",
    [
        ({"gated_attention_proj_granularity_type": "element_wise"}, "gated_attention_proj_granularity_type"),
        ({"no_kda_lora": False}, "no_kda_lora"),
        ({"use_mla_nope": True}, "use_mla_nope"),
        ({"kda_lower_bound": 1}, "kda_lower_bound"),
        ({"short_conv_kernel_size": 99}, "short_conv_kernel_size"),
        ({"layer_group_size": 0}, "layer_group_size"),
        ({"moe_shared_expert_intermediate_size": 5}, "moe_shared_expert_intermediate_size"),
        ({"pregate_hidden": 512}, "pregate_hidden"),
    ],
)
def test_other_forms_of_ling(config, word, changed, exported):
    assert word in exported(changed(LING, config))


LINEAR = json.loads((KIMI / "config.json").read_text())["linear_attn_config"]


@pytest.mark.parametrize(
    "block",
    [
        {**LINEAR, "kda_layers": [1, 2, 3]},
        {**LINEAR, "kda_layers": [1]},
        {**LINEAR, "kda_layers": [0, 1]},
        {**LINEAR, "kda_layers": "12"},
        {**LINEAR, "full_attn_layers": [4]},
        {**LINEAR, "gate_lower_bound": -5},
        {**LINEAR, "head_dim": None},
        [],
    ],
)
def test_layers_that_contradict_each_other(block, changed, exported):
    assert "linear_attn_config" in exported(changed(KIMI, {"linear_attn_config": block}))


def test_as_transformers_saves_it(changed, exported):
    """Kinds of layers in a list, sizes under other names, the same checkpoint."""
    kinds = ["linear_attention", "linear_attention", "full_attention"]
    sizes = {"linear_head_dim": 20, "linear_num_heads": 3, "linear_conv_kernel_dim": 4}
    folder = changed(KIMI, {"linear_attn_config": None, "mla_use_nope": None, "layer_types": kinds, **sizes})
    assert exported(folder).file == exported(KIMI).file


@pytest.mark.parametrize(
    "name, config",
    [
        ("Kimi-K3", {"model_type": "kimi_k3"}),
        ("Kimi-K3", {"architectures": ["KimiK3ForConditionalGeneration"], "text_config": {}}),
        ("Kimi-K3", {"model_type": "kimi_linear", "attn_res_block_size": 12}),
        (
            "Kimi-K3",
            {"model_type": "x", "text_config": {"model_type": "kimi_linear", "routed_expert_hidden_size": 1}},
        ),
        ("A.X-K2", {"model_type": "axk2"}),
        ("Hy4", {"model_type": "hy_v4"}),
        ("dots3-note", {"model_type": "dots3_note"}),
        ("Mistral Large 4", {"model_type": "mistral_large4"}),
        ("Ling-2.6", {"model_type": "bailing_hybrid", "architectures": ["BailingMoeV2_5ForCausalLM"]}),
        ("Ling-2.6", {"model_type": "bailing_hybrid"}),
        ("DeepSeek-V4.1", {"model_type": "deepseek_v41"}),
        ("DeepSeek-V4.1", {"architectures": ["DeepseekV41ForCausalLM"]}),
        # whatever it calls itself: layers that share compressed rows
        ("DeepSeek-V4.1", {"model_type": "deepseek_v4", "kv_source_layer_ids": [2, 8, 14, 20]}),
        ("LongCat-Flash-Lite", {"model_type": "longcat_flash", "ngram_vocab_size_ratio": 78}),
        ("Instella-MoE", {"model_type": "instella_moe"}),
        ("openPangu 2", {"architectures": ["PanguV2MoEForCausalLM"]}),
    ],
)
def test_models_that_are_refused_by_name(name, config):
    with pytest.raises(ExportError) as refusal:
        refuse_by_name(config, "config.json")
    assert f"{name} is not supported; what is not implemented: " in str(refusal.value)


def test_those_that_run_are_not_refused():
    for values in SHAPES.values():
        refuse_by_name(values, "config.json")


# ---- sessions


def continued(model, folder, cuts, total=60):
    """The text of a session that is saved and continued at `cuts`: the ids of its last run."""
    file, begin = folder / "session", 0
    file.unlink(missing_ok=True)
    for end in cuts:
        text("--ids", " ".join(IDS[begin:end]), "-n", "0", "--session", file, model=model)
        begin = end
    return text("--ids", " ".join(IDS[begin:total]), "-n", "12", "-s", "5", "--session", file, model=model)


@pytest.mark.parametrize(
    "source", [LING, KIMI, MODELS / "v4_fp4", MODELS / "glm53flash"], ids=lambda source: source.name
)
def test_a_session_goes_on_as_the_text(source, export, tmp_path, monkeypatch):
    """Saved at every row around the taps of a convolution and the end of a call."""
    monkeypatch.setenv("MLA_PATH", "absorbed")
    model = export(source, "mixed")
    want = text("--ids", " ".join(IDS), "-n", "12", "-s", "5", model=model)
    for cuts in [(1,), (2,), (3,), (4,), (5,), (1, 2, 3, 4), (8, 9), (59,)]:
        assert continued(model, tmp_path, cuts) == want, cuts


def test_what_a_session_holds(export, tmp_path):
    """The constant part in f32 behind the pages, with a checksum; damage and strange numbers are one line."""
    model, file = export(KIMI, "f32"), tmp_path / "session"
    text("--ids", " ".join(IDS), "-n", "0", "--session", file, model=model)
    raw = file.read_bytes()
    fields = header(raw)
    # two layers: 3 heads of [20 keys][32 values], and 3 rows of 3 * 60 numbers
    size = 4 * 2 * (3 * 20 * 32 + 3 * 180)
    assert fields["constant"] == 1 and fields["file_bytes"] == len(raw)
    assert len(raw) == fields["data_offset"] + fields["pages"] * fields["page_bytes"] + size
    part = np.frombuffer(raw[-size:], np.float32)
    assert np.isfinite(part).all() and (part != 0).mean() > 0.5
    more = ["--ids", "1", "-n", "1", "--session", file]
    file.write_bytes(raw[:-4] + b"\0\0\0\1")
    refused(run(*more, model=model), FAILED, "damaged", "constant part")
    strange = raw[:-4] + b"\0\0\x80\x7f"
    file.write_bytes(with_fields(strange, constant_checksum=zlib.crc32(strange[-size:])))
    refused(run(*more, model=model), FAILED, "damaged", "non-finite")
    file.write_bytes(with_fields(raw[:-size], constant=0, file_bytes=len(raw) - size))
    refused(run(*more, model=model), FAILED, "damaged", "sizes")


@pytest.mark.parametrize("cache", ["f32", "bf16", "q8", "q6", "q4", "full"])
@pytest.mark.parametrize("name", ["v32", "kimi_linear", "v4_fp4", "glm53flash"])
def test_rows_behind_the_last_are_zeros(name, cache, export, tmp_path):
    """A session is the same whether a longer text stood there before or not."""
    if (name, cache) == ("v4_fp4", "full"):
        return  # it has no latent to go without
    model = export(MODELS / name, "mixed")
    driver = ROOT / "build" / "session_driver"
    files = []
    for ids in (["1 2 3 4 5"], ["1 2 3 4 5", "-1"], ["1 2 3 4"]):
        files.append(tmp_path / f"session{len(files)}")
        words = [driver, model, files[-1], cache, *ids]
        done = subprocess.run(words, input=b"\n" * 9, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
    long, cut, never = (file.read_bytes()[4096:] for file in files)
    assert cut == never != long


# ---- what --info says


@pytest.mark.parametrize(
    "shape, numbers, constant",
    [
        ("ling-3.0-tiny", 6 * 576, 18 * (16 * 128 * 128 + 3 * 3 * 16 * 128)),
        ("ling-3.0-flash", 7 * 576, 35 * (32 * 128 * 128 + 3 * 3 * 32 * 128)),
        ("kimi-linear-48b", 7 * 576, 20 * (32 * 128 * 128 + 3 * 3 * 32 * 128)),
    ],
)
def test_info(shape, numbers, constant, tmp_path, monkeypatch):
    """Numbers a token are those of the layers with latents alone; the constant part does not grow."""
    small = {
        "hidden_size": 64,
        "vocab_size": 64,
        "intermediate_size": 64,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    small |= {"num_experts": None, "n_routed_experts": 8, "n_group": 1, "topk_group": 1}
    monkeypatch.setitem(SHAPES, shape, {**SHAPES[shape], **small})
    assert command.main(["--random", shape, str(tmp_path / "m"), "--layers", "1", "--type", "q4"]) == 0
    out = compare.run(tmp_path / "m", "--info").decode()
    token = re.search(r"^-k q8 +([\d,]+) +([\d,]+) ", out, re.M)
    assert int(token[1].replace(",", "")) == numbers
    part = re.search(r"^constant part of a sequence, f32 +([\d,]+) +([\d,]+)$", out, re.M)
    assert [int(x.replace(",", "")) for x in part.groups()] == [constant, 4 * constant]
    contexts = re.findall(r"^-k q8 +([\d,]+) +([\d,]+)$", out, re.M)[-1]
    a_token = int(token[2].replace(",", ""))
    want = [4 * constant + rows * a_token for rows in (32768, 1048576)]
    assert [int(x.replace(",", "")) for x in contexts] == want
