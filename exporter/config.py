"""config.json -> the checkpoint's Config (model.h) and what plan.py must do to the weights.

A model is what its configuration's fields say; its model_type is looked at only where a key, or its absence, means something else
than elsewhere. Every key is read here, or is in the table of keys that cannot change the arithmetic, or is refused: an unknown key is often a
feature, and leaving a feature out silently gives wrong text.
"""

import math
import os
import struct
from dataclasses import dataclass

import numpy as np

from .errors import ExportError, printable
from .sources import read_json

# model.h: Config, in its order. name, then 4-byte fields: unsigned I, signed i, float f.
FIELDS = """name:64s hidden_size:I embed_scale:f num_hidden_layers:I published_layers:I num_attention_heads:I q_lora_rank:I kv_lora_rank:I
qk_nope_head_dim:I qk_rope_head_dim:I v_head_dim:I intermediate_size:I hidden_act:I sandwich_norm:I vocab_size:I max_position_embeddings:I
tie_word_embeddings:I n_routed_experts:I num_experts_per_tok:I n_shared_experts:I moe_intermediate_size:I first_k_dense_replace:I
moe_layer_freq:I zero_expert_num:I shortcut_moe:I n_group:I topk_group:I scoring_func:I group_score:I norm_topk_prob:I routed_scaling_factor:f
rms_norm_eps:f latent_norm_eps:f softmax_scale:f query_scale_span:I index_n_heads:I index_head_dim:I index_topk:I index_topk_freq:I
index_skip_topk_offset:I rope_theta:f rope_factor:f mtp_layers:I bos_token_id:i add_bos_token:I eos_tokens:I eos_token_id:8i temperature:f
top_p:f top_k:I min_p:f repetition_penalty:f"""
ACT_SILU, ACT_RELU2 = 0, 1
SCORE_SOFTMAX, SCORE_SIGMOID = 0, 1
GROUP_MAX, GROUP_TOP2_SUM = 0, 1

# The published models build the norms of the two latents without passing rms_norm_eps, so their class's default holds.
LATENT_NORM_EPS = 1e-6

# Keys that say nothing about the arithmetic of inference.
HARMLESS = set(
    """
architectures auto_map model_type name_or_path _name_or_path torch_dtype dtype transformers_version use_cache is_decoder is_encoder_decoder
attention_dropout hidden_dropout embd_pdrop resid_pdrop initializer_range embedding_initializer_range aux_loss_alpha seq_aux
router_aux_loss_coef output_router_logits pretraining_tp ep_size num_key_value_heads pad_token_id sep_token_id cls_token_id
decoder_start_token_id tokenizer_class prefix output_attentions output_hidden_states return_dict return_dict_in_generate use_return_dict torchscript
chunk_size_feed_forward problem_type id2label label2id finetuning_task task_specific_params cross_attention_hidden_size
add_cross_attention tie_encoder_decoder pruned_heads tf_legacy_loss use_bfloat16 max_length min_length do_sample early_stopping num_beams
num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
moe_router_dtype index_share_for_mtp_iteration
""".split()
)

# What some refused keys mean, for a better message than "unknown".
MEANING = {
    "linear_attn_config": "linear attention layers",
    "layer_group_size": "linear attention layers",
    "sliding_window": "sliding window attention",
    "hc_mult": "hyper-connections",
    "ngram_vocab_size_ratio": "n-gram embeddings",
}

# Other spellings, and what they are called here.
ALIASES = {
    # LongCat-Flash
    "ffn_hidden_size": "intermediate_size",
    "expert_ffn_hidden_size": "moe_intermediate_size",
    "moe_topk": "num_experts_per_tok",
    # the first release of openPangu-Ultra-MoE
    "attention_q_lora_dim": "q_lora_rank",
    "attention_kv_lora_dim": "kv_lora_rank",
    "attention_qk_dim": "qk_nope_head_dim",
    "attention_qk_rope_dim": "qk_rope_head_dim",
    "attention_v_dim": "v_head_dim",
    "num_routed_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "num_dense_layers": "first_k_dense_replace",
}

# What absent keys mean, where a model's own class says something else than DeepSeek's. topk_method: "greedy" with sigmoid is a router without
# correction bias, "noaux_tc" with softmax one that has it.
DEFAULTS = {
    "minicpm3": {"rope_interleave": False, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    "mistral4": {"scoring_func": "softmax", "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    "longcat_flash": {
        "scoring_func": "softmax",
        "topk_method": "noaux_tc",
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "pangu_ultra_moe": {"scoring_func": "sigmoid", "topk_method": "greedy"},
}

# Of a larger model that holds a language model in its text_config: what belongs to images.
SEEING = {
    "vision_config",
    "media_placeholder_token_id",
    "image_token_index",
    "image_token_id",
    "image_placeholder",
    "video_placeholder",
    "use_unified_vision_chunk",
    "projector_hidden_act",
    "multimodal_projector_bias",
    "spatial_merge_size",
    "vision_feature_layer",
    "ignore_index",
}

# The largest that ./run accepts (engine/checkpoint.c), far above any published model.
LIMITS = {
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "q_lora_rank": 1 << 17,
    "kv_lora_rank": 1 << 14,
    "qk_nope_head_dim": 1 << 12,
    "qk_rope_head_dim": 1 << 12,
    "v_head_dim": 1 << 12,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 24,
    "n_routed_experts": 1 << 10,
    "n_group": 64,
    "n_shared_experts": 64,
    "moe_intermediate_size": 1 << 17,
    "index_n_heads": 1 << 12,
    "index_head_dim": 1 << 12,
}

REQUIRED = object()


class Keys:
    """A JSON object whose keys are ticked off as they are read."""

    def __init__(self, values, where):
        self.values, self.where, self.read = values, where, set()
        self.model_type = str(values.get("model_type", ""))

    def kind(self):
        """What the configuration calls its model, for messages."""
        return f" of {printable(self.model_type, 40)}" if self.model_type else ""

    def fail(self, key, what):
        raise ExportError(f"{self.where}: {key} is {printable(repr(self.values[key]), 60)}: {what}")

    def get(self, key, default=REQUIRED):
        """The value; `default` if the key is absent or null."""
        self.read.add(key)
        value = self.values.get(key)
        if value is None and default is REQUIRED:
            raise ExportError(
                f"{self.where}: {key} is missing; is this a configuration{self.kind()} with multi-head latent attention?"
            )
        return default if value is None else value

    def integer(self, key, default=REQUIRED, least=1, most=None):
        value = self.get(key, default)
        most = LIMITS.get(key, (1 << 31) - 1) if most is None else most
        if type(value) is float and value.is_integer():
            value = int(value)
        if value is not default and (type(value) is not int or not least <= value <= most):
            self.fail(key, f"an integer from {least} to {most} was expected")
        return value

    def number(self, key, default=REQUIRED, least=0.0, most=3e38):
        value = self.get(key, default)
        if value is not default and (type(value) not in (int, float) or not least <= value <= most):
            self.fail(key, f"a number from {least:g} to {most:g} was expected")
        return value if value is default else float(value)

    def boolean(self, key, default=REQUIRED):
        value = self.get(key, default)
        if value is not default and type(value) is not bool:
            self.fail(key, "true or false was expected")
        return value

    def only(self, key, *values):
        """The key, if present, must have one of `values` (the first is what absence means)."""
        value = self.get(key, values[0])
        if value not in values or type(value) is bool and values[0] is not value:
            self.fail(key, "only " + " or ".join(repr(v) for v in values) + " is supported")
        return value

    def refuse(self, key):
        meaning = f" ({MEANING[key]})" if key in MEANING else ""
        raise ExportError(
            f"{self.where}: key {printable(key)}{meaning} is not supported: what it changes in the arithmetic{self.kind()} "
            "is not implemented"
        )

    def rename(self, other, key):
        """Reads `other` as another spelling of `key`."""
        if self.values.get(other) is None:
            return
        if self.values.get(key) not in (None, self.values[other]):
            self.fail(other, f"{key} says {printable(repr(self.values[key]), 60)}")
        self.values[key] = self.values.pop(other)

    def finish(self, harmless=()):
        """Refuses the keys that were not read and are not harmless. null is absence."""
        for key, value in self.values.items():
            if key not in self.read and key not in harmless and value is not None:
                self.refuse(key)


@dataclass
class ModelConfig:
    fields: dict  # Config, by name
    inv_freq: np.ndarray  # [p / 2] float32
    query_scale: np.ndarray  # [max_position_embeddings / query_scale_span, rounded up] float32, or None
    # folded into the weights:
    rope_multiplier: float  # of cos and sin
    query_factor: float  # of queries, whatever their position
    latent_factor: float  # of the normed latent
    residual_factor: float  # of what attention and MLP add
    head_factor: float  # of the normed state before the head
    rope_interleave: bool  # False: rotated rows are stored half-split and must be permuted
    router_bias: bool  # the router has a correction bias
    block: tuple  # rows, columns that share an FP8 scale
    index_rope_interleave: bool  # the same of the indexer's rows

    def __getattr__(self, name):  # config.hidden_size
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None

    def is_moe(self, layer):
        return (
            bool(self.n_routed_experts)
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    def has_indexer(self, layer):
        return (
            bool(self.index_n_heads)
            and max(layer - self.index_skip_topk_offset + 1, 0) % self.index_topk_freq == 0
        )

    def packed(self):
        """Config as bytes."""
        out = b""
        for field in FIELDS.split():
            name, form = field.split(":")
            value = self.fields[name]
            out += (
                struct.pack("<" + form, *value) if isinstance(value, list) else struct.pack("<" + form, value)
            )
        return out


def _mscale(factor, m):
    """How much YaRN stretches attention: g(s, m) in the papers' code (`yarn_get_mscale`)."""
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def yarn_inv_freq(p, theta, factor, beta_fast, beta_slow, original):
    """YaRN's frequencies: high ones as they are, low ones divided by `factor`, a ramp between (DeepSeek's `yarn_find_correction_range`)."""
    extra = theta ** (-2.0 * np.arange(p // 2) / p)

    def corrected(beta):
        return p * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (
        max(math.floor(corrected(beta_fast)), 0),
        min(math.ceil(corrected(beta_slow)), p - 1),
    )  # p - 1, not p / 2 - 1: as published
    ramp = np.clip((np.arange(p // 2) - low) / ((high - low) or 0.001), 0, 1)
    return extra / factor * ramp + extra * (1 - ramp)


@dataclass
class Rope:
    inv_freq: np.ndarray  # [p / 2]
    theta: float
    factor: float = 1.0  # by which the context was extended
    multiplier: float = 1.0  # of cos and sin
    softmax_factor: float = 1.0
    query_span: int = (
        0  # queries are multiplied by 1 + beta * ln(1 + position / span), rounded down; 0: they are not
    )
    query_beta: float = 0.0


def _longrope(block, plain, limit):
    """(frequencies, factor, multiplier). Each frequency has a divisor of its own; another list would hold beyond the original length."""
    original = block.integer("original_max_position_embeddings", limit)
    factor = limit / original  # whatever the key says
    block.number("factor", factor)
    lists = {key: block.get(key) for key in ("short_factor", "long_factor")}
    for key, values in lists.items():
        if (
            not isinstance(values, list)
            or len(values) != len(plain)
            or not all(type(x) in (int, float) and 1e-6 <= x <= 1e9 for x in values)
        ):
            block.fail(key, f"{len(plain)} numbers were expected")
    if factor > 1 and lists["short_factor"] != lists["long_factor"]:
        block.fail(
            "long_factor",
            "short_factor must be the same: frequencies that change with the length of the context are not supported",
        )
    stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return (
        plain / np.array(lists["short_factor"]),
        factor,
        block.number("attention_factor", stretched, least=1e-6),
    )


def _rope(keys, f):
    """The rotary positions."""
    p, whole = f["qk_rope_head_dim"], f["qk_nope_head_dim"] + f["qk_rope_head_dim"]
    where = "rope_parameters" if keys.get("rope_parameters", None) else "rope_scaling"  # transformers 5 and 4
    block = keys.get(where, {})
    if where == "rope_parameters" and keys.get("rope_scaling", None) not in (None, block):
        keys.fail("rope_scaling", "rope_parameters says something else")
    if not isinstance(block, dict):
        keys.fail(where, "an object was expected")
    block = Keys(block, f"{keys.where}: {where}")
    absent = 10000.0 if keys.model_type == "minicpm3" else REQUIRED
    theta = block.number("rope_theta", None, least=1.000001) or keys.number(
        "rope_theta", absent, least=1.000001
    )
    if keys.number("rope_theta", theta) != theta:
        keys.fail("rope_theta", f"{where} says {theta:g}")
    keys.only("partial_rotary_factor", 1.0)
    # of a head of n + p, where the class counts heads so
    block.only("partial_rotary_factor", 1.0, *([p / whole] if keys.model_type == "mistral4" else []))
    kind = block.only("type", "default", "yarn", "longrope")
    kind = block.only("rope_type", kind, "default", "yarn", "longrope")
    rope = Rope(theta ** (-2.0 * np.arange(p // 2) / p), theta)
    rope.query_beta = block.number("llama_4_scaling_beta", 0.0, most=1e3)
    if rope.query_beta:
        rope.query_span = block.integer("original_max_position_embeddings")
    if kind == "longrope":
        rope.inv_freq, rope.factor, rope.multiplier = _longrope(
            block, rope.inv_freq, f["max_position_embeddings"]
        )
    elif kind == "yarn":
        rope.factor = factor = block.number("factor", least=1e-6)
        original = block.integer("original_max_position_embeddings")
        block.get("max_position_embeddings", None)  # for people: factor has it already
        mscale, all_dim = block.number("mscale", 1.0), block.number("mscale_all_dim", 0.0)
        block.only("truncate", True)
        rope.inv_freq = yarn_inv_freq(
            p,
            theta,
            factor,
            block.number("beta_fast", 32.0, least=1e-6),
            block.number("beta_slow", 1.0, least=1e-6),
            original,
        )
        rope.multiplier = block.number(
            "attention_factor", _mscale(factor, mscale) / _mscale(factor, all_dim), least=1e-6
        )
        # Models whose queries grow with the position were published with "apply_scale": false, and carry the two mscales all the same.
        rope.softmax_factor = _mscale(factor, all_dim) ** 2 if all_dim and not rope.query_beta else 1.0
    block.finish()
    return rope


def _moe_layers(keys, layers):
    """(first_k_dense_replace, moe_layer_freq), or None if no layer is a mixture. Some configurations list the layers instead."""
    first, freq = keys.get("first_k_dense_replace", None), keys.get("moe_layer_freq", 1)
    kinds = keys.get("mlp_layer_types", None)
    key = "moe_layer_freq" if isinstance(freq, list) else "mlp_layer_types"
    if not isinstance(freq, list) and kinds is None:
        return keys.integer("first_k_dense_replace", least=0), keys.integer("moe_layer_freq", 1)
    moe = (
        freq
        if isinstance(freq, list)
        else [{"dense": 0, "sparse": 1}.get(kind) if isinstance(kind, str) else None for kind in kinds]
    )
    if len(moe) < layers or any(flag not in (0, 1) for flag in moe):
        keys.fail(key, f"one entry for each of {layers} layers was expected")
    moe = [bool(flag) for flag in moe[:layers]]
    if first is not None and any(moe[: keys.integer("first_k_dense_replace", least=0)]):
        keys.fail(key, f"first_k_dense_replace says that layers below {first} are dense")
    if not any(moe):
        return None
    first = moe.index(True)
    for step in range(1, layers + 1):
        if moe == [i >= first and i % step == 0 for i in range(layers)]:
            return first, step
    keys.fail(key, "dense layers first and then every n-th layer a mixture is supported, and nothing else")


NO_INDEXER = dict(
    index_n_heads=0, index_head_dim=0, index_topk=0, index_topk_freq=1, index_skip_topk_offset=0
)
NO_EXPERTS = dict(
    n_routed_experts=0,
    num_experts_per_tok=0,
    n_shared_experts=0,
    moe_intermediate_size=0,
    first_k_dense_replace=0,
    moe_layer_freq=1,
    zero_expert_num=0,
    shortcut_moe=0,
    n_group=1,
    topk_group=1,
    scoring_func=SCORE_SOFTMAX,
    group_score=GROUP_MAX,
    norm_topk_prob=0,
    routed_scaling_factor=1.0,
)
EXPERT_KEYS = [
    "n_routed_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "moe_layer_freq",
    "mlp_layer_types",
    "n_group",
    "topk_group",
    "scoring_func",
    "topk_method",
    "norm_topk_prob",
    "routed_scaling_factor",
    "zero_expert_num",
    "zero_expert_type",
    "router_bias",
]


def _router_kind(keys, has):
    """(scoring_func, topk_method). Two routers are published without names of their own: softmax (DeepSeek-V2) and sigmoid with a bias that
    chooses (DeepSeek-V3). Either key may be absent and follows from the other; without both, the bias tells."""
    scoring = keys.get("scoring_func", None)
    method = keys.get("topk_method", None)
    if scoring is None and method is None:
        scoring = "sigmoid" if has("e_score_correction_bias") else "softmax"
    if method is None:
        groups = keys.integer("n_group", 1) > 1
        method = "noaux_tc" if scoring == "sigmoid" else "group_limited_greedy" if groups else "greedy"
    if scoring is None:
        scoring = "sigmoid" if method == "noaux_tc" else "softmax"
    known = [("softmax", "greedy"), ("softmax", "group_limited_greedy"), ("sigmoid", "noaux_tc")]
    own = DEFAULTS.get(keys.model_type, {})
    if (scoring, method) not in known and (scoring, method) != (
        own.get("scoring_func"),
        own.get("topk_method"),
    ):
        raise ExportError(
            f"{keys.where}: scoring_func {printable(scoring)} with topk_method {printable(method)} is not supported; "
            "softmax with greedy or group_limited_greedy, and sigmoid with noaux_tc, are"
        )
    return scoring, method


def _experts(keys, layers, shortcut, has):
    """(the fields of the mixture of experts, has its router a correction bias)."""
    keys.read.update(EXPERT_KEYS)
    experts = keys.integer("n_routed_experts", 0, least=0)
    placement = _moe_layers(keys, layers) if experts else None
    if placement is None:
        return dict(NO_EXPERTS), False
    scoring, method = _router_kind(keys, has)
    softmax = scoring == "softmax"
    zero = keys.integer("zero_expert_num", 0, least=0, most=LIMITS["n_routed_experts"] - experts)
    keys.only("zero_expert_type", "identity")
    keys.only("router_bias", False)
    if shortcut:
        keys.only("norm_topk_prob", False)  # what true would mean is not known
    per_token = keys.integer("num_experts_per_tok", most=experts + zero)
    # V2's class does not normalise unless told, V3's does.
    normalise, scaling = keys.boolean("norm_topk_prob", not softmax), keys.number("routed_scaling_factor")
    if softmax and keys.model_type != "mistral4":
        # V2: normalising and scaling exclude each other, and one expert alone is not normalised
        normalise = normalise and per_token > 1
        scaling = 1.0 if normalise else scaling
    groups, chosen = (
        (1, 1) if method == "greedy" else (keys.integer("n_group", 1), keys.integer("topk_group", 1))
    )
    if (
        experts % groups
        or chosen > groups
        or per_token > experts // groups * chosen + zero
        or (groups > 1 and (zero or not softmax and experts // groups < 2))
    ):
        raise ExportError(
            f"{keys.where}: {per_token} of {experts} experts cannot be chosen from {chosen} of {groups} groups"
        )
    fields = dict(
        n_routed_experts=experts,
        num_experts_per_tok=per_token,
        n_shared_experts=keys.integer("n_shared_experts", 0, least=0),
        moe_intermediate_size=keys.integer("moe_intermediate_size"),
        first_k_dense_replace=placement[0],
        moe_layer_freq=placement[1],
        zero_expert_num=zero,
        shortcut_moe=int(shortcut),
        n_group=groups,
        topk_group=chosen,
        scoring_func=SCORE_SOFTMAX if softmax else SCORE_SIGMOID,
        group_score=GROUP_MAX if softmax else GROUP_TOP2_SUM,
        norm_topk_prob=int(normalise),
        routed_scaling_factor=scaling,
    )
    return fields, method == "noaux_tc"


INDEX_KEYS = [
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "index_topk_freq",
    "index_skip_topk_offset",
    "index_topk_pattern",
    "indexer_types",
    "indexer_rope_interleave",
    "layer_types",
]


def _index_layers(keys, layers):
    """(index_topk_freq, index_skip_topk_offset): which layers have an indexer. Some configurations list the layers instead, or as well."""
    key = next(
        (key for key in ("indexer_types", "index_topk_pattern") if keys.get(key, None) is not None), None
    )
    if key is None:
        return keys.integer("index_topk_freq", 1), keys.integer("index_skip_topk_offset", 2, least=0)
    kinds = keys.get(key)  # ["full", "shared", ...] or "FS..."
    known = {"full": 1, "F": 1, "shared": 0, "S": 0}
    has = (
        [known.get(kind) if isinstance(kind, str) else None for kind in kinds]
        if isinstance(kinds, (list, str))
        else []
    )
    if len(has) < layers or None in has:
        keys.fail(key, f"one entry, full or shared, for each of {layers} layers was expected")
    has = has[:layers]
    offset = (has + [0]).index(0)  # layers that have one at the beginning
    freq = next((i for i in range(offset, layers) if has[i]), layers + offset) - offset + 1
    if has != [int(max(i - offset + 1, 0) % freq == 0) for i in range(layers)]:
        keys.fail(key, "indexers in the first layers and then in every n-th are supported, and nothing else")
    return freq, offset


def _indexer(keys, layers, p):
    """The fields of the sparse attention's indexer, and whether its rotated rows are interleaved pairs."""
    if keys.values.get("index_topk") is None:
        return dict(NO_INDEXER), True
    keys.read.update(INDEX_KEYS)
    kinds = keys.get("layer_types", [])  # transformers 5 writes them
    if not isinstance(kinds, list) or any(kind != "indexed_attention" for kind in kinds):
        keys.fail("layer_types", "indexed_attention in all layers is supported, and nothing else")
    freq, offset = _index_layers(keys, layers)
    if offset == 0 and freq > 1:
        keys.fail(
            "index_skip_topk_offset", "the first layer has no indexer, and none before it to share with"
        )
    if not keys.integer("q_lora_rank", 0, least=0):
        keys.fail(
            "index_topk",
            "an indexer without q_lora_rank is not supported: its queries come from the compressed ones",
        )
    # One published class turns interleaved pairs without having to be told, and the others halves.
    interleave = keys.boolean("indexer_rope_interleave", keys.values.get("model_type") == "glm_moe_dsa")
    return dict(
        index_n_heads=keys.integer("index_n_heads"),
        index_head_dim=keys.integer("index_head_dim", least=p),
        index_topk=keys.integer("index_topk"),
        index_topk_freq=freq,
        index_skip_topk_offset=offset,
    ), interleave


WHOLE = 1 << 40  # more rows and columns than a tensor has: one scale for all of it


def _fp8_block(keys):
    """(rows, columns) that share one scale of an FP8 tensor. Which tensors are FP8, and which four-bit integers, they say themselves."""
    values = keys.get("quantization_config", None)
    if values is None:
        return 128, 128
    if not isinstance(values, dict):
        keys.fail("quantization_config", "an object was expected")
    quant = Keys(values, f"{keys.where}: quantization_config")
    if quant.only("quant_method", "fp8", "compressed-tensors") == "compressed-tensors":
        return _compressed(quant)
    quant.only("fmt", "e4m3")
    block = _block(quant, "weight_block_size") if quant.get("weight_block_size", None) else (WHOLE, WHOLE)
    quant.only("expert_dtype", "fp8")
    # How activations are quantised elsewhere, how the scales were rounded, and which modules are not FP8 (their type says so).
    quant.finish(
        {
            "activation_scheme",
            "scale_fmt",
            "modules_to_not_convert",
            "modules_to_convert",
            "ignored_layers",
            "dequantize",
        }
    )
    return block


def _block(quant, key):
    block = quant.get(key)
    if (
        not isinstance(block, list)
        or len(block) != 2
        or any(type(n) is not int or not 1 <= n <= 1 << 20 for n in block)
    ):
        quant.fail(key, "two positive integers were expected")
    return tuple(block)


def _compressed(quant):
    """The same of the compressed-tensors format, whose groups of modules may be FP8 or integers of four bits."""
    groups = quant.get("config_groups")
    if not isinstance(groups, dict) or not all(
        isinstance(group, dict) and isinstance(group.get("weights"), dict) for group in groups.values()
    ):
        quant.fail("config_groups", "groups with their weights were expected")
    blocks = set()
    for group in groups.values():
        weights = Keys(group["weights"], f"{quant.where}: weights")
        weights.only("symmetric", True)
        weights.only("dynamic", False)
        kind = weights.only("type", "int", "float")
        weights.only("num_bits", 4 if kind == "int" else 8)
        if kind == "float":
            strategy = weights.only("strategy", "tensor", "channel", "block")
            blocks.add(
                _block(weights, "block_structure")
                if strategy == "block"
                else (1 if strategy == "channel" else WHOLE, WHOLE)
            )
        else:
            weights.only("strategy", "group", "channel")
        # A group's size the shapes say; an order of columns would come with a tensor of its own.
        weights.finish(
            {
                "group_size",
                "block_structure",
                "observer",
                "observer_kwargs",
                "actorder",
                "scale_dtype",
                "zp_dtype",
            }
        )
    if len(blocks) > 1:
        quant.fail("config_groups", "all FP8 tensors must have scales for blocks of the same size")
    quant.only("format", None, "float-quantized", "pack-quantized", "mixed-precision")
    quant.only("quantization_status", "compressed")
    for key in ("sparsity_config", "transform_config"):
        quant.only(key, {}, {"format": "dense"})
    quant.finish({"ignore", "kv_cache_scheme", "global_compression_ratio", "version"})
    return blocks.pop() if blocks else (128, 128)


def language_model(values, where):
    """The configuration of the language model in `values`: itself, or its text_config with what stands beside that, images left out."""
    inner = values.get("text_config")
    if inner is None:
        return values
    if not isinstance(inner, dict):
        raise ExportError(f"{where}: text_config: an object was expected")
    outer = {key: value for key, value in values.items() if key not in SEEING and key != "text_config"}
    return {**outer, **{key: value for key, value in inner.items() if value is not None}}


def _layers(keys):
    """(num_hidden_layers, are they pairs with experts beside the first's MLP). Such a model counts its pairs, in num_layers."""
    if keys.model_type != "longcat_flash":
        return keys.integer("num_hidden_layers"), False
    pairs = keys.integer("num_layers", most=LIMITS["num_hidden_layers"] // 2)
    keys.only("num_hidden_layers", 2 * pairs, pairs)
    return 2 * pairs, True


def _folded(keys, f):
    """query_factor, latent_factor, residual_factor and head_factor."""
    D, ql, r = f["hidden_size"], f["q_lora_rank"], f["kv_lora_rank"]
    query = (D / ql) ** 0.5 if keys.boolean("mla_scale_q_lora", False) and ql else 1.0
    latent = (D / r) ** 0.5 if keys.boolean("mla_scale_kv_lora", False) else 1.0
    depth = keys.number("scale_depth", None, least=1e-6)
    base = keys.number("dim_model_base", None, least=1e-6)
    return dict(
        query_factor=query,
        latent_factor=latent,
        residual_factor=depth / math.sqrt(f["num_hidden_layers"]) if depth else 1.0,
        head_factor=base / D if base else 1.0,
    )


def parse(values, name, where="config.json", has=lambda suffix: False):
    """`values`: a config.json. `has(suffix)`: is there a tensor whose name ends so. The text fields are set by text_fields()."""
    keys = Keys({**DEFAULTS.get(str(values.get("model_type")), {}), **values}, where)
    for key in MEANING:  # said first: such a configuration may lack other keys as well
        if keys.values.get(key) not in (None, False):
            keys.refuse(key)
    for other, key in ALIASES.items():
        keys.rename(other, key)
    f = {
        key: keys.integer(key)
        for key in (
            "hidden_size",
            "num_attention_heads",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
        )
    }
    n, p = f["qk_nope_head_dim"], f["qk_rope_head_dim"]
    if p % 2:
        keys.fail("qk_rope_head_dim", "it must be even: rotations turn pairs")
    f["v_head_dim"] = keys.integer(
        "v_head_dim",
        f["hidden_size"] // f["num_attention_heads"] if keys.model_type == "minicpm3" else REQUIRED,
    )
    f["q_lora_rank"] = keys.integer("q_lora_rank", 0, least=0)
    f["num_hidden_layers"], shortcut = _layers(keys)
    f["published_layers"] = f["num_hidden_layers"]
    f["rms_norm_eps"], f["latent_norm_eps"] = keys.number("rms_norm_eps", least=1e-30), LATENT_NORM_EPS
    f["tie_word_embeddings"] = _tied(keys, has)
    experts, router_bias = _experts(keys, f["num_hidden_layers"], shortcut, has)
    rope = _rope(keys, f)
    f.update(
        experts,
        rope_theta=rope.theta,
        rope_factor=rope.factor,
        softmax_scale=(n + p) ** -0.5 * rope.softmax_factor,
        query_scale_span=rope.query_span,
        embed_scale=keys.number("scale_emb", 1.0, least=1e-6),
        hidden_act=ACT_RELU2 if keys.only("hidden_act", "silu", "relu2") == "relu2" else ACT_SILU,
        sandwich_norm=int(keys.boolean("sandwich_norm", False)),
    )
    indexer, index_rope_interleave = _indexer(keys, f["num_hidden_layers"], p)
    f.update(indexer)
    keys.only("qk_head_dim", n + p)
    keys.only("head_dim", p, n + p, n)  # transformers 5 writes p; it means nothing else here
    keys.only("attention_method", "MLA")
    for key in ("attention_bias", "mlp_bias", "mla_use_nope"):
        keys.only(key, False)
    encoded = name.encode("utf-8")[:63]
    f.update(name=encoded.decode("utf-8", "ignore").encode("utf-8"), mtp_layers=0)
    query_scale = None
    if rope.query_span:
        stretches = np.arange(-(-f["max_position_embeddings"] // rope.query_span))
        query_scale = (1 + rope.query_beta * np.log1p(stretches)).astype(np.float32)
    config = ModelConfig(
        f,
        rope.inv_freq.astype(np.float32),
        query_scale,
        rope.multiplier,
        **_folded(keys, f),
        rope_interleave=keys.boolean("rope_interleave", True),
        router_bias=router_bias,
        block=_fp8_block(keys),
        index_rope_interleave=index_rope_interleave,
    )
    # Begin and end tokens are text_fields()'s; MTP layers are declared by models that do not ship them, so the tensors decide.
    keys.read.update(("bos_token_id", "add_bos_token", "eos_token_id", "num_nextn_predict_layers"))
    keys.finish(HARMLESS)
    return config


def _tied(keys, has):
    """1 if the output matrix is the embedding. A stored lm_head is used whatever the flag says: some published models are declared tied
    and carry a head of their own."""
    stored = has("lm_head.weight")
    return int(keys.boolean("tie_word_embeddings", not stored) and not stored)


def text_fields(config, values, directory=None):
    """The Config fields about text: begin and end tokens, sampling defaults. `values`: config.json; `directory`: where
    generation_config.json and tokenizer_config.json may be (None: nowhere)."""
    path = os.path.join(directory, "generation_config.json") if directory else "generation_config.json"
    generation = Keys(read_json(path, required=False) if directory else {}, path)
    model = Keys(values, "config.json")
    last = config.vocab_size - 1
    f = config.fields

    bos = generation.integer("bos_token_id", model.integer("bos_token_id", -1, 0, last), 0, last)
    f["bos_token_id"] = bos
    tokenizer_path = os.path.join(directory, "tokenizer_config.json") if directory else ""
    if os.path.exists(tokenizer_path):
        f["add_bos_token"] = int(
            Keys(read_json(tokenizer_path), tokenizer_path).boolean("add_bos_token", False) and bos >= 0
        )
    else:
        f["add_bos_token"] = int(model.boolean("add_bos_token", True) and bos >= 0)

    keys = generation if generation.get("eos_token_id", None) is not None else model
    eos = keys.get("eos_token_id", [])
    eos = eos if isinstance(eos, list) else [eos]
    if len(eos) > 8 or any(type(token) is not int or not 0 <= token <= last for token in eos):
        keys.fail("eos_token_id", f"at most 8 token ids from 0 to {last} were expected")
    f["eos_tokens"], f["eos_token_id"] = len(eos), eos + [0] * (8 - len(eos))

    sampled = generation.boolean("do_sample", True)
    f["temperature"] = generation.number("temperature", 0.8, 0, 1e4) if sampled else 0.0
    f["top_p"] = generation.number("top_p", 0.95, 1e-6, 1)
    f["top_k"] = generation.integer("top_k", 0, least=0)
    f["min_p"] = generation.number("min_p", 0.0, 0, 1)
    f["repetition_penalty"] = generation.number("repetition_penalty", 0.0, 0.01, 100)  # 0: not given
