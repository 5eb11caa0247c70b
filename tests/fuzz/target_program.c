/* The whole of coil-run: lines of a command line up to an empty one, then up to four files, each behind its size in two
 * bytes. The last character of a path says which file it is. Only the documented exit codes may come. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "machine.h"
#include "fuzz.h"
#include "options.h"

#undef malloc /* sandbox.h renamed their declarations too */
#undef free
#undef fopen
void *malloc(size_t bytes);
void free(void *memory);
FILE *fopen(const char *path, const char *mode);

enum { MOST_ARGS = 64, FILES = 4, MOST_BLOCKS = 1 << 12, MOST_BYTES = 1 << 20, MOST_LOOKS = 256 };

const char coil_target[] = "any", *const coil_features[] = {NULL};
const bool coil_embedded = true, coil_tokenizer = false;
int coil_main(int argc, char **argv);

static jmp_buf back;
static int looks; /* at the clock */

void fuzz_exit(int code) { longjmp(back, 1 + code); }

/* Memory: what the program has not released when it ends is released then. */

static void *blocks[MOST_BLOCKS];
static int block_count;

static void *remember(void *memory) {
    REQUIRE(block_count < MOST_BLOCKS);
    if (memory) blocks[block_count++] = memory;
    return memory;
}

void fuzz_free(void *memory) {
    for (int i = 0; i < block_count; i++)
        if (blocks[i] == memory) blocks[i] = blocks[--block_count];
    free(memory);
}

void *fuzz_aligned_alloc(size_t alignment, size_t bytes) {
    void *memory = NULL;
    return bytes > MOST_BYTES || posix_memalign(&memory, alignment, bytes) ? NULL : remember(memory);
}

void *fuzz_malloc(size_t bytes) { return fuzz_aligned_alloc(16, bytes); }

void *fuzz_calloc(size_t count, size_t bytes) {
    void *memory = __builtin_mul_overflow(count, bytes, &bytes) ? NULL : fuzz_malloc(bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

/* Exactly as large as the file, where pages would be larger. */
void *fuzz_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    (void)at, (void)protection, (void)flags;
    void *memory = fuzz_aligned_alloc(64, bytes);
    if (!memory) return errno = ENOMEM, MAP_FAILED;
    memset(memory, 0, bytes);
    if (file >= 0) REQUIRE(pread(file, memory, bytes, offset) == (ssize_t)bytes);
    return memory;
}

int fuzz_munmap(void *memory, size_t bytes) {
    (void)bytes;
    fuzz_free(memory);
    return 0;
}

/* Files. */

static struct {
    const uint8_t *data;
    size_t size;
} files[FILES];

int fuzz_open(const char *path, int flags, ...) {
    static int memory = -1; /* one file that is filled anew; its readers are done with it before the next one is opened */
    (void)flags;
    if (!*path) return errno = ENOENT, -1;
    int index = path[strlen(path) - 1] % FILES;
    if (memory < 0) memory = memfd_create("fuzz", 0);
    REQUIRE(memory >= 0 && !ftruncate(memory, (off_t)files[index & 3].size));
    REQUIRE(pwrite(memory, files[index & 3].data, files[index & 3].size, 0) == (ssize_t)files[index & 3].size);
    return dup(memory);
}

FILE *fuzz_fopen(const char *path, const char *mode) {
    (void)mode;
    return *path ? fopen("/dev/null", "w") : NULL;
}

int fuzz_mkdir(const char *path, mode_t mode) {
    (void)mode;
    return *path ? 0 : (errno = ENOENT, -1);
}

/* Time and threads. A program that looks at the clock too often runs for too long. */

int fuzz_clock_gettime(clockid_t clock, struct timespec *now) {
    (void)clock;
    if (looks++ == MOST_LOOKS) fuzz_exit(0);
    *now = (struct timespec){looks, 0};
    return 0;
}

int fuzz_pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*function)(void *), void *data) {
    (void)thread, (void)with, (void)function, (void)data;
    return EAGAIN;
}

int fuzz_sched_getaffinity(pid_t process, size_t bytes, cpu_set_t *set) {
    (void)process, (void)bytes, (void)set;
    return -1; /* one core */
}

/* The command line: `text` is changed in place. Returns where its files begin. */
static const uint8_t *split(char *text, char *end, char **argv, int *argc) {
    for (char *line = text; line < end; line++) {
        char *next = memchr(line, '\n', (size_t)(end - line));
        if (!next || next == line || *argc == MOST_ARGS) return (uint8_t *)(next ? next + 1 : end);
        *next = 0, argv[(*argc)++] = line, line = next;
    }
    return (uint8_t *)end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static FILE *nowhere;
    if (!nowhere) nowhere = stdout = stderr = fopen("/dev/null", "w");
    char *text = malloc(size + 1), *argv[MOST_ARGS + 1] = {"coil-run"};
    int argc = 1;
    if (size) memcpy(text, data, size);
    stream rest = {.end = (uint8_t *)text + size};
    rest.at = split(text, text + size, argv, &argc);
    for (int i = 0; i < FILES; i++) {
        size_t length = next_bytes(&rest, 2);
        length = length < left(&rest) ? length : left(&rest);
        files[i].data = rest.at, files[i].size = length, rest.at += length;
    }
    argv[argc] = NULL, looks = 0, block_count = 0;
    int code = setjmp(back);
    if (!code) code = 1 + coil_main(argc, argv);
    REQUIRE(code == 1 || code == 1 + EXIT_INPUT || code == 1 + EXIT_MODEL);
    while (block_count) free(blocks[--block_count]);
    free(text);
    return 0;
}
