/* options.c: see options.h. */
#define _GNU_SOURCE
#include "options.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char USAGE[] =
    "usage: coil-run describe [--dim NAME=NUMBER ...]\n"
    "       coil-run run --input NAME=FILE.npy ... [--output FOLDER]\n"
    "       coil-run bench [--input NAME=FILE.npy ...] [--dim NAME=NUMBER ...] [--runs NUMBER]\n"
    "every command takes --entry NAME, --threads NUMBER and --weights FILE and prints JSON.\n"
    "The weights are weights.safetensors beside this program, the entry is the first one, the threads are the cores.\n"
    "Exit codes: 0 fine; 2 bad input; 4 damaged weights, another machine's code, or no memory.\n";

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

static void add_pair(pair *pairs, int32_t *count, const char *option, char *text) {
    char *value = strchr(text, '=');
    if (!value || value == text) die(EXIT_INPUT, "%s takes NAME=VALUE, not '%s'", option, text);
    if (*count == MAX_PAIRS) die(EXIT_INPUT, "%s can be given %d times", option, MAX_PAIRS);
    *value++ = 0;
    for (int32_t i = 0; i < *count; i++)
        if (!strcmp(pairs[i].name, text)) die(EXIT_INPUT, "%s %s is given twice", option, text);
    pairs[(*count)++] = (pair){text, value};
}

static void read_option(options *found, const char *option, char *value) {
    if (!strcmp(option, "--input"))
        add_pair(found->inputs, &found->input_count, option, value);
    else if (!strcmp(option, "--dim"))
        add_pair(found->dims, &found->dim_count, option, value);
    else if (!strcmp(option, "--entry"))
        found->entry = value;
    else if (!strcmp(option, "--weights"))
        found->weights = value;
    else if (!strcmp(option, "--output"))
        found->output = value;
    else if (!strcmp(option, "--threads"))
        found->threads = (int32_t)number_of(option, value, 1, 1024);
    else
        found->runs = (int32_t)number_of(option, value, 1, 1000000);
}

static bool known(const char *option) {
    static const char *const NAMES[] = {"--input", "--dim", "--entry", "--weights", "--output", "--threads", "--runs"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (!strcmp(option, NAMES[i])) return true;
    return false;
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
    options found = {.command = argv[1], .threads = cores(), .runs = 10};
    for (int i = 2; i < argc; i += 2) {
        if (!known(argv[i])) die(EXIT_INPUT, "there is no option '%s'; coil-run --help lists them", argv[i]);
        if (i + 1 == argc) die(EXIT_INPUT, "%s needs a value", argv[i]);
        read_option(&found, argv[i], argv[i + 1]);
    }
    return found;
}
