"""Compiles the regular expressions of a pre-tokenizer for the matcher in engine/pretokenizer.c;
engine/section.h describes the result.

Published pre-tokenizers use a small part of what regular expressions can do: sets of characters with a
repetition, alternatives, optional groups, a look-ahead at one character, the end of a line. Parser reads that
part, with the meaning that it has in Oniguruma (the Hugging Face library's engine), and refuses everything
else, and what is longer or nested deeper than any published expression. Characters become classes: two code
points that are in the same sets of all expressions are the same to every one of them, so the file needs one
table from code points to a few dozen classes, and no knowledge of Unicode is left in C.
"""

import functools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .errors import ExportError, printable

CODES = 0x110000
UNLIMITED = 0xFFFFFFFF
RUN, KEEP, NOT_AHEAD, LINE_END, SPLIT, JUMP, MATCH = range(7)
# The same limits as in engine/section.h. Class 0 is a byte that is not UTF-8, 63 the inside of a character.
MAX_CLASSES, MAX_STEPS, MAX_ALTERNATIVES, MAX_ITEMS = 62, 64, 64, 256
# Published ones have up to 700 characters in all, and groups in groups once.
MAX_CHARACTERS, MAX_DEPTH = 16384, 20


class UnsupportedTokenizer(ExportError):
    """The source's tokenizer has something that cannot be compiled. The text names it."""


# ---- sets of code points


class CharSet:
    """A set of code points. bounds: int64 [n], ascending: where a run of members begins, where it ends (the
    first that is no member), where the next begins, ...; the last run may be open, and goes on to the end."""

    def __init__(self, bounds: np.ndarray) -> None:
        self.bounds = bounds

    def inside(self, codes: np.ndarray) -> np.ndarray:
        """Which of the codes are members: bool [len(codes)]."""
        return (np.searchsorted(self.bounds, codes, side="right") & 1).astype(bool)

    def _combined(self, other: "CharSet", operation: np.ufunc) -> "CharSet":
        points = np.union1d(self.bounds, other.bounds)
        inside = operation(self.inside(points), other.inside(points))
        return CharSet(points[np.diff(inside, prepend=False)])

    def __and__(self, other: "CharSet") -> "CharSet":
        return self._combined(other, np.logical_and)

    def __or__(self, other: "CharSet") -> "CharSet":
        return self._combined(other, np.logical_or)

    def __invert__(self) -> "CharSet":
        begins = len(self.bounds) and self.bounds[0] == 0
        return CharSet(self.bounds[1:] if begins else np.concatenate([[0], self.bounds]))

    def codes(self) -> np.ndarray:
        """The members: int64, ascending."""
        ends = np.append(self.bounds, CODES) if len(self.bounds) % 2 else self.bounds
        return np.concatenate([np.arange(0), *(np.arange(a, b) for a, b in ends.reshape(-1, 2))])


def chars(first: int, last: int | None = None) -> CharSet:
    """The code points from `first` to `last`; one alone without `last`."""
    bounds = np.array([first, (first if last is None else last) + 1])
    return CharSet(bounds[bounds < CODES])


def union(ranges: list[tuple[int, int]]) -> CharSet:
    """The code points of all the ranges (first, last)."""
    bounds: list[int] = []
    for first, last in sorted(ranges):
        if bounds and first <= bounds[-1]:
            bounds[-1] = max(bounds[-1], last + 1)
        else:
            bounds += [first, last + 1]
    if bounds and bounds[-1] == CODES:
        bounds.pop()
    return CharSet(np.array(bounds, np.int64))


@functools.cache
def unicode_sets() -> dict[str, CharSet]:
    """{name: set} of the general categories, their first letters (L, N, ...) and Han, as in Unicode 16.0.0;
    NFC: what normalizer.py composes."""
    ranges = {}
    text = (Path(__file__).parent / "unicode-16.0.txt").read_text(encoding="ascii")
    for line in re.sub(r"#.*\n", "", text).replace("\n  ", " ").splitlines():
        name, *found = line.split()
        ends = [r.partition("-") for r in found]
        ranges[name] = [(int(first, 16), int(last or first, 16)) for first, _, last in ends]
    categories = [name for name in ranges if name not in ("Han", "NFC")]
    sets = {name: union(found) for name, found in ranges.items()}
    sets["Cn"] = ~union([r for name in categories for r in ranges[name]])
    for letter in "LMNPSZC":
        parts = [s for name, s in sets.items() if len(name) == 2 and name[0] == letter]
        sets[letter] = functools.reduce(CharSet.__or__, parts)
    sets["L&"] = sets["LC"] = sets["Lu"] | sets["Ll"] | sets["Lt"]
    return sets


@functools.cache
def white_space() -> CharSet:
    return unicode_sets()["Z"] | chars(9, 13) | chars(0x85)


def any_case(code: int) -> CharSet:
    """What one character stands for under (?i: ...)."""
    return union([(c, c) for c in case_folds().get(chr(code).casefold(), [code])])


@functools.cache
def case_folds() -> dict[str, set[int]]:
    """{what a character folds to: the characters that do}."""
    folds: dict[str, set[int]] = {}
    for code in range(CODES):
        folded = chr(code).casefold()
        if folded != chr(code):
            folds.setdefault(folded, {ord(folded)} if len(folded) == 1 else set()).add(code)
    return folds


# ---- parser
#
# An expression is a list of branches, a branch a list of parts.


class Run(NamedTuple):
    set: CharSet
    least: int
    most: int
    keep: bool  # it gives nothing back


class NotAhead(NamedTuple):
    set: CharSet


class LineEnd(NamedTuple):
    pass


class Group(NamedTuple):
    branches: "list[list[Part]]"
    optional: bool


Part = Run | NotAhead | LineEnd | Group


class Parser:
    """One expression. Raises UnsupportedTokenizer."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth, self.ignore_case = pattern, 0, 0, False

    def fail(self, what: str) -> NoReturn:
        raise UnsupportedTokenizer(
            f"the pre-tokenizer's expression {printable(self.pattern, 60)} has {what} at character {self.at}"
        )

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail("groups or sets nested too deeply")

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def accept(self, text: str) -> bool:
        found = self.peek(text)
        self.at += len(text) if found else 0
        return found

    def next(self) -> str:
        if self.at == len(self.pattern):
            self.fail("its end")
        self.at += 1
        return self.pattern[self.at - 1]

    def expression(self) -> list[list[Part]]:
        branches = self.branches()
        if self.at < len(self.pattern):
            self.fail("a ) without (")
        return branches

    def branches(self) -> list[list[Part]]:
        branches = [self.branch()]
        while self.accept("|"):
            branches.append(self.branch())
        return branches

    def branch(self) -> list[Part]:
        parts: list[Part] = []
        while self.at < len(self.pattern) and not self.peek("|") and not self.peek(")"):
            parts.append(self.part())
        self.check_folds(parts)
        return parts

    def check_folds(self, parts: list[Part]) -> None:
        """Oniguruma lets one character stand for several that it folds to (ß for ss): no expression needs
        it."""
        if not self.ignore_case:
            return
        few: list[list[int]] = [
            p.set.codes().tolist() if isinstance(p, Run) and len(p.set.bounds) < 18 else [] for p in parts
        ]
        letters = "".join(chr(codes[0]).casefold() if 0 < len(codes) < 9 else "\0" for codes in few)
        if any(len(fold) > 1 and fold in letters for fold in case_folds()):
            self.fail("letters that one character can stand for")

    def part(self) -> Part:
        if self.accept("(?!") or self.accept("(?="):
            ahead = self.pattern[self.at - 1] == "="
            set_ = self.atom()
            if ahead or not self.accept(")"):
                self.fail("a look-ahead that is not (?!x) with one character x")
            return self.unrepeated(NotAhead(set_))
        if self.accept("$"):
            return self.unrepeated(LineEnd())
        if self.accept("("):
            return self.group()
        set_ = self.atom()
        return Run(set_, *self.repetition(), keep=self.accept("+"))

    def group(self) -> Group:
        self.enter()
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
        self.depth -= 1
        return Group(branches, repetition == (0, 1))

    def unrepeated(self, part: Part) -> Part:
        if self.repetition() != (1, 1):
            self.fail("a repetition of something without characters")
        return part

    def repetition(self) -> tuple[int, int]:
        """(least, most) behind a part."""
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

    def atom(self) -> CharSet:
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

    def literal(self, code: int) -> CharSet:
        return any_case(code) if self.ignore_case else chars(code)

    def escape(self) -> CharSet:
        code = self.escaped_code()
        if code is not None:
            return self.literal(code)
        c = self.next()
        if c in "sS":
            return white_space() if c == "s" else ~white_space()
        if c in "dD":
            return unicode_sets()["Nd"] if c == "d" else ~unicode_sets()["Nd"]
        if c in "pP":
            return self.property(c == "P")
        self.at -= 1
        self.fail(f"the escape \\{printable(c)}")

    def escaped_code(self) -> int | None:
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

    def property(self, negate: bool) -> CharSet:
        found = re.compile(r"\{(\^?)([\w&=]+)\}").match(self.pattern, self.at)
        name = found and re.sub(r"^(sc|script|gc)=", "", found[2], flags=re.I)
        if not found or name not in unicode_sets():
            self.fail("an unknown property of characters")
        if self.ignore_case:
            self.fail("a property of characters in which case does not matter")
        self.at = found.end()
        found_set = unicode_sets()[name]
        return ~found_set if negate != bool(found[1]) else found_set

    def bracket(self) -> CharSet:
        self.enter()
        negate = self.accept("^")
        if self.ignore_case and negate:
            self.fail("the negation of a set in which case does not matter")
        result = self.bracket_terms()
        while self.accept("&&"):
            result = result & self.bracket_terms()
        if not self.accept("]"):
            self.fail("a [ without ]")
        self.depth -= 1
        return ~result if negate else result

    def bracket_terms(self) -> CharSet:
        start, result = self.at, union([])
        while not self.peek("]") and not self.peek("&&"):
            result = result | self.bracket_term()
        if self.at == start:
            self.fail("an empty set")
        return result

    def bracket_term(self) -> CharSet:
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

    def bracket_code(self) -> int | None:
        if self.accept("\\"):
            return self.escaped_code()
        return ord(self.next())


# ---- compiler


@dataclass
class Item:
    """One of the section's items, with the set that its bits stand for."""

    op: int
    a: int = 0
    b: int = 0
    set: CharSet | None = None


class Counts(NamedTuple):
    """The header's numbers of a pre-tokenizer."""

    pages: int
    steps: int
    alternatives: int
    items: int


def can_be_empty(parts: list[Part]) -> bool:
    def empty(part: Part) -> bool:
        if isinstance(part, Group):
            return part.optional or any(map(can_be_empty, part.branches))
        return not isinstance(part, Run) or part.least == 0

    return all(map(empty, parts))


def flatten(branches: list[list[Part]]) -> Iterator[list[Part]]:
    """(a|b)|c is a|b|c."""
    for parts in branches:
        if len(parts) == 1 and isinstance(parts[0], Group) and not parts[0].optional:
            yield from flatten(parts[0].branches)
        else:
            yield parts


def emit(parts: list[Part], items: list[Item]) -> None:
    """Appends the items of a branch."""
    for part in parts:
        if isinstance(part, Run):
            items.append(Item(KEEP if part.keep else RUN, part.least, part.most, part.set))
        elif isinstance(part, NotAhead):
            items.append(Item(NOT_AHEAD, set=part.set))
        elif isinstance(part, LineEnd):
            items.append(Item(LINE_END, set=chars(ord("\n"))))
        else:
            emit_group(part, items)


def emit_group(group: Group, items: list[Item]) -> None:
    """Each branch but the last begins with a way to the next and ends with a jump behind the group. In an
    optional group the last branch begins with a way behind the group."""
    jumps = []
    for i, parts in enumerate(group.branches):
        last = i + 1 == len(group.branches)
        split = None
        if group.optional or not last:
            split = Item(SPLIT, a=len(items) + 1)
            items.append(split)
        emit(parts, items)
        if not last:
            jumps.append(Item(JUMP))
            items.append(jumps[-1])
        if split:
            split.b = len(items)
    for jump in jumps:
        jump.a = len(items)


def classify(sets: list[CharSet]) -> tuple[np.ndarray, list[int]]:
    """(class of each code point: uint8 [CODES], the bits of each set): code points in the same sets get the
    same class."""
    points = np.unique(np.concatenate([[0], *(s.bounds for s in sets)]))  # from one to the next all are alike
    inside = [s.inside(points) for s in sets]
    class_of = np.zeros(len(points), np.uint64)
    for start in range(0, len(sets), 40):
        key = class_of << np.uint64(40)
        for i, members in enumerate(inside[start : start + 40]):
            key |= members.astype(np.uint64) << np.uint64(i)
        class_of = np.unique(key, return_inverse=True)[1].reshape(-1).astype(np.uint64)
        count = int(class_of.max()) + 1
        if count > MAX_CLASSES:
            raise UnsupportedTokenizer(
                f"the pre-tokenizer tells {count} kinds of characters apart; {MAX_CLASSES} are possible"
            )
    classes = class_of.astype(np.uint8) + 1
    bits = [sum(1 << int(c) for c in np.unique(classes[members])) for members in inside]
    return np.repeat(classes, np.diff(points, append=CODES)), bits


def compile_expression(pattern: str) -> list[list[Item]]:
    """The items of each alternative."""
    alternatives = []
    for parts in flatten(Parser(pattern).expression()):
        if can_be_empty(parts):
            raise UnsupportedTokenizer(
                f"the pre-tokenizer's expression {printable(pattern, 60)} can match nothing at all"
            )
        items: list[Item] = []
        emit(parts, items)
        alternatives.append([*items, Item(MATCH)])
    if len(alternatives) > MAX_ALTERNATIVES or max(map(len, alternatives)) > MAX_ITEMS:
        raise UnsupportedTokenizer(f"the pre-tokenizer's expression {printable(pattern, 60)} is too long")
    return alternatives


def compile_steps(patterns: list[str]) -> tuple[Counts, bytes]:
    """(the header's numbers, the arrays) of the pre-tokenizer: `patterns`, one after the other. Raises
    UnsupportedTokenizer."""
    if len(patterns) > MAX_STEPS or sum(map(len, patterns)) > MAX_CHARACTERS:
        raise UnsupportedTokenizer(
            f"the pre-tokenizer has {len(patterns)} expressions of {sum(map(len, patterns))} characters; "
            f"{MAX_STEPS} and {MAX_CHARACTERS} are possible"
        )
    steps = [compile_expression(pattern) for pattern in patterns]
    alternatives = [a for s in steps for a in s]
    items = [item for a in alternatives for item in a]
    sets = {item.set.bounds.tobytes(): item.set for item in items if item.set is not None}
    class_of, bits = classify([s & ~unicode_sets()["Cs"] for s in sets.values()])
    bits_of = dict(zip(sets, bits, strict=True))
    rows = [row.tobytes() for row in class_of.reshape(-1, 256)]
    page = {row: i for i, row in enumerate(sorted(set(rows)))}

    def starts(lists: list[list[Any]]) -> bytes:
        return np.cumsum([0] + [len(x) for x in lists]).astype("<u4").tobytes()

    def packed(item: Item) -> bytes:
        mask = bits_of[item.set.bounds.tobytes()] if item.set is not None else 0
        return struct.pack("<5I", item.op, item.a, item.b, mask & 0xFFFFFFFF, mask >> 32)

    arrays = [np.array([page[row] for row in rows], "<u2").tobytes(), *page]
    arrays += [starts(steps), starts(alternatives), *map(packed, items)]
    return Counts(len(page), len(steps), len(alternatives), len(items)), b"".join(arrays)
