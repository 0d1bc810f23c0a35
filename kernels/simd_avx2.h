/* kernels/simd_avx2.h: the vectors of simd.h with AVX2, FMA and F16C, each in two halves of 256 bits.
 * Compiled twice: as avx2, and as avxvnni for processors that have the dot product instruction but no
 * AVX-512. */
#ifndef SIMD_AVX2_H
#define SIMD_AVX2_H

#include <immintrin.h>

/* BIASED: vb and vt hold w + 128, which is what vpdpbusd multiplies; else w. */
#ifdef ISA_avxvnni /* AVX2 and the dot product instruction of processors without AVX-512 */
#define ISA_NAME avxvnni
enum { BIASED = 1, FAR_PAYS = 1 }; /* as avx512; not measured */
#else
#define ISA_NAME avx2
enum { BIASED = 0, FAR_PAYS = 0 };
#endif
enum { REG_ROWS = 4, ABREAST = 4, MANY_PANELS = 1, MANY_ROWS = 4 };

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
typedef __m256i va;
typedef __m256i vt;

#define BOTH1(f, a) \
    { f((a).lo), f((a).hi) }
#define BOTH2(f, a, b) \
    { f((a).lo, (b).lo), f((a).hi, (b).hi) }
#define BOTH3(f, a, b, c) \
    { f((a).lo, (b).lo, (c).lo), f((a).hi, (b).hi, (c).hi) }

OP vf vf_set1(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OP vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OP void vf_store(float *p, vf a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
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

/* 64 bytes as they are, and with the highest bit of each flipped. */
OP vb vb_bytes(const void *p) {
    const __m256i *u = p;
    return (vb){_mm256_loadu_si256(u), _mm256_loadu_si256(u + 1)};
}
OP vb vb_flipped(const void *p) {
    vb w = vb_bytes(p);
    __m256i bias = _mm256_set1_epi8(-128);
    return (vb){_mm256_xor_si256(w.lo, bias), _mm256_xor_si256(w.hi, bias)};
}
OP vb vb_load(const void *p) { return BIASED ? vb_flipped(p) : vb_bytes(p); }
OP vb vb_load_biased(const void *p) { return BIASED ? vb_bytes(p) : vb_flipped(p); }

OP vt vt_load(const int8_t *codebook) {
    __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)codebook));
    return BIASED ? _mm256_xor_si256(twice, _mm256_set1_epi8(-128)) : twice;
}
OP void vb_q4(vb *low, vb *high, const uint8_t *p, vt codebook) {
    vb x = vb_bytes(p);
    __m256i nibble = _mm256_set1_epi8(15);
    low->lo = _mm256_shuffle_epi8(codebook, _mm256_and_si256(x.lo, nibble));
    low->hi = _mm256_shuffle_epi8(codebook, _mm256_and_si256(x.hi, nibble));
    high->lo = _mm256_shuffle_epi8(codebook, _mm256_and_si256(_mm256_srli_epi16(x.lo, 4), nibble));
    high->hi = _mm256_shuffle_epi8(codebook, _mm256_and_si256(_mm256_srli_epi16(x.hi, 4), nibble));
}

/* The sum stays in its register. With the intrinsic, gcc writes the new sum over the product. It then moves
 * it back or, with eight sums, runs out of registers. */
OP __m256i add_pairs_8(__m256i acc, __m256i pairs) {
    __asm__("vpaddd %1, %0, %0" : "+x"(acc) : "x"(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
    return acc;
}
/* Both instructions multiply unsigned bytes by signed ones. Without bias that is |w| * (a with w's sign);
 * maddubs's two products are at most 2 * 128 * 127, no saturation. */
enum { DOT4_NEEDS_SUM = BIASED };
OP __m256i dot4_8(__m256i acc, __m256i w, __m256i a) {
#ifdef ISA_avxvnni
    return _mm256_dpbusd_avx_epi32(acc, w, a);
#else
    return add_pairs_8(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)));
#endif
}
OP va va_load(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}
OP vi dot4_va(vi acc, vb w, va a) { return (vi){dot4_8(acc.lo, w.lo, a), dot4_8(acc.hi, w.hi, a)}; }
OP vi dot4(vi acc, vb w, const int8_t *a) { return dot4_va(acc, w, va_load(a)); }
OP vi dot4_start(int32_t sum) { return vi_set1(BIASED ? -128 * sum : 0); }
OP vi dot4_from(vi start) { return BIASED ? start : vi_set1(0); }

#ifdef ISA_avx2
/* |w| is computed once for all rows, and a sum begins with its first products instead of 0. */
typedef struct {
    vb w, magnitude;
} vw;
OP vw vw_from(vb w) { return (vw){w, BOTH1(_mm256_abs_epi8, w)}; }
OP __m256i dot4_vw_8(__m256i acc, __m256i w, __m256i magnitude, __m256i a, bool first) {
    __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
    return first ? _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)) : add_pairs_8(acc, pairs);
}
OP vi dot4_vw_va(vi acc, vw w, va a, bool first) {
    return (vi){dot4_vw_8(acc.lo, w.w.lo, w.magnitude.lo, a, first),
                dot4_vw_8(acc.hi, w.w.hi, w.magnitude.hi, a, first)};
}
OP vi dot4_vw(vi acc, vw w, const int8_t *a, bool first) { return dot4_vw_va(acc, w, va_load(a), first); }

/* Values of a narrow codebook are multiplied as v + 64, which has no sign: maddubs's two products are at most
 * 2 * 127 * 127. */
enum { NARROW_PAYS = 1 };
OP vt vt_load_narrow(const int8_t *codebook) {
    return _mm256_add_epi8(vt_load(codebook), _mm256_set1_epi8(64));
}
OP vi dot4_narrow(vi acc, vw w, va a) {
    return (vi){add_pairs_8(acc.lo, _mm256_maddubs_epi16(w.w.lo, a)),
                add_pairs_8(acc.hi, _mm256_maddubs_epi16(w.w.hi, a))};
}
OP vi dot4_narrow_from(vi start) { return vi_sar(start, 1); }
#endif

/* ---- for attention.h alone ------------------------------------------------------------------ */

OP __m256i add_bytes_8(__m256i acc, const int8_t *p) {
    return add_pairs_8(acc,
                       _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)p)));
}
OP vi vi_add_bytes(vi acc, const int8_t *p) {
    return (vi){add_bytes_8(acc.lo, p), add_bytes_8(acc.hi, p + 32)};
}
/* 8 lanes; even and odd bytes as words x * 256: mulhrs rounds the product and shifts it by 15 */
OP __m256i times_8(__m256i x, __m256i by) {
    __m256i odd_mask = _mm256_set1_epi16(-256),
            twice =
                _mm256_or_si256(_mm256_slli_epi32(by, 16), _mm256_and_si256(by, _mm256_set1_epi32(0xffff)));
    if (BIASED)
        x = _mm256_xor_si256(x, _mm256_set1_epi8(-128));
    __m256i even = _mm256_mulhrs_epi16(_mm256_slli_epi16(x, 8), twice),
            odd = _mm256_mulhrs_epi16(_mm256_and_si256(x, odd_mask), twice);
    return _mm256_or_si256(_mm256_andnot_si256(odd_mask, even), _mm256_slli_epi16(odd, 8));
}
OP void vb_store_times(int8_t *to, vb x, vi by) {
    _mm256_storeu_si256((__m256i *)to, times_8(x.lo, by.lo));
    _mm256_storeu_si256((__m256i *)to + 1, times_8(x.hi, by.hi));
}
enum { DOT4_UNSIGNED_NEEDS_SUM = !BIASED };
OP vi dot4_start_unsigned(int32_t sum) { return vi_set1(BIASED ? 0 : 128 * sum); }
OP void turn_4x4(int8_t *to, const uint8_t *from) {
    __m256i turned =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i *f = (const __m256i *)from;
    _mm256_storeu_si256((__m256i *)to, _mm256_shuffle_epi8(_mm256_loadu_si256(f), turned));
    _mm256_storeu_si256((__m256i *)to + 1, _mm256_shuffle_epi8(_mm256_loadu_si256(f + 1), turned));
}

#endif
