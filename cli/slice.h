/* slice.h: bytes of a text that belongs to somebody else (Slice), and bytes that grow (Buffer). Neither ends
 * with a NUL, and both may hold some. */
#ifndef SLICE_H
#define SLICE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *text;
    size_t bytes;
} Slice;

typedef struct {
    char *text; /* malloced */
    size_t bytes, space;
} Buffer;

/* s without its first n bytes; n <= s.bytes. */
static inline Slice after(Slice s, size_t n) { return (Slice){s.text + n, s.bytes - n}; }

static inline Slice contents(const Buffer *b) { return (Slice){b->text ? b->text : "", b->bytes}; }

/* False: out of memory, which was reported. */
bool append(Buffer *b, Slice s);

bool starts_with(Slice s, Slice beginning);

/* Whether a followed by b is c followed by d. */
bool same_text(Slice a, Slice b, Slice c, Slice d);

/* s without the white space at both its ends, as Python's str.strip and so the chat templates have it. */
Slice strip(Slice s);

#endif
