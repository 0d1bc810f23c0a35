/* engine/logprob.c: logarithms of probabilities (logprob.h). exp is the one of the kernels; the logarithm is
 * computed here, because the last bit of libm's differs between systems. Sums are in double, in the order of
 * the ids. */
#include "engine/logprob.h"

#include <math.h>
#include <string.h>

/* log x of a normal x > 0: x = 2^e m with m in [sqrt 1/2, sqrt 2), and log m = 2 atanh(s) with
 * s = (m - 1) / (m + 1). In the series s + s^3 / 3 + s^5 / 5 + ... the terms after s^21 / 21 are together
 * less than 2^-57 of the sum, because s^2 < 0.0295. */
static double natural_log(double x) {
    int e;
    double m = frexp(x, &e); /* exact; in [1/2, 1) */
    if (m < 0x1.6a09e667f3bcdp-1) {
        m *= 2;
        e--;
    }
    double s = (m - 1) / (m + 1), z = s * s, sum = 1.0 / 21;
    for (int k = 19; k > 0; k -= 2)
        sum = sum * z + 1.0 / k;
    return e * 0x1.62e42fefa39efp-1 + 2 * s * sum;
}

double log_sum_exp(const Kernels *ops, const float *logits, size_t vocab) {
    enum { AT_A_TIME = 512 };
    float largest = logits[0], part[AT_A_TIME];
    for (size_t i = 1; i < vocab; i++)
        largest = logits[i] > largest ? logits[i] : largest;
    double sum = 0;
    for (size_t from = 0; from < vocab; from += AT_A_TIME) {
        size_t n = min(vocab - from, AT_A_TIME);
        memcpy(part, logits + from, n * sizeof *part);
        ops->exp_minus(part, n, largest);
        for (size_t i = 0; i < n; i++)
            sum += (double)part[i];
    }
    return (double)largest + natural_log(sum);
}

size_t likeliest(const float *logits, size_t vocab, int32_t *ids, size_t n) {
    size_t count = 0;
    for (size_t id = 0; id < vocab && n; id++) {
        if (count == n && !(logits[id] > logits[ids[n - 1]]))
            continue;
        size_t at = count < n ? count++ : n - 1;
        for (; at > 0 && logits[id] > logits[ids[at - 1]]; at--)
            ids[at] = ids[at - 1];
        ids[at] = (int32_t)id;
    }
    return count;
}
