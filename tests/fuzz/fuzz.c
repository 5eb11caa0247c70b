/* fuzz.c: see fuzz.h; and the runtime's memory from malloc, so that the sanitizer knows where it ends. */
#include "fuzz.h"

#include "internal.h"

enum { LARGEST = 1 << 20 }; /* what is larger fails, as it could on a device */

void *coil_map(size_t bytes) {
    if (bytes > LARGEST) return NULL;
    size_t rounded = round_up(bytes + !bytes, ALIGNMENT);
    void *memory = aligned_alloc(ALIGNMENT, rounded);
    return memory ? memset(memory, 0, rounded) : NULL;
}

void coil_unmap(void *memory, size_t bytes) {
    (void)bytes;
    free(memory);
}

uint64_t next_bytes(stream *from, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value |= (uint64_t)next_byte(from) << 8 * i;
    return value;
}

int64_t next_number(stream *from) {
    static const int64_t EDGES[] = {-1, INT64_MIN, INT64_MAX, INT32_MIN, INT32_MAX, INT64_MAX / 2, INT64_MAX / 16,
                                    INT64_C(1) << 62, INT64_C(1) << 32, UINT32_MAX};
    uint8_t first = next_byte(from);
    if (first < 224) return first % 32;
    if (first < 252) return EDGES[first % 10] + next_byte(from) % 3 * (EDGES[first % 10] < 0 ? 1 : -1);
    return (int64_t)next_bytes(from, 8);
}

static volatile uint8_t seen;

void touch(const void *memory, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) seen ^= ((const uint8_t *)memory)[i];
}

void *make_weights(uint64_t bytes) {
    void *memory = aligned_alloc(ALIGNMENT, round_up((size_t)bytes + !bytes, ALIGNMENT));
    REQUIRE(memory);
    return memset(memory, 1, (size_t)bytes);
}

void repair_checksum(uint8_t *data, size_t size) {
    if (size < CHECKSUM_END) return;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    memset(data + CHECKSUM_AT, 0, CHECKSUM_END - CHECKSUM_AT);
    for (size_t i = 0; i < size; i++) hash = (hash ^ data[i]) * UINT64_C(0x100000001b3);
    memcpy(data + CHECKSUM_AT, &hash, sizeof hash);
}
