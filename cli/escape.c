/* cli/escape.c: the escapes of -e (escape.h). \uHHHH is a character, also as the pair of surrogates that JSON
 * writes; \xHH is a byte, of a character or not. */
#include "cli/escape.h"

#include <ctype.h>
#include <stdint.h>

#include "cli/output.h"
#include "engine/unicode.h"

static int hex_value(const char *digits, int count) {
    int value = 0;
    for (int i = 0; i < count; i++) {
        int c = tolower((unsigned char)digits[i]);
        if (!isxdigit(c))
            return -1;
        value = value * 16 + (c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return value;
}

/* The character of \uHHHH, or of a pair of surrogates \uD8..\uDC..; -1: not a character. *used: bytes of
 * text behind "\u". */
static int unicode_value(const char *text, size_t *used) {
    int c = hex_value(text, 4);
    *used = 4;
    if (c < 0xD800 || c > 0xDFFF)
        return c;
    int low = c < 0xDC00 && text[4] == '\\' && text[5] == 'u' ? hex_value(text + 6, 4) : -1;
    *used = 10;
    return low >= 0xDC00 && low <= 0xDFFF ? 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00) : -1;
}

bool unescape(const char *given, const char *text, size_t *bytes) {
    const char *in = text;
    char *out = (char *)text;
    while (*in) {
        const char *escape = in;
        size_t used = 0;
        int c = (unsigned char)*in++;
        if (c != '\\') {
            *out++ = (char)c;
            continue;
        }
        switch (*in++) {
        case 'n': c = '\n'; break;
        case 't': c = '\t'; break;
        case '\\': c = '\\'; break;
        case 'x':
            c = hex_value(in, 2);
            used = 2;
            break;
        case 'u': c = unicode_value(in, &used); break;
        default: c = -1;
        }
        if (c < 0) {
            log_error(WRONG_USAGE, "%s: '%.12s': -e knows \\n \\t \\\\ \\xHH and \\uHHHH", given, escape);
            return false;
        }
        in += used;
        if (escape[1] == 'u')
            out += utf8_write((uint8_t *)out, (uint32_t)c);
        else
            *out++ = (char)c;
    }
    *bytes = (size_t)(out - text);
    return true;
}
