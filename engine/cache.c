/* engine/cache.c: the sizes of cached rows, and the pools of pages and slots (cache.h). */
#include "engine/cache.h"

#include <string.h>

#include "engine/kda.h"

uint32_t latent_layers(const Config *cfg, uint32_t layers) {
    uint32_t count = 0;
    for (uint32_t l = 0; l < layers; l++)
        count += !layer_is_kda(cfg, l);
    return count;
}

size_t constant_floats(const Config *cfg, uint32_t layers) {
    size_t count = layers - latent_layers(cfg, layers);
    return count ? count * kda_layer_floats(cfg) : 0;
}

static uint32_t tile_type(CacheType type) {
    static const uint32_t tile_types[] = {
        [CACHE_F32] = TILE_F32,        [CACHE_BF16] = TILE_BF16,  [CACHE_Q8] = TILE_Q8,
        [CACHE_Q6] = TILE_Q6,          [CACHE_Q4] = TILE_Q4,      [CACHE_FULL] = TILE_F32,
        [CACHE_FULL_BF16] = TILE_BF16, [CACHE_FULL_Q8] = TILE_Q8,
    };
    return tile_types[type];
}

bool cache_fits(const Config *cfg, CacheType type) { return !cfg->num_key_value_heads || type < CACHE_FULL; }

uint32_t cache_groups(const Config *cfg, CacheType type) {
    return type >= CACHE_FULL ? cfg->num_attention_heads : cfg->num_key_value_heads;
}

TileShape cache_shape(const Config *cfg, CacheType type) {
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

size_t cache_token_bytes(const Config *cfg, CacheType type, uint32_t layers) {
    TileShape keys = cache_index_shape(cfg, type);
    size_t bytes = latent_layers(cfg, layers) * cache_row_bytes(cfg, type);
    for (uint32_t l = 0; l < layers; l++)
        bytes += layer_has_indexer(cfg, l) ? tile_bytes(&keys) / TILE_ROWS : 0;
    return bytes;
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
    cache->layers = latent_layers(cfg, cfg->num_hidden_layers);
    cache->tile_bytes = cache_row_bytes(cfg, type) * TILE_ROWS;
    cache->page_bytes = cache_token_bytes(cfg, type, cfg->num_hidden_layers) * TILE_ROWS;
    cache->page_count = cache->free_count = page_count;
    for (size_t i = 0; i < page_count; i++)
        cache->free_pages[i] = (uint32_t)(page_count - 1 - i); /* page 0 is used first */
    cache->slot_floats = constant_floats(cfg, cfg->num_hidden_layers);
    cache->slot_count = slot_count;
    for (size_t i = slot_count; i-- > 1;) /* slot 0 is never free */
        cache->free_slots[cache->free_slot_count++] = (uint32_t)i;
}

void cache_clear_rows(const Cache *cache, uint8_t *page, size_t from) {
    uint8_t *at = page, *end = page + cache->page_bytes, *index = page + cache->layers * cache->tile_bytes;
    for (size_t i = 0; at < end; i++) { /* of ordinary attention each group's keys, then its values */
        const TileShape *shape = at >= index      ? &cache->index_shape
                                 : !cache->groups ? &cache->shape
                                 : i % 2          ? &cache->values
                                                  : &cache->keys;
        for (size_t row = from; row < TILE_ROWS; row++)
            cache->model->ops->tile_copy(shape, at, row, cache->zeros, 0);
        at += tile_bytes(shape);
    }
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

float *cache_slot_layer(const Cache *cache, uint32_t slot, size_t number) {
    return cache_slot(cache, slot) + number * kda_layer_floats(&cache->model->config);
}
