/* tests/fuzz/fuzz_session.c: a --session file that comes from anywhere, for the model that MLA_FUZZ_MODEL
 * names. Read, and continued by a token, as a text and as a conversation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/checkpoint.h"
#include "tests/fuzz/fuzz.h"

/* Offsets in the header, after the description at the head of cli/session.c. */
enum {
    CHECKSUM = 12,
    FILE_BYTES = 16,
    DATA_OFFSET = 24,
    PAGE_BYTES = 32,
    TOKENS = 136,
    LOGITS = 148,
    PAGES = 152,
    HEADER = 192
};

static const char *model;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    Model m;
    char err[256];
    model = getenv("MLA_FUZZ_MODEL");
    if (!model || !model_open(&m, model, err, sizeof err)) {
        fprintf(stderr, "session: MLA_FUZZ_MODEL must name a checkpoint\n");
        exit(1);
    }
    model_close(&m);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    run_with((const char *[]){model, "--session", as_file(data, size), "-p", "a", "--echo", "-n", "2", "-t",
                              "1", "--ignore-eos", "-j", "1", NULL});
    run_with((const char *[]){model, "--session", as_file(data, size), "--chat", "-p", "a", "-n", "2", "-c",
                              "256", "-j", "1", NULL});
    return 0;
}

static uint64_t field(const uint8_t *data, size_t at, size_t bytes) {
    uint64_t value = 0;
    memcpy(&value, data + at, bytes);
    return value;
}

/* Header, lists or pages; then sizes and checksums are right again. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    if (size < HEADER || !below(&seed, 16))
        size = LLVMFuzzerMutate(data, size, max_size);
    if (size < HEADER)
        return size;
    uint64_t offset = field(data, DATA_OFFSET, 8), page_bytes = field(data, PAGE_BYTES, 8), file_bytes = size;
    size_t front = offset < HEADER || offset > size ? HEADER : (size_t)offset;
    size_t parts[] = {0, HEADER, front, size}, part = below(&seed, 3);
    mutate_part(data, parts[part], parts[part + 1], &seed);
    if (below(&seed, 16))
        memcpy(data + FILE_BYTES, &file_bytes, 8);
    offset = field(data, DATA_OFFSET, 8);
    if (!below(&seed, 64) || offset < HEADER || offset > size)
        return size;
    uint64_t checksums = HEADER + 4 * (field(data, TOKENS, 4) + field(data, LOGITS, 4));
    for (uint64_t i = 0; i < field(data, PAGES, 4) && checksums + 4 * i + 4 <= offset &&
                         page_bytes <= (size - offset) / (i + 1);
         i++) {
        uint32_t crc = crc32(0, data + offset + i * page_bytes, page_bytes);
        memcpy(data + checksums + 4 * i, &crc, sizeof crc);
    }
    uint32_t crc = 0;
    memcpy(data + CHECKSUM, &crc, sizeof crc);
    crc = crc32(0, data, offset);
    memcpy(data + CHECKSUM, &crc, sizeof crc);
    return size;
}
