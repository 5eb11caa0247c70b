/* region.c: parts of one block. Under the address sanitizer each part ends where it says. */
#include "internal.h"

#include <string.h>

#ifndef __has_feature
#define __has_feature(name) 0 /* older gcc, which has the macro instead */
#endif

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
enum { GAP = ALIGNMENT };
#else
enum { GAP = 0 };
#define ASAN_POISON_MEMORY_REGION(memory, bytes) (void)0
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) (void)0
#endif

void *coil_take(region *region, size_t count, size_t bytes) {
    size_t size = count * bytes, room = round_up(size, ALIGNMENT) + GAP, at = region->used;
    region->used += room;
    if (!region->memory) return NULL;
    unsigned char *part = region->memory + at;
    ASAN_UNPOISON_MEMORY_REGION(part, room);
    memset(part, 0, size);
    ASAN_POISON_MEMORY_REGION(part + size, room - size);
    return part;
}
