/* engine/unicode.h: UTF-8, and the normal form that a tokenizer expects its text in (unicode.c). */
#ifndef UNICODE_H
#define UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CODES = 0x110000 }; /* code points are 0 .. CODES - 1 */

/* What is done with a character. */
typedef struct {
    uint32_t code; /* the character */
    /* its canonical combining class: marks that follow each other are sorted by it; 0: no mark */
    uint32_t order;
    uint32_t check; /* 1: text with this character may be in another than the normal form */
    uint32_t to[4]; /* the characters that replace it, up to the first 0; none: it stays */
} Replacement;

/* `first` and then `second`, unless a mark between them forbids it, become `code`. */
typedef struct {
    uint32_t first, second, code;
} Composition;

typedef struct {
    const Replacement *replacements; /* by code, ascending */
    const Composition *compositions; /* by first and then second, ascending */
    size_t replaced, composed;       /* how many there are */
    uint32_t prefix;                 /* the character that is put before the text; 0: none */
    bool prefix_once;                /* not before text that begins with that character */
} NormalForm;

/* Bytes of the UTF-8 character that begins with byte `first`; 0: none does. */
static inline size_t utf8_length(uint8_t first) {
    if (first < 0x80)
        return 1;
    if (first < 0xC2)
        return 0; /* the inside of a character, or an overlong form */
    if (first < 0xE0)
        return 2;
    if (first < 0xF0)
        return 3;
    return first < 0xF5 ? 4 : 0;
}

/* Length of the well-formed UTF-8 character at s (n > 0 bytes), or 0; *code is its code point. Refuses what
 * Unicode's table 3-7 refuses: overlong forms, surrogates, anything above 10FFFF. */
size_t utf8_read(const uint8_t *s, size_t n, uint32_t *code);

/* Writes code point c to out (4 bytes of room); returns the bytes written. */
size_t utf8_write(uint8_t *out, uint32_t c);

/* n bytes of text (any bytes; what is not UTF-8 stays) in normal form: *out is malloced, *bytes of them,
 * or NULL where the text is so already. `prefixed`: with the prefix. False if memory runs out. */
bool normalize(const NormalForm *f, const uint8_t *s, size_t n, bool prefixed, uint8_t **out, size_t *bytes);

#endif
