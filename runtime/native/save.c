/* save.c: states in files. */
#include "state.h"

#include <string.h>

enum { STATE_VERSION = 1 };

/* A saved state: this, the size of every state (uint64_t), and one slot. */
typedef struct saved {
    char magic[8];
    uint32_t version, count;
    char identity[64];
    uint64_t calls, bytes, checksum; /* the checksum is that of the file with this field 0 */
} saved;

static const char magic[8] = {'c', 'o', 'i', 'l', 's', 't', 'a', 't'};

/* FNV-1a, 64 bits. */
static uint64_t checksum(uint64_t hash, const void *memory, size_t bytes) {
    const unsigned char *at = memory;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static const uint64_t checksum_start = UINT64_C(0xcbf29ce484222325);

static uint64_t digest(const saved *header, const unsigned char *rest, size_t bytes) {
    saved plain = *header;
    plain.checksum = 0;
    return checksum(checksum(checksum_start, &plain, sizeof plain), rest, bytes);
}

static size_t table_bytes(void) { return (size_t)state_count() * sizeof(uint64_t); }

int coil_state_save(const coil_state *state, void *memory, uint64_t *bytes) {
    if (!state || !bytes) return coil_fail(COIL_ARGUMENT, "coil_state_save needs a state and a place for the size");
    uint64_t room = *bytes;
    size_t held = state->kept + state->bytes;
    *bytes = sizeof(saved) + table_bytes() + held;
    if (!memory) return COIL_OK;
    if (room < *bytes)
        return coil_fail(COIL_ARGUMENT, "the state needs %llu bytes, there is room for %llu",
                         (unsigned long long)*bytes, (unsigned long long)room);
    saved header = {.version = STATE_VERSION, .count = (uint32_t)state_count(), .calls = state->calls};
    header.bytes = held;
    memcpy(header.magic, magic, sizeof magic);
    memcpy(header.identity, coil_plan.description.identity, sizeof header.identity);
    unsigned char *rest = (unsigned char *)memory + sizeof header, *content = rest + table_bytes();
    for (int32_t i = 0; i < state_count(); i++) {
        uint64_t size = state->sizes[i];
        memcpy(rest + (size_t)i * sizeof size, &size, sizeof size);
    }
    int code = coil_moment_await(state->device, &state->used);
    if (!code) code = coil_device_read(state->device, content, state->memory, state->kept);
    if (!code) code = coil_device_read(state->device, content + state->kept, slot(state, state->now), state->bytes);
    if (code) return code;
    header.checksum = digest(&header, rest, table_bytes() + held);
    memcpy(memory, &header, sizeof header);
    return COIL_OK;
}

static int check_saved(const saved *header, const unsigned char *rest, uint64_t bytes) {
    if (bytes < sizeof header->magic || memcmp(header->magic, magic, sizeof magic))
        return coil_fail(COIL_STATE, "it is no saved state");
    if (bytes >= 12 && (header->version < 1 || header->version > STATE_VERSION))
        return coil_fail(COIL_STATE, "it has version %u, this model reads versions 1 to %d", header->version,
                         STATE_VERSION);
    if (bytes < sizeof *header) return coil_fail(COIL_STATE, "it is cut off");
    if (header->version != STATE_VERSION) return coil_fail(COIL_STATE, "its version does not exist");
    if (memcmp(header->identity, coil_plan.description.identity, sizeof header->identity))
        return coil_fail(COIL_STATE, "it is the state of another model");
    if (header->count != (uint32_t)state_count() || bytes - sizeof *header < table_bytes() ||
        bytes - sizeof *header - table_bytes() != header->bytes)
        return coil_fail(COIL_STATE, "it is cut off or has bytes too many");
    if (digest(header, rest, bytes - sizeof *header) != header->checksum)
        return coil_fail(COIL_STATE, "its content does not match its checksum");
    return COIL_OK;
}

/* The sizes in the table, into `state->wanted`; they fill the slot exactly. */
static int read_table(coil_state *state, const saved *header, const unsigned char *rest) {
    uint64_t total = 0;
    for (int32_t i = 0; i < state_count(); i++) {
        uint64_t size;
        memcpy(&size, rest + (size_t)i * sizeof size, sizeof size);
        if (size > header->bytes) return coil_fail(COIL_STATE, "its sizes contradict each other");
        state->wanted[i] = (size_t)size;
        total += round_up((size_t)size, ALIGNMENT);
    }
    return total == header->bytes ? COIL_OK : coil_fail(COIL_STATE, "its sizes contradict each other");
}

int coil_state_load(coil_state *state, const void *memory, uint64_t bytes) {
    if (!state || !memory) return coil_fail(COIL_ARGUMENT, "coil_state_load needs a state and memory to read");
    saved header = {0};
    memcpy(&header, memory, bytes < sizeof header ? (size_t)bytes : sizeof header);
    const unsigned char *rest = (const unsigned char *)memory + sizeof header;
    int code = check_saved(&header, rest, bytes);
    if (!code) code = read_table(state, &header, rest);
    if (!code) code = coil_state_resize(state, state->wanted);
    if (!code) code = coil_device_write(state->device, state->memory, rest + table_bytes(), state->kept + state->bytes);
    if (!code) state->calls = header.calls;
    return code;
}
