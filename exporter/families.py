"""Which class a configuration is written for, and what that class means by keys that are absent.

A model is what its configuration's fields say. But transformers leaves out what is a constant of a class, and
published files leave out what is that class's default. model_type names the class, or architectures, where
that is missing. A class that is not known here is read as DeepSeek-V3's, with a warning; where no class is
named, a key whose absence means different things is asked for, and nothing is guessed. The other spellings of
keys, the keys that cannot change the arithmetic, and language models inside larger ones are here, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

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


@dataclass(frozen=True)
class Family:
    """A class of models, and what it does that no key says."""

    model_types: tuple[str, ...]
    classes: tuple[str, ...]  # names in architectures, without ForCausalLM
    absent: Mapping[str, Any] = field(default_factory=dict)  # what absent keys mean
    index_pairs: bool | None = None  # the indexer turns interleaved pairs; None: such a class has no indexer
    v_from_hidden: bool = False  # v_head_dim may be absent: hidden_size / num_attention_heads
    scales_softmax: bool | None = False  # normalized softmax weights are multiplied by routed_scaling_factor
    partial_of_head: bool = False  # partial_rotary_factor counts a head of n + p
    pairs_of_layers: bool = False  # num_layers counts pairs, with experts beside the first one's MLP
    groups: bool = False  # no latent: groups of heads share keys and values, and the whole head is rotated


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
    Family(("plm",), ("PLM",), PAIRS),
    Family(("pangu_ultra_moe",), ("PanguUltraMoE",), PAIRS | PANGU),
    Family(("minicpm3",), ("MiniCPM3",), HALVES | MINICPM3, v_from_hidden=True),
    Family(("mistral4",), ("Mistral4",), PAIRS | MISTRAL4, scales_softmax=True, partial_of_head=True),
    Family(("llama",), ("Llama",), HALVES | LLAMA, groups=True),
    Family(("longcat_flash",), ("LongcatFlash",), PAIRS | LONGCAT, scales_softmax=True, pairs_of_layers=True),
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
    "ep_size", "pruned_heads", "moe_router_dtype",
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
PREDICTION = ("num_nextn_predict_layers", "index_share_for_mtp_iteration", "mtp_layer_types")
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


def language_model(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration of the language model in `values`: itself, or its text_config with what stands beside
    that, images left out. Its model_type is that of architectures, where it is missing."""
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


def open_keys(values: dict[str, Any], where: str) -> tuple[Keys, Family]:
    """`values` (a config.json) ready to be read under the names that are used here, absent keys filled in
    with what the model's class means by that."""
    family = family_of(values)
    given = {key: value for key, value in values.items() if value is not None}
    keys = Keys(dict(given), where)
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
