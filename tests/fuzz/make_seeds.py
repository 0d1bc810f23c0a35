"""Seeds for `make fuzz`:  python tests/fuzz/make_seeds.py OUT

Every model of tests/models becomes a checkpoint of some 100 kB: the family's configuration with sizes that
are smaller still, random weights in the tensors that the exporter asks for, a tokenizer of 277 tokens and a
chat template; then export.py makes a checkpoint of it, in each type in turn. So a family, a field or a
section that is added there is fuzzed as well. OUT/checkpoint, OUT/session, OUT/tokenizer, OUT/options and
OUT/batch hold the seeds, OUT/model.bin the model of the sessions and batches."""

import itertools
import json
import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

import compare  # noqa: E402

from exporter import config as model_config  # noqa: E402
from exporter.families import language_model  # noqa: E402
from exporter.plan import make_plan  # noqa: E402
from exporter.tokenizer import LETTERS, compile_tokenizer  # noqa: E402

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "max_position_embeddings": 300,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 4,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% else %}<|assistant|>{{ m['content'] }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OPTIONS = [
    "model.bin\0-p\0Once\0-n\x005\0-t\x000.5\0--top-k\x0040\0-s\x001",
    "model.bin\0-e\0-p\0a\\n\\x41\\ud83d\\ude00\0--stop\0b\0-q",
    "--help",
    "--generate\0zsh",
    "m\0--info",
    "m\0--ids\x001 2 3\0-k\0q6\0-c\x0010\0-j\x001",
    "m\0--perplexity\0f\0--against\0f32",
    "m\0--session\0s\0--ignore-eos\0--echo",
    "-qn5\0--top-p=0.5\0-t0\0--\0-m",
    "--tokenize\0-f\0a\0--count\0m",
    "m\0--tokenize=-f\0-e",
    "m\0--temp\x000",
]


USER = '[{"role": "user", "content": [{"type": "text", "text": "a"}]}]'
COMPLETIONS = '{"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": '
CHAT = '{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": '
BATCHES = [
    '{"id": "x", "prompt": "a\\u00e9\\ud83d\\ude00", "max_tokens": 2, "top_p": 0.9, "seed": 3}',
    '{"ids": [1, 2, 3], "stop": ["a", "bc"], "logprobs": 2, "top_k": 4, "min_p": 0.1, "n": 2}\n[1, 1e5]\n',
    '{"messages": ' + USER + '}\n{"prompt": "", "choices": [" b", "c"], "id": 1.5}',
    CHAT + USER + ', "logprobs": true, "top_logprobs": 2, "metadata": {"a": null}, "stream": false}}',
    COMPLETIONS + '[[1, 2]], "logprobs": 2, "n": 2, "repetition_penalty": 1.1, "ignore_eos": true}}\n{',
]


def tokenizer_json():
    """256 bytes, 40 merges of English, three special tokens; DeepSeek-V3's expressions."""
    published = json.loads((ROOT / "tests/tokenizers/deepseek-v3.json").read_text(encoding="utf-8"))[
        "tokenizer"
    ]
    vocab = {letter: i for i, letter in enumerate(sorted(LETTERS))}
    pairs = [
        "Ġ t",
        "h e",
        "i n",
        "a n",
        "Ġt he",
        "e r",
        "o n",
        "r e",
        "Ġ a",
        "o u",
        "n d",
        "Ġa nd",
        "in g",
        "l l",
        "i t",
        "Ġ w",
        "e n",
    ]
    for pair in pairs:
        vocab[pair.replace(" ", "")] = len(vocab)
    added = [
        {"id": len(vocab) + i, "content": text, "special": True}
        for i, text in enumerate(["<s>", "</s>", "<|user|>", "<|assistant|>"])
    ]
    return {**published, "added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": pairs}}


def write_safetensors(path, tensors):
    """{name: float32 array}"""
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(v.tobytes() for v in tensors.values()))


def small_source(folder, model):
    """The Hugging Face directory of a model like tests/models/MODEL, only smaller."""
    values = language_model(json.loads((model / "config.json").read_text()), model.name)
    hybrid = "linear_attn_config" in values or "layer_group_size" in values
    kept = {"num_hidden_layers"} if hybrid else set()  # of which kind a layer is, lists say
    values |= {key: size for key, size in SMALL.items() if values.get(key) and key not in kept} | {
        "bos_token_id": 273,
        "eos_token_id": 274,
    }
    rope = values.get("rope_scaling") or {}
    rope |= {
        key: factors[: SMALL["qk_rope_head_dim"] // 2]
        for key, factors in rope.items()
        if isinstance(factors, list)
    }
    for key in ("qk_head_dim", "q_head_dim"):  # the sum of two
        values.pop(key, None)
    if values.get("kv_lora_rank") and not hybrid:  # a latent's heads have no such size
        values.pop("head_dim", None)
    values.pop("quantization_config", None)  # FP8 is the source's matter: the checkpoint knows nothing of it
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    texts = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(texts))
    random = np.random.default_rng(1)
    shapes = {
        entry.source: entry.shape
        for entry in make_plan(model_config.parse(values, model.name), "f32")
        if entry.source
    }
    write_safetensors(
        folder / "model.safetensors",
        {name: random.standard_normal(shape, np.float32) / 4 for name, shape in shapes.items()},
    )


def main(out):
    for name in ("source", "checkpoint", "session", "tokenizer", "options", "batch"):
        (out / name).mkdir(parents=True, exist_ok=True)
    kinds = itertools.cycle(["q8", "f32", "q4", "bf16", "mixed", "q8"])
    for model in sorted((ROOT / "tests/models").iterdir()):
        folder = out / "source" / model.name
        small_source(folder, model)
        compare.export(folder, out / "checkpoint" / model.name, "--type", next(kinds))
        (folder / "tokenizer.json").unlink()
        compare.export(folder, out / "checkpoint" / f"{model.name}-ids", "--type", next(kinds))

    (out / "model.bin").write_bytes(min((out / "checkpoint").iterdir()).read_bytes())
    for cache, tokens in itertools.product(("f32", "bf16", "q8", "q6", "q4", "full"), (1, 140)):
        name = out / "session" / f"{cache}-{tokens}"
        compare.run(
            out / "model.bin",
            "--ids",
            " ".join(["5"] * tokens),
            "-n",
            "2",
            "-s",
            "1",
            "-k",
            cache,
            "--ignore-eos",
            "-q",
            "--session",
            name,
        )
    for words in ("a", "It's 12 little dogs. " * 6):
        compare.run(
            out / "model.bin",
            "--chat",
            "-p",
            words,
            "-n",
            "4",
            "-s",
            "1",
            "-q",
            "--session",
            out / "session" / f"chat-{len(words)}",
        )

    (out / "source" / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    section = compile_tokenizer(out / "source")
    for i, text in enumerate(
        ["", "It's 1234 little dogs,\n\n and THEN </s><|user|>", "中文 für\t\xa0😀\r\n", "the " * 90]
    ):
        (out / "tokenizer" / str(i)).write_bytes(
            section + text.encode() + struct.pack("<H", len(text.encode()))
        )
    for i, words in enumerate(OPTIONS):
        (out / "options" / str(i)).write_bytes(words.encode())
    for i, lines in enumerate(BATCHES):
        (out / "batch" / str(i)).write_text(lines)


main(Path(sys.argv[1]))
