/* session_driver: a session that is saved again and again while a run has it open (cli/session.h), as after
 * each turn of a conversation. session_driver MODEL SESSION [CACHE] IDS...
 *
 * Each argument of ids, "1 2 3", is computed and the session saved; then comes "saved" on standard output,
 * and a line of standard input is waited for. "-3" takes back three rows, before that. CACHE is q8 if it is
 * not given. */
/* run.c has the forward pass and a main of its own */
#define main run_main
#include "../run.c"
#undef main

#include <stdio.h>
#include <stdlib.h>

#include "cli/output.h"
#include "cli/session.h"
#include "engine/sequence.h"

static char err[256];

static int save(Session *s, const SavedText *text, Sequence *q, State *state, char *ids) {
    Row row;
    for (long id; (id = strtol(ids, &ids, 10));) {
        if (id < 0) {
            q->count = sequence_cut(q, q->rows - (size_t)-id);
            continue;
        }
        q->ids[q->count++] = (int32_t)id;
        sequence_rows(q, &row, 1, q->rows, 1);
        row.logits = true;
        forward(s->model, state, &row, 1);
    }
    int status = session_save(s, text, q, state);
    if (!status)
        puts("saved");
    fflush(stdout);
    getchar();
    return status;
}

int main(int argc, char **argv) {
    Model m;
    Session s;
    SavedText text;
    Options o = {.session = argv[2], .cache = CACHE_Q8};
    int first = 3;
    for (int type = 0; type < CACHE_TYPES && argc > 3 && first == 3; type++) {
        if (!strcmp(argv[3], cache_names[type])) {
            o.cache = (CacheType)type;
            first = 4;
        }
    }
    StateOptions so = {.cache = o.cache, .context = 256, .sequences = 1, .max_logits = 1, .threads = 1};
    output_open(NULL);
    if (!model_open(&m, argv[1], err, sizeof err))
        return 3;
    int status = session_open(&s, &text, &m, &o);
    State *state = status ? NULL : state_open(&m, &so, err, sizeof err);
    Sequence *q = state ? sequence_open(state) : NULL;
    for (int i = first; i < argc && !status; i++)
        status = q ? save(&s, &text, q, state, argv[i]) : 3;
    session_close(&s);
    state_close(state);
    model_close(&m);
    return status;
}
