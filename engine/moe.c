/* engine/moe.c: mixtures of experts. For each row x of the call
 *
 *     s      = softmax, sigmoid or sqrt(log(1 + e^.)) of W_router x   one score for each of E + Z experts
 *     chosen = the K best of s + bias, from the best groups where experts are grouped; in a hash layer
 *              (DeepSeek-V4) the K experts that a table has for the row's token
 *     y      = sum over chosen e of w_e MLP_e(x), and the shared experts' MLP(x), once
 *     w_e    = s_e, or s_e / sum of the chosen s, times the model's scaling factor
 *     MLP(x) = W_down (silu(W_gate x) * W_up x), or W_down relu(W_up x)^2 without gate
 *              (with a limit L: W_down (min(silu(W_gate x), L) * max(-L, min(W_up x, L))), Ling-3.0;
 *              DeepSeek-V4 has silu(min(W_gate x, L)) there)
 *
 * (DeepSeek-V2, arXiv 2405.04434, section 2.2; DeepSeek-V3, arXiv 2412.19437, section 2.1.2.)
 *
 * An expert is computed once for all rows that chose it, an *expert batch*, so that its weights are read
 * once. A dense layer's MLP and the shared experts are batches of all rows. Outputs are added in one
 * order: experts ascending, then the shared ones. Zero experts (numbers E .. E + Z - 1) have no weights:
 * they give back their input. */
#include "engine/moe.h"

#include <string.h>

#include "engine/buffers.h"
#include "engine/util.h"
#include "kernels/linear.h"

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
static void limit_groups(const Config *cfg, const float *biased, bool *taken) {
    size_t size = cfg->n_routed_experts / cfg->n_group;
    float score[MAX_GROUPS];
    bool kept[MAX_GROUPS] = {false};
    for (size_t g = 0; g < cfg->n_group; g++) {
        bool best[MAX_EXPERTS] = {false};
        const float *group = biased + g * size;
        size_t first = largest(group, best, size);
        score[g] = group[first];
        if (cfg->group_score == GROUP_TOP2_SUM && size > 1) {
            best[first] = true;
            score[g] += group[largest(group, best, size)];
        }
    }
    for (size_t k = 0; k < cfg->topk_group; k++)
        kept[largest(score, kept, cfg->n_group)] = true;
    for (size_t e = 0; e < cfg->n_routed_experts; e++)
        taken[e] = !kept[e / size];
}

/* The K best of scores + bias, best first. The bias takes part in choosing, not in weighing. */
static void choose_best(const Config *cfg, const float *scores, const float *bias, uint32_t *chosen) {
    size_t experts = router_rows(cfg);
    float biased[MAX_EXPERTS];
    bool taken[MAX_EXPERTS] = {false};
    for (size_t e = 0; e < experts; e++)
        biased[e] = scores[e] + bias[e];
    if (cfg->n_group > 1)
        limit_groups(cfg, biased, taken);
    for (size_t k = 0; k < cfg->num_experts_per_tok; k++) {
        size_t e = largest(biased, taken, experts);
        taken[e] = true;
        chosen[k] = (uint32_t)e;
    }
}

/* A token's table may name an expert twice, which has both weights then. A batch takes a row once: one of the
 * two becomes number E + Z, which is no expert's. */
static void merge_equal(const Config *cfg, uint32_t *chosen, float *weight) {
    for (size_t k = 1; k < cfg->num_experts_per_tok; k++)
        for (size_t j = 0; j < k; j++)
            if (chosen[j] == chosen[k]) {
                weight[j] += weight[k];
                weight[k] = 0;
                chosen[k] = (uint32_t)router_rows(cfg);
            }
}

/* The experts of row i and their weights. scores [E + Z] are the router's outputs, changed in place. */
static void choose_experts(const Model *m, State *s, const Layer *L, size_t i, float *scores) {
    const Config *cfg = &m->config;
    void (*score)(float *, size_t) = cfg->scoring_func == SCORE_SIGMOID         ? m->ops->sigmoid
                                     : cfg->scoring_func == SCORE_SQRT_SOFTPLUS ? m->ops->sqrt_softplus
                                                                                : m->ops->softmax;
    size_t experts = router_rows(cfg), K = cfg->num_experts_per_tok;
    uint32_t *chosen = s->moe.chosen + i * K;
    float *weight = s->moe.weight + i * K, sum = 0;
    /* NaN if some score is non-finite: such an expert would not be chosen, and nothing else would show it */
    float non_finite = 0;

    for (size_t e = 0; e < experts; e++)
        non_finite += scores[e] - scores[e];
    score(scores, experts);
    if (L->token_experts)
        for (size_t k = 0; k < K; k++)
            chosen[k] = (uint32_t)L->token_experts[(size_t)s->rows[i].token * K + k];
    else
        choose_best(cfg, scores, L->router_bias, chosen);
    for (size_t k = 0; k < K; k++) {
        weight[k] = scores[chosen[k]];
        sum += weight[k];
    }
    for (size_t k = 0; k < K; k++) {
        float share_of_sum = cfg->norm_topk_prob ? weight[k] / (sum + 1e-20f) : weight[k];
        weight[k] = share_of_sum * cfg->routed_scaling_factor + non_finite;
    }
    if (L->token_experts)
        merge_equal(cfg, chosen, weight);
}

void route(const Model *m, State *s, const Layer *L, Thread *t) {
    size_t stride = round_up(router_rows(&m->config), PANEL), from, to;
    linear(m->ops, s->moe.scores, stride, &L->router, &s->normed, t);
    sync_threads(t);
    bool few = s->row_count < (size_t)t->threads; /* not worth a barrier: thread 0 chooses for all */
    share(t, s->row_count, &from, &to);
    if (few) {
        from = 0;
        to = t->id == 0 ? s->row_count : 0;
    }
    for (size_t i = from; i < to; i++)
        choose_experts(m, s, L, i, s->moe.scores + i * stride);
    if (!few)
        sync_threads(t);
}

/* ---- expert batches ------------------------------------------------------------------------- */

/* The hidden rows of a batch are computed in tasks of TASK_COLUMNS columns for all its rows. */
enum { TASK_COLUMNS = 64, TASKS_AT_ONCE = MLP_ROW / TASK_COLUMNS };

/* Tasks of the batches up to this one. */
static size_t tasks_until(const ExpertBatch *batch) {
    return batch->task + div_up(batch->hidden.cols, TASK_COLUMNS);
}

/* An MLP for the rows moe.row[first .. first + rows); its hidden rows begin at element *hidden. */
static void add_batch(State *s, const Mlp *mlp, size_t rows, size_t first, size_t *hidden) {
    ExpertBatch *batch = &s->moe.batches[s->moe.batch_count];
    *batch = (ExpertBatch){.mlp = mlp, .rows = rows, .first = first};
    batch->task = s->moe.batch_count ? tasks_until(batch - 1) : 0;
    /* an MLP that all rows use reads them where they are */
    batch->in = rows == s->row_count
                    ? s->normed
                    : activations_view(&s->moe.in, first * s->moe.in.stride, rows, s->moe.in.cols);
    batch->hidden = activations_view(&s->moe.hidden, *hidden, rows, mlp->up.rows);
    *hidden += rows * batch->hidden.stride;
    s->moe.batch_count++;
}

/* The rows of the call, sorted by the experts that they chose: a counting sort. Returns how many there
 * are. */
static size_t plan_experts(const Config *cfg, State *s, const Layer *L, size_t *hidden) {
    size_t K = cfg->num_experts_per_tok, first = 0;
    memset(s->moe.expert_rows, 0, (router_rows(cfg) + 1) * sizeof *s->moe.expert_rows);
    for (size_t i = 0; i < s->row_count * K; i++)
        s->moe.expert_rows[s->moe.chosen[i]]++;
    for (uint32_t e = 0; e < cfg->n_routed_experts; e++) {
        if (s->moe.expert_rows[e])
            add_batch(s, &L->experts[e], s->moe.expert_rows[e], first, hidden);
        s->moe.next[e] = (uint32_t)first;
        first += s->moe.expert_rows[e];
    }
    for (size_t i = 0; i < s->row_count * K; i++) {
        if (s->moe.chosen[i] < cfg->n_routed_experts) {
            size_t at = s->moe.next[s->moe.chosen[i]]++;
            s->moe.row[at] = (uint32_t)(i / K);
            s->moe.row_weight[at] = s->moe.weight[i];
        }
    }
    return first;
}

void plan_batches(const Model *m, State *s, const Layer *L) {
    size_t hidden = 0;
    s->moe.batch_count = 0;
    size_t first = L->experts ? plan_experts(&m->config, s, L, &hidden) : 0;
    if (s->profile)
        s->profile->experts += s->moe.batch_count;
    if (!L->mlp.up.data)
        return;
    add_batch(s, &L->mlp, s->row_count, first, &hidden);
    for (size_t i = 0; i < s->row_count; i++) {
        s->moe.row[first + i] = (uint32_t)i;
        s->moe.row_weight[first + i] = 1;
    }
}

/* x = relu(x)^2. x - x is 0, and NaN for an infinity, which must not be lost. */
static void relu2(float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < 0 ? x[i] - x[i] : x[i] * x[i];
}

/* hidden = silu(W_gate x) * (W_up x), or relu(W_up x)^2: tasks `from` .. `to` - 1 of one batch. */
static void hidden_columns(const Model *m, ExpertBatch *batch, size_t from, size_t to, Scratch *z) {
    size_t column = from * TASK_COLUMNS, end = min(to * TASK_COLUMNS, batch->hidden.cols);
    size_t panel = column / PANEL, panels = div_up(end - column, PANEL), stride = panels * PANEL;
    bool gated = m->config.hidden_act == ACT_SILU;
    m->ops->matmul(z->a, stride, &batch->mlp->up, panel, panels, &batch->in);
    if (gated)
        m->ops->matmul(z->b, stride, &batch->mlp->gate, panel, panels, &batch->in);
    for (size_t i = 0; i < batch->rows; i++) {
        float *h = z->a + i * stride;
        if (gated)
            m->ops->swiglu(h, z->b + i * stride, h, end - column, batch->mlp->limit,
                           m->config.swiglu_limits == LIMIT_GATE);
        else
            relu2(h, end - column);
        m->ops->store_row(&batch->hidden, i, column, h, end - column);
    }
}

/* The batch that task `task` belongs to: `batch` or a later one. */
static size_t batch_of(const State *s, size_t batch, size_t task) {
    while (batch + 1 < s->moe.batch_count && s->moe.batches[batch + 1].task <= task)
        batch++;
    return batch;
}

static size_t task_count(const State *s) {
    return s->moe.batch_count ? tasks_until(&s->moe.batches[s->moe.batch_count - 1]) : 0;
}

/* A single row: every thread reads its share of the weights, in stretches as long as its scratch allows. */
static void hidden_one_row(const Model *m, State *s, Thread *t) {
    size_t from, to;
    share(t, task_count(s), &from, &to);
    for (size_t i = 0; from < to;) {
        i = batch_of(s, i, from);
        ExpertBatch *batch = &s->moe.batches[i];
        size_t end = min(min(tasks_until(batch), to), from + TASKS_AT_ONCE);
        hidden_columns(m, batch, from - batch->task, end - batch->task, &s->scratch[t->id]);
        from = end;
    }
}

/* Experts have uneven numbers of rows: a thread that is free takes the next task. */
static void hidden_many_rows(const Model *m, State *s, Thread *t) {
    size_t tasks = task_count(s), task, i = 0; /* a thread's tasks ascend, so that i only moves forward */
    while ((task = next_task(t, tasks)) < tasks) {
        i = batch_of(s, i, task);
        ExpertBatch *batch = &s->moe.batches[i];
        hidden_columns(m, batch, task - batch->task, task - batch->task + 1, &s->scratch[t->id]);
    }
}

/* Zero experts: experts_out += weight * normed, in the columns that linear_add gives this thread. */
static void add_zero_experts(const Model *m, State *s, const Thread *t) {
    const Config *cfg = &m->config;
    size_t D = cfg->hidden_size, K = cfg->num_experts_per_tok, from, to;
    share(t, div_up(D, PANEL), &from, &to);
    from *= PANEL;
    to = min(to * PANEL, D);
    for (size_t i = 0; i < s->row_count * K && from < to; i++)
        if (s->moe.chosen[i] >= cfg->n_routed_experts)
            m->ops->axpy(s->experts_out + i / K * s->out_stride + from, s->moe.weight[i],
                         s->normed.f + i / K * s->normed.stride + from, to - from);
}

void run_batches(const Model *m, State *s, const Layer *L, Thread *t) {
    size_t i;
    if (s->row_count > 1) { /* the inputs of each expert side by side; a single row is where it is */
        while ((i = next_task(t, s->moe.batch_count)) < s->moe.batch_count) {
            ExpertBatch *batch = &s->moe.batches[i];
            if (batch->rows < s->row_count)
                m->ops->gather(&batch->in, &s->normed, s->moe.row + batch->first);
        }
        sync_threads(t);
    }
    if (s->row_count == 1)
        hidden_one_row(m, s, t);
    else
        hidden_many_rows(m, s, t);
    sync_threads(t);
    for (i = 0; i < s->moe.batch_count; i++) {
        const ExpertBatch *batch = &s->moe.batches[i];
        float *shared = L->mlp_out_norm ? s->branch : s->out,
              *out = batch->mlp == &L->mlp ? shared : s->experts_out;
        linear_add(m->ops, out, s->out_stride, &batch->mlp->down, &batch->hidden, s->moe.row + batch->first,
                   s->moe.row_weight + batch->first, s->scratch[t->id].a, t);
    }
    if (L->experts && m->config.zero_expert_num)
        add_zero_experts(m, s, t);
    sync_threads(t);
}
