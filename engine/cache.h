/* engine/cache.h: the cache: how many bytes a row takes, and where it lies; and the constant parts of
 * sequences.
 *
 * One row per token and layer: [ c | k_pe ], the latent (r numbers) and the rotated key (p numbers) that
 * all heads share. Ordinary attention keeps a key and a value for each of G groups of heads instead
 * (engine/full.c): in a model without latent p + v numbers, and with CACHE_FULL.. n + p + v for each head of
 * one that has a latent. A layer with an indexer keeps an index key beside it, di numbers in f32
 * (CACHE_F32, CACHE_FULL), bf16 (CACHE_BF16, CACHE_FULL_BF16) or q8.
 *
 * Rows lie in pages of TILE_ROWS = 128 rows. A page holds its rows for all layers:
 *
 *   [layers][tile_bytes]   a tile of each layer with latents: its 128 rows (kernels/kernels.h);
 *                          ordinary attention: for each group a tile of keys, then a tile of values
 *   then                   a tile of index keys for each layer with an indexer
 *
 * In a model with windows (engine/window.c) a page holds the compressed rows of more tokens, of 2048 in most
 * models:
 *
 *   [CSA layers][page_tiles]   tiles of 128 rows, one for csa_ratio tokens
 *   [HCA layers]               the first rows of a tile, one for hca_ratio tokens: 16, or a multiple of it
 *   [CSA layers][page_tiles]   tiles of index keys
 *
 * In a model with pools of index keys (engine/indexer.c) it has the tokens of a whole tile of such keys:
 * index_kpool tiles of each layer with latents.
 *
 * A sequence is a list of pages (engine/sequence.h); several sequences may share a page. The pool is
 * reserved at the start and becomes memory as it fills. Rows are written by mla.c and engine/full.c, not
 * here.
 *
 * What some layers keep of a sequence does not grow: its constant part. Linear attention has a memory
 * (engine/kda.c), compressors have unfinished windows (engine/compress.c), both in f32 whatever the cache's
 * type. Behind them lie the last rows of layers with windows: a ring of whole tiles, where the row at place t
 * has place t % (rows of the ring). All this is a *slot*. Several holders may share one, which is not changed
 * then. Slot 0 is the beginning of every text, all zeros. */
#ifndef CACHE_H
#define CACHE_H

#include "engine/util.h"
#include "model.h"

/* Cached rows that are made ready for decompression at once. */
enum { SPAN_ROWS = 32 * TILE_ROWS };
/* A context is split into parts, which threads attend to side by side: up to 16, in a long context as many as
 * have PART_PAGES pages each, up to 64. A model of sixteen heads has nothing else to share among its threads,
 * but each part costs r * 16 sums that are written and merged. The number of parts depends on the context's
 * length alone, so that results do not depend on the number of threads. */
enum { USUAL_PARTS = 16, MAX_PARTS = 64, PART_PAGES = 8 };
/* Slots for each sequence: of its marks, of its rows, of those before its last call, and the one that a call
 * writes. */
enum { SEQUENCE_SLOTS = MARKS + 3 };

/* Where what a layer keeps lies: found once, when the cache is opened. */
typedef struct {
    size_t hca, index; /* bytes in a page: compressed rows of an HCA layer, index keys */
    size_t constant;   /* floats in a slot: its constant part */
    size_t ring;       /* bytes in a slot */
    size_t replay;     /* floats in what is kept of a row of a small call */
} LayerPlace;

typedef struct Cache {
    const Model *model;
    CacheType type;
    TileShape shape;       /* of latent rows: {type, r, p}, of windows: {type, d, 0}; none with groups */
    TileShape index_shape; /* of the index keys: {type, di, 0} */
    size_t groups;         /* of heads with a key and a value each; 0: rows are latents */
    TileShape keys;        /* {type, n + p, 0} */
    TileShape values;      /* {type, v, 0} */
    size_t layers;         /* that have tiles */
    LayerPlace *places;    /* [num_hidden_layers] */
    size_t tile_bytes;     /* 128 rows of one layer, without index keys */
    size_t page_rows;      /* tokens of a page */
    size_t page_tiles;     /* tiles of a layer in a page */
    size_t index_tiles;    /* the same of its index keys */
    size_t hca_rows;       /* compressed rows of an HCA layer in a page */
    size_t hca_at;         /* where in a page rows of HCA layers begin, and index keys */
    size_t index_at;
    size_t page_bytes;
    uint8_t *pool; /* [page_count][page_bytes] */
    size_t page_count;
    uint32_t *references; /* [page_count] sequences that hold the page; 0: it is free */
    uint32_t *free_pages; /* [free_count] the last is used next */
    size_t free_count;
    float *slots;       /* [slot_count][slot_floats]; NULL: the model has no constant part */
    size_t slot_floats; /* 0: the same; rings count as floats, too */
    size_t slot_count;
    uint32_t *slot_references; /* [slot_count] as of pages */
    uint32_t *free_slots;      /* [free_slot_count] */
    size_t free_slot_count;
    size_t replay_floats; /* replay_floats() of all layers */
    float *replay_buffer; /* max(kda_scratch_floats(), compress_scratch_floats()) */
    uint8_t *zeros;       /* [page_bytes] what was never written */
} Cache;

/* Does the layer have whole tiles of its own in pages? */
bool layer_has_tiles(const Config *cfg, uint32_t layer);
/* Of the first `layers` layers, how many are of the kind. */
uint32_t count_layers(const Config *cfg, uint32_t layers, LayerKind kind);
/* Of the first `layers` layers, how many have an indexer. */
uint32_t indexer_layers(const Config *cfg, uint32_t layers);
/* Of the first `layers` layers, how many have an attention that is not linear. */
uint32_t attention_layers(const Config *cfg, uint32_t layers);

/* Floats of a sequence's constant part in the first `layers` layers, without rings: 0 in most models. */
size_t constant_floats(const Config *cfg, uint32_t layers);
/* Bytes of all of it. */
size_t constant_bytes(const Config *cfg, CacheType type, uint32_t layers);
/* Floats of what is kept of a row of a small call, from which the constant part follows, in the first
 * `layers` layers. */
size_t replay_floats(const Config *cfg, uint32_t layers);
/* Tiles and bytes of a layer's ring. */
static inline size_t ring_tiles(const Config *cfg) { return div_up(cfg->sliding_window, TILE_ROWS); }
size_t ring_bytes(const Config *cfg, CacheType type);

/* Can the model's rows be kept in this way? CACHE_FULL.. is for models with a latent. */
bool cache_fits(const Config *cfg, CacheType type);

/* Groups of heads that keep a key and a value each: G of a model without latent, H with CACHE_FULL..; 0: what
 * is kept is the latent. */
uint32_t cache_groups(const Config *cfg, CacheType type);

/* How the latent rows [ c | k_pe ] are kept, or the rows of windows, and keys and values of a group. */
TileShape cache_shape(const Config *cfg, CacheType type);
TileShape cache_key_shape(const Config *cfg, CacheType type);
TileShape cache_value_shape(const Config *cfg, CacheType type);
TileShape cache_index_shape(const Config *cfg, CacheType type);

/* Bytes of one row in one layer, without index keys. */
size_t cache_row_bytes(const Config *cfg, CacheType type);
/* Rows of an HCA layer lie in sub-tiles (kernels/kernels.h). */
enum { HCA_ROWS = 16, MAX_PAGE_ROWS = 1 << 16 }; /* engine/config.c refuses larger pages */

/* Tokens of a page. In models with windows the fewest whose compressed rows fill whole tiles of 128 rows in
 * CSA layers, and whole sub-tiles of 16 rows in HCA layers; with pools those whose keys fill a tile. */
size_t cache_page_rows(const Config *cfg);
/* Bytes of a page in the model's first `layers` layers, with index keys; and of one token on the average. */
size_t cache_page_bytes(const Config *cfg, CacheType type, uint32_t layers);
size_t cache_token_bytes(const Config *cfg, CacheType type, uint32_t layers);
/* Pages that hold `rows` tokens. */
static inline size_t cache_pages(const Config *cfg, size_t rows) {
    return div_up(rows, cache_page_rows(cfg));
}
/* Tiles that hold `rows` rows of a layer. */
static inline size_t cache_tiles(size_t rows) { return div_up(rows, TILE_ROWS); }

/* A context of `rows` rows is split into so many parts of whole tiles, as even as possible. */
static inline size_t part_count(size_t rows) {
    size_t tiles = cache_tiles(rows);
    return min(tiles, max(USUAL_PARTS, min(tiles / PART_PAGES, MAX_PARTS)));
}

/* All pages and slots are free. The arrays are in place. */
void cache_open(Cache *cache, const Model *m, CacheType type, size_t page_count, size_t slot_count);

/* A free page, which now has one reference; UINT32_MAX: there is none. */
uint32_t cache_take_page(Cache *cache);
/* Gives up one reference. */
void cache_release_page(Cache *cache, uint32_t page);

/* What tokens from, from + 1, ... of a page write, in all layers, becomes what it was before: zeros. */
void cache_clear_rows(const Cache *cache, uint8_t *page, size_t from);

/* The same for slots. There are always enough; nothing is done where the model has no constant part. */
uint32_t cache_take_slot(Cache *cache);
void cache_hold_slot(Cache *cache, uint32_t slot); /* one reference more */
void cache_release_slot(Cache *cache, uint32_t slot);
static inline float *cache_slot(const Cache *cache, uint32_t slot) {
    return cache->slots + slot * cache->slot_floats;
}

/* A layer's part of a slot, and its ring. */
static inline float *cache_slot_layer(const Cache *cache, uint32_t slot, size_t layer) {
    return cache_slot(cache, slot) + cache->places[layer].constant;
}
static inline uint8_t *cache_ring(const Cache *cache, uint32_t slot, size_t layer) {
    return (uint8_t *)cache_slot(cache, slot) + cache->places[layer].ring;
}

/* Page j of a sequence, in all layers. */
static inline uint8_t *cache_page(const Sequence *q, size_t j) {
    return q->cache->pool + q->page[j] * q->cache->page_bytes;
}
/* Rows 128 j .. 128 j + 127 of one layer, number Layer.tile. */
static inline uint8_t *cache_tile(const Sequence *q, size_t j, size_t tile) {
    size_t tiles = q->cache->page_tiles;
    return cache_page(q, j / tiles) + (tile * tiles + j % tiles) * q->cache->tile_bytes;
}
/* The same of its index keys. */
static inline uint8_t *cache_index_tile(const Sequence *q, size_t j, size_t layer) {
    const Cache *cache = q->cache;
    size_t tiles = cache->index_tiles;
    return cache_page(q, j / tiles) + cache->places[layer].index +
           j % tiles * tile_bytes(&cache->index_shape);
}
/* Where the compressed rows of an HCA layer begin in page j. */
static inline uint8_t *cache_hca_rows(const Sequence *q, size_t j, size_t layer) {
    return cache_page(q, j) + q->cache->places[layer].hca;
}

#endif
