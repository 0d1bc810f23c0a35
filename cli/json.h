/* cli/json.h: JSON (RFC 8259), read and written. The reader takes what the RFC's grammar says and nothing
 * else, and of what the RFC leaves open it refuses what two readers might understand differently: a key that
 * comes twice, half of a surrogate pair, bytes that are not UTF-8, a number beyond double's range, values
 * deeper than MAX_DEPTH. */
#ifndef JSON_H
#define JSON_H

#include "cli/slice.h"

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

/* A value. What it holds follows it: the elements of an ARRAY; of an OBJECT's members the key, which is a
 * STRING, and then the value, one member after the other. */
typedef struct {
    uint32_t type;  /* JsonType */
    uint32_t size;  /* values that it is made of, itself included: v + v->size is the next one */
    uint32_t count; /* elements, members, or bytes of text */
    uint32_t at;    /* STRING, NUMBER: its place in Json.text */
} JsonValue;

/* One text, as it was read. It may be used again for the next one. */
typedef struct {
    Buffer values; /* JsonValue; the first is the whole */
    Buffer text;   /* strings without escapes and numbers as they were written, a NUL behind each */
    Buffer keys;   /* used while it is read */
} Json;

enum { MAX_DEPTH = 128, MAX_JSON = 1 << 30 /* bytes of a text */ };

/* Reads a text, which must be one value. NULL: an error; *why says what is wrong, in a few words, and *at
 * is where, in bytes. The value is valid until the next call. It takes no more memory than some ten times
 * the text, and no more stack for a deeper one. */
const JsonValue *json_read(Json *j, Slice text, const char **why, size_t *at);
void json_free(Json *j);

/* The text of a STRING, or the characters of a NUMBER; a NUL follows. */
Slice json_text(const Json *j, const JsonValue *v);

/* What a NUMBER says; it is finite. */
double json_number(const Json *j, const JsonValue *v);

/* Whether v is a NUMBER that is an integer from 0 to 2^64 - 1, whether written 100, 100.0 or 1e2: *number.
 * What is written with a point or an exponent is an integer up to 2^53 only. */
bool json_integer(const Json *j, const JsonValue *v, uint64_t *number);

/* The value of an OBJECT's member; NULL: it has none of this key. */
const JsonValue *json_member(const Json *j, const JsonValue *object, const char *key);

/* ---- writing -------------------------------------------------------------------------------- */

typedef struct {
    Buffer text;
    bool lost; /* memory ran out for some of it */
} JsonOut;

/* JSON as it is: brackets, commas, keys, integers; at most 255 bytes at a time. */
void json_put(JsonOut *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* JSON that is there already, of any length. */
void json_put_raw(JsonOut *out, Slice text);

/* A string in quotation marks. What is not UTF-8 becomes U+FFFD, one for each maximal part of a character as
 * Unicode recommends; control characters and line separators are escaped, so that the string is on one line
 * for every reader. */
void json_put_string(JsonOut *out, Slice text);

/* A number with nine digits; finite. */
void json_put_number(JsonOut *out, double number);

#endif
