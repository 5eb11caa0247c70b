/* Runs entry step of a byte model with weights linked in and aborts when memory is asked for at the wrong time. Linked with
 * --wrap for the functions below. Prints the likeliest bytes, one number a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coil.h"

enum { VOCABULARY = 256, ROOM = 1 << 20, LENGTH = 32 };
static _Alignas(64) unsigned char model_memory[COIL_MODEL_BYTES], session_memory[ROOM], state_memory[ROOM];
static int no_memory, no_threads; /* from now on */

#define GUARD(type, forbidden, name, parameters, arguments) \
    type __real_##name parameters;               \
    type __wrap_##name parameters;               \
    type __wrap_##name parameters {              \
        if (forbidden) {                         \
            fputs(#name " was called\n", stderr); \
            abort();                             \
        }                                        \
        return __real_##name arguments;          \
    }
GUARD(void *, no_memory, malloc, (size_t bytes), (bytes))
GUARD(void *, no_memory, calloc, (size_t count, size_t bytes), (count, bytes))
GUARD(void *, no_memory, mmap, (void *at, size_t bytes, int a, int b, int c, long d), (at, bytes, a, b, c, d))
GUARD(int, no_memory, open, (const char *path, int flags), (path, flags))
GUARD(int, no_threads, pthread_create, (void *a, const void *b, void *c, void *d), (a, b, c, d))
GUARD(int, no_threads, pthread_mutex_init, (void *a, const void *b), (a, b))
GUARD(int, no_threads, pthread_mutex_lock, (void *a), (a))
GUARD(int, no_threads, pthread_cond_broadcast, (void *a), (a))

static void check(int code) {
    if (!code) return;
    puts(coil_error_message());
    exit(1);
}

static int32_t step_entry(void) {
    int32_t i = 0;
    while (strcmp(coil_describe()->entries[i].name, "step")) i++;
    return i;
}

/* What coil_session_bytes and coil_state_bytes ask for, and not a byte more. */
static void open_in(int32_t step, coil_model **model, coil_session **session, coil_state **state) {
    coil_options options = {.size = sizeof options, .memory = model_memory};
    int64_t batch = 1;
    const int64_t *symbols[8] = {NULL};
    uint64_t session_bytes, state_bytes;
    symbols[step] = &batch;
    check(coil_session_bytes(symbols, &session_bytes));
    check(coil_state_bytes(step, &batch, 1, &state_bytes));
    if (session_bytes > ROOM || state_bytes > ROOM) exit(2);
    memset(session_memory, 0xa5, ROOM), memset(state_memory, 0xa5, ROOM);
    check(coil_open(&options, model));
    if (coil_session_open_in(*model, session_memory, 64, session) != COIL_MEMORY) exit(3);
    if (coil_session_open_in(*model, session_memory + 8, ROOM / 2, session) != COIL_ARGUMENT) exit(4);
    check(coil_session_open_in(*model, session_memory, session_bytes, session));
    check(coil_session_bind(*session, step, &batch));
    batch = 4;
    if (coil_session_bind(*session, step, &batch) != COIL_MEMORY) exit(5);
    batch = 1;
    check(coil_session_bind(*session, step, &batch));
    check(coil_state_open_in(*model, 1, state_memory, state_bytes, state));
    if (session_memory[session_bytes] != 0xa5 || state_memory[state_bytes] != 0xa5) exit(6);
}

static void open_usual(int32_t step, coil_model **model, coil_session **session, coil_state **state) {
    coil_options options = {.size = sizeof options};
    int64_t batch = 1;
    check(coil_open(&options, model));
    check(coil_session_open(*model, 2, session));
    check(coil_session_bind(*session, step, &batch));
    check(coil_state_open(*model, 1, state));
}

int main(int argc, char **argv) {
    coil_model *model;
    coil_session *session;
    coil_state *state;
    int32_t step = step_entry();
    no_memory = no_threads = argc > 1 && !strcmp(argv[1], "never");
    (no_memory ? open_in : open_usual)(step, &model, &session, &state);
    int64_t token = 'x';
    float logits[VOCABULARY];
    const void *inputs[8] = {&token};
    void *outputs[8] = {logits};
    int tokens[LENGTH];
    check(coil_session_advance(session, step, state, inputs, outputs)); /* the first call of a state maps its memory */
    check(coil_state_reset(state));
    no_memory |= argc > 1 && !strcmp(argv[1], "loaded");
    for (int i = 0; i < LENGTH; i++) {
        check(coil_session_advance(session, step, state, inputs, outputs));
        token = 0;
        for (int k = 1; k < VOCABULARY; k++)
            if (logits[k] > logits[token]) token = k;
        tokens[i] = (int)token;
    }
    no_memory = 0;
    for (int i = 0; i < LENGTH; i++) printf("%d\n", tokens[i]);
    coil_state_close(state);
    coil_session_close(session);
    coil_close(model);
    return 0;
}
