/* cli/batch.h: many texts in one run: requests in, replies out, in the same order (request.h). */
#ifndef BATCH_H
#define BATCH_H

#include "cli/options.h"
#include "cli/request.h"
#include "model.h"

/* Answers all requests of the exchange. The exit status: FAILED if some request had an error. */
int batch_run(const Model *m, const Options *o, const Exchange *exchange);

#endif
