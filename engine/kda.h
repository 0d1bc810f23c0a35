/* engine/kda.h: Kimi Delta Attention, the linear attention of Kimi-Linear and Ling-3.0, and the constant part
 * that a sequence has for it (kda.c says what is in it). */
#ifndef KDA_H
#define KDA_H

#include "model.h"

/* s->out += attention(s->normed) for the call's rows in one layer of cfg->kda_layers. Every thread of the team
 * calls it. */
void kda_attention(const Model *m, State *s, size_t layer, Thread *t);

/* Slot `to` of the sequence's cache = its constant part behind the first `rows` rows of its last call, which
 * had at most REPLAY_ROWS: made from what that call kept. */
void kda_replay(const Sequence *q, size_t rows, uint32_t to);

/* One row of one head by the equations of kda.c, in f32 and in plain loops. out [d]; q, k, v [d]; decay [d]
 * its logarithm; memory [d keys][d values], changed in place. */
void kda_definition(float *out, float *memory, const float *q, const float *k, const float *v,
                    const float *decay, float beta, size_t d);

/* Sizes in floats: of a layer's constant part; of a row of projected inputs, and of what is kept of it for
 * kda_replay; of a thread's own buffer. */
size_t kda_layer_floats(const Config *cfg);
size_t kda_input_floats(const Config *cfg);
size_t kda_replay_floats(const Config *cfg);
size_t kda_scratch_floats(const Config *cfg);

#endif
