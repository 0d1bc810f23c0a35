"""config.json -> the checkpoint's Config (model.h) and what plan.py must do to the weights.

A model is what its configuration's fields say; where a key is absent, the model's class says what that means
(families.py). Every key is read here or in rope.py, experts.py and weight_formats.py, or is in the table of
keys that cannot change the arithmetic, or is refused: an unknown key is often a feature, and to leave a
feature out silently gives wrong text. What is about text is text_fields.py's.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, NamedTuple, TypeAlias, get_type_hints

import numpy as np

from .deepseek_v4 import NO_WINDOW, read_window, window_heads
from .experts import read_experts
from .families import HARMLESS, NAMES, Family, ask, family_of, open_keys, own_keys, refuse_by_name
from .glm5_next import read_glm5_next
from .kda import MASK_WORDS, has_layer, read_kda
from .keys import LIMITS, MEANING, REQUIRED, Keys
from .rope import Rope, read_rope
from .weight_formats import Block, fp8_block, refuse_config

ACT_SILU, ACT_RELU2 = 0, 1  # model.h

# The published models build the norms of the two latents without passing rms_norm_eps, so their class's
# default holds.
LATENT_NORM_EPS = 1e-6

# How a field of Config is stored: 4 bytes each, but name and the end tokens.
U32: TypeAlias = Annotated[int, "I"]
I32: TypeAlias = Annotated[int, "i"]
F32: TypeAlias = Annotated[float, "f"]
Name: TypeAlias = Annotated[bytes, "64s"]
Ids: TypeAlias = Annotated[list[int], "8i"]
Layers: TypeAlias = Annotated[list[int], f"{MASK_WORDS}I"]  # bit i of word j: layer 32 j + i


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Config of model.h, which explains the fields, in its order; and what is not in the file."""

    name: Name
    hidden_size: U32
    embed_scale: F32
    num_hidden_layers: U32
    published_layers: U32
    num_attention_heads: U32
    q_lora_rank: U32
    kv_lora_rank: U32
    qk_nope_head_dim: U32
    qk_rope_head_dim: U32
    v_head_dim: U32
    intermediate_size: U32
    hidden_act: U32
    sandwich_norm: U32
    vocab_size: U32
    max_position_embeddings: U32
    tie_word_embeddings: U32
    n_routed_experts: U32
    num_experts_per_tok: U32
    n_shared_experts: U32
    moe_intermediate_size: U32
    first_k_dense_replace: U32
    moe_layer_freq: U32
    zero_expert_num: U32
    shortcut_moe: U32
    n_group: U32
    topk_group: U32
    scoring_func: U32
    group_score: U32
    norm_topk_prob: U32
    routed_scaling_factor: F32
    rms_norm_eps: F32
    latent_norm_eps: F32
    softmax_scale: F32
    query_scale_span: U32
    index_n_heads: U32
    index_head_dim: U32
    index_topk: U32
    index_topk_freq: U32
    index_skip_topk_offset: U32
    rope_theta: F32
    rope_factor: F32
    mtp_layers: U32 = 0
    bos_token_id: I32 = -1
    add_bos_token: U32 = 0
    eos_tokens: U32 = 0
    eos_token_id: Ids
    temperature: F32 = 0.8
    top_p: F32 = 0.95
    top_k: U32 = 0
    min_p: F32 = 0.0
    repetition_penalty: F32 = 0.0  # 0: not given
    experts_out_norm: U32 = 0
    head_gate: U32 = 0
    swiglu_limits: U32 = 0
    kda_heads: U32 = 0
    kda_head_dim: U32 = 0
    kda_taps: U32 = 0
    kda_rank: U32 = 0
    kda_lower_bound: F32 = 0.0
    kda_layers: Layers = field(default_factory=lambda: [0] * MASK_WORDS)
    num_key_value_heads: U32 = 0  # 0: latent attention
    hc_mult: U32 = 0
    hc_sinkhorn_iters: U32 = 0
    hc_eps: F32 = 0.0
    sliding_window: U32 = 0
    o_groups: U32 = 0
    o_lora_rank: U32 = 0
    csa_ratio: U32 = 0
    hca_ratio: U32 = 0
    csa_layers: Layers = field(default_factory=lambda: [0] * MASK_WORDS)
    hca_layers: Layers = field(default_factory=lambda: [0] * MASK_WORDS)
    compress_rope_theta: F32 = 0.0
    num_hash_layers: U32 = 0
    index_kpool: U32 = 0
    # A new field of the file is added here, with the default 0, which means "as before".

    # tensors of their own in the file
    inv_freq: np.ndarray  # [p / 2] float32
    compress_inv_freq: np.ndarray | None  # [p / 2] float32, of layers with compressed rows
    query_scale: np.ndarray | None  # [max_position_embeddings / query_scale_span, rounded up] float32
    limits: np.ndarray | None  # [2, layers] float32, of SwiGLU in routed and in shared experts; 0: none
    # folded into the weights
    rope_multiplier: float  # of cos and sin
    query_factor: float  # of queries, whatever their position
    latent_factor: float  # of the normed latent
    residual_factor: float  # of what attention and MLP add
    head_factor: float  # of the normed state before the head
    streams_mean: bool  # of several residual streams the head reads the plain mean
    # how the source has them
    rope_interleave: bool  # False: rotated rows are stored half-split and must be permuted
    index_rope_interleave: bool  # the same of the indexer's rows
    router_bias: bool  # the router has a correction bias
    block: Block  # rows, columns that share an FP8 scale

    def is_moe(self, layer: int) -> bool:
        later = layer >= self.first_k_dense_replace
        return bool(self.n_routed_experts) and later and layer % self.moe_layer_freq == 0

    def has_indexer(self, layer: int) -> bool:
        if self.sliding_window:
            return self.is_csa(layer)
        if self.is_kda(layer):
            return False
        past = max(layer - self.index_skip_topk_offset + 1, 0)
        return bool(self.index_n_heads) and past % self.index_topk_freq == 0

    def is_kda(self, layer: int) -> bool:
        return has_layer(self.kda_layers, layer)

    def is_csa(self, layer: int) -> bool:
        return has_layer(self.csa_layers, layer)

    def is_hca(self, layer: int) -> bool:
        return has_layer(self.hca_layers, layer)

    def norms_mlp(self, layer: int) -> bool:
        """Is what the layer's MLP gives normed before it is added?"""
        return bool(self.sandwich_norm or (self.experts_out_norm and self.is_moe(layer)))

    def packed(self) -> bytes:
        """Config as it is in the file. ./run takes fields that are left out at the end for 0: those that were
        added later are, as long as a model does not need them, so that its file stays what it always was."""
        stored = []
        for name, form in FIELDS:
            value = getattr(self, name)
            stored.append(struct.pack("<" + form, *value if isinstance(value, list) else [value]))
        while len(stored) > FIRST_FIELDS and not any(stored[-1]):
            stored.pop()
        return b"".join(stored)


def _file_fields() -> list[tuple[str, str]]:
    """(name, form as in struct) of the fields that are in the file."""
    hints = get_type_hints(ModelConfig, include_extras=True)
    found = [(field.name, hints[field.name]) for field in fields(ModelConfig)]
    return [(name, hint.__metadata__[0]) for name, hint in found if hasattr(hint, "__metadata__")]


FIELDS = _file_fields()
FIRST_FIELDS = [name for name, _ in FIELDS].index("min_p")  # how many the first files had

NO_INDEXER = {
    "index_n_heads": 0,
    "index_head_dim": 0,
    "index_topk": 0,
    "index_topk_freq": 1,
    "index_skip_topk_offset": 0,
}
INDEX_KEYS = frozenset(NO_INDEXER) | {"index_topk_pattern", "indexer_types", "indexer_rope_interleave"}
# What transformers calls a layer's attention in layer_types, by its versions.
INDEXED, FULL = ("indexed_attention", "deepseek_sparse_attention"), ("full_attention", "attention")


class IndexLayers(NamedTuple):
    """Layer i has an indexer if max(i - offset + 1, 0) is a multiple of freq."""

    freq: int
    offset: int


class Indexer(NamedTuple):
    fields: dict[str, int]  # of Config
    interleave: bool  # its rotated rows are interleaved pairs


def _index_layers(keys: Keys, layers: int) -> IndexLayers:
    """Which layers have an indexer. Some configurations list the layers instead, or as well."""
    listed = [key for key in ("indexer_types", "index_topk_pattern") if keys.get(key, None) is not None]
    if not listed:
        freq = keys.integer("index_topk_freq", 1)
        return IndexLayers(freq, keys.integer("index_skip_topk_offset", 2, least=0))
    kinds = keys.get(listed[0])  # ["full", "shared", ...] or "FS..."
    known = {"full": 1, "F": 1, "shared": 0, "S": 0}
    has = []
    if isinstance(kinds, (list, str)):
        has = [known.get(kind) if isinstance(kind, str) else None for kind in kinds[:layers]]
    if len(has) < layers or None in has:
        keys.fail(listed[0], f"one entry, full or shared, for each of {layers} layers was expected")
    offset = [*has, 0].index(0)  # layers that have one at the beginning
    freq = next((i for i in range(offset, layers) if has[i]), layers + offset) - offset + 1
    if has != [int(max(i - offset + 1, 0) % freq == 0) for i in range(layers)]:
        what = "indexers in the first layers and then in every n-th are supported, and nothing else"
        keys.fail(listed[0], what)
    return IndexLayers(freq, offset)


def _attention_kinds(keys: Keys, layers: int, expected: tuple[str, ...]) -> None:
    """layer_types, where it is given, must say the same of all layers."""
    kinds = keys.get("layer_types", None)
    if kinds is None:
        return
    listed = kinds[:layers] if isinstance(kinds, list) else []
    if len(listed) < layers or any(kind not in expected for kind in listed):
        keys.fail("layer_types", f"{expected[0]} in all {layers} layers is supported, and nothing else")


def _indexer(keys: Keys, family: Family, layers: int, p: int) -> Indexer:
    """The sparse attention's indexer."""
    if keys.values.get("index_topk") is None:
        if not family.linear_attention:
            _attention_kinds(keys, layers, FULL)
        return Indexer(NO_INDEXER, True)
    keys.read.update(INDEX_KEYS)
    _attention_kinds(keys, layers, INDEXED)
    freq, offset = _index_layers(keys, layers)
    if offset == 0 and freq > 1:
        what = "the first layer has no indexer, and none before it to share with"
        keys.fail("index_skip_topk_offset", what)
    if not keys.integer("q_lora_rank", 0, least=0):
        what = "an indexer without q_lora_rank is not supported: its queries come from the compressed ones"
        keys.fail("index_topk", what)
    sizes = {
        "index_n_heads": keys.integer("index_n_heads"),
        "index_head_dim": keys.integer("index_head_dim", least=p),
        "index_topk": keys.integer("index_topk"),
    }
    interleave = keys.boolean("indexer_rope_interleave", family.index_pairs)
    if interleave is None:
        ask(keys, "indexer_rope_interleave")
    return Indexer({**sizes, "index_topk_freq": freq, "index_skip_topk_offset": offset}, interleave)


def _layers(keys: Keys, family: Family) -> int:
    """num_hidden_layers. A model whose layers are pairs counts its pairs, in num_layers."""
    if not family.pairs_of_layers:
        return int(keys.integer("num_hidden_layers"))
    pairs: int = keys.integer("num_layers", most=LIMITS["num_hidden_layers"] // 2)
    keys.one_of("num_hidden_layers", 2 * pairs, pairs)
    return 2 * pairs


def _latent_heads(keys: Keys, family: Family, of_hidden: int) -> dict[str, int]:
    """The sizes of latent attention; of_hidden: hidden_size / num_attention_heads."""
    f = {key: keys.integer(key) for key in ("kv_lora_rank", "qk_nope_head_dim")}
    p = "qk_rope_head_dim"
    f[p] = keys.one_of(p, 0) if family.pools else keys.integer(p)
    if f["qk_rope_head_dim"] % 2:
        keys.fail("qk_rope_head_dim", "it must be even: rotations turn pairs")
    f["v_head_dim"] = keys.integer("v_head_dim", of_hidden if family.v_from_hidden else REQUIRED)
    f["q_lora_rank"] = keys.integer("q_lora_rank", *([] if family.pools else [0, 0]))
    return f


def _grouped_heads(keys: Keys, heads: int, of_hidden: int) -> dict[str, int]:
    """The sizes of ordinary attention: a whole head is rotated, and there is no latent."""
    size = keys.integer("head_dim", of_hidden, most=LIMITS["v_head_dim"])
    if size % 2:
        keys.fail("head_dim", f"a head of {size} was found, and rotations turn pairs: it must be even")
    groups = keys.integer("num_key_value_heads", heads, most=heads)
    if heads % groups:
        keys.fail("num_key_value_heads", f"it must divide the {heads} heads")
    none = dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim"), 0)
    return none | {"qk_rope_head_dim": size, "v_head_dim": size, "num_key_value_heads": groups}


def _sizes(keys: Keys, family: Family) -> dict[str, int]:
    """The fields that are sizes of layers and heads."""
    f = {key: keys.integer(key) for key in ("num_attention_heads", "hidden_size")}
    # in a model without dense layers an expert's width stands for theirs, as in transformers
    f["intermediate_size"] = keys.integer("moe_intermediate_size" if family.window else "intermediate_size")
    f |= {key: keys.integer(key) for key in ("vocab_size", "max_position_embeddings")}
    heads, of_hidden = f["num_attention_heads"], max(1, f["hidden_size"] // f["num_attention_heads"])
    if family.window:
        f |= window_heads(keys)
    elif family.groups:
        f |= _grouped_heads(keys, heads, of_hidden)
    else:
        f |= _latent_heads(keys, family, of_hidden)
    f["num_hidden_layers"] = f["published_layers"] = _layers(keys, family)
    return f


def _folded(keys: Keys, f: dict[str, Any]) -> dict[str, float]:
    """query_factor, latent_factor, residual_factor and head_factor."""
    D, ql, r = f["hidden_size"], f["q_lora_rank"], f["kv_lora_rank"]
    query = (D / ql) ** 0.5 if keys.boolean("mla_scale_q_lora", False) and ql else 1.0
    latent = (D / r) ** 0.5 if keys.boolean("mla_scale_kv_lora", False) else 1.0
    depth = keys.number("scale_depth", None, least=1e-6)
    base = keys.number("dim_model_base", None, least=1e-6)
    return {
        "query_factor": query,
        "latent_factor": latent,
        "residual_factor": depth / math.sqrt(f["num_hidden_layers"]) if depth else 1.0,
        "head_factor": base / D if base else 1.0,
    }


def _tied(keys: Keys, has: Callable[[str], bool]) -> int:
    """1 if the output matrix is the embedding. A stored lm_head is used whatever the flag says: some
    published models are declared tied and carry a head of their own."""
    stored = has("lm_head.weight")
    return int(keys.boolean("tie_word_embeddings", not stored) and not stored)


def _only_one_value(keys: Keys, n: int, p: int, r: int, linear: bool) -> None:
    """Keys of which one value is supported, or that repeat others. `linear`: the model has linear attention,
    too."""
    keys.one_of("qk_head_dim", n + p)
    if not linear:  # where it means something else
        keys.one_of("head_dim", p, n + p, n, r + p)  # transformers 5 writes p; it means nothing else here
        keys.one_of("mla_use_nope", False)
    keys.one_of("attention_method", "MLA")
    for key in ("attention_bias", "mlp_bias"):
        keys.one_of(key, False)


def parse(
    values: dict[str, Any],
    name: str,
    where: str = "config.json",
    has: Callable[[str], bool] = lambda suffix: False,
) -> ModelConfig:
    """`values`: a config.json; `name`: what the model is called in the checkpoint. `has(suffix)`: is there a
    tensor whose name ends so. The text fields are text_fields()'s. ExportError where something is missing,
    contradicts itself or is not supported."""
    refuse_by_name(values, where)
    known = own_keys(family_of(values))
    for key in MEANING:  # said first: such a configuration may lack other keys as well
        if values.get(key) not in (None, False) and key not in known:
            if not any(values.get(name) for name in NAMES):
                ask(Keys(values, where), "model_type")
            Keys(values, where).refuse(key)
    refuse_config(values, where)
    keys, family = open_keys(values, where)
    f: dict[str, Any] = _sizes(keys, family)
    n, p, layers = f["qk_nope_head_dim"], f["qk_rope_head_dim"], f["num_hidden_layers"]
    mixture = read_experts(keys, family, layers, has)
    window = read_window(keys, f) if family.window else NO_WINDOW
    none = Rope(np.zeros(0), 0.0) if family.pools else None
    rope = window.rope or none or read_rope(keys, family, n, p, f["max_position_embeddings"])
    own = family.window or family.pools  # an indexer of its own kind, and one eps for all norms
    indexer = Indexer(NO_INDEXER, True) if own else _indexer(keys, family, layers, p)
    kda = read_glm5_next(keys, layers) if family.pools else read_kda(keys, family, layers)
    _only_one_value(keys, n, p, f["kv_lora_rank"], bool(kda.fields))
    eps = keys.number("rms_norm_eps", least=1e-30)
    f |= mixture.fields | indexer.fields | kda.fields | window.fields | _folded(keys, f)
    f |= {
        "name": name.encode("utf-8", "replace")[:63].decode("utf-8", "ignore").encode("utf-8"),
        "rms_norm_eps": eps,
        "latent_norm_eps": eps if own else LATENT_NORM_EPS,
        "tie_word_embeddings": _tied(keys, has),
        "rope_theta": rope.theta if kda.rotated else 0.0,
        "rope_factor": window.rope_factor or rope.factor,
        "softmax_scale": (n + p) ** -0.5 * rope.softmax_factor,
        "query_scale_span": rope.query_span,
        "embed_scale": keys.number("scale_emb", 1.0, least=1e-6),
        "hidden_act": ACT_RELU2 if keys.one_of("hidden_act", "silu", "relu2") == "relu2" else ACT_SILU,
        "sandwich_norm": int(keys.boolean("sandwich_norm", False)),
        "eos_token_id": [0] * 8,
        "experts_out_norm": int(family.norms_experts),
        "limits": kda.limits if window.limits is None else window.limits,
        # an angle of 0 at every position is no rotation
        "inv_freq": (rope.inv_freq * kda.rotated).astype(np.float32),
        "compress_inv_freq": window.compress_inv_freq,
        "query_scale": rope.query_scale(f["max_position_embeddings"]),
        "rope_multiplier": rope.multiplier,
        "rope_interleave": keys.boolean("rope_interleave"),
        "index_rope_interleave": indexer.interleave,
        "router_bias": mixture.router_bias,
        "streams_mean": family.pools,
        "block": fp8_block(keys),
    }
    keys.read.update(("bos_token_id", "add_bos_token", "eos_token_id"))
    keys.finish(HARMLESS)
    return ModelConfig(**f)
