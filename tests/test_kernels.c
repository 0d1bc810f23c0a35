/* tests/test_kernels.c: the inner loops of kernels/ against plain C in double precision, libm, and each
 * other.
 *
 * For every instruction set that this machine can run: results are right (judged by formulas written down
 * here from kernels.h, never by the kernels themselves), stay inside their buffers, and have the same
 * bytes as portable's. The attention functions have their own test. One line per check; exit status 1 if
 * any failed. An argument N runs one in N of the random rounds: builds with sanitizers are slow. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

static const Kernels *sets[5]; /* portable first */
static size_t n_sets;
static int failures;
static int every = 1; /* of the random rounds one in so many is run */

static void report(const char *set, const char *name, bool ok, const char *detail) {
    printf("%s %s/%s%s%s\n", ok ? "ok" : "FAIL", set, name, ok ? "" : " ", ok ? "" : detail);
    failures += !ok;
}

/* ---- random numbers, buffers with guards ---------------------------------------------------- */

static uint64_t seed = 88172645463325252u;

static uint32_t bits(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32);
}
static size_t below(size_t n) { return bits() % n; }
static float uniform(float lo, float hi) { return lo + (hi - lo) * ((float)(bits() >> 8) * 0x1p-24f); }
static float any_float(void) { /* every bit pattern that is a number, infinities too */
    for (;;) {
        uint32_t u = bits();
        float f;
        memcpy(&f, &u, 4);
        if (!isnan(f))
            return f;
    }
}

enum { GUARD = 256 };

/* n bytes on a 64-byte boundary between guards that unguard() checks. */
static void *guarded(size_t n) {
    uint8_t *p = aligned_alloc(64, round_up(n, 64) + 2 * GUARD);
    if (!p)
        exit(2);
    memset(p, 0xA5, round_up(n, 64) + 2 * GUARD);
    return p + GUARD;
}
static bool unguard(void *p, size_t n) {
    uint8_t *u = p;
    bool intact = true;
    for (size_t i = 0; i < GUARD; i++)
        intact &= u[-1 - (ptrdiff_t)i] == 0xA5 && u[n + i] == 0xA5;
    free(u - GUARD);
    return intact;
}

/* ---- a matrix in plain form and in panels --------------------------------------------------- */

static const char *const TYPE_NAMES[] = {"vector", "f32", "bf16", "q8", "q4"};

typedef struct {
    Matrix m;
    uint8_t *panels;
    int8_t codebook[16];
    double *value; /* [rows][cols], what the panels stand for */
} Weights;

static double f16_value(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double v = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h & 0x8000 ? -v : v;
}

static void store16(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

/* One weight at (r, c), random, into its place in the panel; returns its value. */
static double place(Weights *w, size_t r, size_t c) {
    uint8_t *panel = w->panels + r / 16 * panel_bytes(w->m.type, w->m.cols);
    size_t lane = r % 16, half = c % 64 / 32;
    if (w->m.type == TYPE_F32) {
        float f = uniform(-1, 1);
        memcpy(panel + (c * 16 + lane) * 4, &f, 4);
        return f;
    }
    if (w->m.type == TYPE_BF16) {
        uint32_t u;
        float f = uniform(-1, 1);
        memcpy(&u, &f, 4);
        u &= 0xffff0000;
        store16(panel + (c * 16 + lane) * 2, (uint16_t)(u >> 16));
        memcpy(&f, &u, 4);
        return f;
    }
    uint8_t *block = panel + c / 64 * (w->m.type == TYPE_Q8 ? 1088 : 576),
            *scale = block + (half * 16 + lane) * 2;
    /* subnormal ones too */
    if (c % 32 == 0)
        store16(scale, (uint16_t)(below(8) ? 0x2000 + below(0x2000) : below(0x400)));
    uint16_t h;
    memcpy(&h, scale, 2);
    int integer;
    if (w->m.type == TYPE_Q8) {
        integer = below(8) ? (int)below(255) - 127 : (below(2) ? 127 : -127);
        block[64 + c % 64 / 4 * 64 + lane * 4 + c % 4] = (uint8_t)(integer + 128);
    } else {
        size_t nibble = below(16), u = c % 16 / 4;
        integer = w->codebook[nibble];
        block[64 + (4 * half + u) * 64 + lane * 4 + c % 4] |= (uint8_t)(c % 32 < 16 ? nibble : nibble << 4);
    }
    return integer * f16_value(h) * w->m.scale;
}

static Weights make_weights(uint32_t type, size_t rows, size_t cols) {
    bool quantized = type == TYPE_Q8 || type == TYPE_Q4;
    Weights w = {.m = {.type = type,
                       .rows = (uint32_t)rows,
                       .cols = (uint32_t)cols,
                       .scale = quantized ? uniform(0.5f, 2) : 1}};
    size_t bytes = matrix_panels(&w.m) * panel_bytes(type, cols);
    w.panels = aligned_alloc(64, round_up(bytes, 64));
    w.value = calloc(rows * cols, sizeof *w.value);
    if (!w.panels || !w.value)
        exit(2);
    memset(w.panels, 0, bytes);
    if (type == TYPE_Q8) /* padding is weight 0: byte 128, scale 0 */
        for (size_t b = 0; b < bytes; b += 1088)
            memset(w.panels + b + 64, 128, 1024);
    bool narrow = below(2); /* a codebook of 7 bits may have a way of its own */
    for (int i = 0; i < 16; i++)
        w.codebook[i] = (int8_t)(narrow    ? (i == 0    ? -64
                                              : i == 15 ? 63
                                                        : (int)below(128) - 64)
                                 : i == 0  ? -127
                                 : i == 15 ? 127
                                           : (int)below(255) - 127);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            w.value[r * cols + c] = place(&w, r, c);
    w.m.data = w.panels;
    return w;
}

/* Its codebook lies in the struct, so the matrix is finished where the struct stays. */
static const Matrix *matrix(Weights *w) {
    w->m.codebook = w->codebook;
    return &w->m;
}
static void free_weights(Weights *w) {
    free(w->panels);
    free(w->value);
}

/* ---- activations ---------------------------------------------------------------------------- */

typedef struct {
    Activations a;
    size_t n; /* rows * stride */
} Rows;

static Rows make_rows(size_t rows, size_t cols) {
    size_t stride = round_up(cols, 64), n = rows * stride;
    return (Rows){{(uint32_t)rows, (uint32_t)cols, (uint32_t)stride, guarded(n * 4), guarded(n),
                   guarded(n / 8), guarded(n / 8)},
                  n};
}
static bool free_rows(Rows *r) {
    bool intact = unguard(r->a.f, r->n * 4);
    intact &= unguard(r->a.q, r->n);
    intact &= unguard(r->a.scale, r->n / 8);
    intact &= unguard(r->a.start, r->n / 8);
    return intact;
}
static bool same_rows(const Rows *a, const Rows *b) {
    return !memcmp(a->a.f, b->a.f, a->n * 4) && !memcmp(a->a.q, b->a.q, a->n) &&
           !memcmp(a->a.scale, b->a.scale, a->n / 8) && !memcmp(a->a.start, b->a.start, a->n / 8);
}
/* The block of 32 columns that holds (row, col), as kernels.h lays it out. */
static size_t block_of(const Activations *a, size_t row, size_t col) {
    size_t first = row - row % 16, group = a->rows - first < 16 ? a->rows - first : 16;
    return first * a->stride / 32 + col / 32 * group + row % 16;
}
static void put_all(const Kernels *ops, Rows *x, const float *v) {
    for (size_t r = 0; r < x->a.rows; r++) {
        size_t cut = below(x->a.cols / 32 + 1) * 32; /* in two pieces, as heads come one by one */
        if (cut)
            ops->store_row(&x->a, r, 0, v + r * x->a.cols, cut);
        if (cut < x->a.cols)
            ops->store_row(&x->a, r, cut, v + r * x->a.cols + cut, x->a.cols - cut);
    }
}

/* put: largest magnitude of 32 becomes 127, the rest is rounded to nearest even; padding is zero. */
static bool rows_are_right(const Rows *x, const float *v) {
    const Activations *a = &x->a;
    for (size_t r = 0; r < a->rows; r++)
        for (size_t c = 0; c < a->stride; c += 32) {
            size_t b = block_of(a, r, c);
            float row[32] = {0}, largest = 0;
            for (size_t i = 0; i < 32 && c + i < a->cols; i++) {
                row[i] = v[r * a->cols + c + i];
                largest = fmaxf(largest, fabsf(row[i]));
            }
            int32_t sum = 0;
            for (size_t i = 0; i < 32; i++) {
                int32_t q = largest > 0 ? (int32_t)lrintf(row[i] * (127 / largest)) : 0;
                sum += q;
                if (a->q[32 * b + i] != q || memcmp(&a->f[r * a->stride + c + i], &row[i], 4))
                    return false;
            }
            if (a->scale[b] != largest / 127 || a->start[b] != -128 * sum)
                return false;
        }
    return true;
}

/* ---- checks --------------------------------------------------------------------------------- */

/* Protects: the int8 form of activations, its layout, and copies of rows to an expert's batch. */
static void check_put_and_gather(const Kernels *ops) {
    bool right = true, copied = true, same = true, inside = true;
    for (int round = 0; round < 300; round += every) {
        size_t rows = 1 + below(40), cols = 1 + below(200), picks = 1 + below(40);
        Rows x = make_rows(rows, cols), p = make_rows(rows, cols), g = make_rows(picks, cols),
             q = make_rows(picks, cols);
        float *v = malloc(rows * cols * 4), *chosen = malloc(picks * cols * 4);
        uint32_t *pick = malloc(picks * 4);
        float size = ldexpf(1, (int)below(40) - 20);
        for (size_t i = 0; i < rows * cols; i++)
            v[i] = below(50) ? uniform(-size, size) : 0;
        if (below(4) == 0)
            memset(v, 0, cols * 4);
        put_all(ops, &x, v);
        put_all(sets[0], &p, v);
        for (size_t i = 0; i < picks; i++) {
            pick[i] = (uint32_t)below(rows);
            memcpy(chosen + i * cols, v + pick[i] * cols, cols * 4);
        }
        ops->gather(&g.a, &x.a, pick);
        put_all(ops, &q, chosen);
        right &= rows_are_right(&x, v);
        same &= same_rows(&x, &p);
        copied &= same_rows(&g, &q);
        Rows *all[4] = {&x, &p, &g, &q};
        for (int i = 0; i < 4; i++)
            inside &= free_rows(all[i]);
        free(v);
        free(chosen);
        free(pick);
    }
    report(ops->name, "put", right, "differs from plain C");
    report(ops->name, "put-same-bytes", same, "differs from portable");
    report(ops->name, "gather", copied, "differs from putting the same rows");
    report(ops->name, "put-gather-bounds", inside, "wrote outside its rows");
}

/* Protects: numbers no model should have (infinity, NaN, subnormals) are survived in the same way
 * everywhere. */
static void check_put_strange(const Kernels *ops) {
    bool same = true;
    for (int round = 0; round < 200; round += every) {
        float v[70];
        for (int i = 0; i < 70; i++)
            v[i] = below(3) ? any_float() : below(2) ? NAN : 1e-40f * (float)below(100);
        Rows x = make_rows(1, 70), p = make_rows(1, 70);
        put_all(ops, &x, v);
        put_all(sets[0], &p, v);
        same &= !memcmp(x.a.q, p.a.q, x.n) && !memcmp(x.a.scale, p.a.scale, x.n / 8) &&
                !memcmp(x.a.start, p.a.start, x.n / 8);
        for (size_t i = 0; i < x.n; i++)
            same &= x.a.q[i] >= -127;
        free_rows(&x);
        free_rows(&p);
    }
    report(ops->name, "put-strange", same, "differs from portable or leaves -127 .. 127");
}

/* |y - exact| in units of what rounding in f32, in this order, may cost. */
static bool product_is_right(const Weights *w, const Rows *x, const float *y, size_t ldy, size_t panel,
                             size_t panels) {
    bool quantized = w->m.type == TYPE_Q8 || w->m.type == TYPE_Q4;
    for (size_t r = 0; r < x->a.rows; r++)
        for (size_t o = 16 * panel; o < 16 * (panel + panels) && o < w->m.rows; o++) {
            double exact = 0, size = 0;
            for (size_t c = 0; c < w->m.cols; c++) {
                size_t b = block_of(&x->a, r, c);
                double a =
                    quantized ? (double)x->a.q[32 * b + c % 32] * x->a.scale[b] : x->a.f[r * x->a.stride + c];
                exact += w->value[o * w->m.cols + c] * a;
                size += fabs(w->value[o * w->m.cols + c] * a);
            }
            double steps = quantized ? (double)w->m.cols / 32 + 4 : (double)w->m.cols;
            if (!(fabs(y[r * ldy + o - 16 * panel] - exact) <= size * steps * 0x1p-24 + 1e-37))
                return false;
        }
    return true;
}

/* Protects: every product of weights and activations, of each type, at any number of rows and any range of
 * panels, with panels unpacked first and without. */
static void check_matmul(const Kernels *ops) {
    for (uint32_t type = TYPE_F32; type < TYPE_COUNT; type++) {
        bool right = true, same = true, inside = true;
        for (int round = 0; round < 120; round += every) {
            bool large = round >= 108;
            size_t rows = large ? 1 + below(600) : 1 + below(40),
                   cols = large ? 1 + below(3000) : 1 + below(200), n = 1 + below(40);
            Weights w = make_weights(type, rows, cols);
            size_t panel = below(matrix_panels(&w.m)), panels = 1 + below(matrix_panels(&w.m) - panel),
                   ldy = 16 * panels + below(3) * 5;
            Rows x = make_rows(n, cols);
            float *v = malloc(n * cols * 4), *y = guarded(n * ldy * 4), *p = guarded(n * ldy * 4);
            for (size_t i = 0; i < n * cols; i++) /* now and then only numbers that become -127 and 127 */
                v[i] = round % 7 ? uniform(-3, 3) : below(2) ? 3 : -3;
            put_all(sets[0], &x, v);
            *ops->many_rows = round % 3 ? 1 : SIZE_MAX;
            ops->matmul(y, ldy, matrix(&w), panel, panels, &x.a);
            *sets[0]->many_rows = SIZE_MAX;
            sets[0]->matmul(p, ldy, matrix(&w), panel, panels, &x.a);
            right &= product_is_right(&w, &x, y, ldy, panel, panels);
            same &= !memcmp(y, p, n * ldy * 4);
            inside &= unguard(y, n * ldy * 4);
            inside &= unguard(p, n * ldy * 4);
            inside &= free_rows(&x);
            free(v);
            free_weights(&w);
        }
        char name[64];
        snprintf(name, sizeof name, "matmul-%s", TYPE_NAMES[type]);
        report(ops->name, name, right, "differs from the product in double");
        snprintf(name, sizeof name, "matmul-%s-same-bytes", TYPE_NAMES[type]);
        report(ops->name, name, same, "differs from portable");
        snprintf(name, sizeof name, "matmul-%s-bounds", TYPE_NAMES[type]);
        report(ops->name, name, inside, "wrote outside y");
    }
}

/* Protects: one row's result does not depend on the rows computed with it (a draft is checked in a batch,
 * a prompt comes in chunks). */
static void check_matmul_batches(const Kernels *ops) {
    enum { ROWS = 80 };
    bool same = true;
    for (uint32_t type = TYPE_F32; type < TYPE_COUNT; type++) {
        size_t cols = 200, n = 39;
        Weights w = make_weights(type, ROWS, cols);
        float v[39 * 200], all[39 * ROWS], one[ROWS];
        for (size_t i = 0; i < n * cols; i++)
            v[i] = uniform(-3, 3);
        Rows x = make_rows(n, cols);
        put_all(ops, &x, v);
        *ops->many_rows = 2;
        ops->matmul(all, ROWS, matrix(&w), 0, ROWS / 16, &x.a);
        for (size_t r = 0; r < n; r++) {
            Rows alone = make_rows(1, cols);
            put_all(ops, &alone, v + r * cols);
            ops->matmul(one, ROWS, matrix(&w), 0, ROWS / 16, &alone.a);
            same &= !memcmp(one, all + r * ROWS, sizeof one);
            free_rows(&alone);
        }
        free_rows(&x);
        free_weights(&w);
    }
    report(ops->name, "matmul-batches", same, "a row's result depends on its neighbours");
}

/* Protects: embeddings. */
static void check_row(const Kernels *ops) {
    bool right = true;
    for (uint32_t type = TYPE_F32; type < TYPE_COUNT; type++)
        for (int round = 0; round < 50; round += every) {
            size_t rows = 1 + below(40), cols = 1 + below(200), r = below(rows);
            Weights w = make_weights(type, rows, cols);
            float *out = guarded(cols * 4);
            ops->read_row(out, matrix(&w), r);
            for (size_t c = 0; c < cols; c++) {
                double exact = w.value[r * cols + c];
                right &= fabs(out[c] - exact) <= fabs(exact) * 0x1p-23;
            }
            uint8_t *end = (uint8_t *)(out + cols);
            right &= end[0] == 0xA5 && unguard(out, round_up(cols * 4, 64));
            free_weights(&w);
        }
    report(ops->name, "row", right, "differs from the matrix");
}

static double ulps(float got, double exact) {
    if (!(fabs(exact) < 3.4028235677973366e38))
        return got == (float)exact ? 0 : INFINITY;
    int e;
    frexp(exact, &e);
    double ulp = ldexp(1, (e > -125 ? e : -125) - 24);
    return fabs(got - exact) / ulp;
}

/* Protects: exp, and with it softmax, sigmoid and silu, over all of their range; judged by libm in double. */
static void check_exp(const Kernels *ops) {
    double worst_sigmoid = 0, worst_silu = 0, worst_softmax = 0;
    bool same = true, ends;
    for (int round = 0; round < 4000; round += every) {
        enum { N = 61 };
        float x[N], s[N], h[N], p[N], ps[N], ph[N], pp[N], one[N];
        float range = round % 2 ? 110.0f : 4.0f;
        double sum = 0, largest = -INFINITY;
        for (int i = 0; i < N; i++) {
            x[i] = s[i] = p[i] = ps[i] = pp[i] = uniform(-range, range);
            one[i] = 1;
            largest = fmax(largest, x[i]);
        }
        ops->sigmoid(s, N);
        ops->swiglu(h, x, one, N, INFINITY, false);
        ops->softmax(p, N);
        sets[0]->sigmoid(ps, N);
        sets[0]->swiglu(ph, x, one, N, INFINITY, false);
        sets[0]->softmax(pp, N);
        same &= !memcmp(s, ps, sizeof s) && !memcmp(h, ph, sizeof h) && !memcmp(p, pp, sizeof p);
        for (int i = 0; i < N; i++)
            sum += exp((float)(x[i] - (float)largest));
        for (int i = 0; i < N; i++) {
            double sigma = 1 / (1 + exp(-(double)x[i]));
            if (x[i] > -87) {
                worst_sigmoid = fmax(worst_sigmoid, ulps(s[i], sigma));

                worst_silu = fmax(worst_silu, ulps(h[i], x[i] * sigma));
            }
            worst_softmax = fmax(worst_softmax, ulps(p[i], exp((float)(x[i] - (float)largest)) / sum));
        }
    }
    float edge[4] = {-INFINITY, 0, -INFINITY, -200}, far[2] = {INFINITY, -INFINITY};
    ops->softmax(edge, 4);
    ops->sigmoid(far, 2);
    ends = edge[0] == 0 && edge[1] == 1 && edge[2] == 0 && edge[3] == 0 && far[0] == 1 && far[1] == 0;
    char detail[128];
    snprintf(detail, sizeof detail, "worst: sigmoid %.2f, silu %.2f, softmax %.2f ulp", worst_sigmoid,
             worst_silu, worst_softmax);
    /* softmax: 1 for e^x, 1 for those in the sum, 1/2 for the quotient and for each of 8 additions */
    bool close = worst_sigmoid <= 2.5 && worst_silu <= 3.5 && worst_softmax <= 6.5;
    report(ops->name, "exp-ulp", close, detail);
    report(ops->name, "exp-same-bytes", same, "differs from portable");
    report(ops->name, "exp-ends", ends, "exp(-infinity) is not 0");
}

/* Protects: the one rounding of a fused multiply-add, on which "the same bytes" rests; judged by libm. */
static void check_fma(const Kernels *ops) {
    bool right = true;
    for (int round = 0; round < 2000000; round += every) {
        float a = any_float(), b = any_float(), c = any_float();
        if (round % 2) { /* near ties: a product that ends in the middle between two floats, and a trifle */
            a = ldexpf((float)(1 + below(4096)), (int)below(40) - 20);

            b = ldexpf((float)(1 + below(4096)), (int)below(40) - 20);
            c = ldexpf(below(2) ? a * b : -a * b, (int)below(60) - 30);
        }
        float got = c, exact = fmaf(a, b, c);
        ops->axpy(&got, a, &b, 1);
        right &= isnan(exact) ? isnan(got) : !memcmp(&got, &exact, 4);
    }
    report(ops->name, "fma", right, "differs from fmaf");
}

/* Protects: norms and reductions, at any length and in place. */
static void check_vectors(const Kernels *ops) {
    bool right = true, same = true, inside = true;
    for (int round = 0; round < 500; round += every) {
        size_t n = 1 + below(300);
        float *x = guarded(n * 4), *w = guarded(n * 4), *y = guarded(n * 4), *p = guarded(n * 4);
        double square = 0, product = 0, size = 0;
        for (size_t i = 0; i < n; i++) {
            x[i] = uniform(-2, 2);
            w[i] = uniform(-2, 2);
            square += (double)x[i] * x[i];
            product += (double)x[i] * w[i];
            size += fabs((double)x[i] * w[i]);
        }
        ops->rmsnorm(y, x, w, n, 1e-6f);
        sets[0]->rmsnorm(p, x, w, n, 1e-6f);
        same &= !memcmp(y, p, n * 4);
        for (size_t i = 0; i < n; i++) {
            double exact = x[i] / sqrt(square / (double)n + 1e-6f) * w[i];
            right &= fabs(y[i] - exact) <= fabs(exact) * 16 * 0x1p-24;
        }
        float d = ops->dot(x, w, n), pd = sets[0]->dot(x, w, n);
        right &= fabs(d - product) <= size * 24 * 0x1p-24;
        same &= !memcmp(&d, &pd, 4);
        memcpy(y, x, n * 4);
        memcpy(p, x, n * 4);
        ops->axpy(y, 0.37f, w, n);
        for (size_t i = 0; i < n; i++)
            right &= y[i] == fmaf(0.37f, w[i], x[i]);
        ops->rmsnorm(p, p, w, n, 1e-6f);
        memcpy(y, x, n * 4);
        sets[0]->rmsnorm(y, x, w, n, 1e-6f);
        same &= !memcmp(y, p, n * 4);
        ops->swiglu(p, x, w, n, INFINITY, false);
        memcpy(y, x, n * 4);
        ops->swiglu(y, y, w, n, INFINITY, false); /* h may be gate */
        same &= !memcmp(y, p, n * 4);
        float *all[4] = {x, w, y, p};
        for (int i = 0; i < 4; i++)
            inside &= unguard(all[i], round_up(n * 4, 64));
    }
    report(ops->name, "vectors", right, "rmsnorm, dot or axpy differ from double precision");
    report(ops->name, "vectors-same-bytes", same, "differs from portable");
    report(ops->name, "vectors-bounds", inside, "wrote outside");
}

/* Protects: the limits of SwiGLU, after silu and before it; a number that is not finite is not made one. */
static void check_limits(const Kernels *ops) {
    bool right = true, same = true;
    for (int round = 0; round < 2000; round += every) {
        float gate = uniform(-8, 8), up = uniform(-8, 8), limit = uniform(0.1f, 4), h, p;
        bool before = round % 2;
        ops->swiglu(&h, &gate, &up, 1, limit, before);
        sets[0]->swiglu(&p, &gate, &up, 1, limit, before);
        double most = (double)limit, x = before ? fmin((double)gate, most) : (double)gate;
        double silu = x / (1 + exp(-x));
        double exact = (before ? silu : fmin(silu, most)) * fmax(-most, fmin((double)up, most));
        right &= fabs(h - exact) <= fabs(exact) * 8 * 0x1p-24;
        same &= !memcmp(&h, &p, 4);
    }
    float one = 1, lost[3] = {INFINITY, -INFINITY, NAN}, h;
    for (int i = 0; i < 6; i++) {
        ops->swiglu(&h, &lost[i % 3], &one, 1, 2, i < 3);
        right &= !isfinite(h);
        ops->swiglu(&h, &one, &lost[i % 3], 1, 2, i < 3);
        right &= !isfinite(h);
    }
    report(ops->name, "swiglu-limits", right, "differ from double precision");
    report(ops->name, "swiglu-limits-same-bytes", same, "differs from portable");
}

/* Protects: the square root of log(1 + e^x), which weighs experts, over the range of floats and at any
 * length. */
static void check_sqrt_softplus(const Kernels *ops) {
    bool right = true, same = true;
    double worst = 0;
    for (int round = 0; round < 3000; round++) {
        size_t n = 1 + below(40);
        float x[40], y[40], p[40], range = round % 3 == 0 ? 100 : round % 3 == 1 ? 10 : 0.01f;
        for (size_t i = 0; i < n; i++)
            x[i] = y[i] = p[i] = uniform(-range, range);
        ops->sqrt_softplus(y, n);
        sets[0]->sqrt_softplus(p, n);
        same &= !memcmp(y, p, n * 4);
        for (size_t i = 0; i < n; i++)
            if (x[i] > -87) /* below, e^x is too small for a float of full precision */
                worst = fmax(worst, ulps(y[i], sqrt(log1p(exp((double)x[i])))));
            else
                right &= y[i] >= 0 && y[i] < 1e-18f;
    }
    float far[3] = {-1e30f, 1e30f, NAN};
    ops->sqrt_softplus(far, 3);
    right &= worst <= 3 && far[0] == 0 && far[1] == 1e15f && isnan(far[2]);
    char detail[64];
    snprintf(detail, sizeof detail, "differs from libm, by %.2f ulp at most", worst);
    report(ops->name, "sqrt-softplus", right, detail);
    report(ops->name, "sqrt-softplus-same-bytes", same, "differs from portable");
}

/* Protects: what makes the rows of a linear attention ready, at any length. */
static void check_rows_of_delta(const Kernels *ops) {
    bool right = true, same = true;
    for (int round = 0; round < 300; round += every) {
        size_t n = 1 + below(140), taps = 2 + below(6), ld = n + below(9);
        float u[8][140], w[8 * 160], y[140], p[140], lower = round % 2 ? -uniform(0.5f, 8) : 0,
                                                     rate = uniform(-2, 2);
        const float *rows[8];
        for (size_t j = 0; j < taps; j++) {
            rows[j] = u[j];
            for (size_t i = 0; i < n; i++)
                u[j][i] = uniform(-3, 3);
        }
        for (size_t i = 0; i < taps * ld; i++)
            w[i] = uniform(-1, 1);
        ops->convolve(y, rows, w, ld, taps, n);
        sets[0]->convolve(p, rows, w, ld, taps, n);
        same &= !memcmp(y, p, n * 4);
        for (size_t i = 0; i < n; i++) {
            double sum = 0, size = 0;
            for (size_t j = 0; j < taps; j++) {
                sum += (double)w[j * ld + i] * u[j][i];
                size += fabs((double)w[j * ld + i] * u[j][i]);
            }
            right &= fabs(y[i] - sum / (1 + exp(-sum))) <= (size + 1) * 16 * 0x1p-24;
        }
        ops->decay(y, u[0], u[1], rate, lower, n);
        sets[0]->decay(p, u[0], u[1], rate, lower, n);
        same &= !memcmp(y, p, n * 4);
        for (size_t i = 0; i < n; i++) {
            double z = (double)(u[0][i] + u[1][i]), r = exp((double)rate);
            double exact = exp(lower < 0 ? (double)lower / (1 + exp(-r * z)) : -r * log1p(exp(z)));
            right &= fabs(y[i] - exact) <= exact * 1e-5 + 1e-30;
        }
        double squares = 1e-6;
        for (size_t i = 0; i < n; i++)
            squares += (double)u[0][i] * u[0][i];
        memcpy(y, u[0], n * 4);
        memcpy(p, u[0], n * 4);
        ops->set_length(y, n, 0.25f, 1e-6f);
        sets[0]->set_length(p, n, 0.25f, 1e-6f);
        same &= !memcmp(y, p, n * 4);
        for (size_t i = 0; i < n; i++)
            right &= fabs(y[i] - 0.25 * u[0][i] / sqrt(squares)) <= fabs((double)u[0][i]) * 1e-6;
    }
    float z = -INFINITY, zero = 0, y;
    ops->decay(&y, &z, &zero, 0, -5, 1);
    right &= isnan(y);
    report(ops->name, "delta-rows", right, "differ from double precision");
    report(ops->name, "delta-rows-same-bytes", same, "differs from portable");
}

/* Protects: the delta rule by its equations, and that calls may be cut between any two rows. */
static void check_delta(const Kernels *ops) {
    enum { MOST_KEYS = 70, STRIDE = 96, MOST_ROWS = 11 };
    bool right = true, same = true, cut = true;
    for (int round = 0; round < 200; round += every) {
        size_t keys = 1 + below(MOST_KEYS), n = 1 + below(MOST_ROWS), column = 32 * below(3), at = below(n);
        static float q[MOST_ROWS * STRIDE], k[MOST_ROWS * STRIDE], decay[MOST_ROWS * STRIDE],
            v[MOST_ROWS * STRIDE], beta[MOST_ROWS], kq[MOST_ROWS], from[MOST_KEYS * 32];
        static float to[3][MOST_KEYS * 32], out[3][MOST_ROWS * STRIDE];
        static double memory[MOST_KEYS * 32];
        for (size_t i = 0; i < n * STRIDE; i++) {
            q[i] = uniform(-1, 1) / sqrtf((float)keys);
            k[i] = uniform(-1, 1) / sqrtf((float)keys);
            decay[i] = uniform(0.5f, 1);
            v[i] = uniform(-1, 1);
        }
        for (size_t t = 0; t < n; t++) {
            beta[t] = uniform(0, 1);
            kq[t] = sets[0]->dot(k + t * STRIDE, q + t * STRIDE, keys);
        }
        for (size_t i = 0; i < keys * 32; i++)
            memory[i] = from[i] = uniform(-1, 1);
        for (int way = 0; way < 3; way++) {
            memcpy(out[way], v, sizeof v);
            DeltaRows x = {q, k, decay, out[way], beta, kq, n, STRIDE, keys};
            if (way < 2) {
                (way ? sets[0] : ops)->delta(to[way], from, &x, column);
                continue;
            }
            DeltaRows rest = {q + at * STRIDE,
                              k + at * STRIDE,
                              decay + at * STRIDE,
                              out[way] + at * STRIDE,
                              beta + at,
                              kq + at,
                              n - at,
                              STRIDE,
                              keys};
            x.rows = at;
            if (at)
                ops->delta(to[way], from, &x, column);
            ops->delta(to[way], at ? to[way] : from, &rest, column);
        }
        same &= !memcmp(to[0], to[1], keys * 32 * 4) && !memcmp(out[0], out[1], sizeof out[0]);
        cut &= !memcmp(to[0], to[2], keys * 32 * 4) && !memcmp(out[0], out[2], sizeof out[0]);
        for (size_t t = 0; t < n; t++)
            for (size_t j = 0; j < 32; j++) {
                double known = 0, answer = 0, r;
                for (size_t i = 0; i < keys; i++)
                    known += (memory[i * 32 + j] *= (double)decay[t * STRIDE + i]) * k[t * STRIDE + i];
                r = beta[t] * (v[t * STRIDE + column + j] - known);
                for (size_t i = 0; i < keys; i++)
                    answer += (memory[i * 32 + j] += r * k[t * STRIDE + i]) * q[t * STRIDE + i];
                right &= fabs(out[0][t * STRIDE + column + j] - answer) <= 2e-6;
            }
        for (size_t i = 0; i < keys * 32; i++)
            right &= fabs(to[0][i] - memory[i]) <= 2e-6;
    }
    report(ops->name, "delta", right, "differs from double precision");
    report(ops->name, "delta-same-bytes", same, "differs from portable");
    report(ops->name, "delta-any-cut", cut, "differs when a call is cut in two");
}

int main(int argc, char **argv) {
    static const char *const NAMES[] = {"portable", "avx2", "avxvnni", "avx512", "neon"};
    const char *why = "";
    if (argc > 1)
        every = atoi(argv[1]);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        setenv("MLA_ISA", NAMES[i], 1);
        const Kernels *ops = kernels_choose(&why);
        if (ops)
            sets[n_sets++] = ops;
    }
    setenv("MLA_ISA", "none", 1);
    report("dispatch", "unknown-set-is-refused",
           !kernels_choose(&why) && strstr(why, "none") && strstr(why, "portable"), why);
    unsetenv("MLA_ISA");
    const Kernels *fastest = kernels_choose(&why);
    setenv("MLA_ISA", "", 1);
    report("dispatch", "empty-is-unset", fastest && kernels_choose(&why) == fastest, why);
    for (size_t i = 0; i < n_sets; i++) {
        check_put_and_gather(sets[i]);
        check_put_strange(sets[i]);
        check_matmul(sets[i]);
        check_matmul_batches(sets[i]);
        check_row(sets[i]);
        check_exp(sets[i]);
        check_fma(sets[i]);
        check_vectors(sets[i]);
    }
    for (size_t i = 0; i < n_sets; i++) {
        check_limits(sets[i]);
        check_sqrt_softplus(sets[i]);
        check_rows_of_delta(sets[i]);
        check_delta(sets[i]);
    }
    return failures ? 1 : 0;
}
