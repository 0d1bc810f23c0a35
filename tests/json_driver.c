/* tests/json_driver.c: cli/json.h alone, behind a pipe.
 *
 *     json_driver < requests > answers
 *
 * A request is a letter, u32 n and n bytes, which lie in memory of their own so that a sanitizer sees a read
 * behind them. An answer is u32 n and n bytes of JSON:
 *   r   the text is read and written again, each number as [its text, "%a" of its double, integer or null];
 *       an error is {"why": text, "at": bytes}
 *   w   the text is written as a string */
#include <stdio.h>
#include <stdlib.h>

#include "cli/json.h"

/* Writes what v holds; returns the value behind it. MAX_DEPTH bounds the recursion. */
static const JsonValue *write_value(const Json *j, const JsonValue *v, JsonOut *out) {
    const JsonValue *next = v + 1;
    uint64_t integer;
    bool object = v->type == JSON_OBJECT;
    switch (v->type) {
    case JSON_NULL: json_put(out, "null"); break;
    case JSON_FALSE: json_put(out, "false"); break;
    case JSON_TRUE: json_put(out, "true"); break;
    case JSON_STRING: json_put_string(out, json_text(j, v)); break;
    case JSON_NUMBER:
        json_put(out, "[");
        json_put_string(out, json_text(j, v));
        json_put(out, ", \"%a\", ", json_number(j, v));
        if (json_integer(j, v, &integer))
            json_put(out, "%llu]", (unsigned long long)integer);
        else
            json_put(out, "null]");
        break;
    default:
        json_put(out, object ? "{" : "[");
        for (uint32_t i = 0; i < v->count; i++) {
            json_put(out, i ? ", " : "");
            if (object)
                next = write_value(j, next, out);
            json_put(out, object ? ": " : "");
            next = write_value(j, next, out);
        }
        json_put(out, object ? "}" : "]");
    }
    if (next != v + v->size)
        abort();
    return next;
}

static void answer(Json *j, int kind, Slice text, JsonOut *out) {
    const char *why = NULL;
    size_t at = 0;
    out->text.bytes = 0;
    if (kind == 'w') {
        json_put_string(out, text);
        return;
    }
    const JsonValue *v = json_read(j, text, &why, &at);
    if (v) {
        write_value(j, v, out);
    } else {
        json_put(out, "{\"why\": ");
        json_put_string(out, (Slice){why, strlen(why)});
        json_put(out, ", \"at\": %zu}", at);
    }
}

int main(void) {
    Json j = {0};
    JsonOut out = {0};
    uint32_t n;
    for (int kind; (kind = getchar()) != EOF;) {
        if (fread(&n, sizeof n, 1, stdin) != 1)
            return 1;
        char *text = malloc(n ? n : 1);
        if (!text || fread(text, 1, n, stdin) != n)
            return 1;
        answer(&j, kind, (Slice){text, n}, &out);
        free(text);
        n = (uint32_t)out.text.bytes;
        if (fwrite(&n, sizeof n, 1, stdout) != 1 || fwrite(out.text.data, 1, n, stdout) != n)
            return 1;
    }
    json_free(&j);
    buffer_free(&out.text);
    return fflush(stdout) ? 1 : 0;
}
