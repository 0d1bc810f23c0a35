/* run.c: the main program: forward (a transformer with latent attention and mixtures of experts),
 * generate, main. Read it from top to bottom with model.h beside it; then mla.c.
 *
 * There is one forward. Prefill is many rows of a sequence, decode is one row, a batch is rows of many
 * sequences. Weight types and cache types are the business of kernels/ and mla.c.
 *
 * Threads. In a call of forward every thread runs the same functions with its own Thread t.
 * share(t, n, &from, &to) gives it its part of n items, next_task(t, n) the next of n uneven ones (it starts
 * again at every barrier), and sync_threads(t) is a barrier: what others wrote before it can be read after
 * it (kernels/team.h). Work is split by output, so no result depends on the number of threads. The one sum
 * that is split, attention to a long context, is cut at places that depend on the context alone, and its
 * parts are merged in order (engine/attend.c).
 *
 * The rest: attention in mla.c, routers and experts in engine/moe.c, the inner loops in kernels/, the file
 * in engine/checkpoint.c, buffers in engine/state.c, text <-> ids in tokenizer.c. What knows options,
 * terminals, sessions or conversations is in cli/. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "engine/checkpoint.h"
#include "engine/hyper.h"
#include "engine/kda_layer.h"
#include "engine/moe.h"
#include "engine/rope.h"
#include "engine/sampler.h"
#include "engine/sequence.h"
#include "engine/state.h"
#include "engine/util.h"
#include "engine/window.h"
#include "kernels/clock.h"
#include "kernels/linear.h"
#include "model.h"
#include "tokenizer.h"

/* ---- forward -------------------------------------------------------------------------------- */

static void embed(const Model *m, State *s, Thread *t); /* x = embedding(token) */
/* normed = RMSNorm(x) */
static void norm(const Model *m, State *s, const Hyper *h, const float *weight, Thread *t);
static void mlp(const Model *m, State *s, const Layer *L, Thread *t); /* out += MLP(normed) */
static void add_branch(const Model *m, State *s, const float *weight, Thread *t);
static void head(const Model *m, State *s, Thread *t); /* logits = W_head RMSNorm(x) */

typedef struct {
    const Model *m;
    State *s;
} Call;

/* What every thread of the team runs. Attention and mlp add to the residual stream x or to a branch, zeros at
 * first, which add_branch adds to x:
 *
 *                       attention adds to   mlp adds to                      add_branch
 *   most models         x                   x
 *   sandwich_norm       branch              branch                           norms it, after each of the two
 *   experts_out_norm    x                   branch, in layers with experts   norms it, after mlp
 *   shortcut_moe        x                   x; a pair's experts: branch      after the pair's second layer
 *   hc_mult             branch              branch                           spreads it over the streams
 *
 * With hc_mult x is several streams (engine/hyper.c), and norm reads a mixture of them. */
static void forward_thread(Thread *t, void *context) {
    const Call *call = context;
    const Model *m = call->m;
    State *s = call->s;
    const Config *cfg = &m->config;
    embed(m, s, t);
    for (size_t l = 0; l < cfg->num_hidden_layers; l++) {
        const Layer *L = &m->layers[l];
        if (l == atomic_load(&s->stop_before))
            return;
        /* the others read it at the start of the next layer, after a barrier: all leave at the same layer.
         * (In the last layer there is no next one: the call ends as usual, and next_token asks again.) */
        if (t->id == 0 && s->stop && s->stop())
            atomic_store(&s->stop_before, l + 1);

        norm(m, s, &L->attention_hyper, L->input_norm, t);
        LayerKind kind = layer_kind(cfg, (uint32_t)l);
        if (kind == LAYER_KDA) /* each: out += attention(norm(x)) */
            kda_attention(m, s, l, t);
        else if (kind >= LAYER_SLIDING)
            window_attention(m, s, l, t);
        else
            mla_attention(m, s, l, t);
        if (cfg->sandwich_norm || cfg->hc_mult)
            add_branch(m, s, L->attention_out_norm, t);
        norm(m, s, &L->mlp_hyper, L->post_norm, t);
        mlp(m, s, L, t); /* out += mlp(norm(x)) */
        if (L->mlp_out_norm || cfg->hc_mult || (cfg->shortcut_moe && l % 2))
            add_branch(m, s, L->mlp_out_norm, t);
    }
    if (s->head.count)
        head(m, s, t);
    profile_stage(s, t, STAGE_OTHER);
}

const float *forward(const Model *m, State *s, const Row *rows, size_t n) {
    state_begin(s, rows, n);
    team_run(&s->team, forward_thread, &(Call){m, s}, n, s->work);
    if (atomic_load(&s->stop_before) < m->config.num_hidden_layers) {
        state_drop(s);
        return NULL;
    }
    state_end(s);
    return s->logits;
}

/* ---- its parts, in order -------------------------------------------------------------------- */

/* x = embedding of the row's token; cosine and sine of its position, for every rotation of the call. */
static void embed(const Model *m, State *s, Thread *t) {
    const Config *cfg = &m->config;
    size_t pairs = cfg->qk_rope_head_dim / 2, from, to;
    share(t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        float *x = s->x + i * s->x_stride;
        m->ops->read_row(x, &m->embed, (size_t)s->rows[i].token);
        if (cfg->embed_scale != 1)
            for (size_t d = 0; d < cfg->hidden_size; d++)
                x[d] *= cfg->embed_scale;
        for (size_t k = 1; k < cfg->hc_mult; k++) /* all streams begin alike */
            memcpy(x + k * cfg->hidden_size, x, cfg->hidden_size * sizeof *x);
        rope_angles(s->attention.cosine + i * pairs, s->attention.sine + i * pairs, m->inv_freq, pairs,
                    s->rows[i].position);
        window_angles(m, s, i);
    }
    sync_threads(t);
}

/* normed = RMSNorm(x) * weight, in the number formats that the layer's matrices read. */
static void norm(const Model *m, State *s, const Hyper *h, const float *weight, Thread *t) {
    const Config *cfg = &m->config;
    float *y = s->scratch[t->id].a;
    size_t from, to;
    profile_stage(s, t, STAGE_OTHER);
    if (cfg->hc_mult) {
        hyper_read(m, s, h, weight, t);
        return;
    }
    share(t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        m->ops->rmsnorm(y, s->x + i * s->x_stride, weight, cfg->hidden_size, cfg->rms_norm_eps);
        m->ops->store_row(&s->normed, i, 0, y, cfg->hidden_size);
    }
    sync_threads(t);
}

/* y = normed. A dense layer: out += W_down (silu(W_gate y) * W_up y). A mixture of experts (engine/moe.c):
 *
 *     score  = softmax, sigmoid or sqrt(log(1 + e^.)) of W_router y   (scoring_func)
 *     chosen = the num_experts_per_tok experts with the best score + bias. With groups, only experts of the
 *              topk_group best groups may be chosen; a group is as good as its best score + bias, or as
 *              the sum of its two best (group_score). Of equal ones the lower number is taken
 *     w_e    = score_e, without the bias; divided by the sum over the chosen ones (norm_topk_prob); times
 *              routed_scaling_factor
 *     out   += sum of w_e MLP_e(y) over the chosen experts, in the order of their numbers; then the shared
 *              experts' MLP(y). A zero expert has MLP_e(y) = y
 *
 * An expert is computed once for all rows of the call that chose it (an expert batch), so that its weights
 * are read once. A row's result does not depend on the batch: every row is summed in the same order. */
static void mlp(const Model *m, State *s, const Layer *L, Thread *t) {
    profile_stage(s, t, L->experts ? STAGE_EXPERTS : STAGE_DENSE);
    if (L->experts)
        route(m, s, L, t);
    if (t->id == 0) /* route() returns in thread 0 only when all rows have their experts */
        plan_batches(m, s, L);
    sync_threads(t);
    run_batches(m, s, L, t); /* ends with a barrier */
}

/* x += residual branch, normed first if weight is not NULL; the branch is zeros again. With hc_mult weight is
 * not read: engine/config.c refuses a model that has both. */
static void add_branch(const Model *m, State *s, const float *weight, Thread *t) {
    const Config *cfg = &m->config;
    size_t D = cfg->hidden_size, from, to;
    profile_stage(s, t, STAGE_OTHER);
    if (cfg->hc_mult) {
        hyper_write(m, s, t);
        return;
    }
    share(t, s->row_count, &from, &to);
    for (size_t i = from; i < to; i++) {
        float *branch = s->branch + i * s->out_stride;
        if (weight)
            m->ops->rmsnorm(branch, branch, weight, D, cfg->rms_norm_eps);
        m->ops->axpy(s->x + i * s->x_stride, 1, branch, D);
        memset(branch, 0, D * sizeof *branch);
    }
    sync_threads(t);
}

/* logits = W_head RMSNorm(x), for the rows that asked. */
static void head(const Model *m, State *s, Thread *t) {
    const Config *cfg = &m->config;
    float *y = s->scratch[t->id].a;
    size_t V = cfg->vocab_size, stride = round_up(V, PANEL), from, to;
    profile_stage(s, t, STAGE_HEAD);
    if (cfg->hc_mult)
        hyper_head(m, s, t); /* x = the mixture that the head reads */
    share(t, s->head.count, &from, &to);
    for (size_t i = from; i < to; i++) {
        m->ops->rmsnorm(y, s->x + s->head.row[i] * s->x_stride, m->norm, cfg->hidden_size, cfg->rms_norm_eps);
        m->ops->store_row(&s->head.normed, i, 0, y, cfg->hidden_size);
    }
    sync_threads(t);
    linear(m->ops, s->logits, stride, &m->head, &s->head.normed, t);
    sync_threads(t);
    /* callers want [rows][V], without the padding of the panels */
    if (t->id == 0 && stride != V)
        for (size_t i = 1; i < s->head.count; i++)
            memmove(s->logits + i * V, s->logits + i * stride, V * sizeof(float));
}

/* ---- generate ------------------------------------------------------------------------------- */

static bool is_end_token(const Generation *g, int32_t token) {
    for (size_t i = 0; i < g->end_token_count; i++)
        if (g->end_tokens[i] == token)
            return true;
    return false;
}

/* A stretch is all ids of a text that are not in the cache when reading begins: a prompt, or the one token
 * that was written last. It has its paths as a whole (engine/sequence.h), even if it takes several calls. A
 * prefix, which other texts begin with, too, is a stretch of its own. */
static void begin_stretch(Generation *g) {
    Sequence *q = g->sequence;
    size_t end = q->rows < g->prefix && g->prefix < q->count ? g->prefix : q->count;
    g->stretch = q->rows;
    g->stretch_rows = end - q->rows;
}

/* Chooses the token after the last id, or ends the text. logits: [V]. */
static void next_token(const Model *m, const State *s, Generation *g, const float *logits) {
    Sequence *q = g->sequence;
    if (!g->written && !all_finite(logits, m->config.vocab_size)) /* later sampler_next looks */
        g->end = END_NON_FINITE;
    else if (s->stop && s->stop())
        g->end = END_INTERRUPTED;
    else if (g->limit == 0)
        g->end = END_LENGTH;
    if (g->end)
        return;
    uint64_t random = sampler_random(g->sampler); /* the generator's state, to be put back */
    int32_t token = sampler_next(g->sampler, logits, s->scratch[0].sample);
    if (token < 0) { /* some logit is non-finite */
        g->end = END_NON_FINITE;
        return;
    }
    if (is_end_token(g, token)) {
        /* It is not added. If the text is continued later, this place is sampled again, with the same
         * number. */
        sampler_resume(g->sampler, random);
        g->end = END_TOKEN;
        return;
    }
    q->ids[q->count++] = token;
    g->written++;
    if (!g->emit(g->owner, logits))
        g->end = END_STOP;
    else if ((int64_t)g->written == g->limit)
        g->end = END_LENGTH;
    else if (q->rows == s->context)
        g->end = END_CONTEXT;
    begin_stretch(g);
}

/* Whether the logits after the id at `place` are wanted: the last one's choose the next token. */
static bool wants_logits(const Generation *g, size_t place) {
    return place + 1 == g->sequence->count || (g->score && place >= g->score_from);
}

/* Adds to s->plan the next ids of a text that are not in the cache, as far as there is room. */
static void plan_rows(State *s, Generation *g, size_t *count, size_t *logits) {
    Sequence *q = g->sequence;
    size_t pending = g->stretch + g->stretch_rows - q->rows, rows = min(pending, s->chunk - *count);
    g->first_logits = *logits;
    sequence_rows(q, s->plan + *count, rows, g->stretch, g->stretch_rows);
    for (g->rows = 0; g->rows < rows; g->rows++) {
        bool wanted = wants_logits(g, q->rows + g->rows);
        if (wanted && *logits == s->max_logits)
            break;
        s->plan[*count].logits = wanted;
        *logits += wanted;
        ++*count;
    }
}

/* s->plan = the rows of the next call: the last token of every text that is being written, then as many rows
 * of prompts as there is room for, earlier texts first. Returns the number of rows. */
static size_t plan_call(State *s, Generation *const *texts, size_t n) {
    size_t count = 0, logits = 0;
    for (int reading = 0; reading <= 1; reading++) {
        for (size_t i = 0; i < n; i++) {
            bool reads_prompt = !texts[i]->written;
            if (!texts[i]->end && reads_prompt == reading)
                plan_rows(s, texts[i], &count, &logits);
        }
    }
    return count;
}

/* Takes note of the rows of one text that were computed: for the sampler's penalty, and for the statistics.
 * After the last id the next token is chosen. logits: of the whole call. */
static void take_rows(const Model *m, State *s, Generation *g, double time, const float *logits) {
    Sequence *q = g->sequence;
    size_t first = q->rows - g->rows;
    logits += g->first_logits * m->config.vocab_size;
    if (g->written) {
        g->steps++;
        g->write_seconds += time;
    } else {
        g->read += g->rows;
        g->read_seconds += time;
        if (g->progress && g->stretch_rows > s->chunk)
            g->progress(g->owner, q->rows - g->stretch, g->stretch_rows);
    }
    for (size_t place = first; place < q->rows; place++) {
        if (g->sampler)
            sampler_saw(g->sampler, q->ids[place]);
        if (g->score && place >= g->score_from)
            g->score(g->owner, place, logits);
        if (place + 1 == q->count)
            next_token(m, s, g, logits);
        else if (wants_logits(g, place))
            logits += m->config.vocab_size;
    }
    if (q->rows == g->stretch + g->stretch_rows)
        begin_stretch(g); /* behind a prefix, or of the new token */
}

void generate_begin(const Model *m, State *s, Generation *g) {
    begin_stretch(g);
    if (!g->stretch_rows)
        next_token(m, s, g, g->logits);
}

bool generate_step(const Model *m, State *s, Generation *const *texts, size_t n) {
    size_t count = plan_call(s, texts, n);
    if (!count)
        return false;
    double start = seconds();
    bool stopped = s->stop && s->stop();
    const float *logits = stopped ? NULL : forward(m, s, s->plan, count);
    double time = seconds() - start;
    for (size_t i = 0; i < n; i++) {
        if (!texts[i]->end && !logits)
            texts[i]->end = END_INTERRUPTED;
        else if (!texts[i]->end && texts[i]->rows)
            take_rows(m, s, texts[i], time, logits);
    }
    return true;
}

void generate(const Model *m, State *s, Generation *const *texts, size_t n) {
    for (size_t i = 0; i < n; i++)
        generate_begin(m, s, texts[i]);
    while (generate_step(m, s, texts, n)) {
    }
}

/* ---- main ----------------------------------------------------------------------------------- */

/* Opens the checkpoint and its tokenizer. False after an error line. */
static bool open_model(Model *m, const char *path) {
    char err[1024], why[256];
    if (!model_open(m, path, err, sizeof err)) {
        log_error(FAILED, "%s", err);
        return false;
    }
    if (!m->tokenizer_bytes)
        return true;
    m->tokenizer = tokenizer_open(m->tokenizer_section, m->tokenizer_bytes, why, sizeof why);
    if (!m->tokenizer) {
        log_error(FAILED, "%s: damaged: tokenizer: %s; copy it or export it again", path, why);
        model_close(m);
    }
    return m->tokenizer;
}

int main(int argc, char **argv) {
    static int (*const modes[])(const Model *, const Options *) = {
        [MODE_GENERATE] = mode_generate, [MODE_CHAT] = mode_chat,
        [MODE_PROMPTS] = mode_lines,     [MODE_SAMPLES] = mode_lines,
        [MODE_CHOOSE] = mode_lines,      [MODE_BATCH] = mode_batch,
        [MODE_LOGITS] = mode_logits,     [MODE_PERPLEXITY] = mode_perplexity,
        [MODE_TOKENIZE] = mode_tokenize, [MODE_INFO] = mode_info,
        [MODE_CHECK] = mode_check,       [MODE_BENCH] = mode_bench,
    };
    Options o;
    Model m;
    int status;
    output_open(argv[0]);
    if (options_parse(&o, argc, argv, &status)) {
        status = FAILED;
        if (open_model(&m, o.model)) {
            status = modes[o.mode](&m, &o);
            tokenizer_close(m.tokenizer);
            model_close(&m);
        }
    }
    options_close(&o);
    return status;
}
