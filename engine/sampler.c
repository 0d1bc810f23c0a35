/* engine/sampler.c: logits -> the next token (sampler.h). Repeat penalty, temperature, top-k, top-p and
 * min-p, in this order; of equal logits the lower id comes first. It knows no text.
 *
 * Every step is a comparison, one rounded float operation, or a sum in one fixed order, and exp is the one
 * of the kernels: no result depends on the machine. */
#include "engine/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/util.h"

typedef struct {
    float logit;
    int32_t id;
} Candidate;

struct Sampler {
    const Kernels *ops;
    SamplerOptions options;
    size_t vocab;                 /* V */
    uint64_t random;              /* state of the generator */
    int32_t seen[PENALTY_WINDOW]; /* a ring: the last tokens that were read or written */
    size_t seen_count;            /* tokens that were ever put into it */
    float *logit;                 /* [V] with the penalty, then divided by the temperature */
    float *p;                     /* [V] probabilities */
    Candidate *candidates;        /* [V] a heap, and behind it what was taken from it: rank() */
    size_t heap;                  /* candidates that are still in the heap */
};

Sampler *sampler_open(const Kernels *ops, size_t vocab, const SamplerOptions *options) {
    Sampler *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (Sampler){.ops = ops, .options = *options, .vocab = vocab, .random = options->seed};
    s->logit = malloc(vocab * sizeof *s->logit);
    s->p = malloc(vocab * sizeof *s->p);
    s->candidates = malloc(vocab * sizeof *s->candidates);
    if (s->logit && s->p && s->candidates)
        return s;
    sampler_close(s);
    return NULL;
}

void sampler_close(Sampler *s) {
    if (!s)
        return;
    free(s->logit);
    free(s->p);
    free(s->candidates);
    free(s);
}

void sampler_saw(Sampler *s, int32_t token) { s->seen[s->seen_count++ % PENALTY_WINDOW] = token; }

void sampler_forget(Sampler *s) { s->seen_count = 0; }

uint64_t sampler_random(const Sampler *s) { return s->random; }

void sampler_resume(Sampler *s, uint64_t random) { s->random = random; }

/* splitmix64 (Steele, Lea and Flood 2014; Vigna's constants): the upper 53 bits as a number in [0, 1). */
static double random_unit(Sampler *s) {
    uint64_t z = s->random += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* CTRL's penalty (Keskar et al. 2019): a token that occurred becomes less likely, whatever the sign of its
 * logit. It is applied once to each such token, however often it occurred. */
static void penalize(Sampler *s) {
    size_t count = min(s->seen_count, PENALTY_WINDOW);
    for (size_t i = 0; i < count; i++) {
        bool again = false;
        for (size_t j = 0; j < i && !again; j++)
            again = s->seen[j] == s->seen[i];
        float *x = &s->logit[s->seen[i]];
        if (!again)
            *x = *x > 0 ? *x / s->options.repeat_penalty : *x * s->options.repeat_penalty;
    }
}

/* The id of the largest logit, the first of equal ones. A logit that the penalty made infinite becomes
 * -infinity: its token cannot be chosen. -1 if none is left. */
static int32_t argmax(Sampler *s) {
    int32_t best = -1;
    for (size_t i = 0; i < s->vocab; i++) {
        if (!isfinite(s->logit[i]))
            s->logit[i] = -INFINITY;
        else if (best < 0 || s->logit[i] > s->logit[best])
            best = (int32_t)i;
    }
    return best;
}

/* ---- candidates in descending order --------------------------------------------------------- */
/* Only as many as are asked for are sorted: a vocabulary is long, and few tokens have most of the
 * probability. */

/* Whether a is likelier than b. */
static bool before(const Candidate *a, const Candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void sift_down(Candidate *heap, size_t n, size_t i) {
    Candidate c = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &c))
            break;
        heap[i] = heap[child];
    }
    heap[i] = c;
}

/* Makes a heap of all tokens; nothing is sorted yet. */
static void rank_all(Sampler *s) {
    s->heap = s->vocab;
    for (size_t i = 0; i < s->vocab; i++)
        s->candidates[i] = (Candidate){s->logit[i], (int32_t)i};
    for (size_t i = s->vocab / 2; i-- > 0;)
        sift_down(s->candidates, s->heap, i);
}

/* The id of the i-th likeliest token, from 0. What is taken from the heap is kept behind it, the likeliest
 * last, so that asking again costs nothing. */
static int32_t rank(Sampler *s, size_t i) {
    while (s->vocab - s->heap <= i) {
        Candidate first = s->candidates[0];
        s->candidates[0] = s->candidates[--s->heap];
        s->candidates[s->heap] = first;
        sift_down(s->candidates, s->heap, 0);
    }
    return s->candidates[s->vocab - 1 - i].id;
}

/* ---- the choice ----------------------------------------------------------------------------- */

/* s->p = probabilities of the k likeliest tokens, zero for the others. */
static void probabilities(Sampler *s, size_t k) {
    if (k == s->vocab) {
        memcpy(s->p, s->logit, s->vocab * sizeof *s->p);
    } else {
        for (size_t i = 0; i < s->vocab; i++)
            s->p[i] = -INFINITY;
        for (size_t i = 0; i < k; i++)
            s->p[rank(s, i)] = s->logit[rank(s, i)];
    }
    s->ops->softmax(s->p, s->vocab);
}

/* How many of the k likeliest tokens remain: the fewest that together have the probability top_p, and of
 * them those with at least min_p times the probability of the likeliest. At least one. *mass is their
 * probability together. */
static size_t nucleus(Sampler *s, size_t k, double *mass) {
    float least = s->options.min_p * s->p[rank(s, 0)];
    size_t n = 0;
    *mass = 0;
    while (n < k && (n == 0 || (*mass < (double)s->options.top_p && s->p[rank(s, n)] >= least)))
        *mass += (double)s->p[rank(s, n++)];
    return n;
}

int32_t sampler_next(Sampler *s, const float *logits) {
    const SamplerOptions *o = &s->options;
    for (size_t i = 0; i < s->vocab; i++)
        if (!isfinite(logits[i]))
            return -1;
    memcpy(s->logit, logits, s->vocab * sizeof *s->logit);
    penalize(s);
    int32_t best = argmax(s);
    if (o->temperature == 0 || best < 0)
        return best;

    /* The largest is subtracted before the division: a tiny temperature then gives -infinity, never
     * infinity. */
    float largest = s->logit[best];
    for (size_t i = 0; i < s->vocab; i++)
        s->logit[i] = (s->logit[i] - largest) / o->temperature;
    rank_all(s);
    size_t k = o->top_k ? min(o->top_k, s->vocab) : s->vocab;
    probabilities(s, k);

    size_t n = k;
    double mass = 0;
    if (o->top_p < 1 || o->min_p > 0) {
        n = nucleus(s, k, &mass);
    } else { /* all k remain: their order does not matter for the sum, and sorting them would be slow */
        for (size_t i = 0; i < s->vocab; i++)
            mass += (double)s->p[i];
    }
    double target = random_unit(s) * mass, sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)s->p[rank(s, i)];
        if (sum > target)
            return rank(s, i);
    }
    return best; /* only if rounding left the sum below the target */
}
