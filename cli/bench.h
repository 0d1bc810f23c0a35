/* cli/bench.h: what the two parts of --bench share. */
#ifndef BENCH_H
#define BENCH_H

#include "cli/options.h"
#include "model.h"

/* Bytes a second of a plain loop with all threads of the state over memory that is in no cache. The fastest
 * of some times counts: another program that takes its share makes memory look slower than it is. 0: out of
 * memory. */
double read_bandwidth(State *s);

/* Sorts x[0 .. n). */
double median(double *x, size_t n);

/* --bench --parallel: the exit status (bench_parallel.c). */
int bench_parallel(const Model *m, const Options *o);

#endif
