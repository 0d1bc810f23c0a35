/* tests/faults.c: a library to put in front of libc (LD_PRELOAD) that makes things go wrong which never do
 * while one looks.
 *
 *   FAULT_MEMORY=N   the N-th request for memory of the process fails (malloc, calloc, realloc, and mmap
 *                    of memory that is no file)
 *   FAULT_COUNT=1    at the end, the number of such requests on standard error
 *   FAULT_CLOCK=1    the clock goes backwards, a second each time it is read */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);

static atomic_long requests;

static int refused(void) {
    static atomic_long failing = -1;
    if (failing < 0)
        failing = getenv("FAULT_MEMORY") ? atol(getenv("FAULT_MEMORY")) : 0;
    if (++requests != failing)
        return 0;
    errno = ENOMEM;
    return 1;
}

__attribute__((destructor)) static void print_stats(void) {
    if (getenv("FAULT_COUNT"))
        dprintf(STDERR_FILENO, "%ld requests\n", requests);
}

void *malloc(size_t bytes) { return refused() ? NULL : __libc_malloc(bytes); }
void *calloc(size_t count, size_t bytes) { return refused() ? NULL : __libc_calloc(count, bytes); }
void *realloc(void *p, size_t bytes) { return refused() ? NULL : __libc_realloc(p, bytes); }

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (!real)
        real = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    return refused() ? MAP_FAILED : real(at, bytes, protection, flags, fd, offset);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static atomic_long readings;
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (getenv("FAULT_CLOCK"))
        time->tv_sec -= readings++;
    return result;
}
