/* kernels/vector.h: functions of plain vectors, and the quantizing of activations. Included by kernels.c
 * alone.
 *
 * Ends of vectors: what is past the last number is loaded as one that does not change the result (zero in
 * a sum, -infinity in a maximum). */
#include "kernels/kernels.h"
#include "kernels/simd.h"

#include <float.h>

/* Up to sixteen numbers: n of them, the rest as `fill`. */
OP vf load_up_to(const float *x, size_t n, float fill) { return vf_load_n(x, min(n, LANES), fill); }

/* ---- activations ---------------------------------------------------------------------------- */

/* Sixteen numbers times `inverse` to the nearest integer, ties to even. This is the one rounding of all
 * that is quantized to int8: activations here, rows of tiles and queries in tile.h. Each has its own rule
 * for the scale. The limits -most .. most catch infinity, NaN (which becomes -most) and what a scale that
 * was rounded down puts just above them. */
OP vi to_integers(vf x, float inverse, float most) {
    vf y = vf_mul(x, vf_set1(inverse));
    return vf_to_int(vf_min(vf_max(y, vf_set1(-most)), vf_set1(most)));
}

/* Where 32 columns of one row are kept in the int8 form of x: bytes 32 i .. of q, element i of scale and
 * sum. */
OP size_t acts_block(const Activations *x, size_t row, size_t block) {
    size_t first = row / 16 * 16, group = min(x->rows - first, 16);
    return first * (x->stride / 32) + block * group + (row - first);
}

/* 32 numbers (a, b) become integers of -127 .. 127. A block whose numbers are all below SMALLEST counts as
 * zeros: 127 / largest would be infinite below 2^-121, and no model has such activations. As integers
 * infinity and NaN would look like numbers: a block that holds one gets a scale that is NaN, so that all
 * that is computed from it is NaN up to the logits, where it is noticed. */
static void quantize(Activations *x, size_t i, vf a, vf b) {
    const float SMALLEST = 1e-30f;
    float largest = vf_largest(vf_max(vf_abs(b), vf_max(vf_abs(a), vf_set1(0.0f))));
    bool finite = !vf_any_nan(vf_add(vf_sub(a, a), vf_sub(b, b))); /* infinity minus itself is NaN as well */
    float inverse = largest > SMALLEST ? 127.0f / largest : 0.0f;
    vi qa = to_integers(a, inverse, 127.0f), qb = to_integers(b, inverse, 127.0f);
    vi_to_s8(x->q + 32 * i, qa);
    vi_to_s8(x->q + 32 * i + 16, qb);
    x->scale[i] = !finite ? NAN : largest > SMALLEST ? largest / 127.0f : 0.0f;
    x->start[i] = -128 * vi_sum(vi_add(qa, qb));
}

static void store_row(Activations *x, size_t row, size_t col, const float *v, size_t n) {
    /* the row's last numbers bring the padding with them */
    size_t end = col + n == x->cols ? x->stride : col + n;
    for (size_t c = col; c < end; c += 32) {
        size_t left = col + n - min(c, col + n);
        vf a = load_up_to(v + (c - col), left, 0.0f);
        vf b = left > 16 ? load_up_to(v + (c - col) + 16, left - 16, 0.0f) : vf_set1(0.0f);
        if (x->f) {
            vf_store(x->f + row * x->stride + c, a);
            vf_store(x->f + row * x->stride + c + 16, b);
        }
        if (x->q)
            quantize(x, acts_block(x, row, c / 32), a, b);
    }
}

static void gather(Activations *dst, const Activations *src, const uint32_t *rows) {
    for (size_t i = 0; i < dst->rows; i++) {
        if (dst->f && src->f)
            memcpy(dst->f + i * dst->stride, src->f + (size_t)rows[i] * src->stride, (size_t)src->stride * 4);
        if (!dst->q || !src->q)
            continue;
        for (size_t block = 0; block < src->stride / 32; block++) {
            size_t to = acts_block(dst, i, block), from = acts_block(src, rows[i], block);
            memcpy(dst->q + 32 * to, src->q + 32 * from, 32);
            dst->scale[to] = src->scale[from];
            dst->start[to] = src->start[from];
        }
    }
}

/* ---- plain vectors -------------------------------------------------------------------------- */

static float dot(const float *a, const float *b, size_t n) {
    vf sum = vf_set1(0.0f);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        sum = vf_fma(vf_load(a + i), vf_load(b + i), sum);
    if (i < n)
        sum = vf_fma(vf_load_n(a + i, n - i, 0.0f), vf_load_n(b + i, n - i, 0.0f), sum);
    return vf_sum(sum);
}

static void axpy(float *y, float s, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        vf_store(y + i, vf_fma(vf_set1(s), vf_load(x + i), vf_load(y + i)));
    if (i < n)
        vf_store_n(y + i, n - i,
                   vf_fma(vf_set1(s), vf_load_n(x + i, n - i, 0.0f), vf_load_n(y + i, n - i, 0.0f)));
}

/* x / sqrt(mean(x^2) + eps) * w (Zhang and Sennrich 2019). NaN where the squares overflow: 1 / infinity
 * would make zeros of them. */
static void rmsnorm(float *y, const float *x, const float *w, size_t n, float eps) {
    float squares = dot(x, x, n);
    vf inverse = vf_set1(squares - squares == 0 ? 1.0f / sqrtf(squares / (float)n + eps) : NAN);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), inverse), vf_load(w + i)));
    if (i < n)
        vf_store_n(y + i, n - i,
                   vf_mul(vf_mul(vf_load_n(x + i, n - i, 0.0f), inverse), vf_load_n(w + i, n - i, 0.0f)));
}

/* silu(gate) = gate / (1 + e^-gate). `most` bounds the gate, `limit` its silu and up. NaN passes the limits,
 * in this order, and infinities become NaN. */
OP vf gated(vf gate, vf up, vf most, vf limit) {
    vf lost = vf_add(vf_sub(gate, gate), vf_sub(up, up));
    gate = vf_min(most, gate);
    vf silu = vf_min(limit, vf_mul(gate, vf_sigmoid(gate)));
    return vf_mul(vf_add(silu, lost), vf_max(vf_sub(vf_set1(0.0f), limit), vf_min(limit, up)));
}

static void swiglu(float *h, const float *gate, const float *up, size_t n, float limit, bool before) {
    vf most = vf_set1(before ? limit : INFINITY), limits = vf_set1(limit);
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        vf_store(h + i, gated(vf_load(gate + i), vf_load(up + i), most, limits));
    if (i < n)
        vf_store_n(h + i, n - i,
                   gated(vf_load_n(gate + i, n - i, 0.0f), vf_load_n(up + i, n - i, 0.0f), most, limits));
}

static void sigmoid(float *x, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        vf_store(x + i, vf_sigmoid(vf_load(x + i)));
    if (i < n)
        vf_store_n(x + i, n - i, vf_sigmoid(vf_load_n(x + i, n - i, 0.0f)));
}

/* log(1 + e^x) = max(x, 0) + log(1 + y), y = e^-|x|. With t = y / (2 + y), at most 1/3, the logarithm is
 * 2 (t + t^3 / 3 + t^5 / 5 + ...): the terms past t^15 are below half a unit in the last place. */
OP vf softplus(vf x) {
    vf y = vf_exp(vf_sub(vf_set1(0.0f), vf_abs(x))), t = vf_div(y, vf_add(vf_set1(2.0f), y));
    vf t2 = vf_mul(t, t), sum = vf_set1(1.0f / 15);
    sum = vf_fma(sum, t2, vf_set1(1.0f / 13));
    sum = vf_fma(sum, t2, vf_set1(1.0f / 11));
    sum = vf_fma(sum, t2, vf_set1(1.0f / 9));
    sum = vf_fma(sum, t2, vf_set1(1.0f / 7));
    sum = vf_fma(sum, t2, vf_set1(1.0f / 5));
    sum = vf_fma(sum, t2, vf_set1(1.0f / 3));
    sum = vf_fma(vf_mul(sum, t2), t, t);
    return vf_fma(vf_set1(2.0f), sum, vf_max(vf_set1(0.0f), x));
}

static void sqrt_softplus(float *x, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        size_t here = min(n - i, 16);
        vf_store_n(x + i, here, vf_sqrt(softplus(vf_load_n(x + i, here, 0.0f))));
    }
}

static void softmax(float *x, size_t n) {
    vf largest = vf_set1(-INFINITY), sum = vf_set1(0.0f);
    for (size_t i = 0; i < n; i += 16)
        largest = vf_max(load_up_to(x + i, n - i, -INFINITY), largest);
    largest = vf_set1(vf_largest(largest));
    for (size_t i = 0; i < n; i += 16) {
        size_t here = min(n - i, 16);
        vf e = vf_exp(vf_sub(vf_load_n(x + i, here, -INFINITY), largest));
        vf_store_n(x + i, here, e);
        sum = vf_add(sum, e);
    }
    sum = vf_set1(vf_sum(sum));
    for (size_t i = 0; i < n; i += 16) {
        size_t here = min(n - i, 16);
        vf_store_n(x + i, here, vf_div(vf_load_n(x + i, here, 0.0f), sum));
    }
}

static void exp_minus(float *x, size_t n, float minus) {
    for (size_t i = 0; i < n; i += 16) {
        size_t here = min(n - i, 16);
        vf v = vf_load_n(x + i, here, -INFINITY);
        /* -inf - -inf would be NaN: what was never there weighs nothing */
        vm absent = vf_gt(vf_set1(-FLT_MAX), v);
        vf_store_n(x + i, here, vf_select(absent, vf_set1(0.0f), vf_exp(vf_sub(v, vf_set1(minus)))));
    }
}
