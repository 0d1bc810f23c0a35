/* tokenizer.c: byte-pair encoding of any bytes, exactly as the model's own tokenizer does it.
 *
 * Text becomes ids in three stages. (1) In trusted text, added tokens are cut out. (2) The pre-tokenizer, a sequence of regular
 * expressions that each split every piece of the one before, cuts the rest into words; a merge never crosses a cut. (3) Within a
 * word, the adjacent pair with the lowest rank is merged until no pair is left that has one.
 *
 * Nothing here knows a model, a regular expression or Unicode: exporter/tokenizer.py compiles what a published tokenizer says into the
 * section that is described below, and this file follows it. It does not render chat templates (modes/chat.c) and adds no begin
 * token (run.c). Text need not be valid UTF-8: a byte that is not part of a well-formed character is a character of its own that no
 * expression matches, and where the vocabulary has all 256 bytes, decoding gives every byte back.
 *
 * The section. Little-endian; everything is u32 unless said; arrays follow the header in this order, each padded with zeros to a
 * multiple of 4 bytes, and fill the section exactly. V = vocabulary; ranges are [start[i], start[i + 1]).
 *
 *   header            16 numbers: the struct Header
 *   token_start       [V + 1]           bytes of token i: text[token_start[i] .. token_start[i + 1]); none: the id is unused
 *   text              u8[text_bytes]    tokens, then texts of added tokens that decode to something else
 *   flags             u8[V]             1: a special token (begin, end, ...)
 *   byte_id           [256]             the token of each single byte; NONE: the vocabulary lacks it and encoding leaves it out
 *   merge_start       [V + 1]           merges whose left token is i
 *   merges            {right, id, rank}[merges], right ascending within one left: (left, right) -> id, the lowest rank first
 *   by_text           [by_text]         ids sorted by their bytes: a word that is one of these tokens is taken whole, without
 *                                       merging. Empty for tokenizers that do not do so
 *   added             {start, bytes, id}[added[0] + added[1]], sorted by bytes within each of the two passes: text[start .. start + bytes)
 *                                       is matched in trusted text, leftmost first, the longest at a place; pass 1 searches what
 *                                       pass 0 left over
 *   page_of           u16[4352]         page of code points 256 i .. 256 i + 255
 *   pages             u8[pages][256]    class of a code point, 1 .. 62: code points that all expressions treat alike
 *   step_start        [steps + 1]       alternatives of each expression; at a place, the first that matches wins
 *   alternative_start [alternatives+1]  items of each alternative
 *   items             {op, a, b, set (low, high)}[items]; bit c of a set stands for class c. The last item of an alternative is MATCH.
 *                     RUN       a to b characters of the set, as many as possible, fewer if what follows fails (b = NONE: no limit)
 *                     NOT_AHEAD the next character of the piece, if there is one, is not in the set
 *                     LINE_END  the piece ends here or the next character is in the set (a line feed)
 *                     SPLIT     go on at item a; if that fails, at item b (both count within the alternative and lie ahead)
 *                     JUMP      go on at item a, which lies ahead
 *                     MATCH     the expression has matched up to here                                                                */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

enum { TAG = 0x314B4F54, PLANE_PAGES = 0x110000 / 256, MAX_CLASSES = 63, MAX_STEPS = 64, MAX_ALTERNATIVES = 64, MAX_ITEMS = 256, PASSES = 2 };
enum { RUN, NOT_AHEAD, LINE_END, SPLIT, JUMP, MATCH, OPS };

typedef struct {
    uint32_t tag, bytes; /* "TOK1"; of the whole section */
    uint32_t vocabulary, text_bytes, merges, by_text, added[PASSES];
    uint32_t pages, steps, alternatives, items;
    uint32_t reserved[4]; /* 0 */
} Header;

typedef struct { uint32_t right, id, rank; } Merge;
typedef struct { uint32_t start, bytes, id; } Added;
typedef struct { uint32_t op, a, b, set[2]; } Item;

struct Tokenizer {
    Header h;
    const uint32_t *token_start;
    const char *text;
    const uint8_t *flags;
    const uint32_t *byte_id;
    const uint32_t *merge_start;
    const Merge *merges;
    const uint32_t *by_text;
    const Added *added[PASSES];
    const uint16_t *page_of;
    const uint8_t *pages;
    const uint32_t *step_start;
    const uint32_t *alternative_start;
    const Item *items;
};

/* ---- opening: the section is input from outside, so nothing in it is believed --------------------------------------------- */

typedef struct {
    const uint8_t *at;
    size_t left;
    bool short_of; /* an array did not fit */
} Cursor;

static const void *take(Cursor *c, size_t count, size_t size) {
    if (count > (c->left + 3) / size) goto does_not_fit;
    size_t bytes = (count * size + 3) / 4 * 4;
    if (bytes > c->left) goto does_not_fit;
    const void *array = c->at;
    c->at += bytes;
    c->left -= bytes;
    return array;
does_not_fit:
    c->short_of = true;
    c->left = 0;
    return c->at;
}

/* True if the arrays fill the section exactly. */
static bool lay_out(Tokenizer *t, Cursor *c) {
    const Header *h = &t->h;
    t->token_start = take(c, (size_t)h->vocabulary + 1, 4);
    t->text = take(c, h->text_bytes, 1);
    t->flags = take(c, h->vocabulary, 1);
    t->byte_id = take(c, 256, 4);
    t->merge_start = take(c, (size_t)h->vocabulary + 1, 4);
    t->merges = take(c, h->merges, sizeof(Merge));
    t->by_text = take(c, h->by_text, 4);
    for (int pass = 0; pass < PASSES; pass++) t->added[pass] = take(c, h->added[pass], sizeof(Added));
    t->page_of = take(c, PLANE_PAGES, 2);
    t->pages = take(c, h->pages, 256);
    t->step_start = take(c, (size_t)h->steps + 1, 4);
    t->alternative_start = take(c, (size_t)h->alternatives + 1, 4);
    t->items = take(c, h->items, sizeof(Item));
    return !c->short_of && c->left == 0;
}

/* start[0] = 0 <= start[1] <= ... <= start[n] <= end; `exact`: start[n] = end. */
static bool check_ranges(const uint32_t *start, size_t n, uint32_t end, bool exact) {
    if (start[0] != 0 || start[n] > end || (exact && start[n] != end)) return false;
    for (size_t i = 0; i < n; i++)
        if (start[i] > start[i + 1]) return false;
    return true;
}

/* The search for an added token relies on their order to stay inside their texts. */
static bool ascending(const Tokenizer *t, const Added *a, const Added *b) {
    int order = memcmp(t->text + a->start, t->text + b->start, a->bytes < b->bytes ? a->bytes : b->bytes);
    return order < 0 || (order == 0 && a->bytes < b->bytes);
}

static const char *check_vocabulary(const Tokenizer *t) {
    const Header *h = &t->h;
    if (!check_ranges(t->token_start, h->vocabulary, h->text_bytes, false)) return "token offsets";
    for (size_t i = 0; i < 256; i++)
        if (t->byte_id[i] != NONE && t->byte_id[i] >= h->vocabulary) return "a byte's token";
    for (size_t i = 0; i < h->by_text; i++)
        if (t->by_text[i] >= h->vocabulary) return "the list of whole words";
    for (int pass = 0; pass < PASSES; pass++) {
        for (size_t i = 0; i < h->added[pass]; i++) {
            const Added *a = &t->added[pass][i];
            if (a->id >= h->vocabulary || a->bytes == 0) return "an added token";
            if (a->start > h->text_bytes || a->bytes > h->text_bytes - a->start) return "the text of an added token";
            if (i > 0 && !ascending(t, a - 1, a)) return "the order of added tokens";
        }
    }
    return NULL;
}

static const char *check_merges(const Tokenizer *t) {
    const Header *h = &t->h;
    if (!check_ranges(t->merge_start, h->vocabulary, h->merges, true)) return "merge offsets";
    for (size_t left = 0; left < h->vocabulary; left++) {
        for (size_t i = t->merge_start[left]; i < t->merge_start[left + 1]; i++) {
            const Merge *m = &t->merges[i];
            if (m->right >= h->vocabulary || m->id >= h->vocabulary) return "a merge";
            if (i > t->merge_start[left] && m[-1].right >= m->right) return "the order of merges";
        }
    }
    return NULL;
}

/* An alternative ends in MATCH and goes forward only: it stops, and a way back is recorded at most once for each item. */
static bool check_alternative(const Item *items, size_t n) {
    if (n == 0 || n > MAX_ITEMS || items[n - 1].op != MATCH) return false;
    for (size_t i = 0; i < n; i++) {
        const Item *item = &items[i];
        if (item->op >= OPS) return false;
        if (item->op == RUN && item->a > item->b) return false;
        if ((item->op == SPLIT || item->op == JUMP) && (item->a <= i || item->a >= n)) return false;
        if (item->op == SPLIT && (item->b <= i || item->b >= n)) return false;
    }
    return true;
}

static const char *check_pretokenizer(const Tokenizer *t) {
    const Header *h = &t->h;
    for (size_t i = 0; i < PLANE_PAGES; i++)
        if (t->page_of[i] >= h->pages) return "the table of characters";
    for (size_t i = 0; i < (size_t)h->pages * 256; i++)
        if (t->pages[i] >= MAX_CLASSES) return "a class of characters";
    if (h->steps > MAX_STEPS || !check_ranges(t->step_start, h->steps, h->alternatives, true)) return "the pre-tokenizer's steps";
    for (size_t i = 0; i < h->steps; i++)
        if (t->step_start[i + 1] - t->step_start[i] > MAX_ALTERNATIVES) return "the pre-tokenizer's steps";
    if (!check_ranges(t->alternative_start, h->alternatives, h->items, true)) return "the pre-tokenizer's alternatives";
    for (size_t i = 0; i < h->alternatives; i++) {
        const uint32_t *start = &t->alternative_start[i];
        if (!check_alternative(t->items + start[0], start[1] - start[0])) return "an item of the pre-tokenizer";
    }
    return NULL;
}

Tokenizer *tokenizer_open(const void *section, size_t bytes, char *err, size_t err_bytes) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        snprintf(err, err_bytes, "the tokenizer: out of memory");
        return NULL;
    }
    const char *wrong = NULL;
    Cursor c = {section, bytes, false};
    if (bytes < sizeof(Header) || (uintptr_t)section % 4) wrong = "its size or place";
    else memcpy(&t->h, take(&c, 1, sizeof(Header)), sizeof(Header));
    if (!wrong && t->h.tag != TAG) wrong = "its first four bytes (another version?)";
    if (!wrong && (t->h.bytes != bytes || !lay_out(t, &c))) wrong = "its size";
    if (!wrong) wrong = check_vocabulary(t);
    if (!wrong) wrong = check_merges(t);
    if (!wrong) wrong = check_pretokenizer(t);
    if (wrong) {
        snprintf(err, err_bytes, "the tokenizer is damaged: %s; export the checkpoint again", wrong);
        free(t);
        return NULL;
    }
    return t;
}

void tokenizer_close(Tokenizer *t) { free(t); }

/* ---- pre-tokenizer: a small backtracking matcher over classes of characters ------------------------------------------------- */

typedef struct { uint32_t id, bytes, previous, next; } Symbol;   /* part of a word; bytes = 0: merged into another */
typedef struct { uint32_t rank, at, id, bytes; } Candidate;      /* a pair that can be merged: left symbol, result, bytes of both */

/* What one call of tokenizer_encode works on. */
typedef struct {
    uint8_t *class_of;   /* of the character that begins at each byte; CONTINUED inside a character */
    uint8_t *cut;        /* 1 where a piece begins; [n + 1] */
    uint64_t steps_left; /* a bound for the matcher that no sensible expression reaches: a hostile file must not run for years */
    Symbol *symbols;     /* [room] */
    Candidate *heap;     /* [2 * room] */
    size_t room;
    int32_t *ids;        /* [n]: each token is made from at least one byte */
    size_t count;
} Work;

enum { NOT_UTF8 = 0, CONTINUED = 63 };

/* Length of the well-formed UTF-8 character at s (n > 0 bytes), or 0; *code is its code point. Refuses what Unicode's table 3-7 refuses:
 * overlong forms, surrogates, anything above 10FFFF. */
static size_t utf8(const uint8_t *s, size_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : s[0] < 0xF5 ? 4 : 0;
    if (length == 0 || length > n) return 0;
    uint32_t c = length == 1 ? s[0] : s[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3F);
    }
    if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 0;
    *code = c;
    return length;
}

static void classify(const Tokenizer *t, Work *w, const uint8_t *s, size_t n) {
    for (size_t i = 0; i < n;) {
        uint32_t code = 0;
        size_t length = utf8(s + i, n - i, &code);
        w->class_of[i++] = length ? t->pages[256 * (size_t)t->page_of[code >> 8] + (code & 255)] : NOT_UTF8;
        for (size_t j = 1; j < length; j++) w->class_of[i++] = CONTINUED;
    }
}

static bool in_set(const Item *item, uint8_t class_of) { return item->set[class_of >> 5] >> (class_of & 31) & 1; }

/* Where the run of at most item->b characters of the set ends that begins at `at`; *least: where its first item->a characters end.
 * False if it has fewer. */
static bool run_of(const Item *item, Work *w, size_t at, size_t end, size_t *least, size_t *most) {
    size_t characters = 0;
    const uint8_t *c = w->class_of;
    *least = at;
    while (at < end && characters < item->b && in_set(item, c[at])) {
        for (at++; at < end && c[at] == CONTINUED;) at++;
        if (++characters == item->a) *least = at;
    }
    *most = at;
    w->steps_left -= characters < w->steps_left ? characters : w->steps_left;
    return characters >= item->a;
}

/* Where the match of one alternative at `at` ends; `at` itself if it does not match. Sets *dead to the place before which there is no
 * match either, if the failure tells: an alternative that begins with an unlimited run has by then tried every end of that run. */
static size_t match(const Item *items, Work *w, size_t at, size_t end, size_t *dead) {
    struct { size_t item, least, at; } back[MAX_ITEMS]; /* ways not yet tried, the last first; checked: one for each item at most */
    size_t ways = 0, i = 0, here = at, least = 0;
    while (w->steps_left > 0) {
        const Item *item = &items[i];
        bool ok = true;
        w->steps_left--;
        switch (item->op) {
        case RUN: ok = run_of(item, w, here, end, &least, &here);
            if (i == 0 && item->b == NONE) *dead = here;
            if (ok && here > least) back[ways].item = i + 1, back[ways].least = least, back[ways++].at = here;
            i++;
            break;
        case NOT_AHEAD: ok = here == end || !in_set(item, w->class_of[here]); i++; break;
        case LINE_END: ok = here == end || in_set(item, w->class_of[here]); i++; break;
        case SPLIT: back[ways].item = item->b, back[ways].least = back[ways].at = here, ways++; i = item->a; break;
        case JUMP: i = item->a; break;
        default: return here;
        }
        if (ok) continue;
        if (ways == 0) return at;
        i = back[ways - 1].item;
        here = back[ways - 1].at;
        if (here == back[ways - 1].least) {
            ways--;
            continue;
        }
        do here--; while (w->class_of[here] == CONTINUED); /* one character less of the run */
        back[ways - 1].at = here;
        if (here == back[ways - 1].least) ways--;
    }
    return at;
}

/* One expression on one piece: cuts before and behind each match. */
static void split(const Tokenizer *t, Work *w, size_t step, size_t from, size_t to) {
    size_t first = t->step_start[step], alternatives = t->step_start[step + 1] - first;
    size_t dead[MAX_ALTERNATIVES] = {0};
    for (size_t at = from; at < to;) {
        size_t stop = at;
        for (size_t i = 0; i < alternatives && stop == at; i++)
            if (at >= dead[i]) stop = match(t->items + t->alternative_start[first + i], w, at, to, &dead[i]);
        if (stop > at) {
            w->cut[at] = w->cut[stop] = 1;
            at = stop;
        } else {
            for (at++; at < to && w->class_of[at] == CONTINUED;) at++;
        }
    }
}

/* ---- merging ----------------------------------------------------------------------------------------------------------------- */

static const Merge *find_merge(const Tokenizer *t, uint32_t left, uint32_t right) {
    size_t low = t->merge_start[left], high = t->merge_start[left + 1];
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->merges[middle].right < right) low = middle + 1;
        else high = middle;
    }
    return low < t->merge_start[left + 1] && t->merges[low].right == right ? &t->merges[low] : NULL;
}

/* The lowest rank first, of equals the leftmost. */
static bool before(const Candidate *a, const Candidate *b) { return a->rank != b->rank ? a->rank < b->rank : a->at < b->at; }

static void push(Candidate *heap, size_t *n, Candidate c) {
    size_t i = (*n)++;
    for (; i > 0 && before(&c, &heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = c;
}

static Candidate pop(Candidate *heap, size_t *n) {
    Candidate top = heap[0], last = heap[--*n];
    size_t i = 0;
    for (size_t child = 1; child < *n; child = 2 * i + 1) {
        if (child + 1 < *n && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &last)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

static void consider(const Tokenizer *t, Work *w, size_t *candidates, uint32_t left) {
    const Symbol *s = w->symbols;
    uint32_t right = left == NONE ? NONE : s[left].next;
    if (right == NONE) return;
    const Merge *m = find_merge(t, s[left].id, s[right].id);
    if (m) push(w->heap, candidates, (Candidate){m->rank, left, m->id, s[left].bytes + s[right].bytes});
}

static bool reserve(Work *w, size_t n) {
    if (n <= w->room) return true;
    size_t room = n < 256 ? 256 : n;
    free(w->symbols);
    free(w->heap);
    w->symbols = malloc(room * sizeof(Symbol));
    w->heap = malloc(2 * room * sizeof(Candidate)); /* n - 1 pairs at first; a merge takes one out and puts two in, and leaves a symbol less */
    w->room = w->symbols && w->heap ? room : 0;
    return w->room > 0;
}

/* One symbol for each byte that has a token. */
static uint32_t spell(const Tokenizer *t, Symbol *symbols, const uint8_t *s, size_t n) {
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = t->byte_id[s[i]];
        if (id != NONE) symbols[count] = (Symbol){id, 1, count - 1, count + 1}, count++; /* count - 1 of the first: NONE */
    }
    if (count > 0) symbols[count - 1].next = NONE;
    return count;
}

static bool encode_word(const Tokenizer *t, Work *w, const uint8_t *word, size_t n) {
    if (!reserve(w, n)) return false;
    Symbol *s = w->symbols;
    size_t candidates = 0;
    uint32_t symbols = spell(t, s, word, n);
    for (uint32_t i = 0; i < symbols; i++) consider(t, w, &candidates, i);
    while (candidates > 0) {
        Candidate c = pop(w->heap, &candidates);
        Symbol *left = &s[c.at];
        /* Symbols only grow: the pair is still the same if both are there and are as long as they were together. */
        if (left->bytes == 0 || left->next == NONE || left->bytes + s[left->next].bytes != c.bytes) continue;
        Symbol *right = &s[left->next];
        left->id = c.id;
        left->bytes = c.bytes;
        left->next = right->next;
        right->bytes = 0;
        if (left->next != NONE) s[left->next].previous = c.at;
        consider(t, w, &candidates, left->previous);
        consider(t, w, &candidates, c.at);
    }
    for (uint32_t i = 0; symbols > 0 && i != NONE; i = s[i].next) w->ids[w->count++] = (int32_t)s[i].id;
    return true;
}

/* The token that is the whole word, or NONE. */
static uint32_t whole_word(const Tokenizer *t, const uint8_t *word, size_t n) {
    size_t low = 0, high = t->h.by_text;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t id = t->by_text[middle];
        size_t bytes = t->token_start[id + 1] - t->token_start[id];
        int order = memcmp(t->text + t->token_start[id], word, bytes < n ? bytes : n);
        if (order == 0 && bytes == n) return id;
        if (order < 0 || (order == 0 && bytes < n)) low = middle + 1;
        else high = middle;
    }
    return NONE;
}

/* ---- encoding ------------------------------------------------------------------------------------------------------------------ */

/* Text without added tokens. */
static bool encode_text(const Tokenizer *t, Work *w, const uint8_t *s, size_t n) {
    if (n == 0) return true;
    classify(t, w, s, n);
    memset(w->cut, 0, n + 1);
    w->cut[0] = w->cut[n] = 1;
    size_t to;
    for (size_t step = 0; step < t->h.steps; step++) {
        for (size_t from = 0; from < n; from = to) {
            for (to = from + 1; !w->cut[to];) to++;
            split(t, w, step, from, to);
        }
    }
    for (size_t from = 0; from < n; from = to) {
        for (to = from + 1; !w->cut[to];) to++;
        uint32_t id = whole_word(t, s + from, to - from);
        if (id != NONE) w->ids[w->count++] = (int32_t)id;
        else if (!encode_word(t, w, s + from, to - from)) return false;
    }
    return true;
}

/* First of added tokens low .. high - 1 (which agree in their first `depth` bytes and are longer) whose next byte is >= c. */
static size_t first_with(const Tokenizer *t, const Added *added, size_t low, size_t high, size_t depth, unsigned c) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uint8_t)t->text[added[middle].start + depth] < c) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The longest added token of this pass at the beginning of s, or NULL. */
static const Added *find_added(const Tokenizer *t, int pass, const uint8_t *s, size_t n) {
    const Added *added = t->added[pass], *longest = NULL;
    size_t low = 0, high = t->h.added[pass];
    for (size_t depth = 0; low < high; depth++) {
        if (added[low].bytes == depth) longest = &added[low++];
        if (low == high || depth == n) break;
        low = first_with(t, added, low, high, depth, s[depth]);
        high = first_with(t, added, low, high, depth, s[depth] + 1u);
    }
    return longest;
}

/* Trusted text: added tokens of this pass, and what lies between them to the next. */
static bool encode_trusted(const Tokenizer *t, Work *w, const uint8_t *s, size_t n, int pass) {
    if (pass == PASSES) return encode_text(t, w, s, n);
    size_t done = 0;
    for (size_t i = 0; i < n;) {
        const Added *a = find_added(t, pass, s + i, n - i);
        if (!a) {
            i++;
            continue;
        }
        if (!encode_trusted(t, w, s + done, i - done, pass + 1)) return false;
        w->ids[w->count++] = (int32_t)a->id;
        done = i += a->bytes;
    }
    return encode_trusted(t, w, s + done, n - done, pass + 1);
}

int32_t *tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool trusted, size_t *count) {
    *count = 0;
    if (n >= INT32_MAX) return NULL; /* positions within a word are 32-bit numbers */
    Work w = {.steps_left = 1024 * (uint64_t)n + 65536};
    w.class_of = malloc(n + 1);
    w.cut = malloc(n + 1);
    w.ids = malloc((n + 1) * sizeof *w.ids);
    bool ok = w.class_of && w.cut && w.ids && encode_trusted(t, &w, (const uint8_t *)text, n, trusted ? 0 : PASSES);
    free(w.class_of);
    free(w.cut);
    free(w.symbols);
    free(w.heap);
    if (!ok) {
        free(w.ids);
        return NULL;
    }
    *count = w.count;
    return w.ids;
}

/* ---- decoding ------------------------------------------------------------------------------------------------------------------ */

const char *tokenizer_decode(const Tokenizer *t, int32_t id, size_t *n, bool *special) {
    *n = 0;
    *special = false;
    if (id < 0 || (uint32_t)id >= t->h.vocabulary) return "";
    *n = t->token_start[id + 1] - t->token_start[id];
    *special = t->flags[id] & 1;
    return t->text + t->token_start[id];
}

size_t tokenizer_size(const Tokenizer *t) { return t->h.vocabulary; }
