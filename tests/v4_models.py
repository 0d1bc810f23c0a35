"""A tiny model of DeepSeek-V4's form with one layer of each kind, made of random numbers: its configuration
and tensors as they are published, in BF16 or in FP4 and FP8, and as transformers has them. It computes
nothing sensible; what is judged with it is which numbers become which.

The names of transformers are those of its conversion_mapping.py, the packing is that of the published
inference/convert.py, both written down here a second time."""

import json
import re

import numpy as np
from support import safetensors, to_bf16

from exporter.sources import E4M3

CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "compress_ratios": [0, 4, 128, 0],
    "compress_rope_theta": 160000,
    "head_dim": 40,
    "hc_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hidden_act": "silu",
    "hidden_size": 64,
    "index_head_dim": 24,
    "index_n_heads": 2,
    "index_topk": 16,
    "max_position_embeddings": 1024,
    "moe_intermediate_size": 96,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hash_layers": 1,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 24,
    "q_lora_rank": 136,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 64,
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "vocab_size": 37,
}
QUANTIZED = {
    "expert_dtype": "fp4",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 += [-x for x in E2M1]

# Beginning or middle of a published name -> what transformers has there, one after the other.
RENAMED = (
    (r"^embed\.", "model.embed_tokens."),
    (r"^head\.", "lm_head."),
    (r"^norm\.", "model.norm."),
    (r"^hc_head_(\w+)$", r"model.hc_head.hc_\1"),
    (r"^layers\.", "model.layers."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.hc_(attn|ffn)_(\w+)$", r".\1_hc.\2"),
    (r"\.attn\.indexer\.compressor\.", ".self_attn.compressor.indexer."),
    (r"\.attn\.indexer\.weights_proj\.", ".self_attn.compressor.indexer.scorer.weights_proj."),
    (r"\.attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.attn_sink$", ".sinks"),
    (r"\.(compressor|indexer)\.norm\.", r".\1.kv_norm."),
    (r"\.ape$", ".position_bias"),
    (r"\.wkv\.", ".kv_proj."),
    (r"\.wgate\.", ".gate_proj."),
    (r"\.wq_a\.", ".q_a_proj."),
    (r"\.wq_b\.", ".q_b_proj."),
    (r"\.wo_a\.", ".o_a_proj."),
    (r"\.wo_b\.", ".o_b_proj."),
    (r"\.q_norm\.", ".q_a_norm."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.shared_experts\.w1\.", ".shared_experts.gate_proj."),
    (r"\.shared_experts\.w2\.", ".shared_experts.down_proj."),
    (r"\.shared_experts\.w3\.", ".shared_experts.up_proj."),
)


def shapes(c):
    """{published name: shape}"""
    D, H, d, ql, S = (
        c[k] for k in ("hidden_size", "num_attention_heads", "head_dim", "q_lora_rank", "hc_mult")
    )
    E, M, V, Hi, di = (
        c[k]
        for k in (
            "n_routed_experts", "moe_intermediate_size", "vocab_size", "index_n_heads", "index_head_dim"
        )
    )  # fmt: skip
    found = {"embed.weight": (V, D), "head.weight": (V, D), "norm.weight": (D,)}
    found |= {"hc_head_fn": (S, S * D), "hc_head_base": (S,), "hc_head_scale": (1,)}
    for i, ratio in enumerate(c["compress_ratios"]):
        at = f"layers.{i}." if i < c["num_hidden_layers"] else "mtp.0."
        attention = {
            "wq_a.weight": (ql, D), "q_norm.weight": (ql,), "wq_b.weight": (H * d, ql),
            "wkv.weight": (d, D), "kv_norm.weight": (d,), "attn_sink": (H,),
            "wo_a.weight": (c["o_groups"] * c["o_lora_rank"], H * d // c["o_groups"]),
            "wo_b.weight": (D, c["o_groups"] * c["o_lora_rank"]),
        }  # fmt: skip
        rows = {"compressor.": (d, 1 + (ratio == 4))} if ratio else {}
        if ratio == 4:
            rows |= {"indexer.compressor.": (di, 2)}
            attention |= {"indexer.wq_b.weight": (Hi * di, ql), "indexer.weights_proj.weight": (Hi, D)}
        for name, (n, halves) in rows.items():
            attention |= {
                f"{name}wkv.weight": (halves * n, D),
                f"{name}wgate.weight": (halves * n, D),
                f"{name}ape": (ratio, halves * n),
                f"{name}norm.weight": (n,),
            }
        found |= {f"{at}attn.{name}": shape for name, shape in attention.items()}
        found |= {f"{at}attn_norm.weight": (D,), f"{at}ffn_norm.weight": (D,)}
        for who in ("attn", "ffn"):
            found |= {
                f"{at}hc_{who}_fn": (S * (2 + S), S * D),
                f"{at}hc_{who}_base": (S * (2 + S),),
                f"{at}hc_{who}_scale": (3,),
            }
        found[f"{at}ffn.gate.weight"] = (E, D)
        if i < c["num_hash_layers"]:
            found[f"{at}ffn.gate.tid2eid"] = (V, c["num_experts_per_tok"])
        else:
            found[f"{at}ffn.gate.bias"] = (E,)
        for expert in [f"experts.{e}" for e in range(E)] + ["shared_experts"]:
            found |= {f"{at}ffn.{expert}.{w}.weight": (M, D) for w in ("w1", "w3")}
            found[f"{at}ffn.{expert}.w2.weight"] = (D, M)
        if at == "mtp.0.":
            found |= {f"{at}{name}.weight": (D,) for name in ("enorm", "hnorm", "norm")}
            found |= {f"{at}e_proj.weight": (D, D), f"{at}h_proj.weight": (D, D)}
    return found


def tensors(c, fp4=False):
    """{published name: (type, bits)}; fp4: experts and linears in the published numbers."""
    rng, found = np.random.default_rng(5), {}
    for name, shape in shapes(c).items():
        stem = name.removesuffix(".weight")
        x = rng.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        if name.endswith("tid2eid"):
            found[name] = "I32", rng.integers(0, c["n_routed_experts"], shape).astype(np.int32)
        elif fp4 and re.search(r"\.experts\.\d+\.", name):
            scale = rng.integers(100, 125, (shape[0], shape[1] // 32)).astype(np.uint8)
            found[name] = "I8", rng.integers(0, 256, (shape[0], shape[1] // 2)).astype(np.uint8).view(np.int8)
            found[f"{stem}.scale"] = "F8_E8M0", scale
        elif fp4 and re.search(r"\.(wq_a|wq_b|wkv|wo_a|wo_b|w[123])\.weight$", name) and "compr" not in name:
            found[name] = "F8_E4M3", rng.integers(0, 127, shape).astype(np.uint8)
            blocks = tuple(-(-n // 128) for n in shape)
            found[f"{stem}.scale"] = "F8_E8M0", rng.integers(110, 125, blocks).astype(np.uint8)
        elif re.search(r"(hc_\w+|attn_sink|ape|bias)$", name):
            found[name] = "F32", x
        else:
            found[name] = "BF16", to_bf16(x)
    return found


def fp4_numbers(packed, scale):
    """What FP4 stands for: the low nibble of a byte is the even column; one power of two for 32 columns."""
    packed, x = packed.view(np.uint8), np.zeros((packed.shape[0], 2 * packed.shape[1]))
    for j in range(x.shape[1]):
        code = packed[:, j // 2] >> 4 if j % 2 else packed[:, j // 2] & 15
        x[:, j] = np.array(E2M1)[code] * 2.0 ** (scale[:, j // 32].astype(float) - 127)
    return x


def numbers(found):
    """{name without the ending of a matrix: float32, or int32 of a table} of what tensors() gives."""
    out = {}
    for name, (kind, bits) in found.items():
        stem = name.removesuffix(".weight")
        if kind == "BF16":
            out[stem] = (bits.astype(np.uint32) << 16).view(np.float32)
        elif kind in ("F32", "I32"):
            out[stem] = bits
        elif kind == "I8":
            out[stem] = fp4_numbers(bits, found[f"{stem}.scale"][1]).astype(np.float32)
        elif kind == "F8_E4M3":
            scale = 2.0 ** (found[f"{stem}.scale"][1].astype(float) - 127)
            blocks = np.kron(scale, np.ones((128, 128)))[: bits.shape[0], : bits.shape[1]]
            out[stem] = (E4M3[bits] * blocks).astype(np.float32)
    return out


def own_config(c):
    """As transformers saves it."""
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    layers, part = c["num_hidden_layers"], c["qk_rope_head_dim"] / c["head_dim"]
    gone = ("compress_ratios", "num_hash_layers", "rope_scaling", "qk_rope_head_dim")
    yarn = {key: value for key, value in c["rope_scaling"].items() if key != "type"}
    return {key: value for key, value in c.items() if key not in gone} | {
        "layer_types": [kinds[ratio] for ratio in c["compress_ratios"][:layers]],
        "compress_rates": {kinds[4]: 4, kinds[128]: 128},
        "mlp_layer_types": ["hash_moe" if i < c["num_hash_layers"] else "moe" for i in range(layers)],
        "partial_rotary_factor": part,
        "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": part},
            "compress": {
                **yarn,
                "rope_type": "yarn",
                "attention_factor": 1.0,
                "rope_theta": c["compress_rope_theta"],
                "partial_rotary_factor": part,
            },
        },
        "router_jitter_noise": 0.0,
        "mlp_bias": False,
    }


def own_tensors(c, found):
    """The same tensors under transformers' names, experts in one tensor, without the layers for multi-token
    prediction."""
    out = {}
    for name, x in found.items():
        for published, ours in RENAMED:
            name = re.sub(published, ours, name)
        out[name] = x
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}.mlp.experts."
        w1, w2, w3 = (
            np.stack([out.pop(f"{at}{e}.{w}.weight")[1] for e in range(c["n_routed_experts"])])
            for w in ("w1", "w2", "w3")
        )
        out[f"{at}gate_up_proj"] = "BF16", np.concatenate([w1, w3], axis=1)
        out[f"{at}down_proj"] = "BF16", w2
    return {name: x for name, x in out.items() if not name.startswith("mtp.")}


def write(folder, config, found):
    """A directory of Hugging Face. What is None in the configuration is left out."""
    folder.mkdir(exist_ok=True)
    values = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(safetensors(found))
    return folder
