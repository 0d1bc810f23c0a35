"""Takes a model's chat template apart into the pieces that the chat section of model.bin holds
(cli/template.h describes it).

A template is a Jinja program, and from outside: it runs in jinja2's sandbox, with what transformers gives to
templates, in a child process with bounded CPU time and memory (bounded.py). It is rendered with conversations
of marked texts; what stands between the marks are the pieces. They are believed only if they give, put
together, what the template gives for other conversations. Tools and pictures are never given, so that the
template's defaults hold. Where it has a switch for thoughts, all of this is done three times: without it,
with thoughts on, and with thoughts off; where it knows a greatest effort, a fourth time with that.

What the template keeps of an answer with a thought in it, the history keeps. A template that keeps everything
it is given leaves it to the caller to part thought and answer, as servers do: then an answer begins behind
the first mark that ends a thought, unless the prompt has already ended it.
"""

import importlib.metadata
import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

from .bounded import ChildFailed, LimitExceeded, run_bounded
from .built_in import BUILT_IN
from .errors import ExportError, printable
from .files import PointerError, read_file
from .sources import read_json

TAG = 0x32544843  # "CHT2"
PIECES = ["open", "system_before", "system_after", "prompt", "answer", "blank", "next", "number_after"]
PIECES += ["think_begin", "think_end"]
NO_SYSTEM, STRIP_SYSTEM, STRIP_USER, STRIP_ANSWER, SPLIT_FIRST, SPLIT_LAST, DROP_LINES, DROP_OPEN, COUNT = (
    1 << i for i in range(9)
)
SECONDS, MEMORY = 5, 1 << 30  # of the child process
LONGEST = 1 << 20  # characters of a rendered conversation
MAX_SECTION = 1 << 18  # bytes; cli/template.c reads no more

# What anybody may say. Each role says each of them.
TEXTS = [
    "Hello",
    " two  spaces ",
    "\n\nlines\nand\n\n",
    "{{ braces }} {% if %} {# x #}",
    "\u3000\u4f60\u597d \U0001f600\u00a0",
    "<b>&amp;'\"\\n\\</b>\t",
    "user: assistant:",
]
MANY_TURNS = 12  # more than one digit has for a template that counts

# Marks of thoughts: <think> and </think>, [THINK], </longcat_think>, <|/thinking|>, ... And whatever a
# template splits a text at, whatever its name.
THOUGHT_MARK = re.compile(
    r"([<\[\u25c1]\|?)(/?)([\w:.-]*(?:think|thought|reason)[\w:.-]*\|?[>\]\u25b7])", re.I
)
SPLIT_AT = re.compile(r"""\b(?:split|partition|rpartition|rsplit)\(\s*(?:'([^'\\]+)'|"([^"\\]+)")""")
MOST_MARKS, LONGEST_MARK = 6, 64

# Variables by which templates switch thoughts, with the values for on and off. A template has the first one
# that makes a difference; a value that is a word counts only where the template writes that word.
SWITCHES: list[tuple[str, bool | str, bool | str]] = [
    ("enable_thinking", True, False),  # GLM, Qwen, LongCat
    ("thinking", True, False),  # DeepSeek, Kimi
    ("reasoning_effort", "high", "none"),  # Mistral
    ("reasoning_effort", "high", "no_think"),  # Hunyuan
    ("thinking_option", "on", "off"),  # Ling
]
MOST_EFFORT = ("reasoning_effort", "max")  # what some templates know beside the switch


class UnsupportedTemplate(ExportError):
    """The template has something that pieces cannot say. The text names it."""


class MissingJinja(ExportError):
    """No template can be read on this machine."""


class Template(NamedTuple):
    """A template taken apart."""

    pieces: dict[str, str]  # name (PIECES) -> text
    flags: int = 0
    number: int = 0  # COUNT: what the second turn's number is; each further turn has the next one
    dated: bool = False  # the pieces hold today's date
    approximate: bool = False  # it writes answers with thoughts in them in a way that pieces cannot say


Special: TypeAlias = dict[str, str]  # {"bos_token": text, ...}
Switch: TypeAlias = dict[str, bool | str]  # what is given of SWITCHES; empty: nothing


class Found(NamedTuple):
    """What a source has."""

    template: str | None  # the Jinja program
    special: Special


class Message(NamedTuple):
    role: str
    content: str


class Rendered(NamedTuple):
    """A conversation and what the template makes of it."""

    messages: list[Message]
    text: str


class Numbered(NamedTuple):
    """A piece with a number in it."""

    before: str
    after: str
    number: int


class Marks(NamedTuple):
    """The marks of a thought. begin: "" if there is none."""

    begin: str
    end: str


class Split(NamedTuple):
    """What a template may do with thoughts. given: whether the conversations that it must agree on have
    any."""

    flags: int
    begin: str
    end: str
    given: bool


Render: TypeAlias = Callable[[list[Message]], str]


# ---- in the child process


def sandboxed(template: str) -> tuple[Any, list[str]]:
    """The template as jinja2 has it, in an environment as transformers makes it; and a list that is not empty
    once it has asked for the date."""
    from datetime import datetime

    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):  # {% generation %} marks what a model wrote, for training
        tags = {"generation"}  # noqa: RUF012 (as in the base class)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    dated: list[str] = []

    def strftime_now(form: str) -> str:
        dated.append(form)
        return datetime.now().strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    try:
        return environment.from_string(template), dated
    except Exception as error:  # of Jinja's compiler, or of Python's on what that made of the template
        raise UnsupportedTemplate(f"it is no Jinja: {type(error).__name__}: {error}") from error


def renderer(program: Any, special: Special, switch: Switch) -> Render:
    """A function from messages to the text that the template makes of them."""

    def render(messages: list[Message]) -> str:
        given = [message._asdict() for message in messages]
        try:
            text: str = program.render(
                messages=given, tools=None, documents=None, add_generation_prompt=True, **special, **switch
            )
            text.encode("utf-8")
        except Exception as error:  # whatever a template does
            raise UnsupportedTemplate(f"it fails: {type(error).__name__}: {error}") from error
        if len(text) > LONGEST:
            raise UnsupportedTemplate(f"it writes more than {LONGEST} characters for a few words")
        return text

    return render


def conversation(contents: list[str], system: str | None = None) -> list[Message]:
    """The messages of a conversation: user, assistant, user, ..."""
    begin = [] if system is None else [Message("system", system)]
    return begin + [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]


def between(text: str, marks: list[str]) -> list[str]:
    """What stands before, between and behind the marks."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise UnsupportedTemplate(f"it writes a text of the conversation {text.count(mark)} times")
        piece, found, text = text.partition(mark)
        if not found:
            raise UnsupportedTemplate("it writes the conversation in another order")
        pieces.append(piece)
    return [*pieces, text]


def parted_at_number(second: str, third: str) -> Numbered | None:
    """Where two pieces differ in a decimal number alone, n and n + 1; else None."""
    parted = [re.split(r"(\d+)", piece) for piece in (second, third)]
    if len(parted[0]) != len(parted[1]):
        return None
    differ = [i for i, (a, b) in enumerate(zip(*parted, strict=True)) if a != b]
    if len(differ) != 1 or differ[0] % 2 == 0:
        return None
    (at,) = differ
    number, following = parted[0][at], parted[1][at]
    if str(int(number)) != number or str(int(number) + 1) != following:
        return None
    return Numbered("".join(parted[0][:at]), "".join(parted[0][at + 1 :]), int(number))


def take_apart(render: Render) -> Template:
    """The Template's pieces, and NO_SYSTEM and COUNT of its flags."""
    marks = ["Xq_first", "Xq_answer", "Xq_second", "Xq_reply", "Xq_third"]
    opening, answer, following, again, third, prompt = between(render(conversation(marks)), marks)
    flags = number = 0
    pieces = dict.fromkeys(PIECES, "") | {"open": opening, "prompt": prompt, "answer": answer}
    pieces |= {"next": following, "blank": answer}
    if again != answer:
        raise UnsupportedTemplate("it writes something else before the second answer than before the first")
    if third != following:
        numbered = parted_at_number(following, third)
        if not numbered:
            raise UnsupportedTemplate(f"it writes {following!r} before the second turn, then {third!r}")
        pieces["next"], pieces["number_after"], number = numbered
        flags |= COUNT
    try:
        before, after, *rest = between(render(conversation(marks, "Xq_system")), ["Xq_system", *marks])
        if rest != [answer, following, again, third, prompt]:
            raise UnsupportedTemplate("a system text changes what follows the first turn")
        pieces |= {"system_before": before, "system_after": after}
    except UnsupportedTemplate:
        flags |= NO_SYSTEM
    try:
        _, blank, _ = between(render(conversation([marks[0], "", marks[2]])), [marks[0], marks[2]])
        pieces["blank"] = blank.removesuffix(following) if blank.endswith(following) else answer
    except UnsupportedTemplate:
        pass  # some refuse an answer without a text; it is written as any other
    return Template(pieces, flags, number)


def thought_marks(template: str, pieces: dict[str, str]) -> list[Marks]:
    """The marks of thoughts that a template may know, those with a telling name first. Where it
    names a begin alone, that counts if it stands before the answer."""
    before = pieces["prompt"] + pieces["answer"]
    named = [(opening, slash, name) for opening, slash, name in THOUGHT_MARK.findall(template)]
    named.sort(key=lambda mark: not mark[1])
    pairs = [Marks(a + name, f"{a}/{name}") for a, slash, name in named if slash or a + name in before]
    pairs += [Marks("", a or b) for a, b in SPLIT_AT.findall(template)]
    marks: dict[str, str] = {}
    for begin, end in pairs:
        if len(end) <= LONGEST_MARK:
            marks.setdefault(end, begin)
    return [Marks(begin, end) for end, begin in marks.items()][:MOST_MARKS]


def has_telling_name(end: str) -> bool:
    mark = THOUGHT_MARK.fullmatch(end)
    return mark is not None and mark[2] == "/"


def kept_of(content: str, flags: int, end: str) -> str:
    """What the history keeps of an answer."""
    if end and end in content and flags & (SPLIT_FIRST | SPLIT_LAST):
        content = content.split(end, 1 if flags & SPLIT_FIRST else -1)[-1]
        content = content.lstrip("\n") if flags & DROP_LINES else content
    return content.strip() if flags & STRIP_ANSWER else content


def put_together(template: Template, messages: list[Message]) -> str:
    """The text that cli/chat.c makes of a conversation that ends with the user's turn."""
    pieces, flags, number = template.pieces, template.flags, template.number
    text = "" if messages[0].role == "system" else pieces["open"]
    answered = False
    for role, content in messages:
        if role == "system":
            content = content.strip() if flags & STRIP_SYSTEM else content
            text += pieces["system_before"] + content + pieces["system_after"]
        elif role == "assistant":
            content = kept_of(content, flags, pieces["think_end"])
            text += pieces["answer" if content else "blank"] + content
            answered = True
        else:
            if answered:
                text += pieces["next"] + (str(number) if flags & COUNT else "") + pieces["number_after"]
                number += 1
            text += content.strip() if flags & STRIP_USER else content
    return text + pieces["prompt"]


def plain_conversations(system: bool) -> Iterator[list[Message]]:
    """Of one to four turns, in which each role says each text, and a long one."""
    for i in range(len(TEXTS)):
        contents = [TEXTS[(i + k) % len(TEXTS)] for k in range(1 + 2 * (i % 4))]
        yield conversation(contents)
        if system:
            yield conversation(contents, TEXTS[(i + 3) % len(TEXTS)])
    yield conversation([TEXTS[k % len(TEXTS)] for k in range(2 * MANY_TURNS - 1)])


def answers_with(begin: str, end: str) -> Iterator[str]:
    """Answers with marks of thoughts in all places."""
    for mark in filter(None, (begin, end)):
        yield from (f"{mark}x", f"x{mark}", f"x {mark} y", f"x{mark}y{mark}z", mark)
        yield f"Write\n```\n{mark}\n```\nhere.\n"
        yield f" x\n{mark}\n\ny \n"
    yield f"{begin}because{end}so"
    yield f"{begin}\nbecause\n{end}\n\nso\n"
    yield f"{begin}because{end}so {begin}not{end} this"
    yield f"{begin}because"


def conversations_with_thoughts(marks: list[Marks]) -> Iterator[list[Message]]:
    """Conversations in which an answer has marks of thoughts. The last answer comes without any, as a
    template may treat that one differently in no conversation that goes on."""
    for begin, end in marks:
        for answer in answers_with(begin, end):
            yield conversation(["Hello", answer, "and", answer, "so"])


def difference(template: Template, rendered: Iterable[Rendered]) -> str | None:
    """Where the pieces first give something else than the template, in words; None: nowhere."""
    for messages, want in rendered:
        got = put_together(template, messages)
        if got != want:
            pairs = enumerate(zip(got, want, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(got), len(want)))
            start = max(at - 20, 0)
            return f"it writes {want[start : at + 20]!r} where pieces give {got[start : at + 20]!r}"
    return None


def has_mark(messages: list[Message], mark: str) -> bool:
    return any(mark in content for _, content in messages)


def ways_to_split(marks: list[Marks]) -> Iterator[Split]:
    """What a template may do with thoughts: nothing; what
    the pieces can say; something else, and then it is given none."""
    yield Split(0, "", "", True)
    for begin, end in marks:
        for split in (SPLIT_FIRST, SPLIT_LAST):
            for lines in (0, DROP_LINES):
                yield Split(split | lines, begin, end, True)
    for begin, end in marks:
        if has_telling_name(end):
            yield Split(SPLIT_LAST, begin, end, False)


def agreeing(
    template: Template, plain: list[Rendered], thoughts: list[Rendered], marks: list[Marks]
) -> Template:
    """The Template with the flags and marks that agree with the rendered conversations."""
    first = None
    for strip in range(0, 16, 2):  # STRIP_SYSTEM, STRIP_USER, STRIP_ANSWER
        stripped = template._replace(flags=template.flags | strip)
        wrong = difference(stripped, plain)
        first = first or wrong
        for split, begin, end, given in ways_to_split(marks) if not wrong else ():
            pieces = template.pieces | {"think_begin": begin, "think_end": end}
            whole = stripped._replace(pieces=pieces, flags=stripped.flags | split)
            wrong = difference(
                whole, (pair for pair in thoughts if given or not has_mark(pair.messages, end))
            )
            if not wrong:
                return whole._replace(approximate=not given)
            first = first or wrong
    raise UnsupportedTemplate(first)


def parted_by_caller(template: Template, marks: list[Marks]) -> Template:
    """A template that keeps whatever it is given: the marks that part thought and answer before it is given
    any. Where the prompt has already ended the thought, the whole answer is one."""
    prompt, answer = template.pieces["prompt"], template.pieces["answer"]
    marks = [pair for pair in marks if has_telling_name(pair[1])]
    marks.sort(key=lambda pair: not any(mark in prompt + answer for mark in pair))
    if not marks:
        return template
    begin, end = marks[0]
    closed = prompt.rfind(end) > prompt.rfind(begin)
    flags = template.flags | (0 if closed else SPLIT_FIRST | DROP_OPEN)
    return template._replace(pieces=template.pieces | {"think_begin": begin, "think_end": end}, flags=flags)


def proved(template: str, special: Special, switch: Switch | None = None) -> Template:
    """A template taken apart: a Template. template: the Jinja program. special: {"bos_token": text, ...}.
    Raises UnsupportedTemplate."""
    program, dated = sandboxed(template)
    render = renderer(program, special, switch or {})
    parts = take_apart(render)
    plain = [
        Rendered(messages, render(messages)) for messages in plain_conversations(not parts.flags & NO_SYSTEM)
    ]
    marks = thought_marks(template, parts.pieces)
    thoughts = [Rendered(messages, render(messages)) for messages in conversations_with_thoughts(marks)]
    parts = agreeing(parts, plain, thoughts, marks)
    if not parts.pieces["think_end"]:
        parts = parted_by_caller(parts, marks)
    return parts._replace(dated=bool(dated))


def mentions(template: str, value: bool | str) -> bool:
    return value is True or value is False or f"'{value}'" in template or f'"{value}"' in template


def proved_forms(template: str, special: Special) -> list[Template]:
    """The template as it is by itself; and if it has a switch, with thoughts on, with thoughts off, and if it
    knows that, too, with the most effort. Raises UnsupportedTemplate if the first cannot be taken apart."""
    first = proved(template, special)
    for name, *values in SWITCHES:
        if not re.search(rf"\b{name}\b", template) or not all(mentions(template, value) for value in values):
            continue
        try:
            on, off = (proved(template, special, {name: value}) for value in values)
        except UnsupportedTemplate:
            continue
        if differ(on, off):
            return [first, on, off, *proved_effort(template, special, {name: values[0]}, on)]
    return [first]


def differ(a: Template, b: Template) -> bool:
    return (a.pieces, a.flags, a.number) != (b.pieces, b.flags, b.number)


def proved_effort(template: str, special: Special, switch: Switch, on: Template) -> list[Template]:
    """The template with the most effort, if that is something else than thoughts on."""
    name, value = MOST_EFFORT
    if name in switch or not re.search(rf"\b{name}\b", template) or not mentions(template, value):
        return []
    try:
        most = proved(template, special, {**switch, name: value})
    except UnsupportedTemplate:
        return []
    return [most] if differ(most, on) else []


# ---- in export.py's process


def check_jinja() -> None:
    """Raises MissingJinja where jinja2 is missing or too old: there are ways out of older sandboxes."""
    try:
        import jinja2

        version = getattr(jinja2, "__version__", None) or importlib.metadata.version("jinja2")
    except ImportError:  # of the module, or of its metadata
        version = ""
    numbers = re.match(r"\d+(\.\d+)*", version)
    if not numbers or tuple(map(int, numbers[0].split("."))) < (3, 1, 6):
        found = f", not {printable(version, 20)}" if version else ""
        raise MissingJinja(
            f"the chat template needs jinja2 3.1.6 or newer{found}: pip install -U jinja2; or leave the "
            "template out with --no-chat"
        )


def packed_form(template: Template) -> bytes:
    texts = [template.pieces[name].encode("utf-8") for name in PIECES]
    return struct.pack("<13I", TAG, template.flags, template.number, *map(len, texts)) + b"".join(texts)


def packed(forms: list[Template]) -> bytes:
    """The chat section of one Template, of three or of four, as cli/template.h describes it."""
    section = b"".join(map(packed_form, forms))
    if len(section) > MAX_SECTION:
        raise UnsupportedTemplate(f"its pieces have {len(section)} bytes, more than {MAX_SECTION}")
    return section


def compile_template(template: str, special: Special, warn: Callable[[str], None]) -> bytes:
    """The chat section for a template. special: {"bos_token": text, ...}. Raises UnsupportedTemplate or
    MissingJinja; ChildFailed where this program is to blame."""
    check_jinja()
    try:
        forms: list[Template] = run_bounded(proved_forms, template, special, seconds=SECONDS, memory=MEMORY)
    except LimitExceeded as error:
        raise UnsupportedTemplate(f"it is too much work to take apart: {error}") from None
    if forms[0].dated:
        warn("the chat template writes the date: it will always be today's")
    approximate = [parts for parts in forms if parts.approximate]
    if approximate:
        end = approximate[0].pieces["think_end"]
        warn(
            f"the chat template changes answers that have {end} in them in a way of its own: ./run keeps "
            f"what follows the last {end}"
        )
    return packed(forms)


def text_of(token: Any) -> str | None:
    """The text of a special token, which is a string or an object with `content`; None: neither."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def default_template(value: Any, path: object) -> str | None:
    """`chat_template` of a configuration: a text, or a list of {"name", "template"}; None: absent."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise UnsupportedTemplate(f"{path}: chat_template is no text")
    return value


def find_template(directory: str | os.PathLike[str], model_type: str | None = None) -> Found:
    """Of a Hugging Face directory."""
    folder = Path(directory)
    config = read_json(str(folder / "tokenizer_config.json"), required=False)
    tokens = read_json(str(folder / "special_tokens_map.json"), required=False) | config
    texts = {key: text_of(value) for key, value in tokens.items() if key.endswith("_token")}
    special = {key: text for key, text in texts.items() if text is not None}
    own_file = folder / "chat_template.jinja"
    if own_file.exists():
        try:
            return Found(read_file(own_file).decode("utf-8"), special)
        except UnicodeDecodeError as error:
            raise UnsupportedTemplate(f"{own_file}: no UTF-8: {error}") from None
    template = default_template(config.get("chat_template"), folder / "tokenizer_config.json")
    if template is None:
        values = read_json(str(folder / "chat_template.json"), required=False)
        template = default_template(values.get("chat_template"), folder / "chat_template.json")
    if template is None:
        template = BUILT_IN.get(model_type or "")
    return Found(template, special)


def gguf_template(metadata: dict[str, Any], model_type: str | None = None) -> Found:
    """Of a GGUF file."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {f"{key}_token": metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
    special = {key: tokens[i] for key, i in ids.items() if type(i) is int and 0 <= i < len(tokens)}
    template = default_template(metadata.get("tokenizer.chat_template"), "tokenizer.chat_template")
    return Found(BUILT_IN.get(model_type or "") if template is None else template, special)


def compile_chat(find: Callable[[], Found], warn: Callable[[str], None]) -> bytes:
    """The chat section for what `find` gives; empty if there is no
    template. One that cannot be read or said by pieces costs a warning and not the weights. Raises
    MissingJinja, and PointerError where the template was never downloaded."""
    try:
        template, special = find()
        return compile_template(template, special, warn) if template else b""
    except (MissingJinja, PointerError):
        raise
    except (ExportError, OSError) as error:
        why = str(error)
    except ChildFailed as error:
        why = f"a defect of export.py and not of the template, please report it: {error}"
    warn(f"no chat template in the checkpoint: {printable(why, 300)}")
    return b""
