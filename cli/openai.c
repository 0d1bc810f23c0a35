/* cli/openai.c: OpenAI's batch form (openai.h), as `vllm run-batch` takes it, too. A request may have every
 * key of the two interfaces; one that asks for something that this program does not do is refused, one that
 * asks for nothing is not.
 *
 * The same input gives the same output, byte for byte: ids count the lines, and `created` is 0. */
#include "cli/openai.h"

#include "cli/logprobs.h"

#define COUNT_OF(table) (sizeof(table) / sizeof *(table))

/* ---- reading: the line ---------------------------------------------------------------------- */

/* A line while it is read. */
typedef struct {
    OpenAi *line;
    const JsonValue *body;
    bool url, prompt; /* they are there */
} Reading;

static Reading *reading(const Fields *f) { return f->form; }

static bool read_method(Fields *f, const JsonValue *v) {
    return field_is(f, v, "POST") || field_fails(f, "POST");
}

static bool read_url(Fields *f, const JsonValue *v) {
    reading(f)->url = true;
    reading(f)->line->chat = field_is(f, v, "/v1/chat/completions");
    return reading(f)->line->chat || field_is(f, v, "/v1/completions") ||
           field_fails(f, "/v1/chat/completions or /v1/completions");
}

static bool read_body(Fields *f, const JsonValue *v) {
    reading(f)->body = v;
    return v->type == JSON_OBJECT || field_fails(f, "an object");
}

static bool read_custom_id(Fields *f, const JsonValue *v) {
    return field_string(f, v, &reading(f)->line->custom_id);
}

/* ---- reading: the body ---------------------------------------------------------------------- */

static bool read_model(Fields *f, const JsonValue *v) { return field_string(f, v, &reading(f)->line->model); }

static bool read_chat_messages(Fields *f, const JsonValue *v) {
    reading(f)->prompt = true;
    return read_messages(f, v);
}

/* A text, ids, or a list of one of these. */
static bool read_prompt(Fields *f, const JsonValue *v) {
    bool list = v->type == JSON_ARRAY && v->count && v[1].type != JSON_NUMBER;
    const JsonValue *one = list ? v + 1 : v;
    reading(f)->prompt = true;
    if (list && v->count > 1)
        return field_fails(f, "one prompt: give each a line");
    if (one->type == JSON_STRING)
        return read_text(f, one);
    return one->type == JSON_ARRAY ? read_ids(f, one) : field_fails(f, "a text or an array of token ids");
}

static bool read_chat_logprobs(Fields *f, const JsonValue *v) {
    f->request->logprobs = v->type == JSON_TRUE;
    return v->type == JSON_TRUE || v->type == JSON_FALSE || field_fails(f, "true or false");
}

static bool read_top_logprobs(Fields *f, const JsonValue *v) {
    bool logprobs = f->request->logprobs;
    if (!read_logprobs(f, v))
        return false;
    f->request->logprobs = logprobs;
    return true;
}

static bool read_one(Fields *f, const JsonValue *v) {
    int64_t one;
    return field_integer(f, v, 1, 1, &one);
}

/* One of two words that ask for what is done anyway. */
static bool read_word(Fields *f, const JsonValue *v, const char *first, const char *second) {
    return field_is(f, v, first) || field_is(f, v, second) || read_nothing(f, v);
}

static bool read_tool_choice(Fields *f, const JsonValue *v) { return read_word(f, v, "none", "auto"); }
static bool read_service_tier(Fields *f, const JsonValue *v) { return read_word(f, v, "auto", "default"); }

static bool read_modalities(Fields *f, const JsonValue *v) {
    bool text = v->type == JSON_ARRAY && v->count == 1 && field_is(f, v + 1, "text");
    return text || read_nothing(f, v);
}

static bool read_response_format(Fields *f, const JsonValue *v) {
    const JsonValue *type = json_member(f->json, v, "type");
    return (type && v->count == 1 && field_is(f, type, "text")) || read_nothing(f, v);
}

/* What both interfaces have. */
#define COMMON_KEYS                                                                                  \
    {"model", read_model}, {"max_tokens", read_limit}, {"temperature", read_temperature},            \
        {"top_p", read_top_p}, {"top_k", read_top_k}, {"min_p", read_min_p},                         \
        {"repetition_penalty", read_repeat_penalty}, {"seed", read_seed}, {"stop", read_stop},       \
        {"n", read_samples}, {"ignore_eos", read_ignore_end}, {"stream", read_nothing},              \
        {"stream_options", read_nothing}, {"frequency_penalty", read_nothing},                       \
        {"presence_penalty", read_nothing}, {"logit_bias", read_nothing}, {"user", read_anything}, { \
        "metadata", read_anything                                                                    \
    }

static bool read_chat_body(Fields *f, const JsonValue *body) {
    static const Field keys[] = {
        COMMON_KEYS,
        {"messages", read_chat_messages},
        {"max_completion_tokens", read_limit},
        {"logprobs", read_chat_logprobs},
        {"top_logprobs", read_top_logprobs},
        {"tools", read_nothing},
        {"tool_choice", read_tool_choice},
        {"parallel_tool_calls", read_anything},
        {"functions", read_nothing},
        {"function_call", read_tool_choice},
        {"response_format", read_response_format},
        {"modalities", read_modalities},
        {"audio", read_nothing},
        {"prediction", read_nothing},
        {"web_search_options", read_nothing},
        {"reasoning_effort", read_nothing},
        {"verbosity", read_nothing},
        {"store", read_nothing},
        {"service_tier", read_service_tier},
        {"safety_identifier", read_anything},
        {"prompt_cache_key", read_anything},
        {"prompt_cache_retention", read_anything},
    };
    if (!read_fields(f, body, keys, COUNT_OF(keys)))
        return false;
    if (!reading(f)->prompt)
        return request_fail(f->request, "\"messages\" is missing");
    if (f->request->top_logprobs && !f->request->logprobs)
        return request_fail(f->request, "\"top_logprobs\" needs \"logprobs\": true");
    return true;
}

static bool read_completion_body(Fields *f, const JsonValue *body) {
    static const Field keys[] = {
        COMMON_KEYS,           {"prompt", read_prompt},  {"logprobs", read_logprobs}, {"echo", read_nothing},
        {"best_of", read_one}, {"suffix", read_nothing},
    };
    if (!read_fields(f, body, keys, COUNT_OF(keys)))
        return false;
    return reading(f)->prompt || request_fail(f->request, "\"prompt\" is missing");
}

bool openai_recognized(const Json *j, const JsonValue *line) {
    static const char *const keys[] = {"custom_id", "url", "body", "method"};
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        if (json_member(j, line, keys[i]))
            return true;
    return false;
}

bool openai_read(Fields *f, const JsonValue *line) {
    static const Field keys[] = {
        {"custom_id", read_custom_id}, {"method", read_method}, {"url", read_url}, {"body", read_body}};
    Reading r = {.line = f->form};
    const JsonValue *id = json_member(f->json, line, "custom_id");
    Fields inner = *f;
    inner.form = &r;
    inner.key = "custom_id"; /* first: an error, too, has it */
    if (!id || !read_custom_id(&inner, id))
        return id ? false : request_fail(f->request, "\"custom_id\" is missing");
    if (!read_fields(&inner, line, keys, COUNT_OF(keys)))
        return false;
    if (!r.url || !r.body)
        return request_fail(f->request, "\"%s\" is missing", r.url ? "body" : "url");
    return r.line->chat ? read_chat_body(&inner, r.body) : read_completion_body(&inner, r.body);
}

/* ---- writing -------------------------------------------------------------------------------- */

static void put_chat_choice(JsonOut *out, const Model *m, const Request *r, const Reply *reply) {
    json_put(out, "{\"index\": %zu, \"message\": {\"role\": \"assistant\", \"content\": ", reply->sample);
    json_put_string(out, contents(&reply->text));
    if (reply->thought.bytes) {
        json_put(out, ", \"reasoning_content\": ");
        json_put_string(out, strip(contents(&reply->thought)));
    }
    json_put(out, ", \"refusal\": null}, \"logprobs\": ");
    if (r->logprobs) {
        json_put(out, "{\"content\": ");
        put_chat_logprobs(out, m, reply, false);
        json_put(out, ", \"refusal\": null}");
    } else {
        json_put(out, "null");
    }
    json_put(out, ", \"finish_reason\": \"%s\"}", finish_reason(reply));
}

static void put_completion_choice(JsonOut *out, const Model *m, const Request *r, const Reply *reply) {
    json_put(out, "{\"index\": %zu, \"text\": ", reply->sample);
    json_put_string(out, contents(&reply->text));
    json_put(out, ", \"logprobs\": ");
    if (r->logprobs)
        put_completion_logprobs(out, m, reply);
    else
        json_put(out, "null");
    json_put(out, ", \"finish_reason\": \"%s\"}", finish_reason(reply));
}

static void put_body(JsonOut *out, const Model *m, const OpenAi *line, const Request *r, const Reply *first) {
    size_t written = 0;
    json_put(out, "{\"id\": \"%s-%zu\", \"object\": \"%s\", \"created\": 0, \"model\": ",
             line->chat ? "chatcmpl" : "cmpl", r->line, line->chat ? "chat.completion" : "text_completion");
    json_put_string(out, line->model.text ? line->model : (Slice){m->config.name, strlen(m->config.name)});
    json_put(out, ", \"choices\": [");
    for (size_t i = 0; i < r->samples; i++) {
        json_put(out, i ? ", " : "");
        if (line->chat)
            put_chat_choice(out, m, r, &first[i]);
        else
            put_completion_choice(out, m, r, &first[i]);
        written += first[i].completion_tokens;
    }
    json_put(out,
             "], \"usage\": {\"prompt_tokens\": %zu, \"completion_tokens\": %zu, \"total_tokens\": %zu}}",
             first->prompt_tokens, written, first->prompt_tokens + written);
}

void openai_write(JsonOut *out, const Model *m, const OpenAi *line, const Request *r, const Reply *first) {
    const char *error = first_error(r, first);
    json_put(out, "{\"id\": \"batch_req_%zu\", \"custom_id\": ", r->line);
    json_put_string(out, line->custom_id);
    json_put(out, ", \"response\": {\"status_code\": %d, \"request_id\": \"req_%zu\", \"body\": ",
             error ? 400 : 200, r->line);
    if (!error) {
        put_body(out, m, line, r, first);
        json_put(out, "}, \"error\": null}\n");
        return;
    }
    Slice why = {error, strlen(error)};
    json_put(out, "{\"error\": {\"message\": ");
    json_put_string(out, why);
    json_put(out, ", \"type\": \"invalid_request_error\", \"param\": null, \"code\": null}}}, ");
    json_put(out, "\"error\": {\"code\": \"invalid_request_error\", \"message\": ");
    json_put_string(out, why);
    json_put(out, "}}\n");
}
