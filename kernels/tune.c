/* kernels/tune.c: chooses between the two ways of multiplying many rows (matmul.h) by trying both. Processors
 * of one instruction set differ in what bounds them, loads or multipliers, and so in which way is faster;
 * names and models of processors are not asked for. Both ways give the same bytes. */
#include "kernels/tune.h"

#include <math.h>
#include <stdbool.h>

#include "kernels/clock.h"

/* FEWEST_ROWS: below it unpacking first pays only where weights are in the cache already, as they are
 * here, but not in a model. */
enum { COLUMNS = 512, PANELS = 4, FEWEST_ROWS = 32, MOST_ROWS = 64, TRIALS = 5, WARM_TRIALS = 100 };

static double product(const Kernels *ops, size_t many_rows, const Activations *x) {
    static _Alignas(64) uint8_t panels[PANELS * (COLUMNS / BLOCK) * Q4_BLOCK]; /* numbers do not matter */
    static const int8_t codebook[16];
    static float y[MOST_ROWS * PANELS * PANEL];
    const Matrix w = {panels, codebook, TYPE_Q4, PANELS * PANEL, COLUMNS, 1.0f};
    *ops->many_rows = many_rows;
    double begun = seconds();
    ops->matmul(y, PANELS * PANEL, &w, 0, PANELS, x);
    return seconds() - begun;
}

/* Is unpacking first clearly faster for n rows? The best of several trials in turns: other programs and
 * interrupts only ever add to a time. */
static bool unpacking_pays(const Kernels *ops, size_t n) {
    static _Alignas(64) int8_t q[MOST_ROWS * COLUMNS];
    static float scale[MOST_ROWS * COLUMNS / 32];
    static int32_t sum[MOST_ROWS * COLUMNS / 32];
    const Activations x = {(uint32_t)n, COLUMNS, COLUMNS, NULL, q, scale, sum};
    double directly = INFINITY, unpacked = INFINITY;
    for (int i = 0; i < TRIALS; i++) {
        directly = fmin(directly, product(ops, SIZE_MAX, &x));
        unpacked = fmin(unpacked, product(ops, 1, &x));
    }
    return unpacked < 0.97 * directly;
}

void tune(const Kernels *ops) {
    const double begun = seconds();
    size_t n = FEWEST_ROWS;
    /* not judged: vectors of 512 bits are slow until the processor has powered them, some 20 us. A number of
     * trials ends it too, because a clock may go backwards. */
    for (int i = 0; i < WARM_TRIALS && seconds() - begun < 5e-5; i++)
        unpacking_pays(ops, 1);
    /* out of time, as portable C soon is: the number that would be tried next */
    while (n <= MOST_ROWS && seconds() - begun < 2e-3 && !unpacking_pays(ops, n))
        n *= 2;
    *ops->many_rows = n <= MOST_ROWS ? n : SIZE_MAX;
}
