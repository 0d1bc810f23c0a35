"""How evenly the weights of a token are shared among threads:  python doc/chain.py

Counts, and measures nothing. For DeepSeek-V3's shape with q4 weights and one token a step: the bytes that a
thread reads on average, and the longest chain, which adds the bytes of the thread that reads most from each
barrier to the next. A step cannot end before it. doc/performance.md shows what this prints.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exporter.shapes import SHAPES

PANEL = 16  # rows
Q4_BYTES, F32_BYTES = 576 / 1024, 4  # of a weight; a q4 block of 16 rows and 64 columns has 576 bytes
THREADS = (1, 8, 16, 64, 128)


class Part(NamedTuple):
    """What is shared out at once: thread i of t reads pieces count i / t to count (i + 1) / t."""

    count: int
    bytes: float


def matrix(rows: int, cols: int, weight: float = Q4_BYTES) -> Part:
    return Part(-(-rows // PANEL), PANEL * cols * weight)


def steps(c: dict) -> list[list[Part]]:
    """The parts of a token from barrier to barrier; c: config.json."""
    D, H, r, v = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"], c["v_head_dim"]
    n, p, ql = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["q_lora_rank"]
    M, K, E = c["moe_intermediate_size"], c["num_experts_per_tok"], c["n_routed_experts"]
    attention = [
        [matrix(ql, D), matrix(r + p, D)],
        [matrix(H * (n + p), ql)],
        [Part(H, n * r * Q4_BYTES)],
        [Part(H, v * r * Q4_BYTES)],
        [matrix(D, H * v)],
    ]
    hidden = lambda width: Part(width // 64, 2 * 64 * D * Q4_BYTES)  # of gate and up
    dense = [[hidden(c["intermediate_size"])], [matrix(D, c["intermediate_size"])]]
    chosen = K + c["n_shared_experts"]
    experts = [[matrix(E, D, F32_BYTES)], [hidden(chosen * M)], [matrix(D, M)] * chosen]
    layers = c["num_hidden_layers"]
    found = [
        step
        for layer in range(layers)
        for step in attention + (experts if layer >= c["first_k_dense_replace"] else dense)
    ]
    return [*found, [matrix(c["vocab_size"], D)]]


def loads(parts: list[Part], threads: int) -> list[float]:
    """Bytes of each thread."""
    return [
        sum((part.count * (i + 1) // threads - part.count * i // threads) * part.bytes for part in parts)
        for i in range(threads)
    ]


def main() -> None:
    found = steps(SHAPES["deepseek-v3"])
    print("| threads | bytes a thread, on average | the longest chain of bytes | longest / average |")
    print("|---:|---:|---:|---:|")
    for threads in THREADS:
        each = [loads(parts, threads) for parts in found]
        average, longest = sum(map(sum, each)) / threads, sum(map(max, each))
        print(f"| {threads} | {average / 1e9:#.3g} GB | {longest / 1e9:#.3g} GB | {longest / average:.2f} |")


if __name__ == "__main__":
    main()
