"""What the q8 cache of ordinary attention loses beside llama.cpp's q8_0:  build/venv/bin/python doc/q8_0.py

Small random models of Llama's class, 250 tokens, two seeds. Printed is the KL divergence in nats from exact
attention: of ./run -k q8; of keys and values rounded as q8_0 rounds them; and of queries rounded so as well,
as llama.cpp does on a CPU. The last two are computed in double precision (tests/test_ordinary.py).
doc/study.md shows what this prints. Needs ./run and numpy, pytest.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import compare
from support import safetensors
from test_ordinary import divergence, q8_0, reference

HIDDEN, WIDTH, VOCABULARY, LAYERS, TOKENS, SEEDS = 64, 96, 64, 2, 250, 2
SHAPES = [(8, 2, 32), (4, 4, 32), (4, 1, 64), (4, 2, 128)]  # heads, groups, size of a head


def config(heads: int, groups: int, size: int) -> dict:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def weights(heads: int, groups: int, size: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    matrix = lambda rows, cols: (random.standard_normal((rows, cols)) / cols**0.5).astype(np.float32)
    norm = lambda: (1 + 0.2 * random.standard_normal(HIDDEN)).astype(np.float32)
    found = {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN) * HIDDEN**0.5,
        "lm_head.weight": matrix(VOCABULARY, HIDDEN),
        "model.norm.weight": norm(),
    }
    for layer in range(LAYERS):
        found |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": norm(),
                "post_attention_layernorm": norm(),
                "self_attn.q_proj": 2 * matrix(heads * size, HIDDEN),  # scores that tell rows apart
                "self_attn.k_proj": matrix(groups * size, HIDDEN),
                "self_attn.v_proj": matrix(groups * size, HIDDEN),
                "self_attn.o_proj": matrix(HIDDEN, heads * size),
                "mlp.gate_proj": matrix(WIDTH, HIDDEN),
                "mlp.up_proj": matrix(WIDTH, HIDDEN),
                "mlp.down_proj": matrix(HIDDEN, WIDTH),
            }.items()
        }
    return found


def losses(shape: tuple[int, int, int], seed: int, folder: Path) -> list[float]:
    random = np.random.default_rng(seed)
    values, tensors = config(*shape), weights(*shape, random)
    ids = random.integers(2, VOCABULARY, TOKENS)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(safetensors({k: ("F32", x) for k, x in tensors.items()}))
    compare.export(folder, folder / "model.bin", "--type", "f32", "--no-tokenizer")
    exact = reference(values, tensors, ids, lambda x: x)
    return [
        divergence(exact, compare.logits(folder / "model.bin", ids, "-k", "q8")),
        divergence(exact, reference(values, tensors, ids, q8_0)),
        divergence(exact, reference(values, tensors, ids, q8_0, q8_0)),
    ]


def main() -> None:
    print("| heads | groups | of | -k q8 | q8_0 of K and V | and of Q |")
    print("|---:|---:|---:|---:|---:|---:|")
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            mean = np.mean([losses(shape, seed, Path(folder)) for seed in range(SEEDS)], axis=0)
        print("| {} | {} | {} | {:.2e} | {:.2e} | {:.2e} |".format(*shape, *mean))


if __name__ == "__main__":
    main()
