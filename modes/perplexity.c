/* perplexity.c: --perplexity FILE. How well the model predicts a text.
 *
 * The text is tokenised as a whole and cut into windows of c - 1 tokens, each read after a begin token and apart from the others. Every token
 * is scored once, by its negative log-probability; where the model has no begin token, nothing predicts the first of a window. The
 * perplexity is exp of the mean, its standard error that of the mean times the perplexity. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "modes/modes.h"
#include "modes/output.h"
#include "modes/prompt.h"
#include "modes/system.h"

enum { SCORED_ROWS = 128, DEFAULT_CONTEXT = 2048 }; /* rows in one forward call; their logits are its largest buffer */

typedef struct {
    size_t tokens;
    double sum, sum_of_squares; /* of the losses */
} Score;

/* -log p(token). p of the likeliest token is at least 1 / V, so that its logarithm loses nothing; from there it is a difference of
 * logits. p [V] is scratch. */
static double loss(const Model *m, const float *logits, int32_t token, float *p) {
    size_t best = 0, vocab = m->config.vocab_size;
    for (size_t i = 1; i < vocab; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    memcpy(p, logits, vocab * sizeof *p);
    m->k->softmax(p, vocab);
    return (double)logits[best] - (double)logits[token] - log((double)p[best]);
}

/* One window: ids[0 .. n) are read, and row i predicts ids[i + 1]. */
static void score_window(Score *score, const Model *m, State *s, const int32_t *ids, size_t n, float *p) {
    static Row rows[SCORED_ROWS];
    size_t chunk = s->chunk < SCORED_ROWS ? s->chunk : SCORED_ROWS;
    for (size_t from = 0; from + 1 < n; from += chunk) { /* the last token is predicted and predicts nothing */
        size_t count = n - 1 - from < chunk ? n - 1 - from : chunk;
        for (size_t i = 0; i < count; i++)
            rows[i] = (Row){.token = ids[from + i], .position = (uint32_t)(from + i), .logits = true};
        const float *logits = forward(m, s, rows, count);
        for (size_t i = 0; i < count; i++) {
            double x = loss(m, logits + i * m->config.vocab_size, ids[from + i + 1], p);
            score->tokens++;
            score->sum += x;
            score->sum_of_squares += x * x;
        }
    }
}

static int print_score(const Score *s) {
    if (!s->tokens)
        return failed(FAILED, "the text has no token that could be scored");
    double n = (double)s->tokens, mean = s->sum / n, perplexity = exp(mean);
    if (!isfinite(s->sum))
        return failed(FAILED, "the model's logits are not numbers; --check looks for damage in the checkpoint");
    double variance = s->tokens > 1 ? fmax(s->sum_of_squares - n * mean * mean, 0) / (n - 1) : 0;
    output_print("perplexity %.4f +- %.4f tokens %zu\n", perplexity, perplexity * sqrt(variance / n), s->tokens);
    output_flush();
    return DONE;
}

/* The windows one after the other. `window` [c] holds the one being read, begin token included. */
static Score score_text(const Model *m, const Options *o, State *s, const int32_t *ids, size_t n, size_t c, int32_t *window, float *p) {
    Score score = {0};
    size_t begin = m->config.bos_token_id >= 0 && !o->typed[OPT_NO_BOS];
    window[0] = m->config.bos_token_id;
    for (size_t from = 0; from < n; from += c - 1) {
        size_t count = n - from < c - 1 ? n - from : c - 1;
        memcpy(window + begin, ids + from, count * sizeof *ids);
        score_window(&score, m, s, window, begin + count, p);
        progress("perplexity", from + count, n);
    }
    return score;
}

int mode_perplexity(const Model *m, const Options *o) {
    size_t bytes, n, c = context_rows(m, o, DEFAULT_CONTEXT);
    if (!c)
        return WRONG_USAGE;
    if (c < 2)
        return failed(WRONG_USAGE, "%s needs a context of at least 2: a token to read and one to predict", o->typed[OPT_PERPLEXITY]);
    int status = FAILED;
    char *text = read_file(o->file, &bytes);
    int32_t *ids = text ? tokenize(m, o, text, bytes, &n) : NULL;
    State *s = ids ? open_state(m, o, c, SCORED_ROWS) : NULL;
    int32_t *window = malloc(c * sizeof *window);
    float *p = malloc(m->config.vocab_size * sizeof *p);
    if (!window || !p)
        report("out of memory");
    else if (s) {
        double start = seconds();
        Score score = score_text(m, o, s, ids, n, c, window, p);
        status = print_score(&score);
        if (!status)
            note("%zu tokens, %.1f tokens/s", n, (double)n / (seconds() - start));
    }
    free(p);
    free(window);
    state_close(s);
    free(ids);
    free(text);
    return status;
}
