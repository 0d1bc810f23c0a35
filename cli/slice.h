/* cli/slice.h: a part of a text (Slice). The memory belongs to somebody else; no NUL ends the bytes, and
 * there may be some among them. */
#ifndef SLICE_H
#define SLICE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/buffer.h"

typedef struct {
    const char *text;
    size_t bytes;
} Slice;

/* s without its first n bytes; n <= s.bytes. */
static inline Slice after(Slice s, size_t n) { return (Slice){s.text + n, s.bytes - n}; }

/* All that a buffer of text holds, until the next addition to it. */
static inline Slice contents(const Buffer *b) { return (Slice){b->data ? b->data : "", b->bytes}; }

/* False: out of memory; not reported. */
static inline bool append(Buffer *b, Slice s) { return buffer_add(b, s.text, s.bytes); }

bool starts_with(Slice s, Slice beginning);

/* Whether s is this text, which ends in NUL. */
bool is_text(Slice s, const char *text);

/* Whether a followed by b is c followed by d. */
bool same_text(Slice a, Slice b, Slice c, Slice d);

/* How many bytes of white space s begins with. */
size_t leading_space(Slice s);

/* s without the white space at both its ends, as Python's str.strip and so the chat templates have it. */
Slice strip(Slice s);

#endif
