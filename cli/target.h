/* cli/target.h: the files that the program writes, by the names that the user gives for them. */
#ifndef TARGET_H
#define TARGET_H

#include <stdbool.h>

/* The path that `name` stands for when links are followed, also a link to a file that does not exist yet:
 * malloced. NULL: errno says what is wrong (a folder that does not exist, a circle of links, no memory).
 *
 * *direct: the file is written in place, at its end, because it is no regular file (a pipe, a device) or is
 * a stream of some process (all under /proc, and under /dev but for /dev/shm). Otherwise a file beside it
 * is written and renamed to the path. */
char *target_path(const char *name, bool *direct);

#endif
