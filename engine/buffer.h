/* engine/buffer.h: memory that grows as it is filled. Elements of any type lie in it one after the other;
 * every size is in bytes. It does not shrink and reports nothing: false means that memory ran out, and that
 * nothing changed.
 *
 *     Buffer b = {0};
 *     bool ok = buffer_add(&b, &id, sizeof id);
 *     int32_t *ids = b.data;                    valid until the next call with &b
 *     buffer_free(&b); */
#ifndef BUFFER_H
#define BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    void *data;   /* malloced; NULL as long as nothing was reserved */
    size_t bytes; /* in use */
    size_t room;  /* allocated */
} Buffer;

/* Room for `more` bytes behind those in use. It at least doubles when it grows: n bytes, added one by one,
 * are copied in time proportional to n. */
static inline bool buffer_reserve(Buffer *b, size_t more) {
    if (more <= b->room - b->bytes)
        return true;
    if (more > SIZE_MAX / 2 - b->room)
        return false;
    size_t room = 2 * b->room + more;
    void *data = realloc(b->data, room);
    if (!data)
        return false;
    b->data = data;
    b->room = room;
    return true;
}

static inline bool buffer_add(Buffer *b, const void *data, size_t bytes) {
    if (!buffer_reserve(b, bytes))
        return false;
    if (bytes)
        memcpy((char *)b->data + b->bytes, data, bytes);
    b->bytes += bytes;
    return true;
}

static inline void buffer_free(Buffer *b) {
    free(b->data);
    *b = (Buffer){0};
}

#endif
