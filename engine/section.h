/* engine/section.h: the tokenizer section of a checkpoint, byte by byte. exporter/section.py writes it,
 * section.c checks it before anything else reads it, and pretokenizer.c, unicode.c and tokenizer.c do what it
 * says.
 *
 * Little-endian; everything is u32 unless said. The arrays follow the header in this order, each padded
 * with zeros to a multiple of 4 bytes, and fill the section exactly. V = vocabulary; a range i is
 * [start[i], start[i + 1]).
 *
 *   header             17 numbers         the struct SectionHeader
 *   token_start        [V + 1]            range i of text holds the bytes of token i; none: the id is unused
 *   text               u8[text_bytes]     tokens, then the texts of added tokens and units that decode to
 *                                         something else
 *   flags              u8[V]              1: a special token (begin, end, ...)
 *   byte_id            [256]              the token of each byte that begins no unit; NONE: there is none,
 *                                         and encoding leaves the byte out
 *   merge_start        [V + 1]            range i of merges has token i on the left
 *   merges             [merges]           {right, id, rank}: left and right become id, the lowest rank
 *                                         first; `right` ascends within a range
 *   by_text            [by_text]          ids sorted by their bytes: a word that is one of these tokens is
 *                                         taken whole, without merging. Empty where a tokenizer does not
 *   texts              [texts[0] + ..]    {start, bytes, id}: text[start .. start + bytes) stands for id, the
 *                                         longest at a place; at most MAX_TOKEN_TEXT bytes; sorted by bytes
 *                                         within each table
 *                                           table 0  added tokens of trusted text, leftmost first
 *                                           table 1  the same, in the text between those of table 0
 *                                           table 2  units of more than a byte, or of another id than byte_id
 *   replacements       [replacements]     {code, order, check, to[4]} and
 *   compositions       [compositions]     {first, second, code}: the normal form (engine/unicode.h)
 *   page_of            u16[4352]          the page of code points 256 i .. 256 i + 255
 *   pages              u8[pages][256]     the class of a code point, 1 .. 62: characters of one class are
 *                                         alike to all expressions
 *   step_start         [steps + 1]        range i: the alternatives of expression i; at a place, the first
 *                                         that matches wins
 *   alternative_start  [alternatives + 1] range i: the items of alternative i; the last one is MATCH
 *   items              [items]            {op, a, b, set (low, high)}; bit c of a set stands for class c
 *
 *     RUN        a to b characters of the set (b = NONE: no limit), as many as possible; fewer if what
 *                follows fails
 *     KEEP       the same, never fewer
 *     NOT_AHEAD  the next character of the piece, if there is one, is not in the set
 *     LINE_END   the piece ends here, or the next character is in the set (a line feed)
 *     SPLIT      go on at item a; if that fails, at item b. Both count within the alternative and lie ahead
 *     JUMP       go on at item a, which lies ahead
 *     MATCH      the expression has matched up to here */
#ifndef SECTION_H
#define SECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/unicode.h"

#define NONE UINT32_MAX

/* Limits. None is near what a published tokenizer has. */
enum { MAX_TOKEN_TEXT = 1024, MAX_CLASSES = 63, MAX_STEPS = 64, MAX_ALTERNATIVES = 64, MAX_ITEMS = 256 };

enum { RUN, KEEP, NOT_AHEAD, LINE_END, SPLIT, JUMP, MATCH, OPS };
enum { ADDED, ADDED_LATE, UNITS, TABLES };

/* Options of the whole tokenizer. */
enum {
    PREFIX_FIRST = 1,   /* the prefix stands where the text begins, but not behind every added token */
    PREFIX_ONCE = 2,    /* no prefix where the text begins with it already */
    NORMALIZE_LAST = 4, /* the normal form comes after both tables of added tokens, not between them */
    DROP_SPACE = 8      /* decoding leaves out a space at the beginning of a text */
};

typedef struct {
    uint32_t tag, bytes; /* "TOK2"; of the whole section */
    uint32_t vocabulary, text_bytes, merges, by_text, texts[TABLES];
    uint32_t replacements, compositions, prefix, options; /* prefix: a code point, 0: none */
    uint32_t pages, steps, alternatives, items;
} SectionHeader;

typedef struct {
    uint32_t right, id, rank;
} Merge;

typedef struct {
    uint32_t start, bytes, id;
} TokenText;

typedef struct {
    uint32_t op, a, b, set[2];
} Item;

/* Everything points into the section. */
typedef struct Tokenizer {
    SectionHeader h;
    const uint32_t *token_start;
    const char *text;
    const uint8_t *flags;
    const uint32_t *byte_id;
    const uint32_t *merge_start;
    const Merge *merges;
    const uint32_t *by_text;
    const TokenText *texts[TABLES];
    NormalForm form;
    const uint16_t *page_of;
    const uint8_t *pages;
    const uint32_t *step_start;
    const uint32_t *alternative_start;
    const Item *items;
} Tokenizer;

/* Points t into the section, which must outlive it, and checks every field. NULL if all is right; otherwise
 * what is wrong, in a few words. */
const char *section_open(Tokenizer *t, const void *section, size_t bytes);

#endif
