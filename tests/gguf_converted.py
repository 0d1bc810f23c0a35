"""Writes tiny models as GGUF files the way llama.cpp's and ik_llama.cpp's converters do, for every
architecture that is read. The tensors' names are those that the gguf package has for a name of transformers;
where its version lacks an architecture, the names are written out here. What a converter writes or leaves out
is what its set_gguf_parameters does (conversion/*.py in llama.cpp)."""

import re

import gguf
import numpy as np
from gguf_models import finish, published

# The tables of names; deepseek32's tensors are glm-dsa's.
MAPS = {
    "deepseek2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek32": gguf.MODEL_ARCH.GLM_DSA,
    "glm-dsa": gguf.MODEL_ARCH.GLM_DSA,
    "mistral4": gguf.MODEL_ARCH.MISTRAL4,
    "minicpm3": gguf.MODEL_ARCH.MINICPM3,
    "plm": gguf.MODEL_ARCH.PLM,
}
SPLIT = ("deepseek2", "deepseek32", "glm-dsa", "mistral4", "longcat-flash")  # kv_b_proj is cut in two


def longcat_name(name):
    """As the converter for LongCat in llama.cpp's forks: a layer is two blocks."""
    match = re.match(r"model\.layers\.(\d+)\.(.+)", name)
    if not match:
        return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
            name.removesuffix(".weight")
        ] + ".weight"
    layer, rest = int(match.group(1)), match.group(2)
    if rest.startswith("mlp."):
        kind = {
            "mlp.router.classifier.weight": "ffn_gate_inp.weight",
            "mlp.router.e_score_correction_bias": "exp_probs_b.bias",
        }.get(rest) or rest.replace("mlp.experts.", "ffn_").replace("_proj", "_exps")
        return f"blk.{2 * layer}.{kind}"
    block, half, tail = re.match(r"(\w+)\.([01])\.(.+)", rest).groups()
    kind = {
        "input_layernorm": "attn_norm.weight",
        "post_attention_layernorm": "ffn_norm.weight",
        "mlps": "ffn_" + tail.replace("_proj", ""),
        "self_attn": "attn_"
        + {"kv_a_proj_with_mqa.weight": "kv_a_mqa.weight", "o_proj.weight": "output.weight"}.get(tail, tail)
        .replace("_proj", "")
        .replace("layernorm", "norm"),
    }[block]
    return f"blk.{2 * layer + int(half)}.{kind}"


def stacked(found):
    """The tensors with each layer's experts in one tensor of three dimensions."""
    out, experts = {}, {}
    for name, x in found.items():
        match = re.match(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if match:
            experts.setdefault(f"{match.group(1)}.{match.group(3)}.weight", {})[int(match.group(2))] = x
        else:
            out[name + ("" if name.endswith((".weight", ".bias", "_bias")) else ".weight")] = x
    return out | {name: np.stack([parts[e] for e in sorted(parts)]) for name, parts in experts.items()}


def layout(config, found, architecture):
    """{llama.cpp's name: numbers}."""
    H, n, v = config["num_attention_heads"], config["qk_nope_head_dim"], config.get("v_head_dim")
    blocks = config.get("num_hidden_layers") or 2 * config["num_layers"]
    names = gguf.get_tensor_name_map(MAPS[architecture], blocks) if architecture in MAPS else None

    def named(name):
        if names is None:
            return longcat_name(name)
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        return names.get_name(name, try_suffixes=(".weight", ".bias"))

    out = {}
    for name, x in stacked(found).items():
        if name.endswith("kv_b_proj.weight") and architecture in SPLIT:
            heads = x.reshape(H, n + v, -1)
            ours = named(name)
            out[ours.replace("kv_b", "k_b")] = np.ascontiguousarray(heads[:, :n].transpose(0, 2, 1))
            out[ours.replace("kv_b", "v_b")] = np.ascontiguousarray(heads[:, n:])
        else:
            assert named(name), name
            out[named(name)] = x
    return out


def keys(writer, config, architecture):
    """What every converter writes, under gguf's names of the methods, and then each one's own."""
    n, p, r = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    v, pairs = config.get("v_head_dim"), config.get("num_layers")
    rope = config.get("rope_parameters") or {}
    values = {
        "block_count": 2 * pairs if pairs else config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config.get("intermediate_size") or config["ffn_hidden_size"],
        "head_count": config["num_attention_heads"],
        "head_count_kv": 1 if architecture in SPLIT else config["num_attention_heads"],
        "layer_norm_rms_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "kv_lora_rank": r,
        "rope_dimension_count": p,
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "add_bos_token": True,
    }
    if architecture != "minicpm3":
        values["rope_freq_base"] = float(config.get("rope_theta") or rope["rope_theta"])
    if config["q_lora_rank"]:
        values["q_lora_rank"] = config["q_lora_rank"]
    if architecture in SPLIT:
        values |= {
            "key_length": r + p, "value_length": r, "key_length_mla": n + p, "value_length_mla": v
        }  # fmt: skip
    else:
        values |= {"key_length": n + p} | ({"value_length": v} if architecture == "plm" else {})
    for key, value in values.items():
        getattr(writer, f"add_{key}")(value)
    if pairs:
        longcat_keys(writer, config)
    elif architecture in SPLIT:
        deepseek_keys(writer, config, rope)


def deepseek_keys(writer, config, rope):
    """DeepseekV2Model's and its descendants'; a key whose value the configuration lacks is left out."""
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace", config["num_hidden_layers"]))
    writer.add_expert_feed_forward_length(config.get("moe_intermediate_size") or config["intermediate_size"])
    writer.add_expert_shared_count(config.get("n_shared_experts", 0))
    for key, name in (
        ("n_routed_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("routed_scaling_factor", "expert_weights_scale"),
        ("norm_topk_prob", "expert_weights_norm"),
        ("n_group", "expert_group_count"),
        ("topk_group", "expert_group_used_count"),
        ("index_n_heads", "indexer_head_count"),
        ("index_head_dim", "indexer_key_length"),
        ("index_topk", "indexer_top_k"),
    ):
        if config.get(key):
            getattr(writer, f"add_{name}")(config[key])
    if config.get("scoring_func"):
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType[config["scoring_func"].upper()])
    yarn = config.get("rope_scaling") or (rope if rope.get("rope_type") == "yarn" else {})
    if yarn:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(yarn["factor"]))
        writer.add_rope_scaling_orig_ctx_len(yarn["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * yarn["mscale_all_dim"])


def longcat_keys(writer, config):
    writer.add_expert_feed_forward_length(config["expert_ffn_hidden_size"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["moe_topk"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    writer.add_uint32("longcat-flash.expert_zero_count", config["zero_expert_num"])


def write(folder, model, architecture, config=None, change=lambda writer: None, said=None):
    """A GGUF in `folder` with the model of that name in tests/models: its path. config: other values; said:
    another name of the architecture."""
    own, found = published(model)
    config = own | (config or {})
    path = folder / f"{model}.gguf"
    writer = gguf.GGUFWriter(path, said or architecture)
    keys(writer, config, architecture)
    change(writer)
    for name, x in layout(config, found, architecture).items():
        writer.add_tensor(name, np.ascontiguousarray(x, np.float32))
    if architecture == "minicpm3":
        for kind in ("long", "short"):
            factors = np.array(config["rope_scaling"][f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)
    finish(writer)
    return path


# Models with linear attention. Of Ling's tensors the converter writes out the names of two.
LING_NAMES = {
    ".attention.": ".self_attn.",
    ".dense.": ".o_proj.",
    "gate.expert_bias": "gate.e_score_correction_bias",
    ".f_proj.": ".f_a_proj.",
}


def hybrid_layout(config, found, linear, logarithms):
    """{llama.cpp's name: numbers}; linear: which layers have linear attention; logarithms: what becomes of
    A_log."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.KIMI_LINEAR, len(linear))
    H, n, v = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    out = {}
    for name, x in stacked(found).items():
        for theirs, ours in LING_NAMES.items():
            name = name.replace(theirs, ours)
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        if name.endswith("g_proj.weight"):
            out[f"blk.{layer}.{'ssm_g_a' if linear[layer] else 'attn_gate'}.weight"] = x
            continue
        if name.endswith("A_log.weight"):
            name, x = name.removesuffix(".weight"), logarithms(x)
        name = name.replace(".dt_bias", ".dt_proj.bias").replace("correction_bias", "correction.bias")
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert ours, name
        if ours.endswith("attn_kv_b.weight"):
            heads = x.reshape(H, n + v, -1)
            out[ours.replace("kv_b", "k_b")] = heads[:, :n].transpose(0, 2, 1)
            out[ours.replace("kv_b", "v_b")] = heads[:, n:]
        else:
            out[ours] = x.reshape(1, len(x), 1, -1) if "conv1d" in ours else x
    return out


def hybrid_keys(writer, c, linear):
    """KimiLinearModel's and BailingMoeV3Model's. Of Kimi-Linear's groups of experts the converter looks for
    no key."""
    n, p, r = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    own = c.get("linear_attn_config", c)
    for key, value in {
        "block_count": len(linear),
        "context_length": c.get("max_position_embeddings") or c["model_max_length"],
        "embedding_length": c["hidden_size"],
        "feed_forward_length": c["intermediate_size"],
        "head_count": c["num_attention_heads"],
        "head_count_kv": [0 if is_linear else 1 for is_linear in linear],
        "layer_norm_rms_eps": c["rms_norm_eps"],
        "rope_freq_base": float(c["rope_theta"]),
        "rope_dimension_count": p,
        "vocab_size": c["vocab_size"],
        "ssm_conv_kernel": own["short_conv_kernel_size"],
        "kda_head_dim": own["head_dim"],
        "q_lora_rank": c["q_lora_rank"],
        "kv_lora_rank": r,
        "key_length": r + p,
        "key_length_mla": n + p,
        "value_length_mla": c["v_head_dim"],
        "expert_count": c["num_experts"],
        "expert_used_count": c.get("num_experts_per_tok") or c["num_experts_per_token"],
        "expert_group_count": c.get("n_group"),
        "expert_group_used_count": c["topk_group"],
        "expert_gating_func": gguf.ExpertGatingFuncType.SIGMOID,
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_shared_feed_forward_length": c.get("moe_shared_expert_intermediate_size"),
        "expert_shared_count": c["num_shared_experts"],
        "leading_dense_block_count": c["first_k_dense_replace"],
        "expert_weights_scale": c["routed_scaling_factor"],
        "expert_weights_norm": c.get("norm_topk_prob"),
        "swiglu_clamp_exp": c.get("expert_swiglu_limit_list"),
        "swiglu_clamp_shexp": c.get("share_expert_swiglu_limit_list"),
        "bos_token_id": c.get("bos_token_id"),
        "eos_token_id": c["eos_token_id"],
    }.items():
        if value is not None:
            if "clamp" in key:
                value = [float(limit or 0) for limit in value]
            getattr(writer, f"add_{key}")(value)


def write_hybrid(folder, model, architecture, leave=(), say=None, change=lambda tensors: None):
    """A GGUF in `folder` with a model of linear attention: its path. leave: keys of the configuration that
    the file does not have; say: {key: value} beside or instead; change: of {name: numbers}."""
    config, found = published(model)
    kimi, layers = architecture == "kimi-linear", config["num_hidden_layers"]
    if kimi:
        linear = [i + 1 in config["linear_attn_config"]["kda_layers"] for i in range(layers)]
    else:
        linear = [(i + 1) % config["layer_group_size"] != 0 for i in range(layers)]
    path = folder / f"{model}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    hybrid_keys(writer, config | dict.fromkeys(leave), linear)
    if not kimi:
        writer.add_bool("bailingmoe3.kda.safe_gate", config["kda_safe_gate"])
        writer.add_float32("bailingmoe3.kda.gate_lower_bound", config["kda_lower_bound"])
    for key, value in (say or {}).items():
        add = {int: writer.add_uint32, list: writer.add_array, float: writer.add_float32}[type(value)]
        add(f"{architecture}.{key}", value)
    rates = (lambda x: -np.exp(x)) if kimi else (lambda x: np.exp(x).reshape(-1, 1))
    tensors = hybrid_layout(config, found, linear, rates)
    change(tensors)
    for name, x in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(x, np.float32))
    finish(writer)
    return path


# DeepSeek-V4's names, as its converter writes them out: those of a layer begin with blk.N.
V4_TOP = {
    "embed": "token_embd", "head": "output", "norm": "output_norm", "hc_head_fn": "output_hc_fn",
    "hc_head_base": "output_hc_base", "hc_head_scale": "output_hc_scale",
}  # fmt: skip
V4_LAYER = {
    "attn.attn_sink": "attn_sinks", "attn.wq_a": "attn_q_a", "attn.wq_b": "attn_q_b",
    "attn.q_norm": "attn_q_a_norm", "attn.wkv": "attn_kv", "attn.kv_norm": "attn_kv_a_norm",
    "attn.wo_a": "attn_output_a", "attn.wo_b": "attn_output_b",
    "attn.compressor.ape": "attn_compressor_ape", "attn.compressor.wkv": "attn_compressor_kv",
    "attn.compressor.wgate": "attn_compressor_gate", "attn.compressor.norm": "attn_compressor_norm",
    "attn.indexer.wq_b": "indexer.attn_q_b", "attn.indexer.weights_proj": "indexer.proj",
    "attn.indexer.compressor.ape": "indexer_compressor_ape",
    "attn.indexer.compressor.wkv": "indexer_compressor_kv",
    "attn.indexer.compressor.wgate": "indexer_compressor_gate",
    "attn.indexer.compressor.norm": "indexer_compressor_norm",
    "ffn.shared_experts.w1": "ffn_gate_shexp", "ffn.shared_experts.w3": "ffn_up_shexp",
    "ffn.shared_experts.w2": "ffn_down_shexp", "ffn.gate": "ffn_gate_inp",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid", "attn_norm": "attn_norm", "ffn_norm": "ffn_norm",
    "hc_attn_fn": "hc_attn_fn", "hc_attn_base": "hc_attn_base", "hc_attn_scale": "hc_attn_scale",
    "hc_ffn_fn": "hc_ffn_fn", "hc_ffn_base": "hc_ffn_base", "hc_ffn_scale": "hc_ffn_scale",
}  # fmt: skip


def v4_keys(writer, c, said):
    layers = c["num_hidden_layers"]
    yarn = c["rope_scaling"]
    for key, value in {
        "block_count": layers,
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "head_count": c["num_attention_heads"],
        "head_count_kv": 1,
        "key_length": c["head_dim"],
        "value_length": c["head_dim"],
        "layer_norm_rms_eps": c["rms_norm_eps"],
        "rope_dimension_count": c["qk_rope_head_dim"],
        "rope_freq_base": float(c["rope_theta"]),
        "rope_scaling_type": gguf.RopeScalingType.YARN,
        "rope_scaling_factor": float(yarn["factor"]),
        "rope_scaling_orig_ctx_len": yarn["original_max_position_embeddings"],
        "q_lora_rank": c["q_lora_rank"],
        "sliding_window": c["sliding_window"],
        "indexer_head_count": c["index_n_heads"],
        "indexer_key_length": c["index_head_dim"],
        "indexer_top_k": c["index_topk"],
        "expert_count": c["n_routed_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_shared_count": c["n_shared_experts"],
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_weights_scale": c["routed_scaling_factor"],
        "expert_weights_norm": c["norm_topk_prob"],
        "vocab_size": c["vocab_size"],
        "bos_token_id": c["bos_token_id"],
        "eos_token_id": c["eos_token_id"],
        "add_bos_token": True,
    }.items():
        getattr(writer, f"add_{key}")(value)
    own = {
        "nextn_predict_layers": c["num_nextn_predict_layers"],  # which are not there
        "expert_gating_func": 4,
        "attention.output_lora_rank": c["o_lora_rank"],
        "attention.output_group_count": c["o_groups"],
        "attention.compress_ratios": c["compress_ratios"],
        "attention.compress_rope_freq_base": float(c["compress_rope_theta"]),
        "hash_layer_count": c["num_hash_layers"],
        "hyper_connection.count": c["hc_mult"],
        "hyper_connection.sinkhorn_iterations": c["hc_sinkhorn_iters"],
        "hyper_connection.epsilon": c["hc_eps"],
        "swiglu_clamp_exp": [float(c["swiglu_limit"])] * layers,
        "swiglu_clamp_shexp": [float(c["swiglu_limit"])] * layers,
    }
    add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for key, value in (own | said).items():
        add[type(value)](f"deepseek4.{key}", value)


def v4_layout(c, found):
    """{llama.cpp's name: numbers}; found: v4_models.numbers()."""
    out = {f"{ours}.weight": found[name] for name, ours in V4_TOP.items()}
    for i in range(c["num_hidden_layers"]):
        blk, layer = f"blk.{i}.", f"layers.{i}."
        for name, ours in V4_LAYER.items():
            if layer + name in found:
                out[f"{blk}{ours}.weight"] = found[layer + name]
        if f"{layer}ffn.gate.bias" in found:
            out[f"{blk}exp_probs_b.bias"] = found[f"{layer}ffn.gate.bias"]
        for w, part in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
            experts = [found[f"{layer}ffn.experts.{e}.{w}"] for e in range(c["n_routed_experts"])]
            out[f"{blk}ffn_{part}_exps.weight"] = np.stack(experts)
    return out


def write_v4(path, c, found, packed=None, said=None):
    """A GGUF of DeepSeek-V4 at `path`. packed: {llama.cpp's name: bytes of MXFP4} in place of numbers; said:
    other values of the architecture's own keys."""
    writer = gguf.GGUFWriter(path, "deepseek4")
    v4_keys(writer, c, said or {})
    packed = packed or {}
    for name, x in v4_layout(c, found).items():
        if name in packed:
            writer.add_tensor(name, packed[name], raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(name, np.ascontiguousarray(x))
    finish(writer)
    return path


def mxfp4(packed, scale):
    """The blocks of published FP4: a scale, and 16 bytes of columns i (low) and 16 + i (high)."""
    pairs = packed.view(np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(pairs), -1, 32)
    bytes_ = codes[:, :, :16] | codes[:, :, 16:] << 4
    return np.concatenate([scale[:, :, None], bytes_], axis=2).reshape(len(pairs), -1)
