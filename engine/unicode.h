/* unicode.h: characters of a text, and the normal form that a tokenizer wants it in (unicode.c). */
#ifndef UNICODE_H
#define UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a character is replaced by (to[0] = 0: by itself), up to four characters, and its canonical
 * combining class: marks that follow each other are sorted by it. `check`: text without such a character
 * is in normal form as it stands. */
typedef struct {
    uint32_t code, order, check, to[4];
} Replacement;
/* first and then second, unless a mark between them forbids it, become code */
typedef struct {
    uint32_t first, second, code;
} Composition;

typedef struct {
    const Replacement *replacements; /* by code, ascending */
    const Composition *compositions; /* by first and then second, ascending */
    size_t replaced, composed;       /* how many */
    uint32_t prefix;                 /* put before the text; 0: nothing is */
    bool prefix_once;                /* not before text that begins with that character */
} NormalForm;

/* Bytes of the UTF-8 character that begins with this byte; 0: none does. */
static inline size_t utf8_length(uint8_t first) {
    return first < 0x80 ? 1 : first < 0xC2 || first > 0xF4 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

/* Length of the well-formed UTF-8 character at s (n > 0 bytes), or 0; *code is its code point. Refuses
 * what Unicode's table 3-7 refuses: overlong forms, surrogates, anything above 10FFFF. */
size_t utf8_read(const uint8_t *s, size_t n, uint32_t *code);

/* The UTF-8 form of a code point: 1 to 4 bytes, how many. */
size_t utf8_write(uint8_t *out, uint32_t code);

/* n bytes of text (any bytes; what is not UTF-8 stays) in normal form: *out is malloced, *bytes of them,
 * or NULL where the text is so already. `prefixed`: with the prefix. False if memory runs out. */
bool normalize(const NormalForm *f, const uint8_t *s, size_t n, bool prefixed, uint8_t **out, size_t *bytes);

#endif
