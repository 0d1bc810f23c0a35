/* cli/job.c: from a request to ids, with every check that forward() does not make; and its replies (job.h).
 * Nothing here ends the run: what is wrong with a request is its reply. */
#include "cli/job.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/prompt.h"
#include "engine/util.h"

/* ---- the prompt ----------------------------------------------------------------------------- */

/* Here and below: false means that request.error says why. */
static bool take_ids(Job *job, const int32_t *ids, size_t count) {
    job->ids = malloc((count + 1) * sizeof *ids);
    if (!job->ids)
        return request_fail(&job->request, "out of memory");
    if (count)
        memcpy(job->ids, ids, count * sizeof *ids);
    job->count = count;
    return true;
}

static bool prompt_of_ids(const Jobs *jobs, Job *job) {
    const Request *r = &job->request;
    uint32_t vocab = jobs->model->config.vocab_size;
    for (size_t i = 0; i < r->id_count; i++)
        if (r->ids[i] < 0 || (uint32_t)r->ids[i] >= vocab)
            return request_fail(&job->request, "ids must be from 0 to %u for this model, not %d", vocab - 1,
                                r->ids[i]);
    return take_ids(job, r->ids, r->id_count);
}

static bool prompt_of_text(const Jobs *jobs, Job *job) {
    const Request *r = &job->request;
    size_t begin;
    job->ids = prompt_ids(jobs->model, jobs->options, r->text.text ? &r->text : NULL, jobs->before,
                          &job->count, &begin, job->request.error, sizeof job->request.error);
    return job->ids;
}

/* The turn that follows the session's conversation. */
static bool next_turn(Conversation *c, const Request *r, uint32_t turns) {
    const Message *m = r->messages;
    if (r->message_count != 1 || m->role != ROLE_USER) {
        snprintf(c->err, sizeof c->err,
                 "a session's conversation goes on with one message, of the role user");
        return false;
    }
    return conversation_next(c, turns) && conversation_content(c, m->content, STRIP_USER) &&
           conversation_piece(c, PROMPT) && conversation_flush(c);
}

static bool prompt_of_messages(Jobs *jobs, Job *job) {
    Request *r = &job->request;
    Conversation *c = &jobs->whole, *opening = &jobs->opening;
    if (*jobs->no_template)
        return request_fail(r, "%s", jobs->no_template);
    conversation_clear(c, !jobs->before);
    bool made =
        jobs->before ? next_turn(c, r, jobs->turns) : conversation_messages(c, r->messages, r->message_count);
    if (!made)
        return request_fail(r, "%s", c->err);
    if (!take_ids(job, c->ids.data, conversation_count(c)))
        return false;
    if (jobs->before)
        return true;
    const Slice *system = r->messages->role == ROLE_SYSTEM ? &r->messages->content : NULL;
    return conversation_prefix(opening, system, job->ids, job->count, &job->prefix) ||
           request_fail(r, "%s", opening->err);
}

static bool make_prompt(Jobs *jobs, Job *job) {
    switch (job->request.kind) {
    case PROMPT_TEXT: return prompt_of_text(jobs, job);
    case PROMPT_IDS: return prompt_of_ids(jobs, job);
    case PROMPT_CONVERSATION: return prompt_of_messages(jobs, job);
    }
    return false;
}

/* ---- choices and checks --------------------------------------------------------------------- */

static bool make_choices(const Jobs *jobs, Job *job) {
    Request *r = &job->request;
    size_t n = r->choice_count;
    job->choices = request_keep(r, NULL, n * sizeof *job->choices);
    job->choice_tokens = request_keep(r, NULL, n * sizeof *job->choice_tokens);
    job->sums = request_keep(r, NULL, n * sizeof *job->sums);
    if (!job->choices || !job->choice_tokens || !job->sums)
        return request_fail(r, "out of memory");
    for (size_t i = 0; i < n; i++) {
        size_t *count = &job->choice_tokens[i];
        bool trusted = jobs->options->given[OPT_SPECIAL];
        job->choices[i] =
            text_ids(jobs->model, trusted, r->choices[i], false, count, r->error, sizeof r->error);
        if (!job->choices[i])
            return false;
        if (!*count)
            return request_fail(r, "choice %zu has no token", i + 1);
        job->sums[i].tokens = *count;
        job->tokens = max(job->tokens, *count - 1); /* nothing is computed behind the last one */
    }
    return true;
}

/* job->tokens, and whether there is room for prompt and choices. */
static bool find_room(const Jobs *jobs, Job *job) {
    Request *r = &job->request;
    size_t used = jobs->before + job->count, context = jobs->context;
    if (!used)
        return request_fail(r, "%s", empty_prompt(jobs->model));
    if (used > context || (r->choice_count && job->tokens > context - used))
        return request_fail(r, "%s %zu tokens, more than the context of %zu; -c sets it",
                            jobs->before ? "session and prompt have" : "the prompt has", used + job->tokens,
                            context);
    if (!r->choice_count)
        job->tokens = r->limit < 0 || (uint64_t)r->limit > context - used ? context - used : (size_t)r->limit;
    return true;
}

static bool make_replies(const Jobs *jobs, Job *job) {
    Request *r = &job->request;
    job->reply_count = r->choice_count ? 1 : r->samples;
    job->parts = r->choice_count ? r->choice_count : r->samples;
    job->replies = request_keep(r, NULL, job->reply_count * sizeof *job->replies);
    job->complete = request_keep(r, NULL, job->reply_count * sizeof *job->complete);
    if (!job->replies || !job->complete)
        return false;
    for (size_t i = 0; i < job->reply_count; i++)
        job->replies[i] = (Reply){.sample = i,
                                  .seed = job->seed + i,
                                  .sums = r->choice_count ? job->sums : NULL,
                                  .prompt_tokens = jobs->before + job->count};
    return true;
}

Job *job_open(Jobs *jobs, const Request *request) {
    Job *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->request = *request;
    Request *r = &job->request;
    job->seed = r->seed_given ? r->sampling.seed
                              : jobs->seed + (uint64_t)(r->line - 1) * (uint64_t)jobs->options->samples;
    if (!*r->error && r->stop_count && !jobs->model->tokenizer)
        request_fail(r, "stop texts need a tokenizer, and the checkpoint has none");
    bool usable = !*r->error && make_prompt(jobs, job) && make_choices(jobs, job) && find_room(jobs, job);
    if (!make_replies(jobs, job)) {
        job_close(job);
        return NULL;
    }
    if (!usable)
        job_fail(job, "%s", r->error);
    return job;
}

void job_close(Job *job) {
    for (size_t i = 0; job->choices && i < job->request.choice_count; i++)
        free(job->choices[i]);
    for (size_t i = 0; job->replies && i < job->reply_count; i++) {
        buffer_free(&job->replies[i].ids);
        buffer_free(&job->replies[i].text);
        buffer_free(&job->replies[i].thought);
        buffer_free(&job->replies[i].logprobs);
    }
    request_free(&job->request);
    free(job->ids);
    free(job->logits);
    free(job);
}

/* ---- the end -------------------------------------------------------------------------------- */

void job_fail(Job *job, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!*job->request.error)
        vsnprintf(job->request.error, sizeof job->request.error, format, args);
    va_end(args);
    for (size_t i = 0; i < job->reply_count; i++) {
        if (!job->complete[i])
            job->replies[i].error = job->request.error;
        job->complete[i] = true;
    }
    job->state = JOB_ENDED;
}

void job_part_done(Job *job, size_t part) {
    job->done++;
    if (job->request.choice_count) {
        Reply *reply = job->replies;
        for (size_t i = 1; i < job->parts && job->done == job->parts; i++)
            if (job->sums[i].sum > job->sums[reply->best].sum)
                reply->best = i;
        *job->complete = job->done == job->parts;
    } else {
        job->complete[part] = true;
    }
    if (job->done == job->parts)
        job->state = JOB_ENDED;
}
