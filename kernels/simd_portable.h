/* kernels/simd_portable.h: the vectors of simd.h in plain C. These loops are the definition: what an
 * operation does, to the last bit, is what is written here, and the other instruction sets are tested against
 * it. */
#ifndef SIMD_PORTABLE_H
#define SIMD_PORTABLE_H

#define ISA_NAME portable
enum { REG_ROWS = 4, ABREAST = 1, MANY_PANELS = 1, MANY_ROWS = 4, FAR_PAYS = 0 };

typedef struct {
    float v[16];
} vf;
typedef struct {
    int32_t v[16];
} vi;
typedef struct {
    int32_t v[16];
} vm;
typedef struct {
    int8_t v[64];
} vb;
typedef struct {
    int8_t v[4];
} va;
typedef struct {
    int8_t v[16];
} vt;

#define LANES16(type, expression) \
    type r;                       \
    for (int i = 0; i < 16; i++)  \
        r.v[i] = (expression);    \
    return r

OP vf vf_set1(float x) { LANES16(vf, x); }
OP vf vf_load(const float *p) { LANES16(vf, p[i]); }
OP void vf_store(float *p, vf a) { memcpy(p, a.v, 64); }
OP vf vf_add(vf a, vf b) { LANES16(vf, a.v[i] + b.v[i]); }
OP vf vf_sub(vf a, vf b) { LANES16(vf, a.v[i] - b.v[i]); }
OP vf vf_mul(vf a, vf b) { LANES16(vf, a.v[i] * b.v[i]); }
OP vf vf_div(vf a, vf b) { LANES16(vf, a.v[i] / b.v[i]); }
OP vf vf_fma(vf a, vf b, vf c) { LANES16(vf, fmaf(a.v[i], b.v[i], c.v[i])); } /* a * b + c, rounded once */
OP vf vf_max(vf a, vf b) { LANES16(vf, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }  /* b if either is NaN */
OP vf vf_min(vf a, vf b) { LANES16(vf, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
OP vf vf_abs(vf a) { LANES16(vf, float_of(bits_of(a.v[i]) & 0x7fffffff)); }
OP vf vf_sqrt(vf a) { LANES16(vf, sqrtf(a.v[i])); }
OP vm vf_gt(vf a, vf b) { LANES16(vm, -(a.v[i] > b.v[i])); }
OP vf vf_select(vm m, vf a, vf b) { LANES16(vf, m.v[i] ? a.v[i] : b.v[i]); } /* m ? a : b */

OP vi vi_set1(int32_t x) { LANES16(vi, x); }
OP vi vi_load(const int32_t *p) { LANES16(vi, p[i]); }
OP void vi_store(int32_t *p, vi a) { memcpy(p, a.v, 64); }
OP vi vi_add(vi a, vi b) { LANES16(vi, a.v[i] + b.v[i]); }
OP vi vi_sub(vi a, vi b) { LANES16(vi, a.v[i] - b.v[i]); }
OP vi vi_and(vi a, vi b) { LANES16(vi, a.v[i] & b.v[i]); }
OP vm vi_gt(vi a, vi b) { LANES16(vm, -(a.v[i] > b.v[i])); }
#define vi_shl(a, bits) vi_shl_(a, bits) /* macros, because instructions want the count as a constant */
#define vi_sar(a, bits) vi_sar_(a, bits)
OP vi vi_shl_(vi a, int bits) { LANES16(vi, (int32_t)((uint32_t)a.v[i] << bits)); }
OP vi vi_sar_(vi a, int bits) { LANES16(vi, a.v[i] >> bits); } /* keeps the sign */

/* To the nearest integer, ties to even, for |a| < 2^22. Adding 1.5 * 2^23 leaves the integer in the low
 * bits. */
OP vi vf_to_int(vf a) { LANES16(vi, (int32_t)(bits_of(a.v[i] + 0x1.8p23f) - bits_of(0x1.8p23f))); }
OP vf vi_to_float(vi a) { LANES16(vf, (float)a.v[i]); }
OP vf vi_as_float(vi a) { LANES16(vf, float_of((uint32_t)a.v[i])); } /* the same bits */
OP vf vf_from_f16(const void *p) {
    uint16_t h[16];
    memcpy(h, p, 32);
    LANES16(vf, f32_from_f16(h[i]));
}
OP vf vf_from_bf16(const void *p) {
    uint16_t h[16];
    memcpy(h, p, 32);
    LANES16(vf, f32_from_bf16(h[i]));
}
OP void vf_to_bf16(void *p, vf a) {
    uint16_t h[16];
    for (int i = 0; i < 16; i++)
        h[i] = bf16_from_f32(a.v[i]);
    memcpy(p, h, 32);
}
OP vi vi_from_s8(const int8_t *p) { LANES16(vi, p[i]); }
OP void vi_to_s8(int8_t *p, vi a) { /* each in -128 .. 127 */
    for (int i = 0; i < 16; i++)
        p[i] = (int8_t)a.v[i];
}

OP float vf_sum(vf a) { /* lanes (i, i+8), then (i, i+4), (i, i+2), (i, i+1) */
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.v[i] += a.v[i + half];
    return a.v[0];
}
OP float vf_largest(vf a) { /* of numbers without NaN: any order gives the same */
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
OP bool vf_any_nan(vf a) {
    bool any = false;
    for (int i = 0; i < 16; i++)
        any |= a.v[i] != a.v[i];
    return any;
}
OP int32_t vi_sum(vi a) {
    int32_t s = 0;
    for (int i = 0; i < 16; i++)
        s += a.v[i];
    return s;
}

/* 64 bytes [16 lanes][4], as int8 or as int8 + 128. */
OP vb vb_load(const void *p) {
    vb r;
    memcpy(r.v, p, 64);
    return r;
}
OP vb vb_load_biased(const void *p) {
    vb r = vb_load(p);
    for (int i = 0; i < 64; i++)
        r.v[i] = (int8_t)(r.v[i] ^ -128);
    return r;
}

/* A codebook of 16 int8, and the two groups of 64 weights in a unit of 64 bytes: low and high nibbles. */
OP vt vt_load(const int8_t *codebook) { LANES16(vt, codebook[i]); }
OP void vb_q4(vb *low, vb *high, const uint8_t *p, vt codebook) {
    for (int i = 0; i < 64; i++) {
        low->v[i] = codebook.v[p[i] & 15];
        high->v[i] = codebook.v[p[i] >> 4];
    }
}

/* acc[lane] += sum over j of w[lane][j] * a[j], j = 0 .. 3, exactly; w in -128 .. 127, a in -127 .. 127.
 * The accumulator begins as dot4_start(sum of all a that will be multiplied into it): VNNI multiplies w +
 * 128, and what that adds is taken off at the start. */
enum { DOT4_NEEDS_SUM = 0 };
OP vi dot4_start(int32_t sum) {
    (void)sum;
    return vi_set1(0);
}
OP vi dot4(vi acc, vb w, const int8_t *a) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++)
            acc.v[i] += w.v[4 * i + j] * a[j];
    return acc;
}

/* The same with the four numbers loaded before. The accumulator begins as dot4_from(Activations.start, in
 * every lane). */
OP va va_load(const int8_t *a) { return (va){{a[0], a[1], a[2], a[3]}}; }
OP vi dot4_va(vi acc, vb w, va a) { return dot4(acc, w, a.v); }
OP vi dot4_from(vi start) {
    (void)start;
    return vi_set1(0);
}

/* ---- for attention.h alone ------------------------------------------------------------------ */

/* acc[i] + the four int8 at p + 4 i. */
OP vi vi_add_bytes(vi acc, const int8_t *p) {
    for (int i = 0; i < 64; i++)
        acc.v[i / 4] += p[i];
    return acc;
}

/* to[4 i + j] = (x[4 i + j] * by[i] + 64) >> 7, for x in -127 .. 127 and by in -128 .. 127. */
OP void vb_store_times(int8_t *to, vb x, vi by) {
    for (int i = 0; i < 64; i++)
        to[i] = (int8_t)((x.v[i] * by.v[i / 4] + 64) >> 7);
}

/* For the sum of (w + 128) * a, with w + 128 as it was stored: what dot4 gives after vb_load_biased if its
 * accumulator begins here. VNNI multiplies just that. The others add 128 times the sum of all a, and only
 * they need to know it. */
enum { DOT4_UNSIGNED_NEEDS_SUM = 1 };
OP vi dot4_start_unsigned(int32_t sum) { return vi_set1(128 * sum); }

/* Four times 16 bytes, each a 4 x 4 matrix: transposed. */
OP void turn_4x4(int8_t *to, const uint8_t *from) {
    for (int i = 0; i < 64; i++)
        to[i] = (int8_t)from[i / 16 * 16 + i % 4 * 4 + i / 4 % 4];
}

#endif
