/* engine/buffers.h: State, the cache and the buffers of a call, with the shape of every one. engine/state.c
 * allocates them; each part belongs to the file that its comment names. */
#ifndef BUFFERS_H
#define BUFFERS_H

#include "kernels/team.h"
#include "model.h"

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
    uint8_t *ring;        /* the last rows of a text (engine/window.c) */
    uint8_t *far;         /* a part's compressed rows (the same) */
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
struct State {
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
    ConstantRun *runs; /* [run_count] the sequences of the call; NULL: the model has no constant part */
    size_t run_count;
    Row *plan; /* [chunk] where generate() plans its calls */

    float *x;          /* [T][x_stride] the residual stream; with hc_mult as many, [hc_mult][D] */
    size_t x_stride;   /* D rounded up to 64; with hc_mult hc_mult * D */
    size_t out_stride; /* D rounded up to 64 */
    /* [T][out_stride] the residual branch, a second sum. sandwich_norm, hc_mult: the output of attention or
     * MLP before it is added to x; shortcut_moe: of the experts, until the end of the pair. Else NULL. Zeros
     * at other times. */
    float *branch;
    float *out, *experts_out; /* [T][out_stride] where attention and dense MLPs add, and where experts add: x
                               * or branch */
    Activations normed;       /* [T, D] RMSNorm of x: what attention and MLPs read */

    struct {            /* hyper-connections (engine/hyper.c); NULL in a model without */
        float *sums;    /* [T][hyper_sum_floats()] */
        float *weights; /* [T][hc_mult * (2 + hc_mult) rounded up to 16] of the present branch */
        float *plain;   /* [hc_mult * (2 + hc_mult)][hc_mult * D] fn, for the definition; else NULL */
    } hyper;

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
        struct QueryGroup *query_groups;
        size_t query_group_count;
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
        size_t threshold;     /* up to so many choices attention is dense; SIZE_MAX: always */
        size_t ratio;         /* tokens for one choice: 1, csa_ratio or index_kpool */
        size_t pool;          /* rows of the cache for one choice: 1 or index_kpool */
        size_t absorbed_from; /* rows from this place on are absorbed, however many there are */
        bool active;          /* some row of this call attends to more */
        float *key;           /* [T][key_stride] di; with pools pool_part() */
        float *query;         /* [T][query_stride] Hi * di */
        float *weight;        /* [T][weight_stride] Hi */
        size_t key_stride, query_stride, weight_stride;
        float *score; /* [score_rows][context] for score_rows rows at a time */
        size_t score_rows;
        uint64_t *mask; /* [T][mask_stride] bit j: the row attends to row j of its sequence */
        size_t mask_stride;
        uint8_t *tiles; /* absorbed: [rows or threads][tile_count] copies of the chosen latents */
        size_t tile_count;
        uint16_t *lane_mask; /* decompressed: [chunk / 16][SPAN_ROWS] bit i: row i of a query group */
        bool *needed;        /* [chunk / 16][pages of a span] whether any of its rows attends to the page */
    } sparse;

    struct {       /* linear attention (engine/kda.c); NULL in a model without */
        float *in; /* [T][in_stride] what its matrices give */
        size_t in_stride;
        float *low; /* [T][low_stride] low rank of decay, then of gate */
        size_t low_stride;
        Activations decay_low, gate_low; /* [T, rank] */
        Activations heads;               /* [T, heads * d rounded up to 32] the input of W_o */
        float *plain;                    /* the definition's own */
    } kda;

    struct {       /* windows of rows and compressed rows (engine/window.c); NULL in a model without */
        float *in; /* [T][in_stride] what the matrices of rows and compressors give: window_part() */
        size_t in_stride;
        float *cosine, *sine; /* [T][p / 2] in layers with compressed rows */
        float *ones;          /* [d] */
        float *closed;        /* [T][closed_stride] the windows that a row closes, d and di numbers */
        size_t closed_stride;
        Softmax *parts; /* [part_count] with out [d][16] */
        size_t part_count;
        Activations groups; /* o_groups times [chunk, H / o_groups * d] the heads' outputs */
        float *low;         /* [T][low_stride] o_groups times o_lora_rank rounded up to 16 */
        size_t low_stride;
        Activations low_rows; /* [T, o_groups * o_lora_rank] the same: the input of W_o */
        float *rows;          /* [rows of a context][d] the definition's own, and its [rows] scores */
        float *score;
    } window;

    struct {                  /* router and MLPs (engine/moe.c) */
        float *scores;        /* [T][E + Z rounded up to 16] */
        uint32_t *chosen;     /* [T][num_experts_per_tok] best first */
        float *weight;        /* [T][num_experts_per_tok] */
        ExpertBatch *batches; /* [E + 1] */
        size_t batch_count;
        uint32_t *expert_rows; /* [E + Z + 1] rows that chose each expert; the last is nobody (moe.c) */
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
};

#endif
