"""Writes the tiny models of tests/models as GGUF files in llama.cpp's layout, by the gguf package: what the
tests of GGUF sources read. The fixture write_gguf (conftest.py) calls write()."""

import json
import struct

import gguf
import numpy as np
from support import MODELS

from exporter.sources import E4M3

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
STORED = {
    "F32": ("<f4", lambda x: x),
    "BF16": ("<u2", lambda x: (x.astype(np.uint32) << 16).view(np.float32)),
    "F8_E4M3": ("u1", lambda x: E4M3[x]),
}


def published(model):
    """(config, {name: float32 array}) of a directory in tests/models; FP8 with its scales multiplied in."""
    config = json.loads((MODELS / model / "config.json").read_text())
    raw = (MODELS / model / "model.safetensors").read_bytes()
    data = 8 + struct.unpack_from("<Q", raw)[0]
    found = {}
    for name, entry in json.loads(raw[8:data]).items():
        if name != "__metadata__":
            (begin, end), (dtype, decoded) = entry["data_offsets"], STORED[entry["dtype"]]
            found[name] = decoded(
                np.frombuffer(raw[data + begin : data + end], dtype).reshape(entry["shape"])
            )
    for name in [name for name in found if name.endswith("_scale_inv")]:
        weight = name.removesuffix("_scale_inv")
        found[weight] = (
            found[weight]
            * np.kron(found.pop(name), np.ones((128, 128), np.float32))[
                : found[weight].shape[0], : found[weight].shape[1]
            ]
        )
    return config, found


def layout(model, split):
    """(config, tensors under llama.cpp's names): experts stacked, kv_b_proj whole or split in two with the
    keys' part transposed."""
    config, found = published(model)
    H, n, v = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    out = {f"{ours}.weight": found[f"{theirs}.weight"] for ours, theirs in top.items()}
    for i in range(config["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            if f"model.layers.{i}.{theirs}.weight" in found:
                out[f"blk.{i}.{ours}.weight"] = found[f"model.layers.{i}.{theirs}.weight"]
        for part in ("gate", "up", "down"):
            mlp = f"model.layers.{i}.mlp."
            if f"{mlp}experts.0.{part}_proj.weight" in found:
                experts = [
                    found[f"{mlp}experts.{e}.{part}_proj.weight"] for e in range(config["n_routed_experts"])
                ]
                out[f"blk.{i}.ffn_{part}_exps.weight"] = np.stack(experts)
                out[f"blk.{i}.ffn_{part}_shexp.weight"] = found[f"{mlp}shared_experts.{part}_proj.weight"]
        if f"model.layers.{i}.mlp.gate.e_score_correction_bias" in found:
            out[f"blk.{i}.exp_probs_b.bias"] = found[f"model.layers.{i}.mlp.gate.e_score_correction_bias"]
        if split:
            heads = out.pop(f"blk.{i}.attn_kv_b.weight").reshape(H, n + v, -1)
            out[f"blk.{i}.attn_k_b.weight"] = np.ascontiguousarray(heads[:, :n].transpose(0, 2, 1))
            out[f"blk.{i}.attn_v_b.weight"] = np.ascontiguousarray(heads[:, n:])
    return config, out


def finish(writer):
    """Writes what the writer was told."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(folder, model, kind="F32", split=True, change=lambda writer: None, name=None):
    """A GGUF in `folder` with the model of that name in tests/models, its matrices of type `kind`: its path,
    and the numbers that its tensors hold."""
    config, found = layout(model, split)
    path = folder / f"{name or model}.gguf"
    writer = gguf.GGUFWriter(path, "deepseek2")
    n, p, v, r = (
        config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    yarn = config["rope_scaling"]
    for key, value in {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "head_count": config["num_attention_heads"],
        "kv_lora_rank": r,
        "rope_dimension_count": p,
        "layer_norm_rms_eps": config["rms_norm_eps"],
        "rope_freq_base": float(config["rope_theta"]),
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
        "expert_gating_func": gguf.ExpertGatingFuncType[config["scoring_func"].upper()],
        "rope_scaling_type": gguf.RopeScalingType.YARN,
        "rope_scaling_factor": float(yarn["factor"]),
        "rope_scaling_orig_ctx_len": yarn["original_max_position_embeddings"],
        "rope_scaling_yarn_log_mul": 0.1 * yarn["mscale_all_dim"],
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "add_bos_token": True,
    }.items():
        getattr(writer, f"add_{key}")(value)
    if config["q_lora_rank"]:
        writer.add_q_lora_rank(config["q_lora_rank"])
    if split:
        writer.add_key_length(r + p)
        writer.add_value_length(r)
        writer.add_key_length_mla(n + p)
        writer.add_value_length_mla(v)
    else:
        writer.add_key_length(n + p)
        writer.add_value_length(v)
    change(writer)
    kind = gguf.GGMLQuantizationType[kind]
    stored = {}
    for key, x in found.items():
        quantized = x.ndim > 1 and "ffn_gate_inp" not in key
        stored[key] = gguf.quants.quantize(x, kind) if quantized else x
        writer.add_tensor(key, stored[key], raw_dtype=kind if quantized else None)
    finish(writer)
    return path, {
        key: gguf.quants.dequantize(x, kind) if x.dtype != np.float32 else x for key, x in stored.items()
    }
