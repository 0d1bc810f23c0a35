"""Do the files of a tokenizer agree about the ids of its special tokens?

A directory may hold the model's own file (tiktoken.model, tekken.json), a tokenizer.json that some program
made of it, and lists of the added tokens. A wrong id is text that looks nearly right, so files that
contradict each other are refused, with the file to delete.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import ExportError, printable
from .sources import read_json

OWN = ("tiktoken.model", "qwen.tiktoken", "tekken.json", "tokenizer.model")  # which models are published with


def check_ids(data: Mapping[str, Any], path: Path) -> None:
    """`data`: the tokenizer.json at `path`. ExportError if an added token has another id there than in
    tokenizer_config.json or added_tokens.json beside it."""
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


def _stated(directory: Path) -> Iterator[tuple[str, str, int]]:
    """(file, token, its id) of the added tokens that files beside tokenizer.json list."""
    config = read_json(str(directory / "tokenizer_config.json"), required=False)
    decoder = config.get("added_tokens_decoder")
    for i, token in (decoder if isinstance(decoder, dict) else {}).items():
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and i.isascii() and i.isdigit() and len(i) < 10:
            yield "tokenizer_config.json", text, int(i)
    for text, i in read_json(str(directory / "added_tokens.json"), required=False).items():
        if type(i) is int:
            yield "added_tokens.json", text, i


def _refuse(path: Path, name: str, what: str) -> None:
    own = next((own for own in OWN if (path.parent / own).exists()), None)
    do = f"delete {path.name}: {own} is the model's own" if own else "delete the file that is wrong"
    raise ExportError(f"{path.parent}: {path.name} and {name} contradict each other: {what}; {do}")
