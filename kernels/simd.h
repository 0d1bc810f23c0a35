/* simd.h: vectors of sixteen lanes, the only place where instruction sets are named.
 *
 * The same operations four times: portable C (the definition of every operation, in plain loops), AVX2
 * (with and without the AVX form of VNNI), AVX-512 with VNNI, NEON with dot products. kernels.c is
 * compiled once for each with -DISA_portable, -DISA_avx2, ... Each operation gives the same bits in all of
 * them (the bits of a NaN excepted), so each program written on them does. What machines do not agree on
 * is not offered: no estimates of 1/x, no horizontal sum but the one tree of vf_sum, no float conversion
 * out of int32's range.
 *
 *   vf  16 x f32      vi  16 x int32      vm  16 x true or false
 *   vb  64 x int8 = 16 lanes x 4, the left operand of dot4; built by vb_load, vb_load_biased and vb_q4,
 *       never looked into
 *
 * Names: vf_* returns or takes mostly vf, and so on. Loads and stores need no alignment. */
#ifndef SIMD_H
#define SIMD_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Inlined always, loops over registers unrolled: a tile of accumulators must stay in registers through
 * several layers of these functions. Portable C is left to the compiler's judgement. */
#if defined(ISA_portable)
#define OP static inline
#define UNROLL
#elif defined(__clang__)
#define OP     static inline __attribute__((always_inline))
#define UNROLL _Pragma("unroll")
#else
#define OP     static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define PREFETCH(address) __builtin_prefetch((const void *)(address), 0, 3)

OP uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
OP float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Scalar conversions, for a single number here and there; the vector forms below agree with them. */
OP float f32_from_bf16(uint16_t h) { return float_of((uint32_t)h << 16); }
OP uint16_t bf16_from_f32(float f) {
    uint32_t u = bits_of(f);
    /* rounding must not turn a NaN into infinity */
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
OP float f32_from_f16(uint16_t h) {
    uint32_t exponent_and_fraction = (uint32_t)(h & 0x7fff) << 13;
    float f = float_of(exponent_and_fraction) * 0x1p112f; /* exact, for subnormal halves too */
    if ((h & 0x7c00) == 0x7c00)
        f = float_of(exponent_and_fraction | 0x7f800000);
    return float_of(bits_of(f) | (uint32_t)(h & 0x8000) << 16);
}

/* Of a number from 0 on, or NaN, to nearest, ties to even. Adding 1/2 leaves a subnormal half in the low
 * bits. */
OP uint16_t f16_from_f32(float f) {
    if (f != f)
        return 0x7e00;
    if (f >= 65520.0f)
        return 0x7c00;
    if (f < 0x1p-14f)
        return (uint16_t)(bits_of(f + 0.5f) - bits_of(0.5f));
    uint32_t u = bits_of(f) - ((127 - 15) << 23);
    return (uint16_t)((u + 0xfff + (u >> 13 & 1)) >> 13);
}

/* ==== portable: the definition =============================================================== */
#if defined(ISA_portable)

#define ISA_NAME portable
enum { TILE = 4 }; /* rows of activations that a matrix product keeps in registers */

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
    int8_t v[16];
} vt;

#define LANES16(type, expression) \
    type r;                       \
    for (int i = 0; i < 16; i++)  \
        r.v[i] = (expression);    \
    return r

OP vf vf_set1(float x) { LANES16(vf, x); }
OP vf vf_load(const float *p) { LANES16(vf, p[i]); }
OP vf vf_load_n(const float *p, size_t n, float fill) { LANES16(vf, (size_t)i < n ? p[i] : fill); }
OP void vf_store(float *p, vf a) { memcpy(p, a.v, 64); }
OP void vf_store_n(float *p, size_t n, vf a) { memcpy(p, a.v, n * 4); }
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
 * An accumulator begins as dot4_start(sum of all a that will be multiplied into it): VNNI multiplies w +
 * 128, and the excess is taken off at the start. */
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

/* ==== AVX2 with FMA and F16C: two halves ===================================================== */
#elif defined(ISA_avx2) || defined(ISA_avxvnni)

#include <immintrin.h>

#ifdef ISA_avxvnni /* AVX2 and the dot product instruction of processors without AVX-512 */
#define ISA_NAME avxvnni
#else
#define ISA_NAME avx2
#endif
enum { TILE = 4 };

typedef struct {
    __m256 lo, hi;
} vf;
typedef struct {
    __m256i lo, hi;
} vi;
typedef struct {
    __m256 lo, hi;
} vm;
typedef struct {
    __m256i lo, hi;
} vb;
typedef __m256i vt;

#define BOTH1(f, a) \
    { f((a).lo), f((a).hi) }
#define BOTH2(f, a, b) \
    { f((a).lo, (b).lo), f((a).hi, (b).hi) }
#define BOTH3(f, a, b, c) \
    { f((a).lo, (b).lo, (c).lo), f((a).hi, (b).hi, (c).hi) }

OP vf vf_set1(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OP vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OP vf vf_load_n(const float *p, size_t n, float fill) {
    float t[16];
    for (int i = 0; i < 16; i++)
        t[i] = fill;
    memcpy(t, p, n * 4);
    return vf_load(t);
}
OP void vf_store(float *p, vf a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
OP void vf_store_n(float *p, size_t n, vf a) {
    float t[16];
    vf_store(t, a);
    memcpy(p, t, n * 4);
}
OP vf vf_add(vf a, vf b) { return (vf)BOTH2(_mm256_add_ps, a, b); }
OP vf vf_sub(vf a, vf b) { return (vf)BOTH2(_mm256_sub_ps, a, b); }
OP vf vf_mul(vf a, vf b) { return (vf)BOTH2(_mm256_mul_ps, a, b); }
OP vf vf_div(vf a, vf b) { return (vf)BOTH2(_mm256_div_ps, a, b); }
OP vf vf_fma(vf a, vf b, vf c) { return (vf)BOTH3(_mm256_fmadd_ps, a, b, c); }
OP vf vf_max(vf a, vf b) { return (vf)BOTH2(_mm256_max_ps, a, b); }
OP vf vf_min(vf a, vf b) { return (vf)BOTH2(_mm256_min_ps, a, b); }
OP vf vf_abs(vf a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (vf){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
OP vf vf_sqrt(vf a) { return (vf)BOTH1(_mm256_sqrt_ps, a); }
OP vm vf_gt(vf a, vf b) {
    return (vm){_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)};
}
OP vf vf_select(vm m, vf a, vf b) { return (vf)BOTH3(_mm256_blendv_ps, b, a, m); }

OP vi vi_set1(int32_t x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
OP vi vi_load(const int32_t *p) {
    return (vi){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
OP void vi_store(int32_t *p, vi a) {
    _mm256_storeu_si256((__m256i *)p, a.lo);
    _mm256_storeu_si256((__m256i *)(p + 8), a.hi);
}
OP vi vi_add(vi a, vi b) { return (vi)BOTH2(_mm256_add_epi32, a, b); }
OP vi vi_sub(vi a, vi b) { return (vi)BOTH2(_mm256_sub_epi32, a, b); }
OP vi vi_and(vi a, vi b) { return (vi)BOTH2(_mm256_and_si256, a, b); }
OP vm vi_gt(vi a, vi b) {
    return (vm){_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.lo, b.lo)),
                _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.hi, b.hi))};
}
#define vi_shl(a, bits) ((vi){_mm256_slli_epi32((a).lo, bits), _mm256_slli_epi32((a).hi, bits)})
#define vi_sar(a, bits) ((vi){_mm256_srai_epi32((a).lo, bits), _mm256_srai_epi32((a).hi, bits)})

OP vi vf_to_int(vf a) { return (vi)BOTH1(_mm256_cvtps_epi32, a); }
OP vf vi_to_float(vi a) { return (vf)BOTH1(_mm256_cvtepi32_ps, a); }
OP vf vi_as_float(vi a) { return (vf)BOTH1(_mm256_castsi256_ps, a); }
OP vf vf_from_f16(const void *p) {
    const __m128i *h = p;
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
OP __m256 bf16_to_f32_8(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
OP vf vf_from_bf16(const void *p) {
    const __m128i *h = p;
    return (vf){bf16_to_f32_8(_mm_loadu_si128(h)), bf16_to_f32_8(_mm_loadu_si128(h + 1))};
}
OP __m256i bf16_round_8(__m256 f) {
    __m256i u = _mm256_castps_si256(f), high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q)));
}
OP void vf_to_bf16(void *p, vf a) {
    __m256i packed = _mm256_packus_epi32(bf16_round_8(a.lo), bf16_round_8(a.hi));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
OP vi vi_from_s8(const int8_t *p) {
    __m128i b = _mm_loadu_si128((const __m128i *)p);
    return (vi){_mm256_cvtepi8_epi32(b), _mm256_cvtepi8_epi32(_mm_srli_si128(b, 8))};
}
OP void vi_to_s8(int8_t *p, vi a) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

OP float vf_sum(vf a) {
    __m256 eight = _mm256_add_ps(a.lo, a.hi);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
OP float vf_largest(vf a) {
    __m256 eight = _mm256_max_ps(a.lo, a.hi);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
OP bool vf_any_nan(vf a) { return _mm256_movemask_ps(_mm256_cmp_ps(a.lo, a.hi, _CMP_UNORD_Q)) != 0; }
OP int32_t vi_sum(vi a) {
    __m256i eight = _mm256_add_epi32(a.lo, a.hi);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

OP vb vb_load(const void *p) {
    const __m256i *u = p;
    return (vb){_mm256_loadu_si256(u), _mm256_loadu_si256(u + 1)};
}
OP vb vb_load_biased(const void *p) {
    vb w = vb_load(p);
    __m256i bias = _mm256_set1_epi8(-128);
    return (vb){_mm256_xor_si256(w.lo, bias), _mm256_xor_si256(w.hi, bias)};
}

OP vt vt_load(const int8_t *codebook) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codebook));
}
OP void vb_q4(vb *low, vb *high, const uint8_t *p, vt codebook) {
    vb x = vb_load(p);
    __m256i nibble = _mm256_set1_epi8(15);
    low->lo = _mm256_shuffle_epi8(codebook, _mm256_and_si256(x.lo, nibble));
    low->hi = _mm256_shuffle_epi8(codebook, _mm256_and_si256(x.hi, nibble));
    high->lo = _mm256_shuffle_epi8(codebook, _mm256_and_si256(_mm256_srli_epi16(x.lo, 4), nibble));
    high->hi = _mm256_shuffle_epi8(codebook, _mm256_and_si256(_mm256_srli_epi16(x.hi, 4), nibble));
}

/* Both multiply unsigned by signed, so |w| * (a with w's sign); maddubs's two products are at most 2 * 128
 * * 127, no saturation. */
enum { DOT4_NEEDS_SUM = 0 };
OP vi dot4_start(int32_t sum) {
    (void)sum;
    return vi_set1(0);
}
OP __m256i dot4_8(__m256i acc, __m256i w, __m256i a) {
#ifdef ISA_avxvnni
    return _mm256_dpbusd_avx_epi32(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
#else
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
OP vi dot4(vi acc, vb w, const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    __m256i all = _mm256_set1_epi32(four);
    return (vi){dot4_8(acc.lo, w.lo, all), dot4_8(acc.hi, w.hi, all)};
}

/* ==== AVX-512 with VNNI: one register ======================================================== */
#elif defined(ISA_avx512)

#include <immintrin.h>

#define ISA_NAME        avx512
enum { TILE = 16 };

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;
typedef __m512i vb; /* holds w + 128, which is what vpdpbusd multiplies */
typedef __m512i vt; /* codebook + 128, four times */

OP vf vf_set1(float x) { return _mm512_set1_ps(x); }
OP vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
OP vf vf_load_n(const float *p, size_t n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), p);
}
OP void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
OP void vf_store_n(float *p, size_t n, vf a) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a); }
OP vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
OP vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
OP vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
OP vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
OP vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
OP vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
OP vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
OP vf vf_abs(vf a) { return _mm512_abs_ps(a); }
OP vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
OP vm vf_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
OP vf vf_select(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }

OP vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
OP vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
OP void vi_store(int32_t *p, vi a) { _mm512_storeu_si512(p, a); }
OP vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
OP vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
OP vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
OP vm vi_gt(vi a, vi b) { return _mm512_cmpgt_epi32_mask(a, b); }
#define vi_shl(a, bits) _mm512_slli_epi32(a, bits)
#define vi_sar(a, bits) _mm512_srai_epi32(a, bits)

OP vi vf_to_int(vf a) { return _mm512_cvtps_epi32(a); }
OP vf vi_to_float(vi a) { return _mm512_cvtepi32_ps(a); }
OP vf vi_as_float(vi a) { return _mm512_castsi512_ps(a); }
OP vf vf_from_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
OP vf vf_from_bf16(const void *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
OP void vf_to_bf16(void *p, vf a) {
    __m512i u = _mm512_castps_si512(a), high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(rounded));
}
OP vi vi_from_s8(const int8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
OP void vi_to_s8(int8_t *p, vi a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }

OP float vf_sum(vf a) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
OP float vf_largest(vf a) { return _mm512_reduce_max_ps(a); }
OP bool vf_any_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
OP int32_t vi_sum(vi a) { return _mm512_reduce_add_epi32(a); }

OP vb vb_load(const void *p) { return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128)); }
OP vb vb_load_biased(const void *p) { return _mm512_loadu_si512(p); }

OP vt vt_load(const int8_t *codebook) {
    __m512i four_times = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codebook));
    return _mm512_xor_si512(four_times, _mm512_set1_epi8(-128));
}
OP void vb_q4(vb *low, vb *high, const uint8_t *p, vt codebook) {
    __m512i x = _mm512_loadu_si512(p), nibble = _mm512_set1_epi8(15);
    *low = _mm512_shuffle_epi8(codebook, _mm512_and_si512(x, nibble));
    *high = _mm512_shuffle_epi8(codebook, _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble));
}

enum { DOT4_NEEDS_SUM = 1 };
OP vi dot4_start(int32_t sum) { return _mm512_set1_epi32((int32_t)(-128u * (uint32_t)sum)); }
OP vi dot4(vi acc, vb w, const int8_t *a) {
    /* One instruction with the broadcast in it; compilers split the intrinsic into two and run out of
     * registers. */
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t *)a));
    return acc;
}

/* ==== NEON with dot products: four quarters ================================================== */
#elif defined(ISA_neon)

#include <arm_neon.h>

#define ISA_NAME neon
enum { TILE = 4 };

typedef float32x4x4_t vf;
typedef int32x4x4_t vi;
typedef uint32x4x4_t vm;
typedef int8x16x4_t vb;
typedef int8x16_t vt;

#define FOUR(x)        \
    {                  \
        { x, x, x, x } \
    }
#define EACH1(f, a)                                                    \
    {                                                                  \
        { f((a).val[0]), f((a).val[1]), f((a).val[2]), f((a).val[3]) } \
    }
#define EACH2(f, a, b)                                                                       \
    {                                                                                        \
        {                                                                                    \
            f((a).val[0], (b).val[0]), f((a).val[1], (b).val[1]), f((a).val[2], (b).val[2]), \
                f((a).val[3], (b).val[3])                                                    \
        }                                                                                    \
    }
#define EACH3(f, a, b, c)                                                                    \
    {                                                                                        \
        {                                                                                    \
            f((a).val[0], (b).val[0], (c).val[0]), f((a).val[1], (b).val[1], (c).val[1]),    \
                f((a).val[2], (b).val[2], (c).val[2]), f((a).val[3], (b).val[3], (c).val[3]) \
        }                                                                                    \
    }

OP vf vf_set1(float x) { return (vf)FOUR(vdupq_n_f32(x)); }
OP vf vf_load(const float *p) {
    return (vf){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
OP vf vf_load_n(const float *p, size_t n, float fill) {
    float t[16];
    for (int i = 0; i < 16; i++)
        t[i] = fill;
    memcpy(t, p, n * 4);
    return vf_load(t);
}
OP void vf_store(float *p, vf a) {
    for (int i = 0; i < 4; i++)
        vst1q_f32(p + 4 * i, a.val[i]);
}
OP void vf_store_n(float *p, size_t n, vf a) {
    float t[16];
    vf_store(t, a);
    memcpy(p, t, n * 4);
}
/* NEON's own maximum returns NaN for NaN; the definition's returns b. */
OP float32x4_t max_4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
OP float32x4_t min_4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
OP vf vf_add(vf a, vf b) { return (vf)EACH2(vaddq_f32, a, b); }
OP vf vf_sub(vf a, vf b) { return (vf)EACH2(vsubq_f32, a, b); }
OP vf vf_mul(vf a, vf b) { return (vf)EACH2(vmulq_f32, a, b); }
OP vf vf_div(vf a, vf b) { return (vf)EACH2(vdivq_f32, a, b); }
OP vf vf_fma(vf a, vf b, vf c) { return (vf)EACH3(vfmaq_f32, c, a, b); }
OP vf vf_max(vf a, vf b) { return (vf)EACH2(max_4, a, b); }
OP vf vf_min(vf a, vf b) { return (vf)EACH2(min_4, a, b); }
OP vf vf_abs(vf a) { return (vf)EACH1(vabsq_f32, a); }
OP vf vf_sqrt(vf a) { return (vf)EACH1(vsqrtq_f32, a); }
OP vm vf_gt(vf a, vf b) { return (vm)EACH2(vcgtq_f32, a, b); }
OP vf vf_select(vm m, vf a, vf b) { return (vf)EACH3(vbslq_f32, m, a, b); }

OP vi vi_set1(int32_t x) { return (vi)FOUR(vdupq_n_s32(x)); }
OP vi vi_load(const int32_t *p) {
    return (vi){{vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}};
}
OP void vi_store(int32_t *p, vi a) {
    for (int i = 0; i < 4; i++)
        vst1q_s32(p + 4 * i, a.val[i]);
}
OP vi vi_add(vi a, vi b) { return (vi)EACH2(vaddq_s32, a, b); }
OP vi vi_sub(vi a, vi b) { return (vi)EACH2(vsubq_s32, a, b); }
OP vi vi_and(vi a, vi b) { return (vi)EACH2(vandq_s32, a, b); }
OP vm vi_gt(vi a, vi b) { return (vm)EACH2(vcgtq_s32, a, b); }
#define vi_shl(a, bits) vi_shift(a, bits)
#define vi_sar(a, bits) vi_shift(a, -(bits))
OP vi vi_shift(vi a, int left) {
    vi by = vi_set1(left);
    return (vi)EACH2(vshlq_s32, a, by);
}

OP vi vf_to_int(vf a) { return (vi)EACH1(vcvtnq_s32_f32, a); }
OP vf vi_to_float(vi a) { return (vf)EACH1(vcvtq_f32_s32, a); }
OP vf vi_as_float(vi a) { return (vf)EACH1(vreinterpretq_f32_s32, a); }
OP float32x4_t f16_to_f32_4(const uint16_t *h) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h))); }
OP vf vf_from_f16(const void *p) {
    const uint16_t *h = p;
    return (vf){{f16_to_f32_4(h), f16_to_f32_4(h + 4), f16_to_f32_4(h + 8), f16_to_f32_4(h + 12)}};
}
OP float32x4_t bf16_to_f32_4(const uint16_t *h) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(h), 16));
}
OP vf vf_from_bf16(const void *p) {
    const uint16_t *h = p;
    return (vf){{bf16_to_f32_4(h), bf16_to_f32_4(h + 4), bf16_to_f32_4(h + 8), bf16_to_f32_4(h + 12)}};
}
OP uint16x4_t bf16_round_4(float32x4_t f) {
    uint32x4_t u = vreinterpretq_u32_f32(f), high = vshrq_n_u32(u, 16);
    uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd), 16);
    return vmovn_u32(vbslq_u32(vceqq_f32(f, f), rounded, vorrq_u32(high, vdupq_n_u32(0x40))));
}
OP void vf_to_bf16(void *p, vf a) {
    uint16_t *h = p;
    for (int i = 0; i < 4; i++)
        vst1_u16(h + 4 * i, bf16_round_4(a.val[i]));
}
OP vi vi_from_s8(const int8_t *p) {
    int8x16_t b = vld1q_s8(p);
    int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_s8(vget_high_s8(b));
    return (vi){{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                 vmovl_s16(vget_high_s16(high))}};
}
OP void vi_to_s8(int8_t *p, vi a) {
    int16x8_t low = vcombine_s16(vmovn_s32(a.val[0]), vmovn_s32(a.val[1])),
              high = vcombine_s16(vmovn_s32(a.val[2]), vmovn_s32(a.val[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

OP float vf_sum(vf a) {
    float32x4_t four = vaddq_f32(vaddq_f32(a.val[0], a.val[2]), vaddq_f32(a.val[1], a.val[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
OP float vf_largest(vf a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.val[0], a.val[2]), vmaxq_f32(a.val[1], a.val[3])));
}
OP bool vf_any_nan(vf a) {
    uint32x4_t numbers = vandq_u32(vandq_u32(vceqq_f32(a.val[0], a.val[0]), vceqq_f32(a.val[1], a.val[1])),
                                   vandq_u32(vceqq_f32(a.val[2], a.val[2]), vceqq_f32(a.val[3], a.val[3])));
    return vminvq_u32(numbers) == 0;
}
OP int32_t vi_sum(vi a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.val[0], a.val[2]), vaddq_s32(a.val[1], a.val[3])));
}

OP vb vb_load(const void *p) {
    const int8_t *u = p;
    return (vb){{vld1q_s8(u), vld1q_s8(u + 16), vld1q_s8(u + 32), vld1q_s8(u + 48)}};
}
OP vb vb_load_biased(const void *p) {
    vb w = vb_load(p), bias = (vb)FOUR(vdupq_n_s8(-128));
    return (vb)EACH2(veorq_s8, w, bias);
}

OP vt vt_load(const int8_t *codebook) { return vld1q_s8(codebook); }
OP void vb_q4(vb *low, vb *high, const uint8_t *p, vt codebook) {
    UNROLL for (int i = 0; i < 4; i++) {
        uint8x16_t x = vld1q_u8(p + 16 * i);
        low->val[i] = vqtbl1q_s8(codebook, vandq_u8(x, vdupq_n_u8(15)));
        high->val[i] = vqtbl1q_s8(codebook, vshrq_n_u8(x, 4));
    }
}

enum { DOT4_NEEDS_SUM = 0 };
OP vi dot4_start(int32_t sum) {
    (void)sum;
    return vi_set1(0);
}
OP vi dot4(vi acc, vb w, const int8_t *a) {
    int8x16_t all = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)a));
    vb four = FOUR(all);
    return (vi)EACH3(vdotq_s32, acc, w, four);
}

#else
#error "compile with one of -DISA_portable, -DISA_avx2, -DISA_avxvnni, -DISA_avx512, -DISA_neon"
#endif

/* ==== built on the above, once for all ======================================================= */

/* e^x within 1 ulp (tests/test_kernels.c); 0 at -infinity, infinity above 88.7, NaN at NaN. x = n ln 2 + r
 * with |r| <= ln 2 / 2; ln 2 in two pieces; the polynomial is Cephes's expf (S. Moshier); 2^n in two
 * factors, so that results below 2^-126 are rounded once, by the last product. */
OP vf vf_exp(vf x) {
    x = vf_max(vf_set1(-104.0f), x); /* in this order NaN passes */
    x = vf_min(vf_set1(89.0f), x);
    vi n = vf_to_int(vf_mul(x, vf_set1(0x1.715476p+0f)));
    vf nf = vi_to_float(n);
    vf r = vf_fma(nf, vf_set1(-0x1.62e430p-1f), x);
    r = vf_fma(nf, vf_set1(0x1.05c610p-29f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1.0f));
    vi half = vi_sar(n, 1), rest = vi_sub(n, half), one = vi_set1(127);
    p = vf_mul(p, vi_as_float(vi_shl(vi_add(half, one), 23)));
    return vf_mul(p, vi_as_float(vi_shl(vi_add(rest, one), 23)));
}

/* 1 / (1 + e^-x) */
OP vf vf_sigmoid(vf x) {
    vf one = vf_set1(1.0f);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_set1(0.0f), x))));
}

/* ==== operations that attention.h alone needs ================================================ */

/* turn_4x4: 4 times 16 bytes, each a 4 x 4 matrix, transposed.
 *
 * dot4_start_unsigned: for the sum of (w + 128) * a, which dot4 on vb_load_biased gives when the
 * accumulator begins here. VNNI multiplies just that; the others have to make up for 128 times the sum of
 * all a, and only they need to know it.
 *
 * vi_add_bytes: acc[i] + the four int8 at p + 4 i.
 *
 * vb_store_times: to[4 i + j] = (x[4 i + j] * by[i] + 64) >> 7, for x in -127 .. 127 and by in -128 ..
 * 127. */
#if defined(ISA_portable)

OP vi vi_add_bytes(vi acc, const int8_t *p) {
    for (int i = 0; i < 64; i++)
        acc.v[i / 4] += p[i];
    return acc;
}
OP void vb_store_times(int8_t *to, vb x, vi by) {
    for (int i = 0; i < 64; i++)
        to[i] = (int8_t)((x.v[i] * by.v[i / 4] + 64) >> 7);
}

enum { DOT4_UNSIGNED_NEEDS_SUM = 1 };
OP vi dot4_start_unsigned(int32_t sum) { return vi_set1(128 * sum); }
OP void turn_4x4(int8_t *to, const uint8_t *from) {
    for (int i = 0; i < 64; i++)
        to[i] = (int8_t)from[i / 16 * 16 + i % 4 * 4 + i / 4 % 4];
}

#elif defined(ISA_avx2) || defined(ISA_avxvnni)

OP __m256i add_bytes_8(__m256i acc, const int8_t *p) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)p));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
OP vi vi_add_bytes(vi acc, const int8_t *p) {
    return (vi){add_bytes_8(acc.lo, p), add_bytes_8(acc.hi, p + 32)};
}
/* 8 lanes; even and odd bytes as words x * 256: mulhrs rounds the product and shifts it by 15 */
OP __m256i times_8(__m256i x, __m256i by) {
    __m256i odd_mask = _mm256_set1_epi16(-256),
            twice =
                _mm256_or_si256(_mm256_slli_epi32(by, 16), _mm256_and_si256(by, _mm256_set1_epi32(0xffff)));
    __m256i even = _mm256_mulhrs_epi16(_mm256_slli_epi16(x, 8), twice),
            odd = _mm256_mulhrs_epi16(_mm256_and_si256(x, odd_mask), twice);
    return _mm256_or_si256(_mm256_andnot_si256(odd_mask, even), _mm256_slli_epi16(odd, 8));
}
OP void vb_store_times(int8_t *to, vb x, vi by) {
    _mm256_storeu_si256((__m256i *)to, times_8(x.lo, by.lo));
    _mm256_storeu_si256((__m256i *)to + 1, times_8(x.hi, by.hi));
}
enum { DOT4_UNSIGNED_NEEDS_SUM = 1 };
OP vi dot4_start_unsigned(int32_t sum) { return vi_set1(128 * sum); }
OP void turn_4x4(int8_t *to, const uint8_t *from) {
    __m256i turned =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i *f = (const __m256i *)from;
    _mm256_storeu_si256((__m256i *)to, _mm256_shuffle_epi8(_mm256_loadu_si256(f), turned));
    _mm256_storeu_si256((__m256i *)to + 1, _mm256_shuffle_epi8(_mm256_loadu_si256(f + 1), turned));
}

#elif defined(ISA_avx512)

OP vi vi_add_bytes(vi acc, const int8_t *p) {
    return _mm512_dpbusd_epi32(acc, _mm512_set1_epi8(1), _mm512_loadu_si512(p));
}
/* even and odd bytes as words x * 256: mulhrs rounds the product and shifts it by 15 */
OP void vb_store_times(int8_t *to, vb x, vi by) {
    __m512i odd_mask = _mm512_set1_epi16(-256),
            twice =
                _mm512_or_si512(_mm512_slli_epi32(by, 16), _mm512_and_si512(by, _mm512_set1_epi32(0xffff)));
    x = _mm512_xor_si512(x, _mm512_set1_epi8(-128));
    __m512i even = _mm512_mulhrs_epi16(_mm512_slli_epi16(x, 8), twice),
            odd = _mm512_mulhrs_epi16(_mm512_and_si512(x, odd_mask), twice);
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_andnot_si512(odd_mask, even), _mm512_slli_epi16(odd, 8)));
}
enum { DOT4_UNSIGNED_NEEDS_SUM = 0 };
OP vi dot4_start_unsigned(int32_t sum) {
    (void)sum;
    return vi_set1(0);
}
OP void turn_4x4(int8_t *to, const uint8_t *from) {
    __m512i turned =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    _mm512_storeu_si512(to, _mm512_shuffle_epi8(_mm512_loadu_si512(from), turned));
}

#elif defined(ISA_neon)

OP vi vi_add_bytes(vi acc, const int8_t *p) {
    vb x = vb_load(p), ones = FOUR(vdupq_n_s8(1));
    return (vi)EACH3(vdotq_s32, acc, x, ones);
}
OP void vb_store_times(int8_t *to, vb x, vi by) {
    UNROLL for (int i = 0; i < 4; i++) {
        uint32x4_t byte = vandq_u32(vreinterpretq_u32_s32(by.val[i]), vdupq_n_u32(0xff));
        int8x16_t four = vreinterpretq_s8_u32(vmulq_n_u32(byte, 0x01010101));
        int16x8_t low = vmull_s8(vget_low_s8(x.val[i]), vget_low_s8(four)),
                  high = vmull_s8(vget_high_s8(x.val[i]), vget_high_s8(four));
        vst1q_s8(to + 16 * i, vcombine_s8(vrshrn_n_s16(low, 7), vrshrn_n_s16(high, 7)));
    }
}
enum { DOT4_UNSIGNED_NEEDS_SUM = 1 };
OP vi dot4_start_unsigned(int32_t sum) { return vi_set1(128 * sum); }
OP void turn_4x4(int8_t *to, const uint8_t *from) {
    static const uint8_t turned[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    UNROLL for (int i = 0; i < 4; i++)
        vst1q_u8((uint8_t *)to + 16 * i, vqtbl1q_u8(vld1q_u8(from + 16 * i), vld1q_u8(turned)));
}

#endif

#endif
