/* options.h: the command line of coil-run. */
#ifndef COIL_OPTIONS_H
#define COIL_OPTIONS_H

#include <stdint.h>

enum { MAX_PAIRS = 256, EXIT_INPUT = 2, EXIT_MODEL = 4 };

/* NAME=VALUE, split at the first '='. */
typedef struct pair {
    char *name;
    const char *value;
} pair;

typedef struct pairs {
    int32_t count;
    pair items[MAX_PAIRS];
} pairs;

/* What is not given is NULL, or the default that --help names. */
typedef struct options {
    const char *command, *entry, *weights, *output, *state, *save_state;
    const char *prompt, *ids, *stop;
    int64_t threads, runs, tokens, top_k, seed;
    double temperature, top_p;
    pairs inputs, dims;
} options;

/* Say `coil-run: <sentence>` on stderr and end the program. */
_Noreturn void die(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Ends the program when something is wrong, or when help was asked for. */
options read_options(int argc, char **argv);

#endif
