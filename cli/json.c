/* cli/json.c: JSON, read and written (json.h). The reader goes through the text once; open arrays and
 * objects are in a list, not on the stack. Knows nothing of what the values mean: batch_json.c and openai.c
 * do. */
#include "cli/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/unicode.h"

/* ---- reading -------------------------------------------------------------------------------- */

typedef struct {
    Json *json;
    Slice text;
    size_t at;
    uint32_t open[MAX_DEPTH]; /* the arrays and objects that the present value is in: indices of values */
    size_t depth;
    const char *why; /* NULL: nothing is wrong so far */
} Reader;

static bool wrong(Reader *r, const char *why) {
    r->why = r->why ? r->why : why;
    return false;
}

/* Passes on whether there was memory. */
static bool enough(Reader *r, bool memory) { return memory || wrong(r, "out of memory"); }

static JsonValue *value_at(const Json *j, size_t i) { return (JsonValue *)j->values.data + i; }
static size_t value_count(const Json *j) { return j->values.bytes / sizeof(JsonValue); }

/* The next byte; -1: the end. */
static int next_byte(const Reader *r) {
    return r->at < r->text.bytes ? (unsigned char)r->text.text[r->at] : -1;
}

static int next_after_space(Reader *r) {
    int c = next_byte(r);
    for (; c == ' ' || c == '\t' || c == '\n' || c == '\r'; c = next_byte(r))
        r->at++;
    return c;
}

/* Reads the byte, if it is the next one. */
static bool take(Reader *r, int byte) {
    bool there = next_byte(r) == byte;
    r->at += there;
    return there;
}

static bool add_value(Reader *r, JsonType type, size_t at, size_t count) {
    JsonValue v = {.type = type, .size = 1, .count = (uint32_t)count, .at = (uint32_t)at};
    return enough(r, buffer_add(&r->json->values, &v, sizeof v));
}

/* A STRING or NUMBER whose text began at `from`. */
static bool add_text_value(Reader *r, JsonType type, size_t from) {
    Buffer *text = &r->json->text;
    size_t bytes = text->bytes - from;
    return enough(r, append(text, (Slice){"", 1})) && add_value(r, type, from, bytes);
}

static int hex_digit(int c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The four digits of \uHHHH. */
static bool read_hex(Reader *r, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(next_byte(r));
        if (digit < 0)
            return wrong(r, "\\u takes four hexadecimal digits");
        *code = *code << 4 | (uint32_t)digit;
        r->at++;
    }
    return true;
}

/* A character that is written \uHHHH, or as a pair of surrogates; \u has been read. */
static bool read_code(Reader *r) {
    uint32_t code, low;
    uint8_t bytes[4];
    if (!read_hex(r, &code))
        return false;
    if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || !take(r, '\\') || !take(r, 'u') || !read_hex(r, &low) || low < 0xDC00 ||
            low >= 0xE000)
            return wrong(r, "half of a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    size_t n = utf8_write(bytes, code);
    return enough(r, buffer_add(&r->json->text, bytes, n));
}

/* A backslash has been read. */
static bool read_escape(Reader *r) {
    static const char letters[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
    int c = next_byte(r);
    const char *letter = c > 0 ? strchr(letters, c) : NULL;
    if (take(r, 'u'))
        return read_code(r);
    if (!letter)
        return wrong(r, "an escape that JSON does not have");
    r->at++;
    return enough(r, buffer_add(&r->json->text, &bytes[letter - letters], 1));
}

/* Bytes of a string up to a quotation mark, a backslash or something wrong. */
static bool read_plain(Reader *r) {
    size_t from = r->at;
    for (int c; (c = next_byte(r)) >= ' ' && c != '"' && c != '\\';) {
        uint32_t code;
        size_t n = utf8_read((const uint8_t *)r->text.text + r->at, r->text.bytes - r->at, &code);
        if (!n)
            return wrong(r, "bytes that are not UTF-8");
        r->at += n;
    }
    return enough(r, append(&r->json->text, (Slice){r->text.text + from, r->at - from}));
}

static bool read_string(Reader *r) {
    size_t from = r->json->text.bytes;
    if (!take(r, '"'))
        return wrong(r, "a string was expected");
    while (read_plain(r)) {
        if (take(r, '"'))
            return add_text_value(r, JSON_STRING, from);
        if (!take(r, '\\'))
            return wrong(r, r->at < r->text.bytes ? "a control character in a string"
                                                  : "a string without an end");
        if (!read_escape(r))
            return false;
    }
    return false;
}

static bool read_digits(Reader *r) {
    size_t from = r->at;
    while (next_byte(r) >= '0' && next_byte(r) <= '9')
        r->at++;
    return r->at > from;
}

static bool read_number(Reader *r) {
    size_t start = r->at, from = r->json->text.bytes;
    take(r, '-');
    bool right = take(r, '0') || read_digits(r);
    if (right && take(r, '.'))
        right = read_digits(r);
    if (right && (take(r, 'e') || take(r, 'E'))) {
        if (!take(r, '+'))
            take(r, '-');
        right = read_digits(r);
    }
    if (!right)
        return wrong(r, "a number that JSON does not have");
    if (!enough(r, append(&r->json->text, (Slice){r->text.text + start, r->at - start})) ||
        !add_text_value(r, JSON_NUMBER, from))
        return false;
    if (isfinite(json_number(r->json, value_at(r->json, value_count(r->json) - 1))))
        return true;
    r->at = start;
    return wrong(r, "a number that is too large");
}

static bool read_word(Reader *r, const char *word, JsonType type) {
    Slice rest = after(r->text, r->at), all = {word, strlen(word)};
    if (!starts_with(rest, all))
        return wrong(r, "a value was expected");
    r->at += all.bytes;
    return add_value(r, type, 0, 0);
}

/* The key of the next member, and the colon. */
static bool read_key(Reader *r) {
    next_after_space(r);
    if (!read_string(r))
        return false;
    next_after_space(r);
    return take(r, ':') || wrong(r, "a colon was expected behind a key");
}

static int compare_keys(const void *a, const void *b) {
    const Slice *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->bytes < y->bytes ? x->bytes : y->bytes);
    return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Refuses a key that comes twice. Keys are sorted for that, because an object may have a million. */
static bool check_keys(Reader *r, const JsonValue *object) {
    Buffer *keys = &r->json->keys;
    const JsonValue *key = object + 1;
    keys->bytes = 0;
    for (size_t i = 0; i < object->count; i++) {
        Slice text = json_text(r->json, key);
        if (!enough(r, buffer_add(keys, &text, sizeof text)))
            return false;
        key += 1 + key[1].size;
    }
    Slice *sorted = keys->data;
    if (object->count > 1)
        qsort(sorted, object->count, sizeof *sorted, compare_keys);
    for (size_t i = 1; i < object->count; i++)
        if (!compare_keys(&sorted[i - 1], &sorted[i]))
            return wrong(r, "an object has a key twice");
    return true;
}

/* A value is complete: closes the arrays and objects that end behind it. True: another value follows, or
 * depth is 0, the whole text is read. */
static bool close_values(Reader *r) {
    while (r->depth) {
        size_t index = r->open[r->depth - 1];
        JsonValue *v = value_at(r->json, index);
        bool object = v->type == JSON_OBJECT;
        v->count++;
        next_after_space(r);
        if (take(r, ','))
            return !object || read_key(r);
        if (!take(r, object ? '}' : ']'))
            return wrong(r, object ? "a comma or } was expected" : "a comma or ] was expected");
        v->size = (uint32_t)(value_count(r->json) - index);
        if (object && !check_keys(r, v))
            return false;
        r->depth--;
    }
    return true;
}

/* An array or object begins. *complete: it is empty. */
static bool open_value(Reader *r, JsonType type, bool *complete) {
    if (r->depth == MAX_DEPTH)
        return wrong(r, "arrays and objects that are nested too deep");
    r->open[r->depth] = (uint32_t)value_count(r->json);
    r->at++;
    if (!add_value(r, type, 0, 0))
        return false;
    next_after_space(r);
    *complete = take(r, type == JSON_OBJECT ? '}' : ']');
    r->depth += !*complete;
    return *complete || type == JSON_ARRAY || read_key(r);
}

/* Reads a value, but only the beginning of an array or object that is not empty. */
static bool read_value(Reader *r, bool *complete) {
    *complete = true;
    int c = next_after_space(r);
    switch (c) {
    case '{': return open_value(r, JSON_OBJECT, complete);
    case '[': return open_value(r, JSON_ARRAY, complete);
    case '"': return read_string(r);
    case 'n': return read_word(r, "null", JSON_NULL);
    case 't': return read_word(r, "true", JSON_TRUE);
    case 'f': return read_word(r, "false", JSON_FALSE);
    default: return c == '-' || (c >= '0' && c <= '9') ? read_number(r) : wrong(r, "a value was expected");
    }
}

static bool read_all(Reader *r) {
    bool complete;
    if (r->text.bytes > MAX_JSON)
        return wrong(r, "longer than a text may be");
    do {
        if (!read_value(r, &complete) || (complete && !close_values(r)))
            return false;
    } while (!complete || r->depth);
    return next_after_space(r) < 0 || wrong(r, "something follows the value");
}

const JsonValue *json_read(Json *j, Slice text, const char **why, size_t *at) {
    Reader r = {.json = j, .text = text};
    j->values.bytes = j->text.bytes = 0;
    bool done = read_all(&r);
    *why = r.why;
    *at = r.at;
    return done ? j->values.data : NULL;
}

void json_free(Json *j) {
    buffer_free(&j->values);
    buffer_free(&j->text);
    buffer_free(&j->keys);
}

Slice json_text(const Json *j, const JsonValue *v) { return (Slice){(char *)j->text.data + v->at, v->count}; }

double json_number(const Json *j, const JsonValue *v) { return strtod(json_text(j, v).text, NULL); }

bool json_integer(const Json *j, const JsonValue *v, uint64_t *number) {
    if (v->type != JSON_NUMBER)
        return false;
    Slice text = json_text(j, v);
    *number = 0;
    for (size_t i = 0; i < text.bytes; i++) {
        uint64_t digit = (uint64_t)(text.text[i] - '0');
        if (digit > 9) { /* a sign, a point or an exponent */
            double x = json_number(j, v);
            *number = (uint64_t)(x >= 0 && x <= 0x1p53 ? x : 0);
            return x >= 0 && x <= 0x1p53 && x == floor(x);
        }
        if (*number > (UINT64_MAX - digit) / 10)
            return false;
        *number = *number * 10 + digit;
    }
    return true;
}

const JsonValue *json_member(const Json *j, const JsonValue *object, const char *key) {
    const JsonValue *v = object + 1;
    for (size_t i = 0; object->type == JSON_OBJECT && i < object->count; i++, v += 1 + v[1].size)
        if (is_text(json_text(j, v), key))
            return v + 1;
    return NULL;
}

/* ---- writing -------------------------------------------------------------------------------- */

void json_put_raw(JsonOut *out, Slice text) { out->lost |= !append(&out->text, text); }

void json_put(JsonOut *out, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_put_raw(out, (Slice){text, (size_t)n});
}

void json_put_number(JsonOut *out, double number) { json_put(out, "%.9g", number); }

/* How many bytes at s, which are no character, one U+FFFD replaces: as many as some character begins with. */
static size_t broken_bytes(const uint8_t *s, size_t n) {
    size_t length = utf8_length(*s);
    for (size_t k = length > 2 ? length - 1 : 1; k > 1; k--) {
        uint8_t low[4] = {0x80, 0x80, 0x80, 0x80}, high[4] = {0xBF, 0xBF, 0xBF, 0xBF};
        uint32_t code;
        if (k > n)
            continue;
        memcpy(low, s, k);
        memcpy(high, s, k);
        if (utf8_read(low, length, &code) || utf8_read(high, length, &code))
            return k;
    }
    return 1;
}

/* Control characters, and those that some programs take for the end of a line. */
static bool is_escaped(uint32_t code) {
    return code < ' ' || code == '"' || code == '\\' || (code >= 0x7F && code < 0xA0) || code == 0x2028 ||
           code == 0x2029;
}

static void put_escaped(JsonOut *out, uint32_t code) {
    static const char letters[] = "\"\\bfnrt", bytes[] = "\"\\\b\f\n\r\t";
    const char *byte = code && code < 128 ? strchr(bytes, (int)code) : NULL;
    if (byte)
        json_put(out, "\\%c", letters[byte - bytes]);
    else
        json_put(out, "\\u%04x", (unsigned)code);
}

void json_put_string(JsonOut *out, Slice text) {
    const uint8_t *s = (const uint8_t *)text.text;
    size_t plain = 0; /* what stands before it has been written */
    json_put(out, "\"");
    for (size_t i = 0, n; i < text.bytes; i += n) {
        uint32_t code = 0;
        n = utf8_read(s + i, text.bytes - i, &code);
        if (n && !is_escaped(code))
            continue;
        json_put_raw(out, (Slice){text.text + plain, i - plain});
        if (n) {
            put_escaped(out, code);
        } else {
            n = broken_bytes(s + i, text.bytes - i);
            json_put_raw(out, (Slice){"\xEF\xBF\xBD", 3});
        }
        plain = i + n;
    }
    json_put_raw(out, after(text, plain));
    json_put(out, "\"");
}
