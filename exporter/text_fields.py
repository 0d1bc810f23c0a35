"""The fields of Config that are about text: begin and end tokens, and the defaults of sampling.

They are in generation_config.json and tokenizer_config.json, and older models have them in config.json. A
wrong end token lets a text run on, so these are strict. A strange default of sampling is no reason to lose an
export: it costs a warning and is left out.
"""

import os
from collections.abc import Mapping
from typing import Any

from .errors import warn
from .keys import Keys
from .sources import read_json

END_TOKENS = 8  # as many as Config holds


def text_fields(values: Mapping[str, Any], vocab_size: int, directory: str | None = None) -> dict[str, Any]:
    """{field of Config: value}. `values`: config.json; `directory`: where generation_config.json and
    tokenizer_config.json may be (None: nowhere). ExportError where a token is not in the vocabulary."""
    path = os.path.join(directory, "generation_config.json") if directory else "generation_config.json"
    generation = Keys(read_json(path, required=False) if directory else {}, path)
    model, last = Keys(dict(values), "config.json"), vocab_size - 1
    bos = generation.integer("bos_token_id", model.integer("bos_token_id", -1, 0, last), 0, last)
    fields = {"bos_token_id": bos, "add_bos_token": int(_adds_begin(model, directory) and bos >= 0)}
    ends = _ends(generation if generation.get("eos_token_id", None) is not None else model, last)
    fields |= {"eos_tokens": len(ends), "eos_token_id": ends + [0] * (END_TOKENS - len(ends))}
    return fields | _sampling(generation)


def _adds_begin(model: Keys, directory: str | None) -> bool:
    path = os.path.join(directory, "tokenizer_config.json") if directory else ""
    if os.path.exists(path):
        return bool(Keys(read_json(path), path).boolean("add_bos_token", False))
    return bool(model.boolean("add_bos_token", True))


def _ends(keys: Keys, last: int) -> list[int]:
    ends = keys.get("eos_token_id", [])
    ends = ends if isinstance(ends, list) else [ends]
    if len(ends) > END_TOKENS or any(type(token) is not int or not 0 <= token <= last for token in ends):
        keys.fail("eos_token_id", f"at most {END_TOKENS} token ids from 0 to {last} were expected")
    return ends


def _sampling(keys: Keys) -> dict[str, Any]:
    """The defaults of sampling. top_k -1 is the usual spelling of "off"."""

    def number(key: str, default: float, least: float, most: float) -> float:
        return float(keys.lenient(keys.number, key, default, warn, least, most))

    if keys.values.get("top_k") == -1:
        keys.values["top_k"] = 0
    sampled = keys.lenient(keys.boolean, "do_sample", True, warn)
    return {
        "temperature": number("temperature", 0.8, 0, 1e4) if sampled else 0.0,
        "top_p": number("top_p", 0.95, 1e-6, 1),
        "top_k": keys.lenient(keys.integer, "top_k", 0, warn, 0),
        "min_p": number("min_p", 0.0, 0, 1),
        "repetition_penalty": number("repetition_penalty", 0.0, 0.01, 100),  # 0: not given
    }
