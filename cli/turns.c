/* cli/turns.c: reads the user's turns (turns.h) from a file, a pipe or a terminal. Knows no model. Waits in
 * poll(), so that a signal that another thread has caught is noticed. */
#include "cli/turns.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cli/output.h"
#include "cli/system.h"

enum {
    MAX_TURN = 1 << 26,   /* bytes */
    TERMINAL_LINE = 4095, /* bytes that Linux's terminals keep of a line; they drop what is typed beyond */
    PASTE_PAUSE = 50      /* milliseconds within which the next line of a paste arrives */
};

/* The program was stopped (Ctrl-Z) and goes on (fg): the mark is to be shown again. */
static volatile sig_atomic_t resumed = 0;

static void resume(int signal_number) {
    (void)signal_number;
    resumed = 1;
}

int turns_open(Turns *t, const char *file) {
    bool standard = !file || !strcmp(file, "-");
    *t = (Turns){.name = file ? file : "-", .mark = "> "};
    t->file = standard ? STDIN_FILENO : open(file, O_RDONLY | O_CLOEXEC);
    if (t->file < 0)
        return log_error(FAILED, "%s: cannot read it: %s", t->name, strerror(errno));
    t->terminal = isatty(t->file);
    if (t->terminal) {
        struct sigaction action = {.sa_handler = resume, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        sigaction(SIGCONT, &action, NULL);
    }
    return DONE;
}

void turns_greet(const Turns *t) {
    if (t->terminal && isatty(STDERR_FILENO))
        log_info(
            "Ctrl-D ends the conversation, Ctrl-C an answer; a line that ends with \\ goes on in the next.");
}

void turns_close(Turns *t) {
    if (t->file > STDERR_FILENO)
        close(t->file);
    buffer_free(&t->read);
    buffer_free(&t->turn);
}

/* ---- bytes ---------------------------------------------------------------------------------- */

static void show_mark(Turns *t, const char *mark) {
    t->mark = mark;
    resumed = 0;
    prompt_mark(mark);
}

/* Until there is something to read, or Ctrl-C or SIGTERM: they are looked for ten times a second. */
static void wait_for_input(const Turns *t) {
    struct pollfd ready = {.fd = t->file, .events = POLLIN};
    int n = 0;
    while (!interrupted() && (n == 0 || (n < 0 && errno == EINTR))) {
        if (resumed && t->terminal) {
            resumed = 0;
            prompt_mark(t->mark);
        }
        n = poll(&ready, 1, 100);
    }
}

static int too_long(const Turns *t) {
    return log_error(FAILED, "%s: a turn is longer than the %d bytes that it may have", t->name, MAX_TURN);
}

/* False: the end, an error that was reported to *status, or Ctrl-C. */
static bool read_more(Turns *t, int *status) {
    static char block[1 << 16];
    wait_for_input(t);
    if (t->end || interrupted())
        return false;
    ssize_t n = read(t->file, block, sizeof block);
    t->end = n <= 0;
    if (n < 0)
        *status = log_error(FAILED, "%s: cannot read it: %s", t->name, strerror(errno));
    if (n <= 0)
        return false;
    if (t->used) {
        t->read.bytes -= t->used;
        memmove(t->read.data, (char *)t->read.data + t->used, t->read.bytes);
        t->used = 0;
    }
    if (t->read.bytes > MAX_TURN)
        *status = too_long(t);
    else if (!append(&t->read, (Slice){block, (size_t)n}))
        *status = log_error(FAILED, "out of memory");
    return !*status;
}

/* ---- lines ---------------------------------------------------------------------------------- */

/* The next line, without its end; a last one may have none. False: as read_more. */
static bool read_line(Turns *t, Slice *line, int *status) {
    size_t searched = 0; /* bytes of the line without a line feed among them */
    const char *end = NULL;
    Slice rest = after(contents(&t->read), t->used);
    while (!end) {
        end = rest.bytes > searched ? memchr(rest.text + searched, '\n', rest.bytes - searched) : NULL;
        searched = rest.bytes;
        if (!end && !read_more(t, status))
            break;
        rest = after(contents(&t->read), t->used);
    }
    *line = (Slice){rest.text, end ? (size_t)(end - rest.text) : rest.bytes};
    t->used += line->bytes + (end != NULL);
    bool got = !*status && !interrupted() && (end || line->bytes);
    if (!t->begun && starts_with(*line, (Slice){"\xEF\xBB\xBF", 3}))
        *line = after(*line, 3);
    t->begun = true;
    if (line->bytes && line->text[line->bytes - 1] == '\r')
        line->bytes--;
    return got;
}

/* Whether a line of a paste is already there. */
static bool line_waits(const Turns *t) {
    struct pollfd ready = {.fd = t->file, .events = POLLIN};
    return t->terminal && (t->read.bytes > t->used || poll(&ready, 1, PASTE_PAUSE) > 0);
}

/* ---- turns ---------------------------------------------------------------------------------- */

/* The line feeds that were held back, then the line. */
static bool add_line(Turns *t, Slice line, size_t *breaks, int *status) {
    if (t->turn.bytes + *breaks + line.bytes > MAX_TURN) {
        *status = too_long(t);
        return false;
    }
    bool added = true;
    for (; line.bytes && *breaks && added; --*breaks)
        added = append(&t->turn, (Slice){"\n", 1});
    if (!added || !append(&t->turn, line))
        *status = log_error(FAILED, "out of memory");
    return !*status;
}

/* t->turn = the lines of a turn, perhaps none. False: no line was there; *cut: the terminal cut one. */
static bool read_lines(Turns *t, bool *cut, int *status) {
    size_t breaks = 0; /* line feeds that are held back: empty lines at the end of a paste are no text */
    bool goes_on = false, pasted = false;
    t->turn.bytes = 0;
    *cut = false;
    do {
        Slice line;
        if (t->terminal && !pasted)
            show_mark(t, goes_on ? ". " : "> ");
        if (!read_line(t, &line, status))
            return t->turn.bytes && !*status && !interrupted();
        *cut |= t->terminal && line.bytes == TERMINAL_LINE;
        goes_on = line.bytes && line.text[line.bytes - 1] == '\\';
        line.bytes -= goes_on;
        if (!add_line(t, line, &breaks, status))
            return false;
        if (goes_on && !add_line(t, (Slice){"\n", 1}, &breaks, status))
            return false;
        pasted = line_waits(t);
        breaks += pasted && !goes_on && t->turn.bytes;
    } while (goes_on || pasted);
    return true;
}

bool turns_next(Turns *t, Slice *turn, int *status) {
    bool cut, got;
    do {
        got = read_lines(t, &cut, status);
        if (got && cut)
            log_error(FAILED,
                      "not sent: a line has %d bytes, and the terminal may have cut it there; give shorter "
                      "lines, or the text in a file: -f FILE",
                      TERMINAL_LINE);
    } while (got && (cut || !t->turn.bytes));
    if (!got && t->terminal)
        prompt_mark("\n");
    *turn = contents(&t->turn);
    return got;
}
