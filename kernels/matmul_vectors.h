/* kernels/matmul_vectors.h: many rows of q8 and q4 times unpacked panels, in vector registers. Included by
 * matmul.h alone, which unpacks; matmul_amx.h is its twin in tile registers.
 *
 * A tile of MANY_PANELS panels by MANY_ROWS rows has its integer sums in registers, and four activations,
 * once in a register, serve all its panels. */
#ifndef MATMUL_VECTORS_H
#define MATMUL_VECTORS_H

enum { PART = 32 / MANY_PANELS };

typedef struct {
    vb unit[PART][8][MANY_PANELS];
    vf scale[PART][MANY_PANELS];
    int32_t start[PART][16]; /* of the sums of a group's rows */
} Unpacked;

OP void put_unit(Unpacked *u, size_t half, int i, int panel, vb unit) { u->unit[half][i][panel] = unit; }

/* Where the integer sums of a group's rows begin. x: from the group's first row on. */
OP void start_group(Unpacked *u, size_t n, Int8Rows x, const int form) {
    for (size_t h = 0; h < n; h++, x.sum += x.group) {
        int32_t few[16] = {0};
        if (x.group < 16)
            memcpy(few, x.sum, x.group * sizeof *few);
        vi sums = vi_load(x.group < 16 ? few : x.sum);
        vi_store(u->start[h], form == NARROW ? dot4_narrow_starts(sums) : dot4_starts(sums));
    }
}

/* sum[t][p] = the integer sums of half h for `rows` rows of x, which begins with row `row` of its group. */
OP void sum_half(vi sum[MANY_ROWS][MANY_PANELS], const Unpacked *u, size_t h, const int8_t *q, size_t row,
                 const int rows, const int form) {
    UNROLL for (int t = 0; t < rows; t++) UNROLL for (int p = 0; p < MANY_PANELS; p++) sum[t][p] =
        vi_set1(u->start[h][row + (size_t)t]);
    ROLLED for (int i = 0; i < 8; i++) {
        vb w[MANY_PANELS];
        UNROLL for (int p = 0; p < MANY_PANELS; p++) w[p] = u->unit[h][i][p];
        UNROLL for (int t = 0; t < rows; t++) {
            va four = va_load(q + 32 * t + 4 * i);
            UNROLL for (int p = 0; p < MANY_PANELS; p++) sum[t][p] =
                form == NARROW ? dot4_narrow(sum[t][p], w[p], four) : dot4_va(sum[t][p], w[p], four);
        }
    }
}

/* Before and behind a product. */
OP void many_begin(size_t rows) { (void)rows; }
OP void many_end(void) {}

#endif
