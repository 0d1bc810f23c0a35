/* engine/window.c: DeepSeek-V4's attention. One row is key and value of all heads, so there is nothing to
 * absorb or to decompress; and far away, many tokens have one row.
 *
 *     x --W_qa--> q_r = RMSNorm(..)  --W_qb--> q of each head, d numbers, each head divided by
 *                                              sqrt(mean q^2 + eps), the last p numbers rotated
 *     x --W_kv--> row = RMSNorm(..), d numbers, the last p rotated                  what the cache keeps
 *
 *     s_hj = scale q_h . row_j                     over the rows j that the token at place t sees:
 *     a_hj = exp(s_hj) / (exp(sink_h) + sum_k exp(s_hk))
 *     o_h  = sum_j a_hj row_j                      all d numbers, the rotated ones included. These carry the
 *                                                  rotation of their own place j: rotated back by t, what is
 *                                                  left is the distance
 *     out  = W_ob [ W_oa,1 [o of group 1] | .. ]   heads in o_groups groups that follow one another
 *
 * Which rows it sees:
 *
 *     sliding   the last W = sliding_window rows, its own included
 *     HCA       these, and the compressed row of every closed window of 128 tokens
 *     CSA       these, and of the compressed rows of closed windows of 4 tokens those that an indexer chooses
 *               (engine/indexer.c); all of them as long as they are no more than index_topk
 *
 * Window w of R tokens is closed if R (w + 1) <= t + 1: the one that the token closes itself is seen.
 * engine/compress.c makes compressed rows. In layers that have some, queries and rows are rotated by other
 * frequencies (compress_inv_freq).
 *
 * The sink is a logit of each head without a row: what it weighs is taken away from all. So a softmax begins
 * with it: its maximum is the sink, its sum 1, its output 0.
 *
 * The fast path. The lanes of a vector are sixteen heads of one row, for which every row of the cache is read
 * once. The last rows lie in a ring of whole tiles, at place modulo its rows, so that each token finds
 * exactly its window there, in an order that follows from its place alone: a prompt takes the ring along from
 * row to row as decoding does. Then come the compressed rows, in parts of 512, merged in order. So no bit
 * depends on how calls are cut, on threads or on other texts in the call.
 *
 * In a q6 or q4 cache rows are multiplied by a Hadamard matrix R, whole and after rope, so that no number
 * of a row stands out (hadamard() in engine/attend.h). Queries are, too: R q . R row = q . row. What is
 * gathered, sum a_j R row_j, is multiplied by R once more before it is rotated back: R is its own inverse.
 * Rows of the window and compressed ones share a softmax, so both are kept in this way. R cannot be
 * multiplied into the weights, as it is for latents: between W_kv and the row are a norm with weights, and
 * rope.
 *
 * Formulas: DeepSeek-V4's published code; what is rounded there to 8 and 4 bits is not rounded here. */
#include "engine/window.h"

#include <math.h>
#include <string.h>

#include "engine/attend.h"
#include "engine/compress.h"
#include "engine/indexer.h"
#include "engine/rope.h"
#include "engine/sequence.h"
#include "engine/state.h"
#include "kernels/linear.h"

/* The attention of one layer, as one thread sees it. */
typedef struct {
    Attention a;
    LayerKind kind;
    size_t layer, d, pairs;
    const float *cosine, *sine; /* [T][pairs] */
    Compress compressors[2];
    size_t compressor_count;
} Window;

/* ---- the definition ------------------------------------------------------------------------- */

void window_definition(float *out, const float *q, const float *rows, size_t T, float sink, float scale,
                       size_t d, float *score) {
    float max = sink;
    for (size_t j = 0; j < T; j++) {
        score[j] = 0;
        for (size_t i = 0; i < d; i++)
            score[j] += q[i] * rows[j * d + i];
        score[j] *= scale;
        max = fmaxf(max, score[j]);
    }
    float sum = expf(sink - max);
    for (size_t j = 0; j < T; j++)
        sum += expf(score[j] - max);
    memset(out, 0, d * sizeof *out);
    for (size_t j = 0; j < T; j++)
        for (size_t i = 0; i < d; i++)
            out[i] += expf(score[j] - max) / sum * rows[j * d + i];
}

/* ---- what a token sees ---------------------------------------------------------------------- */

/* Whether the indexer has chosen for row i: there are more rows than it may see. */
static bool is_chosen(const Window *w, size_t i) {
    return w->kind == LAYER_CSA &&
           compressed_rows(w->a.cfg, w->kind, w->a.s->rows[i].place) > w->a.cfg->index_topk;
}

/* Compressed rows that row i attends to. */
static size_t far_rows(const Window *w, size_t i) {
    size_t rows = compressed_rows(w->a.cfg, w->kind, w->a.s->rows[i].place);
    return is_chosen(w, i) ? w->a.cfg->index_topk : rows;
}

/* Where compressed row `number` of a sequence lies: row *at of what is returned. A page has sub-tiles of HCA
 * layers. */
static uint8_t *far_row(const Window *w, const Sequence *q, size_t number, size_t *at) {
    if (w->kind == LAYER_CSA) {
        *at = number % TILE_ROWS;
        return cache_tile(q, number / TILE_ROWS, w->a.layer);
    }
    size_t rows = q->cache->hca_rows, in_page = number % rows;
    *at = in_page % HCA_ROWS;
    return cache_hca_rows(q, number / rows, w->layer) + (in_page - *at) * (q->cache->tile_bytes / TILE_ROWS);
}

/* Of the compressed rows that row i attends to, first .. end - 1 as whole tiles. In HCA layers they lie in
 * sub-tiles, which are copied side by side into this thread's scratch; all heads read them there. */
static void gather_far(const Window *w, size_t i, size_t first, size_t end) {
    size_t row_bytes = w->a.s->cache->tile_bytes / TILE_ROWS, at;
    for (size_t j = first; w->kind == LAYER_HCA && j < end; j += HCA_ROWS)
        memcpy(w->a.z->far + (j - first) * row_bytes, far_row(w, w->a.s->rows[i].sequence, j, &at),
               HCA_ROWS * row_bytes);
}

/* The run that row i belongs to. */
static const ConstantRun *run_of(const State *s, size_t i) {
    const ConstantRun *run = s->runs;
    while (i >= run->first + run->rows)
        run++;
    return run;
}

static WindowInputs inputs_of(const Window *w, const ConstantRun *run) {
    const State *s = w->a.s;
    const Cache *cache = s->cache;
    return (WindowInputs){.m = w->a.m,
                          .layer = w->layer,
                          .place = s->rows[run->first].place,
                          .in = s->window.in + run->first * s->window.in_stride,
                          .stride = s->window.in_stride,
                          .rows = run->rows,
                          .from = cache_slot_layer(cache, run->from, w->layer),
                          .to = cache_slot_layer(cache, run->to, w->layer),
                          .shape = cache->shape,
                          .ring_from = cache_ring(cache, run->from, w->layer),
                          .ring_to = cache_ring(cache, run->to, w->layer),
                          .closed = s->window.closed + run->first * s->window.closed_stride,
                          .closed_stride = s->window.closed_stride};
}

/* ---- what goes into the cache --------------------------------------------------------------- */

void window_angles(const Model *m, State *s, size_t i) {
    size_t pairs = m->config.qk_rope_head_dim / 2;
    if (m->compress_inv_freq)
        rope_angles(s->window.cosine + i * pairs, s->window.sine + i * pairs, m->compress_inv_freq, pairs,
                    s->rows[i].position);
}

/* x = rope(RMSNorm(x)): d numbers, the last of them rotated. */
static void norm_and_rotate(const Window *w, float *x, const float *weight, size_t d, const float *cosine,
                            const float *sine) {
    w->a.m->ops->rmsnorm(x, x, weight, d, w->a.cfg->latent_norm_eps);
    rope(x + d - 2 * w->pairs, cosine, sine, w->pairs);
}

/* x = R x below 8 bits: a row, a query, or what was gathered. */
static void spread(const Window *w, float *x) {
    if (w->a.s->cache->shape.type > TILE_Q8)
        hadamard(x, w->d);
}

/* Row i's own row, and the low rank of its queries. */
static void finish_row(const Window *w, size_t i) {
    const Config *cfg = w->a.cfg;
    State *s = w->a.s;
    float *row = s->window.in + i * s->window.in_stride, *qa = s->attention.qa + i * s->attention.qa_stride;
    norm_and_rotate(w, row, w->a.L->window_kv_norm, w->d, w->cosine + i * w->pairs, w->sine + i * w->pairs);
    spread(w, row);
    w->a.m->ops->rmsnorm(qa, qa, w->a.L->q_a_norm, cfg->q_lora_rank, cfg->latent_norm_eps);
    w->a.m->ops->store_row(&s->attention.qa_normed, i, 0, qa, cfg->q_lora_rank);
}

/* The windows that row i closes become rows of the cache. */
static void store_closed(const Window *w, size_t i) {
    State *s = w->a.s;
    const Row *row = &s->rows[i];
    float *angles = w->a.z->a;
    for (size_t k = 0; k < w->compressor_count; k++) {
        const Compress *c = &w->compressors[k];
        float *x = s->window.closed + i * s->window.closed_stride + c->closed;
        size_t number = row->place / c->ratio, at = number % TILE_ROWS;
        if ((row->place + 1) % c->ratio)
            continue;
        rope_angles(angles, angles + w->pairs, w->a.m->compress_inv_freq, w->pairs,
                    row->position + 1 - (uint32_t)c->ratio);
        norm_and_rotate(w, x, c->weights->norm, c->d, angles, angles + w->pairs);
        if (!k)
            spread(w, x);
        uint8_t *tile = k ? cache_index_tile(row->sequence, number / TILE_ROWS, w->layer)
                          : far_row(w, row->sequence, number, &at);
        w->a.m->ops->tile_store(k ? &s->cache->index_shape : &s->cache->shape, tile, at, x, NULL);
    }
}

/* The unfinished windows of the call's sequences: a task is a slice of one sequence. */
static void compress_rows(const Window *w) {
    const State *s = w->a.s;
    bool plain = s->path_is_forced && s->forced_path == PATH_DEFINITION;
    size_t slices = compress_slices(w->a.m, w->layer), tasks = s->run_count * slices, task;
    while ((task = next_task(w->a.t, tasks)) < tasks) {
        WindowInputs x = inputs_of(w, &s->runs[task / slices]);
        compress_slice(&x, task % slices, plain ? NULL : w->a.z->a);
    }
}

/* A sequence's ring; of a small call its inputs are kept. */
static void advance(const Window *w, const ConstantRun *run) {
    WindowInputs x = inputs_of(w, run);
    advance_ring(&x);
    if (run->rows <= REPLAY_ROWS)
        memcpy(sequence_replay(run->sequence, w->layer, !run->sequence->constant.replay_now), x.in,
               x.rows * x.stride * sizeof *x.in);
}

/* q of head h of row i: normed, rotated. */
static void finish_query(const Window *w, size_t i, size_t h) {
    float *q = query_of(&w->a, i, h);
    norm_and_rotate(w, q, w->a.s->window.ones, w->d, w->cosine + i * w->pairs, w->sine + i * w->pairs);
    spread(w, q);
}

/* What a head has gathered is rotated back. */
static void finish_output(const Window *w, size_t i, float *out) {
    spread(w, out);
    rope_back(out + w->d - 2 * w->pairs, w->cosine + i * w->pairs, w->sine + i * w->pairs, w->pairs);
}

static void project_rows(const Window *w) {
    const Attention *a = &w->a;
    State *s = a->s;
    linear(a->m->ops, s->attention.qa, s->attention.qa_stride, &a->L->q_a, &s->normed, a->t);
    linear(a->m->ops, s->window.in, s->window.in_stride, &a->L->window_kv, &s->normed, a->t);
    for (size_t k = 0; k < w->compressor_count; k++) {
        const Compress *c = &w->compressors[k];
        linear(a->m->ops, s->window.in + c->kv, s->window.in_stride, &c->weights->kv, &s->normed, a->t);
        linear(a->m->ops, s->window.in + c->gate, s->window.in_stride, &c->weights->gate, &s->normed, a->t);
    }
    sync_threads(a->t);
}

/* Queries, rows and compressed rows are complete when it returns, the latter in the cache. */
static void project(const Window *w) {
    const Attention *a = &w->a;
    State *s = a->s;
    size_t H = a->cfg->num_attention_heads, from, to, task;
    project_rows(w);
    share(a->t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++)
        finish_row(w, i);
    compress_rows(w);
    sync_threads(a->t);
    linear(a->m->ops, s->attention.q, s->attention.q_stride, &a->L->q_b, &s->attention.qa_normed, a->t);
    for (size_t i = from; i < to; i++)
        store_closed(w, i);
    while ((task = next_task(a->t, s->run_count)) < s->run_count)
        advance(w, &s->runs[task]);
    sync_threads(a->t);
    choose_rows(a->m, s, w->layer, a->t);
    share(a->t, s->row_count * H, &from, &to);
    for (size_t i = from; i < to; i++)
        finish_query(w, i / H, i % H);
    sync_threads(a->t);
}

/* ---- sixteen heads of a row ----------------------------------------------------------------- */

static size_t head_groups(const Window *w) { return div_up(w->a.cfg->num_attention_heads, LANES); }

static void pack_heads(const Window *w, size_t i, size_t group) {
    const float *query[LANES] = {NULL};
    for (size_t lane = 0; lane < LANES && group * LANES + lane < w->a.cfg->num_attention_heads; lane++)
        query[lane] = query_of(&w->a, i, group * LANES + lane);
    w->a.m->ops->pack_query(&w->a.s->cache->shape, w->a.z->query, query, NULL);
}

static void attend(const Window *w, const uint8_t *tile, size_t rows, const uint16_t *mask,
                   Softmax *softmax) {
    const TileShape *shape = &w->a.s->cache->shape;
    int32_t limit[LANES];
    for (int lane = 0; lane < LANES; lane++)
        limit[lane] = (int32_t)rows;
    w->a.m->ops->attend(shape, w->a.z->query, tile, shape, tile, rows, limit, mask, w->a.cfg->softmax_scale,
                        softmax, w->a.z->attend);
}

/* The first part: the sinks, then the ring behind row i. */
static void attend_ring(const Window *w, size_t i, size_t group, const uint8_t *ring, Softmax *softmax) {
    const Config *cfg = w->a.cfg;
    size_t place = w->a.s->rows[i].place, tiles = ring_tiles(cfg), all = tiles * TILE_ROWS;
    for (size_t lane = 0; lane < LANES; lane++) {
        size_t h = group * LANES + lane;
        softmax->max[lane] = h < cfg->num_attention_heads ? w->a.L->sinks[h] : 0;
        softmax->sum[lane] = 1;
    }
    memset(softmax->out, 0, w->d * LANES * sizeof *softmax->out);
    for (size_t k = 0; k < tiles && k * TILE_ROWS <= place; k++) {
        uint16_t mask[TILE_ROWS];
        for (size_t j = 0; j < TILE_ROWS; j++) { /* in a ring with more rows than the window */
            size_t age = (place + all - (k * TILE_ROWS + j)) % all;
            mask[j] = age < cfg->sliding_window ? UINT16_MAX : 0;
        }
        attend(w, ring + k * w->a.s->cache->tile_bytes, min(place + 1 - k * TILE_ROWS, TILE_ROWS),
               cfg->sliding_window < all ? mask : NULL, softmax);
    }
}

/* Another part are compressed rows: WINDOW_PART_ROWS of those that row i attends to. */
static size_t part_begin(size_t part) { return (part - 1) * WINDOW_PART_ROWS; }

static size_t part_end(const Window *w, size_t i, size_t part) {
    return min(part * WINDOW_PART_ROWS, far_rows(w, i));
}

/* selected: copies of the rows that the indexer has chosen; others are where gather_far() leaves them. */
static void attend_far(const Window *w, size_t i, size_t part, const uint8_t *selected, Softmax *softmax) {
    size_t begin = part_begin(part), end = part_end(w, i, part), tile_bytes = w->a.s->cache->tile_bytes, at;
    softmax_begin(softmax);
    for (size_t first = begin; first < end; first += TILE_ROWS) {
        const uint8_t *tile = is_chosen(w, i)        ? selected + first / TILE_ROWS * tile_bytes
                              : w->kind == LAYER_CSA ? far_row(w, w->a.s->rows[i].sequence, first, &at)
                                                     : w->a.z->far + (first - begin) / TILE_ROWS * tile_bytes;
        attend(w, tile, min(end - first, TILE_ROWS), NULL, softmax);
    }
}

static size_t parts_of(const Window *w, size_t i) { return 1 + div_up(far_rows(w, i), WINDOW_PART_ROWS); }

/* What sixteen heads have gathered takes the place of their queries, rotated back. */
static void finish_heads(const Window *w, size_t i, size_t group, const Softmax *softmax) {
    size_t h = group * LANES, lanes = min(w->a.cfg->num_attention_heads - h, LANES);
    float *out = query_of(&w->a, i, h);
    w->a.m->ops->softmax_finish(out, w->d, softmax, w->d, lanes);
    for (size_t lane = 0; lane < lanes; lane++)
        finish_output(w, i, out + lane * w->d);
}

/* ---- few rows: threads share their parts ---------------------------------------------------- */

/* The ring behind row i: of a run's last row it is there, of the others it is made. */
static const uint8_t *ring_behind(const Window *w, size_t i) {
    const State *s = w->a.s;
    const ConstantRun *run = run_of(s, i);
    WindowInputs x = inputs_of(w, run);
    if (i + 1 == run->first + run->rows)
        return x.ring_to;
    x.rows = i + 1 - run->first;
    x.ring_to = w->a.z->ring;
    advance_ring(&x);
    return x.ring_to;
}

static void attend_side_by_side(const Window *w) {
    State *s = w->a.s;
    size_t groups = head_groups(w), most_parts = 1, task, from, to;
    size_t gathered_row = SIZE_MAX, gathered_part = 0; /* by this thread, for its next groups of heads, too */
    for (size_t i = 0; i < s->row_count; i++)
        most_parts = max(most_parts, parts_of(w, i));
    size_t most = s->window.part_count / (groups * most_parts);
    for (size_t first = 0; first < s->row_count; first += most) {
        size_t items = min(s->row_count - first, most) * groups;
        if (w->kind == LAYER_CSA && s->sparse.active)
            select_latents(w->a.m, s, w->a.layer, first, items / groups, w->a.t);
        while ((task = next_task(w->a.t, items * most_parts)) < items * most_parts) {
            size_t item = task % items, part = task / items, i = first + item / groups, group = item % groups;
            Softmax *softmax = &s->window.parts[item * most_parts + part];
            if (part >= parts_of(w, i))
                continue;
            pack_heads(w, i, group);
            if (part) {
                if (i != gathered_row || part != gathered_part)
                    gather_far(w, i, part_begin(part), part_end(w, i, part));
                gathered_row = i;
                gathered_part = part;
                attend_far(w, i, part, selected_tiles(s, i - first), softmax);
            } else {
                attend_ring(w, i, group, ring_behind(w, i), softmax);
            }
        }
        sync_threads(w->a.t);
        share(w->a.t, items, &from, &to);
        for (size_t item = from; item < to; item++) {
            Softmax *parts = &s->window.parts[item * most_parts];
            for (size_t part = 1; part < parts_of(w, first + item / groups); part++)
                w->a.m->ops->softmax_merge(&parts[0], &parts[part], w->d);
            finish_heads(w, first + item / groups, item % groups, &parts[0]);
        }
        sync_threads(w->a.t);
    }
}

/* ---- many rows: each thread takes some of a sequence ---------------------------------------- */

enum { BLOCK_ROWS = 32, ROWS_OF_THREAD = 4 };

/* All heads of row i, by one thread: the same parts, merged in the same order as they come. A part's rows are
 * gathered once for all heads. */
static void attend_row(const Window *w, size_t i, const uint8_t *ring) {
    State *s = w->a.s;
    size_t id = (size_t)w->a.t->id, groups = head_groups(w);
    Softmax *all = &s->window.parts[id * (groups + 1)], *next = all + groups;
    uint8_t *selected = selected_tiles(s, id);
    if (is_chosen(w, i))
        select_row(w->a.m, s, w->a.layer, i, selected);
    for (size_t group = 0; group < groups; group++) {
        pack_heads(w, i, group);
        attend_ring(w, i, group, ring, &all[group]);
    }
    for (size_t part = 1; part < parts_of(w, i); part++) {
        gather_far(w, i, part_begin(part), part_end(w, i, part));
        for (size_t group = 0; group < groups; group++) {
            pack_heads(w, i, group);
            attend_far(w, i, part, selected, next);
            w->a.m->ops->softmax_merge(&all[group], next, w->d);
        }
    }
    for (size_t group = 0; group < groups; group++)
        finish_heads(w, i, group, &all[group]);
}

/* Rows first .. end - 1 of a run: the ring goes along. */
static void attend_block(const Window *w, const ConstantRun *run, size_t first, size_t end) {
    WindowInputs x = inputs_of(w, run);
    x.rows = first;
    x.ring_to = w->a.z->ring;
    advance_ring(&x);
    for (size_t i = first; i < end; i++) {
        put_in_ring(&x, x.ring_to, x.place + i, x.in + i * x.stride);
        attend_row(w, run->first + i, x.ring_to);
    }
}

static void attend_blocks(const Window *w) {
    const State *s = w->a.s;
    size_t tasks = 0, task;
    for (size_t k = 0; k < s->run_count; k++)
        tasks += div_up(s->runs[k].rows, BLOCK_ROWS);
    while ((task = next_task(w->a.t, tasks)) < tasks) {
        const ConstantRun *run = s->runs;
        size_t block = task;
        for (; block >= div_up(run->rows, BLOCK_ROWS); run++)
            block -= div_up(run->rows, BLOCK_ROWS);
        attend_block(w, run, block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, run->rows));
    }
    sync_threads(w->a.t);
}

/* ---- the definition, for a call ------------------------------------------------------------- */

/* The rows that row i attends to, as f32, from where the cache holds them. Returns how many. */
static size_t read_rows(const Window *w, size_t i, const uint8_t *ring) {
    const State *s = w->a.s;
    const Cache *cache = s->cache;
    const Row *row = &s->rows[i];
    size_t all = ring_tiles(w->a.cfg) * TILE_ROWS, T = 0;
    for (size_t j = row->place + 1 - window_rows(w->a.cfg, row->place); j <= row->place; j++)
        w->a.m->ops->tile_load(&cache->shape, ring + j % all / TILE_ROWS * cache->tile_bytes, j % TILE_ROWS,
                               s->window.rows + T++ * w->d, NULL);
    for (size_t j = 0; j < compressed_rows(w->a.cfg, w->kind, row->place); j++) {
        size_t at;
        if (is_chosen(w, i) && !attends_to(s, i, j))
            continue;
        const uint8_t *tile = far_row(w, row->sequence, j, &at);
        w->a.m->ops->tile_load(&cache->shape, tile, at, s->window.rows + T++ * w->d, NULL);
    }
    return T;
}

/* For all new rows and heads, on one thread. */
static void definition(const Window *w) {
    const State *s = w->a.s;
    for (size_t i = 0; i < s->row_count; i++) {
        size_t T = read_rows(w, i, ring_behind(w, i));
        for (size_t h = 0; h < w->a.cfg->num_attention_heads; h++) {
            float *q = query_of(&w->a, i, h), *out = w->a.z->a;
            window_definition(out, q, s->window.rows, T, w->a.L->sinks[h], w->a.cfg->softmax_scale, w->d,
                              s->window.score);
            memcpy(q, out, w->d * sizeof *q);
            finish_output(w, i, q);
        }
    }
}

/* ---- the whole ------------------------------------------------------------------------------ */

/* The outputs of one group of heads: [T, H / o_groups * d]. */
static Activations group_rows(const Window *w, size_t group) {
    const State *s = w->a.s;
    const Activations *x = &s->window.groups;
    return activations_view(x, group * s->chunk * x->stride, s->row_count, x->cols);
}

/* out += W_ob [ W_oa,1 o_1 | .. ]. Ends with a barrier. */
static void project_out(const Window *w) {
    const Attention *a = &w->a;
    State *s = a->s;
    size_t G = a->cfg->o_groups, rank = a->cfg->o_lora_rank, panels = matrix_panels(&a->L->o_a), from, to,
           width = a->cfg->num_attention_heads / G * w->d;
    share(a->t, s->row_count * G, &from, &to);
    for (size_t k = from; k < to; k++) {
        Activations x = group_rows(w, k % G);
        a->m->ops->store_row(&x, k / G, 0, query_of(a, k / G, 0) + k % G * width, width);
    }
    sync_threads(a->t);
    share(a->t, G * panels, &from, &to); /* the groups' matrices are one list of panels */
    for (size_t panel = from, here; panel < to; panel += here) {
        Matrix one = head_matrix(&a->L->o_a, panel / panels);
        Activations x = group_rows(w, panel / panels);
        here = min(to - panel, panels - panel % panels);
        a->m->ops->matmul(s->window.low + panel * PANEL, s->window.low_stride, &one, panel % panels, here,
                          &x);
    }
    sync_threads(a->t);
    share(a->t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        for (size_t g = 0; g < G; g++)
            memcpy(a->z->a + g * rank, s->window.low + i * s->window.low_stride + g * panels * PANEL,
                   rank * sizeof(float));
        a->m->ops->store_row(&s->window.low_rows, i, 0, a->z->a, G * rank);
    }
    sync_threads(a->t);
    linear_add(a->m->ops, s->out, s->out_stride, &a->L->o, &s->window.low_rows, NULL, NULL, a->z->a, a->t);
    sync_threads(a->t);
}

static Window window_open(const Model *m, State *s, size_t layer, Thread *t) {
    const Config *cfg = &m->config;
    Window w = {.a = attention_open(m, s, layer, t),
                .kind = layer_kind(cfg, (uint32_t)layer),
                .layer = layer,
                .d = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim,
                .pairs = cfg->qk_rope_head_dim / 2};
    bool sliding = w.kind == LAYER_SLIDING;
    w.cosine = sliding ? s->attention.cosine : s->window.cosine;
    w.sine = sliding ? s->attention.sine : s->window.sine;
    w.compressor_count = layer_compressors(m, layer, w.compressors);
    return w;
}

void window_attention(const Model *m, State *s, size_t layer, Thread *t) {
    Window w = window_open(m, s, layer, t);
    profile_stage(s, t, STAGE_DENSE);
    project(&w);
    profile_stage(s, t, STAGE_ATTENTION);
    if (s->path_is_forced && s->forced_path == PATH_DEFINITION) {
        if (t->id == 0)
            definition(&w);
        sync_threads(t);
    } else if (s->row_count >= ROWS_OF_THREAD * (size_t)t->threads) {
        attend_blocks(&w);
    } else {
        attend_side_by_side(&w);
    }
    profile_stage(s, t, STAGE_DENSE);
    project_out(&w);
}
