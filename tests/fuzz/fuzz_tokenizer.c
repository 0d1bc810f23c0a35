/* tests/fuzz/fuzz_tokenizer.c: a tokenizer section that comes from anywhere, and any text. Ids are in the
 * vocabulary, and where the section is one that a tokenizer could have, decoding gives back every byte. An
 * input is the section, then the text, then the text's length in two bytes. */
#include <stdlib.h>
#include <string.h>

#include "engine/section.h"
#include "kernels/util.h"
#include "tests/fuzz/fuzz.h"
#include "tokenizer.h"

static bool spells(const Tokenizer *t, uint32_t id, const void *text, size_t n) {
    size_t bytes = t->token_start[id + 1] - t->token_start[id];
    return bytes == n && !memcmp(t->text + t->token_start[id], text, n);
}

/* Whether every byte has its token, every unit and every merge the token that it spells, and texts stay as
 * they are: no normal form. */
static bool is_sound(const Tokenizer *t) {
    if (t->h.replacements || t->h.compositions || t->h.prefix || t->h.options & DROP_SPACE)
        return false;
    for (size_t i = 0; i < t->h.texts[UNITS]; i++)
        if (!spells(t, t->texts[UNITS][i].id, t->text + t->texts[UNITS][i].start, t->texts[UNITS][i].bytes))
            return false;
    for (size_t i = 0; i < 256; i++)
        if (t->byte_id[i] == NONE || !spells(t, t->byte_id[i], &(uint8_t){(uint8_t)i}, 1))
            return false;
    for (uint32_t left = 0; left < t->h.vocabulary; left++) {
        const char *text = t->text + t->token_start[left];
        size_t bytes = t->token_start[left + 1] - t->token_start[left];
        for (size_t i = t->merge_start[left]; i < t->merge_start[left + 1]; i++) {
            const Merge *m = &t->merges[i];
            const char *merged = t->text + t->token_start[m->id], *right = t->text + t->token_start[m->right];
            size_t right_bytes = t->token_start[m->right + 1] - t->token_start[m->right];
            if (t->token_start[m->id + 1] - t->token_start[m->id] != bytes + right_bytes ||
                memcmp(merged, text, bytes) || memcmp(merged + bytes, right, right_bytes))
                return false;
        }
    }
    return true;
}

static void try_text(const Tokenizer *t, const char *text, size_t n, bool trusted, bool sound) {
    size_t count, bytes, done = 0;
    bool special;
    char err[256];
    int32_t *ids = tokenizer_encode(t, text, n, trusted, true, &count, err, sizeof err);
    if (!ids && strstr(err, "take too long")) /* refused: the section makes searches slow */
        return;
    if (!ids || (sound && count > n))
        abort();
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= tokenizer_size(t))
            abort();
        const char *token = tokenizer_decode(t, ids[i], done == 0, &bytes, &special);
        if (sound && (bytes > n - done || memcmp(token, text + done, bytes)))
            abort();
        done += sound ? bytes : 0;
    }
    if (sound && done != n)
        abort();
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint16_t n;
    char err[256];
    if (size < sizeof n)
        return 0;
    size -= sizeof n;
    memcpy(&n, data + size, sizeof n);
    n = n < size ? n : (uint16_t)size;
    uint8_t *section = malloc(size - n + 1); /* apart from the text: a sanitizer sees a read behind either */
    char *text = malloc(n + 1u);
    if (!section || !text)
        abort();
    memcpy(section, data, size - n);
    memcpy(text, data + size - n, n);
    Tokenizer *t = tokenizer_open(section, size - n, err, sizeof err);
    if (t) {
        try_text(t, text, n, false, is_sound(t));
        try_text(t, text, n, true, false);
        tokenizer_decode(t, -1, true, &(size_t){0}, &(bool){false});
        tokenizer_close(t);
    }
    free(section);
    free(text);
    return 0;
}

/* The section's numbers, seldom anything; or the text alone, which may grow. Its size is in the section's
 * second word. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    uint16_t n;
    if (size < sizeof(SectionHeader) + sizeof n || !below(&seed, 32))
        return LLVMFuzzerMutate(data, size, max_size);
    memcpy(&n, data + size - sizeof n, sizeof n);
    n = n < size - sizeof n ? n : (uint16_t)(size - sizeof n);
    size_t section = size - sizeof n - n, program = section - min(section, 4096);
    switch (below(&seed, 6)) {
    case 0: mutate_part(data, 0, min(section, sizeof(SectionHeader)), &seed); break;
    case 1: mutate_part(data, program, section, &seed); break; /* the expressions are last */
    case 2: mutate_part(data, 0, section, &seed); break;
    default: {
        size_t room = max_size - section - sizeof n;
        n = (uint16_t)LLVMFuzzerMutate(data + section, n, min(room, 512));
        memcpy(data + section + n, &n, sizeof n);
    }
    }
    return section + n + sizeof n;
}
