"""Mistral's own form of a model, params.json and consolidated*.safetensors, in transformers' words: a
configuration as its config.json would be, and tensor names. What is read here and not understood is handed
on, so that config.py and plan.py refuse it."""

import re
from typing import Any

from .errors import ExportError, printable

ATTENTION = {
    "wq": "q_proj",
    "wq_a": "q_a_proj",
    "q_a_norm": "q_a_layernorm",
    "wq_b": "q_b_proj",
    "wkv_a_with_mqa": "kv_a_proj_with_mqa",
    "kv_a_norm": "kv_a_layernorm",
    "wkv_b": "kv_b_proj",
    "wo": "o_proj",
}
MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
LAYER = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate",
    **{f"attention.{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()},
    **{f"feed_forward.{ours}": f"mlp.{theirs}" for ours, theirs in MLP.items()},
    **{f"shared_experts.{ours}": f"mlp.shared_experts.{theirs}" for ours, theirs in MLP.items()},
}
TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
VISION = ("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm.")

KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "activation": "hidden_act",
}
EXPERT_KEYS = {
    "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "first_k_dense_replace": "first_k_dense_replace",
    "route_every_n": "moe_layer_freq",
    "routed_scale": "routed_scaling_factor",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
}
BLOCKS = ("moe", "yarn", "llama_4_scaling", "quantization")
OF_IMAGES = ("vision_encoder", "multimodal")
PARALLEL = ("expert_parallel", "expert_model_parallel")  # how many machines shared the training
YARN = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "beta": "beta_fast",
    "alpha": "beta_slow",
}


def transformers_name(name: str) -> str | None:
    """The name in transformers; None for what is for images."""
    if name.startswith(VISION):
        return None
    name = name.replace(".qscale_weight", ".weight_scale")
    stem, _, ending = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{ending}"
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
    if match and match.group(2) in LAYER:
        return f"model.layers.{match.group(1)}.{LAYER[match.group(2)]}.{ending}"
    expert = re.fullmatch(r"layers\.(\d+)\.experts\.(\d+)\.(w[123])", stem)
    if expert:
        return f"model.layers.{expert.group(1)}.mlp.experts.{expert.group(2)}.{MLP[expert.group(3)]}.{ending}"
    return name


def _renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def config(params: dict[str, Any], path: str) -> dict[str, Any]:
    """params.json -> what config.json would say. ExportError where a block is of no known kind."""

    def block(key: str) -> dict[str, Any]:
        value = params.get(key) or {}
        if not isinstance(value, dict):
            raise ExportError(f"{path}: {key} is {printable(value, 60)}: an object was expected")
        return value

    moe, yarn, scaling, stored = map(block, BLOCKS)
    left = {key: value for key, value in params.items() if key not in BLOCKS + OF_IMAGES}
    values = {"model_type": "mistral4", "rope_interleave": True, "hidden_act": "silu", **_renamed(left, KEYS)}
    if "head_dim" in values:  # of a query and key in all; transformers means something else by it
        values["qk_head_dim"] = values.pop("head_dim")
    if moe:
        values |= {
            "scoring_func": "softmax",
            "norm_topk_prob": True,
            **_renamed({key: moe[key] for key in moe if key not in PARALLEL}, EXPERT_KEYS),
        }
    if yarn:
        if yarn.get("apply_scale") is not False:
            scale = printable(yarn.get("apply_scale"))
            raise ExportError(f"{path}: yarn's apply_scale is {scale}: only false is supported")
        rope = {
            "rope_type": "yarn",
            "rope_theta": values.pop("rope_theta", 10000.0),
            "mscale": 1.0,
            "mscale_all_dim": 0.0,
            "attention_factor": 1.0,
        }
        rope |= _renamed({key: yarn[key] for key in yarn if key != "apply_scale"}, YARN)
        values["rope_parameters"] = rope
    if scaling:
        if not yarn or scaling.get("original_max_position_embeddings") != yarn.get(
            "original_max_position_embeddings"
        ):
            raise ExportError(
                f"{path}: llama_4_scaling without yarn, or with another original_max_position_embeddings, "
                "is not supported"
            )
        values["rope_parameters"]["llama_4_scaling_beta"] = scaling.get("beta")
    if stored:
        if stored.get("qformat_weight") != "fp8_e4m3":
            raise ExportError(
                f"{path}: quantization {printable(stored)} is not supported; qformat_weight fp8_e4m3 is"
            )
        values["quantization_config"] = {"quant_method": "fp8", "weight_block_size": None}
    return values
