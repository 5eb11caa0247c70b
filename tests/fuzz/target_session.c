/* Any sequence of calls of the C API, with any symbols, dims and saved states. Buffers are exactly as large as the
 * session says, so what a kernel gets to see is what the caller has. Sessions and states also live in memory of the caller,
 * which is as large as the API says, or not. */
#include "coil.h"
#include "fuzz.h"

enum { STATES = 4, MOST_TENSORS = 8, MOST_RANK = 4, LARGEST = 1 << 16 };

static const coil_description *all;
static coil_model *model;

typedef struct user {
    coil_session *session;
    coil_state *states[STATES];
    void *rooms[1 + STATES]; /* the memory that they were opened in, if any */
    uint8_t *saved;
    uint64_t saved_bytes;
} user;

static size_t element_bytes(const char *dtype) { return dtype[0] == 'f' ? 4 : 8; }

/* Memory of a tensor of a bound entry, or NULL when it is too large to try. */
static void *buffer(const coil_session *session, int32_t entry, int output, int32_t index) {
    const coil_entry *info = &all->entries[entry];
    const coil_tensor *tensor = &(output ? info->outputs : info->inputs)[index];
    int64_t dims[MOST_RANK];
    size_t bytes = element_bytes(tensor->dtype);
    REQUIRE(!coil_session_dims(session, entry, output, index, dims));
    for (int32_t i = 0; i < tensor->rank; i++) {
        REQUIRE(dims[i] >= 0);
        if (__builtin_mul_overflow(bytes, (size_t)dims[i], &bytes)) return NULL;
    }
    return bytes > LARGEST ? NULL : calloc(bytes + !bytes, 1);
}

static int trace(void *data, int32_t call, const void *const *results, int32_t count) {
    (void)call;
    for (int32_t i = 0; i < count; i++) REQUIRE(results[i]);
    return --*(int *)data < 0;
}

/* `how`: 0 run, 1 trace, 2 advance, 3 advance all. Tensors that do not fit are left out, which is an error too. */
static int run(user *user, int how, int32_t entry, coil_state *state, int stop) {
    const coil_entry *info = &all->entries[entry];
    int64_t probe[MOST_RANK];
    void *inputs[MOST_TENSORS] = {0}, *outputs[MOST_TENSORS] = {0};
    coil_state *several[] = {user->states[0], user->states[1]};
    if (!coil_session_dims(user->session, entry, 0, 0, probe)) {
        for (int32_t i = 0; i < info->input_count; i++) inputs[i] = buffer(user->session, entry, 0, i);
        for (int32_t i = 0; i < info->output_count; i++) outputs[i] = buffer(user->session, entry, 1, i);
        if (how < 2 && info->state_count) /* nobody watches over the cache of a caller who keeps states himself */
            how = 2;
    }
    const void *const *in = (const void *const *)inputs;
    int code = how == 0   ? coil_session_run(user->session, entry, in, outputs)
               : how == 1 ? coil_session_trace(user->session, entry, in, outputs, trace, &stop)
               : how == 2 ? coil_session_advance(user->session, entry, state, in, outputs)
                          : coil_session_advance_all(user->session, entry, several, 1 + stop % 2, user->states[3], in, outputs);
    for (int32_t i = 0; i < MOST_TENSORS; i++) free(inputs[i]), free(outputs[i]);
    return code;
}

static void run_any(user *user, int how, stream *from) {
    int32_t entry = (int32_t)(next_byte(from) % all->entry_count);
    coil_state *state = user->states[next_byte(from) % STATES];
    (void)run(user, how, entry, state, next_byte(from) % 4);
}

static void bind(user *user, stream *from) {
    int64_t symbols[] = {next_number(from), next_number(from)};
    (void)coil_session_bind(user->session, (int32_t)(next_byte(from) % (all->entry_count + 1)), symbols);
}

static void bind_shapes(user *user, stream *from) {
    int32_t entry = (int32_t)(next_byte(from) % all->entry_count);
    int64_t dims[MOST_TENSORS][MOST_RANK];
    const int64_t *rows[MOST_TENSORS];
    for (int i = 0; i < MOST_TENSORS; i++) {
        rows[i] = dims[i];
        for (int axis = 0; axis < MOST_RANK; axis++) dims[i][axis] = axis == 2 ? 4 : next_number(from);
    }
    (void)coil_session_bind_shapes(user->session, entry, rows);
}

static void save(user *user, coil_state *state) {
    free(user->saved);
    user->saved_bytes = 0;
    REQUIRE(!coil_state_save(state, NULL, &user->saved_bytes));
    user->saved = malloc(user->saved_bytes);
    REQUIRE(!coil_state_save(state, user->saved, &user->saved_bytes));
}

static void damage(user *user, stream *from) {
    if (!user->saved) return;
    uint64_t at = next_bytes(from, 2) % user->saved_bytes;
    user->saved[at] = next_byte(from);
    if (next_byte(from) % 4) repair_checksum(user->saved, user->saved_bytes);
}

static void replace_session(user *user, coil_session *session, void *room) {
    coil_session_close(user->session);
    free(user->rooms[STATES]);
    user->session = session, user->rooms[STATES] = room;
}

static void replace_state(user *user, int index, coil_state *state, void *room) {
    coil_state_close(user->states[index]);
    free(user->rooms[index]);
    user->states[index] = state, user->rooms[index] = room;
}

static void fork_state(user *user, stream *from) {
    int to = next_byte(from) % STATES;
    coil_state *copy;
    if (!coil_state_fork(user->states[next_byte(from) % STATES], &copy)) replace_state(user, to, copy, NULL);
}

/* Exactly `*bytes` of memory, or a few less or more; NULL when that is more than a test wants. */
static void *room(uint64_t *bytes, stream *from) {
    uint8_t other = next_byte(from);
    void *memory = NULL;
    if (other > 127) *bytes += (uint64_t)(int64_t)(other - 191);
    if (*bytes <= 4 * LARGEST) REQUIRE(!posix_memalign(&memory, 64, *bytes));
    return memory;
}

/* What coil_session_bytes asks for is enough. */
static void move_session(user *user, stream *from) {
    int32_t entry = (int32_t)(next_byte(from) % all->entry_count);
    int64_t symbols[] = {next_number(from), next_number(from)};
    const int64_t *chosen[MOST_TENSORS] = {0};
    coil_session *session;
    uint64_t enough, bytes;
    chosen[entry] = symbols;
    if (coil_session_bytes(chosen, &enough)) return;
    bytes = enough;
    void *memory = room(&bytes, from);
    if (!memory || coil_session_open_in(model, memory, bytes, &session)) {
        REQUIRE(!memory || bytes < enough);
        free(memory);
        return;
    }
    replace_session(user, session, memory);
    REQUIRE(!coil_session_bind(session, entry, symbols) || bytes < enough);
}

/* So is what coil_state_bytes asks for. */
static void move_state(user *user, int index, stream *from) {
    int32_t entry = (int32_t)(next_byte(from) % all->entry_count), history = 1 + next_byte(from) % 4;
    int64_t symbols[] = {next_number(from), next_number(from)};
    coil_state *state;
    uint64_t enough, bytes;
    if (coil_state_bytes(entry, symbols, history, &enough)) return;
    bytes = enough;
    void *memory = room(&bytes, from);
    if (!memory || coil_state_open_in(model, history, memory, bytes, &state)) {
        REQUIRE(!memory || bytes < enough);
        free(memory);
        return;
    }
    replace_state(user, index, state, memory);
    if (coil_session_bind(user->session, entry, symbols)) return;
    REQUIRE(run(user, 2, entry, state, 0) != COIL_MEMORY || bytes < enough);
}

static void step(user *user, stream *from) {
    uint8_t op = next_byte(from);
    coil_state *state = user->states[op / 16 % STATES];
    switch (op % 16) {
    case 0: case 1: bind(user, from); break;
    case 2: bind_shapes(user, from); break;
    case 3: run_any(user, 0, from); break;
    case 4: run_any(user, 1, from); break;
    case 5: case 6: case 7: run_any(user, 2, from); break;
    case 8: run_any(user, 3, from); break;
    case 9: (void)coil_state_rewind(state, (int32_t)next_number(from)); break;
    case 10: REQUIRE(!coil_state_reset(state)); break;
    case 11: fork_state(user, from); break;
    case 12: save(user, state); break;
    case 13: damage(user, from); break;
    case 14: op & 64 ? move_session(user, from) : move_state(user, op / 16 % STATES, from); break;
    default: if (user->saved) (void)coil_state_load(state, user->saved, user->saved_bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!model) {
        all = coil_describe();
        coil_options options = {.size = sizeof options, .weights_bytes = all->weights_bytes};
        options.weights = make_weights(all->weights_bytes);
        REQUIRE(!coil_open(&options, &model));
    }
    stream from = {data, data + size};
    user user = {0};
    REQUIRE(!coil_session_open(model, 1, &user.session));
    for (int i = 0; i < STATES; i++) REQUIRE(!coil_state_open(model, 1 + i, &user.states[i]));
    while (left(&from)) step(&user, &from);
    for (int i = 0; i < STATES; i++) replace_state(&user, i, NULL, NULL);
    replace_session(&user, NULL, NULL);
    free(user.saved);
    return 0;
}
