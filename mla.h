/* mla.h: the latent cache and its attention. */
#ifndef MLA_H
#define MLA_H

#include "model.h"

/* Up to this many new rows are computed absorbed, more of them decompressed. Counting multiplications
 * alone the two are even near (n + v) r / (2 r - n - v) rows, 170 for DeepSeek. Measured in the
 * DeepSeek-V2-Lite shape (q8 cache, contexts up to 512 and up to 4096 rows): absorbed is faster at 96
 * rows, decompressed at 128. */
enum { ABSORBED_ROWS = 112 };
/* Cached rows that are made ready for decompression at once. */
enum { SPAN_ROWS = 32 * TILE_ROWS };
/* A context is split into at most this many parts (threads take them; the number depends on the context
 * alone). */
enum { MAX_PARTS = 16 };

enum { PATH_BY_ROWS, PATH_ABSORBED, PATH_DECOMPRESSED };

/* One row per token and layer: [c | kpe], the latent (r numbers) and the rotated key (p numbers) that all
 * heads share. Rows lie in pages of TILE_ROWS; a page holds its rows for all layers, a sequence is a list
 * of pages. With CACHE_FULL a row is what attention without MLA keeps: n + p + v numbers for each head. A
 * layer with an indexer keeps an index key beside it, di numbers in f32 (CACHE_F32, CACHE_FULL) or bf16.
 * The pool is reserved at the start and becomes memory as it fills. */
typedef struct Cache {
    CacheType type;
    TileShape shape;       /* of the latent rows: {type, r, p}; no meaning with CACHE_FULL */
    TileShape index_shape; /* of the index keys: {type, di, 0} */
    size_t layers, pages;
    size_t tile_bytes; /* one page of one layer, without index keys */
    size_t page_bytes;
    uint8_t *pool;      /* [pages][page_bytes] */
    uint32_t **page;    /* [sequences][pages of a sequence] */
    size_t *page_count; /* [sequences] pages that the sequence has */
    size_t free_page;   /* pages from here on were never used */
} Cache;

/* How the latent rows [c | kpe] are kept; of no meaning with CACHE_FULL. */
TileShape cache_shape(const Config *c, CacheType type);
TileShape cache_index_shape(const Config *c, CacheType type);

/* Bytes of one row: in one layer without index keys, and in the model's first `layers` layers with them. */
size_t cache_row_bytes(const Config *c, CacheType type);
size_t cache_token_bytes(const Config *c, CacheType type, uint32_t layers);

/* A page of a sequence: [layers][tile_bytes], then a tile of index keys for each layer with an indexer. */
uint8_t *cache_page(const Cache *c, uint32_t sequence, size_t page);

/* Its latents of one layer. */
uint8_t *cache_tile(const Cache *c, uint32_t sequence, size_t page, size_t layer);

/* Gives a sequence pages for its rows 0 .. rows - 1, where it has none yet. */
void cache_extend(Cache *c, uint32_t sequence, size_t rows);

/* out += attention(normed) (State.out: x, or what is normed first) for the call's rows in one layer; every
 * thread of the team calls it. */
void mla_attention(const Model *m, State *s, size_t layer, Thread *t);

#endif
