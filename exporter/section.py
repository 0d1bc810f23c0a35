"""The tokenizer section of model.bin, as engine/section.h describes it: Tokenizer is what the readers
(tokenizer.py) make of a source, pack() its bytes."""

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .pretokenizer import UnsupportedTokenizer, compile_steps

TAG = 0x324B4F54  # "TOK2"
HEADER = struct.Struct("<17I")
NONE = 0xFFFFFFFF
MAX_IDS = 1 << 24
MAX_TOKEN_TEXT = 1024  # bytes of an added token or a unit; the same limit as in engine/section.h
PREFIX_FIRST, PREFIX_ONCE, NORMALIZE_LAST, DROP_SPACE = 1, 2, 4, 8


class Merge(NamedTuple):
    left: int
    right: int
    id: int
    rank: int


@dataclass(frozen=True)
class Added:
    """A token that is matched in trusted text before anything else is done with it."""

    id: int
    text: bytes
    late: bool  # searched in what the others left over ("normalized" in tokenizer.json)


class Replacement(NamedTuple):
    """What becomes of the character `code`."""

    code: int
    order: int  # its combining class
    check: int  # 1: a text with it may not be in the normal form
    to: list[int]  # at most 4 codes


class Composition(NamedTuple):
    first: int
    second: int
    code: int


@dataclass(frozen=True)
class NormalForm:
    """What is done with text before it is cut into words (engine/unicode.h); normalizer.py makes it."""

    replacements: list[Replacement] = field(default_factory=list)
    compositions: list[Composition] = field(default_factory=list)
    prefix: int = 0  # a code point put before the text; 0: none
    options: int = 0  # PREFIX_FIRST, PREFIX_ONCE, NORMALIZE_LAST


@dataclass(frozen=True)
class Tokenizer:
    tokens: dict[int, bytes]  # what each id decodes to
    byte_id: list[int]  # [256], NONE where the vocabulary lacks a byte
    merges: list[Merge]
    patterns: list[str] = field(default_factory=list)  # the pre-tokenizer's expressions, one step each
    added: list[Added] = field(default_factory=list)
    special: set[int] = field(default_factory=set)
    whole_words: bool = False  # a word that is a token is taken without merging
    units: list[tuple[bytes, int]] = field(
        default_factory=list
    )  # what is spelled by one id and is no single byte
    form: NormalForm = field(default_factory=NormalForm)
    drop_space: bool = False  # decoding leaves out a space at the begin of a text


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def numbers(values: npt.ArrayLike) -> bytes:
    return np.asarray(values, "<u4").tobytes()


def starts(lengths: npt.ArrayLike) -> bytes:
    return numbers(np.concatenate([[0], np.cumsum(lengths)]))


class PackedMerges(NamedTuple):
    rows: int
    start: bytes
    merges: bytes


def pack_merges(merges: list[Merge], vocabulary: int) -> PackedMerges:
    """Where a pair (left, right) comes twice, the lowest rank counts, and the first of equal ones."""
    table = np.array(merges, np.int64).reshape(-1, 4)
    table = table[np.lexsort((table[:, 3], table[:, 1], table[:, 0]))]
    again = (np.diff(table[:, :2], axis=0, prepend=-1) == 0).all(axis=1)
    table = table[~again]
    first = starts(np.bincount(table[:, 0], minlength=vocabulary))
    return PackedMerges(len(table), first, numbers(table[:, 1:]))


def pack_texts(
    texts: list[tuple[bytes, int]], tokens: dict[int, bytes], text: bytearray, token_start: np.ndarray
) -> bytes:
    """The entries {start, bytes, id} of a table; a text that differs from what the token decodes to is
    appended to `text`."""
    entries = []
    for bytes_, token in sorted(texts):
        if len(bytes_) > MAX_TOKEN_TEXT:
            raise UnsupportedTokenizer(
                f"token {token} has {len(bytes_)} bytes; an added token or a unit has at most "
                f"{MAX_TOKEN_TEXT}"
            )
        if tokens.get(token) == bytes_:
            start = int(token_start[token])
        else:
            start = len(text)
            text += bytes_
        entries.append((start, len(bytes_), token))
    return numbers(entries)


def pack_form(form: NormalForm) -> tuple[bytes, bytes]:
    replacements = [
        (code, order, check, *to, *[0] * (4 - len(to)))
        for code, order, check, to in sorted(form.replacements)
    ]
    return numbers(replacements), numbers(sorted(form.compositions))


def pack(t: Tokenizer) -> bytes:
    vocabulary = max(t.tokens) + 1
    if min(t.tokens) < 0 or vocabulary > MAX_IDS:
        raise UnsupportedTokenizer(
            f"tokens have ids from {min(t.tokens)} to {vocabulary - 1}; 0 to {MAX_IDS - 1} are possible"
        )
    tokens = [t.tokens.get(i, b"") for i in range(vocabulary)]
    text = bytearray(b"".join(tokens))
    token_start = np.concatenate([[0], np.cumsum([len(x) for x in tokens])])
    tables = [[(a.text, a.id) for a in t.added if a.late == late and a.text] for late in (False, True)] + [
        t.units
    ]
    texts = [pack_texts(table, t.tokens, text, token_start) for table in tables]
    flags = bytes(int(i in t.special) for i in range(vocabulary))
    own_place = {a.id for a in t.added}  # an added token is never the result of plain text
    by_text = [i for i in range(vocabulary) if t.whole_words and tokens[i] and i not in own_place]
    by_text.sort(key=lambda i: tokens[i])
    merge_count, merge_start, merges = pack_merges(t.merges, vocabulary)
    counts, pretokenizer = compile_steps(t.patterns)
    form = [
        len(t.form.replacements),
        len(t.form.compositions),
        t.form.prefix,
        t.form.options | t.drop_space * DROP_SPACE,
    ]

    arrays = [
        numbers(token_start),
        bytes(text),
        flags,
        numbers(t.byte_id),
        merge_start,
        merges,
        numbers(by_text),
        *texts,
        *pack_form(t.form),
    ]
    arrays.append(pretokenizer)
    body = b"".join(map(padded, arrays))
    header = HEADER.pack(
        TAG,
        HEADER.size + len(body),
        vocabulary,
        len(text),
        merge_count,
        len(by_text),
        *map(len, tables),
        *form,
        *counts,
    )
    return header + body
