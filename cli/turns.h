/* cli/turns.h: where the user's turns of a conversation come from. */
#ifndef TURNS_H
#define TURNS_H

#include "cli/slice.h"

typedef struct {
    const char *name; /* of the file, for reports */
    int file;
    bool terminal;
    bool end;         /* nothing more is to be read */
    bool begun;       /* something was read */
    const char *mark; /* what the terminal shows where the user is to write */
    Buffer read;      /* from the file; lines up to `used` have been turns */
    size_t used;
    Buffer turn; /* lines put together */
} Turns;

/* Turns from FILE; NULL or "-": from standard input. DONE, or FAILED after a report. */
int turns_open(Turns *t, const char *file);

/* One line at a terminal: how to end, and how to go on in the next line. */
void turns_greet(const Turns *t);

/* The next turn, which lasts until the call after. It is a line without its end, LF or CR LF; one that ends
 * with a backslash goes on in the next line; empty lines are no turns; a byte order mark at the beginning of
 * the file is no text. At a terminal, lines that are already waiting (a paste) belong to the turn. False: the
 * end of input, Ctrl-C, or *status = FAILED after a report. */
bool turns_next(Turns *t, Slice *turn, int *status);

void turns_close(Turns *t);

#endif
