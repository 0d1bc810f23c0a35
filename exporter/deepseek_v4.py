"""DeepSeek-V4's configuration: which layers have compressed rows, residual streams, hash layers, the two
rotations.

Two forms are read, the published config.json (compress_ratios, num_hash_layers, rope_scaling) and the one
that transformers saves (layer_types, compress_rates, mlp_layer_types, rope_parameters with two blocks). The
arithmetic is engine/window.c's, compress.c's and hyper.c's; which tensors the checkpoint gets is plan.py's,
what they are called names.py's. A hash layer behind one of another kind is refused, and so is what would
multiply cosine and sine.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .kda import LIMIT_GATE, LIMIT_NONE, mask
from .keys import Keys
from .rope import Rope, yarn_inv_freq

CSA, HCA = "compressed_sparse_attention", "heavily_compressed_attention"
RATES = {CSA: 4, HCA: 128}  # tokens for a compressed row, of all published models
MOST = {CSA: 64, HCA: 1024}  # that ./run accepts
KINDS = {0: "sliding_attention", **{rate: kind for kind, rate in RATES.items()}}  # of compress_ratios
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
    """The sizes of attention whose one row of head_dim numbers is key and value of all heads."""
    size = keys.integer("head_dim")
    p = keys.integer("qk_rope_head_dim", int(size * keys.number("partial_rotary_factor", PARTIAL, most=1.0)))
    if p % 2 or not 0 < p <= size:
        keys.fail("qk_rope_head_dim", f"an even number up to {size} was expected: rotations turn pairs")
    _part(keys, size, p)
    keys.one_of("num_key_value_heads", 1)
    ranks = {"kv_lora_rank": 0, "q_lora_rank": keys.integer("q_lora_rank")}
    return ranks | {"qk_nope_head_dim": size - p, "qk_rope_head_dim": p, "v_head_dim": size}


def _part(keys: Keys, size: int, p: int) -> None:
    """partial_rotary_factor, where it is given, says the same as qk_rope_head_dim."""
    part = keys.number("partial_rotary_factor", None)
    if part is not None and abs(size * part - p) >= 1:
        keys.fail("partial_rotary_factor", f"{p} of {size} numbers turn")


def _rates(keys: Keys) -> dict[str, int]:
    """The tokens that become a row, of CSA and of HCA layers."""
    rates = keys.get("compress_rates", RATES)
    block = Keys(rates if isinstance(rates, dict) else {}, f"{keys.where}: compress_rates")
    found = {kind: int(block.integer(kind, most=most)) for kind, most in MOST.items()}
    block.finish()
    return found


def _kinds(keys: Keys, layers: int) -> list[str]:
    """What each layer attends to. compress_ratios goes on with the layers for multi-token prediction."""
    ratios, kinds = keys.get("compress_ratios", None), keys.get("layer_types", None)
    found: list[Any] = []
    if ratios is not None or kinds is None:
        ratios = keys.get("compress_ratios")
        ratios = ratios[:layers] if isinstance(ratios, list) else []
        found = [KINDS.get(ratio) if type(ratio) is int else None for ratio in ratios]
        if len(found) < layers or None in found:
            numbers = ", ".join(map(str, KINDS))
            keys.fail("compress_ratios", f"one of {numbers} for each of {layers} layers was expected")
    if kinds is not None:
        known = isinstance(kinds, list) and all(kind in KINDS.values() for kind in kinds)
        if not known or len(kinds) != layers or found not in ([], kinds):
            names = ", ".join(KINDS.values())
            keys.fail("layer_types", f"one of {names} for each of {layers} layers was expected")
        found = kinds
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


def _turned(block: Keys, p: int, theta: float, *kinds: str) -> Rope:
    """The rotation that a block of one of these kinds describes: YaRN's frequencies, or plain ones."""
    kind = block.one_of("type", "default", *kinds)
    kind = block.one_of("rope_type", kind, "default", *kinds)
    rope = Rope(theta ** (-2.0 * np.arange(p // 2) / p), theta)
    if kind == "yarn":
        factor = block.number("factor", least=1.0, most=1e6)
        original = block.integer("original_max_position_embeddings")
        fast = block.number("beta_fast", 32.0, least=1e-6, most=1e6)
        slow = block.number("beta_slow", 1.0, least=1e-6, most=1e6)
        block.one_of("truncate", True)
        block.one_of("attention_factor", 1.0)
        rope = Rope(yarn_inv_freq(p, theta, factor, fast, slow, original), theta, factor)
    block.finish()
    return rope


def _ropes(keys: Keys, size: int, p: int) -> tuple[Rope, Rope]:
    """(of sliding layers, of the others). The published form has one block, of the others."""
    stated = None if "rope_theta" in keys.absent else keys.number("rope_theta", None, least=1.000001)
    thetas = {"main": stated, "compress": keys.number("compress_rope_theta", None, least=1.000001)}
    key, blocks = "rope_parameters", keys.get("rope_parameters", None)
    if blocks is None:
        key, blocks = "rope_scaling", {"main": {}, "compress": keys.get("rope_scaling", {})}
        thetas = {"main": keys.number("rope_theta"), "compress": keys.number("compress_rope_theta")}
    ropes = []
    for name, kinds in (("main", ()), ("compress", ("yarn",))):
        block = blocks.get(name) if isinstance(blocks, dict) else None
        if not isinstance(block, dict):
            keys.fail(key, "an object was expected, with an object for each rotation where there are two")
        block, beside = Keys(block, f"{keys.where}: {key}: {name}"), thetas[name]
        theta = block.number("rope_theta", beside, least=1.000001)
        if theta is None or beside not in (None, theta):
            block.fail("rope_theta", f"a number was expected, and {beside} stands beside the block")
        _part(block, size, p)
        ropes.append(_turned(block, p, theta, *kinds))
    return ropes[0], ropes[1]


def read_window(keys: Keys, f: dict[str, Any]) -> Window:
    """`f`: the fields of Config that window_heads() and its neighbours read. ExportError where something is
    missing or not supported."""
    layers, heads, p = f["num_hidden_layers"], f["num_attention_heads"], f["qk_rope_head_dim"]
    kinds, rates = _kinds(keys, layers), _rates(keys)
    sliding, turned = _ropes(keys, f["v_head_dim"], p)
    groups = keys.integer("o_groups", most=heads)
    if heads % groups:
        keys.fail("o_groups", f"it must divide the {heads} heads")
    limit = keys.number("swiglu_limit")
    for key, only in (("scoring_func", "sqrtsoftplus"), ("topk_method", "noaux_tc"), ("n_group", 1)):
        keys.one_of(key, only)
    keys.one_of("expert_dtype", "fp4", "fp8", "bf16")  # the tensors' own types say it
    keys.read.add("router_jitter_noise")  # of training
    keys.read.update(("index_n_heads", "index_head_dim", "index_topk"))  # of CSA layers alone
    csa, hca = CSA in kinds, HCA in kinds
    fields = {
        "hc_mult": keys.integer("hc_mult"),
        "hc_sinkhorn_iters": keys.integer("hc_sinkhorn_iters"),
        "hc_eps": keys.number("hc_eps", most=1.0),
        "sliding_window": keys.integer("sliding_window"),
        "o_groups": groups,
        "o_lora_rank": keys.integer("o_lora_rank"),
        "csa_ratio": rates[CSA] if csa else 0,
        "hca_ratio": rates[HCA] if hca else 0,
        "csa_layers": mask([kind == CSA for kind in kinds]),
        "hca_layers": mask([kind == HCA for kind in kinds]),
        "compress_rope_theta": turned.theta if csa or hca else 0.0,
        "num_hash_layers": _hash_layers(keys, layers),
        "index_n_heads": keys.integer("index_n_heads") if csa else 0,
        "index_head_dim": keys.integer("index_head_dim", least=p) if csa else 0,
        "index_topk": keys.integer("index_topk") if csa else 0,
        "index_topk_freq": 1,
        "index_skip_topk_offset": 0,
        "swiglu_limits": LIMIT_GATE if limit else LIMIT_NONE,
    }
    limits = np.full((2, layers), limit, np.float32) if limit else None
    frequencies = turned.inv_freq.astype(np.float32) if csa or hca else None
    return Window(fields, sliding, frequencies, turned.factor, limits)
