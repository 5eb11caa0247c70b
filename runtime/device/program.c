/* program.c: see program.h. */
#define _GNU_SOURCE
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "machine.h"
#include "npy.h"

enum { PATH_BYTES = 4096 };

double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void check(int code) {
    if (code) die(code == COIL_ARGUMENT ? EXIT_INPUT : EXIT_MODEL, "%s", coil_error_message());
}

void *reserve(size_t count, size_t bytes) {
    void *memory = calloc(count + 1, bytes);
    if (!memory) die(EXIT_MODEL, "out of memory");
    return memory;
}

/* --- opening ------------------------------------------------------------------------------------------------------ */

void choose_entry(program *p) {
    const coil_description *all = coil_describe();
    for (p->index = 0; p->index < all->entry_count; p->index++) {
        p->entry = &all->entries[p->index];
        if (!p->options.entry || !strcmp(p->entry->name, p->options.entry)) return;
    }
    die(EXIT_INPUT, "there is no entry '%s'; coil-run describe lists them", p->options.entry ? p->options.entry : "");
}

static const char *weights_path(const program *p) {
    static char path[PATH_BYTES + 32];
    if (p->options.weights) return p->options.weights;
    ssize_t length = readlink("/proc/self/exe", path, PATH_BYTES);
    if (length <= 0) die(EXIT_INPUT, "this program cannot find itself; give the weights with --weights FILE");
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, "weights.safetensors");
    return path;
}

void open_session(program *p) {
    const char *missing = missing_feature();
    if (missing)
        die(EXIT_MODEL, "this program is for %s and this CPU lacks %s; compile for another target", coil_target, missing);
    coil_options options = {.size = sizeof options};
    if (!coil_embedded || p->options.weights) options.weights_path = weights_path(p);
    check(coil_open(&options, &p->model));
    check(coil_session_open(p->model, p->options.threads, &p->session));
}

/* --- binding ------------------------------------------------------------------------------------------------------ */

int64_t dim_value(const pair *dim) {
    char *end;
    errno = 0;
    long long value = strtoll(dim->value, &end, 10);
    if (errno || *end || end == dim->value) die(EXIT_INPUT, "--dim %s takes a number, not '%s'", dim->name, dim->value);
    return value;
}

static int64_t dim_of(const program *p, const char *name) {
    for (int32_t i = 0; i < p->options.dims.count; i++)
        if (!strcmp(p->options.dims.items[i].name, name)) return dim_value(&p->options.dims.items[i]);
    die(EXIT_INPUT, "entry '%s' needs --dim %s=NUMBER", p->entry->name, name);
}

static void bind_dims(program *p) {
    int64_t *symbols = reserve((size_t)p->entry->symbol_count, sizeof *symbols);
    for (int32_t i = 0; i < p->options.dims.count; i++) {
        int32_t known = 0;
        const char *name = p->options.dims.items[i].name;
        while (known < p->entry->symbol_count && strcmp(p->entry->symbols[known].name, name)) known++;
        if (known == p->entry->symbol_count) die(EXIT_INPUT, "entry '%s' has no dim '%s'", p->entry->name, name);
    }
    for (int32_t i = 0; i < p->entry->symbol_count; i++) symbols[i] = dim_of(p, p->entry->symbols[i].name);
    check(coil_session_bind(p->session, p->index, symbols));
    free(symbols);
}

static const void *map_file(const char *path, size_t *size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status)) die(EXIT_INPUT, "cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode)) die(EXIT_INPUT, "cannot read %s: it is no file", path);
    *size = (size_t)status.st_size;
    const void *content = *size ? mmap(NULL, *size, PROT_READ, MAP_PRIVATE, file, 0) : "";
    if (content == MAP_FAILED) die(EXIT_INPUT, "cannot map %s: %s", path, strerror(errno));
    close(file);
    return content;
}

static npy read_array(const char *path) {
    size_t size;
    const void *content = map_file(path, &size);
    npy array;
    const char *wrong = npy_parse(content, size, &array);
    if (wrong) die(EXIT_INPUT, "cannot use %s: %s", path, wrong);
    return array;
}

/* Old files start their data at any multiple of 16 bytes, other people's anywhere. */
static const void *aligned(npy array) {
    if ((uintptr_t)array.data % 16 == 0) return array.data;
    return memcpy(reserve(array.bytes, 1), array.data, array.bytes);
}

bool in_state(const program *p, int output, int32_t index) {
    for (int32_t i = 0; p->state && i < p->entry->state_count; i++)
        if ((output ? p->entry->states[i].output : p->entry->states[i].input) == index) return true;
    return false;
}

static int32_t input_named(const program *p, const char *name) {
    for (int32_t i = 0; i < p->entry->input_count; i++)
        if (!strcmp(p->entry->inputs[i].name, name)) return i;
    die(EXIT_INPUT, "entry '%s' has no input '%s'; coil-run describe lists them", p->entry->name, name);
}

static void bind_files(program *p) {
    size_t count = (size_t)p->entry->input_count;
    const int64_t **dims = reserve(count, sizeof *dims);
    npy *arrays = reserve(count, sizeof *arrays);
    for (int32_t i = 0; i < p->options.inputs.count; i++) {
        int32_t index = input_named(p, p->options.inputs.items[i].name);
        coil_tensor input = p->entry->inputs[index];
        const char *path = p->options.inputs.items[i].value;
        arrays[index] = read_array(path);
        if (!npy_holds(arrays[index].descr, input.dtype) || arrays[index].rank != input.rank)
            die(EXIT_INPUT, "%s holds %s of rank %d; input '%s' is %s", path, arrays[index].descr, arrays[index].rank,
                input.name, input.type);
        p->inputs[index] = aligned(arrays[index]);
        dims[index] = arrays[index].dims;
    }
    for (size_t i = 0; i < count; i++)
        if (!p->inputs[i] && !in_state(p, 0, (int32_t)i))
            die(EXIT_INPUT, "entry '%s' needs --input %s=FILE.npy", p->entry->name, p->entry->inputs[i].name);
    check(coil_session_bind_shapes(p->session, p->index, dims));
    free(dims), free(arrays);
}

size_t bytes_of(const program *p, int output, int32_t index, int64_t *dims) {
    coil_tensor tensor = (output ? p->entry->outputs : p->entry->inputs)[index];
    if (tensor.rank > NPY_MAX_RANK) die(EXIT_INPUT, "'%s' has more than %d dims", tensor.name, NPY_MAX_RANK);
    check(coil_session_dims(p->session, p->index, output, index, dims));
    size_t bytes = npy_element_bytes(tensor.dtype);
    for (int32_t i = 0; i < tensor.rank; i++)
        if (__builtin_mul_overflow(bytes, (size_t)dims[i], &bytes))
            die(EXIT_INPUT, "the size of '%s' overflows 64 bits", tensor.name);
    return bytes;
}

/* Pages that start as zeros, which is a valid value of every type. */
void *pages(size_t bytes) {
    void *memory = mmap(NULL, bytes + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die(EXIT_MODEL, "could not reserve %zu bytes for a tensor", bytes);
    return memory;
}

static void load_state(program *p, const char *path) {
    size_t size;
    const void *content = map_file(path, &size);
    if (coil_state_load(p->state, content, size)) die(EXIT_INPUT, "cannot use %s: %s", path, coil_error_message());
}

void save_state(const program *p, const char *path) {
    uint64_t bytes = 0;
    check(coil_state_save(p->state, NULL, &bytes));
    void *content = reserve(bytes, 1);
    check(coil_state_save(p->state, content, &bytes));
    FILE *file = fopen(path, "wb");
    bool written = file && fwrite(content, 1, bytes, file) == bytes;
    if (!file || fclose(file) || !written) die(EXIT_INPUT, "cannot write %s: %s", path, strerror(errno));
    free(content);
}

/* An entry with states continues a saved one, or starts a sequence, unless the states are given as arrays. */
static void open_state(program *p) {
    bool arrays = false;
    for (int32_t i = 0; i < p->options.inputs.count; i++)
        for (int32_t k = 0; k < p->entry->state_count; k++)
            arrays |= !strcmp(p->options.inputs.items[i].name, p->entry->inputs[p->entry->states[k].input].name);
    bool files = p->options.state || p->options.save_state;
    if (files && !p->entry->state_count) die(EXIT_INPUT, "entry '%s' has no states", p->entry->name);
    if (files && arrays) die(EXIT_INPUT, "a state is a file or arrays, not both");
    if (!p->entry->state_count || arrays) return;
    check(coil_state_open(p->model, 1, &p->state));
    if (p->options.state) load_state(p, p->options.state);
}

void bind(program *p) {
    int64_t dims[NPY_MAX_RANK];
    p->inputs = reserve((size_t)p->entry->input_count, sizeof *p->inputs);
    p->outputs = reserve((size_t)p->entry->output_count, sizeof *p->outputs);
    open_state(p);
    if (p->options.inputs.count || strcmp(p->options.command, "bench"))
        bind_files(p);
    else
        bind_dims(p);
    for (int32_t i = 0; i < p->entry->input_count; i++)
        if (!p->inputs[i] && !in_state(p, 0, i)) p->inputs[i] = pages(bytes_of(p, 0, i, dims));
    for (int32_t i = 0; i < p->entry->output_count; i++)
        if (!in_state(p, 1, i)) p->outputs[i] = pages(bytes_of(p, 1, i, dims));
}
