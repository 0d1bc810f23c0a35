/* engine/cost.h: what a call of forward reads and multiplies, for --info, --bench and the team of threads. */
#ifndef COST_H
#define COST_H

#include "model.h"

/* Bytes of weights that every forward call reads, each matrix once, and of one expert in one layer: what
 * limits the speed of decoding. And how many numbers there are in their matrices: the multiply-adds of a row,
 * without attention to cached rows. */
typedef struct {
    uint64_t always, expert;
    uint64_t always_products, expert_products;
} WeightBytes;

WeightBytes weight_bytes(const Model *m);

/* What one row reads of the cache, or multiplies, where `rows` rows are cached: bytes, the constant part read
 * and written, and multiply-adds of attention, absorbed where it has a latent. all: as a prompt does,
 * whatever an indexer chooses. */
double cache_read_bytes(const Model *m, CacheType type, size_t rows, bool all);
double attention_products(const Model *m, size_t rows);

/* Multiply-adds of attention to one further cached row, as a part of all others of a row. */
double attention_work(const Model *m);

/* Layers that have experts. */
size_t expert_layers(const Config *cfg);

#endif
