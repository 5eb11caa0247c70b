/* run.c: running the plan of a bound entry. */
#include "session.h"

static int take(binding *binding, const coil_entry *entry, const void *const *inputs, void *const *outputs) {
    operand *operands = binding->job.operands;
    for (int32_t i = 0; i < entry->input_count; i++) operands[i].given = inputs ? inputs[i] : NULL;
    for (int32_t i = 0; i < entry->output_count; i++) operands[entry->input_count + i].given = outputs ? outputs[i] : NULL;
    for (int32_t i = 0; i < binding->patch_count; i++) {
        const operand *operand = &operands[binding->patches[i].operand];
        if (!operand->given)
            return coil_fail(COIL_ARGUMENT, "%s '%s' of entry '%s' is NULL", operand->output ? "output" : "input",
                             operand->name, entry->name);
    }
    return COIL_OK;
}

/* States of the entry, when they are the runtime's own; then it also looks at the clock among them. */
static void own_states(binding *binding, int32_t index, bool ours) {
    const coil_entry *entry = entry_of(index);
    int32_t clock = coil_plan.entries[index].room.clock;
    binding->job.watched = ours && clock >= 0 ? entry->input_count + entry->states[clock].output : -1;
    binding->job.has_seen = false;
    for (int32_t i = 0; i < entry->state_count; i++) {
        binding->job.operands[entry->states[i].input].ours = ours;
        binding->job.operands[entry->input_count + entry->states[i].output].ours = ours;
    }
}

static int execute(coil_session *session, const plan_call *call, const kernel_arg *args) {
    kernel_arg ignored = {0};
    if (!call->kernel)
        return coil_queue_copy(session->queue, (void *)(uintptr_t)args[1].value.pointer, args[0].value.pointer,
                               (size_t)args[2].value.integer);
    if (!call->kernel(NULL, args, call->count, &ignored)) return COIL_OK;
    const pool *pool = &session->pool;
    return coil_fail(COIL_KERNEL, "kernel %s failed: %s", call->name,
                     atomic_load(&pool->has_message) ? pool->message : "no reason given");
}

/* One run, and who watches it. */
typedef struct performance {
    coil_session *session;
    int32_t entry;
    coil_trace callback; /* or NULL */
    void *user;
} performance;

static int observe(const performance *seen, const plan_call *call, int32_t index) {
    binding *binding = &seen->session->bindings[seen->entry];
    for (int32_t i = 0, at = call->first + call->result; i < call->results; i++, at++) {
        binding->results[i] = binding->args[at].value.pointer;
        binding->result_bytes[i] = coil_room_of(seen->entry, coil_plan.entries[seen->entry].args[at], binding->quantities);
    }
    int code = coil_queue_show(seen->session->queue, binding->results, binding->result_bytes, call->results);
    if (code || !seen->callback(seen->user, index, binding->results, call->results)) return code;
    return coil_fail(COIL_STOPPED, "the trace callback stopped after call %d", index);
}

static int perform(void *context) {
    const performance *what = context;
    coil_session *session = what->session;
    binding *binding = &session->bindings[what->entry];
    worker *outer = coil_worker, *self = session->pool.workers;
    int code = COIL_OK;
    for (int32_t i = 0; i < binding->patch_count; i++)
        binding->args[binding->patches[i].arg].value.pointer = binding->job.operands[binding->patches[i].operand].address;
    coil_worker = self;
    coil_pool_begin(&session->pool);
    for (int32_t i = 0; i < entry_of(what->entry)->call_count && !code; i++) {
        const plan_call *call = &coil_plan.entries[what->entry].calls[i];
        self->used = 0;
        code = execute(session, call, binding->args + call->first);
        if (!code && what->callback) code = observe(what, call, i);
    }
    coil_worker = outer;
    return code;
}

static int run(performance *what, const void *const *inputs, void *const *outputs, bool ours) {
    const coil_entry *info = entry_of(what->entry);
    binding *binding = &what->session->bindings[what->entry];
    queue *queue = what->session->queue;
    if (!binding->bound) return coil_fail(COIL_UNBOUND, "entry '%s' is not bound", info->name);
    own_states(binding, what->entry, ours);
    int code = take(binding, info, inputs, outputs);
    if (!code) code = coil_queue_begin(queue, &binding->job);
    if (code) return code;
    return coil_queue_end(queue, &binding->job, coil_queue_play(queue, &binding->job, !what->callback, perform, what));
}

static int run_alone(performance what, const void *const *inputs, void *const *outputs, bool ours) {
    int code = coil_check_entry(what.session, what.entry);
    if (code) return code;
    if (atomic_exchange(&what.session->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the session");
    code = run(&what, inputs, outputs, ours);
    atomic_store(&what.session->busy, false);
    return code;
}

int coil_session_run(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs) {
    return run_alone((performance){session, entry, NULL, NULL}, inputs, outputs, false);
}

int coil_session_run_on(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs) {
    return run_alone((performance){session, entry, NULL, NULL}, inputs, outputs, true);
}

int coil_session_trace(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs,
                       coil_trace callback, void *user) {
    if (!callback) return coil_fail(COIL_ARGUMENT, "coil_session_trace needs a callback");
    return run_alone((performance){session, entry, callback, user}, inputs, outputs, false);
}

bool coil_session_seen(const coil_session *session, int32_t entry, int64_t *clock) {
    const job *job = &session->bindings[entry].job;
    *clock = job->seen;
    return job->has_seen;
}

int coil_session_stream(coil_session *session, void *stream) {
    if (!session) return coil_fail(COIL_ARGUMENT, "the session is NULL");
    if (atomic_exchange(&session->busy, true)) return coil_fail(COIL_BUSY, "another thread is using the session");
    int code = coil_queue_stream(session->queue, stream);
    atomic_store(&session->busy, false);
    return code;
}

int coil_session_wait(coil_session *session) {
    return session ? coil_queue_wait(session->queue) : coil_fail(COIL_ARGUMENT, "the session is NULL");
}
