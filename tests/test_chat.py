"""--chat: the template taken apart (exporter/chat.py) and followed (cli/chat.c) gives the tokens that
transformers gives for the same conversation.

The templates are those of published families in small: the same marks, the same spaces, the same treatment of
thoughts. The model is random, with a tokenizer of single bytes, so that what it writes has one tokenisation
only; its output rows prefer ASCII and the end of a thought. What a conversation's tokens are is read out of
its session."""

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import compare
from exporter.chat import DEEPSEEK_V32, find_template, proved, put_together
from support import (
    FAILED,
    INTERRUPTED,
    MODEL,
    MODELS,
    ROOT,
    RUN,
    USAGE,
    prompt_tokens,
    refused,
    run,
    safetensors,
    text,
)

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
MARKS = [USER, ASSISTANT, "<think>", "</think>"]  # ordinary added tokens, as DeepSeek-V3 has them
SPECIAL = [
    BOS,
    EOS,
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_middle|>",
]
VOCABULARY = 3 * 128
EXACT = {"env": {**os.environ, "MLA_PATH": "absorbed"}}  # one path, whatever the number of new rows


# ---- templates -----------------------------------------------------------------------------------


def say(before="", after=""):
    return "{{ '%s' + m['content'] + '%s' }}" % (before, after)


def template(system, user, answer, prompt, begin="{{ bos_token }}"):
    return (
        begin
        + "{% for m in messages %}{% if m['role'] == 'system' %}"
        + system
        + "{% elif m['role'] == 'user' %}"
        + user
        + "{% else %}"
        + answer
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '"
        + prompt
        + "' }}{% endif %}"
    )


def behind_thought(before, after, change=""):
    return (
        "{% set c = m['content'] %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1]"
        + change
        + " %}{% endif %}"
        + "{{ '"
        + before
        + "' + c + '"
        + after
        + "' }}"
    )


def middle(role):
    return say(f"<|im_start|>{role}<|im_middle|>", "<|im_end|>")


CHATML = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
HELPFUL = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system<|im_middle|>You are a helpful assistant<|im_end|>' }}{% endif %}"
TEMPLATES = {
    "V2": template(say("", "\\n\\n"), say("User: ", "\\n\\n"), say("Assistant: ", EOS), "Assistant:"),
    "V3": template(say(), say(USER), say(ASSISTANT, EOS), ASSISTANT),
    "R1": template(say(), say(USER), behind_thought(ASSISTANT, EOS), ASSISTANT + "<think>\\n"),
    "V3.1": template(say(), say(USER), behind_thought(ASSISTANT + "</think>", EOS), ASSISTANT + "</think>"),
    "V3.1, off": template(
        say(), say(USER), behind_thought(ASSISTANT + "</think>", EOS), ASSISTANT + "<think></think>"
    ),  # as others write it
    "Kimi": template(
        middle("system"), middle("user"), middle("assistant"), "<|im_start|>assistant<|im_middle|>", HELPFUL
    ),
    "GLM": template(
        say("<|system|>"),
        say("<|user|>"),
        behind_thought("<|assistant|></think>", "", ".strip()").replace("+ c +", "+ c.strip() +"),
        "<|assistant|><think>",
        "[gMASK]<sop>",
    ),
    "MiniCPM3": template(CHATML, CHATML, CHATML, "<|im_start|>assistant\\n", ""),
}

# As the families publish it: system s, user u, answer a, user u, and the model's turn.
IM = "<|im_start|>{}\n{}<|im_end|>\n"
PUBLISHED = {
    "V2": f"{BOS}s\n\nUser: u\n\nAssistant: a{EOS}User: u\n\nAssistant:",
    "V3": f"{BOS}s{USER}u{ASSISTANT}a{EOS}{USER}u{ASSISTANT}",
    "R1": f"{BOS}s{USER}u{ASSISTANT}a{EOS}{USER}u{ASSISTANT}<think>\n",
    "V3.1": f"{BOS}s{USER}u{ASSISTANT}</think>a{EOS}{USER}u{ASSISTANT}</think>",
    "V3.1, off": f"{BOS}s{USER}u{ASSISTANT}</think>a{EOS}{USER}u{ASSISTANT}<think></think>",
    "Kimi": "<|im_start|>system<|im_middle|>s<|im_end|><|im_start|>user<|im_middle|>u<|im_end|><|im_start|>assistant<|im_middle|>a<|im_end|>"
    "<|im_start|>user<|im_middle|>u<|im_end|><|im_start|>assistant<|im_middle|>",
    "GLM": "[gMASK]<sop><|system|>s<|user|>u<|assistant|></think>a<|user|>u<|assistant|><think>",
    "MiniCPM3": IM.format("system", "s")
    + IM.format("user", "u")
    + IM.format("assistant", "a")
    + IM.format("user", "u")
    + "<|im_start|>assistant\n",
}


def tokenizer(merges=()):
    """Bytes, `merges` of pairs of them, and the marks of all templates."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *(left + right for left, right in merges)])}
    t = Tokenizer(models.BPE(vocabulary, list(merges)))
    t.pre_tokenizer, t.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    t.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    t.add_special_tokens([AddedToken(mark, special=True) for mark in SPECIAL])
    return t


def weights(path):
    """The tensors of a safetensors file in bf16 and f32."""
    raw = path.read_bytes()
    (n,) = struct.unpack_from("<Q", raw)
    arrays = {}
    for name, info in json.loads(raw[8 : 8 + n]).items():
        if name != "__metadata__":
            data = raw[8 + n :][slice(*info["data_offsets"])]
            halves = np.frombuffer(data, np.uint16).astype(np.uint32)
            x = np.frombuffer(data, np.float32) if info["dtype"] == "F32" else (halves << 16).view(np.float32)
            arrays[name] = x.reshape(info["shape"])
    return arrays


def source(folder, chat_template, merges=()):
    """A Hugging Face directory: a model of tests/models with a larger vocabulary, a tokenizer and a template."""
    folder.mkdir()
    t = tokenizer(merges)
    arrays = weights(MODELS / "v2lite" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        arrays[name] = np.concatenate([np.roll(arrays[name], k, axis=1) for k in range(3)])
    head = arrays["lm_head.weight"]
    for i in range(VOCABULARY):
        token = t.id_to_token(i)
        if token is None or i >= 256 or not (token.isascii() or token in "\u0120\u010a"):  # space, line feed
            head[i] = 0
    if "think" in (chat_template or ""):
        head[t.token_to_id("</think>")] = head[t.token_to_id("A")] * 1.2
    config = json.loads((MODELS / "v2lite" / "config.json").read_text())
    config |= {
        "vocab_size": VOCABULARY,
        "bos_token_id": t.token_to_id(BOS),
        "eos_token_id": t.token_to_id(EOS),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors(arrays))
    t.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": {"__type": "AddedToken", "content": BOS}, "eos_token": EOS, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokens | ({"chat_template": chat_template} if chat_template else {}))
    )
    return folder


class Judge:
    """transformers with the same tokenizer and template."""

    def __init__(self, folder):
        self.library = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), bos_token=BOS, eos_token=EOS
        )
        self.library.chat_template = json.loads((folder / "tokenizer_config.json").read_text())[
            "chat_template"
        ]

    def ids(self, said, system=None):
        """The prompt after user, assistant, ..., user."""
        messages = [
            {"role": role, "content": what} for role, what in zip(["user", "assistant"] * len(said), said)
        ]
        messages = ([{"role": "system", "content": system}] if system is not None else []) + messages
        return self.library.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

    def text(self, ids):
        return self.library.decode(ids, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """chat_model(family, merges): (checkpoint, judge). Made once."""
    made = {}

    def make(family, merges=()):
        if (family, merges) not in made:
            folder = source(tmp_path_factory.mktemp("chat") / family, TEMPLATES[family], merges)
            compare.export(folder, folder / "model.bin", "--type", "f32")
            made[family, merges] = folder / "model.bin", Judge(folder)
        return made[family, merges]

    return make


def session_ids(path):
    raw = path.read_bytes()
    (count,) = struct.unpack_from("<I", raw, 136)  # SessionHeader.tokens, cli/session.c
    return list(struct.unpack_from(f"<{count}i", raw, 192))


def chat(model, *options, **how):
    return text("--chat", "-k", "f32", *options, model=model, **{**EXACT, **how})


# ---- the same tokens as transformers -------------------------------------------------------------


@pytest.mark.parametrize("family", TEMPLATES)
def test_templates_are_the_published_ones(family, chat_model):
    """The templates above are what they say they are, or all below proves nothing."""
    _, judge = chat_model(family)
    assert judge.text(judge.ids(["u", "a", "u"], "s")) == PUBLISHED[family]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("family", TEMPLATES)
def test_conversation(family, system, chat_model, tmp_path):
    """Turn after turn, a session holds what transformers makes of all that was said, and the model goes on
    from exactly that: what it writes in the end is what it writes after those ids. Thoughts leave the
    history where the template drops them."""
    model, judge = chat_model(family)
    session, said = tmp_path / "session", []
    begun = {"R1": "<think>\n", "GLM": "<think>"}.get(family, "")
    sampled = ["-n", 60, "-t", 1, "--top-k", 8]
    for turn, user in enumerate(["Hello", "  two words \n{{ x }}", "\ta|b", "last"]):
        before = session_ids(session) if turn else []
        prompt = judge.ids([*said, user], system)
        assert before == prompt[: len(before)]
        answer = chat(
            model,
            "-p",
            user,
            *sampled,
            "-s",
            turn,
            "--session",
            session,
            *(["--system", system] if system and not turn else []),
        ).decode()
        said += [user, answer[:-1]]
    assert (
        answer
        == begun
        + text(
            "--ids", " ".join(map(str, prompt)), *sampled, "-s", turn, "-k", "f32", model=model, **EXACT
        ).decode()
        + "\n"
    )
    assert any("</think>" in answer for answer in said[1:-1:2]) == (
        family in ("R1", "V3.1", "V3.1, off", "GLM")
    )  # or there were no thoughts to drop


def test_one_string_between_marks(chat_model, tmp_path):
    """A merge across the border of the template's text and the user's is made, as in the library."""
    merges = (("\u0120", "H"), (":", "\u0120"), ("o", "\u010a"), ("\u010a", "\u010a"))
    model, judge = chat_model("V2", merges)
    chat(model, "-p", "Hello", "-n", 0, "--session", tmp_path / "session")
    want = judge.library.apply_chat_template(
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}]
    )["input_ids"]
    assert (
        session_ids(tmp_path / "session") == want[:-1]
    )  # without the end token, which comes with the next turn
    assert {
        judge.library.convert_tokens_to_ids("o\u010a"),
        judge.library.convert_tokens_to_ids(":\u0120"),
    } <= set(want)


@pytest.mark.parametrize("said", [USER, EOS + BOS, f"a<think>b</think>{ASSISTANT}c", "<|user|>\n<|im_end|>"])
def test_what_is_said_is_no_mark(said, chat_model, tmp_path):
    """Marks in the words of the user are words."""
    model, judge = chat_model("V3")
    chat(model, "-p", said, "--system", said, "-n", 0, "--session", tmp_path / "session")
    spelled = [
        judge.library.convert_tokens_to_ids(c) for c in tokenizer().pre_tokenizer.pre_tokenize_str(said)[0][0]
    ]
    bos, user, assistant = (judge.library.convert_tokens_to_ids(mark) for mark in (BOS, USER, ASSISTANT))
    assert session_ids(tmp_path / "session") == [bos, *spelled, user, *spelled, assistant]


# ---- lines in, answers out -----------------------------------------------------------------------

SAMPLED = ["-t", 1, "--top-k", 8, "-s", 5, "-n", 20]


def test_lines_are_turns(chat_model, tmp_path):
    """Each line is a turn and each answer ends with a newline; a backslash at the end goes on in the next
    line, empty lines are nothing. One pipe, a file, and one run for each turn with a session between them
    give the same."""
    model, _ = chat_model("R1")
    lines = b"one\n\ntwo \\\nlines\\\n\nthree"
    whole = chat(model, *SAMPLED, stdin=lines)
    (tmp_path / "lines").write_bytes(lines)
    assert (
        chat(model, *SAMPLED, "-f", tmp_path / "lines")
        == chat(model, *SAMPLED, "-f", "-", stdin=lines)
        == whole
    )
    pieces = b""
    for i, turn in enumerate(["one", "two \nlines\n", "three"]):
        options = SAMPLED[:4] + SAMPLED[6:] if i else SAMPLED
        pieces += chat(model, *options, "-p", turn, "--session", tmp_path / "session")
    assert pieces == whole and whole.count(b"<think>\n") >= 3
    assert chat(model, *SAMPLED, stdin=b"") == b""


def test_only_the_new_is_computed(chat_model, tmp_path):
    """Of an answer that stays as it is, the last token alone is computed with the next turn."""
    model, judge = chat_model("V3")
    answer = chat(model, "-p", "one", *SAMPLED, "--session", tmp_path / "session")[:-1].decode()
    before = len(session_ids(tmp_path / "session"))
    done = run("--chat", "-p", "two", "-n", 1, "--session", tmp_path / "session", model=model)
    assert prompt_tokens(done) == len(judge.ids(["one", answer, "two"])) - before + 1


def test_penalty_and_session(chat_model, tmp_path):
    """The tokens that the penalty is about are those of the history, whether thoughts were dropped in this
    run or in an earlier one."""
    model, _ = chat_model("R1")
    penalty = ["--repeat-penalty", "1.3", "-t", 1, "--top-k", 8, "-n", 30]
    whole = chat(model, *penalty, "-s", 3, stdin=b"one\ntwo\nthree\n")
    first = chat(model, *penalty, "-s", 3, "--session", tmp_path / "session", stdin=b"one\n")
    assert first + chat(model, *penalty, "--session", tmp_path / "session", stdin=b"two\nthree\n") == whole


def test_stop_text(chat_model, tmp_path):
    """An answer ends before the stop text, which is no part of the history, and the next one may have it
    again."""
    model, judge = chat_model("V3")
    whole = chat(model, *SAMPLED, "-p", "one")[:-1].decode()
    stop, session = whole[4:6], tmp_path / "session"
    short = whole[: whole.index(stop)]
    assert chat(model, *SAMPLED, "-p", "one", "--stop", stop, "--session", session).decode() == short + "\n"
    ids = session_ids(session)
    assert ids == judge.ids(["one", short, "two"])[: len(ids)] and judge.text(ids).endswith(short)


def test_context_full(chat_model):
    """Ends with a note when nothing more fits; a first turn that does not fit fails."""
    model, _ = chat_model("V3")
    done = run("--chat", "-c", 40, "-t", 0, "--ignore-eos", model=model, stdin=b"one\ntwo\n")
    assert (
        done.returncode == 0
        and b"context of 40 tokens is full" in done.stderr
        and done.stdout.count(b"\n") >= 1
    )
    done = run("--chat", "-c", 40, "-t", 0, "-n", 5, model=model, stdin=b"one\n" + b"x" * 50 + b"\ntwo\n")
    assert done.returncode == 0 and b"is full" in done.stderr and done.stdout.count(b"\n") == 1
    refused(run("--chat", "-c", 40, "-p", "x" * 50, model=model), FAILED, "40", "-c")


def test_quiet_and_statistics(chat_model):
    model, _ = chat_model("V3")
    assert run("--chat", *SAMPLED, "-q", model=model, stdin=b"a\nb\n").stderr == b""
    assert run("--chat", *SAMPLED, model=model, stdin=b"a\nb\n").stderr.count(b"\n") == 1


# ---- a terminal ----------------------------------------------------------------------------------


class Talk:
    """A chat on a terminal."""

    def __init__(self, *options):
        self.master, slave = pty.openpty()
        command = [str(word) for word in (RUN, *options)]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        os.close(slave)
        self.shown = b""

    def wait_for(self, end):
        while not self.shown.endswith(end):
            assert select.select([self.master], [], [], 30)[0], self.shown
            self.shown += os.read(self.master, 65536)
        shown, self.shown = self.shown, b""
        return shown.replace(b"\r\n", b"\n")

    def type(self, text):
        os.write(self.master, text)

    def send(self, number):
        self.process.send_signal(number)

    def end(self):
        status = self.process.wait(30)
        os.close(self.master)
        return status


def test_terminal(chat_model):
    """A mark where the user is to write, thoughts dim, and what a pipe gets otherwise. The end of input ends
    it well."""
    model, _ = chat_model("R1")
    plain = chat(model, *SAMPLED, stdin=b"one\n")
    talk = Talk(model, "--chat", "-k", "f32", *SAMPLED)
    assert talk.wait_for(b"> ") == b"> "
    talk.type(b"on\\\n")
    talk.wait_for(b". ")
    talk.type(b"e\n")
    talk.wait_for(b"> ")
    talk.type(b"\x04")
    assert talk.end() == 0
    talk = Talk(model, "--chat", "-k", "f32", *SAMPLED)
    talk.wait_for(b"> ")
    talk.type(b"one\n")
    shown = talk.wait_for(b"> ")
    assert shown.startswith(b"one\n\033[2m<think>") and shown.count(b"\033[2m") == shown.count(b"\033[0m")
    assert shown.replace(b"\033[2m", b"").replace(b"\033[0m", b"") == b"one\n" + plain + b"> "
    talk.type(b"\x04")
    assert talk.end() == 0


def test_interrupt(chat_model, tmp_path):
    """Ctrl-C ends the answer, and the conversation goes on; where the user is to write it ends the
    conversation, which is put away whole."""
    model, _ = chat_model("V3")
    session = tmp_path / "session"
    talk = Talk(model, "--chat", "--ignore-eos", "-t", 1, "-s", 1, "--session", session, "-c", 2500)
    talk.wait_for(b"> ")
    talk.type(b"go on\n")
    while len(talk.shown) < 20:
        talk.shown += os.read(talk.master, 100)
    talk.send(signal.SIGINT)
    talk.wait_for(b"\n> ")
    talk.type(b"more\n")
    while len(talk.shown) < 20:
        talk.shown += os.read(talk.master, 100)
    talk.send(signal.SIGINT)
    talk.wait_for(b"\n> ")
    talk.send(signal.SIGINT)
    assert talk.end() == INTERRUPTED
    assert 30 < len(session_ids(session)) < 2500


@pytest.mark.parametrize("turn", [b"", b"go on\n"])
def test_terminated(turn, chat_model, tmp_path):
    """SIGTERM ends a conversation, in an answer too, and the turns so far are put away."""
    model, _ = chat_model("V3")
    session = tmp_path / "session"
    chat(model, "-p", "a", "-n", 1, "--session", session)
    before = len(session_ids(session))
    talk = Talk(model, "--chat", "--ignore-eos", "-t", 1, "-s", 1, "--session", session, "-c", 2500)
    talk.wait_for(b"> ")
    talk.type(turn)
    while turn and len(talk.shown) < 20:
        talk.shown += os.read(talk.master, 100)
    talk.send(signal.SIGTERM)
    assert talk.end() == 128 + signal.SIGTERM
    assert (len(session_ids(session)) > before + 5) == bool(turn)


# ---- refusals ------------------------------------------------------------------------------------


def test_no_template(export):
    refused(run("--chat"), FAILED, str(MODEL), "no chat template", "--chat")
    refused(run("--chat", model=export(MODELS / "v2lite", "f32")), FAILED, "no tokenizer")


WRONG = [
    (["--system", "x"], "--system"),
    (["--chat", "--ids", "1"], "--ids"),
    (["--chat", "--info"], "--chat"),
    (["--chat", "--echo"], "--echo"),
    (["--chat", "-p", "a", "-f", "b"], "-f"),
    (["--chat", "--special"], "--special"),
    (["--chat", "-e", "--system", "\\q"], "--system"),
]


@pytest.mark.parametrize("options, named", WRONG, ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_wrong_usage(options, named):
    """An option that means nothing in a conversation, or outside of one."""
    refused(run(*options), USAGE, named)


def test_sessions_refused(chat_model, tmp_path):
    """A text is no conversation, and a conversation has its system text already."""
    model, _ = chat_model("V3")
    text("-p", "a", "-n", 1, "--session", tmp_path / "text", model=model)
    refused(
        run("--chat", "-p", "a", "--session", tmp_path / "text", model=model),
        FAILED,
        "no conversation",
        "--session",
    )
    chat(model, "-p", "a", "-n", 1, "--session", tmp_path / "chat")
    refused(
        run("--chat", "-p", "a", "--system", "s", "--session", tmp_path / "chat", model=model),
        FAILED,
        "--system",
    )
    refused(run("--chat", "-p", "a", "-c", 3, "--session", tmp_path / "chat", model=model), FAILED, "-c")
    refused(run("--chat", "-f", tmp_path / "none", model=model), FAILED, "none")


def test_damaged_section(chat_model, tmp_path):
    """A section that contradicts itself is refused where it is needed, and --check finds it; the rest of the
    checkpoint works."""
    model, _ = chat_model("V3")
    whole = model.read_bytes()
    at = whole.index(b"CHT1")
    (data,) = struct.unpack_from("<Q", whole, 24)
    for offset, value in [(0, 1), (4, 64), (8, 2**32 - 1), (8, 0), (28, 0), (12, 2**31)]:
        damaged = bytearray(whole)
        struct.pack_into("<I", damaged, at + offset, value)
        struct.pack_into("<I", damaged, 12, 0)
        struct.pack_into("<I", damaged, 12, zlib.crc32(damaged[:data]))
        (tmp_path / "model").write_bytes(damaged)
        refused(run("--chat", "-p", "a", model=tmp_path / "model"), FAILED, "chat template is damaged")
        refused(run("--check", model=tmp_path / "model"), FAILED, "chat template is damaged")
        text("-p", "a", "-n", 1, model=tmp_path / "model")


# ---- export --------------------------------------------------------------------------------------

ROUNDS = template(
    say("SYSTEM:"),
    "{{ '[Round ' ~ loop.index0 ~ '] USER:' + m['content'] }}",
    say(" ASSISTANT:"),
    " ASSISTANT:",
)
NOT_SUPPORTED = {
    "counts": (ROUNDS, "Round"),
    "twice": (template(say(), say(USER) * 2, say(ASSISTANT), ASSISTANT), "2 times"),
    "raises": ("{{ raise_exception('no\nway') }}", "no\\nway"),
    "syntax": ("{% if %}", "TemplateSyntaxError"),
    "no end": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
    "memory": ("{{ 'a' * 99999999999 }}", "MemoryError"),
    "outside": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
}


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_templates_refused(name, tmp_path):
    """What pieces cannot say, or what does harm, costs the template alone, and one line says why."""
    chat_template, says = NOT_SUPPORTED[name]
    folder = source(tmp_path / "model", chat_template)
    done = subprocess.run(
        [sys.executable, ROOT / "export.py", folder, tmp_path / "model.bin"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith("export.py: warning: no chat template in the checkpoint: ")
        and says in done.stderr
    )
    refused(run("--chat", "-p", "a", model=tmp_path / "model.bin"), FAILED, "no chat template")


def test_no_system_text(tmp_path):
    """A template that refuses system texts works without, and --system is refused."""
    folder = source(
        tmp_path / "model", template("{{ raise_exception('no') }}", say(USER), say(ASSISTANT, EOS), ASSISTANT)
    )
    compare.export(folder, tmp_path / "model.bin")
    assert chat(tmp_path / "model.bin", "-p", "a", "-n", 3)
    refused(run("--chat", "--system", "s", "-p", "a", model=tmp_path / "model.bin"), FAILED, "--system")


def test_where_templates_are(tmp_path):
    """In tokenizer_config.json, by itself or under the name "default", or in a file of its own; none of
    DeepSeek-V3.2's, but its encoder is known."""
    folder = source(tmp_path / "model", None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    special = {"bos_token": BOS, "eos_token": EOS}
    assert find_template(folder) == (None, special)
    assert find_template(folder, "deepseek_v32") == (DEEPSEEK_V32, special)
    for value in ("t", [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "t"}]):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": value}))
        assert find_template(folder) == ("t", special)
    (folder / "chat_template.jinja").write_text("own")
    assert find_template(folder, "deepseek_v32") == ("own", special)


def test_deepseek_v32():
    """The form that its encoder script writes in chat mode, after the vectors published beside it."""
    flags, pieces, _ = proved(DEEPSEEK_V32, {"bos_token": BOS})
    messages = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u")]
    assert (
        put_together(pieces, flags, messages)
        == f"{BOS}s{USER}u{ASSISTANT}</think>a{EOS}{USER}u{ASSISTANT}</think>"
    )
