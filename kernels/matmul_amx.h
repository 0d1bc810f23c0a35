/* kernels/matmul_amx.h: many rows of q8 and q4 times unpacked panels, in the tile registers of AMX. Included
 * by matmul.h alone, which unpacks; matmul_vectors.h is its twin in vector registers.
 *
 * A tile register is up to 16 rows of 64 bytes. One instruction multiplies 16 rows of x by half a block of a
 * panel: sums [16 rows][16 outputs] int32 += x [16 rows][32 columns] int8 * weights [8 units][16 outputs][4
 * columns] int8. Both lie in memory in just this form. What else vectors do with integer sums (their scales,
 * the sum of floats) they do here too, so the sums go through memory.
 *
 * Measured on Emerald Rapids, and why the loops are as they are: vectors of 512 bits run at half speed while
 * a tile instruction is under way, so both take turns (first all products of a part, then all scales); a
 * product waits for the one before if its sums were cleared by tilezero, but not if zeros were loaded. */
#ifndef MATMUL_AMX_H
#define MATMUL_AMX_H

enum { PART = 8 };

typedef struct {
    int8_t unit[PART][MANY_PANELS][8][64];
    vf scale[PART][MANY_PANELS];
    int32_t sum[PART][MANY_PANELS][16][16]; /* of a group: [row][output] */
} Unpacked;

OP void put_unit(Unpacked *u, size_t half, int i, int panel, vb unit) {
    __m512i weights = _mm512_xor_si512(unit, _mm512_set1_epi8(-128)); /* vb holds w + 128 */
    _mm512_store_si512(u->unit[half][panel][i], weights);
}

/* Tile registers: 0 and 1 hold sums, 4 rows of x, for a group of 16; 2, 3 and 5 the same for the smaller one
 * at the end; 6 and 7 hold weights. */
OP void many_begin(size_t rows) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1,
               .row_bytes = {64, 64, 64, 64, 32, 32, 64, 64},
               .rows = {16, 16, (uint8_t)(rows % 16), (uint8_t)(rows % 16), 16, (uint8_t)(rows % 16), 8, 8}};
    if (rows % 16 == 0)
        shape.row_bytes[2] = shape.row_bytes[3] = shape.row_bytes[5] = 0;
    /* gcc takes _tile_loadconfig to read 8 of these 64 bytes */
    __asm__ volatile("" ::"r"(&shape) : "memory");
    _tile_loadconfig(&shape);
}
OP void many_end(void) { _tile_release(); }

/* The integer sums of all rows of a group. x: from its first row on. */
OP void start_group(Unpacked *u, size_t n, Int8Rows x, const int form) {
    static const int32_t zeros[16];
    (void)form;
    __asm__ volatile(
        "" ::
            : "memory"); /* what was unpacked is in memory: gcc does not see that tiles read it */
#define PRODUCT(sums, rows, weights, p)      \
    _tile_loadd(sums, zeros, 0);             \
    _tile_loadd(weights, u->unit[h][p], 64); \
    _tile_dpbssd(sums, rows, weights)
#define PRODUCTS(sums, more_sums, rows)                \
    for (size_t h = 0; h < n; h++) {                   \
        _tile_loadd(rows, x.q + 32 * x.group * h, 32); \
        PRODUCT(sums, rows, 6, 0);                     \
        PRODUCT(more_sums, rows, 7, 1);                \
        _tile_stored(sums, u->sum[h][0], 64);          \
        _tile_stored(more_sums, u->sum[h][1], 64);     \
    }
    if (x.group == 16)
        PRODUCTS(0, 1, 4)
    else
        PRODUCTS(2, 3, 5)
#undef PRODUCTS
#undef PRODUCT
}

/* sum[t][p] = the integer sums of half h for `rows` rows of the group, from row `row` on. */
OP void sum_half(vi sum[MANY_ROWS][MANY_PANELS], const Unpacked *u, size_t h, const int8_t *q, size_t row,
                 const int rows, const int form) {
    (void)q, (void)form;
    UNROLL for (int t = 0; t < rows; t++) UNROLL for (int p = 0; p < MANY_PANELS; p++) sum[t][p] =
        vi_load(u->sum[h][p][row + (size_t)t]);
}

#endif
