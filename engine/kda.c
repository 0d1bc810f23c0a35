/* engine/kda.c: Kimi Delta Attention. A layer that keeps a memory of fixed size instead of rows, so that a
 * token costs the same at any place of a text. Three of four layers of Ling-3.0 and Kimi-Linear are such; the
 * others have latent attention (mla.c).
 *
 * H heads of d numbers, keys and values alike; x_t is the normed row at place t:
 *
 *     u_t  = W x_t                          for queries, for keys and for values: H d numbers each
 *     c_t  = sum_j w[j] u_{t-K+1+j}         j = 0 .. K - 1: a filter of K taps for each channel; zeros before
 *                                           the text
 *     q, k, v = silu(c)                     of each head q and k are then divided by sqrt(sum of squares +
 *                                           1e-6), and q by sqrt(d)
 *     beta = sigmoid(W_beta x_t)            one for each head
 *     z    = W_decay x_t + bias             one for each head and key
 *     g    = lower sigmoid(exp(rate) z)     the decay's logarithm, at most 0, if it has a lower bound (Ling);
 *          = -exp(rate) log(1 + e^z)        if it has none (Kimi)
 *
 *     S [d keys][d values] is the memory of a head, zeros before the text. For each token:
 *         S[i][:] = exp(g[i]) S[i][:]       it forgets
 *         r       = beta (v - S^T k)        what it does not know yet: the delta
 *         S       = S + k r^T               it learns
 *         o       = S^T q                   it answers
 *
 *     out = W_o [ RMSNorm(o) sigmoid(W_gate x_t) of each head ]
 *
 * The recurrence is 4 multiply-adds for each number of S, 1.4 % of a token's work in these models. The form
 * in chunks that GPUs need would not pay: one loop serves prefill and decode, and how calls are cut changes
 * no byte.
 *
 * The fast loop is `delta` in kernels/delta.h. Columns of values do not depend on one another, so they are
 * the lanes. A block of 32 columns of a head, 16 KB, stays in the level 1 cache while the rows pass. It is
 * read and written once for each row: o = S^T q + (k . q) r with S as it was before it learned, so both sums
 * are made in one pass, and S learns in the pass of the next row.
 *
 * What a sequence keeps of such layers is its *constant part*. It lies in a slot of the cache
 * (engine/cache.h), for each layer: the memory, [H][d / 32][d keys][32 values], and the last K - 1 rows of u.
 * A call reads one slot and writes another, so that a call that is broken off has changed nothing. A small
 * call also keeps the rows of its inputs, from which kda_head makes the slot behind any of them, when those
 * after it are taken back.
 *
 * Formulas: Kimi Linear, arXiv 2510.26692; Ling-3.0: its published code. */
#include "engine/kda.h"

#include <math.h>
#include <string.h>

#include "engine/util.h"

enum { PIECE = 32 }; /* rows that a head makes ready at once: they stay in the level 2 cache */

/* ---- where numbers lie ---------------------------------------------------------------------- */

static size_t channels(const Config *cfg) { return (size_t)cfg->kda_heads * cfg->kda_head_dim; }

size_t kda_part(const Config *cfg, size_t part) {
    size_t wide = round_up(channels(cfg), PANEL), narrow = round_up(cfg->kda_heads, PANEL);
    return part <= KDA_BETA ? part * wide : KDA_BETA * wide + narrow + (part - KDA_GATE) * wide;
}

size_t kda_input_floats(const Config *cfg) { return kda_part(cfg, KDA_PARTS); }
size_t kda_replay_floats(const Config *cfg) { return kda_part(cfg, KDA_GATE); }

static size_t padded_dim(const Config *cfg) { return round_up(cfg->kda_head_dim, DELTA_COLUMNS); }

static size_t memory_floats(const Config *cfg) { return padded_dim(cfg) * cfg->kda_head_dim; }

/* Where the rows of u lie in a layer's constant part: [K - 1][3][H d]. */
static size_t past_at(const Config *cfg) { return cfg->kda_heads * memory_floats(cfg); }

size_t kda_layer_floats(const Config *cfg) { return past_at(cfg) + (cfg->kda_taps - 1) * 3 * channels(cfg); }

size_t kda_scratch_floats(const Config *cfg) { return PIECE * (4 * padded_dim(cfg) + 2); }

size_t kda_plain_floats(const Config *cfg) {
    return (size_t)cfg->kda_head_dim * (cfg->kda_head_dim + 4) + padded_dim(cfg);
}

const char *kda_config_error(const Config *cfg) {
    bool any = false;
    for (uint32_t l = 0; l < MAX_LAYERS; l++) {
        any |= layer_is_kda(cfg, l);
        /* no known model has it beside pairs of layers or an indexer of single tokens */
        if (layer_is_kda(cfg, l) &&
            (l >= cfg->published_layers || cfg->shortcut_moe || (cfg->index_n_heads && !cfg->index_kpool)))
            return "kda_layers";
    }
    if (!cfg->kda_heads && !any)
        return NULL;
    if (cfg->kda_heads < 1 || cfg->kda_heads > 1 << 12)
        return "kda_heads";
    if (cfg->kda_head_dim < 1 || cfg->kda_head_dim > 1 << 12)
        return "kda_head_dim";
    if (cfg->kda_taps < 2 || cfg->kda_taps > MAX_TAPS)
        return "kda_taps";
    if (cfg->kda_rank > 1 << 12)
        return "kda_rank";
    return cfg->kda_lower_bound <= 0 && cfg->kda_lower_bound >= -1e4f ? NULL : "kda_lower_bound";
}

/* One head's u of row t of the call; t < 0: of the rows before it. */
static const float *u_of(const KdaInputs *x, ptrdiff_t t, size_t part, size_t head) {
    const Config *cfg = x->cfg;
    size_t d = cfg->kda_head_dim;
    if (t >= 0)
        return x->in + (size_t)t * x->stride + kda_part(cfg, part) + head * d;
    size_t row = (size_t)(t + (ptrdiff_t)cfg->kda_taps - 1);
    return x->from + past_at(cfg) + (row * 3 + part) * channels(cfg) + head * d;
}

/* The last K - 1 rows of u, of one head, for the next call. */
static void keep_past(const KdaInputs *x, size_t head) {
    const Config *cfg = x->cfg;
    size_t d = cfg->kda_head_dim, past = cfg->kda_taps - 1;
    for (size_t row = 0; row < past; row++)
        for (size_t part = KDA_QUERY; part <= KDA_VALUE; part++)
            memcpy(x->to + past_at(cfg) + (row * 3 + part) * channels(cfg) + head * d,
                   u_of(x, (ptrdiff_t)(x->rows + row) - (ptrdiff_t)past, part, head), d * sizeof(float));
}

/* ---- the definition ------------------------------------------------------------------------- */

void kda_definition(float *out, float *memory, const float *q, const float *k, const float *v,
                    const float *decay, float beta, size_t d) {
    for (size_t j = 0; j < d; j++) { /* column j of S */
        float known = 0;
        out[j] = 0;
        for (size_t i = 0; i < d; i++) {
            memory[i * d + j] *= expf(decay[i]);
            known += memory[i * d + j] * k[i];
        }
        for (size_t i = 0; i < d; i++) {
            memory[i * d + j] += k[i] * beta * (v[j] - known);
            out[j] += memory[i * d + j] * q[i];
        }
    }
}

static float plain_sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* silu of the convolution for one part of row t; with `length` > 0 scaled to that length (q and k). */
static void plain_convolution(float *c, const KdaInputs *x, size_t t, size_t part, size_t head,
                              float length) {
    const Config *cfg = x->cfg;
    size_t d = cfg->kda_head_dim, taps = cfg->kda_taps;
    const float *filter = x->kda->filter[part] + head * d;
    float squares = 0;
    for (size_t i = 0; i < d; i++) {
        float sum = 0;
        for (size_t j = 0; j < taps; j++)
            sum += filter[j * channels(cfg) + i] *
                   u_of(x, (ptrdiff_t)(t + j + 1) - (ptrdiff_t)taps, part, head)[i];
        c[i] = sum * plain_sigmoid(sum);
        squares += c[i] * c[i];
    }
    for (size_t i = 0; length > 0 && i < d; i++)
        c[i] *= length / sqrtf(squares + 1e-6f);
}

/* Copies the memory from blocks of columns to [d][d], as the definition has it, or `back`. */
static void copy_memory(float *plain, float *blocks, size_t d, bool back) {
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++) {
            float *a = &plain[i * d + j], *b = &blocks[(j / DELTA_COLUMNS * d + i) * DELTA_COLUMNS];
            b += j % DELTA_COLUMNS;
            *(back ? b : a) = *(back ? a : b);
        }
}

void kda_head_plain(const KdaInputs *x, size_t head, Activations *heads, size_t first, float *plain) {
    const Config *cfg = x->cfg;
    size_t d = cfg->kda_head_dim, wide = padded_dim(cfg);
    float *q = plain + d * d, *k = q + d, *v = k + d, *g = v + d, *out = g + d;
    float *memory = x->to + head * memory_floats(cfg), rate = expf(x->kda->rate[head]);
    memcpy(memory, x->from + head * memory_floats(cfg), memory_floats(cfg) * sizeof *memory);
    copy_memory(plain, memory, d, false);
    for (size_t t = 0; t < x->rows; t++) {
        const float *in = x->in + t * x->stride, *gate = in + kda_part(cfg, KDA_GATE) + head * d;
        plain_convolution(q, x, t, KDA_QUERY, head, 1 / sqrtf((float)d));
        plain_convolution(k, x, t, KDA_KEY, head, 1);
        plain_convolution(v, x, t, KDA_VALUE, head, 0);
        for (size_t i = 0; i < d; i++) {
            float z = in[kda_part(cfg, KDA_DECAY) + head * d + i] + x->kda->decay_bias[head * d + i];
            g[i] = cfg->kda_lower_bound < 0 ? cfg->kda_lower_bound * plain_sigmoid(rate * z)
                                            : -rate * (fmaxf(z, 0) + log1pf(expf(-fabsf(z))));
        }
        float beta = plain_sigmoid(in[kda_part(cfg, KDA_BETA) + head]), squares = 0;
        kda_definition(out, plain, q, k, v, g, beta, d);
        for (size_t i = 0; i < d; i++)
            squares += out[i] * out[i];
        for (size_t i = 0; i < d; i++)
            out[i] *=
                x->kda->norm[i] * plain_sigmoid(gate[i]) / sqrtf(squares / (float)d + cfg->rms_norm_eps);
        memset(out + d, 0, (wide - d) * sizeof *out);
        x->m->ops->store_row(heads, first + t, head * wide, out, wide);
    }
    copy_memory(plain, memory, d, true);
    keep_past(x, head);
}

/* ---- the fast loop -------------------------------------------------------------------------- */

/* Row t of a head becomes line i of the rows that `delta` reads; a line has padded_dim() numbers. */
static void make_ready(const KdaInputs *x, size_t head, size_t t, size_t i, const DeltaRows *rows,
                       float *buffer) {
    const Config *cfg = x->cfg;
    const Kernels *ops = x->m->ops;
    size_t d = cfg->kda_head_dim, taps = cfg->kda_taps, at = i * rows->stride;
    const float *in = x->in + t * x->stride, *u[MAX_TAPS];
    float *to[3] = {buffer + at, buffer + PIECE * rows->stride + at, rows->v + at},
          *decay = buffer + 2 * PIECE * rows->stride + at;
    for (size_t part = KDA_QUERY; part <= KDA_VALUE; part++) {
        for (size_t j = 0; j < taps; j++)
            u[j] = u_of(x, (ptrdiff_t)(t + j + 1) - (ptrdiff_t)taps, part, head);
        ops->convolve(to[part], u, x->kda->filter[part] + head * d, channels(cfg), taps, d);
    }
    ops->set_length(to[KDA_QUERY], d, 1 / sqrtf((float)d), 1e-6f);
    ops->set_length(to[KDA_KEY], d, 1, 1e-6f);
    memset(to[KDA_VALUE] + d, 0, (rows->stride - d) * sizeof(float));
    ops->decay(decay, in + kda_part(cfg, KDA_DECAY) + head * d, x->kda->decay_bias + head * d,
               x->kda->rate[head], cfg->kda_lower_bound, d);
}

/* A head's output becomes the input of W_o: RMSNorm(o) sigmoid(gate). An infinite gate must
 * give NaN: sigmoid would make an ordinary number of it. */
static void finish_row(const KdaInputs *x, size_t head, size_t t, float *o, float *gate, Activations *heads,
                       size_t row) {
    const Config *cfg = x->cfg;
    const Kernels *ops = x->m->ops;
    size_t d = cfg->kda_head_dim, wide = padded_dim(cfg);
    const float *in = x->in + t * x->stride + kda_part(cfg, KDA_GATE) + head * d;
    memcpy(gate, in, d * sizeof *gate);
    ops->sigmoid(gate, d);
    ops->rmsnorm(o, o, x->kda->norm, d, cfg->rms_norm_eps);
    for (size_t i = 0; i < d; i++)
        o[i] = o[i] * gate[i] + (in[i] - in[i]);
    memset(o + d, 0, (wide - d) * sizeof *o);
    ops->store_row(heads, row, head * wide, o, wide);
}

void kda_head(const KdaInputs *x, size_t head, Activations *heads, size_t first, float *buffer) {
    const Config *cfg = x->cfg;
    const Kernels *ops = x->m->ops;
    size_t d = cfg->kda_head_dim, wide = padded_dim(cfg);
    float *v = buffer + 3 * PIECE * wide, *beta = v + PIECE * wide, *kq = beta + PIECE;
    const float *from = x->from + head * memory_floats(cfg);
    float *to = x->to + head * memory_floats(cfg);
    for (size_t t = 0; t < x->rows; t += PIECE) {
        DeltaRows rows = {.q = buffer,
                          .k = buffer + PIECE * wide,
                          .decay = buffer + 2 * PIECE * wide,
                          .v = v,
                          .beta = beta,
                          .kq = kq,
                          .rows = min(x->rows - t, PIECE),
                          .stride = wide,
                          .keys = d};
        float given[PIECE] = {0};
        for (size_t i = 0; i < rows.rows; i++) {
            make_ready(x, head, t + i, i, &rows, buffer);
            given[i] = beta[i] = x->in[(t + i) * x->stride + kda_part(cfg, KDA_BETA) + head];
            kq[i] = ops->dot(rows.k + i * wide, rows.q + i * wide, d);
        }
        ops->sigmoid(beta, rows.rows);
        for (size_t i = 0; i < rows.rows; i++)
            beta[i] += 0 * given[i]; /* NaN if it was infinite: sigmoid would hide it */
        for (size_t column = 0; column < wide; column += DELTA_COLUMNS)
            ops->delta(to + column * d, (t ? to : from) + column * d, &rows, column);
        for (size_t i = 0; heads && i < rows.rows; i++)
            finish_row(x, head, t + i, v + i * wide, buffer + i * wide, heads, first + t + i);
    }
    keep_past(x, head);
}
