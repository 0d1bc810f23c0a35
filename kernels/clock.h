/* kernels/clock.h: the clock that everything is timed with. */
#ifndef CLOCK_H
#define CLOCK_H

#include <time.h>

/* Seconds since some moment; never goes back. */
static inline double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

#endif
