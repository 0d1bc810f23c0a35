/* kernels/delta.h: the delta rule of a linear attention (engine/kda.c has the equations), and what makes its
 * rows ready: convolutions, lengths, decays. Included by kernels.c alone.
 *
 * Sums over keys are made in order, one fused multiply-add each, for every column by itself: the same bytes
 * whatever the width of vectors, and wherever rows are cut into calls. */
#include "kernels/kernels.h"
#include "kernels/simd.h"

/* Sixteen numbers, or the n that are left. A whole vector is the usual case. */
OP vf load_left(const float *x, size_t n) { return n >= 16 ? vf_load(x) : vf_load_n(x, n, 0.0f); }
OP void store_left(float *x, size_t n, vf a) {
    if (n >= 16)
        vf_store(x, a);
    else
        vf_store_n(x, n, a);
}

static void convolve(float *y, const float *const *u, const float *w, size_t ld, size_t taps, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        vf sum = vf_set1(0.0f);
        for (size_t j = 0; j < taps; j++)
            sum = vf_fma(load_left(w + j * ld + i, n - i), load_left(u[j] + i, n - i), sum);
        store_left(y + i, n - i, vf_mul(sum, vf_sigmoid(sum)));
    }
}

static void set_length(float *x, size_t n, float length, float eps) {
    float squares = dot(x, x, n);
    /* NaN where the squares overflow, as in rmsnorm */
    vf times = vf_set1(squares - squares == 0 ? length / sqrtf(squares + eps) : NAN);
    for (size_t i = 0; i < n; i += 16)
        store_left(x + i, n - i, vf_mul(load_left(x + i, n - i), times));
}

static void decay(float *y, const float *z, const float *bias, float rate, float lower, size_t n) {
    vf r = vf_exp(vf_set1(rate));
    for (size_t i = 0; i < n; i += 16) {
        vf x = vf_add(load_left(z + i, n - i), load_left(bias + i, n - i));
        vf g = lower < 0 ? vf_mul(vf_set1(lower), vf_sigmoid(vf_mul(r, x)))
                         : vf_sub(vf_set1(0.0f), vf_mul(r, softplus(x)));
        /* NaN if z is infinite: what follows would hide it */
        store_left(y + i, n - i, vf_add(vf_exp(g), vf_sub(x, x)));
    }
}

/* Two vectors: 32 columns of a row of the memory. */
typedef struct {
    vf a, b;
} Columns;

/* One row passes: S = decay (S + k_before r_before^T), of which `known` = S^T k and `answer` = S^T q are
 * summed. `learn` false: there is no row before. */
OP void pass(float *to, const float *from, const DeltaRows *x, size_t t, bool learn, Columns r,
             Columns *known, Columns *answer) {
    const float *k = x->k + t * x->stride, *q = x->q + t * x->stride, *e = x->decay + t * x->stride;
    vf ka = vf_set1(0.0f), kb = ka, qa = ka, qb = ka;
    for (size_t i = 0; i < x->keys; i++, from += DELTA_COLUMNS, to += DELTA_COLUMNS) {
        vf a = vf_load(from), b = vf_load(from + 16), ei = vf_set1(e[i]), ki = vf_set1(k[i]),
           qi = vf_set1(q[i]);
        if (learn) {
            vf before = vf_set1(k[(ptrdiff_t)i - (ptrdiff_t)x->stride]);
            a = vf_fma(before, r.a, a);
            b = vf_fma(before, r.b, b);
        }
        a = vf_mul(a, ei);
        b = vf_mul(b, ei);
        ka = vf_fma(a, ki, ka);
        kb = vf_fma(b, ki, kb);
        qa = vf_fma(a, qi, qa);
        qb = vf_fma(b, qi, qb);
        vf_store(to, a);
        vf_store(to + 16, b);
    }
    *known = (Columns){ka, kb};
    *answer = (Columns){qa, qb};
}

static void delta(float *to, const float *from, const DeltaRows *x, size_t column) {
    Columns r = {vf_set1(0.0f), vf_set1(0.0f)}, known, answer;
    for (size_t t = 0; t < x->rows; t++) {
        float *v = x->v + t * x->stride + column;
        vf beta = vf_set1(x->beta[t]), kq = vf_set1(x->kq[t]);
        if (t == 0)
            pass(to, from, x, t, false, r, &known, &answer);
        else
            pass(to, to, x, t, true, r, &known, &answer);
        r.a = vf_mul(beta, vf_sub(vf_load(v), known.a));
        r.b = vf_mul(beta, vf_sub(vf_load(v + 16), known.b));
        vf_store(v, vf_fma(kq, r.a, answer.a));
        vf_store(v + 16, vf_fma(kq, r.b, answer.b));
    }
    const float *k = x->k + (x->rows - 1) * x->stride;
    for (size_t i = 0; i < x->keys; i++, to += DELTA_COLUMNS) { /* the last row is learned */
        vf ki = vf_set1(k[i]);
        vf_store(to, vf_fma(ki, r.a, vf_load(to)));
        vf_store(to + 16, vf_fma(ki, r.b, vf_load(to + 16)));
    }
}
