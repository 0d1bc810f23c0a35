/* cli/logits.c: --logits FILE. The float32 logits of every prompt position, [T, V], little-endian, nothing
 * else in the file: what a comparison with another implementation reads. FILE appears when it is complete; a
 * pipe or a device is written as the rows come (target.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"
#include "cli/system.h"
#include "cli/target.h"
#include "engine/sequence.h"
#include "engine/util.h"

enum { LOGIT_ROWS = 64 }; /* rows in one forward call; their logits are its largest buffer */

/* Runs the prompt through the model and writes the rows as they come. False: they are not finite, or errno
 * says why they could not be written. */
static bool write_rows(FILE *f, const Model *m, State *s, const Prompt *p, bool *finite) {
    static Row rows[LOGIT_ROWS];
    size_t chunk = min(s->chunk, LOGIT_ROWS);
    Sequence *q = sequence_open(s);
    memcpy(q->ids, p->ids, p->count * sizeof *q->ids);
    q->count = p->count;
    for (size_t from = 0; from < p->count && !interrupted(); from += chunk) {
        size_t n = min(p->count - from, chunk);
        sequence_rows(q, rows, n, from, n);
        for (size_t i = 0; i < n; i++)
            rows[i].logits = true;
        const float *logits = forward(m, s, rows, n);
        *finite = all_finite(logits, n * m->config.vocab_size);
        if (!*finite || fwrite(logits, sizeof *logits * m->config.vocab_size, n, f) != n)
            return false;
        progress("logits", from + n, p->count);
    }
    return true;
}

/* Opens what is to be written: the target itself, or a new file beside it, whose name *temporary becomes. */
static FILE *open_output(const char *target, bool direct, char **temporary) {
    size_t bytes = strlen(target) + 32;
    char *name = *temporary = malloc(bytes);
    if (!name)
        return NULL;
    snprintf(name, bytes, direct ? "%s" : "%s.%ld.tmp", target, (long)getpid());
    int fd = open(name, direct ? O_WRONLY | O_APPEND : O_WRONLY | O_CREAT | O_EXCL, 0666);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    if (fd >= 0 && !f) {
        close(fd);
        if (!direct)
            unlink(name);
    }
    return f;
}

static int write_file(const char *path, const Model *m, State *s, const Prompt *p) {
    bool direct, finite = true;
    char *target = target_path(path, &direct), *temporary = NULL;
    FILE *f = target ? open_output(target, direct, &temporary) : NULL;
    int status = DONE;
    if (!f || !write_rows(f, m, s, p, &finite) || fflush(f))
        status =
            finite ? log_error(FAILED, "%s: cannot write it: %s", path, strerror(errno)) : log_non_finite(m);
    if (f && fclose(f) && !status)
        status = log_error(FAILED, "%s: cannot write it: %s", path, strerror(errno));
    if (!status && interrupted())
        status = interrupt_status();
    if (!status && !direct && rename(temporary, target))
        status = log_error(FAILED, "%s: cannot rename %s to it: %s", path, temporary, strerror(errno));
    if (status && f && !direct)
        unlink(temporary);
    free(temporary);
    free(target);
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
        log_waiting_input(o);
    }
    state_close(s);
    prompt_close(&p);
    return status;
}
