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
#include "engine/sequence.h"
#include "engine/util.h"
#include "tokenizer.h"

/* ---- the text ------------------------------------------------------------------------------- */

/* The bytes of a token, `first` of the text or not. */
static const char *token_bytes(const Run *r, int32_t token, bool first, size_t *n) {
    bool special;
    const char *bytes = tokenizer_decode(r->model->tokenizer, token, first, n, &special);
    if (special && !r->options->given[OPT_SPECIAL] && !thought_begins(&r->text, bytes, *n) &&
        !thought_ends(&r->text, bytes, *n))
        *n = 0;
    return bytes;
}

const char *token_text(Run *r, size_t at, size_t *n) {
    const int32_t *ids = r->sequence->ids;
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

bool run_token(Run *r) {
    size_t n, last = r->sequence->count - 1;
    const char *bytes = token_text(r, last, &n);
    Slice shown = hider_add(&r->hider, r->sequence->ids[last], (Slice){bytes, n});
    r->text.lost |= r->hider.lost;
    return text_token(&r->text, shown.text, shown.bytes);
}

void run_end_text(Run *r) {
    Slice rest = hider_end(&r->hider);
    if (rest.bytes)
        text_token(&r->text, rest.text, rest.bytes);
    text_end(&r->text);
    r->text.lost |= r->hider.lost;
}

/* Writes the last token of the sequence. False: a stop text is complete. */
static bool write_token(void *run, const float *logits) {
    Run *r = run;
    (void)logits;
    r->written++;
    if (!r->model->tokenizer) {
        write_id(r, r->sequence->ids[r->sequence->count - 1]);
        return true;
    }
    return run_token(r);
}

static void show_progress(void *run, size_t done, size_t all) {
    (void)run;
    progress("prompt", done, all);
}

Generation run_generation(Run *r, int64_t limit, bool endless) {
    const Config *cfg = &r->model->config;
    size_t count = 0;
    if (!endless) {
        r->end_tokens[count++] = r->turn_end;
        for (uint32_t i = 0; i < cfg->eos_tokens; i++)
            r->end_tokens[count++] = cfg->eos_token_id[i];
    }
    return (Generation){.sequence = r->sequence,
                        .sampler = r->sampler,
                        .prefix = r->prefix,
                        .limit = limit,
                        .end_tokens = r->end_tokens,
                        .end_token_count = count,
                        .owner = r};
}

End run_generate(Run *r) {
    const Options *o = r->options;
    Generation g = run_generation(r, o->tokens, o->given[OPT_IGNORE_EOS]), *texts[] = {&g};
    g.logits = r->state->logits;
    g.emit = write_token;
    g.progress = show_progress;
    if (r->marks) { /* the prompt alone, then from its last row's logits */
        g.limit = 0;
        generate(r->model, r->state, texts, 1);
        sequence_mark(r->sequence);
        g.limit = o->tokens;
        g.end = g.end == END_LENGTH ? NOT_ENDED : g.end;
    }
    if (!g.end)
        generate(r->model, r->state, texts, 1);
    r->read += g.read;
    r->steps += g.steps;
    r->read_seconds += g.read_seconds;
    r->write_seconds += g.write_seconds;
    return g.end;
}

/* ---- the run -------------------------------------------------------------------------------- */

/* --echo: the prompt as it was given; ids are written as their text. */
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

/* What a stop text kept from being written when the session was saved: the last `cut` bytes of its
 * tokens. */
static void write_cut(Run *r, size_t tokens, size_t cut) {
    size_t from = tokens, bytes = 0, n;
    while (from > 0 && bytes < cut) {
        token_text(r, --from, &n);
        bytes += n;
    }
    for (size_t skip = bytes - min(bytes, cut); from < tokens; from++, skip = 0) {
        const char *text = token_text(r, from, &n);
        text_echo(&r->text, text + skip, n - skip);
    }
}

int log_non_finite(const Model *m) {
    return log_error(FAILED, "%s: the logits are non-finite; --check looks for damage in the checkpoint",
                     m->path);
}

static double rate(size_t tokens, double time) { return time > 0 ? (double)tokens / time : 0; }

/* Called at the end, because data from a pipe may come late. */
void log_waiting_input(const Options *o) {
    int bytes = 0;
    bool prompt = o->given[OPT_PROMPT] || o->given[OPT_FILE] || o->given[OPT_IDS];
    if (!prompt && !isatty(STDIN_FILENO) && !ioctl(STDIN_FILENO, FIONREAD, &bytes) && bytes > 0)
        log_info("standard input was not read: -f - takes the prompt from it");
}

/* What there is to say about the last text. The exit status. */
static int print_stats(const Run *r, End end) {
    static const char *const reasons[] = {
        [END_TOKEN] = "end",       [END_STOP] = "stop",          [END_LENGTH] = "length",
        [END_CONTEXT] = "context", [END_INTERRUPTED] = "signal",
    };
    const Options *o = r->options;
    if (end == END_NON_FINITE)
        return log_non_finite(r->model);
    if (o->mode != MODE_CHAT)
        log_waiting_input(o);
    if (end == END_CONTEXT)
        log_info("the context of %zu tokens is full", r->state->context);
    if (end == END_TOKEN && !r->written && o->given[OPT_SESSION] && o->mode == MODE_GENERATE)
        log_info("the model has nothing to add: a prompt or --ignore-eos goes on");
    log_info("prompt %zu tokens, %.1f tokens/s; text %zu tokens, %.1f tokens/s, ended: %s; seed %llu",
             r->read, rate(r->read, r->read_seconds), r->written, rate(r->steps, r->write_seconds),
             reasons[end], (unsigned long long)r->saved.seed);
    return end == END_INTERRUPTED ? interrupt_status() : DONE;
}

void run_remember(Run *r) {
    const Sequence *q = r->sequence;
    sampler_forget(r->sampler);
    for (size_t i = q->rows - min(q->rows, PENALTY_WINDOW); i < q->rows; i++) /* older ones do not count */
        sampler_saw(r->sampler, q->ids[i]);
}

void run_rewind(Run *r, size_t rows) {
    rows = sequence_cut(r->sequence, rows);
    r->textless = min(rows, r->textless);
    run_remember(r);
}

SamplerOptions given_sampling(const Config *cfg, const Options *o) {
    SamplerOptions s = {
        .temperature = o->temperature < 0 ? cfg->temperature : (float)o->temperature,
        .top_k = o->top_k < 0 ? cfg->top_k : (uint32_t)o->top_k,
        .top_p = o->top_p < 0 ? cfg->top_p : (float)o->top_p,
        .min_p = o->min_p < 0 ? cfg->min_p : (float)o->min_p,
        .repeat_penalty = o->repeat_penalty < 0 ? cfg->repetition_penalty : (float)o->repeat_penalty,
    };
    if (s.repeat_penalty == 0) /* the checkpoint does not say */
        s.repeat_penalty = 1;
    return s;
}

/* The seed from the session or the system, unless it is given. */
static bool sampling(const Config *cfg, const Options *o, const SavedText *saved, SamplerOptions *s) {
    *s = given_sampling(cfg, o);
    s->seed = o->given[OPT_SEED] ? o->seed : saved->seed;
    return o->given[OPT_SEED] || saved->count || random_seed(&s->seed);
}

/* The sampler as it was when the session was saved, unless -s begins anew, and the tokens for it to
 * penalize. */
static bool open_sampler(Run *r, const SamplerOptions *so) {
    r->sampler = sampler_open(r->model->ops, r->model->config.vocab_size, so);
    if (!r->sampler)
        return false;
    if (r->saved.count && !r->options->given[OPT_SEED])
        sampler_resume(r->sampler, r->saved.random);
    r->saved.seed = so->seed;
    run_rewind(r, r->sequence->rows);
    return true;
}

int run_open(Run *r, Session *session) {
    const Model *m = r->model;
    const Options *o = r->options;
    SamplerOptions so;
    r->turn_end = -1;
    if (o->stops.count && !m->tokenizer)
        return log_error(FAILED, "%s: %s compares text, and the checkpoint has no tokenizer to make any",
                         m->path, o->given[OPT_STOP]);
    if (!sampling(&m->config, o, &r->saved, &so))
        return log_error(FAILED, "the system has no /dev/urandom to take a seed from: give one with --seed");
    r->state->stop = interrupted;
    r->sequence = sequence_open(r->state);
    int status = session_load(session, r->sequence, r->state);
    if (status)
        return status;
    if (!text_open(&r->text, o->stops.list, o->stops.count, NULL) || !open_sampler(r, &so))
        return log_error(FAILED, "out of memory");
    return DONE;
}

int run_save(Run *r, Session *session) {
    r->saved.cut = r->text.cut;
    r->saved.random = sampler_random(r->sampler);
    return session_save(session, &r->saved, r->sequence, r->state);
}

int run_finish(Run *r, Session *session, End end) {
    int status = print_stats(r, end);
    int saved = end == END_NON_FINITE || !session ? DONE : run_save(r, session);
    return saved ? saved : status;
}

void run_close(Run *r) {
    text_close(&r->text);
    sampler_close(r->sampler);
    state_close(r->state);
}

static int write_all(Run *r, Session *session, const Prompt *prompt) {
    Sequence *q = r->sequence;
    bool echo = r->options->given[OPT_ECHO];
    watch_interrupt();
    if (prompt->count)
        memcpy(q->ids + q->count, prompt->ids, prompt->count * sizeof *q->ids);
    q->count += prompt->count;
    if (r->saved.cut && r->model->tokenizer && (echo || !prompt->count)) /* else the prompt takes its place */
        write_cut(r, prompt->before, r->saved.cut);
    if (echo)
        echo_prompt(r, prompt);
    r->saved.turns = 0;
    End end = run_generate(r);
    if (!r->model->tokenizer && !r->text.terminal && end != END_NON_FINITE)
        output_print("\n");
    run_end_text(r);
    return run_finish(r, session, end);
}

int mode_generate(const Model *m, const Options *given) {
    Options o = *given;
    Run r = {.model = m, .options = &o};
    Session session;
    Prompt prompt = {0};
    int status = session_open(&session, &r.saved, m, &o);
    if (!status)
        status = prompt_read(&prompt, m, &o, r.saved.count);
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
