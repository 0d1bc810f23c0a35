/* engine/kda_layer.c: a layer with linear attention: its matrices, its heads and the threads (kda.c has what
 * a head computes). A task is one head of one sequence, whose rows it takes one after another. */
#include "engine/kda_layer.h"

#include <string.h>

#include "engine/cache.h"
#include "engine/kda.h"
#include "engine/sequence.h"
#include "engine/state.h"
#include "kernels/linear.h"

/* The matrix of a decay or an output gate: its result goes to part `part` of the inputs. With a low rank the
 * first of the two was applied before. */
static void project_gate(const Model *m, State *s, const Matrix *w, const Activations *low, size_t part,
                         Thread *t) {
    linear(m->ops, s->kda.in + kda_part(&m->config, part), s->kda.in_stride, w,
           m->config.kda_rank ? low : &s->normed, t);
}

/* The inputs of all rows: s->kda.in. Ends with a barrier. */
static void project(const Model *m, State *s, const Kda *kda, Thread *t) {
    const Config *cfg = &m->config;
    size_t stride = s->kda.in_stride, rank = cfg->kda_rank, low_stride = s->kda.low_stride, from, to;
    if (rank) {
        linear(m->ops, s->kda.low, low_stride, &kda->decay_low, &s->normed, t);
        linear(m->ops, s->kda.low + low_stride / 2, low_stride, &kda->gate_low, &s->normed, t);
        sync_threads(t);
        share(t, s->row_count, &from, &to);
        for (size_t i = from; i < to; i++) {
            m->ops->store_row(&s->kda.decay_low, i, 0, s->kda.low + i * low_stride, rank);
            m->ops->store_row(&s->kda.gate_low, i, 0, s->kda.low + i * low_stride + low_stride / 2, rank);
        }
        sync_threads(t);
    }
    for (size_t part = KDA_QUERY; part <= KDA_VALUE; part++)
        linear(m->ops, s->kda.in + kda_part(cfg, part), stride, &kda->in[part], &s->normed, t);
    linear(m->ops, s->kda.in + kda_part(cfg, KDA_BETA), stride, &kda->beta, &s->normed, t);
    project_gate(m, s, &kda->decay, &s->kda.decay_low, KDA_DECAY, t);
    project_gate(m, s, &kda->gate, &s->kda.gate_low, KDA_GATE, t);
    sync_threads(t);
}

/* One head's inputs of a small call. */
static void keep_inputs(const KdaInputs *x, size_t head, float *kept) {
    const Config *cfg = x->cfg;
    size_t d = cfg->kda_head_dim, stride = kda_replay_floats(cfg);
    for (size_t t = 0; t < x->rows; t++) {
        const float *in = x->in + t * x->stride;
        for (size_t part = KDA_QUERY; part <= KDA_DECAY; part++) {
            size_t at = kda_part(cfg, part) + head * d;
            memcpy(kept + t * stride + at, in + at, d * sizeof *kept);
        }
        kept[t * stride + kda_part(cfg, KDA_BETA) + head] = in[kda_part(cfg, KDA_BETA) + head];
    }
}

/* buffer: of the fast path; NULL: the definition computes the head. */
static void compute_task(const Model *m, State *s, size_t layer, size_t task, float *buffer) {
    const Config *cfg = &m->config;
    const ConstantRun *run = &s->runs[task / cfg->kda_heads];
    size_t head = task % cfg->kda_heads;
    KdaInputs x = {.m = m,
                   .cfg = cfg,
                   .kda = &m->layers[layer].kda,
                   .stride = s->kda.in_stride,
                   .rows = run->rows,
                   .in = s->kda.in + run->first * s->kda.in_stride,
                   .from = cache_slot_layer(s->cache, run->from, layer),
                   .to = cache_slot_layer(s->cache, run->to, layer)};
    if (buffer)
        kda_head(&x, head, &s->kda.heads, run->first, buffer);
    else
        kda_head_plain(&x, head, &s->kda.heads, run->first, s->kda.plain);
    if (run->rows <= REPLAY_ROWS)
        keep_inputs(&x, head, sequence_replay(run->sequence, layer, !run->sequence->constant.replay_now));
}

void kda_attention(const Model *m, State *s, size_t layer, Thread *t) {
    size_t tasks = s->run_count * m->config.kda_heads, task;
    Scratch *z = &s->scratch[t->id];
    bool plain = s->path_is_forced && s->forced_path == PATH_DEFINITION; /* on one thread */
    profile_stage(s, t, STAGE_DENSE);
    project(m, s, &m->layers[layer].kda, t);
    profile_stage(s, t, STAGE_ATTENTION);
    if (plain)
        for (task = 0; t->id == 0 && task < tasks; task++)
            compute_task(m, s, layer, task, NULL);
    else
        while ((task = next_task(t, tasks)) < tasks)
            compute_task(m, s, layer, task, z->kda);
    sync_threads(t);
    profile_stage(s, t, STAGE_DENSE);
    linear_add(m->ops, s->out, s->out_stride, &m->layers[layer].o, &s->kda.heads, NULL, NULL, z->a, t);
    sync_threads(t);
}
