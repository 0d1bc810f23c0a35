/* util.h: small arithmetic that every part uses. */
#ifndef UTIL_H
#define UTIL_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

static inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max(size_t a, size_t b) { return a > b ? a : b; }

/* n / by, rounded up. */
static inline size_t div_up(size_t n, size_t by) { return n / by + (n % by != 0); }

/* Whether n logits are finite. A NaN or an infinity makes the sum non-finite; the sum of finite logits stays
 * far below the largest float. */
static inline bool all_finite(const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return isfinite(sum);
}

#endif
