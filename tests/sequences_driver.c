/* tests/sequences_driver.c: forward() with several sequences, which are cut and forked.
 *
 *   sequences_driver MODEL CACHE CONTEXT < commands > logits
 *
 * A line is a command; S and T are numbers of sequences, 0 .. 7; IDS is "1,2,3".
 *   open S         an empty sequence
 *   fork S T ROWS  S begins like T
 *   append S IDS   ids to be computed
 *   cut S ROWS     back to that row, or an earlier one; ids behind ROWS are forgotten, those before them are
 *                  computed again
 *   mark S         it can go back to its rows
 *   break N        the next call of `run` is interrupted in front of layer N; then the run goes on
 *   rows S         writes how many rows it has
 *   close S
 *   run N          computes what is to be computed, at most N rows of each sequence in a call, and writes the
 *                  logits after the last id of each sequence that had something to compute, in order
 *   draw S SEED N  generate(): N tokens behind the sequence at temperature 1; writes them as float32 ids
 *   batch SEED N   the same for all sequences in one generate(), with seeds SEED, SEED + 1, ...; one
 *                  sequence's ids after the other's
 * Out: float32 in the machine's byte order. run.c has a main of its own. */
#define main run_main
#include "../run.c"
#undef main

#include <stdio.h>

enum { SEQUENCES = 8 };

static Model m;
static State *s;
static Sequence *sequence[SEQUENCES];
static long layers_left = -1; /* before the call is interrupted; -1: it is not */

static bool stop(void) { return layers_left >= 0 && layers_left-- == 0; }

static void append_ids(Sequence *q, char *ids) {
    for (char *end; *ids; ids = *end ? end + 1 : end)
        q->ids[q->count++] = (int32_t)strtol(ids, &end, 10);
}

/* One call after another until nothing is left; a sequence's pending rows are one stretch. */
static void run(size_t most) {
    size_t V = m.config.vocab_size, stretch[SEQUENCES], rows[SEQUENCES], left = 0;
    float *last = calloc(SEQUENCES * V, sizeof *last);
    bool pending[SEQUENCES] = {false};
    for (size_t i = 0; i < SEQUENCES; i++) {
        stretch[i] = sequence[i] ? sequence[i]->rows : 0;
        rows[i] = sequence[i] ? sequence[i]->count - sequence[i]->rows : 0;
        left += rows[i];
    }
    while (left) {
        size_t n = 0, ended[SEQUENCES], end_count = 0;
        for (size_t i = 0; i < SEQUENCES; i++) {
            Sequence *q = sequence[i];
            size_t count = q ? min(min(most, q->count - q->rows), s->chunk - n) : 0;
            if (!count)
                continue;
            sequence_rows(q, s->plan + n, count, stretch[i], rows[i]);
            n += count;
            if (q->rows + count == q->count) {
                s->plan[n - 1].logits = true;
                ended[end_count++] = i;
            }
        }
        const float *logits = forward(&m, s, s->plan, n);
        if (!logits) /* the same call again */
            continue;
        for (size_t i = 0; i < end_count; i++) {
            memcpy(last + ended[i] * V, logits + i * V, V * sizeof *last);
            pending[ended[i]] = true;
        }
        left -= n;
    }
    for (size_t i = 0; i < SEQUENCES; i++)
        if (pending[i])
            fwrite(last + i * V, sizeof *last, V, stdout);
    free(last);
}

static bool emit(void *owner, const float *logits) {
    (void)owner;
    (void)logits;
    return true;
}

static void write_ids(const Sequence *q, size_t from) {
    for (; from < q->count; from++) {
        float id = (float)q->ids[from];
        fwrite(&id, sizeof id, 1, stdout);
    }
}

/* N tokens behind each of `count` sequences, together. */
static void draw(Sequence *const *q, size_t count, uint64_t seed, int64_t n) {
    Generation g[SEQUENCES], *texts[SEQUENCES];
    size_t begin[SEQUENCES];
    for (size_t i = 0; i < count; i++) {
        SamplerOptions o = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = seed + i};
        begin[i] = q[i]->count;
        g[i] = (Generation){.sequence = q[i],
                            .sampler = sampler_open(m.ops, m.config.vocab_size, &o),
                            .limit = n,
                            .emit = emit};
        texts[i] = &g[i];
    }
    generate(&m, s, texts, count);
    for (size_t i = 0; i < count; i++) {
        write_ids(q[i], begin[i]);
        sampler_close(g[i].sampler);
    }
}

static void draw_all(uint64_t seed, int64_t n) {
    Sequence *open[SEQUENCES];
    size_t count = 0;
    for (size_t i = 0; i < SEQUENCES; i++)
        if (sequence[i])
            open[count++] = sequence[i];
    draw(open, count, seed, n);
}

static bool obey(char *line) {
    char name[16], rest[1 << 16] = "";
    unsigned long number = 0;
    size_t i = 0;
    if (sscanf(line, "%15s %lu %65535[^\n]", name, &number, rest) < 2)
        return false;
    i = number % SEQUENCES;
    if (!strcmp(name, "run")) {
        run(number);
    } else if (!strcmp(name, "batch")) {
        draw_all(number, strtol(rest, NULL, 10));
    } else if (!strcmp(name, "open")) {
        sequence[i] = sequence_open(s);
    } else if (!strcmp(name, "fork")) {
        char *rows;
        Sequence *from = sequence[strtoul(rest, &rows, 10) % SEQUENCES];
        sequence[i] = sequence_fork(s, from, strtoul(rows, NULL, 10));
    } else if (!strcmp(name, "append")) {
        append_ids(sequence[i], rest);
    } else if (!strcmp(name, "cut")) {
        sequence_cut(sequence[i], sequence[i]->count = strtoul(rest, NULL, 10));
    } else if (!strcmp(name, "mark")) {
        sequence_mark(sequence[i]);
    } else if (!strcmp(name, "rows")) {
        float rows = (float)sequence[i]->rows;
        fwrite(&rows, sizeof rows, 1, stdout);
    } else if (!strcmp(name, "break")) {
        layers_left = (long)number;
    } else if (!strcmp(name, "close")) {
        sequence_close(sequence[i]);
        sequence[i] = NULL;
    } else if (!strcmp(name, "draw")) {
        char *n;
        uint64_t seed = strtoull(rest, &n, 10);
        draw(&sequence[i], 1, seed, strtol(n, NULL, 10));
    } else {
        return false;
    }
    bool of_sequence =
        strcmp(name, "close") && strcmp(name, "run") && strcmp(name, "batch") && strcmp(name, "break");
    return !of_sequence || sequence[i];
}

int main(int argc, char **argv) {
    static char line[1 << 17];
    static const char *const types[] = {"f32", "bf16", "q8", "q6", "q4", "full", "full-bf16", "full-q8"};
    char err[1024];
    StateOptions o = {.sequences = SEQUENCES, .max_logits = SEQUENCES, .threads = 2};
    if (argc != 4 || !model_open(&m, argv[1], err, sizeof err))
        return 1;
    while (o.cache < CACHE_FULL_Q8 && strcmp(types[o.cache], argv[2]))
        o.cache++;
    o.context = strtoul(argv[3], NULL, 10);
    s = state_open(&m, &o, err, sizeof err);
    if (s)
        s->stop = stop;
    while (s && fgets(line, sizeof line, stdin))
        if (!obey(line))
            return 1;
    state_close(s);
    model_close(&m);
    return !s || fflush(stdout);
}
