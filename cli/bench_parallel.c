/* cli/bench_parallel.c: --bench --parallel LIST: how fast N texts are written together. A call computes one
 * row of each text; each has its own context. Beside the speed stands the bound that follows from two
 * measurements: of a loop that reads memory, and of matrix products with as many rows as in the call.
 *
 *     bytes a step           weights that the call read, experts as they were chosen, and every text's cache
 *     multiply-adds a step   of the matrices, and of attention to the cached rows
 *     bound                  texts / max(bytes / speed of memory, multiply-adds / speed of products)
 *
 * Steps are timed one by one and the median is taken. Speeds with one text are in bench.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"
#include "cli/system.h"
#include "engine/cache.h"
#include "engine/cost.h"
#include "engine/sequence.h"
#include "engine/util.h"
#include "kernels/clock.h"
#include "kernels/linear.h"

enum { STEPS = 9, CONTEXT = 2048, PRODUCT_TIMES = 5 };
#define PRODUCT_SECONDS 0.05

typedef struct {
    const Model *m;
    State *s;
    Sequence **texts; /* [most] */
    float *out;       /* [most][rows of usual_matrix()] of a product */
    size_t most;
    WeightBytes weights;
    double bandwidth; /* bytes a second */
    bool csv, finite;
} Parallel;

static bool goes_on(const Parallel *b) { return b->finite && !interrupted(); }

/* ---- the speed of matrix products ------------------------------------------------------------ */

/* A matrix of an expert, or of a dense MLP: small enough for the processor's caches. */
static const Matrix *usual_matrix(const Model *m) {
    const Layer *last = &m->layers[m->config.num_hidden_layers - 1];
    return last->experts ? &last->experts[0].up : &last->mlp.up;
}

typedef struct {
    const Parallel *b;
    const Matrix *w;
    const Activations *x;
    size_t times;
} Products;

static void multiply(Thread *t, void *context) {
    const Products *p = context;
    for (size_t i = 0; i < p->times; i++) {
        linear(p->b->m->ops, p->b->out, round_up(p->w->rows, PANEL), p->w, p->x, t);
        sync_threads(t);
    }
}

/* Seconds of `times` products of the matrix with all rows of x. */
static double product_seconds(const Parallel *b, const Matrix *w, const Activations *x, size_t times) {
    double start = seconds();
    team_run(&b->s->team, multiply, &(Products){b, w, x, times}, x->rows, x->rows);
    return seconds() - start;
}

/* Multiply-adds a second of products with `rows` rows, the fastest of PRODUCT_TIMES measurements. */
static double product_speed(const Parallel *b, size_t rows) {
    const Matrix *w = usual_matrix(b->m);
    Activations x = b->s->normed;
    x.rows = (uint32_t)rows;
    double products = (double)w->rows * w->cols * (double)rows, best = INFINITY;
    size_t times = 1;
    while (product_seconds(b, w, &x, times) < PRODUCT_SECONDS)
        times *= 2;
    for (int i = 0; i < PRODUCT_TIMES; i++)
        best = fmin(best, product_seconds(b, w, &x, times) / (double)times);
    return products / best;
}

/* ---- texts ---------------------------------------------------------------------------------- */

static int32_t some_token(const Parallel *b, size_t text, size_t place) {
    return (int32_t)((place * 7919 + text * 104729 + 1) % b->m->config.vocab_size);
}

/* The first text reads `context` tokens; each of the others gets its own copies of the pages. */
static bool fill(Parallel *b, size_t n, size_t context) {
    State *s = b->s;
    for (size_t i = 0; i < n; i++) {
        if (b->texts[i])
            sequence_close(b->texts[i]);
        b->texts[i] = NULL;
    }
    Sequence *first = b->texts[0] = sequence_open(s);
    for (first->count = 0; first->count < context; first->count++)
        first->ids[first->count] = some_token(b, 0, first->count);
    while (first->rows < context) {
        size_t rows = min(context - first->rows, s->chunk);
        sequence_rows(first, s->plan, rows, 0, context);
        if (!forward(b->m, s, s->plan, rows))
            return false;
        progress("prefill", first->rows, context);
    }
    for (size_t i = 1; i < n; i++) {
        Sequence *q = b->texts[i] = sequence_fork(s, first, first->rows);
        for (size_t j = 0; j < q->page_count; j++) {
            uint32_t page = cache_take_page(q->cache);
            memcpy(q->cache->pool + page * q->cache->page_bytes, cache_page(q, j), q->cache->page_bytes);
            cache_release_page(q->cache, q->page[j]);
            q->page[j] = page;
        }
    }
    return true;
}

/* Computes one more token of each text. Returns the seconds. */
static double step(Parallel *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        Sequence *q = b->texts[i];
        q->ids[q->count] = some_token(b, i, q->count);
        q->count++;
        sequence_rows(q, b->s->plan + i, 1, q->rows, 1);
        b->s->plan[i].logits = true;
    }
    double start = seconds();
    const float *logits = forward(b->m, b->s, b->s->plan, n);
    double time = seconds() - start;
    b->finite &= logits && all_finite(logits, n * b->m->config.vocab_size);
    return time;
}

/* ---- results -------------------------------------------------------------------------------- */

static void print_row(const Parallel *b, size_t n, size_t context, double time, double experts) {
    const Config *cfg = &b->m->config;
    const WeightBytes *w = &b->weights;
    double chosen = (double)(n * cfg->num_experts_per_tok * expert_layers(cfg)),
           rows = experts > 0 ? fmax(chosen / experts, 1) : (double)n,
           cache = (double)n * cache_read_bytes(b->m, b->s->cache->type, context, false),
           bytes = (double)w->always + experts * (double)w->expert + cache,
           dense = (double)n * ((double)w->always_products + attention_products(b->m, context)),
           routed = chosen * (double)w->expert_products;
    double speed = product_speed(b, n), expert_speed = product_speed(b, (size_t)rint(rows));
    double reading = bytes / b->bandwidth, multiplying = dense / speed + routed / expert_speed;
    double all = (double)n / time, bound = (double)n / fmax(reading, multiplying);
    char share[32] = "cached"; /* faster than memory: what was read was in the processor's caches */
    if (all <= 1.005 * bound)
        snprintf(share, sizeof share, "%.0f %%", 100 * all / bound);
    if (b->csv)
        output_print("%zu,%zu,%.6f,%.3f,%.0f,%.0f,%.2f,%.3f,%.3f,%.3f\n", n, context, time, all, bytes,
                     dense + routed, rows, (double)n / reading, (double)n / multiplying, all / bound);
    else
        output_print("%8zu %8zu %10.2f %10.3f %10.3f %12.1f %10.1f %10.1f %10s\n", n, context, all,
                     bytes / 1e9, (dense + routed) / 1e9, rows, (double)n / reading, (double)n / multiplying,
                     share);
    output_flush();
}

static void measure(Parallel *b, size_t n, size_t context) {
    double times[STEPS] = {0};
    if (!fill(b, n, context))
        return;
    step(b, n); /* not measured: some memory is touched for the first time */
    Profile profile = {.stage = STAGE_OTHER, .since = seconds()};
    b->s->profile = &profile;
    for (int i = 0; i < STEPS && goes_on(b); i++)
        times[i] = step(b, n);
    b->s->profile = NULL;
    if (goes_on(b))
        print_row(b, n, context, median(times, STEPS), (double)profile.experts / STEPS);
}

static int open_texts(Parallel *b, const Options *o, size_t rows) {
    StateOptions so = {.cache = o->cache,
                       .context = rows,
                       .sequences = (uint32_t)b->most,
                       .max_logits = (uint32_t)b->most,
                       .threads = (int)o->threads};
    char err[1024];
    b->s = state_open(b->m, &so, err, sizeof err);
    if (!b->s)
        return log_error(FAILED, "%s", err);
    b->texts = calloc(b->most, sizeof *b->texts);
    b->out = malloc(b->most * round_up(usual_matrix(b->m)->rows, PANEL) * sizeof *b->out);
    b->bandwidth = read_bandwidth(b->s);
    return b->texts && b->out && b->bandwidth > 0 ? DONE : log_error(FAILED, "out of memory");
}

int bench_parallel(const Model *m, const Options *o) {
    Parallel b = {.m = m, .weights = weight_bytes(m), .csv = o->given[OPT_CSV], .finite = true};
    for (size_t i = 0; i < o->parallel.count; i++)
        b.most = max(b.most, o->parallel.list[i]);
    size_t rows = context_rows(m, o, CONTEXT + STEPS + 2);
    int status = rows ? open_texts(&b, o, rows) : WRONG_USAGE;
    watch_interrupt();
    if (!status && b.csv)
        output_print("texts,context,seconds,tokens_per_s,bytes,multiply_adds,rows_per_expert,"
                     "read_bound,product_bound,share\n");
    else if (!status)
        output_print("%8s %8s %10s %10s %10s %12s %10s %10s %10s\n", "texts", "context", "tokens/s",
                     "GB a step", "Gmul-adds", "rows/expert", "read loop", "products", "of bound");
    for (size_t context = 0; !status && goes_on(&b) && context <= CONTEXT; context += CONTEXT)
        for (size_t i = 0; i < o->parallel.count && context + STEPS + 2 <= rows && goes_on(&b); i++)
            measure(&b, o->parallel.list[i], context);
    free(b.out);
    free(b.texts);
    state_close(b.s);
    if (!status && !b.finite && !interrupted())
        return log_non_finite(m);
    return !status && interrupted() ? interrupt_status() : status;
}
