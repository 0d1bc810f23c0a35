/* engine/compress.h: what a layer with windows (engine/window.c) keeps of a text that does not grow: its last
 * rows, and the windows that compressors have not closed yet. Here are no threads and no cache: callers say
 * where things lie. */
#ifndef COMPRESS_H
#define COMPRESS_H

#include "model.h"

/* Parts of a row of inputs: the row itself, normed and rotated; u and e without ape of the compressor, and of
 * that of the index keys. A part begins at window_part(). */
enum { WINDOW_ROW, COMPRESS_KV, COMPRESS_GATE, INDEX_KV, INDEX_GATE, WINDOW_PARTS };

size_t window_part(const Config *cfg, size_t part);
size_t window_input_floats(const Config *cfg);

/* Pools of index keys (engine/indexer.c) are windows, too. Parts of a row of theirs: k and e without ape,
 * which are its inputs, and the key of the pool that the row closes. */
enum { POOL_KEY, POOL_GATE, POOL_CLOSED, POOL_PARTS };

size_t pool_part(const Config *cfg, size_t part);

/* Floats of a row of inputs in a layer of the kind: 0 if it has no windows. */
size_t compress_input_floats(const Config *cfg, LayerKind kind);

/* Rows that the token at `place` sees in one layer: in the window, and compressed ones. */
size_t window_rows(const Config *cfg, size_t place);
size_t compressed_rows(const Config *cfg, LayerKind kind, size_t place);

/* Of a compressed context, rows that a thread attends to at once: its parts begin at fixed rows, so that a
 * row's result depends neither on what is computed beside it nor on the threads. */
enum { WINDOW_PART_ROWS = 4 * TILE_ROWS };

/* A compressor of a layer. */
typedef struct {
    const Compressor *weights;
    size_t d, ratio;
    bool overlap;    /* CSA: a window's row is made of the window before it, too */
    size_t kv, gate; /* window_part() */
    size_t state;    /* where its sums begin in the layer's constant part */
    size_t closed;   /* where its rows begin among those that are closed */
} Compress;

/* Those of a layer, the one of index keys last. Returns how many: 0 to 2. */
size_t layer_compressors(const Model *m, size_t layer, Compress list[2]);

/* Floats of unfinished windows in a layer of the kind; of closed rows of all compressors; of a thread's own
 * buffer. */
size_t compress_layer_floats(const Config *cfg, LayerKind kind);
size_t compress_closed_floats(const Config *cfg);
size_t compress_scratch_floats(void);

/* The rows of one sequence in one layer, and where what is kept is read and written, which are not the same
 * places. */
typedef struct {
    const Model *m;
    size_t layer;
    size_t place;    /* of the first row */
    const float *in; /* [rows][stride] */
    size_t stride, rows;
    const float *from; /* [compress_layer_floats()] */
    float *to;
    TileShape shape; /* of the ring */
    const uint8_t *ring_from;
    uint8_t *ring_to;
    /* [rows][closed_stride]: where a row closes a window, what becomes of it, neither normed nor rotated;
     * NULL: it is not wanted */
    float *closed;
    size_t closed_stride;
} WindowInputs;

/* The work of all compressors of a layer is so many slices, a part of the numbers each, which do not depend
 * on one another. buffer: compress_scratch_floats(); NULL: by the definition. */
size_t compress_slices(const Model *m, size_t layer);
void compress_slice(const WindowInputs *x, size_t slice, float *buffer);

/* Number `i` of a window's softmax meets another slot, by the equations of compress.c, in f32. The sums are 0
 * before the first one. */
void compress_definition(float *max, float *sum, float *out, float e, float u);

/* The row at `place` takes its place in a ring. */
void put_in_ring(const WindowInputs *x, uint8_t *ring, size_t place, const float *row);
/* The ring behind all rows. */
void advance_ring(const WindowInputs *x);

#endif
