/* kernels/team.c: calls, barrier, shares and tasks (team.h). A thread that waits first spins, because a
 * decode step has some ten barriers a layer and a sleep costs more than most waits. Then it sleeps: the
 * thread that is waited for may need its core, or the system may have given that thread's core to another
 * program. */
#include "kernels/team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "kernels/clock.h"
#include "kernels/util.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* At a barrier: longer than a sleep and the wake from it take. Between two calls: as long as choosing a token
 * takes. */
static const double SPIN_SECONDS = 50e-6, IDLE_SECONDS = 1e-3;
enum { SPINS_BETWEEN_CLOCKS = 64 };

/* Tells the core that this is a wait: its other hardware thread may be the one that is waited for. */
static void pause_core(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Threads that sleep until a value changes. */
typedef struct {
    pthread_cond_t wake;
    _Alignas(64) atomic_uint sleepers;
} Waiters;

/* A thread that OpenMP started. */
typedef struct {
    _Alignas(64) atomic_uint calls; /* that it was told to take part in */
    Waiters idle; /* where it alone sleeps between calls: a call wakes only those that take part */
} Member;

/* The threads of the process. They live as long as it does. */
static struct {
    int most;        /* the threads to ask OpenMP for; 0: none were started yet */
    int size;        /* the threads that there are, the caller included */
    Member *members; /* [size]; 0 stands for the caller */
    /* of the present call */
    TeamWork *function;
    void *context;
    Team *team;
    int threads;

    pthread_mutex_t lock;
    Waiters barrier, end;             /* within a call; at its end */
    _Alignas(64) atomic_uint started; /* 1: size is known */
    _Alignas(64) atomic_uint arrived; /* at the current barrier */
    _Alignas(64) atomic_uint phase;   /* barriers passed */
} pool = {.size = 1,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .barrier.wake = PTHREAD_COND_INITIALIZER,
          .end.wake = PTHREAD_COND_INITIALIZER};

/* ---- waiting -------------------------------------------------------------------------------- */

/* Watches for so many seconds whether *value has changed. */
static bool spin(atomic_uint *value, unsigned seen, double spin_seconds) {
    double begun = seconds();
    do {
        for (int i = 0; i < SPINS_BETWEEN_CLOCKS; i++) {
            if (atomic_load_explicit(value, memory_order_acquire) != seen)
                return true;
            pause_core();
        }
    } while (seconds() - begun < spin_seconds);
    return false;
}

/* Sleeps until *value has changed. Either this thread sees the new value, or the thread that sets it sees
 * this sleeper: both write first and read then, in one order for all threads. */
static void sleep_until(Waiters *w, atomic_uint *value, unsigned seen, double *slept) {
    double before = seconds();
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&w->sleepers, 1);
    while (atomic_load(value) == seen)
        pthread_cond_wait(&w->wake, &pool.lock);
    atomic_fetch_sub(&w->sleepers, 1);
    if (slept)
        *slept += seconds() - before;
    pthread_mutex_unlock(&pool.lock);
}

/* After a value was changed. */
static void wake(Waiters *w) {
    if (!atomic_load(&w->sleepers))
        return;
    /* with the lock taken once, each sleeper either waits for the signal or will see the new value */
    pthread_mutex_lock(&pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_cond_broadcast(&w->wake);
}

static void wait_for_all(Thread *t, Waiters *w, double spin_seconds, double *slept) {
    unsigned phase = t->phase++;
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) + 1 == (unsigned)t->threads) {
        atomic_store_explicit(&t->team->next, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store(&pool.phase, phase + 1);
        wake(w);
    } else if (!spin(&pool.phase, phase, spin_seconds)) {
        sleep_until(w, &pool.phase, phase, slept);
    }
}

/* ---- calls ---------------------------------------------------------------------------------- */

/* One thread's part of a call. The pool's description of the call stays as it is until the barrier at its
 * end, and only threads that take part read it. */
static void take_part(int id) {
    Thread t = {.team = pool.team, .id = id, .threads = pool.threads, .phase = atomic_load(&pool.phase)};
    pool.function(&t, pool.context);
    wait_for_all(&t, &pool.end, IDLE_SECONDS, NULL); /* the caller may go on before the others have left */
}

#ifdef _OPENMP
/* Thread `id` between calls, and in those that it is told to take part in. */
static void serve(int id) {
    Member *m = &pool.members[id];
    for (unsigned seen = 0;; seen++) {
        if (!spin(&m->calls, seen, IDLE_SECONDS))
            sleep_until(&m->idle, &m->calls, seen, NULL);
        take_part(id);
    }
}

/* The one parallel region. The thread that begins it is number 0 of the region, as the caller is number 0 of
 * each call: so the others get places (OMP_PLACES) beside the caller's. It then sleeps. */
static void *host(void *unused) {
#pragma omp parallel num_threads(pool.most)
    {
        int id = omp_get_thread_num();
        if (id == 0) {
            pool.size = omp_get_num_threads(); /* the system may give fewer than were asked for */
            atomic_store(&pool.started, 1);
            wake(&pool.members[0].idle);
            /* for ever: no call tells thread 0 to take part */
            sleep_until(&pool.members[0].idle, &pool.members[0].calls, 0, NULL);
        }
        serve(id);
    }
    return unused;
}

static bool start_host(void) {
    pthread_t thread;
    return !pthread_create(&thread, NULL, host, NULL);
}
#else
static bool start_host(void) { return false; }
#endif

/* Where threads cannot be started, the caller is alone. The caller spins until they are there: the system
 * sees that its core is in use, and puts them on other cores. */
static void start(int most) {
    pool.most = most;
    pool.members = aligned_alloc(_Alignof(Member), (size_t)most * sizeof *pool.members);
    for (int i = 0; pool.members && i < most; i++)
        pool.members[i] = (Member){.idle.wake = PTHREAD_COND_INITIALIZER};
    if (pool.members && start_host() && !spin(&pool.started, 0, IDLE_SECONDS))
        sleep_until(&pool.members[0].idle, &pool.started, 0, NULL);
}

void team_run_with(Team *team, int threads, TeamWork *function, void *context) {
    if (threads > 1 && !pool.most)
        start(team->pace.size[0]);
    pool.threads = (int)min((size_t)threads, (size_t)pool.size);
    pool.team = team;
    pool.function = function;
    pool.context = context;
    for (int i = 1; i < pool.threads; i++) {
        atomic_fetch_add(&pool.members[i].calls, 1);
        wake(&pool.members[i].idle);
    }
    take_part(0);
}

void team_run(Team *team, TeamWork *function, void *context, size_t rows, double work) {
    double begun = seconds();
    team->slept = 0;
    team_run_with(team, pace_threads(&team->pace, rows), function, context);
    pace_took(&team->pace, rows, work, seconds() - begun, team->slept);
}

void team_open(Team *team, int threads) {
    *team = (Team){0};
    pace_open(&team->pace, threads);
}

/* ---- within a call -------------------------------------------------------------------------- */

void sync_threads(Thread *t) {
    double *waited = t->id == 0 ? t->team->waited : NULL, before = waited ? seconds() : 0;
    wait_for_all(t, &pool.barrier, SPIN_SECONDS, &t->team->slept);
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
