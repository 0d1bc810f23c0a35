/* cli/think.c: which part of an answer is a thought (think.h). The checkpoint's chat section says which
 * marks there are and what is done with them; exporter/chat.py has checked that the model's own template
 * does the same. Text that merely spells a mark is text, as long as the tokenizer has a token for the
 * mark. */
#include "cli/think.h"
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

static int32_t token_for(const Tokenizer *t, size_t vocabulary, Slice mark) {
    size_t n = 0;
    int32_t id = mark.bytes ? tokenizer_added(t, mark.text, mark.bytes, &n) : -1;
    return id >= 0 && (size_t)id < vocabulary && n == mark.bytes ? id : -1;
}

ThoughtMarks thought_marks(const Tokenizer *t, size_t vocabulary, Slice begin, Slice end) {
    return (ThoughtMarks){.begin = begin,
                          .end = end,
                          .begin_id = token_for(t, vocabulary, begin),
                          .end_id = token_for(t, vocabulary, end)};
}

/* The last place where `what` stands in s; s.bytes: nowhere. */
static size_t last_place(Slice s, Slice what) {
    for (size_t i = s.bytes; what.bytes && i-- > 0;)
        if (starts_with(after(s, i), what))
            return i;
    return s.bytes;
}

Slice from_last_begin(const ThoughtMarks *marks, Slice text) {
    return after(text, last_place(text, marks->begin));
}

bool opens_thought(const ThoughtMarks *marks, Slice text) {
    Slice thought = from_last_begin(marks, text);
    return thought.bytes && last_place(thought, marks->end) == thought.bytes;
}

/* ---- answers -------------------------------------------------------------------------------- */

static Mark *all_marks(const Answer *a, size_t *count) {
    *count = a->marks.bytes / sizeof(Mark);
    return a->marks.data;
}

static bool add_mark(Answer *a, Mark mark) { return buffer_add(&a->marks, &mark, sizeof mark); }

void answer_clear(Answer *a) { a->text.bytes = a->marks.bytes = 0; }

bool answer_add(Answer *a, const ThoughtMarks *marks, int32_t id, Slice text) {
    Mark mark = {.at = a->text.bytes, .bytes = text.bytes, .id = id, .ends = id == marks->end_id};
    bool marked = id >= 0 && text.bytes && (mark.ends || id == marks->begin_id);
    return append(&a->text, text) && (!marked || add_mark(a, mark));
}

void answer_cut(Answer *a, size_t bytes) {
    size_t count;
    const Mark *marks = all_marks(a, &count);
    a->text.bytes -= bytes;
    while (count && marks[count - 1].at + marks[count - 1].bytes > a->text.bytes)
        count--;
    a->marks.bytes = count * sizeof *marks;
}

static bool find_text_marks(Answer *a, Slice mark, bool ends) {
    for (size_t i = 0; mark.bytes && i + mark.bytes <= a->text.bytes;) {
        bool found = starts_with(after(contents(&a->text), i), mark);
        if (found && !add_mark(a, (Mark){.at = i, .bytes = mark.bytes, .id = -1, .ends = ends}))
            return false;
        i += found ? mark.bytes : 1;
    }
    return true;
}

static int by_place(const void *a, const void *b) {
    const Mark *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

bool answer_complete(Answer *a, const ThoughtMarks *marks) {
    if ((marks->begin_id < 0 && !find_text_marks(a, marks->begin, false)) ||
        (marks->end_id < 0 && !find_text_marks(a, marks->end, true)))
        return false;
    size_t count;
    Mark *found = all_marks(a, &count);
    if (count)
        qsort(found, count, sizeof *found, by_place);
    return true;
}

void answer_free(Answer *a) {
    buffer_free(&a->text);
    buffer_free(&a->marks);
}

/* The mark that parts thought and answer; NULL: none. */
static const Mark *parting_mark(const Answer *a, bool first) {
    size_t count;
    const Mark *marks = all_marks(a, &count), *found = NULL;
    for (size_t i = 0; i < count; i++)
        if (marks[i].ends && !(first && found))
            found = &marks[i];
    return found;
}

/* Whether nothing but white space stands before the first mark, which begins a thought. */
static bool begins_with_thought(const Answer *a) {
    size_t count;
    const Mark *marks = all_marks(a, &count);
    return count && !marks[0].ends && !strip((Slice){a->text.data, marks[0].at}).bytes;
}

Slice answer_kept(const Answer *a, uint32_t flags) {
    Slice text = contents(&a->text);
    const Mark *mark = flags & (SPLIT_FIRST | SPLIT_LAST) ? parting_mark(a, flags & SPLIT_FIRST) : NULL;
    if (!mark && flags & DROP_OPEN && begins_with_thought(a))
        return (Slice){text.text, 0};
    if (!mark)
        return text;
    text = after(text, mark->at + mark->bytes);
    while (flags & DROP_LINES && text.bytes && *text.text == '\n')
        text = after(text, 1);
    return text;
}

/* ---- an answer without its thought ---------------------------------------------------------- */

static void keep(Hider *h, Buffer *to, Slice text) { h->lost |= to && !append(to, text); }

static void begin_answer(Hider *h) {
    keep(h, &h->shown, contents(&h->held));
    h->held.bytes = 0;
    h->place = IN_ANSWER;
}

/* Whether the text is a mark, or *part: the beginning of one. */
static bool is_mark(Slice text, Slice mark, bool *part) {
    *part = starts_with(mark, text);
    return *part && text.bytes == mark.bytes;
}

/* A byte before the thought. If the marks are tokens, no text is one. */
static void byte_before(Hider *h, Slice byte) {
    bool part;
    keep(h, &h->held, byte);
    Slice text = contents(&h->held), word = after(text, leading_space(text));
    bool mark = is_mark(word, h->marks->begin_id < 0 ? h->marks->begin : (Slice){"", 0}, &part);
    if (word.bytes && mark) {
        h->held.bytes = 0;
        h->place = IN_THOUGHT;
    } else if (word.bytes && !part) {
        begin_answer(h);
    }
}

static void byte_in_thought(Hider *h, Slice byte) {
    bool part;
    if (h->marks->end_id >= 0) {
        keep(h, h->thought, byte);
        return;
    }
    keep(h, &h->held, byte);
    Slice held = contents(&h->held);
    bool mark = is_mark(held, h->marks->end, &part);
    for (; !part; is_mark(held, h->marks->end, &part)) {
        keep(h, h->thought, (Slice){held.text, 1});
        held = after(held, 1);
    }
    if (mark)
        h->place = BEHIND_THOUGHT;
    size_t left = mark ? 0 : held.bytes;
    if (left)
        memmove(h->held.data, held.text, left);
    h->held.bytes = left;
}

static void add_byte(Hider *h, Slice byte) {
    switch (h->place) {
    case BEFORE_THOUGHT: byte_before(h, byte); return;
    case IN_THOUGHT: byte_in_thought(h, byte); return;
    case BEHIND_THOUGHT:
        if (*byte.text == '\n') /* between thought and answer */
            return;
        h->place = IN_ANSWER;
        break;
    case IN_ANSWER: break;
    }
    keep(h, &h->shown, byte);
}

Slice hider_add(Hider *h, int32_t id, Slice text) {
    if (!h->marks)
        return text;
    h->shown.bytes = 0;
    if (id >= 0 && id == h->marks->begin_id && h->place == BEFORE_THOUGHT) {
        h->held.bytes = 0;
        h->place = IN_THOUGHT;
    } else if (id >= 0 && id == h->marks->end_id && h->place == IN_THOUGHT) {
        h->place = BEHIND_THOUGHT;
    } else {
        for (size_t i = 0; i < text.bytes; i++)
            add_byte(h, (Slice){text.text + i, 1});
    }
    return contents(&h->shown);
}

Slice hider_end(Hider *h) {
    if (!h->marks)
        return (Slice){"", 0};
    h->shown.bytes = 0;
    if (h->place == BEFORE_THOUGHT)
        begin_answer(h);
    keep(h, h->thought, contents(&h->held));
    h->held.bytes = 0;
    return contents(&h->shown);
}

void hider_close(Hider *h) {
    buffer_free(&h->held);
    buffer_free(&h->shown);
}
