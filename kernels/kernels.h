/* kernels/kernels.h: the inner loops. Everything that takes time in this program is a function of `Kernels`
 * below.
 *
 * They know vectors, matrices in panels, quantized rows and tiles of cached rows; they know no model, no
 * layer and no token. One source (kernels.c and the headers it lists) is written on the sixteen-lane
 * vectors of simd.h and compiled once for each instruction set. Portable C is the definition, and every
 * other build must give the same bytes (tests/test_kernels.c).
 *
 * The rule behind "the same bytes": every floating point result has one order of operations, whatever the
 * width of the machine's vectors. Each of sixteen lanes adds its own terms one after another. In matmul a
 * lane is an output and has all of its terms. In dot and rmsnorm it has every sixteenth; there the lanes are
 * added together at the end, in one fixed order. Integer sums are exact, so their order is free. A
 * fused multiply-add is used exactly where the source writes fma, and the compiler may not make one of a *
 * b + c. Approximate instructions (of 1 / x or 1 / sqrt x) are not used. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/util.h"

/* ---- weights: panels of 16 rows ------------------------------------------------------------- */
/* y = W x with W [rows, cols]. Rows are grouped in panels of 16: one vector holds the same column of 16
 * rows, and sixteen outputs advance at once without a sum across lanes. Rows are padded with zeros to a
 * multiple of 16.
 *
 *   VECTOR  not a matrix: `rows` plain f32 numbers
 *   F32     panel = [cols][16 rows] f32
 *   BF16    panel = [cols][16 rows] bf16
 *   Q8, Q4  panel = blocks of 64 columns (columns padded with zeros). A block is
 *             64 bytes   f16 scales: [2 halves of 32 columns][16 rows]
 *             Q8: 16 units of 64 bytes. Unit u = [16 rows][columns 4u .. 4u + 3],
 *                 byte = weight + 128, weight in -127 .. 127
 *             Q4: 8 units of 64 bytes. Unit u of half h (u = 0 .. 3, at index 4h + u) = [16 rows][4 bytes],
 *                 byte j: low nibble = column 32h + 4u + j, high nibble = column 32h + 16 + 4u + j;
 *                 a nibble is an index into the tensor's codebook of 16 int8 values in -127 .. 127;
 *                 AVX2 is faster where all are in -64 .. 63, as export.py makes them
 *           weight = integer * scale(row, 32 columns) * Matrix.scale
 *           1088 or 576 bytes a block: 8.5 or 4.5 bits a weight
 *
 * Why four columns lie together: the instructions that multiply int8 (vpdpbusd, sdot) add four products to
 * each 32-bit lane. A unit of Q8 is one operand of them (one of Q4 becomes two): lane i holds four columns of
 * row i, and meets the same four activations, which are repeated in every lane.
 *
 * Why a weight is stored + 128: vpdpbusd multiplies unsigned bytes by signed ones, and activations are
 * signed. It computes sum (w + 128) a = sum w a + 128 sum a. The second term is known beforehand:
 * Activations.start is what takes it off, and sums begin there. Where the instruction wants signed
 * weights, they become so by flipping the highest bit when they are loaded. */
typedef enum { TYPE_VECTOR, TYPE_F32, TYPE_BF16, TYPE_Q8, TYPE_Q4, TYPE_COUNT } Type;

enum { PANEL = 16, BLOCK = 64, Q8_BLOCK = 64 + 16 * 64, Q4_BLOCK = 64 + 8 * 64 };

typedef struct {
    const uint8_t *data;    /* panels, 64-byte aligned, inside the mapped checkpoint */
    const int8_t *codebook; /* Q4: 16 values */
    uint32_t type;          /* Type */
    uint32_t rows, cols;
    float scale; /* Q8, Q4: multiplies every weight; 1 otherwise */
} Matrix;

/* Bytes of one panel (16 rows) of a matrix with `cols` columns; 0 for a VECTOR or an unknown type. */
static inline size_t panel_bytes(uint32_t type, size_t cols) {
    switch (type) {
    case TYPE_F32: return cols * PANEL * 4;
    case TYPE_BF16: return cols * PANEL * 2;
    case TYPE_Q8: return div_up(cols, BLOCK) * Q8_BLOCK;
    case TYPE_Q4: return div_up(cols, BLOCK) * Q4_BLOCK;
    default: return 0;
    }
}
static inline size_t matrix_panels(const Matrix *w) { return div_up(w->rows, PANEL); }

/* ---- activations: the rows that matrices are multiplied with -------------------------------- */
/* `rows` vectors of `cols` numbers, kept in the form or forms that the weights need: f32 for F32 and BF16
 * matrices, int8 with one scale per 32 columns for Q8 and Q4. A row is quantized once, then used by every
 * matrix that reads it.
 *
 * The int8 form is stored in groups of 16 rows (the last group has rows % 16 if that is not 0). Within a
 * group it is [half of a block][row of the group][32 columns], so that a product of 16 rows walks memory in
 * one stream; a single row is simply the row. Scales and starts follow the same order: [group][half][row].
 * Group i begins at row 16 i: at byte 16 i * stride of q, and at element 16 i * stride / 32 of scale and
 * start. */
typedef struct {
    uint32_t rows, cols;
    uint32_t stride; /* cols rounded up to 64 */
    float *f;        /* [rows][stride], zeros past cols; NULL if no matrix needs it */
    int8_t *q;       /* int8 in -127 .. 127, zeros past cols; NULL if no matrix needs it */
    float *scale;    /* per 32 columns: max|x| / 127; 0 if all are 0, NaN if a number is not finite */
    int32_t *start;  /* per 32 columns: -128 * the sum of the 32 int8 values (why: see weights) */
} Activations;

/* Part of x's memory as activations of their own: `rows` rows of `cols` columns from element `at` on (a
 * multiple of the stride). */
static inline Activations activations_view(const Activations *x, size_t at, size_t rows, size_t cols) {
    Activations v = *x;
    v.rows = (uint32_t)rows;
    v.cols = (uint32_t)cols;
    v.stride = (uint32_t)round_up(cols, BLOCK);
    if (x->f)
        v.f += at;
    if (x->q) {
        v.q += at;
        v.scale += at / 32;
        v.start += at / 32;
    }
    return v;
}

/* ---- the cache's rows: tiles of 128, and sixteen queries against one ------------------------ */
/* A tile is up to TILE_ROWS = 128 cached rows of one layer. Each row is the two vectors [a (d1 numbers) |
 * b (d2 numbers)], which are quantized separately: latent and rotated key of the latent cache, no-position
 * part and rotated part of decompressed keys, or values alone (d2 = 0). A number is integer * scale.
 *
 *   TILE_F32   [128 rows][d1 + d2] f32
 *   TILE_BF16  [128 rows][d1 + d2] bf16, rounded to nearest even
 *
 * Q8, Q6 and Q4 tiles are 8 sub-tiles of 16 rows. Dimensions past the end are 0. Where d2 is 0 there are no
 * numbers of b. (512, 64) is (d1, d2):
 *
 *   TILE_Q8    units: 64 bytes = [16 rows][4 dimensions] int8; a's ceil(d1 / 4), then b's ceil(d2 / 4)
 *              then [16] each: f32 scale of a, f32 scale of b, int32 sum of a's integers, of b's integers
 *              (512, 64): 592 bytes a row
 *
 *   TILE_Q6    groups of 16 dimensions in 192 bytes; a's ceil(d1 / 16), then b's ceil(d2 / 16)
 *              then [16] each: f16 scale of a, f16 scale of b
 *              The integers are 4q, q in -31 .. 31. A group is four units of Q8 without the two bits that
 *              are always 0:
 *                bytes   0 ..  63   upper four bits of units 0 (low nibble) and 1 (high nibble)
 *                bytes  64 .. 127   the same of units 2 and 3
 *                bytes 128 .. 191   the two bits below them of all four: unit u at bits 2u and 2u + 1
 *              (512, 64): 436 bytes a row
 *
 *   TILE_Q4    groups of 16 dimensions of a in 128 bytes; b's groups as four units of Q8
 *              then for each group of a: int8 multipliers [16]
 *              then [16] each: f16 scale of a, f16 scale of b
 *              A number of a is a nibble, the index into 16 values (tile.h); its integer is
 *              (value * multiplier + 64) >> 7.
 *                bytes   0 ..  63   units 0 (low nibble) and 1 (high nibble)
 *                bytes  64 .. 127   units 2 and 3
 *              (512, 64): 356 bytes a row
 *
 * Below 8 bits the numbers of a row should be of similar size, so they are multiplied by an orthogonal matrix
 * (which has nothing to do with rope): the latent's when it is exported (exporter/plan.py), other rows before
 * they are stored (engine/full.c, window.c). */
typedef enum { TILE_F32, TILE_BF16, TILE_Q8, TILE_Q6, TILE_Q4, TILE_COUNT } TileType;

enum { TILE_ROWS = 128, LANES = 16 };

typedef struct {
    uint32_t type; /* TileType */
    uint32_t d1, d2;
} TileShape;

/* Sixteen queries (lanes) against the rows of tiles, one tile after another, with an online softmax. In
 * the absorbed form the lanes are heads of one row or of a few; in the decompressed form rows of one head. */
typedef struct {
    float max[LANES]; /* largest score so far; at first -INFINITY */
    float sum[LANES]; /* of exp(score - max); at first 0 */
    float *out;       /* [dv][16]: sum of exp(score - max) * value; not read of a lane that has no row yet */
} Softmax;

/* ---- linear attention ----------------------------------------------------------------------- */
/* Rows of one head for the delta rule (engine/kda.c): [rows][stride] each; of q, k and decay the first `keys`
 * numbers of a row count. */
enum { DELTA_COLUMNS = 32 };

typedef struct {
    const float *q, *k, *decay; /* decay: what a key's row of the memory is multiplied by */
    float *v;                   /* values; become the outputs */
    const float *beta, *kq;     /* [rows] how much is learned; k . q */
    size_t rows, stride, keys;
} DeltaRows;

/* ---- the functions -------------------------------------------------------------------------- */
typedef struct {
    const char *name; /* portable, avx2, avxvnni, avx512, neon */

    /* -- plain vectors of n numbers -- */

    /* Sum of a_i b_i: sixteen lanes of fma in order, then lanes 8 apart are added, 4 apart, 2, 1. */
    float (*dot)(const float *a, const float *b, size_t n);

    /* y += s x, one fma each. */
    void (*axpy)(float *y, float s, const float *x, size_t n);

    /* y = x / sqrt(mean(x^2) + eps) * w, with the sum in dot's order. y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *w, size_t n, float eps);

    /* h = min(silu(gate), limit) * max(-limit, min(up, limit)), or `before` silu(min(gate, limit)) times the
     * same; limit INFINITY: none. h may be gate or up. (relu squared is a plain loop in engine/moe.c.) */
    void (*swiglu)(float *h, const float *gate, const float *up, size_t n, float limit, bool before);

    /* In place: softmax, sigmoid, sqrt(log(1 + e^x)) (routers, sampling). */
    void (*softmax)(float *x, size_t n);
    void (*sigmoid)(float *x, size_t n);
    void (*sqrt_softplus)(float *x, size_t n);

    /* x_i = exp(x_i - minus); exp(-inf) = 0, and exp(-inf - -inf) = 0 as well. */
    void (*exp_minus)(float *x, size_t n, float minus);

    /* -- activations -- */

    /* Stores n numbers at columns col .. col + n - 1 of row `row`, in every form that x holds (x->f,
     * x->q). col is a multiple of 32; n too unless the row ends there. x->rows must be set before: the
     * place of a row depends on it. */
    void (*store_row)(Activations *x, size_t row, size_t col, const float *v, size_t n);

    /* dst row i = src row rows[i], for dst->rows rows, in every form that both hold. */
    void (*gather)(Activations *dst, const Activations *src, const uint32_t *rows);

    /* -- matrices -- */

    /* y[i * ldy + 16 * (j - panel) + lane] = W x_i for panels j = panel .. panel + panels - 1 and all rows
     * i of x. One f32 accumulator per output. F32, BF16: columns in order, acc = fma(w, x, acc). Q8, Q4:
     * halves of 32 columns in order, acc = fma((float)integer sum, weight scale * activation scale, acc);
     * the matrix's scale multiplies at the end. */
    void (*matmul)(float *y, size_t ldy, const Matrix *w, size_t panel, size_t panels, const Activations *x);

    /* From how many rows of x on matmul() unpacks panels first, where it can (matmul.h). It changes speed
     * alone; tune.c sets it. */
    size_t *many_rows;

    /* Are weights read from memory, because the caches cannot hold them all? matmul() then asks for them
     * earlier (matmul.h). It changes speed alone; model_open() sets it. */
    bool *from_memory;

    /* out[0 .. cols) = row `row` of W (an embedding). */
    void (*read_row)(float *out, const Matrix *w, size_t row);

    /* -- rows of tiles -- */

    /* Writes row `row` of a tile: a [d1] and b [d2]. */
    void (*tile_store)(const TileShape *shape, void *tile, size_t row, const float *a, const float *b);

    /* Reads it back as f32. a or b may be NULL: that part is skipped. */
    void (*tile_load)(const TileShape *shape, const void *tile, size_t row, float *a, float *b);

    /* Row `to_row` of tile `to` becomes row `from_row` of tile `from`: its bytes are copied. */
    void (*tile_copy)(const TileShape *shape, void *to, size_t to_row, const void *from, size_t from_row);

    /* Rows 0 .. x->rows - 1 of part a of a tile as activations (cols = d1). Q8, Q6 and Q4 rows keep their
     * integers if x->f is NULL, the row's scale standing for every 32 columns; otherwise they go through
     * f32. */
    void (*tile_activations)(const TileShape *shape, const void *tile, Activations *x);

    /* -- attention: sixteen queries against tiles -- */

    /* Makes a query out of sixteen lanes: lane i reads a[i] [d1] and b[i] [d2]; a[i] == NULL leaves the
     * lane empty. `query` has query_bytes(shape) bytes, 64-byte aligned. F32, BF16: [d1 + d2][16] f32. Q8,
     * Q6, Q4: int8 per lane with a scale for each part; two of them where d2 is 0 (attention.h, is_fine). */
    void (*pack_query)(const TileShape *shape, void *query, const float *const a[LANES],
                       const float *const b[LANES]);

    /* Sixteen queries against rows 0 .. rows - 1 of a tile. Lane i attends to rows below limit[i], and of
     * them to those j with bit i of mask[j] set, unless `mask` is NULL; it may be no row.
     * score = scale * (a . qa + b . qb). The values are part a of `values` (in the absorbed form the same
     * tile as `keys`), dv = values_shape->d1. Updates s. `scratch` has attend_scratch_bytes() of the larger
     * shape, 64-byte aligned. */
    void (*attend)(const TileShape *shape, const void *query, const void *keys, const TileShape *values_shape,
                   const void *values, size_t rows, const int32_t limit[LANES], const uint16_t *mask,
                   float scale, Softmax *s, void *scratch);

    /* s = s and t together (t was computed from later rows): the parts of a context, combined in order. */
    void (*softmax_merge)(Softmax *s, const Softmax *t, size_t dv);

    /* out[lane * ld .. lane * ld + dv) = s->out / s->sum, for lanes 0 .. lanes - 1. */
    void (*softmax_finish)(float *out, size_t ld, const Softmax *s, size_t dv, size_t lanes);

    /* -- the indexer of a sparse attention -- */

    /* score[j] = sum over h of weight[h] * relu(query_h . key_j) for rows j = 0 .. rows - 1 of a tile of
     * index keys, F32, BF16 or Q8 with d2 = 0. `query`: the heads in groups of sixteen, each group made by
     * pack_query() of the same shape. weight: [heads rounded up to 16], finite past `heads`. scratch:
     * [16][d1]. */
    void (*index_scores)(float *score, const TileShape *shape, const void *query, const float *weight,
                         size_t heads, const void *keys, size_t rows, float *scratch);

    /* -- linear attention -- */

    /* y = silu(sum over j < taps of w[j * ld ..] * u[j]), n numbers; j in order, one fma each. */
    void (*convolve)(float *y, const float *const *u, const float *w, size_t ld, size_t taps, size_t n);

    /* x = x * length / sqrt(sum x^2 + eps) */
    void (*set_length)(float *x, size_t n, float length, float eps);

    /* y = exp(g), g = lower * sigmoid(exp(rate) * (z + bias)), or with lower 0 g = -exp(rate) * log(1 + exp(z
     * + bias)). NaN if z + bias is infinite. */
    void (*decay)(float *y, const float *z, const float *bias, float rate, float lower, size_t n);

    /* The delta rule for 32 columns of values, x->v + column .. column + 31 of each row, one row after
     * another: S = decay S; r = beta (v - S^T k); v = S^T q + (k . q) r; S = S + k r^T. S is [keys][32]:
     * `from` before the first row, `to` behind the last one; they may be the same. */
    void (*delta)(float *to, const float *from, const DeltaRows *x, size_t column);
} Kernels;

size_t tile_bytes(const TileShape *shape);  /* of a whole tile of 128 rows; a multiple of 64 */
size_t query_bytes(const TileShape *shape); /* a multiple of 64 */
size_t attend_scratch_bytes(const TileShape *shape);

/* The kernels of the fastest instruction set that this machine can run, or of the one that MLA_ISA names.
 * NULL if MLA_ISA names one that the machine cannot run or that is not known; then *why says so. */
const Kernels *kernels_choose(const char **why);

#endif
