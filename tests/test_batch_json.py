"""--batch: JSON Lines in and out, in the program's own form and in OpenAI's batch form.

The judges: what ./run says alone for the text of a line; numpy's float64 log-softmax of --logits for
logarithms; the types of the `openai` package for its form."""

import json
import os
import random
import subprocess

import compare
import numpy as np
import pytest
from support import FAILED, MODEL, Checkpoint, make, mutated, refused, run, text
from test_chat import BOS, TEMPLATES, Judge, quick_export, source

PROMPT = "Once upon a time"
BEGIN = Checkpoint(MODEL).config["bos_token_id"]
GREEDY = {"max_tokens": 8, "temperature": 0}


def lines(*requests):
    return b"".join(
        (request if isinstance(request, bytes) else json.dumps(request).encode()) + b"\n"
        for request in requests
    )


def batch(*requests, options=(), status=0, **how):
    """The answers to lines."""
    done = run("--batch", "-", *options, stdin=lines(*requests), **how)
    assert done.returncode == status, done.stderr.decode()
    assert done.stdout.endswith(b"\n") or not done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def answer(request, **how):
    (got,) = batch(request, **how)
    assert "error" not in got
    return got


def error(request, **how):
    (got,) = batch(request, status=FAILED, **how)
    assert set(got) == {"id", "error"}
    return got["error"]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    folder = source(tmp_path_factory.mktemp("batch") / "model", TEMPLATES["V3"])
    return quick_export(folder, folder / "model.bin", "--type", "f32"), Judge(folder)


# ---- the program's own form

OPTIONS = [
    ({"max_tokens": 5}, ["-n", 5]),
    ({"max_tokens": 9, "temperature": 0.7, "seed": 2**64 - 1}, ["-n", 9, "-t", 0.7, "-s", 2**64 - 1]),
    ({"temperature": 1, "top_k": 3, "seed": 5}, ["-n", 12, "-t", 1, "--top-k", 3, "-s", 5]),
    ({"temperature": 1, "top_p": 0.3, "seed": 5.0}, ["-n", 12, "-t", 1, "--top-p", 0.3, "-s", 5]),
    ({"temperature": 1, "min_p": 0.1, "top_p": 1}, ["-n", 12, "-t", 1, "--top-p", 1, "--min-p", 0.1]),
    ({"repeat_penalty": 1.5, "temperature": 0}, ["-n", 12, "-t", 0, "--repeat-penalty", 1.5]),
    ({"stop": "there", "temperature": 0}, ["-n", 12, "-t", 0, "--stop", "there"]),
    ({"stop": ["girl", "a"], "temperature": 0}, ["-n", 12, "-t", 0, "--stop", "girl", "--stop", "a"]),
    ({"max_tokens": 0}, ["-n", 0]),
    ({"top_p": None, "max_tokens": None, "id": None}, ["-n", 12]),
]  # fmt: skip


@pytest.mark.parametrize("keys, options", OPTIONS)
def test_keys_are_options(keys, options):
    """Each key does what the option with its name does; what is not given is as on the command line."""
    given = ["-s", 7, "-n", 12]
    alone = text("-p", PROMPT, *given[:2], *map(str, options), "-q")
    got = answer({"prompt": PROMPT, "seed": 7, **keys}, options=given)
    assert got["text"].encode() == alone
    assert got["finish_reason"] == ("stop" if "stop" in keys else "length")
    assert got["completion_tokens"] == len(got["ids"]) and got["id"] == 1


def test_prompts():
    """A text, ids, or what escapes say; ids give the text of these ids."""
    ids = text("--tokenize", PROMPT, "-q").decode().split()
    bos = answer({"prompt": "", **GREEDY})
    by_ids = answer({"ids": [BEGIN, *map(int, ids)], **GREEDY})
    by_text = answer({"prompt": PROMPT, **GREEDY})
    assert by_ids["text"] == by_text["text"] and by_text["prompt_tokens"] == len(ids) + 1
    assert bos["prompt_tokens"] == 1
    escaped = b'{"prompt": "\\u004fnce up\\u006fn a time", "max_tokens": 8, "temperature": 0}'
    assert answer(escaped)["text"] == by_text["text"]


@pytest.mark.parametrize("id", ["a", "", '\u20ac\n"\\\u2028\U0001f600\x00', 0, -5, 1.5, 10**30])
def test_ids_come_back(id):
    """The id as it was given, in an error, too, wherever it stands."""
    assert answer({"prompt": "a", "max_tokens": 1, "id": id})["id"] == id
    (got,) = batch({"prompt": "a", "unknown": 1, "id": id}, status=FAILED)
    assert got["id"] == id and "unknown" in got["error"]


def test_samples():
    """n samples are a line, with seeds that count up; --samples says it for all lines."""
    single = [answer({"prompt": PROMPT, "seed": 5 + i, "temperature": 1, "max_tokens": 8}) for i in range(3)]
    request = {"prompt": PROMPT, "seed": 5, "temperature": 1, "max_tokens": 8}
    for got in (
        answer(request | {"n": 3}),
        answer(request | {"samples": 3}),
        answer(request, options=["--samples", 3]),
    ):
        assert [(one["text"], one["seed"]) for one in got["samples"]] == [
            (one["text"], one["seed"]) for one in single
        ]
        assert got["prompt_tokens"] == single[0]["prompt_tokens"] and "text" not in got


def test_messages(chat_model):
    """A conversation is what the chat template makes of it; developer is system, and a text may come in
    parts."""
    model, judge = chat_model
    said = ["Hello", "Hi.", "and now?"]
    want = answer({"ids": judge.ids(said, "Be brief."), **GREEDY}, model=model, options=["-k", "f32"])
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}]
        messages += [
            {"role": r, "content": c} for r, c in zip(["user", "assistant", "user"], said, strict=True)
        ]
        got = answer({"messages": messages, **GREEDY}, model=model, options=["-k", "f32"])
        assert got["ids"] == want["ids"] and got["prompt_tokens"] == want["prompt_tokens"]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (first, second) = batch(
        {"messages": [{"role": "user", "content": parts}], **GREEDY},
        {"messages": [{"role": "user", "content": "a\nb"}], **GREEDY},
        model=model,
    )
    assert first["ids"] == second["ids"] and first["prompt_tokens"] == second["prompt_tokens"]


WRONG = [
    ({}, "0 of them"),
    ({"prompt": "a", "ids": [1]}, "2 of them"),
    ({"prompt": "a", "max_token": 5}, '"max_token"'),
    ({"prompt": 5}, '"prompt" takes a text'),
    ({"prompt": "a", "max_tokens": -2}, '"max_tokens" takes a whole number from -1'),
    ({"prompt": "a", "max_tokens": 1.5}, '"max_tokens"'),
    ({"prompt": "a", "max_tokens": "5"}, '"max_tokens"'),
    ({"prompt": "a", "temperature": -1}, '"temperature" takes a number from 0'),
    ({"prompt": "a", "temperature": True}, '"temperature"'),
    ({"prompt": "a", "top_p": 1.5}, '"top_p"'),
    ({"prompt": "a", "top_k": 0.5}, '"top_k"'),
    ({"prompt": "a", "min_p": [0]}, '"min_p"'),
    ({"prompt": "a", "repeat_penalty": 0}, '"repeat_penalty"'),
    ({"prompt": "a", "seed": -1}, '"seed"'),
    ({"prompt": "a", "seed": 2**64}, '"seed"'),
    ({"prompt": "a", "stop": ""}, '"stop"'),
    ({"prompt": "a", "stop": ["b", 5]}, '"stop"'),
    ({"prompt": "a", "stop": {"b": 5}}, '"stop"'),
    ({"prompt": "a", "logprobs": 21}, '"logprobs" takes a whole number from 0 to 20'),
    ({"prompt": "a", "logprobs": True}, '"logprobs"'),
    ({"prompt": "a", "n": 0}, '"n"'),
    ({"prompt": "a", "choices": []}, '"choices"'),
    ({"prompt": "a", "choices": ["b", ""]}, '"choices"'),
    ({"prompt": "a", "choices": ["b"], "n": 2}, "samples"),
    ({"prompt": "a", "choices": ["b"], "logprobs": 2}, "logprobs"),
    ({"prompt": "a", "id": True}, '"id"'),
    ({"ids": []}, '"ids"'),
    ({"ids": [1, -1]}, '"ids"'),
    ({"ids": [1, 10**6]}, "1000000"),
    ({"ids": [1.5]}, '"ids"'),
    ({"ids": ["1"]}, '"ids"'),
    ({"messages": []}, '"messages"'),
    ({"messages": ["a"]}, '"messages"'),
    ({"messages": [{"role": "user"}]}, "message 1"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "a"}]}, "message 2"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 1"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 1"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "tool_calls"),
    ({"messages": [{"role": "user", "content": "a", "x": 1}]}, '"x"'),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "user first"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]}, "last message"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}]}, "first one"),
    (b"", None),
    (b"[1]", "not a JSON object"),
    (b"{", "not JSON"),
    (b'{"prompt": "a", "prompt": "b"}', "twice"),
    (b'{"prompt": "\\ud800"}', "surrogate"),
    (b'{"prompt": "\xff"}', "UTF-8"),
    (b'{"prompt": "a", "temperature": 1e999}', "too large"),
    (b'{"prompt": "a"} x', "follows"),
    ({"prompt": "a " * 100000}, "context"),
]


def test_wrong_lines(chat_model):
    """A line that cannot be used is an error that says why; those beside it are answered. An empty line is no
    line."""
    model, _ = chat_model
    good = {"prompt": "a", "max_tokens": 1, "id": "good"}
    requests = [request for wrong, _ in WRONG for request in (wrong, good)]
    got = batch(*requests, status=FAILED, model=model)
    wanted = [says for _, says in WRONG if says is not None]
    assert [one for one in got if "error" not in one] == [one for one in got if one["id"] == "good"]
    errors = [one for one in got if "error" in one]
    assert len(got) == len(wanted) + len(WRONG) and len(errors) == len(wanted)
    for one, says in zip(errors, wanted, strict=True):
        assert set(one) == {"id", "error"} and says in one["error"], one
    numbers = [2 * i + 1 for i, (_, says) in enumerate(WRONG) if says is not None]
    assert [one["id"] for one in errors][:5] == numbers[:5]


def test_files(tmp_path):
    """CR LF, a byte order mark, white space lines and a last line without an end are no trouble; a name that
    is no file is an error."""
    plain = lines({"prompt": "a", **GREEDY}, {"prompt": "b", **GREEDY})
    windows = b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n \t\r\n")[:-5]
    (tmp_path / "plain").write_bytes(plain)
    (tmp_path / "windows").write_bytes(windows)
    one, two = (text("--batch", tmp_path / name, "-s", 1) for name in ("plain", "windows"))
    texts = [[json.loads(line)["text"] for line in out.splitlines()] for out in (one, two)]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    refused(run("--batch", tmp_path / "none"), FAILED, "none")
    assert text("--batch", "-", stdin=b"") == b""


def test_text_that_is_not_utf8(chat_model):
    """`text` has U+FFFD where the bytes are no UTF-8, and `ids` say what was written."""
    model, _ = chat_model
    seen = 0
    for seed in range(20):
        request = {"prompt": "a", "temperature": 1000, "seed": seed, "max_tokens": 30, "ignore_eos": True}
        raw = text("-p", "a", "-t", 1000, "-s", seed, "-n", 30, "--ignore-eos", model=model)
        got = answer(request, model=model)
        assert got["text"] == raw.decode("utf-8", "replace") and len(got["ids"]) == 30
        seen += "\ufffd" in got["text"]
    assert seen > 3


# ---- log-probabilities


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5, "top_k": 2, "repeat_penalty": 5}])
def test_logprobs(sampling):
    """Of the raw logits, before penalty, temperature and cuts: of each token and of the likeliest."""
    got = answer({"prompt": PROMPT, "max_tokens": 12, "seed": 3, "logprobs": 4, **sampling})
    ids = [BEGIN, *map(int, text("--tokenize", PROMPT).split())]
    logits = compare.logits(MODEL, [*ids, *got["ids"]]).astype(np.float64)[len(ids) - 1 : -1]
    largest = logits.max(axis=1, keepdims=True)
    log_softmax = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    content = got["logprobs"]["content"]
    assert [one["id"] for one in content] == got["ids"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == got["text"]
    for one, row in zip(content, log_softmax, strict=True):
        order = np.lexsort((np.arange(len(row)), -row))[:4]
        assert [top["id"] for top in one["top_logprobs"]] == list(order)
        for token in (one, *one["top_logprobs"]):
            assert abs(token["logprob"] - row[token["id"]]) < 2e-6 * max(1, -row[token["id"]])
            assert bytes(token["bytes"]).decode("utf-8", "replace") == token["token"]


def test_logprobs_change_nothing():
    """The text is the same with and without them, and without alternatives there are none."""
    request = {"prompt": PROMPT, "max_tokens": 8, "seed": 3}
    got = answer(request | {"logprobs": 0})
    assert got["text"] == answer(request)["text"]
    assert all(one["top_logprobs"] == [] for one in got["logprobs"]["content"])


def test_choices():
    """All sums, per token and per byte; the likeliest is the text."""
    choices = [" there was a little girl", " in", "\u00e9", " they"]
    got = answer({"prompt": PROMPT + ",", "choices": choices})
    sums = [one["logprob"] for one in got["choices"]]
    assert got["best"] == int(np.argmax(sums)) and got["text"] == choices[got["best"]].strip()
    for one, choice in zip(got["choices"], choices, strict=True):
        assert one["text"] == choice
        assert one["tokens"] == len(text("--tokenize", choice).split())
        assert abs(one["logprob_per_token"] * one["tokens"] - one["logprob"]) < 1e-6 * -one["logprob"]
        assert abs(one["logprob_per_byte"] * len(choice.encode()) - one["logprob"]) < 1e-6 * -one["logprob"]


# ---- OpenAI's form


def chat_line(custom_id="c", **body):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def completion_line(custom_id="c", **body):
    body = {"model": "m", "prompt": "Hello", "max_tokens": 8, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def body_of(line, **how):
    (got,) = batch(line, **how)
    assert got["error"] is None and got["response"]["status_code"] == 200
    assert got["custom_id"] == line["custom_id"]
    return got["response"]["body"]


def test_openai_types(chat_model):
    """Lines of answers parse as what the package says they are."""
    types = pytest.importorskip("openai.types")
    chat_types = pytest.importorskip("openai.types.chat")
    model, _ = chat_model
    how = {"model": model, "options": ["-s", 1]}
    body = body_of(chat_line(n=2, logprobs=True, top_logprobs=3, temperature=1), **how)
    completion = chat_types.ChatCompletion.model_validate(body, strict=True)
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert (
        completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )
    for choice in completion.choices:
        tokens = choice.logprobs.content
        assert choice.message.role == "assistant" and choice.message.refusal is None
        assert b"".join(bytes(t.bytes) for t in tokens).decode("utf-8", "replace") == choice.message.content
        assert all(len(t.top_logprobs) == 3 for t in tokens)
    plain = chat_types.ChatCompletion.model_validate(body_of(chat_line(), **how), strict=True)
    assert plain.choices[0].logprobs is None

    body = body_of(completion_line(logprobs=2, n=2, temperature=1), **how)
    completion = types.Completion.model_validate(body, strict=True)
    for choice in completion.choices:
        logged = choice.logprobs
        assert (
            len(logged.tokens)
            == len(logged.token_logprobs)
            == len(logged.top_logprobs)
            == len(logged.text_offset)
        )
        assert all(0 < len(top) <= 2 for top in logged.top_logprobs)
    assert (
        types.Completion.model_validate(body_of(completion_line(), **how), strict=True).choices[0].logprobs
        is None
    )


def test_text_offsets():
    """A token stands in the text where its offset says."""
    body = body_of(completion_line(prompt=PROMPT, max_tokens=40, logprobs=0, temperature=0))
    choice = body["choices"][0]
    logged = choice["logprobs"]
    assert len(logged["tokens"]) == 40
    for token, offset in zip(logged["tokens"], logged["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)


def test_openai_is_the_own_form(chat_model):
    """Both forms give the same text for the same request."""
    model, judge = chat_model
    keys = {"temperature": 1, "seed": 4, "top_p": 0.9, "max_tokens": 12, "stop": ["ab"], "n": 2}
    messages = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
    ]
    own = answer({"messages": messages, **keys}, model=model)["samples"]
    choices = body_of(chat_line(messages=messages, **keys), model=model)["choices"]
    assert [one["text"] for one in own] == [one["message"]["content"] for one in choices]
    own = answer({"prompt": "u", **keys}, model=model)["samples"]
    ids = list(map(int, text("--tokenize", "u", model=model).split()))
    bos = judge.library.convert_tokens_to_ids(BOS)
    for prompt in ("u", ["u"], [bos, *ids], [[bos, *ids]]):
        choices = body_of(completion_line(prompt=prompt, **keys), model=model)["choices"]
        assert [one["text"] for one in own] == [one["text"] for one in choices]
    reasons = {one["finish_reason"] for one in choices}
    assert reasons <= {"stop", "length"}


ASKS_NOTHING = {
    "user": "me", "metadata": {"a": "b"}, "stream": False, "stream_options": None, "n": 1, "logit_bias": {},
    "frequency_penalty": 0, "presence_penalty": 0.0, "stop": None, "seed": None, "temperature": 0,
}  # fmt: skip
CHAT_NOTHING = {
    "tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None,
    "function_call": "auto",
    "response_format": {"type": "text"}, "modalities": ["text"], "audio": None, "prediction": None,
    "store": False,
    "reasoning_effort": None, "service_tier": "auto", "logprobs": False, "top_logprobs": None,
    "safety_identifier": "x", "prompt_cache_key": "x", "max_completion_tokens": 8,
}  # fmt: skip
COMPLETION_NOTHING = {"echo": False, "best_of": 1, "suffix": None, "logprobs": None}


def test_values_that_ask_for_nothing(chat_model):
    model, _ = chat_model
    plain = body_of(chat_line(temperature=0), model=model)
    assert body_of(chat_line(**ASKS_NOTHING, **CHAT_NOTHING), model=model)["choices"] == plain["choices"]
    plain = body_of(completion_line(temperature=0), model=model)
    assert (
        body_of(completion_line(**ASKS_NOTHING, **COMPLETION_NOTHING), model=model)["choices"]
        == plain["choices"]
    )


NOT_DONE = [
    (chat_line(tools=[{"type": "function"}]), "tools"),
    (chat_line(tool_choice="required"), "tool_choice"),
    (chat_line(stream=True), "stream"),
    (chat_line(logit_bias={"5": 100}), "logit_bias"),
    (chat_line(response_format={"type": "json_object"}), "response_format"),
    (chat_line(frequency_penalty=0.5), "frequency_penalty"),
    (chat_line(top_logprobs=3), "top_logprobs"),
    (chat_line(logprobs=3), "logprobs"),
    (chat_line(n=0), '"n"'),
    (chat_line(prompt="a"), "prompt"),
    (chat_line(messages=None), "messages"),
    (chat_line(reasoning_effort="high"), "reasoning_effort"),
    (completion_line(echo=True), "echo"),
    (completion_line(best_of=2), "best_of"),
    (completion_line(suffix="x"), "suffix"),
    (completion_line(prompt=["a", "b"]), "prompt"),
    (completion_line(prompt=None), "prompt"),
    (completion_line(messages=[]), "messages"),
    (chat_line() | {"url": "/v1/embeddings"}, "url"),
    (chat_line() | {"method": "GET"}, "method"),
    (chat_line() | {"body": 5}, "body"),
    (chat_line() | {"more": 5}, "more"),
    ({"custom_id": "c", "url": "/v1/completions"}, "body"),
    ({"custom_id": "c", "body": {}}, "url"),
]


def test_openai_errors(chat_model):
    """What is asked for and not done is an error of that line, in the form's own way."""
    types = pytest.importorskip("openai.types")
    model, _ = chat_model
    got = batch(*(line for line, _ in NOT_DONE), b"{", status=FAILED, model=model)
    for one, (_, says) in zip(got[:-1], NOT_DONE, strict=True):
        assert one["custom_id"] == "c" and one["response"]["status_code"] == 400
        types.ErrorObject.model_validate(one["response"]["body"]["error"], strict=True)
        assert says in one["error"]["message"] == one["response"]["body"]["error"]["message"], one
    assert got[-1]["custom_id"] == "" and "not JSON" in got[-1]["error"]["message"]
    (got,) = batch({"url": "/v1/completions", "body": {}}, status=FAILED)
    assert "custom_id" in got["error"]["message"]


def test_same_bytes():
    """The same input gives the same output: nothing in it is a time or drawn by lot, given a seed."""
    given = lines(*(completion_line(str(i), prompt=PROMPT, temperature=1, n=2, logprobs=1) for i in range(9)))
    outs = {text("--batch", "-", "-s", 1, "--parallel", n, stdin=given) for n in (1, 4, 32)}
    assert len(outs) == 1


# ---- hostile input

SEEDS = [
    {
        "id": "x",
        "prompt": "a",
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "seed": 3,
    },
    {"ids": [1, 2, 3], "max_tokens": 2, "stop": ["a", "bc"], "logprobs": 2, "repeat_penalty": 1.1},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 1},
    {"prompt": "a\u20ac\U0001f600\n", "choices": [" b", "c"], "id": 1.5},
    {"prompt": "", "n": 2, "max_tokens": 2, "ignore_eos": True},
    chat_line(max_tokens=2, logprobs=True, top_logprobs=2, n=2, user="u", metadata={"a": 1}),
    completion_line(max_tokens=2, logprobs=2, prompt=[[1, 2]]),
]
WORDS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\u", b"null", b"-1", b"1e9", b"\n", b"\xff", b"\x00"]
WORDS += [b'"n":3,', b'"max_tokens":3,', b'"id":null,', b"99999999999", b"0.5", b'"prompt":"x",', b"true"]


def test_mutated_files():
    """Changed files in the build with sanitizers: an answer or an error a line, never a crash, a hang or a
    line that is not JSON. MLA_MUTATIONS=10000 for more."""
    draw = random.Random(13)
    options = ["--batch", "-", "-s", "1", "-n", "2", "-c", "200", "-q", "--parallel", "3", "-j", "1"]
    command = [make("debug", "run"), MODEL, *options]
    for _ in range(int(os.environ.get("MLA_MUTATIONS", 60))):
        whole = mutated(draw, lines(*draw.choices(SEEDS, k=draw.randrange(1, 4))), WORDS)
        done = subprocess.run(command, input=whole, capture_output=True, timeout=60)
        assert done.returncode in (0, FAILED) and b"Sanitizer" not in done.stderr, (whole, done.stderr)
        for line in done.stdout.splitlines():
            got = json.loads(line)
            assert "error" in got or "prompt_tokens" in got, (whole, line)
