/* describe.c: what the program computes, and the memory that it takes. */
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "machine.h"
#include "program.h"

static void describe_tensors(const char *key, const coil_tensor *tensors, int32_t count) {
    json_open(key, '[');
    for (int32_t i = 0; i < count; i++) {
        json_open(NULL, '{');
        json_string("name", tensors[i].name);
        json_string("dtype", tensors[i].dtype);
        json_string("type", tensors[i].type);
        json_close('}');
    }
    json_close(']');
}

static const pair *find_dim(const program *p, const char *name) {
    for (int32_t i = 0; i < p->options.dims.count; i++)
        if (!strcmp(p->options.dims.items[i].name, name)) return &p->options.dims.items[i];
    return NULL;
}

/* The values of all symbols of an entry, or NULL when one is not given. */
static int64_t *symbols_of(const program *p, const coil_entry *entry) {
    int64_t *symbols = reserve((size_t)entry->symbol_count, sizeof *symbols);
    for (int32_t i = 0; i < entry->symbol_count; i++) {
        const pair *dim = find_dim(p, entry->symbols[i].name);
        if (!dim) {
            free(symbols);
            return NULL;
        }
        symbols[i] = dim_value(dim);
    }
    return symbols;
}

/* Bytes of a session that is bound to one entry, or to none (NULL). */
static uint64_t session_bytes(int32_t index, const int64_t *symbols) {
    const int64_t **chosen = reserve((size_t)coil_describe()->entry_count, sizeof *chosen);
    uint64_t bytes;
    chosen[index] = symbols;
    check(coil_session_bytes(chosen, &bytes));
    free(chosen);
    return bytes;
}

/* What a run takes besides its inputs and outputs. */
static void describe_memory(const program *p, int32_t index, const int64_t *symbols) {
    const coil_description *all = coil_describe();
    uint64_t fixed = session_bytes(index, NULL), whole = session_bytes(index, symbols), states = 0;
    if (all->entries[index].state_count) check(coil_state_bytes(index, symbols, 1, &states));
    uint64_t scratch = all->scratch_bytes * (uint64_t)p->options.threads, tables = fixed - all->scratch_bytes;
    json_open("memory", '{');
    json_integer("weights", (int64_t)all->weights_bytes);
    json_integer("arena", (int64_t)(whole - fixed));
    json_integer("states", (int64_t)states);
    json_integer("scratch", (int64_t)scratch);
    json_integer("tables", (int64_t)tables);
    json_integer("peak", (int64_t)(all->weights_bytes + whole - fixed + states + scratch + tables));
    json_close('}');
}

static void describe_entry(const program *p, int32_t index) {
    const coil_entry *entry = &coil_describe()->entries[index];
    json_open(NULL, '{');
    json_string("name", entry->name);
    describe_tensors("inputs", entry->inputs, entry->input_count);
    describe_tensors("outputs", entry->outputs, entry->output_count);
    json_open("dims", '[');
    for (int32_t i = 0; i < entry->symbol_count; i++) {
        json_open(NULL, '{');
        json_string("name", entry->symbols[i].name);
        json_integer("low", entry->symbols[i].low);
        if (entry->symbols[i].high < INT64_MAX) json_integer("high", entry->symbols[i].high);
        json_close('}');
    }
    json_close(']');
    json_integer("calls", entry->call_count);
    int64_t *symbols = symbols_of(p, entry);
    if (symbols) describe_memory(p, index, symbols);
    free(symbols);
    json_close('}');
}

static void check_dims(const program *p) {
    const coil_description *all = coil_describe();
    for (int32_t i = 0; i < p->options.dims.count; i++) {
        bool known = false;
        for (int32_t e = 0; e < all->entry_count; e++)
            for (int32_t s = 0; s < all->entries[e].symbol_count; s++)
                known |= !strcmp(all->entries[e].symbols[s].name, p->options.dims.items[i].name);
        if (!known) die(EXIT_INPUT, "no entry has a dim '%s'", p->options.dims.items[i].name);
    }
    for (int32_t e = 0; e < all->entry_count; e++) { /* before anything is printed */
        int64_t *symbols = symbols_of(p, &all->entries[e]);
        session_bytes(e, symbols);
        free(symbols);
    }
}

void describe(const program *p) {
    const coil_description *all = coil_describe();
    check_dims(p);
    json_open(NULL, '{');
    json_string("target", coil_target);
    json_open("features", '[');
    for (const char *const *name = coil_features; *name; name++) json_string(NULL, *name);
    json_close(']');
    json_open("entries", '[');
    for (int32_t i = 0; i < all->entry_count; i++)
        if (!p->options.entry || i == p->index) describe_entry(p, i);
    json_close(']');
    json_integer("weights_bytes", (int64_t)all->weights_bytes);
    json_integer("scratch_bytes_per_thread", (int64_t)all->scratch_bytes);
    json_close('}');
}
