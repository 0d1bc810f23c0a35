/* engine/checkpoint.c: opens, checks and maps model.bin (checkpoint.h describes it byte by byte). The file
 * may come from anywhere: every field is checked before it is used, and the first thing that is wrong is
 * named. Weights are used where they lie; nothing here depends on their size. */
#include "engine/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/cache.h"
#include "engine/config.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checkpoints are little-endian and used in place");

/* ---- reading the tables --------------------------------------------------------------------- */

/* The cursor over the tensor table. The first error stays in err, later calls do nothing. */
typedef struct {
    Model *m;
    uint64_t end; /* of the tensor before: where the next one may begin */
    size_t next;
    bool failed;
    char *err;
    size_t err_bytes;
} Reader;

__attribute__((format(printf, 2, 3))) static void fail(Reader *r, const char *format, ...) {
    if (r->failed)
        return;
    r->failed = true;
    int n = snprintf(r->err, r->err_bytes, "%s: ", r->m->path);
    va_list args;
    va_start(args, format);
    if (n >= 0 && (size_t)n < r->err_bytes)
        vsnprintf(r->err + n, r->err_bytes - (size_t)n, format, args);
    va_end(args);
}

static const char *const export_again = "export it again";

typedef enum { ANY_MATRIX, F32_MATRIX, PLAIN_VECTOR } Kind;

/* The next tensor must be this one: `count` matrices [rows, cols], or a vector of `rows` numbers. */
static const TensorInfo *expect(Reader *r, const char *name, Kind kind, size_t count, size_t rows,
                                size_t cols) {
    const Model *m = r->m;
    if (r->failed)
        return NULL;
    if (r->next >= m->tensor_count) {
        fail(r, "tensor %s is missing: %s", name, export_again);
        return NULL;
    }
    const TensorInfo *info = &m->tensors[r->next++];
    if (strncmp(info->name, name, sizeof info->name)) {
        fail(r, "tensor %zu is \"%.*s\" where %s belongs: %s", r->next - 1, (int)sizeof info->name,
             info->name, name, export_again);
        return NULL;
    }
    size_t bytes = kind == PLAIN_VECTOR ? rows * sizeof(float)
                                        : count * div_up(rows, PANEL) * panel_bytes(info->type, cols);
    bool type_ok = kind == PLAIN_VECTOR ? info->type == TYPE_VECTOR
                   : kind == F32_MATRIX ? info->type == TYPE_F32
                                        : info->type > TYPE_VECTOR && info->type < TYPE_COUNT;
    if (!type_ok)
        fail(r, "tensor %s has type %u, which it cannot have: %s", name, info->type, export_again);
    else if (info->count != count || info->rows != rows || info->cols != cols)
        fail(r, "tensor %s is %u x [%u, %u] and should be %zu x [%zu, %zu]: %s", name, info->count,
             info->rows, info->cols, count, rows, cols, export_again);
    else if (info->offset % 64 || info->offset < r->end || info->bytes != bytes ||
             info->offset > m->file_bytes ||
             bytes > m->file_bytes - info->offset) /* in order and apart: no model is larger than its file */
        fail(r, "tensor %s does not lie in its place in the file: %s", name, export_again);
    else if (!isfinite(info->scale))
        fail(r, "tensor %s has a non-finite scale: %s", name, export_again);
    for (int i = 0; i < 16; i++)
        if (info->codebook[i] == -128)
            fail(r, "tensor %s has a codebook value below -127: %s", name, export_again);
    r->end = info->offset + bytes;
    return r->failed ? NULL : info;
}

/* Vectors are short and are checked here. A non-finite number in a router's bias could stay hidden: it
 * takes part in a choice alone. One in a matrix is found by --check, or when it reaches the logits. */
static const float *vector(Reader *r, const char *name, size_t n) {
    const TensorInfo *info = expect(r, name, PLAIN_VECTOR, 1, n, 1);
    const float *v = info ? (const float *)(const void *)(r->m->file + info->offset) : NULL;
    for (size_t i = 0; v && i < n; i++)
        if (!isfinite(v[i])) {
            fail(r, "tensor %s holds a non-finite number: copy or export it again", name);
            return NULL;
        }
    return v;
}

static Matrix matrix_of_kind(Reader *r, const char *name, Kind kind, size_t count, size_t rows, size_t cols) {
    const TensorInfo *info = expect(r, name, kind, count, rows, cols);
    if (!info)
        return (Matrix){0};
    if (info->type == TYPE_Q8 || info->type == TYPE_Q4)
        r->m->int8_activations = true;
    else if (kind != F32_MATRIX)
        r->m->float_activations = true;
    return (Matrix){
        r->m->file + info->offset, info->codebook, info->type, info->rows, info->cols, info->scale};
}

static Matrix matrix(Reader *r, const char *name, size_t rows, size_t cols) {
    return matrix_of_kind(r, name, ANY_MATRIX, 1, rows, cols);
}

/* "prefix" "name" as one string, valid until the next call. */
static const char *join(char buffer[64], const char *prefix, const char *name) {
    snprintf(buffer, 64, "%s%s", prefix, name);
    return buffer;
}

static void read_mlp(Reader *r, Mlp *mlp, const char *prefix, size_t width) {
    char name[64];
    size_t D = r->m->config.hidden_size;
    mlp->limit = INFINITY;
    if (r->m->config.hidden_act == ACT_SILU)
        mlp->gate = matrix(r, join(name, prefix, "gate"), width, D);
    mlp->up = matrix(r, join(name, prefix, "up"), width, D);
    mlp->down = matrix(r, join(name, prefix, "down"), D, width);
}

/* The table of a hash layer. */
static const float *read_token_experts(Reader *r, const char *name) {
    const Config *cfg = &r->m->config;
    size_t n = (size_t)cfg->vocab_size * cfg->num_experts_per_tok;
    const float *table = vector(r, name, n);
    for (size_t i = 0; table && i < n; i++)
        if (!(table[i] >= 0 && table[i] < (float)cfg->n_routed_experts && table[i] == truncf(table[i])))
            fail(r, "tensor %s names an expert that the model does not have: %s", name, export_again);
    return table;
}

static void read_experts(Reader *r, Layer *L, const char *prefix, uint32_t layer) {
    const Config *cfg = &r->m->config;
    char name[64], expert[64];
    size_t choices = router_rows(cfg);
    L->router = matrix_of_kind(r, join(name, prefix, "router"), F32_MATRIX, 1, choices, cfg->hidden_size);
    if (layer < cfg->num_hash_layers)
        L->token_experts = read_token_experts(r, join(name, prefix, "token_experts"));
    else
        L->router_bias = vector(r, join(name, prefix, "router_bias"), choices);
    if (cfg->n_shared_experts)
        read_mlp(r, &L->mlp, join(name, prefix, "shared."),
                 (size_t)cfg->n_shared_experts * cfg->moe_intermediate_size);
    L->experts = calloc(cfg->n_routed_experts, sizeof *L->experts);
    if (!L->experts)
        fail(r, "out of memory for the table of experts");
    for (uint32_t e = 0; e < cfg->n_routed_experts && !r->failed; e++) {
        snprintf(expert, sizeof expert, "%.30sexperts.%u.", prefix, e);
        read_mlp(r, &L->experts[e], expert, cfg->moe_intermediate_size);
    }
}

static void read_indexer(Reader *r, Layer *L, const char *prefix) {
    const Config *cfg = &r->m->config;
    char name[64];
    size_t di = cfg->index_head_dim;
    L->index_q = matrix(r, join(name, prefix, "index_q"), cfg->index_n_heads * di, cfg->q_lora_rank);
    L->index_k = matrix(r, join(name, prefix, "index_k"), di, cfg->hidden_size);
    L->index_k_norm = vector(r, join(name, prefix, "index_k_norm"), di);
    L->index_k_bias = vector(r, join(name, prefix, "index_k_bias"), di);
    if (cfg->index_kpool) {
        L->index_compressor.gate = matrix(r, join(name, prefix, "index_pool_gate"), di, cfg->hidden_size);
        L->index_compressor.ape = vector(r, join(name, prefix, "index_pool_ape"), cfg->index_kpool * di);
    }
    L->index_weights = matrix_of_kind(r, join(name, prefix, "index_weights"), F32_MATRIX, 1,
                                      cfg->index_n_heads, cfg->hidden_size);
}

/* The matrix of a decay (names "kda_f", "kda_f_a", "kda_f_b") or an output gate: whole, or the two of low
 * rank. */
static void read_kda_gate(Reader *r, Matrix *whole, Matrix *low, const char *prefix,
                          const char *const names[3]) {
    const Config *cfg = &r->m->config;
    char name[64];
    size_t D = cfg->hidden_size, rows = (size_t)cfg->kda_heads * cfg->kda_head_dim, rank = cfg->kda_rank;
    if (rank)
        *low = matrix(r, join(name, prefix, names[1]), rank, D);
    *whole = matrix(r, join(name, prefix, names[rank ? 2 : 0]), rows, rank ? rank : D);
}

static void read_kda(Reader *r, Layer *L, const char *prefix) {
    static const char *const in[] = {"kda_q", "kda_k", "kda_v"},
                             *const filters[] = {"kda_q_filter", "kda_k_filter", "kda_v_filter"},
                             *const decay[] = {"kda_f", "kda_f_a", "kda_f_b"},
                             *const gate[] = {"kda_g", "kda_g_a", "kda_g_b"};
    const Config *cfg = &r->m->config;
    Kda *kda = &L->kda;
    char name[64];
    size_t D = cfg->hidden_size, H = cfg->kda_heads, d = cfg->kda_head_dim;
    for (int i = 0; i < 3; i++)
        kda->in[i] = matrix(r, join(name, prefix, in[i]), H * d, D);
    for (int i = 0; i < 3; i++)
        kda->filter[i] = vector(r, join(name, prefix, filters[i]), cfg->kda_taps * H * d);
    read_kda_gate(r, &kda->decay, &kda->decay_low, prefix, decay);
    read_kda_gate(r, &kda->gate, &kda->gate_low, prefix, gate);
    kda->rate = vector(r, join(name, prefix, "kda_rate"), H);
    kda->decay_bias = vector(r, join(name, prefix, "kda_f_bias"), H * d);
    kda->beta = matrix_of_kind(r, join(name, prefix, "kda_beta"), F32_MATRIX, 1, H, D);
    kda->norm = vector(r, join(name, prefix, "kda_norm"), d);
    L->o = matrix(r, join(name, prefix, "o"), D, H * round_up(d, 32));
}

static void read_attention(Reader *r, Layer *L, const char *prefix) {
    const Config *cfg = &r->m->config;
    char name[64];
    size_t D = cfg->hidden_size, H = cfg->num_attention_heads, n = cfg->qk_nope_head_dim,
           p = cfg->qk_rope_head_dim, v = cfg->v_head_dim;
    size_t latent = cfg->kv_lora_rank, ql = cfg->q_lora_rank;

    if (ql) {
        L->q_a = matrix(r, join(name, prefix, "q_a"), ql, D);
        L->q_a_norm = vector(r, join(name, prefix, "q_a_norm"), ql);
        L->q_b = matrix(r, join(name, prefix, "q_b"), H * (n + p), ql);
    } else {
        L->q = matrix(r, join(name, prefix, "q"), H * (n + p), D);
    }
    if (cfg->num_key_value_heads) {
        L->k = matrix(r, join(name, prefix, "k"), cfg->num_key_value_heads * p, D);
        L->v = matrix(r, join(name, prefix, "v"), cfg->num_key_value_heads * v, D);
    } else {
        L->kv_a = matrix(r, join(name, prefix, "kv_a"), latent + p, D);
        L->kv_a_norm = vector(r, join(name, prefix, "kv_a_norm"), latent);
        L->w_uk = matrix_of_kind(r, join(name, prefix, "w_uk"), ANY_MATRIX, H, n, latent);
        L->w_uk_t = matrix_of_kind(r, join(name, prefix, "w_uk_t"), ANY_MATRIX, H, latent, n);
        L->w_uv = matrix_of_kind(r, join(name, prefix, "w_uv"), ANY_MATRIX, H, v, latent);
    }
    if (cfg->head_gate)
        L->head_gate = matrix_of_kind(r, join(name, prefix, "head_gate"), F32_MATRIX, 1, H, D);
    L->o = matrix(r, join(name, prefix, "o"), D, H * round_up(v, 32));
}

/* names: of kv, gate, ape, norm. d: numbers of a row; w: what a token gives to one or two of them. */
static void read_compressor(Reader *r, Compressor *c, const char *prefix, const char *const names[4],
                            size_t ratio, size_t w, size_t d) {
    char name[64];
    c->kv = matrix(r, join(name, prefix, names[0]), w, r->m->config.hidden_size);
    c->gate = matrix(r, join(name, prefix, names[1]), w, r->m->config.hidden_size);
    c->ape = vector(r, join(name, prefix, names[2]), ratio * w);
    c->norm = vector(r, join(name, prefix, names[3]), d);
}

static void read_csa(Reader *r, Layer *L, const char *prefix, size_t d) {
    static const char *const rows[] = {"compress_kv", "compress_gate", "compress_ape", "compress_norm"},
                             *const keys[] = {"index_compress_kv", "index_compress_gate",
                                              "index_compress_ape", "index_compress_norm"};
    const Config *cfg = &r->m->config;
    char name[64];
    size_t Hi = cfg->index_n_heads, di = cfg->index_head_dim;
    read_compressor(r, &L->compressor, prefix, rows, cfg->csa_ratio, 2 * d, d);
    L->index_q = matrix(r, join(name, prefix, "index_q"), Hi * di, cfg->q_lora_rank);
    read_compressor(r, &L->index_compressor, prefix, keys, cfg->csa_ratio, 2 * di, di);
    L->index_weights =
        matrix_of_kind(r, join(name, prefix, "index_weights"), F32_MATRIX, 1, Hi, cfg->hidden_size);
}

/* Attention of a model with sliding_window. */
static void read_window(Reader *r, Layer *L, const char *prefix, uint32_t layer) {
    static const char *const rows[] = {"compress_kv", "compress_gate", "compress_ape", "compress_norm"};
    const Config *cfg = &r->m->config;
    char name[64];
    size_t D = cfg->hidden_size, H = cfg->num_attention_heads, ql = cfg->q_lora_rank, G = cfg->o_groups,
           d = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim;
    L->q_a = matrix(r, join(name, prefix, "q_a"), ql, D);
    L->q_a_norm = vector(r, join(name, prefix, "q_a_norm"), ql);
    L->q_b = matrix(r, join(name, prefix, "q_b"), H * d, ql);
    L->window_kv = matrix(r, join(name, prefix, "kv"), d, D);
    L->window_kv_norm = vector(r, join(name, prefix, "kv_norm"), d);
    L->sinks = vector(r, join(name, prefix, "sinks"), H);
    if (layer_is_csa(cfg, layer))
        read_csa(r, L, prefix, d);
    else if (layer_is_hca(cfg, layer))
        read_compressor(r, &L->compressor, prefix, rows, cfg->hca_ratio, d, d);
    L->o_a = matrix_of_kind(r, join(name, prefix, "o_a"), ANY_MATRIX, G, cfg->o_lora_rank, H / G * d);
    L->o = matrix(r, join(name, prefix, "o"), D, G * cfg->o_lora_rank);
}

/* A hyper-connection with `outputs` weights: the tensors "prefix" "fn", "base", "scale". */
static void read_hyper(Reader *r, Hyper *h, const char *prefix, size_t outputs, size_t scales) {
    const Config *cfg = &r->m->config;
    char name[64];
    h->fn = matrix_of_kind(r, join(name, prefix, "fn"), F32_MATRIX, 1, outputs,
                           (size_t)cfg->hc_mult * cfg->hidden_size);
    h->base = vector(r, join(name, prefix, "base"), outputs);
    h->scale = vector(r, join(name, prefix, "scale"), scales);
}

/* `layer`: its number, which says of what kind it is. */
static void read_layer(Reader *r, Layer *L, const char *prefix, uint32_t layer, bool indexer) {
    const Config *cfg = &r->m->config;
    char name[64];
    size_t D = cfg->hidden_size, S = cfg->hc_mult;
    bool moe = layer_is_moe(cfg, layer);

    if (S)
        read_hyper(r, &L->attention_hyper, join(name, prefix, "attention_hc_"), 2 * S + S * S, 3);
    L->input_norm = vector(r, join(name, prefix, "input_norm"), D);
    if (layer < cfg->published_layers && layer_is_kda(cfg, layer))
        read_kda(r, L, prefix);
    else if (cfg->sliding_window)
        read_window(r, L, prefix, layer);
    else
        read_attention(r, L, prefix);
    if (indexer && !cfg->sliding_window)
        read_indexer(r, L, prefix);
    if (cfg->sandwich_norm)
        L->attention_out_norm = vector(r, join(name, prefix, "attention_out_norm"), D);
    if (S)
        read_hyper(r, &L->mlp_hyper, join(name, prefix, "mlp_hc_"), 2 * S + S * S, 3);
    L->post_norm = vector(r, join(name, prefix, "post_norm"), D);
    if (!moe || cfg->shortcut_moe)
        read_mlp(r, &L->mlp, prefix, cfg->intermediate_size);
    if (moe)
        read_experts(r, L, prefix, layer);
    if (layer_norms_mlp(cfg, layer))
        L->mlp_out_norm = vector(r, join(name, prefix, "mlp_out_norm"), D);
}

/* The MTP layer is carried for programs that draft with it; this one checks it and does not run it. */
static void read_mtp(Reader *r) {
    const Config *cfg = &r->m->config;
    Layer unused = {0};
    vector(r, "mtp.enorm", cfg->hidden_size);
    vector(r, "mtp.hnorm", cfg->hidden_size);
    matrix(r, "mtp.eh_proj", cfg->hidden_size, 2 * (size_t)cfg->hidden_size);
    read_layer(r, &unused, "mtp.", cfg->published_layers, cfg->index_n_heads);
    vector(r, "mtp.norm", cfg->hidden_size);
    free(unused.experts);
}

/* What queries are multiplied with: a number for each stretch of query_scale_span positions. */
static const float *read_query_scale(Reader *r) {
    const Config *cfg = &r->m->config;
    return vector(r, "query_scale", div_up(cfg->max_position_embeddings, cfg->query_scale_span));
}

static void read_layers(Reader *r, const float *limits) {
    Model *m = r->m;
    const Config *cfg = &m->config;
    char prefix[32];
    size_t tiles = 0;
    m->layers = calloc(cfg->num_hidden_layers, sizeof *m->layers);
    if (!m->layers)
        fail(r, "out of memory for the table of layers");
    for (uint32_t l = 0; l < cfg->num_hidden_layers && !r->failed; l++) {
        Layer *L = &m->layers[l];
        snprintf(prefix, sizeof prefix, "layers.%u.", l);
        read_layer(r, L, prefix, l, layer_has_indexer(cfg, l));
        L->tile = tiles;
        tiles += layer_has_tiles(cfg, l);
        L->tile = m->layers[compressed_rows_owner(cfg, l)].tile;
        if (!limits || (!L->experts && cfg->swiglu_limits != LIMIT_GATE)) /* the other is of experts alone */
            continue;
        const float *routed = limits + l, *shared = routed + cfg->published_layers;
        for (uint32_t e = 0; L->experts && e < cfg->n_routed_experts; e++)
            L->experts[e].limit = *routed > 0 ? *routed : INFINITY;
        L->mlp.limit = *shared > 0 ? *shared : INFINITY;
    }
}

/* Published ones are at most 1; quarter turns must fit their integers (rope.c). */
static const float *read_frequencies(Reader *r, const char *name) {
    size_t pairs = r->m->config.qk_rope_head_dim / 2;
    const float *f = vector(r, name, pairs);
    for (size_t i = 0; f && i < pairs; i++)
        if (!(fabsf(f[i]) <= 64))
            fail(r, "tensor %s has a value that no model can have: %s", name, export_again);
    return f;
}

static void read_tensors(Reader *r) {
    Model *m = r->m;
    const Config *cfg = &m->config;
    const float *limits = NULL;
    m->embed = matrix(r, "embed", cfg->vocab_size, cfg->hidden_size);
    m->head = cfg->tie_word_embeddings ? m->embed : matrix(r, "head", cfg->vocab_size, cfg->hidden_size);
    m->norm = vector(r, "norm", cfg->hidden_size);
    m->inv_freq = read_frequencies(r, "inv_freq");
    if (cfg->csa_ratio || cfg->hca_ratio)
        m->compress_inv_freq = read_frequencies(r, "compress_inv_freq");
    if (cfg->query_scale_span)
        m->query_scale = read_query_scale(r);
    if (cfg->swiglu_limits)
        limits = vector(r, "swiglu_limits", 2 * (size_t)cfg->published_layers);
    if (cfg->hc_mult)
        read_hyper(r, &m->head_hyper, "hc_head_", cfg->hc_mult, 1);
    read_layers(r, limits);
    if (cfg->mtp_layers && !r->failed)
        read_mtp(r);
    if (!r->failed && r->next != m->tensor_count)
        fail(r, "tensor %.*s is not one this model has: %s", (int)sizeof m->tensors->name,
             m->tensors[r->next].name, export_again);
}

/* ---- header and configuration --------------------------------------------------------------- */

/* Copies the file's `bytes` of Config. Fields that an older file lacks stay 0, which means "as before". A
 * newer file may have fields that this program does not know. They must be 0 as well: another value could
 * change the arithmetic. */
static void read_config(Reader *r, size_t bytes) {
    Model *m = r->m;
    const uint8_t *config = m->file + sizeof(FileHeader);
    memcpy(&m->config, config, min(bytes, sizeof m->config));
    for (size_t i = sizeof m->config; i < bytes; i++)
        if (config[i]) {
            fail(r, "made by a newer export.py, with a setting that this program does not know: build a "
                    "newer run, or export it again");
            return;
        }
    const char *bad = config_error(&m->config);
    if (bad)
        fail(r, "configuration field %s has a value that no model can have: %s", bad, export_again);
}

/* Header, checksum, configuration, tokenizer: everything before the tensor table. */
static void read_header(Reader *r) {
    Model *m = r->m;
    const FileHeader *h = (const FileHeader *)(const void *)m->file;
    if (m->file_bytes < sizeof *h || memcmp(h->magic, CHECKPOINT_MAGIC, sizeof h->magic)) {
        fail(r, "not a checkpoint of this program: make one with export.py");
        return;
    }
    if (h->version != CHECKPOINT_VERSION) {
        fail(r, "a checkpoint of version %u, this program reads version %u: %s", h->version,
             CHECKPOINT_VERSION, export_again);
        return;
    }
    if (h->file_bytes != m->file_bytes) {
        fail(r, "%zu bytes long instead of %llu, it was cut short or added to: copy or export it again",
             m->file_bytes, (unsigned long long)h->file_bytes);
        return;
    }
    uint64_t tokenizer = round_up(sizeof *h + h->config_bytes, 64),
             chat = round_up((size_t)(tokenizer + h->tokenizer_bytes), 64);
    uint64_t table = round_up((size_t)(chat + h->chat_bytes), 64);
    if (h->tokenizer_bytes > m->file_bytes || h->chat_bytes > m->file_bytes ||
        h->config_bytes > m->file_bytes || h->config_bytes < OLDEST_CONFIG_BYTES || h->config_bytes % 4 ||
        h->data_offset % 4096 || h->data_offset > m->file_bytes || table > h->data_offset ||
        h->tensors > (h->data_offset - table) / sizeof(TensorInfo)) {
        fail(r, "damaged header: copy or export it again");
        return;
    }
    FileHeader zeroed = *h;
    zeroed.checksum = 0;
    uint32_t crc =
        crc32(crc32(0, &zeroed, sizeof zeroed), m->file + sizeof *h, (size_t)h->data_offset - sizeof *h);
    if (crc != h->checksum) {
        fail(r, "damaged: the checksum of header and tables is %08x instead of %08x: copy or export it again",
             crc, h->checksum);
        return;
    }
    read_config(r, h->config_bytes);
    if (r->failed)
        return;
    r->end = h->data_offset;
    m->tensors = (const TensorInfo *)(const void *)(m->file + table);
    m->tensor_count = h->tensors;
    m->chat = m->file + chat;
    m->chat_bytes = h->chat_bytes;
    m->tokenizer_section = m->file + tokenizer;
    m->tokenizer_bytes = h->tokenizer_bytes;
}

/* The map that is watched: a file that is cut short while it is in use, or a disk that fails, is a signal
 * at some read of a weight. */
static struct {
    const uint8_t *from, *to;
    char line[512];
} watched;

/* May call nothing that is not safe in a signal handler. */
static void lost(int signal_number, siginfo_t *info, void *context) {
    (void)context;
    static atomic_flag reported = ATOMIC_FLAG_INIT;
    const uint8_t *at = info->si_addr;
    if (at >= watched.from && at < watched.to) {
        while (atomic_flag_test_and_set(&reported)) /* by another thread, which ends the program */
            pause();
        while (write(STDERR_FILENO, watched.line, strlen(watched.line)) < 0 && errno == EINTR)
            continue;
        _exit(1);
    }
    signal(signal_number, SIG_DFL); /* not ours: the same again, unhandled */
}

static void watch(const Model *m) {
    watched.from = m->file;
    watched.to = m->file + m->file_bytes;
    snprintf(watched.line, sizeof watched.line,
             "run: %.400s: cut short or unreadable while it was in use: leave it alone, run again\n",
             m->path);
    struct sigaction action = {.sa_sigaction = lost, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

/* Bytes. A file of this size or less is assumed to stay in the caches while the program runs. */
enum { CACHE_BYTES = 32 << 20 };

static void map_file(Reader *r) {
    Model *m = r->m;
    int fd = open(m->path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        fail(r, "%s", strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        fail(r, "not a regular file: a checkpoint is mapped, give the path of one");
    } else if (st.st_size == 0) {
        fail(r, "empty: make a checkpoint with export.py");
    } else {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED) {
            fail(r, "cannot be mapped: %s", strerror(errno));
        } else {
#ifdef MADV_HUGEPAGE
            /* advice for what must still be read from the file; no fault if the system has none */
            madvise(p, (size_t)st.st_size, MADV_HUGEPAGE);
#endif
            m->file = p;
            m->file_bytes = (size_t)st.st_size;
            *m->ops->from_memory = m->file_bytes > CACHE_BYTES;
            watch(m);
        }
    }
    if (fd >= 0)
        close(fd);
}

bool model_open(Model *m, const char *path, char *err, size_t err_bytes) {
    *m = (Model){.path = path};
    Reader r = {.m = m, .err = err, .err_bytes = err_bytes};
    const char *why = NULL;
    m->ops = kernels_choose(&why);
    if (!m->ops) {
        snprintf(err, err_bytes, "%s", why);
        return false;
    }
    map_file(&r);
    if (!r.failed)
        read_header(&r);
    if (!r.failed)
        read_tensors(&r);
    if (r.failed)
        model_close(m);
    return !r.failed;
}

void model_close(Model *m) {
    for (uint32_t l = 0; m->layers && l < m->config.num_hidden_layers; l++)
        free(m->layers[l].experts);
    free(m->layers);
    if (m->file)
        munmap((void *)m->file, m->file_bytes);
    m->layers = NULL;
    m->file = NULL;
}
