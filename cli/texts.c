/* cli/texts.c: how the prompts and texts of jobs use the cache (texts.h).
 *
 * A job's prompt is computed once, and each of its texts, samples or choices, goes on from there in a fork
 * that shares the prompt's pages. A text begins when the pages for its prompt and all its tokens are free, so
 * that none ever stops for lack of memory.
 *
 * What conversations begin with, their prefix, is computed once, too: the first conversation that has read it
 * leaves a fork of it behind, and later ones begin with a fork of that. A session (--from) is a prefix of all
 * texts.
 *
 * The bytes of a text do not depend on any of this: a prefix is a stretch of its own whether it is shared or
 * not (Generation.prefix), and forward() gives each row what it gives it alone. */
#include "cli/texts.h"

#include <stdlib.h>
#include <string.h>

#include "engine/logprob.h"
#include "engine/sequence.h"
#include "engine/util.h"

enum { SHARED_ROWS = 8 }; /* a shorter prefix is computed again, because a fork copies a page */

/* ---- what a text gives ---------------------------------------------------------------------- */

static Reply *slot_reply(const Slot *slot) { return &slot->job->replies[slot->part]; }

static bool add_logprobs(const Slot *slot, Reply *reply, int32_t id, const float *logits) {
    const Model *m = slot->batch->model;
    size_t V = m->config.vocab_size, most = min(slot->job->request.top_logprobs, MAX_TOP_LOGPROBS);
    int32_t ids[MAX_TOP_LOGPROBS + 1];
    double sum = log_sum_exp(m->ops, logits, V);
    ids[0] = id;
    size_t n = 1 + likeliest(logits, V, ids + 1, most);
    for (size_t i = 0; i < n; i++) {
        TokenLogprob token = {.id = ids[i], .logprob = (double)logits[ids[i]] - sum};
        if (!buffer_add(&reply->logprobs, &token, sizeof token))
            return false;
    }
    return true;
}

/* The last token of the sequence belongs to the answer. False: the text ends. */
static bool take_token(void *owner, const float *logits) {
    Slot *slot = owner;
    Run *r = &slot->run;
    Reply *reply = slot_reply(slot);
    int32_t id = r->sequence->ids[r->sequence->count - 1];
    r->written++;
    if (!buffer_add(&reply->ids, &id, sizeof id) ||
        (slot->job->request.logprobs && !add_logprobs(slot, reply, id, logits))) {
        r->text.lost = true;
        return false;
    }
    if (!r->model->tokenizer)
        return true;
    return run_token(r) && !r->text.lost;
}

/* The logits after the last token of a prompt. */
static void keep_logits(void *owner, size_t place, const float *logits) {
    const Slot *slot = owner;
    (void)place;
    memcpy(slot->job->logits, logits, slot->batch->model->config.vocab_size * sizeof *logits);
}

/* Adds token `i` of a choice to its sum. `logits`: those before it. */
static void score_token(const Slot *slot, size_t i, const float *logits) {
    const Model *m = slot->batch->model;
    Job *job = slot->job;
    job->sums[slot->part].sum +=
        log_probability(m->ops, logits, m->config.vocab_size, job->choices[slot->part][i]);
}

static void score_choice(void *owner, size_t place, const float *logits) {
    const Slot *slot = owner;
    score_token(slot, place - slot->job->rows + 1, logits);
}

/* ---- slots ---------------------------------------------------------------------------------- */

static Slot *free_slot(const Batch *b) {
    for (size_t i = 0; i < b->parallel; i++)
        if (!b->slots[i].job)
            return &b->slots[i];
    return NULL;
}

bool has_slot(const Batch *b) { return free_slot(b); }

static void close_slot(Slot *slot) {
    text_close(&slot->run.text);
    hider_close(&slot->run.hider);
    sampler_close(slot->run.sampler);
    slot->job = NULL;
}

static void end_text(Slot *slot);

/* From now on generate_step() computes the text, unless it ends at once. */
static void begin_text(Slot *slot) {
    Batch *b = slot->batch;
    b->running[b->running_count++] = &slot->g;
    generate_begin(b->model, b->state, &slot->g);
    if (slot->g.end) {
        b->running_count--;
        end_text(slot);
    }
}

/* A free slot for a text that uses `sequence`. */
static Slot *open_slot(Batch *b, Job *job, Sequence *sequence) {
    Slot *slot = free_slot(b);
    job->texts++;
    *slot = (Slot){.batch = b,
                   .job = job,
                   .in_job = sequence == job->sequence,
                   .run = {.model = b->model,
                           .options = b->options,
                           .state = b->state,
                           .sequence = sequence,
                           .prefix = b->session ? 0 : job->prefix,
                           .turn_end = -1}};
    return slot;
}

/* ---- prefixes ------------------------------------------------------------------------------- */

static bool has_prefix(const Job *job) { return job->prefix >= SHARED_ROWS && job->prefix < job->count; }

static Prefix *find_prefix(Batch *b, const Job *job) {
    for (size_t i = 0; i < PREFIXES; i++) {
        const Sequence *q = b->prefixes[i].sequence;
        if (q && q->rows == job->prefix && !memcmp(q->ids, job->ids, job->prefix * sizeof *job->ids))
            return &b->prefixes[i];
    }
    return NULL;
}

/* Whether a text that runs has the job's prefix, too, and has not read all of it yet. */
static bool prefix_comes(const Batch *b, const Job *job) {
    for (size_t i = 0; i < b->parallel; i++) {
        const Slot *slot = &b->slots[i];
        const Job *other = slot->job;
        if (other && slot->reads && other->prefix == job->prefix && slot->g.sequence->rows < job->prefix &&
            !memcmp(other->ids, job->ids, job->prefix * sizeof *job->ids))
            return true;
    }
    return false;
}

static void drop_prefix(Prefix *p) {
    if (p->sequence)
        sequence_close(p->sequence);
    p->sequence = NULL;
}

/* Keeps a fork of the text's prefix, if it has just read it. Where there is no room for a fork, later texts
 * read the prefix again. */
static void leave_prefix(Batch *b, const Slot *slot) {
    Sequence *q = slot->g.sequence;
    if (!slot->reads || q->rows != slot->g.prefix || !has_prefix(slot->job) || find_prefix(b, slot->job))
        return;
    Prefix *oldest = b->prefixes;
    for (size_t i = 1; i < PREFIXES; i++)
        if (!b->prefixes[i].sequence || (oldest->sequence && b->prefixes[i].used < oldest->used))
            oldest = &b->prefixes[i];
    drop_prefix(oldest);
    oldest->sequence = sequence_fork(b->state, q, q->rows);
    oldest->used = ++b->uses;
}

/* ---- prompts -------------------------------------------------------------------------------- */

/* A sequence with the job's prompt as its ids and, as far as they are computed already, their rows. NULL: no
 * sequence or no page is free. */
static Sequence *open_prompt(Batch *b, const Job *job) {
    Prefix *prefix = !b->session && has_prefix(job) ? find_prefix(b, job) : NULL;
    const Sequence *from = prefix ? prefix->sequence : b->session;
    Sequence *q = from ? sequence_fork(b->state, from, from->rows) : sequence_open(b->state);
    if (!q)
        return NULL;
    /* ids that the sequence begins with, and how many of them are the job's */
    size_t before = from == b->session && from ? from->count : q->rows, known = before - b->jobs.before;
    if (from)
        memcpy(q->ids, from->ids, before * sizeof *q->ids);
    if (job->count > known)
        memcpy(q->ids + before, job->ids + known, (job->count - known) * sizeof *q->ids);
    q->count = b->jobs.before + job->count;
    if (!sequence_reserve(q, min(q->count + job->tokens, b->state->context))) {
        sequence_close(q);
        return NULL;
    }
    if (prefix)
        prefix->used = ++b->uses;
    b->shared += q->rows;
    return q;
}

/* The same. Where there is no room, kept prefixes are dropped, one after the other, until there is. */
static Sequence *make_room(Batch *b, const Job *job) {
    Sequence *q = open_prompt(b, job);
    const Prefix *needed = q ? NULL : find_prefix(b, job);
    for (size_t i = 0; i < PREFIXES && !q; i++) {
        if (b->prefixes[i].sequence && &b->prefixes[i] != needed) {
            drop_prefix(&b->prefixes[i]);
            q = open_prompt(b, job);
        }
    }
    return q;
}

/* Begins to compute the job's prompt. False: there is no room yet, or the prefix will be there soon. */
static bool read_prompt(Batch *b, Job *job) {
    if (!b->session && has_prefix(job) && !find_prefix(b, job) && prefix_comes(b, job))
        return false;
    if (!job->logits)
        job->logits = malloc(b->model->config.vocab_size * sizeof *job->logits);
    Sequence *q = job->logits ? make_room(b, job) : NULL;
    if (!q) {
        if (!b->running_count || !job->logits)
            job_fail(job, "out of memory");
        return job->state == JOB_ENDED;
    }
    job->sequence = q;
    job->rows = q->count;
    job->state = JOB_READS;
    Slot *slot = open_slot(b, job, q);
    slot->reads = true;
    slot->g = run_generation(&slot->run, 0, true);
    slot->g.score = keep_logits;
    slot->g.score_from = q->count - 1;
    slot->g.logits = b->session_logits; /* if the session's last row is the prompt's */
    slot->g.owner = slot;
    if (q->rows == q->count)
        keep_logits(slot, q->rows - 1, b->session_logits);
    begin_text(slot);
    return true;
}

/* ---- texts ---------------------------------------------------------------------------------- */

/* The sequence of the job's next text: a fork of the prompt's. The last text takes the prompt's own, and so
 * does one for whose fork there is no room. NULL: there is no room yet. */
static Sequence *fork_prompt(Batch *b, const Job *job) {
    bool last = job->begun + 1 == job->parts;
    Sequence *q = last && !job->busy ? NULL : sequence_fork(b->state, job->sequence, job->rows);
    if (q && sequence_reserve(q, min(job->rows + job->tokens, b->state->context)))
        return q;
    if (q)
        sequence_close(q);
    return job->busy ? NULL : job->sequence;
}

static bool open_sample(Slot *slot) {
    const Job *job = slot->job;
    Run *r = &slot->run;
    Reply *reply = slot_reply(slot);
    SamplerOptions sampling = job->request.sampling;
    sampling.seed = reply->seed;
    r->sampler = sampler_open(r->model->ops, r->model->config.vocab_size, &sampling);
    if (!text_open(&r->text, job->request.stops, job->request.stop_count, &reply->text) || !r->sampler)
        return false;
    run_remember(r); /* the penalty is about the prompt's tokens, too */
    if (job->request.kind == PROMPT_CONVERSATION) {
        const Template *t = &slot->batch->template;
        Slice shown = template_shown(t);
        r->turn_end = template_turn_end(t);
        r->text.thought_begin = t->marks.begin;
        r->text.thought_end = t->marks.end;
        if (slot->batch->options->think == THINK_HIDE) {
            r->hider = (Hider){.marks = &t->marks,
                               .place = shown.bytes ? IN_THOUGHT : BEFORE_THOUGHT,
                               .thought = &reply->thought};
        } else {
            text_echo(&r->text, shown.text, shown.bytes);
            reply->shown = shown.bytes;
        }
    }
    slot->g = run_generation(r, job->request.limit, job->request.ignore_end);
    slot->g.logits = job->logits;
    slot->g.emit = take_token;
    return true;
}

static void open_choice(Slot *slot) {
    const Job *job = slot->job;
    Sequence *q = slot->run.sequence;
    size_t more = job->choice_tokens[slot->part] - 1;
    score_token(slot, 0, job->logits);
    memcpy(q->ids + q->count, job->choices[slot->part], more * sizeof *q->ids);
    q->count += more;
    slot->g = run_generation(&slot->run, 0, true);
    slot->g.logits = job->logits; /* where there is nothing more to compute */
    slot->g.score = score_choice;
    slot->g.score_from = job->rows;
}

/* Begins the job's next sample or choice. False: there is no room yet. */
static bool begin_part(Batch *b, Job *job) {
    Sequence *q = fork_prompt(b, job);
    if (!q)
        return false;
    Slot *slot = open_slot(b, job, q);
    slot->part = job->begun++;
    job->busy |= slot->in_job;
    if (job->request.choice_count) {
        open_choice(slot);
    } else if (!open_sample(slot)) {
        slot->run.text.lost = true;
        end_text(slot);
        return true;
    }
    slot->g.owner = slot;
    begin_text(slot);
    return true;
}

static void end_part(Slot *slot) {
    Job *job = slot->job;
    if (!job->request.choice_count) {
        Reply *reply = slot_reply(slot);
        run_end_text(&slot->run);
        reply->end = slot->g.end;
        reply->completion_tokens = slot->run.written;
        slot->batch->written += slot->run.written;
    }
    job_part_done(job, slot->part);
}

/* The job's sequence holds the prompt alone again, and has pages for another text. */
static void rewind_prompt(const Batch *b, Job *job) {
    sequence_cut(job->sequence, job->rows);
    job->sequence->count = job->rows;
    sequence_reserve(job->sequence, min(job->rows + job->tokens, b->state->context));
    job->busy = false;
}

/* The text has ended: its result is kept, its slot and pages are free. */
static void end_text(Slot *slot) {
    Batch *b = slot->batch;
    Job *job = slot->job;
    b->read += slot->g.read;
    if (slot->g.end == END_INTERRUPTED) {
        b->interrupted = true;
        return; /* the whole run ends */
    }
    if (slot->g.end == END_NON_FINITE)
        job_fail(job, "the logits are non-finite; --check looks for damage in the checkpoint");
    else if (slot->run.text.lost)
        job_fail(job, "out of memory");
    else if (slot->reads) {
        sequence_mark(job->sequence);
        job->state = JOB_RUNS;
    } else if (job->state == JOB_RUNS)
        end_part(slot);
    if (!slot->in_job)
        sequence_close(slot->run.sequence);
    else if (job->state == JOB_RUNS)
        rewind_prompt(b, job);
    close_slot(slot);
    if (--job->texts == 0 && job->state == JOB_ENDED)
        sequence_close(job->sequence);
}

bool begin_job(Batch *b, Job *job) {
    if (job->state == JOB_WAITS && !read_prompt(b, job))
        return false;
    while (job->state == JOB_RUNS && job->begun < job->parts)
        if (!has_slot(b) || !begin_part(b, job))
            return false;
    return true;
}

void end_texts(Batch *b) {
    size_t going = 0;
    for (size_t i = 0; i < b->running_count; i++) {
        Generation *g = b->running[i];
        leave_prefix(b, g->owner);
        if (!g->end)
            b->running[going++] = g;
        else
            end_text(g->owner);
    }
    b->running_count = going;
}

void close_texts(Batch *b) {
    for (size_t i = 0; b->slots && i < b->parallel; i++)
        if (b->slots[i].job)
            close_slot(&b->slots[i]);
}
