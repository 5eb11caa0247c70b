/* launch.c: how the host's half of a kernel launches the device's half. The names and signatures are TVM's: a kernel is
 * looked up once by its name, and called with its own arguments, then those of the launch. */
#include "cuda.h"

#include <string.h>

_Thread_local queue *coil_cuda_queue;

int TVMFFIEnvModLookupFromImports(void *library, const char *name, void **handle);
int TVMFFIHandleInitOnce(void **handle, int (*find)(void **));
int TVMFFIFunctionCall(void *handle, kernel_arg *args, int32_t count, kernel_arg *result);

int TVMFFIEnvModLookupFromImports(void *library, const char *name, void **handle) {
    (void)library;
    const plan_device *plan = &coil_plan.device;
    for (int32_t i = 0; i < plan->launch_count; i++)
        if (!strcmp(plan->launches[i].name, name)) return *handle = (void *)(uintptr_t)&plan->launches[i], 0;
    if (coil_worker) coil_pool_report(coil_worker->pool, "it launches a kernel that the plan lacks");
    return -1;
}

/* Every thread finds the same, so it does not matter which one is written. */
int TVMFFIHandleInitOnce(void **handle, int (*find)(void **)) {
    void *found;
    if (__atomic_load_n(handle, __ATOMIC_ACQUIRE)) return 0;
    if (find(&found)) return -1;
    __atomic_store_n(handle, found, __ATOMIC_RELEASE);
    return 0;
}

/* The values that follow the operands, by their meaning; false: one does not fit. */
static bool read_tags(const plan_launch *launch, const kernel_arg *args, unsigned *values) {
    for (int tag = 0; tag < TAG_COUNT; tag++) values[tag] = tag < TAG_SHARED;
    for (int32_t i = 0; i < launch->tag_count; i++) {
        if (launch->tags[i] > TAG_SHARED) {
            values[launch->tags[i]] = 1; /* a property, without a value */
            continue;
        }
        int64_t value = (args++)->value.integer;
        if (value < 0 || value > INT32_MAX) return false;
        values[launch->tags[i]] = (unsigned)value;
    }
    return true;
}

static CUresult launch_with(queue *queue, CUfunction function, const unsigned *v, void **params) {
    CUlaunchAttribute attributes[3] = {{.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION}};
    memcpy(attributes[0].value.cluster, v + TAG_CLUSTER_X, sizeof attributes[0].value.cluster);
    unsigned count = 1;
    if (v[TAG_COOPERATIVE])
        attributes[count++] = (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value.flag = 1};
    if (v[TAG_DEPENDENT])
        attributes[count++] =
            (CUlaunchAttribute){.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, .value.flag = 1};
    CUlaunchConfig config = {{v[TAG_GRID_X], v[TAG_GRID_Y], v[TAG_GRID_Z]},
                             {v[TAG_BLOCK_X], v[TAG_BLOCK_Y], v[TAG_BLOCK_Z]},
                             v[TAG_SHARED], queue->target, attributes, count};
    return queue->device->cu.launch_with(&config, function, params, NULL);
}

static CUresult launch(queue *queue, CUfunction function, const unsigned *v, void **params) {
    if (v[TAG_CLUSTER_X] * v[TAG_CLUSTER_Y] * v[TAG_CLUSTER_Z] > 1 || v[TAG_COOPERATIVE] || v[TAG_DEPENDENT])
        return launch_with(queue, function, v, params);
    return queue->device->cu.launch(function, v[TAG_GRID_X], v[TAG_GRID_Y], v[TAG_GRID_Z], v[TAG_BLOCK_X], v[TAG_BLOCK_Y],
                                    v[TAG_BLOCK_Z], v[TAG_SHARED], queue->target, params, NULL);
}

/* A grid without blocks is nothing to do, which the driver would refuse. */
static bool is_empty(const unsigned *v) { return !v[TAG_GRID_X] || !v[TAG_GRID_Y] || !v[TAG_GRID_Z]; }

int TVMFFIFunctionCall(void *handle, kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)count, (void)result;
    const plan_launch *kernel = handle;
    queue *queue = coil_cuda_queue;
    if (!queue) return -1;
    unsigned values[TAG_COUNT];
    void *params[MOST_PARAMS];
    if (!read_tags(kernel, args + kernel->params, values)) {
        coil_pool_report(coil_worker->pool, "it is too large for a launch");
        return -1;
    }
    if (is_empty(values)) return 0;
    for (int32_t i = 0; i < kernel->params; i++) params[i] = &args[i].value;
    CUfunction function = queue->device->functions[kernel - coil_plan.device.launches];
    if (!coil_cuda_check(queue->device, launch(queue, function, values, params), kernel->name)) return 0;
    coil_pool_report(coil_worker->pool, coil_error_message());
    return -1;
}
