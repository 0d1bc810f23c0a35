/* cli/texts.h: the texts of a batch that are computed now: prompts, samples, choices, and the prefixes that
 * they share. Inside batch.c and texts.c; the outside is batch.h. */
#ifndef TEXTS_H
#define TEXTS_H

#include "cli/generate.h"
#include "cli/job.h"
#include "cli/template.h"

enum { PREFIXES = 16 }; /* that are kept for conversations to come */

/* What other texts begin with. */
typedef struct {
    Sequence *sequence; /* NULL: none */
    size_t used;        /* Batch.uses when it was used last */
} Prefix;

/* A text that is computed. */
typedef struct {
    struct Batch *batch;
    Job *job; /* NULL: the slot is free */
    size_t part;
    bool reads;  /* it computes the prompt, for all texts of the job */
    bool in_job; /* it uses the job's own sequence, not a fork of it */
    Run run;
    Generation g;
} Slot;

typedef struct Batch {
    const Model *model;
    const Options *options;
    const Exchange *exchange;
    State *state;
    size_t parallel;
    Slot *slots;          /* [parallel] */
    Generation **running; /* [running_count] of slots, the oldest first */
    size_t running_count;
    Jobs jobs;
    Job *first, *last; /* those whose replies are not all written, in the order of the input */
    size_t job_count;
    bool ended;       /* the input */
    bool interrupted; /* some text was */
    int status;
    Template template;
    Prefix prefixes[PREFIXES];
    size_t uses;
    Sequence *session; /* NULL: no --from */
    float *session_logits;
    SavedText saved;
    size_t line; /* of output, from 1: the first of the next job */
    size_t answers, errors, read, shared, written;
    double start, shown;
} Batch;

/* Whether one more text may run. */
bool has_slot(const Batch *b);

/* Begins what there is room for. False: something of the job waits for room. */
bool begin_job(Batch *b, Job *job);

/* After each generate_step(): takes out the texts that have ended. */
void end_texts(Batch *b);

/* Forgets all texts that run. */
void close_texts(Batch *b);

#endif
