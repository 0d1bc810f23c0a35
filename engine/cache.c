/* engine/cache.c: the sizes of cached rows, and the pools of pages and slots (cache.h). */
#include "engine/cache.h"

#include <string.h>

#include "engine/compress.h"
#include "engine/kda.h"

/* ---- sizes ---------------------------------------------------------------------------------- */

uint32_t count_layers(const Config *cfg, uint32_t layers, LayerKind kind) {
    uint32_t count = 0;
    for (uint32_t l = 0; l < layers; l++)
        count += layer_kind(cfg, l) == kind;
    return count;
}

uint32_t attention_layers(const Config *cfg, uint32_t layers) {
    return layers - count_layers(cfg, layers, LAYER_KDA);
}

static bool kind_has_tiles(LayerKind kind) {
    return kind == LAYER_LATENT || kind == LAYER_ORDINARY || kind == LAYER_CSA;
}

static bool kind_has_ring(LayerKind kind) { return kind >= LAYER_SLIDING; }

/* Does it have a part of its own in pages, whatever that is? */
static bool owns_rows(const Config *cfg, uint32_t layer) {
    return compressed_rows_owner(cfg, layer) == layer;
}

bool layer_has_tiles(const Config *cfg, uint32_t layer) {
    return owns_rows(cfg, layer) && kind_has_tiles(layer_kind(cfg, layer));
}

static bool layer_has_hca_rows(const Config *cfg, uint32_t layer) {
    return owns_rows(cfg, layer) && layer_kind(cfg, layer) == LAYER_HCA;
}

static bool layer_has_keys(const Config *cfg, uint32_t layer) {
    return owns_rows(cfg, layer) && layer_has_indexer(cfg, layer);
}

static size_t layers_with(bool (*has)(const Config *, uint32_t), const Config *cfg, uint32_t layers) {
    size_t count = 0;
    for (uint32_t l = 0; l < layers; l++)
        count += has(cfg, l);
    return count;
}

/* Of one layer. */
static size_t layer_constant_floats(const Config *cfg, LayerKind kind) {
    return kind == LAYER_KDA ? kda_layer_floats(cfg) : compress_layer_floats(cfg, kind);
}

static size_t layer_replay_floats(const Config *cfg, LayerKind kind) {
    return kind == LAYER_KDA ? kda_replay_floats(cfg) : compress_input_floats(cfg, kind);
}

size_t constant_floats(const Config *cfg, uint32_t layers) {
    size_t floats = 0;
    for (uint32_t l = 0; l < layers; l++)
        floats += layer_constant_floats(cfg, layer_kind(cfg, l));
    return floats;
}

size_t replay_floats(const Config *cfg, uint32_t layers) {
    size_t floats = 0;
    for (uint32_t l = 0; l < layers; l++)
        floats += layer_replay_floats(cfg, layer_kind(cfg, l));
    return floats;
}

size_t ring_bytes(const Config *cfg, CacheType type) {
    TileShape shape = cache_shape(cfg, type);
    return ring_tiles(cfg) * tile_bytes(&shape);
}

/* Where rings begin in a slot: whole vectors. */
static size_t rings_at(const Config *cfg, uint32_t layers) {
    return round_up(constant_floats(cfg, layers), 16);
}

size_t constant_bytes(const Config *cfg, CacheType type, uint32_t layers) {
    size_t rings = 0;
    for (uint32_t l = 0; l < layers; l++)
        rings += kind_has_ring(layer_kind(cfg, l));
    if (!rings)
        return constant_floats(cfg, layers) * sizeof(float);
    return rings_at(cfg, layers) * sizeof(float) + rings * ring_bytes(cfg, type);
}

static uint32_t tile_type(CacheType type) {
    static const uint32_t tile_types[] = {
        [CACHE_F32] = TILE_F32,        [CACHE_BF16] = TILE_BF16,  [CACHE_Q8] = TILE_Q8,
        [CACHE_Q6] = TILE_Q6,          [CACHE_Q4] = TILE_Q4,      [CACHE_FULL] = TILE_F32,
        [CACHE_FULL_BF16] = TILE_BF16, [CACHE_FULL_Q8] = TILE_Q8,
    };
    return tile_types[type];
}

bool cache_fits(const Config *cfg, CacheType type) { return cfg->kv_lora_rank || type < CACHE_FULL; }

uint32_t cache_groups(const Config *cfg, CacheType type) {
    return type >= CACHE_FULL ? cfg->num_attention_heads : cfg->num_key_value_heads;
}

TileShape cache_shape(const Config *cfg, CacheType type) {
    if (cfg->sliding_window)
        return cache_key_shape(cfg, type);
    return (TileShape){tile_type(type), cfg->kv_lora_rank, cfg->qk_rope_head_dim};
}

TileShape cache_key_shape(const Config *cfg, CacheType type) {
    return (TileShape){tile_type(type), cfg->qk_nope_head_dim + cfg->qk_rope_head_dim, 0};
}

TileShape cache_value_shape(const Config *cfg, CacheType type) {
    return (TileShape){tile_type(type), cfg->v_head_dim, 0};
}

TileShape cache_index_shape(const Config *cfg, CacheType type) {
    bool exact = tile_type(type) == TILE_F32;
    return (TileShape){exact ? TILE_F32 : type == CACHE_BF16 ? TILE_BF16 : TILE_Q8, cfg->index_head_dim, 0};
}

size_t cache_row_bytes(const Config *cfg, CacheType type) {
    TileShape shape = cache_shape(cfg, type), keys = cache_key_shape(cfg, type),
              values = cache_value_shape(cfg, type);
    uint32_t groups = cache_groups(cfg, type);
    size_t bytes = groups ? groups * (tile_bytes(&keys) + tile_bytes(&values)) : tile_bytes(&shape);
    return bytes / TILE_ROWS;
}

static size_t common_multiple(size_t a, size_t b) {
    size_t x = a, y = b;
    while (y) {
        size_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

size_t cache_page_rows(const Config *cfg) {
    if (!cfg->sliding_window)
        return TILE_ROWS * max(cfg->index_kpool, 1);
    return common_multiple(max(cfg->csa_ratio * TILE_ROWS, 1), max(cfg->hca_ratio * HCA_ROWS, 1));
}

static size_t page_tiles(const Config *cfg) {
    return cfg->csa_ratio ? cache_page_rows(cfg) / cfg->csa_ratio / TILE_ROWS : max(cfg->index_kpool, 1);
}

/* Of index keys: one tile for all pools of a page. */
static size_t index_tiles(const Config *cfg) { return cfg->index_kpool ? 1 : page_tiles(cfg); }

static size_t page_hca_rows(const Config *cfg) {
    return cfg->hca_ratio ? cache_page_rows(cfg) / cfg->hca_ratio : 0;
}

/* Bytes of a page in front of HCA layers, and in front of index keys. */
static size_t hca_at(const Config *cfg, CacheType type, uint32_t layers) {
    return layers_with(layer_has_tiles, cfg, layers) * page_tiles(cfg) * cache_row_bytes(cfg, type) *
           TILE_ROWS;
}

static size_t index_at(const Config *cfg, CacheType type, uint32_t layers) {
    return hca_at(cfg, type, layers) +
           layers_with(layer_has_hca_rows, cfg, layers) * page_hca_rows(cfg) * cache_row_bytes(cfg, type);
}

uint32_t indexer_layers(const Config *cfg, uint32_t layers) {
    uint32_t count = 0;
    for (uint32_t l = 0; l < layers; l++)
        count += layer_has_indexer(cfg, l);
    return count;
}

size_t cache_page_bytes(const Config *cfg, CacheType type, uint32_t layers) {
    TileShape keys = cache_index_shape(cfg, type);
    return index_at(cfg, type, layers) +
           layers_with(layer_has_keys, cfg, layers) * index_tiles(cfg) * tile_bytes(&keys);
}

size_t cache_token_bytes(const Config *cfg, CacheType type, uint32_t layers) {
    return cache_page_bytes(cfg, type, layers) / cache_page_rows(cfg);
}

/* ---- pages and slots ------------------------------------------------------------------------ */

/* The layers' parts follow one another, in a page as in a slot. */
static void find_places(Cache *cache, const Config *cfg) {
    LayerPlace next = {.hca = cache->hca_at,
                       .index = cache->index_at,
                       .ring = rings_at(cfg, cfg->num_hidden_layers) * sizeof(float)};
    for (uint32_t l = 0; l < cfg->num_hidden_layers; l++) {
        LayerKind kind = layer_kind(cfg, l);
        cache->places[l] = next;
        cache->places[l].hca = cache->places[compressed_rows_owner(cfg, l)].hca;
        cache->places[l].index = cache->places[compressed_rows_owner(cfg, l)].index;
        if (layer_has_hca_rows(cfg, l))
            next.hca += cache->hca_rows * cache->tile_bytes / TILE_ROWS;
        if (layer_has_keys(cfg, l))
            next.index += cache->index_tiles * tile_bytes(&cache->index_shape);
        if (kind_has_ring(kind))
            next.ring += ring_bytes(cfg, cache->type);
        next.constant += layer_constant_floats(cfg, kind);
        next.replay += layer_replay_floats(cfg, kind);
    }
    cache->replay_floats = next.replay;
}

void cache_open(Cache *cache, const Model *m, CacheType type, size_t page_count, size_t slot_count) {
    const Config *cfg = &m->config;
    cache->model = m;
    cache->type = type;
    cache->shape = cache_shape(cfg, type);
    cache->index_shape = cache_index_shape(cfg, type);
    cache->groups = cache_groups(cfg, type);
    cache->keys = cache_key_shape(cfg, type);
    cache->values = cache_value_shape(cfg, type);
    cache->tile_bytes = cache_row_bytes(cfg, type) * TILE_ROWS;
    cache->page_rows = cache_page_rows(cfg);
    cache->page_tiles = page_tiles(cfg);
    cache->index_tiles = index_tiles(cfg);
    cache->hca_rows = page_hca_rows(cfg);
    cache->layers = layers_with(layer_has_tiles, cfg, cfg->num_hidden_layers);
    cache->hca_at = hca_at(cfg, type, cfg->num_hidden_layers);
    cache->index_at = index_at(cfg, type, cfg->num_hidden_layers);
    cache->page_bytes = cache_page_bytes(cfg, type, cfg->num_hidden_layers);
    find_places(cache, cfg);
    cache->page_count = cache->free_count = page_count;
    for (size_t i = 0; i < page_count; i++)
        cache->free_pages[i] = (uint32_t)(page_count - 1 - i); /* page 0 is used first */
    cache->slot_floats = constant_bytes(cfg, type, cfg->num_hidden_layers) / sizeof(float);
    cache->slot_count = slot_count;
    for (size_t i = slot_count; i-- > 1;) /* slot 0 is never free */
        cache->free_slots[cache->free_slot_count++] = (uint32_t)i;
}

/* Rows from, from + 1, ... of `count` tiles side by side become zeros. */
static void clear_tiles(const Cache *cache, const TileShape *shape, uint8_t *at, size_t count, size_t from) {
    for (size_t row = from; row < count * TILE_ROWS; row++)
        cache->model->ops->tile_copy(shape, at + row / TILE_ROWS * tile_bytes(shape), row % TILE_ROWS,
                                     cache->zeros, 0);
}

void cache_clear_rows(const Cache *cache, uint8_t *page, size_t from) {
    const Config *cfg = &cache->model->config;
    size_t tiles = cache->page_tiles, row = from * tiles * TILE_ROWS / cache->page_rows;
    for (size_t i = 0; i < cache->layers; i++) {
        uint8_t *at = page + i * tiles * cache->tile_bytes;
        /* of ordinary attention each group's keys, then its values */
        for (size_t g = 0; g < tiles * cache->groups; g++) {
            size_t first = g / cache->groups * TILE_ROWS, rest = max(row, first) - first;
            clear_tiles(cache, &cache->keys, at, 1, rest);
            clear_tiles(cache, &cache->values, at + tile_bytes(&cache->keys), 1, rest);
            at += cache->tile_bytes / cache->groups;
        }
        if (!cache->groups)
            clear_tiles(cache, &cache->shape, at, tiles, row);
    }
    size_t rows = cache->hca_rows, row_bytes = cache->tile_bytes / TILE_ROWS;
    for (uint8_t *at = page + cache->hca_at; at < page + cache->index_at; at += rows * row_bytes)
        for (size_t j = from / cfg->hca_ratio; j < rows; j++)
            cache->model->ops->tile_copy(&cache->shape, at + (j - j % HCA_ROWS) * row_bytes, j % HCA_ROWS,
                                         cache->zeros, 0);
    tiles = cache->index_tiles;
    row = from * tiles * TILE_ROWS / cache->page_rows;
    for (uint8_t *at = page + cache->index_at; at < page + cache->page_bytes;
         at += tiles * tile_bytes(&cache->index_shape))
        clear_tiles(cache, &cache->index_shape, at, tiles, row);
}

uint32_t cache_take_slot(Cache *cache) {
    if (!cache->slot_floats)
        return 0;
    uint32_t slot = cache->free_slots[--cache->free_slot_count];
    cache->slot_references[slot] = 1;
    return slot;
}

void cache_hold_slot(Cache *cache, uint32_t slot) {
    if (slot)
        cache->slot_references[slot]++;
}

void cache_release_slot(Cache *cache, uint32_t slot) {
    if (slot && --cache->slot_references[slot] == 0)
        cache->free_slots[cache->free_slot_count++] = slot;
}

uint32_t cache_take_page(Cache *cache) {
    if (!cache->free_count)
        return UINT32_MAX;
    uint32_t page = cache->free_pages[--cache->free_count];
    cache->references[page] = 1;
    return page;
}

void cache_release_page(Cache *cache, uint32_t page) {
    if (--cache->references[page] == 0)
        cache->free_pages[cache->free_count++] = page;
}
