"""The rotary positions of a configuration: plain, YaRN, longrope and Llama 3's, and queries that grow with
the position.

Read from rope_parameters (transformers 5) or rope_scaling and rope_theta (4). The frequencies are computed
here, in float64, once for all; what multiplies cosine and sine, the softmax scale or queries is folded into
weights by plan.py. Other kinds of rotation, and frequencies that change with the length of the context, are
refused.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from .families import Family
from .keys import REQUIRED, Keys

FREQUENCY_LIMIT = 64  # radians per position; published ones are at most 1, and ./run refuses more
STRETCHES = 1 << 20  # entries of query_scale; published models have 128 at most


@dataclass(frozen=True)
class Rope:
    inv_freq: np.ndarray  # float64 [p / 2], radians per position
    theta: float
    factor: float = 1.0  # by which the context was extended
    multiplier: float = 1.0  # of cosine and sine
    softmax_factor: float = 1.0  # of the softmax scale
    # queries are multiplied by 1 + beta * ln(1 + position / span), the division rounded down; 0: they are not
    query_span: int = 0
    query_beta: float = 0.0

    def query_scale(self, positions: int) -> np.ndarray | None:
        """What the queries of each stretch of query_span positions are multiplied by: float32; None: no query
        is."""
        if not self.query_span:
            return None
        stretches = np.arange(-(-positions // self.query_span))
        return (1 + self.query_beta * np.log1p(stretches)).astype(np.float32)


def yarn_mscale(factor: float, m: float) -> float:
    """How much YaRN stretches attention: g(s, m) in the papers' code (`yarn_get_mscale`)."""
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def yarn_inv_freq(
    p: int, theta: float, factor: float, beta_fast: float, beta_slow: float, original: int
) -> np.ndarray:
    """YaRN's frequencies [p / 2]: high ones as they are, low ones divided by `factor`, a ramp between
    (DeepSeek's `yarn_find_correction_range`)."""
    extra = theta ** (-2.0 * np.arange(p // 2) / p)

    def corrected(beta: float) -> float:
        return p * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(corrected(beta_fast)), 0)
    high = min(math.ceil(corrected(beta_slow)), p - 1)  # p - 1, not p / 2 - 1: as published
    ramp = np.clip((np.arange(p // 2) - low) / ((high - low) or 0.001), 0, 1)
    return extra / factor * ramp + extra * (1 - ramp)


def _yarn(block: Keys, p: int, rope: Rope) -> Rope:
    """`rope` with what YaRN changes."""
    factor = block.number("factor", least=1e-6, most=1e6)
    original = block.integer("original_max_position_embeddings")
    block.get("max_position_embeddings", None)  # for people: factor has it already
    mscale = block.number("mscale", 1.0, most=1e3)
    all_dim = block.number("mscale_all_dim", 0.0, most=1e3)
    block.one_of("truncate", True)
    beta_fast = block.number("beta_fast", 32.0, least=1e-6, most=1e6)
    beta_slow = block.number("beta_slow", 1.0, least=1e-6, most=1e6)
    relative = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    # Models whose queries grow with the position were published with "apply_scale": false, and carry the two
    # mscales all the same. transformers multiplies by them since 5.23, also in what save_pretrained writes:
    # that, and nothing else, is how its logits differ from ours.
    scaled = all_dim and not rope.query_beta
    return replace(
        rope,
        inv_freq=yarn_inv_freq(p, rope.theta, factor, beta_fast, beta_slow, original),
        factor=factor,
        multiplier=block.number("attention_factor", relative, least=1e-6, most=1e6),
        softmax_factor=yarn_mscale(factor, all_dim) ** 2 if scaled else 1.0,
    )


def _llama3(block: Keys, rope: Rope) -> Rope:
    """`rope` with what Llama 3 changes: frequencies whose waves are longer than the original context are
    divided by `factor`, those of short waves stay, a ramp between (transformers'
    `_compute_llama3_parameters`)."""
    factor = block.number("factor", least=1, most=1e6)
    low = block.number("low_freq_factor", least=1e-6, most=1e6)
    high = block.number("high_freq_factor", least=1e-6, most=1e6)
    if high <= low:
        block.fail("high_freq_factor", "it must be above low_freq_factor")
    original = block.integer("original_max_position_embeddings")
    turns = original * rope.inv_freq / (2 * math.pi)  # in the original context
    kept = np.clip((turns - low) / (high - low), 0, 1)
    divided = rope.inv_freq * (kept + (1 - kept) / factor)
    return replace(rope, inv_freq=divided, factor=factor)


def _longrope(block: Keys, positions: int, rope: Rope) -> Rope:
    """`rope` with what longrope changes: each frequency has a divisor of its own. Another list of divisors
    would hold beyond the original length."""
    plain = rope.inv_freq
    original = block.integer("original_max_position_embeddings", positions, least=2)
    factor = positions / original  # whatever the key says
    block.number("factor", factor)
    lists = {key: block.get(key) for key in ("short_factor", "long_factor")}
    for key, values in lists.items():
        right_length = isinstance(values, list) and len(values) == len(plain)
        if not right_length or not all(type(x) in (int, float) and 1e-6 <= x <= 1e9 for x in values):
            block.fail(key, f"{len(plain)} numbers were expected")
    if factor > 1 and lists["short_factor"] != lists["long_factor"]:
        block.fail(
            "long_factor",
            "short_factor must be the same: frequencies that change with the length of the context are not "
            "supported",
        )
    stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    multiplier = block.number("attention_factor", stretched, least=1e-6, most=1e6)
    divided = plain / np.array(lists["short_factor"])
    return replace(rope, inv_freq=divided, factor=factor, multiplier=multiplier)


def _block(keys: Keys) -> Keys:
    """The object that describes the rotation; an empty one if there is none."""
    key = "rope_parameters" if keys.get("rope_parameters", None) else "rope_scaling"
    block = keys.get(key, {})
    if key == "rope_parameters" and keys.get("rope_scaling", None) not in (None, block):
        keys.fail("rope_scaling", "rope_parameters says something else")
    if not isinstance(block, dict):
        keys.fail(key, "an object was expected")
    return Keys(block, f"{keys.where}: {key}")


def _theta(keys: Keys, block: Keys) -> float:
    """rope_theta, which may stand in the block, beside it, or in both."""
    inside: float | None = block.number("rope_theta", None, least=1.000001)
    beside: float = keys.number("rope_theta", REQUIRED if inside is None else inside, least=1.000001)
    if inside is None or beside == inside:
        return beside
    if "rope_theta" not in keys.absent:
        keys.fail("rope_theta", f"{block.where} says {inside:g}")
    return inside


def read_rope(keys: Keys, family: Family, nope: int, p: int, positions: int) -> Rope:
    """The rotary positions of a model whose heads have `nope` numbers without position and `p` rotated ones;
    `positions`: max_position_embeddings. ExportError where they are of a kind that is not supported."""
    block = _block(keys)
    if family.partial_says_nothing:
        keys.get("partial_rotary_factor", None)
        block.get("partial_rotary_factor", None)
    else:
        keys.one_of("partial_rotary_factor", 1.0)
    partial = [p / (nope + p)] if family.partial_of_head else []
    if not family.partial_says_nothing:
        block.one_of("partial_rotary_factor", 1.0, *partial)
    kinds = {kind: kind for kind in ("default", "yarn", "longrope", "llama3")} | {"deepseek_yarn": "yarn"}
    kind = block.one_of("type", *kinds)
    kind = kinds[block.one_of("rope_type", kind, *kinds)]
    theta = _theta(keys, block)
    beta, span = block.number("llama_4_scaling_beta", 0.0, most=1e3), 0
    if beta:
        span = block.integer("original_max_position_embeddings", least=-(-positions // STRETCHES))
    rope = Rope(theta ** (-2.0 * np.arange(p // 2) / p), theta, query_span=span, query_beta=beta)
    if kind == "longrope":
        rope = _longrope(block, positions, rope)
    elif kind == "yarn":
        rope = _yarn(block, p, rope)
    elif kind == "llama3":
        rope = _llama3(block, rope)
    if not (rope.inv_freq <= FREQUENCY_LIMIT).all():
        key = "short_factor" if kind == "longrope" else "factor"
        block.fail(key, f"frequencies above {FREQUENCY_LIMIT} are not possible")
    block.finish()
    return rope
