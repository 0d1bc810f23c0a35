"""Do the files of a tokenizer agree about the ids of its special tokens?

A directory may hold the model's own file (tiktoken.model, tekken.json), a tokenizer.json that some program
made of it, and lists of the added tokens. A wrong id is text that looks nearly right, so files that
contradict each other are refused, with the file to delete.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ExportError, printable
from .families import language_model
from .sources import read_json

OWN = ("tiktoken.model", "qwen.tiktoken", "tekken.json", "tokenizer.model")  # which models are published with


def check_ids(data: Mapping[str, Any], path: Path) -> None:
    """`data`: the tokenizer.json at `path`. ExportError if an added token has another id there than in
    tokenizer_config.json or added_tokens.json beside it, or begin and end token than in the configuration."""
    listed = [token for token in data.get("added_tokens") or [] if isinstance(token, dict)]
    texts = {token.get("id"): token.get("content") for token in listed}
    vocabulary = data["model"]["vocab"]
    ids = vocabulary if isinstance(vocabulary, dict) else {}
    ids = {**ids, **{text: i for i, text in texts.items() if isinstance(text, str)}}
    for name, token, i in _stated(path.parent):
        if ids.get(token, i) != i:
            _refuse(path, name, f"{printable(token, 60)} is {ids[token]} in the one and {i} in the other")
        if texts.get(i, token) != token:
            what = f"{i} is {printable(texts[i], 60)} in the one and {printable(token, 60)} in the other"
            _refuse(path, name, what)
    _check_ends(path, ids)


class Stated(NamedTuple):
    file: str
    token: str
    id: int


def _stated(directory: Path) -> Iterator[Stated]:
    """The added tokens that files beside tokenizer.json list."""
    config = read_json(str(directory / "tokenizer_config.json"), required=False)
    decoder = config.get("added_tokens_decoder")
    for i, token in (decoder if isinstance(decoder, dict) else {}).items():
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and i.isascii() and i.isdigit() and len(i) < 10:
            yield Stated("tokenizer_config.json", text, int(i))
    for text, i in read_json(str(directory / "added_tokens.json"), required=False).items():
        if type(i) is int:
            yield Stated("added_tokens.json", text, i)


def _check_ends(path: Path, ids: Mapping[str, int]) -> None:
    """transformers 5 writes no list of the added tokens. Then the names of begin and end token are left to be
    compared with their ids. Models may end at another token than their tokenizer's end token, so both must
    differ."""
    named = read_json(str(path.parent / "tokenizer_config.json"), required=False)
    texts = [named.get(key) for key in ("bos_token", "eos_token")]
    begin, end = (text.get("content") if isinstance(text, dict) else text for text in texts)
    files = [str(path.parent / name) for name in ("config.json", "generation_config.json")]
    stated: dict[str, Any] = {}
    for file in files:
        stated |= language_model(read_json(file, required=False), file)
    first, last = stated.get("bos_token_id"), stated.get("eos_token_id")
    last = last if isinstance(last, list) else [last]
    if not isinstance(begin, str) or not isinstance(end, str) or begin not in ids or end not in ids:
        return
    if first is not None and last != [None] and ids[begin] != first and ids[end] not in last:
        what = f"{printable(begin, 60)} is {ids[begin]} in the one and bos_token_id {first} in the other"
        _refuse(path, "config.json", what)


def _refuse(path: Path, name: str, what: str) -> None:
    own = next((own for own in OWN if (path.parent / own).exists()), None)
    do = f"delete {path.name}: {own} is the model's own" if own else "delete the file that is wrong"
    raise ExportError(f"{path.parent}: {path.name} and {name} contradict each other: {what}; {do}")
