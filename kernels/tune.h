/* kernels/tune.h: what is measured when the kernels are chosen. */
#ifndef TUNE_H
#define TUNE_H

#include "kernels/kernels.h"

/* Sets *ops->many_rows: from how many rows on a product is faster on this processor if panels are unpacked
 * first. A few milliseconds at most; changes speed alone, never a result. For one thread, before others
 * begin. */
void tune(const Kernels *ops);

#endif
