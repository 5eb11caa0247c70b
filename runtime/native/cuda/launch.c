/* launch.c: how the host's half of a kernel launches the device's half. The names and signatures are TVM's: a kernel is
 * looked up once by its name, and called with its own arguments, then those of the launch. */
#include "cuda.h"

#include <string.h>

_Thread_local queue *coil_cuda_queue;

int TVMFFIEnvModLookupFromImports(void *library, const char *name, void **handle);
int TVMFFIHandleInitOnce(void **handle, int (*find)(void **));
int TVMFFIFunctionCall(void *handle, kernel_arg *args, int32_t count, kernel_arg *result);

static const char describe[] = "coil_tensor_map"; /* what the host's half calls besides its launches */

int TVMFFIEnvModLookupFromImports(void *library, const char *name, void **handle) {
    (void)library;
    const plan_device *plan = &coil_plan.device;
    if (!strcmp(name, describe)) return *handle = (void *)(uintptr_t)describe, 0;
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

static int report(queue *queue, CUresult result, const char *doing) {
    if (!coil_cuda_check(queue->device, result, doing)) return 0;
    coil_pool_report(coil_worker->pool, coil_error_message());
    return -1;
}

/* A tensor as bulk copies see it, in boxes whose rows are 128 bytes, swizzled; outside of it are zeros. The arguments: where
 * the description goes, the driver's number of the element, the rank, the address, then by axis, innermost first: extents,
 * strides in bytes but for the first axis, extents of a box. */
static int describe_tensor(queue *queue, const kernel_arg *args, int32_t count) {
    enum { MOST_AXES = 5, NOT_INTERLEAVED = 0, SWIZZLED = 3, FETCH_256_BYTES = 3, ZEROS = 0 };
    uint64_t extents[MOST_AXES], strides[MOST_AXES] = {0};
    uint32_t box[MOST_AXES], steps[MOST_AXES] = {1, 1, 1, 1, 1};
    int64_t rank = args[2].value.integer;
    if (rank < 1 || rank > MOST_AXES || count != 3 + 3 * rank) return -1;
    for (int64_t axis = 0; axis < rank; axis++) {
        extents[axis] = (uint64_t)args[4 + axis].value.integer;
        if (axis) strides[axis - 1] = (uint64_t)args[3 + rank + axis].value.integer;
        box[axis] = (uint32_t)args[3 + 2 * rank + axis].value.integer;
    }
    void *to = (void *)(uintptr_t)args[0].value.pointer;
    CUdeviceptr address = device_address(args[3].value.pointer);
    CUresult result =
        queue->device->cu.describe_tensor(to, (int)args[1].value.integer, (uint32_t)rank, address, extents, strides, box, steps,
                                          NOT_INTERLEAVED, SWIZZLED, FETCH_256_BYTES, ZEROS);
    return report(queue, result, "describing a tensor");
}

int TVMFFIFunctionCall(void *handle, kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)result;
    const plan_launch *kernel = handle;
    queue *queue = coil_cuda_queue;
    if (!queue) return -1;
    if (handle == (const void *)describe) return describe_tensor(queue, args, count);
    unsigned values[TAG_COUNT];
    void *params[MOST_PARAMS];
    if (!read_tags(kernel, args + kernel->params, values)) {
        coil_pool_report(coil_worker->pool, "it is too large for a launch");
        return -1;
    }
    if (is_empty(values)) return 0;
    for (int32_t i = 0; i < kernel->params; i++)
        params[i] = i < 64 && kernel->maps >> i & 1 ? (void *)(uintptr_t)args[i].value.pointer : (void *)&args[i].value;
    CUfunction function = queue->device->functions[kernel - coil_plan.device.launches];
    return report(queue, launch(queue, function, values, params), kernel->name);
}
