"""The demonstration model: DeepSeek-V3's architecture (Multi-head Latent Attention, a mixture of experts
with a sigmoid router, one layer of multi-token prediction) with 11 million parameters. It doubles as an
explanation of MLA in PyTorch: read Attention first, beside mla.c.

It has no cache and writes no text: it is for training (train.py). What the file that it is written to looks
like is the business of export.py. The modules read their sizes from a configuration c, because siblings.py
trains models with other attention for the comparison in doc/study.md.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

T = 512  # positions
EPS = 1e-6
THETA = 10000.0

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
    max_position_embeddings=T,
    rope_theta=THETA,
    rope_scaling=None,
    rms_norm_eps=EPS,
    hidden_act="silu",
    attention_bias=False,
    attention_dropout=0.0,
    initializer_range=0.02,
    torch_dtype="bfloat16",
    use_cache=True,
    bos_token_id=0,
    eos_token_id=1,
)


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
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=EPS)


def rotations(p):
    """e^(i m theta_j) for position m and pair j: complex [T, p / 2]."""
    inv_freq = THETA ** (-torch.arange(0, p, 2) / p)
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

    def __init__(self, c):
        super().__init__()
        self.c = c
        D, H, r = c.hidden_size, c.num_attention_heads, c.kv_lora_rank
        n, p, v = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        if c.q_lora_rank:
            self.q_a_proj = linear(D, c.q_lora_rank)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank)
            self.q_b_proj = linear(c.q_lora_rank, H * (n + p))
        else:
            self.q_proj = linear(D, H * (n + p))
        self.kv_a_proj_with_mqa = linear(D, r + p)
        self.kv_a_layernorm = RMSNorm(r)
        self.kv_b_proj = linear(r, H * (n + v))
        self.o_proj = linear(H * v, D, std=1e-4)  # nearly zero: each layer begins as the identity
        self.register_buffer("rotation", rotations(p), persistent=False)

    def queries(self, x):
        if self.c.q_lora_rank:
            return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return self.q_proj(x)

    def forward(self, x):  # [B, T, D]
        c = self.c
        n, p, r, v = c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank, c.v_head_dim

        def heads(y):  # [B, T, H * size] -> [B, H, T, size]
            return y.unflatten(-1, (c.num_attention_heads, -1)).transpose(1, 2)

        q_nope, q_rope = heads(self.queries(x)).split((n, p), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split(
            (r, p), -1
        )  # what a cache holds: normed and rotated
        latent = self.kv_a_layernorm(latent)
        k_rope = rope(k_rope, self.rotation).unsqueeze(1)  # one for all heads

        k_nope, values = heads(self.kv_b_proj(latent)).split((n, v), -1)  # decompressed
        queries = torch.cat((q_nope, rope(q_rope, self.rotation).type_as(q_nope)), -1)
        keys = torch.cat((k_nope, k_rope.expand(-1, c.num_attention_heads, -1, -1).type_as(k_nope)), -1)
        # Scale (n + p)^-0.5. Zeros make values as long as keys: PyTorch's fast attention wants that.
        values = F.pad(values, (0, n + p - v))
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)[..., :v]
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class OrdinaryAttention(nn.Module):
    """What MLA is compared with. To continue a text, the key and the value of each of G groups of heads are
    kept: MHA (G = H), GQA (1 < G < H), MQA (G = 1)."""

    def __init__(self, c):
        super().__init__()
        D, H, G, self.size = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = linear(D, H * self.size)
        self.k_proj = linear(D, G * self.size)
        self.v_proj = linear(D, G * self.size)
        self.o_proj = linear(H * self.size, D, std=1e-4)
        self.register_buffer("rotation", rotations(self.size), persistent=False)

    def forward(self, x):  # [B, T, D]
        def heads(y):  # [B, T, heads * size] -> [B, heads, T, size]
            return y.unflatten(-1, (-1, self.size)).transpose(1, 2)

        def rotated(y):  # Llama's pairs are (y[j], y[j + size / 2])
            pairs = y.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
            return rope(pairs, self.rotation).type_as(y)

        queries, keys, values = (heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(
            rotated(queries), rotated(keys), values, is_causal=True, enable_gqa=True
        )
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.gate_proj = linear(size, width)
        self.up_proj = linear(size, width)
        self.down_proj = linear(width, size, std=1e-4)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(
            torch.randn(c.n_routed_experts, c.hidden_size) * 0.6 / math.sqrt(c.hidden_size)
        )
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x):  # [tokens, D] -> experts and their weights, both [tokens, num_experts_per_tok]
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.sigmoid(F.linear(x.float(), self.weight))
        # the bias chooses, it does not weigh
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.c.num_experts_per_tok).indices
        weights = scores.gather(1, chosen)
        return chosen, self.c.routed_scaling_factor * weights / weights.sum(-1, keepdim=True)


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        D, width = c.hidden_size, c.moe_intermediate_size
        self.gate = Router(c)
        self.experts = nn.ModuleList(MLP(D, width) for _ in range(c.n_routed_experts))
        self.shared_experts = MLP(D, c.n_shared_experts * width)
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
    def __init__(self, c, index):
        super().__init__()
        ordinary = c.model_type == "llama"
        dense = ordinary or index < c.first_k_dense_replace
        self.input_layernorm = RMSNorm(c.hidden_size)
        self.self_attn = OrdinaryAttention(c) if ordinary else Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size)
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class MTPLayer(Layer):
    """Multi-token prediction: from the state at a position and the token after it, the token after that.
    Trains the layers below to look further ahead; at inference it can draft tokens, or be left out."""

    def __init__(self, c, index):
        super().__init__(c, index)
        self.enorm = RMSNorm(c.hidden_size)
        self.hnorm = RMSNorm(c.hidden_size)
        self.eh_proj = linear(2 * c.hidden_size, c.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(c.hidden_size)})

    def forward(self, state, next_embedding):
        x = self.eh_proj(torch.cat((self.enorm(next_embedding), self.hnorm(state)), -1))
        return self.shared_head["norm"](super().forward(x))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = SimpleNamespace(**config)
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=c.initializer_range)
        self.depth = c.num_hidden_layers
        self.layers = nn.ModuleList(Layer(c, i) for i in range(self.depth))
        if c.num_nextn_predict_layers:
            self.layers.append(MTPLayer(c, self.depth))  # stored as one more layer
        self.norm = RMSNorm(c.hidden_size)

    def forward(self, ids, weights):
        """The loss on the next token and on the one after it (MTP; without such a layer 0), of t positions.
        ids: [B, t + 2] with t <= T; weights: the same shape, how much it counts that a token is predicted, 0:
        not at all."""
        x = self.embed_tokens(ids[:, :-2])
        for layer in self.layers[: self.depth]:
            x = layer(x)
        state = self.norm(x)
        next_loss = self.loss(state, ids[:, 1:-1], weights[:, 1:-1])
        if len(self.layers) == self.depth:
            return next_loss, torch.zeros_like(next_loss)
        after = self.layers[-1](state, self.embed_tokens(ids[:, 1:-1]))
        return next_loss, self.loss(after, ids[:, 2:], weights[:, 2:])

    def loss(self, state, targets, weights):
        logits = F.linear(state, self.embed_tokens.weight)  # tied
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum() / weights.sum()
