/* tests/fuzz/fuzz_options.c: a command line, its words separated by NULs. Understood or refused, and what is
 * understood is in range. */
#include "cli/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { WORDS = 32 };
    char *argv[WORDS + 2] = {(char *)"run"}, *text = malloc(size + 1);
    int argc = 1, status = -1;
    Options o;
    if (!text)
        abort();
    memcpy(text, data, size);
    text[size] = 0;
    for (size_t at = 0; at < size && argc <= WORDS; at += strlen(text + at) + 1) {
        size_t n = strlen(text + at);
        argv[argc] = malloc(n + 1); /* each by itself: a sanitizer sees a read or write behind it */
        if (!argv[argc])
            abort();
        memcpy(argv[argc++], text + at, n + 1);
    }
    if (options_parse(&o, argc, argv, &status)) {
        bool in_range = o.model && o.threads >= 1 && o.tokens >= -1 && o.context >= 0 &&
                        isfinite(o.temperature) && o.top_p <= 1 && o.top_k >= -1 && o.min_p <= 1 &&
                        o.repeat_penalty <= 100 && (unsigned)o.cache < CACHE_TYPES;
        if (!in_range)
            abort();
    } else if (status < 0 || status > 2) {
        abort();
    }
    options_close(&o);
    for (int i = 1; i < argc; i++)
        free(argv[i]);
    free(text);
    return 0;
}
