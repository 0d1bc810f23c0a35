"""What transformers calls a tensor that a published file calls otherwise: plan.py knows one name of each.

Names of whole models alone: what a language model inside a larger one is called is in sources.py, and the
names of GGUF and of Mistral's own files are gguf_config.py's and mistral.py's.
"""

import re

# How a tensor may be called, and what transformers calls it in most models: beginning or middle of a name.
SPELLINGS = (
    # Ling-3.0
    (re.compile(r"^model\.word_embeddings\."), "model.embed_tokens."),
    (re.compile(r"(?<=\d)\.attention\."), ".self_attn."),
    (re.compile(r"\.dense\.weight"), ".o_proj.weight"),
    (re.compile(r"\.gate\.expert_bias$"), ".gate.e_score_correction_bias"),
    # Kimi-Linear
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (re.compile(r"(?<=\d)\.w1\."), ".gate_proj."),
    (re.compile(r"(?<=\d)\.w2\."), ".down_proj."),
    (re.compile(r"(?<=\d)\.w3\."), ".up_proj."),
    # GLM-5.3-Flash; the second one is transformers' own
    (re.compile(r"\.hc_(attn|ffn)_(fn|base|scale)$"), r".\1_hc.\2"),
    (re.compile(r"\.forget_gate\."), "."),
)

# DeepSeek-V4's tensors, of the model and of a layer. Where transformers saves the published names it changes
# some of them ("model." in front, attn.norm for attn.kv_norm).
V4_TOP = {
    "embed": "model.embed_tokens",
    "head": "lm_head",
    "norm": "model.norm",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}
V4_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "hc_attn_fn": "attn_hc.fn",
    "hc_attn_base": "attn_hc.base",
    "hc_attn_scale": "attn_hc.scale",
    "hc_ffn_fn": "ffn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
    "attn.wq_a": "self_attn.q_a_proj",
    "attn.q_norm": "self_attn.q_a_norm",
    "attn.wq_b": "self_attn.q_b_proj",
    "attn.wkv": "self_attn.kv_proj",
    "attn.kv_norm": "self_attn.kv_norm",
    "attn.norm": "self_attn.kv_norm",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wo_a": "self_attn.o_a_proj",
    "attn.wo_b": "self_attn.o_b_proj",
    "attn.compressor.wkv": "self_attn.compressor.kv_proj",
    "attn.compressor.wgate": "self_attn.compressor.gate_proj",
    "attn.compressor.norm": "self_attn.compressor.kv_norm",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.indexer.wq_b": "self_attn.compressor.indexer.q_b_proj",
    "attn.indexer.weights_proj": "self_attn.compressor.indexer.scorer.weights_proj",
    "attn.indexer.compressor.wkv": "self_attn.compressor.indexer.kv_proj",
    "attn.indexer.compressor.wgate": "self_attn.compressor.indexer.gate_proj",
    "attn.indexer.compressor.norm": "self_attn.compressor.indexer.kv_norm",
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "ffn.gate": "mlp.gate",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
}
V4_EXPERT = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
# What a matrix of it ends in: the numbers, or the scales of their groups. Others end in nothing.
V4_ENDINGS = {".weight": ".weight", ".scale": ".weight_scale", "": ""}


def _of_v4(name: str) -> str | None:
    """The name of a tensor of DeepSeek-V4; None of another, and of one that has transformers' name."""
    part, place, known = name.removeprefix("model."), "", V4_TOP
    layer = re.match(r"layers\.\d{1,9}\.", part)
    if layer:
        part, place, known = part[layer.end() :], f"model.{layer.group()}", V4_LAYER
    expert = re.match(r"ffn\.((?:experts\.\d{1,9}|shared_experts)\.)", part) if layer else None
    if expert:
        part, place, known = part[expert.end() :], f"{place}mlp.{expert.group(1)}", V4_EXPERT
    for ending, ours in V4_ENDINGS.items():
        stem = part.removesuffix(ending)
        if part.endswith(ending) and stem in known:
            return place + known[stem] + ours
    return None


def usual_name(name: str) -> str | None:
    """What plan.py looks for under the tensor's name; None if that is of DeepSeek-V4's layers for multi-token
    prediction, which are not read."""
    if re.match(r"mtp\.\d{1,9}\.", name):
        return None
    found = _of_v4(name)
    if found:
        return found
    for spelling, usual in SPELLINGS:
        name = spelling.sub(usual, name)
    return name
