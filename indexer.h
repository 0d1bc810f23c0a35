/* indexer.h: which cached rows a new row attends to, where attention is sparse. */
#ifndef INDEXER_H
#define INDEXER_H

#include "model.h"

/* For the call's rows, in a layer that has an indexer: their index keys go into the cache and, if the call selects (State.selects), what each of
 * them sees into State.seen, where it stays for the layers without indexer that follow. In other layers nothing happens. Every thread of the team
 * calls it, when normed and qa_normed are there; returns when all are done. */
void choose_rows(const Model *m, State *s, size_t layer, Thread *t);

/* Does row i of a call that selects see row j of its sequence? j is at most its position. */
static inline bool row_sees(const State *s, size_t i, size_t j) {
    return s->seen[i * s->seen_stride + j / 64] >> j % 64 & 1;
}

/* Sets the bits `lanes` of seen[j] for the rows j of a page that row i sees (a call that selects). */
void add_seen(const State *s, size_t i, size_t page, uint16_t lanes, uint16_t seen[TILE_ROWS]);

#endif
