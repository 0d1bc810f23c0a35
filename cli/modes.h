/* modes.h: what the program does, by the options. Each mode gets an open model and returns the
 * exit status. */
#ifndef MODES_H
#define MODES_H

#include "cli/options.h"
#include "model.h"

int mode_generate(const Model *m, const Options *o);   /* generate.c */
int mode_chat(const Model *m, const Options *o);       /* chat.c */
int mode_logits(const Model *m, const Options *o);     /* logits.c */
int mode_perplexity(const Model *m, const Options *o); /* perplexity.c */
int mode_tokenize(const Model *m, const Options *o);   /* tokenize.c */
int mode_info(const Model *m, const Options *o);       /* info.c */
int mode_check(const Model *m, const Options *o);      /* check.c */
int mode_bench(const Model *m, const Options *o);      /* bench.c */

/* What is wrong with the checkpoint's chat template; NULL: nothing, or there is none (chat.c). */
const char *chat_damage(const Model *m);

/* Whether the sum of n logits is finite; the report where it is not, which returns FAILED (logits.c). */
bool are_numbers(const float *x, size_t n);
int not_numbers(const Model *m);

/* Bytes of weights that a forward call of n rows reads, each matrix once: what the speed of memory is
 * divided by (info.c). */
uint64_t weight_bytes(const Model *m, size_t n);

#endif
