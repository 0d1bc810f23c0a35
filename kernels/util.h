/* kernels/util.h: arithmetic of sizes that every part of the program uses. It is in kernels/ because kernels/
 * includes nothing from elsewhere. */
#ifndef UTIL_H
#define UTIL_H

#include <stddef.h>

static inline size_t min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max(size_t a, size_t b) { return a > b ? a : b; }

/* a / b and n to a multiple of `to`, rounded up. */
static inline size_t div_up(size_t a, size_t b) { return (a + b - 1) / b; }
static inline size_t round_up(size_t n, size_t to) { return div_up(n, to) * to; }

#endif
