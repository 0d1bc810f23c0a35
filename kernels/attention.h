/* kernels/attention.h: tiles of cached rows, and sixteen queries against them. Part of kernels.c, compiled
 * once for each instruction set on the vectors of simd.h. kernels.h describes the tiles; engine/attend.c
 * chooses rows and queries.
 *
 * The sixteen lanes of a vector are the sixteen queries: the maximum, the exponential and the sum of a
 * softmax are plain vector operations, and a row is read once for all of them. A tile of 128 rows is taken
 * in four steps:
 *
 *   1 scores   [row][lane] = scale * (row . query)
 *   2 softmax  (online) the new maximum of each lane; where it grew, what was summed so far shrinks by
 *              exp(old - new); then p = exp(score - maximum), sum += p, rows in order
 *   3 weights  q8, q6 and q4 only: p times the row's scale as an integer in 0 .. 255, the largest of this
 *              tile and lane being 255
 *   4 values   out[dim][lane] += p * value[row][dim]
 *
 * f32 and bf16: every score and every output is one chain of fma, dimensions in order and rows in order.
 * q8, q6, q4: q6 and q4 tiles are unpacked to q8 (tile.h), once for all queries. The sums over dimensions
 * in step 1 and over rows in step 4 are exact integers, whose order is free. Around them stand
 *
 *   score = fma((float)dot_b, row_scale_b * query_b, (float)dot_a * (row_scale_a * query_a))
 *           where query_x = query scale of part x * scale
 *   out   = fma((float)dot, weight_step, out), weight_step = largest (p * row_scale) / 255
 *
 * What lies in a tile past its last row is never looked at, except by sums that are then dropped. */

/* At the end of an int8 query. */
typedef struct {
    float scale[2][LANES];
} QueryScales;

/* What is kept between steps 1 and 4 of a tile. Its size is the same in every build. */
typedef struct {
    float p[TILE_ROWS][LANES];          /* scores, then probabilities */
    float block[TILE_ROWS][16];         /* f32, bf16: a block of rows, as f32 */
    uint8_t weights[TILE_ROWS / 4][64]; /* q8: [groups of 4 rows][lane][4 rows], see value_units */
    uint8_t finer[TILE_ROWS / 4][64];   /* ordinary attention: what is left of the weights */
    int8_t values[TILE_ROWS * 16];      /* q8: up to 16 dimensions of all rows, see value_units */
    uint8_t unpacked[];                 /* q6, q4: the tile as q8 */
} AttendScratch;

/* Keys that are a part a alone are those of ordinary attention. Their tiles have a scale for some 32 to 128
 * numbers, so fine that 8 bits for queries and weights would be most of the error: they have 16, as two int8.
 * The second one counts 1/254 of a query's step, or 1/255 of a weight's. */
static inline bool is_fine(const TileShape *keys) { return is_int8(keys->type) && !keys->d2; }

#ifdef ISA_portable /* the sizes are the same for all: once */
size_t query_bytes(const TileShape *s) {
    return is_int8(s->type) ? all_units(s) * UNIT * (is_fine(s) ? 2 : 1) + sizeof(QueryScales)
                            : ((size_t)s->d1 + s->d2) * LANES * sizeof(float);
}

size_t attend_scratch_bytes(const TileShape *s) {
    TileShape q8 = {TILE_Q8, s->d1, s->d2};
    return sizeof(AttendScratch) + (is_packed(s->type) ? tile_bytes(&q8) + UNIT : 0); /* unpack_sub_tile() */
}
#endif

/* ---- queries -------------------------------------------------------------------------------- */

/* n numbers as two int8: x = scale * (high + low / 254). high and low go to units as quantize_part() puts
 * them, stored + 128. */
static void quantize_fine(uint8_t *high, uint8_t *low, const float *x, size_t n, float *scale) {
    float max = largest_of(x, n), inverse = max <= 1e-36f ? 0.0f : 127.0f / max;
    for (size_t i = 0; i < n; i += LANES) {
        vf v = load_up_to(x + i, n - i, 0.0f);
        vi h = to_integers(v, inverse, 127);
        vi l = to_integers(vf_sub(vf_mul(v, vf_set1(inverse)), vi_to_float(h)), 254, 127);
        uint8_t bytes[2][LANES];
        vi_to_s8((int8_t *)bytes[0], h);
        vi_to_s8((int8_t *)bytes[1], l);
        for (size_t j = 0; j < LANES; j++) {
            bytes[0][j] ^= 0x80;
            bytes[1][j] ^= 0x80;
        }
        for (size_t j = 0; j < LANES && i + j < n; j += 4) {
            memcpy(high + (i + j) / 4 * UNIT, bytes[0] + j, 4);
            memcpy(low + (i + j) / 4 * UNIT, bytes[1] + j, 4);
        }
    }
    *scale = max <= 1e-36f ? 0.0f : max / 127.0f; /* NaN where a number is not finite */
}

static void pack_query(const TileShape *s, void *out, const float *const a[LANES],
                       const float *const b[LANES]) {
    if (!is_int8(s->type)) {
        for (size_t d = 0; d < s->d1; d++)
            for (size_t i = 0; i < LANES; i++)
                ((float *)out)[d * LANES + i] = a[i] ? a[i][d] : 0.0f;
        for (size_t d = 0; d < s->d2; d++)
            for (size_t i = 0; i < LANES; i++)
                ((float *)out)[(s->d1 + d) * LANES + i] = a[i] ? b[i][d] : 0.0f;
        return;
    }
    uint8_t *unit = out, *unit_b = unit + units(s->d1) * UNIT;
    QueryScales *scales = (QueryScales *)(unit + query_bytes(s) - sizeof *scales);
    memset(unit, 0x80, query_bytes(s) - sizeof *scales);
    memset(scales, 0, sizeof *scales);
    int32_t sum; /* only rows need theirs */
    for (size_t i = 0; i < LANES; i++) {
        if (!a[i])
            continue;
        if (is_fine(s)) {
            quantize_fine(unit + i * 4, unit_b + i * 4, a[i], s->d1, &scales->scale[0][i]);
            continue;
        }
        quantize_part(unit + i * 4, a[i], s->d1, 0x80, &scales->scale[0][i], &sum);
        quantize_part(unit_b + i * 4, s->d2 ? b[i] : NULL, s->d2, 0x80, &scales->scale[1][i], &sum);
    }
}

/* ---- step 1: scores ------------------------------------------------------------------------- */

/* How far ahead of the scores memory is asked for, in bytes: rows of the next tile then arrive while the
 * values of this one are summed. */
enum { ATTEND_AHEAD = 8192 };

/* acc[row][lane] = row . query, over the n units of one part, for REG_ROWS rows of a sub-tile from `rows`
 * on. Only the first `written` of them are rows. sum: of each row's integers. */
OP void dots(vi acc[REG_ROWS], const uint8_t *query_unit, const uint8_t *rows, size_t n, const int32_t *sum,
             size_t written) {
    UNROLL for (int r = 0; r < REG_ROWS; r++) acc[r] = dot4_start((size_t)r < written ? sum[r] : 0);
    for (size_t u = 0; u < n; u++) {
        vb q = vb_load_biased(query_unit + u * 64);
        PREFETCH(rows + u * 64 + ATTEND_AHEAD);
        UNROLL for (int r = 0; r < REG_ROWS; r++) acc[r] =
            dot4(acc[r], q, (const int8_t *)rows + u * 64 + r * 4);
    }
}

/* Sub-tile i of an int8 tile as one of q8: where it is packed, it is unpacked to its place in x->unpacked. */
static const uint8_t *q8_sub_tile(const TileShape *s, const uint8_t *tile, size_t i, AttendScratch *x) {
    TileShape q8 = {TILE_Q8, s->d1, s->d2};
    if (!is_packed(s->type))
        return tile + i * sub_tile_bytes(s);
    uint8_t *sub = x->unpacked + i * sub_tile_bytes(&q8);
    unpack_sub_tile(s, tile + i * sub_tile_bytes(s), sub);
    return sub;
}

/* p[row][lane] for the rows of one q8 sub-tile. */
static void q8_scores(const TileShape *s, const uint8_t *query, const uint8_t *sub, size_t rows, float scale,
                      float (*p)[LANES]) {
    const float *scale_a = q8_scales(s, sub, 0), *scale_b = q8_scales(s, sub, 1);
    const int32_t *sum_a = q8_sums(s, sub, 0), *sum_b = q8_sums(s, sub, 1);
    const QueryScales *qs = (const QueryScales *)(query + all_units(s) * 64);
    size_t ua = units(s->d1), ub = units(s->d2);
    vf qa = vf_mul(vf_load(qs->scale[0]), vf_set1(scale)), qb = vf_mul(vf_load(qs->scale[1]), vf_set1(scale));
    for (size_t row = 0; row < rows; row += REG_ROWS) {
        vi acc[REG_ROWS];
        dots(acc, query, sub + row * 4, ua, sum_a + row, rows - row);
        UNROLL for (int r = 0; r < REG_ROWS; r++)
            vf_store(p[row + r], vf_mul(vi_to_float(acc[r]), vf_mul(vf_set1(scale_a[row + r]), qa)));
        if (!ub)
            continue;
        dots(acc, query + ua * UNIT, sub + ua * UNIT + row * 4, ub, sum_b + row, rows - row);
        UNROLL for (int r = 0; r < REG_ROWS; r++)
            vf_store(p[row + r],
                     vf_fma(vi_to_float(acc[r]), vf_mul(vf_set1(scale_b[row + r]), qb), vf_load(p[row + r])));
    }
}

/* The same of keys that are a part a alone. */
static void fine_scores(const TileShape *s, const uint8_t *query, const uint8_t *sub, size_t rows,
                        float scale, float (*p)[LANES]) {
    const float *scales = q8_scales(s, sub, 0);
    const int32_t *sums = q8_sums(s, sub, 0);
    size_t n = units(s->d1);
    const QueryScales *qs = (const QueryScales *)(query + 2 * n * UNIT);
    vf qa = vf_mul(vf_load(qs->scale[0]), vf_set1(scale));
    for (size_t row = 0; row < rows; row += REG_ROWS) {
        vi high[REG_ROWS], low[REG_ROWS];
        dots(high, query, sub + row * 4, n, sums + row, rows - row);
        dots(low, query + n * UNIT, sub + row * 4, n, sums + row, rows - row);
        UNROLL for (int r = 0; r < REG_ROWS; r++) {
            vf dot = vf_fma(vi_to_float(low[r]), vf_set1(1.0f / 254), vi_to_float(high[r]));
            vf_store(p[row + r], vf_mul(dot, vf_mul(vf_set1(scales[row + r]), qa)));
        }
    }
}

/* A packed sub-tile is used while it is still in the cache, and stays unpacked for the values. */
static void int8_scores(const TileShape *s, const uint8_t *query, const uint8_t *tile, size_t rows,
                        float scale, AttendScratch *x) {
    TileShape q8 = {TILE_Q8, s->d1, s->d2};
    for (size_t row = 0; row < rows; row += SUB_ROWS) {
        const uint8_t *sub = q8_sub_tile(s, tile, row / SUB_ROWS, x);
        size_t here = min(rows - row, SUB_ROWS);
        if (is_fine(s))
            fine_scores(&q8, query, sub, here, scale, x->p + row);
        else
            q8_scores(&q8, query, sub, here, scale, x->p + row);
    }
}

/* f32 and bf16: `width` numbers of each row at a time, brought to f32 in `block`. */
static void float_scores(const TileShape *s, const float *query, const void *tile, size_t rows, float scale,
                         AttendScratch *x) {
    enum { WIDTH = 64 };
    float *block = x->block[0];
    size_t d = (size_t)s->d1 + s->d2;
    for (size_t row = 0; row < rows; row += REG_ROWS) {
        vf acc[REG_ROWS];
        UNROLL for (int r = 0; r < REG_ROWS; r++) acc[r] = vf_set1(0.0f);
        for (size_t from = 0; from < d; from += WIDTH) {
            size_t n = min(d - from, WIDTH);
            for (size_t r = 0; r < REG_ROWS; r++) /* rows past the last: the last once more */
                tile_read(s, tile, min(row + r, rows - 1), 0, from, n, block + r * WIDTH);
            for (size_t i = 0; i < n; i++) {
                vf q = vf_load(query + (from + i) * LANES);
                UNROLL for (int r = 0; r < REG_ROWS; r++) acc[r] =
                    vf_fma(q, vf_set1(block[r * WIDTH + i]), acc[r]);
            }
        }
        UNROLL for (int r = 0; r < REG_ROWS; r++) vf_store(x->p[row + r], vf_mul(acc[r], vf_set1(scale)));
    }
}

/* ---- step 2: softmax ------------------------------------------------------------------------ */

/* What scores are measured from: the maximum, which may still be -infinity. exp(-infinity - reference) is
 * then 0, not NaN. */
OP vf reference_of(vf max) { return vf_max(max, vf_set1(-FLT_MAX)); }

/* x * factor, and 0 in the lanes that have attended to no row: their output was never written. The others
 * have a sum of at least 1, or NaN, which stays. */
OP vf shrink(vf x, vf factor, vf sum) {
    return vf_select(vf_gt(vf_set1(0.5f), sum), vf_set1(0.0f), vf_mul(x, factor));
}

/* The maxima become `max`; what was summed shrinks to fit. */
static void raise_max(Softmax *s, vf max, size_t dv) {
    vf old = vf_load(s->max);
    vm grown = vf_gt(max, old);
    /* all factors are 1: nothing changes */
    if (vf_largest(vf_select(grown, vf_set1(1.0f), vf_set1(0.0f))) == 0.0f)
        return;
    vf factor = vf_exp(vf_sub(old, reference_of(max))), sum = vf_load(s->sum);
    vf_store(s->max, max);
    vf_store(s->sum, shrink(sum, factor, sum));
    for (size_t d = 0; d < dv; d++)
        vf_store(s->out + d * LANES, shrink(vf_load(s->out + d * LANES), factor, sum));
}

/* Rows that a lane may not attend to score -infinity in it. */
static void hide_rows(float (*p)[LANES], size_t rows, const uint16_t *mask) {
    int32_t bit[LANES];
    for (int i = 0; i < LANES; i++)
        bit[i] = 1 << i;
    for (size_t r = 0; r < rows; r++)
        vf_store(p[r], vf_select(vi_gt(vi_and(vi_set1(mask[r]), vi_load(bit)), vi_set1(0)), vf_load(p[r]),
                                 vf_set1(-INFINITY)));
}

/* Scores become probabilities (relative to the maximum so far); the sum grows by them. */
static void online_softmax(float (*p)[LANES], size_t rows, const int32_t limit[LANES], Softmax *s,
                           size_t dv) {
    size_t common = rows; /* rows that all lanes may attend to */
    for (size_t i = 0; i < LANES; i++)
        if (limit[i] < (int64_t)common)
            common = limit[i] > 0 ? (size_t)limit[i] : 0;
    for (size_t r = common; r < rows; r++)
        vf_store(p[r],
                 vf_select(vi_gt(vi_load(limit), vi_set1((int32_t)r)), vf_load(p[r]), vf_set1(-INFINITY)));

    vf max[4]; /* four chains, because one would wait for itself */
    UNROLL for (int i = 0; i < 4; i++) max[i] = vf_load(s->max);
    for (size_t r = 0; r + 4 <= rows; r += 4)
        UNROLL for (int i = 0; i < 4; i++) max[i] = vf_max(vf_load(p[r + i]), max[i]);
    for (size_t r = rows / 4 * 4; r < rows; r++)
        max[0] = vf_max(vf_load(p[r]), max[0]);
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

/* ---- steps 3 and 4: values ------------------------------------------------------------------ */

/* Step 3. The weight of a row in a lane is p * the row's scale: the values' own integers are then summed
 * with it as they are. Weights become integers in 0 .. 255, for each lane in steps of its own: the largest
 * becomes 255. x->weights receives four rows to a vector, the lower row in the lower byte of its lane, as
 * the picture below shows; rows past the last weigh nothing. `fine`: weights are rounded down, and x->finer
 * receives the rest in steps of 1/255. Returns what one step is worth in each lane, or NaN if a row's scale
 * is not finite. x->p is used up. */
OP vf quantize_weights(const TileShape *s, const uint8_t *tile, size_t rows, const bool fine,
                       AttendScratch *x) {
    vf largest = vf_set1(1e-30f); /* 255 / largest must not overflow */
    bool finite = true;
    for (size_t r = 0; r < rows; r++) {
        float scale = q8_scales(s, tile + r / SUB_ROWS * sub_tile_bytes(s), 0)[r % SUB_ROWS];
        vf w = vf_mul(vf_load(x->p[r]), vf_set1(scale));
        finite &= scale - scale == 0;
        vf_store(x->p[r], w);
        largest = vf_max(w, largest);
    }
    vf inverse = vf_div(vf_set1(255.0f), largest);
    for (size_t r = 0; r < rows; r += 4) {
        vi four = vi_set1(0), finer = vi_set1(0);
        for (size_t j = 4; j-- > 0;) {
            four = vi_shl(four, 8);
            finer = vi_shl(finer, 8);
            if (r + j >= rows)
                continue;
            vf w = vf_max(vf_mul(vf_load(x->p[r + j]), inverse), vf_set1(0.0f)); /* NaN becomes 0 */
            vi whole = vf_to_int(fine ? vf_max(vf_sub(w, vf_set1(0.5f)), vf_set1(0.0f)) : w);
            four = vi_add(four, whole);
            if (fine)
                finer = vi_add(finer, vf_to_int(vf_max(vf_mul(vf_sub(w, vi_to_float(whole)), vf_set1(255.0f)),
                                                       vf_set1(0.0f))));
        }
        vi_store((int32_t *)x->weights[r / 4], four);
        if (fine)
            vi_store((int32_t *)x->finer[r / 4], finer);
    }
    return finite ? vf_div(largest, vf_set1(255.0f)) : vf_set1(NAN);
}

/* Step 4. out[dim][lane] += step * sum over rows of weight[row][lane] * value[row][dim], for the 4 n
 * dimensions of n units, n <= REG_ROWS / 4, of which the first `dims` exist.
 *
 * dot4 multiplies four bytes of each lane by four bytes from memory, and here the four are rows. So a
 * unit, which keeps four dimensions of a row together, is turned first. One unit of a sub-tile, row r and
 * dimension d as rd:
 *
 *     byte      as it is kept       after turn_4x4                 weights[0], for all of this
 *      0 ..  3  00 01 02 03         00 10 20 30  dimension 0       lane  0:  w0 w1 w2 w3   of rows 0 .. 3
 *      4 ..  7  10 11 12 13         01 11 21 31  dimension 1       lane  1:  w0 w1 w2 w3
 *      8 .. 11  20 21 22 23         02 12 22 32  dimension 2        ...
 *     12 .. 15  30 31 32 33         03 13 23 33  dimension 3       lane 15:  w0 w1 w2 w3
 *     16 .. 31  rows 4 .. 7         the same of rows 4 .. 7        weights[1]
 *     32 .. 63  rows 8 .. 15        rows 8 .. 11, 12 .. 15         weights[2], weights[3]
 *
 * acc[d] += dot4(weights[g], four bytes of dimension d) then adds rows 4 g .. 4 g + 3 of that dimension in
 * every lane. `keep` has zeros where the last sub-tile has no row: what lies there is not a number of this
 * tile. */
OP void value_units(int n, size_t dims, const uint8_t *unit, size_t sub_bytes, size_t rows,
                    const uint8_t *keep, const uint8_t (*weights)[64], AttendScratch *x, vf step,
                    float *out) {
    size_t subs = div_up(rows, SUB_ROWS);
    vi acc[REG_ROWS], sums[REG_ROWS / 4];
    UNROLL for (int k = 0; k < n; k++) sums[k] = vi_set1(0);
    for (size_t sub = 0; sub < subs; sub++) {
        UNROLL for (int k = 0; k < n; k++) {
            int8_t *turned = x->values + (sub * n + k) * 64;
            turn_4x4(turned, unit + sub * sub_bytes + k * 64);
            if (sub == rows / SUB_ROWS)
                for (int i = 0; i < 64; i++)
                    turned[i] = (int8_t)(turned[i] & keep[i]);
            if (DOT4_UNSIGNED_NEEDS_SUM)
                sums[k] = vi_add_bytes(sums[k], turned);
        }
    }
    UNROLL for (int k = 0; k < n; k++) {
        int32_t sum[LANES]; /* [4 groups of rows][4 dimensions] */
        vi_store(sum, sums[k]);
        UNROLL for (int i = 0; i < 4; i++) acc[4 * k + i] =
            dot4_start_unsigned(sum[i] + sum[4 + i] + sum[8 + i] + sum[12 + i]);
    }
    for (size_t g = 0; g < div_up(rows, 4); g++) {
        vb w = vb_load_biased(weights[g]);
        const int8_t *v = x->values + g / 4 * n * 64 + g % 4 * 16;
        UNROLL for (int i = 0; i < 4 * n; i++) acc[i] = dot4(acc[i], w, v + i / 4 * 64 + i % 4 * 4);
    }
    UNROLL for (int i = 0; i < 4 * n; i++) if ((size_t)i < dims)
        vf_store(out + i * LANES, vf_fma(vi_to_float(acc[i]), step, vf_load(out + i * LANES)));
}

/* `unpacked`: int8_scores has unpacked this tile already, because it holds the keys too. */
static void int8_values(const TileShape *s, const uint8_t *tile, bool unpacked, bool fine, size_t rows,
                        AttendScratch *x, float *out) {
    for (size_t i = 0; i * SUB_ROWS < rows && !unpacked; i++)
        q8_sub_tile(s, tile, i, x);
    TileShape q8 = {TILE_Q8, s->d1, s->d2};
    if (is_packed(s->type)) {
        s = &q8;
        tile = x->unpacked;
    }
    vf step = fine ? quantize_weights(s, tile, rows, true, x) : quantize_weights(s, tile, rows, false, x);
    vf fine_step = vf_mul(step, vf_set1(1.0f / 255));
    uint8_t keep[64]; /* [4 groups][4 dimensions][4 rows] */
    for (size_t i = 0; i < 64; i++)
        keep[i] = i / 16 * 4 + i % 4 < rows % SUB_ROWS ? 0xff : 0;
    size_t u = 0, n = units(s->d1), bytes = sub_tile_bytes(s);
    for (; u + REG_ROWS / 4 <= n; u += REG_ROWS / 4) {
        value_units(REG_ROWS / 4, s->d1 - u * 4, tile + u * 64, bytes, rows, keep, x->weights, x, step,
                    out + u * 4 * LANES);
        if (fine)
            value_units(REG_ROWS / 4, s->d1 - u * 4, tile + u * 64, bytes, rows, keep, x->finer, x, fine_step,
                        out + u * 4 * LANES);
    }
    for (; u < n; u++) {
        value_units(1, s->d1 - u * 4, tile + u * 64, bytes, rows, keep, x->weights, x, step,
                    out + u * 4 * LANES);
        if (fine)
            value_units(1, s->d1 - u * 4, tile + u * 64, bytes, rows, keep, x->finer, x, fine_step,
                        out + u * 4 * LANES);
    }
}

static void float_values(const TileShape *s, const void *tile, size_t rows, AttendScratch *x, float *out) {
    for (size_t from = 0; from < s->d1; from += REG_ROWS) {
        size_t n = min(s->d1 - from, REG_ROWS);
        vf acc[REG_ROWS];
        memset(x->block, 0, sizeof x->block);
        for (size_t r = 0; r < rows; r++)
            tile_read(s, tile, r, 0, from, n, x->block[r]);
        UNROLL for (int i = 0; i < REG_ROWS; i++) acc[i] =
            (size_t)i < n ? vf_load(out + (from + i) * LANES) : vf_set1(0.0f);
        for (size_t r = 0; r < rows; r++) {
            vf p = vf_load(x->p[r]);
            UNROLL for (int i = 0; i < REG_ROWS; i++) acc[i] = vf_fma(p, vf_set1(x->block[r][i]), acc[i]);
        }
        UNROLL for (int i = 0; i < REG_ROWS; i++) if ((size_t)i < n)
            vf_store(out + (from + i) * LANES, acc[i]);
    }
}

/* ---- the whole ------------------------------------------------------------------------------ */

static void attend(const TileShape *s, const void *query, const void *keys, const TileShape *values_shape,
                   const void *values, size_t rows, const int32_t limit[LANES], const uint16_t *mask,
                   float scale, Softmax *softmax, void *scratch) {
    AttendScratch *x = scratch;
    int32_t last = 0; /* rows that no lane attends to are no work */
    for (size_t i = 0; i < LANES; i++)
        last = limit[i] > last ? limit[i] : last;
    rows = min(rows, (size_t)last);
    if (!rows)
        return;
    if (is_int8(s->type))
        int8_scores(s, query, keys, rows, scale, x);
    else
        float_scores(s, query, keys, rows, scale, x);
    if (mask)
        hide_rows(x->p, rows, mask);
    online_softmax(x->p, rows, limit, softmax, values_shape->d1);
    if (is_int8(values_shape->type))
        int8_values(values_shape, values, values == keys, is_fine(s), rows, x, softmax->out);
    else
        float_values(values_shape, values, rows, x, softmax->out);
}

static void softmax_merge(Softmax *s, const Softmax *t, size_t dv) {
    vf s_max = vf_load(s->max), t_max = vf_load(t->max), max = vf_max(s_max, t_max),
       reference = reference_of(max);
    vf s_factor = vf_exp(vf_sub(s_max, reference)), t_factor = vf_exp(vf_sub(t_max, reference)),
       s_sum = vf_load(s->sum), t_sum = vf_load(t->sum);
    vf_store(s->max, max);
    vf_store(s->sum, vf_add(shrink(s_sum, s_factor, s_sum), shrink(t_sum, t_factor, t_sum)));
    for (size_t d = 0; d < dv; d++) {
        float *out = s->out + d * LANES;
        vf_store(out, vf_add(shrink(vf_load(out), s_factor, s_sum),
                             shrink(vf_load(t->out + d * LANES), t_factor, t_sum)));
    }
}

static void softmax_finish(float *out, size_t ld, const Softmax *s, size_t dv, size_t lanes) {
    /* A lane that has attended to a row has a sum of at least 1, or NaN, which must stay. */
    vf sum = vf_load(s->sum), zero = vf_set1(0.0f);
    vm empty = vf_gt(vf_set1(0.5f), sum);
    for (size_t d = 0; d < dv; d++) {
        float mean[LANES];
        vf_store(mean, vf_select(empty, zero, vf_div(vf_load(s->out + d * LANES), sum)));
        for (size_t i = 0; i < lanes; i++)
            out[i * ld + d] = mean[i];
    }
}
