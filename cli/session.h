/* cli/session.h: --session FILE and --from FILE. A text that can be saved and continued: its tokens, the
 * cache that holds them, the sampler. */
#ifndef SESSION_H
#define SESSION_H

#include <sys/types.h>

#include "cli/options.h"
#include "model.h"

/* What a session holds of a text beside its sequence. */
typedef struct {
    size_t count;          /* tokens of its sequence; 0: there is no session yet */
    size_t cut;            /* bytes at their end that a stop text kept from being written */
    uint32_t turns;        /* of --chat, all of them whole; 0: the text is no conversation */
    uint64_t seed, random; /* what the sampler began with, and where it is */
} SavedText;

typedef struct {
    const char *name; /* as on the command line; NULL: no --session, nothing is read or written */
    const Model *model;
    bool keep;       /* --from: FILE must exist, is not locked and stays as it is; nothing is written */
    char *path;      /* what the name stands for when links are followed */
    char *temporary; /* is written, then renamed to path */
    int lock;      /* descriptor of temporary, locked; -1: none, before session_open and after session_save */
    int file;      /* descriptor of path, locked; -1: there is no such file yet */
    mode_t mode;   /* the permissions that the file will have */
    uint8_t *head; /* of the file: everything before the pages */
    struct SessionHeader *header; /* of the file, as this program knows it */
} Session;

/* Locks the session and reads everything but the cache: *text is all zeros if FILE does not exist. Without
 * -k, o->cache becomes the session's. DONE, or an exit status after a report: in use, read-only, cut
 * short, damaged, no session, of another version, model or cache type, or in a place that cannot be
 * written. */
int session_open(Session *s, SavedText *text, const Model *m, Options *o);

/* Puts the session's tokens and cache rows into q, an empty sequence, and the logits of the last row, if
 * no token is left to compute, into state->logits. DONE, or FAILED after a report: damaged, or the disk
 * has no room for what `state` can hold. */
int session_load(Session *s, Sequence *q, State *state);

/* Writes the text, q and its rows; it may be called again when q has grown. At every moment FILE is what
 * it was or what it will be, and the session stays locked until session_close. DONE, or FAILED after a
 * report. */
int session_save(Session *s, const SavedText *text, const Sequence *q, const State *state);

void session_close(Session *s); /* also after session_open failed */

#endif
