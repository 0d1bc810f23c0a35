/* cli/fields.c: the values of JSON requests (fields.h). Limits of numbers are those of the options with the
 * same meaning. Whether ids are in the vocabulary, and messages in an order that the chat template has, is
 * job.c's business. */
#include "cli/fields.h"

#include <math.h>
#include <stdio.h>

#include "cli/table.h"

bool read_fields(Fields *f, const JsonValue *object, const Field *table, size_t count) {
    const JsonValue *key = object + 1;
    for (size_t i = 0; i < object->count; i++, key += 1 + key[1].size) {
        Slice name = json_text(f->json, key);
        size_t at = 0;
        while (at < count && !is_text(name, table[at].key))
            at++;
        if (at == count)
            return request_fail(f->request, "%sunknown key \"%.80s\"", f->where, name.text);
        f->key = table[at].key;
        if (key[1].type != JSON_NULL && !table[at].read(f, key + 1))
            return false;
    }
    return true;
}

bool field_fails(Fields *f, const char *what) {
    return request_fail(f->request, "%s\"%s\" takes %s", f->where, f->key, what);
}

static bool no_memory(Fields *f) { return request_fail(f->request, "out of memory"); }

bool field_string(Fields *f, const JsonValue *v, Slice *text) {
    if (v->type != JSON_STRING)
        return field_fails(f, "a text");
    Slice read = json_text(f->json, v);
    const char *kept = request_keep(f->request, read.text, read.bytes + 1);
    *text = (Slice){kept, read.bytes};
    return kept || no_memory(f);
}

/* ---- numbers -------------------------------------------------------------------------------- */

bool field_integer(Fields *f, const JsonValue *v, int64_t least, int64_t most, int64_t *number) {
    double x = v->type == JSON_NUMBER ? json_number(f->json, v) : NAN;
    char what[80];
    *number = 0;
    snprintf(what, sizeof what, "a whole number from %lld to %lld", (long long)least, (long long)most);
    if (!(x >= (double)least && x <= (double)most) || x != floor(x))
        return field_fails(f, what);
    *number = (int64_t)x;
    return true;
}

/* A number within the limits of an option. */
static bool read_number(Fields *f, const JsonValue *v, OptionId id, float *number) {
    const Option *o = &option_table[id];
    double x = v->type == JSON_NUMBER ? json_number(f->json, v) : NAN;
    char what[80];
    snprintf(what, sizeof what, "a number from %g to %g", o->least, o->most);
    if (!(x >= o->least && x <= o->most))
        return field_fails(f, what);
    *number = (float)x;
    return true;
}

static bool read_whole(Fields *f, const JsonValue *v, OptionId id, int64_t *number) {
    const Option *o = &option_table[id];
    return field_integer(f, v, (int64_t)o->least, (int64_t)o->most, number);
}

bool read_limit(Fields *f, const JsonValue *v) { return read_whole(f, v, OPT_TOKENS, &f->request->limit); }

bool read_temperature(Fields *f, const JsonValue *v) {
    return read_number(f, v, OPT_TEMPERATURE, &f->request->sampling.temperature);
}

bool read_top_p(Fields *f, const JsonValue *v) {
    return read_number(f, v, OPT_TOP_P, &f->request->sampling.top_p);
}

bool read_min_p(Fields *f, const JsonValue *v) {
    return read_number(f, v, OPT_MIN_P, &f->request->sampling.min_p);
}

bool read_repeat_penalty(Fields *f, const JsonValue *v) {
    return read_number(f, v, OPT_REPEAT_PENALTY, &f->request->sampling.repeat_penalty);
}

bool read_top_k(Fields *f, const JsonValue *v) {
    int64_t k;
    if (!read_whole(f, v, OPT_TOP_K, &k))
        return false;
    f->request->sampling.top_k = (uint32_t)k;
    return true;
}

bool read_seed(Fields *f, const JsonValue *v) {
    f->request->seed_given = true;
    return json_integer(f->json, v, &f->request->sampling.seed) ||
           field_fails(f, "a whole number from 0 to 18446744073709551615");
}

bool read_samples(Fields *f, const JsonValue *v) {
    int64_t n;
    if (!read_whole(f, v, OPT_SAMPLES, &n))
        return false;
    f->request->samples = (size_t)n;
    return true;
}

bool read_logprobs(Fields *f, const JsonValue *v) {
    int64_t n;
    if (!field_integer(f, v, 0, MAX_TOP_LOGPROBS, &n))
        return false;
    f->request->logprobs = true;
    f->request->top_logprobs = (size_t)n;
    return true;
}

bool read_ignore_end(Fields *f, const JsonValue *v) {
    f->request->ignore_end = v->type == JSON_TRUE;
    return v->type == JSON_TRUE || v->type == JSON_FALSE || field_fails(f, "true or false");
}

/* ---- texts ---------------------------------------------------------------------------------- */

bool read_text(Fields *f, const JsonValue *v) {
    f->request->kind = PROMPT_TEXT;
    return field_string(f, v, &f->request->text);
}

bool read_ids(Fields *f, const JsonValue *v) {
    Request *r = f->request;
    const JsonValue *id = v + 1;
    if (v->type != JSON_ARRAY || !v->count)
        return field_fails(f, "an array of token ids");
    int32_t *ids = request_keep(r, NULL, v->count * sizeof *ids);
    if (!ids)
        return no_memory(f);
    for (size_t i = 0; i < v->count; i++, id += id->size) {
        int64_t number;
        if (!field_integer(f, id, 0, INT32_MAX, &number))
            return false;
        ids[i] = (int32_t)number;
    }
    r->kind = PROMPT_IDS;
    r->ids = ids;
    r->id_count = v->count;
    return true;
}

bool field_strings(Fields *f, const JsonValue *v, const Slice **list, size_t *count) {
    const JsonValue *text = v + 1;
    Slice *texts = v->type == JSON_ARRAY ? request_keep(f->request, NULL, v->count * sizeof *texts) : NULL;
    if (v->type != JSON_ARRAY)
        return field_fails(f, "an array of texts");
    if (!texts)
        return no_memory(f);
    for (size_t i = 0; i < v->count; i++, text += text->size) {
        if (!field_string(f, text, &texts[i]))
            return false;
        if (!texts[i].bytes)
            return field_fails(f, "texts that are not empty");
    }
    *list = texts;
    *count = v->count;
    return true;
}

bool read_stop(Fields *f, const JsonValue *v) {
    Request *r = f->request;
    if (v->type == JSON_ARRAY)
        return field_strings(f, v, &r->stops, &r->stop_count);
    Slice *stop = request_keep(r, NULL, sizeof *stop);
    if (!stop)
        return no_memory(f);
    r->stops = stop;
    r->stop_count = 1;
    return field_string(f, v, stop) && (stop->bytes || field_fails(f, "texts that are not empty"));
}

/* ---- messages ------------------------------------------------------------------------------- */

/* A message while it is read. */
typedef struct {
    Slice role, content;
} MessageText;

static bool read_role(Fields *f, const JsonValue *v) {
    MessageText *m = f->form;
    return field_string(f, v, &m->role);
}

static bool read_part_type(Fields *f, const JsonValue *v) {
    return field_is(f, v, "text") || field_fails(f, "\"text\": nothing else can be read");
}

static bool read_part_text(Fields *f, const JsonValue *v) { return field_string(f, v, f->form); }

/* Text parts become one text, a line feed between them. */
static bool read_parts(Fields *f, const JsonValue *v, Slice *content) {
    static const Field keys[] = {{"type", read_part_type}, {"text", read_part_text}};
    const JsonValue *part = v + 1;
    Buffer text = {0};
    bool done = true;
    for (size_t i = 0; i < v->count && done; i++, part += part->size) {
        Slice read = {NULL, 0};
        Fields inner = *f;
        inner.form = &read;
        done = part->type == JSON_OBJECT || field_fails(f, "a text or an array of text parts");
        done = done && read_fields(&inner, part, keys, sizeof keys / sizeof *keys) &&
               (read.text || field_fails(f, "parts that have a \"text\""));
        if (done && (!append(&text, (Slice){"\n", i > 0}) || !append(&text, read)))
            done = no_memory(f);
    }
    Slice whole = contents(&text);
    *content = (Slice){done ? request_keep(f->request, whole.text, whole.bytes) : NULL, whole.bytes};
    buffer_free(&text);
    return done && (content->text || no_memory(f));
}

static bool read_content(Fields *f, const JsonValue *v) {
    MessageText *m = f->form;
    if (v->type == JSON_ARRAY)
        return read_parts(f, v, &m->content);
    return v->type == JSON_STRING ? field_string(f, v, &m->content)
                                  : field_fails(f, "a text or an array of text parts");
}

/* The chat template's pieces are for these roles alone. */
static bool find_role(Fields *f, Slice name, Role *role) {
    static const struct {
        const char *name;
        Role role;
    } roles[] = {{"system", ROLE_SYSTEM},
                 {"developer", ROLE_SYSTEM},
                 {"user", ROLE_USER},
                 {"assistant", ROLE_ASSISTANT}};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        *role = roles[i].role;
        if (is_text(name, roles[i].name))
            return true;
    }
    f->key = "role";
    return field_fails(f, "system, developer, user or assistant");
}

static bool read_message(Fields *f, const JsonValue *v, Message *message) {
    /* beside role and content: keys that servers write into answers, and that may come back */
    static const Field keys[] = {
        {"role", read_role},
        {"content", read_content},
        {"name", read_anything},
        {"refusal", read_nothing},
        {"reasoning_content", read_anything},
        {"annotations", read_nothing},
        {"tool_calls", read_nothing},
        {"function_call", read_nothing},
        {"audio", read_nothing},
    };
    MessageText text = {{NULL, 0}, {NULL, 0}};
    Fields inner = *f;
    inner.form = &text;
    if (!read_fields(&inner, v, keys, sizeof keys / sizeof *keys))
        return false;
    if (!text.role.text || !text.content.text)
        return request_fail(f->request, "%sa message has a \"role\" and a \"content\"", f->where);
    message->content = text.content;
    return find_role(f, text.role, &message->role);
}

bool read_messages(Fields *f, const JsonValue *v) {
    Request *r = f->request;
    const JsonValue *message = v + 1;
    if (v->type != JSON_ARRAY || !v->count)
        return field_fails(f, "an array of messages");
    Message *messages = request_keep(r, NULL, v->count * sizeof *messages);
    if (!messages)
        return no_memory(f);
    for (size_t i = 0; i < v->count; i++, message += message->size) {
        Fields inner = *f;
        snprintf(inner.where, sizeof inner.where, "message %zu: ", i + 1);
        if (message->type != JSON_OBJECT)
            return field_fails(f, "an array of messages, which are objects");
        if (!read_message(&inner, message, &messages[i]))
            return false;
    }
    r->kind = PROMPT_CONVERSATION;
    r->messages = messages;
    r->message_count = v->count;
    return true;
}

/* ---- values that ask for nothing ------------------------------------------------------------ */

bool field_is(const Fields *f, const JsonValue *v, const char *word) {
    return v->type == JSON_STRING && is_text(json_text(f->json, v), word);
}

bool read_anything(Fields *f, const JsonValue *v) {
    (void)f;
    (void)v;
    return true;
}

bool read_nothing(Fields *f, const JsonValue *v) {
    bool nothing = v->type == JSON_FALSE || (v->type >= JSON_STRING && v->count == 0) ||
                   (v->type == JSON_NUMBER && json_number(f->json, v) == 0);
    return nothing || request_fail(f->request, "%s\"%s\" is not supported", f->where, f->key);
}
