"""Reads SentencePiece models of byte-pair encoding with byte fallback: tokenizer.model, and the same
vocabulary in a GGUF file.

SentencePiece merges characters, over the whole text, by the score of the joined piece. That is byte-pair
encoding with every way to cut a piece into two pieces as a merge, ranked by score; what no piece spells is
written as bytes. Other kinds of models, and those that change the text more than by its spaces, are refused.
tokenizer.py chooses the reader.
"""

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .errors import printable
from .files import read_file
from .normalizer import SPACE, spaces
from .pretokenizer import UnsupportedTokenizer
from .ranks import added_tokens, check_lengths, tokenizer_config
from .section import PREFIX_FIRST, Added, Merge, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2  # TrainerSpec.model_type


MOST_FIELDS = 1 << 19  # of a message; the largest published model has 262,144 pieces


class Piece(NamedTuple):
    text: str
    score: float
    kind: int  # NORMAL ... BYTE


class Model(NamedTuple):
    """A tokenizer.model; trainer, normalizer: {field number: value}."""

    pieces: list[Piece]
    trainer: dict[int, Any]
    normalizer: dict[int, Any]


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value: int or bytes) of each field of a protobuf message. Raises ValueError, IndexError."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):  # of 64 bits at most
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("not a protobuf message")

    count = 0
    while at < len(data):
        key, count = varint(), count + 1
        if key < 8 or count > MOST_FIELDS:  # there is no field 0
            raise ValueError("not a protobuf message, or one of too many fields")
        kind = key & 7
        value: int | bytes | None = None
        if kind == 0:
            value = varint()
        elif kind in (1, 2, 5):
            size = {1: 8, 5: 4}.get(kind) or varint()
            value = data[at : at + size]
            at += size
        if value is None or at > len(data):
            raise ValueError("not a protobuf message")
        yield key >> 3, value


def read_model(path: Path) -> Model:
    model = list(fields(read_file(path)))
    pieces = []
    for piece in (dict(fields(value)) for number, value in model if number == 1):
        (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
        pieces.append(Piece(piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
    message = dict(model)
    return Model(pieces, dict(fields(message.get(2, b""))), dict(fields(message.get(3, b""))))


def decoded(text: str) -> bytes:
    """What a piece stands for."""
    return text.replace(SPACE, " ").encode("utf-8")


def merges(pieces: list[Piece]) -> list[Merge]:
    """All ways to make a piece out of two."""
    normal = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == NORMAL}
    known = {text for text, _, kind in pieces if kind in (NORMAL, USER_DEFINED)}
    if any(map(math.isnan, (score for _, score, _ in pieces))):
        raise UnsupportedTokenizer("a piece has a score that is not a number")
    rank = {score: n for n, score in enumerate(sorted({score for _, score, _ in pieces}, reverse=True))}
    found = []
    for i, (text, score, kind) in enumerate(pieces):
        cuts = [(text[:c], text[c:]) for c in range(1, len(text)) if kind in (NORMAL, UNUSED)]
        pairs = [
            Merge(normal[left], normal[right], i, rank[score])
            for left, right in cuts
            if left in normal and right in normal
        ]
        if (kind == UNUSED and pairs) or (kind == NORMAL and not known.issuperset(text)):
            raise UnsupportedTokenizer(
                f"the piece {printable(text)} is unused, or has a character that is no piece: not supported"
            )
        found += pairs
    return found


def sentencepiece(
    pieces: list[Piece],
    prefixed: bool,
    options: int = 0,
    added: Iterable[Added] = (),
    special: Iterable[int] = (),
) -> Tokenizer:
    """prefixed: a space is put before the text. options: as NormalForm has them. added: tokens of trusted
    text, beside those that the model itself reserves; user-defined pieces that are not among them are whole
    in any text. special: those of `added` that are marks and no text. Raises UnsupportedTokenizer."""
    check_lengths(text.encode("utf-8") for text, _, _ in pieces)
    tokens = {i: decoded(text) for i, (text, _, kind) in enumerate(pieces) if kind != UNUSED}
    bytes_ = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == BYTE}
    names = [f"<0x{b:02X}>" for b in range(256)]
    if any(name not in bytes_ for name in names):
        raise UnsupportedTokenizer("a SentencePiece model without byte fallback is not supported")
    tokens |= {bytes_[name]: bytes([b]) for b, name in enumerate(names)} | {a.id: a.text for a in added}
    reserved = {
        i: text
        for i, (text, _, kind) in enumerate(pieces)
        if kind in (UNKNOWN, CONTROL) and i not in {a.id for a in added}
    }
    added = [*added, *(Added(i, text.encode("utf-8"), False) for i, text in reserved.items())]
    own_place = {a.id for a in added}
    whole = [
        (i, text)
        for i, (text, _, kind) in enumerate(pieces)
        if kind == USER_DEFINED or (kind == NORMAL and len(text) == 1)
    ]
    units = [(text.encode("utf-8"), i) for i, text in whole if text and i not in own_place]
    form = spaces(prefixed, options)
    pairs = [m for m in merges(pieces) if m.id not in own_place]
    return Tokenizer(
        tokens,
        [bytes_[n] for n in names],
        pairs,
        [],
        added,
        {*special, *reserved},
        units=units,
        form=form,
        drop_space=prefixed,
    )


def read_sentencepiece(path: Path) -> Tokenizer:
    """tokenizer.model, with the added tokens of tokenizer_config.json. As in the Hugging Face library, text
    behind an added token gets a space before it like the begin of the text, unless the configuration says
    "legacy": false."""
    pieces, trainer, normalizer = read_model(path)
    if trainer.get(3, 1) != BPE or trainer.get(24):
        raise UnsupportedTokenizer(
            f"{path}: a SentencePiece model of another kind than byte-pair encoding is not supported"
        )
    if normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(5, 1):
        raise UnsupportedTokenizer(
            f"{path}: a SentencePiece model that normalizes text or removes spaces is not supported"
        )
    config = tokenizer_config(path.parent)
    tokens = added_tokens(config)
    added = [Added(t["id"], t["content"].encode("utf-8"), False) for t in tokens]
    prefixed = bool(normalizer.get(3, 1)) and config.get("add_prefix_space") is not False
    options = PREFIX_FIRST if config.get("legacy") is False else 0
    return sentencepiece(pieces, prefixed, options, added, {t["id"] for t in tokens if t.get("special")})
