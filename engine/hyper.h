/* engine/hyper.h: hyper-connections, several residual streams in place of one. For models with hc_mult. All
 * threads of the team run hyper_read, hyper_write and hyper_head; each ends with a barrier. */
#ifndef HYPER_H
#define HYPER_H

#include "kernels/team.h"
#include "model.h"

/* normed = RMSNorm(x) * norm [D], x the mixture of the streams that a branch reads. The weights with which
 * hyper_write puts the branch's output back are kept in s->hyper. */
void hyper_read(const Model *m, State *s, const Hyper *h, const float *norm, Thread *t);

/* The streams behind the branch whose output is s->branch, which is zeros again. */
void hyper_write(const Model *m, State *s, Thread *t);

/* Of the rows that asked for logits: the first stream becomes the mixture that the head reads. */
void hyper_head(const Model *m, State *s, Thread *t);

/* The weights of one row by the equations of hyper.c, in f32 and in plain loops, S = cfg->hc_mult: X [S D]
 * its streams; fn [S (2 + S)][S D] and base [S (2 + S)], or `outputs` S of the head, which has pre alone.
 * Writes w [outputs]: pre [S], post [S], C [S][S]. */
void hyper_definition(float *w, const float *X, const float *fn, const float *base, const float *scale,
                      size_t outputs, const Config *cfg);

/* Floats of a row of s->hyper.sums: fn X, in pieces. */
size_t hyper_sum_floats(const Config *cfg);

#endif
