/* engine/kda_layer.h: a layer with linear attention in the place of latent attention. */
#ifndef KDA_LAYER_H
#define KDA_LAYER_H

#include "model.h"

/* s->out += attention(s->normed) for the call's rows in one layer of cfg->kda_layers. Every thread of the
 * team calls it. */
void kda_attention(const Model *m, State *s, size_t layer, Thread *t);

#endif
