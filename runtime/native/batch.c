/* batch.c: one step of several sequences. */
#include "state.h"

#include <string.h>

static const coil_link *link_of(int32_t entry, int32_t index) {
    return &coil_plan.description.entries[entry].states[index];
}

/* Of two states of the same size, by pieces. */
static int compare(const coil_state *a, const coil_state *b, int32_t index, bool *equal) {
    unsigned char left[256], right[256];
    int code = coil_moment_await(a->device, &a->used);
    if (!code) code = coil_moment_await(b->device, &b->used);
    *equal = a->sizes[index] == b->sizes[index];
    for (size_t at = 0, bytes; at < a->sizes[index] && *equal && !code; at += bytes) {
        bytes = a->sizes[index] - at < sizeof left ? a->sizes[index] - at : sizeof left;
        code = coil_device_read(a->device, left, place_of(a, index, a->now) + at, bytes);
        if (!code) code = coil_device_read(b->device, right, place_of(b, index, b->now) + at, bytes);
        if (!code) *equal = !memcmp(left, right, bytes);
    }
    return code;
}

static int check_equal(coil_state *const *parts, int32_t count, int32_t index, const char *name) {
    for (int32_t i = 1; i < count; i++) {
        bool equal;
        int code = compare(parts[0], parts[i], index, &equal);
        if (code) return code;
        if (!equal)
            return coil_fail(COIL_ARGUMENT, "the sequences differ in '%s', which is one for all rows: run them one by one",
                             name);
    }
    return COIL_OK;
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
    return rows ? COIL_OK : check_equal(parts, count, index, name);
}

/* From the parts into the whole, or back. */
static int copy_rows(queue *queue, int32_t entry, coil_state *const *parts, int32_t count, coil_state *whole, bool back) {
    int code = COIL_OK;
    for (int32_t index = 0; index < state_count(); index++) {
        unsigned char *row = place_of(whole, index, whole->now);
        for (int32_t i = 0; i < count && !code; i++) {
            size_t bytes = parts[i]->sizes[index];
            unsigned char *part = place_of(parts[i], index, parts[i]->now);
            if (back || i == 0 || link_of(entry, index)->rows)
                code = coil_queue_copy(queue, back ? part : row, back ? row : part, bytes);
            if (link_of(entry, index)->rows) row += bytes;
        }
    }
    return code;
}

static int join(const coil_session *session, int32_t entry, coil_state *const *parts, int32_t count, coil_state *whole) {
    int code = coil_state_measure(session, entry, whole);
    for (int32_t index = 0; index < state_count() && !code; index++)
        code = check_parts(entry, parts, count, whole, index);
    if (!code && (!whole->memory || memcmp(whole->wanted, whole->sizes, (size_t)state_count() * sizeof *whole->sizes)))
        code = coil_state_resize(whole, whole->wanted);
    queue *queue = coil_session_queue(session);
    whole->clock_known = false;
    if (!code) code = coil_queue_after(queue, &whole->used);
    for (int32_t i = 0; i < count && !code; i++) code = coil_queue_after(queue, &parts[i]->used);
    return code ? code : copy_rows(queue, entry, parts, count, whole, false);
}

static int advance_all(coil_session *session, int32_t entry, coil_state *const *states, int32_t count,
                       coil_state *batch, const void *const *inputs, void *const *outputs) {
    for (int32_t i = 0; i < count; i++)
        if (!states[i]->calls) return coil_fail(COIL_ARGUMENT, "state %d is at the start of its sequence: run it alone first", i);
    int code = join(session, entry, states, count, batch);
    if (!code) code = coil_state_advance(session, entry, batch, inputs, outputs);
    if (code) return code;
    queue *queue = coil_session_queue(session);
    for (int32_t i = 0; i < count; i++) coil_state_next(states[i]);
    code = copy_rows(queue, entry, states, count, batch, true);
    for (int32_t i = 0; i < count && !code; i++) code = coil_queue_mark(queue, &states[i]->used);
    return code ? code : coil_queue_mark(queue, &batch->used);
}

int coil_session_advance_all(coil_session *session, int32_t entry, coil_state *const *states, int32_t count,
                             coil_state *batch, const void *const *inputs, void *const *outputs) {
    if (!session || !states || !batch || count < 1)
        return coil_fail(COIL_ARGUMENT, "coil_session_advance_all needs a session, states and a batch");
    if (coil_state_check_entry(entry)) return COIL_ARGUMENT;
    if (atomic_exchange(&batch->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the state");
    int32_t taken = 0;
    while (taken < count && states[taken] && !atomic_exchange(&states[taken]->busy, true)) taken++;
    int code = taken == count ? advance_all(session, entry, states, count, batch, inputs, outputs)
                              : coil_fail(COIL_BUSY, "state %d is NULL, in use, or given twice", taken);
    while (taken > 0) atomic_store(&states[--taken]->busy, false);
    atomic_store(&batch->busy, false);
    return code;
}
