/* cli/options.h: the command line. One table (options.c) holds every option with what it takes, where it
 * applies and its help. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/table.h"
#include "model.h"

typedef enum {
    MODE_GENERATE,
    MODE_CHAT,
    MODE_LOGITS,
    MODE_PERPLEXITY,
    MODE_TOKENIZE,
    MODE_INFO,
    MODE_CHECK,
    MODE_BENCH
} Mode;

typedef enum {
    OPT_PROMPT,
    OPT_ESCAPE,
    OPT_FILE,
    OPT_IDS,
    OPT_SPECIAL,
    OPT_NO_BOS,
    OPT_CHAT,
    OPT_SYSTEM,
    OPT_ECHO,
    OPT_TOKENS,
    OPT_CONTEXT,
    OPT_STOP,
    OPT_IGNORE_EOS,
    OPT_SESSION,
    OPT_TEMPERATURE,
    OPT_TOP_K,
    OPT_TOP_P,
    OPT_MIN_P,
    OPT_REPEAT_PENALTY,
    OPT_SEED,
    OPT_LOGITS,
    OPT_PERPLEXITY,
    OPT_AGAINST,
    OPT_TOKENIZE,
    OPT_COUNT,
    OPT_INFO,
    OPT_CHECK,
    OPT_BENCH,
    OPT_CSV,
    OPT_PROFILE,
    OPT_THREADS,
    OPT_CACHE,
    OPT_QUIET,
    OPT_HELP,
    OPT_GENERATE,
    OPT_VERSION,
    OPTION_COUNT
} OptionId;

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
    const char *session;
    int64_t tokens;     /* -1: until the context is full */
    int64_t context;    /* 0: not given */
    const char **stops; /* [stop_count] */
    size_t *stop_bytes; /* [stop_count] */
    size_t stop_count;
    double temperature, top_p, min_p, repeat_penalty; /* -1: the checkpoint's */
    int64_t top_k;                                    /* -1: the checkpoint's */
    uint64_t seed;
    int64_t threads;
    CacheType cache, against; /* of -k; of --against */
    int format;               /* of --generate, an index of format_names */
} Options;

/* Fills o. False: the program is done with *status (a line about a mistake, help or version was written). */
bool options_parse(Options *o, int argc, char **argv, int *status);
void options_close(Options *o); /* also after options_parse gave false */

#endif
