/* state.c: what a model remembers between calls: a ring of buffers, one per call that can be undone. States that only
 * grow (caches of keys) are kept once: what a call that is undone added to them lies beyond what the others look at. */
#include "state.h"

#include <stdlib.h>
#include <string.h>

int coil_state_check_entry(int32_t entry) {
    if (entry >= 0 && entry < coil_plan.description.entry_count && coil_plan.description.entries[entry].state_count)
        return COIL_OK;
    return coil_fail(COIL_ARGUMENT, "entry %d does not exist or has no states", entry);
}

static int32_t most(bool outputs) {
    int32_t count = 1;
    for (int32_t i = 0; i < coil_plan.description.entry_count; i++) {
        const coil_entry *entry = &coil_plan.description.entries[i];
        int32_t here = outputs ? entry->output_count : entry->input_count;
        count = here > count ? here : count;
    }
    return count;
}

static int check_history(int32_t history) {
    if (!state_count()) return coil_fail(COIL_ARGUMENT, "the model has no states");
    if (history >= 1 && history <= 1 << 20) return COIL_OK;
    return coil_fail(COIL_ARGUMENT, "a history of %d calls is not possible, use 1 to 1048576", history);
}

/* A state without its memory; as in session.c, a region that only counts gives the size. */
static coil_state *place_state(region *room, int32_t history) {
    size_t count = (size_t)state_count();
    coil_state *state = coil_take(room, 1, sizeof *state), place = {.slots = history + 1};
    place.sizes = coil_take(room, count, sizeof *place.sizes);
    place.offsets = coil_take(room, count, sizeof *place.offsets);
    place.wanted = coil_take(room, count, sizeof *place.wanted);
    place.inputs = coil_take(room, (size_t)most(false), sizeof *place.inputs);
    place.outputs = coil_take(room, (size_t)most(true), sizeof *place.outputs);
    if (state) memcpy(state, &place, sizeof place);
    return state;
}

static int open_state(device *device, int32_t history, coil_state **state) {
    *state = NULL;
    int code = check_history(history);
    if (code) return code;
    region room = {0};
    place_state(&room, history);
    room = (region){malloc(room.used), 0};
    if (!room.memory) return coil_fail(COIL_MEMORY, "out of memory");
    *state = place_state(&room, history);
    (*state)->device = device;
    return COIL_OK;
}

int coil_state_open(const coil_model *model, int32_t history, coil_state **state) {
    if (!model || !state) return coil_fail(COIL_ARGUMENT, "coil_state_open needs a model and a place for the state");
    return open_state(model->device, history, state);
}

int coil_state_open_in(const coil_model *model, int32_t history, void *memory, uint64_t bytes, coil_state **state) {
    if (!model || !state || !memory || (uintptr_t)memory % ALIGNMENT)
        return coil_fail(COIL_ARGUMENT, "coil_state_open_in needs a model, memory aligned to %d bytes and a place for the "
                         "state", ALIGNMENT);
    *state = NULL;
    int code = coil_device_accepts_memory();
    if (!code) code = check_history(history);
    if (code) return code;
    region room = {0};
    place_state(&room, history);
    if (bytes < room.used)
        return coil_fail(COIL_MEMORY, "a state needs %zu bytes and its content, not %llu", room.used,
                         (unsigned long long)bytes);
    room = (region){memory, 0};
    coil_state *opened = place_state(&room, history);
    opened->given = true, opened->device = model->device;
    opened->memory = room.memory + room.used, opened->capacity = (size_t)bytes - room.used;
    *state = opened;
    return COIL_OK;
}

void coil_state_close(coil_state *state) {
    if (!state || state->given) return;
    (void)coil_moment_await(state->device, &state->used);
    coil_moment_close(state->device, &state->used);
    coil_device_free(state->device, state->memory, total_bytes(state));
    free(state);
}

uint64_t coil_state_memory(const coil_state *state) { return state ? total_bytes(state) : 0; }

int coil_state_reset(coil_state *state) {
    if (!state) return coil_fail(COIL_ARGUMENT, "the state is NULL");
    int code = coil_moment_await(state->device, &state->used);
    if (!code) code = coil_device_clear(state->device, slot(state, state->now), state->bytes);
    if (!code) code = coil_device_clear(state->device, state->memory, state->kept);
    if (!code) state->undo = 0, state->calls = 0, state->clock_known = false;
    return code;
}

int coil_state_rewind(coil_state *state, int32_t calls) {
    if (!state) return coil_fail(COIL_ARGUMENT, "the state is NULL");
    if (calls < 0 || calls > state->undo)
        return coil_fail(COIL_ARGUMENT, "cannot go back %d calls: the last %d are kept", calls, state->undo);
    state->now = (state->now + state->slots - calls) % state->slots;
    state->undo -= calls, state->calls -= (uint64_t)calls, state->clock_known = false;
    return COIL_OK;
}

/* Bytes of a slot of the ring, of what is kept once, and of all slots and the kept together. */
static int add_up(const size_t *sizes, int32_t slots, size_t ends[2], size_t *total) {
    bool overflow = false;
    ends[0] = ends[1] = 0;
    for (int32_t i = 0; i < state_count(); i++)
        overflow |= __builtin_add_overflow(ends[is_kept(i)], round_up(sizes[i], ALIGNMENT), &ends[is_kept(i)]);
    overflow |= __builtin_mul_overflow(ends[0], (size_t)slots, total);
    overflow |= __builtin_add_overflow(*total, ends[1], total);
    return overflow ? coil_fail(COIL_MEMORY, "the states overflow the address space") : COIL_OK;
}

/* `bytes` of zeros, in place of what the state had. */
static int exchange(coil_state *state, size_t bytes) {
    if (state->given && bytes > state->capacity)
        return coil_fail(COIL_MEMORY, "the states take %zu bytes, their memory has room for %zu", bytes, state->capacity);
    if (state->given) return coil_device_clear(state->device, state->memory, bytes);
    void *memory; /* also for nothing: states of no elements have an address too */
    int code = coil_moment_await(state->device, &state->used);
    if (!code) code = coil_device_allocate(state->device, bytes, true, "states", &memory);
    if (code) return code;
    coil_device_free(state->device, state->memory, total_bytes(state));
    state->memory = memory;
    return COIL_OK;
}

/* Give the state room for `sizes`; what it held is lost, unless this fails. */
int coil_state_resize(coil_state *state, const size_t *sizes) {
    size_t ends[2], total;
    int code = add_up(sizes, state->slots, ends, &total);
    if (!code) code = exchange(state, total);
    if (code) return code;
    state->bytes = ends[0], state->kept = ends[1];
    state->now = 0, state->undo = 0, state->calls = 0, state->clock_known = false;
    ends[0] = ends[1] = 0;
    for (int32_t i = 0; i < state_count(); i++) {
        state->sizes[i] = sizes[i], state->offsets[i] = ends[is_kept(i)];
        ends[is_kept(i)] += round_up(sizes[i], ALIGNMENT);
    }
    return COIL_OK;
}

int coil_state_fork(const coil_state *state, coil_state **copy) {
    if (!state || !copy) return coil_fail(COIL_ARGUMENT, "coil_state_fork needs a state and a place for the copy");
    device *device = state->device;
    int code = open_state(device, state->slots - 1, copy);
    if (!code) code = coil_state_resize(*copy, state->sizes);
    if (!code) code = coil_moment_await(device, &state->used);
    if (!code) code = coil_device_copy(device, (*copy)->memory, state->memory, state->kept);
    if (!code) code = coil_device_copy(device, slot(*copy, 0), slot(state, state->now), state->bytes);
    if (!code) return (*copy)->calls = state->calls, COIL_OK;
    coil_state_close(*copy);
    *copy = NULL;
    return code;
}

/* Running. */

static size_t element_bytes(const char *dtype) {
    while (*dtype && (*dtype < '0' || *dtype > '9')) dtype++;
    return *dtype ? (size_t)atoi(dtype) / 8 : 1; /* "bool" */
}

/* What the states of an entry need, whose dims are among `quantities`. */
static int size_states(int32_t entry, const int64_t *quantities, size_t *sizes) {
    const coil_entry *info = &coil_plan.description.entries[entry];
    for (int32_t i = 0; i < state_count(); i++) {
        int32_t input = info->states[i].input;
        sizes[i] = element_bytes(info->inputs[input].dtype);
        for (int32_t axis = 0; axis < info->inputs[input].rank; axis++)
            if (__builtin_mul_overflow(sizes[i], (size_t)quantities[coil_plan.entries[entry].input_dims[input][axis]],
                                       &sizes[i]))
                return coil_fail(COIL_MEMORY, "state '%s' overflows the address space", info->inputs[input].name);
    }
    return COIL_OK;
}

/* The same of a bound entry, into `state->wanted`. */
int coil_state_measure(const coil_session *session, int32_t entry, coil_state *state) {
    const int64_t *quantities = coil_session_quantities(session, entry);
    if (quantities) return size_states(entry, quantities, state->wanted);
    return coil_fail(COIL_UNBOUND, "entry '%s' is not bound", coil_plan.description.entries[entry].name);
}

int coil_state_bytes(int32_t entry, const int64_t *symbols, int32_t history, uint64_t *bytes) {
    if (!bytes) return coil_fail(COIL_ARGUMENT, "coil_state_bytes needs a place for the size");
    int code = coil_check_plan(); /* there may be no model yet */
    if (!code) code = check_history(history);
    if (!code) code = coil_state_check_entry(entry);
    if (!code && coil_plan.entries[entry].quantity_count > MOST_ON_STACK) code = coil_refuse_stack(entry);
    if (code) return code;
    int64_t quantities[coil_plan.entries[entry].quantity_count + 1]; /* there is no other memory yet */
    size_t sizes[state_count()], ends[2], total;
    code = coil_evaluate(entry, symbols, quantities);
    if (!code) code = size_states(entry, quantities, sizes);
    if (!code) code = add_up(sizes, history + 1, ends, &total);
    if (code) return code;
    region room = {0};
    place_state(&room, history);
    *bytes = room.used + total;
    return COIL_OK;
}

/* The first call after a reset sets the sizes; later ones must agree. */
static int fit(const coil_session *session, int32_t entry, coil_state *state) {
    int code = coil_state_measure(session, entry, state);
    if (code) return code;
    if (state->memory && !memcmp(state->wanted, state->sizes, (size_t)state_count() * sizeof *state->sizes)) return COIL_OK;
    if (!state->calls) return coil_state_resize(state, state->wanted);
    return coil_fail(COIL_ARGUMENT, "entry '%s' is bound to other dims than the state was made for: reset the state",
                     coil_plan.description.entries[entry].name);
}

static void place(coil_state *state, const coil_entry *entry, const void *const *inputs, void *const *outputs) {
    int32_t next = (state->now + 1) % state->slots;
    for (int32_t i = 0; i < entry->input_count; i++) state->inputs[i] = inputs ? inputs[i] : NULL;
    for (int32_t i = 0; i < entry->output_count; i++) state->outputs[i] = outputs ? outputs[i] : NULL;
    for (int32_t i = 0; i < entry->state_count; i++) {
        state->inputs[entry->states[i].input] = place_of(state, i, state->now);
        state->outputs[entry->states[i].output] = place_of(state, i, next);
    }
}

/* What a state holds now. */
static int read_state(const coil_state *state, int32_t index, void *host, size_t bytes) {
    int code = coil_moment_await(state->device, &state->used);
    return code ? code : coil_device_read(state->device, host, place_of(state, index, state->now), bytes);
}

/* Whether what is kept has room for another call. */
static int check_room(const coil_session *session, int32_t entry, const coil_state *state) {
    plan_room room = coil_plan.entries[entry].room;
    if (room.clock < 0) return COIL_OK;
    const int64_t *quantities = coil_session_quantities(session, entry);
    int64_t at, elements = quantities[room.elements], capacity = quantities[room.capacity];
    int code = state->clock_known ? COIL_OK : read_state(state, room.clock, &at, sizeof at);
    if (code) return code;
    if (state->clock_known) at = state->clock;
    if (at >= 0 && elements <= capacity && at <= capacity - elements) return COIL_OK;
    return coil_fail(COIL_ARGUMENT,
                     "the sequence has %lld elements and would get %lld more, the model has room for %lld: start anew, "
                     "or compile it with a larger context",
                     (long long)at, (long long)elements, (long long)capacity);
}

/* The current slot is the one just written. */
void coil_state_next(coil_state *state) {
    state->now = (state->now + 1) % state->slots;
    state->undo += state->undo < state->slots - 1;
    state->calls++, state->clock_known = false;
}

int coil_state_advance(coil_session *session, int32_t entry, coil_state *state, const void *const *inputs,
                   void *const *outputs) {
    int code = fit(session, entry, state);
    if (!code) code = check_room(session, entry, state);
    if (code) return code;
    place(state, &coil_plan.description.entries[entry], inputs, outputs);
    if (state->undo == state->slots - 1) state->undo--; /* the oldest one is written over, even by a run that fails */
    code = coil_queue_after(coil_session_queue(session), &state->used);
    if (!code) code = coil_session_run_on(session, entry, state->inputs, state->outputs);
    if (!code) code = coil_queue_mark(coil_session_queue(session), &state->used);
    if (code) return code;
    coil_state_next(state);
    state->clock_known = coil_session_seen(session, entry, &state->clock);
    return COIL_OK;
}

int coil_session_advance(coil_session *session, int32_t entry, coil_state *state, const void *const *inputs,
                         void *const *outputs) {
    if (!session || !state) return coil_fail(COIL_ARGUMENT, "coil_session_advance needs a session and a state");
    if (coil_state_check_entry(entry)) return COIL_ARGUMENT;
    if (atomic_exchange(&state->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the state");
    int code = coil_state_advance(session, entry, state, inputs, outputs);
    atomic_store(&state->busy, false);
    return code;
}
