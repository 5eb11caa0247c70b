/* coil_run.c: a compiled model as one static program: describe it, run it on .npy files, time it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "coil.h"
#include "device.h"
#include "json.h"
#include "npy.h"
#include "options.h"

enum { PATH_BYTES = 4096 };

typedef struct program {
    options options;
    int32_t index;
    const coil_entry *entry;
    coil_model *model;
    coil_session *session;
    const void **inputs;
    void **outputs;
} program;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void check(int code) {
    if (code) die(code == COIL_ARGUMENT ? EXIT_INPUT : EXIT_MODEL, "%s", coil_error_message());
}

static void *reserve(size_t count, size_t bytes) {
    void *memory = calloc(count + 1, bytes);
    if (!memory) die(EXIT_MODEL, "out of memory");
    return memory;
}

/* --- opening ------------------------------------------------------------------------------------------------------ */

static void choose_entry(program *p) {
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

static void open_session(program *p) {
    const char *missing = missing_feature();
    if (missing)
        die(EXIT_MODEL, "this program is for %s and this CPU lacks %s; compile for another target", coil_target, missing);
    coil_options options = {.size = sizeof options, .weights_path = weights_path(p)};
    check(coil_open(&options, &p->model));
    check(coil_session_open(p->model, p->options.threads, &p->session));
}

/* --- binding ------------------------------------------------------------------------------------------------------ */

static int64_t dim_of(const program *p, coil_symbol symbol) {
    for (int32_t i = 0; i < p->options.dim_count; i++) {
        char *end;
        if (strcmp(p->options.dims[i].name, symbol.name)) continue;
        long long value = strtoll(p->options.dims[i].value, &end, 10);
        if (*end || end == p->options.dims[i].value)
            die(EXIT_INPUT, "--dim %s takes a number, not '%s'", symbol.name, p->options.dims[i].value);
        return value;
    }
    die(EXIT_INPUT, "entry '%s' needs --dim %s=NUMBER", p->entry->name, symbol.name);
}

static void bind_dims(program *p) {
    int64_t *symbols = reserve((size_t)p->entry->symbol_count, sizeof *symbols);
    for (int32_t i = 0; i < p->options.dim_count; i++) {
        int32_t known = 0;
        const char *name = p->options.dims[i].name;
        while (known < p->entry->symbol_count && strcmp(p->entry->symbols[known].name, name)) known++;
        if (known == p->entry->symbol_count) die(EXIT_INPUT, "entry '%s' has no dim '%s'", p->entry->name, name);
    }
    for (int32_t i = 0; i < p->entry->symbol_count; i++) symbols[i] = dim_of(p, p->entry->symbols[i]);
    check(coil_session_bind(p->session, p->index, symbols));
    free(symbols);
}

static npy read_array(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status)) die(EXIT_INPUT, "cannot read %s: %s", path, strerror(errno));
    size_t size = (size_t)status.st_size;
    void *content = size ? mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0) : "";
    if (content == MAP_FAILED) die(EXIT_INPUT, "cannot map %s: %s", path, strerror(errno));
    close(file);
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

static int32_t input_named(const program *p, const char *name) {
    for (int32_t i = 0; i < p->entry->input_count; i++)
        if (!strcmp(p->entry->inputs[i].name, name)) return i;
    die(EXIT_INPUT, "entry '%s' has no input '%s'; coil-run describe lists them", p->entry->name, name);
}

static void bind_files(program *p) {
    size_t count = (size_t)p->entry->input_count;
    const int64_t **dims = reserve(count, sizeof *dims);
    npy *arrays = reserve(count, sizeof *arrays);
    for (int32_t i = 0; i < p->options.input_count; i++) {
        int32_t index = input_named(p, p->options.inputs[i].name);
        coil_tensor input = p->entry->inputs[index];
        const char *path = p->options.inputs[i].value;
        arrays[index] = read_array(path);
        if (!npy_holds(arrays[index].descr, input.dtype) || arrays[index].rank != input.rank)
            die(EXIT_INPUT, "%s holds %s of rank %d; input '%s' is %s", path, arrays[index].descr, arrays[index].rank,
                input.name, input.type);
        p->inputs[index] = aligned(arrays[index]);
        dims[index] = arrays[index].dims;
    }
    for (size_t i = 0; i < count; i++)
        if (!p->inputs[i])
            die(EXIT_INPUT, "entry '%s' needs --input %s=FILE.npy", p->entry->name, p->entry->inputs[i].name);
    check(coil_session_bind_shapes(p->session, p->index, dims));
    free(dims), free(arrays);
}

static size_t bytes_of(const program *p, int output, int32_t index, int64_t *dims) {
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
static void *pages(size_t bytes) {
    void *memory = mmap(NULL, bytes + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) die(EXIT_MODEL, "could not reserve %zu bytes for a tensor", bytes);
    return memory;
}

static void bind(program *p) {
    int64_t dims[NPY_MAX_RANK];
    p->inputs = reserve((size_t)p->entry->input_count, sizeof *p->inputs);
    p->outputs = reserve((size_t)p->entry->output_count, sizeof *p->outputs);
    if (p->options.input_count || strcmp(p->options.command, "bench"))
        bind_files(p);
    else
        bind_dims(p);
    for (int32_t i = 0; i < p->entry->input_count; i++)
        if (!p->inputs[i]) p->inputs[i] = pages(bytes_of(p, 0, i, dims));
    for (int32_t i = 0; i < p->entry->output_count; i++) p->outputs[i] = pages(bytes_of(p, 1, i, dims));
}

static double run(program *p) {
    double began = seconds();
    check(coil_session_run(p->session, p->index, p->inputs, p->outputs));
    return seconds() - began;
}

/* --- commands ----------------------------------------------------------------------------------------------------- */

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

static void describe_entry(const coil_entry *entry) {
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
    json_close('}');
}

/* What the program is; with --dim also the memory that one entry needs for these dims. */
static void describe(program *p) {
    const coil_description *all = coil_describe();
    if (p->options.dim_count) open_session(p), bind_dims(p);
    json_open(NULL, '{');
    json_string("target", coil_target);
    json_open("features", '[');
    for (const char *const *name = coil_features; *name; name++) json_string(NULL, *name);
    json_close(']');
    json_open("entries", '[');
    for (int32_t i = 0; i < all->entry_count; i++) describe_entry(&all->entries[i]);
    json_close(']');
    json_integer("weights_bytes", (int64_t)all->weights_bytes);
    json_integer("scratch_bytes_per_thread", (int64_t)all->scratch_bytes);
    if (p->session) json_integer("session_bytes", (int64_t)coil_session_memory(p->session));
    json_close('}');
}

static void write_output(const program *p, int32_t index) {
    char path[PATH_BYTES];
    int64_t dims[NPY_MAX_RANK];
    coil_tensor tensor = p->entry->outputs[index];
    bytes_of(p, 1, index, dims);
    if (strchr(tensor.name, '/')) die(EXIT_INPUT, "output '%s' cannot be a file's name", tensor.name);
    if (snprintf(path, sizeof path, "%s/%s.npy", p->options.output, tensor.name) >= (int)sizeof path)
        die(EXIT_INPUT, "the path of output '%s' is too long", tensor.name);
    int code = npy_write(path, tensor.dtype, tensor.rank, dims, p->outputs[index]);
    if (code) die(EXIT_INPUT, "cannot write %s: %s", path, strerror(code));
}

static void write_outputs(const program *p) {
    if (mkdir(p->options.output, 0777) && errno != EEXIST)
        die(EXIT_INPUT, "cannot make the folder %s: %s", p->options.output, strerror(errno));
    for (int32_t i = 0; i < p->entry->output_count; i++) write_output(p, i);
}

static void run_once(program *p) {
    open_session(p);
    bind(p);
    double took = run(p);
    if (p->options.output) write_outputs(p);
    json_open(NULL, '{');
    json_string("entry", p->entry->name);
    json_integer("threads", p->options.threads);
    json_seconds("seconds", took);
    json_open("outputs", '[');
    for (int32_t i = 0; i < p->entry->output_count; i++) {
        int64_t dims[NPY_MAX_RANK];
        bytes_of(p, 1, i, dims);
        json_open(NULL, '{');
        json_string("name", p->entry->outputs[i].name);
        json_string("dtype", p->entry->outputs[i].dtype);
        json_dims("shape", p->entry->outputs[i].rank, dims);
        json_close('}');
    }
    json_close(']');
    json_close('}');
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Inputs that are not given are zeros. */
static void bench(program *p) {
    double began = seconds();
    open_session(p);
    bind(p);
    double opened = seconds() - began, first = run(p);
    int32_t runs = p->options.runs;
    double *times = reserve((size_t)runs, sizeof *times);
    for (int32_t i = 0; i < runs; i++) times[i] = run(p);
    qsort(times, (size_t)runs, sizeof *times, by_value);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    json_open(NULL, '{');
    json_string("entry", p->entry->name);
    json_integer("threads", p->options.threads);
    json_integer("runs", runs);
    json_seconds("open_seconds", opened);
    json_seconds("first_run_seconds", first);
    json_seconds("fastest_seconds", times[0]);
    json_seconds("median_seconds", times[runs / 2]);
    json_seconds("slowest_seconds", times[runs - 1]);
    json_integer("session_bytes", (int64_t)coil_session_memory(p->session));
    json_integer("peak_resident_bytes", 1024 * (int64_t)usage.ru_maxrss);
    json_close('}');
}

int main(int argc, char **argv) {
    program p = {.options = read_options(argc, argv)};
    choose_entry(&p);
    if (!strcmp(p.options.command, "describe"))
        describe(&p);
    else if (!strcmp(p.options.command, "run"))
        run_once(&p);
    else if (!strcmp(p.options.command, "bench"))
        bench(&p);
    else
        die(EXIT_INPUT, "there is no command '%s'; there are describe, run and bench", p.options.command);
    coil_session_close(p.session);
    coil_close(p.model);
    if (fflush(stdout)) die(EXIT_INPUT, "cannot write the result: %s", strerror(errno));
    return 0;
}
