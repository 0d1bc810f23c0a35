/* tests/sampler_driver.c: engine/sampler.h beside its definition, which sorts the whole vocabulary.
 *
 *     sampler_driver < cases > choices
 *
 * A case, in the machine's byte order: struct Case, `seen` ids (int32), `vocab` logits (f32). Out: a line
 * with the two choices for each. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

typedef struct {
    double unit; /* the seed's first number in [0, 1) */
    uint64_t seed;
    uint32_t vocab, seen, top_k;
    float temperature, top_p, min_p, repeat_penalty;
} Case;

static void *need(size_t bytes) {
    void *p = malloc(bytes + 1);
    if (!p)
        exit(1);
    return p;
}

static const float *order_by;

static int by_logit_and_id(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (order_by[i] != order_by[j])
        return order_by[i] > order_by[j] ? -1 : 1;
    return i < j ? -1 : i > j;
}

/* The tokens that remain: the `k` likeliest, of them the fewest with top_p together, of them those with
 * min_p times the largest probability. Sums are formed in descending order. */
static size_t remaining(const Case *c, const int32_t *ids, const float *p, size_t k, double *mass) {
    size_t n = 0;
    *mass = 0;
    if (c->top_p == 1 && c->min_p == 0) {
        for (size_t i = 0; i < c->vocab; i++) /* as the ids lie: no order is asked for */
            *mass += (double)p[i];
        return k;
    }
    for (; n < k; n++) {
        if (n && (*mass >= (double)c->top_p || p[ids[n]] < c->min_p * p[ids[0]]))
            break;
        *mass += (double)p[ids[n]];
    }
    return n;
}

static int32_t definition(const Kernels *ops, const Case *c, const int32_t *seen, const float *logits) {
    float *x = need(c->vocab * sizeof *x), *p = need(c->vocab * sizeof *p);
    int32_t *ids = need(c->vocab * sizeof *ids);
    for (size_t i = 0; i < c->vocab; i++) {
        ids[i] = (int32_t)i;
        x[i] = logits[i];
        for (size_t j = 0; j < c->seen; j++) {
            if (seen[j] != (int32_t)i)
                continue;
            x[i] = x[i] > 0 ? x[i] / c->repeat_penalty : x[i] * c->repeat_penalty;
            break;
        }
        x[i] = isfinite(x[i]) ? x[i] : -INFINITY;
    }
    order_by = x;
    qsort(ids, c->vocab, sizeof *ids, by_logit_and_id);
    int32_t best = ids[0], chosen = best;
    float largest = x[best];
    if (largest == -INFINITY)
        chosen = -1;
    if (c->temperature > 0 && chosen >= 0) {
        for (size_t i = 0; i < c->vocab; i++)
            x[i] = (x[i] - largest) / c->temperature;
        qsort(ids, c->vocab, sizeof *ids, by_logit_and_id); /* the division may have made equals */
        size_t k = c->top_k && c->top_k < c->vocab ? c->top_k : c->vocab;
        memcpy(p, x, c->vocab * sizeof *p);
        for (size_t i = k; i < c->vocab; i++)
            p[ids[i]] = -INFINITY;
        ops->softmax(p, c->vocab);
        double mass, sum = 0;
        size_t n = remaining(c, ids, p, k, &mass);
        for (size_t i = 0; i < n; i++) {
            sum += (double)p[ids[i]];
            if (sum > c->unit * mass) {
                chosen = ids[i];
                break;
            }
        }
    }
    free(x);
    free(p);
    free(ids);
    return chosen;
}

int main(void) {
    const char *why;
    const Kernels *ops = kernels_choose(&why);
    Case c;
    while (ops && fread(&c, sizeof c, 1, stdin) == 1) {
        SamplerOptions o = {c.temperature, c.top_k, c.top_p, c.min_p, c.repeat_penalty, c.seed};
        Sampler *s = sampler_open(ops, c.vocab, &o);
        int32_t *seen = need(c.seen * sizeof *seen);
        float *logits = need(c.vocab * sizeof *logits);
        void *scratch = need(sampler_scratch_bytes(c.vocab));
        if (!s || fread(seen, sizeof *seen, c.seen, stdin) != c.seen ||
            fread(logits, sizeof *logits, c.vocab, stdin) != c.vocab)
            return 1;
        memset(scratch, 0xa5, sampler_scratch_bytes(c.vocab)); /* whatever the text before it left there */
        for (size_t i = 0; i < c.seen; i++)
            sampler_saw(s, seen[i]);
        printf("%d %d\n", sampler_next(s, logits, scratch), definition(ops, &c, seen, logits));
        sampler_close(s);
        free(seen);
        free(logits);
        free(scratch);
    }
    return !ops || fflush(stdout);
}
