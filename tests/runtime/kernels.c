/* Kernels written by hand against the packed calling convention, so that the runtime is tested without a compiler. */
#include "plan.h"

typedef struct group {
    void *sync;
    int32_t count;
} group;
int TVMBackendParallelLaunch(int (*task)(int, group *, void *), void *data, int tasks);
void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits);
int TVMBackendFreeWorkspace(int device, int id, void *memory);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

enum { COLUMNS = 64 };
kernel_function __tvm_ffi_scale, __tvm_ffi_double_rows, __tvm_ffi_refuse, __tvm_ffi_hungry;

static const float *input(const kernel_arg *args, int i) { return args[i].value.pointer; }
static float *output(const kernel_arg *args, int i) { return (float *)(uintptr_t)args[i].value.pointer; }

/* y[B, L, 64] = x[B, L, 64] * w[64] */
int __tvm_ffi_scale(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)count, (void)result;
    int64_t rows = args[3].value.integer * args[4].value.integer;
    for (int64_t i = 0; i < rows * COLUMNS; i++) output(args, 2)[i] = input(args, 0)[i] * input(args, 1)[i % COLUMNS];
    return 0;
}

/* y[B, L, 64] = 2*x, through scratch: row by row, in parallel. */
static int double_rows(int task, group *group, void *data) {
    const kernel_arg *args = data;
    int64_t rows = args[2].value.integer * args[3].value.integer, share = (rows + group->count - 1) / group->count;
    int64_t end = (task + 1) * share < rows ? (task + 1) * share : rows;
    for (int64_t row = task * share; row < end; row++) {
        float *copy = TVMBackendAllocWorkspace(1, 0, COLUMNS * sizeof(float), 2, 32);
        if (!copy) return -1;
        for (int j = 0; j < COLUMNS; j++) copy[j] = input(args, 0)[row * COLUMNS + j];
        for (int j = 0; j < COLUMNS; j++) output(args, 1)[row * COLUMNS + j] = copy[j] + copy[j];
        TVMBackendFreeWorkspace(1, 0, copy);
    }
    return 0;
}

int __tvm_ffi_double_rows(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)count, (void)result;
    return TVMBackendParallelLaunch(double_rows, (void *)(uintptr_t)args, 0);
}

/* y[N] = x[N]; every task that sees a negative number refuses. */
static int refuse(int task, group *group, void *data) {
    const kernel_arg *args = data;
    for (int64_t i = task; i < args[2].value.integer; i += group->count) {
        if (input(args, 0)[i] < 0) {
            const char *parts[] = {"element ", NULL, "is negative"};
            TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 3);
            return -1;
        }
        output(args, 1)[i] = input(args, 0)[i];
    }
    return 0;
}

int __tvm_ffi_refuse(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)count, (void)result;
    return TVMBackendParallelLaunch(refuse, (void *)(uintptr_t)args, 0);
}

/* y[N] = x[N] through N floats of scratch in one piece. */
int __tvm_ffi_hungry(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)count, (void)result;
    int64_t n = args[2].value.integer;
    float *copy = TVMBackendAllocWorkspace(1, 0, (uint64_t)n * sizeof(float), 2, 32);
    if (!copy) return -1;
    for (int64_t i = 0; i < n; i++) copy[i] = input(args, 0)[i];
    for (int64_t i = 0; i < n; i++) output(args, 1)[i] = copy[i];
    return TVMBackendFreeWorkspace(1, 0, copy);
}
