/* cli/conversation.c: texts and pieces of the chat template -> ids (conversation.h). Special and added tokens
 * are matched in the pieces, never in the texts; text between two of them is tokenized as one string. */
#include "cli/conversation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/prompt.h"
#include "engine/util.h"

void conversation_clear(Conversation *c, bool begins) {
    c->ids.bytes = c->plain.bytes = 0;
    c->begins = begins;
}

void conversation_free(Conversation *c) {
    buffer_free(&c->ids);
    buffer_free(&c->plain);
}

size_t conversation_count(const Conversation *c) { return c->ids.bytes / sizeof(int32_t); }

static bool fail(Conversation *c, const char *why) {
    snprintf(c->err, sizeof c->err, "%s", why);
    return false;
}

static bool add_text(Conversation *c, Slice text) {
    return append(&c->plain, text) || fail(c, "out of memory");
}

static bool add_ids(Conversation *c, const int32_t *ids, size_t n) {
    return buffer_add(&c->ids, ids, n * sizeof *ids) || fail(c, "out of memory");
}

bool conversation_flush(Conversation *c) {
    if (!c->plain.bytes)
        return true;
    size_t n;
    bool begins = c->begins && !c->ids.bytes;
    int32_t *ids = text_ids(c->model, false, contents(&c->plain), begins, &n, c->err, sizeof c->err);
    bool done = ids && add_ids(c, ids, n);
    c->plain.bytes = 0;
    free(ids);
    return done;
}

bool conversation_content(Conversation *c, Slice text, uint32_t strip_flag) {
    return add_text(c, c->template->flags & strip_flag ? strip(text) : text);
}

bool conversation_marked(Conversation *c, Slice text, const char *base, const Buffer *tokens) {
    const Mark *marks = tokens->data;
    for (size_t i = 0; i < tokens->bytes / sizeof *marks; i++) {
        const char *at = base + marks[i].at;
        if (marks[i].id < 0 || at < text.text || at + marks[i].bytes > text.text + text.bytes)
            continue;
        size_t before = (size_t)(at - text.text);
        if (!add_text(c, (Slice){text.text, before}) || !conversation_flush(c) ||
            !add_ids(c, &marks[i].id, 1))
            return false;
        text = after(text, before + marks[i].bytes);
    }
    return add_text(c, text);
}

bool conversation_piece(Conversation *c, int which) {
    const Piece *piece = &c->template->piece[which];
    return conversation_marked(c, piece->text, piece->text.text, &piece->tokens);
}

bool conversation_opening(Conversation *c, const Slice *system) {
    if (!system)
        return conversation_piece(c, OPEN);
    if (c->template->flags & NO_SYSTEM)
        return fail(c, "the model's chat template takes no system text");
    return conversation_piece(c, SYSTEM_BEFORE) && conversation_content(c, *system, STRIP_SYSTEM) &&
           conversation_piece(c, SYSTEM_AFTER);
}

bool conversation_next(Conversation *c, uint32_t turns) {
    char digits[24];
    unsigned long long number = (unsigned long long)c->template->number + turns - 1;
    int n = c->template->flags & COUNT ? snprintf(digits, sizeof digits, "%llu", number) : 0;
    return conversation_piece(c, NEXT) && add_text(c, (Slice){digits, (size_t)n}) &&
           conversation_piece(c, NUMBER_AFTER);
}

/* ---- messages ------------------------------------------------------------------------------- */

/* An answer that the user gives: what the template keeps of it. Marks of thoughts in it are text. */
static bool add_answer(Conversation *c, Slice content) {
    const ThoughtMarks *tokens = &c->template->marks;
    ThoughtMarks marks = {.begin = tokens->begin, .end = tokens->end, .begin_id = -1, .end_id = -1};
    Answer answer = {0};
    bool done = answer_add(&answer, &marks, -1, content) && answer_complete(&answer, &marks);
    Slice kept = done ? answer_kept(&answer, c->template->flags) : (Slice){"", 0};
    if (c->template->flags & STRIP_ANSWER)
        kept = strip(kept);
    if (!done)
        fail(c, "out of memory");
    done = done && conversation_piece(c, kept.bytes ? ANSWER : BLANK) && add_text(c, kept);
    answer_free(&answer);
    return done;
}

bool conversation_messages(Conversation *c, const Message *messages, size_t n) {
    bool system = n && messages[0].role == ROLE_SYSTEM;
    if (!conversation_opening(c, system ? &messages[0].content : NULL))
        return false;
    for (size_t i = system; i < n; i++) {
        bool answer = (i - system) % 2;
        if (messages[i].role != (answer ? ROLE_ASSISTANT : ROLE_USER))
            return fail(c, messages[i].role == ROLE_SYSTEM
                               ? "a system message can only be the first one"
                               : "messages of user and assistant must take turns, a user first");
        if (!answer && i > system && !conversation_next(c, (uint32_t)((i - system) / 2)))
            return false;
        if (!(answer ? add_answer(c, messages[i].content)
                     : conversation_content(c, messages[i].content, STRIP_USER)))
            return false;
    }
    if ((n - system) % 2 == 0)
        return fail(c, "the last message must be a user's");
    return conversation_piece(c, PROMPT) && conversation_flush(c);
}

bool conversation_prefix(Conversation *c, const Slice *system, const int32_t *ids, size_t count,
                         size_t *prefix) {
    *prefix = 0;
    conversation_clear(c, true);
    if (!conversation_opening(c, system) || !conversation_flush(c))
        return false;
    const int32_t *opening = c->ids.data;
    size_t most = min(conversation_count(c), count);
    while (*prefix < most && opening[*prefix] == ids[*prefix])
        ++*prefix;
    return true;
}
