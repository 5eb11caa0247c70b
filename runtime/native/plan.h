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

/* What must not be negative, or something outside of a tensor would be read. */
typedef struct plan_rule {
    int32_t quantity;
    const char *text; /* over the symbols, for people */
} plan_rule;

/* A quantity is an integer that depends on the symbols: a dim, a size in bytes. */
typedef struct plan_entry {
    int (*evaluate)(const int64_t *symbols, int64_t *quantities); /* non-zero: an overflow */
    const int32_t *const *input_dims, *const *output_dims;        /* quantity per axis */
    const int32_t *slots;                                         /* quantity: bytes of the slot */
    const plan_arg *args;
    const plan_call *calls;
    int32_t quantity_count, slot_count, arg_count;
    plan_room room;
    const plan_rule *rules;
    int32_t rule_count;
} plan_entry;

typedef struct plan_weight {
    uint64_t offset, bytes;
} plan_weight;

/* What the value of a launch means that follows the operands of a kernel; those behind the last one have no value. */
typedef enum plan_tag {
    TAG_GRID_X, TAG_GRID_Y, TAG_GRID_Z,          /* blocks */
    TAG_BLOCK_X, TAG_BLOCK_Y, TAG_BLOCK_Z,       /* threads of each */
    TAG_CLUSTER_X, TAG_CLUSTER_Y, TAG_CLUSTER_Z, /* blocks that run together */
    TAG_SHARED,                                  /* bytes that the threads of a block share */
    TAG_COOPERATIVE, TAG_DEPENDENT,              /* all blocks at once; before the last launch has ended */
    TAG_COUNT
} plan_tag;

/* A kernel of a device, which a kernel of the host launches. */
typedef struct plan_launch {
    const char *name;
    int32_t params, tag_count; /* operands: pointers and 64-bit integers */
    const uint8_t *tags;
    uint64_t maps; /* bit i: operand i is the description of a tensor, given by its address and passed by value */
} plan_launch;

/* What runs the launches; nothing, if the kernels run on the host. */
typedef struct plan_device {
    const plan_launch *launches;
    int32_t launch_count;
    int32_t capability, exact; /* 10*major + minor of the architecture; 1: no later one of the same major runs the code */
    int32_t driver;            /* oldest version of the driver, as it tells it */
    const unsigned char *code, *code_end;
} plan_device;

typedef struct plan {
    coil_description description;
    const plan_entry *entries;
    const plan_weight *weights;
    int32_t weight_count;
    plan_device device;
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
