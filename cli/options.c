/* cli/options.c: the command line (options.h), with the habits of GNU programs: -n20, --tokens=20, -- before
 * a model whose name begins with -. Parsing is strict: a value that is not entirely what the option takes,
 * an option that cannot have an effect, two options of which only one could, a name that is cut short: all
 * are refused. Opens no file and knows no model. */
#include "cli/options.h"

#include <ctype.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/escape.h"
#include "cli/manual.h"
#include "cli/output.h"
#include "cli/system.h"

const char *const cache_names[CACHE_TYPES] = {[CACHE_F32] = "f32",
                                              [CACHE_BF16] = "bf16",
                                              [CACHE_Q8] = "q8",
                                              [CACHE_Q6] = "q6",
                                              [CACHE_Q4] = "q4",
                                              [CACHE_FULL] = "full",
                                              [CACHE_FULL_BF16] = "full-bf16",
                                              [CACHE_FULL_Q8] = "full-q8"};

/* ---- the table ------------------------------------------------------------------------------ */

enum {
    GENERATE = 1 << MODE_GENERATE,
    CHAT = 1 << MODE_CHAT,
    WRITE = GENERATE | CHAT,
    LOGITS = 1 << MODE_LOGITS,
    PERPLEXITY = 1 << MODE_PERPLEXITY,
    TOKENIZE = 1 << MODE_TOKENIZE,
    BENCH = 1 << MODE_BENCH,
    ALL = WRITE | LOGITS | PERPLEXITY | TOKENIZE | 1 << MODE_INFO | 1 << MODE_CHECK | BENCH
};

#define FIELD(name) offsetof(Options, name)

const size_t option_count = OPTION_COUNT;
const Option option_table[OPTION_COUNT] = {
    [OPT_PROMPT] = {"The prompt (default: nothing but the begin token)", "-p", "--prompt", "TEXT", STRING,
                    WRITE | LOGITS, FIELD(text), 0, 0, "the prompt, bytes as given; may be empty"},
    [OPT_ESCAPE] = {NULL, "-e", "--escape", NULL, FLAG, WRITE | LOGITS | TOKENIZE, 0, 0, 0,
                    "interpret \\n \\t \\\\ \\xHH \\uHHHH in TEXT of -p, --system, --stop, --tokenize"},
    [OPT_FILE] = {NULL, "-f", "--file", "FILE", STRING, WRITE | LOGITS | TOKENIZE, FIELD(file), 0, 0,
                  "the prompt from FILE, bytes as they are; - is standard input"},
    [OPT_IDS] = {NULL, NULL, "--ids", "LIST", STRING, GENERATE | LOGITS, FIELD(ids), 0, 0,
                 "the prompt as token ids, \"1 2 3\", nothing added"},
    [OPT_SPECIAL] = {NULL, NULL, "--special", NULL, FLAG, GENERATE | LOGITS | PERPLEXITY | TOKENIZE, 0, 0, 0,
                     "the prompt is trusted: special tokens in it are matched"},
    [OPT_NO_BOS] = {NULL, NULL, "--no-bos", NULL, FLAG, GENERATE | LOGITS | PERPLEXITY, 0, 0, 0,
                    "no begin token first (default: as the tokenizer says)"},

    [OPT_CHAT] = {"A conversation", NULL, "--chat", NULL, FLAG, ALL, 0, 0, 0,
                  "talk, with the template in the checkpoint: each line of standard input or -f is a turn, "
                  "one that ends with \\ goes on in the next; or one turn, -p"},
    [OPT_SYSTEM] = {NULL, NULL, "--system", "TEXT", STRING, CHAT, FIELD(system), 0, 0,
                    "what the model is told before the first turn (default: the template's)"},

    [OPT_ECHO] = {"The text", NULL, "--echo", NULL, FLAG, GENERATE, 0, 0, 0,
                  "write the prompt before the generated text"},
    [OPT_TOKENS] =
        {NULL, "-n", "--tokens", "N", INTEGER, WRITE, FIELD(tokens), -1, UINT32_MAX,
         "at most N new tokens (default 256, for an answer in --chat -1: until the context is full)"},
    [OPT_CONTEXT] = {NULL, "-c", "--context", "N", INTEGER, WRITE | LOGITS | PERPLEXITY | BENCH,
                     FIELD(context), 1, UINT32_MAX,
                     "cache rows to allocate (default: enough for session, prompt and -n; in --chat at a "
                     "terminal 8192, else what half of the memory holds)"},
    [OPT_STOP] = {NULL, NULL, "--stop", "TEXT", STOP, WRITE, 0, 0, 0, "stop before TEXT appears; repeatable"},
    [OPT_IGNORE_EOS] = {NULL, NULL, "--ignore-eos", NULL, FLAG, WRITE, 0, 0, 0,
                        "go on after the model's end tokens"},
    [OPT_SESSION] = {NULL, NULL, "--session", "FILE", STRING, WRITE, FIELD(session), 0, 0,
                     "go on from FILE if it exists (the prompt is appended, -s restarts the sampler), and "
                     "write it at the end"},

    [OPT_TEMPERATURE] = {"Sampling, in the order penalty, temperature, top-k, top-p, min-p", "-t",
                         "--temperature", "X", NUMBER, WRITE, FIELD(temperature), 0, 1000,
                         "0: the likeliest token, always (default: the checkpoint's, else 0.8)"},
    [OPT_TOP_K] = {NULL, NULL, "--top-k", "N", INTEGER, WRITE, FIELD(top_k), 0, UINT32_MAX,
                   "the N likeliest tokens (0: all; default: the checkpoint's, else 0)"},
    [OPT_TOP_P] = {NULL, NULL, "--top-p", "X", NUMBER, WRITE, FIELD(top_p), 0, 1,
                   "the fewest with probability X (1: all; default: the checkpoint's, else 0.95)"},
    [OPT_MIN_P] =
        {NULL, NULL, "--min-p", "X", NUMBER, WRITE, FIELD(min_p), 0, 1,
         "those with X times the likeliest's probability (0: all; default: the checkpoint's, else 0)"},
    [OPT_REPEAT_PENALTY] =
        {NULL, NULL, "--repeat-penalty", "X", NUMBER, WRITE, FIELD(repeat_penalty), 0.01, 100,
         "make the last 64 tokens less likely (1: off; default: the checkpoint's, else 1)"},
    [OPT_SEED] = {NULL, "-s", "--seed", "N", SEED, WRITE, FIELD(seed), 0, 0,
                  "64 bits (default: random, printed with the statistics)"},

    [OPT_LOGITS] = {"Instead of text", NULL, "--logits", "FILE", STRING, LOGITS, FIELD(output), 0, 0,
                    "write the float32 logits of every prompt position to FILE, [T, V]"},
    [OPT_PERPLEXITY] = {NULL, NULL, "--perplexity", "FILE", STRING, PERPLEXITY, FIELD(file), 0, 0,
                        "score a text in windows of -c (default 2048, or less if the model's limit is less)"},
    [OPT_AGAINST] =
        {NULL, NULL, "--against", "TYPE", CACHE, PERPLEXITY, FIELD(against), 0, 0,
         "--perplexity also with cache TYPE: a second line `against TYPE: perplexity P kl K top T%`, K nats "
         "of divergence from TYPE's predictions to -k's, T of the likeliest tokens the same"},
    [OPT_TOKENIZE] = {NULL, NULL, "--tokenize", "[TEXT]", STRING, TOKENIZE, FIELD(text), 0, 0,
                      "print the token ids of TEXT, or of -f's FILE, nothing added"},
    [OPT_COUNT] = {NULL, NULL, "--count", NULL, FLAG, TOKENIZE, 0, 0, 0,
                   "--tokenize: how many there are, instead"},
    [OPT_INFO] = {NULL, NULL, "--info", NULL, FLAG, ALL, 0, 0, 0,
                  "what the checkpoint is, and what a context costs"},
    [OPT_CHECK] = {NULL, NULL, "--check", NULL, FLAG, ALL, 0, 0, 0,
                   "verify every checksum and scale in the checkpoint"},
    [OPT_BENCH] = {NULL, NULL, "--bench", NULL, FLAG, ALL, 0, 0, 0,
                   "prefill and decode at growing context, beside the speed of memory"},
    [OPT_CSV] = {NULL, NULL, "--csv", NULL, FLAG, BENCH, 0, 0, 0, "--bench for machines"},
    [OPT_PROFILE] = {NULL, NULL, "--profile", NULL, FLAG, BENCH, 0, 0, 0,
                     "--bench with the time of each stage, on standard error"},

    [OPT_THREADS] = {"The machine", "-j", "--threads", "N", INTEGER, ALL, FIELD(threads), 1, 1024,
                     "threads (default: physical cores available to the process)"},
    [OPT_CACHE] =
        {NULL, "-k", "--cache", "TYPE", CACHE, WRITE | LOGITS | PERPLEXITY | BENCH, FIELD(cache), 0, 0,
         "the cache's number format: f32, bf16, q8, q6, q4; or full, full-bf16, full-q8: keys and "
         "values of every head instead of the latent, full in f32 (default: the session's, else q8)"},
    [OPT_QUIET] = {NULL, "-q", "--quiet", NULL, FLAG, ALL, 0, 0, 0, "errors alone on standard error"},
    [OPT_HELP] = {NULL, "-h", "--help", NULL, FLAG, ALL, 0, 0, 0, "this text"},
    [OPT_GENERATE] = {NULL, NULL, "--generate", "FORMAT", FORMAT, ALL, FIELD(format), 0, 0,
                      "this text as a man page, or completions for a shell: man, bash, zsh, fish"},
    [OPT_VERSION] = {NULL, NULL, "--version", NULL, FLAG, ALL, 0, 0, 0, "the version of this program"},
};

/* ---- values --------------------------------------------------------------------------------- */

/* strtod and strtoull accept more than a number is meant to be: white space, hexadecimal, "inf", a sign
 * that wraps around. */
static bool plain_number(const char *text, const char *allowed) {
    return *text && strspn(text, allowed) == strlen(text);
}

static bool parse_number(const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    return plain_number(text, "0123456789+-.eE") && !*end && isfinite(*value);
}

static bool parse_integer(const char *text, double *value) {
    return plain_number(text + (*text == '-'), "0123456789") && parse_number(text, value);
}

static bool parse_seed(const char *text, uint64_t *value) {
    *value = 0;
    for (const char *c = text; *c; c++) {
        uint64_t digit = (uint64_t)(*c - '0');
        if (!isdigit((unsigned char)*c) || *value > (UINT64_MAX - digit) / 10)
            return false;
        *value = *value * 10 + digit;
    }
    return *text;
}

/* *index: of `text` among the n names. */
static bool parse_name(const char *text, const char *const *names, int n, int *index) {
    for (*index = 0; *index < n; ++*index) {
        if (!strcmp(text, names[*index]))
            return true;
    }
    return false;
}

/* Stores the value of option `id`, or reports what it takes. */
static bool parse_value(Options *o, OptionId id, const char *given, const char *value) {
    const Option *option = &option_table[id];
    void *field = (char *)o + option->field;
    double number;
    int index;
    switch (option->kind) {
    case FLAG: return true;
    case STRING: *(const char **)field = value; return true;
    case STOP:
        o->stop_bytes[o->stop_count] = strlen(value);
        o->stops[o->stop_count++] = value;
        if (!*value)
            log_error(WRONG_USAGE, "%s takes a text that is not empty", given);
        return *value;
    case SEED:
        if (parse_seed(value, field))
            return true;
        log_error(WRONG_USAGE, "%s takes a whole number from 0 to 18446744073709551615, not '%s'", given,
                  value);
        return false;
    case CACHE:
        if (parse_name(value, cache_names, CACHE_TYPES, &index)) {
            *(CacheType *)field = (CacheType)index;
            return true;
        }
        log_error(WRONG_USAGE, "%s takes f32, bf16, q8, q6, q4, full, full-bf16 or full-q8, not '%s'", given,
                  value);
        return false;
    case FORMAT:
        if (parse_name(value, format_names, FORMATS, field))
            return true;
        log_error(WRONG_USAGE, "%s takes man, bash, zsh or fish, not '%s'", given, value);
        return false;
    case INTEGER:
        if (parse_integer(value, &number) && number >= option->least && number <= option->most) {
            *(int64_t *)field = (int64_t)number;
            return true;
        }
        log_error(WRONG_USAGE, "%s takes a whole number from %.0f to %.0f, not '%s'", given, option->least,
                  option->most, value);
        return false;
    case NUMBER:
        if (parse_number(value, &number) && number >= option->least && number <= option->most) {
            *(double *)field = number;
            return true;
        }
        log_error(WRONG_USAGE, "%s takes a number from %g to %g, not '%s'", given, option->least,
                  option->most, value);
        return false;
    }
    return false;
}

/* ---- escapes -------------------------------------------------------------------------------- */

static bool unescape_all(Options *o) {
    if (!o->given[OPT_ESCAPE])
        return true;
    const char *text_option = o->given[OPT_PROMPT] ? o->given[OPT_PROMPT] : o->given[OPT_TOKENIZE];
    if (!o->text && !o->system && !o->stop_count) {
        log_error(WRONG_USAGE,
                  "%s applies to the text of -p, --system, --stop and --tokenize, none of which is given",
                  o->given[OPT_ESCAPE]);
        return false;
    }
    if (o->text && !unescape(text_option, o->text, &o->text_bytes))
        return false;
    if (o->system && !unescape(o->given[OPT_SYSTEM], o->system, &o->system_bytes))
        return false;
    for (size_t i = 0; i < o->stop_count; i++) {
        if (!unescape(o->given[OPT_STOP], o->stops[i], &o->stop_bytes[i]))
            return false;
    }
    return true;
}

/* ---- the whole line ------------------------------------------------------------------------- */

/* Above it texts are noise: most likely threads are meant, which are -t in other programs. */
enum { MOST_USUAL_TEMPERATURE = 2 };

/* What getopt_long gives for an option of the table; a letter is given as itself. */
enum { LONG_OPTION = 256 };

/* The option that `argument` names, entirely, with or without "=value" behind a long name. OPTION_COUNT:
 * none. */
static OptionId find(const char *argument) {
    size_t length = strcspn(argument, "=");
    for (int i = 0; i < OPTION_COUNT; i++) {
        if ((option_table[i].letter && !strcmp(argument, option_table[i].letter)) ||
            (strlen(option_table[i].name) == length && !strncmp(argument, option_table[i].name, length)))
            return (OptionId)i;
    }
    return OPTION_COUNT;
}

/* Names that other programs have for the options here. */
static const struct {
    const char *theirs, *ours;
} synonyms[] = {
    {"-m", "MODEL alone, without an option"},
    {"--model", "MODEL alone, without an option"},
    {"--temp", "-t, --temperature"},
    {"--n-predict", "-n, --tokens"},
    {"--predict", "-n, --tokens"},
    {"--max-tokens", "-n, --tokens"},
    {"--max-new-tokens", "-n, --tokens"},
    {"--ctx-size", "-c, --context"},
    {"--n-ctx", "-c, --context"},
    {"--max-model-len", "-c, --context"},
    {"--n-threads", "-j, --threads"},
    {"-tb", "-j, --threads"},
    {"-r", "--stop"},
    {"--reverse-prompt", "--stop"},
    {"-i", "--chat"},
    {"--interactive", "--chat"},
    {"-cnv", "--chat"},
    {"--conversation", "--chat"},
    {"-sys", "--system"},
    {"--system-prompt", "--system"},
    {"--prompt-cache", "--session"},
    {"--repetition-penalty", "--repeat-penalty"},
    {"-ctk", "-k, --cache"},
    {"-ctv", "-k, --cache"},
    {"--cache-type-k", "-k, --cache"},
    {"--cache-type-v", "-k, --cache"},
    {"--ppl", "--perplexity"},
    {"--log-disable", "-q, --quiet"},
};

/* Whether two names differ in hyphens and underscores at most: --top_p, --topp. `part`: the first may end
 * early. */
static bool alike(const char *a, const char *b, bool part) {
    for (;; a++, b++) {
        a += strspn(a, "-_");
        b += strspn(b, "-_");
        if (*a != *b || !*a)
            return *a == *b || (part && !*a);
    }
}

/* What an unknown option is called here; NULL: it is like none, or like several. */
static const char *right_name(const char *name) {
    const char *found = NULL;
    for (size_t i = 0; i < sizeof synonyms / sizeof *synonyms; i++) {
        if (!strcmp(name, synonyms[i].theirs) || (name[1] == '-' && alike(name, synonyms[i].theirs, false)))
            return synonyms[i].ours;
    }
    for (int part = 0; part <= 1 && !found && name[1] == '-' && name[2]; part++) {
        for (int i = 0; i < OPTION_COUNT; i++) {
            if (alike(name, option_table[i].name, part) && found)
                return NULL;
            if (alike(name, option_table[i].name, part))
                found = option_table[i].name;
        }
    }
    return found;
}

/* `argument`: as it stands on the command line. */
static bool unknown_option(const char *argument) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(argument, "="), argument);
    const char *right = right_name(name);
    if (right)
        log_error(WRONG_USAGE, "unknown option '%s': use %s", argument, right);
    else
        log_error(WRONG_USAGE, "unknown option '%s'; %s --help lists them", argument, program_name);
    return false;
}

/* The first two options of a set that exclude each other. */
static bool at_most_one(const Options *o, const OptionId *set, size_t n, const char *why) {
    const char *one = NULL;
    for (size_t i = 0; i < n; i++) {
        const char *given = o->given[set[i]];
        if (one && given) {
            log_error(WRONG_USAGE, "%s and %s cannot be combined: %s", one, given, why);
            return false;
        }
        one = given ? given : one;
    }
    return true;
}

/* Finds the mode, and refuses options that mean nothing in it. */
static bool choose_mode(Options *o) {
    static const OptionId prompts[] = {OPT_PROMPT, OPT_FILE, OPT_IDS};
    static const OptionId modes[] = {OPT_CHAT, OPT_LOGITS, OPT_PERPLEXITY, OPT_TOKENIZE,
                                     OPT_INFO, OPT_CHECK,  OPT_BENCH};
    if (!at_most_one(o, modes, sizeof modes / sizeof *modes,
                     "each asks for something else on standard output") ||
        !at_most_one(o, prompts, sizeof prompts / sizeof *prompts, "there is one prompt"))
        return false;
    const char *mode = "the generation of text";
    for (int i = 0; i < (int)(sizeof modes / sizeof *modes); i++) {
        if (o->given[modes[i]]) {
            o->mode = (Mode)(MODE_GENERATE + 1 + i);
            mode = o->given[modes[i]];
        }
    }
    for (int i = 0; i < OPTION_COUNT; i++) {
        if (o->given[i] && !(option_table[i].modes & 1u << o->mode)) {
            log_error(WRONG_USAGE, "%s has no meaning for %s", o->given[i], mode);
            return false;
        }
    }
    if (o->mode == MODE_TOKENIZE && !o->text == !o->given[OPT_FILE]) {
        log_error(WRONG_USAGE, "%s takes a TEXT or -f FILE, one of them", o->given[OPT_TOKENIZE]);
        return false;
    }
    if (o->mode == MODE_CHAT && !o->given[OPT_TOKENS])
        o->tokens = -1;
    return true;
}

/* -j, or the default. Without OpenMP there is one thread, and asking for more is refused rather than
 * ignored. */
static bool choose_threads(Options *o) {
#ifdef _OPENMP
    if (!o->threads)
        o->threads = default_threads();
    if (o->given[OPT_THREADS] && o->threads > allowed_processors(""))
        log_info("%s %d: the process may use %d processors, more threads than that are slower",
                 o->given[OPT_THREADS], (int)o->threads, allowed_processors(""));
#else
    if (o->threads > 1) {
        log_error(WRONG_USAGE, "%s takes 1 only: this program was built without OpenMP",
                  o->given[OPT_THREADS]);
        return false;
    }
    o->threads = 1;
#endif
    return true;
}

static bool take_model(Options *o, const char *argument) {
    if (o->model) {
        log_error(WRONG_USAGE, "unexpected argument '%s': the model is '%s', and a prompt needs -p in front",
                  argument, o->model);
        return false;
    }
    o->model = argument;
    return true;
}

/* The table as getopt_long wants it: letters [3 * OPTION_COUNT + 3], names [OPTION_COUNT + 1]. */
static void make_getopt_tables(char *letters, struct option *names) {
    strcpy(letters, "-:"); /* arguments in order; a value that is missing is told apart */
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *o = &option_table[i];
        if (o->letter) {
            strcat(letters, o->letter + 1);
            strcat(letters, o->value ? ":" : "");
        }
        names[i] = (struct option){o->name + 2,
                                   !o->value          ? no_argument
                                   : *o->value == '[' ? optional_argument
                                                      : required_argument,
                                   NULL, LONG_OPTION + i};
    }
    names[OPTION_COUNT] = (struct option){0};
}

/* The option that getopt_long's `code` stands for. */
static OptionId option_of(int code) {
    return code >= LONG_OPTION ? (OptionId)(code - LONG_OPTION) : find((char[]){'-', (char)code, 0});
}

static bool take_option(Options *o, int argc, char **argv, const char *argument, int code) {
    bool error = code == '?' || code == ':', is_long = argument[1] == '-';
    OptionId id = option_of(error ? optopt : code);
    /* getopt_long takes a long name that is cut short, which may mean another option one day, and -ctk as
     * -c tk */
    if (id == OPTION_COUNT || (is_long ? find(argument) == OPTION_COUNT : right_name(argument) != NULL))
        return unknown_option(is_long || right_name(argument) ? argument : (char[]){'-', (char)optopt, 0});
    const Option *option = &option_table[id];
    const char *given = is_long ? option->name : option->letter, *value = optarg;
    if (error) {
        if (option->value)
            log_error(WRONG_USAGE, "%s takes a value, %s, and none follows", given, option->value);
        else
            log_error(WRONG_USAGE, "%s takes no value", given);
        return false;
    }
    if (option->value && !value) { /* it may be left out: an option that follows is none */
        bool follows = optind < argc && find(argv[optind]) == OPTION_COUNT;
        value = follows ? argv[optind++] : NULL;
    }
    o->given[id] = given;
    return !option->value || !value || parse_value(o, id, given, value);
}

static bool print_about(const Options *o, OptionId id) {
    if (id == OPT_HELP)
        manual_help();
    else if (id == OPT_GENERATE)
        manual_generate(o->format);
    else
        output_print("mla.c " MLA_VERSION "\n%s\n", machine_line());
    output_flush();
    return false;
}

/* True: the arguments were read to the end. */
static bool read_arguments(Options *o, int argc, char **argv, int *status) {
    char letters[3 * OPTION_COUNT + 3];
    struct option names[OPTION_COUNT + 1];
    make_getopt_tables(letters, names);
    optind = opterr = 0; /* from the beginning; messages are ours */
    for (;;) {
        const char *argument = argv[optind ? optind : 1];
        int code = argc > 1 ? getopt_long(argc, argv, letters, names, NULL) : -1;
        if (code == -1)
            break;
        if (code == 1 ? !take_model(o, optarg) : !take_option(o, argc, argv, argument, code))
            return false;
        for (OptionId id = OPT_HELP; id <= OPT_VERSION; id++) {
            if (o->given[id]) {
                *status = DONE;
                return print_about(o, id);
            }
        }
    }
    for (; argc > 1 && optind < argc; optind++) { /* behind -- */
        if (!take_model(o, argv[optind]))
            return false;
    }
    return true;
}

bool options_parse(Options *o, int argc, char **argv, int *status) {
    *o = (Options){.tokens = 256,
                   .temperature = -1,
                   .top_p = -1,
                   .top_k = -1,
                   .min_p = -1,
                   .repeat_penalty = -1,
                   .cache = CACHE_Q8};
    *status = FAILED;
    o->stops = calloc((size_t)argc + 1, sizeof *o->stops);
    o->stop_bytes = calloc((size_t)argc + 1, sizeof *o->stop_bytes);
    if (!o->stops || !o->stop_bytes) {
        log_error(WRONG_USAGE, "out of memory");
        return false;
    }
    *status = WRONG_USAGE;
    if (!read_arguments(o, argc, argv, status))
        return false;
    if (!o->model) {
        log_error(WRONG_USAGE, "no model is given: %s MODEL -p TEXT; %s --help tells more", program_name,
                  program_name);
        return false;
    }
    quiet = o->given[OPT_QUIET];
    o->text_bytes = o->text ? strlen(o->text) : 0;
    o->system_bytes = o->system ? strlen(o->system) : 0;
    if (!choose_mode(o) || !unescape_all(o) || !choose_threads(o))
        return false;
    if (!o->text)
        o->text = "";
    if (o->temperature > MOST_USUAL_TEMPERATURE)
        log_info("%s %g is a temperature, and a high one; -j sets the threads", o->given[OPT_TEMPERATURE],
                 o->temperature);
    return true;
}

void options_close(Options *o) {
    free(o->stops);
    free(o->stop_bytes);
}
