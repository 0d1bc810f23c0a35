"""Compiles the regular expressions of a pre-tokenizer for the matcher in engine/pretokenizer.c; engine/section.h
describes the result.

Published pre-tokenizers use a small part of what regular expressions can do: sets of characters with a
repetition, alternatives, optional groups, a look-ahead at one character, the end of a line. parse() reads
that part, with the meaning that it has in Oniguruma (the Hugging Face library's engine), and refuses
everything else. Characters become classes: two code points that are in the same sets of all expressions are
the same to every one of them, so the file needs one table from code points to a few dozen classes, and no
knowledge of Unicode is left in C.
"""

import functools
import re
import struct
from pathlib import Path

import numpy as np

from exporter.errors import ExportError, printable

CODES = 0x110000
UNLIMITED = 0xFFFFFFFF
RUN, KEEP, NOT_AHEAD, LINE_END, SPLIT, JUMP, MATCH = range(7)
# The same limits as in engine/section.h: class 0 is a byte that is not UTF-8, 63 is the inside of a character.
MAX_CLASSES, MAX_ALTERNATIVES, MAX_ITEMS = 62, 64, 256


class UnsupportedTokenizer(ExportError):
    """The source's tokenizer has something that cannot be compiled. The text names it."""


# ---- sets of code points: numpy arrays of CODES booleans
# -------------------------------------------------------------------------


@functools.cache
def unicode_sets():
    """{name: set} of the general categories, their first letters (L, N, ...) and Han, as in Unicode 16.0.0;
    NFC: what normalizer.py composes."""
    sets = {"Cn": np.ones(CODES, bool)}
    text = (Path(__file__).parent / "unicode-16.0.txt").read_text(encoding="ascii")
    for line in re.sub(r"#.*\n", "", text).replace("\n  ", " ").splitlines():
        name, *ranges = line.split()
        sets[name] = np.zeros(CODES, bool)
        for r in ranges:
            first, _, last = r.partition("-")
            sets[name][int(first, 16) : int(last or first, 16) + 1] = True
        if name not in ("Han", "NFC"):
            sets["Cn"] &= ~sets[name]
    for letter in "LMNPSZC":
        sets[letter] = np.logical_or.reduce(
            [s for name, s in sets.items() if len(name) == 2 and name[0] == letter]
        )
    sets["L&"] = sets["LC"] = sets["Lu"] | sets["Ll"] | sets["Lt"]
    return sets


def chars(first, last=None):
    out = np.zeros(CODES, bool)
    out[first : (first if last is None else last) + 1] = True
    return out


@functools.cache
def spaces():
    return unicode_sets()["Z"] | chars(9, 13) | chars(0x85)


def any_case(code):
    """What one character stands for under (?i: ...)."""
    return np.isin(np.arange(CODES), list(case_folds().get(chr(code).casefold(), [code])))


@functools.cache
def case_folds():
    folds = {}
    for code in range(CODES):
        folded = chr(code).casefold()
        if folded != chr(code):
            folds.setdefault(folded, {ord(folded)} if len(folded) == 1 else set()).add(code)
    return folds


# ---- parser
# ------------------------------------------------------------------------------------------------------------------------
#
# An expression is a list of branches, a branch a list of parts:
#   ("run", set, least, most, keep)   ("not_ahead", set)   ("line_end",)   ("group", branches, optional)


class Parser:
    def __init__(self, pattern):
        self.pattern, self.at, self.ignore_case = pattern, 0, False

    def fail(self, what):
        raise UnsupportedTokenizer(
            f"the pre-tokenizer's expression {printable(self.pattern, 60)} has {what} at character {self.at}"
        )

    def peek(self, text):
        return self.pattern.startswith(text, self.at)

    def accept(self, text):
        found = self.peek(text)
        self.at += len(text) if found else 0
        return found

    def next(self):
        if self.at == len(self.pattern):
            self.fail("its end")
        self.at += 1
        return self.pattern[self.at - 1]

    def expression(self):
        branches = self.branches()
        if self.at < len(self.pattern):
            self.fail("a ) without (")
        return branches

    def branches(self):
        branches = [self.branch()]
        while self.accept("|"):
            branches.append(self.branch())
        return branches

    def branch(self):
        parts = []
        while self.at < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            parts.append(self.part())
        self.check_folds(parts)
        return parts

    def check_folds(self, parts):
        """Oniguruma lets one character stand for several that it folds to (ß for ss): no expression needs it."""
        letters = "".join(
            chr(int(np.argmax(p[1]))).casefold() if p[0] == "run" and p[1].sum() < 9 else "\0" for p in parts
        )
        if self.ignore_case and any(len(fold) > 1 and fold in letters for fold in case_folds()):
            self.fail("letters that one character can stand for")

    def part(self):
        if self.accept("(?!") or self.accept("(?="):
            ahead = self.pattern[self.at - 1] == "="
            set_ = self.atom()
            if ahead or not self.accept(")"):
                self.fail("a look-ahead that is not (?!x) with one character x")
            return self.unrepeated(("not_ahead", set_))
        if self.accept("$"):
            return self.unrepeated(("line_end",))
        if self.accept("("):
            return self.group()
        set_ = self.atom()
        return (
            "run",
            set_,
            *self.repetition(),
            self.accept("+"),
        )  # a + behind a repetition: it gives nothing back

    def group(self):
        outside = self.ignore_case
        if self.accept("?i:"):
            self.ignore_case = True
        elif self.peek("?") and not self.accept("?:"):
            self.fail("an unknown group")
        branches = self.branches()
        if not self.accept(")"):
            self.fail("a ( without )")
        self.ignore_case = outside
        repetition = self.repetition()
        if repetition not in ((1, 1), (0, 1)) or self.peek("+"):
            self.fail("a repeated group")
        return ("group", branches, repetition == (0, 1))

    def unrepeated(self, part):
        if self.repetition() != (1, 1):
            self.fail("a repetition of something without characters")
        return part

    def repetition(self):
        found = re.compile(r"[?*+]|\{(\d+)(,?)(\d*)\}").match(self.pattern, self.at)
        if not found:
            return 1, 1
        self.at = found.end()
        if re.compile(r"[?*]|\{\d" if found[0] in "?*+" else r"[?*+]|\{\d").match(self.pattern, self.at):
            self.fail("a lazy or double repetition")
        if found[0] in "?*+":
            return {"?": (0, 1), "*": (0, UNLIMITED), "+": (1, UNLIMITED)}[found[0]]
        least = int(found[1])
        most = least if not found[2] else int(found[3]) if found[3] else UNLIMITED
        if least > most or max(least, most if most != UNLIMITED else 0) > 1000:
            self.fail("a strange repetition")
        return least, most

    def atom(self):
        """The set that one character, escape or bracket stands for."""
        c = self.next()
        if c == "[":
            return self.bracket()
        if c == "\\":
            return self.escape()
        if c == ".":
            return ~chars(ord("\n"))
        if c in "*+?{^)":
            self.fail(f"an unexpected {c}")
        return self.literal(ord(c))

    def literal(self, code):
        return any_case(code) if self.ignore_case else chars(code)

    def escape(self):
        code = self.escaped_code()
        if code is not None:
            return self.literal(code)
        c = self.next()
        if c in "sS":
            return spaces() if c == "s" else ~spaces()
        if c in "dD":
            return unicode_sets()["Nd"] if c == "d" else ~unicode_sets()["Nd"]
        if c in "pP":
            return self.property(c == "P")
        self.at -= 1
        self.fail(f"the escape \\{printable(c)}")

    def escaped_code(self):
        r"""The code point after a backslash; None if it is a set like \s."""
        found = re.compile(r"x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})").match(
            self.pattern, self.at
        )
        if found:
            self.at = found.end()
            code = int(found[1] or found[2] or found[3], 16)
            return code if code < CODES else self.fail("a code point out of range")
        c = self.pattern[self.at : self.at + 1]
        if c in "rntfv" and c:
            self.at += 1
            return ord({"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}[c])
        if c and not c.isalnum():
            self.at += 1
            return ord(c)
        return None

    def property(self, negate):
        found = re.compile(r"\{(\^?)([\w&=]+)\}").match(self.pattern, self.at)
        name = found and re.sub(r"^(sc|script|gc)=", "", found[2], flags=re.I)
        if not found or name not in unicode_sets():
            self.fail("an unknown property of characters")
        if self.ignore_case:
            self.fail("a property of characters in which case does not matter")
        self.at = found.end()
        return unicode_sets()[name] ^ (negate != bool(found[1]))

    def bracket(self):
        negate = self.accept("^")
        if self.ignore_case and negate:
            self.fail("the negation of a set in which case does not matter")
        result = self.bracket_terms()
        while self.accept("&&"):
            result = result & self.bracket_terms()
        if not self.accept("]"):
            self.fail("a [ without ]")
        return ~result if negate else result

    def bracket_terms(self):
        start, result = self.at, np.zeros(CODES, bool)
        while not self.peek("]") and not self.peek("&&"):
            result = result | self.bracket_term()
        if self.at == start:
            self.fail("an empty set")
        return result

    def bracket_term(self):
        if self.peek("[:"):
            self.fail("a POSIX class")
        if self.accept("["):
            return self.bracket()
        first = self.bracket_code()
        if first is None:
            return self.escape()
        if not self.peek("-") or self.pattern.startswith("-]", self.at):
            return self.literal(first)
        self.at += 1
        last = self.bracket_code()
        if last is None or last < first:
            self.fail("a range without order")
        if self.ignore_case:
            self.fail("a range in which case does not matter")
        return chars(first, last)

    def bracket_code(self):
        if self.accept("\\"):
            return self.escaped_code()
        return ord(self.next())


# ---- compiler
# ----------------------------------------------------------------------------------------------------------------------


def can_be_empty(parts):
    def empty(kind, *rest):
        if kind == "group":
            branches, optional = rest
            return optional or any(map(can_be_empty, branches))
        return kind != "run" or rest[1] == 0

    return all(empty(*p) for p in parts)


def flatten(branches):
    """(a|b)|c is a|b|c."""
    for parts in branches:
        if len(parts) == 1 and parts[0][0] == "group" and not parts[0][2]:
            yield from flatten(parts[0][1])
        else:
            yield parts


def emit(parts, items):
    """Appends the items [op, a, b, set] of a branch."""
    for part in parts:
        if part[0] == "run":
            items.append([KEEP if part[4] else RUN, part[2], part[3], part[1]])
        elif part[0] == "not_ahead":
            items.append([NOT_AHEAD, 0, 0, part[1]])
        elif part[0] == "line_end":
            items.append([LINE_END, 0, 0, chars(ord("\n"))])
        else:
            emit_group(part[1], part[2], items)


def emit_group(branches, optional, items):
    """Each branch but the last begins with a way to the next and ends with a jump behind the group. In an
    optional group the last branch begins with a way behind the group."""
    jumps = []
    for i, parts in enumerate(branches):
        split = None
        if optional or i + 1 < len(branches):
            split = [SPLIT, len(items) + 1, None, None]
            items.append(split)
        emit(parts, items)
        if i + 1 < len(branches):
            jump = [JUMP, None, 0, None]
            items.append(jump)
            jumps.append(jump)
        if split:
            split[2] = len(items)
    for jump in jumps:
        jump[1] = len(items)


def classify(sets):
    """(class of each code point, the bits of each set): code points in the same sets get the same class."""
    class_of = np.zeros(CODES, np.uint64)
    for start in range(0, len(sets), 40):
        key = class_of << np.uint64(40)
        for i, s in enumerate(sets[start : start + 40]):
            key |= s.astype(np.uint64) << np.uint64(i)
        class_of = np.unique(key, return_inverse=True)[1].reshape(-1).astype(np.uint64)
    count = int(class_of.max()) + 1
    if count > MAX_CLASSES:
        raise UnsupportedTokenizer(
            f"the pre-tokenizer tells {count} kinds of characters apart; {MAX_CLASSES} are possible"
        )
    class_of = class_of.astype(np.uint8) + 1
    member = [np.unique(class_of[s]) for s in sets]
    return class_of, [sum(1 << int(c) for c in m) for m in member]


def compile_steps(patterns):
    """(header numbers (pages, steps, alternatives, items), bytes) of the pre-tokenizer: `patterns`, one after
    the other."""
    steps = []
    for pattern in patterns:
        alternatives = []
        for parts in flatten(Parser(pattern).expression()):
            if can_be_empty(parts):
                raise UnsupportedTokenizer(
                    f"the pre-tokenizer's expression {printable(pattern, 60)} can match nothing at all"
                )
            items = []
            emit(parts, items)
            alternatives.append(items + [[MATCH, 0, 0, None]])
        if len(alternatives) > MAX_ALTERNATIVES or max(map(len, alternatives)) > MAX_ITEMS:
            raise UnsupportedTokenizer(f"the pre-tokenizer's expression {printable(pattern, 60)} is too long")
        steps.append(alternatives)

    alternatives = [a for s in steps for a in s]
    items = [item for a in alternatives for item in a]
    sets = {item[3].tobytes(): item[3] for item in items if item[3] is not None}
    class_of, bits = classify([s & ~unicode_sets()["Cs"] for s in sets.values()])
    bits = dict(zip(sets, bits), none=0)
    pages, page_of = np.unique(class_of.reshape(-1, 256), axis=0, return_inverse=True)

    def starts(lists):
        return np.cumsum([0] + [len(x) for x in lists]).astype("<u4").tobytes()

    data = (
        page_of.reshape(-1).astype("<u2").tobytes()
        + pages.astype(np.uint8).tobytes()
        + starts(steps)
        + starts(alternatives)
    )
    for op, a, b, s in items:
        mask = bits[s.tobytes()] if s is not None else 0
        data += struct.pack("<5I", op, a, b, mask & 0xFFFFFFFF, mask >> 32)
    return (len(pages), len(steps), len(alternatives), len(items)), data
