/* cli/job.h: a request of a batch while it is answered: its prompt as ids, its texts or choices, its replies.
 * When its texts run, and beside which others, is batch.c's business. */
#ifndef JOB_H
#define JOB_H

#include "cli/conversation.h"
#include "cli/options.h"
#include "cli/request.h"
#include "model.h"

/* What all jobs of a batch share. */
typedef struct {
    const Model *model;
    const Options *options;
    size_t before;         /* tokens of the session that every prompt is appended to */
    uint32_t turns;        /* of its conversation; 0: it is none */
    uint64_t seed;         /* of the first request's first text */
    size_t context;        /* most tokens of a text, the session included */
    char no_template[160]; /* why conversations cannot be answered; empty: they can */
    Conversation whole, opening;
} Jobs;

typedef enum {
    JOB_WAITS,
    JOB_READS, /* its prompt is computed */
    JOB_RUNS,  /* its texts begin with the prompt's cached rows */
    JOB_ENDED  /* all replies are there */
} JobState;

typedef struct Job {
    Request request;
    JobState state;
    int32_t *ids; /* [count] of the prompt, without the session */
    size_t count;
    size_t prefix;     /* as many of the ids as other conversations may begin with, too */
    int32_t **choices; /* [request.choice_count] ids */
    size_t *choice_tokens;
    uint64_t seed;
    size_t tokens; /* that may follow the prompt in the cache */
    size_t parts;  /* texts to be computed: samples or choices */
    size_t begun, done;
    size_t texts;   /* that are computed now; the prompt is one of them */
    Reply *replies; /* [reply_count] */
    size_t reply_count, written;
    bool *complete; /* [reply_count] */
    ChoiceSum *sums;
    /* the prompt in the cache */
    Sequence *sequence;
    size_t rows;
    bool busy;     /* a text runs in this sequence itself, not in a fork */
    float *logits; /* [V] after the prompt */
    struct Job *next;
} Job;

/* The job of a request, which becomes the job's; perhaps JOB_ENDED with an error. NULL: out of memory. */
Job *job_open(Jobs *jobs, const Request *request);
void job_close(Job *job);

/* The job ends; its replies that are not complete have its first error, which is this one if there is none
 * yet. */
void job_fail(Job *job, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Text `part` has ended. */
void job_part_done(Job *job, size_t part);

#endif
