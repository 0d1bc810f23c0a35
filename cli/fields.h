/* cli/fields.h: requests that are JSON objects: which keys there are, and what their values may be. A form of
 * line (batch_json.c, openai.c) is a table of keys; what several forms have is read here. */
#ifndef FIELDS_H
#define FIELDS_H

#include "cli/json.h"
#include "cli/request.h"

/* An object while it is read into a request. */
typedef struct {
    const Json *json;
    Request *request;
    const char *key; /* of the value that is read now */
    char where[32];  /* in front of errors: "message 2: ", or nothing */
    void *form;      /* the form's own */
} Fields;

/* False: request_fail() has said why. */
typedef bool ReadField(Fields *f, const JsonValue *v);

typedef struct {
    const char *key;
    ReadField *read;
} Field;

/* Reads an object with the table: a key that is not in it is an error, and null is as if the key were not
 * there. */
bool read_fields(Fields *f, const JsonValue *object, const Field *table, size_t count);

/* The error that the present key takes something else, which `what` says. False. */
bool field_fails(Fields *f, const char *what);

/* A copy of a STRING that lives as long as the request. */
bool field_string(Fields *f, const JsonValue *v, Slice *text);

/* The STRINGs of an ARRAY, none of them empty. */
bool field_strings(Fields *f, const JsonValue *v, const Slice **list, size_t *count);

/* Whether v is this STRING. */
bool field_is(const Fields *f, const JsonValue *v, const char *word);

/* A whole number within the limits. */
bool field_integer(Fields *f, const JsonValue *v, int64_t least, int64_t most, int64_t *number);

/* ---- values that several forms have --------------------------------------------------------- */

ReadField read_limit, read_temperature, read_top_p, read_top_k, read_min_p, read_repeat_penalty, read_seed;
ReadField read_stop;       /* a text or an array of texts */
ReadField read_samples;    /* n */
ReadField read_ignore_end; /* true or false */
ReadField read_logprobs;   /* how many of the likeliest */
ReadField read_messages;   /* [{role, content}]; content: a text or an array of {type: "text", text} */
ReadField read_text;       /* the prompt */
ReadField read_ids;        /* the prompt as an array of ids */
ReadField read_nothing;    /* false, 0, and what is empty; everything else is refused as not supported */
ReadField read_anything;   /* what means nothing here */

#endif
