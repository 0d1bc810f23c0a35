/* cli/manual.c: --help, and with --generate the man page and the completions of bash, zsh and fish, all from
 * the one table of options. What is not about a single option (exit status, environment, examples) is here.
 * Reads no option and no file; `make install` puts each text where it belongs. */
#include "cli/manual.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cli/output.h"
#include "cli/table.h"

enum { COLUMNS = 80, HELP_COLUMN = 28 };

static const char purpose[] = "Runs a language model with Multi-head Latent Attention. "
                              "MODEL is a file that export.py (installed as mla-export) wrote.";
static const char arguments[] = "MODEL [-p TEXT | -f FILE | --ids LIST] [options]";

static const char *const statuses[][2] = {
    {"0", "done"},           {"1", "failed"},          {"2", "wrong usage"},
    {"130", "after Ctrl-C"}, {"143", "after SIGTERM"}, {"129", "after SIGHUP"},
};
enum { STATUSES = sizeof statuses / sizeof *statuses };

/* ---- help ----------------------------------------------------------------------------------- */

/* Words of `text` in lines of at most COLUMNS. The first begins where the cursor is, at `column`, and the
 * others at `indent`. */
static void print_wrapped(const char *text, int column, int indent) {
    for (bool first = true; *text; first = false) {
        int length = (int)strcspn(text, " ");
        if (!first && column + 1 + length > COLUMNS) {
            output_print("\n%*s", indent, "");
            column = indent;
        } else if (!first) {
            output_print(" ");
            column++;
        }
        output_print("%.*s", length, text);
        column += length;
        text += length + (text[length] == ' ');
    }
    output_print("\n");
}

void manual_help(void) {
    output_print("usage: %s %s\n\n", program_name, arguments);
    print_wrapped(purpose, 0, 0);
    for (size_t i = 0; i < option_count; i++) {
        const Option *o = &option_table[i];
        char names[64];
        snprintf(names, sizeof names, "  %s%s %s%s%s", o->letter ? o->letter : "   ", o->letter ? "," : "",
                 o->name, o->value ? " " : "", o->value ? o->value : "");
        if (o->heading)
            output_print("\n%s\n", o->heading);
        output_print("%-*s ", HELP_COLUMN - 1, names);
        print_wrapped(o->help, HELP_COLUMN, HELP_COLUMN);
    }
    char line[512] = "Standard output carries the text alone. Exit status:";
    for (int i = 0; i < STATUSES; i++)
        snprintf(line + strlen(line), sizeof line - strlen(line), " %s %s%s", statuses[i][0], statuses[i][1],
                 i + 1 < STATUSES ? "," : ".");
    output_print("\n");
    print_wrapped(line, 0, 0);
}

/* ---- the man page (man(7)) -------------------------------------------------------------------- */

static const char description[] =
    "The generated text, or what one of the other modes prints, goes to standard output, and nothing else "
    "does. Statistics, warnings and errors go to standard error. The same file, prompt, seed and options "
    "give "
    "the same text for every number of threads and every instruction set.";

static const char *const environment[][2] = {
    {"OMP_NUM_THREADS", "The number of threads if -j is not given. The other variables of OpenMP, for "
                        "example OMP_PROC_BIND and OMP_PLACES, have their usual meaning."},
    {"MLA_ISA",
     "The instruction set: portable, avx2, avxvnni, avx512, amx or neon, of those that the program "
     "was built with and the machine can run. Default: the fastest. The text does not depend on it."},
    {"MLA_PATH", "How attention is computed: absorbed, decompressed, or definition (plain loops, slow). "
                 "Default: what is faster for each piece of the text. The results differ by rounding."},
    {"MLA_CHUNK", "How many rows of a prompt are computed in one call. Default: 2048."},
    {"MLA_PAGES", "How many pages of 128 rows the texts of a batch share. Default: what half of the memory "
                  "holds. The text does not depend on it."},
};

static const char *const examples[][2] = {
    {"mla model.bin -p \"Once upon a time\" -n 100 -t 0", "100 tokens, always the likeliest."},
    {"mla model.bin --chat --session talk", "A conversation that goes on where the last one ended."},
    {"git log -1 --format=%B | mla model.bin -q -f - -n 100",
     "The prompt from a pipe; errors alone are shown."},
    {"mla model.bin --prompts questions.txt > answers.txt", "An answer a line, many at a time."},
    {"mla model.bin --info", "Sizes, and what a context costs."},
};

/* As text of roff, in short lines: hyphens that can be copied, and no line that begins a request. */
static void roff_text(const char *text) {
    int column = 0;
    for (const char *c = text; *c; c++, column++) {
        bool request = !column && (*c == '.' || *c == '\'');
        if (*c == ' ' && column > 60)
            column = -1;
        if (column < 0)
            output_print("\n");
        else if (*c == '-')
            output_print("\\-");
        else if (*c == '\\')
            output_print("\\e");
        else
            output_print(request ? "\\&%c" : "%c", *c);
    }
}

static void roff(const char *text) {
    roff_text(text);
    output_print("\n");
}

/* Tagged paragraphs: a name or command and what it means. */
static void roff_pairs(const char *const (*pairs)[2], size_t n) {
    for (size_t i = 0; i < n; i++) {
        output_print(".TP\n\\fB");
        roff_text(pairs[i][0]);
        output_print("\\fR\n");
        roff(pairs[i][1]);
    }
}

static void roff_option(const Option *o) {
    if (o->heading) {
        output_print(".SS ");
        roff(o->heading);
    }
    output_print(".TP\n");
    if (o->letter) {
        output_print("\\fB");
        roff_text(o->letter);
        output_print("\\fR, ");
    }
    output_print("\\fB");
    roff_text(o->name);
    output_print("\\fR%s\\fI%s\\fR\n", o->value ? " " : "", o->value ? o->value : "");
    roff(o->help);
}

/* The names of the options that have a meaning in a mode. */
static void roff_mode(const char *name, Mode mode) {
    output_print(".TP\n\\fB");
    roff_text(name);
    output_print("\\fR\n");
    for (size_t i = 0; i < option_count; i++) {
        if (option_table[i].modes & 1u << mode)
            roff(option_table[i].letter ? option_table[i].letter : option_table[i].name);
    }
}

static void roff_rule(const Rule *rule) {
    output_print(".TP\n");
    for (size_t i = 0; i < rule->count; i++) {
        const char *between = i == 0                ? ""
                              : rule->together      ? " only with "
                              : i + 1 < rule->count ? ", "
                                                    : " or ";
        roff_text(between);
        roff_text(option_table[rule->set[i]].name);
    }
    output_print("\n");
    roff(rule->why);
}

static void roff_modes(void) {
    output_print(".SH WHICH OPTIONS GO TOGETHER\n");
    roff("What is not listed for a use is wrong usage there.");
    roff_mode("a text", MODE_GENERATE);
    for (size_t i = 0; i < mode_count; i++)
        roff_mode(option_table[mode_table[i].option].name, mode_table[i].mode);
    output_print(".PP\nOf each of these sets one at most, or one only with another:\n");
    for (size_t i = 0; i < rule_count; i++)
        roff_rule(&rule_table[i]);
}

static void man(void) {
    output_print(".\\\" written by mla --generate man\n.TH MLA 1 \"\" \"mla.c " MLA_VERSION "\"\n.SH NAME\n");
    roff("mla - run a language model with Multi-head Latent Attention");
    output_print(".SH SYNOPSIS\n.B mla\n");
    roff(arguments);
    output_print(".SH DESCRIPTION\n");
    roff(purpose);
    output_print(".PP\n");
    roff(description);
    output_print(".SH OPTIONS\n");
    for (size_t i = 0; i < option_count; i++)
        roff_option(&option_table[i]);
    roff_modes();
    output_print(".SH EXIT STATUS\n");
    roff_pairs(statuses, STATUSES);
    output_print(".SH ENVIRONMENT\nAn empty variable counts as one that is not set.\n");
    roff_pairs(environment, sizeof environment / sizeof *environment);
    output_print(".SH EXAMPLES\n");
    roff_pairs(examples, sizeof examples / sizeof *examples);
    output_print(".SH SEE ALSO\n");
    roff("mla-export --help: how a model becomes a file that mla reads.");
}

/* ---- completions ---------------------------------------------------------------------------- */

static void print_choices(const Option *o) {
    size_t n;
    const char *const *names = kind_words(o->kind, &n);
    for (size_t i = 0; i < n; i++)
        output_print(i ? " %s" : "%s", names[i]);
}

static bool takes_file(const Option *o) { return o->value && !strcmp(o->value, "FILE"); }

/* `text` between single quotes of a shell, with a backslash before each of the characters `special`. */
static void print_escaped(const char *text, const char *special, const char *quote) {
    for (; *text; text++) {
        if (*text == '\'')
            output_print("%s", quote);
        else
            output_print(strchr(special, *text) ? "\\%c" : "%c", *text);
    }
}

/* Where the function offers nothing, -o default lets bash offer files: for MODEL, and for values. */
static void bash(void) {
    output_print("# bash completion of mla, written by mla --generate bash\n"
                 "_mla() {\n"
                 "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}\n"
                 "    # --name=value comes as three words\n"
                 "    [[ $word == = ]] && word=\n"
                 "    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD - 2]}\n"
                 "    COMPREPLY=()\n"
                 "    case $before in\n");
    for (size_t i = 0; i < option_count; i++) {
        const Option *o = &option_table[i];
        size_t n;
        if (o->value && *o->value != '[') {
            output_print("    %s%s%s) ", o->letter ? o->letter : "", o->letter ? " | " : "", o->name);
            if (kind_words(o->kind, &n)) {
                output_print("COMPREPLY=($(compgen -W \"");
                print_choices(o);
                output_print("\" -- \"$word\")) ");
            }
            output_print(";;\n");
        }
    }
    output_print("    *) [[ $word == -* ]] && COMPREPLY=($(compgen -W \"");
    for (size_t i = 0; i < option_count; i++) {
        const Option *o = &option_table[i];
        output_print("%s%s%s%s", i ? " " : "", o->letter ? o->letter : "", o->letter ? " " : "", o->name);
    }
    output_print("\" -- \"$word\")) ;;\n"
                 "    esac\n"
                 "    return 0\n"
                 "}\n"
                 "complete -o default -F _mla mla\n");
}

static void zsh(void) {
    output_print("#compdef mla\n# written by mla --generate zsh\n_arguments -s -S '1:MODEL:_files'");
    for (size_t i = 0; i < option_count; i++) {
        const Option *o = &option_table[i];
        size_t n;
        const char *joined = o->value && *o->value != '[' ? "=" : "";
        output_print(" \\\n    ");
        if (o->kind == TEXTS) /* it may come again */
            output_print("'*'");
        else if (o->letter)
            output_print("'(%s %s)'", o->letter, o->name);
        if (o->letter)
            output_print("{%s%s,%s%s}", o->letter, o->value ? "+" : "", o->name, joined);
        else
            output_print("'%s%s'", o->name, joined);
        output_print("'[");
        print_escaped(o->help, "[]:\\", "'\\''");
        output_print("]");
        if (o->value) {
            output_print("%s:", *o->value == '[' ? ":" : "");
            print_escaped(o->value, "", "");
            output_print(":%s", takes_file(o) ? "_files" : kind_words(o->kind, &n) ? "(" : " ");
            print_choices(o);
            output_print("%s", kind_words(o->kind, &n) ? ")" : "");
        }
        output_print("'");
    }
    output_print("\n");
}

static void fish(void) {
    output_print("# fish completion of mla, written by mla --generate fish\n");
    for (size_t i = 0; i < option_count; i++) {
        const Option *o = &option_table[i];
        size_t n;
        output_print("complete -c mla");
        if (o->letter)
            output_print(" -s %s", o->letter + 1);
        output_print(" -l %s", o->name + 2);
        if (o->value && *o->value != '[')
            output_print(takes_file(o) ? " -rF" : " -x");
        if (kind_words(o->kind, &n)) {
            output_print(" -a '");
            print_choices(o);
            output_print("'");
        }
        output_print(" -d '");
        print_escaped(o->help, "\\", "\\'");
        output_print("'\n");
    }
}

void manual_generate(int format) {
    static void (*const writers[FORMATS])(void) = {man, bash, zsh, fish};
    writers[format]();
}
