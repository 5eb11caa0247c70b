/* bare.c: a language model in a program without malloc, threads or files.
 *
 * The weights are linked in; the model, its session and its state live in three arrays. The prompt goes in byte by byte,
 * then every likeliest byte comes out and goes in again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coil.h"

enum { VOCABULARY = 256, MOST_TENSORS = 64, ROOM = 1 << 20, LENGTH = 64 };

static _Alignas(64) unsigned char model_memory[COIL_MODEL_BYTES], session_memory[ROOM], state_memory[ROOM];

static void check(int code) {
    if (!code) return;
    fprintf(stderr, "%s\n", coil_error_message());
    exit(1);
}

static int32_t entry_named(const char *name) {
    const coil_description *all = coil_describe();
    for (int32_t i = 0; i < all->entry_count; i++)
        if (!strcmp(all->entries[i].name, name)) return i;
    fprintf(stderr, "the model has no entry '%s'; compile it with --entries prefill,step\n", name);
    exit(1);
}

static int64_t likeliest(const float *logits) {
    int64_t best = 0;
    for (int64_t i = 1; i < VOCABULARY; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

int main(int argc, char **argv) {
    const char *prompt = argc > 1 ? argv[1] : "def read(";
    int32_t step = entry_named("step");

    coil_options options = {.size = sizeof options, .memory = model_memory};
    coil_model *model;
    coil_session *session;
    coil_state *state;
    int64_t batch[] = {1}; /* the one symbol of entry step */
    check(coil_open(&options, &model));
    check(coil_session_open_in(model, session_memory, sizeof session_memory, &session));
    check(coil_session_bind(session, step, batch));
    check(coil_state_open_in(model, 1, state_memory, sizeof state_memory, &state));

    int64_t token = 0;
    float logits[VOCABULARY];
    const void *inputs[MOST_TENSORS] = {&token}; /* the states have pointers of their own */
    void *outputs[MOST_TENSORS] = {logits};
    for (; *prompt; prompt++) {
        token = (unsigned char)*prompt;
        check(coil_session_advance(session, step, state, inputs, outputs));
    }
    for (int i = 0; i < LENGTH; i++) {
        token = likeliest(logits);
        putchar((int)token);
        check(coil_session_advance(session, step, state, inputs, outputs));
    }
    putchar('\n');
    return 0;
}
