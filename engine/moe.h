/* engine/moe.h: the MLPs of a layer: router, routed experts, shared experts, dense layers. */
#ifndef MOE_H
#define MOE_H

#include "model.h"

/* Chooses the experts of every row: State.moe.chosen and .weight. Every thread of the team calls it; thread
 * 0 can read them when it returns, the others after the next sync_threads. */
void route(const Model *m, State *s, const Layer *L, Thread *t);

/* Thread 0: lists the MLPs that the call's rows go through, as expert batches. */
void plan_batches(const Model *m, State *s, const Layer *L);

/* Adds the MLPs' outputs, weighted: routed experts to State.experts_out, shared experts or the dense MLP to
 * State.out. Every thread of the team calls it when the batches are planned; returns when all are done. */
void run_batches(const Model *m, State *s, const Layer *L, Thread *t);

#endif
