/* cli/input.h: the lines of a file or of standard input, one at a time, without waiting for them if the
 * caller has something else to do. */
#ifndef INPUT_H
#define INPUT_H

#include "cli/slice.h"

enum { MAX_LINE = 1 << 26 }; /* bytes */

typedef enum {
    INPUT_LINE,
    INPUT_TOO_LONG, /* a line of more than MAX_LINE bytes was skipped */
    INPUT_LATER,    /* no whole line is there yet, and wait was false */
    INPUT_END,      /* or Ctrl-C, SIGTERM, SIGHUP */
    INPUT_FAILED    /* reported */
} InputEvent;

typedef struct {
    const char *name; /* for reports */
    int file;
    bool end;
    bool skipping; /* the line that is too long */
    size_t line;   /* number of the last line that was given, from 1 */
    size_t lines;  /* how many there are, if it is a regular file; 0: unknown */
    Buffer read;   /* bytes up to `used` have been given */
    size_t used, searched;
} Input;

/* "-" is standard input. DONE, or FAILED after a report. */
int input_open(Input *in, const char *name);
void input_close(Input *in);

/* The next line, without its line feed; the last one may have none. It may be empty, and lives until the next
 * call. */
InputEvent input_line(Input *in, Slice *line, bool wait);

#endif
