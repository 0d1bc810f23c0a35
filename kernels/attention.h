/* attention.h: tiles of cached rows, and sixteen queries against them. Part of kernels.c, compiled once for each instruction set on the
 * vectors of simd.h. kernels.h describes the tiles; which rows and queries there are is mla.c's business.
 *
 * The sixteen lanes of a vector are the sixteen queries, so that the maximum, the exponential and the sum of a softmax are plain
 * vector operations, and a row is read once for all of them. A tile of 128 rows is taken in four steps:
 *
 *   1 scores   [row][lane] = scale * (row . query)
 *   2 softmax  (online) new maximum of each lane; where it grew, what was summed so far shrinks by exp(old - new);
 *              then p = exp(score - maximum), sum += p, rows in order
 *   3 weights  q8 only: p times the row's scale as an integer in 0 .. 255, its largest in this tile and lane being 255
 *   4 values   out[dim][lane] += p * value[row][dim]
 *
 * f32 and bf16: every score and every output is one chain of fma, dimensions in order and rows in order.
 * q8: the sums over dimensions in step 1 and over rows in step 4 are exact integers, whose order is free; around them stand
 *     score = fma((float)dot_b, row_scale_b * query_b, (float)dot_a * (row_scale_a * query_a)), query_x = query scale of x * scale
 *     out   = fma((float)dot, weight_step, out),  weight_step = largest (p * row_scale) / 255
 *
 * What lies in a tile past its last row is never looked at, except by sums that are then dropped. */

#include <float.h>
#include <stdbool.h>

/* ---- layout ---------------------------------------------------------------------------------------------------------- */

enum { SUB_ROWS = 16 }; /* rows of a q8 sub-tile */

/* At the end of a sub-tile. */
typedef struct {
    float scale[2][SUB_ROWS];  /* of a, of b */
    int32_t sum[2][SUB_ROWS];  /* of the integers */
} SubTileScales;

/* At the end of a q8 query. */
typedef struct {
    float scale[2][LANES];
} QueryScales;

static inline size_t units(size_t d) { return (d + 3) / 4; } /* of 64 bytes: 4 dimensions of 16 rows, or of 16 lanes */
static inline size_t all_units(const TileShape *s) { return units(s->d1) + units(s->d2); }
static inline size_t sub_tile_bytes(const TileShape *s) { return all_units(s) * 64 + sizeof(SubTileScales); }
static inline const SubTileScales *sub_tile_scales(const TileShape *s, const uint8_t *sub) {
    return (const SubTileScales *)(sub + all_units(s) * 64);
}

/* The bytes between steps 1 and 4 of a tile. */
typedef struct {
    float p[TILE_ROWS][LANES];          /* scores, then probabilities */
    float block[TILE_ROWS][16];         /* f32, bf16: a block of rows, as f32 */
    uint8_t weights[TILE_ROWS / 4][64]; /* q8: [4 rows at a time][lane][4 rows] */
    int8_t values[TILE_ROWS * 16];      /* q8: TILE dimensions, see value_units; TILE is at most 16, and the size must be the same in every build */
} Scratch;

#ifdef ISA_portable /* the sizes are the same for all: once */
size_t tile_bytes(const TileShape *s) {
    size_t d = (size_t)s->d1 + s->d2;
    switch (s->type) {
    case TILE_F32: return TILE_ROWS * d * 4;
    case TILE_BF16: return TILE_ROWS * d * 2;
    default: return TILE_ROWS / SUB_ROWS * sub_tile_bytes(s);
    }
}

size_t query_bytes(const TileShape *s) {
    return s->type == TILE_Q8 ? all_units(s) * 64 + sizeof(QueryScales) : ((size_t)s->d1 + s->d2) * LANES * sizeof(float);
}

size_t attend_scratch_bytes(void) { return sizeof(Scratch); }
#endif

/* ---- rows in and out ---------------------------------------------------------------------------------------------------- */

/* n numbers as int8 with one scale: q = round to nearest even(x * (127 / max|x|)), scale = max|x| / 127. A part of zeros, or of numbers so
 * small that 127 / max overflows, becomes zeros. Four numbers go to each unit; `flip` 0x80 stores q + 128. Zeros past n. */
static void quantize_part(uint8_t *unit, const float *x, size_t n, uint8_t flip, float *scale, int32_t *sum) {
    vf largest = vf_set1(0.0f);
    for (size_t i = 0; i < n; i += LANES) largest = vf_max(vf_abs(vf_load_n(x + i, n - i < LANES ? n - i : LANES, 0.0f)), largest);
    float max = vf_largest(largest);
    bool zeros = !(max > 1e-36f);
    vf inverse = vf_set1(zeros ? 0.0f : 127.0f / max);
    vi total = vi_set1(0);
    for (size_t i = 0; i < n; i += LANES) {
        vf y = vf_mul(vf_load_n(x + i, n - i < LANES ? n - i : LANES, 0.0f), inverse);
        y = vf_min(vf_max(y, vf_set1(-127.0f)), vf_set1(127.0f)); /* binds infinity and NaN only */
        vi q = vf_to_int(y);
        total = vi_add(total, q);
        uint8_t bytes[LANES];
        vi_to_s8((int8_t *)bytes, q);
        for (size_t j = 0; j < LANES; j++) bytes[j] ^= flip;
        for (size_t j = 0; j < LANES && i + j < n; j += 4) memcpy(unit + (i + j) / 4 * 64, bytes + j, 4);
    }
    *scale = zeros ? 0.0f : max / 127.0f;
    *sum = vi_sum(total);
}

/* n numbers of a row, beginning at number `from` of part a. */
static void tile_read(const TileShape *s, const void *tile, size_t row, size_t from, size_t n, float *out) {
    size_t at = row * ((size_t)s->d1 + s->d2) + from;
    if (s->type == TILE_F32) {
        memcpy(out, (const float *)tile + at, n * sizeof *out);
    } else if (s->type == TILE_BF16) {
        const uint16_t *h = (const uint16_t *)tile + at;
        for (size_t i = 0; i < n; i++) out[i] = f32_from_bf16(h[i]);
    } else {
        const uint8_t *sub = (const uint8_t *)tile + row / SUB_ROWS * sub_tile_bytes(s);
        const SubTileScales *scales = sub_tile_scales(s, sub);
        size_t r = row % SUB_ROWS;
        for (size_t i = 0; i < n; i++) {
            bool b = from + i >= s->d1;
            size_t d = b ? from + i - s->d1 + 4 * units(s->d1) : from + i;
            out[i] = (float)(int8_t)sub[d / 4 * 64 + r * 4 + d % 4] * scales->scale[b][r];
        }
    }
}

static void tile_get(const TileShape *s, const void *tile, size_t row, float *a, float *b) {
    tile_read(s, tile, row, 0, s->d1, a);
    if (s->d2) tile_read(s, tile, row, s->d1, s->d2, b);
}

static void store_bf16(uint16_t *to, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vf_to_bf16(to + i, vf_load(x + i));
    for (; i < n; i++) to[i] = bf16_from_f32(x[i]);
}

static void tile_put(const TileShape *s, void *tile, size_t row, const float *a, const float *b) {
    size_t at = row * ((size_t)s->d1 + s->d2);
    if (s->type == TILE_F32) {
        memcpy((float *)tile + at, a, s->d1 * sizeof *a);
        if (s->d2) memcpy((float *)tile + at + s->d1, b, s->d2 * sizeof *b);
    } else if (s->type == TILE_BF16) {
        store_bf16((uint16_t *)tile + at, a, s->d1);
        store_bf16((uint16_t *)tile + at + s->d1, b, s->d2);
    } else {
        uint8_t *sub = (uint8_t *)tile + row / SUB_ROWS * sub_tile_bytes(s);
        SubTileScales *scales = (SubTileScales *)(sub + all_units(s) * 64);
        size_t r = row % SUB_ROWS;
        quantize_part(sub + r * 4, a, s->d1, 0, &scales->scale[0][r], &scales->sum[0][r]);
        quantize_part(sub + units(s->d1) * 64 + r * 4, b, s->d2, 0, &scales->scale[1][r], &scales->sum[1][r]);
    }
}

/* Part a of a q8 row to the int8 form of activations. Its one scale serves every block of 32. */
static void row_acts(const TileShape *s, const void *tile, size_t row, Acts *x) {
    const uint8_t *sub = (const uint8_t *)tile + row / SUB_ROWS * sub_tile_bytes(s);
    float scale = sub_tile_scales(s, sub)->scale[0][row % SUB_ROWS];
    size_t group = row / 16 * 16, in_group = x->rows - group < 16 ? x->rows - group : 16, blocks = x->stride / 32;
    for (size_t block = 0; block < blocks; block++) {
        size_t at = group * blocks + block * in_group + row % 16;
        int8_t *q = x->q + at * 32;
        for (size_t u = 0; u < 8; u++) {
            if (block * 8 + u < units(s->d1)) memcpy(q + u * 4, sub + (block * 8 + u) * 64 + row % SUB_ROWS * 4, 4);
            else memset(q + u * 4, 0, 4);
        }
        x->scale[at] = scale;
        x->sum[at] = vi_sum(vi_add(vi_from_s8(q), vi_from_s8(q + 16)));
    }
}

static void tile_acts(const TileShape *s, const void *tile, Acts *x) {
    enum { AT_ONCE = 256 }; /* a multiple of 32, as put() wants it */
    float part[AT_ONCE];
    for (size_t row = 0; row < x->rows; row++) {
        if (s->type == TILE_Q8 && !x->f) {
            row_acts(s, tile, row, x);
            continue;
        }
        for (size_t i = 0; i < s->d1; i += AT_ONCE) {
            size_t n = s->d1 - i < AT_ONCE ? s->d1 - i : AT_ONCE;
            tile_read(s, tile, row, i, n, part);
            put(x, row, i, part, n);
        }
    }
}

static void query(const TileShape *s, void *out, const float *const a[LANES], const float *const b[LANES]) {
    if (s->type != TILE_Q8) {
        for (size_t d = 0; d < s->d1; d++)
            for (size_t i = 0; i < LANES; i++) ((float *)out)[d * LANES + i] = a[i] ? a[i][d] : 0.0f;
        for (size_t d = 0; d < s->d2; d++)
            for (size_t i = 0; i < LANES; i++) ((float *)out)[(s->d1 + d) * LANES + i] = a[i] ? b[i][d] : 0.0f;
        return;
    }
    uint8_t *unit = out, *unit_b = unit + units(s->d1) * 64;
    QueryScales *scales = (QueryScales *)(unit + all_units(s) * 64);
    memset(unit, 0x80, all_units(s) * 64);
    memset(scales, 0, sizeof *scales);
    int32_t sum; /* only rows need theirs */
    for (size_t i = 0; i < LANES; i++) {
        if (!a[i]) continue;
        quantize_part(unit + i * 4, a[i], s->d1, 0x80, &scales->scale[0][i], &sum);
        quantize_part(unit_b + i * 4, s->d2 ? b[i] : NULL, s->d2, 0x80, &scales->scale[1][i], &sum);
    }
}

/* ---- step 1: scores -------------------------------------------------------------------------------------------------- */

/* How far ahead of the scores the tile is asked for: rows of the next tile then arrive while this one's values are summed. */
enum { ATTEND_AHEAD = 8192 };

/* acc[row][lane] = row . query, over the n units of one part: TILE rows of a sub-tile, beginning at `rows`, of which the first `written` are rows. */
OP void dots(vi acc[TILE], const uint8_t *query_unit, const uint8_t *rows, size_t n, const int32_t *sum, size_t written) {
    UNROLL for (int r = 0; r < TILE; r++) acc[r] = dot4_start((size_t)r < written ? sum[r] : 0);
    for (size_t u = 0; u < n; u++) {
        vb q = vb_load_biased(query_unit + u * 64);
        PREFETCH(rows + u * 64 + ATTEND_AHEAD);
        UNROLL for (int r = 0; r < TILE; r++) acc[r] = dot4(acc[r], q, (const int8_t *)rows + u * 64 + r * 4);
    }
}

static void q8_scores(const TileShape *s, const uint8_t *query, const uint8_t *tile, size_t rows, float scale, float (*p)[LANES]) {
    const QueryScales *qs = (const QueryScales *)(query + all_units(s) * 64);
    size_t ua = units(s->d1), ub = units(s->d2);
    vf qa = vf_mul(vf_load(qs->scale[0]), vf_set1(scale)), qb = vf_mul(vf_load(qs->scale[1]), vf_set1(scale));
    for (size_t row = 0; row < rows; row += TILE) {
        const uint8_t *sub = tile + row / SUB_ROWS * sub_tile_bytes(s);
        const SubTileScales *scales = sub_tile_scales(s, sub);
        size_t first = row % SUB_ROWS;
        vi acc[TILE];
        dots(acc, query, sub + first * 4, ua, scales->sum[0] + first, rows - row);
        UNROLL for (int r = 0; r < TILE; r++)
            vf_store(p[row + r], vf_mul(vi_to_float(acc[r]), vf_mul(vf_set1(scales->scale[0][first + r]), qa)));
        if (!ub) continue;
        dots(acc, query + ua * 64, sub + ua * 64 + first * 4, ub, scales->sum[1] + first, rows - row);
        UNROLL for (int r = 0; r < TILE; r++)
            vf_store(p[row + r], vf_fma(vi_to_float(acc[r]), vf_mul(vf_set1(scales->scale[1][first + r]), qb), vf_load(p[row + r])));
    }
}

/* f32 and bf16: `width` numbers of each row at a time, brought to f32 in `block`. */
static void float_scores(const TileShape *s, const float *query, const void *tile, size_t rows, float scale, Scratch *x) {
    enum { WIDTH = 64 };
    float *block = x->block[0];
    size_t d = (size_t)s->d1 + s->d2;
    for (size_t row = 0; row < rows; row += TILE) {
        vf acc[TILE];
        UNROLL for (int r = 0; r < TILE; r++) acc[r] = vf_set1(0.0f);
        for (size_t from = 0; from < d; from += WIDTH) {
            size_t n = d - from < WIDTH ? d - from : WIDTH;
            for (size_t r = 0; r < TILE; r++) /* rows past the last: the last once more */
                tile_read(s, tile, row + r < rows ? row + r : rows - 1, from, n, block + r * WIDTH);
            for (size_t i = 0; i < n; i++) {
                vf q = vf_load(query + (from + i) * LANES);
                UNROLL for (int r = 0; r < TILE; r++) acc[r] = vf_fma(q, vf_set1(block[r * WIDTH + i]), acc[r]);
            }
        }
        UNROLL for (int r = 0; r < TILE; r++) vf_store(x->p[row + r], vf_mul(acc[r], vf_set1(scale)));
    }
}

/* ---- step 2: softmax ------------------------------------------------------------------------------------------------- */

/* exp of what is subtracted from a maximum that may still be -infinity: exp(-infinity - reference) is 0, not NaN. */
OP vf reference_of(vf max) { return vf_max(max, vf_set1(-FLT_MAX)); }

/* x * factor, and 0 in the lanes that have seen no row: nobody cleared their output. */
OP vf shrink(vf x, vf factor, vf max) { return vf_select(vf_gt(max, vf_set1(-INFINITY)), vf_mul(x, factor), vf_set1(0.0f)); }

/* The maxima become `max`; what was summed shrinks to fit. */
static void raise_max(Softmax *s, vf max, size_t dv) {
    vf old = vf_load(s->max);
    vm grown = vf_gt(max, old);
    if (vf_largest(vf_select(grown, vf_set1(1.0f), vf_set1(0.0f))) == 0.0f) return; /* factors of 1: nothing changes */
    vf factor = vf_exp(vf_sub(old, reference_of(max)));
    vf_store(s->max, max);
    vf_store(s->sum, shrink(vf_load(s->sum), factor, old));
    for (size_t d = 0; d < dv; d++) vf_store(s->out + d * LANES, shrink(vf_load(s->out + d * LANES), factor, old));
}

/* Scores become probabilities (relative to the maximum so far); the sum grows by them. */
static void online_softmax(float (*p)[LANES], size_t rows, const int32_t limit[LANES], Softmax *s, size_t dv) {
    size_t seen_by_all = rows;
    for (size_t i = 0; i < LANES; i++)
        if (limit[i] < (int64_t)seen_by_all) seen_by_all = limit[i] > 0 ? (size_t)limit[i] : 0;
    for (size_t r = seen_by_all; r < rows; r++)
        vf_store(p[r], vf_select(vi_gt(vi_load(limit), vi_set1((int32_t)r)), vf_load(p[r]), vf_set1(-INFINITY)));

    vf max[4]; /* four chains, because one would wait for itself */
    UNROLL for (int i = 0; i < 4; i++) max[i] = vf_load(s->max);
    for (size_t r = 0; r + 4 <= rows; r += 4) UNROLL for (int i = 0; i < 4; i++) max[i] = vf_max(vf_load(p[r + i]), max[i]);
    for (size_t r = rows / 4 * 4; r < rows; r++) max[0] = vf_max(vf_load(p[r]), max[0]);
    max[0] = vf_max(vf_max(max[0], max[1]), vf_max(max[2], max[3]));

    raise_max(s, max[0], dv);
    vf reference = reference_of(max[0]), sum = vf_load(s->sum);
    for (size_t r = 0; r < rows; r++) {
        vf e = vf_exp(vf_sub(vf_load(p[r]), reference));
        sum = vf_add(sum, e);
        vf_store(p[r], e);
    }
    vf_store(s->sum, sum);
}

/* ---- steps 3 and 4: values ------------------------------------------------------------------------------------------- */

/* p * row scale as integers in 0 .. 255, four rows to a vector as dot4 wants them; returns what one step is worth, for each lane. */
static vf quantize_weights(const TileShape *s, const uint8_t *tile, size_t rows, Scratch *x) {
    vf largest = vf_set1(1e-30f); /* 255 / largest must not overflow */
    for (size_t r = 0; r < rows; r++) {
        float scale = sub_tile_scales(s, tile + r / SUB_ROWS * sub_tile_bytes(s))->scale[0][r % SUB_ROWS];
        vf w = vf_mul(vf_load(x->p[r]), vf_set1(scale));
        vf_store(x->p[r], w);
        largest = vf_max(w, largest);
    }
    vf inverse = vf_div(vf_set1(255.0f), largest);
    for (size_t r = 0; r < rows; r += 4) {
        vi four = vi_set1(0);
        for (size_t j = 4; j-- > 0;) {
            four = vi_shl(four, 8);
            if (r + j >= rows) continue;
            vf w = vf_max(vf_mul(vf_load(x->p[r + j]), inverse), vf_set1(0.0f)); /* NaN becomes 0 */
            four = vi_add(four, vf_to_int(w));
        }
        vi_store((int32_t *)x->weights[r / 4], four);
    }
    return vf_div(largest, vf_set1(255.0f));
}

/* out[dim][lane] += step * sum over rows of weight[row][lane] * value[row][dim], for the 4 n dimensions of n units.
 * The units are turned first, from [16 rows][4 dimensions] to [4 groups][4 dimensions][4 rows], so that one dimension of four rows is what
 * dot4 reads from memory. `keep` has zeros where the last sub-tile has no row. */
OP void value_units(int n, size_t dims, const uint8_t *unit, size_t sub_bytes, size_t rows, const uint8_t *keep, Scratch *x, vf step, float *out) {
    static const int8_t ones[4] = {1, 1, 1, 1};
    size_t subs = (rows + SUB_ROWS - 1) / SUB_ROWS;
    vi acc[TILE], sums[TILE / 4];
    UNROLL for (int k = 0; k < n; k++) sums[k] = vi_set1(0);
    for (size_t sub = 0; sub < subs; sub++) {
        UNROLL for (int k = 0; k < n; k++) {
            int8_t *turned = x->values + (sub * n + k) * 64;
            turn_4x4(turned, unit + sub * sub_bytes + k * 64);
            if (sub == rows / SUB_ROWS)
                for (int i = 0; i < 64; i++) turned[i] = (int8_t)(turned[i] & keep[i]);
            if (DOT4_UNSIGNED_NEEDS_SUM) sums[k] = dot4(sums[k], vb_load(turned), ones);
        }
    }
    UNROLL for (int k = 0; k < n; k++) {
        int32_t sum[LANES]; /* [4 groups of rows][4 dimensions] */
        vi_store(sum, sums[k]);
        UNROLL for (int i = 0; i < 4; i++) acc[4 * k + i] = dot4_start_unsigned(sum[i] + sum[4 + i] + sum[8 + i] + sum[12 + i]);
    }
    for (size_t g = 0; g < (rows + 3) / 4; g++) {
        vb w = vb_load_biased(x->weights[g]);
        const int8_t *v = x->values + g / 4 * n * 64 + g % 4 * 16;
        UNROLL for (int i = 0; i < 4 * n; i++) acc[i] = dot4(acc[i], w, v + i / 4 * 64 + i % 4 * 4);
    }
    UNROLL for (int i = 0; i < 4 * n; i++)
        if ((size_t)i < dims) vf_store(out + i * LANES, vf_fma(vi_to_float(acc[i]), step, vf_load(out + i * LANES)));
}

static void q8_values(const TileShape *s, const uint8_t *tile, size_t rows, Scratch *x, float *out) {
    vf step = quantize_weights(s, tile, rows, x);
    uint8_t keep[64]; /* [4 groups][4 dimensions][4 rows] */
    for (size_t i = 0; i < 64; i++) keep[i] = i / 16 * 4 + i % 4 < rows % SUB_ROWS ? 0xff : 0;
    size_t u = 0, n = units(s->d1), bytes = sub_tile_bytes(s);
    for (; u + TILE / 4 <= n; u += TILE / 4)
        value_units(TILE / 4, s->d1 - u * 4, tile + u * 64, bytes, rows, keep, x, step, out + u * 4 * LANES);
    for (; u < n; u++)
        value_units(1, s->d1 - u * 4, tile + u * 64, bytes, rows, keep, x, step, out + u * 4 * LANES);
}

static void float_values(const TileShape *s, const void *tile, size_t rows, Scratch *x, float *out) {
    for (size_t from = 0; from < s->d1; from += TILE) {
        size_t n = s->d1 - from < TILE ? s->d1 - from : TILE;
        vf acc[TILE];
        memset(x->block, 0, sizeof x->block);
        for (size_t r = 0; r < rows; r++) tile_read(s, tile, r, from, n, x->block[r]);
        UNROLL for (int i = 0; i < TILE; i++) acc[i] = (size_t)i < n ? vf_load(out + (from + i) * LANES) : vf_set1(0.0f);
        for (size_t r = 0; r < rows; r++) {
            vf p = vf_load(x->p[r]);
            UNROLL for (int i = 0; i < TILE; i++) acc[i] = vf_fma(p, vf_set1(x->block[r][i]), acc[i]);
        }
        UNROLL for (int i = 0; i < TILE; i++)
            if ((size_t)i < n) vf_store(out + (from + i) * LANES, acc[i]);
    }
}

/* ---- the whole -------------------------------------------------------------------------------------------------------- */

static void attend(const TileShape *s, const void *query, const void *keys, const TileShape *values_shape, const void *values, size_t rows,
                   const int32_t limit[LANES], float scale, Softmax *softmax, void *scratch) {
    Scratch *x = scratch;
    int32_t last = 0; /* rows that no lane sees are no work */
    for (size_t i = 0; i < LANES; i++) last = limit[i] > last ? limit[i] : last;
    if ((size_t)last < rows) rows = (size_t)last;
    if (!rows) return;
    if (s->type == TILE_Q8) q8_scores(s, query, keys, rows, scale, x->p);
    else float_scores(s, query, keys, rows, scale, x);
    online_softmax(x->p, rows, limit, softmax, values_shape->d1);
    if (values_shape->type == TILE_Q8) q8_values(values_shape, values, rows, x, softmax->out);
    else float_values(values_shape, values, rows, x, softmax->out);
}

static void softmax_merge(Softmax *s, const Softmax *t, size_t dv) {
    vf s_max = vf_load(s->max), t_max = vf_load(t->max), max = vf_max(s_max, t_max), reference = reference_of(max);
    vf s_factor = vf_exp(vf_sub(s_max, reference)), t_factor = vf_exp(vf_sub(t_max, reference));
    vf_store(s->max, max);
    vf_store(s->sum, vf_add(shrink(vf_load(s->sum), s_factor, s_max), shrink(vf_load(t->sum), t_factor, t_max)));
    for (size_t d = 0; d < dv; d++) {
        float *out = s->out + d * LANES;
        vf_store(out, vf_add(shrink(vf_load(out), s_factor, s_max), shrink(vf_load(t->out + d * LANES), t_factor, t_max)));
    }
}

static void softmax_finish(float *out, size_t ld, const Softmax *s, size_t dv, size_t lanes) {
    /* A lane that has seen a row has a sum of at least 1; one that is not a number must stay one. */
    vf sum = vf_load(s->sum), zero = vf_set1(0.0f);
    vm empty = vf_gt(vf_set1(0.5f), sum);
    for (size_t d = 0; d < dv; d++) {
        float mean[LANES];
        vf_store(mean, vf_select(empty, zero, vf_div(vf_load(s->out + d * LANES), sum)));
        for (size_t i = 0; i < lanes; i++) out[i * ld + d] = mean[i];
    }
}
