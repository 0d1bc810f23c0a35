/* cli/escape.h: \n \t \\ \xHH and \uHHHH in texts of the command line. */
#ifndef ESCAPE_H
#define ESCAPE_H

#include <stdbool.h>
#include <stddef.h>

/* Interprets the escapes in `text`, in place: they only get shorter, and C lets a program write to argv.
 * *bytes: its length then, NULs included. False: reported, as a mistake in the value of the option
 * `given`. */
bool unescape(const char *given, const char *text, size_t *bytes);

#endif
