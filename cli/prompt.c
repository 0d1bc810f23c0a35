/* cli/prompt.c: from the command line to token ids (prompt.h). Whatever the user gives is checked here;
 * forward() checks nothing. */
#include "cli/prompt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/output.h"
#include "engine/buffer.h"
#include "engine/util.h"
#include "tokenizer.h"

/* Until the end, or more than `most` bytes. */
static bool read_stream(FILE *f, size_t most, Buffer *text) {
    size_t n = 1;
    while (n && text->bytes <= most) {
        if (!buffer_reserve(text, 1 << 16))
            return false;
        n = fread((char *)text->data + text->bytes, 1, text->room - text->bytes, f);
        text->bytes += n;
    }
    return !ferror(f);
}

char *read_file(const char *path, size_t most, size_t *bytes) {
    FILE *f = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    Buffer text = {0};
    bool complete = f && read_stream(f, most, &text);
    if (!complete)
        log_error(FAILED, "%s: cannot read it: %s", path, strerror(errno));
    else if (text.bytes > MAX_TEXT)
        log_error(FAILED, "%s: longer than the %d bytes that a text may have", path, MAX_TEXT);
    if (f && f != stdin)
        fclose(f);
    if (!complete || text.bytes > MAX_TEXT)
        buffer_free(&text);
    *bytes = text.bytes;
    return text.data;
}

int32_t *text_ids(const Model *m, bool trusted, Slice text, bool begins, size_t *count, char *err,
                  size_t err_bytes) {
    if (!m->tokenizer) {
        snprintf(
            err, err_bytes,
            "the checkpoint has no tokenizer, so that it reads and writes token ids only: --ids \"1 2 3\"");
        return NULL;
    }
    int32_t *ids =
        tokenizer_encode(m->tokenizer, text.text, text.bytes, trusted, begins, count, err, err_bytes);
    for (size_t i = 0; ids && i < *count; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= m->config.vocab_size) {
            snprintf(err, err_bytes, "token %d of the text is beyond the model's vocabulary of %u", ids[i],
                     m->config.vocab_size);
            free(ids);
            ids = NULL;
        }
    }
    return ids;
}

int32_t *tokenize(const Model *m, const Options *o, Slice text, size_t *count) {
    char err[256];
    int32_t *ids = text_ids(m, o->given[OPT_SPECIAL], text, true, count, err, sizeof err);
    if (!ids)
        log_error(FAILED, "%s: %s", m->path, err);
    return ids;
}

/* "1 2 3" */
static int parse_ids(Prompt *p, const Model *m, const Options *o) {
    static const char space[] = " \t\n";
    const char *name = o->given[OPT_IDS];
    p->ids = malloc((strlen(o->ids) / 2 + 1) * sizeof *p->ids);
    if (!p->ids)
        return log_error(FAILED, "out of memory");
    for (const char *c = o->ids + strspn(o->ids, space); *c; c += strspn(c, space)) {
        uint64_t id = 0;
        size_t length = strcspn(c, space);
        if (strspn(c, "0123456789") != length)
            return log_error(WRONG_USAGE, "%s takes token ids like \"1 2 3\", not '%.*s'", name,
                             (int)min(length, 40), c);
        for (size_t i = 0; i < length && id < m->config.vocab_size; i++)
            id = id * 10 + (uint64_t)(c[i] - '0');
        if (id >= m->config.vocab_size)
            return log_error(WRONG_USAGE, "%s takes ids from 0 to %u for this model, not %.*s", name,
                             m->config.vocab_size - 1, (int)min(length, 40), c);
        p->ids[p->count++] = (int32_t)id;
        c += length;
    }
    return p->count ? DONE : log_error(WRONG_USAGE, "%s takes at least one token id", name);
}

int32_t *prompt_ids(const Model *m, const Options *o, const Slice *text, size_t before, size_t *count,
                    size_t *begin, char *err, size_t err_bytes) {
    size_t n = 0;
    int32_t *plain = NULL, bos = m->config.bos_token_id;
    if (text && !(plain = text_ids(m, o->given[OPT_SPECIAL], *text, !before, &n, err, err_bytes)))
        return NULL;
    *begin = bos >= 0 && !o->given[OPT_NO_BOS] && !before && (m->config.add_bos_token || !n);
    *count = n + *begin;
    int32_t *ids = malloc((*count + 1) * sizeof *ids);
    if (ids && *begin)
        ids[0] = bos;
    if (ids && n)
        memcpy(ids + *begin, plain, n * sizeof *ids);
    free(plain);
    if (!ids)
        snprintf(err, err_bytes, "out of memory");
    return ids;
}

const char *empty_prompt(const Model *m) {
    return m->config.bos_token_id < 0
               ? "there is nothing to start from: the prompt is empty and the model has no begin token"
               : "there is nothing to start from: the prompt is empty and --no-bos leaves the begin token "
                 "out";
}

static int parse_text(Prompt *p, const Model *m, const Options *o) {
    char err[256];
    Slice text = {p->text, p->bytes};
    bool given = p->bytes || o->given[OPT_PROMPT];
    p->ids = prompt_ids(m, o, given ? &text : NULL, p->before, &p->count, &p->begin, err, sizeof err);
    if (!p->ids)
        return log_error(FAILED, "%s: %s", m->path, err);
    if (!p->count && !p->before)
        return log_error(WRONG_USAGE, "%s; give one with -p, -f or --ids", empty_prompt(m));
    return DONE;
}

static const char *context_hint(const Options *o) {
    return o->context ? "; -c makes it longer" : ", the most that the model was made for";
}

/* More bytes than a prompt of so many tokens can have. A normal form makes a text at most four times shorter:
 * it replaces a character, of 4 bytes or less, by at least one byte. */
static size_t most_bytes(const Model *m, size_t tokens) {
    size_t longest = 1, n;
    bool special;
    for (size_t id = 0; m->tokenizer && id < tokenizer_size(m->tokenizer); id++) {
        tokenizer_decode(m->tokenizer, (int32_t)id, false, &n, &special);
        longest = max(longest, n);
    }
    return tokens < MAX_TEXT / 4 / longest ? 4 * longest * tokens : MAX_TEXT;
}

/* The file is not read further than a prompt can be long: its end may be far away, or never come. */
static int read_prompt_file(Prompt *p, const Model *m, const Options *o) {
    size_t rows = context_rows(m, o, SIZE_MAX);
    if (!rows)
        return WRONG_USAGE;
    size_t most = most_bytes(m, rows);
    p->text = p->file = read_file(o->file, most, &p->bytes);
    if (!p->text)
        return FAILED;
    if (p->bytes > most)
        return log_error(FAILED, "%s: more than %zu bytes, which is longer than the context of %zu tokens%s",
                         o->file, most, rows, context_hint(o));
    return DONE;
}

int prompt_text(Prompt *p, const Model *m, const Options *o) {
    if (o->given[OPT_FILE])
        return read_prompt_file(p, m, o);
    p->text = o->text;
    p->bytes = o->text_bytes;
    return DONE;
}

int prompt_read(Prompt *p, const Model *m, const Options *o, size_t before) {
    *p = (Prompt){.before = before};
    if (o->given[OPT_IDS])
        return parse_ids(p, m, o);
    int status = prompt_text(p, m, o);
    return status ? status : parse_text(p, m, o);
}

size_t context_rows(const Model *m, const Options *o, size_t needed) {
    size_t limit = m->config.max_position_embeddings;
    if (!o->context)
        return min(needed, limit);
    if ((uint64_t)o->context <= limit)
        return (size_t)o->context;
    log_error(FAILED, "%s takes at most %zu for this model, not %lld", o->given[OPT_CONTEXT], limit,
              (long long)o->context);
    return 0;
}

void prompt_close(Prompt *p) {
    free(p->ids);
    free(p->file);
}

State *open_state(const Model *m, const Options *o, size_t context, uint32_t max_logits) {
    StateOptions so = {.cache = o->cache,
                       .context = context,
                       .sequences = 1,
                       .max_logits = max_logits,
                       .threads = (int)o->threads};
    char err[1024];
    State *s = state_open(m, &so, err, sizeof err);
    if (!s)
        log_error(FAILED, "%s", err);
    return s;
}

int prompt_state(State **s, const Prompt *p, const Model *m, const Options *o, uint32_t max_logits) {
    size_t more = o->mode != MODE_GENERATE ? 0 : o->tokens < 0 ? UINT32_MAX : (size_t)o->tokens;
    size_t needed = p->before + p->count, context = context_rows(m, o, needed + more);
    if (!context)
        return WRONG_USAGE;
    if (needed > context)
        return log_error(FAILED, "the %s %zu tokens, more than the context of %zu%s",
                         p->before ? "session and the prompt have" : "prompt has", needed, context,
                         context_hint(o));
    *s = open_state(m, o, context, max_logits);
    return *s ? DONE : FAILED;
}
