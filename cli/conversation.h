/* cli/conversation.h: the texts of a conversation -> token ids, in the form that the checkpoint's chat
 * template gives them (template.h). Knows no model's answers: what of them is kept is think.c's business. */
#ifndef CONVERSATION_H
#define CONVERSATION_H

#include "cli/request.h"
#include "cli/template.h"
#include "model.h"

/* Ids while they are made. */
typedef struct {
    const Model *model;
    const Template *template;
    bool begins;   /* no text is before them */
    Buffer ids;    /* int32_t */
    Buffer plain;  /* the text behind the last special token, not tokenized yet */
    char err[512]; /* of the call that gave false: one line */
} Conversation;

/* No ids so far. */
void conversation_clear(Conversation *c, bool begins);
void conversation_free(Conversation *c);
size_t conversation_count(const Conversation *c);

/* Each adds something behind what is there. False: c->err says why. */

/* What stands before the first turn; system NULL: the template's own. */
bool conversation_opening(Conversation *c, const Slice *system);
/* What stands between two turns; `turns` are before it. */
bool conversation_next(Conversation *c, uint32_t turns);
/* One of the template's pieces. */
bool conversation_piece(Conversation *c, int which);
/* A text of the conversation, stripped of white space if the template has the flag. */
bool conversation_content(Conversation *c, Slice text, uint32_t strip_flag);
/* A text and the tokens in it. Their places are counted from `base`; those outside the text do not matter. */
bool conversation_marked(Conversation *c, Slice text, const char *base, const Buffer *tokens);
/* What is not tokenized yet becomes ids. */
bool conversation_flush(Conversation *c);

/* The whole of a conversation that the model is to go on with: perhaps a system text, then user and assistant
 * in turn, a user last. */
bool conversation_messages(Conversation *c, const Message *messages, size_t n);

/* The prefix of ids [count] that begin a conversation: as far as they agree with the ids of the opening
 * alone. It depends on the conversation and nothing else, and is a stretch of its own (Generation.prefix).
 * False: c->err says why; c's own ids are then the opening's. */
bool conversation_prefix(Conversation *c, const Slice *system, const int32_t *ids, size_t count,
                         size_t *prefix);

#endif
