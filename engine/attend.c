/* engine/attend.c: the loops around the attention kernel (attend.h says what each function gives). */
#include "engine/attend.h"

#include <math.h>
#include <string.h>

#include "engine/indexer.h"
#include "engine/rope.h"
#include "engine/util.h"

Attention attention_open(const Model *m, State *s, size_t layer, Thread *t) {
    return (Attention){.m = m,
                       .cfg = &m->config,
                       .L = &m->layers[layer],
                       .s = s,
                       .layer = m->layers[layer].tile,
                       .t = t,
                       .z = &s->scratch[t->id]};
}

/* ---- one head's numbers --------------------------------------------------------------------- */

float *query_of(const Attention *a, size_t i, size_t head) {
    size_t width = (size_t)a->cfg->qk_nope_head_dim + a->cfg->qk_rope_head_dim;
    return a->s->attention.q + i * a->s->attention.q_stride + head * width;
}

void rotate_queries(const Attention *a) {
    const Config *cfg = a->cfg;
    const State *s = a->s;
    size_t nope = cfg->qk_nope_head_dim, pairs = cfg->qk_rope_head_dim / 2, from, to;
    share(a->t, cfg->num_attention_heads, &from, &to);
    for (size_t h = from; h < to; h++) {
        for (size_t i = 0; i < s->row_count; i++) {
            float *q = query_of(a, i, h);
            rope(q + nope, s->attention.cosine + i * pairs, s->attention.sine + i * pairs, pairs);
            if (a->m->query_scale) {
                float scale = a->m->query_scale[s->rows[i].position / cfg->query_scale_span];
                for (size_t d = 0; d < nope + 2 * pairs; d++)
                    q[d] *= scale;
            }
        }
    }
}

void head_matmul(const Attention *a, float *y, size_t ldy, const Matrix *w, size_t head,
                 const Activations *x) {
    Matrix one = head_matrix(w, head);
    a->m->ops->matmul(y, ldy, &one, 0, matrix_panels(&one), x);
}

void store_head(const Attention *a, size_t i, size_t head, float *out) {
    size_t v = a->cfg->v_head_dim, stride = a->s->attention.v_stride;
    memset(out + v, 0, (stride - v) * sizeof *out);
    for (size_t d = 0; a->L->head_gate.data && d < v; d++)
        out[d] *= a->s->attention.gate[i * a->s->attention.gate_stride + head];
    a->m->ops->store_row(&a->s->attention.heads, i, head * stride, out, stride);
}

/* Two levels of it: numbers that are n apart, then 2 n apart, become sum and difference. */
static void two_levels(float *restrict a, float *restrict b, float *restrict c, float *restrict d, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float sum = a[i] + b[i], difference = a[i] - b[i], sum2 = c[i] + d[i], difference2 = c[i] - d[i];
        a[i] = sum + sum2;
        b[i] = difference + difference2;
        c[i] = sum - sum2;
        d[i] = difference - difference2;
    }
}

void hadamard(float *x, size_t n) {
    size_t block = n & -n, half = 1;
    for (; 4 * half <= block; half *= 4)
        for (float *at = x; at < x + n; at += 4 * half)
            two_levels(at, at + half, at + 2 * half, at + 3 * half, half);
    for (size_t first = 0; half < block && first < n; first += 2 * half) {
        for (size_t i = first; i < first + half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a + b;
            x[i + half] = a - b;
        }
    }
    float scale = 1 / sqrtf((float)block);
    for (size_t i = 0; i < n; i++)
        x[i] *= scale;
}

void softmax_begin(Softmax *softmax) {
    for (int lane = 0; lane < LANES; lane++) {
        softmax->max[lane] = -INFINITY;
        softmax->sum[lane] = 0;
    }
}

/* ---- absorbed ------------------------------------------------------------------------------- */

static size_t head_groups(const Attention *a) { return div_up(a->cfg->num_attention_heads, LANES); }

/* Some of the absorbed rows, as many as there are places for their parts. The work is a list of tasks: of
 * each row, of each sixteen heads, each part. */
typedef struct {
    size_t first, count; /* in State.absorbed.row */
    size_t parts;        /* of the longest context */
} AbsorbedRows;

/* What one task is about. Lane row * heads + head is a head of one of its rows. */
typedef struct {
    size_t k, rows; /* absorbed rows k .. k + rows - 1 */
    size_t group;   /* their heads 16 group .. 16 group + 15; the last group may have fewer */
    size_t part;
} AbsorbedTask;

static size_t heads_of(const Attention *a, const AbsorbedTask *task) {
    return min(a->cfg->num_attention_heads - task->group * LANES, LANES);
}

/* Parts of the context of absorbed row k. */
static size_t parts_of_row(const Attention *a, size_t k) {
    return part_count(rows_attended(a->s, a->s->absorbed.row[k]));
}

static AbsorbedTask task_at(const Attention *a, const AbsorbedRows *rows, size_t index, size_t parts) {
    return (AbsorbedTask){.k = rows->first + index / parts / head_groups(a),
                          .rows = 1,
                          .group = index / parts % head_groups(a),
                          .part = index % parts};
}

/* Packs the task's queries: the lanes of a vector. */
static void pack_heads(const Attention *a, const AbsorbedTask *task) {
    const State *s = a->s;
    const float *latent[LANES] = {NULL}, *rotated[LANES] = {NULL};
    size_t H = a->cfg->num_attention_heads, heads = heads_of(a, task);
    for (size_t lane = 0; lane < task->rows * heads; lane++) {
        size_t k = task->k + lane / heads, h = task->group * LANES + lane % heads;
        latent[lane] = s->absorbed.q_latent + (k * H + h) * s->absorbed.r_stride;
        rotated[lane] = query_of(a, s->absorbed.row[k], h) + a->cfg->qk_nope_head_dim;
    }
    a->m->ops->pack_query(&s->cache->shape, a->z->query, latent, rotated);
}

/* The last tile of a part of absorbed row k's context, NULL where it has fewer parts. Sequences share pages
 * from their beginning on: a part with the same last tile is the same part. */
static const uint8_t *end_of_part(const Attention *a, size_t k, size_t part) {
    size_t i = a->s->absorbed.row[k], rows = rows_attended(a->s, i), parts = part_count(rows);
    return part < parts
               ? cache_tile(a->s->rows[i].sequence, cache_tiles(rows) * (part + 1) / parts - 1, a->layer)
               : NULL;
}

/* The heads of absorbed row k attend to one part of its context, and with them those of the task's other
 * rows that share it; lanes of the rest attend to nothing. Keys and values are the same latents. selected:
 * copies of the rows that k attends to, where attention is sparse. */
static void attend_part(const Attention *a, const AbsorbedTask *task, size_t k, const uint8_t *selected,
                        Softmax *softmax) {
    const State *s = a->s;
    const Row *row = &s->rows[s->absorbed.row[k]];
    const TileShape *shape = &s->cache->shape;
    const uint8_t *end = end_of_part(a, k, task->part);
    size_t heads = heads_of(a, task), context = rows_attended(s, s->absorbed.row[k]);
    size_t context_of[LANES] = {0}; /* of each of the task's rows; 0: the part is another one */
    for (size_t n = 0; n < task->rows; n++)
        if (end_of_part(a, task->k + n, task->part) == end)
            context_of[n] = rows_attended(s, s->absorbed.row[task->k + n]);
    size_t tiles = cache_tiles(context), parts = part_count(context);
    softmax_begin(softmax);
    for (size_t j = tiles * task->part / parts; j < tiles * (task->part + 1) / parts; j++) {
        int32_t limit
            [LANES]; /* an empty lane has the last row's: a smaller one would make the kernel mask rows */
        for (size_t lane = 0; lane < LANES; lane++) {
            size_t all = context_of[min(lane / heads, task->rows - 1)];
            limit[lane] = (int32_t)min(all - min(all, j * TILE_ROWS), TILE_ROWS);
        }
        const uint8_t *tile =
            s->sparse.active ? selected + j * s->cache->tile_bytes : cache_tile(row->sequence, j, a->layer);
        a->m->ops->attend(shape, a->z->query, tile, shape, tile, TILE_ROWS, limit, NULL,
                          a->cfg->softmax_scale, softmax, a->z->attend);
    }
}

static void attend_parts(const Attention *a, const AbsorbedRows *rows) {
    size_t from, to, packed = SIZE_MAX;
    share(a->t, rows->count * head_groups(a) * rows->parts, &from, &to);
    for (size_t index = from; index < to; index++) {
        AbsorbedTask task = task_at(a, rows, index, rows->parts);
        if (task.part >= parts_of_row(a, task.k))
            continue;
        if (packed != index / rows->parts) /* every part has the same queries */
            pack_heads(a, &task);
        packed = index / rows->parts;
        attend_part(a, &task, task.k, selected_tiles(a->s, task.k - rows->first),
                    &a->s->absorbed.parts[index]);
    }
}

/* The parts of each context are merged in order. Threads share the latent's dimensions, sixteen at a time:
 * the `part` of a task is such a slice. Maximum and sum are small: each slice merges its own copy of them. */
static void merge_parts(const Attention *a, const AbsorbedRows *rows) {
    State *s = a->s;
    size_t H = a->cfg->num_attention_heads, r = a->cfg->kv_lora_rank, slices = div_up(r, 16), from, to;
    share(a->t, rows->count * head_groups(a) * slices, &from, &to);
    for (size_t index = from; index < to; index++) {
        AbsorbedTask task = task_at(a, rows, index, slices);
        size_t d = task.part * 16, width = min(r - d, 16), h = task.group * LANES;
        Softmax *parts = &s->absorbed.parts[index / slices * rows->parts], all = parts[0];
        all.out += d * LANES;
        for (size_t part = 1; part < parts_of_row(a, task.k); part++) {
            Softmax next = parts[part];
            next.out += d * LANES;
            a->m->ops->softmax_merge(&all, &next, width);
        }
        a->m->ops->softmax_finish(s->absorbed.q_latent + (task.k * H + h) * s->absorbed.r_stride + d,
                                  s->absorbed.r_stride, &all, width, heads_of(a, &task));
    }
}

/* The heads of a task's rows attend to all parts of their contexts, which are merged in order. In lanes that
 * do not attend to a part merging changes nothing, whatever numbers the others have. */
static void attend_all_parts(const Attention *a, AbsorbedTask *task, const uint8_t *selected) {
    State *s = a->s;
    Softmax *all = &s->absorbed.parts[2 * a->t->id], *next = all + 1;
    size_t H = a->cfg->num_attention_heads, r = a->cfg->kv_lora_rank, stride = s->absorbed.r_stride;
    size_t heads = heads_of(a, task), end = task->k + task->rows, parts = 0;
    for (size_t k = task->k; k < end; k++)
        parts = max(parts, parts_of_row(a, k));
    pack_heads(a, task);
    bool first = true;
    for (task->part = 0; task->part < parts; task->part++) {
        for (size_t k = task->k; k < end; k++) {
            const uint8_t *end_of_k = end_of_part(a, k, task->part);
            size_t other = task->k;
            while (other < k && end_of_part(a, other, task->part) != end_of_k)
                other++;
            if (!end_of_k || other < k)
                continue; /* no such part, or done with the other row */
            attend_part(a, task, k, selected, first ? all : next);
            if (!first)
                a->m->ops->softmax_merge(all, next, r);
            first = false;
        }
    }
    float *out = s->absorbed.q_latent + (task->k * H + task->group * LANES) * stride;
    a->m->ops->softmax_finish(task->rows > 1 ? a->z->a : out, stride, all, r, task->rows * heads);
    for (size_t row = 0; task->rows > 1 && row < task->rows; row++)
        memcpy(out + row * H * stride, a->z->a + row * heads * stride, heads * stride * sizeof *out);
}

/* Of `most` absorbed rows from k on, the first few that may be one task: they share the beginning of their
 * contexts, and a part that two of them have is the same place in both. */
static size_t rows_together(const Attention *a, size_t k, size_t most) {
    const State *s = a->s;
    const uint8_t *tile = cache_tile(s->rows[s->absorbed.row[k]].sequence, 0, a->layer);
    size_t tiles = cache_tiles(rows_attended(s, s->absorbed.row[k])), n = 1;
    for (; n < most; n++) {
        size_t i = s->absorbed.row[k + n], others = cache_tiles(rows_attended(s, i));
        bool same_parts = others == tiles || max(others, tiles) <= USUAL_PARTS; /* a part is a tile */
        if (!same_parts || cache_tile(s->rows[i].sequence, 0, a->layer) != tile)
            break;
    }
    return n;
}

/* All heads of `count` absorbed rows from `first` on, by one thread. The last group of heads may leave lanes
 * empty: there further rows take part. */
static void attend_rows(const Attention *a, size_t first, size_t count) {
    State *s = a->s;
    uint8_t *selected = selected_tiles(s, (size_t)a->t->id);
    size_t full = a->cfg->num_attention_heads / LANES, groups = head_groups(a);
    for (size_t k = first; k < first + count; k++) {
        if (s->sparse.active)
            select_row(a->m, s, a->layer, s->absorbed.row[k], selected);
        for (size_t group = 0; group < (count > 1 ? full : groups); group++)
            attend_all_parts(a, &(AbsorbedTask){.k = k, .rows = 1, .group = group}, selected);
    }
    for (size_t k = first, n; count > 1 && k < first + count; k += n) {
        n = rows_together(a, k, first + count - k);
        attend_all_parts(a, &(AbsorbedTask){.k = k, .rows = n, .group = full}, NULL);
    }
}

/* How many rows attend_rows takes: those that fill the lanes of the last group of heads, but no more than
 * leaves two tasks for each thread. */
static size_t rows_of_task(const Attention *a) {
    size_t rest = a->cfg->num_attention_heads % LANES;
    if (!rest || a->s->sparse.active)
        return 1;
    return min(LANES / rest, a->s->absorbed.count / (2 * (size_t)a->t->threads));
}

/* With so many rows for each thread none of them waits long for another's last row. */
enum { ROWS_OF_THREAD = 4 };

void attend_latents(const Attention *a) {
    const State *s = a->s;
    if (s->absorbed.count >= ROWS_OF_THREAD * (size_t)a->t->threads) {
        size_t n = rows_of_task(a), tasks = div_up(s->absorbed.count, n);
        for (size_t k; (k = next_task(a->t, tasks)) < tasks;)
            attend_rows(a, k * n, min(s->absorbed.count - k * n, n));
        sync_threads(a->t);
        return;
    }
    AbsorbedRows rows = {.parts = 0};
    for (size_t k = 0; k < s->absorbed.count; k++)
        rows.parts = max(rows.parts, part_count(rows_attended(s, s->absorbed.row[k])));
    size_t most = s->absorbed.part_count / (head_groups(a) * rows.parts);
    for (rows.first = 0; rows.first < s->absorbed.count; rows.first += most) {
        rows.count = min(s->absorbed.count - rows.first, most);
        if (s->sparse.active)
            select_latents(a->m, a->s, a->layer, rows.first, rows.count, a->t);
        attend_parts(a, &rows);
        sync_threads(a->t);
        merge_parts(a, &rows);
        sync_threads(a->t);
    }
}

/* ---- decompressed --------------------------------------------------------------------------- */

Run next_run(const State *s, size_t first) {
    while (first < s->row_count && s->rows[first].path != PATH_DECOMPRESSED)
        first++;
    if (first == s->row_count)
        return (Run){.first = first};
    Run run = {.first = first, .count = 1, .sequence = s->rows[first].sequence};
    for (size_t i = first + 1; i < s->row_count; i++, run.count++)
        if (s->rows[i].path != PATH_DECOMPRESSED || s->rows[i].sequence != run.sequence)
            break;
    run.context = (size_t)s->rows[first + run.count - 1].place + 1;
    return run;
}

Span span_of(const Run *run, size_t page) {
    return (Span){page, min(cache_tiles(run->context) - page, SPAN_ROWS / TILE_ROWS)};
}

size_t span_page_rows(const Run *run, const Span *span, size_t k) {
    return min(run->context - (span->page + k) * TILE_ROWS, TILE_ROWS);
}

/* The run's rows are taken sixteen at a time: with one head their queries are a query group. Sparse
 * attention: bit i of the mask of a cached row of page k: row i of the group attends to it. */
static uint16_t *lane_mask(const Attention *a, size_t query_group, size_t k) {
    return a->s->sparse.lane_mask + query_group * SPAN_ROWS + k * TILE_ROWS;
}

/* Whether any row of the group attends to page k. */
static bool *query_group_needs(const Attention *a, size_t query_group, size_t k) {
    return a->s->sparse.needed + query_group * (SPAN_ROWS / TILE_ROWS) + k;
}

static bool any_bit(const uint16_t *mask, size_t n) {
    uint16_t any = 0;
    for (size_t j = 0; j < n; j++)
        any |= mask[j];
    return any;
}

/* Masks of page k of the span, for each query group. */
static void mask_page(const Attention *a, const Run *run, size_t page, size_t k) {
    for (size_t i = 0; i < run->count; i += LANES) {
        uint16_t *mask = lane_mask(a, i / LANES, k);
        memset(mask, 0, TILE_ROWS * sizeof *mask);
        for (size_t lane = 0; lane < min(run->count - i, LANES); lane++)
            add_to_mask(a->s, run->first + i + lane, page, lane, mask);
        *query_group_needs(a, i / LANES, k) = any_bit(mask, TILE_ROWS);
    }
}

void read_span(const Attention *a, const Run *run, const Span *span) {
    State *s = a->s;
    size_t k;
    while ((k = next_task(a->t, span->pages)) < span->pages) {
        size_t rows = span_page_rows(run, span, k), p = a->cfg->qk_rope_head_dim;
        const uint8_t *tile = cache_tile(run->sequence, span->page + k, a->layer);
        Activations latents = page_latents(a, k, rows);
        a->m->ops->tile_activations(&s->cache->shape, tile, &latents);
        for (size_t j = 0; j < rows; j++)
            a->m->ops->tile_load(&s->cache->shape, tile, j, NULL,
                                 s->decompressed.rope_keys + (k * TILE_ROWS + j) * p);
        if (s->sparse.active)
            mask_page(a, run, span->page + k, k);
    }
}

Activations page_latents(const Attention *a, size_t k, size_t rows) {
    const Activations *latents = &a->s->decompressed.latents;
    return activations_view(latents, k * TILE_ROWS * latents->stride, rows, latents->cols);
}

const float *page_rope_keys(const Attention *a, size_t k) {
    return a->s->decompressed.rope_keys + k * TILE_ROWS * a->cfg->qk_rope_head_dim;
}

static uint32_t decompressed_type(const Attention *a) {
    CacheType type = a->s->cache->type;
    return type == CACHE_F32 || type == CACHE_BF16 ? TILE_F32 : TILE_Q8;
}

TileShape key_shape(const Attention *a) {
    return (TileShape){decompressed_type(a), a->cfg->qk_nope_head_dim, a->cfg->qk_rope_head_dim};
}

TileShape value_shape(const Attention *a) { return (TileShape){decompressed_type(a), a->cfg->v_head_dim, 0}; }

/* Where the queries and sums of a query group are kept. */
static size_t place_of(const Attention *a, size_t head, size_t query_group) {
    return head * div_up(a->s->chunk, LANES) + query_group;
}

void begin_queries(const Attention *a, const Run *run, size_t head) {
    TileShape keys = key_shape(a);
    for (size_t i = 0; i < run->count; i += LANES) {
        const float *nope[LANES], *rotated[LANES];
        size_t place = place_of(a, head, i / LANES);
        for (size_t lane = 0; lane < LANES; lane++) {
            nope[lane] = i + lane < run->count ? query_of(a, run->first + i + lane, head) : NULL;
            rotated[lane] = i + lane < run->count ? nope[lane] + a->cfg->qk_nope_head_dim : NULL;
        }
        softmax_begin(&a->s->decompressed.softmax[place]);
        a->m->ops->pack_query(&keys, a->s->decompressed.queries + place * query_bytes(&keys), nope, rotated);
    }
}

bool page_is_needed(const Attention *a, const Run *run, size_t k) {
    if (!a->s->sparse.active)
        return true; /* the last row attends to every page */
    for (size_t i = 0; i < run->count; i += LANES)
        if (*query_group_needs(a, i / LANES, k))
            return true;
    return false;
}

/* limit[lane] = how many of the `rows` cached rows from number `begin` on a row may attend to: those at or
 * before its own place. False: no row of the query group any. */
static bool causal_limits(const Attention *a, const Run *run, size_t i, size_t begin, size_t rows,
                          int32_t limit[LANES]) {
    bool any = false;
    for (size_t lane = 0; lane < LANES; lane++) {
        size_t end = i + lane < run->count ? (size_t)a->s->rows[run->first + i + lane].place + 1 : 0;
        size_t below = end - min(begin, end);
        limit[lane] = (int32_t)min(below, rows);
        any |= below > 0;
    }
    return any;
}

void attend_page(const Attention *a, const Run *run, const Span *span, size_t head, size_t k) {
    State *s = a->s;
    TileShape keys = key_shape(a), values = value_shape(a);
    size_t rows = span_page_rows(run, span, k);
    for (size_t i = 0; i < run->count; i += LANES) {
        const uint16_t *mask = s->sparse.active ? lane_mask(a, i / LANES, k) : NULL;
        size_t place = place_of(a, head, i / LANES);
        int32_t limit[LANES];
        if (!causal_limits(a, run, i, (span->page + k) * TILE_ROWS, rows, limit) ||
            (mask && !*query_group_needs(a, i / LANES, k)))
            continue;
        a->m->ops->attend(&keys, s->decompressed.queries + place * query_bytes(&keys), a->z->keys, &values,
                          a->z->values, rows, limit, mask, a->cfg->softmax_scale,
                          &s->decompressed.softmax[place], a->z->attend);
    }
}

void finish_queries(const Attention *a, const Run *run, size_t head) {
    size_t stride = a->s->attention.v_stride;
    for (size_t i = 0; i < run->count; i += LANES) {
        size_t lanes = min(run->count - i, LANES);
        a->m->ops->softmax_finish(a->z->a, stride, &a->s->decompressed.softmax[place_of(a, head, i / LANES)],
                                  a->cfg->v_head_dim, lanes);
        for (size_t lane = 0; lane < lanes; lane++)
            store_head(a, run->first + i + lane, head, a->z->a + lane * stride);
    }
}
