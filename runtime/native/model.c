/* model.c: a model is its constant plan and its mapped weights. */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

uint32_t coil_abi_version(void) { return COIL_ABI_VERSION; }

const coil_description *coil_describe(void) { return &coil_plan.description; }

/* Every weight lies inside the file that the plan was made with, aligned. */
static int check_weights(const void *memory, uint64_t bytes, const char *name) {
    uint64_t expected = coil_plan.description.weights_bytes;
    if (bytes != expected)
        return coil_fail(COIL_WEIGHTS, "%s has %llu bytes, this model needs %llu: it is damaged or another model's",
                         name, (unsigned long long)bytes, (unsigned long long)expected);
    if ((uintptr_t)memory % ALIGNMENT)
        return coil_fail(COIL_ARGUMENT, "%s must be aligned to %d bytes in memory", name, ALIGNMENT);
    for (int32_t i = 0; i < coil_plan.weight_count; i++) {
        plan_weight weight = coil_plan.weights[i];
        if (weight.offset % ALIGNMENT || weight.offset > bytes || weight.bytes > bytes - weight.offset)
            return coil_fail(COIL_WEIGHTS, "weight %d lies outside %s", i, name);
    }
    return COIL_OK;
}

static int map_weights(coil_model *model, const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status)) {
        int code = errno;
        if (file >= 0) close(file);
        return coil_fail(COIL_WEIGHTS, "cannot read %s: %s", path, strerror(code));
    }
    int code = check_weights(NULL, (uint64_t)status.st_size, path);
    if (!code) {
        void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (memory == MAP_FAILED) {
            code = coil_fail(COIL_MEMORY, "cannot map %s: %s", path, strerror(errno));
        } else {
            model->weights = model->mapping = memory, model->mapped_bytes = (size_t)status.st_size;
            (void)madvise(memory, model->mapped_bytes, MADV_HUGEPAGE); /* a hint: read and map it in large pieces */
        }
    }
    close(file);
    return code;
}

#ifdef COIL_EMBEDDED_WEIGHTS /* the content of the weights file is linked in, by `coilc bundle --embed-weights` */
extern const unsigned char coil_weights[], coil_weights_end[];
static const unsigned char *const embedded = coil_weights, *const embedded_end = coil_weights_end;
#else
static const unsigned char *const embedded = NULL, *const embedded_end = NULL;
#endif

static int find_weights(coil_model *model, const coil_options *options) {
    if (!coil_plan.weight_count) return COIL_OK;
    if (options->weights_path) return map_weights(model, options->weights_path);
    model->weights = options->weights ? options->weights : embedded;
    if (!model->weights) return coil_fail(COIL_ARGUMENT, "the model has weights: give their path or their memory");
    uint64_t bytes = options->weights ? options->weights_bytes : (uint64_t)(embedded_end - embedded);
    return check_weights(model->weights, bytes, options->weights ? "the weights in memory" : "the program");
}

static void unmap_weights(coil_model *model) {
    if (model->mapping) munmap(model->mapping, model->mapped_bytes);
    model->mapping = NULL;
}

int coil_open(const coil_options *given, coil_model **model) {
    if (!given || given->size < offsetof(coil_options, memory) || !model)
        return coil_fail(COIL_ARGUMENT, "coil_open needs options with their size set, and a place for the model");
    *model = NULL;
    coil_options copy = {0}, *options = &copy; /* a caller built with an older header gives fewer fields */
    memcpy(&copy, given, given->size < sizeof copy ? given->size : sizeof copy);
    if ((uintptr_t)options->memory % ALIGNMENT)
        return coil_fail(COIL_ARGUMENT, "the model's memory must be aligned to %d bytes", ALIGNMENT);
    int code = options->memory ? coil_device_accepts_memory() : COIL_OK;
    if (code) return code;
    coil_model *opened = options->memory ? options->memory : malloc(sizeof *opened);
    if (!opened) return coil_fail(COIL_MEMORY, "out of memory");
    *opened = (coil_model){.given = options->memory != NULL};
    code = coil_check_plan();
    if (!code) code = find_weights(opened, options);
    const unsigned char *before = opened->weights;
    if (!code) code = coil_device_open(options, &opened->weights, &opened->device);
    if (opened->weights != before) unmap_weights(opened);
    if (code)
        coil_close(opened);
    else
        *model = opened;
    return code;
}

void coil_close(coil_model *model) {
    if (!model) return;
    coil_device_close(model->device, model->weights);
    unmap_weights(model);
    if (!model->given) free(model);
}
