/* checkpoint.c: opens, checks and maps model.bin (checkpoint.h describes it byte by byte). The file may
 * come from anywhere: every field is checked before it is used, and the first thing that is wrong is
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

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "checkpoints are little-endian and used in place"
#endif

/* ---- checksum ------------------------------------------------------------------------------- */

/* Eight tables, eight bytes a step (slicing-by-8): a checksum of everything must not be what takes the
 * time. */
static uint32_t crc_table[8][256];

static void crc_init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_table[k][i] = crc_table[0][crc_table[k - 1][i] & 255] ^ (crc_table[k - 1][i] >> 8);
}

uint32_t crc32(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *p = data;
    crc = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint32_t low, high;
        memcpy(&low, p, 4);
        memcpy(&high, p + 4, 4);
        low ^= crc;
        crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255] ^
              crc_table[4][low >> 24] ^ crc_table[3][high & 255] ^ crc_table[2][high >> 8 & 255] ^
              crc_table[1][high >> 16 & 255] ^ crc_table[0][high >> 24];
    }
    while (bytes--)
        crc = crc_table[0][(crc ^ *p++) & 255] ^ (crc >> 8);
    return ~crc;
}

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
    size_t bytes = kind == PLAIN_VECTOR
                       ? rows * sizeof(float)
                       : count * (round_up(rows, PANEL) / PANEL) * panel_bytes(info->type, cols);
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
        fail(r, "tensor %s has a scale that is not a number: %s", name, export_again);
    for (int i = 0; i < 16; i++)
        if (info->codebook[i] == -128)
            fail(r, "tensor %s has a codebook value below -127: %s", name, export_again);
    r->end = info->offset + bytes;
    return r->failed ? NULL : info;
}

/* There are few of these numbers, and one that is none could hide: a router's bias takes part in a choice
 * alone. What the matrices hold is found by --check, or when it reaches the logits. */
static const float *vector(Reader *r, const char *name, size_t n) {
    const TensorInfo *info = expect(r, name, PLAIN_VECTOR, 1, n, 1);
    const float *v = info ? (const float *)(const void *)(r->m->file + info->offset) : NULL;
    for (size_t i = 0; v && i < n; i++)
        if (!isfinite(v[i])) {
            fail(r, "tensor %s holds what is not a number: copy or export it again", name);
            return NULL;
        }
    return v;
}

static Matrix matrix_of_kind(Reader *r, const char *name, Kind kind, size_t count, size_t rows, size_t cols) {
    const TensorInfo *info = expect(r, name, kind, count, rows, cols);
    if (!info)
        return (Matrix){0};
    if (info->type == TYPE_Q8 || info->type == TYPE_Q4)
        r->m->int8_acts = true;
    else if (kind != F32_MATRIX)
        r->m->float_acts = true;
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
    if (r->m->config.hidden_act == ACT_SILU)
        mlp->gate = matrix(r, join(name, prefix, "gate"), width, D);
    mlp->up = matrix(r, join(name, prefix, "up"), width, D);
    mlp->down = matrix(r, join(name, prefix, "down"), D, width);
}

static void read_experts(Reader *r, Layer *L, const char *prefix) {
    const Config *c = &r->m->config;
    char name[64], expert[64];
    size_t choices = router_rows(c);
    L->router = matrix_of_kind(r, join(name, prefix, "router"), F32_MATRIX, 1, choices, c->hidden_size);
    L->router_bias = vector(r, join(name, prefix, "router_bias"), choices);
    if (c->n_shared_experts)
        read_mlp(r, &L->mlp, join(name, prefix, "shared."),
                 (size_t)c->n_shared_experts * c->moe_intermediate_size);
    L->experts = calloc(c->n_routed_experts, sizeof *L->experts);
    if (!L->experts)
        fail(r, "out of memory for the table of experts");
    for (uint32_t e = 0; e < c->n_routed_experts && !r->failed; e++) {
        snprintf(expert, sizeof expert, "%.30sexperts.%u.", prefix, e);
        read_mlp(r, &L->experts[e], expert, c->moe_intermediate_size);
    }
}

static void read_indexer(Reader *r, Layer *L, const char *prefix) {
    const Config *c = &r->m->config;
    char name[64];
    size_t di = c->index_head_dim;
    L->index_q = matrix(r, join(name, prefix, "index_q"), c->index_n_heads * di, c->q_lora_rank);
    L->index_k = matrix(r, join(name, prefix, "index_k"), di, c->hidden_size);
    L->index_k_norm = vector(r, join(name, prefix, "index_k_norm"), di);
    L->index_k_bias = vector(r, join(name, prefix, "index_k_bias"), di);
    L->index_weights = matrix_of_kind(r, join(name, prefix, "index_weights"), F32_MATRIX, 1, c->index_n_heads,
                                      c->hidden_size);
}

static void read_layer(Reader *r, Layer *L, const char *prefix, bool moe, bool indexer) {
    const Config *c = &r->m->config;
    char name[64];
    size_t D = c->hidden_size, H = c->num_attention_heads, n = c->qk_nope_head_dim, p = c->qk_rope_head_dim,
           v = c->v_head_dim;
    size_t latent = c->kv_lora_rank, ql = c->q_lora_rank;

    L->input_norm = vector(r, join(name, prefix, "input_norm"), D);
    if (ql) {
        L->q_a = matrix(r, join(name, prefix, "q_a"), ql, D);
        L->q_a_norm = vector(r, join(name, prefix, "q_a_norm"), ql);
        L->q_b = matrix(r, join(name, prefix, "q_b"), H * (n + p), ql);
    } else {
        L->q = matrix(r, join(name, prefix, "q"), H * (n + p), D);
    }
    L->kv_a = matrix(r, join(name, prefix, "kv_a"), latent + p, D);
    L->kv_a_norm = vector(r, join(name, prefix, "kv_a_norm"), latent);
    L->w_uk = matrix_of_kind(r, join(name, prefix, "w_uk"), ANY_MATRIX, H, n, latent);
    L->w_uk_t = matrix_of_kind(r, join(name, prefix, "w_uk_t"), ANY_MATRIX, H, latent, n);
    L->w_uv = matrix_of_kind(r, join(name, prefix, "w_uv"), ANY_MATRIX, H, v, latent);
    L->o = matrix(r, join(name, prefix, "o"), D, H * round_up(v, 32));
    if (indexer)
        read_indexer(r, L, prefix);
    if (c->sandwich_norm)
        L->attention_out_norm = vector(r, join(name, prefix, "attention_out_norm"), D);
    L->post_norm = vector(r, join(name, prefix, "post_norm"), D);
    if (!moe || c->shortcut_moe)
        read_mlp(r, &L->mlp, prefix, c->intermediate_size);
    if (moe)
        read_experts(r, L, prefix);
    if (c->sandwich_norm)
        L->mlp_out_norm = vector(r, join(name, prefix, "mlp_out_norm"), D);
}

/* The MTP layer is carried for programs that draft with it; this one checks it and does not run it. */
static void read_mtp(Reader *r) {
    const Config *c = &r->m->config;
    Layer unused = {0};
    vector(r, "mtp.enorm", c->hidden_size);
    vector(r, "mtp.hnorm", c->hidden_size);
    matrix(r, "mtp.eh_proj", c->hidden_size, 2 * (size_t)c->hidden_size);
    read_layer(r, &unused, "mtp.", layer_is_moe(c, c->published_layers), c->index_n_heads);
    vector(r, "mtp.norm", c->hidden_size);
    free(unused.experts);
}

/* What queries are multiplied with: a number for each stretch of query_scale_span positions. */
static const float *read_query_scale(Reader *r) {
    const Config *c = &r->m->config;
    size_t n = ((size_t)c->max_position_embeddings + c->query_scale_span - 1) / c->query_scale_span;
    return vector(r, "query_scale", n);
}

static void read_tensors(Reader *r) {
    Model *m = r->m;
    const Config *c = &m->config;
    char prefix[32];
    m->embed = matrix(r, "embed", c->vocab_size, c->hidden_size);
    m->head = c->tie_word_embeddings ? m->embed : matrix(r, "head", c->vocab_size, c->hidden_size);
    m->norm = vector(r, "norm", c->hidden_size);
    m->inv_freq = vector(r, "inv_freq", c->qk_rope_head_dim / 2);
    for (uint32_t i = 0; m->inv_freq && i < c->qk_rope_head_dim / 2; i++)
        /* published ones are at most 1; quarter turns must fit their integers (rope.c) */
        if (!(fabsf(m->inv_freq[i]) <= 64))
            fail(r, "tensor inv_freq has a value that no model can have: %s", export_again);
    if (c->query_scale_span)
        m->query_scale = read_query_scale(r);
    m->layers = calloc(c->num_hidden_layers, sizeof *m->layers);
    if (!m->layers)
        fail(r, "out of memory for the table of layers");
    for (uint32_t l = 0; l < c->num_hidden_layers && !r->failed; l++) {
        snprintf(prefix, sizeof prefix, "layers.%u.", l);
        read_layer(r, &m->layers[l], prefix, layer_is_moe(c, l), layer_has_indexer(c, l));
    }
    if (c->mtp_layers && !r->failed)
        read_mtp(r);
    if (!r->failed && r->next != m->tensor_count)
        fail(r, "tensor %.*s is not one this model has: %s", (int)sizeof m->tensors->name,
             m->tensors[r->next].name, export_again);
}

/* ---- header and configuration --------------------------------------------------------------- */

/* Limits far above any published model, so that no product of two fields comes near overflowing. */
static const char *config_error(const Config *c) {
    struct {
        const char *name;
        uint32_t value, least, most;
    } fields[] = {
        {"hidden_size", c->hidden_size, 1, 1 << 17},
        {"num_hidden_layers", c->num_hidden_layers, 1, 1 << 10},
        {"published_layers", c->published_layers, c->num_hidden_layers, 1 << 10},
        {"num_attention_heads", c->num_attention_heads, 1, 1 << 12},
        {"q_lora_rank", c->q_lora_rank, 0, 1 << 17},
        {"kv_lora_rank", c->kv_lora_rank, 1, 1 << 14},
        {"qk_nope_head_dim", c->qk_nope_head_dim, 1, 1 << 12},
        {"qk_rope_head_dim", c->qk_rope_head_dim, 2, 1 << 12},
        {"v_head_dim", c->v_head_dim, 1, 1 << 12},
        {"intermediate_size", c->intermediate_size, 1, 1 << 20},
        {"hidden_act", c->hidden_act, ACT_SILU, ACT_RELU2},
        {"sandwich_norm", c->sandwich_norm, 0, 1},
        {"vocab_size", c->vocab_size, 1, 1 << 24},
        {"max_position_embeddings", c->max_position_embeddings, 1, 1 << 24},
        {"tie_word_embeddings", c->tie_word_embeddings, 0, 1},
        {"n_routed_experts", c->n_routed_experts, 0, MAX_EXPERTS},
        {"zero_expert_num", c->zero_expert_num, 0,
         c->n_routed_experts ? MAX_EXPERTS - c->n_routed_experts : 0},
        {"shortcut_moe", c->shortcut_moe, 0, c->n_routed_experts ? 1 : 0},
        {"mtp_layers", c->mtp_layers, 0, 1},
        {"add_bos_token", c->add_bos_token, 0, c->bos_token_id >= 0},
        {"bos_token_id", (uint32_t)c->bos_token_id + 1, 0, c->vocab_size},
        {"eos_tokens", c->eos_tokens, 0, 8},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < fields[i].least || fields[i].value > fields[i].most)
            return fields[i].name;
    if (c->qk_rope_head_dim % 2)
        return "qk_rope_head_dim";
    for (uint32_t i = 0; i < c->eos_tokens; i++)
        if (c->eos_token_id[i] < 0 || (uint32_t)c->eos_token_id[i] >= c->vocab_size)
            return "eos_token_id";
    if (!memchr(c->name, 0, sizeof c->name))
        return "name";
    float above_zero[] = {c->softmax_scale, c->rms_norm_eps, c->latent_norm_eps};
    for (size_t i = 0; i < sizeof above_zero / sizeof *above_zero; i++)
        if (!(above_zero[i] > 0) || !isfinite(above_zero[i]))
            return i == 0 ? "softmax_scale" : i == 1 ? "rms_norm_eps" : "latent_norm_eps";
    if (!isfinite(c->embed_scale))
        return "embed_scale";
    if (!(c->temperature >= 0) || !isfinite(c->temperature))
        return "temperature";
    if (!(c->top_p > 0 && c->top_p <= 1))
        return "top_p";
    return NULL;
}

static const char *moe_error(const Config *c) {
    uint32_t E = c->n_routed_experts;
    if (!E)
        return NULL;
    if (c->n_group < 1 || c->n_group > MAX_GROUPS || E % c->n_group || (c->n_group > 1 && c->zero_expert_num))
        return "n_group";
    if (c->topk_group < 1 || c->topk_group > c->n_group)
        return "topk_group";
    if (c->num_experts_per_tok < 1 ||
        c->num_experts_per_tok > E / c->n_group * c->topk_group + c->zero_expert_num)
        return "num_experts_per_tok";
    if (c->moe_intermediate_size < 1 || c->moe_intermediate_size > 1 << 17)
        return "moe_intermediate_size";
    if (c->n_shared_experts > 64)
        return "n_shared_experts";
    if (c->moe_layer_freq < 1)
        return "moe_layer_freq";
    if (c->scoring_func > SCORE_SIGMOID)
        return "scoring_func";
    if (c->group_score > GROUP_TOP2_SUM)
        return "group_score";
    if (c->norm_topk_prob > 1)
        return "norm_topk_prob";
    /* pairs of layers, the first with experts; what waits for the end of a pair has one buffer, and so has
     * what waits for its norm */
    if (c->shortcut_moe && (c->num_hidden_layers % 2 || c->published_layers % 2 || c->first_k_dense_replace ||
                            c->moe_layer_freq != 2 || c->n_shared_experts || c->sandwich_norm))
        return "shortcut_moe";
    return isfinite(c->routed_scaling_factor) ? NULL : "routed_scaling_factor";
}

static const char *index_error(const Config *c) {
    if (!c->index_n_heads)
        return NULL;
    if (c->index_n_heads > 1 << 12 || !c->q_lora_rank) /* index queries come from the compressed ones */
        return "index_n_heads";
    if (c->index_head_dim < c->qk_rope_head_dim || c->index_head_dim > 1 << 12)
        return "index_head_dim";
    if (c->index_topk < 1)
        return "index_topk";
    if (c->index_topk_freq < 1)
        return "index_topk_freq";
    /* the first layer has none before it to share with */
    return layer_has_indexer(c, 0) ? NULL : "index_skip_topk_offset";
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
    uint64_t tokenizer = round_up(sizeof *h + sizeof(Config), 64),
             chat = round_up((size_t)(tokenizer + h->tokenizer_bytes), 64);
    uint64_t table = round_up((size_t)(chat + h->chat_bytes), 64);
    if (h->tokenizer_bytes > m->file_bytes || h->chat_bytes > m->file_bytes ||
        h->config_bytes != sizeof(Config) || h->data_offset % 4096 || h->data_offset > m->file_bytes ||
        table > h->data_offset || h->tensors > (h->data_offset - table) / sizeof(TensorInfo)) {
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
    memcpy(&m->config, m->file + sizeof *h, sizeof m->config);
    const char *bad = config_error(&m->config);
    bad = bad ? bad : moe_error(&m->config);
    bad = bad ? bad : index_error(&m->config);
    if (bad) {
        fail(r, "configuration field %s has a value that no model can have: %s", bad, export_again);
        return;
    }
    r->end = h->data_offset;
    m->tensors = (const TensorInfo *)(const void *)(m->file + table);
    m->tensor_count = h->tensors;
    m->chat = m->file + chat, m->chat_bytes = h->chat_bytes;
    if (h->tokenizer_bytes) {
        char why[256];
        m->tokenizer = tokenizer_open(m->file + tokenizer, h->tokenizer_bytes, why, sizeof why);
        if (!m->tokenizer)
            fail(r, "tokenizer: %s", why);
    }
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
    static atomic_flag told = ATOMIC_FLAG_INIT;
    const uint8_t *at = info->si_addr;
    if (at >= watched.from && at < watched.to) {
        while (atomic_flag_test_and_set(&told)) /* by another thread, which ends the program */
            pause();
        while (write(STDERR_FILENO, watched.line, strlen(watched.line)) < 0 && errno == EINTR)
            continue;
        _exit(1);
    }
    signal(signal_number, SIG_DFL); /* not ours: the same again, unhandled */
}

static void watch(const Model *m) {
    watched.from = m->file, watched.to = m->file + m->file_bytes;
    snprintf(watched.line, sizeof watched.line,
             "run: %.400s: cut short or unreadable while it was in use: leave it alone, run again\n",
             m->path);
    struct sigaction action = {.sa_sigaction = lost, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

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
        if (p == MAP_FAILED)
            fail(r, "cannot be mapped: %s", strerror(errno));
        else
            m->file = p, m->file_bytes = (size_t)st.st_size, watch(m);
    }
    if (fd >= 0)
        close(fd);
}

bool model_open(Model *m, const char *path, char *err, size_t err_bytes) {
    *m = (Model){.path = path};
    Reader r = {.m = m, .err = err, .err_bytes = err_bytes};
    const char *why = NULL;
    m->k = kernels_choose(&why);
    if (!m->k) {
        snprintf(err, err_bytes, "%s", why);
        return false;
    }
    crc_init();
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
    if (m->tokenizer)
        tokenizer_close(m->tokenizer);
    if (m->file)
        munmap((void *)m->file, m->file_bytes);
    m->layers = NULL, m->tokenizer = NULL, m->file = NULL;
}
