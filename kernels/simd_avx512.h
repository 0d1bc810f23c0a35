/* kernels/simd_avx512.h: the vectors of simd.h with AVX-512 and VNNI, each in one register of 512 bits. */
#ifndef SIMD_AVX512_H
#define SIMD_AVX512_H

#include <immintrin.h>

#define ISA_NAME avx512
enum { REG_ROWS = 16, ABREAST = 4, MANY_PANELS = 4, MANY_ROWS = 4, FAR_PAYS = 1 };

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;
typedef __m512i vb; /* holds w + 128, which is what vpdpbusd multiplies */
typedef __m512i va;
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
OP va va_load(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return _mm512_set1_epi32(four);
}
OP vi dot4_va(vi acc, vb w, va a) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(a));
    return acc;
}
OP vi dot4_from(vi start) { return start; }

/* ---- for attention.h alone ------------------------------------------------------------------ */

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

#endif
