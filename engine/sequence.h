/* engine/sequence.h: texts in the cache: opened, cut, marked and forked.
 *
 *     cut    back to an earlier row: an answer that a chat template rewrites, a draft that was wrong
 *     mark   remember this row: the start of a turn, the end of a prefix
 *     fork   a new sequence that begins like another one: many prompts behind one prefix, several samples
 *
 * Most models keep nothing of a text but its cache rows, so that a sequence can be cut and forked at any row.
 * What a linear attention, or one of windows, keeps of it has a constant size and forgets: such a model goes
 * back to marks, of which a sequence has the last two and its beginning, or to any row of its last call, if
 * that had at most REPLAY_ROWS. Callers therefore ask where a cut went.
 *
 * A fork shares its full pages with the sequence that it comes from; a page that two sequences hold is
 * copied before one of them writes to it. Here is no file and no option: sessions are in cli/session.c. */
#ifndef SEQUENCE_H
#define SEQUENCE_H

#include "engine/buffers.h"
#include "model.h"

/* An empty sequence. NULL: StateOptions.sequences are open already. */
Sequence *sequence_open(State *s);

/* Gives its pages back. */
void sequence_close(Sequence *q);

/* At most the first `rows` cached rows count from here on; the ids stay. Returns how many rows there are
 * now: fewer than asked for where the model can only go back to a mark. */
size_t sequence_cut(Sequence *q, size_t rows);

/* The sequence can be cut back to, and forked at, the rows that it has now, until it has MARKS later
 * marks. */
void sequence_mark(Sequence *q);

/* A new sequence with the first `rows` ids and cache rows of `from`, where `rows` is 0, a mark of it, or all
 * that it has; in a model without constant part any row. NULL: no sequence or no page is free, or it cannot
 * be forked there. */
Sequence *sequence_fork(State *s, const Sequence *from, size_t rows);

/* A call begins and ends for the sequence's constant part: it gets a slot to write, and keeps it. Without the
 * end, cache_release_slot(run->to) leaves the sequence as it was. q->rows is that of the start. */
void sequence_begin_run(Sequence *q, ConstantRun *run);
void sequence_end_run(Sequence *q, const ConstantRun *run);

/* Where the inputs of small calls are kept for a layer: [REPLAY_ROWS][floats of the layer]. `which` of two:
 * Constant.replay_now holds the last call. */
float *sequence_replay(const Sequence *q, size_t layer, int which);

/* Gives it pages of its own for rows q->rows .. rows - 1. False: no page is free. */
bool sequence_reserve(Sequence *q, size_t rows);

/* What of the last page is behind the last row becomes zeros. */
void sequence_clear_rest(const Sequence *q);

/* The constant part behind all rows, constant_bytes() of it, in a model that has one; a new one, to fill. */
const float *sequence_constant(const Sequence *q);
float *sequence_new_constant(Sequence *q);

/* What is to be read of a text at once, a *stretch*, is cut into pieces of PIECE_ROWS rows from its
 * beginning. A piece of more than ABSORBED_ROWS rows is decompressed, everything else is absorbed. So a
 * row's path, and with it every bit of its result, follows from its own text, not from what is computed
 * beside it. */
enum { PIECE_ROWS = 2048, ABSORBED_ROWS = 112 };

/* The path of row `at` of a stretch of `rows` rows. */
Path stretch_path(size_t at, size_t rows);

/* rows[0 .. n) = the next n ids that are not in the cache, as a stretch, or as a part of one that has
 * `stretch_rows` rows and begins at cache row `stretch`. None of them asks for logits. */
void sequence_rows(Sequence *q, Row *rows, size_t n, size_t stretch, size_t stretch_rows);

#endif
