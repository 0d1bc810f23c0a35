/* cli/bench.c: --bench. How fast this machine reads memory, then prefill and decode at growing context beside
 * that; --csv for machines, --profile for where the time goes. Steps of a decode are timed one by one and the
 * median is taken, so that a disturbed step does not count; so are short prefills, after one that is not
 * timed. Of the speed of memory the best is taken. Many texts at a time are measured in bench_parallel.c. */
#include <math.h>
#include <stdatomic.h>
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

enum { DECODE_STEPS = 16, DECODE_TIMES = 1024, SHORT_PREFILL = 512, SHORT_TIMES = 3 };
enum { READ_BYTES = 1 << 29, READ_TIMES = 7 };
/* Decode is measured for at least so long. 16 steps of a small model take 4 ms, which another program can
 * disturb as a whole. */
static const double DECODE_SECONDS = 0.25;

/* One measurement: what was computed, and how long it took. */
typedef struct {
    const char *test; /* bandwidth, prefill, decode */
    size_t context;   /* rows in the cache before */
    size_t rows;      /* computed */
    double seconds;
    double bytes;  /* of weights and cache that had to be read */
    double waited; /* of the seconds, at barriers: thread 0 */
} Result;

typedef struct {
    const Model *m;
    State *s;
    Row *rows; /* [chunk] */
    Sequence *sequence;
    bool csv, profile;
    WeightBytes weights;
    Profile measured; /* since start_profile */
    bool memory;      /* false: none for the read loop */
    bool finite;      /* all logits so far */
    double bandwidth; /* bytes a second of a plain read loop with the same threads, the fastest so far */
} Bench;

static bool goes_on(const Bench *b) { return b->memory && b->finite && !interrupted(); }

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *x, size_t n) {
    qsort(x, n, sizeof *x, compare_double);
    return x[n / 2];
}

/* What is read faster than memory gives it was in the processor's caches, and its speed no share of memory's:
 * "cached", and 1 for machines. */
static void print_result(const Bench *b, const Result *r) {
    double speed = (double)r->rows / r->seconds, gb = r->bytes / r->seconds / 1e9,
           part = gb * 1e9 / b->bandwidth;
    if (b->csv) {
        output_print("%s,%zu,%zu,%.6f,%.3f,%.3f,%.3f,%.3f\n", r->test, r->context, r->rows, r->seconds, speed,
                     gb, fmin(part, 1), r->waited / r->seconds);
    } else {
        char share[32], rows[48] = "", rate[32] = "", waiting[32] = "";
        if (part > 1.005)
            strcpy(share, "cached");
        else
            snprintf(share, sizeof share, "%.0f %%", 100 * part);
        if (r->rows) {
            snprintf(rows, sizeof rows, "%8zu %6zu", r->context, r->rows);
            snprintf(rate, sizeof rate, "%.2f", speed);
            snprintf(waiting, sizeof waiting, "%9.0f %%", 100 * r->waited / r->seconds);
        }
        output_print("%-10s %15s %10.4f %12s %8.2f %9s%s\n", r->test, rows, r->seconds, rate, gb, share,
                     waiting);
    }
    output_flush();
}

static void print_profile(const Bench *b, size_t rows) {
    static const char *const names[STAGE_COUNT] = {"attention", "dense", "experts", "head", "other"};
    const Profile *p = &b->measured;
    double all = 0;
    for (int i = 0; i < STAGE_COUNT; i++)
        all += p->seconds[i];
    log_info("  of %.3f ms a row:", all / (double)rows * 1e3);
    for (int i = 0; i < STAGE_COUNT; i++)
        log_info("    %-10s %8.3f ms %5.1f %%", names[i], p->seconds[i] / (double)rows * 1e3,
                 100 * p->seconds[i] / all);
    log_info("    waiting    %8.3f ms %5.1f %%  (at barriers, part of the above)",
             p->waited / (double)rows * 1e3, 100 * p->waited / all);
}

/* ---- the read loop -------------------------------------------------------------------------- */

static uint64_t read_all(const uint64_t *p, size_t n) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 32 <= n; i += 32) {
        for (size_t line = 0; line < 32; line += 8) { /* as the products do it (kernels/matmul.h) */
            __builtin_prefetch(p + i + 512 + line);
            __builtin_prefetch(p + i + 1024 + line, 0, 2);
        }
        for (size_t k = 0; k < 8; k++) {
            a += p[i + k];
            b += p[i + 8 + k];
            c += p[i + 16 + k];
            d += p[i + 24 + k];
        }
    }
    return a + b + c + d;
}

typedef struct {
    const uint64_t *p;
    atomic_uint sum; /* without it the compiler would leave the loop out */
} Reading;

static void read_share(Thread *t, void *context) {
    Reading *r = context;
    size_t from, to, part = READ_BYTES / 8 / 64;
    share(t, 64, &from, &to);
    for (size_t i = from; i < to; i++)
        atomic_fetch_add(&r->sum, (unsigned)read_all(r->p + i * part, part));
}

double read_bandwidth(State *s) {
    uint64_t *p = malloc(READ_BYTES);
    double best = INFINITY;
    if (!p)
        return 0;
    memset(p, 1, READ_BYTES);
    for (int i = 0; i < READ_TIMES; i++) {
        double start = seconds();
        team_run_with(&s->team, s->threads, read_share, &(Reading){.p = p});
        best = fmin(best, seconds() - start);
    }
    free(p);
    return READ_BYTES / best;
}

static void measure_bandwidth(Bench *b) {
    double bandwidth = read_bandwidth(b->s);
    Result r = {.test = "bandwidth", .seconds = READ_BYTES / bandwidth, .bytes = READ_BYTES};
    b->memory = bandwidth > 0;
    if (!b->memory)
        return;
    b->bandwidth = fmax(b->bandwidth, bandwidth);
    print_result(b, &r);
}

/* ---- prefill and decode --------------------------------------------------------------------- */

/* Computes n rows of an unlikely sequence; its tokens matter to the speed only through the experts that
 * they choose. Returns the seconds. */
static double compute(Bench *b, size_t n, bool logits) {
    Sequence *q = b->sequence;
    double start = seconds();
    for (q->count = q->rows; q->count < q->rows + n; q->count++)
        q->ids[q->count] = (int32_t)(q->count * 7919 % b->m->config.vocab_size);
    sequence_rows(q, b->rows, n, q->rows, n);
    b->rows[n - 1].logits = logits;
    const float *last = forward(b->m, b->s, b->rows, n);
    double time = seconds() - start;
    if (logits)
        b->finite &= all_finite(last, b->m->config.vocab_size);
    return time;
}

static void start_profile(Bench *b) {
    b->measured = (Profile){.stage = STAGE_OTHER, .since = seconds()};
    b->s->profile = &b->measured;
    b->s->team.waited = &b->measured.waited;
}

/* Completes and prints the result of one test that was done `times` times, with `calls` calls altogether.
 * Weights are read once in a call, experts if some row chose them. */
static void stop_profile(Bench *b, Result *r, size_t times, size_t calls, double all_seconds) {
    b->s->profile = NULL;
    b->s->team.waited = NULL;
    r->waited = b->measured.waited / all_seconds * r->seconds;
    r->bytes += ((double)calls * (double)b->weights.always +
                 (double)b->measured.experts * (double)b->weights.expert) /
                (double)times;
    if (!goes_on(b))
        return;
    print_result(b, r);
    if (b->profile)
        print_profile(b, times * r->rows);
}

/* Fills the cache from position `from` to `to` and says how long it took; from an earlier one, if the rows up
 * to `from` are not there. *bytes: of the cache. */
static double prefill(Bench *b, size_t from, size_t to, double *bytes) {
    double time = 0;
    *bytes = 0;
    for (size_t rows = sequence_cut(b->sequence, from); rows < to && !interrupted();) {
        size_t n = min(to - rows, b->s->chunk);
        time += compute(b, n, rows + n == to);
        rows += n;
        *bytes += cache_read_bytes(b->m, b->s->cache->type, rows, true);
        progress("prefill", rows, to);
    }
    sequence_mark(b->sequence);
    return time;
}

static void bench_prefill(Bench *b, size_t from, size_t to) {
    Result r = {.test = "prefill", .context = from, .rows = to - from};
    size_t times = r.rows > SHORT_PREFILL ? 1 : SHORT_TIMES;
    double seconds_of[SHORT_TIMES] = {0}, all = 0;
    if (times > 1)
        prefill(b, from, to, &r.bytes); /* pages that are touched for the first time */
    start_profile(b);
    for (size_t i = 0; i < times; i++)
        all += seconds_of[i] = prefill(b, from, to, &r.bytes);
    r.seconds = median(seconds_of, times);
    stop_profile(b, &r, times, times * div_up(r.rows, b->s->chunk), all);
}

/* Beside the speed of memory at that moment: on a shared machine it changes. */
static void bench_decode(Bench *b, size_t context) {
    double times[DECODE_TIMES] = {0}, all = 0, bytes;
    size_t n = 0;
    measure_bandwidth(b);
    prefill(b, context, context, &bytes); /* the rows before may be gone */
    compute(b, 1, true);                  /* pages that are touched for the first time */
    start_profile(b);
    for (; n < DECODE_TIMES && (n < DECODE_STEPS || all < DECODE_SECONDS) && goes_on(b); n++) {
        if (n % DECODE_STEPS == 0)
            sequence_cut(b->sequence, context);
        all += times[n] = compute(b, 1, true);
    }
    n = max(n, 1); /* interrupted before the first step: times[0] is 0 */
    Result r = {.test = "decode", .context = context, .rows = 1, .seconds = median(times, n)};
    r.bytes = cache_read_bytes(b->m, b->s->cache->type, context, false);
    stop_profile(b, &r, n, n, all);
}

int mode_bench(const Model *m, const Options *o) {
    static const size_t prefills[] = {64, 512, 4096}, decodes[] = {0, 4096, 16384};
    const size_t most = 16384 + DECODE_STEPS + 1;
    if (o->parallel.count)
        return bench_parallel(m, o);
    size_t limit = context_rows(m, o, most);
    if (!limit)
        return WRONG_USAGE;
    Bench b = {.m = m,
               .csv = o->given[OPT_CSV],
               .profile = o->given[OPT_PROFILE],
               .weights = weight_bytes(m),
               .finite = true};
    b.s = open_state(m, o, limit, 1);
    if (!b.s)
        return FAILED;
    b.sequence = sequence_open(b.s);
    b.rows = malloc(b.s->chunk * sizeof *b.rows);
    watch_interrupt();
    if (b.csv)
        output_print("test,context,rows,seconds,tokens_per_s,gb_per_s,of_read_bandwidth,waiting\n");
    else
        output_print("%-10s %8s %6s %10s %12s %8s %9s %10s\n", "test", "context", "rows", "seconds",
                     "tokens/s", "GB/s", "of read", "waiting");
    if (b.rows)
        measure_bandwidth(&b);
    size_t filled = 0; /* rows that the cache holds after the longest prefill */
    for (size_t i = 0; goes_on(&b) && i < 3 && prefills[i] <= limit; i++) {
        bench_prefill(&b, 0, prefills[i]);
        filled = prefills[i];
    }
    for (size_t i = 0; goes_on(&b) && i < 3 && decodes[i] + DECODE_STEPS + 1 <= limit; i++) {
        if (decodes[i] > filled)
            bench_prefill(&b, filled, decodes[i]);
        if (goes_on(&b))
            bench_decode(&b, decodes[i]);
    }
    free(b.rows);
    state_close(b.s);
    if (!b.memory)
        return log_error(FAILED, "out of memory: the read loop needs %d MB", READ_BYTES >> 20);
    if (!b.finite)
        return log_non_finite(m);
    return interrupted() ? interrupt_status() : DONE;
}
