/* engine/full.h: ordinary attention: keys and values of every head, or of every group of heads, are kept. */
#ifndef FULL_H
#define FULL_H

#include "engine/attend.h"

/* A query group: up to sixteen queries of one group of heads, the lanes of a vector. Lane i is query
 * first + i of the run: queries are counted row by row, in a row head by head of the group of heads. */
typedef struct QueryGroup {
    Run run;
    size_t first;
    size_t lanes;
} QueryGroup;

/* A context is split into parts of so many pages, which threads attend to side by side. They begin at fixed
 * rows, so that a row's result depends neither on what is computed beside it nor on the threads. */
enum { FULL_PART_PAGES = 4 };

/* Query groups that a call of `rows` rows has at most. */
size_t full_query_groups(const Config *cfg, size_t rows);

/* A model without latent: q = W_q x; keys, rotated, and values of the call's rows go into the cache. Returns
 * with the queries complete, not rotated yet; the cache's rows only after the next sync_threads. */
void full_project(const Attention *a);

/* The heads' outputs for the call's rows. Every thread of the team calls it, with its heads' queries
 * rotated; the outputs are complete after the next sync_threads. With CACHE_FULL.. it first puts the new
 * rows' keys and values into the cache, made from their latents. */
void full_attention(const Attention *a);

#endif
