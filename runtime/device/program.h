/* program.h: one run of coil-run: its options, the model, and the memory of an entry's tensors. */
#ifndef COIL_PROGRAM_H
#define COIL_PROGRAM_H

#include <stdbool.h>

#include "coil.h"
#include "options.h"

typedef struct program {
    options options;
    int32_t index;
    const coil_entry *entry;
    coil_model *model;
    coil_session *session;
    coil_state *state;   /* NULL: the entry has none, or they are given as arrays */
    const void **inputs; /* those in `state` are NULL */
    void **outputs;
} program;

/* All of these end the program with a sentence when something is wrong. */

double seconds(void);                     /* on a clock that never steps back */
void check(int code);                     /* of coil.h */
void *reserve(size_t count, size_t bytes); /* zeroed; never NULL */
void *pages(size_t bytes);                /* zeroed pages, resident when touched */

void choose_entry(program *p);
void open_session(program *p); /* the weights, and threads */
void bind(program *p);         /* inputs from files or of given dims; memory for outputs */
void save_state(const program *p, const char *path);

/* Whether an input (or output) is part of `state`. */
bool in_state(const program *p, int output, int32_t index);

/* Bytes and dims of a tensor of the bound entry; `dims` has NPY_MAX_RANK. */
size_t bytes_of(const program *p, int output, int32_t index, int64_t *dims);

int64_t dim_value(const pair *dim);

/* describe.c */
void describe(const program *p);

/* generate.c */
void generate(program *p);

#endif
