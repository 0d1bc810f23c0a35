/* cli/generate.c: the run of one command line that writes a text: from the prompt and the session to bytes on
 * standard output, statistics and the session again. The loop over tokens is in run.c, stop texts are cut in
 * output.c, conversations are in chat.c. */
#include "cli/generate.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/modes.h"
#include "cli/prompt.h"
#include "cli/system.h"
#include "engine/util.h"

/* ---- the text ------------------------------------------------------------------------------- */

/* The bytes of a token, `first` of the text or not. */
static const char *token_bytes(const Run *r, int32_t token, bool first, size_t *n) {
    bool special;
    const char *bytes = tokenizer_decode(r->model->tokenizer, token, first, n, &special);
    if (special && !r->options->typed[OPT_SPECIAL] && !thought_begins(&r->text, bytes, *n) &&
        !thought_ends(&r->text, bytes, *n))
        *n = 0;
    return bytes;
}

const char *token_text(Run *r, size_t at, size_t *n) {
    const int32_t *ids = r->sequence.ids;
    bool first = true; /* the first of the text if none before it has any */
    while (r->textless < at && first) {
        token_bytes(r, ids[r->textless], false, n);
        first = *n == 0;
        r->textless += first;
    }
    return token_bytes(r, ids[at], first, n);
}

static void write_id(Run *r, int32_t token) {
    output_print(r->ids_printed++ ? " %d" : "%d", token);
    output_flush();
}

bool write_token(Run *r) {
    r->written++;
    if (!r->model->tokenizer) {
        write_id(r, r->sequence.ids[r->sequence.count - 1]);
        return true;
    }
    size_t n;
    const char *bytes = token_text(r, r->sequence.count - 1, &n);
    return text_token(&r->text, bytes, n);
}

/* ---- the run -------------------------------------------------------------------------------- */

/* --echo: the prompt as it was given; of ids what they stand for. */
static void echo_prompt(Run *r, const Prompt *p) {
    if (p->text && r->model->tokenizer) {
        text_echo(&r->text, p->text, p->bytes);
        return;
    }
    for (size_t i = 0, n; i < p->count; i++) {
        if (r->model->tokenizer) {
            const char *bytes = token_text(r, p->before + i, &n);
            text_echo(&r->text, bytes, n);
        } else {
            write_id(r, p->ids[i]);
        }
    }
}

/* What a stop text kept from being written when the session was put away: the last `cut` bytes of its
 * tokens. */
static void write_cut(Run *r, size_t tokens, size_t cut) {
    const int32_t *ids = r->sequence.ids;
    size_t from = tokens, bytes = 0, first = 0, n = 0; /* first: the first token with text */
    for (; first < tokens && n == 0; first += n == 0)
        token_bytes(r, ids[first], false, &n);
    for (; from > 0 && bytes < cut; bytes += n) {
        from--;
        token_bytes(r, ids[from], from <= first, &n);
    }
    for (size_t skip = bytes > cut ? bytes - cut : 0; from < tokens; from++, skip = 0) {
        const char *text = token_bytes(r, ids[from], from <= first, &n);
        text_echo(&r->text, text + skip, n - skip);
    }
}

int non_finite(const Model *m) {
    return failed(FAILED, "%s: the logits are not numbers; --check looks for damage in the checkpoint",
                  m->path);
}

static double rate(size_t tokens, double time) { return time > 0 ? (double)tokens / time : 0; }

/* At the end, because data that is piped in may take its time. */
void note_waiting_input(const Options *o) {
    int bytes = 0;
    bool prompt = o->typed[OPT_PROMPT] || o->typed[OPT_FILE] || o->typed[OPT_IDS];
    if (!prompt && !isatty(STDIN_FILENO) && !ioctl(STDIN_FILENO, FIONREAD, &bytes) && bytes > 0)
        note("standard input was not read: -f - takes the prompt from it");
}

/* What there is to say about the last text. The exit status. */
static int tell(const Run *r, End end) {
    static const char *const reasons[] = {
        [ENDED] = "end",     [STOPPED] = "stop", [LENGTH] = "length", [CONTEXT_FULL] = "context",
        [CAUGHT] = "signal",
    };
    const Options *o = r->options;
    if (end == NOT_NUMBERS)
        return non_finite(r->model);
    if (o->mode != MODE_CHAT)
        note_waiting_input(o);
    if (end == CONTEXT_FULL)
        note("the context of %zu tokens is full", r->state->context);
    if (end == ENDED && !r->written && o->typed[OPT_SESSION] && o->mode == MODE_GENERATE)
        note("the model has nothing to add: a prompt or --ignore-eos goes on");
    note("prompt %zu tokens, %.1f tokens/s; text %zu tokens, %.1f tokens/s, ended: %s; seed %llu", r->read,
         rate(r->read, r->read_seconds), r->written, rate(r->decoded, r->write_seconds), reasons[end],
         (unsigned long long)r->sequence.seed);
    return end == CAUGHT ? interrupt_status() : DONE;
}

void run_rewind(Run *r, size_t rows) {
    Sequence *q = &r->sequence;
    q->position = min(rows, q->position);
    r->textless = min(rows, r->textless);
    sampler_forget(r->sampler);
    for (size_t i = 0; i < q->position; i++)
        sampler_saw(r->sampler, q->ids[i]);
}

/* What was not given on the command line comes from the checkpoint, and the seed from the session or the
 * system. */
static bool sampling(const Config *c, const Options *o, const Sequence *q, SamplerOptions *s) {
    *s = (SamplerOptions){
        .temperature = o->temperature < 0 ? c->temperature : (float)o->temperature,
        .top_k = o->top_k < 0 ? c->top_k : (uint32_t)o->top_k,
        .top_p = o->top_p < 0 ? c->top_p : (float)o->top_p,
        .min_p = o->min_p < 0 ? c->min_p : (float)o->min_p,
        .repeat_penalty = o->repeat_penalty < 0 ? c->repetition_penalty : (float)o->repeat_penalty,
        .seed = o->typed[OPT_SEED] ? o->seed : q->seed,
    };
    return o->typed[OPT_SEED] || q->count || random_seed(&s->seed);
}

/* The sampler as it was when the session was put away, unless -s begins anew, and the tokens for it to
 * penalise. */
static bool open_sampler(Run *r, const SamplerOptions *so) {
    Sequence *q = &r->sequence;
    r->sampler = sampler_open(r->model->k, r->model->config.vocab_size, so);
    if (!r->sampler)
        return false;
    if (q->count && !r->options->typed[OPT_SEED])
        sampler_resume(r->sampler, q->random);
    q->seed = so->seed;
    run_rewind(r, q->position);
    return true;
}

int run_open(Run *r, Session *session) {
    const Model *m = r->model;
    const Options *o = r->options;
    SamplerOptions so;
    r->turn_end = -1;
    if (o->stop_count && !m->tokenizer)
        return failed(FAILED, "%s: %s compares text, and the checkpoint has no tokenizer to make any",
                      m->path, o->typed[OPT_STOP]);
    if (!sampling(&m->config, o, &r->sequence, &so))
        return failed(FAILED, "the system has no /dev/urandom to take a seed from: give one with --seed");
    r->state->stop = interrupted;
    int32_t *ids = realloc(r->sequence.ids, (r->state->context + 1) * sizeof *ids);
    if (ids)
        r->sequence.ids = ids;
    r->rows = malloc(r->state->chunk * sizeof *r->rows);
    if (!text_open(&r->text, o->stops, o->stop_bytes, o->stop_count) || !ids || !r->rows ||
        !open_sampler(r, &so))
        return failed(FAILED, "out of memory");
    return session_load(session, &r->sequence, r->state);
}

int run_save(Run *r, Session *session) {
    r->sequence.cut = r->text.cut;
    r->sequence.random = sampler_random(r->sampler);
    return session_save(session, &r->sequence, r->state);
}

int run_finish(Run *r, Session *session, End end) {
    int status = tell(r, end);
    int saved = end == NOT_NUMBERS || !session ? DONE : run_save(r, session);
    return saved ? saved : status;
}

void run_close(Run *r) {
    text_close(&r->text);
    free(r->rows);
    free(r->sequence.ids);
    sampler_close(r->sampler);
    state_close(r->state);
}

static int write_all(Run *r, Session *session, const Prompt *prompt) {
    Sequence *q = &r->sequence;
    bool echo = r->options->typed[OPT_ECHO];
    watch_interrupt();
    if (prompt->count)
        memcpy(q->ids + q->count, prompt->ids, prompt->count * sizeof *q->ids);
    q->count += prompt->count;
    if (q->cut && r->model->tokenizer && (echo || !prompt->count)) /* else the prompt takes its place */
        write_cut(r, prompt->before, q->cut);
    if (echo)
        echo_prompt(r, prompt);
    q->turns = 0;
    End end = generate(r);
    if (!r->model->tokenizer && !r->text.terminal && end != NOT_NUMBERS)
        output_print("\n");
    text_end(&r->text);
    return run_finish(r, session, end);
}

int mode_generate(const Model *m, const Options *given) {
    Options o = *given;
    Run r = {.model = m, .options = &o};
    Session session;
    Prompt prompt = {0};
    int status = session_open(&session, &r.sequence, m, &o);
    if (!status)
        status = prompt_read(&prompt, m, &o, r.sequence.count);
    if (!status)
        status = prompt_state(&r.state, &prompt, m, &o, 1);
    if (!status)
        status = run_open(&r, &session);
    if (!status)
        status = write_all(&r, &session, &prompt);
    run_close(&r);
    prompt_close(&prompt);
    session_close(&session);
    return status;
}
