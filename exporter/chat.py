"""Takes a model's chat template apart into the pieces that the chat section of model.bin holds (the head of
cli/chat.c describes it).

A template is a Jinja program, and from outside: it runs in jinja2's sandbox, with what transformers gives to
templates, in a process of its own with bounded time and memory. It is rendered with conversations of marked
texts; what stands between the marks are the pieces. They are believed only if they give, put together, what
the template gives for other conversations. Tools, pictures, thinking switches: never given, so that the
template's defaults hold.

What was thought is not sent back, only what was said: answers go into the history without their <think>
parts, if the template knows such.
"""

import json
import struct
import subprocess
import sys
from pathlib import Path

from exporter.errors import ExportError, printable

TAG = 0x31544843  # "CHT1"
OPEN, SYSTEM_BEFORE, SYSTEM_AFTER, PROMPT, ANSWER, NEXT = range(6)
NO_SYSTEM, STRIP_SYSTEM, STRIP_USER, STRIP_ANSWER, DROP_THOUGHTS, DROP_LINES = (1 << i for i in range(6))
SECONDS, MEMORY, LONGEST = 5, 1 << 30, 1 << 20  # of the process; characters of a rendered conversation

# DeepSeek-V3.2's repository has an encoder script (encoding_dsv32.py) in place of a template: what it writes
# in its mode "chat".
DEEPSEEK_V32 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}{% if add_generation_prompt or not loop.last %}<｜Assistant｜></think>{% endif %}"
    "{% else %}{{ m.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
)

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
THOUGHT = "<think>\nbecause\n</think>\n\n"


class UnsupportedTemplate(ExportError):
    """The template has something that pieces cannot say. The text names it."""


# ---- in the process of its own
# ---------------------------------------------------------------------------------------------------------


def compiled(template):
    """The template in an environment as transformers makes it, and a list that is not empty once it has asked
    for the date."""
    import jinja2.ext
    import jinja2.sandbox
    from datetime import datetime

    class Generation(jinja2.ext.Extension):  # {% generation %} marks what a model wrote, for training
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    dated = []

    def strftime_now(form):
        dated.append(form)
        return datetime.now().strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(template), dated


def conversation(said, system=None):
    """The messages of a conversation: user, assistant, user, ..."""
    roles = ["user", "assistant"] * len(said)
    return ([] if system is None else [("system", system)]) + list(zip(roles, said))


def between(text, marks):
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


def take_apart(render):
    """(pieces, NO_SYSTEM or 0)."""
    marks = ["Xq1first", "Xq2answer", "Xq3second"]
    opening, answer, following, prompt = between(render(conversation(marks)), marks)
    try:
        before, after, *rest = between(render(conversation(marks, "Xq0system")), ["Xq0system", *marks])
        if rest != [answer, following, prompt]:
            raise UnsupportedTemplate("a system text changes what follows the first turn")
        return [opening, before, after, prompt, answer, following], 0
    except UnsupportedTemplate:
        return [opening, "", "", prompt, answer, following], NO_SYSTEM


def put_together(pieces, flags, messages):
    """What cli/chat.c makes of a conversation."""
    strip = {"system": STRIP_SYSTEM, "user": STRIP_USER, "assistant": STRIP_ANSWER}
    text = "" if messages[0][0] == "system" else pieces[OPEN]
    for i, (role, said) in enumerate(messages):
        if role == "assistant" and flags & DROP_THOUGHTS:
            said = said.rsplit("</think>", 1)[-1]
            said = said.lstrip("\n") if flags & DROP_LINES else said
        said = said.strip() if flags & strip[role] else said
        before = {"system": SYSTEM_BEFORE, "assistant": ANSWER}.get(
            role, NEXT if i and messages[i - 1][0] == "assistant" else None
        )
        text += (
            (pieces[before] if before is not None else "")
            + said
            + (pieces[SYSTEM_AFTER] if role == "system" else "")
        )
    return text + pieces[PROMPT]


def conversations(system, thought=""):
    """Of one to four turns; each role says each text."""
    for i in range(len(TEXTS)):
        said = [(thought if k % 2 else "") + TEXTS[(i + k) % len(TEXTS)] for k in range(1 + 2 * (i % 4))]
        yield conversation(said)
        if system:
            yield conversation(said, TEXTS[(i + 3) % len(TEXTS)])


def difference(pieces, flags, rendered):
    """Where the pieces first give something else than the template, in words; None: nowhere."""
    for messages, want in rendered:
        got = put_together(pieces, flags, messages)
        if got != want:
            at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
            start = max(at - 20, 0)
            return f"it writes {want[start : at + 20]!r} where pieces give {got[start : at + 20]!r}"
    return None


def proved(template, special):
    """(flags, pieces, whether the date is in them). Raises UnsupportedTemplate."""
    program, dated = compiled(template)

    def render(messages):
        messages = [{"role": role, "content": said} for role, said in messages]
        try:
            text = program.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **special
            )
        except Exception as error:  # whatever a template does
            raise UnsupportedTemplate(f"it fails: {type(error).__name__}: {error}") from error
        if len(text) > LONGEST:
            raise UnsupportedTemplate(f"it writes more than {LONGEST} characters for a few words")
        return text

    pieces, no_system = take_apart(render)
    plain = [(messages, render(messages)) for messages in conversations(not no_system)]
    knows = "</think>" in template or "<think>" in pieces[PROMPT]
    with_thoughts = (
        [(messages, render(messages)) for messages in conversations(not no_system, THOUGHT)] if knows else []
    )
    # Where a template keeps the thoughts it is given, it is not given any.
    trials = (
        [(DROP_THOUGHTS, with_thoughts), (DROP_THOUGHTS | DROP_LINES, with_thoughts), (DROP_THOUGHTS, [])]
        if knows
        else [(0, [])]
    )
    first = None
    for thoughts, more in trials:
        for strip in range(0, 16, 2):  # STRIP_SYSTEM, STRIP_USER, STRIP_ANSWER
            flags = no_system | strip | thoughts
            wrong = difference(pieces, flags, plain + more)
            if not wrong:
                return flags, pieces, bool(dated)
            first = first or wrong
    raise UnsupportedTemplate(first)


def main():
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # another system: the time that compile_template waits is the limit
    try:
        json.dump(proved(**json.load(sys.stdin)), sys.stdout)
    except Exception as error:
        json.dump(
            str(error) if isinstance(error, UnsupportedTemplate) else f"{type(error).__name__}: {error}",
            sys.stdout,
        )


# ---- in export.py's process
# ------------------------------------------------------------------------------------------------------------


def compile_template(template, special, warn):
    """The chat section for a template. `special`: {"bos_token": text, ...}. Raises UnsupportedTemplate."""
    try:
        import jinja2

        safe = tuple(map(int, jinja2.__version__.split(".")[:3])) >= (
            3,
            1,
            6,
        )  # there are ways out of older sandboxes
    except ImportError:
        safe = False
    if not safe:
        raise UnsupportedTemplate("reading it needs jinja2 3.1.6 or newer: pip install -U jinja2")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "exporter.chat"],
            input=json.dumps({"template": template, "special": special}),
            text=True,
            capture_output=True,
            cwd=Path(__file__).resolve().parent.parent,
            timeout=2 * SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedTemplate("it does not come to an end") from None
    if done.returncode:
        raise UnsupportedTemplate(f"it takes more than {SECONDS} seconds or {MEMORY >> 20} MB")
    result = json.loads(done.stdout)
    if isinstance(result, str):
        raise UnsupportedTemplate(result)
    flags, pieces, dated = result
    if dated:
        warn("the chat template writes the date: it will always be today's")
    texts = [piece.encode("utf-8") for piece in pieces]
    return struct.pack("<8I", TAG, flags, *map(len, texts)) + b"".join(texts)


def read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def find_template(directory, model_type=None):
    """(template or None, special tokens) of a Hugging Face directory."""
    folder = Path(directory)
    config = read(folder / "tokenizer_config.json")
    tokens = read(folder / "special_tokens_map.json") | config
    special = {
        key: value["content"] if isinstance(value, dict) else value
        for key, value in tokens.items()
        if key.endswith("_token")
    }
    special = {key: value for key, value in special.items() if isinstance(value, str)}
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8"), special
    template = config.get("chat_template") or read(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # [{"name": ..., "template": ...}]
        template = {named["name"]: named["template"] for named in template}.get("default")
    if template is None and model_type == "deepseek_v32":
        template = DEEPSEEK_V32
    return template, special


def gguf_template(metadata):
    """The same of a GGUF file."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {f"{key}_token": metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
    return metadata.get("tokenizer.chat_template"), {
        key: tokens[i] for key, i in ids.items() if type(i) is int and 0 <= i < len(tokens)
    }


def compile_chat(find, warn):
    """The chat section for what `find` gives, (template or None, special tokens); empty if there is no
    template or, with a warning, none that pieces can say."""
    try:
        template, special = find()
        return compile_template(template, special, warn) if template else b""
    except Exception as error:  # whatever is wrong with a template must not cost the weights
        text = str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"
        warn(f"no chat template in the checkpoint: {printable(text, 300)}")
        return b""


if __name__ == "__main__":
    main()
