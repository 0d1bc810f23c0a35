/* tests/session_driver.c: a session that is saved again and again while a run has it open (cli/session.h), as
 * after each turn of a conversation.
 *
 *     session_driver MODEL SESSION IDS...
 *
 * Each argument of ids, "1 2 3", is computed and the session saved; then comes "saved" on standard output,
 * and a line of standard input is waited for. */
/* run.c has the forward pass and a main of its own */
#define main run_main
#include "../run.c"
#undef main

#include <stdio.h>
#include <stdlib.h>

#include "cli/session.h"

static char err[256];

static int save(Session *session, Sequence *q, State *s, char *ids) {
    Row row;
    for (long id; (id = strtol(ids, &ids, 10));) {
        q->ids[q->count++] = (int32_t)id;
        sequence_rows(q, &row, 1, q->rows, 1);
        row.logits = true;
        forward(session->model, s, &row, 1);
    }
    int status = session_save(session, &(SavedText){.seed = 1}, q, s);
    if (!status)
        puts("saved");
    fflush(stdout);
    getchar();
    return status;
}

int main(int argc, char **argv) {
    Model m;
    Session session;
    SavedText saved;
    Options o = {.session = argv[2], .cache = CACHE_Q8};
    StateOptions so = {.cache = CACHE_Q8, .context = 256, .sequences = 1, .max_logits = 1, .threads = 1};
    output_open(NULL);
    if (!model_open(&m, argv[1], err, sizeof err))
        return 3;
    int status = session_open(&session, &saved, &m, &o);
    State *s = status ? NULL : state_open(&m, &so, err, sizeof err);
    Sequence *q = s ? sequence_open(s) : NULL;
    for (int i = 3; i < argc && !status; i++)
        status = q ? save(&session, q, s, argv[i]) : 3;
    session_close(&session);
    state_close(s);
    model_close(&m);
    return status;
}
