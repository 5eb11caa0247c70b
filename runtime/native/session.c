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

/* Memory of one entry: everything that bind and run write to. */

static int open_binding(binding *binding, const coil_entry *entry, const plan_entry *plan) {
    size_t args = (size_t)plan->arg_count + 1, slots = (size_t)plan->slot_count + 1;
    binding->symbols = calloc((size_t)entry->symbol_count + 1, sizeof *binding->symbols);
    binding->quantities = calloc((size_t)plan->quantity_count + 1, sizeof *binding->quantities);
    binding->offsets = calloc(slots, sizeof *binding->offsets);
    binding->args = calloc(args, sizeof *binding->args);
    binding->patches = calloc(args, sizeof *binding->patches);
    binding->results = calloc(args, sizeof *binding->results);
    if (!binding->symbols || !binding->quantities || !binding->offsets || !binding->args || !binding->patches ||
        !binding->results)
        return coil_fail(COIL_MEMORY, "out of memory");
    for (int32_t i = 0; i < plan->arg_count; i++) {
        plan_arg arg = plan->args[i];
        binding->args[i].type = arg.kind == PLAN_QUANTITY ? KERNEL_INT : KERNEL_POINTER;
        if (arg.kind == PLAN_INPUT || arg.kind == PLAN_OUTPUT)
            binding->patches[binding->patch_count++] = (patch){i, arg.index, arg.kind == PLAN_OUTPUT};
    }
    return COIL_OK;
}

static void close_binding(binding *binding) {
    free(binding->symbols);
    free(binding->quantities);
    free(binding->offsets);
    free(binding->args);
    free(binding->patches);
    free(binding->results);
}

static int open_parts(coil_session *session, int32_t threads) {
    int32_t entries = coil_plan.description.entry_count;
    session->bindings = calloc((size_t)entries, sizeof *session->bindings);
    if (!session->bindings) return coil_fail(COIL_MEMORY, "out of memory");
    for (int32_t i = 0; i < entries; i++) {
        int code = open_binding(&session->bindings[i], entry_of(i), &coil_plan.entries[i]);
        if (code) return code;
    }
    return pool_open(&session->pool, threads, coil_plan.description.scratch_bytes);
}

int coil_session_open(const coil_model *model, int32_t threads, coil_session **session) {
    if (!model || !session) return coil_fail(COIL_ARGUMENT, "coil_session_open needs a model and a place for the session");
    *session = NULL;
    if (threads < 1 || threads > 1024)
        return coil_fail(COIL_ARGUMENT, "%d threads are not possible, use 1 to 1024", threads);
    coil_session *opened = calloc(1, sizeof *opened);
    if (!opened) return coil_fail(COIL_MEMORY, "out of memory");
    opened->model = model;
    int code = open_parts(opened, threads);
    if (code)
        coil_session_close(opened);
    else
        *session = opened;
    return code;
}

void coil_session_close(coil_session *session) {
    if (!session) return;
    pool_close(&session->pool);
    coil_unmap(session->arena, session->arena_bytes);
    for (int32_t i = 0; session->bindings && i < coil_plan.description.entry_count; i++)
        close_binding(&session->bindings[i]);
    free(session->bindings);
    free(session);
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

/* Place the slots one after the other; returns false when the arena would not fit the address space. */
static bool place_slots(binding *binding, const plan_entry *plan, size_t *total) {
    *total = 0;
    for (int32_t i = 0; i < plan->slot_count; i++) {
        int64_t bytes = binding->quantities[plan->slots[i]];
        if (bytes < 0 || (uint64_t)bytes > (uint64_t)INT64_MAX - ALIGNMENT - *total) return false;
        binding->offsets[i] = *total;
        *total += round_up((size_t)bytes + !bytes, ALIGNMENT);
    }
    return true;
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

/* Everything that depends on the symbols but needs no memory. */
static int evaluate(binding *binding, int32_t entry, const int64_t *symbols, size_t *arena_bytes) {
    const plan_entry *plan = &coil_plan.entries[entry];
    int code = check_symbols(entry_of(entry), symbols);
    if (code) return code;
    binding->bound = false;
    if (plan->evaluate(symbols, binding->quantities) || !place_slots(binding, plan, arena_bytes))
        return coil_fail(COIL_ARGUMENT, "entry '%s': the sizes overflow 64 bits", entry_of(entry)->name);
    return check_sizes(entry, binding->quantities);
}

static int solve_symbols(const coil_entry *entry, const int64_t *const *dims, int64_t *symbols) {
    for (int32_t i = 0; i < entry->symbol_count; i++) {
        coil_symbol symbol = entry->symbols[i];
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
        for (int32_t axis = 0; axis < input.rank; axis++) {
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
    if (!code) code = evaluate(binding, entry, dims ? binding->symbols : symbols, &arena_bytes);
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

int coil_session_bind_shapes(coil_session *session, int32_t entry, const int64_t *const *dims) {
    int code = check_entry(session, entry);
    if (code) return code;
    const coil_entry *info = entry_of(entry);
    for (int32_t i = 0; i < info->input_count; i++)
        if (!dims || (info->inputs[i].rank && !dims[i]))
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

int64_t coil_session_quantity(const coil_session *session, int32_t entry, int32_t index) {
    return session->bindings[entry].quantities[index];
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
    pool_begin(&session->pool);
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
