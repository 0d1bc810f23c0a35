/* tests/fuzz/fuzz.h: what the fuzz targets share. Each target is one function of bytes for libFuzzer (clang);
 * `make fuzz` builds and runs them all, from seeds that make_seeds.py makes of the models in tests/models.
 *
 * Checkpoints and sessions are given to the program as a user would give them, as a file and a command
 * line: run_main is main of run.c under another name. They have checksums that no mutation gets past by
 * chance, so a target that needs it mends them after mutating. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

int run_main(int argc, char **argv);

/* libFuzzer's: its own mutations, in place; returns the new size. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* A random number below n, the next one each time. */
uint32_t below(unsigned *seed, uint32_t n);

/* Bytes from .. to - 1 of data: a number among them becomes a likely trouble, or libFuzzer mutates them
 * without changing how many there are. */
void mutate_part(uint8_t *data, size_t from, size_t to, unsigned *seed);

/* A file of this process alone, in memory, that holds `data`; the same name each time. */
const char *as_file(const uint8_t *data, size_t size);

/* run_main with these arguments, a list that NULL ends. */
void run_with(const char *const *arguments);

#endif
