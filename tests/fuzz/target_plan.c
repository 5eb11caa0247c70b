/* Any plan and any weights file of any size: tables filled with whatever the input says. What coil_open accepts can be
 * bound and run. The runtime is compiled with `coil_plan` as `*fuzz_plan`. */
#include "internal.h"

#include "fuzz.h"

enum { ENTRIES = 2, ROWS = 4, QUANTITIES = 6, TENSORS = 3, RANK = 3, ARGS = 12 };

static plan tables;
const plan *fuzz_plan = &tables;

static struct {
    coil_entry entries[ENTRIES];
    plan_entry plans[ENTRIES];
    plan_weight weights[ROWS];
    coil_symbol symbols[ENTRIES][ROWS];
    coil_tensor tensors[ENTRIES][2][TENSORS];
    coil_link links[ENTRIES][ROWS];
    int32_t dims[ENTRIES][2][TENSORS][RANK], slots[ENTRIES][ROWS];
    const int32_t *dim_tables[ENTRIES][2][TENSORS];
    plan_arg args[ENTRIES][ARGS];
    plan_call calls[ENTRIES][ROWS];
    plan_rule rules[ENTRIES][ROWS];
} rows;

static int64_t constants[QUANTITIES];

static int evaluate(const int64_t *symbols, int64_t *quantities) {
    int overflow = 0;
    for (int i = 0; i < QUANTITIES; i++) quantities[i] = constants[i];
    quantities[0] = symbols[0];
    quantities[1] = plan_mul(&overflow, symbols[0], constants[1]);
    return overflow;
}

/* It looks at nothing: a kernel knows its operands' sizes, and is not what is fuzzed. */
static int kernel(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)result;
    for (int32_t i = 0; i < count; i++) REQUIRE(args[i].type == KERNEL_INT || args[i].type == KERNEL_POINTER);
    return 0;
}

/* Mostly an index of `count` rows, sometimes not. */
static int32_t index_of(stream *from, int32_t count) {
    uint8_t byte = next_byte(from);
    return byte < 240 ? byte % (count + (count == 0)) : (int32_t)next_number(from);
}

static void fill_tensors(stream *from, int entry, int side) {
    static const char *const DTYPES[] = {"f32", "i64", "bool", "i64", "f16", "c128", "f64", "x9", "", "i8", "f32", "f32"};
    for (int i = 0; i < TENSORS; i++) {
        coil_tensor *tensor = &rows.tensors[entry][side][i];
        *tensor = (coil_tensor){"t", DTYPES[next_byte(from) % 12], "t", index_of(from, RANK + 1)};
        if (tensor->rank > RANK) tensor->rank = RANK; /* the table is as long as the rank says */
        for (int axis = 0; axis < RANK; axis++) rows.dims[entry][side][i][axis] = index_of(from, QUANTITIES);
        rows.dim_tables[entry][side][i] = next_byte(from) == 255 ? NULL : rows.dims[entry][side][i];
    }
}

static void fill_calls(stream *from, int entry) {
    for (int i = 0; i < ARGS; i++) {
        rows.args[entry][i].kind = i % 3 == 2 ? PLAN_QUANTITY : i % 3 ? PLAN_OUTPUT : PLAN_INPUT;
        if (next_byte(from) > 127) rows.args[entry][i].kind = index_of(from, 5);
        rows.args[entry][i].index = index_of(from, 2);
    }
    for (int i = 0; i < ROWS; i++) {
        plan_call *call = &rows.calls[entry][i];
        *call = (plan_call){.name = "k", .kernel = next_byte(from) > 127 ? kernel : NULL, .first = 3 * i, .count = 3};
        call->result = call->results = 1;
        if (next_byte(from) > 200) call->first = index_of(from, ARGS), call->count = index_of(from, ROWS);
        if (next_byte(from) > 200) call->result = index_of(from, ROWS), call->results = index_of(from, 2);
    }
}

static void fill_entry(stream *from, int entry) {
    fill_tensors(from, entry, 0), fill_tensors(from, entry, 1), fill_calls(from, entry);
    for (int i = 0; i < ROWS; i++) {
        coil_symbol symbol = {"s", index_of(from, 3), next_number(from), index_of(from, TENSORS), 0, 1, next_number(from)};
        if (next_byte(from) > 200) symbol.scale = next_number(from), symbol.axis = index_of(from, RANK);
        rows.symbols[entry][i] = symbol;
        rows.links[entry][i] = (coil_link){index_of(from, TENSORS), index_of(from, TENSORS), next_byte(from) & 1, 1};
        rows.slots[entry][i] = index_of(from, QUANTITIES);
    }
    plan_room room = {(int32_t)(next_byte(from) % 4) - 1, index_of(from, QUANTITIES), index_of(from, QUANTITIES)};
    rows.plans[entry] = (plan_entry){evaluate, rows.dim_tables[entry][0], rows.dim_tables[entry][1], rows.slots[entry],
                                     rows.args[entry], rows.calls[entry], QUANTITIES, index_of(from, ROWS + 1), ARGS, room,
                                     rows.rules[entry], 0};
    int32_t symbols = 1 + next_byte(from) % 2, calls = next_byte(from) % (ROWS + 1), states = index_of(from, 3);
    rows.entries[entry] = (coil_entry){"e", symbols, TENSORS, TENSORS, calls, rows.symbols[entry],
                                       rows.tensors[entry][0], rows.tensors[entry][1], states, rows.links[entry]};
    if (rows.plans[entry].slot_count > ROWS) rows.plans[entry].slot_count = ROWS;
    if (states > ROWS) rows.entries[entry].state_count = ROWS;
}

static void fill_rules(stream *from, int entry) {
    for (int i = 0; i < ROWS; i++) rows.rules[entry][i] = (plan_rule){index_of(from, QUANTITIES), next_byte(from) == 255 ? NULL : "q"};
    int32_t count = index_of(from, 2);
    rows.plans[entry].rule_count = count > ROWS ? ROWS : count;
}

static void fill(stream *from) {
    for (int i = 0; i < QUANTITIES; i++) constants[i] = next_number(from);
    for (int i = 0; i < ENTRIES; i++) fill_entry(from, i);
    for (int i = 0; i < ROWS; i++)
        rows.weights[i] = (plan_weight){(uint64_t)next_number(from) * (next_byte(from) % 4 ? 64 : 1), (uint64_t)next_number(from)};
    uint64_t scratch = (uint64_t)next_number(from), weights = 64 * (uint64_t)(next_byte(from) % 16);
    int32_t states = index_of(from, 3);
    tables = (plan){{COIL_ABI_VERSION, 1 + next_byte(from) % ENTRIES, rows.entries, weights, scratch, states,
                     "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
                    rows.plans, rows.weights, index_of(from, ROWS + 1), {0}};
    if (tables.weight_count > ROWS) tables.weight_count = ROWS;
    for (int i = 0; i < ENTRIES; i++) fill_rules(from, i);
}

/* Memory exactly as large as the session says; NULL when it is more than a test wants. */
static void *buffer(const coil_session *session, int32_t entry, int output, int32_t index) {
    const coil_tensor *tensor = &rows.tensors[entry][output][index];
    int64_t dims[RANK];
    REQUIRE(!coil_session_dims(session, entry, output, index, dims));
    size_t bytes = tensor->dtype[0] == 'b' ? 1 : (size_t)atoi(tensor->dtype + 1) / 8;
    for (int32_t i = 0; i < tensor->rank; i++) REQUIRE(dims[i] >= 0 && !__builtin_mul_overflow(bytes, (size_t)dims[i], &bytes));
    return bytes > 1 << 16 ? NULL : calloc(bytes + !bytes, 1);
}

static void run(coil_session *session, int32_t entry, coil_state *state) {
    void *inputs[TENSORS], *outputs[TENSORS];
    for (int32_t i = 0; i < TENSORS; i++)
        inputs[i] = buffer(session, entry, 0, i), outputs[i] = buffer(session, entry, 1, i);
    (void)coil_session_run(session, entry, (const void *const *)inputs, outputs);
    if (state) (void)coil_session_advance(session, entry, state, (const void *const *)inputs, outputs);
    if (state) (void)coil_session_advance(session, entry, state, (const void *const *)inputs, outputs);
    for (int32_t i = 0; i < TENSORS; i++) free(inputs[i]), free(outputs[i]);
}

static void use(coil_model *model, stream *from) {
    coil_session *session;
    coil_state *state = NULL;
    if (coil_session_open(model, 1, &session)) return;
    (void)coil_state_open(model, 1, &state);
    for (int i = 0; i < 3; i++) {
        int32_t entry = (int32_t)(next_byte(from) % fuzz_plan->description.entry_count);
        int64_t symbols[ROWS] = {next_number(from), next_number(from)}, extents[TENSORS][RANK];
        const int64_t *dims[TENSORS] = {extents[0], extents[1], extents[2]};
        for (int j = 0; j < TENSORS * RANK; j++) extents[j / RANK][j % RANK] = next_number(from);
        int code = coil_session_bind_shapes(session, entry, dims);
        if (code) code = coil_session_bind(session, entry, symbols);
        if (!code) run(session, entry, state);
    }
    coil_state_close(state);
    coil_session_close(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    stream from = {data, data + size};
    fill(&from);
    coil_model *model;
    coil_options options = {.size = sizeof options, .weights_bytes = tables.description.weights_bytes};
    if (next_byte(&from) % 16 == 15) options.weights_bytes = next_byte(&from);
    void *weights = make_weights(options.weights_bytes);
    options.weights = weights;
    if (!coil_open(&options, &model)) {
        for (int32_t i = 0; i < tables.weight_count; i++)
            touch((const uint8_t *)weights + rows.weights[i].offset, rows.weights[i].bytes);
        use(model, &from);
        coil_close(model);
    }
    free(weights);
    return 0;
}
