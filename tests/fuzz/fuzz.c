/* tests/fuzz/fuzz.c: what the fuzz targets share (fuzz.h). */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint32_t below(unsigned *seed, uint32_t n) {
    /* Numerical Recipes' generator; its upper bits are the better ones */
    *seed = *seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(*seed ^ *seed >> 16) * n >> 32);
}

static void mutate_number(uint8_t *at, unsigned *seed) {
    static const uint32_t trouble[] = {
        0,         1,       15,      16,      17,         127,        128,       129,        512,
        1 << 12,   1 << 17, 1 << 20, 1 << 24, 0x7F800000, 0x7FC00000, INT32_MAX, 0x80000000, UINT32_MAX - 1,
        UINT32_MAX};
    uint32_t value;
    memcpy(&value, at, sizeof value);
    switch (below(seed, 4)) {
    case 0: value += 1; break;
    case 1: value -= 1; break;
    case 2: value = below(seed, 64); break;
    default: value = trouble[below(seed, sizeof trouble / sizeof *trouble)];
    }
    memcpy(at, &value, sizeof value);
}

void mutate_part(uint8_t *data, size_t from, size_t to, unsigned *seed) {
    size_t n = to - from;
    if (n < 4)
        return;
    if (below(seed, 2)) {
        mutate_number(data + from + 4 * below(seed, (uint32_t)(n / 4)), seed);
        return;
    }
    uint8_t *copy = malloc(n);
    if (!copy)
        return;
    memcpy(copy, data + from, n);
    LLVMFuzzerMutate(copy, n, n);
    memcpy(data + from, copy, n);
    free(copy);
}

static char path[64];

static void remove_file(void) { unlink(path); }

const char *as_file(const uint8_t *data, size_t size) {
    if (!*path)
        atexit(remove_file);
    snprintf(path, sizeof path, "/dev/shm/mla-fuzz-%ld", (long)getpid());
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f))
        abort();
    return path;
}

void run_with(const char *const *arguments) {
    char *argv[16] = {(char *)"run"};
    int argc = 1;
    for (; arguments[argc - 1]; argc++)
        argv[argc] = (char *)arguments[argc - 1];
    run_main(argc, argv);
}
