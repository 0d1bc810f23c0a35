/* cli/slice.c: parts of a text compared and stripped (slice.h). Knows UTF-8's white space and nothing else
 * about what the bytes mean. */
#include "cli/slice.h"

#include <string.h>

bool starts_with(Slice s, Slice beginning) {
    return s.bytes >= beginning.bytes &&
           (!beginning.bytes || !memcmp(s.text, beginning.text, beginning.bytes));
}

bool is_text(Slice s, const char *text) { return s.bytes == strlen(text) && !memcmp(s.text, text, s.bytes); }

bool same_text(Slice a, Slice b, Slice c, Slice d) {
    if (a.bytes > c.bytes)
        return same_text(c, d, a, b);
    size_t over = c.bytes - a.bytes;
    return a.bytes + b.bytes == c.bytes + d.bytes && starts_with(c, a) && starts_with(b, after(c, a.bytes)) &&
           starts_with(after(b, over), d);
}

/* The bytes of a white space character that s begins with, or with `last` ends with. */
static size_t space_at(Slice s, bool last) {
    static const char *const spaces[] = {
        "\t",       "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",   " ",
        "\xc2\x85", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
        "\u2007",   "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000",
    };
    for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++) {
        size_t n = strlen(spaces[i]);
        if (n <= s.bytes && !memcmp(last ? s.text + s.bytes - n : s.text, spaces[i], n))
            return n;
    }
    return 0;
}

size_t leading_space(Slice s) {
    size_t all = 0;
    for (size_t n; (n = space_at(after(s, all), false)); all += n) {
    }
    return all;
}

Slice strip(Slice s) {
    s = after(s, leading_space(s));
    for (size_t n = space_at(s, true); n; n = space_at(s, true))
        s.bytes -= n;
    return s;
}
