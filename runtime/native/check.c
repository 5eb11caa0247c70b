/* check.c: whether the plan's tables fit each other. Once at load, what does not depend on the symbols; at every bind, the
 * sizes that do. Behind these checks the runtime follows indices and offsets without looking. */
#include "internal.h"

#include <string.h>

enum { MOST_ROWS = 1 << 24, MOST_RANK = 64, IDENTITY_BYTES = 64 };
static const uint64_t MOST_SCRATCH = UINT64_C(1) << 40; /* times 1024 threads it still fits */

static bool within(int64_t index, int64_t count) { return index >= 0 && index < count; }

/* A table has rows, and is there when it has any. */
static bool table(const void *rows, int64_t count) { return within(count, MOST_ROWS) && (rows || !count); }

static size_t element_bytes(const char *dtype) {
    static const struct {
        const char *name;
        size_t bytes;
    } KNOWN[] = {{"f32", 4}, {"f64", 8}, {"f16", 2}, {"bf16", 2}, {"i64", 8}, {"i32", 4},
                 {"i16", 2}, {"i8", 1},  {"u8", 1},  {"bool", 1}, {"c64", 8}, {"c128", 16}};
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (!strcmp(KNOWN[i].name, dtype)) return KNOWN[i].bytes;
    return 0;
}

/* At load. */

static bool tensors_fit(const coil_tensor *tensors, const int32_t *const *dims, int32_t count, int32_t quantities) {
    if (!table(tensors, count) || !table(dims, count)) return false;
    for (int32_t i = 0; i < count; i++) {
        coil_tensor tensor = tensors[i];
        if (!tensor.name || !tensor.dtype || !element_bytes(tensor.dtype) || !tensor.type) return false;
        if (!within(tensor.rank, MOST_RANK + 1) || !table(dims[i], tensor.rank)) return false;
        for (int32_t axis = 0; axis < tensor.rank; axis++)
            if (!within(dims[i][axis], quantities)) return false;
    }
    return true;
}

static bool symbols_fit(const coil_entry *entry) {
    if (!table(entry->symbols, entry->symbol_count)) return false;
    for (int32_t i = 0; i < entry->symbol_count; i++) {
        coil_symbol symbol = entry->symbols[i];
        if (!symbol.name || symbol.low > symbol.high || symbol.scale < 1) return false;
        if (!within(symbol.input, entry->input_count)) return false;
        if (!within(symbol.axis, entry->inputs[symbol.input].rank)) return false;
    }
    return true;
}

/* States are the model's, or none; the clock of the room is one integer. */
static bool states_fit(const coil_entry *entry, const plan_entry *plan) {
    if (entry->state_count && entry->state_count != coil_plan.description.state_count) return false;
    if (!table(entry->states, entry->state_count)) return false;
    for (int32_t i = 0; i < entry->state_count; i++) {
        coil_link link = entry->states[i];
        if (!within(link.input, entry->input_count) || !within(link.output, entry->output_count)) return false;
        if (strcmp(entry->inputs[link.input].dtype, entry->outputs[link.output].dtype)) return false;
    }
    plan_room room = plan->room;
    if (room.clock < 0) return true;
    if (!within(room.clock, entry->state_count) || !within(room.capacity, plan->quantity_count)) return false;
    coil_tensor clock = entry->inputs[entry->states[room.clock].input];
    return within(room.elements, plan->quantity_count) && !clock.rank && !strcmp(clock.dtype, "i64");
}

/* Weights and inputs are only read. */
static bool writable(plan_arg arg) { return arg.kind == PLAN_OUTPUT || arg.kind == PLAN_SLOT; }

static bool args_fit(const coil_entry *entry, const plan_entry *plan) {
    const int32_t counts[] = {[PLAN_INPUT] = entry->input_count,
                              [PLAN_OUTPUT] = entry->output_count,
                              [PLAN_WEIGHT] = coil_plan.weight_count,
                              [PLAN_SLOT] = plan->slot_count,
                              [PLAN_QUANTITY] = plan->quantity_count};
    if (!table(plan->args, plan->arg_count)) return false;
    for (int32_t i = 0; i < plan->arg_count; i++)
        if (!within(plan->args[i].kind, PLAN_QUANTITY + 1) || !within(plan->args[i].index, counts[plan->args[i].kind]))
            return false;
    return true;
}

static bool call_fits(const plan_entry *plan, plan_call call) {
    if (!call.name || !within(call.first, (int64_t)plan->arg_count + 1)) return false;
    if (!within(call.count, (int64_t)plan->arg_count - call.first + 1)) return false;
    if (!within(call.result, (int64_t)call.count + 1)) return false;
    if (!within(call.results, (int64_t)call.count - call.result + 1)) return false;
    const plan_arg *args = plan->args + call.first;
    for (int32_t i = 0; i < call.results; i++)
        if (!writable(args[call.result + i])) return false;
    if (call.kernel) return true;
    return call.count == 3 && args[0].kind != PLAN_QUANTITY && writable(args[1]) && args[2].kind == PLAN_QUANTITY;
}

static bool calls_fit(const coil_entry *entry, const plan_entry *plan) {
    if (!table(plan->calls, entry->call_count) || !table(plan->slots, plan->slot_count)) return false;
    for (int32_t i = 0; i < plan->slot_count; i++)
        if (!within(plan->slots[i], plan->quantity_count)) return false;
    for (int32_t i = 0; i < entry->call_count; i++)
        if (!call_fits(plan, plan->calls[i])) return false;
    return true;
}

static bool rules_fit(const plan_entry *plan) {
    if (!table(plan->rules, plan->rule_count)) return false;
    for (int32_t i = 0; i < plan->rule_count; i++)
        if (!plan->rules[i].text || !within(plan->rules[i].quantity, plan->quantity_count)) return false;
    return true;
}

static bool entry_fits(const coil_entry *entry, const plan_entry *plan) {
    return entry->name && plan->evaluate && within(plan->quantity_count, MOST_ROWS) &&
           tensors_fit(entry->inputs, plan->input_dims, entry->input_count, plan->quantity_count) &&
           tensors_fit(entry->outputs, plan->output_dims, entry->output_count, plan->quantity_count) &&
           symbols_fit(entry) && states_fit(entry, plan) && args_fit(entry, plan) && calls_fit(entry, plan) &&
           rules_fit(plan);
}

static bool device_fits(const plan_device *device) {
    if (!table(device->launches, device->launch_count) || (device->launch_count && !device->code)) return false;
    for (int32_t i = 0; i < device->launch_count; i++) {
        plan_launch launch = device->launches[i];
        if (!launch.name || !within(launch.params, MOST_PARAMS + 1)) return false;
        if (launch.params < 64 && launch.maps >> launch.params) return false;
        if (!within(launch.tag_count, TAG_COUNT + 1) || !table(launch.tags, launch.tag_count)) return false;
        for (int32_t tag = 0; tag < launch.tag_count; tag++)
            if (launch.tags[tag] >= TAG_COUNT) return false;
    }
    return true;
}

int coil_check_plan(void) {
    const coil_description *all = &coil_plan.description;
    bool fits = all->abi_version == COIL_ABI_VERSION && all->entry_count > 0 && table(all->entries, all->entry_count) &&
                table(coil_plan.entries, all->entry_count) && table(coil_plan.weights, coil_plan.weight_count) &&
                all->scratch_bytes <= MOST_SCRATCH && within(all->state_count, MOST_ROWS) && all->identity &&
                !memchr(all->identity, 0, IDENTITY_BYTES) && device_fits(&coil_plan.device);
    bool stateful = !fits || !all->state_count; /* states are those of some entry */
    for (int32_t i = 0; fits && i < all->entry_count; i++) {
        fits = entry_fits(&all->entries[i], &coil_plan.entries[i]);
        stateful |= all->entries[i].state_count > 0;
    }
    return fits && stateful ? COIL_OK : coil_fail(COIL_WEIGHTS, "the library is damaged: its plan contradicts itself");
}

/* At every bind. */

static bool tensor_bytes(const coil_tensor *tensor, const int32_t *dims, const int64_t *quantities, int64_t *bytes) {
    bool overflow = false;
    *bytes = (int64_t)element_bytes(tensor->dtype);
    for (int32_t axis = 0; axis < tensor->rank; axis++) {
        int64_t extent = quantities[dims[axis]];
        overflow |= extent < 0 || __builtin_mul_overflow(*bytes, extent, bytes);
    }
    return !overflow;
}

static bool tensors_bounded(const coil_tensor *tensors, const int32_t *const *dims, int32_t count, const int64_t *q) {
    int64_t bytes;
    for (int32_t i = 0; i < count; i++)
        if (!tensor_bytes(&tensors[i], dims[i], q, &bytes)) return false;
    return true;
}

static int64_t room_of(int32_t index, plan_arg arg, const int64_t *quantities) {
    const coil_entry *entry = &coil_plan.description.entries[index];
    const plan_entry *plan = &coil_plan.entries[index];
    int64_t bytes = 0;
    if (arg.kind == PLAN_WEIGHT) return (int64_t)coil_plan.weights[arg.index].bytes;
    if (arg.kind == PLAN_SLOT) return quantities[plan->slots[arg.index]];
    if (arg.kind == PLAN_INPUT) tensor_bytes(&entry->inputs[arg.index], plan->input_dims[arg.index], quantities, &bytes);
    if (arg.kind == PLAN_OUTPUT)
        tensor_bytes(&entry->outputs[arg.index], plan->output_dims[arg.index], quantities, &bytes);
    return bytes;
}

static bool copies_fit(int32_t index, const int64_t *quantities) {
    const plan_entry *plan = &coil_plan.entries[index];
    for (int32_t i = 0; i < coil_plan.description.entries[index].call_count; i++) {
        const plan_arg *args = plan->args + plan->calls[i].first;
        if (plan->calls[i].kernel) continue;
        int64_t bytes = quantities[args[2].index];
        if (bytes < 0 || bytes > room_of(index, args[0], quantities) || bytes > room_of(index, args[1], quantities))
            return false;
    }
    return true;
}

/* What a state takes before a call, it takes after it. */
static bool states_keep_their_size(int32_t index, const int64_t *quantities) {
    const coil_entry *entry = &coil_plan.description.entries[index];
    for (int32_t i = 0; i < entry->state_count; i++) {
        plan_arg before = {PLAN_INPUT, entry->states[i].input}, after = {PLAN_OUTPUT, entry->states[i].output};
        if (room_of(index, before, quantities) != room_of(index, after, quantities)) return false;
    }
    return true;
}

static int check_rules(int32_t index, const int64_t *quantities) {
    const plan_entry *plan = &coil_plan.entries[index];
    for (int32_t i = 0; i < plan->rule_count; i++)
        if (quantities[plan->rules[i].quantity] < 0)
            return coil_fail(COIL_ARGUMENT, "entry '%s' needs %s to be at least 0, it is %lld here",
                             coil_plan.description.entries[index].name, plan->rules[i].text,
                             (long long)quantities[plan->rules[i].quantity]);
    return COIL_OK;
}

int coil_check_sizes(int32_t index, const int64_t *quantities) {
    const coil_entry *entry = &coil_plan.description.entries[index];
    const plan_entry *plan = &coil_plan.entries[index];
    int code = check_rules(index, quantities);
    if (code) return code;
    if (!tensors_bounded(entry->inputs, plan->input_dims, entry->input_count, quantities) ||
        !tensors_bounded(entry->outputs, plan->output_dims, entry->output_count, quantities))
        return coil_fail(COIL_ARGUMENT, "entry '%s': the sizes overflow 64 bits", entry->name);
    if (!copies_fit(index, quantities) || !states_keep_their_size(index, quantities))
        return coil_fail(COIL_ARGUMENT, "entry '%s': the library is damaged: its sizes contradict each other", entry->name);
    return COIL_OK;
}

size_t coil_room_of(int32_t index, plan_arg arg, const int64_t *quantities) {
    return (size_t)room_of(index, arg, quantities);
}
