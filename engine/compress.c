/* engine/compress.c: compressed rows: what DeepSeek-V4 keeps of a long text. Each stands for some tokens, a
 * window, and is their average, weighted for each number by itself:
 *
 *     u_t = W_kv x_t,  e_t = W_gate x_t + ape[t % R]       x_t: the normed row at place t; R tokens a window
 *     row_w[i] = sum_s softmax_s(e_s[i]) u_s[i]            over the slots s of window w: a softmax of its own
 *                                                          for every number i
 *     row_w    = rope(RMSNorm(row_w)) at the place of the window's first token
 *
 *     HCA (R = 128)  slots are the window's tokens: u and e have d numbers
 *     CSA (R = 4)    windows overlap: u and e have two halves of d numbers, a and b; slots are the a halves
 *                    of the window before, then the b halves of the window's own tokens. Window 0 has the
 *                    latter alone
 *
 * A token sees the row of every window that is closed, that is whose tokens are all at or before its own
 * place (engine/window.c). CSA's index keys (engine/indexer.c) are made in the same way, with matrices of
 * their own.
 *
 * The tokens of a window join its softmax one after another, as in an online softmax:
 *
 *     max' = max(max, e);  sum' = sum exp(max - max') + exp(e - max');  out' the same with exp(e - max') u
 *
 * and the row is out / sum. So what an unfinished window keeps has a constant size: max, sum and out, for d
 * numbers each, and in CSA the same once more for the a halves, which the next window begins with. One loop
 * serves prefill and decode, and how calls are cut changes no byte.
 *
 * All of it is in f32, whatever the cache's type. Beside it lie the last rows of the layer, as the cache
 * keeps them, in a ring: the row at place t has place t % (rows of the ring), whole tiles. A call reads one
 * slot of the cache and writes another, so that a call that is broken off has changed nothing. */
#include "engine/compress.h"

#include <math.h>
#include <string.h>

#include "engine/util.h"

enum { SLICE = 64 };            /* numbers that a thread takes through all rows */
enum { MAX, SUM, OUT, STATES }; /* of the window that is open, [d] each; in CSA of the next one, too */

/* ---- where numbers lie ---------------------------------------------------------------------- */

size_t window_part(const Config *cfg, size_t part) {
    size_t d = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim;
    size_t row = round_up(d, PANEL),
           wide = round_up(cfg->csa_ratio   ? 2 * d
                           : cfg->hca_ratio ? d
                                            : 0,
                           PANEL),
           index = round_up(cfg->csa_ratio ? 2 * cfg->index_head_dim : 0, PANEL);
    switch (part) {
    case WINDOW_ROW: return 0;
    case COMPRESS_KV: return row;
    case COMPRESS_GATE: return row + wide;
    case INDEX_KV: return row + 2 * wide;
    case INDEX_GATE: return row + 2 * wide + index;
    default: return row + 2 * wide + 2 * index;
    }
}

size_t window_input_floats(const Config *cfg) { return window_part(cfg, WINDOW_PARTS); }

size_t pool_part(const Config *cfg, size_t part) { return part * round_up(cfg->index_head_dim, PANEL); }

size_t compress_input_floats(const Config *cfg, LayerKind kind) {
    if (kind >= LAYER_SLIDING)
        return window_input_floats(cfg);
    return kind == LAYER_LATENT && cfg->index_kpool ? pool_part(cfg, POOL_CLOSED) : 0;
}

size_t layer_compressors(const Model *m, size_t layer, Compress list[2]) {
    const Config *cfg = &m->config;
    const Layer *L = &m->layers[layer];
    LayerKind kind = layer_kind(cfg, (uint32_t)layer);
    size_t d = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim;
    if (kind == LAYER_LATENT && cfg->index_kpool) {
        list[0] = (Compress){.weights = &L->index_compressor,
                             .d = cfg->index_head_dim,
                             .ratio = cfg->index_kpool,
                             .kv = pool_part(cfg, POOL_KEY),
                             .gate = pool_part(cfg, POOL_GATE)};
        return 1;
    }
    if (kind != LAYER_CSA && kind != LAYER_HCA)
        return 0;
    list[0] = (Compress){.weights = &L->compressor,
                         .d = d,
                         .ratio = kind == LAYER_CSA ? cfg->csa_ratio : cfg->hca_ratio,
                         .overlap = kind == LAYER_CSA,
                         .kv = window_part(cfg, COMPRESS_KV),
                         .gate = window_part(cfg, COMPRESS_GATE)};
    if (kind == LAYER_HCA)
        return 1;
    list[1] = (Compress){.weights = &L->index_compressor,
                         .d = cfg->index_head_dim,
                         .ratio = cfg->csa_ratio,
                         .overlap = true,
                         .kv = window_part(cfg, INDEX_KV),
                         .gate = window_part(cfg, INDEX_GATE),
                         .state = 2 * STATES * d,
                         .closed = d};
    return 2;
}

size_t compress_layer_floats(const Config *cfg, LayerKind kind) {
    size_t d = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim;
    if (kind == LAYER_HCA)
        return STATES * d;
    if (kind == LAYER_LATENT && cfg->index_kpool)
        return STATES * cfg->index_head_dim;
    return kind == LAYER_CSA ? 2 * STATES * (d + cfg->index_head_dim) : 0;
}

size_t compress_closed_floats(const Config *cfg) {
    return (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim + (cfg->csa_ratio ? cfg->index_head_dim : 0);
}

size_t compress_scratch_floats(void) { return 2 * SLICE; }

size_t compress_slices(const Model *m, size_t layer) {
    Compress list[2];
    size_t slices = 0;
    for (size_t i = 0, n = layer_compressors(m, layer, list); i < n; i++)
        slices += div_up(list[i].d, SLICE);
    return slices;
}

size_t window_rows(const Config *cfg, size_t place) { return min(place + 1, cfg->sliding_window); }

size_t compressed_rows(const Config *cfg, LayerKind kind, size_t place) {
    return kind == LAYER_CSA   ? (place + 1) / cfg->csa_ratio
           : kind == LAYER_HCA ? (place + 1) / cfg->hca_ratio
                               : 0;
}

/* ---- the definition ------------------------------------------------------------------------- */

void compress_definition(float *max, float *sum, float *out, float e, float u) {
    float most = *sum == 0 || e > *max ? e : *max;
    float shrink = *sum == 0 ? 0 : expf(*max - most), weight = expf(e - most);
    *max = most;
    *sum = *sum * shrink + weight;
    *out = *out * shrink + weight * u;
}

/* ---- the fast loop -------------------------------------------------------------------------- */

/* compress_definition() for n numbers, at most SLICE. state: max, sum and out, d apart. buffer:
 * compress_scratch_floats(); NULL: by the definition. */
static void join(const Kernels *ops, float *state, size_t d, const float *gate, const float *ape,
                 const float *u, size_t n, float *buffer) {
    float *max_of = state + MAX * d, *sum = state + SUM * d, *out = state + OUT * d;
    if (!buffer) {
        for (size_t i = 0; i < n; i++)
            compress_definition(&max_of[i], &sum[i], &out[i], gate[i] + ape[i], u[i]);
        return;
    }
    float *shrink = buffer, *weight = buffer + SLICE;
    for (size_t i = 0; i < n; i++) {
        float e = gate[i] + ape[i], most = sum[i] == 0 || e > max_of[i] ? e : max_of[i];
        shrink[i] = sum[i] == 0 ? -INFINITY : max_of[i] - most;
        weight[i] = e - most; /* NaN where it is not finite */
        max_of[i] = most;
    }
    ops->exp_minus(shrink, n, 0);
    ops->exp_minus(weight, n, 0);
    for (size_t i = 0; i < n; i++) {
        sum[i] = sum[i] * shrink[i] + weight[i];
        out[i] = out[i] * shrink[i] + weight[i] * u[i];
    }
}

/* Numbers at .. at + n - 1 of a compressor, through all rows. */
static void compress(const WindowInputs *x, const Compress *c, size_t at, size_t n, float *buffer) {
    const Kernels *ops = x->m->ops;
    size_t d = c->d, wide = c->overlap ? 2 * d : d, own = c->overlap ? d : 0; /* where its b half is */
    float *open = x->to + c->state + at, *next = c->overlap ? open + STATES * d : NULL;
    for (size_t i = 0; i < (c->overlap ? 2 : 1) * STATES; i++)
        memcpy(open + i * d, x->from + c->state + at + i * d, n * sizeof *open);
    for (size_t t = 0; t < x->rows; t++) {
        size_t slot = (x->place + t) % c->ratio;
        const float *u = x->in + t * x->stride + c->kv + at, *gate = x->in + t * x->stride + c->gate + at,
                    *ape = c->weights->ape + slot * wide + at;
        join(ops, open, d, gate + own, ape + own, u + own, n, buffer);
        if (next)
            join(ops, next, d, gate, ape, u, n, buffer);
        if (slot + 1 < c->ratio)
            continue;
        for (size_t i = 0; x->closed && i < n; i++)
            x->closed[t * x->closed_stride + c->closed + at + i] = open[OUT * d + i] / open[SUM * d + i];
        for (size_t i = 0; i < STATES; i++) {
            if (next)
                memcpy(open + i * d, next + i * d, n * sizeof *open);
            memset((next ? next : open) + i * d, 0, n * sizeof *open);
        }
    }
}

void compress_slice(const WindowInputs *x, size_t slice, float *buffer) {
    Compress list[2];
    for (size_t i = 0, n = layer_compressors(x->m, x->layer, list); i < n; i++) {
        size_t slices = div_up(list[i].d, SLICE);
        if (slice < slices)
            compress(x, &list[i], slice * SLICE, min(list[i].d - slice * SLICE, SLICE), buffer);
        if (slice < slices)
            return;
        slice -= slices;
    }
}

/* ---- the last rows -------------------------------------------------------------------------- */

static size_t ring_rows(const WindowInputs *x) { return round_up(x->m->config.sliding_window, TILE_ROWS); }

void put_in_ring(const WindowInputs *x, uint8_t *ring, size_t place, const float *row) {
    size_t at = place % ring_rows(x);
    x->m->ops->tile_store(&x->shape, ring + at / TILE_ROWS * tile_bytes(&x->shape), at % TILE_ROWS, row,
                          NULL);
}

void advance_ring(const WindowInputs *x) {
    memcpy(x->ring_to, x->ring_from, ring_rows(x) / TILE_ROWS * tile_bytes(&x->shape));
    for (size_t t = x->rows - min(x->rows, ring_rows(x)); t < x->rows; t++)
        put_in_ring(x, x->ring_to, x->place + t, x->in + t * x->stride);
}
