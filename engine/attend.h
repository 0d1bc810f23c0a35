/* engine/attend.h: the loops around the attention kernel, for mla.c: where a head's numbers lie, sixteen
 * queries against a stretch of cache, parts of a context side by side.
 *
 * The sixteen lanes of a vector are sixteen queries (kernels/kernels.h, `attend`): in the absorbed form
 * the heads of one row, and where they leave lanes empty the same heads of further rows; in the decompressed
 * form sixteen rows of one head. Here is how rows, heads, pages and threads become such calls. What is
 * multiplied with what, and why, is in mla.c. */
#ifndef ATTEND_H
#define ATTEND_H

#include "engine/buffers.h"
#include "engine/cache.h"
#include "model.h"

/* The attention of one layer, as one thread of the team sees it. */
typedef struct {
    const Model *m;
    const Config *cfg;
    const Layer *L;
    State *s;
    size_t layer; /* Layer.tile: which of the cache's tiles are its own */
    Thread *t;
    Scratch *z; /* this thread's own */
} Attention;

Attention attention_open(const Model *m, State *s, size_t layer, Thread *t);

/* ---- one head's numbers --------------------------------------------------------------------- */

/* q [n + p] of one row and head: q_nope, then q_pe. */
float *query_of(const Attention *a, size_t i, size_t head);

/* q_pe = rope(q_pe) for this thread's heads (share() of H), in all rows; the whole query is scaled where
 * the model scales by position. */
void rotate_queries(const Attention *a);

/* y_i = W_head x_i. y: [x->rows][ldy]; W_head: one of the H matrices of w. */
void head_matmul(const Attention *a, float *y, size_t ldy, const Matrix *w, size_t head,
                 const Activations *x);

/* One head's output for row i, multiplied by its gate if it has one, takes its place in the input of W_o.
 * out: [v_stride], overwritten. */
void store_head(const Attention *a, size_t i, size_t head, float *out);

/* x = R x with R an orthonormal Hadamard matrix in blocks of the largest power of two that divides n. It
 * spreads an outlier over its block, so that few bits with one scale are enough. R is its own inverse. */
void hadamard(float *x, size_t n);

/* A softmax that has attended to nothing yet. */
void softmax_begin(Softmax *softmax);

/* ---- absorbed: the heads of a row against the latents --------------------------------------- */

/* q_latent = sum_j softmax_j(scale (q_latent . c_j + q_pe . k_pe,j)) c_j, for every absorbed row and head.
 * Every thread calls it; returns when all are done. */
void attend_latents(const Attention *a);

/* ---- decompressed: rows of a sequence against keys and values of one head ------------------- */

/* Rows of a call that follow one another in one sequence and are decompressed. */
typedef struct {
    size_t first, count;
    const Sequence *sequence;
    size_t context; /* cached rows that the last of them attends to */
} Run;

/* The run that begins at row `first` of the call, or a later one. count 0: there is none. */
Run next_run(const State *s, size_t first);

/* Up to SPAN_ROWS cached rows: pages page .. page + pages - 1 of the run's sequence. */
typedef struct {
    size_t page, pages;
} Span;

Span span_of(const Run *run, size_t page);

/* The cached rows of page k of a span: at most 128. */
size_t span_page_rows(const Run *run, const Span *span, size_t k);

/* Latents and rotated keys of a span, as decompression reads them, once for all heads; of a sparse
 * attention also which row attends to which. Threads share the pages: the span is complete after the next
 * sync_threads. */
void read_span(const Attention *a, const Run *run, const Span *span);

/* The latents of page k of the span that was read: [rows, r]. */
Activations page_latents(const Attention *a, size_t k, size_t rows);
/* Its rotated keys: [rows][p]. */
const float *page_rope_keys(const Attention *a, size_t k);

/* The tiles that the keys [n | p] and the values [v] of a page and head are kept in: int8 where the cache
 * has at most 8 bits a number. */
TileShape key_shape(const Attention *a);
TileShape value_shape(const Attention *a);

/* Packs the run's queries of one head, sixteen rows together; none has attended to anything yet. */
void begin_queries(const Attention *a, const Run *run, size_t head);

/* False: no row of the run attends to page k of the span (a sparse attention). */
bool page_is_needed(const Attention *a, const Run *run, size_t k);

/* The run's queries of one head attend to the keys and values in the thread's scratch: page k of the span. */
void attend_page(const Attention *a, const Run *run, const Span *span, size_t head, size_t k);

/* What the queries of one head have gathered becomes the head's output. */
void finish_queries(const Attention *a, const Run *run, size_t head);

#endif
