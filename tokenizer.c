/* tokenizer.c: byte-pair encoding of any bytes, exactly as the model's own tokenizer does it.
 *
 * Text becomes ids in four stages. (1) In trusted text, added tokens are cut out. (2) The rest is brought
 * into the tokenizer's normal form (engine/unicode.c). (3) The pre-tokenizer, a sequence of regular
 * expressions that each split every piece of the one before, cuts it into words; a merge never crosses a
 * cut. (4) A word is spelled in units, bytes or characters, and the adjacent pair with the lowest rank is
 * merged until no pair is left that has one.
 *
 * One algorithm serves all kinds: GPT-2's byte-level BPE has bytes as units; SentencePiece has characters,
 * a byte where it lacks one, and the whole text as its one word; tiktoken's ranks of whole tokens have
 * become ranks of pairs when they were exported.
 *
 * Nothing here knows a model, a regular expression or Unicode: exporter/section.py writes what a published
 * tokenizer says into the section that is described below, and this file follows it. It does not render
 * chat templates (cli/chat.c) and adds no begin token (cli/prompt.c). Text need not be valid UTF-8: a byte
 * that is not part of a well-formed character is a character of its own that no expression matches. Where
 * the vocabulary has all 256 bytes and wants no normal form, decoding gives every byte back.
 *
 * The section. Little-endian; everything is u32 unless said; arrays follow the header in this order, each
 * padded with zeros to a multiple of 4 bytes, and fill the section exactly. V = vocabulary; ranges are
 * [start[i], start[i + 1]).
 *
 *   header            17 numbers: the struct Header
 *   token_start       [V + 1]           bytes of token i: text[token_start[i] .. token_start[i + 1]);
 *                     none: the id is unused
 *   text              u8[text_bytes]    tokens, then texts of added tokens and units that decode to
 *                     something else
 *   flags             u8[V]             1: a special token (begin, end, ...)
 *   byte_id           [256]             the token of each byte that begins no unit; NONE: there is none,
 *                     encoding leaves the byte out
 *   merge_start       [V + 1]           merges whose left token is i
 *   merges            {right, id, rank}[merges], right ascending within one left: (left, right) -> id, the
 *                     lowest rank first
 *   by_text           [by_text]         ids sorted by their bytes: a word that is one of these tokens is
 *                     taken whole, without
 *                                       merging. Empty for tokenizers that do not do so
 *   texts             {start, bytes, id}[texts[0] + texts[1] + texts[2]]: text[start .. start + bytes)
 *                     stands for id, the longest at a place;
 *                                       sorted by bytes within each table. Tables 0 and 1: the added
 *                                         tokens of trusted text, leftmost
 *                                       first, 1 in what 0 left over. Table 2: units of more than a byte,
 *                                         or of another byte than byte_id
 *   replacements      {code, order, check, to[4]}[replacements] and
 *   compositions      {first, second, code}[compositions]: the normal form, as in engine/unicode.h
 *   page_of           u16[4352]         page of code points 256 i .. 256 i + 255
 *   pages             u8[pages][256]    class of a code point, 1 .. 62: code points that all expressions
 *                     treat alike
 *   step_start        [steps + 1]       alternatives of each expression; at a place, the first that
 *                     matches wins
 *   alternative_start [alternatives+1]  items of each alternative
 *   items             {op, a, b, set (low, high)}[items]; bit c of a set stands for class c. The last item
 *                     of an alternative is MATCH.
 *                     RUN       a to b characters of the set, as many as possible, fewer if what follows
 *                               fails (b = NONE: no limit)
 *                     KEEP      the same, never fewer
 *                     NOT_AHEAD the next character of the piece, if there is one, is not in the set
 *                     LINE_END  the piece ends here or the next character is in the set (a line feed)
 *                     SPLIT     go on at item a; if that fails, at item b (both count within the
 *                               alternative and lie ahead)
 *                     JUMP      go on at item a, which lies ahead
 *                     MATCH     the expression has matched up to here */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/unicode.h"

#define NONE UINT32_MAX

enum {
    TAG = 0x324B4F54,
    CODES = 0x110000,
    PLANE_PAGES = CODES / 256,
    MAX_CLASSES = 63,
    MAX_STEPS = 64,
    MAX_ALTERNATIVES = 64,
    MAX_ITEMS = 256
};
enum { RUN, KEEP, NOT_AHEAD, LINE_END, SPLIT, JUMP, MATCH, OPS };
enum { ADDED, ADDED_LATE, UNITS, TABLES };
/* Options: the prefix stands where the text begins, not behind every added token; not before itself; the
 * normal form comes after both tables of added tokens, not between them; decoding leaves out a space at
 * the begin of a text. */
enum { PREFIX_FIRST = 1, PREFIX_ONCE = 2, NORMALIZE_LAST = 4, DROP_SPACE = 8 };

typedef struct {
    uint32_t tag, bytes; /* "TOK2"; of the whole section */
    uint32_t vocabulary, text_bytes, merges, by_text, texts[TABLES];
    uint32_t replacements, compositions, prefix, options; /* prefix: a code point, 0: none */
    uint32_t pages, steps, alternatives, items;
} Header;

typedef struct {
    uint32_t right, id, rank;
} Merge;
typedef struct {
    uint32_t start, bytes, id;
} Text;
typedef struct {
    uint32_t op, a, b, set[2];
} Item;

struct Tokenizer {
    Header h;
    const uint32_t *token_start;
    const char *text;
    const uint8_t *flags;
    const uint32_t *byte_id;
    const uint32_t *merge_start;
    const Merge *merges;
    const uint32_t *by_text;
    const Text *texts[TABLES];
    NormalForm form;
    const uint16_t *page_of;
    const uint8_t *pages;
    const uint32_t *step_start;
    const uint32_t *alternative_start;
    const Item *items;
};

/* ---- opening: the section is input from outside, so nothing in it is believed --------------- */

typedef struct {
    const uint8_t *at;
    size_t left;
    bool short_of; /* an array did not fit */
} Cursor;

static const void *take(Cursor *c, size_t count, size_t size) {
    if (count > (c->left + 3) / size)
        goto does_not_fit;
    size_t bytes = (count * size + 3) / 4 * 4;
    if (bytes > c->left)
        goto does_not_fit;
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
    for (int table = 0; table < TABLES; table++)
        t->texts[table] = take(c, h->texts[table], sizeof(Text));
    t->form = (NormalForm){.replaced = h->replacements,
                           .composed = h->compositions,
                           .prefix = h->prefix,
                           .prefix_once = h->options & PREFIX_ONCE};
    t->form.replacements = take(c, h->replacements, sizeof(Replacement));
    t->form.compositions = take(c, h->compositions, sizeof(Composition));
    t->page_of = take(c, PLANE_PAGES, 2);
    t->pages = take(c, h->pages, 256);
    t->step_start = take(c, (size_t)h->steps + 1, 4);
    t->alternative_start = take(c, (size_t)h->alternatives + 1, 4);
    t->items = take(c, h->items, sizeof(Item));
    return !c->short_of && c->left == 0;
}

/* start[0] = 0 <= start[1] <= ... <= start[n] <= end; `exact`: start[n] = end. */
static bool check_ranges(const uint32_t *start, size_t n, uint32_t end, bool exact) {
    if (start[0] != 0 || start[n] > end || (exact && start[n] != end))
        return false;
    for (size_t i = 0; i < n; i++)
        if (start[i] > start[i + 1])
            return false;
    return true;
}

/* The search for a text relies on their order to stay inside them. */
static bool ascending(const Tokenizer *t, const Text *a, const Text *b) {
    int order = memcmp(t->text + a->start, t->text + b->start, a->bytes < b->bytes ? a->bytes : b->bytes);
    return order < 0 || (order == 0 && a->bytes < b->bytes);
}

static const char *check_vocabulary(const Tokenizer *t) {
    const Header *h = &t->h;
    if (!check_ranges(t->token_start, h->vocabulary, h->text_bytes, false))
        return "token offsets";
    for (size_t i = 0; i < 256; i++)
        if (t->byte_id[i] != NONE && t->byte_id[i] >= h->vocabulary)
            return "a byte's token";
    for (size_t i = 0; i < h->by_text; i++)
        if (t->by_text[i] >= h->vocabulary)
            return "the list of whole words";
    for (int table = 0; table < TABLES; table++) {
        for (size_t i = 0; i < h->texts[table]; i++) {
            const Text *a = &t->texts[table][i];
            if (a->id >= h->vocabulary || a->bytes == 0)
                return "an added token or a unit";
            if (a->start > h->text_bytes || a->bytes > h->text_bytes - a->start)
                return "the text of an added token or a unit";
            if (i > 0 && !ascending(t, a - 1, a))
                return "the order of added tokens or units";
        }
    }
    return NULL;
}

static const char *check_normal_form(const Tokenizer *t) {
    const NormalForm *f = &t->form;
    for (size_t i = 0; i < f->replaced; i++) {
        const Replacement *r = &f->replacements[i];
        if (i > 0 && r[-1].code >= r->code)
            return "the order of replaced characters";
        for (int part = 0; part < 4; part++)
            if (r->to[part] >= CODES)
                return "a replaced character";
    }
    for (size_t i = 0; i < f->composed; i++)
        if (f->compositions[i].code >= CODES)
            return "a composed character";
    return f->prefix >= CODES ? "the prefix" : NULL;
}

static const char *check_merges(const Tokenizer *t) {
    const Header *h = &t->h;
    if (!check_ranges(t->merge_start, h->vocabulary, h->merges, true))
        return "merge offsets";
    for (size_t left = 0; left < h->vocabulary; left++) {
        for (size_t i = t->merge_start[left]; i < t->merge_start[left + 1]; i++) {
            const Merge *m = &t->merges[i];
            if (m->right >= h->vocabulary || m->id >= h->vocabulary)
                return "a merge";
            if (i > t->merge_start[left] && m[-1].right >= m->right)
                return "the order of merges";
        }
    }
    return NULL;
}

/* An alternative ends in MATCH and goes forward only: it stops, and a way back is recorded at most once
 * for each item. */
static bool check_alternative(const Item *items, size_t n) {
    if (n == 0 || n > MAX_ITEMS || items[n - 1].op != MATCH)
        return false;
    for (size_t i = 0; i < n; i++) {
        const Item *item = &items[i];
        if (item->op >= OPS)
            return false;
        if ((item->op == RUN || item->op == KEEP) && item->a > item->b)
            return false;
        if ((item->op == SPLIT || item->op == JUMP) && (item->a <= i || item->a >= n))
            return false;
        if (item->op == SPLIT && (item->b <= i || item->b >= n))
            return false;
    }
    return true;
}

static const char *check_pretokenizer(const Tokenizer *t) {
    const Header *h = &t->h;
    for (size_t i = 0; i < PLANE_PAGES; i++)
        if (t->page_of[i] >= h->pages)
            return "the table of characters";
    for (size_t i = 0; i < (size_t)h->pages * 256; i++)
        if (t->pages[i] >= MAX_CLASSES)
            return "a class of characters";
    if (h->steps > MAX_STEPS || !check_ranges(t->step_start, h->steps, h->alternatives, true))
        return "the pre-tokenizer's steps";
    for (size_t i = 0; i < h->steps; i++)
        if (t->step_start[i + 1] - t->step_start[i] > MAX_ALTERNATIVES)
            return "the pre-tokenizer's steps";
    if (!check_ranges(t->alternative_start, h->alternatives, h->items, true))
        return "the pre-tokenizer's alternatives";
    for (size_t i = 0; i < h->alternatives; i++) {
        const uint32_t *start = &t->alternative_start[i];
        if (!check_alternative(t->items + start[0], start[1] - start[0]))
            return "an item of the pre-tokenizer";
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
    if (bytes < sizeof(Header) || (uintptr_t)section % 4)
        wrong = "its size or place";
    else
        memcpy(&t->h, take(&c, 1, sizeof(Header)), sizeof(Header));
    if (!wrong && t->h.tag != TAG)
        wrong = "its first four bytes (another version?)";
    if (!wrong && (t->h.bytes != bytes || !lay_out(t, &c)))
        wrong = "its size";
    if (!wrong)
        wrong = check_vocabulary(t);
    if (!wrong)
        wrong = check_merges(t);
    if (!wrong)
        wrong = check_normal_form(t);
    if (!wrong)
        wrong = check_pretokenizer(t);
    if (wrong) {
        snprintf(err, err_bytes, "the tokenizer is damaged: %s; export the checkpoint again", wrong);
        free(t);
        return NULL;
    }
    return t;
}

void tokenizer_close(Tokenizer *t) { free(t); }

/* ---- pre-tokenizer: a small backtracking matcher over classes of characters ----------------- */

/* part of a word; bytes = 0: merged into another */
typedef struct {
    uint32_t id, bytes, previous, next;
} Symbol;
/* a pair that can be merged: rank << 32 | left symbol, result, bytes of both */
typedef struct {
    uint64_t order;
    uint32_t id, bytes;
} Candidate;

/* What one call of tokenizer_encode works on. */
typedef struct {
    bool trusted;
    const uint8_t *text; /* where the text begins; NULL: other text is before what is encoded */
    /* [text_room] of the character that begins at each byte; CONTINUED inside a character */
    uint8_t *class_of;
    uint8_t *cut; /* [text_room] 1 where a piece begins or ends */
    /* a bound for the matcher that no sensible expression reaches: a hostile file must not run for years */
    uint64_t steps_left;
    Symbol *symbols; /* [room] */
    Candidate *heap; /* [2 * room] */
    int32_t *ids;    /* [ids_room] */
    size_t text_room, room, ids_room, count;
} Work;

enum { NOT_UTF8 = 0, CONTINUED = 63 };

static void classify(const Tokenizer *t, Work *w, const uint8_t *s, size_t n) {
    for (size_t i = 0; i < n;) {
        uint32_t code = 0;
        size_t length = utf8_read(s + i, n - i, &code);
        w->class_of[i++] = length ? t->pages[256 * (size_t)t->page_of[code >> 8] + (code & 255)] : NOT_UTF8;
        for (size_t j = 1; j < length; j++)
            w->class_of[i++] = CONTINUED;
    }
}

static bool in_set(const Item *item, uint8_t class_of) {
    return item->set[class_of >> 5] >> (class_of & 31) & 1;
}

/* Where the run of at most item->b characters of the set ends that begins at `at`; *least: where its first
 * item->a characters end. False if it has fewer. */
static bool run_of(const Item *item, Work *w, size_t at, size_t end, size_t *least, size_t *most) {
    size_t characters = 0;
    const uint8_t *c = w->class_of;
    *least = at;
    while (at < end && characters < item->b && in_set(item, c[at])) {
        for (at++; at < end && c[at] == CONTINUED;)
            at++;
        if (++characters == item->a)
            *least = at;
    }
    *most = at;
    w->steps_left -= characters < w->steps_left ? characters : w->steps_left;
    return characters >= item->a;
}

/* Where the match of one alternative at `at` ends; `at` itself if it does not match. Sets *dead to the
 * place before which there is no match either, if the failure tells: an alternative that begins with an
 * unlimited run has by then tried every end of that run. */
static size_t match(const Item *items, Work *w, size_t at, size_t end, size_t *dead) {
    /* ways not yet tried, the last first; checked: one for each item at most */
    struct {
        size_t item, least, at;
    } back[MAX_ITEMS];
    size_t ways = 0, i = 0, here = at, least = 0;
    while (w->steps_left > 0) {
        const Item *item = &items[i];
        bool ok = true;
        w->steps_left--;
        switch (item->op) {
        case RUN:
        case KEEP:
            ok = run_of(item, w, here, end, &least, &here);
            if (i == 0 && item->b == NONE)
                *dead = here;
            if (ok && here > least && item->op == RUN)
                back[ways].item = i + 1, back[ways].least = least, back[ways++].at = here;
            i++;
            break;
        case NOT_AHEAD:
            ok = here == end || !in_set(item, w->class_of[here]);
            i++;
            break;
        case LINE_END:
            ok = here == end || in_set(item, w->class_of[here]);
            i++;
            break;
        case SPLIT:
            back[ways].item = item->b, back[ways].least = back[ways].at = here, ways++;
            i = item->a;
            break;
        case JUMP: i = item->a; break;
        default: return here;
        }
        if (ok)
            continue;
        if (ways == 0)
            return at;
        i = back[ways - 1].item;
        here = back[ways - 1].at;
        if (here == back[ways - 1].least) {
            ways--;
            continue;
        }
        do
            here--;
        while (w->class_of[here] == CONTINUED); /* one character less of the run */
        back[ways - 1].at = here;
        if (here == back[ways - 1].least)
            ways--;
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
            if (at >= dead[i])
                stop = match(t->items + t->alternative_start[first + i], w, at, to, &dead[i]);
        if (stop > at) {
            w->cut[at] = w->cut[stop] = 1;
            at = stop;
        } else {
            for (at++; at < to && w->class_of[at] == CONTINUED;)
                at++;
        }
    }
}

/* ---- merging -------------------------------------------------------------------------------- */

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

/* A heap, the lowest rank first, of equals the leftmost. Each candidate has four children: they share a
 * cache line, and the heap is flat. */
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
        size_t end = child + 4 < *n ? child + 4 : *n;
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

static void consider(const Tokenizer *t, Work *w, size_t *candidates, uint32_t left) {
    const Symbol *s = w->symbols;
    uint32_t right = left == NONE ? NONE : s[left].next;
    if (right == NONE)
        return;
    const Merge *m = find_merge(t, s[left].id, s[right].id);
    if (m)
        push(w->heap, candidates,
             (Candidate){(uint64_t)m->rank << 32 | left, m->id, s[left].bytes + s[right].bytes});
}

static bool reserve(Work *w, size_t n) {
    if (n <= w->room)
        return true;
    size_t room = n < 256 ? 256 : n;
    free(w->symbols);
    free(w->heap);
    w->symbols = malloc(room * sizeof(Symbol));
    /* n - 1 pairs at first; a merge takes one out and puts two in, and leaves a symbol less */
    w->heap = malloc(2 * room * sizeof(Candidate));
    w->room = w->symbols && w->heap ? room : 0;
    return w->room > 0;
}

/* First of the texts low .. high - 1 (which agree in their first `depth` bytes and are longer) whose next
 * byte is >= c. */
static size_t first_with(const Tokenizer *t, const Text *texts, size_t low, size_t high, size_t depth,
                         unsigned c) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uint8_t)t->text[texts[middle].start + depth] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest text of a table at the beginning of s, or NULL. */
static const Text *find_text(const Tokenizer *t, int table, const uint8_t *s, size_t n) {
    const Text *texts = t->texts[table], *longest = NULL;
    size_t low = 0, high = t->h.texts[table];
    for (size_t depth = 0; low < high; depth++) {
        if (texts[low].bytes == depth)
            longest = &texts[low++];
        if (low == high || depth == n)
            break;
        low = first_with(t, texts, low, high, depth, s[depth]);
        high = first_with(t, texts, low, high, depth, s[depth] + 1u);
    }
    return longest;
}

/* One symbol for each unit. */
static uint32_t spell(const Tokenizer *t, Symbol *symbols, const uint8_t *s, size_t n) {
    uint32_t count = 0, bytes;
    for (size_t i = 0; i < n; i += bytes) {
        const Text *unit = find_text(t, UNITS, s + i, n - i);
        uint32_t id = unit ? unit->id : t->byte_id[s[i]];
        bytes = unit ? unit->bytes : 1;
        /* count - 1 of the first: NONE */
        if (id != NONE)
            symbols[count] = (Symbol){id, bytes, count - 1, count + 1}, count++;
    }
    if (count > 0)
        symbols[count - 1].next = NONE;
    return count;
}

static bool encode_word(const Tokenizer *t, Work *w, const uint8_t *word, size_t n) {
    if (!reserve(w, n))
        return false;
    Symbol *s = w->symbols;
    size_t candidates = 0;
    uint32_t symbols = spell(t, s, word, n);
    for (uint32_t i = 0; i < symbols; i++)
        consider(t, w, &candidates, i);
    while (candidates > 0) {
        Candidate c = pop(w->heap, &candidates);
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
        consider(t, w, &candidates, left->previous);
        consider(t, w, &candidates, at);
    }
    for (uint32_t i = 0; symbols > 0 && i != NONE; i = s[i].next)
        w->ids[w->count++] = (int32_t)s[i].id;
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
        if (order == 0 && bytes == n)
            return id;
        if (order < 0 || (order == 0 && bytes < n))
            low = middle + 1;
        else
            high = middle;
    }
    return NONE;
}

/* ---- encoding ------------------------------------------------------------------------------- */

/* `more` ids fit. */
static bool reserve_ids(Work *w, size_t more) {
    if (w->count + more <= w->ids_room)
        return true;
    size_t room = w->count + more + w->ids_room;
    int32_t *ids = realloc(w->ids, room * sizeof *ids);
    if (!ids)
        return false;
    w->ids = ids;
    w->ids_room = room;
    return true;
}

/* A text of n bytes can be cut, and its ids fit: each is made from at least one byte. */
static bool reserve_text(Work *w, size_t n) {
    if (!reserve_ids(w, n))
        return false;
    if (n + 1 <= w->text_room)
        return true;
    free(w->class_of);
    free(w->cut);
    w->class_of = malloc(n + 1);
    w->cut = malloc(n + 1);
    w->text_room = w->class_of && w->cut ? n + 1 : 0;
    return w->text_room > 0;
}

/* Text in normal form, without added tokens. */
static bool encode_text(const Tokenizer *t, Work *w, const uint8_t *s, size_t n) {
    if (n >= INT32_MAX || !reserve_text(w, n))
        return false; /* positions within a word are 32-bit numbers */
    classify(t, w, s, n);
    memset(w->cut, 0, n + 1);
    w->cut[0] = w->cut[n] = 1;
    size_t to;
    for (size_t step = 0; step < t->h.steps; step++) {
        for (size_t from = 0; from < n; from = to) {
            for (to = from + 1; !w->cut[to];)
                to++;
            split(t, w, step, from, to);
        }
    }
    for (size_t from = 0; from < n; from = to) {
        for (to = from + 1; !w->cut[to];)
            to++;
        uint32_t id = whole_word(t, s + from, to - from);
        if (id != NONE)
            w->ids[w->count++] = (int32_t)id;
        else if (!encode_word(t, w, s + from, to - from))
            return false;
    }
    return true;
}

static bool encode_stage(const Tokenizer *t, Work *w, const uint8_t *s, size_t n, int stage);

/* The added tokens of a table, and the next stage of what lies between them. */
static bool encode_added(const Tokenizer *t, Work *w, int table, const uint8_t *s, size_t n, int stage) {
    size_t done = 0;
    for (size_t i = 0; w->trusted && i < n;) {
        const Text *a = find_text(t, table, s + i, n - i);
        if (!a) {
            i++;
            continue;
        }
        if (!encode_stage(t, w, s + done, i - done, stage + 1) || !reserve_ids(w, 1))
            return false;
        w->ids[w->count++] = (int32_t)a->id;
        done = i += a->bytes;
    }
    return encode_stage(t, w, s + done, n - done, stage + 1);
}

static bool encode_normalized(const Tokenizer *t, Work *w, const uint8_t *s, size_t n, int stage) {
    uint8_t *own;
    size_t bytes;
    bool ok = normalize(&t->form, s, n, s == w->text || !(t->h.options & PREFIX_FIRST), &own, &bytes);
    ok = ok && encode_stage(t, w, own ? own : s, own ? bytes : n, stage + 1);
    free(own);
    return ok;
}

static bool encode_stage(const Tokenizer *t, Work *w, const uint8_t *s, size_t n, int stage) {
    enum { NORMALIZE = TABLES, TEXT };
    static const int stages[2][4] = {{ADDED, NORMALIZE, ADDED_LATE, TEXT},
                                     {ADDED, ADDED_LATE, NORMALIZE, TEXT}};
    if (n == 0)
        return true;
    int now = stages[t->h.options & NORMALIZE_LAST ? 1 : 0][stage];
    if (now == TEXT)
        return encode_text(t, w, s, n);
    if (now == NORMALIZE)
        return encode_normalized(t, w, s, n, stage);
    return encode_added(t, w, now, s, n, stage);
}

int32_t *tokenizer_encode(const Tokenizer *t, const char *text, size_t n, bool trusted, bool begins,
                          size_t *count) {
    Work w = {.trusted = trusted,
              .text = begins ? (const uint8_t *)text : NULL,
              .steps_left = 1024 * (uint64_t)n + 65536};
    bool ok = reserve_ids(&w, 1) && encode_stage(t, &w, (const uint8_t *)text, n, 0);
    free(w.class_of);
    free(w.cut);
    free(w.symbols);
    free(w.heap);
    *count = ok ? w.count : 0;
    if (ok)
        return w.ids;
    free(w.ids);
    return NULL;
}

int32_t tokenizer_added(const Tokenizer *t, const char *text, size_t n, size_t *bytes) {
    const Text *a = find_text(t, ADDED, (const uint8_t *)text, n);
    if (!a)
        a = find_text(t, ADDED_LATE, (const uint8_t *)text, n);
    *bytes = a ? a->bytes : 0;
    return a ? (int32_t)a->id : -1;
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

size_t tokenizer_size(const Tokenizer *t) { return t->h.vocabulary; }
