/* kernels/matmul.h: y = W x for weights in panels of 16 rows (kernels.h). Included by kernels.c alone.
 *
 * The inner loop multiplies one panel with up to REG_ROWS rows of x. Its accumulators are one vector for
 * each row, whose lanes are the panel's 16 outputs, and they stay in registers. Every weight is loaded and
 * unpacked once for all these rows. With one row the loop is a stream over the weights and runs at the
 * speed of memory; with many it runs at the speed of the multipliers. One source serves both: the number
 * of rows and the type are constants wherever the loop is inlined, and the loops over them are unrolled.
 *
 * A second way for many rows of q8 and q4, from *many_rows on, unpacks several panels to a buffer first. It
 * needs fewer loads and unpacks nothing twice. Which is faster depends on the processor. Sums are added in
 * the same order, so that the bytes are the same. */
#include "kernels/kernels.h"
#include "kernels/simd.h"

enum {
    WEIGHTS_AHEAD = 2048,     /* bytes to L1; hides the latency of L2 when few rows are multiplied */
    WEIGHTS_FAR = 8192,       /* bytes to L2; hides the latency of memory */
    CHUNK_BYTES = 256 * 1024, /* weights that stay in L2 while all rows of x pass by */
    CHUNK_ROWS = 128          /* rows of x that stay in L2 while all panels are unpacked and pass by */
};

/* How the weights of a matrix are read: a Type, or NARROW, q4 with a codebook of 7 bits (simd.h). A constant
 * wherever a loop is inlined. */
enum { NARROW = TYPE_COUNT, FORMS };

OP bool is_int8_form(const int form) { return form >= TYPE_Q8; }
OP vt load_codebook(const int form, const Matrix *w) {
    return form == NARROW ? vt_load_narrow(w->codebook) : form == TYPE_Q4 ? vt_load(w->codebook) : (vt){0};
}
OP size_t block_bytes(const int form) { return form == TYPE_Q8 ? Q8_BLOCK : Q4_BLOCK; }

static bool from_memory = false; /* kernels.h */

/* Asks for weights ahead of their use, into L1 (PREFETCH in simd.h says why). Weights that come from memory
 * (`far`) are asked for once more, earlier, into L2, where FAR_PAYS: it costs instructions, and gains nothing
 * where weights are in a cache. */
OP void prefetch_weights(const uint8_t *p, const size_t bytes, bool far) {
    for (size_t line = 0; line < bytes; line += 64) {
        PREFETCH(p + line + WEIGHTS_AHEAD);
        if (FAR_PAYS && far)
            PREFETCH_FAR(p + line + WEIGHTS_FAR);
    }
}

/* The eight units, of 4 columns each, of a half of a block. */
OP void load_units(const int form, vb unit[8], const uint8_t *units, vt codebook) {
    UNROLL for (int u = 0; u < 4; u++) {
        if (form == TYPE_Q8) {
            unit[u] = vb_load_biased(units + 64 * u);
            unit[u + 4] = vb_load_biased(units + 64 * (u + 4));
        } else {
            vb_q4(&unit[u], &unit[u + 4], units + 64 * u, codebook);
        }
    }
}

/* Where the integer sums of a row begin. */
OP vi int8_start(const int form, int32_t start) {
    return form == NARROW ? dot4_narrow_from(vi_set1(start)) : dot4_from(vi_set1(start));
}

/* `rows` rows of a group of x in int8, from its first column on. */
typedef struct {
    const int8_t *q;
    const float *scale;
    const int32_t *start;
    size_t group; /* rows of the group: how far it is from one block of 32 columns to the next */
} Int8Rows;

/* acc[t] += the products of 32 columns, for n rows of x from row `first` on. Their sums advance in turns:
 * a product waits some five cycles for the one before it in the same sum, and a weight serves several rows
 * while it is in a register. */
OP void add_half(vf *acc, const vb unit[8], vf scale, Int8Rows x, size_t first, const int n, const int form) {
    vi sum[ABREAST];
    UNROLL for (int t = 0; t < n; t++) sum[t] = int8_start(form, x.start[first + t]);
    UNROLL for (int u = 0; u < 8; u++) {
        UNROLL for (int t = 0; t < n; t++) {
            const int8_t *q = x.q + 32 * (first + t) + 4 * u;
            sum[t] = form == NARROW ? dot4_narrow(sum[t], vw_from(unit[u]), va_load(q))
                                    : dot4_vw(sum[t], vw_from(unit[u]), q, u == 0);
        }
    }
    UNROLL for (int t = 0; t < n; t++) acc[t] =
        vf_fma(vi_to_float(sum[t]), vf_mul(scale, vf_set1(x.scale[first + t])), acc[t]);
}

/* y[t * ldy + lane] for t < rows: one panel of q8 or q4 times `rows` rows. */
OP void multiply_int8(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, Int8Rows x, const int rows,
                      const int form) {
    vf acc[16];
    UNROLL for (int t = 0; t < rows; t++) acc[t] = vf_set1(0.0f);
    vt codebook = load_codebook(form, w);
    const size_t bytes = block_bytes(form), blocks = div_up(w->cols, BLOCK);
    const bool far = from_memory;
    for (size_t b = 0; b < blocks; b++, panel += bytes) {
        prefetch_weights(panel, bytes, far);
        UNROLL for (int half = 0; half < 2; half++) {
            vb unit[8];
            load_units(form, unit, panel + 64 + (bytes - 64) / 2 * (size_t)half, codebook);
            vf scale = vf_from_f16(panel + 32 * half);
            UNROLL for (int t = 0; t < rows; t += ABREAST)
                add_half(acc + t, unit, scale, x, t, rows - t < ABREAST ? rows - t : ABREAST, form);
            x.q += 32 * x.group;
            x.scale += x.group;
            x.start += x.group;
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
    const bool far = from_memory;
    for (size_t c = 0; c < w->cols; c++, panel += bytes) {
        prefetch_weights(panel, bytes, far);
        vf weights = bf16 ? vf_from_bf16(panel) : vf_load((const float *)(const void *)panel);
        UNROLL for (int t = 0; t < rows; t++) acc[t] =
            vf_fma(weights, vf_set1(x[(size_t)t * stride + c]), acc[t]);
    }
    UNROLL for (int t = 0; t < rows; t++) vf_store(y + (size_t)t * ldy, acc[t]);
}

/* One panel times rows row .. row + n - 1 of x, which are a whole group. */
OP void multiply_group(const int form, float *y, size_t ldy, const Matrix *w, const uint8_t *panel,
                       const Activations *x, size_t row, size_t n) {
    for (size_t t = 0; t < n; t += REG_ROWS) {
        const bool int8 = is_int8_form(form);
        size_t at = row * (x->stride / 32) + t;
        Int8Rows ints = int8 ? (Int8Rows){x->q + 32 * at, x->scale + at, x->start + at, n} : (Int8Rows){0};
        const float *floats = int8 ? NULL : x->f + (row + t) * x->stride;
        float *to = y + t * ldy;
#define MULTIPLY(rows)                                                                     \
    case rows:                                                                             \
        if (rows <= REG_ROWS && int8)                                                      \
            multiply_int8(to, ldy, w, panel, ints, rows, form);                            \
        else if (rows <= REG_ROWS)                                                         \
            multiply_float(to, ldy, w, panel, floats, x->stride, rows, form == TYPE_BF16); \
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

/* ---- many rows: panels are unpacked first ---------------------------------------------------- */

/* The same products, in the same order, for many rows. MANY_PANELS panels are unpacked to a buffer that
 * stays in L1 beside the rows that pass by, PART halves of blocks (16 KB) at a time. A tile of MANY_PANELS
 * panels by MANY_ROWS rows then has its integer sums in registers, and four activations, once in a register,
 * serve all its panels. Between two parts the sums wait in y. */
enum { PART = 16384 / (8 * MANY_PANELS * sizeof(vw)) };

typedef struct {
    vw unit[PART][8][MANY_PANELS];
    vf scale[PART][MANY_PANELS];
} Unpacked;

/* Halves half .. half + n - 1 of MANY_PANELS panels. */
OP void unpack_panels(Unpacked *u, const Matrix *w, const uint8_t *panel, size_t half, size_t n,
                      const int form) {
    const size_t bytes = block_bytes(form), panel_size = div_up(w->cols, BLOCK) * bytes;
    vt codebook = load_codebook(form, w);
    for (size_t h = 0; h < n; h++) {
        const uint8_t *block = panel + (half + h) / 2 * bytes;
        size_t odd = (half + h) % 2;
        UNROLL for (int p = 0; p < MANY_PANELS; p++, block += panel_size) {
            vb unit[8];
            load_units(form, unit, block + 64 + (bytes - 64) / 2 * odd, codebook);
            UNROLL for (int i = 0; i < 8; i++) u->unit[h][i][p] = vw_from(unit[i]);
            u->scale[h][p] = vf_from_f16(block + 32 * odd);
        }
    }
}

/* y[t * ldy + 16 p + lane] for t < rows and all panels p: the products of n halves are added, and the result
 * is multiplied by `factor`. */
OP void multiply_many(float *y, size_t ldy, const Unpacked *u, size_t n, Int8Rows x, bool first, float factor,
                      const int rows, const int form) {
    vf acc[MANY_ROWS][MANY_PANELS];
    UNROLL for (int t = 0; t < rows; t++) UNROLL for (int p = 0; p < MANY_PANELS; p++) acc[t][p] =
        first ? vf_set1(0.0f) : vf_load(y + (size_t)t * ldy + 16 * p);
    for (size_t h = 0; h < n; h++) {
        vi sum[MANY_ROWS][MANY_PANELS];
        UNROLL for (int t = 0; t < rows; t++) UNROLL for (int p = 0; p < MANY_PANELS; p++) sum[t][p] =
            int8_start(form, x.start[t]);
        ROLLED for (int i = 0; i < 8; i++) {
            vw w[MANY_PANELS];
            UNROLL for (int p = 0; p < MANY_PANELS; p++) w[p] = u->unit[h][i][p];
            UNROLL for (int t = 0; t < rows; t++) {
                va four = va_load(x.q + 32 * t + 4 * i);
                UNROLL for (int p = 0; p < MANY_PANELS; p++) sum[t][p] =
                    form == NARROW ? dot4_narrow(sum[t][p], w[p], four)
                                   : dot4_vw_va(sum[t][p], w[p], four, i == 0);
            }
        }
        UNROLL for (int t = 0; t < rows; t++) {
            vf scale = vf_set1(x.scale[t]);
            UNROLL for (int p = 0; p < MANY_PANELS; p++) acc[t][p] =
                vf_fma(vi_to_float(sum[t][p]), vf_mul(u->scale[h][p], scale), acc[t][p]);
        }
        x.q += 32 * x.group;
        x.scale += x.group;
        x.start += x.group;
    }
    UNROLL for (int t = 0; t < rows; t++) UNROLL for (int p = 0; p < MANY_PANELS; p++)
        vf_store(y + (size_t)t * ldy + 16 * p, vf_mul(acc[t][p], vf_set1(factor)));
}

/* The weights of the next part, MANY_PANELS panels `panel` bytes apart, are asked for while this part is
 * multiplied: a few lines of 64 bytes with each tile. All at once would be more than can be under way. */
typedef struct {
    const uint8_t *next, *end;
    size_t panel, lines;
} NextPart;

OP void prefetch_some(NextPart *part) {
    for (size_t i = 0; i < part->lines && part->next < part->end; i++, part->next += 64)
        UNROLL for (int p = 0; p < MANY_PANELS; p++) PREFETCH_FAR(part->next + part->panel * (size_t)p);
}

/* Behind `half` halves of the panels; behind their end, the panels after them. */
OP NextPart next_part(const Matrix *w, const uint8_t *panel, size_t half, size_t rows, const int form) {
    const size_t bytes = block_bytes(form), blocks = div_up(w->cols, BLOCK), part = PART / 2 * bytes;
    const uint8_t *next = panel + (half < 2 * blocks ? half / 2 : MANY_PANELS * blocks) * bytes;
    return (NextPart){next, next + part, blocks * bytes, div_up(part / 64, div_up(rows, MANY_ROWS))};
}

/* MANY_PANELS panels times rows first .. first + rows - 1 of x, which are whole groups. */
OP void multiply_panels(const int form, float *y, size_t ldy, const Matrix *w, const uint8_t *panel,
                        const Activations *x, size_t first, size_t rows) {
    Unpacked u;
    size_t halves = div_up(w->cols, BLOCK) * 2;
    for (size_t half = 0; half < halves; half += PART) {
        size_t n = min(halves - half, PART);
        float factor = half + n == halves ? w->scale : 1.0f;
        unpack_panels(&u, w, panel, half, n, form);
        NextPart next = next_part(w, panel, half + n, rows, form);
        for (size_t row = 0; row < rows; row += 16) {
            size_t group = min(rows - row, 16), at = (first + row) * (x->stride / 32) + half * group;
            Int8Rows ints = {x->q + 32 * at, x->scale + at, x->start + at, group};
            for (size_t t = 0; t < group; t += MANY_ROWS) {
                float *to = y + (row + t) * ldy;
                prefetch_some(&next);
#define TILE(count) \
    case count: multiply_many(to, ldy, &u, n, ints, half == 0, factor, count, form); break
                switch (min(group - t, MANY_ROWS)) {
                    TILE(1);
                    TILE(2);
                    TILE(3);
                    TILE(4);
                }
#undef TILE
                ints.q += 32 * MANY_ROWS;
                ints.scale += MANY_ROWS;
                ints.start += MANY_ROWS;
            }
        }
    }
}

/* ---- any number of rows --------------------------------------------------------------------- */

static size_t many_rows = 16; /* kernels.h */

typedef void MultiplyRows(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Activations *x,
                          size_t first, size_t rows);
#define ROWS_OF(name, multiply, form)                                                                   \
    static void name(float *y, size_t ldy, const Matrix *w, const uint8_t *panel, const Activations *x, \
                     size_t first, size_t rows) {                                                       \
        multiply(form, y, ldy, w, panel, x, first, rows);                                               \
    }
ROWS_OF(group_f32, multiply_group, TYPE_F32)
ROWS_OF(group_bf16, multiply_group, TYPE_BF16)
ROWS_OF(group_q8, multiply_group, TYPE_Q8)
ROWS_OF(group_q4, multiply_group, TYPE_Q4)
ROWS_OF(group_narrow, multiply_group, NARROW)
ROWS_OF(panels_q8, multiply_panels, TYPE_Q8)
ROWS_OF(panels_q4, multiply_panels, TYPE_Q4)
ROWS_OF(panels_narrow, multiply_panels, NARROW)
#undef ROWS_OF

static uint32_t form_of(const Matrix *w) {
    if (!NARROW_PAYS || w->type != TYPE_Q4)
        return w->type;
    for (int i = 0; i < 16; i++)
        if (w->codebook[i] < -64 || w->codebook[i] > 63)
            return TYPE_Q4;
    return NARROW;
}

static void matmul(float *y, size_t ldy, const Matrix *w, size_t panel, size_t panels, const Activations *x) {
    static MultiplyRows *const groups_of[FORMS] = {NULL,     group_f32, group_bf16,
                                                   group_q8, group_q4,  NARROW_PAYS ? group_narrow : NULL};
    static MultiplyRows *const panels_of[FORMS] = {NULL,      NULL,      NULL,
                                                   panels_q8, panels_q4, NARROW_PAYS ? panels_narrow : NULL};
    const uint32_t form = form_of(w);
    const size_t bytes = panel_bytes(w->type, w->cols), chunk = CHUNK_BYTES / bytes + 1;
    size_t first = 0;
    if (panels_of[form] && x->rows >= many_rows)
        for (size_t row = 0; row < x->rows; row += CHUNK_ROWS)
            for (first = 0; first + MANY_PANELS <= panels; first += MANY_PANELS)
                panels_of[form](y + row * ldy + 16 * first, ldy, w, w->data + (panel + first) * bytes, x, row,
                                min(x->rows - row, CHUNK_ROWS));
    for (; first < panels; first += chunk) {
        size_t end = min(first + chunk, panels);
        for (size_t row = 0; row < x->rows; row += 16)
            for (size_t j = first; j < end; j++)
                groups_of[form](y + row * ldy + 16 * j, ldy, w, w->data + (panel + j) * bytes, x, row,
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
