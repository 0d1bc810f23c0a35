/* cli/manual.h: what is written from the table of options for people and shells. All goes to standard
 * output. */
#ifndef MANUAL_H
#define MANUAL_H

/* --help, in lines of at most 80 columns. */
void manual_help(void);

/* --generate: format is an index of the option's words (table.h). The man page names the program mla, and so
 * do the completions: that is how it is installed. */
void manual_generate(int format);

#endif
