/* matmul.h: y = W x for weights in panels of 16 rows (kernels.h). Included by kernels.c alone.
 *
 * A register tile is one panel times up to TILE rows of x: for each row one accumulator whose lanes are
 * the panel's 16 outputs. Every weight is loaded and unpacked once for all rows of the tile. With one row
 * the loop is a stream over the weights and runs at the speed of memory; with many it runs at the speed of
 * the multipliers. One source serves both: `rows` and `type` are constants wherever a tile function is
 * inlined, and the loops over them are unrolled. */
#include "kernels.h"
#include "simd.h"

enum {
    WEIGHTS_AHEAD = 2048,     /* bytes; hides the latency of memory when one row is multiplied */
    CHUNK_BYTES = 256 * 1024, /* weights that stay in L2 while all rows of x pass by */
    Q8_BLOCK = 1088,
    Q4_BLOCK = 576
};

/* `rows` rows of a group of x in int8, from its first column on. */
typedef struct {
    const int8_t *q;
    const float *scale;
    const int32_t *sum;
    size_t group; /* rows of the group, which is the stride from one block of 32 columns to the next */
} Int8Rows;

OP void tile_int8(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, Int8Rows x, const int rows,
                  const bool q4) {
    vf acc[16];
    UNROLL for (int t = 0; t < rows; t++) acc[t] = vf_set1(0.0f);
    vt codebook = q4 ? vt_load(w->codebook) : (vt){0};
    const size_t bytes = q4 ? Q4_BLOCK : Q8_BLOCK, blocks = round_up(w->cols, BLOCK) / BLOCK;
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

OP void tile_float(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const float *x, size_t stride,
                   const int rows, const bool bf16) {
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

/* CALL(n) for a constant n equal to `rows`, which is 1 .. TILE. */
#define WITH_CONSTANT_ROWS(rows, CALL)                                                                     \
    switch (rows) {                                                                                        \
        CASE(1, CALL)                                                                                      \
        CASE(2, CALL)                                                                                      \
        CASE(3, CALL)                                                                                      \
        CASE(4, CALL) CASE(5, CALL) CASE(6, CALL) CASE(7, CALL) CASE(8, CALL) CASE(9, CALL) CASE(10, CALL) \
            CASE(11, CALL) CASE(12, CALL) CASE(13, CALL) CASE(14, CALL) CASE(15, CALL) CASE(16, CALL)      \
    }
#define CASE(n, CALL)    \
    case n:              \
        if (n <= TILE) { \
            CALL(n);     \
        }                \
        break;

/* One panel times rows row .. row + n - 1 of x, which are a whole group. */
static void panel_q8(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Acts *x, size_t row,
                     size_t n) {
    size_t at = row * (x->stride / 32);
    for (size_t t = 0; t < n; t += TILE) {
        Int8Rows rows = {x->q + 32 * (at + t), x->scale + at + t, x->sum + at + t, n};
#define Q8_TILE(r) tile_int8(y + t * ldy, ldy, w, panel, rows, r, false)
        WITH_CONSTANT_ROWS(n - t < TILE ? n - t : TILE, Q8_TILE)
    }
}

static void panel_q4(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Acts *x, size_t row,
                     size_t n) {
    size_t at = row * (x->stride / 32);
    for (size_t t = 0; t < n; t += TILE) {
        Int8Rows rows = {x->q + 32 * (at + t), x->scale + at + t, x->sum + at + t, n};
#define Q4_TILE(r) tile_int8(y + t * ldy, ldy, w, panel, rows, r, true)
        WITH_CONSTANT_ROWS(n - t < TILE ? n - t : TILE, Q4_TILE)
    }
}

static void panel_f32(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Acts *x, size_t row,
                      size_t n) {
    for (size_t t = 0; t < n; t += TILE) {
#define F32_TILE(r) tile_float(y + t * ldy, ldy, w, panel, x->f + (row + t) * x->stride, x->stride, r, false)
        WITH_CONSTANT_ROWS(n - t < TILE ? n - t : TILE, F32_TILE)
    }
}

static void panel_bf16(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Acts *x, size_t row,
                       size_t n) {
    for (size_t t = 0; t < n; t += TILE) {
#define BF16_TILE(r) tile_float(y + t * ldy, ldy, w, panel, x->f + (row + t) * x->stride, x->stride, r, true)
        WITH_CONSTANT_ROWS(n - t < TILE ? n - t : TILE, BF16_TILE)
    }
}

static void matmul(float *y, size_t ldy, const Matrix *w, size_t panel, size_t panels, const Acts *x) {
    typedef void PanelTimesGroup(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Acts *x,
                                 size_t row, size_t n);
    PanelTimesGroup *const multiply = w->type == TYPE_Q4     ? panel_q4
                                      : w->type == TYPE_Q8   ? panel_q8
                                      : w->type == TYPE_BF16 ? panel_bf16
                                                             : panel_f32;
    const size_t bytes = panel_bytes(w->type, w->cols), chunk = CHUNK_BYTES / bytes + 1;
    for (size_t first = 0; first < panels; first += chunk) {
        size_t end = panels - first < chunk ? panels : first + chunk;
        for (size_t row = 0; row < x->rows; row += 16)
            for (size_t j = first; j < end; j++)
                multiply(y + row * ldy + 16 * j, ldy, w, w->data + (panel + j) * bytes, x, row,
                         x->rows - row < 16 ? x->rows - row : 16);
    }
}

/* out [w->cols] = row `at` of w in f32: the embedding of a token. Behind the 64 bytes of scales of a block come
 * units of 64 bytes. A q8 unit holds 4 columns of the panel's 16 rows; a q4 unit holds 4 columns in its low
 * nibbles and the columns 16 further on in its high nibbles. */
static void row(float *out, const Matrix *w, size_t at) {
    const size_t r = at % PANEL;
    const uint8_t *panel = w->data + at / PANEL * panel_bytes(w->type, w->cols);
    for (size_t c = 0; c < w->cols; c++) {
        const size_t in_half = c % 32, half = c % BLOCK / 32;
        const uint8_t *block = panel + c / BLOCK * (w->type == TYPE_Q4 ? Q4_BLOCK : Q8_BLOCK),
                      *units = block + 64;
        uint16_t h;
        int32_t integer;
        switch (w->type) {
        case TYPE_F32: memcpy(&out[c], panel + (c * PANEL + r) * 4, 4); continue;
        case TYPE_BF16:
            memcpy(&h, panel + (c * PANEL + r) * 2, 2);
            out[c] = f32_from_bf16(h);
            continue;
        case TYPE_Q4: {
            uint8_t pair = units[(4 * half + in_half % 16 / 4) * 64 + r * 4 + c % 4];
            integer = w->codebook[in_half < 16 ? pair & 15 : pair >> 4];
            break;
        }
        default: /* TYPE_Q8 */ integer = units[c % BLOCK / 4 * 64 + r * 4 + c % 4] - 128;
        }
        memcpy(&h, block + (half * PANEL + r) * 2, 2);
        out[c] = (float)integer * f32_from_f16(h) * w->scale;
    }
}
