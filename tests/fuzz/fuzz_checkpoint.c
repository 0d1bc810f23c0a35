/* tests/fuzz/fuzz_checkpoint.c: a model.bin that comes from anywhere. Opened, described, checked, talked to,
 * and run for a few tokens by every path and cache type. */
#include "engine/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    Model m;
    char err[256];
    model_open(&m, "", err, sizeof err); /* makes crc32's tables */
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const caches[] = {"f32", "bf16", "q8", "q6", "q4", "full", "full-bf16", "full-q8"};
    const char *path = as_file(data, size), *cache = caches[crc32(0, data, size) % 8];
    run_with((const char *[]){path, "--info", NULL});
    run_with((const char *[]){path, "--check", NULL});
    run_with((const char *[]){path, "--tokenize", "It's 12 little dogs\n\xff", "--special", NULL});
    run_with((const char *[]){path, "--chat", "-p", "It's you", "-n", "3", "-s", "1", "-c", "64", "-j", "1",
                              NULL});
    setenv("MLA_PATH", "absorbed", 1);
    run_with((const char *[]){path, "-p", "Once upon", "-n", "3", "-t", "1", "-s", "1", "-k", cache, "-j",
                              "1", NULL});
    setenv("MLA_PATH", "decompressed", 1);
    run_with((const char *[]){path, "--ids", "0 1 2 3 4", "-n", "3", "-t", "1", "-s", "1", "-k", cache, "-j",
                              "1", NULL});
    return 0;
}

/* One of the parts before the tensors, seldom anything else; then file size and checksum are right again. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    FileHeader *h = (void *)data;
    if (size < sizeof *h + sizeof(Config) || !below(&seed, 16))
        size = LLVMFuzzerMutate(data, size, max_size);
    if (size < sizeof *h + sizeof(Config))
        return size;
    size_t front = min(h->data_offset, size),
           tokenizer = min(round_up(sizeof *h + h->config_bytes, 64), front);
    size_t chat = min(round_up(tokenizer + h->tokenizer_bytes, 64), front),
           table = min(round_up(chat + h->chat_bytes, 64), front);
    size_t parts[] = {0, sizeof *h, tokenizer, chat, table, front, size}, part = below(&seed, 6);
    mutate_part(data, parts[part], max(parts[part], parts[part + 1]), &seed);
    if (below(&seed, 16))
        h->file_bytes = size;
    if (below(&seed, 64) && h->data_offset >= sizeof *h && h->data_offset <= size) {
        h->checksum = 0;
        h->checksum = crc32(0, data, h->data_offset);
    }
    return size;
}
