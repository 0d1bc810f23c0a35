/* engine/sequence.c: sequences, which share pages and copy them before they write, and share the slots of
 * constant parts, which are not written again (sequence.h). */
#include "engine/sequence.h"

#include <string.h>

#include "engine/cache.h"
#include "engine/compress.h"
#include "engine/kda.h"
#include "engine/util.h"

/* ---- constant parts ------------------------------------------------------------------------- */

static bool has_constant(const Sequence *q) { return q->cache->slot_floats; }

/* *at = a slot that was taken or held for it; what was there is given up. */
static void put_slot(Sequence *q, uint32_t *at, uint32_t slot) {
    cache_release_slot(q->cache, *at);
    *at = slot;
}

static void drop_marks_after(Sequence *q, size_t rows) {
    Constant *c = &q->constant;
    while (c->mark_count && c->mark_rows[c->mark_count - 1] > rows)
        cache_release_slot(q->cache, c->mark[--c->mark_count]);
}

void sequence_begin_run(Sequence *q, ConstantRun *run) {
    run->from = q->constant.slot;
    run->to = cache_take_slot(q->cache);
}

void sequence_end_run(Sequence *q, const ConstantRun *run) {
    Constant *c = &q->constant;
    c->before_rows = q->rows;
    c->replay_rows = run->rows <= REPLAY_ROWS ? run->rows : 0;
    c->replay_now ^= run->rows <= REPLAY_ROWS;
    put_slot(q, &c->before, c->replay_rows ? c->slot : 0);
    if (!c->replay_rows)
        cache_release_slot(q->cache, c->slot);
    c->slot = run->to;
}

float *sequence_replay(const Sequence *q, size_t layer, int which) {
    const Cache *cache = q->cache;
    return q->constant.replay +
           REPLAY_ROWS * ((size_t)which * cache->replay_floats + cache->places[layer].replay);
}

static void replay_kda(const Sequence *q, size_t layer, size_t rows, uint32_t to) {
    const Cache *cache = q->cache;
    const Config *cfg = &cache->model->config;
    KdaInputs x = {.m = cache->model,
                   .cfg = cfg,
                   .kda = &cache->model->layers[layer].kda,
                   .rows = rows,
                   .in = sequence_replay(q, layer, q->constant.replay_now),
                   .stride = kda_replay_floats(cfg),
                   .from = cache_slot_layer(cache, q->constant.before, layer),
                   .to = cache_slot_layer(cache, to, layer)};
    for (size_t head = 0; head < cfg->kda_heads; head++)
        kda_head(&x, head, NULL, 0, cache->replay_buffer);
}

static void replay_window(const Sequence *q, size_t layer, size_t rows, uint32_t to) {
    const Cache *cache = q->cache;
    const Config *cfg = &cache->model->config;
    WindowInputs x = {.m = cache->model,
                      .layer = layer,
                      .place = q->constant.before_rows,
                      .rows = rows,
                      .in = sequence_replay(q, layer, q->constant.replay_now),
                      .stride = compress_input_floats(cfg, layer_kind(cfg, (uint32_t)layer)),
                      .from = cache_slot_layer(cache, q->constant.before, layer),
                      .to = cache_slot_layer(cache, to, layer),
                      .shape = cache->shape,
                      .ring_from = cache_ring(cache, q->constant.before, layer),
                      .ring_to = cache_ring(cache, to, layer)};
    for (size_t slice = 0; slice < compress_slices(x.m, layer); slice++)
        compress_slice(&x, slice, cache->replay_buffer);
    if (cfg->sliding_window)
        advance_ring(&x);
}

/* Slot `to` = the constant part behind the first `rows` rows of the last call, a small one. */
static void replay(const Sequence *q, size_t rows, uint32_t to) {
    const Config *cfg = &q->cache->model->config;
    for (uint32_t layer = 0; layer < cfg->num_hidden_layers; layer++) {
        if (layer_kind(cfg, layer) == LAYER_KDA)
            replay_kda(q, layer, rows, to);
        if (compress_input_floats(cfg, layer_kind(cfg, layer)))
            replay_window(q, layer, rows, to);
    }
}

/* Back to the last place at or before `rows` that the constant part is known of. Returns where that is. */
static size_t cut_constant(Sequence *q, size_t rows) {
    Constant *c = &q->constant;
    drop_marks_after(q, rows);
    size_t mark = c->mark_count ? c->mark_rows[c->mark_count - 1] : 0, past = rows - c->before_rows;
    if (c->replay_rows && rows > c->before_rows && mark < rows && past <= c->replay_rows) {
        uint32_t slot = cache_take_slot(q->cache);
        replay(q, past, slot);
        put_slot(q, &c->slot, slot);
        c->replay_rows = past;
        return rows;
    }
    bool small = c->replay_rows && c->before_rows <= rows && c->before_rows > mark;
    uint32_t slot = small ? c->before : c->mark_count ? c->mark[c->mark_count - 1] : 0;
    cache_hold_slot(q->cache, slot);
    put_slot(q, &c->slot, slot);
    put_slot(q, &c->before, 0);
    c->replay_rows = 0;
    return small ? c->before_rows : mark;
}

/* ---- sequences ------------------------------------------------------------------------------ */

Sequence *sequence_open(State *s) {
    for (size_t i = 0; i < s->sequence_count; i++) {
        Sequence *q = &s->sequences[i];
        if (!q->open) {
            q->count = q->rows = q->page_count = 0;
            q->constant = (Constant){.replay = q->constant.replay};
            q->open = true;
            return q;
        }
    }
    return NULL;
}

void sequence_close(Sequence *q) {
    while (q->page_count)
        cache_release_page(q->cache, q->page[--q->page_count]);
    drop_marks_after(q, 0);
    put_slot(q, &q->constant.slot, 0);
    put_slot(q, &q->constant.before, 0);
    q->open = false;
}

size_t sequence_cut(Sequence *q, size_t rows) {
    if (rows < q->rows)
        q->rows = has_constant(q) ? cut_constant(q, rows) : rows;
    while (q->page_count > div_up(q->rows, q->cache->page_rows))
        cache_release_page(q->cache, q->page[--q->page_count]);
    return q->rows;
}

void sequence_mark(Sequence *q) {
    Constant *c = &q->constant;
    if (!has_constant(q) || !q->rows || (c->mark_count && c->mark_rows[c->mark_count - 1] == q->rows))
        return; /* it is one already */
    if (c->mark_count == MARKS) {
        cache_release_slot(q->cache, c->mark[0]);
        memmove(c->mark, c->mark + 1, (MARKS - 1) * sizeof *c->mark);
        memmove(c->mark_rows, c->mark_rows + 1, (MARKS - 1) * sizeof *c->mark_rows);
        c->mark_count--;
    }
    cache_hold_slot(q->cache, c->slot);
    c->mark[c->mark_count] = c->slot;
    c->mark_rows[c->mark_count++] = q->rows;
}

/* The slot behind `rows` rows, if it is there; false: it is not. */
static bool slot_of(const Sequence *q, size_t rows, uint32_t *slot) {
    const Constant *c = &q->constant;
    *slot = 0;
    if (!rows || !has_constant(q))
        return true;
    for (size_t i = 0; i < c->mark_count && !*slot; i++)
        *slot = c->mark_rows[i] == rows ? c->mark[i] : 0;
    *slot = rows == q->rows ? c->slot : *slot;
    return *slot;
}

/* The sequence's page j as one that no other sequence holds. */
static bool own_page(Sequence *q, size_t j) {
    Cache *cache = q->cache;
    if (cache->references[q->page[j]] == 1)
        return true;
    uint32_t page = cache_take_page(cache);
    if (page == UINT32_MAX)
        return false;
    memcpy(cache->pool + page * cache->page_bytes, cache_page(q, j), cache->page_bytes);
    cache_release_page(cache, q->page[j]);
    q->page[j] = page;
    return true;
}

bool sequence_reserve(Sequence *q, size_t rows) {
    size_t page_rows = q->cache->page_rows;
    if (q->rows % page_rows && rows > q->rows && !own_page(q, q->rows / page_rows))
        return false;
    while (q->page_count < div_up(rows, page_rows)) {
        uint32_t page = cache_take_page(q->cache);
        if (page == UINT32_MAX)
            return false;
        q->page[q->page_count++] = page;
    }
    return true;
}

Sequence *sequence_fork(State *s, const Sequence *from, size_t rows) {
    uint32_t slot;
    Sequence *q = slot_of(from, rows, &slot) ? sequence_open(s) : NULL;
    if (!q)
        return NULL;
    cache_hold_slot(q->cache, q->constant.slot = slot);
    memcpy(q->ids, from->ids, rows * sizeof *q->ids);
    q->count = q->rows = rows;
    size_t page_rows = q->cache->page_rows;
    for (; q->page_count < div_up(rows, page_rows); q->page_count++) {
        q->page[q->page_count] = from->page[q->page_count];
        q->cache->references[q->page[q->page_count]]++;
    }
    if (rows % page_rows && !own_page(q, rows / page_rows)) { /* `from` may write to it, too */
        sequence_close(q);
        return NULL;
    }
    return q;
}

void sequence_clear_rest(const Sequence *q) {
    size_t page_rows = q->cache->page_rows;
    if (q->rows % page_rows)
        cache_clear_rows(q->cache, cache_page(q, q->rows / page_rows), q->rows % page_rows);
}

const float *sequence_constant(const Sequence *q) { return cache_slot(q->cache, q->constant.slot); }

float *sequence_new_constant(Sequence *q) {
    put_slot(q, &q->constant.slot, cache_take_slot(q->cache));
    return cache_slot(q->cache, q->constant.slot);
}

Path stretch_path(size_t at, size_t rows) {
    size_t piece = at / PIECE_ROWS * PIECE_ROWS;
    return min(rows - piece, PIECE_ROWS) > ABSORBED_ROWS ? PATH_DECOMPRESSED : PATH_ABSORBED;
}

void sequence_rows(Sequence *q, Row *rows, size_t n, size_t stretch, size_t stretch_rows) {
    for (size_t i = 0; i < n; i++) {
        size_t at = q->rows + i;
        rows[i] = (Row){.sequence = q,
                        .token = q->ids[at],
                        .place = (uint32_t)at,
                        .position = (uint32_t)at,
                        .path = stretch_path(at - stretch, stretch_rows)};
    }
}
