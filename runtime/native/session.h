/* session.h: what session.c prepares and run.c uses. */
#ifndef COIL_SESSION_H
#define COIL_SESSION_H

#include "internal.h"

/* One argument that changes with every run: a pointer of the caller. */
typedef struct patch {
    int32_t arg, operand;
} patch;

typedef struct binding {
    bool bound;
    int64_t *symbols, *wanted, *quantities;
    size_t *offsets;  /* of each slot in the arena */
    kernel_arg *args; /* of all calls, ready to use */
    patch *patches;
    int32_t patch_count;
    job job;              /* its operands: inputs, then outputs */
    const void **results; /* room for the trace callback */
    size_t *result_bytes;
} binding;

struct coil_session {
    const coil_model *model;
    queue *queue;
    pool pool;
    binding *bindings; /* one per entry */
    unsigned char *arena;
    size_t arena_bytes;
    bool given; /* all of it lies in the caller's memory: nothing grows and nothing is released */
    _Atomic bool busy;
};

static inline const coil_entry *entry_of(int32_t index) { return &coil_plan.description.entries[index]; }

int coil_check_entry(const coil_session *session, int32_t entry);

#endif
