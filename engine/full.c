/* engine/full.c: ordinary attention, which MLA is compared with. Keys and values themselves are kept, for
 * each of G groups of H / G heads:
 *
 *     o_h,i = sum_j softmax_j(scale q_h,i . k_g,j) v_g,j     g = h / (H / G), a row's group of head h
 *
 *     MHA  G = H    every head has its own                   GQA  1 < G < H
 *     MQA  G = 1    all heads share one
 *
 * Models of that kind are run in this way (num_key_value_heads; x --W_k--> keys, rotated whole, x --W_v-->
 * values). So are those with a latent, for comparison, with --cache full, full-bf16 or full-q8: each head
 * then keeps k_h,j = [ W_uk,h c_j | k_pe,j ] and v_h,j = W_uv,h c_j. --info says how much more memory that
 * is.
 *
 * Two ways. The definition is plain loops in f32: one row, one head, one key at a time. --cache full is
 * always computed by it, so that mla.c can be compared with it; other types are with MLA_PATH=definition.
 * The fast way is the attention kernel (kernels/attention.h). Its sixteen lanes are queries: one for each row
 * and head of the group. So heads that share keys read them once, and so do sixteen rows of a prompt. */
#include "engine/full.h"

#include <math.h>
#include <string.h>

#include "engine/indexer.h"
#include "engine/rope.h"
#include "engine/util.h"
#include "kernels/linear.h"

enum { PART_ROWS = FULL_PART_PAGES * TILE_ROWS };

/* ---- what goes into the cache --------------------------------------------------------------- */

/* A group's tile of keys in a page of this layer; its tile of values follows. */
static uint8_t *key_tile(const Attention *a, const Sequence *q, size_t page, size_t group) {
    const Cache *cache = a->s->cache;
    return cache_tile(q, page, a->layer) + group * (cache->tile_bytes / cache->groups);
}

static uint8_t *value_tile(const Attention *a, uint8_t *keys) {
    return keys + tile_bytes(&a->s->cache->keys);
}

/* A key [n + p] and a value [v] of one group and row i of the call. */
static void store(const Attention *a, size_t i, size_t group, const float *key, const float *value) {
    const Row *row = &a->s->rows[i];
    const Cache *cache = a->s->cache;
    uint8_t *keys = key_tile(a, row->sequence, row->place / TILE_ROWS, group);
    a->m->ops->tile_store(&cache->keys, keys, row->place % TILE_ROWS, key, NULL);
    a->m->ops->tile_store(&cache->values, value_tile(a, keys), row->place % TILE_ROWS, value, NULL);
}

/* Whether keys and queries are rotated by hadamard(), after rope: below 8 bits. Their products stay the same.
 * (Values are rotated in the file: exporter/plan.py.) */
static bool spreads(const Attention *a) { return a->s->cache->keys.type > TILE_Q8; }

static void spread_queries(const Attention *a) {
    size_t from, to;
    share(a->t, a->cfg->num_attention_heads, &from, &to); /* as rotate_queries() does */
    for (size_t h = from; h < to && spreads(a); h++)
        for (size_t i = 0; i < a->s->row_count; i++)
            hadamard(query_of(a, i, h), a->s->cache->keys.d1);
}

void full_project(const Attention *a) {
    State *s = a->s;
    size_t G = a->cfg->num_key_value_heads, p = a->cfg->qk_rope_head_dim, v = a->cfg->v_head_dim, from, to;
    float *values = s->attention.kv + round_up(G * p, PANEL);
    linear(a->m->ops, s->attention.q, s->attention.q_stride, &a->L->q, &s->normed, a->t);
    linear(a->m->ops, s->attention.kv, s->attention.kv_stride, &a->L->k, &s->normed, a->t);
    linear(a->m->ops, values, s->attention.kv_stride, &a->L->v, &s->normed, a->t);
    sync_threads(a->t);
    share(a->t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        for (size_t g = 0; g < G; g++) {
            float *key = s->attention.kv + i * s->attention.kv_stride + g * p;
            rope(key, s->attention.cosine + i * (p / 2), s->attention.sine + i * (p / 2), p / 2);
            if (spreads(a))
                hadamard(key, p);
            store(a, i, g, key, values + i * s->attention.kv_stride + g * v);
        }
    }
}

/* CACHE_FULL..: keys and values of one head, computed from the call's latents. */
static void expand_rows(const Attention *a, size_t head) {
    State *s = a->s;
    size_t nope = a->cfg->qk_nope_head_dim, p = a->cfg->qk_rope_head_dim, r = a->cfg->kv_lora_rank;
    size_t stride = round_up(nope, PANEL) + p;
    head_matmul(a, a->z->a, stride, &a->L->w_uk, head, &s->decompressed.latents);
    head_matmul(a, a->z->b, s->attention.v_stride, &a->L->w_uv, head, &s->decompressed.latents);
    for (size_t i = 0; i < s->row_count; i++) {
        float *key = a->z->a + i * stride;
        memcpy(key + nope, s->attention.kv + i * s->attention.kv_stride + r, p * sizeof *key);
        store(a, i, head, key, a->z->b + i * s->attention.v_stride);
    }
}

static void store_latents(const Attention *a) {
    State *s = a->s;
    size_t from, to;
    share(a->t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++)
        a->m->ops->store_row(&s->decompressed.latents, i, 0, s->attention.kv + i * s->attention.kv_stride,
                             a->cfg->kv_lora_rank);
    sync_threads(a->t);
    share(a->t, a->cfg->num_attention_heads, &from, &to);
    for (size_t h = from; h < to; h++)
        expand_rows(a, h);
}

/* ---- the definition ------------------------------------------------------------------------- */

/* Row `row` of a tile of keys or of values as f32: where it lies, or in `buffer`. */
static const float *row_of(const Attention *a, const TileShape *shape, const uint8_t *tile, size_t row,
                           float *buffer) {
    if (shape->type == TILE_F32)
        return (const float *)(const void *)tile + row * shape->d1;
    a->m->ops->tile_load(shape, tile, row, buffer, NULL);
    return buffer;
}

/* out [v] = the attention of row i and one head, a page at a time: an online softmax. */
static void attend_plainly(const Attention *a, size_t i, size_t head, float *out) {
    const Row *row = &a->s->rows[i];
    const Cache *cache = a->s->cache;
    const Kernels *ops = a->m->ops;
    size_t v = cache->values.d1, group = head / (a->cfg->num_attention_heads / cache->groups);
    const float *q = query_of(a, i, head);
    float max = -INFINITY, sum = 0;
    memset(out, 0, v * sizeof *out);

    for (size_t begin = 0; begin <= row->place; begin += TILE_ROWS) {
        size_t rows = min(row->place + 1 - begin, TILE_ROWS);
        uint8_t *keys = key_tile(a, row->sequence, begin / TILE_ROWS, group), *values = value_tile(a, keys);
        float score[TILE_ROWS + 1], top = max;
        for (size_t j = 0; j < rows; j++) {
            bool hidden = a->s->sparse.active && !attends_to(a->s, i, begin + j);
            const float *key = row_of(a, &cache->keys, keys, j, a->z->b);
            score[j] = hidden ? -INFINITY : a->cfg->softmax_scale * ops->dot(q, key, cache->keys.d1);
            top = fmaxf(top, score[j]);
        }
        /* the sums so far were made with the old maximum: they are multiplied by exp(max - top) */
        score[rows] = max;
        ops->exp_minus(score, rows + 1, top);
        sum *= score[rows];
        for (size_t d = 0; d < v; d++)
            out[d] *= score[rows];
        for (size_t j = 0; j < rows; j++) {
            sum += score[j];
            ops->axpy(out, score[j], row_of(a, &cache->values, values, j, a->z->b), v);
        }
        max = top;
    }
    for (size_t d = 0; d < v; d++)
        out[d] /= sum;
}

static void attend_all_plainly(const Attention *a) {
    size_t H = a->cfg->num_attention_heads, task;
    while ((task = next_task(a->t, a->s->row_count * H)) < a->s->row_count * H) {
        attend_plainly(a, task / H, task % H, a->z->a);
        store_head(a, task / H, task % H, a->z->a);
    }
}

/* ---- sixteen queries at a time -------------------------------------------------------------- */

size_t full_sixteens(const Config *cfg, size_t rows) {
    /* the most: each row is a run of its own, and all heads are one group */
    return rows * div_up(cfg->num_attention_heads, LANES);
}

/* Heads of a group. */
static size_t group_heads(const Attention *a) { return a->cfg->num_attention_heads / a->s->cache->groups; }

/* The sixteens of the call; those of one run follow one another. */
static void list_sixteens(const Attention *a) {
    State *s = a->s;
    size_t count = 0;
    for (size_t row = 0; row < s->row_count;) {
        Run run = {.first = row, .sequence = s->rows[row].sequence};
        for (; row < s->row_count && s->rows[row].sequence == run.sequence; row++)
            run.count++;
        run.context = (size_t)s->rows[row - 1].place + 1;
        size_t queries = run.count * group_heads(a);
        for (size_t first = 0; first < queries; first += LANES)
            s->full.sixteens[count++] = (Sixteen){run, first, min(queries - first, LANES)};
    }
    s->full.sixteen_count = count;
}

static size_t row_of_lane(const Attention *a, const Sixteen *x, size_t lane) {
    return x->run.first + (x->first + lane) / group_heads(a);
}

static size_t head_of_lane(const Attention *a, const Sixteen *x, size_t group, size_t lane) {
    return group * group_heads(a) + (x->first + lane) % group_heads(a);
}

/* How many rows the last lane attends to; the others attend to no more. */
static size_t context_of(const Attention *a, const Sixteen *x) {
    return (size_t)a->s->rows[row_of_lane(a, x, x->lanes - 1)].place + 1;
}

static size_t parts_of(const Attention *a, const Sixteen *x) { return div_up(context_of(a, x), PART_ROWS); }

static void pack_lanes(const Attention *a, const Sixteen *x, size_t group) {
    const float *query[LANES] = {NULL};
    for (size_t lane = 0; lane < x->lanes; lane++)
        query[lane] = query_of(a, row_of_lane(a, x, lane), head_of_lane(a, x, group, lane));
    a->m->ops->pack_query(&a->s->cache->keys, a->z->query, query, NULL);
}

/* Sixteen queries attend to one part of their context. */
static void attend_part(const Attention *a, const Sixteen *x, size_t group, size_t part, Softmax *softmax) {
    const State *s = a->s;
    const Cache *cache = s->cache;
    size_t end = min((part + 1) * PART_ROWS, context_of(a, x));
    pack_lanes(a, x, group);
    softmax_begin(softmax);
    for (size_t begin = part * PART_ROWS; begin < end; begin += TILE_ROWS) {
        size_t rows = min(end - begin, TILE_ROWS);
        uint8_t *keys = key_tile(a, x->run.sequence, begin / TILE_ROWS, group);
        int32_t limit[LANES] = {0};
        uint16_t mask[TILE_ROWS] = {0};
        for (size_t lane = 0; lane < x->lanes; lane++) {
            size_t i = row_of_lane(a, x, lane), context = (size_t)s->rows[i].place + 1;
            limit[lane] = (int32_t)min(context - min(begin, context), rows);
            if (s->sparse.active && limit[lane])
                add_to_mask(s, i, begin / TILE_ROWS, lane, mask);
        }
        a->m->ops->attend(&cache->keys, a->z->query, keys, &cache->values, value_tile(a, keys), rows, limit,
                          s->sparse.active ? mask : NULL, a->cfg->softmax_scale, softmax, a->z->attend);
    }
}

/* The parts of a sixteen are merged in order, and its lanes' outputs stored. */
static void finish_lanes(const Attention *a, const Sixteen *x, size_t group, Softmax *parts) {
    size_t v = a->cfg->v_head_dim, stride = a->s->attention.v_stride;
    for (size_t part = 1; part < parts_of(a, x); part++)
        a->m->ops->softmax_merge(&parts[0], &parts[part], v);
    a->m->ops->softmax_finish(a->z->a, stride, &parts[0], v, x->lanes);
    for (size_t lane = 0; lane < x->lanes; lane++)
        store_head(a, row_of_lane(a, x, lane), head_of_lane(a, x, group, lane), a->z->a + lane * stride);
}

/* All sixteens of all groups, as many at a time as there are places for their parts. Tasks that follow one
 * another read the same part of the same group's cache. */
static void attend_all(const Attention *a) {
    State *s = a->s;
    size_t count = s->full.sixteen_count, items = count * s->cache->groups, most_parts = 1, task, from, to;
    for (size_t i = 0; i < count; i++)
        most_parts = max(most_parts, parts_of(a, &s->full.sixteens[i]));
    size_t most = s->full.part_count / most_parts;
    for (size_t first = 0; first < items; first += most) {
        size_t here = min(items - first, most);
        while ((task = next_task(a->t, here * most_parts)) < here * most_parts) {
            size_t item = task % here, part = task / here;
            const Sixteen *x = &s->full.sixteens[(first + item) % count];
            if (part < parts_of(a, x))
                attend_part(a, x, (first + item) / count, part, &s->full.parts[item * most_parts + part]);
        }
        sync_threads(a->t);
        share(a->t, here, &from, &to);
        for (size_t item = from; item < to; item++)
            finish_lanes(a, &s->full.sixteens[(first + item) % count], (first + item) / count,
                         &s->full.parts[item * most_parts]);
        sync_threads(a->t);
    }
}

void full_attention(const Attention *a) {
    if (a->cfg->kv_lora_rank)
        store_latents(a);
    spread_queries(a);
    if (a->t->id == 0)
        list_sixteens(a);
    sync_threads(a->t);
    if (a->s->cache->type == CACHE_FULL || a->s->forced_path == PATH_DEFINITION)
        attend_all_plainly(a);
    else
        attend_all(a);
}
