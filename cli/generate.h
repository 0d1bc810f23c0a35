/* cli/generate.h: one sequence that is read and written, whether a single text (generate.c) or a
 * conversation (chat.c). */
#ifndef GENERATE_H
#define GENERATE_H

#include "cli/output.h"
#include "cli/session.h"
#include "cli/think.h"
#include "engine/sampler.h"
#include "model.h"

enum { END_TOKENS = sizeof((Config *)0)->eos_token_id / sizeof(int32_t) + 1 };

typedef struct {
    const Model *model;
    const Options *options;
    State *state;
    Sampler *sampler;
    Sequence *sequence; /* session, prompt and text so far */
    SavedText saved;    /* the rest of a session */
    Text text;          /* on standard output, or collected */
    Hider hider;        /* of thoughts; closed by whoever opens it */
    size_t prefix;      /* of the sequence: Generation.prefix */
    bool marks;         /* the end of each prompt is marked (engine/sequence.h) */
    int32_t turn_end;   /* ends a text as the model's end tokens do; -1: none */
    int32_t end_tokens[END_TOKENS];
    size_t ids_printed;   /* without tokenizer */
    size_t read, written; /* tokens of prompts and of texts */
    size_t textless;      /* at least so many tokens at the beginning of the sequence have no text */
    size_t steps;         /* forward calls for texts: the first token comes with the prompt's last row */
    double read_seconds, write_seconds;
} Run;

/* With model, options, state and what session_open gave in place: everything else that a run needs, before
 * the first byte of text. DONE, or an exit status after a report. */
int run_open(Run *r, Session *session);

/* What generate() of run.c is to do with the run's sequence: with its end tokens unless `endless`. The caller
 * gives it emit, progress and owner. */
Generation run_generation(Run *r, int64_t limit, bool endless);

/* generate() for the run's sequence: reads its tokens that are not in the cache yet, at least one
 * unless a session brought logits, then writes at most options->tokens. */
End run_generate(Run *r);

/* The bytes of token `at` of the sequence. Special tokens are marks between texts and have none, unless
 * the user works with them (--special) or sees thoughts. */
const char *token_text(Run *r, size_t at, size_t *n);

/* The last token of the sequence goes into the text. False: a stop text is complete. */
bool run_token(Run *r);
/* The text ends. */
void run_end_text(Run *r);

/* The sampler has seen the tokens that are in the cache, and no others. */
void run_remember(Run *r);

/* At most the first `rows` rows of the cache count: what the sequence holds behind them is to be read. */
void run_rewind(Run *r, size_t rows);

/* The sampling that the command line asks for; what it does not say comes from the checkpoint. Without the
 * seed. */
SamplerOptions given_sampling(const Config *cfg, const Options *o);

/* Saves the session; may be called again when there is something new. DONE, or FAILED after a report. */
int run_save(Run *r, Session *session);

/* Reports how the last text ended, with statistics, and saves the session if it is not NULL. The exit
 * status. */
int run_finish(Run *r, Session *session, End end);
void run_close(Run *r); /* also after run_open failed */

#endif
