/* mla.c: Multi-head Latent Attention, the idea this program exists for.
 *
 * Ordinary attention caches a key and a value for every head: H * (n + p + v) numbers a token and layer.
 * MLA caches one row
 *
 *     [ c | kpe ]     c = RMSNorm((W_kva x)[0 .. r))       the latent, r numbers
 *                     kpe = rope((W_kva x)[r .. r + p))    one rotated key
 *
 * for all heads together. Keys and values are linear in the latent, k_h = [ W_uk,h c | kpe ] and v_h =
 * W_uv,h c, so there are two ways to attend to the same cache:
 *
 *   absorbed       q . k = (q_nope . W_uk c) + (q_rope . kpe) = (W_uk^T q_nope) . c + q_rope . kpe, and
 *                  sum_j a_j v_j = W_uv (sum_j a_j c_j).
 *                  The query moves into the latent space, the heads attend to the rows as they are, and
 *                    the values are expanded once at the end.
 *                  A row is read once for sixteen heads, the lanes of a vector: a small matrix product.
 *                    For one or a few new rows.
 *   decompressed   Expand K and V of the cached rows, page by page, use them for many queries, forget
 *                  them. Fewer multiplications per query
 *                  (n + p + v instead of 2 r + p), paid for by the expansion. For many new rows.
 *
 * The position has a key part of its own because a rotation between W_uk and the query would depend on
 * both positions and could not be absorbed.
 *
 * Where attention is sparse (engine/indexer.c chooses), the absorbed form attends to the chosen rows,
 * copied together; the decompressed form, whose sixteen queries chose differently, to all rows under a
 * mask.
 *
 * The third, CACHE_FULL, keeps every head's keys and values as attention without MLA does. It costs what
 * MLA saves, and both others are tested against it.
 *
 * Nothing here knows files, tokens or families. The loops inside are kernels/attention.h and
 * kernels/matmul.h. A function that takes a Thread is run by all threads of the team at once
 * (kernels/team.h); sync_threads() separates steps that read what others wrote. Formulas: DeepSeek-V2,
 * arXiv 2405.04434, section 2.1 and appendix C. */
#include "mla.h"

#include <math.h>
#include <string.h>

#include "engine/indexer.h"
#include "engine/rope.h"
#include "kernels/linear.h"

/* ---- the cache ------------------------------------------------------------------------------ */

TileShape cache_shape(const Config *c, CacheType type) {
    static const uint32_t tile_type[] = {
        [CACHE_F32] = TILE_F32, [CACHE_BF16] = TILE_BF16, [CACHE_Q8] = TILE_Q8,
        [CACHE_Q6] = TILE_Q6,   [CACHE_Q4] = TILE_Q4,     [CACHE_FULL] = TILE_F32};
    return (TileShape){tile_type[type], c->kv_lora_rank, c->qk_rope_head_dim};
}

TileShape cache_index_shape(const Config *c, CacheType type) {
    return (TileShape){type == CACHE_F32 || type == CACHE_FULL ? TILE_F32 : TILE_BF16, c->index_head_dim, 0};
}

size_t cache_row_bytes(const Config *c, CacheType type) {
    TileShape shape = cache_shape(c, type);
    if (type == CACHE_FULL)
        return (size_t)c->num_attention_heads * (c->qk_nope_head_dim + c->qk_rope_head_dim + c->v_head_dim) *
               sizeof(float);
    return tile_bytes(&shape) / TILE_ROWS;
}

size_t cache_token_bytes(const Config *c, CacheType type, uint32_t layers) {
    TileShape keys = cache_index_shape(c, type);
    size_t bytes = layers * cache_row_bytes(c, type);
    for (uint32_t l = 0; l < layers; l++)
        bytes += layer_has_indexer(c, l) ? tile_bytes(&keys) / TILE_ROWS : 0;
    return bytes;
}

uint8_t *cache_page(const Cache *c, uint32_t sequence, size_t page) {
    return c->pool + c->page[sequence][page] * c->page_bytes;
}

uint8_t *cache_tile(const Cache *c, uint32_t sequence, size_t page, size_t layer) {
    return cache_page(c, sequence, page) + layer * c->tile_bytes;
}

void cache_extend(Cache *c, uint32_t sequence, size_t rows) {
    while (c->page_count[sequence] * TILE_ROWS < rows)
        c->page[sequence][c->page_count[sequence]++] = (uint32_t)c->free_page++;
}

/* CACHE_FULL: in a layer's page, head after head, a tile of keys [128][n + p] and a tile of values
 * [128][v]. */
static float *full_keys(const Config *c, uint8_t *tile, size_t head) {
    size_t per_row = (size_t)c->qk_nope_head_dim + c->qk_rope_head_dim + c->v_head_dim;
    return (float *)(void *)tile + head * TILE_ROWS * per_row;
}
static float *full_values(const Config *c, float *keys) {
    return keys + (size_t)TILE_ROWS * (c->qk_nope_head_dim + c->qk_rope_head_dim);
}

/* ---- before attention: queries, latent and rotated key of the new rows ---------------------- */

/* q = W_q x, or W_qb RMSNorm(W_qa x); kv = W_kva x; then the latent normed, the key rotated, both in the
 * cache. When it returns the queries are there; the cache's rows are after the next sync_threads. */
static void project(const Model *m, State *s, size_t layer, Thread *t) {
    const Config *c = &m->config;
    const Layer *L = &m->layers[layer];
    size_t r = c->kv_lora_rank, pairs = c->qk_rope_head_dim / 2, from, to;

    if (c->q_lora_rank)
        linear(m->k, s->qa, s->qa_stride, &L->q_a, &s->normed, t);
    else
        linear(m->k, s->q, s->q_stride, &L->q, &s->normed, t);
    linear(m->k, s->kv, s->kv_stride, &L->kv_a, &s->normed, t);
    sync_threads(t);

    share(t, s->n, &from, &to);
    for (size_t i = from; i < to; i++) {
        const Row *row = &s->rows[i];
        float *latent = s->kv + i * s->kv_stride;
        m->k->rmsnorm(latent, latent, L->kv_a_norm, r, c->latent_norm_eps);
        /* the rotated key is not normed */
        rope(latent + r, s->cosine + i * pairs, s->sine + i * pairs, pairs);
        if (s->cache->type != CACHE_FULL)
            m->k->tile_put(&s->cache->shape,
                           cache_tile(s->cache, row->sequence, row->position / TILE_ROWS, layer),
                           row->position % TILE_ROWS, latent, latent + r);
        if (c->q_lora_rank) {
            float *qa = s->qa + i * s->qa_stride;
            m->k->rmsnorm(qa, qa, L->q_a_norm, c->q_lora_rank, c->latent_norm_eps);
            m->k->put(&s->qa_normed, i, 0, qa, c->q_lora_rank);
        }
    }
    if (c->q_lora_rank) {
        sync_threads(t);
        linear(m->k, s->q, s->q_stride, &L->q_b, &s->qa_normed, t);
        sync_threads(t);
    }
}

/* A head's query of one row: n numbers without position, then p rotated ones. */
static float *query_of(const Config *c, const State *s, size_t row, size_t head) {
    return s->q + row * s->q_stride + head * (c->qk_nope_head_dim + c->qk_rope_head_dim);
}

/* What a head found for row i takes its place in the input of W_o. found: [v_stride] floats, overwritten
 * past v. */
static void put_head(const Model *m, State *s, size_t i, size_t head, float *found) {
    size_t v = m->config.v_head_dim;
    memset(found + v, 0, (s->v_stride - v) * sizeof *found);
    m->k->put(&s->attended, i, head * s->v_stride, found, s->v_stride);
}

/* A head's queries learn their positions: rotated, and scaled as a whole where the model has a scale that
 * grows with the position. */
static void rope_queries(const Model *m, State *s, size_t head) {
    const Config *c = &m->config;
    size_t n = c->qk_nope_head_dim, pairs = c->qk_rope_head_dim / 2;
    for (size_t i = 0; i < s->n; i++) {
        float *q = query_of(c, s, i, head);
        rope(q + n, s->cosine + i * pairs, s->sine + i * pairs, pairs);
        float scale = m->query_scale ? m->query_scale[s->rows[i].position / c->query_scale_span] : 1;
        for (size_t d = 0; d < n + 2 * pairs && m->query_scale; d++)
            q[d] *= scale;
    }
}

/* ---- absorbed ------------------------------------------------------------------------------- */

/* The parts of a context of `rows` rows: pages are shared out evenly. */
static size_t parts_of(size_t rows) {
    size_t pages = (rows + TILE_ROWS - 1) / TILE_ROWS;
    return pages < MAX_PARTS ? pages : MAX_PARTS;
}

/* Sixteen heads of row i attend to one part of what it sees. */
static void attend_part(const Model *m, State *s, size_t layer, size_t first, size_t i, size_t part,
                        const void *query, Softmax *found, Scratch *z) {
    const Cache *cache = s->cache;
    const Row *row = &s->rows[i];
    size_t rows = rows_seen(s, i), pages = (rows + TILE_ROWS - 1) / TILE_ROWS, parts = parts_of(rows);
    for (int lane = 0; lane < LANES; lane++)
        found->max[lane] = -INFINITY, found->sum[lane] = 0;

    for (size_t page = pages * part / parts; page < pages * (part + 1) / parts; page++) {
        size_t here = rows - page * TILE_ROWS < TILE_ROWS ? rows - page * TILE_ROWS : TILE_ROWS;
        int32_t limit[LANES];
        for (int lane = 0; lane < LANES; lane++)
            limit[lane] = (int32_t)here;
        /* the values are the latents: the same tile as the keys */
        const uint8_t *tile =
            s->selects ? gathered_tile(s, i - first, page) : cache_tile(cache, row->sequence, page, layer);
        m->k->attend(&cache->shape, query, tile, &cache->shape, tile, here, limit, NULL,
                     m->config.softmax_scale, found, z->attend);
    }
}

/* Rows first .. first + count - 1: every (row, sixteen heads, part) is a task; then the parts are put
 * together in order. */
static void absorbed_rows(const Model *m, State *s, size_t layer, size_t first, size_t count,
                          size_t max_parts, Thread *t) {
    const Config *c = &m->config;
    Scratch *z = &s->scratch[t->id];
    size_t H = c->num_attention_heads, groups = (H + LANES - 1) / LANES, r = c->kv_lora_rank, from, to,
           packed = (size_t)-1;

    if (s->selects)
        gather_rows(m, s, layer, first, count, t);
    share(t, count * groups * max_parts, &from, &to);
    for (size_t task = from; task < to; task++) {
        size_t part = task % max_parts, group = task / max_parts % groups,
               i = first + task / max_parts / groups;
        if (part >= parts_of(rows_seen(s, i)))
            continue;
        if (packed != task / max_parts) { /* the same sixteen queries for every part */
            const float *latent[LANES], *rotated[LANES];
            for (size_t lane = 0, h = group * LANES; lane < LANES; lane++, h++) {
                latent[lane] = h < H ? s->q_latent + (i * H + h) * s->r_stride : NULL;
                rotated[lane] = h < H ? query_of(c, s, i, h) + c->qk_nope_head_dim : NULL;
            }
            m->k->query(&s->cache->shape, z->query, latent, rotated);
            packed = task / max_parts;
        }
        attend_part(m, s, layer, first, i, part, z->query, &s->parts[task], z);
    }
    sync_threads(t);

    /* Merging is split over the latent's dimensions, in slices of 16 numbers. Maximum and sum are small:
     * each slice merges its own copy of them. */
    size_t slices = (r + 15) / 16;
    share(t, count * groups * slices, &from, &to);
    for (size_t task = from; task < to; task++) {
        size_t slice = task % slices, group = task / slices % groups, i = first + task / slices / groups,
               at = slice * 16;
        size_t dv = r - at < 16 ? r - at : 16, lanes = H - group * LANES < LANES ? H - group * LANES : LANES;
        Softmax *parts = &s->parts[(task / slices) * max_parts], all = parts[0];
        all.out += at * LANES;
        for (size_t part = 1; part < parts_of(rows_seen(s, i)); part++) {
            Softmax next = parts[part];
            next.out += at * LANES;
            m->k->softmax_merge(&all, &next, dv);
        }
        m->k->softmax_finish(s->q_latent + (i * H + group * LANES) * s->r_stride + at, s->r_stride, &all, dv,
                             lanes);
    }
    sync_threads(t);
}

static void absorbed(const Model *m, State *s, size_t layer, Thread *t) {
    const Config *c = &m->config;
    const Layer *L = &m->layers[layer];
    Scratch *z = &s->scratch[t->id];
    size_t H = c->num_attention_heads, from, to;

    /* q_latent = W_uk^T q_nope, head by head: the queries move into the latent space */
    share(t, H, &from, &to);
    for (size_t h = from; h < to; h++) {
        rope_queries(m, s, h);
        Acts query = acts_view(&z->acts, 0, s->n, c->qk_nope_head_dim);
        for (size_t i = 0; i < s->n; i++)
            m->k->put(&query, i, 0, query_of(c, s, i, h), c->qk_nope_head_dim);
        Matrix w = head_matrix(&L->w_uk_t, h);
        m->k->matmul(s->q_latent + h * s->r_stride, H * s->r_stride, &w, 0, matrix_panels(&w), &query);
    }
    sync_threads(t);

    /* as many rows at a time as there are places for their parts */
    size_t groups = (H + LANES - 1) / LANES, max_parts = 0;
    for (size_t i = 0; i < s->n; i++) {
        size_t parts = parts_of(rows_seen(s, i));
        max_parts = parts > max_parts ? parts : max_parts;
    }
    size_t batch = s->part_count / (groups * max_parts);
    for (size_t i = 0; i < s->n; i += batch)
        absorbed_rows(m, s, layer, i, s->n - i < batch ? s->n - i : batch, max_parts, t);

    /* q_latent now holds the latents that the heads found. W_uv of them: the values are expanded once,
     * after the sum (the same heads as above) */
    for (size_t h = from; h < to; h++) {
        Acts latent = acts_view(&z->acts, 0, s->n, c->kv_lora_rank);
        for (size_t i = 0; i < s->n; i++)
            m->k->put(&latent, i, 0, s->q_latent + (i * H + h) * s->r_stride, c->kv_lora_rank);
        Matrix w = head_matrix(&L->w_uv, h);
        m->k->matmul(z->a, s->v_stride, &w, 0, matrix_panels(&w), &latent);
        for (size_t i = 0; i < s->n; i++)
            put_head(m, s, i, h, z->a + i * s->v_stride);
    }
}

/* ---- decompressed --------------------------------------------------------------------------- */

/* The tiles that decompressed keys [n | p] and values [v] of one head are kept in while they are used:
 * int8 where the cache has at most 8 bits. */
static uint32_t decompressed_type(const Cache *cache) {
    return cache->type == CACHE_F32 || cache->type == CACHE_BF16 ? TILE_F32 : TILE_Q8;
}
static TileShape key_shape(const Config *c, const Cache *cache) {
    return (TileShape){decompressed_type(cache), c->qk_nope_head_dim, c->qk_rope_head_dim};
}
static TileShape value_shape(const Config *c, const Cache *cache) {
    return (TileShape){decompressed_type(cache), c->v_head_dim, 0};
}

/* Page k of the span that is ready for decompression. */
static Acts page_latents(const State *s, size_t k, size_t rows) {
    return acts_view(&s->latents, k * TILE_ROWS * s->latents.stride, rows, s->latents.cols);
}

/* K and V of one head for one page: k = W_uk c (and the shared rotated key beside it), v = W_uv c. */
static void decompress(const Model *m, State *s, const Layer *L, size_t head, size_t k, size_t rows,
                       Scratch *z) {
    const Config *c = &m->config;
    Acts latents = page_latents(s, k, rows);
    Matrix w_uk = head_matrix(&L->w_uk, head), w_uv = head_matrix(&L->w_uv, head);
    TileShape keys = key_shape(c, s->cache), values = value_shape(c, s->cache);
    size_t n_stride = round_up(c->qk_nope_head_dim, PANEL), p = c->qk_rope_head_dim;

    m->k->matmul(z->a, n_stride, &w_uk, 0, matrix_panels(&w_uk), &latents);
    m->k->matmul(z->b, s->v_stride, &w_uv, 0, matrix_panels(&w_uv), &latents);
    for (size_t j = 0; j < rows; j++) {
        m->k->tile_put(&keys, z->keys, j, z->a + j * n_stride, s->rope_keys + (k * TILE_ROWS + j) * p);
        m->k->tile_put(&values, z->values, j, z->b + j * s->v_stride, NULL);
    }
}

static bool any_seen(const uint16_t *seen, size_t rows) {
    uint16_t any = 0;
    for (size_t j = 0; j < rows; j++)
        any |= seen[j];
    return any;
}

/* One head: the rows first .. first + count - 1 (of one sequence) attend to pages page .. page + span - 1,
 * sixteen rows at a time. */
static void attend_span(const Model *m, State *s, const Layer *L, size_t head, size_t first, size_t count,
                        size_t page, size_t span, Scratch *z) {
    const Config *c = &m->config;
    TileShape keys = key_shape(c, s->cache), values = value_shape(c, s->cache);
    size_t groups = (s->chunk + LANES - 1) / LANES, context = (size_t)s->rows[first + count - 1].position + 1;

    for (size_t k = 0; k < span; k++) {
        size_t begin = (page + k) * TILE_ROWS,
               rows = context - begin < TILE_ROWS ? context - begin : TILE_ROWS;
        bool ready = false;
        for (size_t i = 0; i < count; i += LANES) {
            const uint16_t *seen = s->selects ? s->lane_seen + i / LANES * SPAN_ROWS + k * TILE_ROWS : NULL;
            int32_t limit[LANES]; /* a row sees what is at or before its own position */
            bool any = false;
            for (size_t lane = 0; lane < LANES; lane++) {
                int64_t below =
                    i + lane < count ? (int64_t)s->rows[first + i + lane].position + 1 - (int64_t)begin : 0;
                limit[lane] = (int32_t)(below < 0 ? 0 : below > (int64_t)rows ? (int64_t)rows : below);
                any |= limit[lane] > 0;
            }
            if (!any || (seen && !any_seen(seen, rows)))
                continue;
            if (!ready)
                decompress(m, s, L, head, k, rows, z);
            ready = true;
            size_t at = head * groups + i / LANES;
            m->k->attend(&keys, s->queries + at * query_bytes(&keys), z->keys, &values, z->values, rows,
                         limit, seen, c->softmax_scale, &s->found[at], z->attend);
        }
    }
}

/* Rows first .. first + count - 1 of one head become packed queries, sixteen rows each, that have found
 * nothing yet. */
static void begin_queries(const Model *m, State *s, size_t head, size_t first, size_t count) {
    const Config *c = &m->config;
    TileShape keys = key_shape(c, s->cache);
    size_t groups = (s->chunk + LANES - 1) / LANES;
    for (size_t i = 0; i < count; i += LANES) {
        const float *a[LANES], *b[LANES];
        Softmax *found = &s->found[head * groups + i / LANES];
        for (size_t lane = 0; lane < LANES; lane++) {
            a[lane] = i + lane < count ? query_of(c, s, first + i + lane, head) : NULL;
            b[lane] = i + lane < count ? a[lane] + c->qk_nope_head_dim : NULL;
            found->max[lane] = -INFINITY, found->sum[lane] = 0;
        }
        m->k->query(&keys, s->queries + (head * groups + i / LANES) * query_bytes(&keys), a, b);
    }
}

/* Rows first .. first + count - 1 are one sequence's. */
static void decompressed_run(const Model *m, State *s, size_t layer, size_t first, size_t count, Thread *t) {
    const Config *c = &m->config;
    const Layer *L = &m->layers[layer];
    Scratch *z = &s->scratch[t->id];
    const Cache *cache = s->cache;
    size_t H = c->num_attention_heads, groups = (s->chunk + LANES - 1) / LANES, head;
    size_t context = (size_t)s->rows[first + count - 1].position + 1,
           pages = (context + TILE_ROWS - 1) / TILE_ROWS;
    uint32_t sequence = s->rows[first].sequence;

    while ((head = next_task(t, H)) < H)
        begin_queries(m, s, head, first, count);
    for (size_t page = 0; page < pages; page += SPAN_ROWS / TILE_ROWS) {
        size_t span = pages - page < SPAN_ROWS / TILE_ROWS ? pages - page : SPAN_ROWS / TILE_ROWS, k;
        sync_threads(t);
        while ((k = next_task(t, span)) < span) { /* the latents as activations, once for all heads */
            size_t begin = (page + k) * TILE_ROWS,
                   rows = context - begin < TILE_ROWS ? context - begin : TILE_ROWS;
            const uint8_t *tile = cache_tile(cache, sequence, page + k, layer);
            Acts latents = page_latents(s, k, rows);
            m->k->tile_acts(&cache->shape, tile, &latents);
            for (size_t j = 0; j < rows; j++)
                m->k->tile_get(&cache->shape, tile, j, NULL,
                               s->rope_keys + (k * TILE_ROWS + j) * c->qk_rope_head_dim);
            for (size_t i = 0; i < count && s->selects; i++) {
                uint16_t *seen = s->lane_seen + i / LANES * SPAN_ROWS + k * TILE_ROWS;
                if (i % LANES == 0)
                    memset(seen, 0, TILE_ROWS * sizeof *seen);
                add_seen(s, first + i, page + k, i % LANES, seen);
            }
        }
        sync_threads(t);
        while ((head = next_task(t, H)) < H)
            attend_span(m, s, L, head, first, count, page, span, z);
    }
    sync_threads(t);
    while ((head = next_task(t, H)) < H)
        for (size_t i = 0; i < count; i += LANES) {
            size_t lanes = count - i < LANES ? count - i : LANES;
            m->k->softmax_finish(z->a, s->v_stride, &s->found[head * groups + i / LANES], c->v_head_dim,
                                 lanes);
            for (size_t lane = 0; lane < lanes; lane++)
                put_head(m, s, first + i + lane, head, z->a + lane * s->v_stride);
        }
    sync_threads(t);
}

static void decompressed(const Model *m, State *s, size_t layer, Thread *t) {
    size_t from, to;
    share(t, m->config.num_attention_heads, &from, &to);
    for (size_t h = from; h < to; h++)
        rope_queries(m, s, h);
    sync_threads(t);
    for (size_t first = 0, count; first < s->n; first += count) {
        for (count = 1; first + count < s->n && s->rows[first + count].sequence == s->rows[first].sequence;)
            count++;
        decompressed_run(m, s, layer, first, count, t);
    }
}

/* ---- full: attention without MLA ------------------------------------------------------------ */

/* One row, one head, one key at a time, as the equations say. out: [v_stride]. */
static void attend_full(const Model *m, State *s, size_t layer, size_t i, size_t head, float *out) {
    const Config *c = &m->config;
    const Row *row = &s->rows[i];
    size_t dk = (size_t)c->qk_nope_head_dim + c->qk_rope_head_dim, v = c->v_head_dim;
    const float *q = query_of(c, s, i, head);
    float max = -INFINITY, sum = 0;
    memset(out, 0, v * sizeof(float));

    for (size_t begin = 0; begin <= row->position; begin += TILE_ROWS) {
        size_t rows = row->position + 1 - begin < TILE_ROWS ? row->position + 1 - begin : TILE_ROWS;
        float *keys = full_keys(c, cache_tile(s->cache, row->sequence, begin / TILE_ROWS, layer), head),
              *values = full_values(c, keys);
        float score[TILE_ROWS + 1], top = max;
        for (size_t j = 0; j < rows; j++) {
            bool hidden = s->selects && !row_sees(s, i, begin + j);
            score[j] = hidden ? -INFINITY : c->softmax_scale * m->k->dot(q, keys + j * dk, dk);
            top = score[j] > top ? score[j] : top;
        }
        /* what was found so far weighs exp(max - top) of what it did: score - top, exponentiated with the
         * page's own */
        score[rows] = max;
        m->k->exp_minus(score, rows + 1, top);
        sum *= score[rows];
        for (size_t d = 0; d < v; d++)
            out[d] *= score[rows];
        for (size_t j = 0; j < rows; j++) {
            sum += score[j];
            m->k->axpy(out, score[j], values + j * v, v);
        }
        max = top;
    }
    for (size_t d = 0; d < v; d++)
        out[d] /= sum;
    put_head(m, s, i, head, out);
}

static void full(const Model *m, State *s, size_t layer, Thread *t) {
    const Config *c = &m->config;
    const Layer *L = &m->layers[layer];
    Scratch *z = &s->scratch[t->id];
    size_t H = c->num_attention_heads, n = c->qk_nope_head_dim, p = c->qk_rope_head_dim, v = c->v_head_dim,
           r = c->kv_lora_rank, from, to, task;
    size_t n_stride = round_up(n, PANEL);

    share(t, s->n, &from, &to);
    for (size_t i = from; i < to; i++)
        m->k->put(&s->latents, i, 0, s->kv + i * s->kv_stride, r);
    sync_threads(t);

    share(t, H, &from, &to);
    for (size_t h = from; h < to; h++) {
        rope_queries(m, s, h);
        Matrix w_uk = head_matrix(&L->w_uk, h), w_uv = head_matrix(&L->w_uv, h);
        m->k->matmul(z->a, n_stride, &w_uk, 0, matrix_panels(&w_uk), &s->latents);
        m->k->matmul(z->b, s->v_stride, &w_uv, 0, matrix_panels(&w_uv), &s->latents);
        for (size_t i = 0; i < s->n; i++) {
            size_t at = s->rows[i].position % TILE_ROWS;
            float *keys = full_keys(
                c, cache_tile(s->cache, s->rows[i].sequence, s->rows[i].position / TILE_ROWS, layer), h);
            memcpy(keys + at * (n + p), z->a + i * n_stride, n * sizeof(float));
            memcpy(keys + at * (n + p) + n, s->kv + i * s->kv_stride + r, p * sizeof(float));
            memcpy(full_values(c, keys) + at * v, z->b + i * s->v_stride, v * sizeof(float));
        }
    }
    sync_threads(t);
    while ((task = next_task(t, s->n * H)) < s->n * H)
        attend_full(m, s, layer, task / H, task % H, z->a);
}

/* ---- the whole ------------------------------------------------------------------------------ */

void mla_attention(const Model *m, State *s, size_t layer, Thread *t) {
    stage(s, t, STAGE_DENSE);
    project(m, s, layer, t);
    stage(s, t, STAGE_ATTENTION);
    choose_rows(m, s, layer, t);
    if (s->cache->type == CACHE_FULL)
        full(m, s, layer, t);
    else if (s->forced_path == PATH_ABSORBED || (s->forced_path == PATH_BY_ROWS && s->n <= ABSORBED_ROWS))
        absorbed(m, s, layer, t);
    else
        decompressed(m, s, layer, t);
    sync_threads(t);

    stage(s, t, STAGE_DENSE);
    /* out += W_o [head 0 | head 1 | ...] */
    linear_add(m->k, s->out, s->x_stride, &m->layers[layer].o, &s->attended, NULL, NULL, s->scratch[t->id].a,
               t);
    sync_threads(t);
}
