/* kernels/team.c: barrier, shares and tasks (team.h). A thread that waits first spins, because a decode step
 * has some ten barriers a layer and a sleep costs more than most waits. Then it sleeps: the thread that is
 * waited for may need its core, or the system may have given that thread's core to another program. */
#include "kernels/team.h"
#include "kernels/clock.h"
#include "kernels/util.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Longer than a sleep and the wake from it take. */
static const double SPIN_SECONDS = 50e-6;
enum { SPINS_BETWEEN_CLOCKS = 64 };

/* Tells the core that this is a wait: its other hardware thread may be the one that is waited for. */
static void pause_core(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void team_open(Team *team, int threads) {
    *team = (Team){.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
    pace_open(&team->pace, threads);
}

void team_begin(Team *team, size_t rows, double work) {
    team->rows = rows;
    team->work = work;
    team->slept = 0;
    team->begun = seconds();
    team->asked = pace_threads(&team->pace, rows);
}

void team_end(Team *team) {
    pace_took(&team->pace, team->rows, team->work, seconds() - team->begun, team->slept);
}

Thread team_join(Team *team) {
    Thread t = {.team = team, .id = 0, .threads = 1, .phase = atomic_load(&team->phase)};
#ifdef _OPENMP
    t.id = omp_get_thread_num();
    t.threads = omp_get_num_threads(); /* the system may give fewer than were asked for */
#endif
    return t;
}

/* Watches for a while whether the barrier `phase` is passed. */
static bool spin(Team *team, unsigned phase) {
    double begun = seconds();
    do {
        for (int i = 0; i < SPINS_BETWEEN_CLOCKS; i++) {
            if (atomic_load_explicit(&team->phase, memory_order_acquire) != phase)
                return true;
            pause_core();
        }
    } while (seconds() - begun < SPIN_SECONDS);
    return false;
}

/* Sleeps until the barrier `phase` is passed. Either this thread sees the new phase, or the thread that sets
 * it sees this sleeper: both write first and read then, in one order for all threads. */
static void sleep_through(Team *team, unsigned phase) {
    double before = seconds();
    pthread_mutex_lock(&team->lock);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->phase) == phase)
        pthread_cond_wait(&team->wake, &team->lock);
    atomic_fetch_sub(&team->sleepers, 1);
    team->slept += seconds() - before;
    pthread_mutex_unlock(&team->lock);
}

static void wake_sleepers(Team *team) {
    /* with the lock taken once, each sleeper either waits for the signal or will see the new phase */
    pthread_mutex_lock(&team->lock);
    pthread_mutex_unlock(&team->lock);
    pthread_cond_broadcast(&team->wake);
}

static void wait_for_all(Thread *t) {
    Team *team = t->team;
    unsigned phase = t->phase++;
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)t->threads) {
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store(&team->phase, phase + 1);
        if (atomic_load(&team->sleepers))
            wake_sleepers(team);
        return;
    }
    if (!spin(team, phase))
        sleep_through(team, phase);
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
    return min(i, n);
}
