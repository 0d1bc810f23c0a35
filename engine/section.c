/* engine/section.c: opens the tokenizer section of a checkpoint (section.h). The section is input from
 * outside: the readers of a Tokenizer rely on what is checked here, so that no index leaves its array,
 * every search stays inside its table and every expression of the pre-tokenizer comes to an end. What the
 * tokens mean is not checked: a damaged section may give other ids for a text, but nothing worse. */
#include "engine/section.h"

#include <string.h>

#include "kernels/util.h"

enum { TAG = 0x324B4F54, PLANE_PAGES = CODES / 256 };

/* ---- where the arrays lie ------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at;
    size_t left;
    bool short_of; /* an array did not fit */
} Cursor;

static const void *take(Cursor *c, size_t count, size_t size) {
    const void *array = c->at;
    size_t words = count <= c->left / size ? div_up(count * size, 4) : SIZE_MAX;
    if (words > c->left / 4) {
        c->short_of = true;
        c->left = 0;
        return array;
    }
    c->at += words * 4;
    c->left -= words * 4;
    return array;
}

/* True if the arrays fill the section exactly. */
static bool lay_out(Tokenizer *t, Cursor *c) {
    const SectionHeader *h = &t->h;
    t->token_start = take(c, (size_t)h->vocabulary + 1, 4);
    t->text = take(c, h->text_bytes, 1);
    t->flags = take(c, h->vocabulary, 1);
    t->byte_id = take(c, 256, 4);
    t->merge_start = take(c, (size_t)h->vocabulary + 1, 4);
    t->merges = take(c, h->merges, sizeof(Merge));
    t->by_text = take(c, h->by_text, 4);
    for (int table = 0; table < TABLES; table++)
        t->texts[table] = take(c, h->texts[table], sizeof(TokenText));
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

/* ---- checks: NULL, or what is wrong --------------------------------------------------------- */

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
static bool ascending(const Tokenizer *t, const TokenText *a, const TokenText *b) {
    int order = memcmp(t->text + a->start, t->text + b->start, min(a->bytes, b->bytes));
    return order < 0 || (order == 0 && a->bytes < b->bytes);
}

static const char *check_texts(const Tokenizer *t, int table) {
    for (size_t i = 0; i < t->h.texts[table]; i++) {
        const TokenText *a = &t->texts[table][i];
        if (a->id >= t->h.vocabulary || a->bytes == 0)
            return "an added token or a unit";
        if (a->start > t->h.text_bytes || a->bytes > t->h.text_bytes - a->start || a->bytes > MAX_TOKEN_TEXT)
            return "the text of an added token or a unit";
        if (i > 0 && !ascending(t, a - 1, a))
            return "the order of added tokens or units";
    }
    return NULL;
}

static const char *check_vocabulary(const Tokenizer *t) {
    const SectionHeader *h = &t->h;
    if (!check_ranges(t->token_start, h->vocabulary, h->text_bytes, false))
        return "token offsets";
    for (size_t i = 0; i < 256; i++)
        if (t->byte_id[i] != NONE && t->byte_id[i] >= h->vocabulary)
            return "a byte's token";
    for (size_t i = 0; i < h->by_text; i++)
        if (t->by_text[i] >= h->vocabulary)
            return "the list of whole words";
    const char *wrong = NULL;
    for (int table = 0; table < TABLES && !wrong; table++)
        wrong = check_texts(t, table);
    return wrong;
}

static const char *check_merges(const Tokenizer *t) {
    const SectionHeader *h = &t->h;
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
    const SectionHeader *h = &t->h;
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

const char *section_open(Tokenizer *t, const void *section, size_t bytes) {
    static const char *(*const CHECKS[])(const Tokenizer *) = {check_vocabulary, check_merges,
                                                               check_normal_form, check_pretokenizer};
    Cursor c = {section, bytes, false};
    if (bytes < sizeof(SectionHeader) || (uintptr_t)section % 4)
        return "its size or place";
    memcpy(&t->h, take(&c, 1, sizeof(SectionHeader)), sizeof(SectionHeader));
    if (t->h.tag != TAG)
        return "its first four bytes (another version?)";
    if (t->h.bytes != bytes || !lay_out(t, &c))
        return "its size";
    const char *wrong = NULL;
    for (size_t i = 0; i < sizeof CHECKS / sizeof *CHECKS && !wrong; i++)
        wrong = CHECKS[i](t);
    return wrong;
}
