"""GLM-5.3-Flash's configuration: linear attention and attention without positions, DeepSeek-V4's residual
streams and limits of SwiGLU, an indexer that chooses pools of tokens.

Layers are counted from 0 here, other than in Kimi-Linear's configuration. What no other model has are the
pools (engine/indexer.c) and a head that reads the plain mean of the streams (plan.py).
"""

from typing import Any

import numpy as np

from .kda import LIMIT_GATE, LIMIT_NONE, Kda, mask, sizes
from .keys import Keys

LINEAR = "linear_attention"
# what versions call the layers with latents
INDEXED = ("indexed_attention", "deepseek_sparse_attention", "full_attention")
LISTS = {"kda_layers": True, "full_attn_layers": False}


def _linear_layers(keys: Keys, block: Keys, layers: int) -> list[bool]:
    """Which layers have linear attention: layer_types says it, or two lists do, or both."""
    kinds = keys.get("layer_types", None)
    known = {LINEAR: True, **dict.fromkeys(INDEXED, False)}
    found: list[Any] = []
    if kinds is not None:
        listed = kinds[:layers] if isinstance(kinds, list) else []
        found = [known.get(kind) if isinstance(kind, str) else None for kind in listed]
        if len(found) < layers or None in found:
            keys.fail("layer_types", f"{LINEAR} or {INDEXED[0]} for each of {layers} layers was expected")
    for key, linear in LISTS.items():
        listed = block.get(key, None)
        if listed is None and kinds is not None:
            continue
        numbers = listed if isinstance(listed, list) and all(type(i) is int for i in listed) else [-1]
        has = [(i in numbers) == linear for i in range(layers)]
        if not set(numbers) <= set(range(layers)) or found not in ([], has):
            block.fail(key, f"layers from 0 to {layers - 1} were expected, each in one of the two lists")
        found = has
    return found


def _linear(keys: Keys, layers: int) -> dict[str, Any]:
    """The fields of linear attention. transformers saves its sizes under other names."""
    names = {"head_dim": "head_dim", "num_heads": "num_heads", "conv_kernel_dim": "short_conv_kernel_size"}
    saved = {key: keys.get(f"linear_{name}", None) for name, key in names.items()}
    saved["gate_lower_bound"] = keys.get("linear_lower_bound", None)
    values = keys.get("linear_attn_config", saved)
    if not isinstance(values, dict):
        keys.fail("linear_attn_config", "an object was expected")
    block = Keys(values, f"{keys.where}: linear_attn_config")
    fields = sizes(block) | {
        "kda_lower_bound": block.number("gate_lower_bound", -5.0, least=-1e4, most=-1e-6),
        "kda_layers": mask(_linear_layers(keys, block, layers)),
    }
    block.one_of("safe_gate", True)
    block.finish()
    return fields


def _every_layer_chooses(keys: Keys, layers: int) -> None:
    """No layer takes over what another one chose."""
    for key in ("indexer_types", "index_topk_pattern"):
        kinds = keys.get(key, "F" * layers)
        listed = list(kinds[:layers]) if isinstance(kinds, (list, str)) else []
        if len(listed) < layers or any(kind not in ("full", "F") for kind in listed):
            keys.fail(key, f"full in each of {layers} layers is supported, and nothing else")
    keys.one_of("index_topk_freq", 1)
    keys.read.add("index_skip_topk_offset")  # of layers that share


def read_glm5_next(keys: Keys, layers: int) -> Kda:
    """Its fields of Config that other models do not have all together. ExportError where something is missing
    or not supported."""
    for key in ("mhc", "mla_use_nope", "index_kpool_compress", "index_kpool_always_select_tail"):
        keys.one_of(key, True)
    keys.one_of("head_dim", 0)
    keys.read.add("indexer_rope_interleave")  # there are no positions
    _every_layer_chooses(keys, layers)
    limit = keys.number("swiglu_limit")
    pool = keys.integer("index_kpool")
    topk = keys.integer("index_topk", least=pool)
    if topk % pool:
        keys.fail("index_topk", f"a multiple of index_kpool, {pool}, was expected")
    fields = _linear(keys, layers) | {
        "hc_mult": keys.integer("hc_mult"),
        "hc_sinkhorn_iters": keys.integer("hc_sinkhorn_iters"),
        "hc_eps": keys.number("hc_eps", most=0.01),
        "index_n_heads": keys.integer("index_n_heads"),
        "index_head_dim": keys.integer("index_head_dim"),
        "index_topk": topk,
        "index_topk_freq": 1,
        "index_skip_topk_offset": 0,
        "index_kpool": pool,
        "swiglu_limits": LIMIT_GATE if limit else LIMIT_NONE,
    }
    limits = np.full((2, layers), limit, np.float32) if limit else None
    return Kda(fields, rotated=False, limits=limits)
