/* cli/output.c: the two streams (output.h). Knows no model and no token; the rules about newlines, flushing,
 * halves of characters and writes that fail are here and nowhere else. */
#include "cli/output.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/unicode.h"
#include "engine/util.h"

bool quiet = false;
const char *program_name = "run";

static bool terminal;                   /* standard output is one */
static bool regular;                    /* it is a file: no flush after each token */
static bool hung_up;                    /* it was a terminal that has been closed */
static bool progress_shown;             /* on standard error */
static bool mid_line;                   /* what was written last to it did not end a line */
static const char *session, *temporary; /* output_guard */

/* ---- standard error ------------------------------------------------------------------------- */

void progress_end(void) {
    if (progress_shown)
        fputs("\r\033[K", stderr);
    progress_shown = false;
}

/* Where a terminal may show both streams, a message begins a line of its own. */
static void begin_line(void) {
    progress_end();
    if (mid_line && !regular && isatty(STDERR_FILENO))
        fputc('\n', stderr);
    mid_line = false;
}

/* One line whatever the arguments hold: file names and option values come from outside. */
static void line(const char *name, const char *format, va_list args) {
    char text[2048];
    vsnprintf(text, sizeof text, format, args);
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 127)
            *c = '?';
    }
    begin_line();
    fprintf(stderr, "%s%s%s\n", name, *name ? ": " : "", text);
}

int log_error(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    line(program_name, format, args);
    va_end(args);
    return status;
}

void log_info(const char *format, ...) {
    if (quiet)
        return;
    va_list args;
    va_start(args, format);
    line("", format, args);
    va_end(args);
}

void prompt_mark(const char *mark) {
    if (!quiet)
        fputs(mark, stderr);
}

void progress_line(const char *format, ...) {
    if (quiet || !isatty(STDERR_FILENO))
        return;
    va_list args;
    va_start(args, format);
    fputc('\r', stderr);
    vfprintf(stderr, format, args);
    fputs("\033[K", stderr);
    va_end(args);
    progress_shown = true;
}

void progress(const char *what, size_t done, size_t of) {
    if (done < of)
        progress_line("%s: %zu of %zu tokens", what, done, of);
    else
        progress_end();
}

/* ---- standard output ------------------------------------------------------------------------ */

void output_guard(const char *session_name, const char *temporary_name) {
    session = session_name;
    temporary = temporary_name;
}

/* The window of a terminal was closed: the text ends as after SIGHUP, which may come later than the error
 * of the first write, and the session can still be written. Where SIGHUP is ignored nothing would end the
 * text. */
static bool terminal_is_gone(void) {
    struct sigaction action;
    if (!terminal || errno != EIO || sigaction(SIGHUP, NULL, &action) || action.sa_handler == SIG_IGN)
        return false;
    hung_up = true;
    raise(SIGHUP);
    return true;
}

/* Returns after the end of a terminal alone. */
static void output_error(void) {
    int error = errno;
    if (terminal_is_gone())
        return;
    if (temporary)
        unlink(temporary);
    if (error == EPIPE && session)
        log_error(FAILED, "%s: the session was not written: the reader of standard output has gone", session);
    else if (session)
        log_error(FAILED, "standard output: %s; the session %s was not written", strerror(error), session);
    else if (error != EPIPE)
        log_error(FAILED, "standard output: %s", strerror(error));
    _exit(error == EPIPE ? DONE : FAILED); /* not exit(): stdio would try to write the rest */
}

void output_open(const char *called) {
    const char *slash = called ? strrchr(called, '/') : NULL;
    if (called && !strcmp(slash ? slash + 1 : called, "mla"))
        program_name = "mla";
    /* A file opened later must not become stream 0, 1 or 2. Read-only, so that writing to a stream that
     * was closed is still an error. */
    int fd;
    do
        fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close(fd);
    /* a closed pipe, and a file that grows past the user's limit, are then errors of write() */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    struct stat st;
    terminal = isatty(STDOUT_FILENO);
    regular = !fstat(STDOUT_FILENO, &st) && S_ISREG(st.st_mode);
}

void output_write(const char *bytes, size_t n) {
    if (n)
        mid_line = bytes[n - 1] != '\n';
    if (!hung_up && fwrite(bytes, 1, n, stdout) != n)
        output_error();
}

void output_print(const char *format, ...) {
    va_list args;
    va_start(args, format);
    mid_line = format[strlen(format) - 1] != '\n';
    if (!hung_up && vprintf(format, args) < 0)
        output_error();
    va_end(args);
}

void output_flush(void) {
    if (!hung_up && fflush(stdout))
        output_error();
}

void output_line(const char *bytes, size_t n) {
    output_flush();
    mid_line = false;
    for (size_t done = 0; done < n && !hung_up;) {
        ssize_t written = write(STDOUT_FILENO, bytes + done, n - done);
        if (written < 0 && errno != EINTR)
            output_error();
        else if (written > 0)
            done += (size_t)written;
    }
}

/* ---- generated text ------------------------------------------------------------------------- */

bool text_open(Text *t, const Slice *stops, size_t stop_count, Buffer *collected) {
    *t = (Text){.collected = collected};
    if (!collected) {
        t->terminal = t->newline = terminal;
        t->flush = !regular;
    }
    t->stops = calloc(stop_count + 1, sizeof *t->stops);
    if (!t->stops)
        return false;
    for (; t->stop_count < stop_count; t->stop_count++) {
        Stop *s = &t->stops[t->stop_count];
        *s = (Stop){.text = stops[t->stop_count].text, .bytes = stops[t->stop_count].bytes};
        s->fail = calloc(s->bytes, sizeof *s->fail);
        if (!s->fail)
            return false;
        for (size_t i = 1, k = 0; i < s->bytes; s->fail[i++] = k) {
            while (k && s->text[i] != s->text[k])
                k = s->fail[k - 1];
            k += s->text[i] == s->text[k];
        }
    }
    return true;
}

void text_close(Text *t) {
    for (size_t i = 0; i < t->stop_count; i++)
        free(t->stops[i].fail);
    free(t->stops);
}

/* A terminal shows the bytes of one character one by one as rubbish: hold them until the character is
 * complete or cannot become one. */
static void write_characters(Text *t, const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        bool continues = ((unsigned char)bytes[i] & 0xC0) == 0x80;
        if (t->held && !continues) {
            output_write(t->character, t->held);
            t->held = 0;
        }
        t->character[t->held++] = bytes[i];
        if (t->held >= utf8_length((uint8_t)t->character[0])) { /* 0: no character begins so */
            output_write(t->character, t->held);
            t->held = 0;
        }
    }
}

static void write_text(Text *t, const char *bytes, size_t n) {
    if (t->collected)
        t->lost |= !buffer_add(t->collected, bytes, n);
    else if (t->terminal)
        write_characters(t, bytes, n);
    else
        output_write(bytes, n);
}

bool thought_begins(const Text *t, const char *bytes, size_t n) {
    return n && n == t->thought_begin.bytes && !memcmp(bytes, t->thought_begin.text, n);
}

bool thought_ends(const Text *t, const char *bytes, size_t n) {
    return n && n == t->thought_end.bytes && !memcmp(bytes, t->thought_end.text, n);
}

static void set_dim(Text *t, bool dim) {
    if (t->terminal && t->dim != dim)
        output_write(dim ? "\033[2m" : "\033[0m", 4);
    t->dim = dim;
}

/* The stop text that the generated text ends with the most of. */
static const Stop *longest_match(const Text *t) {
    const Stop *best = NULL;
    for (size_t i = 0; i < t->stop_count; i++) {
        if (!best || t->stops[i].matched > best->matched)
            best = &t->stops[i];
    }
    return best;
}

/* One more byte of text. The bytes held back need no buffer: they are the beginning of the stop text that
 * they match. */
static bool text_byte(Text *t, char byte) {
    const Stop *before = longest_match(t);
    size_t held = t->stop_held, found = 0;
    t->stop_held = 0;
    for (size_t i = 0; i < t->stop_count; i++) {
        Stop *s = &t->stops[i];
        while (s->matched && s->text[s->matched] != byte)
            s->matched = s->fail[s->matched - 1];
        s->matched += s->text[s->matched] == byte;
        t->stop_held = max(t->stop_held, s->matched);
        if (s->matched == s->bytes && s->bytes > found)
            found = s->bytes;
    }
    if (found)
        t->stop_held = found;
    size_t keep = t->stop_held, free_bytes = held + 1 - keep;
    write_text(t, before->text, min(free_bytes, held));
    if (free_bytes > held)
        write_text(t, &byte, 1);
    return !found;
}

void text_echo(Text *t, const char *bytes, size_t n) {
    if (thought_begins(t, bytes, n))
        set_dim(t, true);
    write_text(t, bytes, n);
    if (t->flush)
        output_flush();
}

bool text_token(Text *t, const char *bytes, size_t n) {
    bool go_on = true;
    if (thought_begins(t, bytes, n))
        set_dim(t, true);
    if (t->stop_count) {
        size_t used = 0;
        while (used < n && go_on)
            go_on = text_byte(t, bytes[used++]);
        if (!go_on) { /* the stop text itself is never written */
            t->cut = t->stop_held + n - used;
            t->stop_held = 0;
        }
        for (size_t i = 0; i < t->stop_count && !go_on; i++)
            t->stops[i].matched = 0;
    } else {
        write_text(t, bytes, n);
    }
    if (thought_ends(t, bytes, n))
        set_dim(t, false);
    if (t->flush)
        output_flush();
    return go_on;
}

void text_end(Text *t) {
    if (t->stop_held)
        write_text(t, longest_match(t)->text, t->stop_held);
    if (t->held)
        output_write(t->character, t->held);
    set_dim(t, false);
    if (t->newline)
        output_write("\n", 1);
    if (!t->collected)
        output_flush();
    t->stop_held = t->held = 0;
    for (size_t i = 0; i < t->stop_count; i++)
        t->stops[i].matched = 0;
}
