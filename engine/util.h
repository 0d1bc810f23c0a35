/* engine/util.h: what every part above the kernels uses. */
#ifndef ENGINE_UTIL_H
#define ENGINE_UTIL_H

#include <math.h>
#include <stdbool.h>

#include "kernels/util.h"

/* Whether n logits are finite. A NaN or an infinity makes the sum non-finite; the sum of finite logits
 * stays far below the largest float. */
static inline bool all_finite(const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return isfinite(sum);
}

#endif
