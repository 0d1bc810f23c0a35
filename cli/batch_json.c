/* cli/batch_json.c: --batch. */
#include "cli/modes.h"
#include "cli/output.h"

int mode_batch(const Model *m, const Options *o) {
    (void)m;
    return log_error(FAILED, "%s is not there yet", o->given[OPT_BATCH]);
}
