/* kernels/team.h: the threads of one forward pass.
 *
 * In a call every thread runs the same code (run.c, mla.c) with its own `Thread`, takes its share of each
 * step, and meets the others at sync_threads(). Nothing here changes a result: what a thread computes never
 * depends on how many there are.
 *
 * OpenMP starts the threads, once, and they stay: between two calls they wait as they do at a barrier. A
 * parallel region for each call would leave these waits to OpenMP's library, where they spin for milliseconds
 * (gcc) or 0.2 seconds (clang) on a core that another program may need. */
#ifndef TEAM_H
#define TEAM_H

#include <stdatomic.h>
#include <stddef.h>

#include "kernels/pace.h"

/* How many threads the calls of a state use. */
typedef struct {
    Pace pace;
    double slept; /* seconds that the call's threads slept at barriers, added up; under a lock */
    /* seconds that thread 0 spent waiting are added here; NULL: not measured */
    double *waited;
    _Alignas(64) atomic_size_t next; /* next task of the current step; 0 again after each barrier */
} Team;

typedef struct {
    Team *team;
    int id, threads;
    unsigned phase;
} Thread;

/* What each thread does in a call. */
typedef void TeamWork(Thread *t, void *context);

/* A team of at most `threads` threads, of which the caller is one. */
void team_open(Team *team, int threads);

/* A call: as many threads as are fastest (pace.h), the caller among them, run function(thread, context), and
 * all return. `rows`: of the call, at least 1; `work`: see pace_took(). One call at a time. */
void team_run(Team *team, TeamWork *function, void *context, size_t rows, double work);

/* The same with a given number of threads. The first call with more than one starts the threads of the
 * process, as many as its team may have; where the system gives fewer, calls have fewer. */
void team_run_with(Team *team, int threads, TeamWork *function, void *context);

/* Wait for all threads: what they wrote before is visible after. */
void sync_threads(Thread *t);

/* This thread's share of n items, contiguous: items *from .. *to - 1. */
void share(const Thread *t, size_t n, size_t *from, size_t *to);

/* The next of n tasks of uneven size, or n when none is left. One such loop between two barriers at most. */
size_t next_task(Thread *t, size_t n);

#endif
