/* team.c: barrier, shares and tasks (team.h). Spins, because a decode step meets some ten times a layer
 * and a sleep costs more than the wait. Yields only after a fraction of a millisecond: on a core that is
 * shared with another program, a thread that yields at every small wait gives away its whole time slice
 * each time (measured: from tens to hundreds of times slower). */
#include "team.h"

#include <sched.h>
#include <time.h>

enum { SPINS_BEFORE_YIELD = 20000 };

/* Tells the core that this is a wait: its other hardware thread may be the one that is waited for. */
static void pause_core(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void team_open(Team *team, int threads) {
    team->threads = threads;
    atomic_init(&team->arrived, 0);
    atomic_init(&team->phase, 0);
    atomic_init(&team->next, 0);
}

Thread team_join(Team *team, int id) {
    return (Thread){.team = team, .id = id, .threads = team->threads, .phase = atomic_load(&team->phase)};
}

double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void wait_for_all(Thread *t) {
    Team *team = t->team;
    unsigned phase = t->phase++;
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)t->threads) {
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase;) {
        if (++spins > SPINS_BEFORE_YIELD)
            sched_yield();
        else
            pause_core();
    }
}

void sync_threads(Thread *t) {
    double *waited = t->id == 0 ? t->team->waited : NULL, before = waited ? seconds() : 0;
    wait_for_all(t);
    if (waited)
        *waited += seconds() - before;
}

void share(const Thread *t, size_t n, size_t *from, size_t *to) {
    *from = n * (size_t)t->id / (size_t)t->threads;
    *to = n * ((size_t)t->id + 1) / (size_t)t->threads;
}

size_t next_task(Thread *t, size_t n) {
    size_t i = atomic_fetch_add_explicit(&t->team->next, 1, memory_order_relaxed);
    return i < n ? i : n;
}
