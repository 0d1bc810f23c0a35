/* model.h: what the program is made of: every dimension with its name, every pointer with its shape. The
 * one header to read beside run.c and mla.c.
 *
 *   Config, Layer, Model   the checkpoint; engine/checkpoint.h describes the file byte by byte, and
 *                          kernels/kernels.h the inside of a matrix
 *   Sequence, Row          a text in the cache, and a place of it that is to be computed
 *   State                  the cache and the buffers of a call (engine/buffers.h)
 *   forward, generate      in run.c; mla_attention in mla.c
 *
 * Words
 *   row       a token at its place in a text. A new row is computed by the present call; a cached row is
 *             what the cache keeps of it, [ c | k_pe ] in each layer
 *   call      one forward(); it has at most State.chunk new rows
 *   stretch   ids of a text that are read together: a prompt, or the token that was written last; it is cut
 *             into pieces of 2048 rows, each of which attends in one way
 *   page      128 cached rows of a text, in all layers; tile: those of one layer
 *   run       decompressed new rows that follow one another in one sequence (mla.c)
 *   span      up to SPAN_ROWS (4096) cached rows, which a run reads at once
 *   part      one of at most 64 pieces of a context, which threads may attend to side by side (absorbed)
 *   constant part   what a linear attention keeps of a text, of the same size at any place; it lies in a slot
 *   panel     16 rows of a matrix; block: 64 columns of a panel; half: 32 of them; unit: 64 bytes, 4 of each
 *             of the 16 rows (kernels/kernels.h)
 *   expert batch   an expert with all rows of the call that chose it
 *
 * Where a change goes
 *   a model family   exporter/ (of the command export.py) translates its configuration and tensor names
 *                    into Config and Layer. C code never asks for a family. New arithmetic becomes a
 *                    Config field, which run.c, mla.c or engine/ reads.
 *   a cache type     CacheType below, engine/cache.c (its tile type, bytes of a row), kernels/kernels.h
 *                    and tile.h (TileType: layout, rows in and out, queries), cli/table.c (its name)
 *   a weight type    kernels/kernels.h (Type: layout), kernels/matmul.h (product, read_row),
 *                    exporter/quantize.py (packing), engine/checkpoint.c (what is accepted)
 *   an option        one entry in the table of cli/table.c, and the mode in cli/ that reads it
 *
 * Files include only what stands further left: kernels <- model.h <- engine <- mla.c, tokenizer.c <- run.c
 * <- cli. The one exception is main(), at the end of run.c, which calls cli/. */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "kernels/team.h"

typedef struct Tokenizer Tokenizer; /* tokenizer.h */

/* Every fact that changes the arithmetic, under config.json's name where there is one. Part of the file: a
 * name of 64 bytes, then 4-byte fields in this order. A field that is added later comes at the end and
 * means "as before" when it is 0, so that older files can still be read. What export.py could fold into
 * the weights has no field. */
typedef struct {
    char name[64];                /* of the source's directory, for display only; ends in NUL */
    uint32_t hidden_size;         /* D */
    float embed_scale;            /* embeddings are multiplied by it; a tied head is not */
    uint32_t num_hidden_layers;   /* in this file */
    uint32_t published_layers;    /* of the published model */
    uint32_t num_attention_heads; /* H */
    uint32_t q_lora_rank;         /* ql: low rank of the queries; 0: queries come from x directly */
    uint32_t kv_lora_rank;        /* r: the latent; 0: none, see num_key_value_heads, sliding_window */
    uint32_t qk_nope_head_dim;    /* n: part of a query or key without position; 0: attention is ordinary */
    uint32_t qk_rope_head_dim;    /* p: rotated part; the rotated key is shared by all heads */
    uint32_t v_head_dim;          /* v */
    uint32_t intermediate_size;   /* I: hidden width of a dense layer's MLP */
    uint32_t hidden_act;          /* ACT_SILU or ACT_RELU2 */
    uint32_t sandwich_norm;       /* 1: outputs of attention and MLP are normed before they are added */
    uint32_t vocab_size;          /* V */
    uint32_t max_position_embeddings;
    uint32_t tie_word_embeddings; /* 1: head is embed */

    /* mixtures of experts: run.c, mlp(), has the equations */
    uint32_t n_routed_experts; /* E; 0: every layer is dense */
    uint32_t num_experts_per_tok;
    uint32_t n_shared_experts;
    uint32_t moe_intermediate_size; /* M: hidden width of an expert */
    uint32_t first_k_dense_replace; /* layers below it are dense */
    uint32_t moe_layer_freq;        /* another layer l is a mixture of experts if l % moe_layer_freq == 0 */
    uint32_t zero_expert_num;       /* Z: experts E .. E + Z - 1 have no weights: output = input */
    /* 1: layers come in pairs; experts run beside the first one's MLP and are added after the second */
    uint32_t shortcut_moe;
    uint32_t n_group, topk_group; /* experts are chosen from the topk_group best of n_group groups */
    uint32_t scoring_func;        /* SCORE_.. */
    uint32_t group_score;         /* GROUP_MAX or GROUP_TOP2_SUM: of a group's experts */
    uint32_t norm_topk_prob;      /* 1: the chosen weights are divided by their sum */
    float routed_scaling_factor;  /* and multiplied by this */

    float rms_norm_eps;
    float latent_norm_eps; /* of q_a_norm and kv_a_norm */
    float softmax_scale;   /* (n + p)^-0.5, times YaRN's mscale squared where the model has it */
    /* Mistral: queries at position i are multiplied by query_scale[i / query_scale_span]; 0: they are not */
    uint32_t query_scale_span;

    /* sparse attention: engine/indexer.c. Layer l has an indexer if max(l - index_skip_topk_offset + 1, 0)
     * % index_topk_freq == 0; otherwise it attends to the rows that the layer before it chose. */
    uint32_t index_n_heads;  /* Hi; 0: attention is dense */
    uint32_t index_head_dim; /* di, of it the last p rotated */
    uint32_t index_topk;     /* cached rows that a new one attends to, at most */
    uint32_t index_topk_freq, index_skip_topk_offset;

    float rope_theta, rope_factor; /* for people: inv_freq holds their effect */
    uint32_t mtp_layers;           /* 0 or 1; carried in the file, not run */

    /* about text, from tokenizer_config.json and generation_config.json */
    int32_t bos_token_id; /* begin token; -1: none */
    uint32_t add_bos_token;
    uint32_t eos_tokens; /* how many end tokens there are */
    int32_t eos_token_id[8];
    float temperature, top_p; /* the defaults of -t and --top-p */
    uint32_t top_k;           /* 0: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* the default of --repeat-penalty; 0: not given, which means 1, off */

    uint32_t experts_out_norm; /* 1: what a mixture of experts gives is normed before it is added */
    uint32_t head_gate;        /* 1: the output of each head of latent attention has a gate */
    uint32_t swiglu_limits;    /* LIMIT_..: Mlp.limit of experts is in the file */

    /* linear attention instead of latent attention, in the layers of kda_layers: engine/kda.c */
    uint32_t kda_heads;      /* 0: no layer has it */
    uint32_t kda_head_dim;   /* d, of keys and of values */
    uint32_t kda_taps;       /* rows that a convolution reads, the present one included */
    uint32_t kda_rank;       /* low rank of decay and output gate; 0: they come from x directly */
    float kda_lower_bound;   /* of the logarithm of a decay, below 0; 0: it has none, another formula */
    uint32_t kda_layers[32]; /* bit i of word j: layer 32 j + i */

    /* G: attention is ordinary, H / G heads share keys [p] and values [v] (engine/full.c): MHA if G is H, MQA
     * if it is 1, else GQA. 0: it is latent */
    uint32_t num_key_value_heads;

    /* hyper-connections: several residual streams (engine/hyper.c) */
    uint32_t hc_mult; /* streams; 0: one, the plain residual */
    uint32_t hc_sinkhorn_iters;
    float hc_eps;

    /* DeepSeek-V4 (engine/window.c): one row of d = n + p numbers is key and value of all heads, v is d;
     * there is no latent. A token sees the last sliding_window rows and, in CSA and HCA layers, compressed
     * ones */
    uint32_t sliding_window;        /* 0: the model has none of it */
    uint32_t o_groups, o_lora_rank; /* W_o: first each group of heads by itself, to so many numbers */
    uint32_t csa_ratio, hca_ratio;  /* a compressed row every so many tokens; 0: no layer is of the kind */
    uint32_t csa_layers[32];        /* bit i of word j: layer 32 j + i */
    uint32_t hca_layers[32];        /* the others are sliding */
    float compress_rope_theta;      /* for people: compress_inv_freq holds its effect */
    uint32_t num_hash_layers;       /* layers below it take their experts from a table of the token */

    /* tokens of a pool, which an indexer chooses as a whole (engine/indexer.c); 0: it chooses tokens */
    uint32_t index_kpool;
} Config;

enum { MLP_ROW = 2048 }; /* a single row computes so many columns of an MLP's hidden vector at once */
enum {
    MAX_EXPERTS = 1024,
    MAX_GROUPS = 64,
    MAX_LAYERS = 1024,
    MAX_TAPS = 16,
    MAX_STREAMS = 16,
    MAX_CSA_RATIO = 64,
    MAX_HCA_RATIO = 1024,
    MAX_KPOOL = 64
}; /* engine/config.c refuses more */
enum { ACT_SILU, ACT_RELU2 };
enum { SCORE_SOFTMAX, SCORE_SIGMOID, SCORE_SQRT_SOFTPLUS };
enum { GROUP_MAX, GROUP_TOP2_SUM };
enum { LIMIT_NONE, LIMIT_SILU, LIMIT_GATE }; /* min(silu(gate), limit), or silu(min(gate, limit)) */

static inline bool layer_is_moe(const Config *cfg, uint32_t layer) {
    return cfg->n_routed_experts && layer >= cfg->first_k_dense_replace && layer % cfg->moe_layer_freq == 0;
}

/* E + Z: what the router chooses from. */
static inline size_t router_rows(const Config *cfg) {
    return (size_t)cfg->n_routed_experts + cfg->zero_expert_num;
}

/* Bit `layer` of kda_layers, csa_layers or hca_layers. */
static inline bool has_layer(const uint32_t *layers, uint32_t layer) {
    return layers[layer / 32] >> layer % 32 & 1;
}

static inline bool layer_is_kda(const Config *cfg, uint32_t layer) {
    return has_layer(cfg->kda_layers, layer);
}

static inline bool layer_is_csa(const Config *cfg, uint32_t layer) {
    return has_layer(cfg->csa_layers, layer);
}

static inline bool layer_is_hca(const Config *cfg, uint32_t layer) {
    return has_layer(cfg->hca_layers, layer);
}

/* What a layer's attention is. forward_thread in run.c compares: from LAYER_SLIDING on it is window_attention
 * in engine/window.c. */
typedef enum {
    LAYER_LATENT,   /* mla.c */
    LAYER_ORDINARY, /* engine/full.c, called by mla_attention */
    LAYER_KDA,      /* engine/kda_layer.c */
    LAYER_SLIDING,  /* the last rows alone */
    LAYER_CSA,      /* the last rows, and compressed rows that an indexer chooses */
    LAYER_HCA       /* the last rows, and all compressed rows; each is made of more tokens than in CSA */
} LayerKind;

static inline LayerKind layer_kind(const Config *cfg, uint32_t layer) {
    if (layer_is_kda(cfg, layer))
        return LAYER_KDA;
    if (cfg->sliding_window)
        return layer_is_csa(cfg, layer) ? LAYER_CSA : layer_is_hca(cfg, layer) ? LAYER_HCA : LAYER_SLIDING;
    return cfg->num_key_value_heads ? LAYER_ORDINARY : LAYER_LATENT;
}

/* Whether the output of a layer's MLP is normed before it is added. */
static inline bool layer_norms_mlp(const Config *cfg, uint32_t layer) {
    return cfg->sandwich_norm || (cfg->experts_out_norm && layer_is_moe(cfg, layer));
}

/* Which layer's tiles, compressed rows and index keys `layer` reads: its own, today. Where layers share them,
 * as in models after DeepSeek-V4, it returns the earlier layer: only that one has room in a page, and both
 * find it (engine/cache.c, Layer.tile). */
static inline uint32_t compressed_rows_owner(const Config *cfg, uint32_t layer) {
    (void)cfg;
    return layer;
}

static inline bool layer_has_indexer(const Config *cfg, uint32_t layer) {
    if (cfg->sliding_window)
        return cfg->index_n_heads && layer_is_csa(cfg, layer);
    if (layer_is_kda(cfg, layer))
        return false;
    uint32_t past = layer + 1 > cfg->index_skip_topk_offset ? layer + 1 - cfg->index_skip_topk_offset : 0;
    return cfg->index_n_heads && past % cfg->index_topk_freq == 0;
}

/* ACT_SILU: down(silu(gate x) * up x). ACT_RELU2: down(relu(up x)^2), without gate. With a limit silu (or
 * with LIMIT_GATE gate x) is at most that, and up x lies between -limit and limit. */
typedef struct {
    Matrix gate; /* [I or M, D] */
    Matrix up;   /* [I or M, D] */
    Matrix down; /* [D, I or M] */
    float limit; /* INFINITY: none */
} Mlp;

/* Linear attention (engine/kda.c): H kda_heads, d kda_head_dim, K kda_taps. */
typedef struct {
    Matrix in[3];            /* [H * d, D] what becomes queries, keys and values */
    const float *filter[3];  /* [K][H * d] of the convolutions; the last tap is the present row's */
    Matrix decay, decay_low; /* [H * d, D]; with kda_rank [H * d, rank], and [rank, D] before it */
    Matrix gate, gate_low;   /* the same */
    const float *rate;       /* [H] logarithm of the rate of decay */
    const float *decay_bias; /* [H * d] */
    Matrix beta;             /* [H, D] */
    const float *norm;       /* [d] of a head's output */
} Kda;

/* What makes one compressed row of several tokens (engine/compress.c). d: numbers of a row; R: csa_ratio or
 * hca_ratio. HCA: R tokens give d numbers each to their row. CSA: a token gives d numbers to the row of its
 * own R tokens and d others to the row after: a row is made of 2 R tokens. w: numbers of a token. */
typedef struct {
    Matrix kv, gate;   /* [w, D] numbers of a token, and the logits of their weights in the row */
    const float *ape;  /* [R][w] added to the gate by the token's place among the R */
    const float *norm; /* [d] */
} Compressor;

/* Hyper-connection of a branch (engine/hyper.c). S: hc_mult; the output head's has S outputs, one scale. */
typedef struct {
    Matrix fn;          /* [2 S + S S, S D] f32; of the output head [S, S D] */
    const float *base;  /* [2 S + S S]; of the head [S] */
    const float *scale; /* [3]; of the head [1] */
} Hyper;

/* One layer's weights. Matrices are [outputs, inputs]. */
typedef struct {
    const float *input_norm; /* [D] */

    /* attention: mla.c */
    Matrix q;               /* [H * (n + p), D] if q_lora_rank is 0, else the next three: */
    Matrix q_a;             /* [ql, D] */
    const float *q_a_norm;  /* [ql] */
    Matrix q_b;             /* [H * (n + p), ql] */
    Matrix kv_a;            /* [r + p, D] latent and rotated key */
    const float *kv_a_norm; /* [r] */
    Matrix w_uk;            /* [n, r] of head 0; head_matrix() gives the others */
    Matrix w_uk_t;          /* [r, n] of head 0: the transposed one */
    Matrix w_uv;            /* [v, r] of head 0 */
    Matrix head_gate;       /* [H, D]; no data: heads have no gates */
    size_t tile;            /* which tile of a page is this layer's: layers with tiles before it */
    Kda kda;                /* in a KDA layer, instead of q .. head_gate */
    Matrix o;               /* [D, H * v'], v' = v rounded up to 32 (in a KDA layer H and d of Kda) */
    Matrix k, v;            /* [G * p, D], [G * v, D] in place of kv_a .. w_uv: ordinary attention, full.c */

    /* attention of a model with sliding_window; q_a, q_a_norm, q_b and o as above, o being [D, o_groups *
     * o_lora_rank] there */
    Matrix window_kv;            /* [d, D] */
    const float *window_kv_norm; /* [d] */
    const float *sinks;          /* [H] a logit without a value, for each head */
    Matrix o_a;            /* [o_lora_rank, H / o_groups * d] of group 0; head_matrix() gives the others */
    Compressor compressor; /* of a CSA or HCA layer */
    /* of a CSA layer: its rows are the index keys; with index_kpool gate [di, D] and ape [R][di] alone: what
     * makes the key of a pool of R tokens of theirs */
    Compressor index_compressor;
    Hyper attention_hyper, mlp_hyper; /* with hc_mult */

    /* sparse attention, in a layer with an indexer (a CSA layer has index_q and index_weights alone) */
    Matrix index_q;                           /* [Hi * di, ql] */
    Matrix index_k;                           /* [di, D] */
    const float *index_k_norm, *index_k_bias; /* [di] */
    Matrix index_weights;                     /* [Hi, D] */

    const float *attention_out_norm; /* [D] with sandwich_norm, else NULL */
    const float *mlp_out_norm;       /* [D] where layer_norms_mlp() says so, else NULL */
    const float *post_norm;          /* [D] before the MLP */

    Mlp mlp;                  /* a dense layer's (with shortcut_moe every layer's), or the shared experts' */
    Matrix router;            /* [E + Z, D] */
    const float *router_bias; /* [E + Z] added to the scores for choosing, not for weighing */
    /* [V][num_experts_per_tok] in a hash layer, in place of router_bias: each token's experts */
    const float *token_experts;
    Mlp *experts; /* [E]; NULL in a dense layer */
} Layer;

/* The matrices of one head lie one after the other. */
static inline Matrix head_matrix(const Matrix *w, size_t head) {
    Matrix m = *w;
    m.data += head * matrix_panels(w) * panel_bytes(w->type, w->cols);
    return m;
}

typedef struct {
    Config config;
    const Kernels *ops;
    const float *inv_freq;            /* [p / 2] */
    const float *compress_inv_freq;   /* [p / 2] in CSA and HCA layers */
    Hyper head_hyper;                 /* with hc_mult */
    const float *query_scale;         /* [max_position_embeddings / query_scale_span, rounded up] */
    Matrix embed;                     /* [V, D] */
    Matrix head;                      /* [V, D] */
    const float *norm;                /* [D] */
    Layer *layers;                    /* [num_hidden_layers] */
    const uint8_t *tokenizer_section; /* [tokenizer_bytes] tokenizer.c; 0 bytes: the checkpoint has none */
    size_t tokenizer_bytes;
    Tokenizer *tokenizer; /* of that section, opened by main; NULL: none */
    const uint8_t *chat;  /* [chat_bytes] pieces of the chat template, cli/chat.c; 0 bytes: none */
    size_t chat_bytes;
    bool float_activations; /* some matrix is f32 or bf16, routers (always f32) left out of account */
    bool int8_activations;  /* some matrix is q8 or q4 */
    /* the mapped file */
    const char *path;
    const uint8_t *file;
    size_t file_bytes;
    const struct TensorInfo *tensors; /* [tensor_count], engine/checkpoint.h */
    size_t tensor_count;
} Model;

/* ---- sequences: what the cache holds of a text ---------------------------------------------- */

typedef enum {
    CACHE_F32,
    CACHE_BF16,
    CACHE_Q8,
    CACHE_Q6,
    CACHE_Q4,
    CACHE_FULL, /* of a latent model: keys and values of every head, H (n + p + v) numbers, in f32 */
    CACHE_FULL_BF16,
    CACHE_FULL_Q8
} CacheType;

enum { MARKS = 2 };       /* of a sequence with a constant part, at a time */
enum { REPLAY_ROWS = 8 }; /* rows of a small call */

/* What a sequence keeps that does not grow with its rows (engine/cache.h): a slot of the cache. Slots are
 * never changed once a call is complete, so several fields and several sequences may hold one. A text can go
 * back to the rows of `slot`, to a mark, or to any row of the last call, if that was small: its rows are then
 * computed again from `before`. */
typedef struct {
    uint32_t slot;   /* behind all rows */
    uint32_t before; /* behind `before_rows` rows: at the start of the last call, if that was small */
    size_t before_rows;
    size_t replay_rows;   /* of that call alone; their inputs are kept */
    float *replay;        /* [2][REPLAY_ROWS * replay_floats()] inputs of that call's rows, and room for those
                           * of the present call; NULL: no constant part */
    int replay_now;       /* which of the two are that call's */
    uint32_t mark[MARKS]; /* [mark_count] the latest is the last */
    size_t mark_rows[MARKS], mark_count;
} Constant;

/* One text: its token ids, and the cache rows of the first `rows` of them. engine/sequence.h opens, cuts,
 * marks and forks sequences.
 *
 * The cache (engine/cache.h) is a pool of pages of 128 rows; a page holds its rows for all layers, a tile
 * of 128 rows [ c | k_pe ] for each, r + p numbers a row. A sequence is a list of page numbers, the same
 * for every layer. Forked sequences share pages. A page that another sequence holds, too, is copied before it
 * is written to, as after a cut. A cut gives pages behind it back. A row attends to cached rows 0 .. its own
 * place. */
typedef struct Sequence {
    struct Cache *cache;
    int32_t *ids;   /* [context + 1] prompt and generated text */
    size_t count;   /* ids so far */
    size_t rows;    /* ids[0 .. rows) are in the cache; ids[rows .. count) are still to be computed */
    uint32_t *page; /* [pages of a context] number of the page that holds rows 128 j .. 128 j + 127 */
    size_t page_count;
    Constant constant;
    bool open;
} Sequence;

/* The rows of one sequence in a call, whatever their path, in a model with constant parts. */
typedef struct {
    Sequence *sequence;
    size_t first, rows; /* rows first .. first + rows - 1 of the call */
    uint32_t from, to;  /* slots: read, and written */
} ConstantRun;

/* How a row attends to the cache (mla.c). It depends only on how many ids of the row's own text are read
 * together with it (engine/sequence.h) and, where attention is sparse, on its place; never on other texts in
 * the same call. */
typedef enum { PATH_ABSORBED, PATH_DECOMPRESSED, PATH_DEFINITION } Path;

/* One position of one sequence, to be computed. */
typedef struct {
    Sequence *sequence; /* the rows of one sequence lie together in a call, in the order of the text */
    int32_t token;      /* 0 .. V-1 */
    uint32_t place;     /* in the sequence: its first new row is sequence->rows, and so on */
    uint32_t position;  /* for rope; equal to `place` in every model so far */
    Path path;
    bool logits; /* wanted for this row */
} Row;

/* ---- state: what a call needs beside the model ---------------------------------------------- */

typedef struct {
    CacheType cache;
    size_t context;      /* cache rows of each sequence */
    uint32_t sequences;  /* open at a time, at most */
    size_t pages;        /* of all sequences together; 0: enough for a full context of each */
    uint32_t max_logits; /* rows of one call that may ask for logits, at most; at least 1 */
    int threads;
} StateOptions;

/* The cache and the buffers of a call: engine/buffers.h. */
typedef struct State State;

/* NULL: one line in err (out of memory, with both numbers; a forced instruction set, path or chunk that
 * does not exist). */
State *state_open(const Model *m, const StateOptions *o, char *err, size_t err_bytes);
void state_close(State *s);

/* ---- the program ---------------------------------------------------------------------------- */

/* Computes n rows (1 <= n <= s->chunk, at most max_logits of them asking for logits): puts each into its
 * sequence's cache, whose `rows` grow, and returns the logits of the rows that asked for them, in their
 * order: [number of such rows][V], valid until the next call. Every place must be below s->context. NULL:
 * s->stop interrupted it, and every sequence has the rows that it had; otherwise it cannot fail. */
const float *forward(const Model *m, State *s, const Row *rows, size_t n);

/* s->out += attention(s->normed) for the call's rows in one layer. Every thread of the team calls it. */
void mla_attention(const Model *m, State *s, size_t layer, Thread *t);

/* Attention of one head and one query by the paper's equations, in f32 and in plain loops: mla.c. */
void mla_definition(float *out, const float *q, const float *rows, size_t T, const float *w_uk,
                    const float *w_uv, const Config *cfg, float *score);

typedef enum {
    NOT_ENDED,
    END_TOKEN,
    END_STOP,    /* Generation.emit said so */
    END_LENGTH,  /* Generation.limit is reached */
    END_CONTEXT, /* the context is full */
    END_INTERRUPTED,
    END_NON_FINITE /* some logit is infinite or not a number */
} End;

/* A text that generate() goes on with. */
typedef struct {
    Sequence *sequence;      /* of its own; its ids that are not in the cache are computed first */
    struct Sampler *sampler; /* engine/sampler.h; NULL with limit 0 */
    const float *logits;     /* [V] after the last id; read only if all ids are in the cache */
    size_t prefix;           /* ids before this place that are not in the cache are a stretch of their own */
    int64_t limit;           /* new tokens, at most; -1: as many as the context has room for */
    const int32_t *end_tokens; /* [end_token_count] */
    size_t end_token_count;
    /* A new token is the sequence's last id; it was chosen from `logits` [V]. False: the text ends here. NULL
     * with limit 0. */
    bool (*emit)(void *owner, const float *logits);
    /* NULL, or called with the logits [V] after each id at or behind place `score_from` that is computed */
    void (*score)(void *owner, size_t place, const float *logits);
    size_t score_from;
    /* NULL, or called after each call that read a part of a prompt longer than State.chunk */
    void (*progress)(void *owner, size_t done, size_t all);
    void *owner;
    /* set by generate() */
    End end;
    size_t read, written; /* tokens of the prompt, new tokens */
    size_t steps;         /* calls for new tokens: the first one comes with the prompt's last row */
    double read_seconds, write_seconds; /* of all calls that it took part in */
    size_t stretch, stretch_rows;       /* first place of the present stretch, and its rows */
    size_t rows, first_logits;          /* in the present call: its rows; the logits before its first */
} Generation;

/* Goes on with n texts until each has its `end`. */
void generate(const Model *m, State *s, Generation *const *texts, size_t n);

/* The same in steps, so that texts can come and go between them: once for each text, then one call for all
 * texts without `end`, whose prompts are read beside texts that are written. False: all have ended. */
void generate_begin(const Model *m, State *s, Generation *text);
bool generate_step(const Model *m, State *s, Generation *const *texts, size_t n);

#endif
