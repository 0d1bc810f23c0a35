"""The mixture of experts of a configuration: which layers have one, how the router scores, chooses and
weighs.

Two kinds of router are published without names of their own, DeepSeek-V2's (softmax) and -V3's (sigmoid with
a bias that chooses), and some classes have others (families.py). A placement of layers that "dense ones
first, then every n-th a mixture" cannot say is refused, and so is a router that is none of these.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import ExportError, printable
from .families import Family
from .keys import LIMITS, Keys

SCORES = {"softmax": 0, "sigmoid": 1, "sqrtsoftplus": 2}  # model.h: SCORE_..
GROUP_MAX, GROUP_TOP2_SUM = 0, 1

NO_EXPERTS = {
    "n_routed_experts": 0,
    "num_experts_per_tok": 0,
    "n_shared_experts": 0,
    "moe_intermediate_size": 0,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "zero_expert_num": 0,
    "shortcut_moe": 0,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": SCORES["softmax"],
    "group_score": GROUP_MAX,
    "norm_topk_prob": 0,
    "routed_scaling_factor": 1.0,
}
# Keys of the mixture, which mean nothing in a model without it.
EXPERT_KEYS = frozenset(NO_EXPERTS) - {"shortcut_moe", "group_score"} | {
    "mlp_layer_types",
    "topk_method",
    "zero_expert_type",
    "router_bias",
    "moe_router_enable_expert_bias",
}


class Placement(NamedTuple):
    """Layer i is a mixture if i >= first_k_dense_replace and i % moe_layer_freq == 0."""

    first_k_dense_replace: int
    moe_layer_freq: int


class Mixture(NamedTuple):
    fields: dict[str, Any]  # of Config
    router_bias: bool  # the router has a correction bias


class Router(NamedTuple):
    scoring_func: str
    topk_method: str


class Groups(NamedTuple):
    n_group: int
    topk_group: int


class Weights(NamedTuple):
    normalize: bool
    scaling: float


def _placement(keys: Keys, family: Family, layers: int) -> Placement | None:
    """Which layers are a mixture; None if no layer is. Some configurations list the layers instead."""
    first, freq = keys.get("first_k_dense_replace", None), keys.get("moe_layer_freq", 1)
    kinds = keys.get("mlp_layer_types", None)
    key = "moe_layer_freq" if isinstance(freq, list) else "mlp_layer_types"
    if isinstance(freq, list):
        moe = freq
    elif kinds is not None:
        known = {"hash_moe": 1, "moe": 1} if family.window else {"dense": 0, "sparse": 1}
        listed = kinds if isinstance(kinds, list) else []
        moe = [known.get(kind) if isinstance(kind, str) else None for kind in listed[:layers]]
    else:
        dense = keys.integer("first_k_dense_replace", least=0)
        return Placement(dense, keys.integer("moe_layer_freq", 1))
    moe = moe[:layers]
    if len(moe) < layers or any(flag not in (0, 1) for flag in moe):
        keys.fail(key, f"one entry for each of {layers} layers was expected")
    if first is not None and any(moe[: keys.integer("first_k_dense_replace", least=0)]):
        keys.fail(key, f"first_k_dense_replace says that layers below {first} are dense")
    if not any(moe):
        return None
    first = moe.index(1)
    for step in range(1, layers + 1):
        if moe == [i >= first and i % step == 0 for i in range(layers)]:
            return Placement(first, step)
    keys.fail(key, "dense layers first and then every n-th layer a mixture is supported, and nothing else")


def _router(keys: Keys, family: Family, has: Callable[[str], bool]) -> Router:
    """Either key may be absent and follows from the other; without both, the bias tells."""
    scoring = keys.get("scoring_func", None)
    method = keys.get("topk_method", None)
    if scoring is None and method is None:
        scoring = "sigmoid" if has("e_score_correction_bias") else "softmax"
    if method is None:
        groups = keys.integer("n_group", 1) > 1
        method = "noaux_tc" if scoring == "sigmoid" else "group_limited_greedy" if groups else "greedy"
    if scoring is None:
        scoring = "sigmoid" if method == "noaux_tc" else "softmax"
    own = family.absent.get("scoring_func"), family.absent.get("topk_method")
    known = [("softmax", "greedy"), ("softmax", "group_limited_greedy"), ("sigmoid", "noaux_tc"), own]
    if (scoring, method) not in known:
        raise ExportError(
            f"{keys.where}: scoring_func {printable(scoring)} with topk_method {printable(method)} is not "
            "supported; softmax with greedy or group_limited_greedy, and sigmoid with noaux_tc, are"
        )
    return Router(scoring, method)


def _weights(keys: Keys, family: Family, softmax: bool, per_token: int) -> Weights:
    """How the chosen experts' weights come from their scores. DeepSeek-V2's class does not normalize unless
    told, V3's does; in V2's normalizing and scaling exclude each other, and one expert alone is not
    normalized."""
    normalize = keys.boolean("norm_topk_prob", not softmax)
    scaling = keys.number("routed_scaling_factor")
    if softmax and normalize and scaling != 1 and family.scales_softmax is None:
        raise ExportError(
            f"{keys.where}: norm_topk_prob true with routed_scaling_factor {scaling:g}: some classes of "
            "models do both and some do not, and model_type and architectures name none that is known here"
        )
    if softmax and not family.scales_softmax:
        normalize = normalize and per_token > 1
        scaling = 1.0 if normalize else scaling
    return Weights(normalize, scaling)


def _groups(keys: Keys, router: Router, score: int, experts: int, zero: int, per_token: int) -> Groups:
    """score: how a group counts."""
    if router.topk_method == "greedy":
        groups = Groups(1, 1)
    else:
        groups = Groups(keys.integer("n_group", 1), keys.integer("topk_group", 1))
    count, chosen = groups
    uneven = experts % count or chosen > count or per_token > experts // count * chosen + zero
    two_needed = score == GROUP_TOP2_SUM and experts // count < 2
    if uneven or (count > 1 and (zero or two_needed)):
        raise ExportError(
            f"{keys.where}: {per_token} of {experts} experts cannot be chosen from {chosen} of {count} groups"
        )
    return groups


def read_experts(keys: Keys, family: Family, layers: int, has: Callable[[str], bool]) -> Mixture:
    """The mixture of experts of a model with `layers` layers. `has(suffix)`: is there a tensor whose name
    ends so."""
    keys.read.update(EXPERT_KEYS)
    experts = keys.integer("n_routed_experts", 0, least=0)
    placement = _placement(keys, family, layers) if experts else None
    if placement is None:
        return Mixture(dict(NO_EXPERTS), False)
    router = _router(keys, family, has)
    softmax = router.scoring_func == "softmax"
    zero = keys.integer("zero_expert_num", 0, least=0, most=LIMITS["n_routed_experts"] - experts)
    keys.one_of("zero_expert_type", "identity")
    keys.one_of("router_bias", False)
    if family.pairs_of_layers:
        keys.one_of("norm_topk_prob", False)  # what true would mean is not known
    per_token = keys.integer("num_experts_per_tok", most=experts + zero)
    weights = _weights(keys, family, softmax, per_token)
    several = keys.integer("n_group", 1) > 1  # one group has no score
    score = GROUP_MAX if softmax and not (family.sums_two_of_group and several) else GROUP_TOP2_SUM
    groups = _groups(keys, router, score, experts, zero, per_token)
    fields = {
        "n_routed_experts": experts,
        "num_experts_per_tok": per_token,
        "n_shared_experts": keys.integer("n_shared_experts", 0, least=0),
        "moe_intermediate_size": keys.integer("moe_intermediate_size"),
        **placement._asdict(),
        "zero_expert_num": zero,
        "shortcut_moe": int(family.pairs_of_layers),
        **groups._asdict(),
        "scoring_func": SCORES[router.scoring_func],
        "group_score": score,
        "norm_topk_prob": int(weights.normalize),
        "routed_scaling_factor": weights.scaling,
    }
    biased = router.topk_method == "noaux_tc" and keys.boolean("moe_router_enable_expert_bias", True)
    return Mixture(fields, biased and (not family.bias_may_lack or has("e_score_correction_bias")))
