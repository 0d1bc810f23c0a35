"""Makes tests/models/sandwich with transformers; nothing in it comes from this project's own code.

    pip install torch transformers==5.23.0
    python tests/make_sandwich_model.py

openPangu-Ultra-MoE has no class in transformers. Its layer is DeepSeek-V3's with two more norms: of what
attention gives and of what the MLP gives, before either is added to the residual stream. Its router is V3's
without correction bias and groups. So the judge is DeepSeek-V3's class with the two norms patched in;
config.json and the tensors' names are as openPangu publishes them (post_attention_layernorm is the norm of
what attention gives, pre_mlp_layernorm the one before the MLP)."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "models" / "sandwich"
LENGTH = 60
CONFIG = {
    "architectures": ["PanguUltraMoEForCausalLM"],
    "model_type": "pangu_ultra_moe",
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 40,
    "kv_lora_rank": 16,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 16,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 25600000,
    "routed_scaling_factor": 2.5,
    "sandwich_norm": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "v_head_dim": 16,
    "vocab_size": 64,
}


def make(torch, DeepseekV3Config, DeepseekV3ForCausalLM):
    torch.manual_seed(718)
    unread = ("architectures", "model_type", "sandwich_norm", "torch_dtype")
    config = DeepseekV3Config(
        **{k: v for k, v in CONFIG.items() if k not in unread}, n_group=1, topk_group=1, rope_scaling=None
    )
    config._attn_implementation = "eager"
    model = DeepseekV3ForCausalLM(config).float().eval()

    def norm():
        return type(model.model.norm)(config.hidden_size, config.rms_norm_eps)

    for layer in model.model.layers:
        layer.attention_out_norm, layer.mlp_out_norm = norm(), norm()
        layer.self_attn.register_forward_hook(
            lambda _, inputs, output, layer=layer: (layer.attention_out_norm(output[0]), *output[1:])
        )
        layer.mlp.register_forward_hook(lambda _, inputs, output, layer=layer: layer.mlp_out_norm(output))
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            x.zero_()
        elif "norm" in name:
            x.copy_(1 + 0.2 * torch.randn_like(x))
        elif x.dim() > 1:
            x.copy_(torch.randn_like(x) * 1.4 / x.shape[-1] ** 0.5)
        x.copy_(x.bfloat16().float()) if "inv_freq" not in name else None
    ids = torch.randint(0, config.vocab_size, (LENGTH,))
    return model, ids, model(ids[None]).logits[0]


def published(name):
    for ours, theirs in (
        ("post_attention_layernorm", "pre_mlp_layernorm"),
        ("attention_out_norm", "post_attention_layernorm"),
        ("mlp_out_norm", "post_mlp_layernorm"),
    ):
        if ours in name:
            return name.replace(ours, theirs)
    return name


def tensors(model):
    """Under their published names, every expert's matrices apart."""
    for name, x in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            continue
        if name.endswith("gate_up_proj"):
            for e, both in enumerate(x):
                for part, half in zip(("gate", "up"), both.chunk(2), strict=True):
                    yield name.replace("gate_up_proj", f"{e}.{part}_proj.weight"), half
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(x):
                yield name.replace("down_proj", f"{e}.down_proj.weight"), down
        else:
            yield published(name), x


def main():
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    with torch.no_grad():
        model, ids, logits = make(torch, DeepseekV3Config, DeepseekV3ForCausalLM)
        weights = {name: x.bfloat16().contiguous() for name, x in tensors(model)}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    save_file(weights, FOLDER / "model.safetensors", metadata={"format": "pt"})
    np.savez_compressed(FOLDER / "expected.npz", ids=ids.int().numpy(), logits=logits.float().numpy())


if __name__ == "__main__":
    main()
