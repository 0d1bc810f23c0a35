/* cli/openai.h: the lines of OpenAI's batches, for /v1/chat/completions and /v1/completions. */
#ifndef OPENAI_H
#define OPENAI_H

#include "cli/fields.h"

/* What a request of this form needs for its answer. */
typedef struct {
    Slice custom_id;
    Slice model; /* as the request names it */
    bool chat;
} OpenAi;

/* Whether an object has a key of this form. */
bool openai_recognized(const Json *j, const JsonValue *line);

/* Reads a line into f->request; f->form is its OpenAi. False: request_fail() has said why, and the custom_id
 * is there if the line has one. */
bool openai_read(Fields *f, const JsonValue *line);

/* A line of the output: all samples of a request, or its error. */
void openai_write(JsonOut *out, const Model *m, const OpenAi *line, const Request *r, const Reply *first);

#endif
