/* tests/text_driver.c: generated text on its way to standard output (cli/output.c), step by step.
 *
 *     text_driver [STOP ...] < tokens
 *
 * A token is one byte n and n bytes. After each one that is written comes "." on standard error, after one
 * that completed a stop text "!"; at the end of the tokens the text ends. */
#include "cli/output.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    Slice stops[16];
    size_t count = 0;
    for (int i = 1; i < argc && count < 16; i++)
        stops[count++] = (Slice){argv[i], strlen(argv[i])};
    Text text;
    output_open(NULL);
    if (!text_open(&text, stops, count, NULL))
        return 1;
    char token[256];
    for (int n; (n = getchar()) != EOF;) {
        if (fread(token, 1, (size_t)n, stdin) != (size_t)n)
            return 1;
        fputc(text_token(&text, token, (size_t)n) ? '.' : '!', stderr);
    }
    text_end(&text);
    text_close(&text);
    return 0;
}
