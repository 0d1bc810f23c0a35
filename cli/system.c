/* cli/system.c: what only the operating system knows (system.h). Linux describes its cores in files; where
 * these do not exist, sysconf() counts them. */
#include "cli/system.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"

enum { MAX_CPUS = 8192 };

/* Marks the numbers of a list like "0-3,8" in set. False: not such a list. */
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

/* The file that root and the further parts make up, or NULL. */
__attribute__((format(printf, 2, 3))) static FILE *open_file(const char *root, const char *format, ...) {
    char path[4096];
    int n = snprintf(path, sizeof path, "%s", root);
    va_list args;
    va_start(args, format);
    int more = n < (int)sizeof path ? vsnprintf(path + n, sizeof path - (size_t)n, format, args) : 0;
    va_end(args);
    return n + more < (int)sizeof path ? fopen(path, "r") : NULL;
}

/* The CPUs that the scheduler may give us, taskset's and a container's choice included. */
static bool allowed_cpus(const char *root, bool set[MAX_CPUS]) {
    static const char key[] = "Cpus_allowed_list:";
    FILE *f = open_file(root, "/proc/self/status");
    char line[4096];
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f))
        found = !strncmp(line, key, sizeof key - 1) && parse_list(line + sizeof key - 1, set);
    if (f)
        fclose(f);
    return found;
}

/* Whether an allowed CPU with a smaller number is a hardware thread of the same core. */
static bool shares_core(const char *root, int cpu, const bool allowed[MAX_CPUS]) {
    FILE *f = open_file(root, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    char line[4096];
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

/* The first number in a file of a control group; 0: there is none, or "max", or -1, for no limit. */
static double read_number(const char *root, const char *mount, const char *group, const char *name,
                          double *second) {
    FILE *f = open_file(root, "%s%s/%s", mount, group, name);
    double number = 0;
    *second = 0;
    if (f && fscanf(f, "%lf %lf", &number, second) < 1)
        number = 0;
    if (f)
        fclose(f);
    return number > 0 ? number : 0;
}

/* CPUs' worth of time that one control group may use; 0: no limit. Version 2 has quota and period in
 * one file, version 1 in two; both in microseconds. */
static double group_limit(const char *root, const char *mount, const char *group) {
    double period, none, quota = read_number(root, mount, group, "cpu.max", &period);
    if (quota == 0) {
        quota = read_number(root, mount, group, "cpu.cfs_quota_us", &none);
        period = read_number(root, mount, group, "cpu.cfs_period_us", &none);
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

/* The smallest limit of a group and of the groups that it lies in. A container may see its groups at another
 * place than /proc/self/cgroup names: what does not exist there has no limit. */
static double smallest_limit(const char *root, const char *mount, char *group, double limit) {
    for (;;) {
        double here = group_limit(root, mount, group);
        limit = here > 0 && here < limit ? here : limit;
        char *slash = strrchr(group, '/');
        if (!slash)
            return limit;
        *slash = 0;
    }
}

/* CPUs' worth of time that the process may use, at most `cpus`: a container may be given less time than its
 * CPUs have. A line of /proc/self/cgroup is "number:controllers:group", without controllers in version 2. */
static double cpu_time_limit(const char *root, double cpus) {
    static const char *const mounts[2][3] = {
        {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"},
        {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpuacct,cpu"}};
    char line[4096], list[sizeof line], group[sizeof line];
    FILE *f = open_file(root, "/proc/self/cgroup");
    while (f && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        snprintf(list, sizeof list, ",%.*s,", (int)(path - controllers - 1), controllers + 1);
        bool old = strcmp(list, ",,") != 0;
        for (size_t i = 0; i < (old ? 3 : 2) && (!old || strstr(list, ",cpu,")); i++) {
            snprintf(group, sizeof group, "%.*s", (int)strcspn(path + 1, "\n"), path + 1);
            cpus = smallest_limit(root, mounts[old][i], group, cpus);
        }
    }
    if (f)
        fclose(f);
    return cpus;
}

/* Cores, or with `hardware_threads` what the system calls processors, that the process may use. */
static int count_cpus(const char *root, bool hardware_threads) {
    static bool allowed[MAX_CPUS];
    int count = 0;
    memset(allowed, 0, sizeof allowed);
    if (allowed_cpus(root, allowed)) {
        for (int cpu = 0; cpu < MAX_CPUS; cpu++)
            count += allowed[cpu] && (hardware_threads || !shares_core(root, cpu, allowed));
    } else {
        count = (int)sysconf(_SC_NPROCESSORS_ONLN);
    }
    double time = cpu_time_limit(root, count);
    return time < 1 ? 1 : (int)time;
}

int physical_cores(const char *root) { return count_cpus(root, false); }

int allowed_processors(const char *root) { return count_cpus(root, true); }

int default_threads(void) {
#ifdef _OPENMP
    const char *text = getenv("OMP_NUM_THREADS"); /* a number, or a list: the first is ours */
    char *end = NULL;
    long n = text ? strtol(text, &end, 10) : 0;
    if (n >= 1 && n <= MAX_THREADS && (*end == 0 || *end == ','))
        return (int)n;
    return physical_cores("");
#else
    return 1;
#endif
}

size_t half_of_memory(void) { return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 2; }

const char *machine_line(void) {
    static char line[512];
    const char *why, *openmp = "built without OpenMP";
    const Kernels *ops = kernels_choose(&why);
    int threads = default_threads();
#ifdef _OPENMP
    openmp = "OpenMP";
#endif
    snprintf(line, sizeof line, "%s %s, %s, %d thread%s",
             ops ? "kernels" : "no kernels:", ops ? ops->name : why, openmp, threads, threads > 1 ? "s" : "");
    return line;
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

static void on_signal(int signal_number) {
    if (signal_number == SIGINT)
        interrupts = 1;
    else
        terminations = signal_number;
}

static void watch(int signal_number) {
    /* a shell and the kernel may both send SIGHUP when a terminal is closed: its second one is no hurry */
    int flags = signal_number == SIGHUP ? SA_RESTART : (int)(SA_RESETHAND | SA_RESTART);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags}, before;
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
