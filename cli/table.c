/* cli/table.c: every option with what it takes, where it has a meaning and its help, and which options go
 * together (table.h). Parses nothing: options.c does. */
#include "cli/table.h"

const char *const cache_names[CACHE_TYPES] = {[CACHE_F32] = "f32",
                                              [CACHE_BF16] = "bf16",
                                              [CACHE_Q8] = "q8",
                                              [CACHE_Q6] = "q6",
                                              [CACHE_Q4] = "q4",
                                              [CACHE_FULL] = "full",
                                              [CACHE_FULL_BF16] = "full-bf16",
                                              [CACHE_FULL_Q8] = "full-q8"};

const char *const *kind_words(Kind kind, size_t *count) {
    static const char *const thinks[] = {
        [THINK_ON] = "on", [THINK_OFF] = "off", [THINK_MAX] = "max", [THINK_HIDE] = "hide"};
    static const char *const formats[FORMATS] = {"man", "bash", "zsh", "fish"};
    switch (kind) {
    case CACHE: *count = CACHE_TYPES; return cache_names;
    case THINK: *count = THINK_DEFAULT; return thinks;
    case FORMAT: *count = FORMATS; return formats;
    default: *count = 0; return NULL;
    }
}

/* ---- the table ------------------------------------------------------------------------------ */

enum {
    GENERATE = 1 << MODE_GENERATE,
    CHAT = 1 << MODE_CHAT,
    PROMPTS = 1 << MODE_PROMPTS,
    SAMPLES = 1 << MODE_SAMPLES,
    CHOOSE = 1 << MODE_CHOOSE,
    BATCH = 1 << MODE_BATCH,
    ONE = GENERATE | CHAT,                  /* a text or a conversation */
    LINES = PROMPTS | SAMPLES | CHOOSE,     /* many texts, a line each */
    TEXT = ONE | PROMPTS | SAMPLES | BATCH, /* what is written is the model's */
    READ = TEXT | CHOOSE,
    LOGITS = 1 << MODE_LOGITS,
    PERPLEXITY = 1 << MODE_PERPLEXITY,
    TOKENIZE = 1 << MODE_TOKENIZE,
    BENCH = 1 << MODE_BENCH,
    INFO = 1 << MODE_INFO,
    CHECK = 1 << MODE_CHECK,
    ALL = READ | LOGITS | PERPLEXITY | TOKENIZE | INFO | CHECK | BENCH
};

#define FIELD(name) offsetof(Options, name)

const size_t option_count = OPTION_COUNT;
const Option option_table[OPTION_COUNT] = {
    [OPT_PROMPT] = {"The prompt (default: nothing but the begin token)", "-p", "--prompt", "TEXT", STRING,
                    ONE | SAMPLES | CHOOSE | LOGITS, FIELD(text), 0, 0,
                    "the prompt, bytes as given; may be empty"},
    [OPT_ESCAPE] =
        {NULL, "-e", "--escape", NULL, FLAG, READ | LOGITS | TOKENIZE, 0, 0, 0,
         "interpret \\n \\t \\\\ \\xHH \\uHHHH in TEXT of -p, --system, --stop, --choose, --tokenize"},
    [OPT_FILE] = {NULL, "-f", "--file", "FILE", STRING, ONE | SAMPLES | CHOOSE | LOGITS | TOKENIZE,
                  FIELD(file), 0, 0, "the prompt from FILE, bytes as they are; - is standard input"},
    [OPT_IDS] = {NULL, NULL, "--ids", "LIST", STRING, GENERATE | LOGITS, FIELD(ids), 0, 0,
                 "the prompt as token ids, \"1 2 3\", nothing added"},
    [OPT_SPECIAL] = {NULL, NULL, "--special", NULL, FLAG,
                     GENERATE | LINES | BATCH | LOGITS | PERPLEXITY | TOKENIZE, 0, 0, 0,
                     "the prompt is trusted: special tokens in it are matched"},
    [OPT_NO_BOS] = {NULL, NULL, "--no-bos", NULL, FLAG, GENERATE | LINES | BATCH | LOGITS | PERPLEXITY, 0, 0,
                    0, "no begin token first (default: as the tokenizer says)"},

    [OPT_CHAT] = {"A conversation", NULL, "--chat", NULL, FLAG, CHAT | LINES, 0, 0, 0,
                  "talk, with the template in the checkpoint: each line of standard input or -f is a turn, "
                  "one that ends with \\ goes on in the next; or one turn, -p"},
    [OPT_SYSTEM] = {NULL, NULL, "--system", "TEXT", STRING, CHAT | LINES, FIELD(system), 0, 0,
                    "what the model is told before the first turn (default: the template's)"},

    [OPT_THINK] = {NULL, NULL, "--think", "HOW", THINK, CHAT | LINES | BATCH, FIELD(think), 0, 0,
                   "on, off: the template's own switch for thoughts; max: as many as it can ask for; hide: "
                   "thoughts are made but not written (default: the template's)"},

    [OPT_ECHO] = {"The text", NULL, "--echo", NULL, FLAG, GENERATE, 0, 0, 0,
                  "write the prompt before the generated text"},
    [OPT_TOKENS] =
        {NULL, "-n", "--tokens", "N", INTEGER, TEXT, FIELD(tokens), -1, UINT32_MAX,
         "at most N new tokens (default 256, for an answer in --chat -1: until the context is full)"},
    [OPT_CONTEXT] = {NULL, "-c", "--context", "N", INTEGER, READ | LOGITS | PERPLEXITY | BENCH,
                     FIELD(context), 1, UINT32_MAX,
                     "cache rows to allocate (default: enough for session, prompt and -n; in --chat at a "
                     "terminal 8192, else what half of the memory holds)"},
    [OPT_STOP] = {NULL, NULL, "--stop", "TEXT", TEXTS, TEXT, FIELD(stops), 0, 0,
                  "stop before TEXT appears; repeatable"},
    [OPT_IGNORE_EOS] = {NULL, NULL, "--ignore-eos", NULL, FLAG, TEXT, 0, 0, 0,
                        "go on after the model's end tokens"},
    [OPT_SESSION] = {NULL, NULL, "--session", "FILE", STRING, ONE, FIELD(session), 0, 0,
                     "go on from FILE if it exists (the prompt is appended, -s restarts the sampler), and "
                     "write it at the end"},

    [OPT_FROM] = {NULL, NULL, "--from", "FILE", STRING, READ, FIELD(session), 0, 0,
                  "begin where a session ends, and leave its FILE as it is; many runs may read it at once"},

    [OPT_PROMPTS] =
        {"Many texts in one run, each as it is alone", NULL, "--prompts", "FILE", STRING, PROMPTS | CHOOSE,
         FIELD(prompts), 0, 0,
         "a prompt a line (-: standard input), and an answer a line in the same order; line feed, "
         "carriage return and backslash in answers are \\n, \\r and \\\\"},
    [OPT_BATCH] = {NULL, NULL, "--batch", "FILE", STRING, BATCH, FIELD(prompts), 0, 0,
                   "the same with JSON Lines in and out: own form or OpenAI's"},
    [OPT_SAMPLES] = {NULL, NULL, "--samples", "N", INTEGER, PROMPTS | SAMPLES | BATCH, FIELD(samples), 1,
                     1000000, "N answers to each prompt, a line each, with seeds that count up from -s"},
    [OPT_CHOOSE] = {NULL, NULL, "--choose", "TEXT", TEXTS, CHOOSE, FIELD(choices), 0, 0,
                    "repeatable: write the likeliest of these continuations instead of a text"},
    [OPT_PARALLEL] = {NULL, NULL, "--parallel", "N", COUNTS, LINES | BATCH | BENCH, FIELD(parallel), 1, 1024,
                      "at most N texts at a time (default 32, as far as memory allows); --bench: of N "
                      "texts, or of each of a list like 1,8,32"},
    [OPT_FIRST] = {NULL, NULL, "--first", "N", INTEGER, LINES | BATCH, FIELD(first), 1, UINT32_MAX,
                   "write from line N of the output on, to go on with a run that was ended"},

    [OPT_TEMPERATURE] = {"Sampling, in the order penalty, temperature, top-k, top-p, min-p", "-t",
                         "--temperature", "X", NUMBER, TEXT, FIELD(temperature), 0, 1000,
                         "0: the likeliest token, always (default: the checkpoint's, else 0.8)"},
    [OPT_TOP_K] = {NULL, NULL, "--top-k", "N", INTEGER, TEXT, FIELD(top_k), 0, UINT32_MAX,
                   "the N likeliest tokens (0: all; default: the checkpoint's, else 0)"},
    [OPT_TOP_P] = {NULL, NULL, "--top-p", "X", NUMBER, TEXT, FIELD(top_p), 0, 1,
                   "the fewest with probability X (1: all; default: the checkpoint's, else 0.95)"},
    [OPT_MIN_P] =
        {NULL, NULL, "--min-p", "X", NUMBER, TEXT, FIELD(min_p), 0, 1,
         "those with X times the likeliest's probability (0: all; default: the checkpoint's, else 0)"},
    [OPT_REPEAT_PENALTY] =
        {NULL, NULL, "--repeat-penalty", "X", NUMBER, TEXT, FIELD(repeat_penalty), 0.01, 100,
         "make the last 64 tokens less likely (1: off; default: the checkpoint's, else 1)"},
    [OPT_SEED] = {NULL, "-s", "--seed", "N", SEED, TEXT, FIELD(seed), 0, 0,
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
    [OPT_INFO] = {NULL, NULL, "--info", NULL, FLAG, INFO, 0, 0, 0,
                  "what the checkpoint is, and what a context costs"},
    [OPT_CHECK] = {NULL, NULL, "--check", NULL, FLAG, CHECK, 0, 0, 0,
                   "verify every checksum and scale in the checkpoint"},
    [OPT_BENCH] = {NULL, NULL, "--bench", NULL, FLAG, BENCH, 0, 0, 0,
                   "prefill and decode at growing context, beside the speed of memory"},
    [OPT_CSV] = {NULL, NULL, "--csv", NULL, FLAG, BENCH, 0, 0, 0, "--bench for machines"},
    [OPT_PROFILE] = {NULL, NULL, "--profile", NULL, FLAG, BENCH, 0, 0, 0,
                     "--bench with the time of each stage, on standard error"},

    [OPT_THREADS] = {"The machine", "-j", "--threads", "N", INTEGER, ALL, FIELD(threads), 1, 1024,
                     "threads (default: physical cores available to the process)"},
    [OPT_CACHE] =
        {NULL, "-k", "--cache", "TYPE", CACHE, READ | LOGITS | PERPLEXITY | BENCH, FIELD(cache), 0, 0,
         "the cache's number format: f32, bf16, q8, q6, q4; or full, full-bf16, full-q8: keys and "
         "values of every head instead of the latent, full in f32 (default: the session's, else q8)"},
    [OPT_QUIET] = {NULL, "-q", "--quiet", NULL, FLAG, ALL, 0, 0, 0, "errors alone on standard error"},
    [OPT_HELP] = {NULL, "-h", "--help", NULL, FLAG, ALL, 0, 0, 0, "this text"},
    [OPT_GENERATE] = {NULL, NULL, "--generate", "FORMAT", FORMAT, ALL, FIELD(format), 0, 0,
                      "this text as a man page, or completions for a shell: man, bash, zsh, fish"},
    [OPT_VERSION] = {NULL, NULL, "--version", NULL, FLAG, ALL, 0, 0, 0, "the version of this program"},
};

/* ---- which options go together -------------------------------------------------------------- */

/* The first of these options that is given decides. The modes of each option are in the table above. */
const ModeOption mode_table[] = {
    {OPT_BATCH, MODE_BATCH},       {OPT_CHOOSE, MODE_CHOOSE}, {OPT_PROMPTS, MODE_PROMPTS},
    {OPT_SAMPLES, MODE_SAMPLES},   {OPT_LOGITS, MODE_LOGITS}, {OPT_PERPLEXITY, MODE_PERPLEXITY},
    {OPT_TOKENIZE, MODE_TOKENIZE}, {OPT_INFO, MODE_INFO},     {OPT_CHECK, MODE_CHECK},
    {OPT_BENCH, MODE_BENCH},       {OPT_CHAT, MODE_CHAT},
};
const size_t mode_count = sizeof mode_table / sizeof *mode_table;

/* Rules that do not follow from the modes. */
const Rule rule_table[] = {
    {false, {OPT_PROMPT, OPT_FILE, OPT_IDS, OPT_PROMPTS}, 4, "there is one prompt, or one list of them"},
    {false, {OPT_SESSION, OPT_FROM}, 2, "one goes on from FILE and writes it, the other leaves it as it is"},
    {false, {OPT_CHAT, OPT_SPECIAL}, 2, "the chat template says where special tokens are"},
    {false, {OPT_CHAT, OPT_NO_BOS}, 2, "the chat template says where special tokens are"},
    {false, {OPT_PARALLEL, OPT_PROFILE}, 2, "stages are timed with one text"},
    {true, {OPT_SYSTEM, OPT_CHAT}, 2, "the chat template has a place for it"},
    {true, {OPT_THINK, OPT_CHAT, OPT_BATCH}, 3, "it is about conversations"},
};
const size_t rule_count = sizeof rule_table / sizeof *rule_table;
