/* cli/think.h: the marks between which a model thinks, and what of an answer the history keeps. */
#ifndef THINK_H
#define THINK_H

#include <stdint.h>

#include "cli/slice.h"
#include "tokenizer.h"

/* What the chat template does with an answer (flags of the checkpoint's chat section, template.h). */
enum {
    SPLIT_FIRST = 16, /* the answer begins behind the first mark that ends a thought ... */
    SPLIT_LAST = 32,  /* ... or behind the last one */
    DROP_LINES = 64,  /* and behind the line feeds that follow the mark */
    DROP_OPEN = 128   /* a thought without an end leaves no answer */
};

/* A token in a text. */
typedef struct {
    size_t at, bytes; /* its text */
    int32_t id;       /* -1: no token, only text that looks like a mark */
    bool ends;        /* a mark: whether it ends a thought or begins one */
} Mark;

/* The marks that a template names. A mark is the added token with its text; only where the tokenizer has no
 * such token it is the text. */
typedef struct {
    Slice begin, end;         /* empty: none */
    int32_t begin_id, end_id; /* -1: no token */
} ThoughtMarks;

/* What the user has seen of an answer. */
typedef struct {
    Buffer text;
    Buffer marks; /* Mark, by their place */
} Answer;

ThoughtMarks thought_marks(const Tokenizer *t, size_t vocabulary, Slice begin, Slice end);

/* Whether a text ends within a thought: its last mark begins one. */
bool opens_thought(const ThoughtMarks *marks, Slice text);

/* From the last mark that begins a thought on: what of a prompt that opens one is shown. */
Slice from_last_begin(const ThoughtMarks *marks, Slice text);

void answer_clear(Answer *a);
/* One more token, or with id -1 a text. False: out of memory; not reported. */
bool answer_add(Answer *a, const ThoughtMarks *marks, int32_t id, Slice text);
/* The last bytes are no part of the answer. */
void answer_cut(Answer *a, size_t bytes);
/* After the last token: the marks for which there are no tokens. False: as answer_add. */
bool answer_complete(Answer *a, const ThoughtMarks *marks);
void answer_free(Answer *a);

/* ---- an answer without its thought, while it is written -------------------------------------- */
/* A thought is what stands between the marks at the beginning of an answer; white space may be before it. */

typedef struct {
    const ThoughtMarks *marks; /* NULL: nothing is hidden */
    enum { BEFORE_THOUGHT, IN_THOUGHT, BEHIND_THOUGHT, IN_ANSWER } place;
    Buffer held;     /* text that may turn out to be a mark, or white space before one */
    Buffer shown;    /* what the last call gave */
    Buffer *thought; /* the thought without its marks is added here; NULL: it is dropped */
    bool lost;       /* memory ran out for some of it */
} Hider;

/* One more token: what is to be written now, until the next call. */
Slice hider_add(Hider *h, int32_t id, Slice text);
/* No token follows: what was held back. */
Slice hider_end(Hider *h);
void hider_close(Hider *h);

/* What the history keeps of a complete answer: a part of a->text. flags: SPLIT_FIRST ... DROP_OPEN. */
Slice answer_kept(const Answer *a, uint32_t flags);

#endif
