/* state.h: what a model remembers between calls, for the files that run, join and save it. */
#ifndef COIL_STATE_H
#define COIL_STATE_H

#include "internal.h"

struct coil_state {
    int32_t slots, now, undo; /* of the ring; the current one; how many before it are intact */
    uint64_t calls;           /* since the start of the sequence; 0: everything is zero */
    size_t bytes, kept;       /* of one slot; of the states that are kept once, which come before the ring */
    size_t *sizes, *offsets;  /* per state, in a slot or among the kept */
    size_t *wanted;           /* sizes that a call or a file asks for */
    unsigned char *memory;    /* on the device */
    device *device;
    moment used;              /* the last time that a run had the memory */
    int64_t clock;            /* the current one, if the host knows it */
    bool clock_known;
    size_t capacity;          /* of the caller's memory */
    bool given;               /* all of it lies in the caller's memory */
    const void **inputs;
    void **outputs;
    _Atomic bool busy;
};

static inline int32_t state_count(void) { return coil_plan.description.state_count; }

static inline bool is_kept(int32_t index) {
    const coil_entry *entry = coil_plan.description.entries;
    while (!entry->state_count) entry++;
    return entry->states[index].kept;
}

static inline unsigned char *slot(const coil_state *state, int32_t index) {
    return state->memory ? state->memory + state->kept + (size_t)index * state->bytes : NULL;
}

static inline size_t total_bytes(const coil_state *state) { return state->kept + (size_t)state->slots * state->bytes; }

/* State `index` as it is in a slot of the ring. */
static inline unsigned char *place_of(const coil_state *state, int32_t index, int32_t in) {
    return (is_kept(index) ? state->memory : slot(state, in)) + state->offsets[index];
}

/* state.c */
int coil_state_resize(coil_state *state, const size_t *sizes); /* what it held is lost, unless this fails */
int coil_state_measure(const coil_session *session, int32_t entry, coil_state *state); /* into `state->wanted` */
int coil_state_advance(coil_session *session, int32_t entry, coil_state *state, const void *const *inputs,
                       void *const *outputs);
void coil_state_next(coil_state *state); /* the current slot is the one just written */
int coil_state_check_entry(int32_t entry);

#endif
