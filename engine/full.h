/* engine/full.h: attention without a latent cache: every head's keys and values are kept (--cache full). */
#ifndef FULL_H
#define FULL_H

#include "engine/attend.h"

/* The heads' outputs for the call's rows. Every thread of the team calls it, with its heads' queries
 * rotated; the outputs are complete after the next sync_threads. */
void full_attention(const Attention *a);

#endif
