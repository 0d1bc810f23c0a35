/* cli/request.c: the memory of requests, and what all writers say of replies (request.h). What a request asks
 * for is its source's business. */
#include "cli/request.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Kept {
    struct Kept *next;
    max_align_t data[];
} Kept;

void *request_keep(Request *r, const void *bytes, size_t n) {
    Kept *kept = n < SIZE_MAX / 2 ? calloc(1, sizeof *kept + n) : NULL;
    if (!kept)
        return NULL;
    if (bytes && n)
        memcpy(kept->data, bytes, n);
    kept->next = r->kept;
    r->kept = kept;
    return kept->data;
}

void request_free(Request *r) {
    for (Kept *next; r->kept; r->kept = next) {
        next = r->kept->next;
        free(r->kept);
    }
}

bool request_fail(Request *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->error, sizeof r->error, format, args);
    va_end(args);
    return false;
}

const char *first_error(const Request *r, const Reply *first) {
    const char *error = NULL;
    for (size_t i = 0; i < (r->choice_count ? 1 : r->samples) && !error; i++)
        error = first[i].error;
    return error;
}

const char *finish_reason(const Reply *reply) {
    return reply->end == END_LENGTH || reply->end == END_CONTEXT ? "length" : "stop";
}
