/* tokenizer.h: bytes <-> token ids, and nothing else. All knowledge of a particular tokenizer is in the
 * checkpoint (exporter/tokenizer.py compiles it); engine/section.h documents that section byte by byte. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

/* Reads the tokenizer section in place (the bytes must outlive it). Checks every field before use. NULL on
 * failure, with one line in err. */
Tokenizer *tokenizer_open(const void *section, size_t bytes, char *err, size_t err_bytes);
void tokenizer_close(Tokenizer *t);

/* Ids of n bytes of text (any bytes, valid UTF-8 or not). `trusted`: added and special tokens are matched
 * in it. `begins`: no text is before it, for a tokenizer that puts a space there. Adds no begin token. The
 * ids are malloced, *count of them. NULL, with one line in err, if memory runs out or if the section makes
 * searches so slow that no published tokenizer can have written it. */
int32_t *tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool trusted, bool begins,
                          size_t *count, char *err, size_t err_bytes);

/* The added or special token that trusted text would begin with, *bytes of it; -1: none. */
int32_t tokenizer_added(const Tokenizer *t, const char *text, size_t n, size_t *bytes);

/* The bytes of a token: *n of them. `first`: no text is before it; a tokenizer that puts a space before a
 * text takes it away there. A special token (begin, end, ...) has its text too; `*special` says that it is
 * one. Unknown id: n = 0. */
const char *tokenizer_decode(const Tokenizer *t, int32_t id, bool first, size_t *n, bool *special);

size_t tokenizer_size(const Tokenizer *t); /* number of ids that have bytes: the largest known id + 1 */

#endif
