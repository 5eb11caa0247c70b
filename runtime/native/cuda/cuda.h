/* cuda.h: what the files of this folder share. */
#ifndef COIL_CUDA_H
#define COIL_CUDA_H

#include "../internal.h"
#include "driver.h"

struct device {
    driver cu;
    CUdevice handle;
    int32_t ordinal;
    char name[64];
    CUcontext context; /* the device's primary one, which other libraries of the process use as well */
    CUmodule module;
    CUfunction *functions; /* of coil_plan.device.launches */
    CUstream stream;       /* for copies that a caller waits for */
    pid_t process;
    bool no_graphs;
    _Atomic CUresult lost; /* what ended the context; then nothing works until it is gone */
};

/* device.c */

/* Make the context current in this thread; COIL_DEVICE: it is lost, or of a process that this one was forked from. */
int coil_cuda_enter(device *device);
void coil_cuda_leave(device *device);

/* COIL_OK or the failure of a call of the driver; `doing` completes the sentence "... failed". */
int coil_cuda_check(device *device, CUresult result, const char *doing);

/* The sentence about a context that is lost. */
int coil_cuda_refuse(device *device);

int coil_cuda_allocate(device *device, size_t bytes, const char *purpose, CUdeviceptr *memory);

/* graphs.c: what runs did, to be repeated. */
enum { MOST_GRAPHS = 32 };

typedef struct graph {
    uint64_t hash, used; /* of the key; when it was last used */
    uint64_t *key;
    size_t key_words;
    CUgraphExec exec; /* NULL: seen once */
} graph;

typedef struct graph_cache {
    graph graphs[MOST_GRAPHS];
    int32_t count;
    uint64_t now;
    uint64_t *key; /* of the run that is looked for */
    size_t room;
} graph_cache;

/* The graph of runs of this job, whose key also has `extra`; a new one takes the place of what was used longest ago. */
int coil_graph_find(device *device, graph_cache *cache, const job *job, const uint64_t extra[2], graph **found, bool *fresh);
void coil_graphs_clear(device *device, graph_cache *cache);

/* queue.c */
struct queue {
    device *device;
    CUstream own, stream; /* stream: where runs go, its own or the caller's */
    CUstream target;      /* where calls go at this moment: while they are recorded, `own` */
    CUevent order;        /* between two streams */
    CUevent read;         /* when inputs in pinned memory have been read */
    bool reading;
    CUdeviceptr staging; /* operands that are on the host: inputs, outputs, then those that need no pinned memory */
    size_t staging_bytes;
    unsigned char *pinned; /* the same for the first two */
    size_t pinned_bytes;
    size_t in_bytes, out_bytes, seen_at; /* of this run, in pinned memory; where the watched output goes */
    unsigned char *shown;       /* results for a trace */
    size_t shown_bytes;
    graph_cache graphs;
};

/* launch.c: the queue whose calls this thread makes. */
extern _Thread_local queue *coil_cuda_queue;

static inline CUdeviceptr device_address(const void *pointer) { return (CUdeviceptr)(uintptr_t)pointer; }

#endif
