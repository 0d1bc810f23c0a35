/* engine/indexer.h: which cached rows a new row attends to, where attention is sparse. */
#ifndef INDEXER_H
#define INDEXER_H

#include "engine/buffers.h"
#include "engine/cache.h"
#include "engine/util.h"
#include "model.h"

/* For the call's rows, in a layer that has an indexer: their index keys go into the cache (those of a CSA
 * layer are there already) and, if the call is sparse (State.sparse.active), the rows that each of them
 * attends to into State.sparse.mask, where they stay for the layers without indexer that follow. In other
 * layers nothing happens. Every thread of the team calls it, when normed and qa_normed are complete; returns
 * when all are done. */
void choose_rows(const Model *m, State *s, size_t layer, Thread *t);

/* Rows that an indexer chooses from for row i: those up to its own, or the compressed ones that it sees, or
 * the pools that are complete. */
static inline size_t index_rows(const State *s, size_t i) {
    return ((size_t)s->rows[i].place + 1) / s->sparse.ratio;
}

/* Does row i of a sparse call attend to row j of its sequence? j is no later row, or below index_rows(). */
static inline bool attends_to(const State *s, size_t i, size_t j) {
    return s->sparse.mask[i * s->sparse.mask_stride + j / 64] >> j % 64 & 1;
}

/* How many rows row i attends to, in any call: what was chosen, and of pools the one that is not complete. */
static inline size_t rows_attended(const State *s, size_t i) {
    size_t pool = s->sparse.pool;
    return min(index_rows(s, i), s->sparse.threshold) * pool + ((size_t)s->rows[i].place + 1) % pool;
}

/* Sets bit `lane` of mask[j] for the rows j of a page that row i attends to. */
void add_to_mask(const State *s, size_t i, size_t page, size_t lane, uint16_t mask[TILE_ROWS]);

/* Copies the latents that row i of the call attends to into tiles, side by side. */
void select_row(const Model *m, const State *s, size_t layer, size_t i, uint8_t *tiles);

/* The same for the absorbed rows number first .. first + count - 1, row first + line into
 * selected_tiles(line). Every thread of the team calls it; returns when all is done. */
void select_latents(const Model *m, State *s, size_t layer, size_t first, size_t count, Thread *t);

/* Place `line` for the tiles of one row: as many places as rows in a round, or threads. NULL: the model's
 * attention is not sparse. */
static inline uint8_t *selected_tiles(const State *s, size_t line) {
    return s->sparse.tiles ? s->sparse.tiles + line * s->sparse.tile_count * s->cache->tile_bytes : NULL;
}

#endif
