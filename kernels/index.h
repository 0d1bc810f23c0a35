/* kernels/index.h: how well each cached row fits a new one, as the indexer of a sparse attention scores it
 * (engine/indexer.c has the formula). Part of kernels.c, compiled once for each instruction set on the
 * vectors of simd.h.
 *
 * The sixteen lanes are index heads, as they are heads in attention.h. A score is, for each lane, one
 * chain of fma over the dimensions in order, then one over the groups of sixteen heads in order; then the
 * lanes are added. */

/* max(0, x) for numbers; NaN and both infinities stay. */
OP vf relu(vf x) { return vf_max(vf_sub(x, x), x); }

static void index_scores(float *score, const TileShape *s, const void *query, const float *weight,
                         size_t heads, const void *keys, size_t rows, float *scratch) {
    size_t groups = div_up(heads, LANES), d = s->d1;
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
