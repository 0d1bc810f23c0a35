/* engine/full.c: attention without MLA. The same weights, but every head's keys and values are kept, as
 * ordinary multi-head attention does:
 *
 *     k_h,j = [ W_uk,h c_j | k_pe,j ]     v_h,j = W_uv,h c_j       kept: H (n + p + v) numbers a row
 *     o_h,i = sum_j softmax_j(scale q_h,i . k_h,j) v_h,j           one row, one head, one key at a time
 *
 * It costs what MLA saves, 5.6 to 71 times the memory. It is here for the comparison, and as a second
 * witness: tests compare mla.c with it. Rows are f32; nothing here is fast. */
#include "engine/full.h"

#include <math.h>
#include <string.h>

#include "engine/indexer.h"
#include "engine/util.h"

/* In a layer's tile of a page, head after head: keys [128][n + p], then values [128][v]. */
static float *head_keys(const Attention *a, const Sequence *q, size_t page, size_t head) {
    const Config *cfg = a->cfg;
    size_t width = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim + cfg->v_head_dim;
    return (float *)(void *)cache_tile(q, page, a->layer) + head * TILE_ROWS * width;
}

static float *head_values(const Attention *a, float *keys) {
    return keys + (size_t)TILE_ROWS * (a->cfg->qk_nope_head_dim + a->cfg->qk_rope_head_dim);
}

/* Keys and values of the call's rows and one head go into the cache. */
static void store_keys(const Attention *a, size_t head) {
    State *s = a->s;
    size_t nope = a->cfg->qk_nope_head_dim, p = a->cfg->qk_rope_head_dim, v = a->cfg->v_head_dim;
    size_t stride = round_up(nope, PANEL), r = a->cfg->kv_lora_rank;
    head_matmul(a, a->z->a, stride, &a->L->w_uk, head, &s->decompressed.latents);
    head_matmul(a, a->z->b, s->attention.v_stride, &a->L->w_uv, head, &s->decompressed.latents);
    for (size_t i = 0; i < s->row_count; i++) {
        const Row *row = &s->rows[i];
        size_t at = row->place % TILE_ROWS;
        float *keys = head_keys(a, row->sequence, row->place / TILE_ROWS, head);
        float *key = keys + at * (nope + p);
        memcpy(key, a->z->a + i * stride, nope * sizeof *key);
        memcpy(key + nope, s->attention.kv + i * s->attention.kv_stride + r, p * sizeof *key);
        memcpy(head_values(a, keys) + at * v, a->z->b + i * s->attention.v_stride, v * sizeof *key);
    }
}

/* out [v] = the attention of row i and one head, a page at a time: an online softmax. */
static void attend_full(const Attention *a, size_t i, size_t head, float *out) {
    const Row *row = &a->s->rows[i];
    const Kernels *ops = a->m->ops;
    size_t width = (size_t)a->cfg->qk_nope_head_dim + a->cfg->qk_rope_head_dim, v = a->cfg->v_head_dim;
    const float *q = query_of(a, i, head);
    float max = -INFINITY, sum = 0;
    memset(out, 0, v * sizeof *out);

    for (size_t begin = 0; begin <= row->place; begin += TILE_ROWS) {
        size_t rows = min(row->place + 1 - begin, TILE_ROWS);
        float *keys = head_keys(a, row->sequence, begin / TILE_ROWS, head), *values = head_values(a, keys);
        float score[TILE_ROWS + 1], top = max;
        for (size_t j = 0; j < rows; j++) {
            bool hidden = a->s->sparse.active && !attends_to(a->s, i, begin + j);
            score[j] = hidden ? -INFINITY : a->cfg->softmax_scale * ops->dot(q, keys + j * width, width);
            top = score[j] > top ? score[j] : top;
        }
        /* the sums so far were made with the old maximum: they are multiplied by exp(max - top) */
        score[rows] = max;
        ops->exp_minus(score, rows + 1, top);
        sum *= score[rows];
        for (size_t d = 0; d < v; d++)
            out[d] *= score[rows];
        for (size_t j = 0; j < rows; j++) {
            sum += score[j];
            ops->axpy(out, score[j], values + j * v, v);
        }
        max = top;
    }
    for (size_t d = 0; d < v; d++)
        out[d] /= sum;
}

void full_attention(const Attention *a) {
    State *s = a->s;
    size_t H = a->cfg->num_attention_heads, from, to, task;
    share(a->t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++)
        a->m->ops->store_row(&s->decompressed.latents, i, 0, s->attention.kv + i * s->attention.kv_stride,
                             a->cfg->kv_lora_rank);
    sync_threads(a->t);

    share(a->t, H, &from, &to);
    for (size_t h = from; h < to; h++)
        store_keys(a, h);
    sync_threads(a->t);

    while ((task = next_task(a->t, s->row_count * H)) < s->row_count * H) {
        attend_full(a, task / H, task % H, a->z->a);
        store_head(a, task / H, task % H, a->z->a);
    }
}
