"""What --check says of a source: what it is, what of it goes into the checkpoint, what is not there, and how
large the file and the memory become with each type. Reads no weight."""

from collections import Counter
from collections.abc import Mapping

from .config import ModelConfig
from .errors import printable
from .plan import Entry, parameters
from .sources import Source
from .writer import Front

CONTEXT = 32768  # tokens for which the cache is counted, or as many as the model takes


def cache_bytes(config: ModelConfig, tokens: int) -> int:
    """Of `./run -k q8`: for each layer and token a byte for each number of the row and two f32 scales, and
    where there is an indexer its key in bf16."""
    layers = config.num_hidden_layers
    row = config.kv_lora_rank + config.qk_rope_head_dim + 8
    indexers = sum(config.has_indexer(i) for i in range(layers)) if config.index_n_heads else 0
    return tokens * (layers * row + indexers * 2 * config.index_head_dim)


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def report(
    config: ModelConfig, source: Source, front: Front, entries: list[Entry], sizes: Mapping[str, int]
) -> list[str]:
    """The lines. sizes: {type: bytes of the file}."""
    kinds = Counter(tensor.dtype for tensor in source.tensors.values())
    stored = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
    experts = f", {config.n_routed_experts} experts" if config.n_routed_experts else ""
    tokens = min(CONTEXT, config.max_position_embeddings)
    cache = cache_bytes(config, tokens)
    mtp = any(entry.name.startswith("mtp.") for entry in entries)
    missing = "none: --ids is then the only prompt"
    rows = {
        "model": f"{printable(config.name.decode())}: {config.num_hidden_layers} layers{experts}",
        "parameters": f"{parameters(entries):,}",
        "source": f"{len(source.files)} file(s), {size(sum(f.size for f in source.files))}: {stored}",
        "tokenizer": f"{len(front.tokenizer):,} bytes" if front.tokenizer else missing,
        "chat template": f"{len(front.chat):,} bytes" if front.chat else "none: --chat is refused",
        "MTP layer": "taken" if mtp else "not taken (--mtp)",
        "context": f"{config.max_position_embeddings} tokens; {tokens} take {size(cache)} with -k q8",
    }
    lines = [f"{name:14s} {text}" for name, text in rows.items()]
    lines.append(f"{'--type':14s} {'file':>10s} {f'with {tokens} tokens':>20s}")
    for name, count in sizes.items():
        lines.append(f"{name:14s} {size(count):>10s} {size(count + cache):>20s}")
    return lines
