/* tests/fuzz/fuzz_batch.c: a --batch file, for the model that MLA_FUZZ_MODEL names. The bytes are also read
 * as one JSON text, which has to be the same when it is written and read again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/json.h"
#include "tests/fuzz/fuzz.h"

static const char *model;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    model = getenv("MLA_FUZZ_MODEL");
    if (!model) {
        fprintf(stderr, "batch: MLA_FUZZ_MODEL must name a checkpoint\n");
        exit(1);
    }
    return 0;
}

/* Values are one behind the other, so that no recursion is needed to compare them. */
static void read_again(Slice text) {
    Json j = {0}, again = {0};
    JsonOut out = {0};
    const char *why;
    size_t at;
    const JsonValue *v = json_read(&j, text, &why, &at);
    for (size_t i = 0; v && i < v->size; i++) {
        if (v[i].type != JSON_STRING)
            continue;
        out.text.bytes = 0;
        json_put_string(&out, json_text(&j, &v[i]));
        const JsonValue *same = json_read(&again, contents(&out.text), &why, &at);
        if (!same || same->count != v[i].count ||
            memcmp(json_text(&again, same).text, json_text(&j, &v[i]).text, v[i].count))
            abort();
    }
    if ((!v && (!why || at > text.bytes)) || (v && v->size > text.bytes))
        abort();
    json_free(&j);
    json_free(&again);
    buffer_free(&out.text);
}

/* Whether a number with four digits is in the text: so many samples are no crash, but take long. */
static bool has_large_number(const uint8_t *data, size_t size) {
    for (size_t i = 0, digits = 0; i < size; i++) {
        digits = data[i] >= '0' && data[i] <= '9' ? digits + 1 : 0;
        if (digits == 4)
            return true;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    read_again((Slice){(const char *)data, size});
    if (!has_large_number(data, size))
        run_with((const char *[]){model, "--batch", as_file(data, size), "-n", "2", "-c", "128", "-s", "1",
                                  "-j", "1", "--parallel", "3", NULL});
    return 0;
}
