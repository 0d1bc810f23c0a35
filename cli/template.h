/* cli/template.h: the chat template of a checkpoint, as exporter/chat.py has taken it apart.
 *
 * The section holds one form of the template; where it has a switch for thoughts, three, one after the other:
 * as it is by itself, with thoughts on, with thoughts off; and where it has an effort "max", a
 * fourth with that. They fill the section exactly. A form:
 * little-endian u32 tag, flags, number, the bytes of each piece; then the pieces' texts, one after the other.
 * Special and added tokens are matched in the pieces and never in the texts of the conversation; text between
 * two of them is tokenized as one string.
 *
 *   conversation   OPEN, or SYSTEM_BEFORE system SYSTEM_AFTER, then turns with NEXT NUMBER_AFTER between
 *                  them; with COUNT the turn's number stands before NUMBER_AFTER: `number` in the second
 *                  turn, then one more in each
 *   turn           user ANSWER answer, or user BLANK where nothing of the answer is kept; the last one: user
 *                  PROMPT, and the model goes on
 *
 * THINK_BEGIN and THINK_END are no pieces of the text but the marks between which the model thinks. */
#ifndef TEMPLATE_H
#define TEMPLATE_H

#include "cli/options.h"
#include "cli/think.h"
#include "model.h"

enum {
    OPEN,
    SYSTEM_BEFORE,
    SYSTEM_AFTER,
    PROMPT,
    ANSWER,
    BLANK,
    NEXT,
    NUMBER_AFTER,
    THINK_BEGIN,
    THINK_END,
    PIECES
};
enum {
    NO_SYSTEM = 1,    /* the template takes no system text */
    STRIP_SYSTEM = 2, /* white space at both ends of the text is removed */
    STRIP_USER = 4,
    STRIP_ANSWER = 8,
    /* 16 to 128: think.h */
    COUNT = 256 /* each turn has a number */
};

typedef struct {
    Slice text;
    Buffer tokens; /* Mark: the special and added tokens in it */
} Piece;

typedef enum { FORM_DEFAULT, FORM_THINK, FORM_NO_THINK, FORM_MOST_THINK, FORMS } TemplateForm;

typedef struct {
    uint32_t forms; /* in the section: 1, or the first 3 or 4 of TemplateForm */
    uint32_t flags, number;
    Piece piece[PIECES];
    ThoughtMarks marks;
} Template;

/* t = a form, the default one if the section has no other. NULL, or what is wrong with the section: it is
 * input from outside. */
const char *template_open(const Model *m, Template *t, TemplateForm form);
/* Finds the tokens in the pieces and the marks. False: out of memory; not reported. */
bool template_tokens(Template *t, const Model *m);
void template_close(Template *t);

/* Both of these, in the form that --think asks for. False: in err, what is wrong with the checkpoint's
 * template. */
bool template_find(Template *t, const Model *m, const Options *o, char *err, size_t err_bytes);

/* The same for --chat or --think. DONE, or FAILED after a report. */
int template_load(Template *t, const Model *m, const Options *o);

/* What the user sees in front of an answer: the beginning of a thought, if the template begins one for the
 * model to go on with. */
Slice template_shown(const Template *t);

/* The token that ends the model's turn by beginning what follows it; -1: none. */
int32_t template_turn_end(const Template *t);

#endif
