/* cli/options.c: the command line (options.h) by the table (table.c), with the habits of GNU programs: -n20,
 * --tokens=20, -- before a model whose name begins with -. Parsing is strict: a value that is not entirely
 * what the option takes, an option that cannot have an effect, two options of which only one could, a name
 * that is cut short: all are refused. Opens no file and knows no model. */
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
#include "engine/util.h"

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

/* *index: of the word among those that the kind has; or reports them. */
static bool parse_word(Kind kind, const char *given, const char *value, int *index) {
    size_t n;
    const char *const *words = kind_words(kind, &n);
    char list[128] = "";
    for (size_t i = 0; i < n; i++) {
        if (!strcmp(value, words[i])) {
            *index = (int)i;
            return true;
        }
        strcat(strcat(list, i == 0 ? "" : i + 1 < n ? ", " : " or "), words[i]);
    }
    log_error(WRONG_USAGE, "%s takes %s, not '%s'", given, list, value);
    return false;
}

static void add_text(Texts *texts, const char *value) {
    texts->list[texts->count++] = (Slice){value, strlen(value)};
}

/* "1,8,32" */
static bool parse_counts(const char *text, const Option *option, Counts *counts) {
    counts->count = 0;
    for (char number[24]; counts->count < MAX_COUNTS; text++) {
        double value;
        size_t length = strcspn(text, ",");
        snprintf(number, sizeof number, "%.*s", (int)min(length, sizeof number - 1), text);
        if (!parse_integer(number, &value) || value < option->least || value > option->most)
            return false;
        counts->list[counts->count++] = (size_t)value;
        text += length;
        if (!*text)
            return true;
    }
    return false;
}

/* Stores the value of option `id`, or reports what it takes. */
static bool parse_value(Options *o, OptionId id, const char *given, const char *value) {
    const Option *option = &option_table[id];
    void *field = (char *)o + option->field;
    double number;
    switch (option->kind) {
    case FLAG: return true;
    case STRING: *(const char **)field = value; return true;
    case TEXTS:
        add_text(field, value);
        if (!*value)
            log_error(WRONG_USAGE, "%s takes a text that is not empty", given);
        return *value;
    case COUNTS:
        if (parse_counts(value, option, field))
            return true;
        log_error(WRONG_USAGE,
                  "%s takes a whole number from %.0f to %.0f, or with --bench a list like 1,8,32, not '%s'",
                  given, option->least, option->most, value);
        return false;
    case SEED:
        if (parse_seed(value, field))
            return true;
        log_error(WRONG_USAGE, "%s takes a whole number from 0 to 18446744073709551615, not '%s'", given,
                  value);
        return false;
    case CACHE:
    case THINK:
    case FORMAT: return parse_word(option->kind, given, value, field);
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

static bool unescape_texts(const char *given, Texts *texts) {
    for (size_t i = 0; i < texts->count; i++) {
        if (!unescape(given, texts->list[i].text, &texts->list[i].bytes))
            return false;
    }
    return true;
}

static bool unescape_all(Options *o) {
    if (!o->given[OPT_ESCAPE])
        return true;
    const char *text_option = o->given[OPT_PROMPT] ? o->given[OPT_PROMPT] : o->given[OPT_TOKENIZE];
    if (!o->text && !o->system && !o->stops.count && !o->choices.count) {
        log_error(WRONG_USAGE,
                  "%s applies to the text of -p, --system, --stop, --choose and --tokenize, none of which is "
                  "given",
                  o->given[OPT_ESCAPE]);
        return false;
    }
    if (o->text && !unescape(text_option, o->text, &o->text_bytes))
        return false;
    if (o->system && !unescape(o->given[OPT_SYSTEM], o->system, &o->system_bytes))
        return false;
    return unescape_texts(o->given[OPT_STOP], &o->stops) && unescape_texts(o->given[OPT_CHOOSE], &o->choices);
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
static bool at_most_one(const Options *o, const Rule *rule) {
    const char *one = NULL;
    for (size_t i = 0; i < rule->count; i++) {
        const char *given = o->given[rule->set[i]];
        if (one && given) {
            log_error(WRONG_USAGE, "%s and %s cannot be combined: %s", one, given, rule->why);
            return false;
        }
        one = given ? given : one;
    }
    return true;
}

/* The first option of the set is given only beside one of the others. */
static bool has_company(const Options *o, const Rule *rule) {
    const char *given = o->given[rule->set[0]];
    for (size_t i = 1; i < rule->count && given; i++) {
        if (o->given[rule->set[i]])
            given = NULL;
    }
    if (given)
        log_error(WRONG_USAGE, "%s without %s: %s", given, option_table[rule->set[1]].name, rule->why);
    return !given;
}

/* Finds the mode, and refuses options that mean nothing in it. */
static bool choose_mode(Options *o) {
    const char *mode = "the generation of text";
    for (size_t i = mode_count; i-- > 0;) {
        if (o->given[mode_table[i].option]) {
            o->mode = mode_table[i].mode;
            mode = o->given[mode_table[i].option];
        }
    }
    for (int i = 0; i < OPTION_COUNT; i++) {
        if (o->given[i] && !(option_table[i].modes & 1u << o->mode)) {
            log_error(WRONG_USAGE, "%s has no meaning for %s", o->given[i], mode);
            return false;
        }
    }
    for (size_t i = 0; i < rule_count; i++) {
        const Rule *rule = &rule_table[i];
        if (!(rule->together ? has_company(o, rule) : at_most_one(o, rule)))
            return false;
    }
    if (o->mode == MODE_TOKENIZE && !o->text == !o->given[OPT_FILE]) {
        log_error(WRONG_USAGE, "%s takes a TEXT or -f FILE, one of them", o->given[OPT_TOKENIZE]);
        return false;
    }
    if (o->parallel.count > 1 && o->mode != MODE_BENCH) {
        log_error(WRONG_USAGE, "%s takes one number for %s", o->given[OPT_PARALLEL], mode);
        return false;
    }
    if (o->given[OPT_CHAT] && !o->given[OPT_TOKENS])
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
                   .samples = 1,
                   .first = 1,
                   .cache = CACHE_Q8,
                   .think = THINK_DEFAULT};
    *status = FAILED;
    o->stops.list = calloc((size_t)argc + 1, sizeof *o->stops.list);
    o->choices.list = calloc((size_t)argc + 1, sizeof *o->choices.list);
    if (!o->stops.list || !o->choices.list) {
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
    free(o->stops.list);
    free(o->choices.list);
}
