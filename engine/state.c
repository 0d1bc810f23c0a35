/* state.c: the buffers of a run, allocated once (model.h says what each is). They are reserved as zero
 * pages and become memory when they are first written: a decode step never touches what only a long
 * prefill needs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels/clock.h"
#include "kernels/linear.h"
#include "mla.h"
#include "model.h"

/* Rows per call. Measured in the DeepSeek-V2-Lite shape: each doubling from 128 to 2048 is faster for a
 * prompt of 4096 rows; 2048 instead of 512 by 7 percent, and by 14 for 8192 rows, because the decompressed
 * keys and values of the context serve more rows. */
enum { CHUNK = 2048, MAX_CHUNK = SPAN_ROWS };
/* Rows that score the cache between two meetings of the threads, at least. */
enum { INDEX_LINES = 16 };

typedef struct {
    State *s;
    size_t total; /* bytes so far */
    bool failed;
} Reserve;

/* count * bytes_each zeroed bytes, page-aligned; remembered for state_close. NULL: no memory. */
static void *reserve(Reserve *r, size_t count, size_t bytes_each) {
    size_t bytes;
    if (r->failed || __builtin_mul_overflow(count, bytes_each, &bytes) ||
        __builtin_add_overflow(r->total, bytes, &r->total)) {
        r->failed = true;
        return NULL;
    }
    void *p =
        mmap(NULL, bytes + 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        r->failed = true;
        return NULL;
    }
    State *s = r->s;
    s->blocks[s->block_count].p = p;
    s->blocks[s->block_count++].bytes = bytes + 64;
    return p;
}

/* Activations for rows * cols elements at most, in the forms that the model's matrices need; `f32`: also
 * for the router. */
static Acts reserve_acts(Reserve *r, const Model *m, size_t rows, size_t cols, bool f32) {
    size_t stride = round_up(cols, BLOCK), n = rows * stride;
    Acts x = {.rows = (uint32_t)rows, .cols = (uint32_t)cols, .stride = (uint32_t)stride};
    if (m->float_acts || f32)
        x.f = reserve(r, n, sizeof *x.f);
    if (m->int8_acts) {
        x.q = reserve(r, n, sizeof *x.q);
        x.scale = reserve(r, n / 32, sizeof *x.scale);
        x.sum = reserve(r, n / 32, sizeof *x.sum);
    }
    return x;
}

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* What `bytes` gives for the tile type that needs most: int8 has per-row numbers beside the row, which in
 * a tiny shape are more than f32 needs. */
static size_t most_bytes(size_t (*bytes)(const TileShape *), uint32_t d1, uint32_t d2) {
    return max_size(bytes(&(TileShape){TILE_F32, d1, d2}), bytes(&(TileShape){TILE_Q8, d1, d2}));
}

static void reserve_softmax(Reserve *r, Softmax **list, size_t count, size_t dv) {
    *list = reserve(r, count, sizeof **list);
    float *out = reserve(r, count * dv, LANES * sizeof *out);
    for (size_t i = 0; *list && out && i < count; i++)
        (*list)[i].out = out + i * dv * LANES;
}

static void reserve_cache(Reserve *r, const Config *c, const StateOptions *o) {
    Cache *cache = reserve(r, 1, sizeof *cache);
    if (!cache)
        return;
    r->s->cache = cache;
    size_t pages = (o->context + TILE_ROWS - 1) / TILE_ROWS;
    cache->type = o->cache;
    cache->shape = cache_shape(c, o->cache);
    cache->index_shape = cache_index_shape(c, o->cache);
    cache->layers = c->num_hidden_layers;
    cache->pages = pages * o->sequences;
    cache->tile_bytes = cache_row_bytes(c, o->cache) * TILE_ROWS;
    cache->page_bytes = cache_token_bytes(c, o->cache, c->num_hidden_layers) * TILE_ROWS;
    cache->pool = reserve(r, cache->pages, cache->page_bytes);
    cache->page = reserve(r, o->sequences, sizeof *cache->page);
    cache->page_count = reserve(r, o->sequences, sizeof *cache->page_count);
    uint32_t *list = reserve(r, cache->pages, sizeof *list);
    for (size_t i = 0; cache->page && list && i < o->sequences; i++)
        cache->page[i] = list + i * pages;
}

static void reserve_attention(Reserve *r, const Model *m) {
    const Config *c = &m->config;
    State *s = r->s;
    size_t H = c->num_attention_heads, chunk = s->chunk, query_groups = (chunk + LANES - 1) / LANES,
           groups = (H + LANES - 1) / LANES;

    s->cosine = reserve(r, chunk * c->qk_rope_head_dim / 2, sizeof(float));
    s->sine = reserve(r, chunk * c->qk_rope_head_dim / 2, sizeof(float));
    s->qa_stride = round_up(c->q_lora_rank, PANEL);
    s->qa = reserve(r, chunk * s->qa_stride, sizeof(float));
    s->qa_normed = reserve_acts(r, m, chunk, c->q_lora_rank, false);
    s->q_stride = round_up(H * (c->qk_nope_head_dim + c->qk_rope_head_dim), PANEL);
    s->q = reserve(r, chunk * s->q_stride, sizeof(float));
    s->kv_stride = round_up(c->kv_lora_rank + c->qk_rope_head_dim, PANEL);
    s->kv = reserve(r, chunk * s->kv_stride, sizeof(float));
    s->v_stride = round_up(c->v_head_dim, 32);
    s->attended = reserve_acts(r, m, chunk, H * s->v_stride, false);
    s->r_stride = round_up(c->kv_lora_rank, PANEL);
    s->q_latent = reserve(r, chunk * H * s->r_stride, sizeof(float));
    s->part_count = max_size(128, groups * MAX_PARTS);
    reserve_softmax(r, &s->parts, s->part_count, c->kv_lora_rank);
    s->queries =
        reserve(r, H * query_groups, most_bytes(query_bytes, c->qk_nope_head_dim, c->qk_rope_head_dim));
    reserve_softmax(r, &s->found, H * query_groups, c->v_head_dim);
    s->latents = reserve_acts(r, m, SPAN_ROWS, c->kv_lora_rank, false);
    s->rope_keys = reserve(r, (size_t)SPAN_ROWS * c->qk_rope_head_dim, sizeof(float));
}

/* Of a sparse attention; without indexer nothing. */
static void reserve_indexer(Reserve *r, const Config *c) {
    State *s = r->s;
    size_t Hi = c->index_n_heads, pages = (s->context + TILE_ROWS - 1) / TILE_ROWS,
           groups = (c->num_attention_heads + LANES - 1) / LANES;
    const TileShape *keys = &s->cache->index_shape;
    s->dense_rows = Hi ? c->index_topk : SIZE_MAX;
    if (!Hi)
        return;
    s->index_key_stride = round_up(c->index_head_dim, PANEL);
    s->index_key = reserve(r, s->chunk * s->index_key_stride, sizeof(float));
    s->index_query_stride = round_up(Hi * c->index_head_dim, PANEL);
    s->index_query = reserve(r, s->chunk * s->index_query_stride, sizeof(float));
    s->index_weight_stride = round_up(Hi, PANEL);
    s->index_weight = reserve(r, s->chunk * s->index_weight_stride, sizeof(float));
    s->index_lines = max_size((size_t)s->threads, INDEX_LINES);
    s->index_score = reserve(r, s->index_lines * s->context, sizeof(float));
    s->seen_stride = pages * TILE_ROWS / 64;
    s->seen = reserve(r, s->chunk * s->seen_stride, sizeof *s->seen);
    /* for the rows whose parts are computed together (mla.c, absorbed): part_count / groups pages, or more
     * where a part has several */
    s->seen_pages = ((s->context < c->index_topk ? s->context : c->index_topk) + TILE_ROWS - 1) / TILE_ROWS;
    s->seen_tiles = reserve(r, s->part_count / groups * (s->seen_pages + MAX_PARTS - 1) / MAX_PARTS,
                            s->cache->tile_bytes);
    s->lane_seen = reserve(r, (s->chunk + LANES - 1) / LANES * SPAN_ROWS, sizeof *s->lane_seen);
    for (int i = 0; i < s->threads && s->scratch; i++) {
        s->scratch[i].index_query = reserve(r, (Hi + LANES - 1) / LANES, query_bytes(keys));
        s->scratch[i].index_keys = reserve(r, 16 * c->index_head_dim, sizeof(float));
    }
}

static void reserve_mlps(Reserve *r, const Model *m) {
    const Config *c = &m->config;
    State *s = r->s;
    size_t E = c->n_routed_experts, K = c->num_experts_per_tok, chunk = s->chunk, slots = chunk * (K + 1);
    size_t experts = chunk * K * round_up(c->moe_intermediate_size, BLOCK) +
                     chunk * round_up((size_t)c->n_shared_experts * c->moe_intermediate_size, BLOCK);
    size_t dense = chunk * round_up(c->intermediate_size, BLOCK);

    s->scores = reserve(r, chunk * round_up(router_rows(c), PANEL), sizeof(float));
    s->chosen = reserve(r, chunk * K, sizeof *s->chosen);
    s->chosen_weight = reserve(r, chunk * K, sizeof *s->chosen_weight);
    s->jobs = reserve(r, E + 1, sizeof *s->jobs);
    s->expert_rows = reserve(r, router_rows(c), sizeof *s->expert_rows);
    s->slot_row = reserve(r, slots, sizeof *s->slot_row);
    s->slot_weight = reserve(r, slots, sizeof *s->slot_weight);
    s->gathered = reserve_acts(r, m, chunk * K, c->hidden_size, false);
    s->hidden = reserve_acts(r, m, 1, c->shortcut_moe ? experts + dense : max_size(experts, dense), false);
}

static void reserve_scratch(Reserve *r, const Model *m) {
    const Config *c = &m->config;
    State *s = r->s;
    size_t rows = max_size(s->chunk, TILE_ROWS), n = c->qk_nope_head_dim, v = c->v_head_dim,
           latent = c->kv_lora_rank;
    _Static_assert(TILE_ROWS * LINEAR_ADD_COLUMNS >= MLP_ROW, "a single row's stretch of an MLP fits");
    size_t floats =
        max_size(rows * round_up(max_size(LINEAR_ADD_COLUMNS, max_size(max_size(n, v), latent)), 32),
                 round_up(c->hidden_size, BLOCK));
    uint32_t p = c->qk_rope_head_dim;

    s->scratch = reserve(r, (size_t)s->threads, sizeof *s->scratch);
    for (int i = 0; i < s->threads && s->scratch; i++) {
        Scratch *z = &s->scratch[i];
        size_t bytes = 2 * floats * sizeof(float);
        z->a = reserve(r, 1, bytes);
        z->b = z->a ? z->a + floats : NULL;
        z->acts = reserve_acts(r, m, s->chunk, max_size(n, latent), false);
        z->query = reserve(r, 1, most_bytes(query_bytes, c->kv_lora_rank, p));
        z->keys = reserve(r, 1, most_bytes(tile_bytes, c->qk_nope_head_dim, p));
        z->values = reserve(r, 1, most_bytes(tile_bytes, c->v_head_dim, 0));
        z->attend = reserve(r, 1, attend_scratch_bytes(&s->cache->shape));
    }
}

/* MLA_PATH and MLA_CHUNK force what is normally chosen, for tests. */
static bool read_environment(State *s, char *err, size_t err_bytes) {
    const char *path = getenv("MLA_PATH"), *chunk = getenv("MLA_CHUNK");
    s->forced_path = PATH_BY_ROWS;
    s->chunk = CHUNK;
    if (path && *path) {
        s->forced_path = !strcmp(path, "absorbed")       ? PATH_ABSORBED
                         : !strcmp(path, "decompressed") ? PATH_DECOMPRESSED
                                                         : -1;
        if (s->forced_path < 0) {
            snprintf(err, err_bytes, "MLA_PATH=%s: must be absorbed or decompressed", path);
            return false;
        }
    }
    if (chunk && *chunk) {
        char *end;
        errno = 0;
        long n = strtol(chunk, &end, 10);
        if (*end || errno || n < 1 || n > MAX_CHUNK) {
            snprintf(err, err_bytes, "MLA_CHUNK=%s: must be a number from 1 to %d", chunk, MAX_CHUNK);
            return false;
        }
        s->chunk = (size_t)n;
    }
    return true;
}

/* The system may give fewer threads than asked for (a limit in the environment); every thread of the team
 * must exist, or the others would wait for it for ever. */
static int threads_given(int wanted) {
    int given = 1;
#ifdef _OPENMP
    omp_set_dynamic(0);
#pragma omp parallel num_threads(wanted)
#pragma omp single
    given = omp_get_num_threads();
#else
    (void)wanted;
#endif
    return given;
}

State *state_open(const Model *m, const StateOptions *o, char *err, size_t err_bytes) {
    const Config *c = &m->config;
    State *s = aligned_alloc(64, (sizeof *s + 63) / 64 * 64);
    if (s)
        memset(s, 0, sizeof *s);
    size_t most_blocks = 96 + 16 * (size_t)o->threads;
    if (!s || !(s->blocks = calloc(most_blocks, sizeof *s->blocks))) {
        snprintf(err, err_bytes, "out of memory");
        free(s);
        return NULL;
    }
    if (!read_environment(s, err, err_bytes)) {
        state_close(s);
        return NULL;
    }
    s->context = o->context, s->sequences = o->sequences, s->max_logits = o->max_logits,
    s->threads = threads_given(o->threads);
    team_open(&s->team, s->threads);
    if (s->chunk > s->context * s->sequences)
        s->chunk = s->context * s->sequences;

    Reserve r = {.s = s};
    reserve_cache(&r, c, o);
    size_t cache_bytes = r.total, memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    s->x_stride = round_up(c->hidden_size, BLOCK);
    s->x = reserve(&r, s->chunk * s->x_stride, sizeof(float));
    s->branch =
        c->sandwich_norm || c->shortcut_moe ? reserve(&r, s->chunk * s->x_stride, sizeof(float)) : NULL;
    s->out = c->sandwich_norm ? s->branch : s->x;
    s->experts_out = s->branch ? s->branch : s->x;
    s->normed = reserve_acts(&r, m, s->chunk, c->hidden_size, c->n_routed_experts || c->index_n_heads);
    reserve_attention(&r, m);
    reserve_mlps(&r, m);
    reserve_scratch(&r, m);
    reserve_indexer(&r, c);
    s->wanted = reserve(&r, s->max_logits, sizeof *s->wanted);
    s->last = reserve_acts(&r, m, s->max_logits, c->hidden_size, false);
    s->logits = reserve(&r, s->max_logits * round_up(c->vocab_size, PANEL), sizeof(float));
    if (r.failed || cache_bytes > memory) {
        snprintf(err, err_bytes,
                 "a context of %zu rows needs %.1f GB, %.1f GB of them for the cache, and the machine has "
                 "%.1f GB of memory: use a smaller -c or -k",
                 o->context, (double)r.total / 1e9, (double)cache_bytes / 1e9, (double)memory / 1e9);
        state_close(s);
        return NULL;
    }
    return s;
}

void state_close(State *s) {
    if (!s)
        return;
    for (size_t i = s->block_count; i-- > 0;)
        munmap(s->blocks[i].p, s->blocks[i].bytes);
    free(s->blocks);
    free(s);
}

void state_begin(State *s, const Row *rows, size_t n) {
    s->rows = rows, s->n = n, s->wanted_count = 0, s->selects = false;
    atomic_store(&s->stop_before, SIZE_MAX);
    for (size_t i = 0; i < n; i++) {
        s->selects |= rows[i].position >= s->dense_rows;
        cache_extend(s->cache, rows[i].sequence, (size_t)rows[i].position + 1);
        if (rows[i].logits)
            s->wanted[s->wanted_count++] = (uint32_t)i;
    }
    s->normed.rows = s->qa_normed.rows = s->attended.rows = s->latents.rows = (uint32_t)n;
    s->last.rows = (uint32_t)s->wanted_count;
}

void stage(State *s, const Thread *t, Stage next) {
    Profile *p = s->profile;
    if (!p || t->id)
        return;
    double now = seconds();
    p->seconds[p->stage] += now - p->since;
    p->stage = next;
    p->since = now;
}
