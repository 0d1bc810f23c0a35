"""DeepSeek-V4's configuration: which layers have compressed rows, residual streams, hash layers, the two
rotations.

Two forms are read, the published config.json (compress_ratios, num_hash_layers, rope_scaling) and the one
that transformers saves (layer_types, compress_rates, mlp_layer_types, rope_parameters with two blocks). The
arithmetic is engine/window.c's, compress.c's and hyper.c's; which tensors the checkpoint gets is plan.py's,
what they are called names.py's. Ratios other than the published ones are refused, and so are a hash layer
behind another one and anything that multiplies cosine and sine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .kda import LIMIT_GATE, LIMIT_NONE, mask
from .keys import LIMITS, Keys
from .rope import Rope, yarn_inv_freq

CSA_RATIO, HCA_RATIO = 4, 128  # tokens for a compressed row, of all published models
CSA, HCA = "compressed_sparse_attention", "heavily_compressed_attention"
KINDS = {0: "sliding_attention", CSA_RATIO: CSA, HCA_RATIO: HCA}
PARTIAL = 64 / 512  # of a head turns, where nothing says how much: the class's default


@dataclass(frozen=True)
class Window:
    fields: dict[str, Any]  # of Config
    rope: Rope | None = None  # of sliding layers
    compress_inv_freq: np.ndarray | None = None  # float32 [p / 2], of the others, in radians per position
    rope_factor: float = 0.0  # by which the context was extended
    limits: np.ndarray | None = None  # float32 [2, layers]: of routed and of shared experts; 0: none


NO_WINDOW = Window({})


def window_heads(keys: Keys) -> dict[str, int]:
    """The sizes of attention whose one row of head_dim numbers is key and value of all heads. There is no
    dense layer: what stands for its width is an expert's, as in transformers."""
    size = keys.integer("head_dim")
    part = keys.number("partial_rotary_factor", PARTIAL, most=1.0)
    p = keys.integer("qk_rope_head_dim", int(size * part), most=size)
    if p % 2:
        keys.fail("qk_rope_head_dim", "it must be even: rotations turn pairs")
    if keys.get("partial_rotary_factor", None) is not None and int(size * part) != p:
        keys.fail("partial_rotary_factor", f"of {size} numbers {p} turn")
    keys.one_of("num_key_value_heads", 1)
    return {
        "kv_lora_rank": 0,
        "q_lora_rank": keys.integer("q_lora_rank"),
        "qk_nope_head_dim": size - p,
        "qk_rope_head_dim": p,
        "v_head_dim": size,
        "intermediate_size": keys.integer("moe_intermediate_size"),
    }


def _kinds(keys: Keys, layers: int) -> list[str]:
    """What each layer attends to. compress_ratios goes on with the layers for multi-token prediction."""
    ratios, listed = keys.get("compress_ratios", None), keys.get("layer_types", None)
    rates = keys.get("compress_rates", {CSA: CSA_RATIO, HCA: HCA_RATIO})
    if rates != {CSA: CSA_RATIO, HCA: HCA_RATIO}:
        keys.fail("compress_rates", f"{CSA_RATIO} and {HCA_RATIO} tokens for a row are supported, no others")
    found = []
    if ratios is not None:
        ratios = ratios[:layers] if isinstance(ratios, list) else []
        found = [KINDS.get(ratio) if type(ratio) is int else None for ratio in ratios]
        if len(found) < layers or None in found:
            keys.fail(
                "compress_ratios", f"0, {CSA_RATIO} or {HCA_RATIO} for each of {layers} layers was expected"
            )
    if listed is not None:
        right = (
            isinstance(listed, list) and len(listed) == layers and all(k in KINDS.values() for k in listed)
        )
        if not right or found not in ([], listed):
            kinds = ", ".join(KINDS.values())
            keys.fail("layer_types", f"one of {kinds} for each of {layers} layers was expected")
        found = listed
    if not found:
        keys.get("compress_ratios")  # refuses
    return [str(kind) for kind in found]


def _hash_layers(keys: Keys, layers: int) -> int:
    """How many layers, the first ones, take their experts from a table."""
    kinds = keys.get("mlp_layer_types", None)
    if kinds is None:
        return min(int(keys.integer("num_hash_layers", 3, least=0)), layers)
    count = kinds.count("hash_moe") if isinstance(kinds, list) else 0
    if kinds != ["hash_moe"] * count + ["moe"] * (layers - count):
        keys.fail(
            "mlp_layer_types", f"hash_moe first and then moe, {layers} in all, is supported, no other order"
        )
    keys.one_of("num_hash_layers", count)
    return count


def _turned(block: Keys, p: int, theta: float) -> Rope:
    """The rotation of layers with compressed rows: YaRN's frequencies, or plain ones."""
    kind = block.one_of("type", "default", "yarn")
    kind = block.one_of("rope_type", kind, "default", "yarn")
    rope = Rope(theta ** (-2.0 * np.arange(p // 2) / p), theta)
    if kind == "yarn":
        factor = block.number("factor", least=1e-6, most=1e6)
        original = block.integer("original_max_position_embeddings")
        fast = block.number("beta_fast", 32.0, least=1e-6, most=1e6)
        slow = block.number("beta_slow", 1.0, least=1e-6, most=1e6)
        block.one_of("truncate", True)
        block.one_of("attention_factor", 1.0)
        rope = Rope(yarn_inv_freq(p, theta, factor, fast, slow, original), theta, factor)
    block.finish()
    return rope


def _ropes(keys: Keys, p: int, part: float) -> tuple[Rope, Rope]:
    """(of sliding layers, of the others)."""
    both = keys.get("rope_parameters", None)
    theta = keys.number("rope_theta", least=1.000001)
    compress = keys.number("compress_rope_theta", None, least=1.000001)
    if both is None:
        values = keys.get("rope_scaling", {})
        if not isinstance(values, dict):
            keys.fail("rope_scaling", "an object was expected")
        keys.get("compress_rope_theta")
        return Rope(theta ** (-2.0 * np.arange(p // 2) / p), theta), _turned(
            Keys(values, f"{keys.where}: rope_scaling"), p, compress
        )
    if not isinstance(both, dict) or not all(isinstance(both.get(k), dict) for k in ("main", "compress")):
        keys.fail("rope_parameters", "an object with the objects main and compress was expected")
    ropes = []
    for name, beside in (("main", None if "rope_theta" in keys.absent else theta), ("compress", compress)):
        block = Keys(both[name], f"{keys.where}: rope_parameters: {name}")
        inside = block.number("rope_theta", beside, least=1.000001)
        if inside is None or beside not in (None, inside):
            block.fail("rope_theta", f"a number was expected, the same as {keys.where} has")
        block.one_of("partial_rotary_factor", part)
        if name == "main":
            block.one_of("rope_type", "default")
            block.one_of("type", "default")
        ropes.append(_turned(block, p, inside))
    return ropes[0], ropes[1]


def read_window(keys: Keys, f: dict[str, Any]) -> Window:
    """`f`: the fields of Config that window_heads() and its neighbours read. ExportError where something is
    missing or not supported."""
    layers, heads, p = f["num_hidden_layers"], f["num_attention_heads"], f["qk_rope_head_dim"]
    kinds = _kinds(keys, layers)
    sliding, turned = _ropes(keys, p, p / f["v_head_dim"])
    groups = keys.integer("o_groups", most=heads)
    if heads % groups:
        keys.fail("o_groups", f"it must divide the {heads} heads")
    limit = keys.number("swiglu_limit", 0.0)
    keys.one_of("expert_dtype", "fp4", "fp8", "bf16")  # the tensors' own types say it
    keys.read.update(("router_jitter_noise", "output_router_logits"))  # of training
    csa = CSA in kinds
    fields = {
        "hc_mult": keys.integer("hc_mult", most=LIMITS["hc_mult"]),
        "hc_sinkhorn_iters": keys.integer("hc_sinkhorn_iters", most=1000),
        "hc_eps": keys.number("hc_eps", least=1e-30),
        "sliding_window": keys.integer("sliding_window"),
        "o_groups": groups,
        "o_lora_rank": keys.integer("o_lora_rank", most=LIMITS["q_lora_rank"]),
        "csa_ratio": CSA_RATIO if csa else 0,
        "hca_ratio": HCA_RATIO if HCA in kinds else 0,
        "csa_layers": mask([kind == CSA for kind in kinds]),
        "hca_layers": mask([kind == HCA for kind in kinds]),
        "compress_rope_theta": turned.theta,
        "num_hash_layers": _hash_layers(keys, layers),
        "index_n_heads": keys.integer("index_n_heads", *([] if csa else [0])) if csa else 0,
        "index_head_dim": keys.integer("index_head_dim", least=p) if csa else 0,
        "index_topk": keys.integer("index_topk") if csa else 0,
        "index_topk_freq": 1,
        "index_skip_topk_offset": 0,
        "swiglu_limits": LIMIT_GATE if limit else LIMIT_NONE,
    }
    limits = np.full((2, layers), limit, np.float32) if limit else None
    return Window(fields, sliding, turned.inv_freq.astype(np.float32), turned.factor, limits)
