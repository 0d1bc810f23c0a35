"""The splitting expressions of published tokenizers, for sources that name them and do not contain them (rank
files, GGUF). Each is a list of steps: every step splits each piece of the one before. tokenizer.json and
tekken.json bring their own."""

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}"
OTHER, NOT_HAN = r"[^\r\n\p{L}\p{N}]?", r"&&[^\p{Han}]]"
# Characters that some editors would replace by their twins (Kelvin sign, Ohm sign, ...) are written as
# numbers.
V2_LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-Ⴥ"
    "Ꭰ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ"
    "-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ"
    "Ꜣ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-"
    "𐳲𑢠-𑣟𞤀-𞥃]+"
)
PATTERNS: dict[str, list[str]] = {
    "DeepSeek-V2": [
        r"[\r\n]",
        V2_LETTERS,
        "\\s?[!-/:-~！-／：-～\u2018-\u201f\u3000-。]+",
        r"\s+$",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}",
    ],
    "DeepSeek-V3": [
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "Kimi": [
        rf"[\p{{Han}}]+|{OTHER}{UPPER}{NOT_HAN}*{LOWER}{NOT_HAN}+{CONTRACTIONS}?"
        rf"|{OTHER}{UPPER}{NOT_HAN}+{LOWER}{NOT_HAN}*{CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}|{TAIL}"
    ],
    "GLM": [rf"{CONTRACTIONS}|{OTHER}\p{{L}}+|\p{{N}}{{1,3}}|{TAIL}"],
    "DeepSeek-Coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
    "Qwen": [rf"{CONTRACTIONS}|{OTHER}\p{{L}}+|\p{{N}}|{TAIL}"],
    "Bailing": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "Youtu": [
        r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+"
        r"|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
        rf"{OTHER}{UPPER}]*{LOWER}]+{CONTRACTIONS}?"
        rf"|{OTHER}{UPPER}]+{LOWER}]*{CONTRACTIONS}?|\p{{N}}|" + TAIL.replace(r"[\r\n]*", r"[\r\n/]*"),
    ],
    "tekken": [
        rf"{OTHER}{UPPER}]*{LOWER}]+|{OTHER}{UPPER}]+{LOWER}]*|\p{{N}}|"
        + TAIL.replace(r"[\r\n]*", r"[\r\n/]*")
    ],
    "GPT-4o": [
        rf"{OTHER}{UPPER}]*{LOWER}]+{CONTRACTIONS}?|{OTHER}{UPPER}]+{LOWER}]*{CONTRACTIONS}?|\p{{N}}{{1,3}}|"
        + TAIL.replace(r"[\r\n]*", r"[\r\n/]*")
    ],
    "GPT-2": [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
}
