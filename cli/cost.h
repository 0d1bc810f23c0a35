/* cli/cost.h: what a call of forward reads, for --info and --bench. */
#ifndef COST_H
#define COST_H

#include "model.h"

/* Bytes of weights that a forward call of n rows reads, each matrix once: what limits the speed of
 * decoding. Rows are taken to choose different experts, as far as there are enough. */
uint64_t weight_bytes(const Model *m, size_t n);

#endif
