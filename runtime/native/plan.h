/* plan.h: the tables that a compiled model consists of. The generated plan.c defines `coil_plan`; nothing else does. */
#ifndef COIL_PLAN_H
#define COIL_PLAN_H

#include "coil.h"

/* The calling convention of generated kernels: TVM's packed call with raw pointers and 64-bit integers. */
enum { KERNEL_INT = 1, KERNEL_POINTER = 4 };

typedef struct kernel_arg {
    int32_t type;
    uint32_t zero;
    union {
        int64_t integer;
        const void *pointer;
    } value;
} kernel_arg;

typedef int kernel_function(void *self, const kernel_arg *args, int32_t count, kernel_arg *result);

/* Where an argument of a call comes from. */
typedef enum plan_kind { PLAN_INPUT, PLAN_OUTPUT, PLAN_WEIGHT, PLAN_SLOT, PLAN_QUANTITY } plan_kind;

typedef struct plan_arg {
    int32_t kind, index;
} plan_arg;

typedef struct plan_call {
    const char *name;
    kernel_function *kernel; /* NULL copies: source, destination, bytes */
    int32_t first, count;    /* range of the entry's args */
    int32_t result, results; /* which of those args are results */
} plan_call;

/* What a call adds to the states that keep everything: so many elements, from the place that the clock, a state, says. */
typedef struct plan_room {
    int32_t clock;              /* -1: nothing is kept */
    int32_t capacity, elements; /* quantities */
} plan_room;

/* A quantity is an integer that depends on the symbols: a dim, a size in bytes. */
typedef struct plan_entry {
    int (*evaluate)(const int64_t *symbols, int64_t *quantities); /* non-zero: an overflow */
    const int32_t *const *input_dims, *const *output_dims;        /* quantity per axis */
    const int32_t *slots;                                         /* quantity: bytes of the slot */
    const plan_arg *args;
    const plan_call *calls;
    int32_t quantity_count, slot_count, arg_count;
    plan_room room;
} plan_entry;

typedef struct plan_weight {
    uint64_t offset, bytes;
} plan_weight;

typedef struct plan {
    coil_description description;
    const plan_entry *entries;
    const plan_weight *weights;
    int32_t weight_count;
} plan;

extern const plan coil_plan;

static inline int64_t plan_add(int *overflow, int64_t a, int64_t b) {
    int64_t sum;
    *overflow |= __builtin_add_overflow(a, b, &sum);
    return sum;
}

static inline int64_t plan_mul(int *overflow, int64_t a, int64_t b) {
    int64_t product;
    *overflow |= __builtin_mul_overflow(a, b, &product);
    return product;
}

/* Floor division by a positive constant. */
static inline int64_t plan_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static inline int64_t plan_max(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
