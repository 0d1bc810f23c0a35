"""What a GGUF's keys and tensors are called in transformers: the metadata as a config.json, and names.

A GGUF leaves things out that llama.cpp does not compute or has built in. They are taken from the published
configuration of the same shape (shapes.py); where there is none, the assumption is told. What llama.cpp does
without a key about begin and end tokens is done here, too. The names are those of the converters of llama.cpp
and ik_llama.cpp; architectures that are not in the table below are refused.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from . import names
from .errors import ExportError, printable
from .keys import REQUIRED, Keys
from .shapes import SHAPES

if TYPE_CHECKING:  # which imports the names from here
    from .gguf_source import Gguf

# general.architecture -> the class in transformers. deepseek2 is many models', and its keys say the rest.
ARCHITECTURES = {
    "deepseek2": "deepseek_v2",
    "deepseek32": "deepseek_v32",
    "glm-dsa": "glm_moe_dsa",
    "mistral4": "mistral4",
    "longcat-flash": "longcat_flash",
    "minicpm3": "minicpm3",
    "plm": "plm",
    "deepseek4": "deepseek_v4",
    "kimi-linear": "kimi_linear",
    "bailingmoe3": "bailing_hybrid",
}
SIGMOID = ("deepseek32", "glm-dsa")  # whose router llama.cpp takes for a sigmoid's where the file is silent
# Without a list of the layers that have an indexer llama.cpp knows two: GLM-5.2's by its context, and all.
SHARED_CONTEXT, SHARED = 1 << 20, {"index_topk_freq": 4, "index_skip_topk_offset": 3}

MISTRAL4_BETA = 0.1  # llama_4_scaling_beta of all that are published, and the class's default

TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": "rotary_emb.inv_freq",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.kv_b_proj",
    "attn_v_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    "attn_rot_embd": "rotary_emb.inv_freq",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "indexer.attn_q_b": "self_attn.indexer.wq_b",
    "indexer.attn_k": "self_attn.indexer.wk",
    "indexer.k_norm": "self_attn.indexer.k_norm",
    "indexer.proj": "self_attn.indexer.weights_proj",
    "nextn.eh_proj": "eh_proj",
    "nextn.enorm": "enorm",
    "nextn.hnorm": "hnorm",
    "nextn.embed_tokens": "embed_tokens",
    "nextn.shared_head_norm": "shared_head.norm",
    "nextn.shared_head_head": "shared_head.head",
    "layer_output_norm": "shared_head.norm",  # bailingmoe3's name of it
    # linear attention, and what comes with it
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_gate": "self_attn.g_proj",
    "ssm_conv1d_q": "self_attn.q_conv1d",
    "ssm_conv1d_k": "self_attn.k_conv1d",
    "ssm_conv1d_v": "self_attn.v_conv1d",
    "ssm_f_a": "self_attn.f_a_proj",
    "ssm_f_b": "self_attn.f_b_proj",
    "ssm_g_a": "self_attn.g_a_proj",
    "ssm_g_b": "self_attn.g_b_proj",
    "ssm_beta": "self_attn.b_proj",
    "ssm_norm": "self_attn.o_norm",
}
# Ling's decay and gate are one matrix each. llama.cpp calls it as the first of Kimi-Linear's two, others do
# not.
ONE_MATRIX = {
    "ssm_f_a": "self_attn.f_proj",
    "ssm_g_a": "self_attn.g_proj",
    "ssm_f": "self_attn.f_proj",
    "ssm_g": "self_attn.g_proj",
}
# Whole names: with the ending, or of a tensor that has none.
LINEAR_VECTORS = {"ssm_a": "self_attn.A_log", "ssm_dt.bias": "self_attn.dt_bias"}
# DeepSeek-V4's, of the model and of a layer, where they are called otherwise than above: whole names.
V4_TOP = {
    "output_hc_fn": "model.hc_head.hc_fn",
    "output_hc_base": "model.hc_head.hc_base",
    "output_hc_scale": "model.hc_head.hc_scale",
}
V4_LAYER = {
    "attn_q_a_norm": "self_attn.q_a_norm.weight",
    "attn_kv": "self_attn.kv_proj.weight",
    "attn_kv_a_norm": "self_attn.kv_norm.weight",
    "attn_sinks": "self_attn.sinks",
    "attn_output_a": "self_attn.o_a_proj.weight",
    "attn_output_b": "self_attn.o_b_proj.weight",
    "attn_compressor_kv": "self_attn.compressor.kv_proj.weight",
    "attn_compressor_gate": "self_attn.compressor.gate_proj.weight",
    "attn_compressor_ape": "self_attn.compressor.position_bias",
    "attn_compressor_norm": "self_attn.compressor.kv_norm.weight",
    "indexer.attn_q_b": "self_attn.compressor.indexer.q_b_proj.weight",
    "indexer.proj": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "indexer_compressor_kv": "self_attn.compressor.indexer.kv_proj.weight",
    "indexer_compressor_gate": "self_attn.compressor.indexer.gate_proj.weight",
    "indexer_compressor_ape": "self_attn.compressor.indexer.position_bias",
    "indexer_compressor_norm": "self_attn.compressor.indexer.kv_norm.weight",
    "ffn_gate_tid2eid": "mlp.gate.tid2eid",
    **{name: usual for name, usual in names.V4_LAYER.items() if name.startswith("hc_")},
}
SQRT_SOFTPLUS = 4  # expert_gating_func
# All experts stacked [E, rows, columns]; the last has both matrices of one expert one below the other.
EXPERTS = {
    "ffn_gate_exps": ["gate_proj"],
    "ffn_up_exps": ["up_proj"],
    "ffn_down_exps": ["down_proj"],
    "ffn_gate_up_exps": ["gate_proj", "up_proj"],
}


# The pre-tokenizers (tokenizer.ggml.pre) with which llama.cpp begins a text with a token where the file does
# not say whether to (llama-vocab.cpp, where add_bos is set): Llama 3's, which others use, Mistral's and
# Chameleon's.
BEGINNING = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "tekken", "chameleon",
)  # fmt: skip
# The begin and end token of a SentencePiece vocabulary whose file names none. llama.cpp has one default for
# BPE, too, the number of Falcon's only special token; in any other vocabulary that is a word, so it is not
# taken over.
PIECES_BEGIN, PIECES_END = 1, 2


def check_architecture(name: object, path: str) -> None:
    """Raises ExportError if the file at `path` has a general.architecture that is not read."""
    if name not in ARCHITECTURES:
        known = ", ".join(list(ARCHITECTURES)[:-1])
        raise ExportError(
            f"{path}: general.architecture is {printable(name)}; {known} and {list(ARCHITECTURES)[-1]} "
            "are supported"
        )


def _of_pair(name: str, half: int) -> str:
    """A layer's part `name` in a model whose layers are pairs: which half of the pair it belongs to, or that
    it is the mixture's, of which a pair has one."""
    block, _, rest = name.partition(".")
    if name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        return f"mlps.{half}.{rest}"
    if block == "mlp":
        return name.replace("mlp.gate", "mlp.router.classifier", 1) if name == "mlp.gate" else name
    return f"{block}.{half}.{rest}".rstrip(".")


def transformers_name(name: str, architecture: str) -> str:
    """The name in transformers; of stacked experts with {e} and {matrix} in it. Another name as it is."""
    stem, _, ending = name.rpartition(".")
    of_v4, pairs = architecture == "deepseek4", architecture == "longcat-flash"
    if of_v4 and stem in V4_TOP:
        return V4_TOP[stem]
    if stem in TOP:
        return TOP[stem] if TOP[stem].endswith("inv_freq") else f"{TOP[stem]}.{ending}"
    vector = re.fullmatch(r"blk\.(\d{1,9})\.(ssm_a|ssm_dt\.bias)", name)
    if vector:
        return f"model.layers.{vector.group(1)}.{LINEAR_VECTORS[vector.group(2)]}"
    match = re.fullmatch(r"blk\.(\d{1,9})\.(.+)", stem)
    if not match:
        return name
    number, kind = int(match.group(1)), match.group(2)
    # two blocks of LongCat's file are one layer there
    layer = f"model.layers.{number // 2 if pairs else number}."
    if of_v4 and kind in V4_LAYER:
        return layer + V4_LAYER[kind]
    if kind in EXPERTS:
        return layer + "mlp.experts.{e}.{matrix}." + ending
    if kind == "exp_probs_b":
        return layer + ("mlp.router" if pairs else "mlp.gate") + ".e_score_correction_bias"
    if architecture == "bailingmoe3" and kind in ONE_MATRIX:
        return f"{layer}{ONE_MATRIX[kind]}.{ending}"
    if kind not in LAYER:
        return name
    part = _of_pair(LAYER[kind], number % 2) if pairs else LAYER[kind]
    return layer + part + ("" if kind == "attn_rot_embd" else f".{ending}")


class Metadata(Keys):
    """The metadata, whose keys begin with the architecture's name."""

    def __init__(self, metadata: dict[str, Any], path: str) -> None:
        super().__init__(metadata, path)
        self.architecture = self.get("general.architecture")

    def arch(self, read: Callable[..., Any], key: str, *default: Any, **limits: Any) -> Any:
        """What `read` (a method of this object) gives for the architecture's `key`."""
        return read(f"{self.architecture}.{key}", *default, **limits)

    def natural(self, key: str, default: Any = REQUIRED) -> Any:
        return self.arch(self.integer, key, default, least=0)

    def real(self, key: str, default: Any = REQUIRED) -> Any:
        return self.arch(self.number, key, default)


class Converted(NamedTuple):
    values: dict[str, Any]  # what config.json would say
    notes: list[str]  # what had to be assumed


def config(source: "Gguf") -> Converted:
    """The configuration of a Gguf."""
    keys = Metadata(source.metadata, source.directory)
    embed = source.tensors.get("model.embed_tokens.weight")
    if embed is None:
        raise ExportError(f"{source.directory}: tensor token_embd.weight is missing; is this a model?")
    if keys.architecture == "deepseek4":
        values = _deepseek4(keys, source) | {"vocab_size": embed.shape[0]} | _text(keys)
        return Converted({key: value for key, value in values.items() if value is not None}, [])
    values = _sizes(keys) | {"vocab_size": embed.shape[0]} | _text(keys)
    notes = _experts(keys, values) if keys.natural("expert_count", 0) else []
    values |= _indexer(keys)
    published = _published(values)
    if keys.architecture == "minicpm3":
        values |= _minicpm3(source, values)
    elif keys.arch(keys.get, "rope.scaling.type", "none") != "none":
        _yarn(keys, values, published.get("rope_scaling") or {})
    if keys.architecture == "plm":
        values |= {"hidden_act": "relu2"}
    if keys.architecture == "longcat-flash":
        _longcat(keys, values)
    if keys.architecture == "kimi-linear":
        _kimi_linear(keys, values, source)
    if keys.architecture == "bailingmoe3":
        _ling(keys, values, source)
    return Converted({key: value for key, value in values.items() if value is not None}, notes)


def _sizes(keys: Metadata) -> dict[str, Any]:
    """The sizes of layers and heads, and what every model has."""
    p = keys.natural("rope.dimension_count")
    heads, hidden = keys.natural("attention.head_count"), keys.natural("embedding_length")
    # Files for the latent cache state the sizes of its rows, and the heads' own under other keys.
    key_length = keys.natural("attention.key_length_mla", 0) or keys.natural("attention.key_length")
    v = keys.natural("attention.value_length_mla", 0) or keys.natural("attention.value_length", 0)
    return {
        "model_type": ARCHITECTURES[keys.architecture],
        "hidden_size": hidden,
        "num_hidden_layers": keys.natural("block_count") - keys.natural("nextn_predict_layers", 0),
        "num_attention_heads": heads,
        "q_lora_rank": keys.natural("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": keys.natural("attention.kv_lora_rank"),
        "qk_nope_head_dim": key_length - p,
        "qk_rope_head_dim": p,
        "v_head_dim": v or hidden // max(1, heads),
        "intermediate_size": keys.natural("feed_forward_length"),
        "max_position_embeddings": keys.natural("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.real("rope.freq_base", 10000.0),
    }


def _text(keys: Metadata) -> dict[str, Any]:
    """Begin and end tokens, as llama.cpp has them."""
    pieces = keys.get("tokenizer.ggml.model", "") == "llama"  # SentencePiece
    begins = pieces or keys.get("tokenizer.ggml.pre", "") in BEGINNING
    names = {f"tokenizer.ggml.{name}_token_id": name for name in ("eos", "eot", "eom")}
    absent = {"eos": PIECES_END if pieces else None}
    ends = [keys.integer(key, absent.get(name), least=0) for key, name in names.items()]
    return {
        "bos_token_id": keys.get("tokenizer.ggml.bos_token_id", PIECES_BEGIN if pieces else None),
        "add_bos_token": keys.boolean("tokenizer.ggml.add_bos_token", begins),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)),
    }


def _published(values: dict[str, Any]) -> dict[str, Any]:
    """The published configuration of this shape, or nothing."""
    same = (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "n_routed_experts",
    )
    found = (shape for shape in SHAPES.values() if all(shape.get(key) == values.get(key) for key in same))
    return next(found, {})


def _experts(keys: Metadata, values: dict[str, Any]) -> list[str]:
    """Adds the keys of the mixture; returns what had to be assumed."""
    scoring = keys.natural("expert_gating_func", 0)
    if scoring not in (0, 1, 2):
        keys.fail(f"{keys.architecture}.expert_gating_func", "1 (softmax) or 2 (sigmoid) was expected")
    absent = "sigmoid" if keys.architecture in SIGMOID else None
    values |= {
        "n_routed_experts": keys.natural("expert_count"),
        "num_experts_per_tok": keys.natural("expert_used_count"),
        "n_shared_experts": keys.natural("expert_shared_count", 0),
        "moe_intermediate_size": keys.natural("expert_feed_forward_length"),
        "first_k_dense_replace": keys.natural("leading_dense_block_count", 0),
        "scoring_func": {0: absent, 1: "softmax", 2: "sigmoid"}[scoring],
        "routed_scaling_factor": keys.real("expert_weights_scale", 0.0) or None,
        "norm_topk_prob": keys.arch(keys.boolean, "expert_weights_norm", None),
        "n_group": keys.natural("expert_group_count", 0) or None,
        "topk_group": keys.natural("expert_group_used_count", 0) or None,
    }
    published, notes = _published(values), []
    for key, default in (
        ("n_group", 1),
        ("topk_group", 1),
        ("routed_scaling_factor", 1.0),
        ("norm_topk_prob", False),
        ("scoring_func", None),
    ):
        if values[key] is None:
            values[key] = published.get(key, default)
            # only old files lack them although the model has them, and then the architecture is deepseek2
            if keys.architecture == "deepseek2" and not published and values[key] is not None:
                notes.append(f"{key} {values[key]}")
    return notes


def _indexer(keys: Metadata) -> dict[str, Any]:
    """The keys of the sparse attention's indexer, if there is one."""
    top = keys.natural("attention.indexer.top_k", 0)
    if not top:
        return {}
    kinds = keys.arch(keys.get, "attention.indexer.types", None)
    if isinstance(kinds, list):
        kinds = [
            {True: "full", False: "shared"}.get(kind, kind) if type(kind) in (bool, int) else kind
            for kind in kinds
        ]
    shared = kinds is None and keys.architecture == "glm-dsa"
    shared = shared and keys.natural("context_length") >= SHARED_CONTEXT
    return {
        "index_n_heads": keys.natural("attention.indexer.head_count"),
        "index_head_dim": keys.natural("attention.indexer.key_length"),
        "index_topk": top,
        "indexer_types": kinds,
    } | (SHARED if shared else {})


def _main_layers(keys: Metadata, source: "Gguf") -> int:
    """The blocks without those for multi-token prediction, which count as blocks where the file has them."""
    blocks: int = keys.natural("block_count")
    layers: int = blocks - keys.natural("nextn_predict_layers", 0)
    return layers if f"model.layers.{layers}.eh_proj.weight" in source.tensors else blocks


def _deepseek4(keys: Metadata, source: "Gguf") -> dict[str, Any]:
    """DeepSeek-V4's."""
    layers = _main_layers(keys, source)
    keys.arch(keys.one_of, "expert_gating_func", SQRT_SOFTPLUS)
    yarn = None
    if keys.arch(keys.get, "rope.scaling.type", "none") != "none":
        yarn = {
            "type": keys.arch(keys.get, "rope.scaling.type"),
            "factor": keys.real("rope.scaling.factor"),
            "original_max_position_embeddings": keys.natural("rope.scaling.original_context_length"),
            "beta_fast": keys.real("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": keys.real("rope.scaling.yarn_beta_slow", 1.0),
        }
    return {
        "model_type": ARCHITECTURES["deepseek4"],
        "hidden_size": keys.natural("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": keys.natural("attention.head_count"),
        "head_dim": keys.natural("attention.key_length"),
        "qk_rope_head_dim": keys.natural("rope.dimension_count"),
        "q_lora_rank": keys.natural("attention.q_lora_rank"),
        "o_groups": keys.natural("attention.output_group_count"),
        "o_lora_rank": keys.natural("attention.output_lora_rank"),
        "sliding_window": keys.natural("attention.sliding_window"),
        "compress_ratios": keys.arch(keys.get, "attention.compress_ratios"),
        "index_n_heads": keys.natural("attention.indexer.head_count"),
        "index_head_dim": keys.natural("attention.indexer.key_length"),
        "index_topk": keys.natural("attention.indexer.top_k"),
        "hc_mult": keys.natural("hyper_connection.count"),
        "hc_sinkhorn_iters": keys.natural("hyper_connection.sinkhorn_iterations"),
        "hc_eps": keys.real("hyper_connection.epsilon"),
        "num_hash_layers": keys.natural("hash_layer_count"),
        "n_routed_experts": keys.natural("expert_count"),
        "num_experts_per_tok": keys.natural("expert_used_count"),
        "n_shared_experts": keys.natural("expert_shared_count"),
        "moe_intermediate_size": keys.natural("expert_feed_forward_length"),
        "routed_scaling_factor": keys.real("expert_weights_scale"),
        "norm_topk_prob": keys.arch(keys.boolean, "expert_weights_norm", False),
        "swiglu_limit": _clamp(keys, layers),
        "max_position_embeddings": keys.natural("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.real("rope.freq_base", 10000.0),
        "compress_rope_theta": keys.real("attention.compress_rope_freq_base"),
        "rope_scaling": yarn,
    }


def _clamp(keys: Metadata, layers: int) -> float:
    """The one limit of SwiGLU in all layers, of routed and, unless they have their own, of shared experts."""
    found = set()
    for who in ("exp", "shexp"):
        limits = keys.arch(keys.get, f"swiglu_clamp_{who}", [] if who == "shexp" else 0.0)
        found.update(limits[:layers] if isinstance(limits, list) else [limits])
    if len(found) != 1:
        keys.fail(
            f"{keys.architecture}.swiglu_clamp_exp", "one limit for all layers and experts is supported"
        )
    return float(found.pop())


def _longcat(keys: Metadata, values: dict[str, Any]) -> None:
    """A layer of transformers is two blocks here. The class scales both latents."""
    blocks = values.pop("num_hidden_layers")
    if blocks % 2:
        keys.fail(f"{keys.architecture}.block_count", "an even number was expected: layers are pairs")
    values |= {
        "num_layers": blocks // 2,
        "zero_expert_num": keys.natural("expert_zero_count", 0),
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    }
    for key in ("n_shared_experts", "first_k_dense_replace"):
        values.pop(key, None)


def _linear_layers(keys: Metadata, layers: int) -> list[bool]:
    """Which layers have linear attention: those without heads of keys."""
    counts = keys.arch(keys.get, "attention.head_count_kv")
    right = isinstance(counts, list) and len(counts) >= layers and all(type(n) is int for n in counts)
    if not right:
        what = f"a number for each of {layers} layers was expected, 0 where attention is linear"
        keys.fail(f"{keys.architecture}.attention.head_count_kv", what)
    return [n == 0 for n in counts[:layers]]


def _kimi_linear(keys: Metadata, values: dict[str, Any], source: "Gguf") -> None:
    """The lists of its layers, counted from 1. Weights of experts are normalized in llama.cpp without a key,
    and attention does not rotate. There is one key for the heads of all layers, so the rates of decay tell
    how many heads those with linear attention have."""
    keys.arch(keys.one_of, "kda.gate_lower_bound", None)
    linear = _linear_layers(keys, values["num_hidden_layers"])
    rates = [x for name, x in source.tensors.items() if name.endswith(".self_attn.A_log")]
    values |= {
        "norm_topk_prob": True,
        "mla_use_nope": True,
        "linear_attn_config": {
            "kda_layers": [i + 1 for i, is_linear in enumerate(linear) if is_linear],
            "full_attn_layers": [i + 1 for i, is_linear in enumerate(linear) if not is_linear],
            "head_dim": keys.natural("kda.head_dim"),
            "num_heads": rates[0].cols if rates else keys.natural("attention.head_count"),
            "short_conv_kernel_size": keys.natural("ssm.conv_kernel"),
        },
    }


def _ling(keys: Metadata, values: dict[str, Any], source: "Gguf") -> None:
    """Ling-3.0's. The layers' kinds are given one by one here, and in groups there. There are files with the
    low-rank queries and without their key: the tensors tell."""
    layers = _main_layers(keys, source)
    linear = _linear_layers(keys, layers)
    group = linear.index(False) + 1 if False in linear else layers + 1
    whole = layers // group * group
    if linear != [(i + 1) % group != 0 and i < whole for i in range(layers)]:
        what = "the last layer of each group, and nothing else, with full attention is supported"
        keys.fail(f"{keys.architecture}.attention.head_count_kv", what)
    norms = [x for name, x in source.tensors.items() if name.endswith(".self_attn.q_a_layernorm.weight")]
    values |= {
        "num_hidden_layers": layers,
        "q_lora_rank": values["q_lora_rank"] or (norms[0].cols if norms else None),
        "layer_group_size": group,
        "head_dim": keys.natural("kda.head_dim"),
        "short_conv_kernel_size": keys.natural("ssm.conv_kernel"),
        "kda_safe_gate": keys.arch(keys.boolean, "kda.safe_gate", True),
        "kda_lower_bound": keys.arch(keys.number, "kda.gate_lower_bound", least=-1e4),
        "moe_shared_expert_intermediate_size": keys.natural("expert_shared_feed_forward_length", 0) or None,
    }
    for ours, theirs in (("expert", "exp"), ("share_expert", "shexp")):
        limits = keys.arch(keys.get, f"swiglu_clamp_{theirs}", None)
        values[f"{ours}_swiglu_limit_list"] = limits[:layers] if isinstance(limits, list) else limits


def _yarn(keys: Metadata, values: dict[str, Any], published: dict[str, Any]) -> None:
    """Adds rope_scaling or, where queries are scaled by their position, rope_parameters. Converters write 0.1
    * mscale_all_dim; mscale is the same in every published configuration, so that cosine and sine are left
    alone."""
    factor = keys.real("rope.scaling.factor")
    rope = {
        "type": keys.arch(keys.get, "rope.scaling.type"),
        "factor": factor,
        "original_max_position_embeddings": keys.natural("rope.scaling.original_context_length"),
        "beta_fast": keys.real("rope.scaling.yarn_beta_fast", published.get("beta_fast", 32.0)),
        "beta_slow": keys.real("rope.scaling.yarn_beta_slow", published.get("beta_slow", 1.0)),
    }
    # The converter of transformers' form leaves it out; the class has it.
    usual = MISTRAL4_BETA if keys.architecture == "mistral4" else 0.0
    beta = keys.real("attention.temperature_scale", usual)
    if beta or keys.architecture == "mistral4":
        rope |= {
            "rope_type": rope.pop("type"),
            "rope_theta": values.pop("rope_theta"),
            "attention_factor": 1.0,
            "mscale_all_dim": 0.0,
            "llama_4_scaling_beta": beta,
        }
        values |= {"model_type": "mistral4", "rope_parameters": rope}
        return
    log = keys.real("rope.scaling.yarn_log_multiplier", None)
    mscale = published.get("mscale_all_dim", 0.0) if log is None else round(10 * log, 6)
    values["rope_scaling"] = rope | {"mscale": mscale, "mscale_all_dim": mscale}


def _minicpm3(source: "Gguf", values: dict[str, Any]) -> dict[str, Any]:
    """Its scalings are constants in llama.cpp, and the factors of its rotation are tensors."""
    factors = {}
    for kind in ("long", "short"):
        tensor = source.tensors.pop(f"rope_factors_{kind}.weight", None)
        if tensor is None or tensor.dtype != "F32" or tensor.shape != (values["qk_rope_head_dim"] // 2,):
            raise ExportError(
                f"{source.directory}: tensor rope_factors_{kind}.weight is missing, "
                "or not one F32 number for each pair"
            )
        tensor.largest(0, 1)
        factors[f"{kind}_factor"] = [float(str(x)) for x in tensor.floats(0, 1)[0]]
    return {
        "model_type": "minicpm3",
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "rope_scaling": {
            "type": "longrope",
            "original_max_position_embeddings": values["max_position_embeddings"],
            **factors,
        },
    }
