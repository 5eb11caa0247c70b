/* replay.c: a main for compilers without libFuzzer, with the same few options. It runs every file of the folders given,
 * then random changes of them until the time is over. It is blind: it keeps nothing that covers more. */
#include <dirent.h>
#include <time.h>

#include "fuzz.h"

enum { MOST = 4096, LONGEST = 1024 };

typedef struct sample {
    uint8_t *data;
    size_t size;
} sample;

static sample samples[MOST + 1];
static size_t sample_count;
static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t any(uint64_t below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % below;
}

static void read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || sample_count == MOST) return;
    sample *to = &samples[sample_count++];
    to->data = malloc(LONGEST);
    to->size = fread(to->data, 1, LONGEST, file);
    fclose(file);
}

static void read_folder(const char *path) {
    DIR *folder = opendir(path);
    char name[4096];
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.') read_file(name);
    }
    if (folder) closedir(folder);
}

/* On a copy of exactly its size, so that the sanitizer sees a read past the end. */
static void run(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size);
    if (size) memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void change(uint8_t *data, size_t *size) {
    if (any(4) == 0) *size = any(LONGEST);
    for (uint64_t i = any(8) + 1; i && *size; i--) {
        uint64_t at = any(*size);
        data[at] = any(2) ? (uint8_t)any(256) : data[at] ^ (uint8_t)(1 << any(8));
    }
}

int main(int argc, char **argv) {
    double seconds = 0;
    unsigned long long runs = 0;
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "-max_total_time=", 16))
            seconds = atof(argv[i] + 16);
        else if (argv[i][0] != '-')
            read_folder(argv[i]);
    for (size_t i = 0; i < sample_count; i++, runs++) run(samples[i].data, samples[i].size);
    samples[sample_count++] = (sample){(uint8_t[]){0}, 1};
    uint8_t data[LONGEST] = {0};
    for (time_t end = time(NULL) + (time_t)seconds; time(NULL) < end; runs++) {
        sample from = samples[any(sample_count)];
        memcpy(data, from.data, from.size);
        change(data, &from.size);
        run(data, from.size);
    }
    fprintf(stderr, "stat::number_of_executed_units: %llu\n", runs);
    return 0;
}
