/* device.c: a GPU through its driver: context, code, weights, memory. */
#define _GNU_SOURCE
#include "cuda.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const size_t CHUNK = (size_t)8 << 20; /* of pinned memory, twice, on the way of the weights */

/* Errors. */

static const char *name_of(const device *device, CUresult result) {
    const char *name = NULL;
    return device->cu.error_name(result, &name) || !name ? "an unknown error" : name;
}

/* Errors after which the driver refuses everything in the context. */
static bool ends_context(CUresult result) {
    return result == CUDA_ERROR_ILLEGAL_ADDRESS || result == CUDA_ERROR_LAUNCH_TIMEOUT ||
           (result >= CUDA_ERROR_CONTEXT_IS_DESTROYED && result <= CUDA_ERROR_ASSERT) ||
           (result >= CUDA_ERROR_HARDWARE_STACK_ERROR && result <= CUDA_ERROR_LAUNCH_FAILED) ||
           result == CUDA_ERROR_ECC_UNCORRECTABLE || result == CUDA_ERROR_NVLINK_UNCORRECTABLE;
}

int coil_cuda_refuse(device *device) {
    return coil_fail(COIL_DEVICE, "a kernel failed on device %d (%s) with %s and its context is lost to this process: close "
                     "every model that uses it, of other libraries too, and open them again, or start the process anew",
                     device->ordinal, device->name, name_of(device, atomic_load(&device->lost)));
}

int coil_cuda_check(device *device, CUresult result, const char *doing) {
    const char *text = NULL;
    if (!result) return COIL_OK;
    if (ends_context(result)) {
        atomic_store(&device->lost, result);
        return coil_cuda_refuse(device);
    }
    (void)device->cu.error_string(result, &text);
    return coil_fail(result == CUDA_ERROR_OUT_OF_MEMORY ? COIL_MEMORY : COIL_DEVICE, "%s failed on device %d (%s): %s (%s)",
                     doing, device->ordinal, device->name, text ? text : "no description", name_of(device, result));
}

int coil_cuda_enter(device *device) {
    if (device->process != getpid())
        return coil_fail(COIL_DEVICE, "the process was forked after the model was opened, which a GPU's context does not "
                         "survive: open the model in the child, or start it by spawn");
    if (atomic_load(&device->lost)) return coil_cuda_refuse(device);
    return coil_cuda_check(device, device->cu.context_push(device->context), "entering the context");
}

void coil_cuda_leave(device *device) {
    CUcontext ignored;
    (void)device->cu.context_pop(&ignored);
}

/* Opening. */

static int check_driver(const driver *cu) {
    int version = 0, oldest = coil_plan.device.driver;
    CUresult result = cu->init(0);
    const char *name = NULL;
    if (result == CUDA_ERROR_NO_DEVICE)
        return coil_fail(COIL_DEVICE, "this model runs on an NVIDIA GPU and the driver finds none: see nvidia-smi and "
                         "CUDA_VISIBLE_DEVICES");
    if (!result) result = cu->version(&version);
    if (result && !cu->error_name(result, &name) && name)
        return coil_fail(COIL_DEVICE, "the NVIDIA driver does not start: %s; see nvidia-smi, and fork before any use of it",
                         name);
    if (result) return coil_fail(COIL_DEVICE, "the NVIDIA driver does not start: error %d; see nvidia-smi", result);
    if (version >= oldest) return COIL_OK;
    return coil_fail(COIL_DEVICE, "this model needs a driver for CUDA %d.%d or newer, the one here is for %d.%d: update it, or "
                     "compile the model with an older toolkit", oldest / 1000, oldest % 1000 / 10, version / 1000,
                     version % 1000 / 10);
}

static int check_capability(device *device) {
    int major = 0, minor = 0, wanted = coil_plan.device.capability;
    CUresult result = device->cu.device_attribute(&major, CU_DEVICE_ATTRIBUTE_CAPABILITY_MAJOR, device->handle);
    if (!result) result = device->cu.device_attribute(&minor, CU_DEVICE_ATTRIBUTE_CAPABILITY_MINOR, device->handle);
    int code = coil_cuda_check(device, result, "asking for the compute capability");
    if (code || (major == wanted / 10 && (coil_plan.device.exact ? minor == wanted % 10 : minor >= wanted % 10))) return code;
    return coil_fail(COIL_DEVICE, "this model was compiled for compute capability %d.%d%s, device %d (%s) has %d.%d: choose "
                     "another device, or compile the model for this one", wanted / 10, wanted % 10,
                     coil_plan.device.exact ? " alone" : "", device->ordinal, device->name, major, minor);
}

static int choose_device(device *device) {
    int count = 0;
    CUresult result = device->cu.device_count(&count);
    if (!result && (device->ordinal < 0 || device->ordinal >= count))
        return coil_fail(COIL_DEVICE, "device %d does not exist, the driver finds %d", device->ordinal, count);
    if (!result) result = device->cu.device_get(&device->handle, device->ordinal);
    if (!result) result = device->cu.device_name(device->name, sizeof device->name, device->handle);
    int code = coil_cuda_check(device, result, "looking for the device");
    return code ? code : check_capability(device);
}

/* More shared memory than every GPU has must be asked for, once per kernel. */
static CUresult allow_shared(device *device, CUfunction function, int most) {
    int own = 0;
    CUresult result = device->cu.function_attribute(&own, CU_FUNC_ATTRIBUTE_SHARED_BYTES, function);
    if (result || own >= most) return result;
    return device->cu.set_function_attribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_BYTES, most - own);
}

static int load_code(device *device) {
    int most = 0;
    const plan_device *plan = &coil_plan.device;
    if (!plan->launch_count) return COIL_OK;
    CUresult result = device->cu.module_load(&device->module, plan->code);
    int code = coil_cuda_check(device, result, "loading the kernels");
    if (code) return code;
    result = device->cu.device_attribute(&most, CU_DEVICE_ATTRIBUTE_MAX_SHARED_BYTES_OPTIN, device->handle);
    for (int32_t i = 0; i < plan->launch_count && !result; i++) {
        result = device->cu.module_function(&device->functions[i], device->module, plan->launches[i].name);
        if (!result) result = allow_shared(device, device->functions[i], most);
    }
    return coil_cuda_check(device, result, "finding the kernels");
}

/* A piece to one of two buffers while the other one is on its way. */
static CUresult upload_chunk(device *device, CUdeviceptr to, const unsigned char *from, size_t bytes, unsigned char *pinned,
                             CUevent sent) {
    CUresult result = device->cu.event_wait(sent);
    if (result) return result;
    memcpy(pinned, from, bytes);
    result = device->cu.to_device(to, pinned, bytes, device->stream);
    return result ? result : device->cu.event_record(sent, device->stream);
}

static CUresult upload(device *device, CUdeviceptr to, const unsigned char *from, size_t bytes) {
    void *pinned = NULL;
    CUevent sent[2] = {NULL, NULL};
    CUresult result = device->cu.allocate_host(&pinned, 2 * CHUNK, 0);
    for (int i = 0; i < 2 && !result; i++) result = device->cu.event_create(&sent[i], CU_EVENT_DISABLE_TIMING);
    for (size_t at = 0, i = 0; at < bytes && !result; at += CHUNK, i ^= 1)
        result = upload_chunk(device, to + at, from + at, bytes - at < CHUNK ? bytes - at : CHUNK,
                              (unsigned char *)pinned + i * CHUNK, sent[i]);
    if (!result) result = device->cu.stream_wait(device->stream);
    for (int i = 0; i < 2; i++)
        if (sent[i]) (void)device->cu.event_destroy(sent[i]);
    if (pinned) (void)device->cu.free_host(pinned);
    return result;
}

static int bring_weights(device *device, const unsigned char **weights) {
    CUdeviceptr memory;
    size_t bytes = (size_t)coil_plan.description.weights_bytes;
    if (!*weights) return COIL_OK;
    int code = coil_cuda_allocate(device, bytes, "the weights", &memory);
    if (code) return code;
    code = coil_cuda_check(device, upload(device, memory, *weights, bytes), "copying the weights");
    if (code)
        (void)device->cu.free(memory);
    else
        *weights = (const unsigned char *)(uintptr_t)memory;
    return code;
}

static int open_context(device *device, const unsigned char **weights) {
    int code = coil_cuda_check(device, device->cu.context_retain(&device->context, device->handle), "opening the context");
    if (!code) code = coil_cuda_enter(device);
    if (code) return code;
    code = coil_cuda_check(device, device->cu.stream_create(&device->stream, CU_STREAM_NON_BLOCKING), "opening a stream");
    if (!code) code = load_code(device);
    if (!code) code = bring_weights(device, weights);
    coil_cuda_leave(device);
    return code;
}

int coil_device_open(const coil_options *options, const unsigned char **weights, device **opened) {
    *opened = NULL;
    device *device = calloc(1, sizeof *device + (size_t)coil_plan.device.launch_count * sizeof *device->functions);
    if (!device) return coil_fail(COIL_MEMORY, "out of memory");
    device->functions = (CUfunction *)(device + 1);
    device->ordinal = options->device, device->no_graphs = options->no_graphs, device->process = getpid();
    int code = coil_driver_load(&device->cu);
    if (!code) code = check_driver(&device->cu);
    if (!code) code = choose_device(device);
    if (!code) code = open_context(device, weights);
    if (code)
        coil_device_close(device, NULL);
    else
        *opened = device;
    return code;
}

/* What a lost context had is gone with it, and a child of the process never had it. */
void coil_device_close(device *device, const unsigned char *weights) {
    if (!device) return;
    bool mine = device->process == getpid();
    if (device->context && mine && !device->cu.context_push(device->context)) {
        if (weights) (void)device->cu.free(device_address(weights));
        if (device->module) (void)device->cu.module_unload(device->module);
        if (device->stream) (void)device->cu.stream_destroy(device->stream);
        coil_cuda_leave(device);
    }
    if (device->context && mine) (void)device->cu.context_release(device->handle);
    free(device);
}

int coil_device_accepts_memory(void) {
    return coil_fail(COIL_ARGUMENT, "this model computes in the memory of a GPU, not in memory that the caller gives");
}

int32_t coil_device_threads(int32_t allowed) { return (void)allowed, 1; }

/* Memory. */

int coil_cuda_allocate(device *device, size_t bytes, const char *purpose, CUdeviceptr *memory) {
    CUresult result = device->cu.allocate(memory, bytes + !bytes);
    size_t left = 0, all = 0;
    if (result != CUDA_ERROR_OUT_OF_MEMORY) return coil_cuda_check(device, result, "reserving memory");
    (void)device->cu.memory_info(&left, &all);
    return coil_fail(COIL_MEMORY, "out of memory on device %d (%s): %s needs %zu bytes, %zu of %zu are free: use smaller dims, "
                     "or close what else is there", device->ordinal, device->name, purpose, bytes, left, all);
}

/* Enter, one call of the driver on the model's own stream, wait, leave. */
#define AND_WAIT(device, doing, call)                                                                                   \
    do {                                                                                                                \
        int code_ = coil_cuda_enter(device);                                                                            \
        if (code_) return code_;                                                                                        \
        CUresult result_ = (call);                                                                                      \
        if (!result_) result_ = (device)->cu.stream_wait((device)->stream);                                             \
        code_ = coil_cuda_check(device, result_, doing);                                                                \
        coil_cuda_leave(device);                                                                                        \
        return code_;                                                                                                   \
    } while (0)

int coil_device_clear(device *device, void *memory, size_t bytes) {
    if (!bytes) return COIL_OK;
    AND_WAIT(device, "clearing memory", device->cu.set_bytes(device_address(memory), 0, bytes, device->stream));
}

int coil_device_copy(device *device, void *to, const void *from, size_t bytes) {
    if (!bytes) return COIL_OK;
    AND_WAIT(device, "copying", device->cu.within(device_address(to), device_address(from), bytes, device->stream));
}

int coil_device_write(device *device, void *to, const void *host, size_t bytes) {
    if (!bytes) return COIL_OK;
    AND_WAIT(device, "copying to the device", device->cu.to_device(device_address(to), host, bytes, device->stream));
}

int coil_device_read(device *device, void *host, const void *from, size_t bytes) {
    if (!bytes) return COIL_OK;
    AND_WAIT(device, "copying from the device", device->cu.to_host(host, device_address(from), bytes, device->stream));
}

int coil_device_allocate(device *device, size_t bytes, bool zeros, const char *purpose, void **memory) {
    CUdeviceptr reserved = 0;
    int code = coil_cuda_enter(device);
    if (code) return code;
    code = coil_cuda_allocate(device, bytes, purpose, &reserved);
    coil_cuda_leave(device);
    *memory = (void *)(uintptr_t)reserved;
    if (!code && zeros) code = coil_device_clear(device, *memory, bytes);
    if (code && reserved) coil_device_free(device, *memory, bytes);
    return code;
}

void coil_device_free(device *device, void *memory, size_t bytes) {
    (void)bytes;
    if (!memory || coil_cuda_enter(device)) return;
    (void)device->cu.free(device_address(memory));
    coil_cuda_leave(device);
}

/* Moments. */

int coil_moment_await(device *device, const moment *moment) {
    if (!moment->event) return COIL_OK;
    int code = coil_cuda_enter(device);
    if (code) return code;
    code = coil_cuda_check(device, device->cu.event_wait(moment->event), "waiting for a run");
    coil_cuda_leave(device);
    return code;
}

void coil_moment_close(device *device, moment *moment) {
    if (!moment->event || coil_cuda_enter(device)) return;
    (void)device->cu.event_destroy(moment->event);
    moment->event = NULL;
    coil_cuda_leave(device);
}
