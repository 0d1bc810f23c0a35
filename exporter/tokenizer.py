"""Compiles a published tokenizer into the tokenizer section of model.bin, which the head of tokenizer.c describes.

It reads tokenizer.json of a Hugging Face directory, as far as models with Multi-head Latent Attention use it: byte-level BPE with a sequence of
splitting expressions (pretokenizer.py). What it does not know it refuses with UnsupportedTokenizer; nothing is guessed, because ids that are nearly right
give text that is nearly right.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exporter.errors import printable
from exporter.pretokenizer import UnsupportedTokenizer, compile_steps

TAG = 0x314B4F54  # "TOK1"
HEADER = struct.Struct("<16I")
NONE = 0xFFFFFFFF
MAX_IDS = 1 << 24
# What ByteLevel splits by itself if it is asked to (GPT-2's expression).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass
class Added:
    """A token that is matched in trusted text before anything else is done with it."""

    id: int
    text: bytes
    late: bool  # searched in what the others left over ("normalized" in tokenizer.json)


@dataclass
class Tokenizer:
    tokens: dict[int, bytes]  # what each id decodes to
    byte_id: list[int]  # [256], NONE where the vocabulary lacks a byte
    merges: list[tuple[int, int, int, int]]  # (left, right, id, rank)
    patterns: list[str] = field(default_factory=list)  # the pre-tokenizer's expressions, one step each
    added: list[Added] = field(default_factory=list)
    special: set[int] = field(default_factory=set)
    whole_words: bool = False  # a word that is a token is taken without merging


# ---- the section ---------------------------------------------------------------------------------------------------------------------


def padded(data):
    return data + bytes(-len(data) % 4)


def numbers(values):
    return np.asarray(values, "<u4").tobytes()


def starts(lengths):
    return numbers(np.concatenate([[0], np.cumsum(lengths)]))


def pack_merges(merges, vocabulary):
    """The pair (left, right) with the lowest rank counts where a pair comes twice."""
    best = {}
    for left, right, token, rank in merges:
        if rank < best.get((left, right), (NONE, 0))[0]:
            best[left, right] = (rank, token)
    rows = sorted((left, right, token, rank) for (left, right), (rank, token) in best.items())
    table = np.array(rows, np.int64).reshape(-1, 4)
    return len(rows), starts(np.bincount(table[:, 0], minlength=vocabulary)), numbers(table[:, 1:])


def pack_added(added, tokens, text, token_start):
    """The entries {start, bytes, id}; a text that differs from what the token decodes to is appended to `text`."""
    entries = []
    for a in sorted(added, key=lambda a: a.text):
        if tokens.get(a.id) == a.text:
            start = token_start[a.id]
        else:
            start = len(text)
            text += a.text
        entries.append((start, len(a.text), a.id))
    return numbers(entries)


def pack(t: Tokenizer) -> bytes:
    vocabulary = max(t.tokens) + 1
    if vocabulary > MAX_IDS:
        raise UnsupportedTokenizer(f"a token has the id {vocabulary - 1}; ids below {MAX_IDS} are possible")
    tokens = [t.tokens.get(i, b"") for i in range(vocabulary)]
    text = bytearray(b"".join(tokens))
    token_start = np.concatenate([[0], np.cumsum([len(x) for x in tokens])])
    passes = [[a for a in t.added if a.late == late and a.text] for late in (False, True)]
    added = [pack_added(p, t.tokens, text, token_start) for p in passes]
    flags = bytes(int(i in t.special) for i in range(vocabulary))
    own_place = {a.id for a in t.added}  # an added token is never the result of plain text
    by_text = [i for i in range(vocabulary) if t.whole_words and tokens[i] and i not in own_place]
    by_text.sort(key=lambda i: tokens[i])
    merge_count, merge_start, merges = pack_merges(t.merges, vocabulary)
    counts, pretokenizer = compile_steps(t.patterns)

    arrays = [numbers(token_start), bytes(text), flags, numbers(t.byte_id), merge_start, merges, numbers(by_text), *added, pretokenizer]
    body = b"".join(map(padded, arrays))
    header = HEADER.pack(TAG, HEADER.size + len(body), vocabulary, len(text), merge_count, len(by_text), *map(len, passes), *counts, 0, 0, 0, 0)
    return header + body


# ---- tokenizer.json ------------------------------------------------------------------------------------------------------------------


def byte_letters():
    """GPT-2's alphabet, in which tokenizer.json writes bytes: {letter: byte}. Printable bytes stand for themselves, the others follow from U+0100 on."""
    printable_bytes = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable_bytes]
    return {chr(b): b for b in printable_bytes} | {chr(0x100 + i): b for i, b in enumerate(others)}


LETTERS = byte_letters()


def spelled(token):
    """The bytes of a token: its letters', or, if it is not written in GPT-2's alphabet, its UTF-8."""
    if all(c in LETTERS for c in token):
        return bytes(LETTERS[c] for c in token)
    return token.encode("utf-8")


def read_normalizer(n):
    if n is not None and not (n.get("type") == "Sequence" and not n.get("normalizers")):
        raise UnsupportedTokenizer(f"the normalizer {printable(n.get('type'))} is not supported")


def read_pretokenizer(p):
    """The expressions of the steps in order; the last step is ByteLevel."""
    steps = p.get("pretokenizers", []) if p and p.get("type") == "Sequence" else [p] if p else []
    patterns = []
    for i, step in enumerate(steps):
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated":
            patterns.append(split_pattern(step["pattern"]))
        elif kind == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel" and i == len(steps) - 1 and not step.get("add_prefix_space"):
            return patterns + ([GPT2] if step.get("use_regex", True) else [])
        else:
            raise UnsupportedTokenizer(f"the pre-tokenizer's step {printable(kind)} {printable(step.get('behavior', ''))} is not supported")
    raise UnsupportedTokenizer("only byte-level tokenizers are supported (the pre-tokenizer must end in ByteLevel)")


def split_pattern(pattern):
    if "Regex" in pattern:
        return pattern["Regex"]
    return "".join("\\" + c if c.isascii() and not c.isalnum() else c for c in pattern["String"])


def check_model(model):
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedTokenizer(f"a tokenizer of type {printable(model['type'])} is not supported, only BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise UnsupportedTokenizer(f"{key} = {printable(model[key])} is not supported")


def read_merges(model, added):
    """(left, right, id, rank). A merge that would spell an added token is left out: plain text must not become one."""
    vocabulary, merges = model["vocab"], []
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if any(x not in vocabulary for x in (left, right, left + right)):
            raise UnsupportedTokenizer(f"the merge {printable(left)} {printable(right)} has parts that are not in the vocabulary")
        if vocabulary[left + right] not in added:
            merges.append((vocabulary[left], vocabulary[right], vocabulary[left + right], rank))
    return merges


def read_added(tokens, vocabulary):
    """The entries of added_tokens, and the ids of those that are special."""
    for t in tokens:
        if t.get("single_word") or t.get("lstrip") or t.get("rstrip"):
            raise UnsupportedTokenizer(f"the added token {printable(t['content'])} with single_word, lstrip or rstrip is not supported")
        if vocabulary.get(t["content"], t["id"]) != t["id"]:
            raise UnsupportedTokenizer(f"the added token {printable(t['content'])} has two ids")
    added = [Added(t["id"], t["content"].encode("utf-8"), t.get("normalized", not t.get("special"))) for t in tokens]
    return added, {t["id"] for t in tokens if t.get("special")}


def read_tokenizer_json(path: Path) -> Tokenizer:
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    check_model(model)
    read_normalizer(data.get("normalizer"))
    patterns = read_pretokenizer(data.get("pre_tokenizer"))
    vocabulary = model["vocab"]
    added, special = read_added(data.get("added_tokens", []), vocabulary)
    own_place = {a.id for a in added}
    tokens = {i: spelled(token) for token, i in vocabulary.items()}
    tokens |= {t["id"]: spelled(t["content"]) for t in data.get("added_tokens", [])}
    if not tokens or not all(type(i) is int and 0 <= i < MAX_IDS for i in tokens):
        raise UnsupportedTokenizer(f"{path} has no vocabulary, or ids that are not numbers below {MAX_IDS}")
    # Where the vocabulary has no token for a byte that UTF-8 never uses, an added token may be written as that byte's letter.
    letters = {t["content"]: t["id"] for t in data.get("added_tokens", [])} | vocabulary
    byte_id = [letters.get(letter, NONE) for letter, _ in sorted(LETTERS.items(), key=lambda item: item[1])]
    return Tokenizer(tokens, byte_id, read_merges(model, own_place), patterns, added, special, bool(model.get("ignore_merges")))


def compile_tokenizer(directory) -> bytes | None:
    """The tokenizer section of the Hugging Face directory; None if it has no tokenizer. Raises UnsupportedTokenizer."""
    path = Path(directory) / "tokenizer.json"
    if not path.exists():
        return None
    try:
        return pack(read_tokenizer_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {printable(error)}"
        raise UnsupportedTokenizer(f"{path} is not a tokenizer.json as the Hugging Face library writes it ({what})") from error
