/* tokenize.c: --tokenize TEXT. The ids, nothing added, on one line. */
#include <stdlib.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"

int mode_tokenize(const Model *m, const Options *o) {
    size_t count;
    int32_t *ids = tokenize(m, o, o->text, o->text_bytes, true, &count);
    if (!ids)
        return FAILED;
    for (size_t i = 0; i < count; i++)
        output_print(i ? " %d" : "%d", ids[i]);
    output_print("\n");
    output_flush();
    free(ids);
    return DONE;
}
