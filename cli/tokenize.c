/* cli/tokenize.c: --tokenize, of TEXT or of a file. The ids on one line, nothing added, or how many they
 * are. */
#include <stdlib.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"

int mode_tokenize(const Model *m, const Options *o) {
    size_t count, bytes = o->text_bytes;
    char *file = o->file ? read_file(o->file, MAX_TEXT, &bytes) : NULL;
    const char *text = o->file ? file : o->text;
    int32_t *ids = text ? tokenize(m, o, (Slice){text, bytes}, &count) : NULL;
    free(file);
    if (!ids)
        return FAILED;
    if (o->given[OPT_COUNT])
        output_print("%zu", count);
    for (size_t i = 0; i < count && !o->given[OPT_COUNT]; i++)
        output_print(i ? " %d" : "%d", ids[i]);
    output_print("\n");
    output_flush();
    free(ids);
    return DONE;
}
