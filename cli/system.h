/* system.h: what only the operating system knows. */
#ifndef SYSTEM_H
#define SYSTEM_H

#include <stdbool.h>
#include <stdint.h>

/* Physical cores that this process may use, at least 1. Two hardware threads of a core share its
 * arithmetic units: a second thread there gains little and costs every barrier. */
int physical_cores(void);

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
