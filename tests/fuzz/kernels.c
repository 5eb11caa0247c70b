/* Kernels that believe the plan: they read and write every byte of their operands, which the sanitizer watches. */
#include "plan.h"

void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits);
int TVMBackendFreeWorkspace(int device, int id, void *memory);

enum { COLUMNS = 4, ROOM = 16 };
kernel_function __tvm_ffi_look, __tvm_ffi_scale, __tvm_ffi_piece;

static const void *input(const kernel_arg *args, int i) { return args[i].value.pointer; }
static void *output(const kernel_arg *args, int i) { return (void *)(uintptr_t)args[i].value.pointer; }

/* slot[B*L] = flat[B*L] */
int __tvm_ffi_look(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)result;
    const int64_t *flat = input(args, 0);
    int64_t *slot = output(args, 1);
    for (int64_t i = 0; i < args[2].value.integer * args[3].value.integer; i++) slot[i] = flat[i];
    return count != 4;
}

/* y[B, 2*L + 1, 4] = x * w[4], through scratch as long as a row: more than there is when L is large */
int __tvm_ffi_scale(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)result;
    const float *x = input(args, 0), *w = input(args, 1);
    int64_t row = (2 * args[4].value.integer + 1) * COLUMNS;
    float *y = output(args, 2), *copy = TVMBackendAllocWorkspace(1, 0, (uint64_t)row * sizeof *copy, 2, 32);
    if (!copy) return -1;
    for (int64_t b = 0; b < args[3].value.integer; b++) {
        for (int64_t i = 0; i < row; i++) copy[i] = x[b * row + i] * w[i % COLUMNS];
        for (int64_t i = 0; i < row; i++) y[b * row + i] = copy[i];
    }
    return TVMBackendFreeWorkspace(1, 0, copy) || count != 5;
}

/* y[B, L, 4] = whether tokens[B, L] is 0 to 3; after[B, 4] = total + sums of y; clock + L; cache[B, 16, 4] gets y at clock */
int __tvm_ffi_piece(void *self, const kernel_arg *args, int32_t count, kernel_arg *result) {
    (void)self, (void)result;
    const int64_t *tokens = input(args, 0);
    const float *total = input(args, 1);
    float *y = output(args, 3), *after = output(args, 4), *cache = output(args, 6);
    int64_t batch = args[7].value.integer, length = args[8].value.integer, at = *(const int64_t *)input(args, 2);
    if (at < 0 || at > ROOM - length) {
#ifdef FREE_STATES
        return -1;
#else
        __builtin_trap(); /* the runtime's promise */
#endif
    }
    for (int64_t b = 0; b < batch; b++)
        for (int64_t c = 0; c < COLUMNS; c++) {
            after[b * COLUMNS + c] = total[b * COLUMNS + c];
            for (int64_t i = 0; i < length; i++) {
                float value = tokens[b * length + i] == c;
                after[b * COLUMNS + c] += value;
                y[(b * length + i) * COLUMNS + c] = cache[(b * ROOM + at + i) * COLUMNS + c] = value;
            }
        }
    *(int64_t *)output(args, 5) = at + length;
    return count != 9;
}
