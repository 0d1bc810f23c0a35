"""The linear attention of a configuration (Kimi Delta Attention, engine/kda.c): which layers have it, its
sizes and its gates; and what comes with it in the published models: attention without positions, a gate for
each head, limits of SwiGLU.

Two forms are published. Kimi-Linear lists its layers and makes decay and gate from two narrow matrices each;
Ling-3.0 counts in groups, makes them from one, and bounds the decay. Anything between the two is refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .families import Family
from .keys import Keys

MASK_WORDS = 32  # of 32 layers each: Config.kda_layers and others
LIMIT_NONE, LIMIT_SILU, LIMIT_GATE = 0, 1, 2  # model.h


@dataclass(frozen=True)
class Kda:
    fields: dict[str, Any]  # of Config
    rotated: bool = True  # the other layers' attention has positions
    limits: np.ndarray | None = None  # float32 [2, layers]: of routed and of shared experts; 0: none


NONE = Kda({})


def mask(layers: list[bool]) -> list[int]:
    """Which layers: bit i of word j for layer 32 j + i."""
    words = [0] * MASK_WORDS
    for i, has in enumerate(layers):
        words[i // 32] |= int(has) << i % 32
    return words


def has_layer(words: list[int], layer: int) -> bool:
    """Whether mask() made `words` with the layer in it."""
    return bool(words[layer // 32] >> layer % 32 & 1)


def _listed(block: Keys, key: str, layers: int) -> set[int]:
    listed = block.get(key)
    right = isinstance(listed, list) and all(type(i) is int and 1 <= i <= layers for i in listed)
    if not right or len(set(listed)) != len(listed):
        block.fail(key, f"different numbers of layers from 1 to {layers} were expected")
    return set(listed)


def _saved(keys: Keys, layers: int) -> dict[str, Any] | None:
    """What linear_attn_config would say, from transformers' keys; None if they are not there."""
    kinds = keys.get("layer_types", None)
    if not isinstance(kinds, list) or len(kinds) != layers:
        return None
    return {
        "kda_layers": [i + 1 for i, kind in enumerate(kinds) if kind == "linear_attention"],
        "full_attn_layers": [i + 1 for i, kind in enumerate(kinds) if kind == "full_attention"],
        "head_dim": keys.get("linear_head_dim", None),
        "num_heads": keys.get("linear_num_heads", None),
        "short_conv_kernel_size": keys.get("linear_conv_kernel_dim", None),
    }


def sizes(block: Keys) -> dict[str, Any]:
    """The fields of Config that linear_attn_config gives as numbers; GLM-5.3-Flash has the same ones."""
    size = block.integer("head_dim")
    return {
        "kda_heads": block.integer("num_heads"),
        "kda_head_dim": size,
        "kda_taps": block.integer("short_conv_kernel_size", least=2),
        "kda_rank": size,
    }


def _kimi(keys: Keys, layers: int) -> Kda:
    """linear_attn_config: lists of layers, counted from 1. transformers saves the kinds of all layers
    instead, in their order, and the sizes under names of its own."""
    values = keys.get("linear_attn_config", _saved(keys, layers))
    if not isinstance(values, dict):
        keys.fail("linear_attn_config", "an object was expected")
    block = Keys(values, f"{keys.where}: linear_attn_config")
    kda, full = _listed(block, "kda_layers", layers), _listed(block, "full_attn_layers", layers)
    if kda & full or len(kda) + len(full) != layers:
        block.fail("kda_layers", f"with full_attn_layers it must name each of {layers} layers once")
    fields = sizes(block) | {"kda_layers": mask([i + 1 in kda for i in range(layers)])}
    block.finish()
    keys.one_of("use_grouped_topk", True)
    keys.get("head_dim", None)  # hidden_size / num_attention_heads, of no layer
    return Kda(fields, rotated=not keys.boolean("mla_use_nope", True))


def _limits(keys: Keys, key: str, layers: int, dense: int) -> list[float]:
    """One number for each layer; 0 or null: none. Layers for multi-token prediction may follow."""
    values = keys.get(key, [0] * layers)
    most = layers + (keys.integer("num_nextn_predict_layers", 0, least=0))
    right_length = isinstance(values, list) and layers <= len(values) <= most
    limits = [0 if value is None else value for value in values] if right_length else []
    if not right_length or not all(type(x) in (int, float) and 0 <= x <= 1e30 for x in limits):
        keys.fail(key, f"a limit for each of {layers} layers was expected, 0 or null for none")
    if any(limits[:dense]):
        keys.fail(key, f"the first {dense} layers have no experts: what a limit means there is not known")
    return limits[:layers]


def _ling_constants(keys: Keys) -> None:
    """Keys of which one value is published and known."""
    keys.one_of("gated_attention_proj_granularity_type", "head_wise")
    keys.one_of("num_kv_heads_for_linear_attn", 0)
    for key in ("no_kda_lora", "linear_silu", "use_qk_norm"):
        keys.one_of(key, True)
    for key in ("use_kda_lora", "use_bias", "use_qkv_bias", "use_mla_nope", "use_nGPT"):
        keys.one_of(key, False)
    for key in ("value_norm", "up_proj_norm", "scale_router_input"):
        keys.one_of(key, False)
    keys.one_of("group_norm_size", 1)
    keys.read.update(("max_window_layers", "rotary_dim"))  # which say nothing


def _ling(keys: Keys, layers: int) -> Kda:
    """layer_group_size: the last layer of each group, and what is left over behind the last whole group, has
    latent attention."""
    group = keys.integer("layer_group_size")
    whole = layers // group * group
    _ling_constants(keys)
    lower = keys.number("kda_lower_bound", -5.0, least=-1e4, most=-1e-6)
    safe = keys.boolean("kda_safe_gate", True)
    shared = keys.integer("moe_intermediate_size") * keys.integer("n_shared_experts", 0, least=0)
    keys.one_of("moe_shared_expert_intermediate_size", shared)
    dense = keys.integer("first_k_dense_replace", least=0)
    limits = [_limits(keys, f"{who}_swiglu_limit_list", layers, dense) for who in ("expert", "share_expert")]
    limited = bool(np.any(limits))
    fields = {
        "kda_heads": keys.integer("num_attention_heads"),
        "kda_head_dim": keys.integer("head_dim"),
        "kda_taps": keys.integer("short_conv_kernel_size", 4, least=2),
        "kda_lower_bound": lower if safe else 0.0,
        "kda_layers": mask([(i + 1) % group != 0 and i < whole for i in range(layers)]),
        "head_gate": 1,
        "swiglu_limits": LIMIT_SILU if limited else LIMIT_NONE,
    }
    return Kda(fields, limits=np.array(limits, np.float32) if limited else None)


def read_kda(keys: Keys, family: Family, layers: int) -> Kda:
    """The linear attention of a model with `layers` layers; NONE if the family has none. ExportError where
    it is of a form that is not supported."""
    if family.linear_attention == "linear_attn_config":
        return _kimi(keys, layers)
    return _ling(keys, layers) if family.linear_attention else NONE
