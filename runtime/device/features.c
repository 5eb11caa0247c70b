/* features.c: whether this CPU has what the code was compiled for. */
#define _GNU_SOURCE
#include "machine.h"

#include <stdio.h>
#include <string.h>

#if defined(__aarch64__)
#include <sys/auxv.h>

/* The kernel's names of its bits; /proc/cpuinfo would be the host's under an emulator. */
static const struct {
    const char *name;
    unsigned long kind, bit;
} BITS[] = {
    {"asimd", AT_HWCAP, 1},     {"fphp", AT_HWCAP, 9},  {"asimdhp", AT_HWCAP, 10},  {"asimdrdm", AT_HWCAP, 12},
    {"fcma", AT_HWCAP, 14},     {"sha3", AT_HWCAP, 17}, {"asimddp", AT_HWCAP, 20},  {"asimdfhm", AT_HWCAP, 23},
    {"i8mm", AT_HWCAP2, 13},    {"bf16", AT_HWCAP2, 14},
};

static bool present(const char *name) {
    for (size_t i = 0; i < sizeof BITS / sizeof *BITS; i++)
        if (!strcmp(BITS[i].name, name)) return getauxval(BITS[i].kind) >> BITS[i].bit & 1;
    return false;
}
#else

/* The line is long but ends; a feature is a whole word of it. */
static bool present(const char *name) {
    static char line[16384];
    FILE *file = line[0] ? NULL : fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file) && strncmp(line, "flags", 5)) line[0] = 0;
    if (file) fclose(file);
    size_t length = strlen(name);
    for (const char *at = line; (at = strstr(at, name)); at += length)
        if (at > line && at[-1] == ' ' && (at[length] == ' ' || at[length] == '\n')) return true;
    return false;
}
#endif

const char *missing_feature(void) {
    for (const char *const *name = coil_features; *name; name++)
        if (!present(*name)) return *name;
    return NULL;
}
