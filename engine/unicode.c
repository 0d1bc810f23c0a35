/* engine/unicode.c: UTF-8, and the normal form of a text: a prefix is put in front, characters are replaced,
 * marks sorted, pairs composed. With Unicode's own tables that is canonical composition (NFC, Unicode
 * Standard Annex 15); with one entry it is SentencePiece's sign for a space. The tables come from the
 * checkpoint (exporter/normalizer.py makes them, section.c has checked them); of Unicode itself nothing is
 * known here but its encoding. */
#include "engine/unicode.h"

#include <stdlib.h>

#include "kernels/util.h"

/* A character of the text while it is worked on. A byte b that is no part of a character is one too: CODES
 * + b. */
typedef struct {
    uint32_t code, order, at;
} Letter;

/* ---- UTF-8 ---------------------------------------------------------------------------------- */

size_t utf8_read(const uint8_t *s, size_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = utf8_length(s[0]);
    if (length == 0 || length > n)
        return 0;
    uint32_t c = length == 1 ? s[0] : s[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3F);
    }
    if (c < least[length] || c >= CODES || (c >= 0xD800 && c < 0xE000))
        return 0;
    *code = c;
    return length;
}

size_t utf8_write(uint8_t *out, uint32_t c) {
    static const uint8_t lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    size_t length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = length; i-- > 1; c >>= 6)
        out[i] = (uint8_t)(0x80 | (c & 0x3F));
    out[0] = (uint8_t)(lead[length] | c);
    return length;
}

static size_t read_letter(const uint8_t *s, size_t n, uint32_t *code) {
    size_t length = utf8_read(s, n, code);
    if (length)
        return length;
    *code = CODES + s[0];
    return 1;
}

static size_t write_letter(uint8_t *out, uint32_t code) {
    if (code < CODES)
        return utf8_write(out, code);
    *out = (uint8_t)(code - CODES);
    return 1;
}

/* ---- the normal form ------------------------------------------------------------------------ */

static const Replacement *find_replacement(const NormalForm *f, uint32_t code) {
    size_t low = 0, high = f->replaced && code >= f->replacements[0].code ? f->replaced : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (f->replacements[middle].code < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < f->replaced && f->replacements[low].code == code ? &f->replacements[low] : NULL;
}

/* What two characters become, or 0. */
static uint32_t find_composition(const NormalForm *f, uint32_t first, uint32_t second) {
    size_t low = 0, high = f->composed;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const Composition *c = &f->compositions[middle];
        if (c->first == first && c->second == second)
            return c->code;
        if (c->first < first || (c->first == first && c->second < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* How many characters replace it. */
static size_t parts(const Replacement *r) {
    size_t n = 0;
    while (n < 4 && r->to[n])
        n++;
    return n;
}

/* Writes the letters that a character becomes to out, at most four; returns how many. */
static size_t replace(const NormalForm *f, uint32_t code, Letter *out) {
    const Replacement *r = find_replacement(f, code);
    size_t n = r ? parts(r) : 0;
    if (n == 0)
        out[0] = (Letter){code, r ? r->order : 0, 0};
    for (size_t i = 0; i < n; i++) {
        const Replacement *part = find_replacement(f, r->to[i]);
        out[i] = (Letter){r->to[i], part ? part->order : 0, 0};
    }
    return max(n, 1);
}

static int by_order(const void *a, const void *b) {
    const Letter *x = a, *y = b;
    if (x->order != y->order)
        return x->order < y->order ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* Sorts the marks that follow each other by their class; those of one class stay in the order they have. */
static void sort_marks(Letter *l, size_t n) {
    for (size_t i = 0, end; i < n; i = end + 1) {
        for (end = i; end < n && l[end].order; end++)
            l[end].at = (uint32_t)end;
        if (end - i > 1)
            qsort(l + i, end - i, sizeof *l, by_order);
    }
}

/* Each letter is composed with the last one before it that is no mark, unless a mark in between has a
 * class that is not lower. Returns how many letters are left. */
static size_t compose(const NormalForm *f, Letter *l, size_t n) {
    size_t kept = 0, base = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        bool allowed = base != SIZE_MAX && (base + 1 == kept || l[kept - 1].order < l[i].order);
        uint32_t code = allowed ? find_composition(f, l[base].code, l[i].code) : 0;
        if (code) {
            l[base].code = code;
            continue;
        }
        if (l[i].order == 0)
            base = kept;
        l[kept++] = l[i];
    }
    return kept;
}

/* Returns how many letters the text becomes; sets *changes if it may not be in normal form yet. */
static size_t count_letters(const NormalForm *f, const uint8_t *s, size_t n, bool *changes) {
    size_t count = 0;
    uint32_t code;
    for (size_t i = 0; i < n;) {
        i += read_letter(s + i, n - i, &code);
        const Replacement *r = find_replacement(f, code);
        count += r ? max(parts(r), 1) : 1;
        *changes = *changes || (r && r->check);
    }
    return count;
}

bool normalize(const NormalForm *f, const uint8_t *s, size_t n, bool prefixed, uint8_t **out, size_t *bytes) {
    bool changes = prefixed && f->prefix;
    *out = NULL;
    if (!changes && !f->replaced)
        return true;
    size_t room = count_letters(f, s, n, &changes) + 1;
    if (!changes)
        return true;
    Letter *l = malloc(room * sizeof *l);
    uint8_t *text = malloc(room * 4);
    *out = text;
    if (l && text) {
        size_t count = 0, written = 0;
        uint32_t code;
        if (prefixed && f->prefix)
            l[count++] = (Letter){f->prefix, 0, 0};
        for (size_t i = 0; i < n;) {
            i += read_letter(s + i, n - i, &code);
            count += replace(f, code, l + count);
        }
        sort_marks(l, count);
        count = compose(f, l, count);
        bool twice = prefixed && f->prefix_once && count > 1 && l[1].code == f->prefix;
        for (size_t i = twice; i < count; i++)
            written += write_letter(text + written, l[i].code);
        *bytes = written;
    }
    free(l);
    return l && text;
}
