/* cli/perplexity.c: --perplexity FILE. How well the model predicts a text; --against TYPE: and how far its
 * predictions are from those with another cache.
 *
 * The text is tokenized as a whole and cut into windows of one token less than the context, each read after
 * a begin token and apart from the others. Every token is scored once, by its negative log-probability;
 * where the model has no begin token, nothing predicts the first of a window. The perplexity is exp of the
 * mean, its standard error that of the mean times the perplexity.
 *
 * Perplexity contains the noise of the text, and changes for the better hide others for the worse. What a
 * cache type costs shows sooner in the Kullback-Leibler divergence of the predictions, the mean of sum_i
 * p_i log(p_i / q_i) with p of the cache type that is compared with. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"
#include "engine/sequence.h"
#include "engine/util.h"
#include "kernels/clock.h"

/* rows in one forward call; their logits are its largest buffer */
enum { SCORED_ROWS = 128, DEFAULT_CONTEXT = 2048 };

typedef struct {
    size_t tokens;
    double sum, sum_of_squares; /* of the losses */
} Score;

/* One cache type that the text is read with. */
typedef struct {
    State *state;
    Sequence *sequence;
    float *p; /* [V] the next token's probabilities */
    Score score;
} Reader;

typedef struct {
    const Model *model;
    Reader used, other; /* -k's; --against's, if other.state is not NULL */
    size_t context;     /* of a window: its tokens and the begin token */
    int32_t *window;    /* [context] */
    bool begin;         /* a begin token is put before each window */
    double divergence;  /* summed over tokens */
    size_t same_top;
} Scoring;

/* The next token's distribution: p [V], and what the likeliest's log-probability is reckoned from. */
typedef struct {
    size_t best;
    double log_sum; /* of exp(logit): log p_i = logit_i - log_sum */
} Prediction;

/* p of the likeliest token is at least 1 / V, so that its logarithm loses nothing; from there
 * log-probabilities are differences of logits. */
static Prediction predict(const Model *m, const float *logits, float *p) {
    size_t best = 0, vocab = m->config.vocab_size;
    for (size_t i = 1; i < vocab; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    memcpy(p, logits, vocab * sizeof *p);
    m->ops->softmax(p, vocab);
    return (Prediction){best, all_finite(logits, vocab) ? (double)logits[best] - log((double)p[best]) : NAN};
}

static void add_loss(Score *score, double loss) {
    score->tokens++;
    score->sum += loss;
    score->sum_of_squares += loss * loss;
}

/* One row's logits, of -k's and of --against's cache (or NULL). */
static void score_row(Scoring *s, const float *used, const float *other, int32_t token) {
    Prediction q = predict(s->model, used, s->used.p);
    add_loss(&s->used.score, q.log_sum - (double)used[token]);
    if (!other)
        return;
    Prediction p = predict(s->model, other, s->other.p);
    add_loss(&s->other.score, p.log_sum - (double)other[token]);
    s->same_top += p.best == q.best;
    for (size_t i = 0; i < s->model->config.vocab_size; i++)
        if (s->other.p[i] > 0) /* else the limit of p log p, 0 */
            s->divergence +=
                (double)s->other.p[i] * (((double)other[i] - p.log_sum) - ((double)used[i] - q.log_sum));
}

/* The logits of the next n tokens of the reader's window. */
static const float *read_rows(const Model *m, Reader *r, size_t n) {
    static Row rows[SCORED_ROWS];
    sequence_rows(r->sequence, rows, n, r->sequence->rows, n);
    for (size_t i = 0; i < n; i++)
        rows[i].logits = true;
    return forward(m, r->state, rows, n);
}

static void begin_window(Reader *r, const int32_t *ids, size_t n) {
    sequence_cut(r->sequence, 0);
    memcpy(r->sequence->ids, ids, n * sizeof *ids);
    r->sequence->count = n;
}

/* One window: ids[0 .. n) are read, and row i predicts ids[i + 1]. */
static void score_window(Scoring *s, const int32_t *ids, size_t n) {
    const Model *m = s->model;
    size_t vocab = m->config.vocab_size, chunk = min(s->used.state->chunk, SCORED_ROWS);
    begin_window(&s->used, ids, n);
    if (s->other.state)
        begin_window(&s->other, ids, n);
    /* the last token is predicted and predicts nothing */
    for (size_t from = 0; from + 1 < n; from += chunk) {
        size_t count = min(n - 1 - from, chunk);
        const float *used = read_rows(m, &s->used, count),
                    *other = s->other.state ? read_rows(m, &s->other, count) : NULL;
        for (size_t i = 0; i < count; i++)
            score_row(s, used + i * vocab, other ? other + i * vocab : NULL, ids[from + i + 1]);
    }
}

/* The windows one after the other. */
static void score_text(Scoring *s, const int32_t *ids, size_t n) {
    s->window[0] = s->model->config.bos_token_id;
    for (size_t from = 0; from < n; from += s->context - 1) {
        size_t count = min(n - from, s->context - 1);
        memcpy(s->window + s->begin, ids + from, count * sizeof *ids);
        score_window(s, s->window, s->begin + count);
        progress("perplexity", from + count, n);
    }
}

static double perplexity(const Score *s) { return exp(s->sum / (double)s->tokens); }

static int print_score(const Scoring *s, const Options *o) {
    const Score *used = &s->used.score, *other = &s->other.score;
    if (!used->tokens)
        return log_error(FAILED, "the text has no token that could be scored");
    if (!isfinite(used->sum) || !isfinite(other->sum))
        return log_non_finite(s->model);
    double n = (double)used->tokens, mean = used->sum / n;
    double variance = used->tokens > 1 ? fmax(used->sum_of_squares - n * mean * mean, 0) / (n - 1) : 0;
    output_print("perplexity %.4f +- %.4f tokens %zu\n", perplexity(used),
                 perplexity(used) * sqrt(variance / n), used->tokens);
    if (s->other.state)
        output_print("against %s: perplexity %.4f kl %.6f top %.2f%%\n", cache_names[o->against],
                     perplexity(other), s->divergence / n, 100 * (double)s->same_top / n);
    output_flush();
    return DONE;
}

/* False: reported. */
static bool open_reader(Reader *r, const Model *m, const Options *given, CacheType cache, size_t context) {
    Options o = *given;
    o.cache = cache;
    r->state = open_state(m, &o, context, SCORED_ROWS);
    r->p = malloc(m->config.vocab_size * sizeof *r->p);
    if (r->state)
        r->sequence = sequence_open(r->state);
    if (r->state && !r->p)
        log_error(FAILED, "out of memory");
    return r->state && r->p;
}

static void close_reader(Reader *r) {
    free(r->p);
    state_close(r->state);
}

int mode_perplexity(const Model *m, const Options *o) {
    size_t bytes, n;
    Scoring s = {.model = m, .context = context_rows(m, o, DEFAULT_CONTEXT)};
    if (!s.context)
        return WRONG_USAGE;
    if (s.context < 2)
        return log_error(WRONG_USAGE, "%s needs a context of at least 2: a token to read and one to predict",
                         o->given[OPT_PERPLEXITY]);
    int status = FAILED;
    s.begin = m->config.bos_token_id >= 0 && !o->given[OPT_NO_BOS];
    s.window = malloc(s.context * sizeof *s.window);
    char *text = read_file(o->file, MAX_TEXT, &bytes);
    int32_t *ids = text ? tokenize(m, o, (Slice){text, bytes}, &n) : NULL;
    if (!s.window)
        log_error(FAILED, "out of memory");
    else if (ids && open_reader(&s.used, m, o, o->cache, s.context) &&
             (!o->given[OPT_AGAINST] || open_reader(&s.other, m, o, o->against, s.context))) {
        double start = seconds();
        score_text(&s, ids, n);
        status = print_score(&s, o);
        if (!status)
            log_info("%zu tokens, %.1f tokens/s", n, (double)n / (seconds() - start));
    }
    close_reader(&s.used);
    close_reader(&s.other);
    free(s.window);
    free(ids);
    free(text);
    return status;
}
