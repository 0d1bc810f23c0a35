"""Reads a JSON object (or the metadata of a GGUF) key by key, with checks.

Every value is checked for its type and its range before it is used, and every key that was read is ticked
off, so that what is left at the end is what nobody understands. Which keys there are and what they mean is
config.py's and its neighbours'.
"""

from collections.abc import Callable, Collection
from typing import Any, NoReturn

from .errors import ExportError, printable

# The largest that ./run accepts (engine/config.c), far above any published model.
LIMITS = {
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "q_lora_rank": 1 << 17,
    "kv_lora_rank": 1 << 14,
    "qk_nope_head_dim": 1 << 12,
    "qk_rope_head_dim": 1 << 12,
    "v_head_dim": 1 << 12,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 24,
    "n_routed_experts": 1 << 10,
    "n_group": 64,
    "n_shared_experts": 64,
    "moe_intermediate_size": 1 << 17,
    "index_n_heads": 1 << 12,
    "index_head_dim": 1 << 12,
    "index_kpool": 64,
    "num_heads": 1 << 12,  # of linear attention
    "head_dim": 1 << 12,
    "short_conv_kernel_size": 16,
    "hc_mult": 16,
    "hc_sinkhorn_iters": 1000,
    "sliding_window": 1 << 14,
    "o_lora_rank": 1 << 17,
}

# What some refused keys mean, for a better message than "unknown".
MEANING = {
    "linear_attn_config": "linear attention layers",
    "layer_group_size": "linear attention layers",
    "sliding_window": "sliding window attention",
    "hc_mult": "hyper-connections",
    "ngram_vocab_size_ratio": "n-gram embeddings",
}

REQUIRED: Any = object()  # instead of a default: the key must be there


class Keys:
    """A JSON object whose keys are ticked off as they are read. null means that a key is absent."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        """`where`: the file and perhaps the block in it, for messages."""
        self.values, self.where, self.read = values, where, set[str]()
        self.absent = frozenset[str]()  # keys whose values are not the file's but its class's
        self.model_type = str(values.get("model_type") or "")

    def kind(self) -> str:
        """What the configuration calls its model, for messages."""
        return f" of {printable(self.model_type, 40)}" if self.model_type else ""

    def fail(self, key: str, what: str) -> NoReturn:
        value = printable(repr(self.values.get(key)), 60)
        raise ExportError(f"{self.where}: {key} is {value}: {what}")

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """The value; `default` if the key is absent."""
        self.read.add(key)
        value = self.values.get(key)
        if value is None and default is REQUIRED:
            raise ExportError(
                f"{self.where}: {key} is missing; is this a configuration{self.kind()} "
                "with multi-head latent attention?"
            )
        return default if value is None else value

    def integer(self, key: str, default: Any = REQUIRED, least: int = 1, most: int | None = None) -> Any:
        """An int from `least` to `most` (LIMITS, if it is not given)."""
        value = self.get(key, default)
        most = LIMITS.get(key, (1 << 31) - 1) if most is None else most
        if type(value) is float and value.is_integer():
            value = int(value)
        if value is not default and (type(value) is not int or not least <= value <= most):
            self.fail(key, f"an integer from {least} to {most} was expected")
        return value

    def number(self, key: str, default: Any = REQUIRED, least: float = 0.0, most: float = 1e30) -> Any:
        """A float from `least` to `most`."""
        value = self.get(key, default)
        if value is not default and (type(value) not in (int, float) or not least <= value <= most):
            self.fail(key, f"a number from {least:g} to {most:g} was expected")
        return value if value is default else float(value)

    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.get(key, default)
        if value is not default and type(value) is not bool:
            self.fail(key, "true or false was expected")
        return value

    def lenient(
        self, read: Callable[..., Any], key: str, default: Any, warn: Callable[[str], None], *limits: float
    ) -> Any:
        """What `read` (integer, number or boolean of this object) gives; `default` and a warning, where it
        would refuse."""
        try:
            return read(key, default, *limits)
        except ExportError as error:
            warn(f"{error}; left out")
            return default

    def one_of(self, key: str, *values: Any) -> Any:
        """The key must have one of `values`; the first is what absence means."""
        value = self.get(key, values[0])
        if value not in values or (type(value) is bool and values[0] is not value):
            self.fail(key, "only " + " or ".join(repr(v) for v in values) + " is supported")
        return value

    def refuse(self, key: str) -> NoReturn:
        meaning = f" ({MEANING[key]})" if key in MEANING else ""
        raise ExportError(
            f"{self.where}: key {printable(key)}{meaning} is not supported: "
            f"what it changes in the arithmetic{self.kind()} is not implemented"
        )

    def rename(self, other: str, key: str) -> None:
        """Reads `other` as another spelling of `key`."""
        if self.values.get(other) is None:
            return
        if self.values.get(key) not in (None, self.values[other]):
            self.fail(other, f"{key} says {printable(repr(self.values[key]), 60)}")
        self.values[key] = self.values.pop(other)

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Refuses the keys that were not read and are not harmless."""
        for key, value in self.values.items():
            if key not in self.read and key not in harmless and value is not None:
                self.refuse(key)
