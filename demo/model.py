"""The demonstration model: DeepSeek-V3's architecture (Multi-head Latent Attention, a mixture of experts
with a sigmoid router, one layer of multi-token prediction) with 11 million parameters. It doubles as an
explanation of MLA in PyTorch: read Attention first, beside mla.c.

It has no cache and writes no text: it is for training (train.py). What the file that it is written to looks
like is the business of export.py.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

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
        # Scale (n + p)^-0.5. Zeros make values as long as keys: PyTorch's fast attention wants that.
        values = F.pad(values, (0, n + p - v))
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)[..., :v]
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

    def forward(self, ids, weights):
        """The loss on the next token and on the one after it (MTP), of t positions. ids: [B, t + 2] with
        t <= T; weights: the same shape, how much it counts that a token is predicted, 0: not at all."""
        x = self.embed_tokens(ids[:, :-2])
        for layer in self.layers[:-1]:
            x = layer(x)
        state = self.norm(x)
        after = self.layers[-1](state, self.embed_tokens(ids[:, 1:-1]))
        return (
            self.loss(state, ids[:, 1:-1], weights[:, 1:-1]),
            self.loss(after, ids[:, 2:], weights[:, 2:]),
        )

    def loss(self, state, targets, weights):
        logits = F.linear(state, self.embed_tokens.weight)  # tied
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum() / weights.sum()
