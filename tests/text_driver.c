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
    size_t stop_bytes[16] = {0};
    for (int i = 1; i < argc && i <= 16; i++)
        stop_bytes[i - 1] = strlen(argv[i]);
    Text text;
    output_open(NULL);
    if (!text_open(&text, (const char *const *)argv + 1, stop_bytes, (size_t)argc - 1))
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
