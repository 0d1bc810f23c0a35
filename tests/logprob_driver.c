/* tests/logprob_driver.c: engine/logprob.h alone.
 *
 *     logprob_driver V N < logits > results
 *
 * In: rows of V float32 logits in the machine's byte order. Out, for each row: log_sum_exp as a double, then
 * the N likeliest ids as int32. The kernels are those of MLA_ISA. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/logprob.h"

int main(int argc, char **argv) {
    const char *why;
    const Kernels *ops = kernels_choose(&why);
    if (argc != 3 || !ops)
        return 2;
    size_t vocab = strtoul(argv[1], NULL, 10), n = strtoul(argv[2], NULL, 10);
    float *logits = malloc(vocab * sizeof *logits);
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    while (logits && ids && fread(logits, sizeof *logits, vocab, stdin) == vocab) {
        double sum = log_sum_exp(ops, logits, vocab);
        size_t count = likeliest(logits, vocab, ids, n);
        if (fwrite(&sum, sizeof sum, 1, stdout) != 1 || fwrite(ids, sizeof *ids, count, stdout) != count)
            return 1;
    }
    free(logits);
    free(ids);
    return fflush(stdout) ? 1 : 0;
}
