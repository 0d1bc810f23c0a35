/* kernels/matmul.h: y = W x for weights in panels of 16 rows (kernels.h). Included by kernels.c alone.
 *
 * The inner loop multiplies one panel with up to REG_ROWS rows of x. Its accumulators are one vector for
 * each row, whose lanes are the panel's 16 outputs, and they stay in registers. Every weight is loaded and
 * unpacked once for all these rows. With one row the loop is a stream over the weights and runs at the
 * speed of memory; with many it runs at the speed of the multipliers. One source serves both: the number
 * of rows and the type are constants wherever the loop is inlined, and the loops over them are unrolled. */
#include "kernels/kernels.h"
#include "kernels/simd.h"

enum {
    WEIGHTS_AHEAD = 2048,    /* bytes; hides the latency of memory when one row is multiplied */
    CHUNK_BYTES = 256 * 1024 /* weights that stay in L2 while all rows of x pass by */
};

/* `rows` rows of a group of x in int8, from its first column on. */
typedef struct {
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    size_t group; /* rows of the group: how far it is from one block of 32 columns to the next */
} Int8Rows;

/* y[t * ldy + lane] for t < rows: one panel of q8 or q4 times `rows` rows. */
OP void multiply_int8(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, Int8Rows x, const int rows,
                      const bool q4) {
    vf acc[16];
    UNROLL for (int t = 0; t < rows; t++) acc[t] = vf_set1(0.0f);
    vt codebook = q4 ? vt_load(w->codebook) : (vt){0};
    const size_t bytes = q4 ? Q4_BLOCK : Q8_BLOCK, blocks = div_up(w->cols, BLOCK);
    for (size_t b = 0; b < blocks; b++, panel += bytes) {
        for (size_t line = 0; line < bytes; line += 64)
            PREFETCH(panel + WEIGHTS_AHEAD + line);
        UNROLL for (int half = 0; half < 2; half++) {
            const uint8_t *units = panel + 64 + (q4 ? 256 : 512) * half;
            vb unit[8]; /* 4 columns each */
            UNROLL for (int u = 0; u < 4; u++) {
                if (q4) {
                    vb_q4(&unit[u], &unit[u + 4], units + 64 * u, codebook);
                } else {
                    unit[u] = vb_load_biased(units + 64 * u);
                    unit[u + 4] = vb_load_biased(units + 64 * (u + 4));
                }
            }
            vf scale = vf_from_f16(panel + 32 * half);
            UNROLL for (int t = 0; t < rows; t++) {
                vi sum = dot4_start(x.sum[t]);
                UNROLL for (int u = 0; u < 8; u++) sum = dot4(sum, unit[u], x.q + 32 * t + 4 * u);
                acc[t] = vf_fma(vi_to_float(sum), vf_mul(scale, vf_set1(x.scale[t])), acc[t]);
            }
            x.q += 32 * x.group;
            x.scale += x.group;
            x.sum += x.group;
        }
    }
    UNROLL for (int t = 0; t < rows; t++) vf_store(y + (size_t)t * ldy, vf_mul(acc[t], vf_set1(w->scale)));
}

/* The same of f32 or bf16; x has rows of `stride` numbers. */
OP void multiply_float(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const float *x,
                       size_t stride, const int rows, const bool bf16) {
    vf acc[16];
    UNROLL for (int t = 0; t < rows; t++) acc[t] = vf_set1(0.0f);
    const size_t bytes = bf16 ? 32 : 64;
    for (size_t c = 0; c < w->cols; c++, panel += bytes) {
        PREFETCH(panel + WEIGHTS_AHEAD);
        vf weights = bf16 ? vf_from_bf16(panel) : vf_load((const float *)(const void *)panel);
        UNROLL for (int t = 0; t < rows; t++) acc[t] =
            vf_fma(weights, vf_set1(x[(size_t)t * stride + c]), acc[t]);
    }
    UNROLL for (int t = 0; t < rows; t++) vf_store(y + (size_t)t * ldy, acc[t]);
}

/* One panel times rows row .. row + n - 1 of x, which are a whole group. `type` is a constant. */
OP void multiply_group(const Type type, float *y, size_t ldy, const Matrix *w, const uint8_t *panel,
                       const Activations *x, size_t row, size_t n) {
    for (size_t t = 0; t < n; t += REG_ROWS) {
        const bool int8 = type == TYPE_Q8 || type == TYPE_Q4;
        size_t at = row * (x->stride / 32) + t;
        Int8Rows ints = int8 ? (Int8Rows){x->q + 32 * at, x->scale + at, x->sum + at, n} : (Int8Rows){0};
        const float *floats = int8 ? NULL : x->f + (row + t) * x->stride;
        float *to = y + t * ldy;
#define MULTIPLY(rows)                                                                     \
    case rows:                                                                             \
        if (rows <= REG_ROWS && int8)                                                      \
            multiply_int8(to, ldy, w, panel, ints, rows, type == TYPE_Q4);                 \
        else if (rows <= REG_ROWS)                                                         \
            multiply_float(to, ldy, w, panel, floats, x->stride, rows, type == TYPE_BF16); \
        break;
        switch (min(n - t, REG_ROWS)) {
            MULTIPLY(1)
            MULTIPLY(2)
            MULTIPLY(3)
            MULTIPLY(4)
            MULTIPLY(5)
            MULTIPLY(6)
            MULTIPLY(7)
            MULTIPLY(8)
            MULTIPLY(9)
            MULTIPLY(10)
            MULTIPLY(11)
            MULTIPLY(12)
            MULTIPLY(13)
            MULTIPLY(14)
            MULTIPLY(15)
            MULTIPLY(16)
        }
#undef MULTIPLY
    }
}

typedef void MultiplyGroup(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Activations *x,
                           size_t row, size_t n);
#define FOR_TYPE(name, type)                                                                            \
    static void name(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Activations *x, \
                     size_t row, size_t n) {                                                            \
        multiply_group(type, y, ldy, w, panel, x, row, n);                                              \
    }
FOR_TYPE(multiply_f32, TYPE_F32)
FOR_TYPE(multiply_bf16, TYPE_BF16)
FOR_TYPE(multiply_q8, TYPE_Q8)
FOR_TYPE(multiply_q4, TYPE_Q4)
#undef FOR_TYPE

static void matmul(float *y, size_t ldy, const Matrix *w, size_t panel, size_t panels, const Activations *x) {
    static MultiplyGroup *const by_type[TYPE_COUNT] = {NULL, multiply_f32, multiply_bf16, multiply_q8,
                                                       multiply_q4};
    MultiplyGroup *const multiply = by_type[w->type];
    const size_t bytes = panel_bytes(w->type, w->cols), chunk = CHUNK_BYTES / bytes + 1;
    for (size_t first = 0; first < panels; first += chunk) {
        size_t end = min(first + chunk, panels);
        for (size_t row = 0; row < x->rows; row += 16)
            for (size_t j = first; j < end; j++)
                multiply(y + row * ldy + 16 * j, ldy, w, w->data + (panel + j) * bytes, x, row,
                         min(x->rows - row, 16));
    }
}

/* The integer of a q8 or q4 weight: row r of the panel, column c of the block. The units are as kernels.h
 * describes them; 4 columns of 16 rows each. */
static int32_t int8_weight(const Matrix *w, const uint8_t *block, size_t r, size_t c) {
    const uint8_t *units = block + 64;
    if (w->type == TYPE_Q8)
        return units[c / 4 * 64 + r * 4 + c % 4] - 128;
    uint8_t pair = units[(c / 32 * 4 + c % 16 / 4) * 64 + r * 4 + c % 4];
    return w->codebook[c % 32 < 16 ? pair & 15 : pair >> 4];
}

/* Row `at` of W: one number from each group of sixteen in its panel. */
static void read_row(float *out, const Matrix *w, size_t at) {
    const size_t r = at % PANEL, block_bytes = w->type == TYPE_Q4 ? Q4_BLOCK : Q8_BLOCK;
    const uint8_t *panel = w->data + at / PANEL * panel_bytes(w->type, w->cols);
    for (size_t c = 0; c < w->cols; c++) {
        uint16_t half;
        if (w->type == TYPE_F32) {
            memcpy(&out[c], panel + (c * PANEL + r) * 4, 4);
        } else if (w->type == TYPE_BF16) {
            memcpy(&half, panel + (c * PANEL + r) * 2, 2);
            out[c] = f32_from_bf16(half);
        } else {
            const uint8_t *block = panel + c / BLOCK * block_bytes;
            memcpy(&half, block + (c % BLOCK / 32 * PANEL + r) * 2, 2);
            out[c] = (float)int8_weight(w, block, r, c % BLOCK) * f32_from_f16(half) * w->scale;
        }
    }
}
