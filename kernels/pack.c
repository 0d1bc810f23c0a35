/* kernels/pack.c: what exporter/quantize.py does to q8 and q4, several times as fast. quantize.py is the
 * definition, and every byte is the same. `make` builds build/pack.so of this file, which quantize.py uses if
 * it is there; ./run has nothing of it.
 *
 * A block of 16 rows and 64 columns is taken at a time: 32 groups of 32 weights, each with its scale. It is
 * turned, so that the loops over the groups become vector instructions; within a group numbers are added in
 * the order of its columns, as in quantize.py. The integers of four columns lie in one word, as in a unit of
 * the panel. The weights must be finite: the exporter has looked at them. Others give bytes without
 * a meaning, and nothing worse. */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/simd.h"

/* Everything becomes part of each function at the end, which are compiled for different processors. */
#define INLINE static inline __attribute__((always_inline))

enum { GROUP = 32, GROUPS = 2 * PANEL, WORDS = GROUP / 4, CODES = 16 };

/* Of the groups of a block: 16 rows' left halves, then their right halves. */
typedef float Weights[GROUP][GROUPS];
typedef uint32_t Words[WORDS][GROUPS];
typedef float Numbers[GROUPS];

/* What becomes of an integer: `first`, and step[i] for every limit[i] that it is above. */
typedef struct {
    int8_t limit[CODES - 1];
    uint8_t first, step[CODES - 1];
} Steps;

/* The block of x [rows, cols] that begins at `row` and `column`; zeros where there is nothing. */
INLINE void load_block(Weights w, const float *x, size_t rows, size_t cols, size_t row, size_t column) {
    size_t m = min(rows - row, PANEL), n = min(cols - column, BLOCK);
    if (m < PANEL || n < BLOCK)
        memset(w, 0, sizeof(Weights));
    for (size_t r = 0; r < m; r++)
        for (size_t c = 0; c < n; c++)
            w[c % GROUP][c / GROUP * PANEL + r] = x[(row + r) * cols + column + c];
}

/* 1 / scale, and 0 where that is next to nothing. */
INLINE void invert(Numbers inverse, const Numbers scale) {
    for (int g = 0; g < GROUPS; g++)
        inverse[g] = fabsf(scale[g]) > 1e-30f ? 1.0f / scale[g] : 0.0f;
}

/* The scales as the block has them, which it begins with; they become what is read from there. */
INLINE void store_scales(uint8_t *block, Numbers scale) {
    for (int g = 0; g < GROUPS; g++) {
        uint16_t half = (uint16_t)(f16_from_f32(fabsf(scale[g])) | (bits_of(scale[g]) >> 16 & 0x8000));
        memcpy(block + 2 * g, &half, 2);
        scale[g] = f32_from_f16(half);
    }
}

/* x to the nearest integer in -127 .. 127, ties to even, as a byte. Beside 1.5 * 2^23 a float has no bits
 * left for a fraction, and its last byte is the integer's; as integers, floats above zero are in their
 * order. */
INLINE uint32_t rounded(float x) {
    const int32_t zero = 0x4b400000;
    int32_t bits = (int32_t)bits_of(x + 0x1.8p23f);
    bits = bits > zero + 127 ? zero + 127 : bits;
    bits = bits < zero - 127 ? zero - 127 : bits;
    return (uint32_t)bits & 255;
}

INLINE void round_weights(Words out, Weights w, const Numbers inverse) {
    for (int t = 0; t < WORDS; t++)
        for (int g = 0; g < GROUPS; g++) {
            uint32_t a = rounded(w[4 * t][g] * inverse[g]), b = rounded(w[4 * t + 1][g] * inverse[g]);
            uint32_t c = rounded(w[4 * t + 2][g] * inverse[g]), d = rounded(w[4 * t + 3][g] * inverse[g]);
            out[t][g] = a | b << 8 | c << 16 | d << 24;
        }
}

INLINE void take_steps(Words words, const Steps *given) {
    const Steps steps = *given; /* which no byte that is written can change */
    uint8_t *byte = (uint8_t *)words;
    for (size_t k = 0; k < sizeof(Words); k++) {
        uint8_t sum = steps.first;
        UNROLL for (int i = 0; i < CODES - 1; i++) {
            sum = (uint8_t)(sum + (-((int8_t)byte[k] > steps.limit[i]) & steps.step[i]));
        }
        byte[k] = sum;
    }
}

/* For each group: the best scale for the codes that `inverse` gives, and by how much it lowers the squared
 * error. present: ones where a weight is there and zeros where one is padding, or NULL. */
INLINE void fit(Numbers scale, Numbers gain, Weights w, const Numbers inverse, const Steps *values,
                uint32_t (*present)[GROUPS]) {
    Words value;
    Numbers xv = {0}, vv = {0};
    round_weights(value, w, inverse);
    take_steps(value, values);
    if (present)
        for (int t = 0; t < WORDS; t++)
            for (int g = 0; g < GROUPS; g++)
                value[t][g] &= present[t][g];
    for (int t = 0; t < WORDS; t++)
        for (int g = 0; g < GROUPS; g++)
            UNROLL for (int k = 0; k < 4; k++) {
                float v = (float)((int32_t)(value[t][g] << (24 - 8 * k)) >> 24);
                xv[g] += w[4 * t + k][g] * v;
                vv[g] += v * v;
            }
    for (int g = 0; g < GROUPS; g++) {
        scale[g] = vv[g] != 0.0f ? xv[g] / vv[g] : 0.0f;
        gain[g] = xv[g] * scale[g];
    }
}

/* The scales of least squared error: those that fit best after one of `tries` (n values: where the weight of
 * largest magnitude is put), and once more from there. */
INLINE void search(Numbers best, Weights w, const Steps *values, const float *tries, size_t n,
                   uint32_t (*present)[GROUPS]) {
    Numbers top, bottom, largest, inverse, tried, scale, gain, most = {0};
    memcpy(top, w[0], sizeof top);
    memcpy(bottom, w[0], sizeof bottom);
    for (int j = 1; j < GROUP; j++)
        for (int g = 0; g < GROUPS; g++) {
            top[g] = w[j][g] > top[g] ? w[j][g] : top[g];
            bottom[g] = w[j][g] < bottom[g] ? w[j][g] : bottom[g];
        }
    for (int g = 0; g < GROUPS; g++)
        largest[g] = top[g] >= -bottom[g] ? top[g] : bottom[g];
    invert(inverse, largest);
    memset(best, 0, sizeof(Numbers));
    for (size_t i = 0; i < n; i++) {
        for (int g = 0; g < GROUPS; g++)
            tried[g] = inverse[g] * tries[i];
        fit(scale, gain, w, tried, values, present);
        for (int g = 0; g < GROUPS; g++) {
            best[g] = gain[g] > most[g] ? scale[g] : best[g];
            most[g] = gain[g] > most[g] ? gain[g] : most[g];
        }
    }
    invert(inverse, best);
    fit(best, gain, w, inverse, values, present);
}

/* The steps from an integer to the value of an ascending codebook that is nearest to it, of two the lower
 * one; or to that value's index. */
INLINE Steps steps_to(const int8_t value[CODES], bool index) {
    Steps steps = {.first = index ? 0 : (uint8_t)value[0]};
    for (int i = 0; i + 1 < CODES; i++) {
        int sum = value[i] + value[i + 1];
        steps.limit[i] = (int8_t)((sum - (sum < 0 && sum % 2)) / 2); /* half of it, rounded down */
        steps.step[i] = index ? 1 : (uint8_t)(value[i + 1] - value[i]);
    }
    return steps;
}

/* Of a block with `n` columns whose last group is only partly there; a group that is not there at all has
 * nothing of which a scale could be made. */
INLINE void mark_present(Words present, size_t n) {
    for (size_t j = 0; j < GROUP; j++)
        for (size_t g = 0; g < GROUPS; g++)
            ((uint8_t *)&present[j / 4][g])[j % 4] = j + g / PANEL * GROUP < n ? 255 : 0;
}

/* x [rows, cols] -> out [panels, blocks, Q4_BLOCK]. codebook: 16 values, ascending. tries [n]: search() */
typedef void PackQ4(const float *x, size_t rows, size_t cols, const int8_t *codebook, const float *tries,
                    size_t n, uint8_t *out);
/* x [rows, cols] -> out [panels, blocks, Q8_BLOCK] */
typedef void PackQ8(const float *x, size_t rows, size_t cols, uint8_t *out);

INLINE void pack_q4(const float *x, size_t rows, size_t cols, const int8_t *codebook, const float *tries,
                    size_t n, uint8_t *out) {
    const Steps values = steps_to(codebook, false), indices = steps_to(codebook, true);
    Weights w;
    Words code, present;
    Numbers scale, inverse;
    for (size_t row = 0; row < rows; row += PANEL)
        for (size_t column = 0; column < cols; column += BLOCK, out += Q4_BLOCK) {
            load_block(w, x, rows, cols, row, column);
            if (cols % GROUP)
                mark_present(present, cols - column);
            search(scale, w, &values, tries, n, cols % GROUP ? present : NULL);
            store_scales(out, scale);
            invert(inverse, scale);
            round_weights(code, w, inverse);
            take_steps(code, &indices);
            for (int h = 0; h < 2; h++)
                for (int u = 0; u < WORDS / 2; u++)
                    for (int r = 0; r < PANEL; r++) {
                        uint32_t low = code[u][h * PANEL + r], high = code[u + WORDS / 2][h * PANEL + r];
                        low |= high << 4;
                        memcpy(out + 64 * (1 + h * WORDS / 2 + u) + 4 * r, &low, 4);
                    }
        }
}

INLINE void pack_q8(const float *x, size_t rows, size_t cols, uint8_t *out) {
    Weights w;
    Words code;
    Numbers scale, inverse;
    for (size_t row = 0; row < rows; row += PANEL)
        for (size_t column = 0; column < cols; column += BLOCK, out += Q8_BLOCK) {
            load_block(w, x, rows, cols, row, column);
            memset(scale, 0, sizeof scale);
            for (int j = 0; j < GROUP; j++)
                for (int g = 0; g < GROUPS; g++)
                    scale[g] = fabsf(w[j][g]) > scale[g] ? fabsf(w[j][g]) : scale[g];
            for (int g = 0; g < GROUPS; g++)
                scale[g] /= 127.0f;
            store_scales(out, scale);
            invert(inverse, scale);
            round_weights(code, w, inverse);
            for (int h = 0; h < 2; h++)
                for (int u = 0; u < WORDS; u++)
                    for (int r = 0; r < PANEL; r++) {
                        uint32_t word = code[u][h * PANEL + r] ^ 0x80808080;
                        memcpy(out + 64 * (1 + h * WORDS + u) + 4 * r, &word, 4);
                    }
        }
}

/* ---- compiled for each instruction set, chosen at the first call ---------------------------- */

typedef struct {
    const char *isa;
    PackQ4 *q4;
    PackQ8 *q8;
} Packers;

#define PACKERS(isa, target)                                                                      \
    target static void q4_##isa(const float *x, size_t rows, size_t cols, const int8_t *codebook, \
                                const float *tries, size_t n, uint8_t *out) {                     \
        pack_q4(x, rows, cols, codebook, tries, n, out);                                          \
    }                                                                                             \
    target static void q8_##isa(const float *x, size_t rows, size_t cols, uint8_t *out) {         \
        pack_q8(x, rows, cols, out);                                                              \
    }                                                                                             \
    static const Packers packers_##isa = {#isa, q4_##isa, q8_##isa};

PACKERS(portable, )
#if defined(__x86_64__)
PACKERS(avx2, __attribute__((target("avx2"))))
PACKERS(avx512, __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512dq"))))
#endif

/* The fastest that runs here, or what MLA_ISA names. */
static const Packers *choose(void) {
#if defined(__x86_64__)
    const char *isa = getenv("MLA_ISA");
    bool any = !isa || !*isa;
    if ((any || strcmp(isa, "avx512") == 0) && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &packers_avx512;
    if ((any || strcmp(isa, "avx2") == 0) && __builtin_cpu_supports("avx2"))
        return &packers_avx2;
#endif
    return &packers_portable;
}

PackQ4 mla_pack_q4;
PackQ8 mla_pack_q8;

void mla_pack_q4(const float *x, size_t rows, size_t cols, const int8_t *codebook, const float *tries,
                 size_t n, uint8_t *out) {
    choose()->q4(x, rows, cols, codebook, tries, n, out);
}

void mla_pack_q8(const float *x, size_t rows, size_t cols, uint8_t *out) { choose()->q8(x, rows, cols, out); }
