/* engine/logprob.h: logits -> logarithms of probabilities. The same logits give the same numbers on every
 * machine. */
#ifndef LOGPROB_H
#define LOGPROB_H

#include "kernels/kernels.h"

/* log of the sum of exp(logit), for finite logits [vocab]: the probability of token `id` has the logarithm
 * logits[id] - log_sum_exp(). */
double log_sum_exp(const Kernels *ops, const float *logits, size_t vocab);

/* The logarithm of the probability of token `id` (0 .. vocab-1), in nats; at most 0. */
static inline double log_probability(const Kernels *ops, const float *logits, size_t vocab, int32_t id) {
    return (double)logits[id] - log_sum_exp(ops, logits, vocab);
}

/* ids[0 .. min(n, vocab)) = the tokens with the largest logits, the largest first; of equal ones the lower
 * id. Returns how many. Meant for small n: it takes time proportional to vocab times n. */
size_t likeliest(const float *logits, size_t vocab, int32_t *ids, size_t n);

#endif
