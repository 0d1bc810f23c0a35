/* kernels/linear.h: matrix products shared out over the threads of a team, by output rows. Each output is
 * computed by one thread in the same way whatever the number of threads. No function here waits for the
 * others. */
#ifndef LINEAR_H
#define LINEAR_H

#include "kernels/kernels.h"
#include "kernels/team.h"

/* y_i = W x_i for every row of x: y [x->rows][ldy], ldy at least W's rows rounded up to 16. */
void linear(const Kernels *ops, float *y, size_t ldy, const Matrix *w, const Activations *x, const Thread *t);

enum { LINEAR_ADD_COLUMNS = 128 };

/* y[rows[i]] += weights[i] * (W x_i). rows == NULL: i itself; weights == NULL: 1. scratch:
 * [x->rows][LINEAR_ADD_COLUMNS] floats of this thread's own. */
void linear_add(const Kernels *ops, float *y, size_t ldy, const Matrix *w, const Activations *x,
                const uint32_t *rows, const float *weights, float *scratch, const Thread *t);

#endif
