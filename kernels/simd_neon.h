/* kernels/simd_neon.h: the vectors of simd.h with NEON and its dot product instruction, each in four quarters
 * of 128 bits. */
#ifndef SIMD_NEON_H
#define SIMD_NEON_H

#include <arm_neon.h>

#define ISA_NAME neon
enum { REG_ROWS = 4, ABREAST = 1, MANY_PANELS = 1, MANY_ROWS = 4, FAR_PAYS = 0 };

typedef float32x4x4_t vf;
typedef int32x4x4_t vi;
typedef uint32x4x4_t vm;
typedef int8x16x4_t vb;
typedef int8x16_t va;
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
OP void vf_store(float *p, vf a) {
    for (int i = 0; i < 4; i++)
        vst1q_f32(p + 4 * i, a.val[i]);
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
OP va va_load(const int8_t *a) { return vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)a)); }
OP vi dot4_va(vi acc, vb w, va a) {
    vb four = FOUR(a);
    return (vi)EACH3(vdotq_s32, acc, w, four);
}
OP vi dot4(vi acc, vb w, const int8_t *a) { return dot4_va(acc, w, va_load(a)); }
OP vi dot4_from(vi start) {
    (void)start;
    return vi_set1(0);
}

/* ---- for attention.h alone ------------------------------------------------------------------ */

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
