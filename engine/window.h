/* engine/window.h: DeepSeek-V4's attention: a window of rows, and compressed rows. */
#ifndef WINDOW_H
#define WINDOW_H

#include "model.h"

/* s->out += attention(s->normed) for the call's rows in one layer of kind LAYER_SLIDING, LAYER_CSA or
 * LAYER_HCA. Every thread of the team calls it. */
void window_attention(const Model *m, State *s, size_t layer, Thread *t);

/* The angles of row i in layers with compressed rows; nothing in models without. */
void window_angles(const Model *m, State *s, size_t i);

/* Attention of one head and one query by the equations of window.c, in f32 and in plain loops. out [d]; q
 * [d]; rows [T][d], raw and compressed; score [T]. */
void window_definition(float *out, const float *q, const float *rows, size_t T, float sink, float scale,
                       size_t d, float *score);

#endif
