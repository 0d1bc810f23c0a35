/* tests/test_team.c: the threads of a call (kernels/team.c) and how many they are (kernels/pace.c).
 *
 * The pace is judged on machines that are simulated, against the time that a program would take which knows
 * the best number of threads beforehand. The team is judged by what its calls and its barrier promise: with
 * more threads than cores, threads that come late, fewer threads than were asked for, and another number of
 * threads in each call; and by how often its threads sleep. One line per check; exit status 1 if any
 * failed. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "kernels/pace.h"
#include "kernels/team.h"

static int failures;

static void report(const char *name, bool ok, const char *detail, double value) {
    printf("%s %s", ok ? "ok" : "FAIL", name);
    if (!ok)
        printf(" %s: %g", detail, value);
    printf("\n");
    failures += !ok;
}

static uint64_t seed = 88172645463325252u;

static double uniform(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (double)(seed >> 11) * 0x1p-53;
}

/* ---- the pace ------------------------------------------------------------------------------- */

typedef struct {
    int cores, busy;     /* busy: cores that another program uses as well */
    double serial;       /* the part of a call that no further thread makes shorter */
    double uneven;       /* threads other than the first sleep for this part of a call */
    double hiccups;      /* the part of calls in which a thread stands still though no core is busy */
    double call_seconds; /* of one row with one thread */
} Machine;

static const double SLICE = 4e-3; /* for which a program that has the core keeps it */

/* Seconds that a call takes on a machine; *slept: what its threads sleep, added up. */
static double call(const Machine *m, int threads, size_t rows, double *slept) {
    double alone = m->call_seconds * (double)rows, time = alone * (m->serial + (1 - m->serial) / threads);
    *slept = threads > 1 ? m->uneven * time * (threads - 1) : 0;
    if (threads <= m->cores - m->busy ? uniform() >= m->hiccups : uniform() >= 0.5)
        return time;
    *slept += SLICE * (threads - 1);
    return time + SLICE;
}

/* The seconds that `calls` calls take, with the number of threads that p says or, without p, `threads`. */
static double run(Pace *p, const Machine *m, int threads, size_t rows, int calls) {
    double sum = 0, slept;
    for (int i = 0; i < calls; i++) {
        double time = call(m, p ? pace_threads(p, rows) : threads, rows, &slept);
        if (p)
            pace_took(p, rows, (double)rows, time, slept);
        sum += time;
    }
    return sum;
}

/* The median over 21 programs of the time with a pace, as a multiple of the time with `best` threads. */
static double slowdown(const Machine *m, int threads, int best, int calls) {
    enum { PROGRAMS = 21 };
    double ratio[PROGRAMS];
    for (int i = 0; i < PROGRAMS; i++) {
        Pace p;
        pace_open(&p, threads);
        double value = run(&p, m, 0, 1, calls) / run(NULL, m, best, 1, calls);
        int at = i;
        for (; at > 0 && ratio[at - 1] > value; at--)
            ratio[at] = ratio[at - 1];
        ratio[at] = value;
    }
    return ratio[PROGRAMS / 2];
}

static void check_slowdown(const char *name, Machine m, int threads, int best, int calls, double most) {
    double value = slowdown(&m, threads, best, calls);
    report(name, value <= most, "slower than the best by a factor of", value);
}

/* Protects: a quiet machine computes with all threads, however small the model, with rare hiccups, and where
 * the work is uneven. */
static void check_quiet(void) {
    check_slowdown("quiet", (Machine){2, 0, 0.2, 0, 0, 0.3e-3}, 2, 2, 2000, 1.001);
    check_slowdown("quiet-16", (Machine){16, 0, 0.1, 0, 0, 3e-3}, 16, 16, 2000, 1.001);
    check_slowdown("quiet-hiccups", (Machine){2, 0, 0.2, 0, 0.002, 0.3e-3}, 2, 2, 20000, 1.05);
    check_slowdown("quiet-hiccups-long-calls", (Machine){2, 0, 0, 0, 0.1, 50e-3}, 2, 2, 2000, 1.01);
    check_slowdown("quiet-uneven", (Machine){2, 0, 0.2, 0.5, 0, 0.3e-3}, 2, 2, 5000, 1.01);
    check_slowdown("quiet-uneven-16", (Machine){16, 0, 0.1, 0.3, 0, 50e-3}, 16, 16, 2000, 1.02);
}

/* Protects: beside busy programs the team is as large as it is fast, within few calls. */
static void check_busy(void) {
    check_slowdown("busy", (Machine){2, 1, 0.2, 0, 0, 0.3e-3}, 2, 1, 2000, 1.1);
    check_slowdown("busy-short-text", (Machine){2, 1, 0.2, 0, 0, 0.3e-3}, 2, 1, 200, 1.15);
    check_slowdown("busy-16", (Machine){16, 1, 0, 0, 0, 3e-3}, 16, 15, 5000, 1.1);
    check_slowdown("busy-3-of-16", (Machine){16, 3, 0, 0, 0, 3e-3}, 16, 13, 20000, 1.3);
    check_slowdown("more-threads-than-cores", (Machine){2, 0, 0.2, 0, 0, 1e-3}, 8, 2, 2000, 1.15);
}

/* Protects: a long prompt, whose later rows cost more and whose threads sleep a quarter of the time, is read
 * with all threads. */
static void check_growing_calls(void) {
    Machine m = {2, 0, 0, 0.5, 0, 1e-3};
    Pace p;
    double sum = 0, best = 0, slept;
    pace_open(&p, 2);
    for (int i = 0; i < 40; i++) {
        double work = 2048 * (1 + 0.5 * i);
        double time = call(&m, pace_threads(&p, 2048), (size_t)work, &slept);
        pace_took(&p, 2048, work, time, slept);
        sum += time;
        best += call(&m, 2, (size_t)work, &slept);
    }
    report("growing-calls", sum <= 1.02 * best, "slower than the best by a factor of", sum / best);
}

/* Protects: when the other program ends, all threads come back within a second or two, and what calls of one
 * row have learned serves calls of another number of rows. */
static void check_changes(void) {
    Machine busy = {2, 1, 0.2, 0, 0, 0.3e-3}, quiet = busy;
    Pace p;
    quiet.busy = 0;
    pace_open(&p, 2);
    run(&p, &busy, 0, 1, 20000);
    report("busy-one-thread", pace_threads(&p, 1) == 1 || p.kind[0].trial >= 0, "threads",
           pace_threads(&p, 1));
    double time = 0, slept;
    while (time < 10 && (pace_threads(&p, 1) != 2 || p.kind[0].trial >= 0)) {
        double took = call(&quiet, pace_threads(&p, 1), 1, &slept);
        pace_took(&p, 1, 1, took, slept);
        time += took;
    }
    report("quiet-again", time < 2, "seconds until all threads are back", time);
    pace_open(&p, 2);
    run(&p, &busy, 0, 4, 50);
    int before = pace_threads(&p, 4), after = pace_threads(&p, 1);
    report("kinds-begin-alike", before == 1 && after == 1, "threads for one row", after);
}

/* ---- the team ------------------------------------------------------------------------------- */

enum { MOST = 16, STEPS = 300, TASKS = 7 };

typedef struct {
    _Alignas(64) int step; /* written by one thread, read by the others after a barrier */
} Mark;

static void stand_still(int microseconds) {
    nanosleep(&(struct timespec){.tv_nsec = microseconds * 1000L}, NULL);
}

typedef struct {
    Mark marks[MOST];
    atomic_int taken[STEPS][TASKS];
    atomic_int faults, ended;
    int threads; /* that thread 0 saw */
    bool late;
} Steps;

static int there; /* threads that the system gives: all were asked for in the first call */

static void take_steps(Thread *t, void *context) {
    Steps *s = context;
    if (t->id == 0)
        s->threads = t->threads;
    if (s->late && t->id % 2)
        stand_still(2000);
    for (int step = 0; step < STEPS; step++) {
        if (s->late && (step * 7 + t->id) % 50 == 0)
            stand_still(300);
        s->marks[t->id].step = step;
        for (size_t i; (i = next_task(t, TASKS)) < TASKS;)
            atomic_fetch_add(&s->taken[step][i], 1);
        sync_threads(t);
        for (int i = 0; i < t->threads; i++)
            atomic_fetch_add(&s->faults, s->marks[i].step != step);
        sync_threads(t);
    }
    atomic_fetch_add(&s->ended, 1);
}

/* One call: in every step each thread leaves a mark, then sees those of all others. Every task is taken
 * once. `late`: threads come late now and then, longer than a wait spins. */
static int call_faults(Team *team, int asked, bool late) {
    static Steps s;
    s = (Steps){.late = late};
    team_run_with(team, asked, take_steps, &s);
    if (!there)
        there = s.threads;
    int faults = atomic_load(&s.faults) + (s.threads != (asked < there ? asked : there)) +
                 (atomic_load(&s.ended) != s.threads);
    for (int i = 0; i < STEPS * TASKS; i++)
        faults += atomic_load(&s.taken[i / TASKS][i % TASKS]) != 1;
    return faults;
}

/* Protects: what threads write before a barrier is seen by all behind it, whether they spin or sleep. */
static void check_barrier(void) {
    Team team;
    int faults = 0, late = 0;
    team_open(&team, MOST);
    for (int asked = MOST; asked > 0; asked -= asked > 4 ? 4 : 1) {
        faults += call_faults(&team, asked, false);
        late += call_faults(&team, asked, true);
    }
    report("barrier", faults == 0, "faults", faults);
    report("barrier-late-threads", late == 0, "faults", late);
}

static void count_one(Thread *t, void *context) { atomic_fetch_add((atomic_int *)context, t->id + 1); }

/* Protects: each call has the threads that it asked for, each of them once, however often their number
 * changes, whether the others spin or sleep between two calls. */
static void check_changing_calls(void) {
    enum { THREADS = 5, CALLS = 3000 };
    Team team;
    int faults = 0;
    team_open(&team, THREADS);
    for (int i = 0; i < CALLS; i++) {
        atomic_int sum = 0;
        int asked = 1 + (i * 7 + i / 11) % THREADS, threads = asked < there ? asked : there;
        if (i % 100 == 0)
            stand_still(300);
        team_run_with(&team, asked, count_one, &sum);
        faults += atomic_load(&sum) != threads * (threads + 1) / 2;
    }
    report("changing-calls", faults == 0, "faults", faults);
}

/* Protects: calls that follow one another closely wake nobody. Those that take part still spin when the next
 * call begins, and others are left alone. (With one processor, threads can only take turns.) */
static void check_close_calls(void) {
    enum { CALLS = 2000 };
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
        return;
    Team team;
    struct rusage before, after;
    atomic_int sum = 0;
    team_open(&team, 2);
    getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < CALLS; i++)
        team_run_with(&team, 2, count_one, &sum);
    getrusage(RUSAGE_SELF, &after);
    long sleeps = after.ru_nvcsw - before.ru_nvcsw;
    report("close-calls", sleeps < CALLS / 4, "times that a thread slept", (double)sleeps);
}

/* Protects: a call that asks for more threads than there are does not wait for those that are missing. */
static void check_small_team(void) {
    Team team;
    team_open(&team, MOST + 4);
    int faults = call_faults(&team, MOST + 4, false) + call_faults(&team, MOST + 4, true);
    report("smaller-team", faults == 0, "faults", faults);
}

int main(void) {
    check_quiet();
    check_busy();
    check_changes();
    check_growing_calls();
    check_barrier();
    check_small_team();
    check_changing_calls();
    check_close_calls();
    return failures ? 1 : 0;
}
