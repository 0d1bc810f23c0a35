/* cli/prompt.h: from the command line to token ids. */
#ifndef PROMPT_H
#define PROMPT_H

#include "cli/options.h"
#include "model.h"

typedef struct {
    size_t before;    /* tokens of the session that the prompt is appended to */
    const char *text; /* bytes as they are; what --echo writes. NULL: the prompt came as ids */
    char *file;       /* the same, if it came from a file: malloced */
    size_t bytes;
    int32_t *ids; /* [count], each in 0 .. V-1, the begin token included */
    size_t count;
    size_t begin; /* 1: ids[0] is a begin token that was added; else 0 */
} Prompt;

/* an endless source ends here and not with the machine's memory */
enum { MAX_TEXT = 1 << 30 };

/* All of FILE ("-": standard input), malloced. Where it has more than `most` bytes, which are at most
 * MAX_TEXT, some of them, and *bytes is above `most`. NULL: reported. */
char *read_file(const char *path, size_t most, size_t *bytes);

/* Ids of a text, without begin token, checked against the vocabulary: malloced, *count of them. `trusted`:
 * special tokens in it are matched; `begins`: no text is before it. NULL: one line in err. */
int32_t *text_ids(const Model *m, bool trusted, Slice text, bool begins, size_t *count, char *err,
                  size_t err_bytes);

/* The same of a text that stands alone, as --special says. NULL: reported. */
int32_t *tokenize(const Model *m, const Options *o, Slice text, size_t *count);

/* Ids of a prompt behind `before` tokens of a session: as the options say with a begin token, of which *begin
 * is the number; an empty text has it even where the tokenizer would not add one, because there must be
 * something to go on from. text NULL: no text. *count may still be 0: empty_prompt(). NULL: one line in err.
 * */
int32_t *prompt_ids(const Model *m, const Options *o, const Slice *text, size_t before, size_t *count,
                    size_t *begin, char *err, size_t err_bytes);

/* Why there is no token to start from. */
const char *empty_prompt(const Model *m);

/* p->text = that of -p or -f. DONE, or an exit status after a report. */
int prompt_text(Prompt *p, const Model *m, const Options *o);

/* The prompt that -p, -f or --ids names, or the begin token; behind the `before` tokens of a session no
 * begin token, and perhaps nothing. DONE, or an exit status after a report. */
int prompt_read(Prompt *p, const Model *m, const Options *o, size_t before);
void prompt_close(Prompt *p); /* also after prompt_read failed */

/* A state with the cache that -c, or session, prompt and -n, ask for; calls may ask for `max_logits` rows
 * of logits. DONE, or an exit status after a report: -c beyond the model's limit, a prompt longer than the
 * context. */
int prompt_state(State **s, const Prompt *p, const Model *m, const Options *o, uint32_t max_logits);

/* Cache rows to allocate: -c, or what is needed as far as the model's limit goes; 0 after a report (-c
 * beyond that limit). */
size_t context_rows(const Model *m, const Options *o, size_t needed);

/* A state for one sequence. NULL: reported. */
State *open_state(const Model *m, const Options *o, size_t context, uint32_t max_logits);

#endif
