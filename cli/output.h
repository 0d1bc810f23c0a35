/* cli/output.h: the two streams. Standard output carries what was asked for, unaltered; standard error
 * carries everything else, one line each.
 *
 * A write to standard output that fails ends the program here, so that no caller has to check: with status
 * 0 if the reader has closed the pipe, quietly unless a session is lost, and with status 1 and a line
 * otherwise (a full disk). A terminal that is closed is SIGHUP, and what is written to it from then on is
 * dropped. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "cli/slice.h"

enum { DONE = 0, FAILED = 1, WRONG_USAGE = 2 }; /* exit status; after a signal interrupt_status() */

extern bool quiet; /* -q: log_error() alone */
/* as it was called: "mla", which it is when it is installed, or "run" */
extern const char *program_name;

/* an error, behind the program's name: returns status */
int log_error(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* a remark or statistics; nothing under -q */
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* where the user is to write, without a newline; nothing under -q */
void prompt_mark(const char *mark);
/* a line that overwrites itself, on a terminal only; gone when done == of */
void progress(const char *what, size_t done, size_t of);
/* any such line; and it is gone, as before every message */
void progress_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
void progress_end(void);

/* once, before anything else is opened or written; called: argv[0], may be NULL */
void output_open(const char *called);
/* What is lost if a write fails from now on: the session of this name, whose temporary file is removed.
 * NULL and NULL: nothing is. */
void output_guard(const char *session, const char *temporary);
void output_write(const char *bytes, size_t n);
void output_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void output_flush(void);
/* A whole line or several, at once, so that a program that is killed leaves no half of one. Flushes. */
void output_line(const char *bytes, size_t n);

/* ---- generated text ------------------------------------------------------------------------- */
/* It comes as the bytes of tokens, which may end in the middle of a character or of a stop text. */

typedef struct {
    const char *text; /* not empty */
    size_t bytes;
    /* [bytes] Knuth-Morris-Pratt: the longest proper prefix of text that text[0 .. i] ends with */
    size_t *fail;
    size_t matched; /* bytes of text that the generated text ends with now */
} Stop;

typedef struct {
    Stop *stops;
    size_t stop_count;
    size_t stop_held; /* bytes held back because a stop text may have begun: the largest `matched` */
    /* bytes of the complete stop text and of its last token behind it, which are not written */
    size_t cut;
    char character[4]; /* on a terminal: the beginning of a UTF-8 character */
    size_t held;
    bool terminal;
    bool flush;   /* after every token: not a regular file */
    bool newline; /* at the end of a text; on a terminal from the start */
    /* tokens between which the model thinks, which is dim on a terminal; empty: none */
    Slice thought_begin, thought_end;
    bool dim;          /* now */
    Buffer *collected; /* the text goes here; NULL: to standard output */
    bool lost;         /* there was no memory for all of it */
} Text;

/* On standard output, or into `collected` if it is not NULL. False: out of memory. The stop texts must
 * outlive t. */
bool text_open(Text *t, const Slice *stops, size_t stop_count, Buffer *collected);
void text_close(Text *t);

/* the prompt: text in which stop texts are not looked for */
void text_echo(Text *t, const char *bytes, size_t n);
/* one token. False: a stop text is complete; it is not written */
bool text_token(Text *t, const char *bytes, size_t n);
/* what is still held back, and the newline; another text may follow */
void text_end(Text *t);

/* Whether a token begins or ends a thought. */
bool thought_begins(const Text *t, const char *bytes, size_t n);
bool thought_ends(const Text *t, const char *bytes, size_t n);

#endif
