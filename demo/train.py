"""Trains a model like the one that ships: DeepSeek-V3's architecture (Multi-head Latent Attention, a mixture
of experts with a sigmoid router, one layer of multi-token prediction) with 11 million parameters, on
stories. It doubles as an explanation of MLA in PyTorch: read Attention first.

    pip install torch tokenizers safetensors numpy
    python demo/train.py stories.txt build/stories --minutes 150
    python export.py build/stories stories.bin

TEXT is stories with a line <|endoftext|> between them; one in thirty is held out to measure the loss on. OUT
becomes a Hugging Face directory: export.py reads it, and so does transformers. There is no distributed
training, no resuming and no search for hyperparameters here."""

import argparse
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

# config.json, under the names that DeepSeek-V3 gives them.
CONFIG = dict(
    architectures=["DeepseekV3ForCausalLM"],
    model_type="deepseek_v3",
    hidden_size=256,
    num_hidden_layers=6,
    num_nextn_predict_layers=1,
    num_attention_heads=8,
    num_key_value_heads=8,
    q_lora_rank=128,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    intermediate_size=768,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_shared_experts=1,
    moe_intermediate_size=192,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    n_group=1,
    topk_group=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
    vocab_size=4096,
    tie_word_embeddings=True,
    max_position_embeddings=512,
    rope_theta=10000.0,
    rope_scaling=None,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    attention_bias=False,
    attention_dropout=0.0,
    initializer_range=0.02,
    torch_dtype="bfloat16",
    use_cache=True,
    bos_token_id=0,
    eos_token_id=1,
)
c = SimpleNamespace(**CONFIG)
T = c.max_position_embeddings
MTP_WEIGHT = 0.3  # of the second loss, as in the DeepSeek-V3 report

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SEPARATOR = "<|endoftext|>"

# DeepSeek-V3's pre-tokenizer: three splits, one after the other.
PATTERNS = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


# ---- text


def train_tokenizer(stories):
    """Byte-level BPE: every text can be written with its ids, whatever it was trained on."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=c.vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, c.bos_token_id)]
    )
    return tokenizer


def encode(tokenizer, stories):
    """All stories in a row, each between a begin and an end token: int64 [tokens]."""
    ids = []
    for story in tokenizer.encode_batch(stories):
        ids += [*story.ids, c.eos_token_id]
    return torch.tensor(ids)


def windows(ids, count, generator=None):
    """`count` pieces of T + 2 tokens from anywhere: the two more are what the last position has to
    predict."""
    starts = torch.randint(0, len(ids) - T - 1, (count,), generator=generator)
    return torch.stack([ids[start : start + T + 2] for start in starts])


# ---- the model
# The modules carry the names of the published tensors, so that state_dict() is the checkpoint.


def linear(inputs, outputs, std=None):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=std or 0.6 / math.sqrt(inputs))
    return layer


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=c.rms_norm_eps)


def rotations():
    """e^(i m theta_j) for position m and pair j: complex [T, p / 2]."""
    inv_freq = c.rope_theta ** (-torch.arange(0, c.qk_rope_head_dim, 2) / c.qk_rope_head_dim)
    angle = torch.outer(torch.arange(T), inv_freq)
    return torch.polar(torch.ones_like(angle), angle)


def rope(x, rotation):
    """Rotates pair (x[2j], x[2j + 1]) of position m by m theta_j. x: [..., T, p]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation[: x.shape[-2]]).flatten(-2)


class Attention(nn.Module):
    """Multi-head Latent Attention. Keys and values of all heads are linear functions of one latent vector per
    token; to continue a text it is enough to have kept the latent (r numbers) and one rotated key (p),
    here 80 numbers instead of the H * (n + p + v) = 640 that heads read."""

    def __init__(self):
        super().__init__()
        D, H, r = c.hidden_size, c.num_attention_heads, c.kv_lora_rank
        n, p, v = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        self.q_a_proj = linear(D, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank)
        self.q_b_proj = linear(c.q_lora_rank, H * (n + p))
        self.kv_a_proj_with_mqa = linear(D, r + p)
        self.kv_a_layernorm = RMSNorm(r)
        self.kv_b_proj = linear(r, H * (n + v))
        self.o_proj = linear(H * v, D, std=1e-4)  # nearly zero: each layer begins as the identity
        self.register_buffer("rotation", rotations(), persistent=False)

    def forward(self, x):  # [B, T, D]
        n, p, r, v = c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank, c.v_head_dim

        def heads(y):  # [B, T, H * size] -> [B, H, T, size]
            return y.unflatten(-1, (c.num_attention_heads, -1)).transpose(1, 2)

        q_nope, q_rope = heads(self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))).split((n, p), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split(
            (r, p), -1
        )  # what a cache holds: normed and rotated
        latent = self.kv_a_layernorm(latent)
        k_rope = rope(k_rope, self.rotation).unsqueeze(1)  # one for all heads

        k_nope, values = heads(self.kv_b_proj(latent)).split((n, v), -1)  # decompressed
        queries = torch.cat((q_nope, rope(q_rope, self.rotation).type_as(q_nope)), -1)
        keys = torch.cat((k_nope, k_rope.expand(-1, c.num_attention_heads, -1, -1).type_as(k_nope)), -1)
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)  # scale (n + p)^-0.5
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate_proj = linear(c.hidden_size, width)
        self.up_proj = linear(c.hidden_size, width)
        self.down_proj = linear(width, c.hidden_size, std=1e-4)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(c.n_routed_experts, c.hidden_size) * 0.6 / math.sqrt(c.hidden_size)
        )
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x):  # [tokens, D] -> experts and their weights, both [tokens, num_experts_per_tok]
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.sigmoid(F.linear(x.float(), self.weight))
        chosen = (
            (scores.detach() + self.e_score_correction_bias).topk(c.num_experts_per_tok).indices
        )  # the bias chooses, it does not weigh
        weights = scores.gather(1, chosen)
        return chosen, c.routed_scaling_factor * weights / weights.sum(-1, keepdim=True)


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = Router()
        self.experts = nn.ModuleList(MLP(c.moe_intermediate_size) for _ in range(c.n_routed_experts))
        self.shared_experts = MLP(c.n_shared_experts * c.moe_intermediate_size)
        self.register_buffer(
            "load", torch.zeros(c.n_routed_experts), persistent=False
        )  # tokens per expert since the last balance()

    def forward(self, x):
        flat = x.flatten(0, -2)
        chosen, weights = self.gate(flat)
        out = self.shared_experts(flat).float()
        for e, expert in enumerate(self.experts):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            out = out.index_add(0, token, weights[token, slot, None] * expert(flat[token]).float())
            self.load[e] += len(token)
        return out.view_as(x)

    def balance(self, speed):
        """Balance without an auxiliary loss: experts with too many tokens become a little less eligible, the
        others a little more."""
        self.gate.e_score_correction_bias += speed * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Layer(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size)
        self.self_attn = Attention()
        self.post_attention_layernorm = RMSNorm(c.hidden_size)
        self.mlp = MLP(c.intermediate_size) if index < c.first_k_dense_replace else MoE()

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class MTPLayer(Layer):
    """Multi-token prediction: from the state at a position and the token after it, the token after that.
    Trains the layers below to look further ahead; at inference it can draft tokens, or be left out."""

    def __init__(self, index):
        super().__init__(index)
        self.enorm = RMSNorm(c.hidden_size)
        self.hnorm = RMSNorm(c.hidden_size)
        self.eh_proj = linear(2 * c.hidden_size, c.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(c.hidden_size)})

    def forward(self, state, next_embedding):
        x = self.eh_proj(torch.cat((self.enorm(next_embedding), self.hnorm(state)), -1))
        return self.shared_head["norm"](super().forward(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=c.initializer_range)
        self.layers = nn.ModuleList(Layer(i) for i in range(c.num_hidden_layers))
        self.layers.append(MTPLayer(c.num_hidden_layers))  # stored as one more layer
        self.norm = RMSNorm(c.hidden_size)

    def forward(self, ids):
        """The loss on the next token and on the one after it, of T positions. ids: [B, T + 2]."""
        x = self.embed_tokens(ids[:, :-2])
        for layer in self.layers[:-1]:
            x = layer(x)
        state = self.norm(x)
        after = self.layers[-1](state, self.embed_tokens(ids[:, 1:-1]))
        return self.loss(state, ids[:, 1:-1]), self.loss(after, ids[:, 2:])

    def loss(self, state, targets):
        logits = F.linear(state, self.embed_tokens.weight)  # tied
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


# ---- training


def optimizers(model, rate):
    """Muon for the matrices of the layers, AdamW for the rest; with this scaling of Muon one learning rate
    serves both."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and "embed" not in name and "mlp.gate.weight" not in name else rest).append(
            p
        )
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return muon, torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)


@torch.no_grad()
def evaluate(model, ids, device, batches=8):
    """Mean losses over the same windows of the held-out stories each time."""
    generator = torch.Generator().manual_seed(0)
    losses = [torch.stack(model(windows(ids, 8, generator).to(device))) for _ in range(batches)]
    return torch.stack(losses).mean(0).tolist()


def write(model, out):
    tensors = {f"model.{name}": t.detach().cpu() for name, t in model.state_dict().items()}
    tensors = {
        name: (t.float() if "bias" in name else t.bfloat16()).contiguous() for name, t in tensors.items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def write_json(path, **values):
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def prepare(text, out):
    """Everything in OUT but the weights; returns the ids of the stories to train on and of those held out."""
    stories = [story.strip() for story in text.read_text(encoding="utf-8").split(SEPARATOR)]
    stories = [story for story in stories if story]
    held_out = stories[::30]
    stories = [story for i, story in enumerate(stories) if i % 30]
    tokenizer = train_tokenizer(stories)

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
    )
    write_json(
        out / "generation_config.json",
        bos_token_id=c.bos_token_id,
        eos_token_id=c.eos_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    write_json(out / "config.json", **CONFIG)
    return encode(tokenizer, stories), encode(tokenizer, held_out)


def arguments():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument(
        "text", type=Path, metavar="TEXT", help=f"stories with a line {SEPARATOR} between them"
    )
    options.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        nargs="?",
        default=Path("build/stories"),
        help="the directory to write (default %(default)s)",
    )
    options.add_argument(
        "--minutes",
        type=float,
        default=150,
        help="how long to train; the learning rate follows the clock (default %(default)s)",
    )
    options.add_argument(
        "--batch", type=int, default=8, help=f"windows of {T} tokens a step (default %(default)s)"
    )
    options.add_argument(
        "--rate", type=float, default=3e-3, help="highest learning rate (default %(default)s)"
    )
    options.add_argument(
        "--bf16", action="store_true", help="compute in bf16: faster where the machine has it"
    )
    return options


def fit(model, train, args):
    """Trains for args.minutes; the number of steps."""
    muon_and_adamw = optimizers(model, args.rate)
    device, begin, step = next(model.parameters()).device.type, time.time(), 0
    while (progress := (time.time() - begin) / (60 * args.minutes)) < 1:
        # Up over 60 steps, level, then down in a line from 40% of the time on.
        level = min(1, (step + 1) / 60) * min(1, max(0.02, (1 - progress) / 0.6))
        for optimizer in muon_and_adamw:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * level

        with torch.autocast(device, dtype=torch.bfloat16, enabled=args.bf16):
            next_loss, mtp_loss = model(windows(train, args.batch).to(device))
        (next_loss + MTP_WEIGHT * mtp_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in muon_and_adamw:
            optimizer.step()
            optimizer.zero_grad()
        for layer in model.layers:
            if isinstance(layer.mlp, MoE):
                layer.mlp.balance(0.002 * level)

        step += 1
        if step % 20 == 0:
            speed = step * args.batch * T / (time.time() - begin)
            print(
                f"step {step}, {progress:.0%}: loss {next_loss.item():.3f}, mtp {mtp_loss.item():.3f}, "
                f"{speed:.0f} tokens/s",
                flush=True,
            )
        if step % 500 == 0:
            write(model, args.out)  # a run that is ended early leaves a model too
    return step


def main():
    options = arguments()
    args = options.parse_args()

    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held_out = prepare(args.text, args.out)
    if min(len(train), len(held_out)) < T + 2:
        options.error(
            f"{args.text} is too short: {len(train)} tokens to train on and {len(held_out)} held out, "
            f"at least {T + 2} of each are needed"
        )
    model = Model().to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(train):,} tokens, {len(held_out):,} held out; {parameters:,} parameters", flush=True)
    step = fit(model, train, args)
    write(model, args.out)
    next_loss, mtp_loss = evaluate(model, held_out, device)
    print(f"{step} steps; held-out loss {next_loss:.4f} (mtp {mtp_loss:.4f}); written to {args.out}")


if __name__ == "__main__":
    main()
