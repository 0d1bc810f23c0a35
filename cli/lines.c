/* cli/lines.c: a prompt a line and an answer a line (--prompts), and one prompt with several answers or
 * choices (--samples, --choose). In the input nothing but the line feed means anything; in answers line feed,
 * carriage return and backslash are written as \n, \r and \\, so that line i answers line i. When texts run,
 * and beside which others, is batch.c's business. */
#include <stdlib.h>
#include <string.h>

#include "cli/batch.h"
#include "cli/input.h"
#include "cli/modes.h"
#include "cli/output.h"
#include "cli/prompt.h"

typedef struct {
    const Options *options;
    Input input;   /* of --prompts */
    Prompt prompt; /* of -p or -f */
    bool taken;    /* the prompt was given to the scheduler */
    Buffer line;   /* of output */
} Lines;

/* ---- requests ------------------------------------------------------------------------------- */

/* The text becomes the prompt, or with --chat the first turn. */
static void make_request(const Lines *l, Request *r, Slice text) {
    const Options *o = l->options;
    char *kept = text.text ? request_keep(r, text.text, text.bytes) : NULL;
    Message *messages = request_keep(r, NULL, 2 * sizeof *messages);
    if ((text.text && !kept) || !messages) {
        request_fail(r, "out of memory");
        return;
    }
    r->text = (Slice){kept, text.bytes};
    if (!o->given[OPT_CHAT])
        return;
    r->kind = PROMPT_CONVERSATION;
    r->messages = messages;
    if (o->system)
        messages[r->message_count++] = (Message){ROLE_SYSTEM, {o->system, o->system_bytes}};
    messages[r->message_count++] = (Message){ROLE_USER, r->text};
}

static Next next_line(void *owner, Request *r, bool wait) {
    Lines *l = owner;
    Slice line;
    InputEvent event = input_line(&l->input, &line, wait);
    r->line = l->input.line;
    switch (event) {
    case INPUT_LINE: make_request(l, r, line); return NEXT_REQUEST;
    case INPUT_TOO_LONG:
        request_fail(r, "longer than the %d bytes that a line may have", MAX_LINE);
        return NEXT_REQUEST;
    case INPUT_LATER: return NEXT_LATER;
    case INPUT_END: return NEXT_END;
    case INPUT_FAILED: break;
    }
    return NEXT_FAILED;
}

static Next next_prompt(void *owner, Request *r, bool wait) {
    Lines *l = owner;
    (void)wait;
    if (l->taken)
        return NEXT_END;
    l->taken = true;
    r->line = 1;
    bool given = l->prompt.bytes || l->options->given[OPT_PROMPT];
    make_request(l, r, (Slice){given ? l->prompt.text : NULL, l->prompt.bytes});
    return NEXT_REQUEST;
}

static size_t count_lines(void *owner) {
    const Lines *l = owner;
    return l->options->prompts ? l->input.lines : 1;
}

/* ---- answers -------------------------------------------------------------------------------- */

static bool add_escaped(Buffer *line, Slice text) {
    bool added = true;
    for (size_t i = 0; i < text.bytes && added; i++) {
        char c = text.text[i];
        if (c == '\n' || c == '\r' || c == '\\')
            added = append(line, (Slice){c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\\\", 2});
        else
            added = buffer_add(line, &c, 1);
    }
    return added;
}

static void write_line(void *owner, const Request *r, const Reply *reply) {
    Lines *l = owner;
    const Options *o = l->options;
    Slice text = reply->sums ? strip(r->choices[reply->best]) : contents(&reply->text);
    if (reply->error) {
        text.bytes = 0;
        if (reply->sample == 0 && o->prompts)
            log_error(FAILED, "%s: line %zu: %s", o->prompts, r->line, reply->error);
        else if (reply->sample == 0)
            log_error(FAILED, "%s", reply->error);
        if (!o->prompts)
            return;
    }
    l->line.bytes = 0;
    if (add_escaped(&l->line, text) && append(&l->line, (Slice){"\n", 1}))
        output_line(l->line.data, l->line.bytes);
    else
        exit(log_error(FAILED, "out of memory"));
}

/* ---- the run -------------------------------------------------------------------------------- */

int mode_lines(const Model *m, const Options *o) {
    Lines l = {.options = o, .input.file = -1};
    Exchange exchange = {
        .owner = &l, .next = o->prompts ? next_line : next_prompt, .write = write_line, .count = count_lines};
    int status;
    if (o->prompts)
        status = input_open(&l.input, o->prompts);
    else if (o->given[OPT_CHAT] && !o->given[OPT_PROMPT] && !o->given[OPT_FILE])
        status = log_error(WRONG_USAGE, "%s with %s takes a turn from -p, -f or --prompts",
                           o->given[OPT_CHAT], o->given[o->mode == MODE_CHOOSE ? OPT_CHOOSE : OPT_SAMPLES]);
    else
        status = prompt_text(&l.prompt, m, o);
    if (!status)
        status = batch_run(m, o, &exchange);
    if (!o->prompts)
        log_waiting_input(o);
    input_close(&l.input);
    prompt_close(&l.prompt);
    buffer_free(&l.line);
    return status;
}
