/* session.c: binding symbols and running the plan. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* One argument that changes with every run: a pointer of the caller. */
typedef struct patch {
    int32_t arg, index;
    bool output;
} patch;

typedef struct binding {
    bool bound;
    int64_t *symbols, *quantities;
    size_t *offsets;  /* of each slot in the arena */
    kernel_arg *args; /* of all calls, ready to use */
    patch *patches;
    int32_t patch_count;
    const void **results; /* room for the trace callback */
} binding;

struct coil_session {
    const coil_model *model;
    pool pool;
    binding *bindings; /* one per entry */
    unsigned char *arena;
    size_t arena_bytes;
    bool given; /* all of it lies in the caller's memory: nothing grows and nothing is released */
    _Atomic bool busy;
};

static const coil_entry *entry_of(int32_t index) { return &coil_plan.description.entries[index]; }

static int check_entry(const coil_session *session, int32_t entry) {
    if (!session) return coil_fail(COIL_ARGUMENT, "the session is NULL");
    if (entry < 0 || entry >= coil_plan.description.entry_count)
        return coil_fail(COIL_ARGUMENT, "entry %d does not exist, the model has %d", entry,
                         coil_plan.description.entry_count);
    return COIL_OK;
}

/* Opening. Placing a session in a region that only counts gives its size, so both kinds of session have one layout. */

static void start_binding(binding *binding, const plan_entry *plan) {
    for (int32_t i = 0; i < plan->arg_count; i++) {
        plan_arg arg = plan->args[i];
        binding->args[i].type = arg.kind == PLAN_QUANTITY ? KERNEL_INT : KERNEL_POINTER;
        if (arg.kind == PLAN_INPUT || arg.kind == PLAN_OUTPUT)
            binding->patches[binding->patch_count++] = (patch){i, arg.index, arg.kind == PLAN_OUTPUT};
    }
}

/* Everything of one entry that bind and run write to. */
static binding place_binding(region *room, const coil_entry *entry, const plan_entry *plan) {
    binding place = {0};
    place.symbols = coil_take(room, (size_t)entry->symbol_count + 1, sizeof *place.symbols);
    place.quantities = coil_take(room, (size_t)plan->quantity_count + 1, sizeof *place.quantities);
    place.offsets = coil_take(room, (size_t)plan->slot_count + 1, sizeof *place.offsets);
    place.args = coil_take(room, (size_t)plan->arg_count + 1, sizeof *place.args);
    place.patches = coil_take(room, (size_t)plan->arg_count + 1, sizeof *place.patches);
    place.results = coil_take(room, (size_t)plan->arg_count + 1, sizeof *place.results);
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
        if (bindings) bindings[i] = placed, start_binding(&bindings[i], &coil_plan.entries[i]);
    }
    if (session) session->bindings = bindings, session->pool.workers = workers, session->pool.handles = handles;
    return session;
}

int coil_session_open(const coil_model *model, int32_t threads, coil_session **session) {
    if (!model || !session) return coil_fail(COIL_ARGUMENT, "coil_session_open needs a model and a place for the session");
    *session = NULL;
    if (threads < 1 || threads > 1024)
        return coil_fail(COIL_ARGUMENT, "%d threads are not possible, use 1 to 1024", threads);
    region room = {0};
    place_session(&room, threads);
    room = (region){malloc(room.used), 0};
    if (!room.memory) return coil_fail(COIL_MEMORY, "out of memory");
    coil_session *opened = place_session(&room, threads);
    opened->model = model;
    int code = coil_pool_open(&opened->pool, threads, coil_plan.description.scratch_bytes);
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
    coil_unmap(session->arena, session->arena_bytes);
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
    return session ? session->arena_bytes + session->pool.scratch_capacity * (size_t)session->pool.threads : 0;
}

/* Binding. */

static int check_symbols(const coil_entry *entry, const int64_t *symbols) {
    if (entry->symbol_count && !symbols) return coil_fail(COIL_ARGUMENT, "the symbols are NULL");
    for (int32_t i = 0; i < entry->symbol_count; i++) {
        coil_symbol symbol = entry->symbols[i];
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

/* A larger arena moves; nothing in it outlives a run, so only the addresses of bound entries are renewed. */
static int grow_arena(coil_session *session, size_t bytes) {
    if (bytes <= session->arena_bytes) return COIL_OK;
    if (session->given)
        return coil_fail(COIL_MEMORY, "the arena takes %zu bytes, the session's memory has room for %zu", bytes,
                         session->arena_bytes);
    coil_unmap(session->arena, session->arena_bytes);
    session->arena = coil_map(bytes);
    session->arena_bytes = session->arena ? bytes : 0;
    for (int32_t i = 0; i < coil_plan.description.entry_count; i++) {
        binding *binding = &session->bindings[i];
        binding->bound = binding->bound && session->arena;
        if (binding->bound) fill_args(session, binding, &coil_plan.entries[i]);
    }
    return session->arena ? COIL_OK : coil_fail(COIL_MEMORY, "could not reserve an arena of %zu bytes", bytes);
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

/* One of `symbols` and `dims` is given. */
static int bind(coil_session *session, int32_t entry, const int64_t *symbols, const int64_t *const *dims) {
    binding *binding = &session->bindings[entry];
    size_t arena_bytes = 0;
    int code = dims ? solve_symbols(entry_of(entry), dims, binding->symbols) : COIL_OK;
    if (!code) code = check_symbols(entry_of(entry), dims ? binding->symbols : symbols);
    if (code) return code;
    binding->bound = false;
    code = coil_evaluate(entry, dims ? binding->symbols : symbols, binding->quantities);
    if (!code) code = place_slots(entry, binding->quantities, binding->offsets, &arena_bytes);
    if (!code && dims) code = check_dims(binding, entry, dims);
    if (!code) code = grow_arena(session, arena_bytes);
    if (code) return code;
    fill_args(session, binding, &coil_plan.entries[entry]);
    binding->bound = true;
    return COIL_OK;
}

static int bind_alone(coil_session *session, int32_t entry, const int64_t *symbols, const int64_t *const *dims) {
    if (atomic_exchange(&session->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the session");
    int code = bind(session, entry, symbols, dims);
    atomic_store(&session->busy, false);
    return code;
}

int coil_session_bind(coil_session *session, int32_t entry, const int64_t *symbols) {
    int code = check_entry(session, entry);
    return code ? code : bind_alone(session, entry, symbols, NULL);
}

static bool takes_state(const coil_entry *entry, int32_t input) {
    for (int32_t i = 0; i < entry->state_count; i++)
        if (entry->states[i].input == input) return true;
    return false;
}

int coil_session_bind_shapes(coil_session *session, int32_t entry, const int64_t *const *dims) {
    int code = check_entry(session, entry);
    if (code) return code;
    const coil_entry *info = entry_of(entry);
    for (int32_t i = 0; i < info->input_count; i++)
        if (!dims || (info->inputs[i].rank && !dims[i] && !takes_state(info, i)))
            return coil_fail(COIL_ARGUMENT, "the dims of input '%s' are NULL", info->inputs[i].name);
    return bind_alone(session, entry, NULL, info->input_count ? dims : NULL);
}

int coil_session_dims(const coil_session *session, int32_t entry, int output, int32_t index, int64_t *dims) {
    int code = check_entry(session, entry);
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

/* Running. */

static int patch_args(binding *binding, const coil_entry *entry, const void *const *inputs, void *const *outputs) {
    for (int32_t i = 0; i < binding->patch_count; i++) {
        patch patch = binding->patches[i];
        const void *pointer = patch.output ? (outputs ? outputs[patch.index] : NULL) : (inputs ? inputs[patch.index] : NULL);
        if (!pointer)
            return coil_fail(COIL_ARGUMENT, "%s '%s' of entry '%s' is NULL", patch.output ? "output" : "input",
                             (patch.output ? entry->outputs : entry->inputs)[patch.index].name, entry->name);
        binding->args[patch.arg].value.pointer = pointer;
    }
    return COIL_OK;
}

static int execute(coil_session *session, const plan_call *call, const kernel_arg *args) {
    kernel_arg ignored = {0};
    if (!call->kernel) {
        void *to = (void *)(uintptr_t)args[1].value.pointer;
        if (to != args[0].value.pointer) memcpy(to, args[0].value.pointer, (size_t)args[2].value.integer);
        return COIL_OK;
    }
    if (!call->kernel(NULL, args, call->count, &ignored)) return COIL_OK;
    const pool *pool = &session->pool;
    return coil_fail(COIL_KERNEL, "kernel %s failed: %s", call->name,
                     atomic_load(&pool->has_message) ? pool->message : "no reason given");
}

static int observe(binding *binding, const plan_call *call, int32_t index, coil_trace callback, void *user) {
    for (int32_t i = 0; i < call->results; i++)
        binding->results[i] = binding->args[call->first + call->result + i].value.pointer;
    if (!callback(user, index, binding->results, call->results)) return COIL_OK;
    return coil_fail(COIL_STOPPED, "the trace callback stopped after call %d", index);
}

static int run(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs,
               coil_trace callback, void *user) {
    const coil_entry *info = entry_of(entry);
    binding *binding = &session->bindings[entry];
    if (!binding->bound) return coil_fail(COIL_UNBOUND, "entry '%s' is not bound", info->name);
    int code = patch_args(binding, info, inputs, outputs);
    worker *outer = coil_worker, *self = session->pool.workers;
    coil_worker = self;
    coil_pool_begin(&session->pool);
    for (int32_t i = 0; i < info->call_count && !code; i++) {
        const plan_call *call = &coil_plan.entries[entry].calls[i];
        self->used = 0;
        code = execute(session, call, binding->args + call->first);
        if (!code && callback) code = observe(binding, call, i, callback, user);
    }
    coil_worker = outer;
    return code;
}

static int run_alone(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs,
                     coil_trace callback, void *user) {
    int code = check_entry(session, entry);
    if (code) return code;
    if (atomic_exchange(&session->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the session");
    code = run(session, entry, inputs, outputs, callback, user);
    atomic_store(&session->busy, false);
    return code;
}

int coil_session_run(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs) {
    return run_alone(session, entry, inputs, outputs, NULL, NULL);
}

int coil_session_trace(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs,
                       coil_trace callback, void *user) {
    if (!callback) return coil_fail(COIL_ARGUMENT, "coil_session_trace needs a callback");
    return run_alone(session, entry, inputs, outputs, callback, user);
}
