"""Compiles a published tokenizer into the tokenizer section of model.bin (section.py and engine/section.h).

It reads tokenizer.json of a Hugging Face directory, as far as models with Multi-head Latent Attention use it:
BPE of bytes with a sequence of splitting expressions (pretokenizer.py), and SentencePiece's BPE of
characters. Where there is no tokenizer.json, ranks.py and sentencepiece.py read the formats of other
libraries; GGUF metadata is brought into the form of tokenizer.json. What is not known is refused with
UnsupportedTokenizer; nothing is guessed, because ids that are nearly right give text that is nearly right.

A source decides how much work its tokenizer is. bounded_tokenizer() therefore compiles in a child process,
whose limits grow with the source's size.
"""

import json
import os
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from .bounded import run_bounded
from .errors import printable
from .files import FILE_LIMIT, read_file
from .ids import check_ids
from .normalizer import SPACE, composed, spaces
from .patterns import PATTERNS
from .pretokenizer import UnsupportedTokenizer
from .ranks import check_lengths, rank_merges, read_kimi, read_qwen, read_tekken, tokenizer_config
from .section import (
    MAX_IDS,
    NONE,
    NORMALIZE_LAST,
    PREFIX_FIRST,
    PREFIX_ONCE,
    Added,
    Merge,
    NormalForm,
    Tokenizer,
    pack,
)
from .sentencepiece import Piece, decoded, read_sentencepiece, sentencepiece

# ---- tokenizer.json


def byte_letters() -> dict[str, int]:
    """GPT-2's alphabet, in which tokenizer.json writes bytes: {letter: byte}. Printable bytes stand for
    themselves, the others follow from U+0100 on."""
    printable_bytes = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable_bytes]
    return {chr(b): b for b in printable_bytes} | {chr(0x100 + i): b for i, b in enumerate(others)}


LETTERS = byte_letters()
MAX_GAP = 1 << 18  # ids without a token, beside one for each that has one


def spelled(token: str) -> bytes:
    """The bytes of a token: its letters', or, if it is not written in GPT-2's alphabet, its UTF-8."""
    if all(c in LETTERS for c in token):
        return bytes(LETTERS[c] for c in token)
    return token.encode("utf-8")


def read_normalizer(n: dict[str, Any] | None) -> tuple[NormalForm, Callable[[str], str]]:
    """(the normal form, what it makes of a text)."""
    steps = n.get("normalizers", []) if n and n.get("type") == "Sequence" else [n] if n else []
    kinds = [step.get("type") for step in steps]
    if not steps:
        return NormalForm(), str
    if kinds == ["NFC"]:
        return composed(), lambda text: unicodedata.normalize("NFC", text)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if steps == [space]:
        return spaces(False), lambda text: text.replace(" ", SPACE)
    if steps == [{"type": "Prepend", "prepend": SPACE}, space]:
        return spaces(True), lambda text: SPACE + text.replace(" ", SPACE)
    raise UnsupportedTokenizer(f"the normalizer {printable(' '.join(map(str, kinds)))} is not supported")


def read_pretokenizer(p: dict[str, Any] | None) -> list[str]:
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
            return patterns + (PATTERNS["GPT-2"] if step.get("use_regex", True) else [])
        else:
            what = f"{printable(kind)} {printable(step.get('behavior', ''))}"
            raise UnsupportedTokenizer(f"the pre-tokenizer's step {what} is not supported")
    raise UnsupportedTokenizer(
        "only byte-level tokenizers are supported (the pre-tokenizer must end in ByteLevel)"
    )


def split_pattern(pattern: dict[str, Any]) -> str:
    """The expression of a Split."""
    if "Regex" in pattern:
        regex: str = pattern["Regex"]
        return regex
    return "".join("\\" + c if c.isascii() and not c.isalnum() else c for c in pattern["String"])


def check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedTokenizer(
            f"a tokenizer of type {printable(model['type'])} is not supported, only BPE"
        )
    other = ("unk_token",) if not model.get("byte_fallback") else ("ignore_merges",)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", *other):
        if model.get(key):
            raise UnsupportedTokenizer(f"{key} = {printable(model[key])} is not supported")


def read_merges(model: dict[str, Any], added: set[int]) -> list[Merge]:
    """A merge that would spell an added token is left out: plain text must not become one."""
    vocabulary, merges = model["vocab"], []
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if any(x not in vocabulary for x in (left, right, left + right)):
            raise UnsupportedTokenizer(
                f"the merge {printable(left)} {printable(right)} has parts that are not in the vocabulary"
            )
        if vocabulary[left + right] not in added:
            merges.append(Merge(vocabulary[left], vocabulary[right], vocabulary[left + right], rank))
    return merges


def read_added(
    tokens: list[dict[str, Any]], vocabulary: dict[str, int], normal: Callable[[str], str]
) -> tuple[list[Added], set[int]]:
    """The entries of added_tokens, and the ids of those that are special. `normal`: what the normal form
    makes of a text."""
    for t in tokens:
        if t.get("single_word") or t.get("lstrip") or t.get("rstrip"):
            what = f"the added token {printable(t['content'])} with single_word, lstrip or rstrip"
            raise UnsupportedTokenizer(f"{what} is not supported")
        if vocabulary.get(t["content"], t["id"]) != t["id"]:
            raise UnsupportedTokenizer(f"the added token {printable(t['content'])} has two ids")
    added = []
    for t in tokens:
        late = t.get("normalized", not t.get("special"))
        check_lengths([t["content"].encode("utf-8")])
        added.append(Added(t["id"], (normal(t["content"]) if late else t["content"]).encode("utf-8"), late))
    return added, {t["id"] for t in tokens if t.get("special")}


def read_bytes(
    data: dict[str, Any], vocabulary: dict[str, int], added_tokens: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is particular to BPE of bytes, written in GPT-2's alphabet."""
    # Where the vocabulary has no token for a byte that UTF-8 never uses, an added token may be written as
    # that byte's letter.
    letters = {t["content"]: t["id"] for t in added_tokens} | vocabulary
    byte_id = [letters.get(letter, NONE) for letter, _ in sorted(LETTERS.items(), key=lambda item: item[1])]
    return {
        "byte_id": byte_id,
        "patterns": read_pretokenizer(data.get("pre_tokenizer")),
        "whole_words": bool(data["model"].get("ignore_merges")),
    }


def read_metaspace(p: dict[str, Any] | None, form: NormalForm) -> NormalForm:
    """The normal form of a tokenizer of characters, if its pre-tokenizer and not its normalizer makes it."""
    if p is None:
        return form
    # Older files say add_prefix_space instead of prepend_scheme.
    scheme = p.get("prepend_scheme") or ("always" if p.get("add_prefix_space", True) else "never")
    if (
        p.get("type") != "Metaspace"
        or p.get("replacement") != SPACE
        or p.get("split", True)
        or form != NormalForm()
    ):
        what = f"the pre-tokenizer {printable(p.get('type'))} of a tokenizer with byte_fallback"
        raise UnsupportedTokenizer(f"{what} is not supported")
    return spaces(
        scheme != "never", NORMALIZE_LAST | PREFIX_ONCE | (PREFIX_FIRST if scheme == "first" else 0)
    )


def read_characters(
    data: dict[str, Any], vocabulary: dict[str, int], own_place: set[int], form: NormalForm
) -> dict[str, Any]:
    """What is particular to BPE of characters with a byte where a character is missing."""
    byte_id = [vocabulary.get(f"<0x{b:02X}>") for b in range(256)]
    decoder = (data.get("decoder") or {}).get("decoders", [])
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    usual = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if None in byte_id or decoder[:3] != usual or decoder[3:] not in ([], [strip]):
        raise UnsupportedTokenizer(
            "a tokenizer with byte_fallback lacks bytes or decodes in another way than SentencePiece's"
        )
    units = [
        (token.encode("utf-8"), i)
        for token, i in vocabulary.items()
        if len(token) == 1 and i not in own_place
    ]
    form = read_metaspace(data.get("pre_tokenizer"), form)
    return {"byte_id": byte_id, "units": units, "form": form, "drop_space": decoder[3:] == [strip]}


def read_tokenizer(data: dict[str, Any]) -> Tokenizer:
    """`data`: the contents of a tokenizer.json."""
    model, added_tokens = data["model"], data.get("added_tokens", [])
    check_model(model)
    vocabulary = model["vocab"]
    form, normal = read_normalizer(data.get("normalizer"))
    added, special = read_added(added_tokens, vocabulary, normal)
    own_place = {a.id for a in added}
    bytes_of = decoded if model.get("byte_fallback") else spelled
    tokens = {i: bytes_of(token) for token, i in vocabulary.items()} | {
        a.id: bytes_of(a.text.decode("utf-8")) for a in added
    }
    check_vocabulary(tokens)
    kind: dict[str, Any] = {"form": form}
    if model.get("byte_fallback"):
        kind |= read_characters(data, vocabulary, own_place, form)
        tokens |= {i: bytes([b]) for b, i in enumerate(kind["byte_id"])}
    else:
        kind |= read_bytes(data, vocabulary, added_tokens)
    return Tokenizer(tokens, merges=read_merges(model, own_place), added=added, special=special, **kind)


def check_vocabulary(tokens: dict[int, bytes]) -> None:
    """The section has an entry for every id up to the largest."""
    if not tokens or not all(type(i) is int and 0 <= i < MAX_IDS for i in tokens):
        raise UnsupportedTokenizer(
            f"there is no vocabulary, or it has ids that are not numbers below {MAX_IDS}"
        )
    if max(tokens) > 2 * len(tokens) + MAX_GAP:
        raise UnsupportedTokenizer(f"it has {len(tokens)} tokens, and ids up to {max(tokens)}")


def load(path: Path) -> Any:
    return json.loads(read_file(path).decode("utf-8"))


def read_tokenizer_json(path: Path) -> Tokenizer:
    data = load(path)
    check_ids(data, path)
    return read_tokenizer(data)


# ---- begin token


def ids_before(processor: dict[str, Any] | None) -> tuple[int, ...]:
    """The ids that a post-processor of tokenizer.json puts before a text."""
    kind = processor.get("type") if processor else "ByteLevel"
    if not processor or kind == "ByteLevel":
        return ()
    if kind == "Sequence":  # each is applied to what the one before gives
        before: tuple[int, ...] = ()
        for step in processor["processors"]:
            before = ids_before(step) + before
        return before
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (processor["cls"][1],)
    pieces = processor["single"] if kind == "TemplateProcessing" else []
    texts = [i for i, piece in enumerate(pieces) if "Sequence" in piece]
    if len(texts) != 1:
        raise UnsupportedTokenizer(f"the post-processor {printable(kind)} is not supported")
    names = [piece["SpecialToken"]["id"] for piece in pieces[: texts[0]]]
    return tuple(i for name in names for i in processor["special_tokens"][name]["ids"])


def begin_ids(folder: Path) -> tuple[int, ...] | None:
    """What the post-processor of tokenizer.json puts before a text, as the tokenizers library applies it.
    None if there is no tokenizer.json, or if tokenizer_config.json decides (add_bos_token)."""
    path = folder / "tokenizer.json"
    if not path.exists() or tokenizer_config(folder).get("add_bos_token") is not None:
        return None
    before = ids_before(load(path).get("post_processor"))
    if not all(type(i) is int and 0 <= i < MAX_IDS for i in before):
        raise UnsupportedTokenizer("the post-processor has ids that are not numbers")
    return before


# ---- GGUF

# tokenizer.ggml.pre, and whose expressions it stands for.
PRE_TYPES = {
    "deepseek-llm": "DeepSeek-V2",
    "deepseek-coder": "DeepSeek-Coder",
    "deepseek-v3": "DeepSeek-V3",
    "joyai-llm": "DeepSeek-V3",
    "kimi-k2": "Kimi",
    "glm4": "GLM",
    "chatglm-bpe": "GLM",
    "qwen2": "Qwen",
    "tekken": "tekken",
    "youtu": "Youtu",
    "gpt-2": "GPT-2",
    "gigachat": "GPT-2",
    "a.x-4.0": "GPT-2",
    "deepseek-r1-qwen": "Qwen",
    "openpangu": "Qwen",
    "gpt-4o": "GPT-4o",
    "llama4": "GPT-4o",
    "kanana2": "GPT-4o",
    "bailingmoe": "Bailing",
    "bailingmoe2": "Bailing",
}
RANKED = ("Kimi", "tekken")  # their merges are ranks of tokens, of which a GGUF has one cut each
# tokenizer.ggml.token_type; the same numbers as SentencePiece's
GGUF_NORMAL, GGUF_CONTROL, GGUF_USER_DEFINED = 1, 3, 4


def gguf_tokens(metadata: dict[str, Any]) -> list[tuple[str, int]]:
    """[(text, type)] of the ids."""
    tokens = [str(t) for t in metadata["tokenizer.ggml.tokens"]]
    kinds = metadata.get("tokenizer.ggml.token_type", [GGUF_NORMAL] * len(tokens))
    return list(zip(tokens, map(int, kinds), strict=True))


def gguf_added(tokens: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """The entries of added_tokens. [PAD7] is no token but fills the row 7 of the embedding."""
    return [
        {"id": i, "content": text, "special": kind == GGUF_CONTROL, "normalized": kind == GGUF_USER_DEFINED}
        for i, (text, kind) in enumerate(tokens)
        if kind in (GGUF_CONTROL, GGUF_USER_DEFINED) and text != f"[PAD{i}]"
    ]


def read_gguf_bytes(metadata: dict[str, Any]) -> Tokenizer:
    """BPE of bytes, brought into the form of tokenizer.json."""
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in PRE_TYPES:
        raise UnsupportedTokenizer(f"the pre-tokenizer type {printable(pre)} is not known")
    name, tokens = PRE_TYPES[pre], gguf_tokens(metadata)
    vocabulary = {text: i for i, (text, kind) in enumerate(tokens) if kind == GGUF_NORMAL}
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated"} for p in PATTERNS[name]]
    steps = [*splits, {"type": "ByteLevel", "use_regex": False}]
    ranks = {spelled(text): i for text, i in vocabulary.items()} if name in RANKED else {}
    merges = [] if ranks else metadata["tokenizer.ggml.merges"]
    whole_words = name in (*RANKED, "Youtu")
    tokenizer = read_tokenizer(
        {
            "model": {"vocab": vocabulary, "merges": merges, "ignore_merges": whole_words},
            "added_tokens": gguf_added(tokens),
            "normalizer": {"type": "NFC"} if name == "Qwen" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        }
    )
    tokenizer.merges.extend(rank_merges(ranks))
    return tokenizer


def read_gguf_pieces(metadata: dict[str, Any]) -> Tokenizer:
    """SentencePiece's BPE of characters."""
    tokens = gguf_tokens(metadata)
    scores = map(float, metadata["tokenizer.ggml.scores"])
    pieces = [Piece(text, score, kind) for (text, kind), score in zip(tokens, scores, strict=True)]
    added = [Added(t["id"], t["content"].encode("utf-8"), False) for t in gguf_added(tokens)]
    return sentencepiece(pieces, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)), added=added)


# ---- entry

Folder: TypeAlias = str | os.PathLike[str]
Result = TypeVar("Result")

FILES = {
    "tokenizer.json": read_tokenizer_json,
    "tiktoken.model": read_kimi,
    "qwen.tiktoken": read_qwen,
    "tekken.json": read_tekken,
    "tokenizer.model": read_sentencepiece,
}
# What Python raises where a file says something else than a reader expects.
DAMAGE = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError),
    *(ArithmeticError, RecursionError, struct.error),
)


class Compiled(NamedTuple):
    section: bytes
    begin: tuple[int, ...] | None  # put before every text; None: the tokenizer does not say


def checked(where: object, read: Callable[[Any], Result], source: Any) -> Result:
    """read(source), with one kind of exception for all that may be wrong with it."""
    try:
        return read(source)
    except DAMAGE as error:
        what = f"{type(error).__name__}: {printable(error)}"
        raise UnsupportedTokenizer(f"{where} is not a tokenizer as it is usually written ({what})") from error


def section_of(read: Callable[[Any], Tokenizer], source: Any) -> bytes:
    tokenizer = read(source)
    check_vocabulary(tokenizer.tokens)
    check_lengths(tokenizer.tokens.values())
    return pack(tokenizer)


def tokenizer_file(directory: Folder) -> Path | None:
    """The first of FILES in a directory."""
    paths = (Path(directory) / name for name in FILES)
    return next((path for path in paths if os.path.lexists(path)), None)


def compile_tokenizer(directory: Folder) -> bytes | None:
    """The tokenizer section of the first of FILES in a directory; None if it has none. Raises
    UnsupportedTokenizer, OSError."""
    path = tokenizer_file(directory)
    return checked(path, lambda path: section_of(FILES[path.name], path), path) if path else None


def compile_gguf_tokenizer(metadata: dict[str, Any]) -> bytes | None:
    """The tokenizer section of GGUF metadata ({key: value}, arrays as lists); None if there is no tokenizer
    in it. Raises UnsupportedTokenizer."""
    kinds = {"gpt2": read_gguf_bytes, "llama": read_gguf_pieces}
    model = metadata.get("tokenizer.ggml.model")
    if model in (None, "none"):
        return None
    if model not in kinds:
        raise UnsupportedTokenizer(f"the GGUF tokenizer model {printable(model)} is not supported")
    return checked("the GGUF file's tokenizer", lambda data: section_of(kinds[model], data), metadata)


def compile_directory(directory: Folder) -> Compiled | None:
    section = compile_tokenizer(directory)
    if section is None:
        return None
    return Compiled(section, checked(Path(directory) / "tokenizer.json", begin_ids, Path(directory)))


def compile_metadata(metadata: dict[str, Any]) -> Compiled | None:
    section = compile_gguf_tokenizer(metadata)
    return None if section is None else Compiled(section, None)


def bounded(function: Callable[[Any], Compiled | None], source: Any, size: int) -> Compiled | None:
    """function(source) in a child process. size: bytes of the tokenizer. Each MB of it may take 4 seconds of
    CPU time and 40 MB of memory, beside what every tokenizer may take; published ones need less than half.
    Raises UnsupportedTokenizer, LimitExceeded, OSError, ChildFailed."""
    size = min(size, FILE_LIMIT)
    seconds, memory = 3 + (4 * size >> 20), (128 << 20) + 40 * size
    compiled: Compiled | None = run_bounded(function, source, seconds=seconds, memory=memory)
    return compiled


def bounded_tokenizer(directory: Folder) -> Compiled | None:
    """The tokenizer of a Hugging Face directory; None if it has none."""
    path = tokenizer_file(directory)
    return bounded(compile_directory, directory, os.path.getsize(path)) if path else None


def bounded_gguf_tokenizer(metadata: dict[str, Any]) -> Compiled | None:
    """The tokenizer in GGUF metadata; None if there is none."""
    ours = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    lists = [value for value in ours.values() if isinstance(value, list)]
    size = sum(8 + len(x) if isinstance(x, str) else 8 for values in lists for x in values)
    return bounded(compile_metadata, ours, size)
