/* state.c: what a model remembers between calls: a ring of buffers, one per call that can be undone. States that only
 * grow (caches of keys) are kept once: what a call that is undone added to them lies beyond what the others look at. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum { STATE_VERSION = 1 };

struct coil_state {
    int32_t slots, now, undo; /* of the ring; the current one; how many before it are intact */
    uint64_t calls;           /* since the start of the sequence; 0: everything is zero */
    size_t bytes, kept;       /* of one slot; of the states that are kept once, which come before the ring */
    size_t *sizes, *offsets;  /* per state, in a slot or among the kept */
    size_t *wanted;           /* sizes that a call or a file asks for */
    unsigned char *memory;
    size_t capacity; /* of the caller's memory */
    bool given;      /* all of it lies in the caller's memory */
    const void **inputs;
    void **outputs;
    _Atomic bool busy;
};

/* A saved state: this, the size of every state (uint64_t), and one slot. */
typedef struct saved {
    char magic[8];
    uint32_t version, count;
    char identity[64];
    uint64_t calls, bytes, checksum; /* the checksum is that of the file with this field 0 */
} saved;

static const char magic[8] = {'c', 'o', 'i', 'l', 's', 't', 'a', 't'};

static int32_t state_count(void) { return coil_plan.description.state_count; }

static bool is_kept(int32_t index) {
    const coil_entry *entry = coil_plan.description.entries;
    while (!entry->state_count) entry++;
    return entry->states[index].kept;
}

static int check_entry(int32_t entry) {
    if (entry >= 0 && entry < coil_plan.description.entry_count && coil_plan.description.entries[entry].state_count)
        return COIL_OK;
    return coil_fail(COIL_ARGUMENT, "entry %d does not exist or has no states", entry);
}

static unsigned char *slot(const coil_state *state, int32_t index) {
    return state->memory + state->kept + (size_t)index * state->bytes;
}

static size_t total_bytes(const coil_state *state) { return state->kept + (size_t)state->slots * state->bytes; }

/* State `index` as it is in a slot of the ring. */
static unsigned char *place_of(const coil_state *state, int32_t index, int32_t in) {
    return (is_kept(index) ? state->memory : slot(state, in)) + state->offsets[index];
}

/* FNV-1a, 64 bits. */
static uint64_t checksum(uint64_t hash, const void *memory, size_t bytes) {
    const unsigned char *at = memory;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static const uint64_t checksum_start = UINT64_C(0xcbf29ce484222325);

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

int coil_state_open(int32_t history, coil_state **state) {
    if (!state) return coil_fail(COIL_ARGUMENT, "coil_state_open needs a place for the state");
    *state = NULL;
    int code = check_history(history);
    if (code) return code;
    region room = {0};
    place_state(&room, history);
    room = (region){malloc(room.used), 0};
    *state = room.memory ? place_state(&room, history) : NULL;
    return *state ? COIL_OK : coil_fail(COIL_MEMORY, "out of memory");
}

int coil_state_open_in(int32_t history, void *memory, uint64_t bytes, coil_state **state) {
    if (!state || !memory || (uintptr_t)memory % ALIGNMENT)
        return coil_fail(COIL_ARGUMENT, "coil_state_open_in needs memory aligned to %d bytes and a place for the state",
                         ALIGNMENT);
    *state = NULL;
    int code = check_history(history);
    if (code) return code;
    region room = {0};
    place_state(&room, history);
    if (bytes < room.used)
        return coil_fail(COIL_MEMORY, "a state needs %zu bytes and its content, not %llu", room.used,
                         (unsigned long long)bytes);
    room = (region){memory, 0};
    coil_state *opened = place_state(&room, history);
    opened->given = true;
    opened->memory = room.memory + room.used, opened->capacity = (size_t)bytes - room.used;
    *state = opened;
    return COIL_OK;
}

void coil_state_close(coil_state *state) {
    if (!state || state->given) return;
    coil_unmap(state->memory, total_bytes(state));
    free(state);
}

uint64_t coil_state_memory(const coil_state *state) { return state ? total_bytes(state) : 0; }

int coil_state_reset(coil_state *state) {
    if (!state) return coil_fail(COIL_ARGUMENT, "the state is NULL");
    if (state->bytes) memset(slot(state, state->now), 0, state->bytes);
    if (state->kept) memset(state->memory, 0, state->kept);
    state->undo = 0, state->calls = 0;
    return COIL_OK;
}

int coil_state_rewind(coil_state *state, int32_t calls) {
    if (!state) return coil_fail(COIL_ARGUMENT, "the state is NULL");
    if (calls < 0 || calls > state->undo)
        return coil_fail(COIL_ARGUMENT, "cannot go back %d calls: the last %d are kept", calls, state->undo);
    state->now = (state->now + state->slots - calls) % state->slots;
    state->undo -= calls, state->calls -= (uint64_t)calls;
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
    if (state->given) return memset(state->memory, 0, bytes), COIL_OK;
    unsigned char *memory = coil_map(bytes); /* also for nothing: states of no elements have an address too */
    if (!memory) return coil_fail(COIL_MEMORY, "could not reserve %zu bytes for states", bytes);
    coil_unmap(state->memory, total_bytes(state));
    state->memory = memory;
    return COIL_OK;
}

/* Give the state room for `sizes`; what it held is lost, unless this fails. */
static int resize(coil_state *state, const size_t *sizes) {
    size_t ends[2], total;
    int code = add_up(sizes, state->slots, ends, &total);
    if (!code) code = exchange(state, total);
    if (code) return code;
    state->bytes = ends[0], state->kept = ends[1];
    state->now = 0, state->undo = 0, state->calls = 0;
    ends[0] = ends[1] = 0;
    for (int32_t i = 0; i < state_count(); i++) {
        state->sizes[i] = sizes[i], state->offsets[i] = ends[is_kept(i)];
        ends[is_kept(i)] += round_up(sizes[i], ALIGNMENT);
    }
    return COIL_OK;
}

int coil_state_fork(const coil_state *state, coil_state **copy) {
    if (!state || !copy) return coil_fail(COIL_ARGUMENT, "coil_state_fork needs a state and a place for the copy");
    int code = coil_state_open(state->slots - 1, copy);
    if (!code) code = resize(*copy, state->sizes);
    if (code) {
        coil_state_close(*copy);
        *copy = NULL;
        return code;
    }
    if (state->kept) memcpy((*copy)->memory, state->memory, state->kept);
    if (state->bytes) memcpy(slot(*copy, 0), slot(state, state->now), state->bytes);
    (*copy)->calls = state->calls;
    return COIL_OK;
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
static int measure(const coil_session *session, int32_t entry, coil_state *state) {
    const int64_t *quantities = coil_session_quantities(session, entry);
    if (quantities) return size_states(entry, quantities, state->wanted);
    return coil_fail(COIL_UNBOUND, "entry '%s' is not bound", coil_plan.description.entries[entry].name);
}

int coil_state_bytes(int32_t entry, const int64_t *symbols, int32_t history, uint64_t *bytes) {
    if (!bytes) return coil_fail(COIL_ARGUMENT, "coil_state_bytes needs a place for the size");
    int code = coil_check_plan(); /* there may be no model yet */
    if (!code) code = check_history(history);
    if (!code) code = check_entry(entry);
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
    int code = measure(session, entry, state);
    if (code) return code;
    if (state->memory && !memcmp(state->wanted, state->sizes, (size_t)state_count() * sizeof *state->sizes)) return COIL_OK;
    if (!state->calls) return resize(state, state->wanted);
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

/* Whether what is kept has room for another call. */
static int check_room(const coil_session *session, int32_t entry, const coil_state *state) {
    plan_room room = coil_plan.entries[entry].room;
    if (room.clock < 0) return COIL_OK;
    const int64_t *quantities = coil_session_quantities(session, entry);
    int64_t at, elements = quantities[room.elements], capacity = quantities[room.capacity];
    memcpy(&at, place_of(state, room.clock, state->now), sizeof at);
    if (at >= 0 && elements <= capacity && at <= capacity - elements) return COIL_OK;
    return coil_fail(COIL_ARGUMENT,
                     "the sequence has %lld elements and would get %lld more, the model has room for %lld: start anew, "
                     "or compile it with a larger context",
                     (long long)at, (long long)elements, (long long)capacity);
}

/* The current slot is the one just written. */
static void next_call(coil_state *state) {
    state->now = (state->now + 1) % state->slots;
    state->undo += state->undo < state->slots - 1;
    state->calls++;
}

static int advance(coil_session *session, int32_t entry, coil_state *state, const void *const *inputs,
                   void *const *outputs) {
    int code = fit(session, entry, state);
    if (!code) code = check_room(session, entry, state);
    if (code) return code;
    place(state, &coil_plan.description.entries[entry], inputs, outputs);
    if (state->undo == state->slots - 1) state->undo--; /* the oldest one is written over, even by a run that fails */
    if ((code = coil_session_run(session, entry, state->inputs, state->outputs))) return code;
    next_call(state);
    return COIL_OK;
}

int coil_session_advance(coil_session *session, int32_t entry, coil_state *state, const void *const *inputs,
                         void *const *outputs) {
    if (!session || !state) return coil_fail(COIL_ARGUMENT, "coil_session_advance needs a session and a state");
    if (check_entry(entry)) return COIL_ARGUMENT;
    if (atomic_exchange(&state->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the state");
    int code = advance(session, entry, state, inputs, outputs);
    atomic_store(&state->busy, false);
    return code;
}

/* Several sequences at once. */

static const coil_link *link_of(int32_t entry, int32_t index) {
    return &coil_plan.description.entries[entry].states[index];
}

/* Whether state `index` of the whole can be put together from that of the parts, and taken apart again. */
static int check_parts(int32_t entry, coil_state *const *parts, int32_t count, const coil_state *whole, int32_t index) {
    const char *name = coil_plan.description.entries[entry].inputs[link_of(entry, index)->input].name;
    int32_t rows = link_of(entry, index)->rows;
    size_t sum = 0;
    if (rows < 0) return coil_fail(COIL_ARGUMENT, "state '%s' has no row per sequence: run the sequences one by one", name);
    for (int32_t i = 0; i < count; i++) sum += rows ? parts[i]->sizes[index] : parts[0]->sizes[index];
    if (rows ? sum != whole->wanted[index] : parts[0]->sizes[index] != whole->wanted[index])
        return coil_fail(COIL_ARGUMENT, "entry '%s' is bound to other dims than the states have together",
                         coil_plan.description.entries[entry].name);
    for (int32_t i = 1; i < count && !rows; i++)
        if (memcmp(place_of(parts[0], index, parts[0]->now), place_of(parts[i], index, parts[i]->now),
                   parts[0]->sizes[index]))
            return coil_fail(COIL_ARGUMENT, "the sequences differ in '%s', which is one for all rows: run them one by one",
                             name);
    return COIL_OK;
}

/* From the parts into the whole, or back. */
static void copy_rows(int32_t entry, coil_state *const *parts, int32_t count, coil_state *whole, bool back) {
    for (int32_t index = 0; index < state_count(); index++) {
        unsigned char *row = place_of(whole, index, whole->now);
        for (int32_t i = 0; i < count; i++) {
            size_t bytes = parts[i]->sizes[index];
            unsigned char *part = place_of(parts[i], index, parts[i]->now);
            if (back || i == 0 || link_of(entry, index)->rows) memcpy(back ? part : row, back ? row : part, bytes);
            if (link_of(entry, index)->rows) row += bytes;
        }
    }
}

static int join(const coil_session *session, int32_t entry, coil_state *const *parts, int32_t count, coil_state *whole) {
    int code = measure(session, entry, whole);
    for (int32_t index = 0; index < state_count() && !code; index++)
        code = check_parts(entry, parts, count, whole, index);
    if (!code && (!whole->memory || memcmp(whole->wanted, whole->sizes, (size_t)state_count() * sizeof *whole->sizes)))
        code = resize(whole, whole->wanted);
    if (!code) copy_rows(entry, parts, count, whole, false);
    return code;
}

static int advance_all(coil_session *session, int32_t entry, coil_state *const *states, int32_t count,
                       coil_state *batch, const void *const *inputs, void *const *outputs) {
    for (int32_t i = 0; i < count; i++)
        if (!states[i]->calls) return coil_fail(COIL_ARGUMENT, "state %d is at the start of its sequence: run it alone first", i);
    int code = join(session, entry, states, count, batch);
    if (!code) code = advance(session, entry, batch, inputs, outputs);
    if (code) return code;
    for (int32_t i = 0; i < count; i++) next_call(states[i]);
    copy_rows(entry, states, count, batch, true);
    return COIL_OK;
}

int coil_session_advance_all(coil_session *session, int32_t entry, coil_state *const *states, int32_t count,
                             coil_state *batch, const void *const *inputs, void *const *outputs) {
    if (!session || !states || !batch || count < 1)
        return coil_fail(COIL_ARGUMENT, "coil_session_advance_all needs a session, states and a batch");
    if (check_entry(entry)) return COIL_ARGUMENT;
    if (atomic_exchange(&batch->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the state");
    int32_t taken = 0;
    while (taken < count && states[taken] && !atomic_exchange(&states[taken]->busy, true)) taken++;
    int code = taken == count ? advance_all(session, entry, states, count, batch, inputs, outputs)
                              : coil_fail(COIL_BUSY, "state %d is NULL, in use, or given twice", taken);
    while (taken > 0) atomic_store(&states[--taken]->busy, false);
    atomic_store(&batch->busy, false);
    return code;
}

/* Saving. */

static uint64_t digest(const saved *header, const unsigned char *rest, size_t bytes) {
    saved plain = *header;
    plain.checksum = 0;
    return checksum(checksum(checksum_start, &plain, sizeof plain), rest, bytes);
}

static size_t table_bytes(void) { return (size_t)state_count() * sizeof(uint64_t); }

int coil_state_save(const coil_state *state, void *memory, uint64_t *bytes) {
    if (!state || !bytes) return coil_fail(COIL_ARGUMENT, "coil_state_save needs a state and a place for the size");
    uint64_t room = *bytes;
    size_t held = state->kept + state->bytes;
    *bytes = sizeof(saved) + table_bytes() + held;
    if (!memory) return COIL_OK;
    if (room < *bytes)
        return coil_fail(COIL_ARGUMENT, "the state needs %llu bytes, there is room for %llu",
                         (unsigned long long)*bytes, (unsigned long long)room);
    saved header = {.version = STATE_VERSION, .count = (uint32_t)state_count(), .calls = state->calls};
    header.bytes = held;
    memcpy(header.magic, magic, sizeof magic);
    memcpy(header.identity, coil_plan.description.identity, sizeof header.identity);
    unsigned char *rest = (unsigned char *)memory + sizeof header;
    for (int32_t i = 0; i < state_count(); i++) {
        uint64_t size = state->sizes[i];
        memcpy(rest + (size_t)i * sizeof size, &size, sizeof size);
    }
    if (state->kept) memcpy(rest + table_bytes(), state->memory, state->kept);
    if (state->bytes) memcpy(rest + table_bytes() + state->kept, slot(state, state->now), state->bytes);
    header.checksum = digest(&header, rest, table_bytes() + held);
    memcpy(memory, &header, sizeof header);
    return COIL_OK;
}

static int check_saved(const saved *header, const unsigned char *rest, uint64_t bytes) {
    if (bytes < sizeof header->magic || memcmp(header->magic, magic, sizeof magic))
        return coil_fail(COIL_STATE, "it is no saved state");
    if (bytes >= 12 && (header->version < 1 || header->version > STATE_VERSION))
        return coil_fail(COIL_STATE, "it has version %u, this model reads versions 1 to %d", header->version,
                         STATE_VERSION);
    if (bytes < sizeof *header) return coil_fail(COIL_STATE, "it is cut off");
    if (header->version != STATE_VERSION) return coil_fail(COIL_STATE, "its version does not exist");
    if (memcmp(header->identity, coil_plan.description.identity, sizeof header->identity))
        return coil_fail(COIL_STATE, "it is the state of another model");
    if (header->count != (uint32_t)state_count() || bytes - sizeof *header < table_bytes() ||
        bytes - sizeof *header - table_bytes() != header->bytes)
        return coil_fail(COIL_STATE, "it is cut off or has bytes too many");
    if (digest(header, rest, bytes - sizeof *header) != header->checksum)
        return coil_fail(COIL_STATE, "its content does not match its checksum");
    return COIL_OK;
}

/* The sizes in the table, into `state->wanted`; they fill the slot exactly. */
static int read_table(coil_state *state, const saved *header, const unsigned char *rest) {
    uint64_t total = 0;
    for (int32_t i = 0; i < state_count(); i++) {
        uint64_t size;
        memcpy(&size, rest + (size_t)i * sizeof size, sizeof size);
        if (size > header->bytes) return coil_fail(COIL_STATE, "its sizes contradict each other");
        state->wanted[i] = (size_t)size;
        total += round_up((size_t)size, ALIGNMENT);
    }
    return total == header->bytes ? COIL_OK : coil_fail(COIL_STATE, "its sizes contradict each other");
}

int coil_state_load(coil_state *state, const void *memory, uint64_t bytes) {
    if (!state || !memory) return coil_fail(COIL_ARGUMENT, "coil_state_load needs a state and memory to read");
    saved header = {0};
    memcpy(&header, memory, bytes < sizeof header ? (size_t)bytes : sizeof header);
    const unsigned char *rest = (const unsigned char *)memory + sizeof header;
    int code = check_saved(&header, rest, bytes);
    if (!code) code = read_table(state, &header, rest);
    if (!code) code = resize(state, state->wanted);
    if (code) return code;
    if (state->kept + state->bytes) memcpy(state->memory, rest + table_bytes(), state->kept + state->bytes);
    state->calls = header.calls;
    return COIL_OK;
}
