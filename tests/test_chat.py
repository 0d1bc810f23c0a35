"""--chat: the template taken apart (exporter/chat.py) and followed (cli/chat.c) gives the tokens that
transformers gives for the same conversation.

The templates are those of published families in small: the same marks, the same spaces, the same treatment of
thoughts. The model is random, with a tokenizer of single bytes, so that what it writes has one tokenisation
only; its output rows prefer ASCII and the end of a thought. Where it matters what is said, the model is one
that says it (Speaker). What a conversation's tokens are is read out of its session."""

import itertools
import json
import os
import pty
import random
import select
import signal
import struct
import subprocess
import sys
import time
import zlib

import compare
import numpy as np
import pytest
from support import (
    FAILED,
    INTERRUPTED,
    MODELS,
    RUN,
    USAGE,
    prompt_tokens,
    refused,
    run,
    safetensors,
    text,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from exporter import chat as exporter_chat
from exporter import command
from exporter import tokenizer as exporter_tokenizer
from exporter.bounded import ChildFailed
from exporter.built_in import BUILT_IN, DEEPSEEK_V4, DEEPSEEK_V32, EFFORT_MAX
from exporter.chat import MissingJinja, compile_chat, find_template, proved, put_together
from exporter.files import PointerError
from exporter.section import MAX_TOKEN_TEXT

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
THINK = ["<think>", "</think>"]
MARKS = [USER, ASSISTANT, *THINK]  # ordinary added tokens, as DeepSeek-V3 has them
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


# ---- templates


def say(before="", after=""):
    return "{{ '" + before + "' + m['content'] + '" + after + "' }}"


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


def behind_thought(before, after, change="", split="split('</think>')[-1]"):
    return (
        "{% set c = m['content'] %}{% if '</think>' in c %}{% set c = c."
        + split
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
HELPFUL = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system<|im_middle|>You are a helpful assistant<|im_end|>' }}{% endif %}"
)
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
    "LongCat": "{% set ns = namespace(rounds=0) %}"
    + template(
        say("SYSTEM:", " "),
        "{{ '[Round ' ~ ns.rounds ~ '] USER:' + m['content'] }}{% set ns.rounds = ns.rounds + 1 %}",
        say(" ASSISTANT:", EOS),
        " ASSISTANT:",
        "",
    ),
}

# As the families publish it: system s, user u, answer a, user u, and the model's turn.
IM = "<|im_start|>{}\n{}<|im_end|>\n"
PUBLISHED = {
    "V2": f"{BOS}s\n\nUser: u\n\nAssistant: a{EOS}User: u\n\nAssistant:",
    "V3": f"{BOS}s{USER}u{ASSISTANT}a{EOS}{USER}u{ASSISTANT}",
    "R1": f"{BOS}s{USER}u{ASSISTANT}a{EOS}{USER}u{ASSISTANT}<think>\n",
    "V3.1": f"{BOS}s{USER}u{ASSISTANT}</think>a{EOS}{USER}u{ASSISTANT}</think>",
    "V3.1, off": f"{BOS}s{USER}u{ASSISTANT}</think>a{EOS}{USER}u{ASSISTANT}<think></think>",
    "Kimi": "<|im_start|>system<|im_middle|>s<|im_end|><|im_start|>user<|im_middle|>u<|im_end|>"
    "<|im_start|>assistant<|im_middle|>a<|im_end|>"
    "<|im_start|>user<|im_middle|>u<|im_end|><|im_start|>assistant<|im_middle|>",
    "GLM": "[gMASK]<sop><|system|>s<|user|>u<|assistant|></think>a<|user|>u<|assistant|><think>",
    "MiniCPM3": IM.format("system", "s")
    + IM.format("user", "u")
    + IM.format("assistant", "a")
    + IM.format("user", "u")
    + "<|im_start|>assistant\n",
    "LongCat": f"SYSTEM:s [Round 0] USER:u ASSISTANT:a{EOS}[Round 1] USER:u ASSISTANT:",
}


def tokenizer(merges=(), marks=MARKS, special=SPECIAL):
    """Bytes, `merges` of pairs of them, and the marks of all templates."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *(left + right for left, right in merges)])}
    t = Tokenizer(models.BPE(vocabulary, list(merges)))
    t.pre_tokenizer, t.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    t.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    t.add_special_tokens([AddedToken(mark, special=True) for mark in special])
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


def source(folder, chat_template, merges=(), model="v2lite"):
    """A Hugging Face directory: a model of tests/models with a larger vocabulary, a tokenizer, a template."""
    folder.mkdir()
    t = tokenizer(merges)
    arrays = weights(MODELS / model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        turns = range(-(-VOCABULARY // len(arrays[name])))
        arrays[name] = np.concatenate([np.roll(arrays[name], k, axis=1) for k in turns])[:VOCABULARY]
    head = arrays["lm_head.weight"]
    for i in range(VOCABULARY):
        token = t.id_to_token(i)
        if token is None or i >= 256 or not (token.isascii() or token in "\u0120\u010a"):  # space, line feed
            head[i] = 0
    if "think" in (chat_template or ""):
        head[t.token_to_id("</think>")] = head[t.token_to_id("A")] * 1.2
    config = json.loads((MODELS / model / "config.json").read_text())
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
            {"role": role, "content": what}
            for role, what in zip(["user", "assistant"] * len(said), said, strict=False)
        ]
        messages = ([{"role": "system", "content": system}] if system is not None else []) + messages
        return self.library.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

    def history(self, contents):
        """The same without the beginning of the model's answer."""
        return self.library.apply_chat_template(conversation_of(contents))["input_ids"]

    def text(self, ids):
        return self.library.decode(ids, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """chat_model(family, merges, model): (checkpoint, judge). Made once."""
    made = {}

    def make(family, merges=(), model="v2lite"):
        key = family, merges, model
        if key not in made:
            folder = source(tmp_path_factory.mktemp("chat") / family, TEMPLATES[family], merges, model)
            compare.export(folder, folder / "model.bin", "--type", "f32")
            made[key] = folder / "model.bin", Judge(folder)
        return made[key]

    return make


def session_ids(path):
    raw = path.read_bytes()
    (count,) = struct.unpack_from("<I", raw, 136)  # SessionHeader.tokens, cli/session.c
    return list(struct.unpack_from(f"<{count}i", raw, 192))


def chat(model, *options, **how):
    return text("--chat", "-k", "f32", *options, model=model, **{**EXACT, **how})


# ---- the same tokens as transformers


@pytest.mark.parametrize("family", TEMPLATES)
def test_templates_are_the_published_ones(family, chat_model):
    """The templates above are what they say they are, or all below proves nothing."""
    _, judge = chat_model(family)
    assert judge.text(judge.ids(["u", "a", "u"], "s")) == PUBLISHED[family]


@pytest.mark.parametrize("system, of", [(None, "v2lite"), ("Be brief.", "v2lite"), (None, "kimi_linear")])
@pytest.mark.parametrize("family", TEMPLATES)
def test_conversation(family, system, of, chat_model, tmp_path):
    """Turn after turn, a session holds what transformers makes of all that was said, and the model goes on
    from exactly that: what it writes in the end is what it writes after those ids. Thoughts leave the
    history where the template drops them. Kimi-Linear
    cannot be cut at any row, and reads again what a rewritten history needs."""
    model, judge = chat_model(family, model=of)
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
    thinks = family in ("R1", "V3.1", "V3.1, off", "GLM")
    thoughts = any("</think>" in answer for answer in said[1:-1:2])
    assert thoughts == thinks or of != "v2lite"  # or there were no thoughts to drop


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


# ---- thoughts

BEGIN, END = THINK
MISTRAL = ["[INST]", "[/INST]", "[THINK]", "[/THINK]"]
# What Mistral's templates do with a text; a thought is a part of its own there and never in the text.
INSTRUCT = template(say("", ""), say("[INST]", "[/INST]"), say("", EOS), "") + (
    "{% if false %}[THINK]{{ thinking }}[/THINK]{% endif %}"
)
OWN_MARKS = ["<longcat_think>", "</longcat_think>"]
THINKERS = {  # template, (begin, end), who parts thought and answer
    "V3.2": (DEEPSEEK_V32, THINK, "nobody"),
    "K2": (template(say(), say(USER), say(ASSISTANT + BEGIN + END, EOS), ASSISTANT), THINK, "caller"),
    "K2.5": (
        template(say(), say(USER), say(ASSISTANT + BEGIN + END, EOS), ASSISTANT + BEGIN),
        THINK,
        "caller",
    ),
    "begin alone": (template(say(), say(USER), say(ASSISTANT, EOS), ASSISTANT + BEGIN), THINK, "caller"),
    "V3.1": (
        template(
            say(),
            say(USER),
            behind_thought(ASSISTANT + END, EOS, split="split('</think>', 1)[1]"),
            ASSISTANT + END,
        ),
        THINK,
        "template",
    ),
    "R1": (TEMPLATES["R1"], THINK, "template"),
    "GLM": (TEMPLATES["GLM"], THINK, "template"),
    "lines": (
        template(say(), say(USER), behind_thought(ASSISTANT, EOS, ".lstrip('\\n')"), ASSISTANT),
        THINK,
        "template",
    ),
    "Mistral": (INSTRUCT, MISTRAL[2:], "caller"),
    "own marks": (
        template(say(), say(USER), behind_thought(ASSISTANT, EOS), ASSISTANT).replace(END, OWN_MARKS[1]),
        OWN_MARKS,
        "template",
    ),
}
# Answers in letters: B and E are the marks, * lets the model go on for ever and be stopped by -n.
ANSWERS = [
    "a",
    "aE",
    "aEb",
    "Eb",
    "E",
    "aEbE*",
    "B",
    "BtE",
    "BtEa",
    "Bt",
    "aBb",
    "aB",
    "BtE\nb",
    "BtE a",
    "`E~",
]
ENDS_OF_PROMPTS = {
    "V3.2": "E",
    "V3.1": "E",
    "K2.5": "B",
    "begin alone": "B",
    "GLM": "B",
    "R1": "\n",
}  # others: no letter


def can_be_said(family, answer):
    """By a model that knows its last token alone: what follows a letter is always the same."""
    following = {}
    letters = ENDS_OF_PROMPTS.get(family, "") + answer.rstrip("*")
    return all(following.setdefault(a, b) == b for a, b in itertools.pairwise(letters))


SPEECHES = [(family, answer) for family in THINKERS for answer in ANSWERS if can_be_said(family, answer)]


PROVED = {}


def here(function, *arguments, **limits):
    """In place of run_bounded where sources are harmless: a process each would be most of the time."""
    return function(*arguments)


def proved_once(function, chat_template, special, **limits):
    """The same for templates, which are few."""
    if chat_template not in PROVED:
        PROVED[chat_template] = function(chat_template, special)
    return PROVED[chat_template]


def quick_export(folder, out, *options):
    """export.py in this process, without one for each tokenizer and template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter_chat, "run_bounded", proved_once)
        patch.setattr(exporter_tokenizer, "run_bounded", here)
        assert command.main([str(folder), str(out), *options]) == 0
    return out


def speaker(folder, chat_template, said, start, marks=MARKS):
    """A checkpoint of a model that says one thing: from each token to the next. `said`: ids; `start`: the
    last token of a prompt. Its layer adds nothing, so that the last token decides."""
    folder.mkdir()
    t = tokenizer(marks=marks, special=[*SPECIAL, *MISTRAL])
    width, vocabulary = 320, t.get_vocab_size()
    assert vocabulary < width
    sizes = {
        "self_attn.q_proj": (2 * 24, width),
        "self_attn.kv_a_proj_with_mqa": (16 + 8, width),
        "self_attn.kv_b_proj": (2 * 32, 16),
        "self_attn.o_proj": (width, 2 * 16),
        "mlp.gate_proj": (32, width),
        "mlp.up_proj": (32, width),
        "mlp.down_proj": (width, 32),
    }
    arrays = {f"model.layers.0.{name}.weight": np.zeros(size, np.float32) for name, size in sizes.items()}
    for name, size in {
        "layers.0.input_layernorm": width,
        "layers.0.post_attention_layernorm": width,
        "layers.0.self_attn.kv_a_layernorm": 16,
        "norm": width,
    }.items():
        arrays[f"model.{name}.weight"] = np.ones(size, np.float32)
    arrays["model.embed_tokens.weight"] = np.eye(vocabulary, width, dtype=np.float32)
    head = arrays["lm_head.weight"] = np.zeros((vocabulary, width), np.float32)
    following = {}
    for last, token in itertools.pairwise([start, *said]):
        assert following.setdefault(last, token) == token
    for last, token in ({said[-1]: t.token_to_id(EOS)} | following).items():
        head[token, last] = 1
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": t.token_to_id(BOS),
        "eos_token_id": t.token_to_id(EOS),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors(arrays))
    t.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True, "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return quick_export(folder, folder / "model.bin", "--type", "f32"), Judge(folder)


def ids_of(t, answer, begin, end):
    """An answer in letters as token ids."""
    named = {"B": begin, "E": end, "\n": "\u010a", " ": "\u0120"}
    return [t.token_to_id(named.get(letter, letter)) for letter in answer if letter != "*"]


def kept(shown, who, begin, end):
    """What is given to the template of an answer: all of it, or what a server makes of it."""
    if who != "caller":
        return shown
    if end in shown:
        return shown.split(end, 1)[1]
    return "" if shown.strip().startswith(begin) else shown


@pytest.mark.parametrize("family, answer", SPEECHES)
def test_marks_in_answers(family, answer, tmp_path):
    """Whatever marks of thoughts an answer has, and where: what the template keeps of it, as transformers
    renders it, is what the history keeps, marks as the tokens that they are. A template that keeps whatever
    it is given is given what servers give it: what stands behind the first mark, and all of it where the
    prompt has closed the thought."""
    chat_template, (begin, end), who = THINKERS[family]
    t = tokenizer(marks=[*MARKS, *OWN_MARKS], special=[*SPECIAL, *MISTRAL])
    library = PreTrainedTokenizerFast(tokenizer_object=t, bos_token=BOS, eos_token=EOS)
    library.chat_template = chat_template
    prompt = library.apply_chat_template([{"role": "user", "content": "u"}], add_generation_prompt=True)
    start, said = prompt["input_ids"][-1], ids_of(t, answer, begin, end)
    model, judge = speaker(tmp_path / "model", chat_template, said, start, [*MARKS, *OWN_MARKS])
    count = len(said) + 2 * answer.endswith("*") if start not in said[-1:] else len(said)
    session = tmp_path / "session"
    shown = chat(model, "-t", 0, "-n", count, "--session", session, stdin=b"u\n").decode()
    opens = begin if judge.text([start]) == begin else "<think>\n" if family == "R1" else ""
    assert shown.startswith(opens + judge.text(said)) and shown.endswith("\n")
    want = judge.history(["u", kept(shown[:-1], who, begin, end), "v"])
    chat(model, "-t", 0, "-n", 0, "-p", "v", "--session", session)
    assert judge.text(session_ids(session)[: len(want)]) == judge.text(want)
    assert session_ids(session)[: len(want)] == want


@pytest.mark.parametrize("mark", THINK)
@pytest.mark.parametrize("family", ["V3.2", "K2", "R1", "lines"])
def test_spelled_marks_are_text(family, mark, tmp_path):
    """A mark is a token; what merely looks like one is text, and nothing is parted at it."""
    chat_template, _, _ = THINKERS[family]
    t = tokenizer(special=[*SPECIAL, *MISTRAL])
    said = ids_of(t, "a" + mark + "z", *THINK)
    start = {"V3.2": END, "R1": "\u010a"}.get(family, ASSISTANT)
    model, _ = speaker(tmp_path / "model", chat_template, said, t.token_to_id(start))
    session = tmp_path / "session"
    assert mark in chat(model, "-t", 0, "-n", len(said), "--session", session, stdin=b"u\n").decode()
    chat(model, "-t", 0, "-n", 0, "-p", "v", "--session", session)
    ids = session_ids(session)
    assert any(ids[i : i + len(said)] == said for i in range(len(ids)))


@pytest.mark.parametrize("family", ["K2", "R1", "lines"])
def test_marks_without_tokens(family, tmp_path):
    """Where the tokenizer has no token for a mark, the mark is its text."""
    chat_template, _, who = THINKERS[family]
    t = tokenizer(marks=[USER, ASSISTANT], special=[*SPECIAL, *MISTRAL])
    said = ids_of(t, "a" + END + "z", *THINK)
    start = t.token_to_id("\u010a" if family == "R1" else ASSISTANT)
    model, judge = speaker(tmp_path / "model", chat_template, said, start, [USER, ASSISTANT])
    session = tmp_path / "session"
    shown = chat(model, "-t", 0, "-n", len(said), "--session", session, stdin=b"u\n").decode()
    assert shown == ("<think>\n" if family == "R1" else "") + "a" + END + "z\n"
    chat(model, "-t", 0, "-n", 0, "-p", "v", "--session", session)
    want = judge.ids(["u", kept(shown[:-1], who, *THINK), "v"])
    assert session_ids(session)[: len(want)] == want


@pytest.mark.parametrize("family", THINKERS)
def test_proof_holds_for_other_answers(family):
    """What the export has proved with its own answers holds for answers of marks, lines and words in any
    order: the judge is Jinja."""
    chat_template, (begin, end), who = THINKERS[family]
    parts = proved(chat_template, {"bos_token": BOS, "eos_token": EOS})
    assert (parts.pieces["think_begin"], parts.pieces["think_end"]) == (begin, end)
    library = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), bos_token=BOS, eos_token=EOS)
    library.chat_template = chat_template
    draw = random.Random(7)
    words = [begin, end, begin + "\n", "\n" + end + "\n\n", "word", " ", "```\n", "so ", "\u3000", "</b>"]
    for _ in range(300):
        answers = ["".join(draw.choices(words, k=draw.randrange(1, 9))) for _ in range(2)]
        messages = conversation_of(["u", answers[0], "v", answers[1], "w"])
        want = library.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if who == "caller":  # the section says what the caller does, too; the template keeps everything
            parts = parts._replace(flags=parts.flags & ~(exporter_chat.SPLIT_FIRST | exporter_chat.DROP_OPEN))
        assert put_together(parts, [exporter_chat.Message(**message) for message in messages]) == want


def conversation_of(contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def test_rounds_are_counted(chat_model, tmp_path):
    """A template may number the turns: through one pipe, and from session to session, beyond one digit."""
    model, judge = chat_model("LongCat")
    turns = [f"turn {i}" for i in range(12)]
    session, again = tmp_path / "session", tmp_path / "again"
    answers = chat(model, "-n", 3, "-t", 0, "--session", session, stdin="\n".join(turns).encode())
    for turn in turns:
        one = chat(model, "-n", 3, "-t", 0, "-p", turn, "--session", again)
        assert answers.startswith(one)
        answers = answers[len(one) :]
    assert session_ids(session) == session_ids(again) and "[Round 11] USER:turn 11" in judge.text(
        session_ids(session)
    )


# ---- lines in, answers out

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


def test_line_ends(chat_model, tmp_path):
    """Lines may end in CR LF, and a byte order mark is no text; within a line both are. Without --chat a file
    is its bytes."""
    model, _ = chat_model("V3")
    lines = b"one\n\ntwo \\\nlines\nfo\rur\xef\xbb\xbf"
    windows = b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n")
    for name, content in (("lines", lines), ("windows", windows)):
        (tmp_path / name).write_bytes(content)
        chat(model, *SAMPLED, "-f", tmp_path / name, "--session", tmp_path / f"{name}.session")
    chat(model, *SAMPLED, "--session", tmp_path / "piped.session", stdin=windows)
    want = session_ids(tmp_path / "lines.session")
    assert session_ids(tmp_path / "windows.session") == session_ids(tmp_path / "piped.session") == want
    assert text("-f", tmp_path / "windows", "--echo", "-n", 0, model=model) == windows


def test_longest_turn(chat_model):
    """What lines have for a limit, turns put together of lines have too."""
    model, _ = chat_model("V3")
    done = run("--chat", model=model, stdin=(b"x" * (1 << 20) + b"\\\n") * 65)
    refused(done, FAILED, "longer than the 67108864 bytes")


def test_session_after_each_turn(chat_model, tmp_path):
    """What was said is safe once its answer is there: a killed conversation goes on where it was, and nobody
    else may take it while it goes on."""
    model, judge = chat_model("V3")
    session = tmp_path / "session"
    command = [RUN, model, "--chat", "-n", "3", "-t", "0", "-k", "f32", "--session", session]
    talk = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = []
    for turn in ("one", "two", "three"):
        talk.stdin.write(turn.encode() + b"\n")
        talk.stdin.flush()
        said += [turn, talk.stdout.readline()[:-1].decode()]
        deadline, want = time.monotonic() + 30, judge.ids([*said, "x"])
        while not session.exists() or len(session_ids(session)) < len(want) - 4:
            assert time.monotonic() < deadline
        ids = session_ids(session)
        assert ids == want[: len(ids)]
        refused(run("--chat", "-p", "a", "--session", session, model=model), FAILED, "in use")
    talk.kill()
    talk.communicate()
    chat(model, "-p", "x", "-n", 0, "--session", session)
    assert session_ids(session)[: len(want)] == want


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


def unanswered(done, word):
    line = done.stderr.decode()
    assert done.returncode == FAILED and line.count("\n") == 1
    assert line.startswith("run: ") and word in line and "context of 40" in line and "-c" in line


def test_turns_without_an_answer(chat_model, tmp_path):
    """Turns for which the context has no room are no success, and -q does not hide it: whether an answer has
    filled the context, a turn does not fit, or it is the only one. What was answered before is written and in
    the session."""
    model, _ = chat_model("V3")
    small, lines = ["--chat", "-q", "-c", 40, "-t", 0], b"one\ntwo\n"
    unanswered(run(*small, "--ignore-eos", model=model, stdin=lines), "turn 2")
    long = b"one\n" + b"x" * 50 + b"\ntwo\n"
    session = ["--session", tmp_path / "session"]
    done = run(*small, "-n", 5, *session, model=model, stdin=long)
    unanswered(done, "no answer")
    assert done.stdout.count(b"\n") == 1 and len(session_ids(tmp_path / "session")) > 5
    refused(run(*small, "-p", "x" * 50, model=model), FAILED, "40", "-c")


def test_last_answer_fills_the_context(chat_model):
    """Where no turn is left, a full context is worth a note."""
    model, _ = chat_model("V3")
    for stdin in (b"one\n", b"one\n\n\n"):
        done = run("--chat", "-c", 40, "-t", 0, "--ignore-eos", model=model, stdin=stdin)
        assert done.returncode == 0 and b"context of 40 tokens is full" in done.stderr


def test_context_of_a_pipe(tmp_path):
    """Without -c a conversation in a pipe has the context that the model allows, not that of a terminal."""
    folder = source(tmp_path / "model", TEMPLATES["V3"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20000}))
    quick_export(folder, tmp_path / "model.bin")
    lines = b"".join(bytes([byte]) * 3000 + b"\n" for byte in b"abc")
    done = run("--chat", "-n", 2, "-q", model=tmp_path / "model.bin", stdin=lines)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.count(b"\n") >= 3


def test_quiet_and_statistics(chat_model):
    model, _ = chat_model("V3")
    assert run("--chat", *SAMPLED, "-q", model=model, stdin=b"a\nb\n").stderr == b""
    assert run("--chat", *SAMPLED, model=model, stdin=b"a\nb\n").stderr.count(b"\n") == 1


# ---- a terminal


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
    greeting, mark = talk.wait_for(b"> ").split(b"\n")
    assert mark == b"> " and b"Ctrl-D" in greeting and b"\\" in greeting
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


def on_terminal(model, tmp_path, *options):
    """A chat on a terminal that has shown its first mark, and its session."""
    session = tmp_path / "session"
    talk = Talk(model, "--chat", "-k", "f32", "-n", 1, "-t", 0, "--session", session, *options)
    talk.wait_for(b"> ")
    return talk, session


def test_pasted_lines_are_one_turn(chat_model, tmp_path):
    """Lines that are already waiting belong to the turn, empty ones between them too."""
    model, judge = chat_model("V3")
    talk, session = on_terminal(model, tmp_path)
    talk.type(b"\none\n\ntwo\nthree\n\n")
    shown = talk.wait_for(b"> ")
    assert shown.count(b"> ") == 1
    talk.type(b"\x04")
    assert talk.end() == 0
    want = judge.ids(["one\n\ntwo\nthree"])
    assert session_ids(session)[: len(want)] == want


def test_line_that_the_terminal_cut(chat_model, tmp_path):
    """What a terminal has cut is not sent on in silence, nor is the paste that it is in; a line that it keeps
    is sent."""
    model, judge = chat_model("V3")
    talk, session = on_terminal(model, tmp_path)
    for paste in (b"x" * 5000 + b"\n", b"a\n" + b"x" * 4095 + b"\nb\n"):
        talk.type(paste)
        assert b"not sent" in talk.wait_for(b"> ")
        assert not session.exists()
    talk.type(b"x" * 2000 + b"\n")
    talk.wait_for(b"> ")
    talk.type(b"\x04")
    assert talk.end() == 0
    want = judge.ids(["x" * 2000])
    assert session_ids(session)[: len(want)] == want


def test_mark_again_after_stop(chat_model, tmp_path):
    """After Ctrl-Z and fg the user sees again where to write."""
    model, _ = chat_model("V3")
    talk, _ = on_terminal(model, tmp_path)
    for turn in (b"one\n", b""):
        talk.send(signal.SIGSTOP)
        time.sleep(0.2)
        talk.send(signal.SIGCONT)
        assert talk.wait_for(b"> ") == b"> "
        if turn:
            talk.type(turn)
            assert talk.wait_for(b"> ").count(b"> ") == 1
    talk.type(b"\x04")
    assert talk.end() == 0


def test_greeting(chat_model):
    """One line on standard error, at a terminal alone, and not under -q."""
    model, _ = chat_model("V3")
    talk = Talk(model, "--chat", "-q")
    talk.type(b"\x04")
    assert talk.end() == 0
    done = run("--chat", "-n", 1, model=model, stdin=b"a\n")
    assert b"Ctrl" not in done.stderr


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


# ---- refusals


def test_no_template(export, tmp_path):
    model = quick_export(source(tmp_path / "model", None), tmp_path / "model.bin")
    refused(run("--chat", model=model), FAILED, str(model), "no chat template", "--chat")
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
    at = whole.index(b"CHT2")
    (data,) = struct.unpack_from("<Q", whole, 24)
    for offset, value in [(0, 1), (4, 512), (12, 2**32 - 1), (12, 0), (32, 0), (16, 2**31)]:
        damaged = bytearray(whole)
        struct.pack_into("<I", damaged, at + offset, value)
        struct.pack_into("<I", damaged, 12, 0)
        struct.pack_into("<I", damaged, 12, zlib.crc32(damaged[:data]))
        (tmp_path / "model").write_bytes(damaged)
        refused(run("--chat", "-p", "a", model=tmp_path / "model"), FAILED, "chat template is damaged")
        refused(run("--check", model=tmp_path / "model"), FAILED, "chat template is damaged")
        text("-p", "a", "-n", 1, model=tmp_path / "model")


# ---- export

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
def test_templates_refused(name, tmp_path, capsys, monkeypatch):
    """What pieces cannot say, or what does harm, costs the template alone, and one line says why."""
    chat_template, says = NOT_SUPPORTED[name]
    folder = source(tmp_path / "model", chat_template)
    monkeypatch.setattr(exporter_tokenizer, "run_bounded", here)
    if name == "no end":
        monkeypatch.setattr(exporter_chat, "SECONDS", 1)  # no other limit, but sooner
    assert command.main([str(folder), str(tmp_path / "model.bin")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said
    assert said.startswith("export.py: warning: no chat template in the checkpoint: ")
    refused(run("--chat", "-p", "a", model=tmp_path / "model.bin"), FAILED, "no chat template")


def split_by(expression):
    """A template whose answers are this expression of the answer's text, c."""
    return (
        "{{ bos_token }}{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'user' %}"
        "{{ '<u>' + c }}{% else %}{{ '<a>' + (" + expression + ") + '<e>' }}{% endif %}{% endfor %}<a>"
    )


SAID_BY_PIECES = [
    "c.split('</think>')[-1]",
    "c.rpartition('</think>')[2]",
    "c.split('</think>', 1)[-1]",
    "c.split('[/THINK]')[-1]",
    "c.split('<|channel|>final<|message|>')[-1]",
]
NOT_SAID_BY_PIECES = [
    "c.split('</think>')[0]",
    "c.replace('</think>', '')",
    "c.split('</think>')[1] if c.startswith('<think>') and '</think>' in c else c",
]


@pytest.mark.parametrize("expression", SAID_BY_PIECES + NOT_SAID_BY_PIECES)
def test_other_histories_are_announced(expression):
    """Where the history cannot keep what the template keeps of an answer, a warning says what it keeps."""
    warnings = []
    section = compile_chat(lambda: (split_by(expression), {"bos_token": BOS}), warnings.append)
    assert section
    if expression in SAID_BY_PIECES:
        assert warnings == []
    else:
        assert len(warnings) == 1 and "follows the last </think>" in warnings[0]


def test_template_that_is_no_file(tmp_path):
    """A pipe under its name would never end: a warning, as for any template that cannot be used. One that was
    never downloaded is an error: it is easily had."""
    folder, warnings = source(tmp_path / "model", None), []
    path = folder / "chat_template.jinja"
    os.mkfifo(path)
    assert compile_chat(lambda: find_template(folder), warnings.append) == b""
    assert "not a regular file" in warnings[0]
    path.unlink()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(PointerError, match="git lfs pull"):
        compile_chat(lambda: find_template(folder), warnings.append)


@pytest.mark.parametrize("version", ["3.1.6", "3.2.0rc1", "3.10", "4", "4.0.dev3+local", None])
def test_versions_of_jinja2(version, monkeypatch):
    """Any version string is read; where the module has none, the package says it."""
    import jinja2

    if version:
        monkeypatch.setattr(jinja2, "__version__", version)
    else:
        monkeypatch.delattr(jinja2, "__version__")
    assert compile_chat(lambda: (TEMPLATES["V3"], {"bos_token": BOS}), print)


@pytest.mark.parametrize("version", ["3.1.5", "2.11.3", "3.1", "unknown", None])
def test_jinja2_is_missing_or_old(version, monkeypatch):
    """That is no fault of the template, and not worth a checkpoint without one."""
    import jinja2

    if version:
        monkeypatch.setattr(jinja2, "__version__", version)
    else:
        monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingJinja, match=r"pip install .*--no-chat"):
        compile_chat(lambda: (TEMPLATES["V3"], {"bos_token": BOS}), print)


def test_own_failures_are_no_fault_of_the_template(monkeypatch):
    """A defect of the exporter is called one."""

    def fails(*_, **__):
        raise ChildFailed("KeyError at chat.py:1: 'x'")

    warnings = []
    monkeypatch.setattr(exporter_chat, "run_bounded", fails)
    assert compile_chat(lambda: (TEMPLATES["V3"], {"bos_token": BOS}), warnings.append) == b""
    assert len(warnings) == 1 and "defect" in warnings[0] and "report" in warnings[0]


@pytest.mark.parametrize("content", ["[]", '{"chat_template": 7}', "{", '{"chat_template": [7]}'])
def test_strange_configurations(content, tmp_path):
    """A configuration that is none costs the template, or has none; it is no defect of the exporter."""
    (tmp_path / "tokenizer_config.json").write_text(content)
    warnings = []
    assert compile_chat(lambda: find_template(tmp_path), warnings.append) == b""
    assert not any("defect" in warning for warning in warnings) and len(warnings) == ("[7]" not in content)


def test_hostile_pieces(tmp_path):
    """Pieces in which an added token nearly stands at each place cost no more than any other text of their
    size, and pieces of tokens without text make no answer slow."""
    long = "a" * (MAX_TOKEN_TEXT - 1) + "b"
    said = [tokenizer().token_to_id("z")]
    for begin in ("{{ 'a' * 200000 }}", "{{ bos_token * 9000 }}"):
        chat_template = template("", say(), say("x", EOS), "x", begin)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        marks = [*MARKS, long]
        model, _ = speaker(folder, chat_template, said, said[0], marks)
        start = time.monotonic()
        done = run("--chat", "-p", "a", "-n", 3, "-c", 4000, model=model)
        assert time.monotonic() - start < 20
        refused(done, FAILED, "no answer")


def test_no_system_text(tmp_path):
    """A template that refuses system texts works without, and --system is refused."""
    folder = source(
        tmp_path / "model", template("{{ raise_exception('no') }}", say(USER), say(ASSISTANT, EOS), ASSISTANT)
    )
    quick_export(folder, tmp_path / "model.bin")
    assert chat(tmp_path / "model.bin", "-p", "a", "-n", 3)
    refused(run("--chat", "--system", "s", "-p", "a", model=tmp_path / "model.bin"), FAILED, "--system")


def test_where_templates_are(tmp_path):
    """In tokenizer_config.json, by itself or under the name "default", or in a file of its own; none of
    DeepSeek-V3.2's and V4's, but their encoders are known."""
    folder = source(tmp_path / "model", None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    special = {"bos_token": BOS, "eos_token": EOS}
    assert find_template(folder) == (None, special)
    for model_type, own in BUILT_IN.items():
        assert find_template(folder, model_type) == (own, special)
    for value in ("t", [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "t"}]):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": value}))
        assert find_template(folder) == ("t", special)
    (folder / "chat_template.jinja").write_text("own")
    assert find_template(folder, "deepseek_v32") == ("own", special)


def test_deepseek_v32():
    """The form that its encoder script writes in chat mode, after the vectors published beside it."""
    parts = proved(DEEPSEEK_V32, {"bos_token": BOS})
    messages = exporter_chat.conversation(["u", "a", "u"], "s")
    want = f"{BOS}s{USER}u{ASSISTANT}</think>a{EOS}{USER}u{ASSISTANT}</think>"
    assert put_together(parts, messages) == want


def test_deepseek_v4():
    """The second of the four pairs published beside its encoder script (encoding_dsv4.py): thoughts, which
    the history does not keep. The others have tools, tasks and reminders, which a conversation here has
    not; tools in a line of a batch are refused (test_batch_json.py)."""
    default, on, off, most = exporter_chat.proved_forms(DEEPSEEK_V4, {"bos_token": BOS})
    messages = exporter_chat.conversation(
        ["Hello", "Hi there! How can I help you?", "What is the capital of France?"],
        "You are a helpful assistant.",
    )
    begin = (
        f"{BOS}You are a helpful assistant.{USER}Hello{ASSISTANT}</think>Hi there! How can I help you?{EOS}"
        f"{USER}What is the capital of France?{ASSISTANT}"
    )
    assert put_together(on, messages) == begin + "<think>"
    assert put_together(off, messages) == put_together(default, messages) == begin + "</think>"
    assert put_together(most, messages) == BOS + EFFORT_MAX + begin.removeprefix(BOS) + "<think>"
    thought = "The user said hello, I should greet back.</think>Hi there! How can I help you?"
    messages[2] = messages[2]._replace(content=thought)
    assert put_together(on, messages) == begin + "<think>"
