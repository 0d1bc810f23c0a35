/* cli/logprobs.h: log-probabilities of an answer's tokens in the two shapes that OpenAI's interfaces have. */
#ifndef LOGPROBS_H
#define LOGPROBS_H

#include "cli/json.h"
#include "cli/request.h"

/* [{"token", "logprob", "bytes", "top_logprobs": [...]}, ...]: a token of the answer each, and the likeliest
 * in its place; each with its "id", too, if with_ids. */
void put_chat_logprobs(JsonOut *out, const Model *m, const Reply *reply, bool with_ids);

/* {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, each a list. Offsets count characters. A token
 * that is not UTF-8 is written "bytes:\xHH..". */
void put_completion_logprobs(JsonOut *out, const Model *m, const Reply *reply);

#endif
