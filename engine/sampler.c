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

struct Sampler {
    const Kernels *ops;
    SamplerOptions options;
    size_t vocab;                 /* V */
    uint64_t random;              /* state of the generator */
    int32_t seen[PENALTY_WINDOW]; /* a ring: the last tokens that were read or written */
    size_t seen_count;            /* tokens that were ever put into it */
};

/* A token and how far it is below the likeliest: the bits of a float as an integer, which is in the order of
 * the floats, because they are not negative. */
typedef struct {
    uint32_t below;
    int32_t id;
} Token;

/* Tokens that are about as likely as each other: those with x in (-(b + 1) / 32, -b / 32] for bucket b, and
 * all at and below -16 for the last one. Their order is by id, or descending. */
enum { BUCKETS = 513, REST = BUCKETS - 1, BUCKETS_AT_ONCE = 256 };
static const float STEPS = 32;

typedef struct {
    Token *tokens;
    size_t count;
    bool sorted;
    double mass;  /* their probability together; below 0: not known yet */
    float lowest; /* of these probabilities */
} Bucket;

/* One choice; what it points to is scratch. */
typedef struct {
    size_t vocab;
    float *x;      /* [V] logits with the penalty; then minus the largest, divided by the temperature */
    float *p;      /* [V] probabilities */
    Token *tokens; /* [V] */
    Token *spare;  /* [V] for sorting */
    Bucket bucket[BUCKETS];
    size_t filled;      /* buckets that have their tokens ... */
    size_t token_count; /* ... so many */
} Choice;

size_t sampler_scratch_bytes(size_t vocab) { return vocab * 2 * (sizeof(float) + sizeof(Token)); }

Sampler *sampler_open(const Kernels *ops, size_t vocab, const SamplerOptions *options) {
    Sampler *s = malloc(sizeof *s);
    if (s)
        *s = (Sampler){.ops = ops, .options = *options, .vocab = vocab, .random = options->seed};
    return s;
}

void sampler_close(Sampler *s) { free(s); }

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
 * logit. It is applied once to each such token, however often it occurred. A logit that becomes infinite
 * counts as -infinity: its token cannot be chosen. */
static void penalize(const Sampler *s, float *logit) {
    size_t count = min(s->seen_count, PENALTY_WINDOW);
    for (size_t i = 0; i < count; i++) {
        bool again = false;
        for (size_t j = 0; j < i && !again; j++)
            again = s->seen[j] == s->seen[i];
        float *x = &logit[s->seen[i]];
        if (!again)
            *x = *x > 0 ? *x / s->options.repeat_penalty : *x * s->options.repeat_penalty;
        if (!isfinite(*x))
            *x = -INFINITY;
    }
}

/* The id of the largest of n numbers, the first of equal ones; -1 if all are -infinity. */
static int32_t argmax(const float *x, size_t n) {
    enum { LANES_OF_MAX = 16 }; /* maxima side by side, which the compiler makes vectors of */
    float max[LANES_OF_MAX], largest = -INFINITY;
    for (size_t k = 0; k < LANES_OF_MAX; k++)
        max[k] = -INFINITY;
    size_t i = 0;
    for (; i + LANES_OF_MAX <= n; i += LANES_OF_MAX)
        for (size_t k = 0; k < LANES_OF_MAX; k++)
            max[k] = x[i + k] > max[k] ? x[i + k] : max[k];
    for (; i < n; i++)
        max[0] = x[i] > max[0] ? x[i] : max[0];
    for (size_t k = 0; k < LANES_OF_MAX; k++)
        largest = max[k] > largest ? max[k] : largest;
    if (largest == -INFINITY)
        return -1;
    for (i = 0; x[i] != largest;)
        i++;
    return (int32_t)i;
}

static bool none_is_non_finite(const float *x, size_t n) {
    uint32_t non_finite = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        non_finite |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !non_finite;
}

/* ---- tokens in descending order ------------------------------------------------------------- */
/* A vocabulary is long, and few tokens have most of the probability. So tokens are put into buckets first,
 * the likeliest before the others, and a bucket is sorted only if a border goes through it. Everything takes
 * linear time: there are no logits for which it is slow. */

static uint32_t magnitude(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffff;
}

static size_t bucket_of(float x) {
    float steps = x * -STEPS;
    return (size_t)(int)(steps < REST ? steps : REST);
}

/* Whether any of sixteen numbers is in least .. most. */
static bool any_of_sixteen(const float *x, float least, float most) {
    int any = 0;
    for (int i = 0; i < 16; i++)
        any |= (x[i] <= most) & (x[i] >= least);
    return any;
}

/* list = the tokens of the buckets from .. to - 1. Returns how many. Nothing here is decided by a branch that
 * the processor could guess wrong, except for sixteen tokens at a time: most have no likely one. */
static size_t list_tokens(const Choice *c, size_t from, size_t to, Token *list) {
    float most = -((float)from / STEPS), least = to < BUCKETS ? -((float)to / STEPS) : -INFINITY;
    size_t n = 0;
    for (size_t begin = 0; begin < c->vocab; begin += 16) {
        size_t end = min(begin + 16, c->vocab);
        if (end == begin + 16 && !any_of_sixteen(c->x + begin, least, most))
            continue;
        for (size_t i = begin; i < end; i++) {
            list[n] = (Token){magnitude(c->x[i]), (int32_t)i};
            n += bucket_of(c->x[i]) - from < to - from;
        }
    }
    return n;
}

/* Fills some more buckets. */
static void fill_buckets(Choice *c) {
    size_t from = c->filled, to = min(from + BUCKETS_AT_ONCE, BUCKETS);
    Token *list = c->spare;
    size_t n = list_tokens(c, from, to, list);
    for (size_t b = from; b < to; b++)
        c->bucket[b] = (Bucket){.mass = -1};
    for (size_t i = 0; i < n; i++)
        c->bucket[bucket_of(c->x[list[i].id])].count++;
    for (size_t b = from; b < to; b++) {
        c->bucket[b].tokens = c->tokens + c->token_count;
        c->token_count += c->bucket[b].count;
        c->bucket[b].count = 0;
    }
    for (size_t i = 0; i < n; i++) {
        Bucket *bucket = &c->bucket[bucket_of(c->x[list[i].id])];
        bucket->tokens[bucket->count++] = list[i];
    }
    c->filled = to;
}

static Bucket *bucket_at(Choice *c, size_t b) {
    while (c->filled <= b)
        fill_buckets(c);
    return &c->bucket[b];
}

/* Its tokens in descending order, the lower id first of equals: radix sort, the lowest byte first. */
static void sort(Bucket *bucket, Token *spare) {
    uint32_t at[sizeof(uint32_t)][256] = {0};
    Token *from = bucket->tokens, *to = spare, *other;
    size_t n = bucket->count;
    if (bucket->sorted || n < 2)
        return;
    bucket->sorted = true;
    for (size_t i = 0; i < n; i++)
        for (size_t byte = 0; byte < sizeof(uint32_t); byte++)
            at[byte][from[i].below >> 8 * byte & 255]++;
    for (size_t byte = 0; byte < sizeof(uint32_t); byte++) { /* four times: the result ends in `tokens` */
        uint32_t next = 0;
        for (size_t value = 0; value < 256; value++) {
            uint32_t here = at[byte][value];
            at[byte][value] = next;
            next += here;
        }
        for (size_t i = 0; i < n; i++)
            to[at[byte][from[i].below >> 8 * byte & 255]++] = from[i];
        other = from;
        from = to;
        to = other;
    }
}

/* ---- the choice ----------------------------------------------------------------------------- */

/* p = probabilities of the k likeliest tokens, zero for the others. */
static void probabilities(const Kernels *ops, Choice *c, size_t k) {
    for (size_t i = 0; i < c->vocab; i++)
        c->p[i] = k == c->vocab ? c->x[i] : -INFINITY;
    for (size_t b = 0, n = 0; n < k && k < c->vocab; b++) {
        Bucket *bucket = bucket_at(c, b);
        if (bucket->count > k - n)
            sort(bucket, c->spare);
        for (size_t i = 0; i < bucket->count && n < k; i++, n++)
            c->p[bucket->tokens[i].id] = c->x[bucket->tokens[i].id];
    }
    ops->softmax(c->p, c->vocab);
}

/* Adds the bucket's probabilities together. Probabilities of at least 2^-29 are multiples of 2^-52, so that
 * sums of them below 2 are exact in a double, in any order. False: some are smaller. */
static bool add_exactly(const Choice *c, Bucket *bucket) {
    if (bucket->mass < 0) {
        bucket->mass = 0;
        bucket->lowest = INFINITY;
        for (size_t i = 0; i < bucket->count; i++) {
            float p = c->p[bucket->tokens[i].id];
            bucket->mass += (double)p;
            bucket->lowest = p < bucket->lowest ? p : bucket->lowest;
        }
    }
    return bucket->lowest >= 0x1p-29f;
}

/* How many tokens it takes, in descending order, until together they have at least the probability `enough`,
 * or the next one has less than `least`, or there are `most`; at least one. *mass is their probability
 * together, added in this order, and *last the last of them, if *mass is enough. */
static size_t take(Choice *c, double enough, float least, size_t most, double *mass, int32_t *last) {
    size_t n = 0;
    bool exact = true; /* so far */
    *mass = 0;
    for (size_t b = 0; n < most && (n == 0 || *mass < enough); b++) {
        Bucket *bucket = bucket_at(c, b);
        exact = exact && add_exactly(c, bucket);
        if (exact && *mass + bucket->mass < enough && bucket->lowest >= least && bucket->count <= most - n) {
            *mass += bucket->mass; /* all of them, whatever their order */
            n += bucket->count;
            continue;
        }
        sort(bucket, c->spare);
        for (size_t i = 0; i < bucket->count && n < most; i++, n++) {
            float p = c->p[bucket->tokens[i].id];
            if (n && (*mass >= enough || p < least))
                return n;
            *mass += (double)p;
            *last = bucket->tokens[i].id;
        }
    }
    return n;
}

int32_t sampler_next(Sampler *s, const float *logits, void *scratch) {
    const SamplerOptions *o = &s->options;
    size_t V = s->vocab;
    Token *tokens = scratch;
    float *x = (float *)(tokens + 2 * V);
    Choice c = {.vocab = V, .x = x, .p = x + V, .tokens = tokens, .spare = tokens + V};
    if (!none_is_non_finite(logits, V))
        return -1;
    memcpy(c.x, logits, V * sizeof *c.x);
    penalize(s, c.x);
    int32_t best = argmax(c.x, V), last = best;
    if (o->temperature == 0 || best < 0)
        return best;

    /* The largest is subtracted before the division: a tiny temperature then gives -infinity, never
     * infinity. */
    float largest = c.x[best];
    for (size_t i = 0; i < V; i++)
        c.x[i] = (c.x[i] - largest) / o->temperature;
    size_t n = o->top_k ? min(o->top_k, V) : V;
    probabilities(s->ops, &c, n);

    /* The fewest tokens with the probability top_p remain, and of them those with at least min_p times the
     * probability of the likeliest. */
    double mass = 0, sum;
    if (o->top_p < 1 || o->min_p > 0) {
        n = take(&c, (double)o->top_p, o->min_p * c.p[best], n, &mass, &last);
    } else { /* all n remain: their order does not matter for the sum */
        for (size_t i = 0; i < V; i++)
            mass += (double)c.p[i];
    }
    double target = random_unit(s) * mass;
    take(&c, nextafter(target, INFINITY), 0, n, &sum, &last); /* until the sum is larger than the target */
    return sum > target ? last : best; /* best only if rounding left the sum below the target */
}
