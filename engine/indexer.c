/* engine/indexer.c: which cached rows a new row attends to: the "lightning indexer" of DeepSeek's sparse
 * attention (V3.2, GLM-5).
 *
 * In a long context attention goes mostly to a few rows. A second, far smaller attention without softmax
 * and without values finds them:
 *
 *     k_j     = rope(LayerNorm(W_k x_j))     index key of a row: di numbers for all heads, cached, too
 *     q_h     = rope(W_q,h RMSNorm(W_qa x))  index queries of the new row, Hi heads, from the same
 *                                            compressed query as those of attention
 *     w       = W_w x                        weight of each head
 *     score_j = sum_h w_h relu(q_h . k_j)    for every row j up to the new one
 *
 * The new row attends to the index_topk rows that score highest; of equal scores the earlier row is taken.
 * Up to that many rows attention is dense: nothing is scored, only the keys are kept. A layer without an
 * indexer attends to the rows that the layer before it chose (IndexShare).
 *
 * In DeepSeek-V4's CSA layers the rows are compressed ones, each for four tokens, and so are their index keys
 * (engine/compress.c): row j then stands for a window, and the new row chooses from those that are closed.
 * All else is the same.
 *
 * GLM-5.3-Flash chooses pools of R = index_kpool neighbouring tokens. A pool has one key, the average of its
 * tokens' keys, weighted for each number by itself. That is what HCA does in engine/compress.c:
 *
 *     e_j      = W_gate x_j + ape[j % R]           di numbers of each token
 *     key_w[i] = sum_j softmax_j(e_j[i]) k_j[i]    over the tokens j of pool w
 *
 * The new row attends to all rows of the index_topk / R pools that score highest, of those that are complete
 * (its own token may be the last one), and always to the rows behind the last complete pool, the tail.
 *
 * The published arithmetic also multiplies scores by Hi^-0.5 di^-0.5, and keys and queries by an
 * orthonormal matrix before it rounds both to 8 bits. Neither changes which rows score highest, except by
 * the rounding. Here keys are f32 with -k f32 and full, bf16 with -k bf16, and otherwise q8: int8 with a
 * scale for each row, and so are queries. That is finer than the published float, which has 3 bits of
 * fraction.
 *
 * Attention to the chosen rows is engine/attend.c's; the loop over keys is kernels/index.h. Formulas:
 * DeepSeek-V3.2, arXiv 2512.02556, section 2.1; sharing: arXiv 2603.12201. */
#include "engine/indexer.h"

#include <math.h>
#include <string.h>

#include "engine/compress.h"
#include "engine/rope.h"
#include "engine/sequence.h"
#include "engine/util.h"
#include "kernels/linear.h"

/* ---- keys, queries and weights of the new rows ---------------------------------------------- */

/* x = (x - mean) / sqrt(variance + eps) * weight + bias, sums in order */
static void layer_norm(float *x, const float *weight, const float *bias, size_t n) {
    static const float EPS = 1e-6f; /* whatever rms_norm_eps is */
    float sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    float mean = sum / (float)n;
    for (size_t i = 0; i < n; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    float deviation = squares - squares == 0 ? sqrtf(squares / (float)n + EPS) : NAN; /* as in rmsnorm */
    for (size_t i = 0; i < n; i++)
        x[i] = (x[i] - mean) / deviation * weight[i] + bias[i];
}

/* The index key of row i's token, or of the pool that it closes, goes into the cache. */
static void store_key(const Model *m, const State *s, size_t layer, size_t i, const float *key) {
    const Row *row = &s->rows[i];
    size_t at = row->place / s->sparse.ratio;
    m->ops->tile_store(&s->cache->index_shape, cache_index_tile(row->sequence, at / TILE_ROWS, layer),
                       at % TILE_ROWS, key, NULL);
}

/* Row i's own index key. It goes into the cache, where keys are not those of pools. */
static void finish_key(const Model *m, State *s, size_t layer, size_t i, const float *cosine,
                       const float *sine) {
    size_t di = m->config.index_head_dim, pairs = m->config.qk_rope_head_dim / 2;
    float *key = s->sparse.key + i * s->sparse.key_stride;
    layer_norm(key, m->layers[layer].index_k_norm, m->layers[layer].index_k_bias, di);
    rope(key + di - 2 * pairs, cosine, sine, pairs);
    if (!m->config.index_kpool)
        store_key(m, s, layer, i, key);
}

static WindowInputs pool_inputs(const Model *m, const State *s, size_t layer, const ConstantRun *run) {
    float *in = s->sparse.key + run->first * s->sparse.key_stride;
    return (WindowInputs){.m = m,
                          .layer = layer,
                          .place = s->rows[run->first].place,
                          .in = in,
                          .stride = s->sparse.key_stride,
                          .rows = run->rows,
                          .from = cache_slot_layer(s->cache, run->from, layer),
                          .to = cache_slot_layer(s->cache, run->to, layer),
                          .closed = in + pool_part(&m->config, POOL_CLOSED),
                          .closed_stride = s->sparse.key_stride};
}

/* The keys of the pools that a sequence's rows close go into the cache; a small call's inputs are kept. */
static void finish_pools(const Model *m, const State *s, size_t layer, const ConstantRun *run) {
    WindowInputs x = pool_inputs(m, s, layer, run);
    size_t floats = compress_input_floats(&m->config, LAYER_LATENT);
    float *kept = sequence_replay(run->sequence, layer, !run->sequence->constant.replay_now);
    for (size_t t = 0; t < run->rows; t++) {
        if ((x.place + t + 1) % m->config.index_kpool == 0)
            store_key(m, s, layer, run->first + t, x.closed + t * x.closed_stride);
        if (run->rows <= REPLAY_ROWS)
            memcpy(kept + t * floats, x.in + t * x.stride, floats * sizeof *kept);
    }
}

/* Keys become those of pools: a task is a slice of one sequence, then a sequence. Ends with a barrier. */
static void pool_keys(const Model *m, State *s, size_t layer, Thread *t) {
    bool plain = s->path_is_forced && s->forced_path == PATH_DEFINITION;
    size_t slices = compress_slices(m, layer), tasks = s->run_count * slices, task;
    while ((task = next_task(t, tasks)) < tasks) {
        WindowInputs x = pool_inputs(m, s, layer, &s->runs[task / slices]);
        compress_slice(&x, task % slices, plain ? NULL : s->scratch[t->id].a);
    }
    sync_threads(t);
    while ((task = next_task(t, s->run_count)) < s->run_count)
        finish_pools(m, s, layer, &s->runs[task]);
    sync_threads(t);
}

/* Index keys into the cache; queries and weights only where rows are to be scored. */
static void project_index(const Model *m, State *s, size_t layer, Thread *t) {
    const Config *cfg = &m->config;
    const Layer *L = &m->layers[layer];
    bool compressed = layer_kind(cfg, (uint32_t)layer) == LAYER_CSA;
    const float *cosines = compressed ? s->window.cosine : s->attention.cosine,
                *sines = compressed ? s->window.sine : s->attention.sine;
    size_t di = cfg->index_head_dim, pairs = cfg->qk_rope_head_dim / 2, from, to;

    if (!compressed)
        linear(m->ops, s->sparse.key, s->sparse.key_stride, &L->index_k, &s->normed, t);
    if (cfg->index_kpool)
        linear(m->ops, s->sparse.key + pool_part(cfg, POOL_GATE), s->sparse.key_stride,
               &L->index_compressor.gate, &s->normed, t);
    if (s->sparse.active) {
        linear(m->ops, s->sparse.query, s->sparse.query_stride, &L->index_q, &s->attention.qa_normed, t);
        linear(m->ops, s->sparse.weight, s->sparse.weight_stride, &L->index_weights, &s->normed, t);
    }
    sync_threads(t);
    share(t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        const float *cosine = cosines + i * pairs, *sine = sines + i * pairs;
        float *query = s->sparse.query + i * s->sparse.query_stride;
        if (!compressed)
            finish_key(m, s, layer, i, cosine, sine);
        for (size_t h = 0; h < cfg->index_n_heads && s->sparse.active; h++)
            rope(query + (h + 1) * di - 2 * pairs, cosine, sine, pairs);
    }
    sync_threads(t);
    if (cfg->index_kpool)
        pool_keys(m, s, layer, t);
}

/* ---- scores --------------------------------------------------------------------------------- */

/* Row i's index queries as the kernel wants them, sixteen heads at a time. */
static void pack_queries(const Model *m, const State *s, size_t i, uint8_t *packed) {
    const TileShape *shape = &s->cache->index_shape;
    for (size_t h = 0; h < m->config.index_n_heads; h += LANES) {
        const float *heads[LANES];
        for (size_t lane = 0; lane < LANES; lane++)
            heads[lane] = h + lane < m->config.index_n_heads
                              ? s->sparse.query + i * s->sparse.query_stride + (h + lane) * shape->d1
                              : NULL;
        m->ops->pack_query(shape, packed + h / LANES * query_bytes(shape), heads, heads);
    }
}

/* Rows first .. first + count - 1 of the call score the rows before them and themselves: every (row, tile)
 * is a task. */
static void score_rows(const Model *m, State *s, size_t layer, size_t first, size_t count, Thread *t) {
    const Config *cfg = &m->config;
    Scratch *z = &s->scratch[t->id];
    size_t most = 0, from, to, packed = SIZE_MAX;
    for (size_t i = first; i < first + count; i++)
        most = max(most, index_rows(s, i));
    size_t tiles = cache_tiles(most);

    share(t, count * tiles, &from, &to);
    for (size_t task = from; task < to; task++) {
        size_t line = task / tiles, i = first + line, begin = task % tiles * TILE_ROWS,
               rows = index_rows(s, i);
        if (rows <= s->sparse.threshold || begin >= rows)
            continue;
        if (packed != i)
            pack_queries(m, s, packed = i, z->index_query);
        const uint8_t *keys = cache_index_tile(s->rows[i].sequence, begin / TILE_ROWS, layer);
        m->ops->index_scores(s->sparse.score + line * s->context + begin, &s->cache->index_shape,
                             z->index_query, s->sparse.weight + i * s->sparse.weight_stride,
                             cfg->index_n_heads, keys, min(rows - begin, TILE_ROWS), z->index_keys);
    }
}

/* ---- the highest ---------------------------------------------------------------------------- */

/* Larger numbers give larger integers; NaN gives the least. */
static uint32_t ordered(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Sets bits first .. first + count - 1. */
static void set_bits(uint64_t *mask, size_t first, size_t count) {
    for (size_t j = first; j < first + count; j++)
        mask[j / 64] |= (uint64_t)1 << j % 64;
}

/* Sets the `pool` bits of j in mask, which is all zeros, for the `most` highest of score[0 .. rows), the
 * first of equals; for all if there are no more rows. The lowest that is chosen is found a byte at a time,
 * the highest byte first: radix selection, four times through the scores. False: there was a choice, and some
 * score is non-finite. */
static bool choose_highest(uint64_t *mask, const float *score, size_t rows, size_t most, size_t pool) {
    uint32_t least = 0;
    bool finite = true;
    size_t left = most; /* of those that begin with the bytes of `least` so far */
    for (int shift = 24; shift >= 0 && rows > most; shift -= 8) {
        size_t count[256] = {0};
        for (size_t j = 0; j < rows; j++) {
            uint64_t key = ordered(score[j]);
            if (key >> shift >> 8 == least)
                count[key >> shift & 255]++;
        }
        uint32_t byte = 255;
        for (; count[byte] < left; byte--)
            left -= count[byte];
        least = least << 8 | byte;
    }
    for (size_t j = 0; j < rows; j++) {
        uint32_t key = rows > most ? ordered(score[j]) : UINT32_MAX;
        finite &= rows <= most || isfinite(score[j]);
        if (key > least || (key == least && left && left--))
            set_bits(mask, j * pool, pool);
    }
    return finite;
}

/* ---- the whole ------------------------------------------------------------------------------ */

void choose_rows(const Model *m, State *s, size_t layer, Thread *t) {
    const Config *cfg = &m->config;
    size_t pool = s->sparse.pool, from, to;
    if (!layer_has_indexer(cfg, (uint32_t)layer) || (cfg->sliding_window && !s->sparse.active))
        return;
    project_index(m, s, layer, t);
    for (size_t first = 0; first < s->row_count && s->sparse.active; first += s->sparse.score_rows) {
        size_t count = min(s->row_count - first, s->sparse.score_rows);
        score_rows(m, s, layer, first, count, t);
        sync_threads(t);
        share(t, count, &from, &to);
        for (size_t line = from; line < to; line++) {
            uint64_t *mask = s->sparse.mask + (first + line) * s->sparse.mask_stride;
            size_t rows = index_rows(s, first + line), place = s->rows[first + line].place;
            memset(mask, 0, s->sparse.mask_stride * sizeof *mask);
            set_bits(mask, rows * pool, (place + 1) % pool); /* the tail */
            if (!choose_highest(mask, s->sparse.score + line * s->context, rows, s->sparse.threshold, pool))
                /* a choice by non-finite scores means nothing: the row's logits shall be non-finite, too */
                s->attention.q[(first + line) * s->attention.q_stride] = NAN;
        }
        sync_threads(t);
    }
}

/* ---- the chosen rows, for the two paths of attention ---------------------------------------- */

void add_to_mask(const State *s, size_t i, size_t page, size_t lane, uint16_t mask[TILE_ROWS]) {
    for (size_t j = 0; j < TILE_ROWS; j++)
        mask[j] = (uint16_t)(mask[j] | attends_to(s, i, page * TILE_ROWS + j) << lane);
}

/* Of the rows that row i attends to, those from number page * TILE_ROWS on: at most a tile. */
static void copy_chosen(const Model *m, const State *s, size_t layer, size_t i, size_t page, uint8_t *to) {
    const uint64_t *mask = s->sparse.mask + i * s->sparse.mask_stride;
    size_t skip = page * TILE_ROWS, word = 0, n = min(rows_attended(s, i) - skip, TILE_ROWS);
    for (; skip >= (size_t)__builtin_popcountll(mask[word]); word++)
        skip -= (size_t)__builtin_popcountll(mask[word]);
    uint64_t bits = mask[word];
    for (; skip; skip--)
        bits &= bits - 1;
    for (size_t row = 0; row < n; row++, bits &= bits - 1) {
        while (!bits)
            bits = mask[++word];
        size_t j = word * 64 + (size_t)__builtin_ctzll(bits);
        m->ops->tile_copy(&s->cache->shape, to, row, cache_tile(s->rows[i].sequence, j / TILE_ROWS, layer),
                          j % TILE_ROWS);
    }
}

void select_row(const Model *m, const State *s, size_t layer, size_t i, uint8_t *tiles) {
    for (size_t tile = 0; tile * TILE_ROWS < rows_attended(s, i); tile++)
        copy_chosen(m, s, layer, i, tile, tiles + tile * s->cache->tile_bytes);
}

void select_latents(const Model *m, State *s, size_t layer, size_t first, size_t count, Thread *t) {
    size_t from, to;
    share(t, count * s->sparse.tile_count, &from, &to);
    for (size_t task = from; task < to; task++) {
        size_t line = task / s->sparse.tile_count, tile = task % s->sparse.tile_count;
        size_t i = s->absorbed.row[first + line];
        if (tile * TILE_ROWS < rows_attended(s, i))
            copy_chosen(m, s, layer, i, tile, selected_tiles(s, line) + tile * s->cache->tile_bytes);
    }
    sync_threads(t);
}
