/* kernels/index.h: how well each cached row fits a new one, as the indexer of a sparse attention scores it
 * (engine/indexer.c has the formula). Part of kernels.c, compiled once for each instruction set on the
 * vectors of simd.h.
 *
 * The sixteen lanes are index heads, as they are heads in attention.h. A score is, for each lane, one
 * chain of fma over the dimensions in order (q8: an exact integer), then one over the groups of sixteen heads
 * in order; then the lanes are added. In q8 the first eight bits of a query are used, its scale goes with the
 * weight, and the row's multiplies the sum. */

/* max(0, x) for numbers; NaN and both infinities stay. */
OP vf relu(vf x) { return vf_max(vf_sub(x, x), x); }

static void q8_index_scores(float *score, const TileShape *s, const uint8_t *query, const float *weight,
                            size_t groups, const uint8_t *keys, size_t rows) {
    size_t n = units(s->d1), query_size = query_bytes(s);
    for (size_t row = 0; row < rows; row += REG_ROWS) {
        size_t at = row % SUB_ROWS;
        const uint8_t *sub = keys + row / SUB_ROWS * sub_tile_bytes(s);
        const float *scales = q8_scales(s, sub, 0);
        vf total[REG_ROWS];
        UNROLL for (int r = 0; r < REG_ROWS; r++) total[r] = vf_set1(0.0f);
        for (size_t g = 0; g < groups; g++) {
            const uint8_t *q = query + g * query_size;
            const QueryScales *query_scales = (const QueryScales *)(q + query_size) - 1;
            vf w = vf_mul(vf_load(weight + g * LANES), vf_load(query_scales->scale[0]));
            vi acc[REG_ROWS];
            dots(acc, q, sub + at * 4, n, q8_sums(s, sub, 0) + at, rows - row);
            UNROLL for (int r = 0; r < REG_ROWS; r++) total[r] =
                vf_fma(w, vf_max(vi_to_float(acc[r]), vf_set1(0.0f)), total[r]);
        }
        UNROLL for (int r = 0; r < REG_ROWS; r++) if (row + r < rows) score[row + r] =
            vf_sum(total[r]) * scales[at + r];
    }
}

static void index_scores(float *score, const TileShape *s, const void *query, const float *weight,
                         size_t heads, const void *keys, size_t rows, float *scratch) {
    size_t groups = div_up(heads, LANES), d = s->d1;
    if (is_int8(s->type)) {
        q8_index_scores(score, s, query, weight, groups, keys, rows);
        return;
    }
    for (size_t row = 0; row < rows; row += REG_ROWS) {
        vf total[REG_ROWS];
        UNROLL for (int r = 0; r < REG_ROWS; r++) total[r] = vf_set1(0.0f);
        for (size_t r = 0; r < REG_ROWS; r++) /* rows past the last: the last once more */
            tile_read(s, keys, min(row + r, rows - 1), 0, 0, d, scratch + r * d);
        for (size_t g = 0; g < groups; g++) {
            const float *q = (const float *)query + g * d * LANES;
            vf acc[REG_ROWS], w = vf_load(weight + g * LANES);
            UNROLL for (int r = 0; r < REG_ROWS; r++) acc[r] = vf_set1(0.0f);
            for (size_t i = 0; i < d; i++) {
                vf lanes = vf_load(q + i * LANES);
                UNROLL for (int r = 0; r < REG_ROWS; r++) acc[r] =
                    vf_fma(lanes, vf_set1(scratch[r * d + i]), acc[r]);
            }
            UNROLL for (int r = 0; r < REG_ROWS; r++) total[r] = vf_fma(w, relu(acc[r]), total[r]);
        }
        UNROLL for (int r = 0; r < REG_ROWS; r++) if (row + r < rows) score[row + r] = vf_sum(total[r]);
    }
}
