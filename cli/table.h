/* cli/table.h: the one table of options, and of which go together (table.c). The parser, --help, the man page
 * and the completions of shells are made from it. */
#ifndef TABLE_H
#define TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/slice.h"
#include "model.h"

typedef enum {
    MODE_GENERATE,
    MODE_CHAT,
    MODE_PROMPTS, /* --prompts */
    MODE_SAMPLES, /* --samples of one prompt */
    MODE_CHOOSE,  /* --choose, of one prompt or many */
    MODE_BATCH,   /* --batch */
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
    OPT_THINK,
    OPT_ECHO,
    OPT_TOKENS,
    OPT_CONTEXT,
    OPT_STOP,
    OPT_IGNORE_EOS,
    OPT_SESSION,
    OPT_FROM,
    OPT_PROMPTS,
    OPT_BATCH,
    OPT_SAMPLES,
    OPT_CHOOSE,
    OPT_PARALLEL,
    OPT_FIRST,
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

/* Values of an option that may come again. */
typedef struct {
    Slice *list; /* [count] */
    size_t count;
} Texts;

enum { MAX_COUNTS = 16 };
typedef struct {
    size_t list[MAX_COUNTS], count;
} Counts;

/* What is done about thoughts, as --think takes it. */
typedef enum { THINK_ON, THINK_OFF, THINK_MAX, THINK_HIDE, THINK_DEFAULT } Think;

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
    int format; /* of --generate, an index of format_names */
} Options;

/* TEXTS and COUNTS are lists: of texts, where the option may come again, and of numbers behind commas. */
typedef enum { FLAG, INTEGER, NUMBER, SEED, STRING, TEXTS, COUNTS, CACHE, THINK, FORMAT } Kind;

typedef struct {
    const char *heading;       /* in the help, before this option */
    const char *letter, *name; /* letter may be NULL */
    const char *value; /* what it is called, in [] if it may be left out; NULL: the option takes none */
    Kind kind;
    unsigned modes;     /* where the option has a meaning */
    size_t field;       /* of the value in Options; a FLAG has none, given[] tells */
    double least, most; /* of an INTEGER or a NUMBER */
    const char *help;   /* on one line, wrapped where it is shown */
} Option;

extern const Option option_table[];
extern const size_t option_count;

/* The option that makes a mode. */
typedef struct {
    OptionId option;
    Mode mode;
} ModeOption;

extern const ModeOption mode_table[];
extern const size_t mode_count;

/* Options of which one at most may be given; or with `together`, the first only beside one of the others. */
typedef struct {
    bool together;
    OptionId set[4];
    size_t count;
    const char *why;
} Rule;

extern const Rule rule_table[];
extern const size_t rule_count;

/* Names of the cache types, as -k takes them, indexed by CacheType. */
enum { CACHE_TYPES = 8 };
extern const char *const cache_names[CACHE_TYPES];

/* What --generate writes (manual.c). */
enum { FORMATS = 4 };

/* The words that an option of this kind takes, of which the value is the index; *count of them. NULL: it
 * takes other values. */
const char *const *kind_words(Kind kind, size_t *count);

#endif
