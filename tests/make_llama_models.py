"""Makes the tiny Llama models of tests/models: ordinary attention, each with other sizes and features, and
the logits that transformers computes in f32.

    python tests/make_llama_models.py [OUT]        needs torch and transformers
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROPE3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# hidden size, heads, groups, size of a head, MLP, vocabulary, tokens, and what else is special
MODELS = {
    "llama_mha": (40, 5, 5, 8, 72, 50, 80, {"rms_norm_eps": 1e-5}),
    "llama_gqa": (48, 4, 2, 32, 40, 40, 150, {}),
    "llama_mqa": (40, 20, 1, 10, 56, 24, 530, {"tie_word_embeddings": True}),
    "llama_rope3": (36, 9, 3, 14, 60, 50, 150, {"rope_theta": 500000.0, "rope_scaling": ROPE3}),
}


def make(folder, sizes, seed):
    hidden, heads, groups, size, width, vocabulary, tokens, special = sizes
    keys = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "intermediate_size": width,
        "vocab_size": vocabulary,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | special
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**keys, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
                if "embed" in name and not keys["tie_word_embeddings"]:
                    weight.mul_(hidden**0.5)
                if "q_proj" in name:
                    weight.mul_(2)  # scores that tell rows apart
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    published = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **keys}
    published |= {"attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(published) + "\n")

    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(seed))
    judge = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = judge(ids).logits[0].numpy()
    np.savez_compressed(folder / "expected.npz", ids=ids[0].numpy().astype(np.int32), logits=logits)
    print(f"{folder.name}: logits' spread {logits.std():.2f}")


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "models"
    for seed, (name, sizes) in enumerate(MODELS.items()):
        (out / name).mkdir(parents=True, exist_ok=True)
        make(out / name, sizes, seed)


if __name__ == "__main__":
    main()
