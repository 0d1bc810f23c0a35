/* engine/sampler.h: logits -> the next token. The same logits, options and seed give the same token on every
 * machine. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

typedef struct {
    float temperature;    /* 0: the largest logit */
    uint32_t top_k;       /* 0: off */
    float top_p;          /* 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* above 0; 1: off */
    uint64_t seed;
} SamplerOptions;

typedef struct Sampler Sampler;

/* For logits of `vocab` tokens. NULL: out of memory. */
Sampler *sampler_open(const Kernels *ops, size_t vocab, const SamplerOptions *options);
void sampler_close(Sampler *s);

/* The repeat penalty is about so many of the last tokens. */
enum { PENALTY_WINDOW = 64 };

/* `token` (0 .. vocab-1) was read or written. */
void sampler_saw(Sampler *s, int32_t token);

/* Forgets what sampler_saw has said. */
void sampler_forget(Sampler *s);

/* The state of the random generator, which only sampler_next changes; and back to such a state. */
uint64_t sampler_random(const Sampler *s);
void sampler_resume(Sampler *s, uint64_t random);

/* Bytes that sampler_next works in: samplers that are asked one after the other share them. */
size_t sampler_scratch_bytes(size_t vocab);

/* The next token after `logits` [vocab], or -1 if some logit is not a finite number. Does not call
 * sampler_saw. scratch: sampler_scratch_bytes(vocab), aligned to 8. */
int32_t sampler_next(Sampler *s, const float *logits, void *scratch);

#endif
