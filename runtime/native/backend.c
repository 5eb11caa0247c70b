/* backend.c: the functions that generated kernels call. The names and signatures are TVM's. */
#include "internal.h"

#include <stdio.h>

_Thread_local worker *coil_worker;

int TVMBackendParallelLaunch(task_function *function, void *data, int tasks);
void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int dtype_code, int dtype_bits);
int TVMBackendFreeWorkspace(int device, int id, void *memory);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol);

int TVMBackendParallelLaunch(task_function *function, void *data, int tasks) {
    if (!coil_worker) return -1;
    return coil_pool_launch(coil_worker->pool, coil_worker, function, data, tasks);
}

/* Scratch is a stack per thread: a kernel releases in the reverse order of its requests. */
void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int dtype_code, int dtype_bits) {
    (void)device, (void)id, (void)dtype_code, (void)dtype_bits;
    worker *self = coil_worker;
    if (!self) return NULL;
    size_t capacity = self->pool->scratch_capacity;
    if (bytes > capacity || round_up(bytes, ALIGNMENT) > capacity - self->used) {
        char text[MESSAGE_BYTES];
        snprintf(text, sizeof text, "needs %llu bytes of scratch, the plan left %zu", (unsigned long long)bytes,
                 capacity - self->used);
        coil_pool_report(self->pool, text);
        return NULL;
    }
    void *memory = self->scratch + self->used;
    self->used += round_up(bytes, ALIGNMENT);
    return memory;
}

int TVMBackendFreeWorkspace(int device, int id, void *memory) {
    (void)device, (void)id;
    worker *self = coil_worker;
    if (self && memory) self->used = (size_t)((unsigned char *)memory - self->scratch);
    return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    if (!coil_worker) return;
    char text[MESSAGE_BYTES];
    int length = snprintf(text, sizeof text, "%s: ", kind);
    for (int32_t i = 0; i < count && length < (int)sizeof text; i++)
        if (parts[i]) length += snprintf(text + length, sizeof text - (size_t)length, "%s", parts[i]);
    coil_pool_report(coil_worker->pool, text);
}

/* Kernels announce their names to TVM's loader; the plan refers to them by address instead. */
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) {
    (void)name, (void)symbol;
    return 0;
}
