/* cli/chat.c: --chat. A conversation: turns of the user (turns.c) and the model's answers, in the form that
 * the checkpoint's template gives them (template.h). The cache holds the whole conversation; a turn
 * computes what is new. Knows nothing of Jinja: exporter/chat.py has taken the template apart and proved
 * that the pieces together give it again. No tools, no pictures, no roles but three.
 *
 * An answer in the history may differ from what the model wrote: ANSWER is another text than PROMPT,
 * thoughts are dropped (think.c), white space is stripped. Then the ids of the turn are made again, and the
 * cache is valid as far as they agree. Otherwise the answer stays as the model wrote it.
 *
 * A turn that was interrupted before its first token is forgotten. A session (session.c) holds whole turns
 * and is written after each. A turn that gets no answer, because the context has no room for it, is an
 * error: a script that sends turns through a pipe must be able to rely on the status. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/conversation.h"
#include "cli/generate.h"
#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"
#include "cli/session.h"
#include "cli/system.h"
#include "cli/template.h"
#include "cli/turns.h"
#include "engine/cache.h"
#include "engine/sequence.h"
#include "engine/util.h"

enum { DEFAULT_CONTEXT = 8192 }; /* rows, at a terminal */

typedef struct {
    Run run;
    Template template;
    Turns turns;
    Slice user;                 /* of the turn that goes on */
    size_t turn;                /* its first token in the sequence */
    size_t first_token;         /* of its answer */
    Conversation made, opening; /* the turn; what stands before the first one, alone */
    Answer answer;              /* as the user has seen it */
} Chat;

/* ---- texts -> ids; false: reported ---------------------------------------------------------- */

static bool enough_memory(bool enough) {
    if (!enough)
        log_error(FAILED, "out of memory");
    return enough;
}

static bool reported(const Chat *c, const Conversation *made, bool done) {
    if (!done)
        log_error(FAILED, "%s: %s", c->run.model->path, made->err);
    return done;
}

/* c->made = the turn, up to PROMPT, ANSWER or BLANK. */
static bool make_turn(Chat *c, int piece) {
    const Options *o = c->run.options;
    Conversation *made = &c->made;
    Slice system = {o->system, o->system_bytes};
    conversation_clear(made, !c->turn);
    return reported(c, made,
                    (c->turn ? conversation_next(made, c->run.saved.turns)
                             : conversation_opening(made, o->system ? &system : NULL)) &&
                        conversation_content(made, c->user, STRIP_USER) && conversation_piece(made, piece));
}

/* The end of a turn: all of c->made is ids. */
static bool finish_turn(Chat *c) { return reported(c, &c->made, conversation_flush(&c->made)); }

/* The opening of the first turn is a stretch of its own, as in a batch, where many conversations share it. */
static bool find_prefix(Chat *c) {
    const Options *o = c->run.options;
    Slice system = {o->system, o->system_bytes};
    return reported(c, &c->opening,
                    conversation_prefix(&c->opening, o->system ? &system : NULL, c->made.ids.data,
                                        conversation_count(&c->made), &c->run.prefix));
}

/* ---- answers -------------------------------------------------------------------------------- */

static bool collect_answer(Chat *c) {
    const Sequence *q = c->run.sequence;
    const ThoughtMarks *marks = &c->template.marks;
    Slice shown = template_shown(&c->template), mark = {shown.text, min(shown.bytes, marks->begin.bytes)};
    answer_clear(&c->answer);
    if (!answer_add(&c->answer, marks, mark.bytes ? marks->begin_id : -1, mark) ||
        !answer_add(&c->answer, marks, -1, after(shown, mark.bytes)))
        return false;
    for (size_t i = c->first_token; i < q->count; i++) {
        size_t n;
        const char *bytes = token_text(&c->run, i, &n);
        if (!answer_add(&c->answer, marks, q->ids[i], (Slice){bytes, n}))
            return false;
    }
    answer_cut(&c->answer, c->run.text.cut);
    return answer_complete(&c->answer, marks);
}

/* What of the answer goes into the history: a part of c->answer. */
static Slice history_of(const Chat *c) {
    Slice prompt = c->template.piece[PROMPT].text, begin = c->template.piece[ANSWER].text;
    Slice text = contents(&c->answer.text), kept = answer_kept(&c->answer, c->template.flags);
    if (kept.bytes == text.bytes && starts_with(begin, prompt)) {
        /* "Assistant:", and the model wrote the space of "Assistant: " */
        Slice more = after(begin, prompt.bytes);
        kept = starts_with(kept, more) ? after(kept, more.bytes) : kept;
    }
    return c->template.flags & STRIP_ANSWER ? strip(kept) : kept;
}

/* The sequence holds the tokens of c->made from the turn on; the cache is right as far as they were there.
 * At least one of them is computed again: the logits that the state holds belong to another row. */
static void replace_turn(Chat *c) {
    Sequence *q = c->run.sequence;
    const int32_t *made = c->made.ids.data;
    size_t count = conversation_count(&c->made), same = 0, end = c->turn + count;
    while (same < count && c->turn + same < q->rows && q->ids[c->turn + same] == made[same])
        same++;
    if (count)
        memcpy(q->ids + c->turn, made, c->made.ids.bytes);
    q->count = end;
    run_rewind(&c->run, end && c->turn + same == end ? end - 1 : c->turn + same);
}

/* The turn as the history has it: as it is if its text is the same, or made anew. */
static int keep_turn(Chat *c, End *end) {
    Slice history = history_of(c),
          written = after(contents(&c->answer.text), template_shown(&c->template).bytes);
    int piece = history.bytes ? ANSWER : BLANK;
    if (!c->run.text.cut &&
        same_text(c->template.piece[PROMPT].text, written, c->template.piece[piece].text, history))
        return DONE;
    if (!make_turn(c, piece) ||
        !reported(c, &c->made,
                  conversation_marked(&c->made, history, c->answer.text.data, &c->answer.marks)) ||
        !finish_turn(c))
        return FAILED;
    if (c->turn + conversation_count(&c->made) > c->run.state->context) {
        *end = END_CONTEXT;
        return DONE;
    }
    replace_turn(c);
    c->run.text.cut = 0;
    return DONE;
}

/* The turn becomes a part of the history. */
static int commit_turn(Chat *c, End *end) {
    Sequence *q = c->run.sequence;
    if (q->count == c->first_token && *end == END_INTERRUPTED) { /* it is forgotten */
        c->made.ids.bytes = 0;
        replace_turn(c);
        return DONE;
    }
    int status = enough_memory(collect_answer(c)) ? keep_turn(c, end) : FAILED;
    c->run.saved.turns++;
    return status;
}

static int no_room(const Chat *c, const char *what, size_t tokens) {
    const State *s = c->run.state;
    return log_error(
        FAILED,
        "%s has no answer: the conversation would have %zu tokens, more than the context of %zu; -c "
        "makes it longer, up to %u for this model",
        what, tokens, s->context, c->run.model->config.max_position_embeddings);
}

/* The thought that the template begins for the model, unless thoughts are hidden. */
static void show_beginning(Chat *c) {
    Run *r = &c->run;
    Slice shown = template_shown(&c->template);
    size_t mark = min(shown.bytes, c->template.marks.begin.bytes);
    r->hider.place = shown.bytes ? IN_THOUGHT : BEFORE_THOUGHT;
    if (r->hider.marks || !shown.bytes)
        return;
    text_echo(&r->text, shown.text, mark);
    text_echo(&r->text, shown.text + mark, shown.bytes - mark);
}

/* Reads the user's turn and writes the answer. */
static int answer_turn(Chat *c, End *end) {
    Run *r = &c->run;
    Sequence *q = r->sequence;
    c->turn = q->count;
    sequence_mark(q);
    if (!make_turn(c, PROMPT) || !finish_turn(c) || (!c->turn && !find_prefix(c)))
        return FAILED;
    if (!c->made.ids.bytes)
        return log_error(FAILED,
                         "%s: a turn without a token: the text is empty, and the chat template adds nothing",
                         r->model->path);
    if (c->turn + conversation_count(&c->made) > r->state->context)
        return no_room(c, "the turn", c->turn + conversation_count(&c->made));
    memcpy(q->ids + q->count, c->made.ids.data, c->made.ids.bytes);
    q->count += conversation_count(&c->made);
    c->first_token = q->count;
    show_beginning(c);
    r->text.cut = 0;
    *end = run_generate(r);
    run_end_text(r);
    if (!enough_memory(!r->text.lost))
        return FAILED;
    return *end == END_NON_FINITE ? DONE : commit_turn(c, end);
}

/* ---- the conversation ----------------------------------------------------------------------- */

/* c->user = the next turn. False: as turns_next. */
static bool next_turn(Chat *c, int *status) {
    const Options *o = c->run.options;
    if (!o->given[OPT_PROMPT])
        return turns_next(&c->turns, &c->user, status);
    c->user = (Slice){o->text, o->text_bytes};
    return true;
}

/* Reports a turn for which the context has no room. */
static int unread_turn(Chat *c) {
    int status = DONE;
    if (c->turns.terminal || c->run.options->given[OPT_PROMPT] || !next_turn(c, &status))
        return status;
    return log_error(
        FAILED,
        "the context of %zu tokens is full: turn %u and all after it have no answer; -c makes it "
        "longer, up to %u for this model",
        c->run.state->context, c->run.saved.turns + 1, c->run.model->config.max_position_embeddings);
}

/* One turn: its text, the answer, the session. False: the last one, or none. */
static bool take_turn(Chat *c, Session *session, End *end, int *status) {
    watch_interrupt();
    if (interrupted() || !next_turn(c, status)) {
        if (interrupted())
            *end = END_INTERRUPTED;
        else if (*end == END_INTERRUPTED) /* an answer, not the conversation */
            *end = END_TOKEN;
        return false;
    }
    *status = answer_turn(c, end);
    if (*status || *end == END_NON_FINITE)
        return false;
    if (c->run.sequence->count)
        *status = run_save(&c->run, session);
    bool goes_on = *end != END_CONTEXT && (*end != END_INTERRUPTED || c->turns.terminal);
    return !*status && goes_on && !c->run.options->given[OPT_PROMPT];
}

static int talk(Chat *c, Session *session) {
    End end = END_TOKEN;
    int status = DONE;
    turns_greet(&c->turns);
    while (take_turn(c, session, &end, &status)) {
    }
    if (!status && end == END_CONTEXT)
        status = unread_turn(c);
    if (status)
        return status;
    if (!c->run.read)
        return end == END_INTERRUPTED ? interrupt_status() : DONE;
    return run_finish(&c->run, NULL, end);
}

/* Rows of the cache without -c. At a terminal the user can begin a new conversation when the context is
 * full. Elsewhere nobody can, so the context is what half of the machine's memory can hold; the memory is
 * taken only as the text grows. */
static size_t default_rows(const Chat *c) {
    const Config *cfg = &c->run.model->config;
    if (c->turns.terminal)
        return DEFAULT_CONTEXT;
    size_t row = cache_token_bytes(cfg, c->run.options->cache, cfg->num_hidden_layers);
    size_t rows = half_of_memory() / max(row, 1); /* no layer may have latents */
    return max(rows, DEFAULT_CONTEXT);
}

/* Whether the options fit the template and the session. */
static int check_conversation(const Chat *c, const Session *session) {
    const Options *o = c->run.options;
    const SavedText *saved = &c->run.saved;
    if (o->system && c->template.flags & NO_SYSTEM)
        return log_error(FAILED, "%s: the model's chat template takes no system text: leave %s out",
                         c->run.model->path, o->given[OPT_SYSTEM]);
    if (saved->count && !saved->turns)
        return log_error(FAILED, "%s: holds a text, no conversation: give %s another file, or leave %s out",
                         session->name, o->given[session->keep ? OPT_FROM : OPT_SESSION], o->given[OPT_CHAT]);
    if (saved->count && o->system)
        return log_error(FAILED,
                         "%s: the conversation has begun, with its own system text: leave %s out, or give "
                         "%s another file",
                         session->name, o->given[OPT_SYSTEM],
                         o->given[session->keep ? OPT_FROM : OPT_SESSION]);
    return DONE;
}

/* Everything before the first turn. */
static int open_chat(Chat *c, Session *session, Options *o) {
    Run *r = &c->run;
    int status = template_load(&c->template, r->model, o);
    c->made = c->opening = (Conversation){.model = r->model, .template = &c->template};
    if (!status && !o->given[OPT_PROMPT])
        status = turns_open(&c->turns, o->file);
    if (!status)
        status = session_open(session, &r->saved, r->model, o);
    if (!status)
        status = check_conversation(c, session);
    if (status)
        return status;
    size_t context = context_rows(r->model, o, default_rows(c));
    if (!context)
        return WRONG_USAGE;
    if (r->saved.count > context)
        return log_error(
            FAILED, "%s: the conversation has %zu tokens, more than the context of %zu; -c makes it longer",
            session->name, r->saved.count, context);
    r->state = open_state(r->model, o, context, 1);
    if (!r->state)
        return FAILED;
    status = run_open(r, session);
    r->turn_end = template_turn_end(&c->template);
    r->marks = true; /* what follows a prompt may be written anew */
    r->text.thought_begin = c->template.marks.begin;
    r->text.thought_end = c->template.marks.end;
    r->text.newline = true;
    if (o->think == THINK_HIDE)
        r->hider.marks = &c->template.marks;
    return status;
}

int mode_chat(const Model *m, const Options *given) {
    Options o = *given;
    Chat c = {.run = {.model = m, .options = &o}};
    Session session = {.lock = -1, .file = -1};
    int status = open_chat(&c, &session, &o);
    if (!status)
        status = talk(&c, &session);
    turns_close(&c.turns);
    template_close(&c.template);
    answer_free(&c.answer);
    hider_close(&c.run.hider);
    conversation_free(&c.made);
    conversation_free(&c.opening);
    run_close(&c.run);
    session_close(&session);
    return status;
}
