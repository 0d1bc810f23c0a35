"""The list of a checkpoint's tensors, in the order of engine/checkpoint.h, each with its type and where its
numbers come from.

Nothing is read here: the plan is made from the configuration and the names, shapes and types that the source
declares. Each tensor is looked for as soon as it is planned, so that a missing, left over or wrongly shaped
one is known before the first byte is written, and a configuration that promises more than there is costs
neither time nor memory.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .config import ACT_SILU, ModelConfig
from .errors import ExportError, printable
from .sources import Source

VECTOR, F32, BF16, Q8, Q4 = range(5)  # Type in kernels/kernels.h
TYPE_NAMES = {"f32": F32, "bf16": BF16, "q8": Q8, "q4": Q4}

# What --type mixed means, the default: the experts and MLPs are most of the weights and bear four bits; the
# low-rank attention matrices, which every token passes through, the embedding and the head do not.
MIXED = {"embed": Q8, "head": Q8, "attention": Q8, "w_uk": Q8, "mlp": Q4, "shared": Q4, "experts": Q4}

FOLLOWS, EXPERT_PAGE = 64, 4096  # alignment in the file


def types(name: str) -> dict[str, int]:
    """{role: type} for --type NAME."""
    if name == "mixed":
        return MIXED
    every = dict.fromkeys(MIXED, TYPE_NAMES[name])
    # Both copies of W_uk are q8 in a q4 file: absorbed and decompressed attention may then differ by little.
    return {**every, "w_uk": Q8} if name == "q4" else every


class Place(NamedTuple):
    """Rows of the source."""

    begin: int
    end: int  # last + 1
    which: np.ndarray | slice  # of these


@dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint: `count` matrices [rows, cols] whose numbers are rows of the source's
    tensor `source`.

    Row i of matrix m is `times` the source's row first + m * stride + i, or column i of the `cols` source
    rows from first + m * stride on if `transposed`. `order` and `factor`, where they are given, hold for one
    head of k rows and are the same for all: row i is then the source's row first + m * stride + i // k * k +
    order[i % k], times factor[i % k]. A vector is its source's numbers one after the other; those of a
    transposed matrix if `transposed`. `spread` = (groups, width): each group of `width` source columns begins
    on a multiple of 32, with zeros behind it.

    The rotation of the latent, or of ordinary attention's values, in blocks of `hadamard`: the first
    `hadamard_rows` rows are rotated together; or, with `hadamard_cols`, each of the source's rows is,
    multiplied before by the latent norm's weight where `gain` names it.
    """

    name: str
    type: int
    rows: int
    cols: int
    source: str = ""  # "": `constant`
    shape: tuple[int, ...] = ()  # that the source's tensor must have
    count: int = 1
    first: int = 0
    stride: int = 0
    order: np.ndarray | None = None  # [k]
    factor: np.ndarray | None = None  # float32 [k]
    times: float = 1.0
    transposed: bool = False
    spread: tuple[int, int] | None = None
    constant: np.ndarray | None = None
    align: int = FOLLOWS
    hadamard: int = 0  # size of its blocks; 0: not rotated
    hadamard_rows: int = 0
    hadamard_cols: bool = False
    gain: str = ""
    below: int = 0  # whole numbers from 0 on, all of them below it; 0: any numbers

    def ranges(self) -> list[tuple[int, int]]:
        """The source's rows that this tensor is made of: [(first, last + 1)], one of each matrix."""
        if self.type == VECTOR:
            return [(0, math.prod(self.shape[:-1]))]
        starts = (self.first + m * self.stride for m in range(self.count))
        return [(start, start + (self.cols if self.transposed else self.rows)) for start in starts]

    def keeps_groups(self) -> bool:
        """Is every group of 32 columns a group of the source's columns, its numbers unchanged?"""
        unchanged = not self.hadamard and self.factor is None and self.times == 1 and not self.transposed
        return unchanged and self.cols % 32 == 0 and (not self.spread or self.spread[1] % 32 == 0)

    def place(self, m: int, low: int, high: int) -> "Place":
        """Where rows low .. high - 1 of matrix m are."""
        first = self.first + m * self.stride
        if self.order is None:
            return Place(first + low, first + high, slice(None))
        head, row = np.divmod(np.arange(low, high), len(self.order))
        wanted = first + head * len(self.order) + self.order[row]
        begin = int(wanted.min())
        return Place(begin, int(wanted.max()) + 1, wanted - begin)

    def factors(self, low: int, high: int) -> np.ndarray | float:
        """What rows low .. high - 1 are multiplied by, beside `times`: float32 [high - low, 1], or 1."""
        if self.factor is None:
            return 1.0
        return self.factor[np.arange(low, high) % len(self.factor), None]

    def load(self, source: Source, m: int, low: int, high: int) -> np.ndarray:
        """Rows low .. high - 1 of matrix m as float32 [high - low, cols]."""
        values = self.unscaled(source, m, low, high)
        return values if self.times == 1 else values * np.float32(self.times)

    def unscaled(self, source: Source, m: int, low: int, high: int) -> np.ndarray:
        """The same without `times`."""
        first = self.first + m * self.stride
        if self.constant is not None:
            return self.constant.reshape(self.rows, self.cols)[low:high]
        if self.type == VECTOR:
            values = source.rows(self.source, *self.ranges()[0])
            values = (values.T if self.transposed else values).reshape(-1, 1)
            values = values if self.order is None else values[self.order]
            return values if self.factor is None else values * self.factors(low, high)
        if self.transposed:
            return self.rotate_columns(source, source.rows(self.source, first, first + self.cols)).T[low:high]
        begin, end, which = self.place(m, low, high)
        values = source.rows(self.source, begin, end)[which]
        if self.hadamard_rows > low:
            rotated, rest = np.split(values, [self.hadamard_rows - low])
            values = np.concatenate([hadamard(rotated.T, self.hadamard).T, rest])
        values = self.rotate_columns(source, values)
        if self.spread:
            groups, width = self.spread
            wide = np.zeros((high - low, groups, self.cols // groups), np.float32)
            wide[:, :, :width] = values.reshape(high - low, groups, width)
            values = wide.reshape(high - low, self.cols)
        return values if self.factor is None else values * self.factors(low, high)

    def rotate_columns(self, source: Source, values: np.ndarray) -> np.ndarray:
        """W diag(gain) R^T"""
        if not self.hadamard_cols:
            return values
        gain = source.rows(self.gain, 0, 1).reshape(-1) if self.gain else np.float32(1)
        return hadamard(values * gain, self.hadamard)


def hadamard_block(r: int) -> int:
    """The largest power of two that divides r."""
    return r & -r


def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """x R^T with the rotation R of the latent's r numbers, x [rows, r]: blocks of a Hadamard matrix, whose
    entries are +-1 / sqrt(block), on the diagonal. It spreads what one number stands out with over its
    whole block, so that few bits with one scale serve them all. Sums in float64, in a fixed order: the
    same file everywhere."""
    shape, half = x.shape, 1
    x = x.astype(np.float64)
    while half < block:
        pairs = x.reshape(len(x), -1, 2, half)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    return (x.reshape(shape) / math.sqrt(block)).astype(np.float32)


def interleave(p: int) -> np.ndarray:
    """Half-split rotated rows (pair i is rows i and i + p / 2) in the order of interleaved pairs (2i, 2i +
    1)."""
    return np.arange(p).reshape(2, p // 2).T.reshape(-1)


@dataclass
class Plan:
    config: ModelConfig
    types: dict[str, int]  # role -> type
    source: Source | None  # None: random weights
    rotation: bool  # of the latent
    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """The entry is looked for in the source before the next one is made."""
        if self.source and entry.source:
            _find(entry, self.source)
        self.entries.append(entry)

    def vector(self, name: str, n: int, source: str = "", **keys: Any) -> None:
        shape = (n,) if source else ()
        self.add(Entry(name, VECTOR, n, 1, source, **{"shape": shape, **keys}))

    def matrix(self, name: str, role: str | int, rows: int, cols: int, source: str, **keys: Any) -> None:
        kind = role if isinstance(role, int) else self.types[role]
        self.add(Entry(name, kind, rows, cols, source, **{"shape": (rows, cols), **keys}))

    def rotated(self, fixed: int, p: int) -> dict[str, np.ndarray]:
        """order and factor of heads of `fixed` rows without position and p rotated ones; nothing where
        nothing changes."""
        cfg = self.config
        keys = {}
        if not cfg.rope_interleave:
            keys["order"] = np.concatenate([np.arange(fixed), fixed + interleave(p)])
        if cfg.rope_multiplier != 1:
            keys["factor"] = np.append(np.ones(fixed), np.full(p, cfg.rope_multiplier)).astype(np.float32)
        return keys

    def index_rows(self) -> dict[str, np.ndarray]:
        """order and factor of the rows of an indexer's head, whose rotated numbers are the first ones in the
        source and the last ones here."""
        cfg = self.config
        di, p = cfg.index_head_dim, cfg.qk_rope_head_dim
        rotated = np.arange(p) if cfg.index_rope_interleave else interleave(p)
        keys = {"order": np.concatenate([np.arange(p, di), rotated])}
        if cfg.rope_multiplier != 1:
            keys["factor"] = np.append(np.ones(di - p), np.full(p, cfg.rope_multiplier)).astype(np.float32)
        return keys

    def indexer(self, name: str, source: str) -> None:
        cfg = self.config
        D, heads, di = cfg.hidden_size, cfg.index_n_heads, cfg.index_head_dim
        keys, queries = self.index_rows(), source + "wq_b.weight"
        self.matrix(name + "index_q", "attention", heads * di, cfg.q_lora_rank, queries, **keys)
        self.matrix(name + "index_k", "attention", di, D, source + "wk.weight", order=keys["order"])
        # the mean and the variance of a LayerNorm do not mind the order; what multiplies a rotation comes
        # after it
        self.vector(name + "index_k_norm", di, source + "k_norm.weight", **keys)
        self.vector(name + "index_k_bias", di, source + "k_norm.bias", **keys)
        if cfg.index_kpool:  # without positions: keys["order"] is the source's
            shape = cfg.index_kpool, di
            self.matrix(name + "index_pool_gate", "attention", di, D, source + "index_kpool_compress_gate")
            self.vector(
                name + "index_pool_ape", math.prod(shape), source + "index_kpool_compress_ape", shape=shape
            )
        self.matrix(name + "index_weights", F32, heads, D, source + "weights_proj.weight")

    def mlp(self, name: str, role: str, width: int, source: str) -> None:
        cfg = self.config
        D = cfg.hidden_size
        if cfg.hidden_act == ACT_SILU:
            self.matrix(f"{name}gate", role, width, D, f"{source}gate_proj.weight")
        self.matrix(f"{name}up", role, width, D, f"{source}up_proj.weight")
        self.matrix(f"{name}down", role, D, width, f"{source}down_proj.weight", times=cfg.residual_factor)

    def attention(self, name: str, source: str, layer: int) -> None:
        cfg = self.config
        D, H, ql, r = cfg.hidden_size, cfg.num_attention_heads, cfg.q_lora_rank, cfg.kv_lora_rank
        n, p, v = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
        if cfg.num_key_value_heads:
            self.grouped_attention(name, source)
            return
        if cfg.sliding_window:
            self.window_attention(name, source, layer)
            return
        q: dict[str, Any] = self.rotated(n, p) | {"times": cfg.query_factor}
        if ql:
            self.matrix(name + "q_a", "attention", ql, D, source + "q_a_proj.weight")
            self.vector(name + "q_a_norm", ql, source + "q_a_layernorm.weight")
            self.matrix(name + "q_b", "attention", H * (n + p), ql, source + "q_b_proj.weight", **q)
        else:
            self.matrix(name + "q", "attention", H * (n + p), D, source + "q_proj.weight", **q)
        # kv_b_proj holds the keys and the values of head 0, then of head 1, ...
        kv_a: dict[str, Any] = self.rotated(r, p)
        kv_b: dict[str, Any] = {
            "source": source + "kv_b_proj.weight",
            "shape": (H * (n + v), r),
            "count": H,
            "stride": n + v,
        }
        gain, ones = source + "kv_a_layernorm.weight", None
        if self.rotation:
            # With c = x / rms(x) * gain, x = W_kva h: W c = (W diag(gain) R^T) (R x) / rms(R x), because a
            # rotation leaves rms alone.
            ones, block = np.ones(r, np.float32), hadamard_block(r)
            kv_a |= {"hadamard": block, "hadamard_rows": r}
            kv_b |= {"hadamard": block, "hadamard_cols": True, "gain": gain}
        self.matrix(name + "kv_a", "attention", r + p, D, source + "kv_a_proj_with_mqa.weight", **kv_a)
        self.vector(name + "kv_a_norm", r, gain, constant=ones, times=cfg.latent_factor)
        self.matrix(name + "w_uk", "w_uk", n, r, **kv_b)
        self.matrix(name + "w_uk_t", "w_uk", r, n, transposed=True, **kv_b)
        self.matrix(name + "w_uv", "attention", v, r, first=n, **kv_b)
        if cfg.head_gate:
            self.matrix(name + "head_gate", F32, H, D, source + "g_proj.weight")
        self.output(name, source)

    def output(self, name: str, source: str, **keys: Any) -> None:
        """Each head's values begin on a block of 32 columns, so that threads quantize what their heads found
        without waiting."""
        cfg = self.config
        D, H, v = cfg.hidden_size, cfg.num_attention_heads, cfg.v_head_dim
        keys |= {"shape": (D, H * v), "spread": (H, v), "times": cfg.residual_factor}
        self.matrix(name + "o", "attention", D, H * (-(-v // 32) * 32), source + "o_proj.weight", **keys)

    def grouped_attention(self, name: str, source: str) -> None:
        """Keys and values of groups of heads, no latent."""
        cfg = self.config
        D, H, G = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads
        p, v = cfg.qk_rope_head_dim, cfg.v_head_dim
        rotated: dict[str, Any] = self.rotated(0, p)
        values: dict[str, Any] = {}
        output: dict[str, Any] = {}
        if self.rotation:
            # o W_v x = (o R^T) (R W_v x), and a weighted sum of rotated values is the rotated sum
            block = hadamard_block(v)
            values = {"hadamard": block, "hadamard_rows": G * v}
            output = {"hadamard": block, "hadamard_cols": True}
        self.matrix(name + "q", "attention", H * p, D, source + "q_proj.weight", **rotated)
        self.matrix(name + "k", "attention", G * p, D, source + "k_proj.weight", **rotated)
        self.matrix(name + "v", "attention", G * v, D, source + "v_proj.weight", **values)
        self.output(name, source, **output)

    def window_attention(self, name: str, source: str, layer: int) -> None:
        """One row is key and value of all heads; its last p numbers, and theirs, are rotated as they are."""
        cfg = self.config
        D, H, ql, d = cfg.hidden_size, cfg.num_attention_heads, cfg.q_lora_rank, cfg.v_head_dim
        Hi, di, groups, rank = cfg.index_n_heads, cfg.index_head_dim, cfg.o_groups, cfg.o_lora_rank
        self.matrix(name + "q_a", "attention", ql, D, source + "q_a_proj.weight")
        self.vector(name + "q_a_norm", ql, source + "q_a_norm.weight")
        self.matrix(name + "q_b", "attention", H * d, ql, source + "q_b_proj.weight")
        self.matrix(name + "kv", "attention", d, D, source + "kv_proj.weight")
        self.vector(name + "kv_norm", d, source + "kv_norm.weight")
        self.vector(name + "sinks", H, source + "sinks")
        rows, keys = source + "compressor.", source + "compressor.indexer."
        if cfg.is_hca(layer):
            self.compressor(name + "compress_", rows, cfg.hca_ratio, d, d)
        if cfg.is_csa(layer):
            self.compressor(name + "compress_", rows, cfg.csa_ratio, 2 * d, d)
            self.matrix(name + "index_q", "attention", Hi * di, ql, keys + "q_b_proj.weight")
            self.compressor(name + "index_compress_", keys, cfg.csa_ratio, 2 * di, di)
            self.matrix(name + "index_weights", F32, Hi, D, keys + "scorer.weights_proj.weight")
        first: dict[str, Any] = {"shape": (groups * rank, H // groups * d), "count": groups, "stride": rank}
        self.matrix(name + "o_a", "attention", rank, H // groups * d, source + "o_a_proj.weight", **first)
        self.matrix(name + "o", "attention", D, groups * rank, source + "o_b_proj.weight")

    def compressor(self, name: str, source: str, ratio: int, width: int, d: int) -> None:
        """`ratio` tokens become a row of d numbers, by way of `width` for each."""
        D = self.config.hidden_size
        self.matrix(name + "kv", "attention", width, D, source + "kv_proj.weight")
        self.matrix(name + "gate", "attention", width, D, source + "gate_proj.weight")
        self.vector(name + "ape", ratio * width, source + "position_bias", shape=(ratio, width))
        self.vector(name + "norm", d, source + "kv_norm.weight")

    def hyper(self, name: str, source: str, outputs: int, scales: int) -> None:
        """A hyper-connection."""
        width = self.config.hc_mult * self.config.hidden_size
        self.matrix(name + "fn", F32, outputs, width, source + "fn")
        self.vector(name + "base", outputs, source + "base")
        self.vector(name + "scale", scales, source + "scale")

    def mean_of_streams(self, name: str) -> None:
        """A hyper-connection that gives all streams the weight 1 / S, by its base alone."""
        cfg = self.config
        S, width, part = cfg.hc_mult, cfg.hc_mult * cfg.hidden_size, 1 / cfg.hc_mult - cfg.hc_eps
        base = math.log(part / (1 - part)) if S > 1 else 80.0
        self.matrix(name + "fn", F32, S, width, "", constant=np.zeros((S, width), np.float32))
        self.vector(name + "base", S, constant=np.full(S, base, np.float32))
        self.vector(name + "scale", 1, constant=np.zeros(1, np.float32))

    def kda(self, name: str, source: str) -> None:
        """Linear attention, with the names of Kimi-Linear and Ling-3.0."""
        cfg = self.config
        D, H, d, taps, rank = cfg.hidden_size, cfg.kda_heads, cfg.kda_head_dim, cfg.kda_taps, cfg.kda_rank
        for part in "qkv":
            self.matrix(f"{name}kda_{part}", "attention", H * d, D, f"{source}{part}_proj.weight")
        for part in "qkv":  # one filter for each channel; here all channels of a tap lie together
            filters = f"{source}{part}_conv1d.weight"
            shape = self.stored_shape(filters, (H * d, 1, taps), (H * d, taps))
            self.vector(f"{name}kda_{part}_filter", taps * H * d, filters, shape=shape, transposed=True)
        for part in "fg":
            if rank:
                self.matrix(f"{name}kda_{part}_a", "attention", rank, D, f"{source}{part}_a_proj.weight")
                self.matrix(f"{name}kda_{part}_b", "attention", H * d, rank, f"{source}{part}_b_proj.weight")
            else:
                self.matrix(f"{name}kda_{part}", "attention", H * d, D, f"{source}{part}_proj.weight")
        rate, bias = source + "A_log", source + "dt_bias"
        self.vector(name + "kda_rate", H, rate, shape=self.stored_shape(rate, (H,), (1, 1, H, 1)))
        self.vector(name + "kda_f_bias", H * d, bias)
        self.matrix(name + "kda_beta", F32, H, D, source + "b_proj.weight")
        self.vector(name + "kda_norm", d, source + "o_norm.weight")
        o: dict[str, Any] = {"shape": (D, H * d), "spread": (H, d), "times": cfg.residual_factor}
        self.matrix(name + "o", "attention", D, H * (-(-d // 32) * 32), source + "o_proj.weight", **o)

    def stored_shape(self, name: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """The one of several shapes of the same numbers that the source has; the first if it has none."""
        tensor = self.source.tensors.get(name) if self.source else None
        return tensor.shape if tensor and tensor.shape in shapes else shapes[0]

    def experts(self, name: str, source: str) -> None:
        cfg = self.config
        D, E, M = cfg.hidden_size, cfg.n_routed_experts, cfg.moe_intermediate_size
        # How transformers 5 saves them: [E, 2M, D], gate's rows first; [E + Z, ...] with Z identity experts.
        fused, fused_down = source + "gate_up_proj", source + "down_proj"
        gate_up: dict[str, Any] = {"source": fused, "shape": (E + cfg.zero_expert_num, 2 * M, D)}
        down: dict[str, Any] = {"source": fused_down, "shape": (E, D, M), "times": cfg.residual_factor}
        is_fused = self.source is not None and fused in self.source.tensors
        for e in range(E):
            begin = len(self.entries)
            if is_fused:
                self.matrix(f"{name}{e}.gate", "experts", M, D, first=e * 2 * M, **gate_up)
                self.matrix(f"{name}{e}.up", "experts", M, D, first=e * 2 * M + M, **gate_up)
                self.matrix(f"{name}{e}.down", "experts", D, M, first=e * D, **down)
            else:
                self.mlp(f"{name}{e}.", "experts", M, f"{source}{e}.")
            self.entries[begin] = replace(self.entries[begin], align=EXPERT_PAGE)

    def layer(self, name: str, source: str, layer: int, indexer: bool, half: str = "") -> None:
        """`layer`: its number; `half`: of a pair that is one layer of the source, ".0" or ".1"."""
        cfg, moe = self.config, self.config.is_moe(layer)
        D, choices, streams = cfg.hidden_size, cfg.n_routed_experts + cfg.zero_expert_num, cfg.hc_mult
        if streams:
            self.hyper(name + "attention_hc_", source + "attn_hc.", streams * (2 + streams), 3)
        self.vector(name + "input_norm", D, f"{source}input_layernorm{half}.weight")
        if layer < cfg.published_layers and cfg.is_kda(layer):
            self.kda(name, f"{source}self_attn.")
        else:
            self.attention(name, f"{source}self_attn{half}.", layer)
        if indexer and not cfg.sliding_window:
            self.indexer(name, f"{source}self_attn.indexer.")
        post = f"{source}post_attention_layernorm{half}.weight"
        if cfg.sandwich_norm:  # what is called so elsewhere stands before the MLP
            self.vector(name + "attention_out_norm", D, post)
            post = source + "pre_mlp_layernorm.weight"
        if streams:
            self.hyper(name + "mlp_hc_", source + "ffn_hc.", streams * (2 + streams), 3)
        self.vector(name + "post_norm", D, post)
        mlp = source + "mlp."
        if not moe or cfg.shortcut_moe:
            self.mlp(name, "mlp", cfg.intermediate_size, f"{source}mlps{half}." if half else mlp)
        if moe:
            gate = mlp + ("router." if cfg.shortcut_moe else "gate.")
            weight = gate + ("classifier.weight" if cfg.shortcut_moe else "weight")
            self.matrix(name + "router", F32, choices, D, weight)
            if layer < cfg.num_hash_layers:
                V, K = cfg.vocab_size, cfg.num_experts_per_tok
                table: dict[str, Any] = {"shape": (V, K), "below": cfg.n_routed_experts}
                self.vector(name + "token_experts", V * K, gate + "tid2eid", **table)
            elif cfg.router_bias:
                self.vector(name + "router_bias", choices, gate + "e_score_correction_bias")
            else:
                self.vector(name + "router_bias", choices, constant=np.zeros(choices, np.float32))
            if cfg.n_shared_experts:
                width = cfg.n_shared_experts * cfg.moe_intermediate_size
                self.mlp(name + "shared.", "shared", width, mlp + "shared_experts.")
            self.experts(name + "experts.", mlp + "experts.")
        if cfg.norms_mlp(layer):
            self.vector(name + "mlp_out_norm", D, source + "post_mlp_layernorm.weight")

    def model(self, mtp: bool) -> None:
        cfg = self.config
        V, D, L = cfg.vocab_size, cfg.hidden_size, cfg.num_hidden_layers
        self.matrix("embed", "embed", V, D, "model.embed_tokens.weight")
        if not cfg.tie_word_embeddings:
            self.matrix("head", "head", V, D, "lm_head.weight")
        self.vector("norm", D, "model.norm.weight", times=cfg.head_factor)
        self.vector("inv_freq", cfg.qk_rope_head_dim // 2, constant=cfg.inv_freq)
        if cfg.compress_inv_freq is not None:
            self.vector("compress_inv_freq", len(cfg.compress_inv_freq), constant=cfg.compress_inv_freq)
        if cfg.query_scale is not None:
            self.vector("query_scale", len(cfg.query_scale), constant=cfg.query_scale)
        if cfg.limits is not None:
            self.vector("swiglu_limits", cfg.limits.size, constant=cfg.limits)
        if cfg.streams_mean:
            self.mean_of_streams("hc_head_")
        elif cfg.hc_mult:
            self.hyper("hc_head_", "model.hc_head.hc_", cfg.hc_mult, 1)
        for i in range(L):
            at, half = (i // 2, f".{i % 2}") if cfg.shortcut_moe else (i, "")
            self.layer(f"layers.{i}.", f"model.layers.{at}.", i, cfg.has_indexer(i), half)
        if mtp:
            source = f"model.layers.{L}."
            self.vector("mtp.enorm", D, source + "enorm.weight")
            self.vector("mtp.hnorm", D, source + "hnorm.weight")
            self.matrix("mtp.eh_proj", "attention", D, 2 * D, source + "eh_proj.weight")
            self.layer("mtp.", source, L, bool(cfg.index_n_heads))
            self.vector("mtp.norm", D, source + "shared_head.norm.weight")


def make_plan(
    config: ModelConfig,
    type_name: str,
    source: Source | None = None,
    mtp: bool = False,
    rotation: bool = False,
) -> list[Entry]:
    """The tensors of the whole checkpoint, in order. ExportError where `source` lacks one or has one that is
    left over; without a source every tensor is taken to be there."""
    plan = Plan(config, types(type_name), source, rotation)
    plan.model(mtp)
    if source:
        _nothing_left(plan.entries, source, config, mtp)
    return plan.entries


def parameters(entries: Iterable[Entry]) -> int:
    """Numbers of the model itself: what the source holds, each once."""
    return sum(
        e.count * e.rows * (e.shape[-1] if e.spread else e.cols)
        for e in entries
        if e.source and (e.type == VECTOR or not e.transposed)
    )


def _ignored(name: str, config: ModelConfig, mtp: bool) -> bool:
    """May a tensor stay behind? MTP layers come after the others (and repeat embedding and head) or have a
    name of their own; inv_freq is computed; identity experts may be stored as if they were others, and an
    indexer in layers that do not use it."""
    experts = config.n_routed_experts
    if name.endswith("rotary_emb.inv_freq") or (name.startswith("model.mtp.") and not mtp):
        return True
    expert = re.match(r"model\.layers\.\d{1,9}\.mlp\.experts\.(\d{1,9})\.", name)
    if expert and experts <= int(expert.group(1)) < experts + config.zero_expert_num:
        return True
    match = re.match(r"model\.layers\.(\d{1,9})\.(.*)", name)
    if not match:
        return False
    layer, rest, layers = int(match.group(1)), match.group(2), config.num_hidden_layers
    if layer < layers:
        if rest == "post_mlp_layernorm.weight" and config.experts_out_norm:
            return not config.norms_mlp(layer)  # A.X-K1 stores one for dense layers, too
        indexer = config.index_n_heads and rest.startswith("self_attn.indexer.")
        return bool(indexer) and not config.has_indexer(layer)
    return not mtp or layer > layers or rest in ("embed_tokens.weight", "shared_head.head.weight")


def _find(entry: Entry, source: Source) -> None:
    """The tensor that an entry is made of must be there, in its shape."""
    tensor = source.tensors.get(entry.source)
    if tensor is None:
        hint = "; the model has no MTP layer: export without --mtp" if entry.name.startswith("mtp.") else ""
        raise ExportError(
            f"{source.directory}: tensor {entry.source} is missing (needed for {entry.name}){hint}"
        )
    if tensor.shape != entry.shape:
        raise ExportError(
            f"{tensor.shard.path}: tensor {entry.source} has shape {list(tensor.shape)}, "
            f"and config.json implies {list(entry.shape)}"
        )


def _nothing_left(entries: Iterable[Entry], source: Source, config: ModelConfig, mtp: bool) -> None:
    """Every tensor of the source is used or known to be of no use."""
    used = {entry.source for entry in entries}
    left = [name for name in source.tensors if name not in used and not _ignored(name, config, mtp)]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ExportError(
            f"{source.directory}: tensor {printable(left[0])}{more}: nothing in config.json asks for it; "
            "what it computes is not implemented"
        )
