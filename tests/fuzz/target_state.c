/* Any bytes as a saved state. Byte 0: whether the checksum is repaired. What is refused changes nothing; what is accepted
 * can be run, saved and loaded again. */
#include "coil.h"
#include "fuzz.h"

static uint64_t save(const coil_state *state, uint8_t **saved) {
    uint64_t bytes = 0;
    REQUIRE(!coil_state_save(state, NULL, &bytes));
    *saved = malloc(bytes);
    REQUIRE(*saved && !coil_state_save(state, *saved, &bytes));
    return bytes;
}

static void run(coil_session *session, coil_state *state, int32_t entry, int64_t length) {
    int64_t symbols[] = {1, length};
    int64_t tokens[16] = {1};
    float y[64];
    const void *inputs[] = {tokens, NULL, NULL, NULL};
    void *outputs[] = {y, NULL, NULL, NULL};
    REQUIRE(!coil_session_bind(session, entry, symbols));
    (void)coil_session_advance(session, entry, state, inputs, outputs);
}

static coil_model *open_model(void) {
    static coil_model *model; /* lives as long as the process */
    if (model) return model;
    coil_options options = {.size = sizeof options, .weights_bytes = coil_describe()->weights_bytes};
    options.weights = make_weights(options.weights_bytes);
    REQUIRE(!coil_open(&options, &model));
    return model;
}

static coil_session *open_session(void) {
    static coil_session *session;
    if (!session) REQUIRE(!coil_session_open(open_model(), 1, &session));
    return session;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    coil_state *state;
    uint8_t *before, *after, *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    if (data[0] & 1) repair_checksum(copy, size - 1);
    REQUIRE(!coil_state_open(open_model(), 1 + (data[0] >> 6), &state));
    if (data[0] & 2) run(open_session(), state, 2, 1);
    uint64_t bytes = save(state, &before);
    int code = coil_state_load(state, copy, size - 1);
    uint64_t now = save(state, &after);
    if (code)
        REQUIRE(now == bytes && !memcmp(before, after, bytes));
    else
        REQUIRE(now == size - 1 && !memcmp(copy, after, now));
    run(open_session(), state, 1 + (data[0] >> 2 & 1), data[0] & 4 ? 1 : data[0] >> 3 & 7);
    free(before), free(after), free(copy);
    coil_state_close(state);
    return 0;
}
