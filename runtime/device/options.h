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

typedef struct options {
    const char *command, *entry, *weights, *output;
    int32_t threads, runs;
    int32_t input_count, dim_count;
    pair inputs[MAX_PAIRS], dims[MAX_PAIRS];
} options;

/* Say `coil-run: <sentence>` on stderr and end the program. */
_Noreturn void die(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Ends the program when something is wrong, or when help was asked for. */
options read_options(int argc, char **argv);

#endif
