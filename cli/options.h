/* cli/options.h: the command line. One table (table.c) holds every option with what it takes, where it
 * applies and its help. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "cli/table.h"

/* Fills o. False: the program is done with *status (a line about a mistake, help or version was written). */
bool options_parse(Options *o, int argc, char **argv, int *status);
void options_close(Options *o); /* also after options_parse gave false */

#endif
