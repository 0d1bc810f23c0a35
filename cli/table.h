/* cli/table.h: the one table of options (options.c has it). The parser, --help, the man page and the
 * completions of shells are made from it. */
#ifndef TABLE_H
#define TABLE_H

#include <stddef.h>

typedef enum { FLAG, INTEGER, NUMBER, SEED, STRING, STOP, CACHE, FORMAT } Kind;

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

/* Names of the cache types, as -k takes them, indexed by CacheType. */
enum { CACHE_TYPES = 8 };
extern const char *const cache_names[CACHE_TYPES];

/* What --generate writes (manual.c). */
enum { FORMATS = 4 };
extern const char *const format_names[FORMATS];

#endif
