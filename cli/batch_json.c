/* cli/batch_json.c: --batch. A JSON object a line, and one a line as the answer, in the same order; lines
 * of white space are skipped. A line has the program's own form or OpenAI's (openai.c); an answer
 * has the form of its line. When texts run, and beside which others, is batch.c's business.
 *
 *   in    exactly one of prompt (a text), messages, ids; id (a text or a number; else the line's number
 *         counts); max_tokens, temperature, top_p, top_k, min_p, repeat_penalty, seed, stop, ignore_eos,
 *         logprobs (how many of the likeliest), n or samples, or choices (the likeliest is wanted). What
 *         is absent is as on the command line
 *   out   {id, text, ids, finish_reason, completion_tokens, seed, logprobs, prompt_tokens}; with more samples
 *         {id, samples: [{text, ids, ...}], prompt_tokens}; with choices {id, text, best, choices: [{text,
 *         logprob, tokens, logprob_per_token, logprob_per_byte}], prompt_tokens}; or {id, error} */
#include <stdlib.h>

#include "cli/batch.h"
#include "cli/input.h"
#include "cli/logprobs.h"
#include "cli/modes.h"
#include "cli/openai.h"
#include "cli/output.h"

/* Request.data of a line. */
typedef struct {
    OpenAi openai;
    bool is_openai; /* else the program's own form */
    bool is_number; /* the id: written as it is */
    Slice id;       /* NULL: none */
    int prompts;    /* how many of prompt, messages and ids there are */
} Origin;

typedef struct {
    const Model *model;
    Input input;
    Json json;
    bool openai; /* the last line of JSON had OpenAI's form: a line that is not JSON is answered in it */
    JsonOut out;
} BatchJson;

/* ---- the program's own form ----------------------------------------------------------------- */

static bool read_own_text(Fields *f, const JsonValue *v) {
    ((Origin *)f->form)->prompts++;
    return read_text(f, v);
}

static bool read_own_messages(Fields *f, const JsonValue *v) {
    ((Origin *)f->form)->prompts++;
    return read_messages(f, v);
}

static bool read_own_ids(Fields *f, const JsonValue *v) {
    ((Origin *)f->form)->prompts++;
    return read_ids(f, v);
}

static bool read_choices(Fields *f, const JsonValue *v) {
    return field_strings(f, v, &f->request->choices, &f->request->choice_count) &&
           (f->request->choice_count || field_fails(f, "at least one text"));
}

static bool read_id(Fields *f, const JsonValue *v) {
    Origin *origin = f->form;
    origin->is_number = v->type == JSON_NUMBER;
    if (!origin->is_number)
        return field_string(f, v, &origin->id) || field_fails(f, "a text or a number");
    Slice digits = json_text(f->json, v);
    origin->id = (Slice){request_keep(f->request, digits.text, digits.bytes), digits.bytes};
    return origin->id.text || request_fail(f->request, "out of memory");
}

static bool read_own(Fields *f, const JsonValue *line) {
    static const Field keys[] = {
        {"id", read_id},
        {"prompt", read_own_text},
        {"messages", read_own_messages},
        {"ids", read_own_ids},
        {"max_tokens", read_limit},
        {"temperature", read_temperature},
        {"top_p", read_top_p},
        {"top_k", read_top_k},
        {"min_p", read_min_p},
        {"repeat_penalty", read_repeat_penalty},
        {"seed", read_seed},
        {"stop", read_stop},
        {"ignore_eos", read_ignore_end},
        {"logprobs", read_logprobs},
        {"choices", read_choices},
        {"n", read_samples},
        {"samples", read_samples},
    };
    const Origin *origin = f->form;
    Request *r = f->request;
    const JsonValue *id = json_member(f->json, line, "id");
    f->key = "id"; /* first: an error, too, has it */
    if (id && id->type != JSON_NULL && !read_id(f, id))
        return false;
    if (!read_fields(f, line, keys, sizeof keys / sizeof *keys))
        return false;
    if (origin->prompts != 1)
        return request_fail(r,
                            "a line has one of \"prompt\", \"messages\" and \"ids\", this one has %d of them",
                            origin->prompts);
    if (r->choice_count && (r->logprobs || r->samples > 1))
        return request_fail(r, "with \"choices\" no text is written, so \"%s\" has no meaning",
                            r->logprobs ? "logprobs" : "samples");
    return true;
}

/* ---- lines in ------------------------------------------------------------------------------- */

static bool read_line(BatchJson *b, Request *r, Slice line) {
    const char *why;
    size_t at;
    Origin *origin = r->data;
    Fields f = {.json = &b->json, .request = r, .form = origin};
    const JsonValue *object = json_read(&b->json, line, &why, &at);
    origin->is_openai = b->openai;
    origin->openai.custom_id = (Slice){"", 0};
    if (!object)
        return request_fail(r, "line %zu is not JSON: %s, at byte %zu", r->line, why, at + 1);
    if (object->type != JSON_OBJECT)
        return request_fail(r, "line %zu is not a JSON object", r->line);
    b->openai = origin->is_openai = openai_recognized(&b->json, object);
    if (!b->openai)
        return read_own(&f, object);
    f.form = &origin->openai;
    return openai_read(&f, object);
}

/* The line without white space at its beginning, and without the byte order mark of a file. Empty: nothing is
 * left. */
static Slice json_part(const BatchJson *b, Slice line) {
    bool marked = b->input.line == 1 && starts_with(line, (Slice){"\xEF\xBB\xBF", 3});
    line = marked ? after(line, 3) : line;
    size_t n = 0;
    while (n < line.bytes && strchr(" \t\r", line.text[n]) && line.text[n])
        n++;
    return n == line.bytes ? after(line, n) : line;
}

static Next next_request(void *owner, Request *r, bool wait) {
    BatchJson *b = owner;
    Slice line, json;
    InputEvent event;
    do {
        event = input_line(&b->input, &line, wait);
        json = event == INPUT_LINE ? json_part(b, line) : (Slice){"", 0};
    } while (event == INPUT_LINE && !json.bytes);
    if (event == INPUT_LATER || event == INPUT_END)
        return event == INPUT_LATER ? NEXT_LATER : NEXT_END;
    if (event == INPUT_FAILED)
        return NEXT_FAILED;
    r->data = request_keep(r, NULL, sizeof(Origin));
    if (!r->data) {
        log_error(FAILED, "%s: out of memory", b->input.name);
        return NEXT_FAILED;
    }
    r->line = b->input.line;
    r->together = true;
    if (event == INPUT_TOO_LONG)
        request_fail(r, "line %zu is longer than the %d bytes that a line may have", r->line, MAX_LINE);
    else
        read_line(b, r, json);
    return NEXT_REQUEST;
}

static size_t count_requests(void *owner) { return ((const BatchJson *)owner)->input.lines; }

/* ---- lines out ------------------------------------------------------------------------------ */

static void put_id(JsonOut *out, const Request *r) {
    const Origin *origin = r->data;
    json_put(out, "{\"id\": ");
    if (!origin->id.text)
        json_put(out, "%zu", r->line);
    else if (!origin->is_number)
        json_put_string(out, origin->id);
    else
        json_put_raw(out, origin->id);
}

static void put_sample(BatchJson *b, const Request *r, const Reply *reply) {
    JsonOut *out = &b->out;
    const int32_t *ids = reply->ids.data;
    json_put(out, "\"text\": ");
    json_put_string(out, contents(&reply->text));
    if (reply->thought.bytes) {
        json_put(out, ", \"reasoning_content\": ");
        json_put_string(out, strip(contents(&reply->thought)));
    }
    json_put(out, ", \"ids\": [");
    for (size_t i = 0; i < reply->ids.bytes / sizeof *ids; i++)
        json_put(out, i ? ", %d" : "%d", ids[i]);
    json_put(out, "], \"finish_reason\": \"%s\", \"completion_tokens\": %zu, \"seed\": %llu",
             finish_reason(reply), reply->completion_tokens, (unsigned long long)reply->seed);
    if (r->logprobs) {
        json_put(out, ", \"logprobs\": {\"content\": ");
        put_chat_logprobs(out, b->model, reply, true);
        json_put(out, "}");
    }
}

static void put_choices(JsonOut *out, const Request *r, const Reply *reply) {
    json_put(out, "\"text\": ");
    json_put_string(out, strip(r->choices[reply->best]));
    json_put(out, ", \"best\": %zu, \"choices\": [", reply->best);
    for (size_t i = 0; i < r->choice_count; i++) {
        const ChoiceSum *sum = &reply->sums[i];
        json_put(out, i ? ", {\"text\": " : "{\"text\": ");
        json_put_string(out, r->choices[i]);
        json_put(out, ", \"logprob\": ");
        json_put_number(out, sum->sum);
        json_put(out, ", \"tokens\": %zu, \"logprob_per_token\": ", sum->tokens);
        json_put_number(out, sum->sum / (double)sum->tokens);
        json_put(out, ", \"logprob_per_byte\": ");
        json_put_number(out, sum->sum / (double)r->choices[i].bytes);
        json_put(out, "}");
    }
    json_put(out, "]");
}

static void put_own(BatchJson *b, const Request *r, const Reply *first) {
    JsonOut *out = &b->out;
    const char *error = first_error(r, first);
    size_t replies = r->choice_count ? 1 : r->samples;
    put_id(out, r);
    json_put(out, ", ");
    if (error) {
        json_put(out, "\"error\": ");
        json_put_string(out, (Slice){error, strlen(error)});
        json_put(out, "}\n");
        return;
    }
    if (r->choice_count)
        put_choices(out, r, first);
    else if (replies == 1)
        put_sample(b, r, first);
    for (size_t i = 0; i < replies && replies > 1; i++) {
        json_put(out, i ? "}, {" : "\"samples\": [{");
        put_sample(b, r, &first[i]);
    }
    json_put(out, "%s, \"prompt_tokens\": %zu}\n", replies > 1 ? "}]" : "", first->prompt_tokens);
}

static void write_reply(void *owner, const Request *r, const Reply *reply) {
    BatchJson *b = owner;
    const Origin *origin = r->data;
    if (!r->choice_count && reply->sample + 1 < r->samples)
        return; /* one line for all of them */
    const Reply *first = reply - reply->sample;
    b->out.text.bytes = 0;
    if (origin->is_openai)
        openai_write(&b->out, b->model, &origin->openai, r, first);
    else
        put_own(b, r, first);
    if (b->out.lost)
        exit(log_error(FAILED, "out of memory"));
    output_line(b->out.text.data, b->out.text.bytes);
}

int mode_batch(const Model *m, const Options *o) {
    BatchJson b = {.model = m};
    Exchange exchange = {.owner = &b, .next = next_request, .write = write_reply, .count = count_requests};
    int status = input_open(&b.input, o->prompts);
    if (!status)
        status = batch_run(m, o, &exchange);
    input_close(&b.input);
    json_free(&b.json);
    buffer_free(&b.out.text);
    return status;
}
