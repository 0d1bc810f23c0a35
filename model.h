/* model.h: every dimension with its name, every pointer with its shape. Read it beside run.c; the file
 * that holds all this is described in engine/checkpoint.h, the matrices' inside in kernels/kernels.h. */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/team.h"
#include "tokenizer.h"

/* Every fact that changes the arithmetic, under the name that published configurations use. Part of the
 * file: 4-byte fields, in this order. What could be folded into the weights was folded by export.py and
 * has no field. */
typedef struct {
    /* for people only: the source's directory or the published shape; NUL-terminated */
    char name[64];
    uint32_t hidden_size; /* D */
    /* multiplies embeddings: a tied one cannot hold it, because head shares it */
    float embed_scale;
    uint32_t num_hidden_layers;   /* layers in this file */
    uint32_t published_layers;    /* of the model it was made from */
    uint32_t num_attention_heads; /* H */
    uint32_t q_lora_rank;         /* ql; 0: queries come from x directly */
    uint32_t kv_lora_rank;        /* r: the latent */
    uint32_t qk_nope_head_dim;    /* n: part of a query or key without position */
    uint32_t qk_rope_head_dim;    /* p: rotated part; the rotated key is shared by all heads */
    uint32_t v_head_dim;          /* v */
    uint32_t intermediate_size;   /* I: width of a dense layer's MLP */
    uint32_t hidden_act;          /* ACT_SILU or ACT_RELU2 */
    uint32_t sandwich_norm;       /* 1: what attention and MLP give is normed before it is added */
    uint32_t vocab_size;          /* V */
    uint32_t max_position_embeddings;
    uint32_t tie_word_embeddings; /* 1: head is embed */
    uint32_t n_routed_experts;    /* E; 0: every layer is dense */
    uint32_t num_experts_per_tok;
    uint32_t n_shared_experts;
    uint32_t moe_intermediate_size; /* M */
    uint32_t first_k_dense_replace; /* layers below it are dense */
    uint32_t moe_layer_freq;        /* of the others, every such one is a mixture of experts */
    /* Z: the router's experts E .. E + Z - 1 give back what they are given */
    uint32_t zero_expert_num;
    /* 1: layers are pairs, the first with experts beside its dense MLP, whose sum is added after the
     * second */
    uint32_t shortcut_moe;
    uint32_t n_group, topk_group; /* experts are chosen from topk_group of n_group groups */
    uint32_t scoring_func;        /* SCORE_SOFTMAX or SCORE_SIGMOID */
    uint32_t group_score;         /* GROUP_MAX or GROUP_TOP2_SUM */
    uint32_t norm_topk_prob;      /* 1: the chosen weights are divided by their sum */
    float routed_scaling_factor;  /* then multiplied by this, always */
    float rms_norm_eps;
    float latent_norm_eps; /* of q_a_norm and kv_a_norm: another one than rms_norm_eps */
    float softmax_scale;   /* (n + p)^-0.5, times YaRN's mscale squared where the model has it */
    /* a query at position i is multiplied by query_scale[i / span]; 0: it is not */
    uint32_t query_scale_span;
    uint32_t index_n_heads;  /* Hi: the sparse attention's indexer; 0: attention is dense */
    uint32_t index_head_dim; /* di, of it the last p rotated */
    uint32_t index_topk;     /* cached rows that a new one attends to, at most */
    /* Layer l has an indexer if max(l - index_skip_topk_offset + 1, 0) % index_topk_freq == 0; otherwise it
     * attends to the rows that the layer before it chose. */
    uint32_t index_topk_freq, index_skip_topk_offset;
    float rope_theta, rope_factor; /* for people only: inv_freq has them already */
    uint32_t mtp_layers;           /* 0 or 1; carried in the file, not run */
    /* about text, from tokenizer_config.json and generation_config.json */
    int32_t bos_token_id; /* -1: none */
    uint32_t add_bos_token;
    uint32_t eos_tokens; /* how many of the next are used */
    int32_t eos_token_id[8];
    float temperature, top_p; /* the defaults of -t and --top-p */
    uint32_t top_k;           /* 0: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* the default of --repeat-penalty; 0: not given, which means 1, off */
    /* A new field is added here, at the end, and 0 means "as before": a file without it stays good
     * (engine/checkpoint.c, read_config). */
} Config;

enum { MLP_ROW = 2048 };                      /* hidden columns that a single row computes at once */
enum { MAX_EXPERTS = 1024, MAX_GROUPS = 64 }; /* engine/checkpoint.c refuses more */
enum { ACT_SILU, ACT_RELU2 };
enum { SCORE_SOFTMAX, SCORE_SIGMOID };
enum { GROUP_MAX, GROUP_TOP2_SUM };

static inline bool layer_is_moe(const Config *c, uint32_t layer) {
    return c->n_routed_experts && layer >= c->first_k_dense_replace && layer % c->moe_layer_freq == 0;
}

/* E + Z: what the router chooses from. */
static inline size_t router_rows(const Config *c) { return (size_t)c->n_routed_experts + c->zero_expert_num; }

static inline bool layer_has_indexer(const Config *c, uint32_t layer) {
    uint32_t past = layer + 1 > c->index_skip_topk_offset ? layer + 1 - c->index_skip_topk_offset : 0;
    return c->index_n_heads && past % c->index_topk_freq == 0;
}

/* ACT_SILU: down(silu(gate x) * up x). ACT_RELU2: down(relu(up x)^2), without gate */
typedef struct {
    Matrix gate; /* [I or M, D] */
    Matrix up;   /* [I or M, D] */
    Matrix down; /* [D, I or M] */
} Mlp;

typedef struct {
    const float *input_norm;                  /* [D] */
    Matrix q;                                 /* [H * (n + p), D]    when q_lora_rank is 0, otherwise */
    Matrix q_a;                               /* [ql, D] */
    const float *q_a_norm;                    /* [ql] */
    Matrix q_b;                               /* [H * (n + p), ql] */
    Matrix kv_a;                              /* [r + p, D]          latent and rotated key */
    const float *kv_a_norm;                   /* [r] */
    Matrix w_uk;                              /* [n, r] of head 0; head_matrix() gives the others */
    Matrix w_uk_t;                            /* [r, n] of head 0 */
    Matrix w_uv;                              /* [v, r] of head 0 */
    Matrix o;                                 /* [D, H * v'], v' = v rounded up to 32 */
    Matrix index_q;                           /* [Hi * di, ql]       the indexer, where layer_has_indexer */
    Matrix index_k;                           /* [di, D] */
    const float *index_k_norm, *index_k_bias; /* [di] */
    Matrix index_weights;                     /* [Hi, D] */
    const float *attention_out_norm, *mlp_out_norm; /* [D] sandwich_norm */
    const float *post_norm;                         /* [D] */
    /* a dense layer's MLP (with shortcut_moe every layer's), or the shared experts' */
    Mlp mlp;
    Matrix router;            /* [E + Z, D] */
    const float *router_bias; /* [E + Z] added to the scores for choosing, not for weighing */
    Mlp *experts;             /* [E]; NULL in a dense layer */
} Layer;

/* The matrices of one head lie one after the other. */
static inline Matrix head_matrix(const Matrix *w, size_t head) {
    Matrix m = *w;
    m.data += head * matrix_panels(w) * panel_bytes(w->type, w->cols);
    return m;
}

typedef struct {
    Config config;
    const Kernels *k;
    const float *inv_freq;    /* [p / 2] */
    const float *query_scale; /* [max_position_embeddings / query_scale_span, rounded up] */
    Matrix embed;             /* [V, D] */
    Matrix head;              /* [V, D] */
    const float *norm;        /* [D] */
    Layer *layers;            /* [num_hidden_layers] */
    Tokenizer *tokenizer;     /* NULL: the checkpoint has none */
    const uint8_t *chat;      /* [chat_bytes] pieces of the chat template, cli/chat.c; 0 bytes: none */
    size_t chat_bytes;
    bool float_acts; /* some matrix other than the router is f32 or bf16 */
    bool int8_acts;  /* some matrix is q8 or q4 */
    /* the mapped file */
    const char *path;
    const uint8_t *file;
    size_t file_bytes;
    const struct TensorInfo *tensors; /* [tensor_count], engine/checkpoint.h */
    size_t tensor_count;
} Model;

/* One position of one sequence, to be computed. */
typedef struct {
    int32_t token;
    /* at most the rows that the sequence has in the cache: those from here on are overwritten; consecutive
     * within a call */
    uint32_t position;
    uint32_t sequence; /* 0 .. State.sequences - 1; the rows of one sequence lie together in a call */
    bool logits;       /* wanted for this row */
} Row;

typedef enum { CACHE_F32, CACHE_BF16, CACHE_Q8, CACHE_Q6, CACHE_Q4, CACHE_FULL } CacheType;

typedef struct {
    CacheType cache;
    size_t context;      /* cache rows of each sequence */
    uint32_t sequences;  /* usually 1 */
    uint32_t max_logits; /* rows of one call that may ask for logits, at most; at least 1 */
    int threads;
} StateOptions;

/* One MLP to be run for some of a call's rows: an expert for the rows that chose it, the shared experts or
 * a dense layer for all. */
typedef struct {
    const Mlp *mlp;
    size_t rows;
    size_t slot; /* its rows are State.slot_row[slot .. slot + rows - 1], ascending */
    size_t task; /* first of its tasks, MLP_TASK_COLUMNS columns of the hidden rows each */
    Acts in;     /* [rows, D] */
    Acts hidden; /* [rows, I or M] */
} MlpJob;

/* What one thread computes in between: never read by another. */
typedef struct {
    /* [max(chunk, TILE_ROWS)][max(LINEAR_ADD_COLUMNS, n, v, r)], at least D and MLP_ROW: what a matmul gave,
     * before it is put somewhere */
    float *a, *b;
    Acts acts;            /* [chunk, max(n, r)] rows of one head */
    void *query;          /* sixteen packed queries */
    void *keys, *values;  /* one page of decompressed keys and values of one head */
    void *attend;         /* the attention kernel's own */
    uint8_t *index_query; /* a row's packed index queries */
    float *index_keys;    /* the index kernel's own */
} Scratch;

/* Where the time of a forward call goes (--bench --profile). */
typedef enum {
    STAGE_ATTENTION, /* from queries and latents to what the heads found */
    STAGE_DENSE,     /* projections before and after it, dense MLPs */
    STAGE_EXPERTS,   /* routers, experts, shared experts */
    STAGE_HEAD,
    STAGE_OTHER, /* embedding, norms */
    STAGE_COUNT
} Stage;

typedef struct {
    double seconds[STAGE_COUNT];
    double waited; /* at barriers, part of the above */
    Stage stage;   /* the one that is going on, since `since` */
    double since;
} Profile;

/* What a run needs beside the model: the latent cache and the buffers of one forward call, allocated once.
 * n is the number of rows in the call; strides are rounded up so that panels of 16 outputs fit. */
typedef struct {
    struct Cache *cache; /* mla.h */
    size_t chunk;        /* rows of one call at most */
    size_t context;      /* cache rows of each sequence */
    uint32_t sequences, max_logits;
    int threads;
    int forced_path;           /* MLA_PATH, for tests */
    bool (*stop)(void);        /* asked once a layer: true breaks the call off. NULL: nobody asks */
    atomic_size_t stop_before; /* the layer at which all threads leave a call that is broken off */
    Profile *profile;          /* NULL: time is not measured */
    Team team;
    Scratch *scratch; /* [threads] */

    const Row *rows; /* this call's, [n] */
    size_t n;
    float *x;        /* [n][x_stride]    the residual stream */
    size_t x_stride; /* D rounded up to 64 */
    /* [n][x_stride]    sandwich_norm: what waits for its norm; shortcut_moe: for the end of the pair;
     *                  zeros between */
    float *branch;
    /* [n][x_stride]    what attention and MLPs, and what experts are added to: x or branch */
    float *out, *experts_out;
    float *cosine, *sine; /* [n][p / 2]       of each row's position */
    Acts normed;          /* [n, D]           RMSNorm of x: what attention and MLPs read */
    float *qa;            /* [n][qa_stride]   compressed queries, ql */
    size_t qa_stride;
    Acts qa_normed; /* [n, ql] */
    float *q;       /* [n][q_stride]    queries: H times (n + p) */
    size_t q_stride;
    float *kv; /* [n][kv_stride]   latent and rotated key of the new rows */
    size_t kv_stride;
    size_t v_stride; /* v rounded up to 32 */
    Acts attended;   /* [n, H * v_stride] what attention found, head by head */
    /* sparse attention; NULL in a model without indexer */
    /* attention to no more rows than these is dense: index_topk, without indexer SIZE_MAX */
    size_t dense_rows;
    bool selects;        /* some row of this call has more to see */
    float *index_key;    /* [n][index_key_stride] di */
    float *index_query;  /* [n][index_query_stride] Hi * di */
    float *index_weight; /* [n][index_weight_stride] Hi */
    size_t index_key_stride, index_query_stride, index_weight_stride;
    float *index_score; /* [index_lines][context] of as many rows at a time */
    size_t index_lines;
    uint64_t *seen; /* [n][seen_stride] bit j: the row sees row j of its sequence */
    size_t seen_stride;
    /* absorbed: [rows at a time][seen_pages] the latents that each row sees, together */
    uint8_t *seen_tiles;
    size_t seen_pages;
    /* attention, absorbed */
    /* [n][H][r_stride]  queries in the latent space, then the latents that were found */
    float *q_latent;
    size_t r_stride;
    Softmax *parts; /* [part_count]     of the context, each with out [r][16] */
    size_t part_count;
    /* attention, decompressed */
    uint8_t *queries; /* [H][chunk / 16]  packed, query_bytes each */
    Softmax *found;   /* [H][chunk / 16]  with out [v][16] */
    /* [SPAN_ROWS, r]   a stretch of cached rows, page by page; with CACHE_FULL the new rows' latents */
    Acts latents;
    float *rope_keys; /* [SPAN_ROWS][p] */
    /* [chunk / 16][SPAN_ROWS] bit i: row i of the sixteen sees the stretch's row */
    uint16_t *lane_seen;
    /* router and MLPs */
    float *scores;        /* [n][E + Z rounded up to 16] */
    uint32_t *chosen;     /* [n][num_experts_per_tok] best first */
    float *chosen_weight; /* [n][num_experts_per_tok] */
    MlpJob *jobs;         /* [E + 1] */
    size_t job_count;
    uint32_t *expert_rows; /* [E + Z]          rows that chose each expert */
    uint32_t *slot_row;    /* [n * (num_experts_per_tok + 1)] */
    float *slot_weight;
    Acts gathered; /* [n * num_experts_per_tok, D] */
    Acts hidden;   /* the jobs' hidden rows, one job after another */
    /* the end */
    uint32_t *wanted; /* [max_logits]     rows that asked for logits */
    size_t wanted_count;
    Acts last;     /* [wanted, D] */
    float *logits; /* [max_logits][V], V rounded up to 16 while it is computed */
    struct {
        void *p;
        size_t bytes;
    } * blocks; /* all of the above, for state_close */
    size_t block_count;
} State;

/* NULL: one line in err (out of memory, with both numbers; a forced instruction set, path or chunk that
 * does not exist). */
State *state_open(const Model *m, const StateOptions *o, char *err, size_t err_bytes);
void state_close(State *s);

/* Begins a call: gives new positions a page in the cache, notes which rows want logits. */
void state_begin(State *s, const Row *rows, size_t n);

/* From here on thread 0's time counts for `stage`. */
void stage(State *s, const Thread *t, Stage stage);

/* Computes n rows (1 <= n <= s->chunk, at most max_logits of them asking for logits): appends each to its
 * sequence's cache, returns the logits of the rows that asked for them, in their order: [number of such
 * rows][V], valid until the next call. Tokens must be in 0 .. V-1, positions below the context. NULL:
 * s->stop broke it off, and none of it counts; otherwise it cannot fail. */
const float *forward(const Model *m, State *s, const Row *rows, size_t n);

#endif
