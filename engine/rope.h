/* engine/rope.h: rotary positions. */
#ifndef ROPE_H
#define ROPE_H

#include <stddef.h>
#include <stdint.h>

/* cos and sin of the angles position * inv_freq[i], i < pairs. The product is taken in f32 as the
 * reference implementations do; cos and sin are computed here and not by libm, whose last bit differs
 * between systems. Good to 1 ulp of f32 for angles below 1.6 million (2^20 quarter turns). */
void rope_angles(float *cosine, float *sine, const float *inv_freq, size_t pairs, uint32_t position);

/* Rotates interleaved pairs (x[2i], x[2i + 1]), i < pairs, in place. */
void rope(float *x, const float *cosine, const float *sine, size_t pairs);

/* Rotates them back: by minus the angles. */
void rope_back(float *x, const float *cosine, const float *sine, size_t pairs);

#endif
