/* sequences_driver: forward() with several sequences in a call.  sequences_driver MODEL IDS ... > logits
 *
 * Each IDS ("1,2,3") is a sequence. Their rows go through forward() together, a few of each in every call,
 * with the f32 cache. Out: float32 in the machine's byte order, the logits after the last id of each
 * sequence. run.c has the forward pass and a main of its own. */
#define main run_main
#include "../run.c"
#undef main

#include <stdio.h>

enum { MOST = 8 };

int main(int argc, char **argv) {
    Model m;
    char err[1024];
    size_t count = (size_t)(argc - 2 < MOST ? argc - 2 : MOST), left = count;
    if (argc < 3 || !model_open(&m, argv[1], err, sizeof err))
        return 1;
    StateOptions o = {
        .cache = CACHE_F32, .context = 512, .sequences = (uint32_t)count, .max_logits = MOST, .threads = 2};
    State *s = state_open(&m, &o, err, sizeof err);
    float *last = malloc(count * m.config.vocab_size * sizeof *last);
    Row *rows = s ? malloc(s->chunk * sizeof *rows) : NULL;
    uint32_t position[MOST] = {0};
    if (!rows || !last)
        return 1;
    while (left) {
        size_t n = 0, asked = 0, ended[MOST];
        for (uint32_t q = 0; q < count; q++) {
            for (size_t i = 0; i < s->chunk / count && *argv[2 + q]; i++) {
                int32_t token = (int32_t)strtol(argv[2 + q], &argv[2 + q], 10);
                argv[2 + q] += *argv[2 + q] == ',';
                rows[n++] =
                    (Row){.token = token, .position = position[q]++, .sequence = q, .logits = !*argv[2 + q]};
                if (!*argv[2 + q])
                    ended[asked++] = q;
            }
        }
        const float *logits = forward(&m, s, rows, n);
        for (size_t i = 0; i < asked; i++)
            memcpy(last + ended[i] * m.config.vocab_size, logits + i * m.config.vocab_size,
                   m.config.vocab_size * sizeof *last);
        left -= asked;
    }
    fwrite(last, sizeof *last, count * m.config.vocab_size, stdout);
    state_close(s);
    model_close(&m);
    free(rows);
    free(last);
    return fflush(stdout) ? 1 : 0;
}
