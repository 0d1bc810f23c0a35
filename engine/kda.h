/* engine/kda.h: Kimi Delta Attention, the linear attention of Kimi-Linear and Ling-3.0: what one head
 * computes, and the sizes of what a sequence keeps of it. A layer of it, with all heads and threads, is in
 * kda_layer.h. */
#ifndef KDA_H
#define KDA_H

#include "model.h"

/* Parts of a row of inputs, each for all heads: u of queries, keys and values, z without its bias, W_beta x
 * and W_gate x. A part begins at kda_part(). */
enum { KDA_QUERY, KDA_KEY, KDA_VALUE, KDA_DECAY, KDA_BETA, KDA_GATE, KDA_PARTS };

size_t kda_part(const Config *cfg, size_t part);

/* The rows of one sequence in one layer: their inputs, and where the constant part is read and written, which
 * are not the same place. */
typedef struct {
    const Model *m;
    const Config *cfg;
    const Kda *kda;
    const float *in; /* [rows][stride] */
    size_t stride, rows;
    const float *from; /* [kda_layer_floats()] */
    float *to;
} KdaInputs;

/* Computes one head of all rows. The outputs go into rows first, first + 1, ... of `heads`, the input of W_o;
 * heads NULL: only the constant part is wanted. buffer: kda_scratch_floats(). */
void kda_head(const KdaInputs *x, size_t head, Activations *heads, size_t first, float *buffer);

/* The same by the definition. buffer: kda_plain_floats(). */
void kda_head_plain(const KdaInputs *x, size_t head, Activations *heads, size_t first, float *buffer);

/* One row of one head by the equations of kda.c, in f32 and in plain loops. out [d]; q, k, v [d]; decay [d]
 * its logarithm; memory [d keys][d values], changed in place. */
void kda_definition(float *out, float *memory, const float *q, const float *k, const float *v,
                    const float *decay, float beta, size_t d);

/* Sizes in floats: of a layer's constant part; of a row of inputs, and of the parts of it from which the
 * constant part follows; of a thread's own buffers. */
size_t kda_layer_floats(const Config *cfg);
size_t kda_input_floats(const Config *cfg);
size_t kda_replay_floats(const Config *cfg);
size_t kda_scratch_floats(const Config *cfg);
size_t kda_plain_floats(const Config *cfg);

/* The name of a field of Config whose value is not possible for such layers; NULL: all are possible. */
const char *kda_config_error(const Config *cfg);

#endif
