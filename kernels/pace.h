/* kernels/pace.h: how many threads a call is computed with, learned from what earlier calls took.
 *
 * On a quiet machine all threads are best. Beside other busy programs they are not: while the system runs
 * another program on one thread's core, all other threads wait for that thread at the next barrier, and one
 * thread alone would be faster. Only time tells, so pace.c compares the times of calls. It knows nothing of
 * threads, barriers (team.c) and processors. */
#ifndef PACE_H
#define PACE_H

#include <stdbool.h>
#include <stddef.h>

enum { PACE_KINDS = 16, PACE_SIZES = 32 };

/* Calls of one kind with one number of threads. */
typedef struct {
    double calls, work, seconds;
    double slept; /* seconds that threads slept at barriers, added up */
} PaceSum;

/* What is known about calls of one kind. Kinds are told apart by the rows of the call (1, 2 to 3, 4 to 7,
 * ...), because a row among many costs less than a row alone. */
typedef struct {
    bool begun;
    bool near;               /* the next trial goes one size up; else all the way */
    int at, trial;           /* places in Pace.size: in use, and on trial (-1: none) */
    PaceSum used, tried;     /* the late calls with either */
    double cost[PACE_SIZES]; /* seconds for a unit of work, as last measured for each size; 0: not known */
    double since, pause;     /* seconds computed since the last trial; that must pass before the next */
} PaceKind;

typedef struct {
    int sizes, size[PACE_SIZES]; /* numbers of threads to choose from, falling */
    int last;                    /* the kind of the last call */
    PaceKind kind[PACE_KINDS];
} Pace;

void pace_open(Pace *p, int threads);

/* The number of threads for the next call, of `rows` rows (at least 1). */
int pace_threads(Pace *p, size_t rows);

/* What that call took: seconds, and the seconds that its threads slept at barriers, added up. `work`: what
 * was computed, in any unit. A row behind a long context is more work than the first one; without that, fewer
 * threads at the beginning of a prompt would seem to be faster than all of them at its end. */
void pace_took(Pace *p, size_t rows, double work, double seconds, double slept);

#endif
