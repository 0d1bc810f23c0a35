/* cli/request.c: the memory of requests (request.h). What is in them is the business of their source. */
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
