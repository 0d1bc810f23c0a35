/* cli/modes.h: what the program does, by the options. Each mode gets an open model and returns the exit
 * status. */
#ifndef MODES_H
#define MODES_H

#include "cli/options.h"
#include "model.h"

int mode_generate(const Model *m, const Options *o);   /* generate.c */
int mode_chat(const Model *m, const Options *o);       /* chat.c */
int mode_lines(const Model *m, const Options *o);      /* lines.c: --prompts, --samples, --choose */
int mode_batch(const Model *m, const Options *o);      /* batch_json.c */
int mode_logits(const Model *m, const Options *o);     /* logits.c */
int mode_perplexity(const Model *m, const Options *o); /* perplexity.c */
int mode_tokenize(const Model *m, const Options *o);   /* tokenize.c */
int mode_info(const Model *m, const Options *o);       /* info.c */
int mode_check(const Model *m, const Options *o);      /* check.c */
int mode_bench(const Model *m, const Options *o);      /* bench.c */

/* Reports data that waits on standard input while no prompt was given: it was probably meant as the prompt
 * (generate.c). */
void log_waiting_input(const Options *o);

/* Reports that logits are non-finite, and returns FAILED (generate.c). */
int log_non_finite(const Model *m);

#endif
