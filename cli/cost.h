/* cli/cost.h: what a call of forward reads, for --info and --bench. */
#ifndef COST_H
#define COST_H

#include "model.h"

/* Bytes of weights that a forward call of n rows reads, each matrix once: what the speed of memory is divided
 * by. Rows choose different experts as far as there are any. */
uint64_t weight_bytes(const Model *m, size_t n);

#endif
