"""Which class a configuration is written for, and what that class means by keys that are absent.

A model is what its configuration's fields say. But transformers leaves out what is a constant of a class, and
published files leave out what is that class's default. model_type names the class, or architectures, where
that is missing. A class that is not known here is read as DeepSeek-V3's, with a warning; where no class is
named, a key whose absence means different things is asked for, and nothing is guessed. The other spellings of
keys, the keys that cannot change the arithmetic, and language models inside larger ones are here, too; names
of tensors are in names.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from .errors import ExportError, printable, warn
from .keys import Keys

HALVES, PAIRS = {"rope_interleave": False}, {"rope_interleave": True}
MINICPM3 = {"rope_theta": 10000.0, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
LLAMA = {"rope_theta": 10000.0, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
MISTRAL4 = {"scoring_func": "softmax", "norm_topk_prob": True, "routed_scaling_factor": 1.0}
# "noaux_tc" with softmax: a router of softmax that has a correction bias
LONGCAT = {
    "scoring_func": "softmax",
    "topk_method": "noaux_tc",
    "norm_topk_prob": False,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "rope_theta": 10000000.0,
}
# "greedy" with sigmoid: a router of sigmoid that has no correction bias
PANGU = {"scoring_func": "sigmoid", "topk_method": "greedy"}
SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
DEEPSEEK_V4 = {
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "first_k_dense_replace": 0,
    "rope_theta": 10000.0,
    "swiglu_limit": 10.0,
}


@dataclass(frozen=True)
class Family:
    """A class of models, and what it does that no key says."""

    model_types: tuple[str, ...]
    classes: tuple[str, ...]  # names in architectures, without ForCausalLM
    absent: Mapping[str, Any] = field(default_factory=dict)  # what absent keys mean
    index_pairs: bool | None = None  # the indexer turns interleaved pairs; None: such a class has no indexer
    v_from_hidden: bool = False  # v_head_dim may be absent: hidden_size / num_attention_heads
    scales_softmax: bool | None = False  # normalized softmax weights are multiplied by routed_scaling_factor
    sums_two_of_group: bool = False  # a group counts as the sum of its two best experts, also with softmax
    partial_of_head: bool = False  # partial_rotary_factor counts a head of n + p
    partial_says_nothing: bool = False  # partial_rotary_factor is there, and all of the p numbers turn
    linear_attention: str | None = None  # the key that tells which layers have it; None: no layer has
    bias_may_lack: bool = False  # a router without a tensor for its correction bias has none
    norms_experts: bool = False  # what a mixture of experts gives is normed before it is added
    pairs_of_layers: bool = False  # num_layers counts pairs, with experts beside the first one's MLP
    groups: bool = False  # no latent: groups of heads share keys and values, and the whole head is rotated
    window: bool = False  # no latent: deepseek_v4.py
    pools: bool = False  # several residual streams, no positions, an indexer of pools: glm5_next.py


FAMILIES = (
    Family(("deepseek_v2",), ("DeepseekV2",), PAIRS),
    Family(
        ("deepseek_v3", "kimi_k2", "kimi_k25", "kimi_vl"),
        ("DeepseekV3", "KimiK2"),
        PAIRS,
    ),
    Family(("deepseek_v32",), ("DeepseekV32",), PAIRS, index_pairs=False),
    Family(("glm4_moe_lite",), ("Glm4MoeLite",), PAIRS),
    Family(("glm_moe_dsa",), ("GlmMoeDsa",), PAIRS, index_pairs=True),
    Family(("youtu", "youtu_llm"), ("Youtu", "YoutuLLM"), PAIRS),
    Family(("sarvam_mla",), ("SarvamMLA",), PAIRS),
    Family(("axk1", "AXK1"), ("AXK1",), PAIRS | SIGMOID, bias_may_lack=True, norms_experts=True),
    Family(("kimi_linear",), ("KimiLinear",), PAIRS | SIGMOID, linear_attention="linear_attn_config"),
    Family(
        ("bailing_hybrid",),
        ("BailingMoeV3", "BailingHybrid"),
        PAIRS | SIGMOID,
        partial_says_nothing=True,
        linear_attention="layer_group_size",
    ),
    Family(("plm",), ("PLM",), PAIRS),
    Family(("pangu_ultra_moe",), ("PanguUltraMoE",), PAIRS | PANGU),
    Family(("minicpm3",), ("MiniCPM3",), HALVES | MINICPM3, v_from_hidden=True),
    Family(
        ("mistral4",),
        ("Mistral4",),
        PAIRS | MISTRAL4,
        scales_softmax=True,
        sums_two_of_group=True,
        partial_of_head=True,
    ),
    Family(("llama",), ("Llama",), HALVES | LLAMA, groups=True),
    Family(("longcat_flash",), ("LongcatFlash",), PAIRS | LONGCAT, scales_softmax=True, pairs_of_layers=True),
    Family(("deepseek_v4",), ("DeepseekV4",), PAIRS | DEEPSEEK_V4, window=True),
    Family(
        ("glm5_next", "glm5_next_text"),
        ("Glm5Next",),
        PAIRS | SIGMOID | {"swiglu_limit": 10.0},
        linear_attention="linear_attn_config",
        pools=True,
    ),
)
UNKNOWN = Family((), (), scales_softmax=None)

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
    "num_dense_layers": "first_k_dense_replace",
    # that and Sarvam's original configuration
    "num_shared_experts": "n_shared_experts",
    "q_head_dim": "qk_head_dim",
    # several versions of transformers write them beside, or instead of, the usual ones
    "num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
    # Kimi-Linear
    "num_experts_per_token": "num_experts_per_tok",
    "num_expert_group": "n_group",
    "moe_renormalize": "norm_topk_prob",
    "moe_router_activation_func": "scoring_func",
    "model_max_length": "max_position_embeddings",
    # Ling, which has both
    "score_function": "scoring_func",
}

# Keys that say nothing about the arithmetic of inference: how the file came to be,
ORIGIN = (
    "architectures", "auto_map", "model_type", "name_or_path", "_name_or_path", "torch_dtype", "dtype",
    "transformers_version", "tokenizer_class", "task_specific_params", "finetuning_task", "problem_type",
    "torchscript", "tf_legacy_loss", "use_bfloat16", "id2label", "label2id", "prefix", "unsloth_fixed",
    "unsloth_version", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
)  # fmt: skip
# training,
TRAINING = (
    "attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "initializer_range",
    "embedding_initializer_range", "aux_loss_alpha", "seq_aux", "router_aux_loss_coef", "pretraining_tp",
    "ep_size", "pruned_heads", "moe_router_dtype", "router_dtype", "embedding_dropout", "output_dropout",
    "mtp_loss_scaling_factor",
)  # fmt: skip
# what transformers' classes return, or are called,
CLASSES = (
    "use_cache", "is_decoder", "is_encoder_decoder", "output_attentions", "output_hidden_states",
    "output_router_logits", "return_dict", "return_dict_in_generate", "use_return_dict", "output_scores",
    "chunk_size_feed_forward", "cross_attention_hidden_size", "add_cross_attention", "tie_encoder_decoder",
    "num_key_value_heads",
)  # fmt: skip
# other tokens than begin and end, and generation, which generation_config.json decides,
GENERATION = (
    "pad_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id", "max_length", "min_length",
    "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature",
    "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
)  # fmt: skip
# layers for multi-token prediction: models declare them and do not ship them, so the tensors decide.
PREDICTION = (
    "num_nextn_predict_layers", "index_share_for_mtp_iteration", "mtp_layer_types", "mtp_use_kda",
    "dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids", "dspark_markov_rank",
)  # fmt: skip
HARMLESS = frozenset(ORIGIN + TRAINING + CLASSES + GENERATION + PREDICTION)

# Of a larger model that holds a language model in its text_config: what belongs to images and video.
OF_IMAGES = frozenset((
    "vision_config", "media_placeholder_token_id", "image_token_index", "image_token_id",
    "image_placeholder", "video_token_index", "video_token_id", "video_placeholder",
    "vision_start_token_id", "vision_end_token_id", "use_unified_vision_chunk", "projector_hidden_act",
    "projection_hidden_size", "projection_layer_norm_eps", "multimodal_projector_bias",
    "spatial_merge_size", "vision_feature_layer", "vision_feature_select_strategy", "ignore_index",
))  # fmt: skip
NAMES = ("model_type", "architectures")


class Refused(NamedTuple):
    """Models whose arithmetic is not implemented."""

    name: str
    missing: str  # here
    model_types: tuple[str, ...]
    classes: tuple[str, ...]
    keys: tuple[str, ...] = ()  # any of which tells, where the names are another model's, too


STREAMS = "several residual streams (mHC)"
NOT_KNOWN = "its attention, of which nothing exact is published"
REFUSED = (
    Refused(
        "Kimi-K3",
        "residuals mixed over layers (AttnRes), experts in a latent space, SiTU-GLU",
        ("kimi_k3",),
        ("KimiK3",),
        ("attn_res_block_size", "routed_expert_hidden_size", "activation_situ_beta"),
    ),
    Refused(
        "A.X-K2",
        "queries made of two forms of the compressed one, gated norms, an output gate for each number",
        ("axk2",),
        ("AXK2",),
    ),
    Refused(
        "DeepSeek-V4.1",
        "compressed rows and selections that layers share, a selection in two steps, embeddings of n-grams "
        "(Engram)",
        ("deepseek_v41",),
        ("DeepseekV41",),
        ("kv_source_layer_ids", "index_source_layer_ids"),
    ),
    Refused(
        "Hy4",
        f"{STREAMS}, learned sinks, an output gate for each number",
        ("hy_v4", "hy_v4_vl"),
        ("HYV4", "HyV4", "HYV4VL"),
    ),
    Refused(
        "dots3-note",
        "layers with a sliding window and sizes of their own, a norm of the rotated key",
        ("dots3_note",),
        ("Dots3Note",),
    ),
    Refused(
        "Mistral Large 4",
        "learned rotary frequencies, keys and values that layers share, a soft limit of the logits",
        ("mistral_large4",),
        ("MistralLarge4",),
    ),
    Refused(
        "Ling-2.6",
        "lightning attention",
        ("bailing_moe_linear",),
        ("BailingMoeV2_5", "BailingMoeLinearV2"),
    ),
    Refused(
        "LongCat-Flash-Lite",
        "embeddings of n-grams",
        ("longcat_flash_ngram",),
        ("LongcatFlashNgram", "LongcatCausalLMNgram"),
        ("ngram_vocab_size_ratio",),
    ),
    Refused("Instella-MoE", NOT_KNOWN, ("instella_moe",), ("InstellaMoE", "InstellaMoe")),
    Refused("openPangu 2", NOT_KNOWN, ("pangu_v2_moe", "openpangu_v2"), ("PanguV2MoE", "OpenPanguV2")),
)  # fmt: skip


def refuse_by_name(values: Mapping[str, Any], where: str) -> None:
    """Refuses a configuration of a model that is known and not implemented. Ling-2.6 has Ling-3.0's
    model_type: what tells is that no key of KDA is there."""
    classes, kind = _classes(values), values.get("model_type")
    inner = values.get("text_config")
    inner = inner if isinstance(inner, dict) else {}
    for model in REFUSED:
        named = kind in model.model_types or classes.intersection(model.classes)
        if named or any((values.get(key) or inner.get(key)) is not None for key in model.keys):
            _refuse(model, where)
    other = kind == "bailing_hybrid" and "BailingMoeV3" not in classes
    if other and not any(key.startswith("kda_") or key == "no_kda_lora" for key in values):
        _refuse(next(model for model in REFUSED if model.name == "Ling-2.6"), where)


def _refuse(model: Refused, where: str) -> NoReturn:
    raise ExportError(f"{where}: {model.name} is not supported; what is not implemented: {model.missing}")


def language_model(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration of the language model in `values`: itself, or its text_config with what stands beside
    that, images left out. Its model_type is that of architectures, where it is missing."""
    refuse_by_name(values, where)
    inner = values.get("text_config")
    if inner is not None:
        if not isinstance(inner, dict):
            raise ExportError(f"{where}: text_config: an object was expected")
        named = any(inner.get(key) for key in NAMES)
        left = OF_IMAGES.union(("text_config",), NAMES if named else ())
        inner = {key: value for key, value in inner.items() if value is not None}
        values = {key: value for key, value in values.items() if key not in left} | inner
    found = family_of(values)
    if found.model_types and not values.get("model_type"):
        values = values | {"model_type": found.model_types[0]}
    return values


def _classes(values: Mapping[str, Any]) -> set[str]:
    """The names in architectures, without the endings of transformers' heads."""
    names = values.get("architectures")
    names = names if isinstance(names, list) else [names]
    endings = ("ForCausalLM", "ForConditionalGeneration", "Model")
    found = set()
    for name in names:
        if isinstance(name, str):
            ending = next((ending for ending in endings if name.endswith(ending)), "")
            found.add(name.removesuffix(ending))
    return found


def family_of(values: Mapping[str, Any]) -> Family:
    """The family that model_type names, or else architectures; UNKNOWN if neither is known here. model_type
    holds where they differ, as it does for transformers."""
    of_type = [family for family in FAMILIES if values.get("model_type") in family.model_types]
    of_class = [family for family in FAMILIES if _classes(values).intersection(family.classes)]
    return (of_type or of_class or [UNKNOWN])[0]


def own_keys(family: Family) -> set[str]:
    """Keys that are refused but in some families, of which this is one."""
    linear = {family.linear_attention} if family.linear_attention else set()
    streams = {"hc_mult"} if family.window or family.pools else set()
    return linear | streams | ({"sliding_window"} if family.window else set())


def open_keys(values: dict[str, Any], where: str) -> tuple[Keys, Family]:
    """`values` (a config.json) ready to be read under the names that are used here, absent keys filled in
    with what the model's class means by that."""
    family = family_of(values)
    given = {key: value for key, value in values.items() if value is not None}
    keys = Keys(dict(given), where)
    # transformers 5.11 writes this default of its class beside the number that it uses
    if family.index_pairs is not None and "n_routed_experts" in given and given.get("num_experts") == 256:
        del keys.values["num_experts"]
    for other, key in ALIASES.items():
        keys.rename(other, key)
    keys.absent = frozenset(family.absent).difference(keys.values)
    keys.values = {**family.absent, **keys.values}
    if family is UNKNOWN and "rope_interleave" not in given:
        if not any(given.get(key) for key in NAMES):
            ask(keys, "rope_interleave")
        name = printable(given.get("model_type") or given.get("architectures"), 60)
        warn(f"{where}: {name} is not known here; absent keys are taken to mean what they do for DeepSeek-V3")
        keys.values["rope_interleave"] = True
    return keys, family


def ask(keys: Keys, key: str) -> NoReturn:
    """Refuses a configuration of no known class that leaves out `key`."""
    raise ExportError(
        f"{keys.where}: {key} is missing; what that means depends on the class of the model, and model_type "
        "and architectures name none that is known here"
    )
