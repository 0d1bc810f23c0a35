/* cli/cost.h: what a call of forward reads, for --info and --bench. */
#ifndef COST_H
#define COST_H

#include "model.h"

/* Bytes of weights that every forward call reads, each matrix once, and of one expert in one layer: what
 * limits the speed of decoding. */
typedef struct {
    uint64_t always, expert;
} WeightBytes;

WeightBytes weight_bytes(const Model *m);

/* Layers that have experts. */
size_t expert_layers(const Config *cfg);

#endif
