/* grid.c: the threads of a block as fibers, so that barriers and shuffles are real. A thread runs until it has to wait;
 * EMULATED_GPU_BACKWARDS=1 starts with the last one, for races whose winner should not matter. */
#define _GNU_SOURCE
#include "grid.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef __x86_64__
#error "the switch between fibers is written for x86-64"
#endif

enum { STACK_BYTES = 256 << 10, MOST_SHARED = 256 << 10 };
enum status { FRESH, READY, AT_BARRIER, AT_MEETING, ENDED };

typedef struct fiber {
    thread self;
    enum status status;
    void *stack_pointer, *stack;
    uint64_t value; /* for the meeting */
    uint32_t mask;
} fiber;

static struct {
    fiber fibers[MOST_THREADS];
    unsigned char *stacks[MOST_THREADS];
    int free_stacks, count, now;
    void *scheduler;
    thread **module_now;
    void (*call)(void **);
    void **params;
} block;

static unsigned char dynamic_shared[MOST_SHARED] __attribute__((aligned(1024)));

/* Save the registers that a call keeps, change stacks, restore. */
void switch_stack(void **save, void *load);
__asm__(".text\n.globl switch_stack\n.hidden switch_stack\nswitch_stack:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void pause_as(enum status status) {
    fiber *self = &block.fibers[block.now];
    self->status = status;
    switch_stack(&self->stack_pointer, block.scheduler);
}

static void barrier(void) { pause_as(AT_BARRIER); }

static void meet(uint64_t value, uint32_t mask) {
    block.fibers[block.now].value = value, block.fibers[block.now].mask = mask;
    pause_as(AT_MEETING);
}

static void begin(void) {
    block.call(block.params);
    pause_as(ENDED);
    abort();
}

static void start(fiber *fiber) {
    if (!block.free_stacks)
        block.stacks[block.free_stacks++] = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fiber->stack = block.stacks[--block.free_stacks];
    void **top = (void **)((unsigned char *)fiber->stack + STACK_BYTES) - 2; /* as if `begin` had been called */
    *top = (void *)begin;
    fiber->stack_pointer = top - 6;
}

static void resume(int index) {
    fiber *fiber = &block.fibers[index];
    if (fiber->status == FRESH) start(fiber);
    block.now = index, *block.module_now = &fiber->self;
    switch_stack(&block.scheduler, fiber->stack_pointer);
    if (fiber->status == ENDED) block.stacks[block.free_stacks++] = fiber->stack;
}

static bool release_barrier(void) {
    for (int i = 0; i < block.count; i++)
        if (block.fibers[i].status != AT_BARRIER && block.fibers[i].status != ENDED) return false;
    for (int i = 0; i < block.count; i++)
        if (block.fibers[i].status == AT_BARRIER) block.fibers[i].status = READY;
    return true;
}

static int lanes_of(int warp) { return block.count - warp < LANES ? block.count - warp : LANES; }

/* Whether all lanes of a mask that still run have come. */
static bool complete(int warp, uint32_t mask) {
    for (int lane = 0; lane < lanes_of(warp); lane++) {
        fiber *fiber = &block.fibers[warp + lane];
        bool here = fiber->status == ENDED || (fiber->status == AT_MEETING && fiber->mask == mask);
        if ((mask >> lane & 1) && !here) return false;
    }
    return true;
}

static void exchange(int warp, uint32_t mask) {
    uint64_t values[LANES] = {0};
    uint32_t present = 0;
    for (int lane = 0; lane < lanes_of(warp); lane++)
        if ((mask >> lane & 1) && block.fibers[warp + lane].status == AT_MEETING)
            values[lane] = block.fibers[warp + lane].value, present |= UINT32_C(1) << lane;
    for (int lane = 0; lane < lanes_of(warp); lane++) {
        fiber *fiber = &block.fibers[warp + lane];
        if (!(present >> lane & 1)) continue;
        memcpy(fiber->self.met, values, sizeof values);
        fiber->self.present = present, fiber->status = READY;
    }
}

/* The meetings of a warp for which everyone has come. */
static bool release_meetings(int warp) {
    bool released = false;
    uint32_t waiting = 0; /* the mask that was last found incomplete; lanes mostly share one */
    for (int i = warp; i < warp + lanes_of(warp); i++) {
        uint32_t mask = block.fibers[i].mask;
        if (block.fibers[i].status != AT_MEETING || mask == waiting) continue;
        if (complete(warp, mask))
            exchange(warp, mask), released = true;
        else
            waiting = mask;
    }
    return released;
}

/* Until every lane has ended or waits for other warps. */
static void run_warp(int warp, bool backwards) {
    int lanes = lanes_of(warp);
    do
        for (int i = 0; i < lanes; i++) {
            int index = warp + (backwards ? lanes - 1 - i : i);
            if (block.fibers[index].status <= READY) resume(index);
        }
    while (release_meetings(warp));
}

static bool all_ended(void) {
    for (int i = 0; i < block.count; i++)
        if (block.fibers[i].status != ENDED) return false;
    return true;
}

static int run_block(bool backwards) {
    int warps = (block.count + LANES - 1) / LANES;
    do
        for (int i = 0; i < warps; i++) run_warp(LANES * (backwards ? warps - 1 - i : i), backwards);
    while (!all_ended() && release_barrier());
    return all_ended() ? 0 : -1;
}

static triple place(unsigned index, triple extents) {
    return (triple){index % extents.x, index / extents.x % extents.y, index / extents.x / extents.y};
}

int run_grid(const module_entry *module, const kernel_entry *kernel, triple grid, triple dim, size_t shared_bytes,
             void **params) {
    const char *order = getenv("EMULATED_GPU_BACKWARDS");
    block.count = (int)(dim.x * dim.y * dim.z), block.module_now = module->now;
    block.call = kernel->call, block.params = params;
    for (unsigned at = 0; at < grid.x * grid.y * grid.z; at++) {
        memset(dynamic_shared, 0xff, shared_bytes);
        memset(module->shared, 0xff, (size_t)(module->shared_end - module->shared));
        for (int i = 0; i < block.count; i++)
            block.fibers[i] = (fiber){.self = {place((unsigned)i, dim), place(at, grid), dim, grid, dynamic_shared, barrier,
                                               meet, {0}, 0}};
        if (run_block(order && *order == '1')) return -1;
    }
    return 0;
}
