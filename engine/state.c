/* engine/state.c: the cache and the buffers of a run, allocated once (buffers.h says what each is). They are
 * reserved as zero pages and become memory when they are first written: a decode step never touches what
 * only a long prefill needs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/cache.h"
#include "engine/compress.h"
#include "engine/cost.h"
#include "engine/full.h"
#include "engine/hyper.h"
#include "engine/indexer.h"
#include "engine/kda.h"
#include "engine/sampler.h"
#include "engine/sequence.h"
#include "engine/state.h"
#include "engine/util.h"
#include "kernels/clock.h"
#include "kernels/linear.h"

/* Rows of a call. Measured in the DeepSeek-V2-Lite shape: each doubling from 128 to 2048 is faster for a
 * prompt of 4096 rows; 2048 instead of 512 by 7 percent, and by 14 for 8192 rows, because the decompressed
 * keys and values of the context serve more rows. */
enum { CHUNK = PIECE_ROWS, MAX_CHUNK = SPAN_ROWS };
/* Rows that score the cache between two barriers, at least. */
enum { SCORE_ROWS = 16 };

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
static Activations reserve_activations(Reserve *r, const Model *m, size_t rows, size_t cols, bool f32) {
    size_t stride = round_up(cols, BLOCK), n = rows * stride;
    Activations x = {.rows = (uint32_t)rows, .cols = (uint32_t)cols, .stride = (uint32_t)stride};
    if (m->float_activations || f32)
        x.f = reserve(r, n, sizeof *x.f);
    if (m->int8_activations) {
        x.q = reserve(r, n, sizeof *x.q);
        x.scale = reserve(r, n / 32, sizeof *x.scale);
        x.start = reserve(r, n / 32, sizeof *x.start);
    }
    return x;
}

/* What `bytes` gives for the tile type that needs most: int8 has per-row numbers beside the row, which in
 * a tiny shape are more than f32 needs. */
static size_t most_bytes(size_t (*bytes)(const TileShape *), uint32_t d1, uint32_t d2) {
    return max(bytes(&(TileShape){TILE_F32, d1, d2}), bytes(&(TileShape){TILE_Q8, d1, d2}));
}

static void reserve_softmax(Reserve *r, Softmax **list, size_t count, size_t dv) {
    *list = reserve(r, count, sizeof **list);
    float *out = reserve(r, count * dv, LANES * sizeof *out);
    for (size_t i = 0; *list && out && i < count; i++)
        (*list)[i].out = out + i * dv * LANES;
}

/* Slots for constant parts, and what small calls keep, of all sequences. */
static void reserve_constant(Reserve *r, const Config *cfg, CacheType type, size_t sequences) {
    State *s = r->s;
    Cache *cache = s->cache;
    size_t slots = 1 + sequences * SEQUENCE_SLOTS,
           kept = 2 * REPLAY_ROWS * replay_floats(cfg, cfg->num_hidden_layers);
    s->runs = reserve(r, sequences, sizeof *s->runs);
    cache->slots = reserve(r, slots, constant_bytes(cfg, type, cfg->num_hidden_layers));
    cache->slot_references = reserve(r, slots, sizeof *cache->slot_references);
    cache->free_slots = reserve(r, slots, sizeof *cache->free_slots);
    cache->replay_buffer = reserve(r, max(kda_scratch_floats(cfg), compress_scratch_floats()), sizeof(float));
    float *replay = reserve(r, sequences * kept, sizeof *replay);
    for (size_t i = 0; !r->failed && i < sequences; i++)
        s->sequences[i].constant.replay = replay + i * kept;
}

static void reserve_cache(Reserve *r, const Model *m, const StateOptions *o) {
    const Config *cfg = &m->config;
    State *s = r->s;
    size_t pages = cache_pages(cfg, o->context), lists = pages * o->sequences,
           all = o->pages ? o->pages : lists,
           page_bytes = cache_page_bytes(cfg, o->cache, cfg->num_hidden_layers);
    Cache *cache = s->cache = reserve(r, 1, sizeof *cache);
    s->sequences = reserve(r, o->sequences, sizeof *s->sequences);
    int32_t *ids = reserve(r, o->sequences * (o->context + 1), sizeof *ids);
    uint32_t *page = reserve(r, lists, sizeof *page), *references = reserve(r, all, sizeof *references),
             *free_pages = reserve(r, all, sizeof *free_pages);
    LayerPlace *places = reserve(r, cfg->num_hidden_layers, sizeof *places);
    void *zeros = reserve(r, 1, page_bytes);
    void *pool = reserve(r, all, page_bytes);
    if (r->failed)
        return;
    cache->pool = pool;
    cache->places = places;
    cache->zeros = zeros;
    cache->references = references;
    cache->free_pages = free_pages;
    for (size_t i = 0; i < o->sequences; i++)
        s->sequences[i] =
            (Sequence){.cache = cache, .ids = ids + i * (o->context + 1), .page = page + i * pages};
    if (constant_bytes(cfg, o->cache, cfg->num_hidden_layers))
        reserve_constant(r, cfg, o->cache, o->sequences);
    if (!r->failed)
        cache_open(cache, m, o->cache, all, cache->slots ? 1 + o->sequences * SEQUENCE_SLOTS : 0);
}

/* For ordinary attention; beside it, latents have their own (below). */
static void reserve_full(Reserve *r, const Config *cfg) {
    State *s = r->s;
    if (!s->cache || !s->cache->groups)
        return;
    s->full.query_groups = reserve(r, full_query_groups(cfg, s->chunk), sizeof *s->full.query_groups);
    s->full.part_count = max(256, div_up(cache_tiles(s->context), FULL_PART_PAGES));
    reserve_softmax(r, &s->full.parts, s->full.part_count, cfg->v_head_dim);
}

static void reserve_attention(Reserve *r, const Model *m) {
    const Config *cfg = &m->config;
    State *s = r->s;
    size_t H = cfg->num_attention_heads, chunk = s->chunk, query_groups = div_up(chunk, LANES),
           head_groups = div_up(H, LANES), nope = cfg->qk_nope_head_dim, p = cfg->qk_rope_head_dim,
           v = cfg->v_head_dim, latent = cfg->kv_lora_rank;

    s->attention.cosine = reserve(r, chunk * p / 2, sizeof(float));
    s->attention.sine = reserve(r, chunk * p / 2, sizeof(float));
    s->attention.qa_stride = round_up(cfg->q_lora_rank, PANEL);
    s->attention.qa = reserve(r, chunk * s->attention.qa_stride, sizeof(float));
    s->attention.qa_normed = reserve_activations(r, m, chunk, cfg->q_lora_rank, false);
    s->attention.q_stride = round_up(H * (nope + p), PANEL);
    s->attention.q = reserve(r, chunk * s->attention.q_stride, sizeof(float));
    size_t G = cfg->num_key_value_heads;
    s->attention.kv_stride =
        G ? round_up(G * p, PANEL) + round_up(G * v, PANEL) : round_up(latent + p, PANEL);
    s->attention.kv = reserve(r, chunk * s->attention.kv_stride, sizeof(float));
    s->attention.v_stride = round_up(v, 32);
    s->attention.gate_stride = cfg->head_gate ? round_up(H, PANEL) : 0;
    s->attention.gate = reserve(r, chunk * s->attention.gate_stride, sizeof(float));
    s->attention.heads = reserve_activations(r, m, chunk, H * s->attention.v_stride, false);

    s->absorbed.row = reserve(r, chunk, sizeof *s->absorbed.row);
    s->absorbed.r_stride = round_up(latent, PANEL);
    s->absorbed.q_latent = reserve(r, chunk * H * s->absorbed.r_stride, sizeof(float));
    s->absorbed.part_count = max(max(128, head_groups * MAX_PARTS), 2 * (size_t)s->threads);
    reserve_softmax(r, &s->absorbed.parts, s->absorbed.part_count, latent);

    s->decompressed.queries =
        reserve(r, H * query_groups, most_bytes(query_bytes, cfg->qk_nope_head_dim, cfg->qk_rope_head_dim));
    reserve_softmax(r, &s->decompressed.softmax, H * query_groups, v);
    s->decompressed.latents = reserve_activations(r, m, SPAN_ROWS, latent, false);
    s->decompressed.rope_keys = reserve(r, SPAN_ROWS * p, sizeof(float));

    if (s->path_is_forced && s->forced_path == PATH_DEFINITION) {
        s->definition.rows = reserve(r, s->context * (latent + p), sizeof(float));
        s->definition.w_uk = reserve(r, nope * latent, sizeof(float));
        s->definition.w_uv = reserve(r, v * latent, sizeof(float));
        s->definition.score = reserve(r, s->context, sizeof(float));
    }
}

/* For linear attention; in a model without it nothing. */
static void reserve_kda(Reserve *r, const Model *m) {
    const Config *cfg = &m->config;
    State *s = r->s;
    size_t wide = round_up(cfg->kda_head_dim, DELTA_COLUMNS);
    if (!cfg->kda_heads)
        return;
    s->kda.in_stride = kda_input_floats(cfg);
    s->kda.in = reserve(r, s->chunk * s->kda.in_stride, sizeof(float));
    s->kda.low_stride = 2 * round_up(cfg->kda_rank, PANEL);
    s->kda.low = reserve(r, s->chunk * s->kda.low_stride, sizeof(float));
    s->kda.decay_low = reserve_activations(r, m, s->chunk, cfg->kda_rank, false);
    s->kda.gate_low = reserve_activations(r, m, s->chunk, cfg->kda_rank, false);
    s->kda.heads = reserve_activations(r, m, s->chunk, cfg->kda_heads * wide, false);
    s->kda.plain = reserve(r, kda_plain_floats(cfg), sizeof(float));
    for (int i = 0; i < s->threads && s->scratch; i++)
        s->scratch[i].kda = reserve(r, kda_scratch_floats(cfg), sizeof(float));
}

/* For several residual streams; in a model with one nothing. */
static void reserve_hyper(Reserve *r, const Config *cfg) {
    State *s = r->s;
    size_t S = cfg->hc_mult, outputs = S * (2 + S);
    if (!S)
        return;
    s->hyper.sums = reserve(r, s->chunk * hyper_sum_floats(cfg), sizeof(float));
    s->hyper.weights = reserve(r, s->chunk * round_up(outputs, PANEL), sizeof(float));
    if (s->path_is_forced && s->forced_path == PATH_DEFINITION)
        s->hyper.plain = reserve(r, outputs * S * cfg->hidden_size, sizeof(float));
}

/* For sparse attention; without indexer nothing. */
static void reserve_sparse(Reserve *r, const Config *cfg) {
    State *s = r->s;
    size_t Hi = cfg->index_n_heads, di = cfg->index_head_dim,
           head_groups = div_up(cfg->num_attention_heads, LANES);
    size_t pool = s->sparse.pool = max(cfg->index_kpool, 1);
    s->sparse.threshold = Hi ? cfg->index_topk / pool : SIZE_MAX;
    s->sparse.ratio = cfg->sliding_window && Hi ? cfg->csa_ratio : pool;
    s->sparse.absorbed_from = SIZE_MAX;
    if (!Hi || !s->cache)
        return;
    size_t most = min(s->context, s->sparse.threshold * pool + pool - 1); /* rows that a row attends to */
    s->sparse.key_stride = cfg->index_kpool ? pool_part(cfg, POOL_PARTS) : round_up(di, PANEL);
    s->sparse.key = reserve(r, s->chunk * s->sparse.key_stride, sizeof(float));
    s->sparse.query_stride = round_up(Hi * di, PANEL);
    s->sparse.query = reserve(r, s->chunk * s->sparse.query_stride, sizeof(float));
    s->sparse.weight_stride = round_up(Hi, PANEL);
    s->sparse.weight = reserve(r, s->chunk * s->sparse.weight_stride, sizeof(float));
    s->sparse.score_rows = max((size_t)s->threads, SCORE_ROWS);
    s->sparse.score = reserve(r, s->sparse.score_rows * s->context, sizeof(float));
    s->sparse.mask_stride = cache_tiles(div_up(s->context, s->sparse.ratio) * pool) * TILE_ROWS / 64;
    s->sparse.mask = reserve(r, s->chunk * s->sparse.mask_stride, sizeof *s->sparse.mask);
    /* for the rows whose parts are computed together (engine/attend.c), or for a row of each thread */
    s->sparse.tile_count = cache_tiles(most);
    size_t rows = cfg->sliding_window ? s->window.part_count / head_groups / 2
                                      : s->absorbed.part_count / head_groups / part_count(most);
    s->sparse.tiles = reserve(r, max(rows, (size_t)s->threads) * s->sparse.tile_count, s->cache->tile_bytes);
    for (int i = 0; i < s->threads && s->scratch; i++) {
        s->scratch[i].index_query = reserve(r, div_up(Hi, LANES), query_bytes(&s->cache->index_shape));
        s->scratch[i].index_keys = reserve(r, 16 * di, sizeof(float));
    }
    if (cfg->sliding_window) /* no row is decompressed */
        return;
    /* Multiplications for one row and head: absorbed, of the chosen rows; decompressed, of all rows, and as
     * much of their decompression as falls to one row of a piece. */
    size_t n = cfg->qk_nope_head_dim, p = cfg->qk_rope_head_dim, v = cfg->v_head_dim,
           latent = cfg->kv_lora_rank;
    s->sparse.absorbed_from =
        cfg->index_topk * (2 * latent + p) / (n + p + v + (n + v) * latent / PIECE_ROWS);
    s->sparse.lane_mask = reserve(r, div_up(s->chunk, LANES) * SPAN_ROWS, sizeof *s->sparse.lane_mask);
    s->sparse.needed = reserve(r, div_up(s->chunk, LANES) * SPAN_ROWS / TILE_ROWS, sizeof *s->sparse.needed);
}

/* For windows and compressed rows; in a model without them nothing. */
static void reserve_window(Reserve *r, const Model *m) {
    const Config *cfg = &m->config;
    State *s = r->s;
    size_t H = cfg->num_attention_heads, d = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim,
           G = cfg->o_groups, parts = 1;
    if (!cfg->sliding_window || !s->cache)
        return;
    s->window.in_stride = window_input_floats(cfg);
    s->window.in = reserve(r, s->chunk * s->window.in_stride, sizeof(float));
    s->window.cosine = reserve(r, s->chunk * cfg->qk_rope_head_dim / 2, sizeof(float));
    s->window.sine = reserve(r, s->chunk * cfg->qk_rope_head_dim / 2, sizeof(float));
    s->window.ones = reserve(r, d, sizeof(float));
    for (size_t i = 0; s->window.ones && i < d; i++)
        s->window.ones[i] = 1;
    s->window.closed_stride = compress_closed_floats(cfg);
    s->window.closed = reserve(r, s->chunk * s->window.closed_stride, sizeof(float));
    for (uint32_t l = 0; l < cfg->num_hidden_layers; l++)
        parts =
            max(parts, 1 + div_up(compressed_rows(cfg, layer_kind(cfg, l), s->context), WINDOW_PART_ROWS));
    s->window.part_count =
        max(max(256, (size_t)s->threads * (div_up(H, LANES) + 1)), div_up(H, LANES) * parts);
    reserve_softmax(r, &s->window.parts, s->window.part_count, d);
    s->window.groups = reserve_activations(r, m, G * s->chunk, H / G * d, false);
    s->window.low_stride = G * round_up(cfg->o_lora_rank, PANEL);
    s->window.low = reserve(r, s->chunk * s->window.low_stride, sizeof(float));
    s->window.low_rows = reserve_activations(r, m, s->chunk, (size_t)G * cfg->o_lora_rank, false);
    for (int i = 0; i < s->threads && s->scratch; i++) {
        s->scratch[i].ring = reserve(r, ring_tiles(cfg), s->cache->tile_bytes);
        s->scratch[i].far = reserve(r, WINDOW_PART_ROWS / TILE_ROWS, s->cache->tile_bytes);
    }
    if (s->path_is_forced && s->forced_path == PATH_DEFINITION) {
        s->window.rows = reserve(r, (s->context + cfg->sliding_window) * d, sizeof(float));
        s->window.score = reserve(r, s->context + cfg->sliding_window, sizeof(float));
    }
}

static void reserve_moe(Reserve *r, const Model *m) {
    const Config *cfg = &m->config;
    State *s = r->s;
    size_t E = cfg->n_routed_experts, K = cfg->num_experts_per_tok, chunk = s->chunk, rows = chunk * (K + 1);
    size_t shared = (size_t)cfg->n_shared_experts * cfg->moe_intermediate_size;
    size_t experts =
        chunk * K * round_up(cfg->moe_intermediate_size, BLOCK) + chunk * round_up(shared, BLOCK);
    size_t dense = chunk * round_up(cfg->intermediate_size, BLOCK);

    s->moe.scores = reserve(r, chunk * round_up(router_rows(cfg), PANEL), sizeof(float));
    s->moe.chosen = reserve(r, chunk * K, sizeof *s->moe.chosen);
    s->moe.weight = reserve(r, chunk * K, sizeof *s->moe.weight);
    s->moe.batches = reserve(r, E + 1, sizeof *s->moe.batches);
    s->moe.expert_rows = reserve(r, router_rows(cfg) + 1, sizeof *s->moe.expert_rows);
    s->moe.next = reserve(r, router_rows(cfg), sizeof *s->moe.next);
    s->moe.row = reserve(r, rows, sizeof *s->moe.row);
    s->moe.row_weight = reserve(r, rows, sizeof *s->moe.row_weight);
    s->moe.in = reserve_activations(r, m, chunk * K, cfg->hidden_size, false);
    s->moe.hidden =
        reserve_activations(r, m, 1, cfg->shortcut_moe ? experts + dense : max(experts, dense), false);
}

static void reserve_scratch(Reserve *r, const Model *m) {
    const Config *cfg = &m->config;
    State *s = r->s;
    uint32_t p = cfg->qk_rope_head_dim;
    size_t rows = max(s->chunk, TILE_ROWS), nope = cfg->qk_nope_head_dim, v = cfg->v_head_dim,
           latent = cfg->kv_lora_rank, key = round_up(nope, PANEL) + p;
    size_t query = most_bytes(query_bytes, cfg->kv_lora_rank, p), attend = 0;
    _Static_assert(TILE_ROWS * LINEAR_ADD_COLUMNS >= MLP_ROW, "a single row's stretch of an MLP fits");
    size_t floats = max(rows * round_up(max(LINEAR_ADD_COLUMNS, max(max(key, v), latent)), 32),
                        round_up(max(cfg->hidden_size, (size_t)cfg->o_groups * cfg->o_lora_rank), BLOCK));
    if (s->cache && s->cache->groups) { /* one query of either kind at a time */
        query = max(query, query_bytes(&s->cache->keys));
        attend = max(attend_scratch_bytes(&s->cache->keys), attend_scratch_bytes(&s->cache->values));
    } else if (s->cache) {
        query = max(query, query_bytes(&s->cache->shape));
        attend = attend_scratch_bytes(&s->cache->shape);
    }

    s->scratch = reserve(r, (size_t)s->threads, sizeof *s->scratch);
    for (int i = 0; i < s->threads && s->scratch; i++) {
        Scratch *z = &s->scratch[i];
        size_t bytes = 2 * floats * sizeof(float);
        z->a = reserve(r, 1, bytes);
        z->b = z->a ? z->a + floats : NULL;
        z->acts = reserve_activations(r, m, s->chunk, max(nope, latent), false);
        z->query = reserve(r, 1, query);
        z->keys = reserve(r, 1, most_bytes(tile_bytes, cfg->qk_nope_head_dim, p));
        z->values = reserve(r, 1, most_bytes(tile_bytes, cfg->v_head_dim, 0));
        z->attend = reserve(r, 1, attend);
        z->sample = reserve(r, 1, sampler_scratch_bytes(cfg->vocab_size));
    }
}

/* MLA_PATH and MLA_CHUNK force what is normally chosen, for tests. An empty value means unset. */
static bool read_environment(State *s, char *err, size_t err_bytes) {
    static const char *const paths[] = {
        [PATH_ABSORBED] = "absorbed", [PATH_DECOMPRESSED] = "decompressed", [PATH_DEFINITION] = "definition"};
    const char *path = getenv("MLA_PATH"), *chunk = getenv("MLA_CHUNK");
    s->chunk = CHUNK;
    for (Path i = PATH_ABSORBED; path && i <= PATH_DEFINITION; i++) {
        if (!strcmp(path, paths[i])) {
            s->path_is_forced = true;
            s->forced_path = i;
        }
    }
    if (path && *path && !s->path_is_forced) {
        snprintf(err, err_bytes, "MLA_PATH=%s: must be absorbed, decompressed or definition", path);
        return false;
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

static void reserve_all(Reserve *r, const Model *m, const StateOptions *o) {
    const Config *cfg = &m->config;
    State *s = r->s;
    s->out_stride = round_up(cfg->hidden_size, BLOCK);
    s->x_stride = round_up(max(cfg->hc_mult, 1) * (size_t)cfg->hidden_size, BLOCK);
    s->x = reserve(r, s->chunk * s->x_stride, sizeof(float));
    if (cfg->sandwich_norm || cfg->experts_out_norm || cfg->shortcut_moe || cfg->hc_mult)
        s->branch = reserve(r, s->chunk * s->out_stride, sizeof(float));
    s->out = cfg->sandwich_norm || cfg->hc_mult ? s->branch : s->x;
    s->experts_out = s->branch ? s->branch : s->x;
    reserve_hyper(r, cfg);
    bool f32 = cfg->n_routed_experts || cfg->index_n_heads || cfg->kda_heads || cfg->head_gate;
    s->normed = reserve_activations(r, m, s->chunk, cfg->hidden_size, f32);
    s->rows = reserve(r, s->chunk, sizeof *s->rows);
    s->plan = reserve(r, s->chunk, sizeof *s->plan);
    reserve_attention(r, m);
    reserve_full(r, cfg);
    reserve_moe(r, m);
    reserve_scratch(r, m);
    reserve_window(r, m);
    reserve_sparse(r, cfg);
    reserve_kda(r, m);
    s->head.row = reserve(r, o->max_logits, sizeof *s->head.row);
    s->head.normed = reserve_activations(r, m, o->max_logits, cfg->hidden_size, false);
    s->logits = reserve(r, o->max_logits * round_up(cfg->vocab_size, PANEL), sizeof(float));
}

State *state_open(const Model *m, const StateOptions *o, char *err, size_t err_bytes) {
    size_t most_blocks = 192 + 16 * (size_t)o->threads;
    State *s = aligned_alloc(_Alignof(State), sizeof *s); /* calloc gives 16 bytes, Team asks for 64 */
    if (s)
        memset(s, 0, sizeof *s);
    if (!s || !(s->blocks = calloc(most_blocks, sizeof *s->blocks))) {
        snprintf(err, err_bytes, "out of memory");
        free(s);
        return NULL;
    }
    if (!read_environment(s, err, err_bytes)) {
        state_close(s);
        return NULL;
    }
    if (!cache_fits(&m->config, o->cache)) {
        snprintf(err, err_bytes, "%s: has no latent, which -k full needs: use -k f32, bf16, q8, q6 or q4",
                 m->path);
        state_close(s);
        return NULL;
    }
    s->context = o->context;
    s->sequence_count = o->sequences;
    s->max_logits = o->max_logits;
    s->threads = o->threads;
    team_open(&s->team, s->threads);
    s->place_work = attention_work(m);
    s->chunk = min(s->chunk, s->context * s->sequence_count);

    Reserve r = {.s = s};
    reserve_cache(&r, m, o);
    size_t cache_bytes = r.total, memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    reserve_all(&r, m, o);
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

/* Row i of the call belongs to the run of its sequence: the same as the row before it, or a new one. */
static void add_to_run(State *s, size_t i) {
    Sequence *q = s->rows[i].sequence;
    if (!s->runs)
        return;
    if (i == 0 || s->rows[i - 1].sequence != q) {
        ConstantRun *run = &s->runs[s->run_count++];
        *run = (ConstantRun){.sequence = q, .first = i};
        sequence_begin_run(q, run);
    }
    s->runs[s->run_count - 1].rows++;
}

void state_begin(State *s, const Row *rows, size_t n) {
    s->run_count = 0;
    s->row_count = n;
    s->absorbed.count = s->head.count = 0;
    s->sparse.active = false;
    s->work = 0;
    atomic_store(&s->stop_before, SIZE_MAX);
    memcpy(s->rows, rows, n * sizeof *rows);
    for (size_t i = 0; i < n; i++) {
        Row *row = &s->rows[i];
        if (s->path_is_forced)
            row->path = s->forced_path;
        else if (row->place >= s->sparse.absorbed_from || s->window.in) /* windows have one path */
            row->path = PATH_ABSORBED;
        if (row->path == PATH_ABSORBED)
            s->absorbed.row[s->absorbed.count++] = (uint32_t)i;
        s->sparse.active |= index_rows(s, i) > s->sparse.threshold;
        sequence_reserve(row->sequence, (size_t)row->place + 1); /* no page is missing: StateOptions.pages */
        add_to_run(s, i);
        s->work += 1 + s->place_work * (double)rows_attended(s, i);
        if (row->logits)
            s->head.row[s->head.count++] = (uint32_t)i;
    }
    s->normed.rows = s->attention.qa_normed.rows = s->attention.heads.rows = (uint32_t)n;
    s->kda.decay_low.rows = s->kda.gate_low.rows = s->kda.heads.rows = (uint32_t)n;
    s->decompressed.latents.rows = s->window.low_rows.rows = (uint32_t)n;
    s->head.normed.rows = (uint32_t)s->head.count;
}

void state_drop(State *s) {
    if (s->branch) /* the next call expects zeros */
        memset(s->branch, 0, s->row_count * s->out_stride * sizeof *s->branch);
    for (size_t i = 0; i < s->run_count; i++)
        cache_release_slot(s->cache, s->runs[i].to);
}

void state_end(State *s) {
    for (size_t i = 0; i < s->run_count; i++)
        sequence_end_run(s->runs[i].sequence, &s->runs[i]);
    for (size_t i = 0; i < s->row_count; i++)
        s->rows[i].sequence->rows = (size_t)s->rows[i].place + 1;
}

void profile_stage(State *s, const Thread *t, Stage next) {
    Profile *p = s->profile;
    if (!p || t->id)
        return;
    double now = seconds();
    p->seconds[p->stage] += now - p->since;
    p->stage = next;
    p->since = now;
}
