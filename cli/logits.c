/* logits.c: --logits FILE. The float32 logits of every prompt position, [T, V], little-endian, nothing
 * else in the file: what a comparison with another implementation reads. FILE appears when it is complete. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"
#include "cli/system.h"

enum { LOGIT_ROWS = 64 }; /* rows in one forward call; their logits are its largest buffer */

/* One that is none makes the sum none; sums of real logits stay far below the largest float. */
bool are_numbers(const float *x, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return isfinite(sum);
}

int not_numbers(const Model *m) {
    return failed(FAILED, "%s: the logits are not numbers; --check looks for damage in the checkpoint",
                  m->path);
}

/* Runs the prompt through the model and writes the rows as they come. False: errno says why, 0 where the
 * logits are not numbers. */
static bool write_rows(FILE *f, const Model *m, State *s, const Prompt *p) {
    static Row rows[LOGIT_ROWS];
    size_t chunk = s->chunk < LOGIT_ROWS ? s->chunk : LOGIT_ROWS;
    for (size_t from = 0; from < p->count && !interrupted(); from += chunk) {
        size_t n = p->count - from < chunk ? p->count - from : chunk;
        for (size_t i = 0; i < n; i++)
            rows[i] = (Row){.token = p->ids[from + i], .position = (uint32_t)(from + i), .logits = true};
        const float *logits = forward(m, s, rows, n);
        errno = 0;
        if (!are_numbers(logits, n * m->config.vocab_size) ||
            fwrite(logits, sizeof *logits * m->config.vocab_size, n, f) != n)
            return false;
        progress("logits", from + n, p->count);
    }
    return true;
}

/* Writes to a temporary name beside `path` and renames, unless path is a pipe or a device. */
static int write_file(const char *path, const Model *m, State *s, const Prompt *p) {
    struct stat st;
    bool direct = !stat(path, &st) && !S_ISREG(st.st_mode);
    size_t name_bytes = strlen(path) + 32;
    char *name = malloc(name_bytes);
    if (!name)
        return failed(FAILED, "out of memory");
    snprintf(name, name_bytes, direct ? "%s" : "%s.%ld.tmp", path, (long)getpid());
    int fd = open(name, direct ? O_WRONLY : O_WRONLY | O_CREAT | O_EXCL, 0666);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    int status = DONE;
    if (!f || !write_rows(f, m, s, p) || fflush(f))
        status = errno ? failed(FAILED, "%s: cannot write it: %s", name, strerror(errno)) : not_numbers(m);
    if (f && fclose(f) && !status)
        status = failed(FAILED, "%s: cannot write it: %s", name, strerror(errno));
    if (!status && interrupted())
        status = interrupt_status();
    if (!status && !direct && rename(name, path))
        status = failed(FAILED, "%s: cannot rename it to %s: %s", name, path, strerror(errno));
    if (status && fd >= 0 && !direct)
        unlink(name);
    free(name);
    return status;
}

int mode_logits(const Model *m, const Options *o) {
    Prompt p;
    State *s = NULL;
    int status = prompt_read(&p, m, o, 0);
    if (!status)
        status = prompt_state(&s, &p, m, o, LOGIT_ROWS);
    if (!status) {
        watch_interrupt();
        status = write_file(o->output, m, s, &p);
    }
    state_close(s);
    prompt_close(&p);
    return status;
}
