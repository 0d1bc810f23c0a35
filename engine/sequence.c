/* engine/sequence.c: see sequence.h. */
#include "engine/sequence.h"

#include <string.h>

#include "engine/cache.h"
#include "engine/util.h"

Sequence *sequence_open(State *s) {
    for (size_t i = 0; i < s->sequence_count; i++) {
        Sequence *q = &s->sequences[i];
        if (!q->open) {
            q->count = q->rows = q->page_count = 0;
            q->open = true;
            return q;
        }
    }
    return NULL;
}

void sequence_close(Sequence *q) {
    while (q->page_count)
        cache_release_page(q->cache, q->page[--q->page_count]);
    q->open = false;
}

size_t sequence_cut(Sequence *q, size_t rows) {
    q->rows = min(rows, q->rows);
    while (q->page_count > cache_pages(q->rows))
        cache_release_page(q->cache, q->page[--q->page_count]);
    return q->rows;
}

bool sequence_mark(Sequence *q) {
    (void)q; /* every row is one */
    return true;
}

/* The sequence's page j as one that no other sequence holds. */
static bool own_page(Sequence *q, size_t j) {
    Cache *cache = q->cache;
    if (cache->references[q->page[j]] == 1)
        return true;
    uint32_t page = cache_take_page(cache);
    if (page == UINT32_MAX)
        return false;
    memcpy(cache->pool + page * cache->page_bytes, cache_page(q, j), cache->page_bytes);
    cache_release_page(cache, q->page[j]);
    q->page[j] = page;
    return true;
}

bool sequence_reserve(Sequence *q, size_t rows) {
    if (q->rows % TILE_ROWS && rows > q->rows && !own_page(q, q->rows / TILE_ROWS))
        return false;
    while (q->page_count < cache_pages(rows)) {
        uint32_t page = cache_take_page(q->cache);
        if (page == UINT32_MAX)
            return false;
        q->page[q->page_count++] = page;
    }
    return true;
}

Sequence *sequence_fork(State *s, const Sequence *from, size_t rows) {
    Sequence *q = sequence_open(s);
    if (!q)
        return NULL;
    memcpy(q->ids, from->ids, rows * sizeof *q->ids);
    q->count = q->rows = rows;
    for (; q->page_count < cache_pages(rows); q->page_count++) {
        q->page[q->page_count] = from->page[q->page_count];
        q->cache->references[q->page[q->page_count]]++;
    }
    if (rows % TILE_ROWS && !own_page(q, rows / TILE_ROWS)) { /* `from` may write to it, too */
        sequence_close(q);
        return NULL;
    }
    return q;
}

Path stretch_path(size_t at, size_t rows) {
    size_t piece = at / PIECE_ROWS * PIECE_ROWS;
    return min(rows - piece, PIECE_ROWS) > ABSORBED_ROWS ? PATH_DECOMPRESSED : PATH_ABSORBED;
}

void sequence_rows(Sequence *q, Row *rows, size_t n, size_t stretch, size_t stretch_rows) {
    for (size_t i = 0; i < n; i++) {
        size_t at = q->rows + i;
        rows[i] = (Row){.sequence = q,
                        .token = q->ids[at],
                        .place = (uint32_t)at,
                        .position = (uint32_t)at,
                        .path = stretch_path(at - stretch, stretch_rows)};
    }
}
