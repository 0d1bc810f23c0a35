/* mla.c: Multi-head Latent Attention, the idea that this program exists for, in five sections.
 *
 * The problem  Ordinary attention caches keys and values of every head: H (n + p + v) numbers a token and
 *              layer, 40,960 in DeepSeek-V3.
 * The idea     Cache what keys and values are made of: one latent c (r numbers) and one rotated key k_pe
 *              (p numbers) for all heads: 576 in DeepSeek-V3.
 *
 * x is the layer's normed input, s->normed in the code.
 *
 *     x --W_kva--> [ c_raw | k_raw ]    c = RMSNorm(c_raw), k_pe = rope(k_raw)      cache row [ c | k_pe ]
 *     x --W_q----> [ q_nope | q_raw ] of each head, q_pe = rope(q_raw)
 *                  (with q_lora_rank: W_qb RMSNorm(W_qa x), a low rank for the queries, too)
 *
 *     k_h,j = [ W_uk,h c_j | k_pe,j ]   v_h,j = W_uv,h c_j                          made when needed
 *     o_h   = sum_j softmax_j(scale q_h . k_h,j) v_h,j                              ordinary attention
 *     out   = W_o [ o_1 | ... | o_H ]   (with head_gate o_h is multiplied by sigmoid(w_gate,h . x) before)
 *
 * Sizes by their names in config.json: H num_attention_heads, n qk_nope_head_dim, p qk_rope_head_dim,
 * v v_head_dim, r kv_lora_rank. rope turns the pairs (2 d, 2 d + 1); export.py reorders the rows of models
 * that pair halves.
 *
 * Two ways to compute the same. Keys and values are linear in c, so a matrix may move to the other side:
 *
 *     absorbed       q_nope . (W_uk c) = (W_uk^T q_nope) . c and sum_j a_j (W_uv c_j) = W_uv (sum_j a_j c_j).
 *     ("MQA mode")   The query is mapped into the latent space, all heads read the same cached rows, and W_uv
 *                    is applied once, to the weighted sum. 2 r + p multiplications for each query, head and
 *                    cached row. Best for one new row: decode.
 *     decompressed   For each head, expand keys and values of a page of cached rows, use them for all new
 *     ("MHA mode")   rows of the sequence and forget them. n + p + v multiplications for each query, head
 *                    and cached row, and (n + v) r for each head and cached row, in every call anew. Best
 *                    for many new rows: prefill.
 *
 * The two cost the same number of multiplications at (n + v) r / (2 r - n - v) new rows of a text in one
 * call, 170 for DeepSeek's sizes. (Where 2 r <= n + v absorbed always costs fewer.) Measured (V2-Lite's
 * shape, q8 cache, 512 and 4096 cached rows), absorbed is faster at 96 new rows and decompressed at 128:
 * sooner than the count says, because its matrix products are larger and so faster. ABSORBED_ROWS in
 * engine/sequence.h is the middle, 112. What a text reads at once, a stretch, is cut into pieces of 2048
 * rows from its first row on; a piece of at most 112 rows is absorbed, a longer one decompressed, however
 * many calls it takes. The two round differently, and so a row's path follows from its own text alone.
 *
 * Questions that a reader may have
 *
 *   Why is the rotated key apart? With rotations R_i at the query's and R_j at the key's position the score
 *   would be q^T R_i^T R_j W_uk c. R_i^T R_j depends on the distance and stands between q and W_uk, so the
 *   query would have to be mapped anew for every cached row: W_uk could not be absorbed. A small part of the
 *   key carries the position instead.
 *
 *   Why one rotated key for all heads? It is not made from the latent, so each head's own would have to be
 *   cached: H p numbers instead of p.
 *
 *   Where does kv_b_proj go? Published checkpoints have W_uk and W_uv in one matrix, [H (n + v), r]: of each
 *   head n rows of W_uk, then v rows of W_uv. export.py splits it, and stores W_uk transposed as well
 *   (w_uk_t), because the absorbed form multiplies by W_uk^T.
 *
 *   Why does softmax_scale contain mscale squared? The scale is (n + p)^-1/2. YaRN, which lengthens the
 *   context, multiplies queries and keys each by mscale, so their product has it twice. export.py computes
 *   it.
 *
 *   And sparse attention? engine/indexer.c chooses at most index_topk rows for each new row. The absorbed
 *   form attends to copies of them, gathered into tiles. The decompressed form, whose queries may each have
 *   chosen other rows, attends to all rows under a mask. So its work grows with the text, and from some place
 *   on (State.sparse.absorbed_from, 5803 in V3.2) every row is absorbed.
 *
 * The loops over lanes, pages and threads are in engine/attend.c, the inner loops in kernels/attention.h and
 * kernels/matmul.h, attention with an ordinary cache, for comparison, in engine/full.c. Nothing here knows
 * files, tokens or model families. All threads of the team run mla_attention, project, absorbed and
 * decompressed; finish_row and expand are called by one thread for one item, definition by one thread for
 * everything. Formulas: DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C. */
#include <math.h>
#include <string.h>

#include "engine/attend.h"
#include "engine/full.h"
#include "engine/indexer.h"
#include "engine/rope.h"
#include "engine/state.h"
#include "kernels/linear.h"
#include "model.h"

/* ---- 1. the definition ---------------------------------------------------------------------- */

/* out [v] = sum_j softmax_j(scale q . k_j) v_j for one head and one query, with k_j = [ W_uk c_j | k_pe,j ]
 * and v_j = W_uv c_j. Plain loops in f32 on one thread: slow, and what the two fast ways below are tested
 * against (MLA_PATH=definition).
 *   q [n + p]       the head's query, its last p numbers rotated
 *   rows [T][r + p] the cached rows [ c_j | k_pe,j ] that the query attends to
 *   w_uk [n][r], w_uv [v][r] of the head;  score [T] for intermediate results */
void mla_definition(float *out, const float *q, const float *rows, size_t T, const float *w_uk,
                    const float *w_uv, const Config *cfg, float *score) {
    size_t n = cfg->qk_nope_head_dim, p = cfg->qk_rope_head_dim, v = cfg->v_head_dim, r = cfg->kv_lora_rank;
    float max = -INFINITY, sum = 0;
    for (size_t j = 0; j < T; j++) {
        const float *c = rows + j * (r + p), *k_pe = c + r;
        score[j] = 0;
        for (size_t d = 0; d < n; d++) {
            float k = 0; /* k_nope = W_uk c */
            for (size_t i = 0; i < r; i++)
                k += w_uk[d * r + i] * c[i];
            score[j] += q[d] * k;
        }
        for (size_t d = 0; d < p; d++)
            score[j] += q[n + d] * k_pe[d];
        score[j] *= cfg->softmax_scale;
        max = fmaxf(max, score[j]);
    }
    for (size_t j = 0; j < T; j++) {
        score[j] = expf(score[j] - max);
        sum += score[j];
    }
    memset(out, 0, v * sizeof *out);
    for (size_t j = 0; j < T; j++) {
        const float *c = rows + j * (r + p);
        for (size_t d = 0; d < v; d++) {
            float value = 0; /* v = W_uv c */
            for (size_t i = 0; i < r; i++)
                value += w_uv[d * r + i] * c[i];
            out[d] += score[j] / sum * value;
        }
    }
}

/* The cached rows that row i of the call attends to, as f32. Returns how many. */
static size_t read_rows(const Attention *a, size_t i) {
    const State *s = a->s;
    size_t r = a->cfg->kv_lora_rank, p = a->cfg->qk_rope_head_dim, T = 0;
    for (size_t j = 0; j <= s->rows[i].place; j++) {
        if (s->sparse.active && !attends_to(s, i, j))
            continue;
        float *row = s->definition.rows + T++ * (r + p);
        a->m->ops->tile_load(&s->cache->shape, cache_tile(s->rows[i].sequence, j / TILE_ROWS, a->layer),
                             j % TILE_ROWS, row, row + r);
    }
    return T;
}

/* The definition for all new rows and heads, on one thread. */
static void definition(const Attention *a) {
    State *s = a->s;
    size_t n = a->cfg->qk_nope_head_dim, v = a->cfg->v_head_dim, r = a->cfg->kv_lora_rank;
    for (size_t h = 0; h < a->cfg->num_attention_heads; h++) {
        Matrix w_uk = head_matrix(&a->L->w_uk, h), w_uv = head_matrix(&a->L->w_uv, h);
        for (size_t d = 0; d < n; d++)
            a->m->ops->read_row(s->definition.w_uk + d * r, &w_uk, d);
        for (size_t d = 0; d < v; d++)
            a->m->ops->read_row(s->definition.w_uv + d * r, &w_uv, d);
        for (size_t i = 0; i < s->row_count; i++) {
            size_t T = read_rows(a, i);
            mla_definition(a->z->a, query_of(a, i, h), s->definition.rows, T, s->definition.w_uk,
                           s->definition.w_uv, a->cfg, s->definition.score);
            store_head(a, i, h, a->z->a);
        }
    }
}

/* ---- 2. what goes into the cache ------------------------------------------------------------ */

/* sigmoid(W_gate x) of row i's heads (Ling-3.0): their outputs are multiplied by it. */
static void finish_gates(const Attention *a, size_t i) {
    size_t H = a->cfg->num_attention_heads;
    float *gate = a->s->attention.gate + i * a->s->attention.gate_stride, lost = 0;
    for (size_t h = 0; h < H; h++)
        lost += gate[h] - gate[h]; /* NaN if a gate is infinite: sigmoid would hide it */
    a->m->ops->sigmoid(gate, H);
    gate[0] += lost;
}

/* The latent is normed, the key is rotated: row i's [ c | k_pe ]. The queries' low rank is normed, too. */
static void finish_row(const Attention *a, size_t i) {
    const Config *cfg = a->cfg;
    State *s = a->s;
    const Row *row = &s->rows[i];
    size_t r = cfg->kv_lora_rank, pairs = cfg->qk_rope_head_dim / 2;
    float *c = s->attention.kv + i * s->attention.kv_stride, *k_pe = c + r;
    a->m->ops->rmsnorm(c, c, a->L->kv_a_norm, r, cfg->latent_norm_eps);
    rope(k_pe, s->attention.cosine + i * pairs, s->attention.sine + i * pairs, pairs);
    if (!s->cache->groups) /* else it holds keys and values of every head: engine/full.c */
        a->m->ops->tile_store(&s->cache->shape, cache_tile(row->sequence, row->place / TILE_ROWS, a->layer),
                              row->place % TILE_ROWS, c, k_pe);
    if (cfg->head_gate)
        finish_gates(a, i);
    if (cfg->q_lora_rank) {
        float *qa = s->attention.qa + i * s->attention.qa_stride;
        a->m->ops->rmsnorm(qa, qa, a->L->q_a_norm, cfg->q_lora_rank, cfg->latent_norm_eps);
        a->m->ops->store_row(&s->attention.qa_normed, i, 0, qa, cfg->q_lora_rank);
    }
}

/* q = W_q x, or W_qb RMSNorm(W_qa x); [ c | k_pe ] of W_kva x goes into the cache. When it returns,
 * every thread may read the queries (not rotated yet); the cache's rows only after the next sync_threads. */
static void project(const Attention *a) {
    State *s = a->s;
    size_t from, to;
    if (a->cfg->q_lora_rank)
        linear(a->m->ops, s->attention.qa, s->attention.qa_stride, &a->L->q_a, &s->normed, a->t);
    else
        linear(a->m->ops, s->attention.q, s->attention.q_stride, &a->L->q, &s->normed, a->t);
    linear(a->m->ops, s->attention.kv, s->attention.kv_stride, &a->L->kv_a, &s->normed, a->t);
    if (a->cfg->head_gate)
        linear(a->m->ops, s->attention.gate, s->attention.gate_stride, &a->L->head_gate, &s->normed, a->t);
    sync_threads(a->t);
    share(a->t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++)
        finish_row(a, i);
    if (a->cfg->q_lora_rank) {
        sync_threads(a->t);
        linear(a->m->ops, s->attention.q, s->attention.q_stride, &a->L->q_b, &s->attention.qa_normed, a->t);
        sync_threads(a->t);
    }
}

/* ---- 3. absorbed: decode -------------------------------------------------------------------- */

/* The absorbed rows of the call. A thread's heads are those that it rotated in rotate_queries: no barrier is
 * needed before. None follows the last step: that is mla_attention's. z is this thread's scratch. */
static void absorbed(const Attention *a) {
    const Config *cfg = a->cfg;
    State *s = a->s;
    size_t H = cfg->num_attention_heads, rows = s->absorbed.count, from, to;
    size_t r_stride = s->absorbed.r_stride, v_stride = s->attention.v_stride;

    share(a->t, H, &from, &to);
    for (size_t h = from; h < to; h++) { /* q_latent = W_uk^T q_nope: the query moves into the latent space */
        Activations q_nope = activations_view(&a->z->acts, 0, rows, cfg->qk_nope_head_dim);
        for (size_t k = 0; k < rows; k++)
            a->m->ops->store_row(&q_nope, k, 0, query_of(a, s->absorbed.row[k], h), cfg->qk_nope_head_dim);
        head_matmul(a, s->absorbed.q_latent + h * r_stride, H * r_stride, &a->L->w_uk_t, h, &q_nope);
    }
    sync_threads(a->t);

    /* q_latent = sum_j softmax_j(scale (q_latent . c_j + q_pe . k_pe,j)) c_j, in place; then a barrier. From
     * here on q_latent holds these sums. */
    attend_latents(a);

    for (size_t h = from; h < to; h++) { /* o = W_uv (sum of latents): values are expanded after the sum */
        Activations latents = activations_view(&a->z->acts, 0, rows, cfg->kv_lora_rank);
        for (size_t k = 0; k < rows; k++)
            a->m->ops->store_row(&latents, k, 0, s->absorbed.q_latent + (k * H + h) * r_stride,
                                 cfg->kv_lora_rank);
        head_matmul(a, a->z->a, v_stride, &a->L->w_uv, h, &latents);
        for (size_t k = 0; k < rows; k++)
            store_head(a, s->absorbed.row[k], h, a->z->a + k * v_stride);
    }
}

/* ---- 4. decompressed: prefill --------------------------------------------------------------- */

/* Keys and values of one head for `rows` cached rows, the k-th page of the span that was read:
 * k_j = [ W_uk c_j | k_pe,j ], v_j = W_uv c_j. They go into this thread's scratch. */
static void expand(const Attention *a, size_t head, size_t k, size_t rows) {
    TileShape keys = key_shape(a), values = value_shape(a);
    size_t n_stride = round_up(a->cfg->qk_nope_head_dim, PANEL), v_stride = a->s->attention.v_stride;
    Activations latents = page_latents(a, k, rows);
    const float *k_pe = page_rope_keys(a, k);
    head_matmul(a, a->z->a, n_stride, &a->L->w_uk, head, &latents);
    head_matmul(a, a->z->b, v_stride, &a->L->w_uv, head, &latents);
    for (size_t j = 0; j < rows; j++) {
        a->m->ops->tile_store(&keys, a->z->keys, j, a->z->a + j * n_stride,
                              k_pe + j * a->cfg->qk_rope_head_dim);
        a->m->ops->tile_store(&values, a->z->values, j, a->z->b + j * v_stride, NULL);
    }
}

/* A run: rows of the call that follow one another in one sequence and are decompressed. They attend to all
 * cached rows up to their own, a span of pages at a time. Ends with a barrier. */
static void decompressed(const Attention *a, const Run *run) {
    size_t H = a->cfg->num_attention_heads, h;
    while ((h = next_task(a->t, H)) < H)
        begin_queries(a, run, h);
    for (Span span = span_of(run, 0); span.pages; span = span_of(run, span.page + span.pages)) {
        sync_threads(a->t);
        read_span(a, run, &span); /* c and k_pe, once for all heads */
        sync_threads(a->t);
        while ((h = next_task(a->t, H)) < H) {
            for (size_t k = 0; k < span.pages; k++) {
                if (page_is_needed(a, run, k)) {
                    expand(a, h, k, span_page_rows(run, &span, k));
                    attend_page(a, run, &span, h, k); /* a query group at a time */
                }
            }
        }
    }
    sync_threads(a->t);
    while ((h = next_task(a->t, H)) < H)
        finish_queries(a, run, h);
    sync_threads(a->t);
}

/* ---- 5. the whole --------------------------------------------------------------------------- */

void mla_attention(const Model *m, State *s, size_t layer, Thread *t) {
    Attention a = attention_open(m, s, layer, t);
    profile_stage(s, t, STAGE_DENSE);
    if (a.cfg->num_key_value_heads)
        full_project(&a);
    else
        project(&a);
    profile_stage(s, t, STAGE_ATTENTION);
    choose_rows(m, s, layer, t); /* sparse attention; nothing in other models */
    rotate_queries(&a); /* each thread those of its heads; q_pe of others is read after the next barrier */
    if (s->cache->groups) {
        full_attention(&a);
    } else if (s->forced_path == PATH_DEFINITION) {
        sync_threads(t);
        if (t->id == 0)
            definition(&a);
    } else { /* each row has its own path: stretch_path() in engine/sequence.h */
        if (s->absorbed.count)
            absorbed(&a);
        if (s->absorbed.count < s->row_count)
            sync_threads(t); /* decompressed reads queries that other threads rotated */
        for (Run run = next_run(s, 0); run.count; run = next_run(s, run.first + run.count))
            decompressed(&a, &run);
    }
    sync_threads(t);
    profile_stage(s, t, STAGE_DENSE);
    /* out += W_o [ o_1 | ... | o_H ] */
    linear_add(m->ops, s->out, s->out_stride, &a.L->o, &s->attention.heads, NULL, NULL, a.z->a, t);
    sync_threads(t);
}
