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
#include <unistd.h>

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

/* Ids of a turn while it is made. */
typedef struct {
    Buffer ids;   /* int32_t */
    Buffer plain; /* the text behind the last special token, not tokenized yet */
} Ids;

typedef struct {
    Run run;
    Template template;
    Turns turns;
    Slice user;         /* of the turn that goes on */
    size_t turn;        /* its first token in the sequence */
    size_t first_token; /* of its answer */
    Ids made;
    Answer answer; /* as the user has seen it */
} Chat;

const char *chat_damage(const Model *m) {
    Template t;
    return m->chat_bytes ? template_open(m, &t, FORM_DEFAULT) : NULL;
}

bool chat_has_thoughts(const Model *m) {
    Template t;
    return m->chat_bytes && !template_open(m, &t, FORM_DEFAULT) && t.piece[THINK_END].text.bytes;
}

/* ---- texts -> ids; false: reported ---------------------------------------------------------- */

static size_t made_count(const Chat *c) { return c->made.ids.bytes / sizeof(int32_t); }

static bool enough_memory(bool enough) {
    if (!enough)
        log_error(FAILED, "out of memory");
    return enough;
}

static bool add_text(Chat *c, Slice text) { return enough_memory(append(&c->made.plain, text)); }

/* What is not tokenized yet becomes ids. */
static bool flush_plain(Chat *c) {
    Ids *made = &c->made;
    if (!made->plain.bytes)
        return true;
    size_t n;
    bool begins = !c->turn && !made->ids.bytes;
    int32_t *ids = tokenize(c->run.model, c->run.options, made->plain.data, made->plain.bytes, begins, &n);
    bool done = ids && enough_memory(buffer_add(&made->ids, ids, n * sizeof *ids));
    made->plain.bytes = 0;
    free(ids);
    return done;
}

static bool add_content(Chat *c, Slice text, uint32_t strip_flag) {
    return add_text(c, c->template.flags & strip_flag ? strip(text) : text);
}

/* A text and the tokens in it. Their places are counted from `base`; those outside the text do not matter. */
static bool add_marked(Chat *c, Slice text, const char *base, const Buffer *tokens) {
    const Mark *marks = tokens->data;
    for (size_t i = 0; i < tokens->bytes / sizeof *marks; i++) {
        const char *at = base + marks[i].at;
        if (marks[i].id < 0 || at < text.text || at + marks[i].bytes > text.text + text.bytes)
            continue;
        size_t before = (size_t)(at - text.text);
        if (!add_text(c, (Slice){text.text, before}) || !flush_plain(c) ||
            !enough_memory(buffer_add(&c->made.ids, &marks[i].id, sizeof marks[i].id)))
            return false;
        text = after(text, before + marks[i].bytes);
    }
    return add_text(c, text);
}

static bool add_piece(Chat *c, int which) {
    const Piece *piece = &c->template.piece[which];
    return add_marked(c, piece->text, piece->text.text, &piece->tokens);
}

static bool add_number(Chat *c) {
    char digits[24];
    unsigned long long number = (unsigned long long)c->template.number + c->run.saved.turns - 1;
    int n = c->template.flags & COUNT ? snprintf(digits, sizeof digits, "%llu", number) : 0;
    return add_text(c, (Slice){digits, (size_t)n});
}

static bool add_beginning(Chat *c) {
    const Options *o = c->run.options;
    if (c->turn)
        return add_piece(c, NEXT) && add_number(c) && add_piece(c, NUMBER_AFTER);
    if (!o->system)
        return add_piece(c, OPEN);
    return add_piece(c, SYSTEM_BEFORE) && add_content(c, (Slice){o->system, o->system_bytes}, STRIP_SYSTEM) &&
           add_piece(c, SYSTEM_AFTER);
}

/* c->made = the turn, up to PROMPT, ANSWER or BLANK. */
static bool make_turn(Chat *c, int piece) {
    c->made.ids.bytes = c->made.plain.bytes = 0;
    return add_beginning(c) && add_content(c, c->user, STRIP_USER) && add_piece(c, piece);
}

/* ---- answers -------------------------------------------------------------------------------- */

/* What the user sees in front of the answer: the beginning of a thought, if the template begins one for the
 * model to go on with. */
static Slice shown_of_prompt(const Chat *c) {
    Slice prompt = c->template.piece[PROMPT].text;
    if (!opens_thought(&c->template.marks, prompt))
        return (Slice){"", 0};
    return from_last_begin(&c->template.marks, prompt);
}

static bool collect_answer(Chat *c) {
    const Sequence *q = c->run.sequence;
    const ThoughtMarks *marks = &c->template.marks;
    Slice shown = shown_of_prompt(c), mark = {shown.text, min(shown.bytes, marks->begin.bytes)};
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
    size_t count = made_count(c), same = 0, end = c->turn + count;
    while (same < count && c->turn + same < q->rows && q->ids[c->turn + same] == made[same])
        same++;
    if (count)
        memcpy(q->ids + c->turn, made, c->made.ids.bytes);
    q->count = end;
    run_rewind(&c->run, end && c->turn + same == end ? end - 1 : c->turn + same);
}

/* The turn as the history has it: as it is if its text is the same, or made anew. */
static int keep_turn(Chat *c, End *end) {
    Slice history = history_of(c), written = after(contents(&c->answer.text), shown_of_prompt(c).bytes);
    int piece = history.bytes ? ANSWER : BLANK;
    if (!c->run.text.cut &&
        same_text(c->template.piece[PROMPT].text, written, c->template.piece[piece].text, history))
        return DONE;
    if (!make_turn(c, piece) || !add_marked(c, history, c->answer.text.data, &c->answer.marks) ||
        !flush_plain(c))
        return FAILED;
    if (c->turn + made_count(c) > c->run.state->context) {
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

/* Reads the user's turn and writes the answer. */
static int answer_turn(Chat *c, End *end) {
    Run *r = &c->run;
    Sequence *q = r->sequence;
    c->turn = q->count;
    if (!sequence_mark(q))
        return log_error(FAILED, "out of memory");
    if (!make_turn(c, PROMPT) || !flush_plain(c))
        return FAILED;
    if (!c->made.ids.bytes)
        return log_error(FAILED,
                         "%s: a turn without a token: the text is empty, and the chat template adds nothing",
                         r->model->path);
    if (c->turn + made_count(c) > r->state->context)
        return no_room(c, "the turn", c->turn + made_count(c));
    memcpy(q->ids + q->count, c->made.ids.data, c->made.ids.bytes);
    q->count += made_count(c);
    c->first_token = q->count;
    Slice shown = shown_of_prompt(c);
    size_t mark = min(shown.bytes, c->template.marks.begin.bytes);
    if (shown.bytes) {
        text_echo(&r->text, shown.text, mark);
        text_echo(&r->text, shown.text + mark, shown.bytes - mark);
    }
    r->text.cut = 0;
    *end = run_generate(r);
    text_end(&r->text);
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
    size_t memory = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t row = cache_token_bytes(cfg, c->run.options->cache, cfg->num_hidden_layers);
    size_t rows = memory / 2 / row;
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
        return log_error(FAILED,
                         "%s: holds a text, no conversation: give --session another name to begin one",
                         session->name);
    if (saved->count && o->system)
        return log_error(FAILED,
                         "%s: the conversation has begun, with its own system text: leave %s out, or give "
                         "--session another name",
                         session->name, o->given[OPT_SYSTEM]);
    return DONE;
}

static int open_template(Chat *c) {
    const Model *m = c->run.model;
    if (!m->tokenizer || !m->chat_bytes)
        return log_error(
            FAILED,
            "%s: the checkpoint has no %s, so that %s is not possible: export.py says why when it makes one",
            m->path, m->tokenizer ? "chat template" : "tokenizer", c->run.options->given[OPT_CHAT]);
    const char *wrong = template_open(m, &c->template, FORM_DEFAULT);
    if (wrong)
        return log_error(FAILED, "%s: the chat template is damaged: %s; export the checkpoint again", m->path,
                         wrong);
    return enough_memory(template_tokens(&c->template, m)) ? DONE : FAILED;
}

/* Everything before the first turn. */
static int open_chat(Chat *c, Session *session, Options *o) {
    Run *r = &c->run;
    int status = open_template(c);
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
    r->text.thought_begin = c->template.marks.begin;
    r->text.thought_end = c->template.marks.end;
    r->text.newline = true;
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
    buffer_free(&c.made.ids);
    buffer_free(&c.made.plain);
    run_close(&c.run);
    session_close(&session);
    return status;
}
