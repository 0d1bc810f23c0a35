/* tests/hyper_driver.c: engine/hyper.c behind a pipe. Standard input: six 4-byte numbers (streams S, D, rows,
 * iterations, threads, 1 for the definition), hc_eps, rms_norm_eps, then as f32 X [rows][S D], fn [S (2 +
 * S)][S D], base, scale [3], norm [D], the branch's output [rows][D], and the head's fn [S][S D], base, scale
 * [1]. Standard output: what the branch reads [rows][D], the streams behind it [rows][S D], what the head
 * reads [rows][D]. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buffers.h"
#include "engine/hyper.h"
#include "kernels/util.h"

static float *floats(size_t n) {
    float *p = calloc(n + 1, sizeof *p);
    if (!p)
        exit(2);
    return p;
}

static const float *read_floats(size_t n) {
    float *p = floats(n);
    if (fread(p, sizeof *p, n, stdin) != n)
        exit(2);
    return p;
}

static void write_floats(const float *p, size_t n) {
    if (fwrite(p, sizeof *p, n, stdout) != n)
        exit(1);
}

/* A matrix in panels of 16 rows. */
static Hyper read_hyper(size_t rows, size_t cols, size_t scales) {
    const float *plain = read_floats(rows * cols);
    float *panels = floats(round_up(rows, PANEL) * cols);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            panels[(r / PANEL * cols + c) * PANEL + r % PANEL] = plain[r * cols + c];
    Hyper h = {.fn = {(uint8_t *)panels, NULL, TYPE_F32, (uint32_t)rows, (uint32_t)cols, 1}};
    h.base = read_floats(rows);
    h.scale = read_floats(scales);
    return h;
}

typedef struct {
    const Model *m;
    State *s;
    const Hyper *h;
    const float *norm;
} Call;

static void take_part(Thread *t, void *context) {
    const Call *c = context;
    if (c->norm) {
        hyper_read(c->m, c->s, c->h, c->norm, t);
        hyper_write(c->m, c->s, t);
    } else {
        hyper_head(c->m, c->s, t);
    }
}

static void run(const Model *m, State *s, const Hyper *h, const float *norm) {
    team_run(&s->team, take_part, &(Call){m, s, h, norm}, s->row_count, 1e9);
}

int main(void) {
    uint32_t n[6];
    float eps[2];
    const char *why = NULL;
    if (fread(n, sizeof n, 1, stdin) != 1 || fread(eps, sizeof eps, 1, stdin) != 1)
        return 2;
    size_t S = n[0], D = n[1], rows = n[2], outputs = S * (2 + S);
    Model m = {.ops = kernels_choose(&why)};
    m.config.hc_mult = n[0];
    m.config.hidden_size = n[1];
    m.config.hc_sinkhorn_iters = n[3];
    m.config.hc_eps = eps[0];
    m.config.rms_norm_eps = eps[1];

    State *s = aligned_alloc(_Alignof(State), round_up(sizeof *s, _Alignof(State)));
    if (!s || !m.ops)
        return 2;
    memset(s, 0, sizeof *s);
    s->row_count = rows;
    s->x_stride = round_up(S * D, BLOCK);
    s->out_stride = round_up(D, BLOCK);
    s->x = floats(rows * s->x_stride);
    s->branch = floats(rows * s->out_stride);
    s->normed = (Activations){.rows = (uint32_t)rows, .cols = n[1], .stride = (uint32_t)s->out_stride};
    s->normed.f = floats(rows * s->out_stride);
    s->hyper.sums = floats(rows * hyper_sum_floats(&m.config));
    s->hyper.weights = floats(rows * round_up(outputs, PANEL));
    s->hyper.plain = n[5] ? floats(outputs * S * D) : NULL;
    s->scratch = calloc(n[4], sizeof *s->scratch);
    for (size_t i = 0; s->scratch && i < n[4]; i++)
        s->scratch[i].a = floats(max(MLP_ROW, round_up(D, BLOCK)));
    s->head.row = calloc(rows, sizeof *s->head.row);
    team_open(&s->team, (int)n[4]);

    const float *X = read_floats(rows * S * D);
    Hyper h = read_hyper(outputs, S * D, 3);
    const float *norm = read_floats(D), *y = read_floats(rows * D);
    m.head_hyper = read_hyper(S, S * D, 1);
    for (size_t i = 0; i < rows; i++) {
        memcpy(s->x + i * s->x_stride, X + i * S * D, S * D * sizeof *X);
        memcpy(s->branch + i * s->out_stride, y + i * D, D * sizeof *y);
        s->head.row[s->head.count++] = (uint32_t)i;
    }
    run(&m, s, &h, norm);
    for (size_t i = 0; i < rows; i++)
        write_floats(s->normed.f + i * s->out_stride, D);
    for (size_t i = 0; i < rows; i++)
        write_floats(s->x + i * s->x_stride, S * D);
    run(&m, s, &h, NULL);
    for (size_t i = 0; i < rows; i++)
        write_floats(s->x + i * s->x_stride, D);
    return 0;
}
