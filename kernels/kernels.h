/* kernels.h: the vocabulary of the inner loops.
 *
 * Everything that takes time in this program is one of the functions in `Kernels` below. They know
 * vectors, matrices in panels, quantised rows and tiles of cached rows; they know no model, no layer, no
 * token. One source (kernels.c, matmul.h, attention.h) is written on the sixteen-lane vectors of simd.h
 * and compiled once for each instruction set; portable C is the definition, and every other build must
 * give the same bytes (tests/test_kernels.c).
 *
 * The rule behind "the same bytes": every floating point result has one order of operations, whatever the
 * width of the machine's vectors. Sixteen lanes advance together, sums run along time and not across
 * lanes, and where lanes must be added at the end there is one fixed tree. Integer sums are exact, so
 * their order is free. No contraction, no estimates. */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "util.h"

/* ---- weights: panels of 16 rows ------------------------------------------------------------- */
/* y = W x with W [rows, cols]. Rows are grouped in panels of 16 so that one vector holds the same column
 * of 16 rows and sixteen outputs advance at once with no horizontal sum. Rows are padded with zeros to a
 * multiple of 16.
 *
 *   VECTOR  not a matrix: `rows` plain f32 numbers
 *   F32     panel = [cols][16 rows] f32
 *   BF16    panel = [cols][16 rows] bf16
 *   Q8, Q4  panel = blocks of 64 columns (columns padded with zeros). A block is
 *             64 bytes   f16 scales: [2 halves of 32 columns][16 rows]
 *             Q8: 16 units of 64 bytes; unit u = [16 rows][4 columns 4u .. 4u+3], byte = weight + 128,
 *               weight in -127 .. 127
 *             Q4:  8 units of 64 bytes; unit u of half h (u = 0 .. 3, at index 4h + u) = [16 rows][4
 *                  bytes];
 *                  byte j: low nibble = column 32h + 4u + j, high nibble = column 32h + 16 + 4u + j;
 *                  a nibble is an index into the tensor's codebook of 16 int8 values in -127 .. 127
 *           1088 or 576 bytes a block: 8.5 or 4.5 bits a weight.
 *           weight = integer * scale(row, 32 columns) * Matrix.scale */
typedef enum { TYPE_VECTOR, TYPE_F32, TYPE_BF16, TYPE_Q8, TYPE_Q4, TYPE_COUNT } Type;

enum { PANEL = 16, BLOCK = 64 };

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
    case TYPE_Q8: return round_up(cols, BLOCK) / BLOCK * 1088;
    case TYPE_Q4: return round_up(cols, BLOCK) / BLOCK * 576;
    default: return 0;
    }
}
static inline size_t matrix_panels(const Matrix *w) { return round_up(w->rows, PANEL) / PANEL; }

/* ---- activations: the rows that matrices are multiplied with -------------------------------- */
/* `rows` vectors of `cols` numbers, kept in the form or forms that the weights need: f32 for F32 and BF16
 * matrices, int8 with one scale per 32 columns for Q8 and Q4. Quantised once per row, then used by every
 * matrix that reads the row.
 *
 * The int8 form is stored in groups of 16 rows (the last group has g = rows % 16 if that is not 0), within
 * a group [column block of 32][row of the group][32], so that a register tile of 16 rows walks memory in
 * one stream; for a single row it is simply the row. Scales and sums follow the same order:
 * [group][block][row]. Group i begins at row 16 i: at byte 16 i * stride of q and at element 16 i * stride
 * / 32 of scale and sum. */
typedef struct {
    uint32_t rows, cols;
    uint32_t stride; /* cols rounded up to 64 */
    float *f;        /* [rows][stride], zeros past cols; NULL if no matrix needs it */
    int8_t *q;       /* int8 in -127 .. 127, zeros past cols; NULL if no matrix needs it */
    /* per 32 columns: max|x| / 127 (0 for a block of zeros, NaN if one of them is no number) */
    float *scale;
    int32_t *sum; /* per 32 columns: the sum of the 32 int8 values */
} Acts;

/* Part of x's memory as activations of their own: `rows` rows of `cols` columns from element `at` on (a
 * multiple of the stride). */
static inline Acts acts_view(const Acts *x, size_t at, size_t rows, size_t cols) {
    Acts v = *x;
    v.rows = (uint32_t)rows, v.cols = (uint32_t)cols, v.stride = (uint32_t)round_up(cols, BLOCK);
    if (x->f)
        v.f += at;
    if (x->q)
        v.q += at, v.scale += at / 32, v.sum += at / 32;
    return v;
}

/* ---- the cache's rows: tiles of 128, and sixteen queries against one ------------------------ */
/* A tile holds up to TILE_ROWS rows, each the two vectors [a (d1 numbers) | b (d2 numbers)] that are
 * quantised apart: latent and rotated key of the latent cache (one page of one layer), no-position part
 * and rotated part of decompressed keys, or values alone (d2 = 0).
 *
 *   TILE_F32   [128 rows][d1 + d2] f32
 *   TILE_BF16  [128 rows][d1 + d2] bf16, rounded to nearest even
 *   TILE_Q8    8 sub-tiles of 16 rows; a sub-tile is [units of 4 dimensions][16 rows][4] int8, a's
 *              ceil(d1/4) units, then b's
 *              ceil(d2/4), dimensions past the end 0; then per row, [16] each: f32 scale of a, f32 scale
 *                of b, int32 sum of a's
 *              integers, int32 sum of b's. (d1, d2) = (512, 64): 592 bytes a row.
 *   TILE_Q6    8 sub-tiles of 16 rows; a sub-tile is groups of 16 dimensions, a's ceil(d1/16), then b's
 *              ceil(d2/16), dimensions past the
 *              end 0; then per row, [16] each: f16 scale of a, f16 scale of b. The integers are 4q, q in
 *                -31 .. 31. A group is four units of
 *              Q8 without the two bits that are always 0, in 192 bytes: the upper four bits of units 0
 *                (low nibbles) and 1 (high nibbles)
 *              in 64 bytes, those of units 2 and 3 in the next, then 64 bytes with two more bits of unit u
 *                at 2u and 2u + 1. (512, 64): 436.
 *   TILE_Q4    8 sub-tiles of 16 rows; a sub-tile is a's groups in 128 bytes, a nibble for each number of
 *              units 0 (low) and 1 (high) in
 *              64, of units 2 and 3 in the next; b's groups as four units of Q8; then for each group of a
 *                int8 multipliers [16]; then the
 *              scales as in Q6. a's integers are (value * multiplier + 64) >> 7, the nibble being an index
 *                into 16 values (tile.h). (512, 64): 356.
 *
 * A number is integer * scale. The latent is meant to have been rotated below 8 bits (exporter/plan.py):
 * its numbers are then alike. */
typedef enum { TILE_F32, TILE_BF16, TILE_Q8, TILE_Q6, TILE_Q4, TILE_COUNT } TileType;

enum { TILE_ROWS = 128, LANES = 16 };

typedef struct {
    uint32_t type; /* TileType */
    uint32_t d1, d2;
} TileShape;

/* Sixteen queries (lanes) against the rows of tiles, one tile after another, with an online softmax. In
 * the absorbed form the lanes are heads of one row; in the decompressed form they are rows of one head. */
typedef struct {
    float max[LANES]; /* largest score so far; -INFINITY before the first tile */
    float sum[LANES]; /* of exp(score - max) */
    /* [dv][16]: sum of exp(score - max) * value, lanes last; not read in lanes that have seen no row: no
     * need to clear it */
    float *out;
} Softmax;

/* ---- the vocabulary ------------------------------------------------------------------------- */
typedef struct {
    const char *name; /* portable, avx2, avx512, neon */

    /* Put n numbers at columns col .. col + n of row `row`, in every form that x holds (x->f, x->q). col
     * is a multiple of 32; n too unless the row ends there. x->rows must be set before: the place of a row
     * depends on it. */
    void (*put)(Acts *x, size_t row, size_t col, const float *v, size_t n);

    /* dst row i = src row rows[i], for dst->rows rows, in every form that both hold. */
    void (*gather)(Acts *dst, const Acts *src, const uint32_t *rows);

    /* y[i * ldy + 16 * (j - panel) + lane] = W x_i for panels j = panel .. panel + panels - 1 and all rows
     * i of x. One accumulator per output, f32: columns in order, acc = fma(w, x, acc); q8, q4: blocks of
     * 32 in order, acc = fma((float)integer sum, weight scale * activation scale, acc); the matrix's scale
     * multiplies at the end. */
    void (*matmul)(float *y, size_t ldy, const Matrix *w, size_t panel, size_t panels, const Acts *x);

    /* out[0 .. cols) = row `row` of W (an embedding). */
    void (*row)(float *out, const Matrix *w, size_t row);

    /* y = x / sqrt(mean(x^2) + eps) * w. y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *w, size_t n, float eps);

    /* h = silu(gate) * up. h may be gate or up. */
    void (*swiglu)(float *h, const float *gate, const float *up, size_t n);

    /* In place: softmax and sigmoid (routers, sampling). */
    void (*softmax)(float *x, size_t n);
    void (*sigmoid)(float *x, size_t n);

    /* x_i = exp(x_i - minus); exp(-inf) = 0, and exp(-inf - -inf) = 0 as well. */
    void (*exp_minus)(float *x, size_t n, float minus);

    /* Sum of a_i b_i: sixteen lanes of fma in order, then lanes (i, i+8), (i, i+4), (i, i+2), (i, i+1)
     * added. */
    float (*dot)(const float *a, const float *b, size_t n);

    /* y += s x, one fma each. */
    void (*axpy)(float *y, float s, const float *x, size_t n);

    /* Write row `row` of a tile, reading [a | b]; read it back as f32, but for a part that is NULL. */
    void (*tile_put)(const TileShape *shape, void *tile, size_t row, const float *a, const float *b);
    void (*tile_get)(const TileShape *shape, const void *tile, size_t row, float *a, float *b);

    /* Row `to_row` of tile `to` becomes row `from_row` of tile `from`, as it is. */
    void (*tile_copy)(const TileShape *shape, void *to, size_t to_row, const void *from, size_t from_row);

    /* Rows 0 .. x->rows of a tile's part a as activations (cols = d1): Q8, Q6 and Q4 rows go over as they
     * are, integers and scale unchanged, if only x->q is asked for; otherwise through f32. */
    void (*tile_acts)(const TileShape *shape, const void *tile, Acts *x);

    /* Make a query out of sixteen lanes: lane i reads a[i] (d1 numbers) and b[i] (d2 numbers); a[i] ==
     * NULL leaves the lane empty. `query` has query_bytes(shape) bytes, 64-byte aligned. F32, BF16: [d1 +
     * d2][16] f32. Q8, Q6, Q4: int8 per lane with a scale for each part. */
    void (*query)(const TileShape *shape, void *query, const float *const a[LANES],
                  const float *const b[LANES]);

    /* Sixteen queries against rows 0 .. rows-1 of a tile; lane i sees rows below limit[i] only (others
     * count as absent; a lane may see none), and of them those j with bit i of seen[j] set, unless `seen`
     * is NULL. score = scale * (a . qa + b . qb). The values are part a of `values` (in the absorbed form
     * the same tile as `keys`), dv = values_shape->d1. Updates s. `scratch` has attend_scratch_bytes() of
     * the larger shape, 64-byte aligned. */
    void (*attend)(const TileShape *shape, const void *query, const void *keys, const TileShape *values_shape,
                   const void *values, size_t rows, const int32_t limit[LANES], const uint16_t *seen,
                   float scale, Softmax *s, void *scratch);

    /* s = s and t together (t was computed from later rows): the parts of a context, combined in order. */
    void (*softmax_merge)(Softmax *s, const Softmax *t, size_t dv);

    /* out[lane][0 .. dv) = s->out / s->sum for lanes 0 .. lanes-1; out has a stride of ld floats between
     * lanes. */
    void (*softmax_finish)(float *out, size_t ld, const Softmax *s, size_t dv, size_t lanes);

    /* score[j] = sum over h of weight[h] * relu(query_h . key_j) for rows j = 0 .. rows-1 of a tile of
     * index keys, F32 or BF16 with d2 = 0. `query`: the heads in groups of sixteen, each group made by
     * query() of the same shape; weight: [heads rounded up to 16], finite past `heads`. scratch: [16][d1]. */
    void (*index_scores)(float *score, const TileShape *shape, const void *query, const float *weight,
                         size_t heads, const void *keys, size_t rows, float *scratch);
} Kernels;

size_t tile_bytes(const TileShape *shape);  /* of a whole tile of 128 rows; a multiple of 64 */
size_t query_bytes(const TileShape *shape); /* a multiple of 64 */
size_t attend_scratch_bytes(const TileShape *shape);

/* The fastest vocabulary that this machine can run, or the one MLA_ISA names. NULL if MLA_ISA names one
 * that it cannot run or does not know; then *why says so. */
const Kernels *kernels_choose(const char **why);

#endif
