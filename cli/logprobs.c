/* cli/logprobs.c: log-probabilities as JSON (logprobs.h), with the texts of their tokens. texts.c collects
 * them, engine/logprob.c computes them. */
#include "cli/logprobs.h"

#include "engine/unicode.h"
#include "engine/util.h"
#include "tokenizer.h"

/* The tokens at one place: [0] is the answer's own, then the likeliest. */
typedef struct {
    const TokenLogprob *token;
    size_t count;
} Place;

static size_t place_count(const Reply *reply) { return reply->ids.bytes / sizeof(int32_t); }

static Place place_at(const Reply *reply, size_t i) {
    size_t count = reply->logprobs.bytes / sizeof(TokenLogprob) / place_count(reply);
    return (Place){(const TokenLogprob *)reply->logprobs.data + i * count, count};
}

/* The text of a token, special or not. Without a tokenizer it has none. */
static Slice token_slice(const Model *m, int32_t id, bool *special) {
    size_t n = 0;
    *special = false;
    const char *bytes = m->tokenizer ? tokenizer_decode(m->tokenizer, id, false, &n, special) : "";
    return (Slice){bytes, n};
}

static bool is_utf8(Slice text) {
    uint32_t code;
    for (size_t i = 0, n; i < text.bytes; i += n)
        if (!(n = utf8_read((const uint8_t *)text.text + i, text.bytes - i, &code)))
            return false;
    return true;
}

/* ---- chat ----------------------------------------------------------------------------------- */

static void put_token(JsonOut *out, const Model *m, const TokenLogprob *token, bool with_id) {
    bool special;
    Slice text = token_slice(m, token->id, &special);
    json_put(out, "{");
    if (with_id)
        json_put(out, "\"id\": %d, ", token->id);
    json_put(out, "\"token\": ");
    json_put_string(out, text);
    json_put(out, ", \"logprob\": ");
    json_put_number(out, token->logprob);
    json_put(out, ", \"bytes\": [");
    for (size_t i = 0; i < text.bytes; i++)
        json_put(out, i ? ", %d" : "%d", (unsigned char)text.text[i]);
    json_put(out, "]");
}

void put_chat_logprobs(JsonOut *out, const Model *m, const Reply *reply, bool with_ids) {
    json_put(out, "[");
    for (size_t i = 0; i < place_count(reply); i++) {
        Place p = place_at(reply, i);
        json_put(out, i ? ", " : "");
        put_token(out, m, p.token, with_ids);
        json_put(out, ", \"top_logprobs\": [");
        for (size_t k = 1; k < p.count; k++) {
            json_put(out, k > 1 ? ", " : "");
            put_token(out, m, &p.token[k], with_ids);
            json_put(out, "}");
        }
        json_put(out, "]}");
    }
    json_put(out, "]");
}

/* ---- completions ---------------------------------------------------------------------------- */

/* The token as a string; part of a character is written as its bytes, so that tokens differ. */
static void put_name(JsonOut *out, Slice text) {
    if (is_utf8(text)) {
        json_put_string(out, text);
        return;
    }
    json_put(out, "\"bytes:");
    for (size_t i = 0; i < text.bytes; i++)
        json_put(out, "\\\\x%02x", (unsigned char)text.text[i]);
    json_put(out, "\"");
}

/* Whether an earlier one of the likeliest has the same text. A key may occur only once in an object. */
static bool is_named(const Model *m, Place p, size_t k) {
    bool special;
    Slice text = token_slice(m, p.token[k].id, &special), none = {"", 0};
    for (size_t i = 1; i < k; i++)
        if (same_text(token_slice(m, p.token[i].id, &special), none, text, none))
            return true;
    return false;
}

static void put_likeliest(JsonOut *out, const Model *m, Place p) {
    bool special;
    json_put(out, "{");
    for (size_t k = 1; k < p.count; k++) {
        if (is_named(m, p, k))
            continue;
        json_put(out, k > 1 ? ", " : "");
        put_name(out, token_slice(m, p.token[k].id, &special));
        json_put(out, ": ");
        json_put_number(out, p.token[k].logprob);
    }
    json_put(out, "}");
}

/* Where each token begins in the text: how many whole characters are before it. Special tokens have no text
 * there. */
static void put_offsets(JsonOut *out, const Model *m, const Reply *reply) {
    const int32_t *ids = reply->ids.data;
    Slice text = contents(&reply->text);
    size_t begin = 0;                   /* of the token, in bytes */
    size_t counted = 0, characters = 0; /* whole characters before it, in bytes and in number */
    for (size_t i = 0; i < place_count(reply); i++) {
        bool special;
        while (counted < min(begin, text.bytes)) {
            size_t n = max(utf8_length((uint8_t)text.text[counted]), 1);
            if (counted + n > begin)
                break;
            counted += n;
            characters++;
        }
        json_put(out, i ? ", %zu" : "%zu", characters);
        Slice token = token_slice(m, ids[i], &special);
        begin += special ? 0 : token.bytes;
    }
}

void put_completion_logprobs(JsonOut *out, const Model *m, const Reply *reply) {
    size_t n = place_count(reply);
    bool special;
    json_put(out, "{\"tokens\": [");
    for (size_t i = 0; i < n; i++) {
        json_put(out, i ? ", " : "");
        put_name(out, token_slice(m, place_at(reply, i).token->id, &special));
    }
    json_put(out, "], \"token_logprobs\": [");
    for (size_t i = 0; i < n; i++) {
        json_put(out, i ? ", " : "");
        json_put_number(out, place_at(reply, i).token->logprob);
    }
    json_put(out, "], \"top_logprobs\": [");
    for (size_t i = 0; i < n; i++) {
        json_put(out, i ? ", " : "");
        put_likeliest(out, m, place_at(reply, i));
    }
    json_put(out, "], \"text_offset\": [");
    put_offsets(out, m, reply);
    json_put(out, "]}");
}
