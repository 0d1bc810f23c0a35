/* cli/batch.c: many texts in one run (batch.h). A request becomes a job (job.h), whose texts run as soon as
 * there is room (texts.h), in the order of the input; replies are written in that order, each as soon as it
 * is complete.
 *
 * The loop over tokens is in run.c; lines are read and written by the Exchange (request.h). */
#include "cli/batch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/output.h"
#include "cli/prompt.h"
#include "cli/session.h"
#include "cli/system.h"
#include "cli/texts.h"
#include "engine/cache.h"
#include "engine/sequence.h"
#include "engine/util.h"
#include "kernels/clock.h"

enum { PARALLEL = 32 };       /* texts at a time without --parallel */
enum { LOGIT_ROWS = 16 };     /* rows with logits that a call has room for, at least: choices need them */
enum { WAITING_JOBS = 4096 }; /* that are read while a long text holds up the replies */

/* ---- jobs ----------------------------------------------------------------------------------- */

/* Leaves out the job's lines of output before --first. False: that is all of them. */
static bool skip_written(Batch *b, Job *job) {
    size_t lines = job->request.together ? 1 : job->reply_count, first = (size_t)b->options->first;
    size_t skipped = first > b->line ? min(first - b->line, lines) : 0;
    b->line += lines;
    if (skipped == lines)
        return false;
    job->written = skipped; /* 0 if the job has one line: choices, or `together` */
    if (!job->request.choice_count)
        job->begun = job->done = skipped;
    return true;
}

/* The next request as a job; with `wait` it waits for one. NULL: there is none now. */
static Job *next_job(Batch *b, bool wait) {
    const Options *o = b->options;
    while (!b->ended && b->job_count < WAITING_JOBS) {
        Request r = {.limit = o->tokens,
                     .sampling = given_sampling(&b->model->config, o),
                     .ignore_end = o->given[OPT_IGNORE_EOS],
                     .stops = o->stops.list,
                     .stop_count = o->stops.count,
                     .samples = (size_t)o->samples,
                     .choices = o->choices.list,
                     .choice_count = o->choices.count};
        Next next = b->exchange->next(b->exchange->owner, &r, wait);
        b->ended = next == NEXT_END || next == NEXT_FAILED;
        if (next == NEXT_FAILED)
            b->status = FAILED;
        if (next != NEXT_REQUEST)
            return NULL;
        Job *job = job_open(&b->jobs, &r);
        if (!job) {
            b->status = log_error(FAILED, "out of memory");
            b->ended = true;
            return NULL;
        }
        if (skip_written(b, job)) {
            *(b->first ? &b->last->next : &b->first) = job;
            b->last = job;
            b->job_count++;
            return job;
        }
        job_close(job);
    }
    return NULL;
}

/* Begins, in the order of the input, what there is room for. */
static void begin_jobs(Batch *b) {
    for (Job *job = b->first; has_slot(b) && !b->interrupted; job = job->next) {
        if (!job && !(job = next_job(b, !b->first)))
            return;
        if (!begin_job(b, job))
            return;
    }
}

/* Writes the replies that are complete, in the order of the input. */
static void write_replies(Batch *b) {
    for (Job *job; (job = b->first);) {
        for (; job->written < job->reply_count && job->complete[job->written]; job->written++) {
            const Reply *reply = &job->replies[job->written];
            b->exchange->write(b->exchange->owner, &job->request, reply);
            b->answers++;
            b->errors += reply->error != NULL;
        }
        if (job->written < job->reply_count || job->texts)
            return;
        b->first = job->next;
        b->job_count--;
        job_close(job);
    }
}

/* ---- the run -------------------------------------------------------------------------------- */

static void show_progress(Batch *b) {
    double now = seconds(), time = now - b->start;
    if (now - b->shown < 0.2)
        return;
    b->shown = now;
    size_t all = 0; /* not known */
    if (b->exchange->count)
        all = b->exchange->count(b->exchange->owner) * (size_t)b->options->samples;
    char of[32] = "";
    if (all)
        snprintf(of, sizeof of, " of %zu", all);
    progress_line("%zu%s answers, %.1f tokens/s", b->answers, of, (double)b->written / time);
}

static void answer_all(Batch *b) {
    for (;;) {
        begin_jobs(b);
        write_replies(b);
        if (b->interrupted || interrupted() || (b->ended && !b->first))
            break;
        if (b->running_count) {
            generate_step(b->model, b->state, b->running, b->running_count);
            end_texts(b);
            write_replies(b);
            show_progress(b);
        }
    }
    progress_end();
}

static void print_stats(const Batch *b) {
    double time = seconds() - b->start;
    char errors[48] = "", shared[64] = "";
    if (b->errors)
        snprintf(errors, sizeof errors, ", %zu of them an error", b->errors);
    if (b->shared)
        snprintf(shared, sizeof shared, " and %zu shared", b->shared);
    if (b->options->choices.count)
        log_info("%zu answers%s; prompts %zu tokens%s, in %.2f s", b->answers, errors, b->read, shared, time);
    else
        log_info("%zu answers%s; prompts %zu tokens%s, texts %zu tokens, in %.2f s: %.1f tokens/s; seed %llu",
                 b->answers, errors, b->read, shared, b->written, time, (double)b->written / time,
                 (unsigned long long)b->jobs.seed);
}

static int exit_status(const Batch *b) {
    if (b->interrupted || interrupted())
        return interrupt_status();
    return b->errors ? FAILED : b->status;
}

/* Sequences: of texts that run, of prompts whose texts wait, of prefixes and the session; fewer where half of
 * the memory does not hold their constant parts. */
static size_t sequences_for(const Batch *b) {
    const Config *cfg = &b->model->config;
    size_t constant = SEQUENCE_SLOTS * constant_bytes(cfg, b->options->cache, cfg->num_hidden_layers);
    size_t sequences = 2 * b->parallel + PREFIXES + 1;
    return constant ? max(4, min(sequences, half_of_memory() / constant)) : sequences;
}

/* Bytes of a row in the cache; 1 where no layer has any. */
static size_t row_bytes(const Batch *b) {
    const Config *cfg = &b->model->config;
    return max(cache_token_bytes(cfg, b->options->cache, cfg->num_hidden_layers), 1);
}

/* The fewest pages that do: a text of a whole context beside the session, a prefix and the copies that forks
 * make. */
static size_t least_pages(const Batch *b, size_t context) {
    enum { MORE = 4 };
    const Config *cfg = &b->model->config;
    return cache_pages(cfg, context) + cache_pages(cfg, b->saved.count) + MORE;
}

/* Pages for as many texts as may run, as far as half of the memory holds them. */
static size_t pool_pages(const Batch *b, size_t context, size_t sequences) {
    const Config *cfg = &b->model->config;
    size_t most = half_of_memory() / row_bytes(b) / cache_page_rows(cfg);
    return max(least_pages(b, context), min(most, sequences * cache_pages(cfg, context)));
}

/* MLA_PAGES in the environment makes *pages fewer, but no fewer than `least`, for tests. False: reported. */
static bool read_environment(size_t least, size_t *pages) {
    const char *forced = getenv("MLA_PAGES");
    if (!forced || !*forced)
        return true;
    char *end;
    unsigned long n = strtoul(forced, &end, 10);
    if (*end || n < least || n > *pages) {
        log_error(FAILED, "MLA_PAGES=%s: must be a number from %zu to %zu", forced, least, *pages);
        return false;
    }
    *pages = n;
    return true;
}

static int open_cache(Batch *b) {
    const Options *o = b->options;
    /* without -c what the model was made for, as far as half of the memory holds it */
    size_t context = context_rows(b->model, o, max(half_of_memory() / row_bytes(b), TILE_ROWS));
    if (!context)
        return WRONG_USAGE;
    b->parallel = o->parallel.count ? o->parallel.list[0] : PARALLEL;
    size_t sequences = sequences_for(b), pages = pool_pages(b, context, sequences);
    if (!read_environment(least_pages(b, context), &pages))
        return FAILED;
    StateOptions so = {.cache = o->cache,
                       .context = context,
                       .sequences = (uint32_t)sequences,
                       .pages = pages,
                       .max_logits = (uint32_t)max(b->parallel, LOGIT_ROWS),
                       .threads = (int)o->threads};
    char err[1024];
    b->state = state_open(b->model, &so, err, sizeof err);
    b->slots = calloc(b->parallel, sizeof *b->slots);
    b->running = calloc(b->parallel, sizeof *b->running);
    if (!b->state)
        return log_error(FAILED, "%s", err);
    if (!b->slots || !b->running)
        return log_error(FAILED, "out of memory");
    b->state->stop = interrupted;
    b->jobs.context = context;
    return DONE;
}

/* --from: what all texts begin with. */
static int load_session(Batch *b, Session *session) {
    size_t V = b->model->config.vocab_size;
    if (!b->saved.count)
        return DONE;
    if (b->saved.count > b->jobs.context)
        return log_error(FAILED, "%s: has %zu tokens, more than the context of %zu; -c sets it",
                         session->name, b->saved.count, b->jobs.context);
    b->session = sequence_open(b->state);
    b->session_logits = malloc(V * sizeof *b->session_logits);
    if (!b->session_logits)
        return log_error(FAILED, "out of memory");
    int status = session_load(session, b->session, b->state);
    memcpy(b->session_logits, b->state->logits, V * sizeof *b->session_logits);
    return status;
}

static int open_batch(Batch *b, Session *session, Options *o) {
    const Model *m = b->model;
    Jobs *jobs = &b->jobs;
    int status = session_open(session, &b->saved, m, o);
    if (!status && (o->given[OPT_CHAT] || o->given[OPT_THINK]))
        status = template_load(&b->template, m, o);
    else if (!status)
        template_find(&b->template, m, o, jobs->no_template, sizeof jobs->no_template);
    if (!status && o->given[OPT_CHAT] && b->saved.count && !b->saved.turns)
        status = log_error(FAILED, "%s: holds a text, no conversation: give %s another file, or leave %s out",
                           session->name, o->given[OPT_FROM], o->given[OPT_CHAT]);
    if (!status)
        status = open_cache(b);
    if (!status)
        status = load_session(b, session);
    jobs->model = m;
    jobs->options = o;
    jobs->before = b->saved.count;
    jobs->turns = b->saved.turns;
    jobs->seed = o->seed;
    jobs->whole = jobs->opening = (Conversation){.model = m, .template = &b->template};
    if (!status && !o->given[OPT_SEED] && !random_seed(&jobs->seed))
        status =
            log_error(FAILED, "the system has no /dev/urandom to take a seed from: give one with --seed");
    return status;
}

static void close_batch(Batch *b) {
    close_texts(b);
    for (Job *next; b->first; b->first = next) {
        next = b->first->next;
        job_close(b->first);
    }
    conversation_free(&b->jobs.whole);
    conversation_free(&b->jobs.opening);
    template_close(&b->template);
    free(b->session_logits);
    free(b->running);
    free(b->slots);
    state_close(b->state);
}

int batch_run(const Model *m, const Options *given, const Exchange *exchange) {
    Options o = *given;
    Batch b = {.model = m, .options = &o, .exchange = exchange, .line = 1};
    Session session = {.lock = -1, .file = -1};
    int status = open_batch(&b, &session, &o);
    if (!status) {
        watch_interrupt();
        b.start = seconds();
        answer_all(&b);
        print_stats(&b);
        status = exit_status(&b);
    }
    close_batch(&b);
    session_close(&session);
    return status;
}
