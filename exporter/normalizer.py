"""The normal forms that tokenizers bring text into, as tables for engine/unicode.c: canonical composition
(NFC), and SentencePiece's sign for a space."""

import functools
import unicodedata

from .pretokenizer import unicode_sets
from .section import Composition, NormalForm, Replacement

SPACE = "\u2581"  # SentencePiece writes a space so


def canonical_pair(code: int) -> tuple[int, int] | None:
    """The two characters whose composition is `code`, or None. The last one stands alone in the full
    decomposition, too."""
    letters = unicodedata.normalize("NFD", chr(code))
    first = unicodedata.normalize("NFC", letters[:-1])
    pair = (ord(first), ord(letters[-1])) if len(first) == 1 and len(letters) > 1 else None
    return pair if pair and unicodedata.normalize("NFC", chr(code)) == chr(code) else None


@functools.cache
def composed() -> NormalForm:
    """NFC, as the Hugging Face library has it: of Unicode 9.0, and no character's normal form has changed
    since."""
    codes = unicode_sets()["NFC"].codes().tolist()
    pairs = {code: pair for code in codes if (pair := canonical_pair(code))}
    seconds = {second for _, second in pairs.values()}
    replacements = []
    for code in codes:
        order = unicodedata.combining(chr(code))
        to = [ord(c) for c in unicodedata.normalize("NFD", chr(code)) if c != chr(code)]
        check = bool(order or code in seconds or (to and code not in pairs))
        replacements.append(Replacement(code, order, int(check), to))
    return NormalForm(replacements, [Composition(*pair, code) for code, pair in pairs.items()])


def spaces(prefixed: bool, options: int = 0) -> NormalForm:
    """Each space becomes SPACE; `prefixed`: one more is put before the text."""
    written = Replacement(ord(" "), 0, 1, [ord(SPACE)])
    return NormalForm([written], [], ord(SPACE) if prefixed else 0, options)
