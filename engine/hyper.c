/* engine/hyper.c: hyper-connections. A row has S residual streams X_1 .. X_S of D numbers in place of one x;
 * all begin as the token's embedding. A branch (attention, then the MLP) reads one mixture of them and writes
 * into all of them, with weights that are made from the streams themselves:
 *
 *     v      = flat(X) / sqrt(mean(flat(X)^2) + rms_norm_eps)           the S D numbers as one vector
 *     m      = fn v                                                     2 S + S S numbers
 *     pre_i  = sigmoid(scale[0] m[i] + base[i]) + hc_eps                i = 0 .. S - 1
 *     post_i = 2 sigmoid(scale[1] m[S + i] + base[S + i])
 *     C      = softmax over k of scale[2] m[2 S + j S + k] + base[..] as [j][k], plus hc_eps; then the
 *              Sinkhorn iteration, which makes all row and column sums 1:
 *              C[j][k] /= sum_j C[j][k] + hc_eps                        columns, once
 *              rows, then columns                                       hc_sinkhorn_iters - 1 times
 *
 *     y      = branch(RMSNorm(sum_i pre_i X_i) * norm)
 *     X'_k   = post_k y + sum_j C[j][k] X_j
 *
 * The head reads sum_i pre_i X_i with a fn of its own, of S rows, and one scale. A plain residual, x' = x +
 * y, is S = 1 with pre = post = C = 1. That C's rows and columns sum to 1 keeps the streams' size, however
 * many layers there are. (DeepSeek says "manifold-constrained": such matrices are a manifold.)
 *
 * fn's product is the work, S D (2 S + S S) multiplications: 0.4 M for each branch of DeepSeek-V4-Flash, and
 * 1.6 MB of f32. It has few rows and many columns, so threads share the columns: PIECE of them are a task,
 * and the pieces' sums are added in order. Where pieces end depends on the model alone. The division by the
 * root follows the product. Rows do not depend on one another: no byte depends on threads or on the cut of
 * calls.
 *
 * Memory: s->x has S D floats for each row of a call, 134 MB for the 2048 rows of a call of V4-Flash and 235
 * MB for V4-Pro; a decode step touches one row of it.
 *
 * Formulas: Hyper-Connections, arXiv 2409.19606; mHC, arXiv 2512.24880; DeepSeek-V4's published code. */
#include "engine/hyper.h"

#include <math.h>
#include <string.h>

#include "engine/buffers.h"
#include "engine/util.h"

enum { PIECE = 1024 }; /* columns of fn */

static size_t fan_in(const Config *cfg) { return (size_t)cfg->hc_mult * cfg->hidden_size; }

/* Numbers that fn gives for one row, rounded up to panels. */
static size_t wide(const Config *cfg) { return round_up((size_t)cfg->hc_mult * (2 + cfg->hc_mult), PANEL); }

static size_t pieces(const Config *cfg) { return div_up(fan_in(cfg), PIECE); }

size_t hyper_sum_floats(const Config *cfg) { return pieces(cfg) * wide(cfg); }

/* ---- the definition ------------------------------------------------------------------------- */

static float plain_sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* Rows of C (`rows` true) or its columns are divided by their sums. */
static void normalize(float *C, size_t S, float eps, bool rows) {
    size_t next = rows ? 1 : S, line = rows ? S : 1;
    for (size_t i = 0; i < S; i++) {
        float sum = 0;
        for (size_t j = 0; j < S; j++)
            sum += C[i * line + j * next];
        for (size_t j = 0; j < S; j++)
            C[i * line + j * next] /= sum + eps;
    }
}

static void sinkhorn(float *C, const Config *cfg) {
    normalize(C, cfg->hc_mult, cfg->hc_eps, false);
    for (uint32_t i = 1; i < cfg->hc_sinkhorn_iters; i++) {
        normalize(C, cfg->hc_mult, cfg->hc_eps, true);
        normalize(C, cfg->hc_mult, cfg->hc_eps, false);
    }
}

void hyper_definition(float *w, const float *X, const float *fn, const float *base, const float *scale,
                      size_t outputs, const Config *cfg) {
    size_t S = cfg->hc_mult, n = fan_in(cfg);
    float squares = 0;
    for (size_t i = 0; i < n; i++)
        squares += X[i] * X[i];
    for (size_t o = 0; o < outputs; o++) {
        float sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += fn[o * n + i] * X[i] / sqrtf(squares / (float)n + cfg->rms_norm_eps);
        w[o] = sum * scale[min(o / S, 2)] + base[o];
    }
    for (size_t i = 0; i < S; i++)
        w[i] = plain_sigmoid(w[i]) + cfg->hc_eps;
    if (outputs == S)
        return;
    for (size_t i = S; i < 2 * S; i++)
        w[i] = 2 * plain_sigmoid(w[i]);
    for (float *C = w + 2 * S; C < w + outputs; C += S) {
        float sum = 0, most = C[0];
        for (size_t k = 1; k < S; k++)
            most = fmaxf(most, C[k]);
        for (size_t k = 0; k < S; k++)
            sum += expf(C[k] - most);
        for (size_t k = 0; k < S; k++)
            C[k] = expf(C[k] - most) / sum + cfg->hc_eps;
    }
    sinkhorn(w + 2 * S, cfg);
}

/* ---- the weights ---------------------------------------------------------------------------- */

/* fn X of all rows, in pieces: s->hyper.sums. Ends with a barrier. */
static void multiply(const Model *m, State *s, const Matrix *fn, Thread *t) {
    const Config *cfg = &m->config;
    size_t panels = matrix_panels(fn), tasks = panels * pieces(cfg), task;
    while ((task = next_task(t, tasks)) < tasks) {
        size_t piece = task / panels, panel = task % panels, from = piece * PIECE;
        Matrix w = *fn;
        w.data += panel * panel_bytes(TYPE_F32, fn->cols) + panel_bytes(TYPE_F32, from);
        w.cols = (uint32_t)min(fn->cols - from, PIECE);
        Activations x = {.rows = (uint32_t)s->row_count,
                         .cols = w.cols,
                         .stride = (uint32_t)s->x_stride,
                         .f = s->x + from};
        m->ops->matmul(s->hyper.sums + piece * wide(cfg) + panel * PANEL, hyper_sum_floats(cfg), &w, 0, 1,
                       &x);
    }
    sync_threads(t);
}

/* s->hyper.weights of row i. */
static float *weights_of(const Model *m, State *s, const Hyper *h, size_t i) {
    const Config *cfg = &m->config;
    size_t S = cfg->hc_mult, outputs = h->fn.rows, n = fan_in(cfg);
    float *w = s->hyper.weights + i * wide(cfg), lost = 0;
    const float *X = s->x + i * s->x_stride, *sums = s->hyper.sums + i * hyper_sum_floats(cfg);
    if (s->hyper.plain) {
        hyper_definition(w, X, s->hyper.plain, h->base, h->scale, outputs, cfg);
        return w;
    }
    float squares = m->ops->dot(X, X, n);
    /* NaN where the squares overflow, as in rmsnorm */
    float inverse = squares - squares == 0 ? 1 / sqrtf(squares / (float)n + cfg->rms_norm_eps) : NAN;
    for (size_t o = 0; o < outputs; o++) {
        float sum = 0;
        for (size_t piece = 0; piece < pieces(cfg); piece++)
            sum += sums[piece * wide(cfg) + o];
        w[o] = sum * inverse * h->scale[min(o / S, 2)] + h->base[o];
        lost += w[o] - w[o]; /* NaN if it is infinite: sigmoid would hide it */
    }
    m->ops->sigmoid(w, min(outputs, 2 * S));
    for (size_t j = 0; j < S; j++)
        w[j] += cfg->hc_eps + lost;
    if (outputs == S)
        return w;
    for (size_t j = S; j < 2 * S; j++)
        w[j] *= 2;
    for (float *C = w + 2 * S; C < w + outputs; C += S) {
        m->ops->softmax(C, S);
        for (size_t k = 0; k < S; k++)
            C[k] += cfg->hc_eps;
    }
    sinkhorn(w + 2 * S, cfg);
    return w;
}

/* What the weights of all rows are made of: fn X, or in the definition fn itself. */
static void begin(const Model *m, State *s, const Hyper *h, Thread *t) {
    size_t n = fan_in(&m->config);
    if (!s->hyper.plain) {
        multiply(m, s, &h->fn, t);
        return;
    }
    for (size_t o = 0; t->id == 0 && o < h->fn.rows; o++)
        m->ops->read_row(s->hyper.plain + o * n, &h->fn, o);
    sync_threads(t);
}

/* ---- what is read and written --------------------------------------------------------------- */

/* y [D] = sum_i pre_i X_i of row i. */
static void mix(const Model *m, const State *s, size_t i, const float *pre, float *y) {
    size_t D = m->config.hidden_size;
    memset(y, 0, D * sizeof *y);
    for (size_t j = 0; j < m->config.hc_mult; j++)
        m->ops->axpy(y, pre[j], s->x + i * s->x_stride + j * D, D);
}

void hyper_read(const Model *m, State *s, const Hyper *h, const float *norm, Thread *t) {
    const Config *cfg = &m->config;
    float *y = s->scratch[t->id].a;
    size_t from, to;
    begin(m, s, h, t);
    share(t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        mix(m, s, i, weights_of(m, s, h, i), y);
        m->ops->rmsnorm(y, y, norm, cfg->hidden_size, cfg->rms_norm_eps);
        m->ops->store_row(&s->normed, i, 0, y, cfg->hidden_size);
    }
    sync_threads(t);
}

/* The same `n` columns of all streams of one row, X[j D ..]: X'_k = post_k y + sum_j C[j][k] X_j. */
static void write_columns(const Model *m, float *X, const float *y, const float *weights, size_t n,
                          float *before) {
    size_t D = m->config.hidden_size, S = m->config.hc_mult;
    const float *post = weights + S, *C = weights + 2 * S;
    for (size_t j = 0; j < S; j++) {
        memcpy(before + j * n, X + j * D, n * sizeof *X);
        memset(X + j * D, 0, n * sizeof *X);
    }
    for (size_t k = 0; k < S; k++) {
        m->ops->axpy(X + k * D, post[k], y, n);
        for (size_t j = 0; j < S; j++)
            m->ops->axpy(X + k * D, C[j * S + k], before + j * n, n);
    }
}

void hyper_write(const Model *m, State *s, Thread *t) {
    const Config *cfg = &m->config;
    size_t D = cfg->hidden_size, columns = MLP_ROW / cfg->hc_mult / PANEL * PANEL,
           blocks = div_up(D, columns), from, to;
    share(t, s->row_count * blocks, &from, &to);
    for (size_t task = from; task < to; task++) {
        size_t i = task / blocks, at = task % blocks * columns, n = min(D - at, columns);
        float *branch = s->branch + i * s->out_stride + at;
        write_columns(m, s->x + i * s->x_stride + at, branch, s->hyper.weights + i * wide(cfg), n,
                      s->scratch[t->id].a);
        memset(branch, 0, n * sizeof *branch);
    }
    sync_threads(t);
}

void hyper_head(const Model *m, State *s, Thread *t) {
    float *y = s->scratch[t->id].a;
    size_t from, to;
    begin(m, s, &m->head_hyper, t);
    share(t, s->head.count, &from, &to);
    for (size_t k = from; k < to; k++) {
        size_t i = s->head.row[k];
        mix(m, s, i, weights_of(m, s, &m->head_hyper, i), y);
        memcpy(s->x + i * s->x_stride, y, m->config.hidden_size * sizeof *y);
    }
    sync_threads(t);
}
