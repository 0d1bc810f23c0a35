/* run.c: the story. forward (a transformer with latent attention and mixtures of experts), generate, main.
 * Read it from top to bottom with model.h beside it.
 *
 * The attention is in mla.c, its choice of rows in engine/indexer.c, the inner loops in kernels/, the file
 * in engine/checkpoint.c, buffers in engine/state.c, text <-> ids in tokenizer.c, and everything that is
 * beside the story (options, conversations, perplexity, information) in cli/. There is one forward:
 * prefill is many rows of one sequence, decode is one row; weight types and cache types are the kernels'
 * and mla.c's business. */
#include <stdlib.h>
#include <string.h>

#include "cli/modes.h"
#include "cli/prompt.h"
#include "cli/system.h"
#include "engine/checkpoint.h"
#include "engine/rope.h"
#include "generate.h"
#include "kernels/clock.h"
#include "kernels/linear.h"
#include "mla.h"
#include "model.h"

/* ---- router --------------------------------------------------------------------------------- */

/* The index of the largest of n values that `taken` does not mark; the first of equals. */
static size_t largest(const float *x, const bool *taken, size_t n) {
    size_t best = n;
    for (size_t i = 0; i < n; i++)
        if (!taken[i] && (best == n || x[i] > x[best]))
            best = i;
    return best;
}

/* Marks the experts of all but the best topk_group groups as taken. A group's score is its largest value,
 * or the sum of its two largest. */
static void limit_groups(const Config *c, const float *biased, bool *taken) {
    size_t size = c->n_routed_experts / c->n_group;
    float score[MAX_GROUPS];
    bool kept[MAX_GROUPS] = {false};
    for (size_t g = 0; g < c->n_group; g++) {
        bool one[MAX_EXPERTS] = {false};
        size_t first = largest(biased + g * size, one, size);
        score[g] = biased[g * size + first];
        if (c->group_score == GROUP_TOP2_SUM && size > 1) {
            one[first] = true;
            score[g] += biased[g * size + largest(biased + g * size, one, size)];
        }
    }
    for (size_t k = 0; k < c->topk_group; k++)
        kept[largest(score, kept, c->n_group)] = true;
    for (size_t e = 0; e < c->n_routed_experts; e++)
        taken[e] = !kept[e / size];
}

/* Which experts a row is sent to, and with which weights. scores [E + Z] are the router's outputs, changed
 * in place. The bias takes part in choosing, not in weighing (DeepSeek-V3, arXiv 2412.19437, section
 * 2.1.2). */
static void choose_experts(const Model *m, float *scores, const float *bias, uint32_t *chosen,
                           float *weight) {
    const Config *c = &m->config;
    size_t E = router_rows(c), K = c->num_experts_per_tok;
    float biased[MAX_EXPERTS], sum = 0;
    bool taken[MAX_EXPERTS] = {false};
    float none = 0; /* NaN if a score is no number: it would not be chosen, and nobody would see it */

    for (size_t e = 0; e < E; e++)
        none += scores[e] - scores[e];
    (c->scoring_func == SCORE_SIGMOID ? m->k->sigmoid : m->k->softmax)(scores, E);
    for (size_t e = 0; e < E; e++)
        biased[e] = scores[e] + bias[e];
    if (c->n_group > 1)
        limit_groups(c, biased, taken);
    for (size_t k = 0; k < K; k++) {
        size_t e = largest(biased, taken, E);
        taken[e] = true;
        chosen[k] = (uint32_t)e;
        weight[k] = scores[e];
        sum += scores[e];
    }
    for (size_t k = 0; k < K; k++)
        weight[k] =
            (c->norm_topk_prob ? weight[k] / (sum + 1e-20f) : weight[k]) * c->routed_scaling_factor + none;
}

/* ---- MLPs: experts, shared experts, dense layers -------------------------------------------- */

enum { MLP_TASK_COLUMNS = 64, MLP_TASKS_AT_ONCE = MLP_ROW / MLP_TASK_COLUMNS };

/* Tasks of the jobs up to this one. */
static size_t tasks_until(const MlpJob *job) {
    return job->task + (job->hidden.cols + MLP_TASK_COLUMNS - 1) / MLP_TASK_COLUMNS;
}

/* An MLP for the rows in slots slot .. slot + rows - 1; its hidden rows begin at element *hidden. */
static void add_job(State *s, const Mlp *mlp, size_t rows, size_t slot, size_t *hidden) {
    MlpJob *job = &s->jobs[s->job_count];
    size_t width = mlp->up.rows;
    job->mlp = mlp, job->rows = rows, job->slot = slot;
    job->task = s->job_count ? tasks_until(job - 1) : 0;
    /* an MLP that all rows use reads them where they are */
    job->in =
        rows == s->n ? s->normed : acts_view(&s->gathered, slot * s->gathered.stride, rows, s->gathered.cols);
    job->hidden = acts_view(&s->hidden, *hidden, rows, width);
    *hidden += rows * job->hidden.stride;
    s->job_count++;
}

/* The MLPs of a layer and their rows. An expert comes once, with all rows that chose it, so that its
 * weights are read once; experts in ascending order, then the shared ones: the order of the additions.
 * Identity experts have no MLP: add_identities. */
static void plan_mlps(const Model *m, State *s, const Layer *L) {
    const Config *c = &m->config;
    size_t K = c->num_experts_per_tok, slot = 0, hidden = 0;
    s->job_count = 0;
    if (L->experts) {
        memset(s->expert_rows, 0, router_rows(c) * sizeof *s->expert_rows);
        for (size_t i = 0; i < s->n * K; i++)
            s->expert_rows[s->chosen[i]]++;
        for (uint32_t e = 0; e < c->n_routed_experts; e++) {
            size_t rows = s->expert_rows[e];
            if (rows)
                add_job(s, &L->experts[e], rows, slot, &hidden);
            s->expert_rows[e] = (uint32_t)slot; /* from here on: the next free slot of the expert */
            slot += rows;
        }
        for (size_t i = 0; i < s->n * K; i++) {
            if (s->chosen[i] >= c->n_routed_experts)
                continue;
            size_t at = s->expert_rows[s->chosen[i]]++;
            s->slot_row[at] = (uint32_t)(i / K);
            s->slot_weight[at] = s->chosen_weight[i];
        }
    }
    if (L->mlp.up.data) {
        add_job(s, &L->mlp, s->n, slot, &hidden);
        for (size_t i = 0; i < s->n; i++)
            s->slot_row[slot + i] = (uint32_t)i, s->slot_weight[slot + i] = 1;
    }
}

/* x = relu(x)^2; x - x is 0, and NaN for an infinity that must not pass */
static void relu2(float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < 0 ? x[i] - x[i] : x[i] * x[i];
}

/* hidden = silu(W_gate x) * (W_up x), or relu(W_up x)^2 without a gate, tasks `from` .. `to` - 1 of a job:
 * MLP_TASK_COLUMNS columns each, for all its rows. */
static void hidden_columns(const Model *m, MlpJob *job, size_t from, size_t to, Scratch *z) {
    size_t column = from * MLP_TASK_COLUMNS,
           end = to * MLP_TASK_COLUMNS < job->hidden.cols ? to * MLP_TASK_COLUMNS : job->hidden.cols;
    size_t panel = column / PANEL, panels = (end - column + PANEL - 1) / PANEL, stride = panels * PANEL;
    bool gated = m->config.hidden_act == ACT_SILU;
    m->k->matmul(z->a, stride, &job->mlp->up, panel, panels, &job->in);
    if (gated)
        m->k->matmul(z->b, stride, &job->mlp->gate, panel, panels, &job->in);
    for (size_t i = 0; i < job->rows; i++) {
        float *h = z->a + i * stride;
        if (gated)
            m->k->swiglu(h, z->b + i * stride, h, end - column);
        else
            relu2(h, end - column);
        m->k->put(&job->hidden, i, column, h, end - column);
    }
}

/* The hidden rows of all jobs. One row: every thread streams through its share of the weights, in long
 * stretches. More rows: experts have uneven numbers of them, and whoever is free takes the next task. */
static void run_hidden(const Model *m, State *s, Thread *t) {
    Scratch *z = &s->scratch[t->id];
    size_t tasks = s->job_count ? tasks_until(&s->jobs[s->job_count - 1]) : 0, from, to;
    share(t, tasks, &from, &to);
    if (s->n > 1)
        from = next_task(t, tasks), to = from + 1;
    for (size_t i = 0; from < to && from < tasks;) { /* tasks come in ascending order: i only moves forward */
        while (i + 1 < s->job_count && s->jobs[i + 1].task <= from)
            i++;
        size_t first = s->jobs[i].task, end = i + 1 < s->job_count ? s->jobs[i + 1].task : tasks;
        end = to < end ? to : end;
        end = from + MLP_TASKS_AT_ONCE < end ? from + MLP_TASKS_AT_ONCE : end;
        hidden_columns(m, &s->jobs[i], from - first, end - first, z);
        from = end;
        if (s->n > 1)
            from = next_task(t, tasks), to = from + 1;
    }
}

/* Experts E .. E + Z - 1 give back what they are given: experts_out += weight * normed, in the columns
 * that linear_add gives this thread. */
static void add_identities(const Model *m, State *s, const Thread *t) {
    const Config *c = &m->config;
    size_t D = c->hidden_size, K = c->num_experts_per_tok, from, to;
    share(t, (D + PANEL - 1) / PANEL, &from, &to);
    from *= PANEL, to = to * PANEL < D ? to * PANEL : D;
    for (size_t i = 0; i < s->n * K && from < to; i++)
        if (s->chosen[i] >= c->n_routed_experts)
            m->k->axpy(s->experts_out + i / K * s->x_stride + from, s->chosen_weight[i],
                       s->normed.f + i / K * s->normed.stride + from, to - from);
}

/* out += W_down hidden for every MLP of the layer, weighed. */
static void run_mlps(const Model *m, State *s, const Layer *L, Thread *t) {
    Scratch *z = &s->scratch[t->id];
    size_t i;
    if (s->n > 1) { /* a single row needs no gathering */
        while ((i = next_task(t, s->job_count)) < s->job_count)
            if (s->jobs[i].rows < s->n)
                m->k->gather(&s->jobs[i].in, &s->normed, s->slot_row + s->jobs[i].slot);
        sync_threads(t);
    }
    run_hidden(m, s, t);
    sync_threads(t);
    for (i = 0; i < s->job_count; i++) {
        const MlpJob *job = &s->jobs[i];
        float *out = job->mlp == &L->mlp ? s->out : s->experts_out;
        linear_add(m->k, out, s->x_stride, &job->mlp->down, &job->hidden, s->slot_row + job->slot,
                   s->slot_weight + job->slot, z->a, t);
    }
    if (L->experts && m->config.zero_expert_num)
        add_identities(m, s, t);
    sync_threads(t);
}

static void mlp(const Model *m, State *s, const Layer *L, Thread *t) {
    const Config *c = &m->config;
    stage(s, t, L->experts ? STAGE_EXPERTS : STAGE_DENSE);
    if (L->experts) {
        size_t stride = round_up(router_rows(c), PANEL), K = c->num_experts_per_tok, from, to;
        linear(m->k, s->scores, stride, &L->router, &s->normed, t);
        sync_threads(t);
        share(t, s->n, &from, &to);
        bool few = s->n < (size_t)t->threads;
        if (few) /* not worth meeting for: thread 0, which plans, chooses for all */
            from = 0, to = t->id == 0 ? s->n : 0;
        for (size_t i = from; i < to; i++)
            choose_experts(m, s->scores + i * stride, L->router_bias, s->chosen + i * K,
                           s->chosen_weight + i * K);
        if (!few)
            sync_threads(t);
    }
    if (t->id == 0)
        plan_mlps(m, s, L);
    sync_threads(t);
    run_mlps(m, s, L, t);
}

/* ---- forward -------------------------------------------------------------------------------- */

/* normed = RMSNorm(x) * weight */
static void norm(const Model *m, State *s, const float *weight, Thread *t) {
    const Config *c = &m->config;
    float *y = s->scratch[t->id].a;
    size_t from, to;
    stage(s, t, STAGE_OTHER);
    share(t, s->n, &from, &to);
    for (size_t i = from; i < to; i++) {
        m->k->rmsnorm(y, s->x + i * s->x_stride, weight, c->hidden_size, c->rms_norm_eps);
        m->k->put(&s->normed, i, 0, y, c->hidden_size);
    }
    sync_threads(t);
}

/* x += branch, normed first if weight is not NULL; the branch is empty again. */
static void add_branch(const Model *m, State *s, const float *weight, Thread *t) {
    const Config *c = &m->config;
    size_t D = c->hidden_size, from, to;
    stage(s, t, STAGE_OTHER);
    share(t, s->n, &from, &to);
    for (size_t i = from; i < to; i++) {
        float *b = s->branch + i * s->x_stride;
        if (weight)
            m->k->rmsnorm(b, b, weight, D, c->rms_norm_eps);
        m->k->axpy(s->x + i * s->x_stride, 1, b, D);
        memset(b, 0, D * sizeof *b);
    }
    sync_threads(t);
}

/* x = the tokens' embeddings, and the rotations of their positions. */
static void embed(const Model *m, State *s, Thread *t) {
    const Config *c = &m->config;
    size_t pairs = c->qk_rope_head_dim / 2, from, to;
    share(t, s->n, &from, &to);
    for (size_t i = from; i < to; i++) {
        float *x = s->x + i * s->x_stride;
        m->k->row(x, &m->embed, (size_t)s->rows[i].token);
        for (size_t j = 0; j < c->hidden_size && c->embed_scale != 1; j++)
            x[j] *= c->embed_scale;
        rope_angles(s->cosine + i * pairs, s->sine + i * pairs, m->inv_freq, pairs, s->rows[i].position);
    }
    sync_threads(t);
}

/* logits = W_head RMSNorm(x), for the rows that asked. */
static void head(const Model *m, State *s, Thread *t) {
    const Config *c = &m->config;
    float *y = s->scratch[t->id].a;
    size_t stride = round_up(c->vocab_size, PANEL), from, to;
    stage(s, t, STAGE_HEAD);
    share(t, s->wanted_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        m->k->rmsnorm(y, s->x + s->wanted[i] * s->x_stride, m->norm, c->hidden_size, c->rms_norm_eps);
        m->k->put(&s->last, i, 0, y, c->hidden_size);
    }
    sync_threads(t);
    linear(m->k, s->logits, stride, &m->head, &s->last, t);
    sync_threads(t);
    /* callers want [rows][V], without the padding of the panels */
    for (size_t i = 1; i < s->wanted_count && t->id == 0 && stride != c->vocab_size; i++)
        memmove(s->logits + i * c->vocab_size, s->logits + i * stride, c->vocab_size * sizeof(float));
}

/* What every thread of the team runs. */
static void forward_thread(const Model *m, State *s, Thread *t) {
    const Config *c = &m->config;
    embed(m, s, t);
    for (size_t l = 0; l < c->num_hidden_layers; l++) {
        const Layer *L = &m->layers[l];
        if (l == atomic_load(&s->stop_before))
            return;
        /* seen by all threads after the next barrier: before the next layer */
        if (t->id == 0 && s->stop && s->stop())
            atomic_store(&s->stop_before, l + 1);
        norm(m, s, L->input_norm, t);
        mla_attention(m, s, l, t); /* x += attention(norm(x)) */
        if (c->sandwich_norm)      /* x += norm(attention(norm(x))) */
            add_branch(m, s, L->attention_out_norm, t);
        norm(m, s, L->post_norm, t);
        mlp(m, s, L, t); /* x += mlp(norm(x)), or experts */
        if (c->sandwich_norm || (c->shortcut_moe && l % 2))
            add_branch(m, s, L->mlp_out_norm, t);
    }
    if (s->wanted_count)
        head(m, s, t);
    stage(s, t, STAGE_OTHER);
}

const float *forward(const Model *m, State *s, const Row *rows, size_t n) {
    state_begin(s, rows, n);
    team_begin(&s->team, n);
#pragma omp parallel num_threads(s->team.asked)
    {
        Thread t = team_join(&s->team);
        forward_thread(m, s, &t);
    }
    team_end(&s->team);
    if (atomic_load(&s->stop_before) >= m->config.num_hidden_layers)
        return s->logits;
    if (s->branch) /* the next call finds it empty */
        memset(s->branch, 0, n * s->x_stride * sizeof *s->branch);
    return NULL;
}

/* ---- generate ------------------------------------------------------------------------------- */

/* Computes the tokens that are not in the cache yet, a chunk of rows at a time: a prompt, or the one token
 * that was written last. Only the last row needs logits; they are returned. */
static const float *read_tokens(Run *r) {
    Sequence *q = &r->sequence;
    size_t chunk = r->state->chunk, first = q->position, all = q->count - first;
    while (q->position < q->count && !interrupted()) {
        size_t n = q->count - q->position < chunk ? q->count - q->position : chunk;
        for (size_t i = 0; i < n; i++) {
            size_t at = q->position + i;
            r->rows[i] = (Row){.token = q->ids[at], .position = (uint32_t)at, .logits = at == q->count - 1};
        }
        if (!forward(r->model, r->state, r->rows, n))
            break;
        for (size_t i = 0; i < n; i++)
            sampler_saw(r->sampler, q->ids[q->position++]);
        if (all > chunk)
            progress("prompt", q->position - first, all);
    }
    return r->state->logits;
}

static bool is_end_token(const Run *r, int32_t token) {
    const Config *c = &r->model->config;
    bool end = token == r->turn_end;
    for (uint32_t i = 0; i < c->eos_tokens; i++)
        end |= token == c->eos_token_id[i];
    return end && !r->options->typed[OPT_IGNORE_EOS];
}

/* The bytes of a token, `first` of the text or not. */
static const char *token_bytes(const Run *r, int32_t token, bool first, size_t *n) {
    bool special;
    const char *bytes = tokenizer_decode(r->model->tokenizer, token, first, n, &special);
    if (special && !r->options->typed[OPT_SPECIAL] && !thought_begins(&r->text, bytes, *n) &&
        !thought_ends(&r->text, bytes, *n))
        *n = 0;
    return bytes;
}

const char *token_text(const Run *r, size_t at, size_t *n) {
    const int32_t *ids = r->sequence.ids;
    bool first = true; /* the first of the text if none before it has any */
    for (size_t i = 0; i < at && first; i++) {
        token_bytes(r, ids[i], false, n);
        first = *n == 0;
    }
    return token_bytes(r, ids[at], first, n);
}

static void write_id(Run *r, int32_t token) {
    output_print(r->ids_printed++ ? " %d" : "%d", token);
    output_flush();
}

/* Writes the last token of the sequence. False: a stop text is complete. */
static bool write_token(Run *r) {
    r->written++;
    if (!r->model->tokenizer) {
        write_id(r, r->sequence.ids[r->sequence.count - 1]);
        return true;
    }
    size_t n;
    const char *bytes = token_text(r, r->sequence.count - 1, &n);
    return text_token(&r->text, bytes, n);
}

/* Writes at most `most` tokens (-1: as many as the context has room for), the first one from the logits
 * after the prompt. */
static End write_text(Run *r, const float *logits, int64_t most) {
    Sequence *q = &r->sequence;
    for (int64_t left = most; left != 0; left--) {
        if (interrupted())
            return CAUGHT;
        uint64_t random = sampler_random(r->sampler);
        int32_t token = sampler_next(r->sampler, logits);
        if (token < 0)
            return NOT_NUMBERS;
        if (is_end_token(r, token)) {
            /* it is no part of the text: a session that goes on from here chooses again */
            sampler_resume(r->sampler, random);
            return ENDED;
        }
        q->ids[q->count++] = token;
        if (!write_token(r) || left == 1)
            return ENDED;
        if (q->position == r->state->context)
            return CONTEXT_FULL;
        logits = read_tokens(r);
        r->decoded++;
    }
    return ENDED;
}

End generate(Run *r) {
    size_t before = r->sequence.position;
    double start = seconds();
    const float *logits = read_tokens(r);
    double middle = seconds();
    r->read += r->sequence.position - before;
    bool complete = r->sequence.position == r->sequence.count; /* else there are no logits */
    End end = complete && !are_numbers(logits, r->model->config.vocab_size) ? NOT_NUMBERS
              : interrupted()                                               ? CAUGHT
                              : write_text(r, logits, r->options->tokens);
    r->read_seconds += middle - start;
    r->write_seconds += seconds() - middle;
    return end;
}

void run_rewind(Run *r, size_t rows) {
    Sequence *q = &r->sequence;
    q->position = rows < q->position ? rows : q->position;
    sampler_forget(r->sampler);
    for (size_t i = 0; i < q->position; i++)
        sampler_saw(r->sampler, q->ids[i]);
}

/* ---- main ----------------------------------------------------------------------------------- */

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

static double rate(size_t tokens, double time) { return time > 0 ? (double)tokens / time : 0; }

static int tell(const Run *r, End end) {
    if (end == CONTEXT_FULL)
        note("the context of %zu tokens is full", r->state->context);
    if (end == ENDED && !r->written && r->options->tokens && r->options->typed[OPT_SESSION] &&
        r->options->mode == MODE_GENERATE)
        note("the model has nothing to add: a prompt or --ignore-eos goes on");
    if (end == NOT_NUMBERS)
        return not_numbers(r->model);
    note("prompt %zu tokens, %.1f tokens/s; text %zu tokens, %.1f tokens/s; seed %llu", r->read,
         rate(r->read, r->read_seconds), r->written, rate(r->decoded, r->write_seconds),
         (unsigned long long)r->sequence.seed);
    return end == CAUGHT ? interrupt_status() : DONE;
}

/* What was not given on the command line comes from the checkpoint, and the seed from the session or the
 * system. */
static bool sampling(const Config *c, const Options *o, const Sequence *q, SamplerOptions *s) {
    *s = (SamplerOptions){
        .temperature = o->temperature < 0 ? c->temperature : (float)o->temperature,
        .top_k = o->top_k < 0 ? c->top_k : (uint32_t)o->top_k,
        .top_p = o->top_p < 0 ? c->top_p : (float)o->top_p,
        .min_p = (float)o->min_p,
        .repeat_penalty = (float)o->repeat_penalty,
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

int run_finish(Run *r, Session *session, End end) {
    Sequence *q = &r->sequence;
    int status = tell(r, end);
    q->cut = r->text.cut;
    q->random = sampler_random(r->sampler);
    int saved = end == NOT_NUMBERS ? DONE : session_save(session, q, r->state);
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
    q->conversation = false;
    End end = generate(r);
    if (!r->model->tokenizer && !r->text.terminal && end != NOT_NUMBERS)
        output_print("\n");
    text_end(&r->text);
    return run_finish(r, session, end);
}

static int mode_generate(const Model *m, const Options *given) {
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

int main(int argc, char **argv) {
    static int (*const modes[])(const Model *, const Options *) = {
        [MODE_GENERATE] = mode_generate,     [MODE_CHAT] = mode_chat,         [MODE_LOGITS] = mode_logits,
        [MODE_PERPLEXITY] = mode_perplexity, [MODE_TOKENIZE] = mode_tokenize, [MODE_INFO] = mode_info,
        [MODE_CHECK] = mode_check,           [MODE_BENCH] = mode_bench,
    };
    Options o;
    Model m;
    char err[1024];
    int status;
    output_open();
    if (options_parse(&o, argc, argv, &status)) {
        if (model_open(&m, o.model, err, sizeof err)) {
            status = modes[o.mode](&m, &o);
            model_close(&m);
        } else {
            status = failed(FAILED, "%s", err);
        }
    }
    options_close(&o);
    return status;
}
