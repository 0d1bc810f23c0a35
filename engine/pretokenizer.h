/* engine/pretokenizer.h: cuts a text into words, as the expressions of the tokenizer section say
 * (section.h). */
#ifndef PRETOKENIZER_H
#define PRETOKENIZER_H

#include "engine/section.h"
#include "kernels/util.h"

/* The work that the searches of a tokenizer may still do, in comparisons and characters. A published
 * tokenizer uses a small part of it. A hostile one could search for years; when nothing is left every
 * search fails at once, and tokenizer_encode reports it. */
typedef struct {
    uint64_t left;
} Budget;

static inline void spend(Budget *b, uint64_t steps) { b->left -= steps < b->left ? steps : b->left; }

/* Sets cut[i], 0 <= i <= n, to 1 where a word of the n bytes at s begins or ends and to 0 elsewhere.
 * class_of and cut have room for n + 1 bytes; class_of is only scratch. */
void pretokenize(const Tokenizer *t, const uint8_t *s, size_t n, uint8_t *class_of, uint8_t *cut,
                 Budget *budget);

#endif
