/* kernels/linear.c: matrix products, shared out over the threads of a team (linear.h). */
#include "kernels/linear.h"

void linear(const Kernels *ops, float *y, size_t ldy, const Matrix *w, const Activations *x,
            const Thread *t) {
    size_t from, to;
    share(t, matrix_panels(w), &from, &to);
    if (to > from)
        ops->matmul(y + from * PANEL, ldy, w, from, to - from, x);
}

void linear_add(const Kernels *ops, float *y, size_t ldy, const Matrix *w, const Activations *x,
                const uint32_t *rows, const float *weights, float *scratch, const Thread *t) {
    enum { STEP = LINEAR_ADD_COLUMNS / PANEL }; /* few enough that all rows' results stay in cache */
    size_t from, to;
    share(t, matrix_panels(w), &from, &to);
    for (size_t panel = from; panel < to; panel += STEP) {
        size_t panels = min(to - panel, STEP);
        ops->matmul(scratch, LINEAR_ADD_COLUMNS, w, panel, panels, x);
        for (size_t i = 0; i < x->rows; i++)
            ops->axpy(y + (rows ? rows[i] : i) * ldy + panel * PANEL, weights ? weights[i] : 1,
                      scratch + i * LINEAR_ADD_COLUMNS, panels * PANEL);
    }
}
