/* kernels/team.h: the threads of one forward pass.
 *
 * A forward pass is one parallel region. Every thread runs the same code (run.c, mla.c) with its own
 * `Thread`, takes its share of each step, and meets the others at sync_threads(). Nothing here changes a
 * result: what a thread computes never depends on how many there are. */
#ifndef TEAM_H
#define TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include "kernels/pace.h"

typedef struct {
    Pace pace;
    int asked;   /* the threads to ask OpenMP for in the present call */
    size_t rows; /* of that call */
    double work;
    double begun; /* when it began */
    double slept; /* seconds that its threads slept at barriers, added up; under the lock */
    /* seconds that thread 0 spent waiting are added here; NULL: not measured */
    double *waited;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    _Alignas(64) atomic_uint arrived;  /* at the current barrier */
    _Alignas(64) atomic_uint phase;    /* barriers passed */
    _Alignas(64) atomic_uint sleepers; /* threads that do not watch `phase` but wait for `wake` */
    _Alignas(64) atomic_size_t next;   /* next task of the current step; 0 again after each barrier */
} Team;

typedef struct {
    Team *team;
    int id, threads;
    unsigned phase;
} Thread;

/* A team of at most `threads` threads. */
void team_open(Team *team, int threads);

/* Around each parallel region, by the one thread outside it. team_begin sets `asked`, at most what team_open
 * was given; `rows`: of the call, at least 1; `work`: pace_took(). */
void team_begin(Team *team, size_t rows, double work);
void team_end(Team *team);

/* At the start of a parallel region, each thread once. */
Thread team_join(Team *team);

/* Wait for all threads: what they wrote before is visible after. */
void sync_threads(Thread *t);

/* This thread's share of n items, contiguous: items *from .. *to - 1. */
void share(const Thread *t, size_t n, size_t *from, size_t *to);

/* The next of n tasks of uneven size, or n when none is left. One such loop between two barriers at most. */
size_t next_task(Thread *t, size_t n);

#endif
