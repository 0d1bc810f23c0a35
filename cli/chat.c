/* chat.c: --chat. A conversation: turns of the user, each read from a line, and the model's answers, in
 * the form that the checkpoint's template gives them. The cache holds all that was said; a turn computes
 * what is new. Knows nothing of Jinja: exporter/chat.py has taken the template apart and proved that the
 * pieces below put it together again. No tools, no pictures, no roles but three.
 *
 * The section. Little-endian u32: tag, flags, the bytes of each piece; then the pieces' texts, one after
 * the other, which fill it exactly. Special and added tokens are matched in the pieces and never in what
 * anybody says; text between two of them is tokenised as one string.
 *
 *   conversation   OPEN, or SYSTEM_BEFORE system SYSTEM_AFTER, then turns with NEXT between them
 *   turn           user ANSWER answer; the last one: user PROMPT, and the model goes on
 *
 * An answer in the history may differ from what the model wrote: ANSWER is another text than PROMPT,
 * thoughts are dropped, white space is stripped (FLAGS). Then its turn is made anew, and the cache is
 * valid as far as the ids agree; else the answer stays as it is there.
 *
 * A turn that was interrupted before its first token is forgotten. A session (session.c) holds whole
 * turns. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"
#include "cli/session.h"
#include "cli/system.h"
#include "cli/generate.h"

/* "CHT1"; bytes; rows; bytes of input */
enum { TAG = 0x31544843, HEADER = 8, DEFAULT_CONTEXT = 8192, MAX_TURN = 1 << 26 };
enum { OPEN, SYSTEM_BEFORE, SYSTEM_AFTER, PROMPT, ANSWER, NEXT, PIECES };
enum {
    NO_SYSTEM = 1,    /* the template takes no system text */
    STRIP_SYSTEM = 2, /* white space at both ends of what is said goes */
    STRIP_USER = 4,
    STRIP_ANSWER = 8,
    DROP_THOUGHTS = 16, /* an answer in the history begins behind its last THOUGHT_END */
    DROP_LINES = 32,    /* and behind the line feeds that follow */
    FLAGS = 63
};

typedef struct {
    const char *text;
    size_t bytes;
} Slice;

typedef struct {
    uint32_t flags;
    Slice piece[PIECES];
} Template;

/* Bytes that grow. */
typedef struct {
    char *text;
    size_t bytes, space;
} Buffer;

typedef struct {
    int file;
    bool terminal, end; /* end: nothing more is to be read */
    Buffer read;        /* from it; lines up to `used` have been turns */
    size_t used;
    Buffer turn; /* lines that go on, put together */
} Input;

/* Ids of a turn while it is made. */
typedef struct {
    int32_t *ids;
    size_t count, space;
    Buffer plain; /* the text behind the last special token, not tokenised yet */
} Ids;

typedef struct {
    Run run;
    Template template;
    Input input;
    Slice user;    /* of the turn that goes on */
    size_t turn;   /* its first token in the sequence */
    size_t answer; /* the first of its answer */
    Ids made;
    Buffer written; /* the answer */
} Chat;

/* ---- the section: input from outside -------------------------------------------------------- */

static const char *open_template(const Model *m, Template *t) {
    uint32_t head[HEADER];
    if (m->chat_bytes < sizeof head)
        return "its size";
    memcpy(head, m->chat, sizeof head);
    if (head[0] != TAG)
        return "its first four bytes (another version?)";
    if (head[1] & ~(uint32_t)FLAGS)
        return "its flags";
    t->flags = head[1];
    size_t left = m->chat_bytes - sizeof head;
    for (int i = 0; i < PIECES; i++) {
        size_t bytes = head[2 + i];
        if (bytes > left)
            return "its size";
        t->piece[i] = (Slice){(const char *)m->chat + m->chat_bytes - left, bytes};
        left -= bytes;
    }
    return left ? "its size" : NULL;
}

const char *chat_damage(const Model *m) {
    Template t;
    return m->chat_bytes ? open_template(m, &t) : NULL;
}

/* ---- texts ---------------------------------------------------------------------------------- */

/* False: reported. */
static bool append(Buffer *b, Slice s) {
    if (!b->text || b->space - b->bytes < s.bytes) {
        size_t space = 2 * (b->bytes + s.bytes) + 256;
        char *text = realloc(b->text, space);
        if (!text) {
            report("out of memory");
            return false;
        }
        b->text = text, b->space = space;
    }
    if (s.bytes)
        memcpy(b->text + b->bytes, s.text, s.bytes);
    b->bytes += s.bytes;
    return true;
}

static bool starts_with(Slice s, Slice beginning) {
    return s.bytes >= beginning.bytes && !memcmp(s.text, beginning.text, beginning.bytes);
}

static Slice from(Slice s, size_t n) { return (Slice){s.text + n, s.bytes - n}; }

/* s from the last place on where `what` stands; nothing if it stands nowhere. */
static Slice from_last(Slice s, const char *what) {
    Slice wanted = {what, strlen(what)};
    for (size_t i = s.bytes; i-- > 0;)
        if (starts_with(from(s, i), wanted))
            return from(s, i);
    return (Slice){s.text, 0};
}

/* The bytes of a white space character that s begins with (or ends with, `last`), as Python's str.strip
 * and so the templates have it. */
static size_t space_at(Slice s, bool last) {
    static const char *const spaces[] = {
        "\t",       "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",   " ",
        "\xc2\x85", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
        "\u2007",   "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000",
    };
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        size_t n = strlen(spaces[i]);
        if (n <= s.bytes && !memcmp(last ? s.text + s.bytes - n : s.text, spaces[i], n))
            return n;
    }
    return 0;
}

static Slice strip(Slice s) {
    for (size_t n; (n = space_at(s, false));)
        s = from(s, n);
    for (size_t n; (n = space_at(s, true));)
        s.bytes -= n;
    return s;
}

/* ---- texts -> ids; false: reported ---------------------------------------------------------- */

static bool push(Ids *made, const int32_t *ids, size_t n) {
    if (made->space - made->count < n) {
        size_t space = 2 * (made->count + n) + 64;
        int32_t *more = realloc(made->ids, space * sizeof *more);
        if (!more) {
            report("out of memory");
            return false;
        }
        made->ids = more, made->space = space;
    }
    if (n)
        memcpy(made->ids + made->count, ids, n * sizeof *ids);
    made->count += n;
    return true;
}

/* What is not tokenised yet becomes ids. */
static bool tokenise(Chat *c) {
    Ids *made = &c->made;
    size_t n;
    bool begins = !c->turn && !made->count;
    int32_t *ids = made->plain.bytes ? tokenize(c->run.model, c->run.options, made->plain.text,
                                                made->plain.bytes, begins, &n)
                                     : NULL;
    bool done = !made->plain.bytes || (ids && push(made, ids, n));
    made->plain.bytes = 0;
    free(ids);
    return done;
}

static bool add_said(Chat *c, Slice text, uint32_t strip_it) {
    return append(&c->made.plain, c->template.flags & strip_it ? strip(text) : text);
}

static bool add_piece(Chat *c, int piece) {
    Slice rest = c->template.piece[piece];
    while (rest.bytes) {
        size_t n;
        int32_t id = tokenizer_added(c->run.model->tokenizer, rest.text, rest.bytes, &n);
        if (id >= 0 && (uint32_t)id < c->run.model->config.vocab_size) {
            if (!tokenise(c) || !push(&c->made, &id, 1))
                return false;
            rest = from(rest, n);
        } else {
            if (!append(&c->made.plain, (Slice){rest.text, 1}))
                return false;
            rest = from(rest, 1);
        }
    }
    return true;
}

static bool add_beginning(Chat *c) {
    const Options *o = c->run.options;
    if (c->turn)
        return add_piece(c, NEXT);
    if (!o->system)
        return add_piece(c, OPEN);
    return add_piece(c, SYSTEM_BEFORE) && add_said(c, (Slice){o->system, o->system_bytes}, STRIP_SYSTEM) &&
           add_piece(c, SYSTEM_AFTER);
}

/* c->made = the turn, with PROMPT or with ANSWER and what was answered. */
static bool make_turn(Chat *c, int piece, Slice answer) {
    c->made.count = c->made.plain.bytes = 0;
    return add_beginning(c) && add_said(c, c->user, STRIP_USER) && add_piece(c, piece) &&
           add_said(c, answer, STRIP_ANSWER) && tokenise(c);
}

/* ---- answers -------------------------------------------------------------------------------- */

/* A thought that the template begins is the model's to go on with. */
static bool prompt_opens_thought(const Chat *c) {
    Slice begin = from_last(c->template.piece[PROMPT], THOUGHT_BEGIN);
    return begin.bytes && !from_last(begin, THOUGHT_END).bytes;
}

/* What of the answer goes into the history. `text` is what the model wrote, with the end of PROMPT in
 * front if PROMPT is ANSWER and more. */
static Slice history_of(const Chat *c, Slice text) {
    const Slice *piece = c->template.piece;
    Slice thought_end = from_last(text, THOUGHT_END), thought_begin = {THOUGHT_BEGIN, strlen(THOUGHT_BEGIN)};
    if (c->template.flags & DROP_THOUGHTS && thought_end.bytes) {
        text = from(thought_end, strlen(THOUGHT_END));
        while (c->template.flags & DROP_LINES && text.bytes && *text.text == '\n')
            text = from(text, 1);
    } else if (c->template.flags & DROP_THOUGHTS &&
               (prompt_opens_thought(c) || starts_with(strip(text), thought_begin))) {
        text.bytes = 0; /* it never came to an answer */
        /* "Assistant:", and the model wrote the space of "Assistant: " */
    } else if (starts_with(piece[ANSWER], piece[PROMPT])) {
        Slice more = from(piece[ANSWER], piece[PROMPT].bytes);
        text = starts_with(text, more) ? from(text, more.bytes) : text;
    }
    return c->template.flags & STRIP_ANSWER ? strip(text) : text;
}

/* c->written = what the user has seen of the answer; *prompt_rest bytes of PROMPT that ANSWER lacks come
 * first. */
static bool collect_answer(Chat *c, size_t *prompt_rest) {
    const Sequence *q = &c->run.sequence;
    const Slice *piece = c->template.piece;
    size_t n = starts_with(piece[PROMPT], piece[ANSWER]) ? piece[ANSWER].bytes : piece[PROMPT].bytes;
    Slice rest = from(piece[PROMPT], n);
    c->written.bytes = 0;
    if (!append(&c->written, rest))
        return false;
    *prompt_rest = rest.bytes;
    for (size_t i = c->answer; i < q->count; i++) {
        const char *bytes = token_text(&c->run, i, &n);
        if (!append(&c->written, (Slice){bytes, n}))
            return false;
    }
    c->written.bytes -= c->run.text.cut; /* a stop text */
    return true;
}

/* Whether a followed by b is c followed by d. */
static bool same_text(Slice a, Slice b, Slice c, Slice d) {
    if (a.bytes > c.bytes)
        return same_text(c, d, a, b);
    size_t over = c.bytes - a.bytes;
    return a.bytes + b.bytes == c.bytes + d.bytes && !memcmp(a.text, c.text, a.bytes) &&
           !memcmp(b.text, c.text + a.bytes, over) && !memcmp(b.text + over, d.text, d.bytes);
}

/* The sequence holds the tokens of c->made from the turn on; the cache is right as far as they were there.
 * One at least is left to compute, so that no logits of another place are taken for theirs. */
static void replace_turn(Chat *c) {
    Sequence *q = &c->run.sequence;
    size_t same = 0, end = c->turn + c->made.count;
    while (same < c->made.count && c->turn + same < q->position &&
           q->ids[c->turn + same] == c->made.ids[same])
        same++;
    memcpy(q->ids + c->turn, c->made.ids, c->made.count * sizeof *q->ids);
    q->count = end;
    run_rewind(&c->run, end && c->turn + same == end ? end - 1 : c->turn + same);
}

/* The turn as the history has it. */
static int settle(Chat *c, End *end) {
    size_t prompt_rest;
    if (c->run.sequence.count == c->answer && *end == CAUGHT) {
        c->made.count = 0;
        replace_turn(c);
        return DONE;
    }
    if (!collect_answer(c, &prompt_rest))
        return FAILED;
    const Slice *piece = c->template.piece;
    Slice written = {c->written.text, c->written.bytes}, history = history_of(c, written);
    if (!c->run.text.cut && same_text(piece[PROMPT], from(written, prompt_rest), piece[ANSWER], history))
        return DONE;
    if (!make_turn(c, ANSWER, history))
        return FAILED;
    if (c->turn + c->made.count > c->run.state->context) {
        *end = CONTEXT_FULL;
        return DONE;
    }
    replace_turn(c);
    c->run.text.cut = 0;
    return DONE;
}

/* Reads the user's turn and writes the answer. */
static int answer(Chat *c, End *end) {
    Run *r = &c->run;
    Sequence *q = &r->sequence;
    c->turn = q->count;
    if (!make_turn(c, PROMPT, (Slice){"", 0}))
        return FAILED;
    if (!c->made.count)
        return failed(FAILED,
                      "%s: a turn without a token: the text is empty, and the chat template adds nothing",
                      r->model->path);
    if (c->turn + c->made.count > r->state->context) {
        *end = CONTEXT_FULL;
        if (c->turn && !r->options->typed[OPT_PROMPT])
            return DONE;
        return failed(FAILED,
                      "the conversation has %zu tokens, more than the context of %zu; -c makes it longer, up "
                      "to %u for this model",
                      c->turn + c->made.count, r->state->context, r->model->config.max_position_embeddings);
    }
    memcpy(q->ids + q->count, c->made.ids, c->made.count * sizeof *q->ids);
    q->count = c->answer = c->turn + c->made.count;
    if (prompt_opens_thought(c)) {
        Slice thought = from_last(c->template.piece[PROMPT], THOUGHT_BEGIN);
        size_t n = strlen(THOUGHT_BEGIN);
        text_echo(&r->text, thought.text, n);
        text_echo(&r->text, thought.text + n, thought.bytes - n);
    }
    r->text.cut = 0;
    *end = generate(r);
    text_end(&r->text);
    return *end == NOT_NUMBERS ? DONE : settle(c, end);
}

/* ---- the user ------------------------------------------------------------------------------- */

/* Until there is something to read, or Ctrl-C or SIGTERM, which another thread may have caught: they are
 * looked for ten times a second. */
static void wait_for_input(const Input *in) {
    struct pollfd ready = {.fd = in->file, .events = POLLIN};
    int n = 0;
    while (!interrupted() && (n == 0 || (n < 0 && errno == EINTR)))
        n = poll(&ready, 1, 100);
}

/* False: the end, an error that was reported to *status, or Ctrl-C. */
static bool read_more(Input *in, const char *name, int *status) {
    static char block[1 << 16];
    wait_for_input(in);
    if (in->end || interrupted())
        return false;
    ssize_t n = read(in->file, block, sizeof block);
    in->end = n <= 0;
    if (n < 0)
        *status = failed(FAILED, "%s: cannot read it: %s", name, strerror(errno));
    else if (in->read.bytes - in->used > MAX_TURN)
        *status =
            failed(FAILED, "%s: a line is longer than the %d bytes that a turn may have", name, MAX_TURN);
    else if (!append(&in->read, (Slice){block, (size_t)n}))
        *status = FAILED;
    return n > 0 && !*status;
}

/* The next line, without its end; a last one may have none. False: as read_more. */
static bool read_line(Input *in, const char *name, Slice *line, int *status) {
    size_t seen = 0;
    memmove(in->read.text, in->read.text + in->used, in->read.bytes -= in->used);
    in->used = 0;
    for (;;) {
        const char *end =
            in->read.bytes > seen ? memchr(in->read.text + seen, '\n', in->read.bytes - seen) : NULL;
        seen = in->read.bytes;
        if (!end && read_more(in, name, status))
            continue;
        *line = (Slice){in->read.text, end ? (size_t)(end - in->read.text) : in->read.bytes};
        in->used = end ? line->bytes + 1 : line->bytes;
        return !*status && !interrupted() && (end || line->bytes);
    }
}

/* c->user = the next turn. Lines that end with a backslash go on in the next one; empty ones are no turns. */
static bool read_turn(Chat *c, int *status) {
    Input *in = &c->input;
    const char *name = c->run.options->file ? c->run.options->file : "-";
    Slice line;
    in->turn.bytes = 0;
    bool goes_on = false, got;
    do {
        if (in->terminal)
            ask(goes_on ? ". " : "> ");
        got = read_line(in, name, &line, status);
        if (!got)
            break;
        goes_on = line.bytes && line.text[line.bytes - 1] == '\\';
        line.bytes -= goes_on;
        if (!append(&in->turn, line) || (goes_on && !append(&in->turn, (Slice){"\n", 1})))
            *status = FAILED;
    } while (!*status && (goes_on || !in->turn.bytes));
    if (!got && in->terminal)
        ask("\n");
    c->user = (Slice){in->turn.text, in->turn.bytes};
    return !*status && !interrupted() && in->turn.bytes;
}

static int open_input(Chat *c) {
    const Options *o = c->run.options;
    Input *in = &c->input;
    if (o->typed[OPT_PROMPT])
        return DONE;
    in->file = o->file && strcmp(o->file, "-") ? open(o->file, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (in->file < 0)
        return failed(FAILED, "%s: cannot read it: %s", o->file, strerror(errno));
    in->terminal = isatty(in->file);
    return append(&in->read, (Slice){"", 0}) ? DONE : FAILED;
}

/* ---- the conversation ----------------------------------------------------------------------- */

static int talk(Chat *c, Session *session) {
    const Options *o = c->run.options;
    End end = ENDED;
    int status = DONE, turns = 0;
    watch_interrupt();
    if (o->typed[OPT_PROMPT]) {
        c->user = (Slice){o->text, o->text_bytes};
        status = answer(c, &end);
        turns++;
    } else {
        while (!status && end != CONTEXT_FULL && end != NOT_NUMBERS && (end != CAUGHT || c->input.terminal)) {
            watch_interrupt();
            if (interrupted() || !read_turn(c, &status)) {
                end = interrupted() ? CAUGHT : ENDED;
                break;
            }
            status = answer(c, &end);
            turns++;
        }
    }
    if (status)
        return status;
    c->run.sequence.conversation = true;
    return turns ? run_finish(&c->run, session, end) : end == CAUGHT ? interrupt_status() : DONE;
}

/* Everything before the first turn. */
static int open_chat(Chat *c, Session *session, Options *o) {
    Run *r = &c->run;
    const Model *m = r->model;
    Sequence *q = &r->sequence;
    if (!m->tokenizer || !m->chat_bytes)
        return failed(
            FAILED,
            "%s: the checkpoint has no %s, so that %s is not possible: export.py says why when it makes one",
            m->path, m->tokenizer ? "chat template" : "tokenizer", o->typed[OPT_CHAT]);
    const char *wrong = open_template(m, &c->template);
    if (wrong)
        return failed(FAILED, "%s: the chat template is damaged: %s; export the checkpoint again", m->path,
                      wrong);
    if (o->system && c->template.flags & NO_SYSTEM)
        return failed(FAILED, "%s: the model's chat template takes no system text: leave %s out", m->path,
                      o->typed[OPT_SYSTEM]);
    int status = open_input(c);
    if (!status)
        status = session_open(session, q, m, o);
    if (status)
        return status;
    if (q->count && !q->conversation)
        return failed(FAILED, "%s: holds a text, no conversation: give --session another name to begin one",
                      session->name);
    if (q->count && o->system)
        return failed(FAILED,
                      "%s: the conversation has begun, with its own system text: leave %s out, or give "
                      "--session another name",
                      session->name, o->typed[OPT_SYSTEM]);
    size_t context = context_rows(m, o, DEFAULT_CONTEXT);
    if (!context)
        return WRONG_USAGE;
    if (q->count > context)
        return failed(FAILED,
                      "%s: the conversation has %zu tokens, more than the context of %zu; -c makes it longer",
                      session->name, q->count, context);
    r->state = open_state(m, o, context, 1);
    return r->state ? run_open(r, session) : FAILED;
}

int mode_chat(const Model *m, const Options *given) {
    Options o = *given;
    Chat c = {.run = {.model = m, .options = &o}};
    Session session = {.lock = -1, .file = -1};
    int status = open_chat(&c, &session, &o);
    if (!status) {
        size_t n;
        Slice next = c.template.piece[NEXT];
        c.run.turn_end = tokenizer_added(m->tokenizer, next.text, next.bytes, &n);
        c.run.text.thoughts = c.run.text.newline = true;
        status = talk(&c, &session);
    }
    if (c.input.file > STDERR_FILENO)
        close(c.input.file);
    free(c.input.read.text);
    free(c.input.turn.text);
    free(c.made.ids);
    free(c.made.plain.text);
    free(c.written.text);
    run_close(&c.run);
    session_close(&session);
    return status;
}
