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


def row_bytes(*parts: int) -> int:
    """Of `./run -k q8`: a byte for each number of the row's parts, a scale and a sum for each part."""
    return sum(-(-n // 4) * 4 + 8 for n in parts if n)


def cache_bytes(config: ModelConfig, tokens: int) -> int:
    """What `./run -k q8` keeps of so many tokens, without the constant part of linear attention: in each
    layer a row a token, and an index key where there is an indexer. Of a model with a window the rows in it,
    and for as many tokens as become one a row, in CSA layers with an index key."""
    layers = [i for i in range(config.num_hidden_layers) if not config.is_kda(i)]
    key = row_bytes(config.index_head_dim)
    if config.sliding_window:
        row = row_bytes(config.v_head_dim)
        csa = sum(map(config.is_csa, layers)) * (tokens // max(1, config.csa_ratio))
        hca = sum(map(config.is_hca, layers)) * (tokens // max(1, config.hca_ratio))
        return len(layers) * config.sliding_window * row + csa * (row + key) + hca * row
    row = row_bytes(config.kv_lora_rank, config.qk_rope_head_dim)
    if config.num_key_value_heads:
        row = config.num_key_value_heads * (row_bytes(config.qk_rope_head_dim) + row_bytes(config.v_head_dim))
    keys = tokens // max(1, config.index_kpool)
    return tokens * len(layers) * row + sum(map(config.has_indexer, layers)) * keys * key


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
