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

int32_t *tokenize(const Model *m, const Options *o, const char *text, size_t bytes, bool begins,
                  size_t *count) {
    if (!m->tokenizer) {
        log_error(
            FAILED,
            "%s: the checkpoint has no tokenizer, so that it reads and writes token ids only: --ids \"1 2 "
            "3\"",
            m->path);
        return NULL;
    }
    char err[256];
    int32_t *ids =
        tokenizer_encode(m->tokenizer, text, bytes, o->given[OPT_SPECIAL], begins, count, err, sizeof err);
    if (!ids) {
        log_error(FAILED, "%s: %s", m->path, err);
        return NULL;
    }
    for (size_t i = 0; i < *count; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= m->config.vocab_size) {
            log_error(FAILED, "%s: token %d of the text is beyond the model's vocabulary of %u", m->path,
                      ids[i], m->config.vocab_size);
            free(ids);
            return NULL;
        }
    }
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

/* An empty text starts from the begin token even where the tokenizer would not add one: there must be
 * something to go on from. */
static int parse_text(Prompt *p, const Model *m, const Options *o) {
    size_t count = 0;
    int32_t *text = NULL;
    if (p->bytes || o->given[OPT_PROMPT]) {
        text = tokenize(m, o, p->text, p->bytes, !p->before, &count);
        if (!text)
            return FAILED;
    }
    int32_t bos = m->config.bos_token_id;
    bool begin = bos >= 0 && !o->given[OPT_NO_BOS] && !p->before && (m->config.add_bos_token || !count);
    p->ids = malloc((count + 1) * sizeof *p->ids);
    if (p->ids && begin)
        p->ids[0] = bos;
    if (p->ids && count)
        memcpy(p->ids + begin, text, count * sizeof *text);
    free(text);
    p->begin = begin;
    p->count = count + begin;
    if (!p->ids)
        return log_error(FAILED, "out of memory");
    if (!p->count && !p->before)
        return log_error(
            WRONG_USAGE,
            "there is nothing to start from: the prompt is empty and %s; give one with -p, -f or --ids",
            bos < 0 ? "the model has no begin token" : "--no-bos leaves the begin token out");
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

int prompt_read(Prompt *p, const Model *m, const Options *o, size_t before) {
    *p = (Prompt){.before = before};
    if (o->given[OPT_IDS])
        return parse_ids(p, m, o);
    p->text = o->text;
    p->bytes = o->text_bytes;
    int status = o->given[OPT_FILE] ? read_prompt_file(p, m, o) : DONE;
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
