"""The JSON reader and writer (cli/json.c), by themselves.

The cases are those that JSONTestSuite describes, written anew from RFC 8259's grammar: what must be accepted
(y), what must be refused (n), and what the RFC leaves open (i), where the reader's own rule is tested. The
judge of what an accepted text means is Python's json; what a string's bytes mean without being UTF-8 is
Python's word, too."""

import json
import math
import os
import random
import struct
import subprocess
import time
from typing import NamedTuple

import pytest
from compare import BUILD
from support import make, mutated

PROGRAM = BUILD / "json_driver"


def answers(requests, program=PROGRAM):
    """What the driver answers to (letter, bytes), as JSON texts."""
    packed = b"".join(kind.encode() + struct.pack("<I", len(data)) + data for kind, data in requests)
    done = subprocess.run([program], input=packed, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    found, at = [], 0
    while at < len(done.stdout):
        (n,) = struct.unpack_from("<I", done.stdout, at)
        found.append(done.stdout[at + 4 : at + 4 + n])
        at += 4 + n
    assert len(found) == len(requests)
    return found


def read(*texts, program=PROGRAM):
    return [json.loads(answer) for answer in answers([("r", text) for text in texts], program)]


class TwiceError(ValueError):
    """An object has a key twice, which Python's json takes unless it is told otherwise."""


def once(pairs):
    if len(dict(pairs)) < len(pairs):
        raise TwiceError
    return dict(pairs)


class Number(NamedTuple):
    text: str
    value: float
    integer: int | None


def number(text):
    value, integer = float(text), None
    if not math.isfinite(value):
        raise ValueError("too large")
    if text.isdigit():
        integer = int(text) if len(text) < 30 and int(text) < 2**64 else None
    elif 0 <= value <= 2**53 and value.is_integer():
        integer = int(value)
    return Number(text, value, integer)


def refuse(constant):
    raise ValueError(constant)


def surrogates(text):
    return any("\ud800" <= c <= "\udfff" for c in text)


def depth(value):
    inner = value.values() if isinstance(value, dict) else value if type(value) is list else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def judge(text):
    """What Python makes of a text in the driver's form; ValueError where it is refused."""
    decoded = text.decode("utf-8")
    value = json.loads(
        decoded, object_pairs_hook=once, parse_float=number, parse_int=number, parse_constant=refuse
    )
    if surrogates(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half of a surrogate pair")
    if depth(value) > 128:
        raise ValueError("too deep")
    return value


def same(got, want):
    """Whether the driver's answer is what Python read."""
    if isinstance(want, Number):
        text, value, integer = got
        exact = float.fromhex(value).hex() == want.value.hex()  # -0.0 too
        return exact and (text, integer) == (want.text, want.integer)
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return list(got) == list(want) and all(same(got[key], want[key]) for key in want)
    return got == want and type(got) is type(want)


ACCEPTED = rb"""
[[]   ]
[""]
[]
["a"]
[false]
[null, 1, "1", {}]
[null]
 [1]
[1,null,null,null,2]
[2]
[123e65]
[0e+1]
[0e1]
[ 4]
[-0.000000000000000000000000000000000000000000000000000000000000000000000000000001]
[20e1]
[-0]
[-123]
[-1]
[-0.0]
[1E22]
[1E-2]
[1E+2]
[123e45]
[123.456e78]
[1e-2]
[1e+2]
[123]
[123.456789]
{"asd":"sdf", "dfg":"fgh"}
{"asd":"sdf"}
{}
{"":0}
{"foo\u0000bar": 42}
{ "min": -1.0e+28, "max": 1.0e+28 }
{"x":[{"id": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}], "id": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}
{"a":[]}
{"title":"\u041f\u043e\u043b\u0442\u043e\u0440\u0430 \u0417\u0435\u043c\u043b\u0435\u043a\u043e\u043f\u0430" }
["\u0060\u012a\u12AB"]
["\uD801\udc37"]
["\ud83d\ude39\ud83d\udc8d"]
["\"\\\/\b\f\n\r\t"]
["\\u0000"]
["\""]
["a/*b*/c/*d//e"]
["\\a"]
["\\n"]
["\u0012"]
["\uFFFF"]
["asd"]
[ "asd"]
["\uDBFF\uDFFF"]
["new\u00A0line"]
["\u0000"]
["\u002c"]
["\uD834\uDd1e"]
["\u0821"]
["\u0123"]
["\u2028"]
["\u0061\u30af\u30EA\u30b9"]
["new\u000Aline"]
["\uA66D"]
["\u005C"]
["\u0022"]
["\u200B"]
["\u2064"]
["\uFDD0"]
["\uFFFE"]
["\uD83F\uDFFE"]
false
42
-0.1
null
"asd"
true
""
["a"]
[true]
""".strip(b"\n").split(b"\n")
ACCEPTED += [
    b"[1\n]",
    b"[\n1,\r\n\t 2 ]\n",
    b'["\x7f"]',
    '["\u20ac\U0001d11e\u00a0\u2028\u2029\uffff\U0010ffff\U0001fffe \u20ac"]'.encode(),
    '["\u0080"]'.encode(),
    b"[" * 127 + b"[1]" + b"]" * 127,
    b'{"a":' * 128 + b"0" + b"}" * 128,
    b"[" + b"0," * 100000 + b"0]",
    b'["' + b"a" * 100000 + b'"]',
    b" " * 100000 + b"1" + b" " * 100000,
    b"[" + b"9" * 19 + b",18446744073709551615,9007199254740993]",
    b"[2.2250738585072014e-308,4.9e-324,1.7976931348623157e308,0.1,9007199254740993.0,100.0,1e2,1e-2]",
]

REFUSED = rb"""
[1 true]
["": 1]
[""],
[,1]
[1,,2]
["x",,]
["x"]]
["",]
["x"
[x
[3[4]]
[1,]
[1,,]
[,]
[-]
[   , ""]
[1,
["a",4,1,
[*]
[1
[{}
[fals]
[nul]
[tru]
[++1234]
[+1]
[+Inf]
[-01]
[-1.0.]
[-2.]
[-NaN]
[.-1]
[.2e-3]
[0.1.2]
[0.3e+]
[0.3e]
[0.e1]
[0E+]
[0E]
[0e+]
[0e]
[1.0e+]
[1.0e-]
[1.0e]
[1 000.0]
[1eE2]
[2.e+3]
[2.e-3]
[2.e3]
[9.e+]
[Inf]
[NaN]
[1+2]
[0x1]
[0x42]
[Infinity]
[0e+-1]
[-123.123foo]
[-Infinity]
[-foo]
[- 1]
[-012]
[-.123]
[-1x]
[1ea]
[1.]
[.123]
[1.2a-3]
[1.8011670033376514H-308]
[012]
["x", truth]
{[: "x"}
{"x", null}
{"x"::"b"}
{"a":"a" 123}
{key: 'value'}
{"a" b}
{:"b"}
{"a"
{"a":
{1:1}
{9999E9999:1}
{null:null,null:null}
{"id":0,,,,,}
{'a':0}
{"id":0,}
{"a":"b"}/**/
{"a":"b"}/**//
{"a":"b"}//
{"a":"b"}/
{"a":"b",,"c":"d"}
{a: "b"}
{"a":"a
{ "foo" : "bar", "a" }
{"a":"b"}#
["\uD800\"]
["\uD800\u"]
["\uD800\u1"]
["\uD800\u1x"]
["\x00"]
["\\\"]
["\u00A"]
["\uD834\uDd"]
["\uD800\uD800\x"]
["\a"]
["\uqqqq"]
["\
["\u"]
[\n]
["\UA66D"]
['single quote']
abc
["\
"
["asd]
"asd
\u000A""
[True]
[undefined]
[1]x
{}}
["a
*
{
[
<.>
[<null>]
a\xe5
]
[][]
2@
{"a": true} "x"
{"a":/*comment*/"b"}
{"a":"b","a":"c"}
{"a":1,"\u0061":2}
{"b":0,"a":{"x":1,"y":2,"x":3}}
{"":0,"":0}
["\uDADA"]
["\uD888\u1234"]
["\uD800"]
["\uD800\n"]
["\uDd1ea"]
["\uD800\uD800\n"]
["\ud800abc"]
["\uDd1e\uD834"]
["\uDFAA"]
["\uDC00\uDC00"]
[123.456e789]
[0.4e00669999999999999999999999999999999999999999999999999999999999999999999999999999999999999]
[-1e+9999]
[1.5e+9999]
[-123123e100000]
nul
nulL
nullx
truefalse
-
+1
01
1.e1
""".strip(b"\n").split(b"\n")
REFUSED += [
    b"",
    b" ",
    b"\n",
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbf{}",
    b"\xef\xbb{}",
    b"\x00",
    b"123\x00",
    b"[\x00]",
    b'["a\x00a"]',
    b'["new\nline"]',
    b'["\t"]',
    b'["\x1f"]',
    b"[\x0c]",
    b"[\x0b1]",
    b"[\xc2\xa01]",
    b"[\xe2\x81\xa0]",
    b'["\\\x00"]',
    b'["\\\t"]',
    b'["\\\xf0\x9f\x8c\x80"]',
    b'["\\u\xe5"]',
    b"[1e1\xe5]",
    b"[1\xe5]",
    b"[0\xe5]",
    b"[a\xe5]",
    b"[\xff]",
    b'{"\xb9":"0",}',
    b"\xe5",
    b'["\xe6\x97\xa5\xd1\x88\xfa"]',
    b'["\xe9"]',
    b'["\xff"]',
    b'["\x81"]',
    b'["\xf4\xbf\xbf\xbf"]',
    b'["\xfc\x83\xbf\xbf\xbf\xbf"]',
    b'["\xc0\xaf"]',
    b'["\xe0\xff"]',
    b'["\xed\xa0\x80"]',
    b'["\xfc\x80\x80\x80\x80\x80"]',
    b'["\xf0\x82\x82\xac"]',
    b'["\xe2\x82"]',
    b'["\xe2\x82',
    '["\u00e9"]'.encode("utf-16"),
    '["\u00e9"]'.encode("utf-16-le"),
    b"[" * 100000,
    b'[{"":' * 50000,
    b"[" * 129 + b"]" * 129,
    b"[" * 128 + b'{"":0}' + b"]" * 128,
    b'{"' + b"a" * 100000,
    b"1" * 400,
    b"{" + b",".join(b'"%d":0' % (i % 60000) for i in range(60001)) + b"}",
]


def label(text):
    return repr(text[:40])


@pytest.mark.parametrize("text", ACCEPTED, ids=label)
def test_accepted(text):
    """Every reader must accept it, and it means what Python says."""
    (got,) = read(text)
    assert same(got, judge(text)), got


@pytest.mark.parametrize("text", REFUSED, ids=label)
def test_refused(text):
    """With a place within the text and a reason."""
    (got,) = read(text)
    assert set(got) == {"why", "at"} and got["why"] and 0 <= got["at"] <= len(text), got


def test_the_cases_are_as_python_has_them():
    """Python refuses what is refused, with the rules above for what RFC 8259 leaves open."""
    for text in REFUSED:
        with pytest.raises((ValueError, RecursionError)):
            judge(text)


WORDS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"d800", b"null", b"-", b"0"]
WORDS += [b"1e", b".", b" ", b"\n", b"\xff", b"\xe2\x82", b"\x00", b'"a":', b"\\ud83d\\ude00", b"9" * 30]


@pytest.mark.parametrize("name", ["plain", "debug"])
def test_mutated(name):
    """Whatever is changed in a text, the reader and Python agree on whether it is JSON, and on what it says.
    In the build with sanitizers none of it reads or writes beside its memory."""
    program = PROGRAM if name == "plain" else make("debug", "json_driver")
    draw = random.Random(11)
    count = int(os.environ.get("MLA_MUTATIONS", 10000))
    line = b'{"prompt": "a\\u00e9", "ids": [1, 2, 3], "stop": ["x", "\xe2\x82\xac"], "t": 0.7}'
    seeds = [*ACCEPTED, *REFUSED, line]
    texts = [mutated(draw, draw.choice(seeds)[:2000], WORDS, (1, 1, 2, 5), 4) for _ in range(count)]
    accepted = 0
    for text, got in zip(texts, read(*texts, program=program), strict=True):
        try:
            want = judge(text)
        except (ValueError, RecursionError):
            want = None
            assert set(got) == {"why", "at"}, (text, got)
        else:
            accepted += 1
            assert same(got, want), (text, got)
    assert accepted > count // 20


def test_time_is_linear():
    """No text of a few megabytes takes long: keys, digits, depth."""
    texts = [
        b"{" + b",".join(b'"%d":0' % i for i in range(300000)) + b"}",
        b"{" + b",".join(b'"' + b"x" * 3000 + b'%d":0' % i for i in range(1000)) + b"}",
        b"[0." + b"1" * 3000000 + b"]",
        b"[" + b"[]," * 1000000 + b"0]",
        b'"' + b"\\u0041" * 500000 + b'"',
    ]
    start = time.monotonic()
    (keys, long_keys, digits, arrays, string) = answers([("r", text) for text in texts])
    assert time.monotonic() - start < 20
    assert keys.count(b":") == 300000 and long_keys.count(b":") == 1000 and arrays.count(b"[]") == 1000000
    assert digits.startswith(b'[["0.1') and json.loads(string) == "A" * 500000


# ---- writing


def written(*texts, program=PROGRAM):
    return answers([("w", text) for text in texts], program)


def test_strings_are_taken_by_every_reader():
    """On one line whatever ends lines, and the same text again."""
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000), 0x1F600, 0x10FFFF]))
    (line,) = written(text.encode())
    assert json.loads(line) == text and len(line.decode().splitlines()) == 1
    assert read(line) == [text]


@pytest.mark.parametrize("name", ["plain", "debug"])
def test_bytes_that_are_not_utf8(name):
    """Each maximal part of a character becomes one U+FFFD, as Unicode recommends and Python does."""
    program = PROGRAM if name == "plain" else make("debug", "json_driver")
    draw = random.Random(5)
    starts = b"\x00A\x80\x9f\xa0\xbf\xc1\xc2\xe0\xe2\xed\xef\xf0\xf1\xf4\xf5\xff"
    texts = [bytes(draw.choices(starts, k=draw.randrange(1, 9))) for _ in range(20000)]
    texts += [bytes([a, b, c]) for a in starts for b in starts for c in starts]
    for text, line in zip(texts, written(*texts, program=program), strict=True):
        assert json.loads(line) == text.decode("utf-8", "replace"), text
