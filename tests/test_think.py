"""--think: the template's own switch for thoughts, and thoughts that are made but not written.

The templates are those of published families in small, as in test_chat.py; the judge of what a switch does is
jinja2, by way of transformers."""

import json
import random
import subprocess
import time

import pytest
from support import FAILED, RUN, USAGE, refused, run, text
from test_chat import (
    ASSISTANT,
    BOS,
    EOS,
    EXACT,
    MARKS,
    SPECIAL,
    TEMPLATES,
    THINK,
    THINKERS,
    USER,
    Judge,
    behind_thought,
    chat,
    conversation_of,
    ids_of,
    quick_export,
    say,
    session_ids,
    source,
    speaker,
    template,
    tokenizer,
)
from transformers import PreTrainedTokenizerFast

from exporter import chat as exporter_chat
from exporter.built_in import DEEPSEEK_V4, DEEPSEEK_V32
from exporter.chat import compile_chat, proved_forms, put_together

BEGIN, END = THINK


def when(condition, yes, no):
    return "{% if " + condition + " %}" + yes + "{% else %}" + no + "{% endif %}"


def generation(prompt):
    """A template of DeepSeek's form whose prompt is this piece of Jinja."""
    whole = template(
        say(), say(USER), behind_thought(ASSISTANT + END, EOS, split="split('</think>', 1)[1]"), "P"
    )
    return whole.replace("{{ 'P' }}", prompt)


# name: (template, variable, on, off)
SWITCHED = {
    "V3.1": (
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
        + generation(when("thinking", ASSISTANT + BEGIN, ASSISTANT + END)),
        "thinking",
        True,
        False,
    ),
    "V3.2": (DEEPSEEK_V32, "thinking", True, False),
    "V4": (DEEPSEEK_V4, "thinking", True, False),
    "K2.5": (
        generation(
            when("thinking is defined and thinking is false", ASSISTANT + BEGIN + END, ASSISTANT + BEGIN)
        ),
        "thinking",
        True,
        False,
    ),
    "GLM-4.7": (
        generation(
            ASSISTANT
            + "{{ '</think>' if (enable_thinking is defined and not enable_thinking) else '<think>' }}"
        ),
        "enable_thinking",
        True,
        False,
    ),
    "GLM-4.5": (  # its switch is in the user's turns, too
        template(
            say(),
            say(USER) + "{{ '/nothink' if (enable_thinking is defined and not enable_thinking) else '' }}",
            behind_thought(ASSISTANT + "\\n<think></think>\\n", "").replace("+ c +", "+ c.strip() +"),
            "P",
        ).replace(
            "{{ 'P' }}",
            ASSISTANT
            + "{{ '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}",
        ),
        "enable_thinking",
        True,
        False,
    ),
    "Qwen3": (
        template(
            say("<|im_start|>system\\n", "<|im_end|>\\n"),
            say("<|im_start|>user\\n", "<|im_end|>\\n"),
            behind_thought("<|im_start|>assistant\\n", "<|im_end|>\\n", ".lstrip('\\n')"),
            "<|im_start|>assistant\\n",
            "",
        )
        + "{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
        "enable_thinking",
        True,
        False,
    ),
    "Mistral": (  # a switch in front of the first turn
        "{% set effort = reasoning_effort if reasoning_effort is defined else 'none' %}"
        "{% if effort not in ['none', 'high'] %}{{ raise_exception('effort') }}{% endif %}"
        + template(say(), say(USER), behind_thought(ASSISTANT, EOS), ASSISTANT, BOS + "[{{ effort }}]"),
        "reasoning_effort",
        "high",
        "none",
    ),
}


@pytest.fixture(scope="module")
def switched(tmp_path_factory):
    """switched(name): (checkpoint, judge). Made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = source(tmp_path_factory.mktemp("think") / "model", SWITCHED[name][0])
            made[name] = quick_export(folder, folder / "model.bin", "--type", "f32"), Judge(folder)
        return made[name]

    return make


def variables(name, how):
    _, variable, on, off = SWITCHED[name]
    most = {variable: on, "reasoning_effort": "max"}
    return {"default": {}, "on": {variable: on}, "off": {variable: off}, "max": most}[how]


WAYS = [(name, how) for name in SWITCHED for how in ("default", "on", "off")] + [("V4", "max")]


@pytest.mark.parametrize("name, how", WAYS)
def test_forms_are_the_templates(name, how):
    """In each position of the switch the pieces give what the template gives, for answers of marks, lines and
    words in any order."""
    chat_template = SWITCHED[name][0]
    forms = proved_forms(chat_template, {"bos_token": BOS, "eos_token": EOS})
    parts = dict(zip(["default", "on", "off", "max"], forms, strict=False))[how]
    library = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), bos_token=BOS, eos_token=EOS)
    library.chat_template = chat_template
    parts = parts._replace(flags=parts.flags & ~exporter_chat.DROP_OPEN)
    if name in ("V3.2", "V4"):  # it keeps what it is given; what is given to it is the caller's business
        parts = parts._replace(flags=parts.flags & ~exporter_chat.SPLIT_FIRST)
    draw = random.Random(7)
    words = [BEGIN, END, BEGIN + "\n", "\n" + END + "\n\n", "word", " ", "```\n", "so ", "\u3000", "</b>"]
    for _ in range(100):
        answers = ["".join(draw.choices(words, k=draw.randrange(1, 9))) for _ in range(2)]
        if name == "GLM-4.5":  # nothing is kept of an answer that is a mark alone
            answers = [answer + "x" for answer in answers]
        messages = conversation_of(["u", answers[0], "v", answers[1], "w"])
        want = library.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, **variables(name, how)
        )
        assert put_together(parts, [exporter_chat.Message(**message) for message in messages]) == want


@pytest.mark.parametrize("name, how", WAYS)
def test_switch(name, how, switched):
    """The model goes on from what the template writes with the variable: what it says is what it says after
    those ids. Alone, as a line of --prompts and in a batch."""
    model, judge = switched(name)
    options = [] if how == "default" else ["--think", how]
    sampled = ["-n", 20, "-t", 1, "--top-k", 8, "-s", 3, "-k", "f32"]
    prompt = judge.library.apply_chat_template(
        conversation_of(["Hello"]), add_generation_prompt=True, **variables(name, how)
    )["input_ids"]
    said = text("--ids", " ".join(map(str, prompt)), *sampled, "--ignore-eos", model=model, **EXACT)
    alone = text("--chat", "-p", "Hello", *options, *sampled, "--ignore-eos", model=model, **EXACT)
    opened = judge.text(prompt).rpartition(BEGIN)[2] if BEGIN in judge.text(prompt) else END
    begun = "" if END in opened else BEGIN + opened
    marks = [judge.library.convert_tokens_to_ids(mark) for mark in THINK]
    assert alone.decode().removeprefix(begun) == said.decode() + "\n" or any(mark in marks for mark in prompt)
    line = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True})
    answer = json.loads(text("--batch", "-", *options, *sampled, model=model, stdin=line.encode(), **EXACT))
    assert (answer["text"] + "\n").encode() == alone and answer["prompt_tokens"] == len(prompt)
    ids = json.loads(
        text(
            "--batch",
            "-",
            *sampled,
            model=model,
            stdin=json.dumps({"ids": prompt, "ignore_eos": True}).encode(),
        )
    )["ids"]
    assert answer["ids"] == ids


@pytest.mark.parametrize("name", ["V3.1", "GLM-4.5", "Mistral"])
def test_switch_in_a_session(name, switched, tmp_path):
    """A conversation with the switch on or off is what the template makes of it, turn after turn."""
    model, judge = switched(name)
    for how in ("on", "off"):
        session, said = tmp_path / how, []
        for turn in ("Hello", "two", "three"):
            answer = chat(
                model,
                "-p",
                turn,
                "-n",
                20,
                "-t",
                1,
                "--top-k",
                8,
                "-s",
                1,
                "--think",
                how,
                "--session",
                session,
            ).decode()
            said += [turn, answer[:-1]]
        chat(model, "-p", "last", "-n", 0, "--think", how, "--session", session)
        want = judge.library.apply_chat_template(conversation_of([*said, "last"]), **variables(name, how))
        ids = session_ids(session)
        want = want["input_ids"]
        assert len(ids) >= len(want) and ids[: len(want)] == want


def test_no_switch(tmp_path):
    """A template without one: on and off are errors, and so is the option outside of a conversation. One
    whose switch pieces cannot say has none either, and works without."""
    raising = TEMPLATES["V3"] + "{% if enable_thinking is defined %}{{ raise_exception('no') }}{% endif %}"
    for i, chat_template in enumerate([TEMPLATES["V3"], raising]):
        folder = source(tmp_path / f"model{i}", chat_template)
        model = quick_export(folder, folder / "model.bin")
        assert chat(model, "-p", "a", "-n", 1)
        for how in ("on", "off", "max"):
            refused(run("--chat", "-p", "a", "--think", how, model=model), FAILED, "no switch", "--think")
            refused(run("--batch", "-", "--think", how, model=model), FAILED, "no switch", "--think")
        refused(run("--chat", "-p", "a", "--think", "hide", model=model), FAILED, "no marks", "--think")
    refused(run("--think", "on", "-p", "a", model=model), USAGE, "--think")
    refused(run("--chat", "--think", "maybe", model=model), USAGE, "on, off, max or hide")


@pytest.mark.parametrize(
    "chat_template, forms",
    [
        (TEMPLATES["V3"], 1),
        (TEMPLATES["V3"] + "{# thinking #}", 1),  # a name alone is no switch
        (SWITCHED["V3.1"][0], 3),
        (DEEPSEEK_V4, 4),
        (TEMPLATES["V3"] + "{{ reasoning_effort }}", 1),  # values that the template does not name are none
        (TEMPLATES["V3"] + "{{ reasoning_effort or 'none' if 1 else 'high' }}", 3),
    ],
)
def test_forms_in_the_section(chat_template, forms):
    """A template without a switch is stored once, as it was before there were switches."""
    section = compile_chat(lambda: (chat_template, {"bos_token": BOS, "eos_token": EOS}), print)
    assert section.count(b"CHT2") == forms


def test_two_forms_are_damage(tmp_path, monkeypatch):
    """A section is one form, three or four."""
    whole = exporter_chat.packed
    for count in (2, 5):
        monkeypatch.setattr(exporter_chat, "packed", lambda forms, n=count: whole((forms + forms)[:n]))
        folder = source(tmp_path / f"model{count}", SWITCHED["V3.1"][0])
        model = quick_export(folder, folder / "model.bin")
        refused(run("--chat", "-p", "a", model=model), FAILED, "chat template is damaged: its forms")


def test_no_greatest_effort(switched):
    """A template that has a switch and no more says so."""
    model, _ = switched("V3.1")
    refused(run("--chat", "-p", "a", "--think", "max", model=model), FAILED, "--think on", "effort")


# ---- hidden thoughts


def hidden(said, opened):
    """(thought, answer) of what a model says after a prompt that has begun a thought or not: a thought is
    what stands between the marks at the beginning."""
    if not opened:
        if not said.lstrip().startswith(BEGIN):
            return "", said
        said = said.lstrip()[len(BEGIN) :]
    thought, _, answer = said.partition(END)
    return thought, answer.lstrip("\n")


SAID = ["a", "BtEa", "BtE\nb", "Bt", "tE\nab", "aBtEc", "`", "E", " BtE\nEx", "BE", "tEaEBc", "\nBtE"]
HIDING = ["V3.2", "K2", "K2.5", "R1", "GLM", "lines"]


def can_be_said(said, start):
    following = {}
    return all(following.setdefault(a, b) == b for a, b in zip([start, *said], said, strict=False))


@pytest.mark.parametrize("marks", ["tokens", "text"])
@pytest.mark.parametrize("family", HIDING)
def test_hide(family, marks, tmp_path):
    """What is written is the answer without the thought, whether a mark is a token or text; all ways to ask
    give the same, and a batch has the thought beside it."""
    chat_template, _, _ = THINKERS[family]
    own_marks = MARKS if marks == "tokens" else [USER, ASSISTANT]
    t = tokenizer(marks=own_marks, special=[*SPECIAL, "[INST]", "[/INST]", "[THINK]", "[/THINK]"])
    library = PreTrainedTokenizerFast(tokenizer_object=t, bos_token=BOS, eos_token=EOS)
    library.chat_template = chat_template
    prompt = library.apply_chat_template([{"role": "user", "content": "u"}], add_generation_prompt=True)
    start = prompt["input_ids"][-1]
    shown = library.decode(prompt["input_ids"])
    opened = BEGIN in shown and END not in shown.rpartition(BEGIN)[2]
    tried = 0
    for letters in SAID:
        spelled = letters if marks == "tokens" else letters.replace("B", BEGIN).replace("E", END)
        said = ids_of(t, spelled, BEGIN, END) if marks == "tokens" else ids_of(t, spelled, "B", "E")
        if not can_be_said(said, start):
            continue
        tried += 1
        model, _ = speaker(tmp_path / f"{tried}", chat_template, said, start, own_marks)
        thought, answer = hidden(letters.replace("B", BEGIN).replace("E", END), opened)
        options = ["-t", 0, "-n", len(said), "--think", "hide"]
        assert chat(model, *options, stdin=b"u\n").decode() == answer + "\n", letters
        line = text("--prompts", "-", "--chat", *options, "-k", "f32", model=model, stdin=b"u\n", **EXACT)
        assert line.decode() == answer.replace("\n", "\\n") + "\n"
        message = {"messages": [{"role": "user", "content": "u"}]}
        request = {"custom_id": "c", "url": "/v1/chat/completions", "body": message}
        own, openai = (
            json.loads(line)
            for line in text(
                "--batch",
                "-",
                *options,
                "-k",
                "f32",
                model=model,
                stdin=f"{json.dumps(message)}\n{json.dumps(request)}".encode(),
                **EXACT,
            ).splitlines()
        )
        for got in (own, openai["response"]["body"]["choices"][0]["message"]):
            assert got.get("text", got.get("content")) == answer
            assert got.get("reasoning_content", "") == thought.strip()
        assert own["ids"] == said
        assert text(
            "--chat", "-p", "u", "-t", 0, "-n", len(said), "-k", "f32", model=model, **EXACT
        ).decode() == (
            (BEGIN + shown.rpartition(BEGIN)[2] if opened else "")
            + letters.replace("B", BEGIN).replace("E", END)
            + "\n"
        )
    assert tried > 1


def test_stop_and_hide(tmp_path):
    """A stop text ends what is written; in a thought it means nothing. The history has what was written."""
    chat_template, _, _ = THINKERS["R1"]
    t = tokenizer(special=[*SPECIAL, "[INST]", "[/INST]", "[THINK]", "[/THINK]"])
    said = ids_of(t, "xyE\nabxc", *THINK)
    said = ids_of(t, "qyE", *THINK) + ids_of(t, "abqcd", *THINK)[:2] + ids_of(t, "xcd", *THINK)
    model, judge = speaker(tmp_path / "model", chat_template, said, t.token_to_id("\u010a"))
    session = tmp_path / "session"
    for stop, answer in (("x", "ab"), ("bx", "a"), ("y", "abxcd"), ("E", "abxcd")):
        session.unlink(missing_ok=True)
        options = ["-t", 0, "-n", len(said), "--stop", stop, "--session", session]
        assert chat(model, *options, "--think", "hide", "-p", "u").decode() == answer + "\n"
        chat(model, "-t", 0, "-n", 0, "-p", "v", "--session", session)
        want = judge.history(["u", answer, "v"])
        assert session_ids(session)[: len(want)] == want


def test_hidden_thoughts_are_streamed(tmp_path):
    """The answer is written as it comes, not at the end."""
    chat_template, _, _ = THINKERS["R1"]
    t = tokenizer(special=[*SPECIAL, "[INST]", "[/INST]", "[THINK]", "[/THINK]"])
    said = [
        *ids_of(t, "tE", *THINK),
        *ids_of(t, "abcdefghijklmnopqrsuvwxyz", *THINK),
        *ids_of(t, "a", *THINK),
    ]
    model, _ = speaker(tmp_path / "model", chat_template, said, t.token_to_id("\u010a"))
    command = [RUN, model, "--chat", "-p", "u", "-t", "0", "-n", "4000", "--think", "hide", "-c", "4096"]
    talk = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = talk.stdout.read(1)
    begun = time.monotonic()
    rest = talk.stdout.read()
    assert first == b"a" and len(rest) > 3000 and time.monotonic() - begun > 0.01
    assert talk.wait() == 0
