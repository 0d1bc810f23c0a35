/* system.c: what only the operating system knows (system.h). Linux tells about its cores in files; where
 * these do not exist, POSIX answers. */
#include "cli/system.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CPUS = 8192 };

/* Marks the numbers of a list like "0-3,8" in set. False: it is none. */
static bool parse_list(const char *list, bool set[MAX_CPUS]) {
    for (;;) {
        char *end;
        long first = strtol(list, &end, 10), last = first;
        if (end == list)
            return false;
        if (*end == '-')
            last = strtol(end + 1, &end, 10);
        if (first < 0 || last >= MAX_CPUS)
            return false;
        for (long i = first; i <= last; i++)
            set[i] = true;
        if (*end != ',')
            return true;
        list = end + 1;
    }
}

/* The CPUs that the scheduler may give us, taskset's and a container's choice included. */
static bool allowed_cpus(bool set[MAX_CPUS]) {
    static const char key[] = "Cpus_allowed_list:";
    FILE *f = fopen("/proc/self/status", "r");
    char line[4096];
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f))
        found = !strncmp(line, key, sizeof key - 1) && parse_list(line + sizeof key - 1, set);
    if (f)
        fclose(f);
    return found;
}

/* Whether an allowed CPU with a smaller number is a hardware thread of the same core. */
static bool shares_core(int cpu, const bool allowed[MAX_CPUS]) {
    char path[96], line[4096];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    static bool siblings[MAX_CPUS];
    memset(siblings, 0, sizeof siblings);
    bool shares = false;
    if (fgets(line, sizeof line, f) && parse_list(line, siblings)) {
        for (int i = 0; i < cpu; i++)
            shares |= siblings[i] && allowed[i];
    }
    fclose(f);
    return shares;
}

/* A container may be given less time than its CPUs have: "quota period" in microseconds, or "max". */
static int quota_cores(int cores) {
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    double quota, period;
    if (f && fscanf(f, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0 && quota / period < cores)
        cores = quota / period < 1 ? 1 : (int)(quota / period);
    if (f)
        fclose(f);
    return cores;
}

int physical_cores(void) {
    static bool allowed[MAX_CPUS];
    int cores = 0;
    if (allowed_cpus(allowed)) {
        for (int cpu = 0; cpu < MAX_CPUS; cpu++)
            cores += allowed[cpu] && !shares_core(cpu, allowed);
    } else {
        cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    }
    return quota_cores(cores > 1 ? cores : 1);
}

bool random_seed(uint64_t *seed) {
    FILE *f = fopen("/dev/urandom", "rb");
    bool read = f && fread(seed, sizeof *seed, 1, f) == 1;
    if (f)
        fclose(f);
    return read;
}

/* Apart, so that a Ctrl-C that is forgotten takes no SIGTERM or SIGHUP (its number) with it. */
static volatile sig_atomic_t interrupts = 0, terminations = 0;

static void catch (int signal_number) {
    if (signal_number == SIGINT)
        interrupts = 1;
    else
        terminations = signal_number;
}

static void watch(int signal_number) {
    /* a shell and the kernel may both send SIGHUP when a terminal is closed: its second one is no hurry */
    struct sigaction action = {.sa_handler = catch,
                               .sa_flags =
                                   (int)(signal_number == SIGHUP ? SA_RESTART : SA_RESETHAND | SA_RESTART)},
                     before;
    sigemptyset(&action.sa_mask);
    if (!sigaction(signal_number, NULL, &before) && before.sa_handler != SIG_IGN)
        sigaction(signal_number, &action, NULL);
}

void watch_interrupt(void) {
    interrupts = 0;
    watch(SIGINT);
    watch(SIGTERM);
    watch(SIGHUP);
}

bool interrupted(void) { return interrupts || terminations; }

int interrupt_status(void) { return 128 + (terminations ? terminations : SIGINT); }
