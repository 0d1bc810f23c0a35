/* engine/pretokenizer.c: a small backtracking matcher. The expressions of a tokenizer are applied one after
 * the other; each splits every piece that the one before has left. The expressions know characters by class
 * alone (at most 62 classes: characters that all expressions treat alike), so that an item asks for one bit
 * of a set.
 *
 * It knows no text of an expression: exporter/pretokenizer.py compiles them into items (section.h). There
 * is no recursion: the ways that are still to be tried are kept in an array, one for each item at most
 * (section.c has checked that items go forward only). */
#include "engine/pretokenizer.h"

#include <string.h>

/* A byte that is no part of a UTF-8 character is a character of class 0, which is in no set. */
enum { NOT_UTF8 = 0, CONTINUED = 63 };

/* class_of[i] = class of the character that begins at byte i, CONTINUED inside a character. */
static void classify(const Tokenizer *t, const uint8_t *s, size_t n, uint8_t *class_of) {
    for (size_t i = 0; i < n;) {
        uint32_t code = 0;
        size_t length = utf8_read(s + i, n - i, &code);
        class_of[i++] = length ? t->pages[256 * (size_t)t->page_of[code >> 8] + (code & 255)] : NOT_UTF8;
        for (size_t j = 1; j < length; j++)
            class_of[i++] = CONTINUED;
    }
}

/* ---- one alternative at one place ----------------------------------------------------------- */

/* A way that is not yet tried: go on with `item` at `at`. Where at > least it begins behind a run that can
 * give characters back, down to `least`. */
typedef struct {
    size_t item, least, at;
} Way;

typedef struct {
    Way way[MAX_ITEMS];
    size_t count;
} Ways;

static void push_way(Ways *ways, size_t item, size_t least, size_t at) {
    ways->way[ways->count++] = (Way){item, least, at};
}

/* Takes the way that was pushed last; a run gives one character back each time. False if there is none. */
static bool pop_way(Ways *ways, const uint8_t *class_of, size_t *item, size_t *at) {
    if (ways->count == 0)
        return false;
    Way *last = &ways->way[ways->count - 1];
    if (last->at > last->least) {
        do
            last->at--;
        while (class_of[last->at] == CONTINUED);
    }
    if (last->at == last->least)
        ways->count--;
    *item = last->item;
    *at = last->at;
    return true;
}

static bool in_set(const Item *item, uint8_t class_of) {
    return item->set[class_of >> 5] >> (class_of & 31) & 1;
}

/* The run of at most item->b characters of the set that begins at `at`: *most is where it ends, *least
 * where its first item->a characters end. False if it has fewer. */
static bool run_of(const Item *item, const uint8_t *class_of, Budget *budget, size_t at, size_t end,
                   size_t *least, size_t *most) {
    size_t characters = 0;
    *least = at;
    while (at < end && characters < item->b && in_set(item, class_of[at])) {
        for (at++; at < end && class_of[at] == CONTINUED;)
            at++;
        if (++characters == item->a)
            *least = at;
    }
    *most = at;
    spend(budget, characters);
    return characters >= item->a;
}

/* Where the match of one alternative at `at` ends; `at` itself if it does not match. Where the failure
 * tells that there is no match before some later place either, *dead becomes that place: an alternative
 * that begins with an unlimited run has by then tried every end of that run. */
static size_t match(const Item *items, const uint8_t *class_of, Budget *budget, size_t at, size_t end,
                    size_t *dead) {
    Ways ways;
    ways.count = 0;
    size_t i = 0, here = at, least = 0;
    while (budget->left > 0) {
        const Item *item = &items[i++];
        bool ok = true;
        spend(budget, 1);
        switch (item->op) {
        case RUN:
        case KEEP:
            ok = run_of(item, class_of, budget, here, end, &least, &here);
            if (item == items && item->b == NONE)
                *dead = here;
            if (ok && here > least && item->op == RUN)
                push_way(&ways, i, least, here);
            break;
        case NOT_AHEAD: ok = here == end || !in_set(item, class_of[here]); break;
        case LINE_END: ok = here == end || in_set(item, class_of[here]); break;
        case SPLIT:
            push_way(&ways, item->b, here, here);
            i = item->a;
            break;
        case JUMP: i = item->a; break;
        default: return here;
        }
        if (!ok && !pop_way(&ways, class_of, &i, &here))
            break;
    }
    return at;
}

/* ---- all of them, on all pieces ------------------------------------------------------------- */

/* One expression on one piece: cuts before and behind each match. */
static void split(const Tokenizer *t, size_t step, const uint8_t *class_of, uint8_t *cut, size_t from,
                  size_t to, Budget *budget) {
    size_t first = t->step_start[step], alternatives = t->step_start[step + 1] - first;
    size_t dead[MAX_ALTERNATIVES] = {0};
    for (size_t at = from; at < to;) {
        size_t stop = at;
        for (size_t i = 0; i < alternatives && stop == at; i++)
            if (at >= dead[i])
                stop = match(t->items + t->alternative_start[first + i], class_of, budget, at, to, &dead[i]);
        spend(budget, alternatives);
        if (stop > at) {
            cut[at] = cut[stop] = 1;
            at = stop;
        } else {
            for (at++; at < to && class_of[at] == CONTINUED;)
                at++;
        }
    }
}

void pretokenize(const Tokenizer *t, const uint8_t *s, size_t n, uint8_t *class_of, uint8_t *cut,
                 Budget *budget) {
    classify(t, s, n, class_of);
    memset(cut, 0, n + 1);
    cut[0] = cut[n] = 1;
    for (size_t step = 0; step < t->h.steps; step++) {
        for (size_t from = 0, to; from < n; from = to) {
            for (to = from + 1; !cut[to];)
                to++;
            split(t, step, class_of, cut, from, to, budget);
        }
    }
}
