/* cli/input.c: lines of a file, a pipe or a terminal (input.h). Bytes are given as they are: nothing but the
 * line feed means anything here. Waits in poll(), so that a signal is noticed. */
#include "cli/input.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/output.h"
#include "cli/system.h"

enum { BLOCK = 1 << 16 };

static int cannot_read(const Input *in) {
    return log_error(FAILED, "%s: cannot read it: %s", in->name, strerror(errno));
}

/* How many lines a regular file has, for the display of progress; else 0. */
static size_t count_lines(const Input *in) {
    static char block[BLOCK];
    struct stat st;
    if (fstat(in->file, &st) || !S_ISREG(st.st_mode))
        return 0;
    off_t at = lseek(in->file, 0, SEEK_CUR); /* standard input may be in the middle of a file */
    size_t lines = 0;
    char last = '\n';
    for (ssize_t n; at >= 0 && (n = pread(in->file, block, sizeof block, at)) > 0; at += n) {
        for (ssize_t i = 0; i < n; i++)
            lines += block[i] == '\n';
        last = block[n - 1];
    }
    return lines + (last != '\n');
}

int input_open(Input *in, const char *name) {
    bool standard = !strcmp(name, "-");
    *in = (Input){.name = name, .file = standard ? STDIN_FILENO : open(name, O_RDONLY | O_CLOEXEC)};
    if (in->file < 0)
        return cannot_read(in);
    in->lines = count_lines(in);
    return DONE;
}

void input_close(Input *in) {
    if (in->file > STDERR_FILENO)
        close(in->file);
    buffer_free(&in->read);
}

/* Whether there is something to read, or the end. With `wait` it waits for that, or for a signal. */
static bool is_ready(const Input *in, bool wait) {
    struct pollfd ready = {.fd = in->file, .events = POLLIN};
    int n;
    do
        n = poll(&ready, 1, wait ? 100 : 0);
    while (wait && !interrupted() && (n == 0 || (n < 0 && errno == EINTR)));
    return n > 0;
}

/* Drops the lines that were given, so that the buffer holds no more than a line and a block. */
static void drop_used(Input *in) {
    in->read.bytes -= in->used;
    if (in->used && in->read.bytes)
        memmove(in->read.data, (char *)in->read.data + in->used, in->read.bytes);
    in->used = 0;
}

/* Reads a block. True: more bytes are there, or the end was found: look for a line again. False: *event says
 * why not. */
static bool read_more(Input *in, bool wait, InputEvent *event) {
    if (!is_ready(in, wait)) {
        *event = interrupted() ? INPUT_END : INPUT_LATER;
        return false;
    }
    *event = INPUT_FAILED;
    drop_used(in);
    if (!buffer_reserve(&in->read, BLOCK)) {
        log_error(FAILED, "%s: out of memory", in->name);
        return false;
    }
    ssize_t n = read(in->file, (char *)in->read.data + in->read.bytes, BLOCK);
    if (n < 0 && errno != EINTR && errno != EAGAIN) {
        cannot_read(in);
        return false;
    }
    in->end = n == 0;
    in->read.bytes += n > 0 ? (size_t)n : 0;
    return true;
}

/* Takes the line that ends at byte `length` of what is left. */
static InputEvent take(Input *in, Slice rest, size_t length, Slice *line) {
    bool skipped = in->skipping;
    *line = (Slice){rest.text, length};
    in->used += length + (length < rest.bytes);
    in->searched = 0;
    in->skipping = false;
    in->line++;
    return skipped || length > MAX_LINE ? INPUT_TOO_LONG : INPUT_LINE;
}

InputEvent input_line(Input *in, Slice *line, bool wait) {
    for (;;) {
        Slice rest = after(contents(&in->read), in->used);
        const char *end = rest.bytes > in->searched
                              ? memchr(rest.text + in->searched, '\n', rest.bytes - in->searched)
                              : NULL;
        if (end)
            return take(in, rest, (size_t)(end - rest.text), line);
        if (in->end)
            return rest.bytes || in->skipping ? take(in, rest, rest.bytes, line) : INPUT_END;
        in->searched = rest.bytes;
        if (rest.bytes > MAX_LINE) {
            in->skipping = true;
            in->used += rest.bytes;
            in->searched = 0;
        }
        InputEvent event;
        if (!read_more(in, wait, &event))
            return event;
    }
}
