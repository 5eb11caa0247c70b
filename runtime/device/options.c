/* options.c: see options.h. */
#define _GNU_SOURCE
#include "options.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char USAGE[] =
    "usage: coil-run describe [--dim NAME=NUMBER ...]\n"
    "       coil-run run --input NAME=FILE.npy ... [--output FOLDER] [--state FILE] [--save-state FILE]\n"
    "       coil-run bench [--input NAME=FILE.npy ...] [--dim NAME=NUMBER ...] [--runs NUMBER]\n"
    "       coil-run generate --prompt TEXT [--stop TEXT] | --ids NUMBER,...  [--tokens NUMBER] [--seed NUMBER]\n"
    "                         [--temperature NUMBER] [--top-k NUMBER] [--top-p NUMBER]\n"
    "every command takes --threads NUMBER and --weights FILE, all but generate --entry NAME. They print JSON; generate\n"
    "prints text, and its JSON on stderr. The weights are weights.safetensors beside this program, or inside it; the entry is the first one; the\n"
    "threads are the cores. A text has 128 tokens, seed 0, temperature 1; temperature 0 takes the likeliest token.\n"
    "Exit codes: 0 fine; 2 bad input; 4 damaged weights, another machine's code, or no memory.\n";

typedef enum kind { TEXT, NUMBER, REAL, PAIR } kind;

enum { DESCRIBE = 1, RUN = 2, BENCH = 4, GENERATE = 8, ALL = 15 }; /* which commands take an option */

static const struct {
    const char *name;
    int bit;
} COMMANDS[] = {{"describe", DESCRIBE}, {"run", RUN}, {"bench", BENCH}, {"generate", GENERATE}};

static const struct option {
    const char *name;
    int commands;
    kind kind;
    size_t offset;
    int64_t low, high;
} OPTIONS[] = {
    {"--input", RUN | BENCH, PAIR, offsetof(options, inputs), 0, 0},
    {"--dim", DESCRIBE | BENCH, PAIR, offsetof(options, dims), 0, 0},
    {"--entry", DESCRIBE | RUN | BENCH, TEXT, offsetof(options, entry), 0, 0},
    {"--weights", ALL, TEXT, offsetof(options, weights), 0, 0},
    {"--output", RUN, TEXT, offsetof(options, output), 0, 0},
    {"--state", RUN, TEXT, offsetof(options, state), 0, 0},
    {"--save-state", RUN, TEXT, offsetof(options, save_state), 0, 0},
    {"--prompt", GENERATE, TEXT, offsetof(options, prompt), 0, 0},
    {"--ids", GENERATE, TEXT, offsetof(options, ids), 0, 0},
    {"--stop", GENERATE, TEXT, offsetof(options, stop), 0, 0},
    {"--threads", ALL, NUMBER, offsetof(options, threads), 1, 1024},
    {"--runs", BENCH, NUMBER, offsetof(options, runs), 1, 1000000},
    {"--tokens", GENERATE, NUMBER, offsetof(options, tokens), 1, INT32_MAX},
    {"--top-k", GENERATE, NUMBER, offsetof(options, top_k), 0, INT32_MAX},
    {"--seed", GENERATE, NUMBER, offsetof(options, seed), 0, INT64_MAX},
    {"--temperature", GENERATE, REAL, offsetof(options, temperature), 0, 1000000},
    {"--top-p", GENERATE, REAL, offsetof(options, top_p), 0, 1},
};

void die(int code, const char *format, ...) {
    va_list values;
    va_start(values, format);
    fputs("coil-run: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    exit(code);
}

static int64_t number_of(const char *option, const char *text, int64_t low, int64_t high) {
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno || *end || end == text || number < low || number > high)
        die(EXIT_INPUT, "%s takes a number from %lld to %lld, not '%s'", option, (long long)low, (long long)high, text);
    return number;
}

static double real_of(const char *option, const char *text, int64_t low, int64_t high) {
    char *end;
    double number = strtod(text, &end);
    if (*end || end == text || !(number >= (double)low && number <= (double)high))
        die(EXIT_INPUT, "%s takes a number from %lld to %lld, not '%s'", option, (long long)low, (long long)high, text);
    return number;
}

static void add_pair(pairs *pairs, const char *option, char *text) {
    char *value = strchr(text, '=');
    if (!value || value == text) die(EXIT_INPUT, "%s takes NAME=VALUE, not '%s'", option, text);
    if (pairs->count == MAX_PAIRS) die(EXIT_INPUT, "%s can be given %d times", option, MAX_PAIRS);
    *value++ = 0;
    for (int32_t i = 0; i < pairs->count; i++)
        if (!strcmp(pairs->items[i].name, text)) die(EXIT_INPUT, "%s %s is given twice", option, text);
    pairs->items[pairs->count++] = (pair){text, value};
}

static int find_command(const char *name) {
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++)
        if (!strcmp(COMMANDS[i].name, name)) return COMMANDS[i].bit;
    die(EXIT_INPUT, "there is no command '%s'; there are describe, run, generate and bench", name);
}

static const struct option *find_option(const char *name) {
    for (size_t i = 0; i < sizeof OPTIONS / sizeof *OPTIONS; i++)
        if (!strcmp(OPTIONS[i].name, name)) return &OPTIONS[i];
    die(EXIT_INPUT, "there is no option '%s'; coil-run --help lists them", name);
}

static void read_option(options *found, const struct option *option, char *value) {
    void *place = (char *)found + option->offset;
    if (option->kind == PAIR)
        add_pair(place, option->name, value);
    else if (option->kind == TEXT)
        *(const char **)place = value;
    else if (option->kind == NUMBER)
        *(int64_t *)place = number_of(option->name, value, option->low, option->high);
    else
        *(double *)place = real_of(option->name, value, option->low, option->high);
}

static int32_t cores(void) {
    cpu_set_t allowed;
    return sched_getaffinity(0, sizeof allowed, &allowed) ? 1 : CPU_COUNT(&allowed);
}

options read_options(int argc, char **argv) {
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        fputs(USAGE, argc < 2 ? stderr : stdout);
        exit(argc < 2 ? EXIT_INPUT : 0);
    }
    options found = {.command = argv[1], .threads = cores(), .runs = 10, .tokens = 128, .temperature = 1, .top_p = 1};
    int command = find_command(argv[1]);
    for (int i = 2; i < argc; i += 2) {
        const struct option *option = find_option(argv[i]);
        if (!(option->commands & command)) die(EXIT_INPUT, "%s takes no %s; coil-run --help says who does", argv[1], argv[i]);
        if (i + 1 == argc) die(EXIT_INPUT, "%s needs a value", argv[i]);
        read_option(&found, option, argv[i + 1]);
    }
    return found;
}
