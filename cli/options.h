/* cli/options.h: the command line. One table (table.c) holds every option with what it takes, where it
 * applies and its help. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/slice.h"
#include "cli/table.h"
#include "model.h"

/* Values of an option that may come again. */
typedef struct {
    Slice *list; /* [count] */
    size_t count;
} Texts;

enum { MAX_COUNTS = 16 };
typedef struct {
    size_t list[MAX_COUNTS], count;
} Counts;

typedef struct {
    /* how the option was written ("-n", "--tokens"); NULL: it was not given */
    const char *given[OPTION_COUNT];
    const char *model;
    Mode mode;
    const char *text; /* of -p or --tokenize; text_bytes long and, after -e, perhaps with NULs */
    size_t text_bytes;
    const char *system; /* of --system; system_bytes long, as text is */
    size_t system_bytes;
    const char *file;   /* of -f or --perplexity */
    const char *output; /* of --logits */
    const char *ids;
    const char *session; /* of --session or --from */
    const char *prompts; /* of --prompts or --batch */
    int64_t tokens;      /* -1: until the context is full */
    int64_t context;     /* 0: not given */
    Texts stops, choices;
    Counts parallel; /* count 0: not given */
    int64_t samples, first;
    double temperature, top_p, min_p, repeat_penalty; /* -1: the checkpoint's */
    int64_t top_k;                                    /* -1: the checkpoint's */
    uint64_t seed;
    int64_t threads;
    CacheType cache, against; /* of -k; of --against */
    Think think;
    int format; /* of --generate: index of its word */
} Options;

/* Fills o. False: the program is done with *status (a line about a mistake, help or version was written). */
bool options_parse(Options *o, int argc, char **argv, int *status);
void options_close(Options *o); /* also after options_parse gave false */

#endif
