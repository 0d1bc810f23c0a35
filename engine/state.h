/* engine/state.h: a call begins, and where its time goes (the struct is in buffers.h, its opening in
 * model.h). */
#ifndef STATE_H
#define STATE_H

#include "engine/buffers.h"
#include "model.h"

/* Begins a call: every sequence has pages for its new rows, the rows are sorted by path, and those that ask
 * for logits are listed. */
void state_begin(State *s, const Row *rows, size_t n);

/* Ends it: the sequences have the new rows. */
void state_end(State *s);

/* Ends a call that was interrupted: the sequences are as they were. */
void state_drop(State *s);

/* From here on thread 0's time counts for `stage`. */
void profile_stage(State *s, const Thread *t, Stage stage);

#endif
