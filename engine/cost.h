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

/* Multiply-adds of attention to one cached row, as a part of all others of a row. */
double attention_work(const Model *m);

/* Layers that have experts. */
size_t expert_layers(const Config *cfg);

#endif
