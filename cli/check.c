/* cli/check.c: --check. Every byte of every tensor is compared with its checksum, and every number is
 * looked at: no weight is infinite, NaN, or -128 in q8. Header, tables and tokenizer were checked when the
 * file was opened. Threads take tensors, so that the disk is what limits. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/template.h"
#include "engine/checkpoint.h"
#include "engine/util.h"
#include "kernels/team.h"

typedef enum { SOUND, DAMAGED, BAD_WEIGHT } Verdict;

static bool finite16(const uint8_t *p, size_t n, uint16_t exponent) {
    for (size_t i = 0; i < n; i++) {
        uint16_t x;
        memcpy(&x, p + 2 * i, sizeof x);
        if ((x & exponent) == exponent)
            return false;
    }
    return true;
}

static bool finite32(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t x;
        memcpy(&x, p + 4 * i, sizeof x);
        if ((x & 0x7F800000) == 0x7F800000)
            return false;
    }
    return true;
}

/* The scales at the head of each block of q8 and q4 and q8's integers, stored as value + 128 (kernels.h);
 * every number of the other types. */
static bool all_weights(uint32_t type, const uint8_t *p, size_t bytes) {
    size_t block = panel_bytes(type, BLOCK);
    switch (type) {
    case TYPE_Q8:
    case TYPE_Q4:
        for (size_t i = 0; i + block <= bytes; i += block) {
            if (!finite16(p + i, 2 * PANEL, 0x7C00) ||
                (type == TYPE_Q8 && memchr(p + i + 4 * PANEL, 0, block - 4 * PANEL)))
                return false;
        }
        return true;
    case TYPE_BF16: return finite16(p, bytes / 2, 0x7F80);
    default: return finite32(p, bytes / 4);
    }
}

/* In pieces of whole blocks, so that the second look at a piece finds it in the cache. */
static Verdict check(const Model *m, const TensorInfo *t) {
    size_t block = panel_bytes(t->type, BLOCK), piece = block ? 64 * block : 65536;
    const uint8_t *p = m->file + t->offset;
    bool sound = true;
    uint32_t crc = 0;
    for (size_t i = 0; i < t->bytes; i += piece) {
        size_t n = min((size_t)(t->bytes - i), piece);
        crc = crc32(crc, p + i, n);
        sound = sound && all_weights(t->type, p + i, n);
    }
    return crc != t->checksum ? DAMAGED : sound ? SOUND : BAD_WEIGHT;
}

typedef struct {
    const Model *m;
    Verdict *verdict; /* [m->tensor_count] */
} Check;

static void check_tensors(Thread *t, void *context) {
    const Check *c = context;
    for (size_t i, n = c->m->tensor_count; (i = next_task(t, n)) < n;)
        c->verdict[i] = check(c->m, &c->m->tensors[i]);
}

int mode_check(const Model *m, const Options *o) {
    Verdict *verdict = calloc(m->tensor_count + 1, sizeof *verdict);
    if (!verdict)
        return log_error(FAILED, "out of memory");
    Team team;
    team_open(&team, (int)o->threads);
    team_run_with(&team, (int)o->threads, check_tensors, &(Check){m, verdict});

    int status = DONE;
    uint64_t bytes = 0;
    Template chat;
    const char *wrong = m->chat_bytes ? template_open(m, &chat, FORM_DEFAULT) : NULL;
    if (wrong)
        status = log_error(FAILED, "%s: the chat template is damaged: %s; export the checkpoint again",
                           m->path, wrong);
    for (size_t i = 0; i < m->tensor_count; i++) {
        const TensorInfo *t = &m->tensors[i];
        bytes += t->bytes;
        if (verdict[i] == DAMAGED)
            status =
                log_error(FAILED, "%s: tensor %.*s is damaged, its checksum differs: copy or export it again",
                          m->path, (int)sizeof t->name, t->name);
        else if (verdict[i] == BAD_WEIGHT)
            status = log_error(FAILED,
                               "%s: tensor %.*s holds a weight that is infinite, NaN or -128: "
                               "its source is broken",
                               m->path, (int)sizeof t->name, t->name);
    }
    free(verdict);
    if (!status)
        output_print("%s: %zu tensors, %" PRIu64 " bytes: all checksums and scales are right\n", m->path,
                     m->tensor_count, bytes);
    output_flush();
    return status;
}
