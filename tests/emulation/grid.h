/* grid.h: how emulated kernels see the thread that they are, and how the driver runs all threads of a grid. */
#ifndef EMULATED_GRID_H
#define EMULATED_GRID_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LANES = 32, MOST_THREADS = 1024, MOST_PARAMS = 128 };

typedef struct triple {
    unsigned x, y, z;
} triple;

/* One thread of a block. */
typedef struct thread {
    triple index, block, block_dim, grid_dim;
    unsigned char *shared;                   /* the part that is as large as the launch says */
    void (*barrier)(void);                   /* of the block */
    void (*meet)(uint64_t value, uint32_t mask); /* of the lanes in the mask, which get each other's values */
    uint64_t met[LANES];
    uint32_t present; /* whose values those are */
} thread;

/* What the stand-in for nvcc writes for every kernel. */
typedef struct kernel_entry {
    const char *name;
    void (*call)(void **params);
    int count;
    size_t sizes[MOST_PARAMS]; /* of the parameters */
} kernel_entry;

/* In every module: the thread that runs now, the kernels (the last one has no name), memory that is shared by a block. */
typedef struct module_entry {
    thread **now;
    const kernel_entry *kernels;
    unsigned char *shared, *shared_end;
} module_entry;

/* Run a grid to its end. Non-zero: its threads wait for each other forever. */
int run_grid(const module_entry *module, const kernel_entry *kernel, triple grid, triple block, size_t shared_bytes,
             void **params);

#ifdef __cplusplus
}
#endif
#endif
