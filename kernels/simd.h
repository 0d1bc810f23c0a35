/* kernels/simd.h: vectors of sixteen lanes, the same operations for each instruction set. The files simd_*.h
 * are the only place where instruction sets differ:
 *
 *   simd_portable.h  plain C: the definition of every operation, in loops
 *   simd_avx2.h      AVX2 with FMA and F16C, with and without the AVX form of VNNI
 *   simd_avx512.h    AVX-512 with VNNI
 *   simd_neon.h      NEON with dot products
 *
 * kernels.c is compiled once for each with -DISA_portable, -DISA_avx2, ... Each operation gives the same
 * bits in all of them (the bits of a NaN excepted), and so does each program written on them. What
 * machines do not agree on is not offered: no estimates of 1 / x, no sum across lanes but the one tree of
 * vf_sum, no conversion of floats beyond the range of int32.
 *
 *   vf  16 x f32      vi  16 x int32      vm  16 x true or false
 *   vb  64 x int8 = 16 lanes x 4, the left operand of dot4; made by vb_load, vb_load_biased and vb_q4, never
 *       looked into
 *   vw  a vb, and what is computed of it once for several rows of a product: the left operand of dot4_vw
 *   va  4 x int8, the same in every lane: the right operand of dot4_va
 *   vt  16 x int8, a codebook for vb_q4
 *
 * Names: vf_* returns or takes mostly vf, and so on. Loads and stores need no alignment. REG_ROWS is how
 * many rows of a product with one panel have their accumulators in registers at once, and ABREAST of them
 * their integer sums; where panels are unpacked first (matmul.h), MANY_PANELS by MANY_ROWS (at most 4) have
 * theirs there. FAR_PAYS: it is faster to ask for weights from memory twice (matmul.h; doc/performance.md
 * says where that was measured). */
#ifndef SIMD_H
#define SIMD_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Inlined always, loops over registers unrolled: a block of accumulators must stay in registers through
 * several layers of these functions. A loop that is not over registers stays one (ROLLED) where the compiler
 * would run out of registers in a longer one. (With AVX2 it does not, and is 1.06 times as fast unrolled.)
 * Portable C is left to the compiler's judgement. */
#if defined(ISA_portable)
#define OP static inline
#define UNROLL
#define ROLLED
#elif defined(__clang__)
#define OP     static inline __attribute__((always_inline))
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("nounroll")
#else
#define OP     static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")
#endif
#ifdef ISA_avx2
#undef ROLLED
#define ROLLED UNROLL
#endif

/* Into L1, and into L2 alone: only a dozen lines or so can be on their way to L1 at a time, and with the
 * latency of memory that is less than a core can read. More can be on their way to L2. */
#define PREFETCH(address)     __builtin_prefetch((const void *)(address), 0, 3)
#define PREFETCH_FAR(address) __builtin_prefetch((const void *)(address), 0, 2)

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

/* Of a number that is not negative, or NaN: to nearest, ties to even. Adding 1/2 leaves a subnormal half
 * in the low bits. */
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

#if defined(ISA_portable)
#include "kernels/simd_portable.h"
#elif defined(ISA_avx2) || defined(ISA_avxvnni)
#include "kernels/simd_avx2.h"
#elif defined(ISA_avx512)
#include "kernels/simd_avx512.h"
#elif defined(ISA_neon)
#include "kernels/simd_neon.h"
#else
#error "compile with one of -DISA_portable, -DISA_avx2, -DISA_avxvnni, -DISA_avx512, -DISA_neon"
#endif

/* ---- built on these, once for all ----------------------------------------------------------- */

/* The first n lanes alone, 0 < n <= 16; the other lanes of a load are `fill`. AVX-512 has instructions that
 * do it. */
#ifndef ISA_avx512
OP vf vf_load_n(const float *p, size_t n, float fill) {
    float t[16];
    for (int i = 0; i < 16; i++)
        t[i] = fill;
    memcpy(t, p, n * 4);
    return vf_load(t);
}
OP void vf_store_n(float *p, size_t n, vf a) {
    float t[16];
    vf_store(t, a);
    memcpy(p, t, n * 4);
}
#endif

/* dot4_vw and dot4_vw_va are dot4 and dot4_va for weights that are multiplied by several rows. `first`:
 * nothing was added to acc since dot4_from.
 *
 * A narrow codebook has values of 7 bits, -64 .. 63. dot4_narrow is dot4_vw_va for weights of a codebook that
 * vt_load_narrow loaded, and dot4_narrow_from its dot4_from.
 *
 * Only AVX2 without VNNI has shorter ways for them. */
#ifndef ISA_avx2
typedef vb vw;
OP vw vw_from(vb w) { return w; }
OP vi dot4_vw(vi acc, vw w, const int8_t *a, bool first) {
    (void)first;
    return dot4(acc, w, a);
}
OP vi dot4_vw_va(vi acc, vw w, va a, bool first) {
    (void)first;
    return dot4_va(acc, w, a);
}
enum { NARROW_PAYS = 0 };
OP vt vt_load_narrow(const int8_t *codebook) { return vt_load(codebook); }
OP vi dot4_narrow(vi acc, vw w, va a) { return dot4_va(acc, w, a); }
OP vi dot4_narrow_from(vi start) { return dot4_from(start); }
#endif

/* e^x within 1 ulp (tests/test_kernels.c); 0 at -infinity, infinity above 88.7, NaN at NaN. x = n ln 2 + r
 * with |r| <= ln 2 / 2, where ln 2 is taken in two pieces. The polynomial is that of Cephes's expf (S.
 * Moshier). 2^n comes in two factors, so that results below 2^-126 are rounded once, by the last product. */
OP vf vf_exp(vf x) {
    vm zero = vf_gt(vf_set1(-104.0f), x);
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
    /* A product too small for a float takes some processors 150 cycles, and hidden rows have many of them. */
    return vf_mul(p, vf_select(zero, vf_set1(0.0f), vi_as_float(vi_shl(vi_add(rest, one), 23))));
}

/* 1 / (1 + e^-x) */
OP vf vf_sigmoid(vf x) {
    vf one = vf_set1(1.0f);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_set1(0.0f), x))));
}

#endif
