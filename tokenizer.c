/* tokenizer.c: byte-pair encoding of any bytes, exactly as the model's own tokenizer does it.
 *
 * Text becomes ids in four stages:
 *   1  in trusted text, added tokens are cut out;
 *   2  the rest is brought into the tokenizer's normal form (engine/unicode.c);
 *   3  the pre-tokenizer (engine/pretokenizer.c), a sequence of regular expressions that each split every
 *      piece of the one before, cuts it into words; a merge never crosses a cut;
 *   4  a word is spelled in units, which are bytes or characters, and the adjacent pair with the lowest rank
 *      is merged until no pair is left that has a rank.
 *
 * One algorithm serves all kinds. In GPT-2's byte-level BPE the units are bytes. In SentencePiece they are
 * characters, or a byte where the vocabulary lacks the character, and the whole text is one word. The
 * ranks of tiktoken, which are of whole tokens, have become ranks of pairs when the tokenizer was
 * exported.
 *
 * Nothing here knows a model, a regular expression or Unicode: this file follows the section of the
 * checkpoint that engine/section.h describes. It does not render chat templates (cli/chat.c) and adds no
 * begin token (cli/prompt.c). Text need not be valid UTF-8: a byte that is not part of a well-formed
 * character is a character of its own that no expression matches. Where the vocabulary has all 256 bytes
 * and wants no normal form, decoding gives every byte back.
 *
 * The section may be hostile. Searches whose time is not nearly proportional to the length of the text
 * count against one budget: added tokens, units, expressions. Encoding refuses the section when the budget
 * is used up. */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buffer.h"
#include "engine/pretokenizer.h"
#include "engine/section.h"
#include "engine/unicode.h"
#include "kernels/util.h"

/* A part of a word: a unit, or what units were merged into. bytes = 0: it was merged into the one before. */
typedef struct {
    uint32_t id, bytes, previous, next;
} Symbol;

/* A pair of symbols that can be merged. */
typedef struct {
    uint64_t order;     /* rank << 32 | left symbol: the lowest is merged first */
    uint32_t id, bytes; /* what the pair becomes; length of both together */
} Candidate;

/* What one call of tokenizer_encode works on. */
typedef struct {
    const Tokenizer *t;
    bool trusted;
    const uint8_t *beginning; /* of the text; NULL: other text is before what is encoded */
    Budget budget;
    Buffer ids;           /* int32_t: the result */
    Buffer class_of, cut; /* uint8_t for each byte of a text and its end: pretokenizer.h */
    Buffer symbols;       /* Symbol for each unit of a word */
    Buffer heap;          /* Candidate */
} Encoder;

static bool encode_stage(Encoder *e, const uint8_t *s, size_t n, int stage);
static bool encode_word(Encoder *e, const uint8_t *word, size_t n);
static bool add_id(Encoder *e, uint32_t id);
static uint32_t whole_word(const Tokenizer *t, const uint8_t *word, size_t n);
static const TokenText *find_text(const Tokenizer *t, int table, const uint8_t *s, size_t n, Budget *budget);

/* ---- opening -------------------------------------------------------------------------------- */

Tokenizer *tokenizer_open(const void *section, size_t bytes, char *err, size_t err_bytes) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        snprintf(err, err_bytes, "the tokenizer: out of memory");
        return NULL;
    }
    const char *wrong = section_open(t, section, bytes);
    if (!wrong)
        return t;
    snprintf(err, err_bytes, "the tokenizer is damaged: %s; export the checkpoint again", wrong);
    free(t);
    return NULL;
}

void tokenizer_close(Tokenizer *t) { free(t); }

size_t tokenizer_size(const Tokenizer *t) { return t->h.vocabulary; }

/* ---- encoding ------------------------------------------------------------------------------- */

int32_t *tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool trusted, bool begins,
                          size_t *count, char *err, size_t err_bytes) {
    const uint8_t *s = (const uint8_t *)text;
    Encoder e = {
        .t = t, .trusted = trusted, .beginning = begins ? s : NULL, .budget = {1024 * (uint64_t)n + 65536}};
    bool done = buffer_reserve(&e.ids, sizeof(int32_t)) && encode_stage(&e, s, n, 0);
    if (!done)
        snprintf(err, err_bytes, "out of memory for the tokens of %zu bytes of text", n);
    else if (e.budget.left == 0)
        snprintf(err, err_bytes,
                 "the tokenizer is damaged: its searches in %zu bytes of text take too long; export the "
                 "checkpoint again",
                 n);
    buffer_free(&e.class_of);
    buffer_free(&e.cut);
    buffer_free(&e.symbols);
    buffer_free(&e.heap);
    *count = e.ids.bytes / sizeof(int32_t);
    if (done && e.budget.left > 0)
        return e.ids.data;
    buffer_free(&e.ids);
    *count = 0;
    return NULL;
}

/* Text in normal form, without added tokens. */
static bool encode_text(Encoder *e, const uint8_t *s, size_t n) {
    if (n >= INT32_MAX) /* places within a word are 32-bit numbers */
        return false;
    if (!buffer_reserve(&e->class_of, n + 1) || !buffer_reserve(&e->cut, n + 1))
        return false;
    uint8_t *cut = e->cut.data;
    pretokenize(e->t, s, n, e->class_of.data, cut, &e->budget);
    for (size_t from = 0, to; from < n; from = to) {
        for (to = from + 1; !cut[to];)
            to++;
        uint32_t id = whole_word(e->t, s + from, to - from);
        bool done = id != NONE ? add_id(e, id) : encode_word(e, s + from, to - from);
        if (!done)
            return false;
    }
    return true;
}

static bool encode_normalized(Encoder *e, const uint8_t *s, size_t n, int stage) {
    bool prefixed = s == e->beginning || !(e->t->h.options & PREFIX_FIRST);
    uint8_t *own;
    size_t bytes;
    bool done = normalize(&e->t->form, s, n, prefixed, &own, &bytes) &&
                encode_stage(e, own ? own : s, own ? bytes : n, stage + 1);
    free(own);
    return done;
}

/* The added tokens of a table, and the next stage of what lies between them. */
static bool encode_added(Encoder *e, int table, const uint8_t *s, size_t n, int stage) {
    size_t done = 0;
    for (size_t i = 0; e->trusted && i < n;) {
        const TokenText *a = find_text(e->t, table, s + i, n - i, &e->budget);
        if (!a) {
            i++;
            continue;
        }
        if (!encode_stage(e, s + done, i - done, stage + 1) || !add_id(e, a->id))
            return false;
        i += a->bytes;
        done = i;
    }
    return encode_stage(e, s + done, n - done, stage + 1);
}

/* The stages that are left of n bytes of text, the first of them `stage`. */
static bool encode_stage(Encoder *e, const uint8_t *s, size_t n, int stage) {
    enum { NORMALIZE = TABLES, TEXT };
    static const int stages[2][4] = {{ADDED, NORMALIZE, ADDED_LATE, TEXT},
                                     {ADDED, ADDED_LATE, NORMALIZE, TEXT}};
    if (n == 0)
        return true;
    int now = stages[e->t->h.options & NORMALIZE_LAST ? 1 : 0][stage];
    if (now == TEXT)
        return encode_text(e, s, n);
    if (now == NORMALIZE)
        return encode_normalized(e, s, n, stage);
    return encode_added(e, now, s, n, stage);
}

/* ---- decoding ------------------------------------------------------------------------------- */

const char *tokenizer_decode(const Tokenizer *t, int32_t id, bool first, size_t *n, bool *special) {
    *n = 0;
    *special = false;
    if (id < 0 || (uint32_t)id >= t->h.vocabulary)
        return "";
    *n = t->token_start[id + 1] - t->token_start[id];
    *special = t->flags[id] & 1;
    const char *bytes = t->text + t->token_start[id];
    if (!first || !(t->h.options & DROP_SPACE) || *n == 0 || *bytes != ' ')
        return bytes;
    *n -= 1;
    return bytes + 1;
}

/* ---- one word: spelling and merging --------------------------------------------------------- */

static bool add_id(Encoder *e, uint32_t id) { return buffer_add(&e->ids, &id, sizeof id); }

/* What left and right are merged into, or NULL. */
static const Merge *find_merge(const Tokenizer *t, uint32_t left, uint32_t right) {
    size_t low = t->merge_start[left], high = t->merge_start[left + 1];
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->merges[middle].right < right)
            low = middle + 1;
        else
            high = middle;
    }
    return low < t->merge_start[left + 1] && t->merges[low].right == right ? &t->merges[low] : NULL;
}

/* A heap of candidates, the lowest rank first, of equals the leftmost. Each has four children: they share
 * a cache line, and the heap is flat. */
static void push(Candidate *heap, size_t *n, Candidate c) {
    size_t i = (*n)++;
    for (; i > 0 && c.order < heap[(i - 1) / 4].order; i = (i - 1) / 4)
        heap[i] = heap[(i - 1) / 4];
    heap[i] = c;
}

static Candidate pop(Candidate *heap, size_t *n) {
    Candidate top = heap[0], last = heap[--*n];
    size_t i = 0;
    for (size_t child = 1; child < *n; child = 4 * i + 1) {
        size_t end = min(child + 4, *n);
        for (size_t other = child + 1; other < end; other++)
            if (heap[other].order < heap[child].order)
                child = other;
        if (heap[child].order >= last.order)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* Symbol `left` and the next one become a candidate if they can be merged. */
static void consider(const Tokenizer *t, const Symbol *s, Candidate *heap, size_t *candidates,
                     uint32_t left) {
    uint32_t right = left == NONE ? NONE : s[left].next;
    if (right == NONE)
        return;
    const Merge *m = find_merge(t, s[left].id, s[right].id);
    if (!m)
        return;
    push(heap, candidates,
         (Candidate){(uint64_t)m->rank << 32 | left, m->id, s[left].bytes + s[right].bytes});
}

/* One symbol for each unit of the word; returns how many. */
static uint32_t spell(Encoder *e, Symbol *symbols, const uint8_t *s, size_t n) {
    uint32_t count = 0, bytes;
    for (size_t i = 0; i < n; i += bytes) {
        const TokenText *unit = find_text(e->t, UNITS, s + i, n - i, &e->budget);
        uint32_t id = unit ? unit->id : e->t->byte_id[s[i]];
        bytes = unit ? unit->bytes : 1;
        if (id == NONE)
            continue;
        symbols[count] = (Symbol){id, bytes, count - 1, count + 1}; /* before the first: 0 - 1 = NONE */
        count++;
    }
    if (count > 0)
        symbols[count - 1].next = NONE;
    return count;
}

static bool encode_word(Encoder *e, const uint8_t *word, size_t n) {
    /* n - 1 pairs at first; each merge takes one out, puts two in and leaves a symbol less */
    if (!buffer_reserve(&e->symbols, n * sizeof(Symbol)) ||
        !buffer_reserve(&e->heap, 2 * n * sizeof(Candidate)))
        return false;
    Symbol *s = e->symbols.data;
    Candidate *heap = e->heap.data;
    size_t candidates = 0;
    uint32_t symbols = spell(e, s, word, n);
    for (uint32_t i = 0; i < symbols; i++)
        consider(e->t, s, heap, &candidates, i);
    while (candidates > 0) {
        Candidate c = pop(heap, &candidates);
        uint32_t at = (uint32_t)c.order;
        Symbol *left = &s[at];
        /* Symbols only grow: the pair is still the same if both are there and are as long as they were
         * together. */
        if (left->bytes == 0 || left->next == NONE || left->bytes + s[left->next].bytes != c.bytes)
            continue;
        Symbol *right = &s[left->next];
        left->id = c.id;
        left->bytes = c.bytes;
        left->next = right->next;
        right->bytes = 0;
        if (left->next != NONE)
            s[left->next].previous = at;
        consider(e->t, s, heap, &candidates, left->previous);
        consider(e->t, s, heap, &candidates, at);
    }
    for (uint32_t i = 0; symbols > 0 && i != NONE; i = s[i].next)
        if (!add_id(e, s[i].id))
            return false;
    return true;
}

/* ---- searches for texts --------------------------------------------------------------------- */

/* The token that is the whole word, or NONE. */
static uint32_t whole_word(const Tokenizer *t, const uint8_t *word, size_t n) {
    size_t low = 0, high = t->h.by_text;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t id = t->by_text[middle];
        size_t bytes = t->token_start[id + 1] - t->token_start[id];
        int order = memcmp(t->text + t->token_start[id], word, min(bytes, n));
        if (order == 0 && bytes == n)
            return id;
        if (order < 0 || (order == 0 && bytes < n))
            low = middle + 1;
        else
            high = middle;
    }
    return NONE;
}

/* The first of the texts low .. high - 1 whose byte at `depth` is >= c. They agree in the bytes before it,
 * and all are longer than `depth`. */
static size_t first_with(const Tokenizer *t, const TokenText *texts, size_t low, size_t high, size_t depth,
                         unsigned c, uint64_t *steps) {
    for (; low < high; ++*steps) {
        size_t middle = low + (high - low) / 2;
        if ((uint8_t)t->text[texts[middle].start + depth] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest text of a table at the beginning of s, or NULL. */
static const TokenText *find_text(const Tokenizer *t, int table, const uint8_t *s, size_t n, Budget *budget) {
    const TokenText *texts = t->texts[table], *longest = NULL;
    size_t low = 0, high = budget->left > 0 ? t->h.texts[table] : 0;
    uint64_t steps = 0;
    for (size_t depth = 0; low < high; depth++) {
        if (texts[low].bytes == depth)
            longest = &texts[low++];
        if (low == high || depth == n)
            break;
        low = first_with(t, texts, low, high, depth, s[depth], &steps);
        high = first_with(t, texts, low, high, depth, s[depth] + 1u, &steps);
    }
    spend(budget, steps);
    return longest;
}

int32_t tokenizer_added(const Tokenizer *t, const char *text, size_t n, size_t *bytes) {
    Budget one_place = {UINT64_MAX}; /* the longest text has MAX_TOKEN_TEXT bytes: one search is short */
    const TokenText *a = find_text(t, ADDED, (const uint8_t *)text, n, &one_place);
    if (!a)
        a = find_text(t, ADDED_LATE, (const uint8_t *)text, n, &one_place);
    *bytes = a ? a->bytes : 0;
    return a ? (int32_t)a->id : -1;
}
