/* kernels/pace.c: the rules by which the number of threads is changed (pace.h).
 *
 * Fewer threads are taken at once when the threads of a call slept long, unless that is known to be slower.
 * More threads are a trial of a few calls, broken off as soon as it goes wrong. After a trial that failed
 * there is a pause that is many times as long as what the trial has cost. */
#include "kernels/pace.h"

#include <math.h>
#include <string.h>

#include "kernels/util.h"

/* Threads that sleep for more than this part of their time wait for one that does not run. */
static const double MUCH_SLEEP = 0.125;
/* A size must be this much faster to be gone back to. */
static const double FASTER = 0.95;
/* A trial may cost this part of the time before it ... */
static const double TRIAL_PART = 1.0 / 32;
/* ... but comes after this many seconds at the latest, if it costs no more than a 32nd of them. */
static const double LONGEST_PAUSE = 1;
enum { TRIAL_CALLS = 8, REMEMBERED_CALLS = 64 };
/* A trial of long calls needs fewer of them. */
static const double TRIAL_SECONDS = 0.1;

void pace_open(Pace *p, int threads) {
    memset(p, 0, sizeof *p);
    p->size[p->sizes++] = threads;
    if (threads > 4) /* one other program keeps one thread from running */
        p->size[p->sizes++] = threads - 1;
    while (threads > 1 && p->sizes < PACE_SIZES)
        p->size[p->sizes++] = threads -= (threads + 3) / 4;
}

static int kind_of(size_t rows) {
    int kind = 0;
    while (rows >>= 1)
        kind++;
    return (int)min((size_t)kind, PACE_KINDS - 1);
}

static double cost(const PaceSum *sum) { return sum->seconds / sum->work; }

static bool long_enough(const PaceSum *sum) {
    return sum->calls >= TRIAL_CALLS || sum->seconds > TRIAL_SECONDS;
}

static bool slept_much(const PaceSum *sum, int threads) {
    return sum->slept > MUCH_SLEEP * threads * sum->seconds;
}

static void add(PaceSum *sum, const PaceSum *call) {
    double kept = sum->calls >= REMEMBERED_CALLS ? 0.5 : 1; /* older calls count less */
    sum->calls = kept * sum->calls + call->calls;
    sum->work = kept * sum->work + call->work;
    sum->seconds = kept * sum->seconds + call->seconds;
    sum->slept = kept * sum->slept + call->slept;
}

static void go_to(PaceKind *k, int size) {
    k->cost[k->at] = cost(&k->used);
    k->at = size;
    k->used = (PaceSum){0};
    k->since = 0;
}

static void set_pause(PaceKind *k, double lost) {
    k->pause = fmax(lost / TRIAL_PART, fmin(2 * k->pause, LONGEST_PAUSE));
    k->since = 0;
}

/* The larger size to try now, or -1. */
static int next_trial(PaceKind *k) {
    if (!k->at)
        return -1;
    int best = -1;
    for (int i = 0; i < k->at && long_enough(&k->used); i++)
        if (k->cost[i] > 0 && k->cost[i] < FASTER * cost(&k->used) &&
            (best < 0 || k->cost[i] < k->cost[best]))
            best = i;
    if (best >= 0 || k->since < k->pause || k->used.calls == 0)
        return best;
    k->near = !k->near;
    return k->near ? k->at - 1 : 0;
}

int pace_threads(Pace *p, size_t rows) {
    int kind = kind_of(rows);
    PaceKind *k = &p->kind[kind];
    if (!k->begun) { /* the machine is as busy as it was for the last call */
        const PaceKind *last = &p->kind[p->last];
        *k = (PaceKind){.begun = true, .trial = -1, .at = last->at, .pause = last->pause};
    }
    p->last = kind;
    if (k->trial < 0) {
        k->trial = next_trial(k);
        k->tried = (PaceSum){0};
    }
    return p->size[k->trial < 0 ? k->at : k->trial];
}

static void trial_took(PaceKind *k, const PaceSum *call, int threads) {
    add(&k->tried, call);
    double usual = k->tried.work * cost(&k->used), lost = k->tried.seconds - usual;
    bool enough = long_enough(&k->tried);
    if (enough && k->tried.seconds < FASTER * usual) {
        go_to(k, k->trial);
        k->used = k->tried;
        k->trial = -1;
        k->pause = 0;
    } else if (enough || (lost > 0 && slept_much(&k->tried, threads))) {
        k->cost[k->trial] = cost(&k->tried);
        k->trial = -1;
        set_pause(k, lost);
    }
}

void pace_took(Pace *p, size_t rows, double work, double time, double slept) {
    PaceKind *k = &p->kind[kind_of(rows)];
    PaceSum call = {.calls = 1, .work = work, .seconds = time, .slept = slept};
    int threads = p->size[k->trial < 0 ? k->at : k->trial];
    k->since += time;
    if (k->trial >= 0) {
        trial_took(k, &call, threads);
        return;
    }
    add(&k->used, &call);
    double fewer = k->at + 1 < p->sizes ? k->cost[k->at + 1] : INFINITY; /* 0: not known */
    if (slept_much(&k->used, threads) && fewer < cost(&k->used)) {
        double lost = k->used.slept / (threads - 1);
        go_to(k, k->at + 1);
        set_pause(k, lost);
    }
}
