/* engine/cache.h: the cache: how many bytes a row takes, and where it lies.
 *
 * One row per token and layer: [ c | k_pe ], the latent (r numbers) and the rotated key (p numbers) that
 * all heads share. Ordinary attention keeps a key and a value for each of G groups of heads instead
 * (engine/full.c): in a model without latent p + v numbers, and with CACHE_FULL.. n + p + v for each head of
 * one that has a latent. A layer with an indexer keeps an index key beside it, di numbers in f32
 * (CACHE_F32, CACHE_FULL) or bf16.
 *
 * Rows lie in pages of TILE_ROWS = 128 rows. A page holds its rows for all layers:
 *
 *   [layers][tile_bytes]   a tile of each layer: its 128 rows, as kernels/kernels.h describes tiles;
 *                          ordinary attention: for each group a tile of keys, then a tile of values
 *   then                   a tile of index keys for each layer with an indexer
 *
 * A sequence is a list of pages (engine/sequence.h); several sequences may share a page. The pool is
 * reserved at the start and becomes memory as it fills. Rows are written by mla.c and engine/full.c, not
 * here. */
#ifndef CACHE_H
#define CACHE_H

#include "engine/util.h"
#include "model.h"

/* Cached rows that are made ready for decompression at once. */
enum { SPAN_ROWS = 32 * TILE_ROWS };
/* A context is split into at most this many parts, which threads attend to side by side. The number of
 * parts depends on the context's length alone, so that results do not depend on the number of threads. */
enum { MAX_PARTS = 16 };

typedef struct Cache {
    CacheType type;
    TileShape shape;       /* of the latent rows: {type, r, p}; no meaning where groups is not 0 */
    TileShape index_shape; /* of the index keys: {type, di, 0} */
    size_t groups;         /* of heads with a key and a value each; 0: rows are latents */
    TileShape keys;        /* {type, n + p, 0} */
    TileShape values;      /* {type, v, 0} */
    size_t layers;
    size_t tile_bytes; /* one page of one layer, without index keys */
    size_t page_bytes;
    uint8_t *pool; /* [page_count][page_bytes] */
    size_t page_count;
    uint32_t *references; /* [page_count] sequences that hold the page; 0: it is free */
    uint32_t *free_pages; /* [free_count] the last is used next */
    size_t free_count;
} Cache;

/* Can the model's rows be kept in this way? CACHE_FULL.. is for models with a latent. */
bool cache_fits(const Config *cfg, CacheType type);

/* Groups of heads that keep a key and a value each: G of a model without latent, H with CACHE_FULL..; 0: what
 * is kept is the latent. */
uint32_t cache_groups(const Config *cfg, CacheType type);

/* How the latent rows [ c | k_pe ] are kept, and keys and values of a group. */
TileShape cache_shape(const Config *cfg, CacheType type);
TileShape cache_key_shape(const Config *cfg, CacheType type);
TileShape cache_value_shape(const Config *cfg, CacheType type);
TileShape cache_index_shape(const Config *cfg, CacheType type);

/* Bytes of one row in one layer, without index keys. */
size_t cache_row_bytes(const Config *cfg, CacheType type);
/* Bytes of one row in the model's first `layers` layers, with index keys. */
size_t cache_token_bytes(const Config *cfg, CacheType type, uint32_t layers);
/* Pages that hold `rows` rows. */
static inline size_t cache_pages(size_t rows) { return div_up(rows, TILE_ROWS); }

/* All pages are free. pool, references and free_pages are in place. */
void cache_open(Cache *cache, const Config *cfg, CacheType type, size_t page_count);

/* A free page, which now has one reference; UINT32_MAX: there is none. */
uint32_t cache_take_page(Cache *cache);
/* Gives up one reference. */
void cache_release_page(Cache *cache, uint32_t page);

/* Page j of a sequence: its rows 128 j .. 128 j + 127 in all layers. */
static inline uint8_t *cache_page(const Sequence *q, size_t j) {
    return q->cache->pool + q->page[j] * q->cache->page_bytes;
}
/* The tile of one layer in it: [128 rows] of [ c | k_pe ]. */
static inline uint8_t *cache_tile(const Sequence *q, size_t j, size_t layer) {
    return cache_page(q, j) + layer * q->cache->tile_bytes;
}

#endif
