/* session_driver: a session that is saved again and again while a run has it open (cli/session.h), as after
 * each turn of a conversation. session_driver MODEL SESSION IDS...
 *
 * Each argument of ids, "1 2 3", is computed and the session saved; then comes "saved" on standard output,
 * and a line of standard input is waited for. */
/* run.c has the forward pass and a main of its own */
#define main run_main
#include "../run.c"
#undef main

#include <stdio.h>
#include <stdlib.h>

static char err[256];

static int save(Session *s, Sequence *q, State *state, char *ids) {
    Row row = {.logits = true};
    for (long id; (id = strtol(ids, &ids, 10));) {
        q->ids[q->count++] = row.token = (int32_t)id;
        row.position = (uint32_t)q->position++;
        forward(s->model, state, &row, 1);
    }
    int status = session_save(s, q, state);
    if (!status)
        puts("saved");
    fflush(stdout);
    getchar();
    return status;
}

int main(int argc, char **argv) {
    Model m;
    Sequence q;
    Session s;
    Options o = {.session = argv[2], .cache = CACHE_Q8};
    StateOptions so = {.cache = CACHE_Q8, .context = 256, .sequences = 1, .max_logits = 1, .threads = 1};
    output_open(NULL);
    if (!model_open(&m, argv[1], err, sizeof err))
        return 3;
    int status = session_open(&s, &q, &m, &o);
    State *state = status ? NULL : state_open(&m, &so, err, sizeof err);
    q.ids = state ? realloc(q.ids, 256 * sizeof *q.ids) : q.ids;
    for (int i = 3; i < argc && !status; i++)
        status = save(&s, &q, state, argv[i]);
    session_close(&s);
    state_close(state);
    free(q.ids);
    model_close(&m);
    return status;
}
