/* model.h: what the program is made of: every dimension with its name, every pointer with its shape. The
 * one header to read beside run.c and mla.c.
 *
 *   Config, Layer, Model   the checkpoint; engine/checkpoint.h describes the file byte by byte, and
 *                          kernels/kernels.h the inside of a matrix
 *   Sequence, Row          a text in the cache, and a place of it that is to be computed
 *   State                  the cache and the buffers of a call
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
 *   panel     16 rows of a matrix; block: 64 columns of a panel; unit: 4 columns (kernels/kernels.h)
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
    uint32_t kv_lora_rank;        /* r: the latent; 0: there is none, see num_key_value_heads */
    uint32_t qk_nope_head_dim;    /* n: part of a query or key without position; 0 without a latent */
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
    uint32_t scoring_func;        /* SCORE_SOFTMAX or SCORE_SIGMOID */
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
    uint32_t swiglu_limits;    /* 1: Mlp.limit of experts is in the file */

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
} Config;

enum { MLP_ROW = 2048 }; /* a single row computes so many columns of an MLP's hidden vector at once */
enum {
    MAX_EXPERTS = 1024,
    MAX_GROUPS = 64,
    MAX_LAYERS = 1024,
    MAX_TAPS = 16
}; /* engine/checkpoint.c refuses more */
enum { ACT_SILU, ACT_RELU2 };
enum { SCORE_SOFTMAX, SCORE_SIGMOID };
enum { GROUP_MAX, GROUP_TOP2_SUM };

static inline bool layer_is_moe(const Config *cfg, uint32_t layer) {
    return cfg->n_routed_experts && layer >= cfg->first_k_dense_replace && layer % cfg->moe_layer_freq == 0;
}

/* E + Z: what the router chooses from. */
static inline size_t router_rows(const Config *cfg) {
    return (size_t)cfg->n_routed_experts + cfg->zero_expert_num;
}

static inline bool layer_is_kda(const Config *cfg, uint32_t layer) {
    return cfg->kda_layers[layer / 32] >> layer % 32 & 1;
}

/* Whether the output of a layer's MLP is normed before it is added. */
static inline bool layer_norms_mlp(const Config *cfg, uint32_t layer) {
    return cfg->sandwich_norm || (cfg->experts_out_norm && layer_is_moe(cfg, layer));
}

static inline bool layer_has_indexer(const Config *cfg, uint32_t layer) {
    uint32_t past = layer + 1 > cfg->index_skip_topk_offset ? layer + 1 - cfg->index_skip_topk_offset : 0;
    return cfg->index_n_heads && past % cfg->index_topk_freq == 0;
}

/* ACT_SILU: down(silu(gate x) * up x). ACT_RELU2: down(relu(up x)^2), without gate. With a limit silu is at
 * most that, and up x lies between -limit and limit. */
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
    size_t tile;            /* which tile of a page is this layer's: layers of latent attention before it */
    Kda kda;                /* instead of all these, in a layer that is one */
    Matrix o;               /* [D, H * v'], v' = v rounded up to 32; or the same with d, in a KDA layer */
    Matrix k, v;            /* [G * p, D], [G * v, D] in place of kv_a .. w_uv: ordinary attention, full.c */

    /* sparse attention, in a layer with an indexer */
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
    const Kernels *ops;
    const float *inv_freq;            /* [p / 2] */
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
    CACHE_FULL, /* of a latent model: keys and values of every head, in f32 */
    CACHE_FULL_BF16,
    CACHE_FULL_Q8
} CacheType;

enum { MARKS = 2 };       /* of a sequence with a constant part, at a time */
enum { REPLAY_ROWS = 8 }; /* rows of a small call */

/* What a sequence keeps that does not grow with its rows (engine/kda.c): a slot of the cache. Slots are never
 * changed once a call is complete, so several places of several sequences may hold one. */
typedef struct {
    uint32_t slot;   /* behind all rows */
    uint32_t before; /* behind `before_rows` rows: at the start of the last call, if that was small */
    size_t before_rows;
    size_t replay_rows;   /* of that call; their inputs are kept */
    float *replay;        /* [2][layers][REPLAY_ROWS][kda_replay_floats()]; NULL: no constant part */
    int replay_now;       /* which of the two */
    uint32_t mark[MARKS]; /* [mark_count] the latest is the last */
    size_t mark_rows[MARKS], mark_count;
} Constant;

/* One text: its token ids, and the cache rows of the first `rows` of them. engine/sequence.h opens, cuts,
 * marks and forks sequences.
 *
 * The cache (engine/cache.h) is a pool of pages of 128 rows; a page holds its rows for all layers, a tile
 * of 128 rows [ c | k_pe ] for each, r + p numbers a row. A sequence is a list of page numbers, the same
 * for every layer. Forked sequences share pages. A page that another sequence
 * holds, too, is copied before it is written to, as after a cut. A row attends to cached rows 0 .. its own
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

/* The rows of one sequence in a call, in a model with constant parts. */
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

/* ---- state: what a run needs beside the model ----------------------------------------------- */

typedef struct {
    CacheType cache;
    size_t context;      /* cache rows of each sequence */
    uint32_t sequences;  /* open at a time, at most */
    size_t pages;        /* of all sequences together; 0: enough for a full context of each */
    uint32_t max_logits; /* rows of one call that may ask for logits, at most; at least 1 */
    int threads;
} StateOptions;

/* An MLP and the rows of the call that it is computed for: an expert with the rows that chose it, the
 * shared experts or a dense layer with all rows. */
typedef struct {
    const Mlp *mlp;
    size_t rows;
    size_t first;       /* its rows are moe.row[first .. first + rows), ascending */
    size_t task;        /* index of its first task: engine/moe.c */
    Activations in;     /* [rows, D] */
    Activations hidden; /* [rows, I or M] */
} ExpertBatch;

/* A thread's own buffers for intermediate results: no other thread reads them. */
typedef struct {
    /* [max(chunk, TILE_ROWS)][max(LINEAR_ADD_COLUMNS, n, v, r)], at least D and MLP_ROW: results of a
     * matrix product before they are stored */
    float *a, *b;
    Activations acts;     /* [chunk, max(n, r)] rows of one head */
    void *query;          /* sixteen packed queries */
    void *keys, *values;  /* a tile of decompressed keys and one of values, of one head */
    void *attend;         /* the attention kernel's own */
    uint8_t *index_query; /* the packed index queries of one row */
    float *index_keys;    /* the index kernel's own */
    void *sample;         /* what engine/sampler.h works in */
    float *kda;           /* the rows of a piece, of one head (engine/kda.c) */
} Scratch;

/* Where the time of a forward call goes (--bench --profile). */
typedef enum {
    STAGE_ATTENTION, /* from queries and latents to the heads' outputs */
    STAGE_DENSE,     /* projections before and after it, dense MLPs */
    STAGE_EXPERTS,   /* routers, experts, shared experts */
    STAGE_HEAD,
    STAGE_OTHER, /* embedding, norms */
    STAGE_COUNT
} Stage;

typedef struct {
    double seconds[STAGE_COUNT];
    double waited;  /* at barriers, part of the above */
    size_t experts; /* expert batches, in all layers */
    Stage stage;    /* the current one, since `since` */
    double since;
} Profile;

/* The cache and the buffers of one forward call, allocated once (engine/state.c). T is the number of rows
 * in the call; strides are rounded up so that panels of 16 outputs fit. */
typedef struct State {
    struct Cache *cache; /* engine/cache.h */
    Sequence *sequences; /* [sequence_count] */
    size_t sequence_count;
    size_t context; /* cache rows of each sequence */
    size_t chunk;   /* rows of one call at most */
    size_t max_logits;
    int threads;
    bool path_is_forced; /* MLA_PATH, for tests */
    Path forced_path;
    bool (*stop)(void);        /* asked once a layer: true interrupts the call. NULL: nobody asks */
    atomic_size_t stop_before; /* the layer at which all threads leave an interrupted call */
    Profile *profile;          /* NULL: time is not measured */
    Team team;
    double work;       /* of this call, for the team: a row without context is 1 */
    double place_work; /* attending to a further cached row */
    Scratch *scratch;  /* [threads] */

    Row *rows; /* [T] this call's */
    size_t row_count;
    Row *plan; /* [chunk] where generate() plans its calls */

    float *x;        /* [T][x_stride] the residual stream */
    size_t x_stride; /* D rounded up to 64 */
    /* [T][x_stride] the residual branch, a second sum. sandwich_norm: the output of attention or MLP before
     * its norm; shortcut_moe: of the experts, until the end of the pair. Else NULL. Zeros at other times. */
    float *branch;
    float *out, *experts_out; /* where attention and dense MLPs add, and where experts add: x or branch */
    Activations normed;       /* [T, D] RMSNorm of x: what attention and MLPs read */

    struct {                   /* for every path of attention */
        float *cosine, *sine;  /* [T][p / 2] of each row's position */
        float *qa;             /* [T][qa_stride] compressed queries, ql */
        Activations qa_normed; /* [T, ql] */
        float *q;              /* [T][q_stride] queries: H times (n + p) */
        float *kv;             /* [T][kv_stride] latent and rotated key of the new rows; or keys, values */
        float *gate;           /* [T][gate_stride] sigmoid of each head's gate, where the model has them */
        size_t gate_stride;
        Activations heads; /* [T, H * v_stride] the heads' outputs, side by side: the input of W_o */
        size_t qa_stride, q_stride, kv_stride;
        size_t v_stride; /* v rounded up to 32 */
    } attention;

    struct {
        uint32_t *row; /* [count] the call's rows that attend this way */
        size_t count;
        float *q_latent; /* [count][H][r_stride] queries in the latent space, then the latents' sums */
        size_t r_stride;
        Softmax *
            parts; /* [part_count] for each (row, sixteen heads, part), or two for each thread; out [r][16] */
        size_t part_count;
    } absorbed;

    struct {
        uint8_t *queries;    /* [H][chunk / 16] packed, query_bytes each */
        Softmax *softmax;    /* [H][chunk / 16] with out [v][16] */
        Activations latents; /* [SPAN_ROWS, r] a span of cached rows; CACHE_FULL..: the new rows' latents */
        float *rope_keys;    /* [SPAN_ROWS][p] */
    } decompressed;

    struct { /* ordinary attention (engine/full.c) */
        struct Sixteen *sixteens;
        size_t sixteen_count;
        Softmax *parts; /* [part_count] with out [v][16] */
        size_t part_count;
    } full;

    struct {
        float *rows;  /* [context][r + p] the cached rows that one row attends to */
        float *w_uk;  /* [n][r] of one head */
        float *w_uv;  /* [v][r] */
        float *score; /* [context] */
    } definition;

    struct {                  /* sparse attention (engine/indexer.c); NULL in a model without indexer */
        size_t threshold;     /* up to so many rows attention is dense: index_topk, or SIZE_MAX */
        size_t absorbed_from; /* rows from this place on are absorbed, however many there are */
        bool active;          /* some row of this call attends to more */
        float *key;           /* [T][key_stride] di */
        float *query;         /* [T][query_stride] Hi * di */
        float *weight;        /* [T][weight_stride] Hi */
        size_t key_stride, query_stride, weight_stride;
        float *score; /* [score_rows][context] for score_rows rows at a time */
        size_t score_rows;
        uint64_t *mask; /* [T][mask_stride] bit j: the row attends to row j of its sequence */
        size_t mask_stride;
        uint8_t *tiles; /* absorbed: [rows or threads][tile_count] copies of the chosen latents */
        size_t tile_count;
        uint16_t *lane_mask; /* decompressed: [chunk / 16][SPAN_ROWS] bit i: row i of the sixteen */
        bool *needed; /* [chunk / 16][pages of a span] whether any of the sixteen attends to the page */
    } sparse;

    struct {               /* linear attention (engine/kda.c); NULL in a model without */
        ConstantRun *runs; /* [run_count] the sequences of the call */
        size_t run_count;
        float *in; /* [T][in_stride] what its matrices give */
        size_t in_stride;
        float *low; /* [T][low_stride] low rank of decay, then of gate */
        size_t low_stride;
        Activations decay_low, gate_low; /* [T, rank] */
        Activations heads;               /* [T, heads * d rounded up to 32] the input of W_o */
        float *plain;                    /* the definition's own */
    } kda;

    struct {                  /* router and MLPs (engine/moe.c) */
        float *scores;        /* [T][E + Z rounded up to 16] */
        uint32_t *chosen;     /* [T][num_experts_per_tok] best first */
        float *weight;        /* [T][num_experts_per_tok] */
        ExpertBatch *batches; /* [E + 1] */
        size_t batch_count;
        uint32_t *expert_rows; /* [E + Z] rows that chose each expert */
        uint32_t *next;        /* [E + Z] where the next of them goes in row[] */
        uint32_t *row;         /* [T * (num_experts_per_tok + 1)] the batches' rows */
        float *row_weight;
        Activations in;     /* [T * num_experts_per_tok, D] the experts' inputs, batch by batch */
        Activations hidden; /* the batches' hidden rows, one batch after the other */
    } moe;

    struct {
        uint32_t *row; /* [max_logits] the rows that asked for logits */
        size_t count;
        Activations normed; /* [count, D] */
    } head;
    float *logits; /* [max_logits][V]; V is rounded up to 16 while they are computed */

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
    /* NULL, or called with the logits [V] after each id at or behind place `weigh_from` that is computed */
    void (*weigh)(void *owner, size_t place, const float *logits);
    size_t weigh_from;
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
