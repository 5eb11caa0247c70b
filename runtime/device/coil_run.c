/* coil_run.c: a compiled model as one static program: describe it, run it on .npy files, time it,
 * continue a text with it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "json.h"
#include "npy.h"
#include "program.h"

enum { PATH_BYTES = 4096 };

static double run(program *p) {
    double began = seconds();
    check(p->state ? coil_session_advance(p->session, p->index, p->state, p->inputs, p->outputs)
                   : coil_session_run(p->session, p->index, p->inputs, p->outputs));
    return seconds() - began;
}

static double run_anew(program *p) {
    if (p->state) check(coil_state_reset(p->state));
    return run(p);
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
    for (int32_t i = 0; i < p->entry->output_count; i++)
        if (!in_state(p, 1, i)) write_output(p, i);
}

static void run_once(program *p) {
    open_session(p);
    bind(p);
    double took = run(p);
    if (p->options.output) write_outputs(p);
    if (p->options.save_state) save_state(p, p->options.save_state);
    json_open(NULL, '{');
    json_string("entry", p->entry->name);
    json_integer("threads", p->options.threads);
    json_number("seconds", took);
    json_open("outputs", '[');
    for (int32_t i = 0; i < p->entry->output_count; i++) {
        int64_t dims[NPY_MAX_RANK];
        if (in_state(p, 1, i)) continue;
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
    double opened = seconds() - began, first = run_anew(p);
    int32_t runs = p->options.runs;
    double *times = reserve((size_t)runs, sizeof *times);
    for (int32_t i = 0; i < runs; i++) times[i] = run_anew(p);
    qsort(times, (size_t)runs, sizeof *times, by_value);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    json_open(NULL, '{');
    json_string("entry", p->entry->name);
    json_integer("threads", p->options.threads);
    json_integer("runs", runs);
    json_number("open_seconds", opened);
    json_number("first_run_seconds", first);
    json_number("fastest_seconds", times[0]);
    json_number("median_seconds", times[runs / 2]);
    json_number("slowest_seconds", times[runs - 1]);
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
        generate(&p);
    coil_state_close(p.state);
    coil_session_close(p.session);
    coil_close(p.model);
    if (fflush(stdout)) die(EXIT_INPUT, "cannot write the result: %s", strerror(errno));
    return 0;
}
