/* cli/request.h: what stands between the scheduler of a batch (batch.c) and those who read its input and
 * write its output: lines.c for --prompts, batch_json.c for --batch.
 *
 *     source and writer            scheduler
 *     next()   Request     ->      tokenizes the prompt, computes it once, forks it, runs its texts beside
 *     write()  Reply       <-      those of other requests
 *
 * The scheduler knows no file and no form of line; source and writer know no sequence and no model beyond its
 * tokenizer. Whatever is wrong with one request is an error of that request alone: a Reply with `error`. */
#ifndef REQUEST_H
#define REQUEST_H

#include "cli/slice.h"
#include "engine/sampler.h"
#include "model.h"

/* ---- requests ------------------------------------------------------------------------------- */

typedef enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT } Role;

typedef struct {
    Role role;
    Slice content;
} Message;

typedef enum {
    PROMPT_TEXT,        /* as -p gives it */
    PROMPT_IDS,         /* as --ids gives it */
    PROMPT_CONVERSATION /* messages, in the form of the chat template: perhaps a system text, then user and
                           assistant in turn, a user last */
} PromptKind;

/* What is asked for. The scheduler fills it with the defaults of the command line, then next() overwrites
 * what the line says. Texts and lists belong to the request: request_keep(). */
typedef struct Request {
    size_t line; /* its number in the input, from 1; next() sets it */
    PromptKind kind;
    Slice text;         /* PROMPT_TEXT */
    const int32_t *ids; /* PROMPT_IDS: [id_count], not checked against the vocabulary yet */
    size_t id_count;
    const Message *messages; /* PROMPT_CONVERSATION: [message_count] */
    size_t message_count;
    int64_t limit;           /* new tokens at most; -1: until the context is full */
    SamplerOptions sampling; /* the seed only if seed_given */
    bool seed_given;         /* else -s + line number * samples: as the command line says */
    bool ignore_end;         /* go on after end tokens */
    const Slice *stops;      /* [stop_count], none empty */
    size_t stop_count;
    size_t samples;       /* at least 1: answers with seeds s, s + 1, ... */
    bool logprobs;        /* of each token, and of the top_logprobs likeliest in its place */
    size_t top_logprobs;  /* at most MAX_TOP_LOGPROBS */
    const Slice *choices; /* [choice_count] continuations, of which the likeliest is wanted; 0: a text is */
    size_t choice_count;
    bool together;     /* its samples make one line of output, and not one each (--first) */
    void *data;        /* the source's own (id, custom_id, form), kept with request_keep() */
    char error[256];   /* not empty: the line cannot be used, and this is why, without its number */
    struct Kept *kept; /* what request_keep() allocated */
} Request;

enum { MAX_TOP_LOGPROBS = 20 };

/* A copy of n bytes, or zeros if `bytes` is NULL, that lives as long as the request. NULL: out of memory. */
void *request_keep(Request *r, const void *bytes, size_t n);
void request_free(Request *r);

/* r->error = the message, on one line. Returns false, so that a reader can return that. */
bool request_fail(Request *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- replies -------------------------------------------------------------------------------- */

/* A token with the natural logarithm of its probability, of the raw logits: before penalty, temperature and
 * cuts. */
typedef struct {
    int32_t id;
    double logprob;
} TokenLogprob;

/* How likely a choice is as a continuation. */
typedef struct {
    double sum;    /* of its tokens' log-probabilities */
    size_t tokens; /* and bytes: of the choice as it was given, which is request->choices[i] */
} ChoiceSum;

/* One answer. */
typedef struct Reply {
    size_t sample;  /* 0 .. request->samples - 1 */
    uint64_t seed;  /* its own */
    End end;        /* END_TOKEN, END_STOP, END_LENGTH, END_CONTEXT; of no meaning with an error or choices */
    Buffer ids;     /* int32_t [completion_tokens]: what was written, without the end token */
    Buffer text;    /* bytes as ./run writes them: without the stop text, special tokens left out. Not always
                      UTF-8. In a conversation it begins with the thought that the template opens, if any */
    Buffer thought; /* of a conversation with --think hide: what `text` is without */
    size_t shown;   /* bytes at the beginning of `text` that came from the template, not from `ids` */
    /* TokenLogprob [completion_tokens][1 + top_logprobs]: the token itself, then the likeliest in descending
     * order; empty without request->logprobs */
    Buffer logprobs;
    const ChoiceSum *sums; /* [request->choice_count]; NULL without choices */
    size_t best;           /* the likeliest choice, the first of equal ones */
    size_t prompt_tokens;  /* begin token and session included */
    size_t completion_tokens;
    const char *error; /* NULL, or why there is no answer: request->error or what went wrong later */
} Reply;

/* The first error among all replies of a request, of which `first` is the first. NULL: there is none. */
const char *first_error(const Request *r, const Reply *first);

/* "stop" or "length", as OpenAI's interfaces say it. */
const char *finish_reason(const Reply *reply);

/* ---- source and writer ---------------------------------------------------------------------- */

typedef enum {
    NEXT_REQUEST, /* *r is filled; r->error may be set */
    NEXT_LATER,   /* nothing is there yet, and wait was false */
    NEXT_END,     /* the end of the input, or Ctrl-C */
    NEXT_FAILED   /* reported: the input cannot be read any further; what was read is still answered */
} Next;

typedef struct {
    void *owner;
    /* The next request. `wait`: until there is one; otherwise only if it can be had at once, because texts
     * are running meanwhile. */
    Next (*next)(void *owner, Request *r, bool wait);
    /* Called for each answer of each request, in the order of the input: samples times for each request,
     * whether they have errors or not, and once for choices. The replies of a request lie one behind the
     * other and live until the last one was written: then reply[-sample] is the first. Writes whole lines
     * with output_line(), which flushes. */
    void (*write)(void *owner, const Request *r, const Reply *reply);
    /* How many requests there are, as far as known; 0: unknown. For the display of progress. NULL: unknown.
     * */
    size_t (*count)(void *owner);
} Exchange;

#endif
