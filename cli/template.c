/* cli/template.c: reads the chat section of a checkpoint (template.h). What it costs is linear in the
 * section's size, which is bounded, whatever pieces and added tokens a hostile file has: tokens are searched
 * once, and no further than LONGEST_TOKEN bytes. Knows nothing of Jinja. */
#include "cli/template.h"

#include <stdio.h>
#include <string.h>

#include "cli/output.h"
#include "engine/util.h"
#include "tokenizer.h"

enum {
    TAG = 0x32544843,  /* "CHT2" */
    HEAD = 3 + PIECES, /* numbers before a form's texts */
    FLAGS = 511,
    MAX_SECTION = 1 << 18, /* bytes; export.py writes no more */
    LONGEST_MARK = 64,     /* bytes of a mark of thoughts */
    LONGEST_TOKEN = 128    /* bytes of an added token that is looked for in a piece */
};

/* Reads the form at the beginning of *left, which moves on behind it. */
static const char *read_form(Slice *left, Template *t) {
    uint32_t head[HEAD] = {0};
    *t = (Template){0};
    memcpy(head, left->text, min(left->bytes, sizeof head));
    if (left->bytes < sizeof *head)
        return "its size";
    if (head[0] != TAG)
        return "its first four bytes (another version?)";
    if (left->bytes < sizeof head)
        return "its size";
    if (head[1] & ~(uint32_t)FLAGS)
        return "its flags";
    t->flags = head[1];
    t->number = head[2];
    *left = after(*left, sizeof head);
    for (int i = 0; i < PIECES; i++) {
        size_t bytes = head[3 + i];
        if (bytes > left->bytes)
            return "its size";
        t->piece[i].text = (Slice){left->text, bytes};
        *left = after(*left, bytes);
    }
    if (t->piece[THINK_BEGIN].text.bytes > LONGEST_MARK || t->piece[THINK_END].text.bytes > LONGEST_MARK)
        return "its marks of thoughts";
    return NULL;
}

const char *template_open(const Model *m, Template *t, TemplateForm form) {
    Slice left = {(const char *)m->chat, m->chat_bytes};
    const char *wrong = m->chat_bytes > MAX_SECTION ? "its size" : read_form(&left, t);
    uint32_t forms = 1;
    while (!wrong && left.bytes) {
        Template other;
        wrong = read_form(&left, &other);
        if (forms++ == (uint32_t)form)
            *t = other;
    }
    t->forms = forms;
    return wrong ? wrong : forms == 1 || (forms > FORM_NO_THINK && forms <= FORMS) ? NULL : "its forms";
}

static bool find_tokens(Piece *p, const Model *m) {
    for (size_t i = 0; i < p->text.bytes;) {
        Slice rest = after(p->text, i);
        Mark token = {.at = i};
        token.id = tokenizer_added(m->tokenizer, rest.text, min(rest.bytes, LONGEST_TOKEN), &token.bytes);
        bool found = token.id >= 0 && (uint32_t)token.id < m->config.vocab_size && token.bytes;
        if (found && !buffer_add(&p->tokens, &token, sizeof token))
            return false;
        i += found ? token.bytes : 1;
    }
    return true;
}

bool template_tokens(Template *t, const Model *m) {
    for (int i = OPEN; i <= NUMBER_AFTER; i++)
        if (!find_tokens(&t->piece[i], m))
            return false;
    t->marks = thought_marks(m->tokenizer, m->config.vocab_size, t->piece[THINK_BEGIN].text,
                             t->piece[THINK_END].text);
    return true;
}

void template_close(Template *t) {
    for (int i = 0; i < PIECES; i++)
        buffer_free(&t->piece[i].tokens);
}

int32_t template_turn_end(const Template *t) {
    const Buffer *tokens = &t->piece[NEXT].tokens;
    const Mark *first = tokens->data;
    return tokens->bytes && first->at == 0 ? first->id : -1;
}

bool template_find(Template *t, const Model *m, const Options *o, char *err, size_t err_bytes) {
    static const TemplateForm forms[] = {[THINK_ON] = FORM_THINK,
                                         [THINK_OFF] = FORM_NO_THINK,
                                         [THINK_MAX] = FORM_MOST_THINK,
                                         [THINK_HIDE] = FORM_DEFAULT,
                                         [THINK_DEFAULT] = FORM_DEFAULT};
    TemplateForm form = forms[o->think];
    const char *wrong = m->tokenizer && m->chat_bytes ? template_open(m, t, form) : NULL;
    Slice begin = t->piece[THINK_BEGIN].text, end = t->piece[THINK_END].text;
    if (!m->tokenizer || !m->chat_bytes)
        snprintf(err, err_bytes, "the checkpoint has no %s: export.py says why when it makes one",
                 m->tokenizer ? "chat template" : "tokenizer");
    else if (wrong)
        snprintf(err, err_bytes, "the chat template is damaged: %s; export the checkpoint again", wrong);
    else if (form && t->forms == 1)
        snprintf(err, err_bytes, "the chat template has no switch for thoughts");
    else if (form >= t->forms)
        snprintf(err, err_bytes, "the chat template has no effort \"max\": use --think on");
    else if (o->think == THINK_HIDE && (!begin.bytes || !end.bytes))
        snprintf(err, err_bytes, "the chat template has no marks of thoughts");
    else if (template_tokens(t, m))
        return true;
    else
        snprintf(err, err_bytes, "out of memory");
    return false;
}

int template_load(Template *t, const Model *m, const Options *o) {
    char err[256];
    if (template_find(t, m, o, err, sizeof err))
        return DONE;
    return log_error(FAILED, "%s: %s is not possible: %s", m->path,
                     o->given[o->given[OPT_THINK] ? OPT_THINK : OPT_CHAT], err);
}

Slice template_shown(const Template *t) {
    Slice prompt = t->piece[PROMPT].text;
    return opens_thought(&t->marks, prompt) ? from_last_begin(&t->marks, prompt) : (Slice){"", 0};
}
