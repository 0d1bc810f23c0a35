/* indexer.h: which cached rows a new row attends to, where attention is sparse. */
#ifndef INDEXER_H
#define INDEXER_H

#include "mla.h"
#include "model.h"

/* For the call's rows, in a layer that has an indexer: their index keys go into the cache and, if the call
 * selects (State.selects), what each of them sees into State.seen, where it stays for the layers without
 * indexer that follow. In other layers nothing happens. Every thread of the team calls it, when normed and
 * qa_normed are there; returns when all are done. */
void choose_rows(const Model *m, State *s, size_t layer, Thread *t);

/* Does row i of a call that selects see row j of its sequence? j is at most its position. */
static inline bool row_sees(const State *s, size_t i, size_t j) {
    return s->seen[i * s->seen_stride + j / 64] >> j % 64 & 1;
}

/* Sets bit `lane` of seen[j] for the rows j of a page that row i sees. */
void add_seen(const State *s, size_t i, size_t page, size_t lane, uint16_t seen[TILE_ROWS]);

/* How many rows row i sees, in any call. */
static inline size_t rows_seen(const State *s, size_t i) {
    size_t rows = (size_t)s->rows[i].position + 1;
    return rows < s->dense_rows ? rows : s->dense_rows;
}

/* The latents that the rows first .. first + count - 1 see are copied together, each row's in pages of its
 * own. Every thread of the team calls it; returns when all is done. */
void gather_rows(const Model *m, State *s, size_t layer, size_t first, size_t count, Thread *t);

/* Such a page; line 0 is row `first`. */
static inline uint8_t *gathered_tile(const State *s, size_t line, size_t page) {
    return s->seen_tiles + (line * s->seen_pages + page) * s->cache->tile_bytes;
}

#endif
