/* session.c: opening sessions and binding symbols. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

int coil_check_entry(const coil_session *session, int32_t entry) {
    if (!session) return coil_fail(COIL_ARGUMENT, "the session is NULL");
    if (entry < 0 || entry >= coil_plan.description.entry_count)
        return coil_fail(COIL_ARGUMENT, "entry %d does not exist, the model has %d", entry,
                         coil_plan.description.entry_count);
    return COIL_OK;
}

/* Opening. Placing a session in a region that only counts gives its size, so both kinds of session have one layout. */

static void start_operands(binding *binding, const coil_entry *entry) {
    operand *operands = binding->job.operands;
    for (int32_t i = 0; i < entry->input_count; i++) *operands++ = (operand){.name = entry->inputs[i].name};
    for (int32_t i = 0; i < entry->output_count; i++)
        *operands++ = (operand){.name = entry->outputs[i].name, .output = true};
}

static void start_binding(binding *binding, int32_t index) {
    const coil_entry *entry = entry_of(index);
    const plan_entry *plan = &coil_plan.entries[index];
    for (int32_t i = 0; i < plan->arg_count; i++) {
        plan_arg arg = plan->args[i];
        binding->args[i].type = arg.kind == PLAN_QUANTITY ? KERNEL_INT : KERNEL_POINTER;
        if (arg.kind == PLAN_INPUT || arg.kind == PLAN_OUTPUT)
            binding->patches[binding->patch_count++] =
                (patch){i, arg.index + (arg.kind == PLAN_OUTPUT ? entry->input_count : 0)};
    }
    binding->job.entry = index, binding->job.symbols = binding->symbols, binding->job.symbol_count = entry->symbol_count;
    binding->job.operand_count = entry->input_count + entry->output_count;
    start_operands(binding, entry);
}

/* Everything of one entry that bind and run write to. */
static binding place_binding(region *room, const coil_entry *entry, const plan_entry *plan) {
    binding place = {0};
    size_t operands = (size_t)entry->input_count + (size_t)entry->output_count;
    place.symbols = coil_take(room, (size_t)entry->symbol_count + 1, sizeof *place.symbols);
    place.wanted = coil_take(room, (size_t)entry->symbol_count + 1, sizeof *place.wanted);
    place.quantities = coil_take(room, (size_t)plan->quantity_count + 1, sizeof *place.quantities);
    place.offsets = coil_take(room, (size_t)plan->slot_count + 1, sizeof *place.offsets);
    place.args = coil_take(room, (size_t)plan->arg_count + 1, sizeof *place.args);
    place.patches = coil_take(room, (size_t)plan->arg_count + 1, sizeof *place.patches);
    place.job.operands = coil_take(room, operands + 1, sizeof *place.job.operands);
    place.results = coil_take(room, (size_t)plan->arg_count + 1, sizeof *place.results);
    place.result_bytes = coil_take(room, (size_t)plan->arg_count + 1, sizeof *place.result_bytes);
    return place;
}

static coil_session *place_session(region *room, int32_t threads) {
    int32_t entries = coil_plan.description.entry_count;
    coil_session *session = coil_take(room, 1, sizeof *session);
    worker *workers = coil_take(room, (size_t)threads, sizeof *workers);
    pthread_t *handles = coil_take(room, (size_t)threads - 1, sizeof *handles);
    binding *bindings = coil_take(room, (size_t)entries, sizeof *bindings);
    for (int32_t i = 0; i < entries; i++) {
        binding placed = place_binding(room, entry_of(i), &coil_plan.entries[i]);
        if (bindings) bindings[i] = placed, start_binding(&bindings[i], i);
    }
    if (session) session->bindings = bindings, session->pool.workers = workers, session->pool.handles = handles;
    return session;
}

int coil_session_open(const coil_model *model, int32_t threads, coil_session **session) {
    if (!model || !session) return coil_fail(COIL_ARGUMENT, "coil_session_open needs a model and a place for the session");
    *session = NULL;
    if (threads < 1 || threads > 1024)
        return coil_fail(COIL_ARGUMENT, "%d threads are not possible, use 1 to 1024", threads);
    threads = coil_device_threads(threads);
    region room = {0};
    place_session(&room, threads);
    room = (region){malloc(room.used), 0};
    if (!room.memory) return coil_fail(COIL_MEMORY, "out of memory");
    coil_session *opened = place_session(&room, threads);
    opened->model = model;
    int code = coil_pool_open(&opened->pool, threads, coil_plan.description.scratch_bytes);
    if (!code) code = coil_queue_open(model->device, &opened->queue);
    if (code)
        coil_session_close(opened);
    else
        *session = opened;
    return code;
}

void coil_session_close(coil_session *session) {
    if (!session) return;
    coil_pool_close(&session->pool);
    if (session->given) return;
    coil_queue_close(session->queue);
    coil_device_free(session->model->device, session->arena, session->arena_bytes);
    free(session);
}

/* A session of one thread, with its scratch; the arena is what is left behind it. */
static coil_session *place_alone(region *room) {
    coil_session *session = place_session(room, 1);
    unsigned char *scratch = coil_take(room, coil_plan.description.scratch_bytes + 1, 1);
    if (session) session->pool.scratch = scratch, session->arena = room->memory + room->used;
    return session;
}

int coil_session_open_in(const coil_model *model, void *memory, uint64_t bytes, coil_session **session) {
    if (!model || !session || !memory || (uintptr_t)memory % ALIGNMENT)
        return coil_fail(COIL_ARGUMENT, "coil_session_open_in needs a model, memory aligned to %d bytes and a place for "
                         "the session", ALIGNMENT);
    *session = NULL;
    int code = coil_device_accepts_memory();
    if (code) return code;
    region room = {0};
    place_alone(&room);
    if (bytes < room.used)
        return coil_fail(COIL_MEMORY, "a session needs %zu bytes and its arena, not %llu", room.used,
                         (unsigned long long)bytes);
    room = (region){memory, 0};
    coil_session *opened = place_alone(&room);
    opened->model = model, opened->given = true;
    opened->arena_bytes = (size_t)bytes - room.used;
    *session = opened;
    return coil_pool_open(&opened->pool, 1, coil_plan.description.scratch_bytes);
}

uint64_t coil_session_memory(const coil_session *session) {
    if (!session) return 0;
    uint64_t scratch = session->pool.scratch_capacity * (uint64_t)session->pool.threads;
    return session->arena_bytes + scratch + coil_queue_memory(session->queue);
}

queue *coil_session_queue(const coil_session *session) { return session->queue; }

/* Binding. */

static int check_symbols(const coil_entry *entry, const int64_t *symbols) {
    if (entry->symbol_count && !symbols) return coil_fail(COIL_ARGUMENT, "the symbols are NULL");
    for (int32_t i = 0; i < entry->symbol_count; i++) {
        coil_symbol symbol = entry->symbols[i];
        if (symbol.high == INT64_MAX && symbols[i] < symbol.low)
            return coil_fail(COIL_ARGUMENT, "entry '%s': %s = %lld is below %lld", entry->name, symbol.name,
                             (long long)symbols[i], (long long)symbol.low);
        if (symbols[i] < symbol.low || symbols[i] > symbol.high)
            return coil_fail(COIL_ARGUMENT, "entry '%s': %s = %lld is outside %lld to %lld", entry->name, symbol.name,
                             (long long)symbols[i], (long long)symbol.low, (long long)symbol.high);
    }
    return COIL_OK;
}

/* What depends on the symbols alone. */
int coil_evaluate(int32_t entry, const int64_t *symbols, int64_t *quantities) {
    int code = check_symbols(entry_of(entry), symbols);
    if (!code && coil_plan.entries[entry].evaluate(symbols, quantities))
        code = coil_fail(COIL_ARGUMENT, "entry '%s': the sizes overflow 64 bits", entry_of(entry)->name);
    return code ? code : coil_check_sizes(entry, quantities);
}

/* Place the slots one after the other, into `offsets` unless that is NULL; the arena's size must fit 63 bits. */
static int place_slots(int32_t entry, const int64_t *quantities, size_t *offsets, size_t *total) {
    const plan_entry *plan = &coil_plan.entries[entry];
    *total = 0;
    for (int32_t i = 0; i < plan->slot_count; i++) {
        int64_t bytes = quantities[plan->slots[i]];
        if (bytes < 0 || (uint64_t)bytes > (uint64_t)INT64_MAX - ALIGNMENT - *total)
            return coil_fail(COIL_ARGUMENT, "entry '%s': the sizes overflow 64 bits", entry_of(entry)->name);
        if (offsets) offsets[i] = *total;
        *total += round_up((size_t)bytes + !bytes, ALIGNMENT);
    }
    return COIL_OK;
}

int coil_refuse_stack(int32_t entry) {
    return coil_fail(COIL_ARGUMENT, "entry '%s' has more than %d sizes, too many to find them without memory",
                     entry_of(entry)->name, MOST_ON_STACK);
}

int coil_session_bytes(const int64_t *const *symbols, uint64_t *bytes) {
    if (!symbols || !bytes) return coil_fail(COIL_ARGUMENT, "coil_session_bytes needs symbols and a place for the size");
    size_t largest = 0, arena = 0;
    int code = coil_check_plan(); /* there may be no model yet */
    if (code) return code;
    for (int32_t i = 0; i < coil_plan.description.entry_count; i++) {
        if (!symbols[i]) continue;
        if (coil_plan.entries[i].quantity_count > MOST_ON_STACK) return coil_refuse_stack(i);
        int64_t quantities[coil_plan.entries[i].quantity_count + 1]; /* there is no other memory yet */
        code = coil_evaluate(i, symbols[i], quantities);
        if (!code) code = place_slots(i, quantities, NULL, &arena);
        if (code) return code;
        largest = arena > largest ? arena : largest;
    }
    region room = {0};
    place_alone(&room);
    *bytes = room.used + largest;
    return COIL_OK;
}

static const void *address(const coil_session *session, const binding *binding, plan_arg arg) {
    if (arg.kind == PLAN_WEIGHT) return session->model->weights + coil_plan.weights[arg.index].offset;
    if (arg.kind == PLAN_SLOT) return session->arena + binding->offsets[arg.index];
    return NULL; /* the caller's; patched by run */
}

static void fill_args(const coil_session *session, binding *binding, const plan_entry *plan) {
    for (int32_t i = 0; i < plan->arg_count; i++) {
        plan_arg arg = plan->args[i];
        if (arg.kind == PLAN_QUANTITY)
            binding->args[i].value.integer = binding->quantities[arg.index];
        else
            binding->args[i].value.pointer = address(session, binding, arg);
    }
}

static void drop_arena(coil_session *session) {
    coil_queue_forget(session->queue);
    coil_device_free(session->model->device, session->arena, session->arena_bytes);
    session->arena = NULL, session->arena_bytes = 0;
}

/* Beside the old arena or, where there is no room for both, in its place. When that fails too, the old one comes back. */
static int exchange_arena(coil_session *session, size_t bytes) {
    device *device = session->model->device;
    void *arena;
    size_t before = session->arena_bytes, reserved = bytes;
    int code = coil_device_allocate(device, bytes, false, "the arena", &arena), again = code;
    drop_arena(session);
    if (again) again = code = coil_device_allocate(device, bytes, false, "the arena", &arena);
    if (again && before) again = coil_device_allocate(device, reserved = before, false, "the arena", &arena);
    if (!again) session->arena = arena, session->arena_bytes = reserved;
    return code;
}

/* A larger arena moves; nothing in it outlives a run, so only the addresses of bound entries are renewed. */
static int grow_arena(coil_session *session, size_t bytes) {
    if (bytes <= session->arena_bytes) return COIL_OK;
    if (session->given)
        return coil_fail(COIL_MEMORY, "the arena takes %zu bytes, the session's memory has room for %zu", bytes,
                         session->arena_bytes);
    int code = exchange_arena(session, bytes);
    for (int32_t i = 0; i < coil_plan.description.entry_count; i++) {
        binding *binding = &session->bindings[i];
        binding->bound = binding->bound && session->arena;
        if (binding->bound) fill_args(session, binding, &coil_plan.entries[i]);
    }
    return code;
}

static int solve_symbols(const coil_entry *entry, const int64_t *const *dims, int64_t *symbols) {
    for (int32_t i = 0; i < entry->symbol_count; i++) {
        coil_symbol symbol = entry->symbols[i];
        if (!dims[symbol.input])
            return coil_fail(COIL_ARGUMENT, "%s is found from the dims of state '%s': bind to symbols instead", symbol.name,
                             entry->inputs[symbol.input].name);
        int64_t extent = dims[symbol.input][symbol.axis], scaled;
        if (__builtin_sub_overflow(extent, symbol.offset, &scaled) || scaled % symbol.scale)
            return coil_fail(COIL_ARGUMENT, "input '%s' has extent %lld at axis %d; the model takes %s",
                             entry->inputs[symbol.input].name, (long long)extent, symbol.axis,
                             entry->inputs[symbol.input].type);
        symbols[i] = scaled / symbol.scale;
    }
    return COIL_OK;
}

static int check_dims(const binding *binding, int32_t entry, const int64_t *const *dims) {
    const plan_entry *plan = &coil_plan.entries[entry];
    for (int32_t i = 0; i < entry_of(entry)->input_count; i++) {
        coil_tensor input = entry_of(entry)->inputs[i];
        for (int32_t axis = 0; dims[i] && axis < input.rank; axis++) {
            int64_t expected = binding->quantities[plan->input_dims[i][axis]];
            if (dims[i][axis] != expected)
                return coil_fail(COIL_ARGUMENT, "input '%s' has extent %lld at axis %d; %s needs %lld here", input.name,
                                 (long long)dims[i][axis], axis, input.type, (long long)expected);
        }
    }
    return COIL_OK;
}

static void size_operands(binding *binding, int32_t entry) {
    for (int32_t i = 0, inputs = entry_of(entry)->input_count; i < binding->job.operand_count; i++) {
        plan_arg arg = i < inputs ? (plan_arg){PLAN_INPUT, i} : (plan_arg){PLAN_OUTPUT, i - inputs};
        binding->job.operands[i].bytes = coil_room_of(entry, arg, binding->quantities);
    }
}

/* Everything that depends on the symbols; the entry is bound when this succeeds. */
static int settle(coil_session *session, int32_t entry, const int64_t *symbols, const int64_t *const *dims) {
    binding *binding = &session->bindings[entry];
    size_t arena_bytes = 0;
    binding->bound = false;
    int code = coil_evaluate(entry, symbols, binding->quantities);
    if (!code) code = place_slots(entry, binding->quantities, binding->offsets, &arena_bytes);
    if (!code && dims) code = check_dims(binding, entry, dims);
    if (!code) code = grow_arena(session, arena_bytes);
    if (code) return code;
    fill_args(session, binding, &coil_plan.entries[entry]);
    size_operands(binding, entry);
    binding->bound = true;
    return COIL_OK;
}

/* As it was bound before; this does not fail. */
static int restore(coil_session *session, int32_t entry, int code) {
    (void)settle(session, entry, session->bindings[entry].symbols, NULL);
    return code;
}

/* One of `symbols` and `dims` is given. A failure leaves what was bound. */
static int bind(coil_session *session, int32_t entry, const int64_t *symbols, const int64_t *const *dims) {
    binding *binding = &session->bindings[entry];
    size_t bytes = (size_t)entry_of(entry)->symbol_count * sizeof *symbols;
    bool before = binding->bound;
    if (!dims && symbols && bytes) memcpy(binding->wanted, symbols, bytes);
    int code = dims ? solve_symbols(entry_of(entry), dims, binding->wanted) : COIL_OK;
    if (!code) code = check_symbols(entry_of(entry), dims || symbols ? binding->wanted : NULL);
    if (code) return code;
    code = settle(session, entry, binding->wanted, dims);
    if (!code) memcpy(binding->symbols, binding->wanted, bytes);
    return code && before ? restore(session, entry, code) : code;
}

static int bind_alone(coil_session *session, int32_t entry, const int64_t *symbols, const int64_t *const *dims) {
    if (atomic_exchange(&session->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the session");
    int code = bind(session, entry, symbols, dims);
    atomic_store(&session->busy, false);
    return code;
}

int coil_session_bind(coil_session *session, int32_t entry, const int64_t *symbols) {
    int code = coil_check_entry(session, entry);
    return code ? code : bind_alone(session, entry, symbols, NULL);
}

static bool takes_state(const coil_entry *entry, int32_t input) {
    for (int32_t i = 0; i < entry->state_count; i++)
        if (entry->states[i].input == input) return true;
    return false;
}

int coil_session_bind_shapes(coil_session *session, int32_t entry, const int64_t *const *dims) {
    int code = coil_check_entry(session, entry);
    if (code) return code;
    const coil_entry *info = entry_of(entry);
    for (int32_t i = 0; i < info->input_count; i++)
        if (!dims || (info->inputs[i].rank && !dims[i] && !takes_state(info, i)))
            return coil_fail(COIL_ARGUMENT, "the dims of input '%s' are NULL", info->inputs[i].name);
    return bind_alone(session, entry, NULL, info->input_count ? dims : NULL);
}

int coil_session_dims(const coil_session *session, int32_t entry, int output, int32_t index, int64_t *dims) {
    int code = coil_check_entry(session, entry);
    if (code) return code;
    const coil_entry *info = entry_of(entry);
    const binding *binding = &session->bindings[entry];
    if (!binding->bound) return coil_fail(COIL_UNBOUND, "entry '%s' is not bound", info->name);
    if (!dims || index < 0 || index >= (output ? info->output_count : info->input_count))
        return coil_fail(COIL_ARGUMENT, "entry '%s' has no %s %d", info->name, output ? "output" : "input", index);
    const plan_entry *plan = &coil_plan.entries[entry];
    const int32_t *axes = (output ? plan->output_dims : plan->input_dims)[index];
    int32_t rank = (output ? info->outputs : info->inputs)[index].rank;
    for (int32_t i = 0; i < rank; i++) dims[i] = binding->quantities[axes[i]];
    return COIL_OK;
}

const int64_t *coil_session_quantities(const coil_session *session, int32_t entry) {
    return session->bindings[entry].bound ? session->bindings[entry].quantities : NULL;
}
