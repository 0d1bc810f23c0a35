/* cli/target.c: the path behind the name of a file that the program writes (target.h). A link is never
 * replaced, but its target: a file renamed to /dev/stdout would take that name away from the whole machine.
 * Writes nothing itself: logits.c and session.c do. */
#include "cli/target.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_LINKS = 40 };

/* folder/name, where `name` may be absolute: malloced. */
static char *join(const char *folder, const char *name) {
    size_t bytes = strlen(folder) + strlen(name) + 2;
    char *path = malloc(bytes);
    if (path)
        snprintf(path, bytes, "%s%s%s", *name == '/' ? "" : folder, *name == '/' ? "" : "/", name);
    return path;
}

/* The same file with its folder's links followed, but not its own: malloced. */
static char *follow_folder(char *path) {
    char *slash = strrchr(path, '/'), *folder, *whole;
    if (slash)
        *slash = 0;
    folder = realpath(!slash ? "." : slash == path ? "/" : path, NULL);
    if (!folder)
        return NULL;
    whole = join(strcmp(folder, "/") ? folder : "", slash ? slash + 1 : path);
    free(folder);
    return whole;
}

static bool begins_with(const char *path, const char *folder) {
    return !strncmp(path, folder, strlen(folder));
}

char *target_path(const char *name, bool *direct) {
    char *path = strdup(name), link[PATH_MAX];
    struct stat st;
    *direct = false;
    for (int links = 0; path; links++) {
        char *whole = follow_folder(path);
        free(path);
        if (!whole)
            return NULL;
        *direct =
            begins_with(whole, "/proc/") || (begins_with(whole, "/dev/") && !begins_with(whole, "/dev/shm/"));
        bool there = !lstat(whole, &st);
        if (*direct || !there || !S_ISLNK(st.st_mode)) {
            *direct |= there && !S_ISREG(st.st_mode);
            return whole;
        }
        ssize_t n = links < MAX_LINKS ? readlink(whole, link, sizeof link - 1) : -1;
        if (n < 0) {
            errno = links < MAX_LINKS ? errno : ELOOP;
            free(whole);
            return NULL;
        }
        link[n] = 0;
        *strrchr(whole, '/') = 0;
        path = join(whole, link);
        free(whole);
    }
    return NULL;
}
