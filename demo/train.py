"""Trains a model like the one that ships, in two phases: stories, then conversations about stories.

    pip install torch tokenizers safetensors numpy
    python demo/train.py stories.txt build/stories --held-out valid.txt
    python export.py build/stories stories.bin --type q8 --mtp

TEXT is stories with a line <|endoftext|> between them; without --held-out, one in thirty is held out to
measure the loss on. --from DIR begins with the second phase, from the weights and the tokenizer in DIR. OUT
becomes a Hugging Face directory: export.py reads it, and so does transformers. The model is in model.py,
the conversations are made in conversations.py. torchrun starts several processes that train together, each
with --batch windows a step. --attention trains one of the small models that doc/study.md compares
(siblings.py), on stories alone. There is no resuming in the middle of a phase and no search for
hyperparameters here.
"""

import argparse
import itertools
import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
from conversations import ASSISTANT, SEPARATOR, TEMPLATE, USER, Conversation, conversations, read_stories
from model import CONFIG, Model, MoE, T
from safetensors.torch import load_file, save_file
from siblings import SIBLINGS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

MTP_WEIGHT = 0.3  # of the second loss, as in the DeepSeek-V3 report
ASKED_WEIGHT = 3  # of a word that the user has asked for, where the answer has it first

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
BOS_ID, EOS_ID = CONFIG["bos_token_id"], CONFIG["eos_token_id"]

# DeepSeek-V3's pre-tokenizer: three splits, one after the other.
PATTERNS = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


class Row(NamedTuple):
    """Tokens, and how much it counts that each is predicted."""

    ids: list[int]
    weights: list[float]


# ---- text


def train_tokenizer(stories: list[str]) -> Tokenizer:
    """Byte-level BPE: every text can be written with its ids, whatever it was trained on."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def with_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The marks of turns take the ids of the last two merges: the rarest, and no other merge needs them. What
    these wrote is written with two tokens from now on."""
    values = json.loads(tokenizer.to_str())
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    for mark in (ASSISTANT, USER):
        place = vocabulary.pop("".join(merges.pop()))
        vocabulary[mark] = place
        values["added_tokens"].append({**values["added_tokens"][0], "id": place, "content": mark})
    values["added_tokens"].sort(key=lambda token: token["id"])
    return Tokenizer.from_str(json.dumps(values))


def encode(tokenizer: Tokenizer, stories: list[str]) -> torch.Tensor:
    """All stories in a row, each between a begin and an end token: int64 [tokens]."""
    ids = []
    for story in tokenizer.encode_batch(stories):
        ids += [*story.ids, EOS_ID]
    return torch.tensor(ids)


def asked_weights(encoding, answer: str, words: tuple[str, ...]) -> list[float]:
    """For the tokens of an answer."""
    weights = [1.0] * len(encoding.ids)
    for word in words:
        found = re.search(rf"\b{word}\b", answer.lower())
        for i, (begin, end) in enumerate(encoding.offsets):
            if found and begin < found.end() and end > found.start():
                weights[i] = ASKED_WEIGHT
    return weights


def encode_conversation(tokenizer: Tokenizer, conversation: Conversation) -> Row:
    """As the template writes it. What is learnt are the answers, with the token that ends them."""

    def given(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    ids = [BOS_ID, *given(conversation.system)]
    weights = [0.0] * len(ids)
    for turn in conversation.turns:
        question = given(USER + turn.user + ASSISTANT)
        answer = tokenizer.encode(turn.answer, add_special_tokens=False)
        ids += [*question, *answer.ids, EOS_ID]
        weights += [0.0] * len(question) + asked_weights(answer, turn.answer, turn.words)
        weights.append(0.0 if turn.unfinished else 1.0)
    return Row(ids, weights)


# ---- batches: (ids, weights), both [rows, t + 2]


def windows(ids: torch.Tensor, count: int, generator=None, begins: torch.Tensor | None = None):
    """`count` pieces of T + 2 tokens from anywhere, or from places among `begins`: the two more are what the
    last position has to predict."""
    if begins is None:
        starts = torch.randint(0, len(ids) - T - 1, (count,), generator=generator)
    else:
        begins = begins[begins < len(ids) - T - 1]
        starts = begins[torch.randint(0, len(begins), (count,), generator=generator)]
    pieces = torch.stack([ids[start : start + T + 2] for start in starts])
    return pieces, torch.ones(pieces.shape)


def padded(rows: list[Row]):
    """Rows of one length, two tokens longer than the longest: all that a row has is predicted, by MTP too."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest + 1), EOS_ID)
    weights = torch.zeros(ids.shape)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def conversation_batches(rows: Iterator[Row], tokens: int, seed: int):
    """Endless batches of about so many tokens, each of rows of similar length."""
    rng = random.Random(seed)
    while True:
        pool = sorted(itertools.islice(rows, 256), key=lambda row: len(row.ids))
        batches: list[list[Row]] = [[]]
        for row in pool:
            if (len(batches[-1]) + 1) * len(row.ids) > tokens:
                batches.append([])
            batches[-1].append(row)
        rng.shuffle(batches)
        yield from map(padded, batches)


# ---- training


def device_of(model: Model) -> str:
    return next(model.parameters()).device.type


def optimizers(model: Model, rate: float):
    """Muon for the matrices of the layers, AdamW for the rest; with this scaling of Muon one learning rate
    serves both."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        is_matrix = p.ndim == 2 and "embed" not in name and "mlp.gate.weight" not in name
        (matrices if is_matrix else rest).append(p)
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return muon, torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)


@torch.no_grad()
def losses(model: Model, batches, bf16: bool) -> list[float]:
    """Mean losses over batches: next token, MTP."""
    device = device_of(model)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        each = [torch.stack(model(*(x.to(device) for x in batch))) for batch in batches]
    return torch.stack(each).mean(0).tolist()


def worker() -> int:
    """Which of the processes this is that train together (torchrun), or 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def average(tensors: list[torch.Tensor]) -> None:
    """Over the processes that train together, in place."""
    if dist.is_initialized():
        whole = nn.utils.parameters_to_vector(tensors)
        dist.all_reduce(whole)
        nn.utils.vector_to_parameters(whole / dist.get_world_size(), tensors)


def agreed(number: float) -> float:
    """The mean over the processes that train together: their clocks differ."""
    one = [torch.tensor(number)]
    average(one)
    return one[0].item()


def step(model: Model, batch, both, rate: float, args) -> list[float]:
    """One step of both optimizers; the losses."""
    device = device_of(model)
    for optimizer in both:
        for group in optimizer.param_groups:
            group["lr"] = rate
    with torch.autocast(device, dtype=torch.bfloat16, enabled=args.bf16):
        next_loss, mtp_loss = model(*(x.to(device) for x in batch))
    (next_loss + MTP_WEIGHT * mtp_loss).backward()
    balanced = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoE)]
    average([p.grad for p in model.parameters()] + [mlp.load for mlp in balanced])
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in both:
        optimizer.step()
        optimizer.zero_grad()
    for mlp in balanced:
        mlp.balance(rate * 2 / 3)
    return [next_loss.item(), mtp_loss.item()]


def fit(model: Model, batches, rate: float, level, args, report, mean=None, result=None) -> None:
    """Trains and writes the model's weights, or what result() makes of them. level(steps done): the share of
    the learning rate, 0 at the end. mean: a running mean of the weights to keep."""
    result = result or model.state_dict
    both = optimizers(model, rate)
    begin, count = time.time(), 0
    while now_level := agreed(level(count)):
        now = step(model, next(batches), both, rate * min(now_level, (count + 1) / 20), args)
        count += 1
        if mean:
            mean.update_parameters(model)
        if worker() == 0 and count % 20 == 0:
            took = time.time() - begin
            print(f"step {count}, {took:.0f} s: loss {now[0]:.3f}, mtp {now[1]:.3f}", flush=True)
            write(result(), args.out)  # a run that is ended early leaves a model too
        if worker() == 0 and count % 100 == 0:
            report()
    if worker() == 0:
        report()
        write(result(), args.out)


def write(weights: dict[str, torch.Tensor], out: Path) -> None:
    tensors = {f"model.{name}": t.detach().cpu() for name, t in weights.items()}
    tensors = {
        name: (t.float() if "bias" in name else t.bfloat16()).contiguous() for name, t in tensors.items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def read(model: Model, directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): t.float() for name, t in tensors.items()})


def write_json(path: Path, **values) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_texts(tokenizer: Tokenizer, config: dict, out: Path) -> None:
    """Everything in OUT but the weights. The template needs the marks of turns."""
    talks = tokenizer.token_to_id(USER) is not None
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        model_max_length=T,
        **({"chat_template": TEMPLATE} if talks else {}),
    )
    write_json(
        out / "generation_config.json",
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    write_json(out / "config.json", **config)


# ---- the two phases


def tell_stories(model: Model, tokenizer: Tokenizer, texts, args) -> None:
    """Phase 1: stories alone."""
    train, held_out = (encode(tokenizer, stories) for stories in texts)

    def batches():
        while True:
            yield windows(train, args.batch)

    def report():
        print("held out:", held_out_loss(model, held_out, args), flush=True)

    def level(count: int) -> float:  # down in a line from 40 % of the time, or of the siblings' steps, on
        done = count / args.steps if args.attention else (time.time() - begin) / (60 * args.minutes)
        return min(1, max(0, (1 - done) / 0.6))

    write_texts(tokenizer, config_of(args), args.out)
    begin = time.time()
    fit(model, batches(), args.rate, level, args, report)


def held_out_loss(model: Model, ids: torch.Tensor, args) -> str:
    """Over the same windows of the held-out stories each time."""
    generator = torch.Generator().manual_seed(0)
    batches = [windows(ids, 8, generator) for _ in range(4)]
    return "loss {:.4f}, mtp {:.4f}".format(*losses(model, batches, args.bf16))


def learn_to_talk(model: Model, tokenizer: Tokenizer, texts, args) -> None:
    """Phase 2: conversations and, so that plain stories are not unlearnt, a third as many tokens of these,
    from their begin token on: conversations begin with it, too, and without more it has to begin a story."""
    # The mean of the weights over the last hundred steps or so does what a falling learning rate does, and
    # tells plain stories better than the model that it began with.
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    first = {name: t.clone() for name, t in model.state_dict().items()}

    def result() -> dict[str, torch.Tensor]:
        """The mean, with --keep of the first weights: that tells stories better than either."""
        now = mean.module.state_dict()
        return {name: torch.lerp(t, first[name], args.keep) for name, t in now.items()}

    plain, plain_held_out = (encode(tokenizer, stories) for stories in texts)
    begins = (plain == BOS_ID).nonzero()[:, 0]

    def rows(stories, seed):
        made = (encode_conversation(tokenizer, each) for each in conversations(stories, seed))
        return (row for row in made if len(row.ids) <= T)

    seed = args.seed + worker()  # other conversations for each
    talk = conversation_batches(rows(texts[0], seed), args.batch * T, seed)
    held_out = list(itertools.islice(conversation_batches(rows(texts[1], 1), args.batch * T, 1), 6))

    def batches():
        while True:
            yield windows(plain, args.batch, begins=begins)
            yield from itertools.islice(talk, 3)

    def report():
        of_talk = losses(mean.module, held_out, args.bf16)
        print("held out: stories:", held_out_loss(mean.module, plain_held_out, args), end="; ")
        print("conversations: loss {:.4f}, mtp {:.4f}".format(*of_talk), flush=True)

    def level(count: int) -> float:
        return float(count < args.steps)

    write_texts(tokenizer, CONFIG, args.out)
    fit(model, batches(), args.chat_rate, level, args, report, mean, result)


# ---- the command line


def arguments() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = options.add_argument
    add("text", type=Path, metavar="TEXT", help=f"stories with a line {SEPARATOR} between them")
    add("out", type=Path, metavar="OUT", nargs="?", default=Path("build/stories"))
    add("--held-out", type=Path, metavar="FILE", help="stories to measure the loss on (default: of TEXT)")
    add("--from", dest="source", type=Path, metavar="DIR", help="phase 2 alone, from the model in DIR")
    add("--minutes", type=float, default=150, help="of phase 1 (default %(default)s)")
    add("--steps", type=int, default=600, help="of phase 2, or of --attention (default %(default)s)")
    add("--attention", choices=SIBLINGS, help="train this one of the siblings of doc/study.md instead")
    add("--batch", type=int, default=8, help=f"windows of {T} tokens a step (default %(default)s)")
    add("--rate", type=float, default=3e-3, help="highest learning rate of phase 1 (default %(default)s)")
    add("--chat-rate", type=float, default=8e-4, help="and of phase 2 (default %(default)s)")
    add("--keep", type=float, default=0.0, help="share of phase 2's first weights in its result (default 0)")
    add("--seed", type=int, default=1, help="of everything random (default %(default)s)")
    add("--threads", type=int, help="of the CPU (default: PyTorch's)")
    add("--bf16", action="store_true", help="compute in bf16: faster where the machine has it")
    return options


def config_of(args) -> dict:
    return SIBLINGS[args.attention] if args.attention else CONFIG


def read_texts(args) -> tuple[list[str], list[str]]:
    """The stories to train on, and those held out."""
    stories = read_stories(args.text.read_text(encoding="utf-8"))
    if args.held_out:
        return stories, read_stories(args.held_out.read_text(encoding="utf-8"))
    return [story for i, story in enumerate(stories) if i % 30], stories[::30]


def main() -> None:
    options = arguments()
    args = options.parse_args()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    texts = read_texts(args)
    if args.attention and args.source:
        options.error("--attention trains from the beginning: without --from")
    if min(sum(map(len, stories)) for stories in texts) < 20 * T:
        options.error(
            f"{args.text} is too short: some thousand words to train on, and to hold out, are needed"
        )
    model = Model(config_of(args)).to("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed + worker())  # other stories for each
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    if args.source:
        read(model, args.source)
        tokenizer = Tokenizer.from_file(str(args.source / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(texts[0])
        tell_stories(model, tokenizer, texts, args)
        if args.attention:
            return
    if tokenizer.token_to_id(USER) is None:
        tokenizer = with_marks(tokenizer)
        with torch.no_grad():  # the marks begin as an average token
            embedding = model.embed_tokens.weight
            for mark in (USER, ASSISTANT):
                embedding[tokenizer.token_to_id(mark)] = embedding.mean(0)
    learn_to_talk(model, tokenizer, texts, args)


if __name__ == "__main__":
    main()
