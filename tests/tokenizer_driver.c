/* tests/tokenizer_driver.c: the tokenizer alone, behind a pipe.
 *
 *     tokenizer_driver SECTION < requests > answers
 *
 * SECTION holds the bytes of a tokenizer section. A request is a kind (one byte) and a u32 number n:
 *   'p' or 't' n, then n bytes of text   encode, plain or trusted; the answer is a u32 count and that many
 *                                        i32 ids
 *   'd' or 'f' n                         decode id n, in a text or as its first token; the answer is u32
 *                                        special (0 or 1), u32 length and the bytes
 * Numbers are little-endian. Exit status 1, and one line on standard error, if the section is refused or
 * memory runs out. */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

static char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END))
        return NULL;
    *n = (size_t)ftell(f);
    rewind(f);
    char *data = malloc(*n ? *n : 1); /* exactly its size: a sanitizer sees every read behind it */
    if (data && fread(data, 1, *n, f) != *n)
        *n = 0;
    fclose(f);
    return data;
}

static void put(uint32_t value) { fwrite(&value, 4, 1, stdout); }

static int encode(const Tokenizer *t, size_t n, bool trusted) {
    char *text = malloc(n ? n : 1);
    if (!text || fread(text, 1, n, stdin) != n)
        return 1;
    size_t count;
    char err[256];
    int32_t *ids = tokenizer_encode(t, text, n, trusted, true, &count, err, sizeof err);
    free(text);
    if (!ids) {
        fprintf(stderr, "encode: %s\n", err);
        return 1;
    }
    put((uint32_t)count);
    fwrite(ids, sizeof *ids, count, stdout);
    free(ids);
    return 0;
}

static int decode(const Tokenizer *t, int32_t id, bool first) {
    size_t n;
    bool special;
    const char *bytes = tokenizer_decode(t, id, first, &n, &special);
    put(special);
    put((uint32_t)n);
    fwrite(bytes, 1, n, stdout);
    return 0;
}

int main(int argc, char **argv) {
    char err[256];
    size_t bytes = 0;
    char *section = argc == 2 ? read_file(argv[1], &bytes) : NULL;
    if (!section) {
        fprintf(stderr, "usage: tokenizer_driver SECTION < requests\n");
        return 2;
    }
    Tokenizer *t = tokenizer_open(section, bytes, err, sizeof err);
    if (!t)
        fprintf(stderr, "%s: %s\n", argv[1], err);
    int status = !t, kind;
    while (status == 0 && (kind = getchar()) != EOF) {
        uint32_t n;
        if (fread(&n, 4, 1, stdin) != 1)
            status = 1;
        else
            status =
                kind == 'd' || kind == 'f' ? decode(t, (int32_t)n, kind == 'f') : encode(t, n, kind == 't');
    }
    if (t)
        tokenizer_close(t);
    free(section);
    return status;
}
