"""Reads tokenizers that are lists of ranked tokens, as tiktoken has them: tiktoken.model (Kimi),
qwen.tiktoken (OpenSeek), tekken.json (Mistral).

Such a tokenizer merges the adjacent pair whose joined bytes are the token with the lowest rank. That is
byte-pair encoding with every way to cut a token into two tokens as a merge of that rank, and so it is
compiled; a word that is a token is taken whole, as tiktoken does. Tokens of more than MAX_TOKEN_TEXT bytes
are refused: they have too many cuts. tokenizer.py chooses the reader.
"""

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import printable
from .files import read_file
from .normalizer import composed
from .patterns import PATTERNS
from .pretokenizer import UnsupportedTokenizer
from .section import MAX_TOKEN_TEXT, Added, Merge, NormalForm, Tokenizer

RESERVED = 256  # Kimi's ids behind the ranks
MAX_SPECIAL = 1 << 16  # special tokens of tekken.json; published ones have 1000


def check_lengths(tokens: Iterable[bytes]) -> None:
    """The longest published tokens have 128 bytes."""
    longest = max(map(len, tokens), default=0)
    if longest > MAX_TOKEN_TEXT:
        raise UnsupportedTokenizer(f"a token has {longest} bytes; {MAX_TOKEN_TEXT} are possible")


def rank_merges(ranks: dict[bytes, int]) -> list[Merge]:
    """Every cut of a token into two; ranks: {bytes: id}, the ids in the order of the ranks."""
    check_lengths(ranks)
    cuts = ((token[:i], token[i:], rank) for token, rank in ranks.items() for i in range(1, len(token)))
    return [
        Merge(ranks[left], ranks[right], rank, rank)
        for left, right, rank in cuts
        if left in ranks and right in ranks
    ]


def ranked(
    ranks: dict[bytes, int],
    patterns: list[str],
    special: dict[int, str],
    control: set[int] | None = None,
    form: NormalForm | None = None,
) -> Tokenizer:
    """The tokenizer of `ranks` ({bytes: id}) and special tokens ({id: text}), of which `control` (all, if
    None) are marks and no text."""
    if any(bytes([b]) not in ranks for b in range(256)):
        raise UnsupportedTokenizer("a list of ranks without all 256 bytes is not supported")
    if set(ranks.values()) & set(special):
        raise UnsupportedTokenizer("a special token has the id of another token")
    added = [Added(i, text.encode("utf-8"), form is not None) for i, text in special.items()]
    tokens = {i: token for token, i in ranks.items()} | {a.id: a.text for a in added}
    byte_id = [ranks[bytes([b])] for b in range(256)]
    special_ids = set(special if control is None else control)
    return Tokenizer(
        tokens, byte_id, rank_merges(ranks), patterns, added, special_ids, True, form=form or NormalForm()
    )


def read_ranks(path: Path) -> dict[bytes, int]:
    """{bytes: rank} of a file with a line `base64 rank` for each token."""
    lines = (line for line in read_file(path).splitlines() if line.strip())
    found = [re.fullmatch(rb"(\S+) (\d{1,8})\s*", line) for line in lines]
    matches = [match for match in found if match]
    if len(matches) < len(found) or not found:
        raise UnsupportedTokenizer(f"{path} is not a list of tokens in base64 with their ranks")
    return {base64.b64decode(f[1], validate=True): int(f[2]) for f in matches}


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} if there is none."""
    path = folder / "tokenizer_config.json"
    return json.loads(read_file(path).decode("utf-8")) if path.exists() else {}


def added_tokens(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a tokenizer_config.json's added_tokens_decoder as tokenizer.json writes them."""
    decoder = config.get("added_tokens_decoder") or {}
    return [token | {"id": int(i)} for i, token in decoder.items()]


def read_kimi(path: Path) -> Tokenizer:
    """All ids behind the ranks are special tokens to Kimi's encoder; what its configuration does not name is
    reserved."""
    ranks = read_ranks(path)
    names = {t["id"]: t for t in added_tokens(tokenizer_config(path.parent))}
    special = {
        i: names[i]["content"] if i in names else f"<|reserved_token_{i}|>"
        for i in range(len(ranks), len(ranks) + RESERVED)
    }
    control = {i for i in special if i not in names or names[i].get("special")}
    return ranked(ranks, PATTERNS["Kimi"], special, control)


def read_qwen(path: Path) -> Tokenizer:
    """Qwen's encoder composes the text before it looks for special tokens."""
    ranks = read_ranks(path)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    return ranked(ranks, PATTERNS["Qwen"], dict(enumerate(names, len(ranks))), form=composed())


# What the first versions of tekken.json do not say.
TEKKEN_SPECIAL = """<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS]
[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX]
[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]""".split()


def read_tekken(path: Path) -> Tokenizer:
    """The special tokens have the first ids, and the ranks follow, as many as the configuration counts."""
    data = json.loads(read_file(path).decode("utf-8"))
    config = data["config"]
    count = config["default_num_special_tokens"]
    if type(count) is not int or not 0 <= count <= MAX_SPECIAL:
        raise UnsupportedTokenizer(f"there are {printable(count)} special tokens; {MAX_SPECIAL} are possible")
    named = data.get("special_tokens") or [
        {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(TEKKEN_SPECIAL)
    ]
    special = {i: f"<SPECIAL_{i}>" for i in range(count)} | {t["rank"]: t["token_str"] for t in named}
    control = set(special) - {t["rank"] for t in named if not t["is_control"]}
    size = config["default_vocab_size"] - count
    ranks = {
        base64.b64decode(t["token_bytes"], validate=True): count + t["rank"]
        for t in data["vocab"]
        if t["rank"] < size
    }
    return ranked(ranks, [config["pattern"]], special, control)
