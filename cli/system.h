/* cli/system.h: what only the operating system knows. */
#ifndef SYSTEM_H
#define SYSTEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_THREADS = 1024 };

/* Physical cores that this process may use, at least 1. Two hardware threads of a core share its arithmetic
 * units: a second thread there gains little and costs every barrier. The files that describe the cores lie
 * under `root`: "" is this machine; tests give others. */
int physical_cores(const char *root);
/* the same with each hardware thread counted */
int allowed_processors(const char *root);

/* Threads where -j is not given: OMP_NUM_THREADS, or the physical cores. */
int default_threads(void);

/* Bytes: what the cache may take where nothing else bounds it. */
size_t half_of_memory(void);

/* The second line of --version: instruction set, OpenMP, threads. */
const char *machine_line(void);

/* 64 bits from the system's random source. False: there is none. */
bool random_seed(uint64_t *seed);

/* From now on Ctrl-C (SIGINT), SIGTERM and SIGHUP make interrupted() true instead of ending the program; a
 * second SIGINT or SIGTERM ends it. Called again, a Ctrl-C is forgotten, the others are not. Signals that the
 * caller had ignored (a script's job in the background, nohup) stay ignored. */
void watch_interrupt(void);
bool interrupted(void);
/* the exit status after it, as shells reckon it: 128 and the number of the signal */
int interrupt_status(void);

#endif
