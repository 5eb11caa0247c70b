/* driver.c: libcuda.so.1 for machines without a GPU: the functions that the runtime uses, over host memory.
 *
 * Addresses of the device lie in pages that nobody can touch: only a kernel gets the memory behind them, so a host that
 * mixes them up crashes. Fresh memory is NaNs. Work waits in its stream until somebody waits for it; with EMULATED_GPU_EAGER=1
 * it is done at once. Recorded launches run when their graph is launched. What can go wrong does on request:
 *
 *     EMULATED_GPU_MEMORY=bytes         how much there is          EMULATED_GPU_DRIVER=12040   version of the driver
 *     EMULATED_GPU_CAPABILITY=80        the architecture           EMULATED_GPU_COUNT=2        devices
 *     EMULATED_GPU_FAULT=name           kernels of that name touch what they must not
 *     EMULATED_GPU_LOAD=209             what loading code ends with
 *     EMULATED_GPU_COPY=700             what the next copies end with
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"
#include "grid.h"

#define API __attribute__((visibility("default"))) CUresult
enum { INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       NOT_FOUND = 500, IN_CAPTURE = 900, MOST_BLOCKS = 1 << 14, GAP = 256, DEVICES = 2 };
static const size_t ROOM = (size_t)16 << 30;

/* Every function takes the lock; nothing is fast here. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void unlock(void *unused) { (void)unused, pthread_mutex_unlock(&lock); }
#define LOCKED                                                                                                         \
    pthread_mutex_lock(&lock);                                                                                         \
    __attribute__((cleanup(unlock), unused)) char locked

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

/* Memory. */

typedef struct chunk {
    size_t at, bytes;
    int device; /* -1: free */
} chunk;

static unsigned char *backing, *addresses; /* what is behind an address; what nobody can touch */
static chunk chunks[MOST_BLOCKS];
static int chunk_count;
static size_t end, in_use;

static bool is_device(const void *pointer) {
    return addresses && (unsigned char *)pointer >= addresses && (unsigned char *)pointer < addresses + ROOM;
}
static void *behind(const void *pointer) {
    return is_device(pointer) ? backing + ((unsigned char *)pointer - addresses) : (void *)pointer;
}

static chunk *chunk_at(const void *pointer) {
    size_t at = (size_t)((unsigned char *)pointer - addresses);
    for (int i = 0; i < chunk_count; i++)
        if (chunks[i].device >= 0 && at >= chunks[i].at && at < chunks[i].at + chunks[i].bytes) return &chunks[i];
    return NULL;
}

static void check_gap(const chunk *chunk) {
    for (size_t i = 0; i < GAP; i++)
        if (backing[chunk->at + chunk->bytes + i] != 0xfb) {
            fprintf(stderr, "emulated GPU: a kernel wrote behind an allocation of %zu bytes\n", chunk->bytes);
            abort();
        }
}

static void release(chunk *chunk) {
    check_gap(chunk);
    in_use -= chunk->bytes, chunk->device = -1;
    madvise(backing + chunk->at, chunk->bytes, MADV_DONTNEED);
}

static chunk *find_room(size_t bytes) {
    for (int i = 0; i < chunk_count; i++)
        if (chunks[i].device < 0 && chunks[i].bytes == bytes) return &chunks[i];
    size_t step = (bytes + GAP + 4095) / 4096 * 4096; /* pages of its own, which can be given back */
    if (chunk_count == MOST_BLOCKS || end + step > ROOM) return NULL;
    chunks[chunk_count] = (chunk){end, bytes, -1};
    end += step;
    return &chunks[chunk_count++];
}

/* Pinned memory of the host: a list. */
typedef struct pinned {
    unsigned char *memory;
    size_t bytes;
    struct pinned *next;
} pinned;
static pinned *all_pinned;

static bool is_pinned(const void *pointer) {
    for (pinned *p = all_pinned; p; p = p->next)
        if ((unsigned char *)pointer >= p->memory && (unsigned char *)pointer < p->memory + p->bytes) return true;
    return false;
}

/* Contexts. */

struct CUctx_st {
    int users;
    CUresult lost;
};
static struct CUctx_st contexts[DEVICES];
static _Thread_local CUcontext stack[64];
static _Thread_local int depth;
static pid_t process;

static CUcontext current(void) { return depth ? stack[depth - 1] : NULL; }

/* Whether the driver does anything at all now. */
static CUresult usable(void) {
    if (process != getpid()) return NOT_INITIALIZED;
    if (!current() || !current()->users) return INVALID_CONTEXT;
    return current()->lost;
}
#define USABLE                                                                                                         \
    LOCKED;                                                                                                            \
    CUresult usable_ = usable();                                                                                       \
    if (usable_) return usable_

/* Code. */

struct CUfunc_st {
    const module_entry *module;
    const kernel_entry *kernel;
    int shared_bytes;
};
struct CUmod_st {
    void *library;
    const module_entry *entry;
    struct CUfunc_st functions[1024];
    int count;
};

/* Streams. */

typedef enum op_kind { COPY, SET, LAUNCH, RECORD, AFTER, GRAPH } op_kind;

typedef struct op {
    op_kind kind;
    void *to, *from;      /* COPY, SET */
    unsigned char *owned; /* what pageable memory held when it was copied */
    size_t bytes;
    int value;
    CUfunction function; /* LAUNCH */
    triple grid, block;
    uint64_t params[MOST_PARAMS][16];
    struct CUevent_st *event; /* RECORD */
    struct CUstream_st *other; /* AFTER */
    uint64_t until;
    struct CUgraphExec_st *graph; /* GRAPH */
    struct op *next;
} op;

struct CUstream_st {
    CUcontext context;
    op *first, **last;
    uint64_t added, done;
    bool running;
    CUgraph recording;
    pthread_t recorder;
};
struct CUevent_st {
    struct CUstream_st *stream; /* NULL: never recorded */
    uint64_t at;
};
struct CUgraph_st {
    op *first, **last;
};
struct CUgraphExec_st {
    op *first;
    bool destroyed;
};

static struct CUstream_st legacy = {.last = &legacy.first};
static uint64_t counts[3]; /* kernels launched one by one, graphs launched, kernels run */
static _Thread_local CUstream recording; /* by this thread */

static CUstream stream_of(CUstream stream) {
    if (stream > (CUstream)2) return stream;
    legacy.context = current();
    return &legacy;
}

static void run_until(CUstream stream, uint64_t until);

static CUresult run_launch(op *op) {
    const char *faulty = getenv("EMULATED_GPU_FAULT");
    const kernel_entry *kernel = op->function->kernel;
    void *params[MOST_PARAMS];
    counts[2]++;
    if (faulty && *faulty && strstr(kernel->name, faulty)) return CUDA_ERROR_ILLEGAL_ADDRESS;
    for (int i = 0; i < kernel->count; i++) {
        void *pointer;
        memcpy(&pointer, op->params[i], sizeof pointer);
        if (kernel->sizes[i] == sizeof pointer && is_device(pointer)) {
            pointer = behind(pointer);
            memcpy(op->params[i], &pointer, sizeof pointer);
        }
        params[i] = op->params[i];
    }
    if (!run_grid(op->function->module, kernel, op->grid, op->block, op->bytes, params)) return CUDA_SUCCESS;
    fprintf(stderr, "emulated GPU: the threads of %s wait for each other forever\n", kernel->name);
    return CUDA_ERROR_LAUNCH_FAILED;
}

static CUresult run_op(op *op) {
    CUresult result = CUDA_SUCCESS;
    switch (op->kind) {
    case COPY: memmove(behind(op->to), op->owned ? op->owned : behind(op->from), op->bytes); break;
    case SET: memset(behind(op->to), op->value, op->bytes); break;
    case LAUNCH: return run_launch(op);
    case RECORD: break;
    case AFTER: run_until(op->other, op->until); break;
    case GRAPH:
        for (struct op *each = op->graph->first; each && !result; each = each->next) {
            struct op copy = *each;
            result = run_op(&copy);
        }
    }
    return result;
}

static void free_op(op *op) {
    free(op->owned);
    free(op);
}

static void run_until(CUstream stream, uint64_t until) {
    while (stream->first && stream->done < until && !stream->running) {
        op *op = stream->first;
        stream->running = true;
        CUresult result = stream->context->lost ? CUDA_SUCCESS : run_op(op);
        stream->running = false;
        if (result) stream->context->lost = result;
        stream->first = op->next, stream->done++;
        if (!stream->first) stream->last = &stream->first;
        free_op(op);
    }
}

static CUresult finish(CUstream stream) {
    run_until(stream, stream->added);
    return stream->context->lost;
}

/* Add to what the stream does, or to what is recorded from it. */
static CUresult add(CUstream stream, op *op) {
    if (stream->recording) {
        *stream->recording->last = op, stream->recording->last = &op->next;
        return CUDA_SUCCESS;
    }
    *stream->last = op, stream->last = &op->next, stream->added++;
    if (setting("EMULATED_GPU_EAGER", 0)) run_until(stream, stream->added);
    return CUDA_SUCCESS;
}

static op *new_op(op_kind kind) {
    op *made = calloc(1, sizeof *made);
    made->kind = kind;
    return made;
}

static CUresult copy(void *to, const void *from, size_t bytes, CUstream given) {
    CUstream stream = stream_of(given);
    bool from_host = !is_device(from) && !is_pinned(from), to_host = !is_device(to) && !is_pinned(to);
    long wrong = setting("EMULATED_GPU_COPY", 0);
    if (wrong) return (CUresult)wrong;
    if ((from_host || to_host) && stream->recording) return IN_CAPTURE;
    if ((is_device(to) && !chunk_at(to)) || (is_device(from) && !chunk_at(from))) return INVALID_VALUE;
    op *op = new_op(COPY);
    op->to = to, op->from = (void *)from, op->bytes = bytes;
    if (from_host) op->owned = memcpy(malloc(bytes + 1), from, bytes);
    CUresult result = add(stream, op);
    return to_host && !result ? finish(stream) : result;
}

/* The interface, in the order of driver.h. */

API cuInit(unsigned flags) {
    LOCKED;
    (void)flags;
    if (process && process != getpid()) return NOT_INITIALIZED;
    if (!setting("EMULATED_GPU_COUNT", 1)) return CUDA_ERROR_NO_DEVICE;
    if (process) return CUDA_SUCCESS;
    process = getpid();
    backing = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    addresses = mmap(NULL, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return backing == MAP_FAILED || addresses == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

API cuDriverGetVersion(int *version) { return *version = (int)setting("EMULATED_GPU_DRIVER", 13000), CUDA_SUCCESS; }

static const struct {
    CUresult result;
    const char *name, *text;
} NAMES[] = {{INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
             {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
             {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
             {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
              "no kernel image is available for execution on the device"},
             {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
             {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}};

API cuGetErrorName(CUresult result, const char **name) {
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (NAMES[i].result == result) return *name = NAMES[i].name, CUDA_SUCCESS;
    return *name = NULL, INVALID_VALUE;
}

API cuGetErrorString(CUresult result, const char **text) {
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        if (NAMES[i].result == result) return *text = NAMES[i].text, CUDA_SUCCESS;
    return *text = NULL, INVALID_VALUE;
}

API cuDeviceGetCount(int *count) { return *count = (int)setting("EMULATED_GPU_COUNT", 1), CUDA_SUCCESS; }
API cuDeviceGet(CUdevice *device, int ordinal) {
    return *device = ordinal, ordinal >= 0 && ordinal < DEVICES ? CUDA_SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char *name, int room, CUdevice device) {
    (void)device;
    return snprintf(name, (size_t)room, "Emulated GPU"), CUDA_SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    (void)device;
    int capability = (int)setting("EMULATED_GPU_CAPABILITY", 90);
    *value = attribute == CU_DEVICE_ATTRIBUTE_CAPABILITY_MAJOR   ? capability / 10
             : attribute == CU_DEVICE_ATTRIBUTE_CAPABILITY_MINOR ? capability % 10
                                                                 : 227 << 10;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    LOCKED;
    contexts[device].users++;
    return *context = &contexts[device], contexts[device].lost;
}

/* The last user takes everything with it, an error too. */
API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    LOCKED;
    if (--contexts[device].users > 0) return CUDA_SUCCESS;
    contexts[device].lost = CUDA_SUCCESS;
    for (int i = 0; i < chunk_count; i++)
        if (chunks[i].device == device) release(&chunks[i]);
    return CUDA_SUCCESS;
}

API cuCtxPushCurrent_v2(CUcontext context) { return stack[depth++] = context, CUDA_SUCCESS; }
API cuCtxPopCurrent_v2(CUcontext *context) { return *context = stack[--depth], CUDA_SUCCESS; }

/* An ELF file ends with its section headers, or with what lies behind them. */
static size_t elf_bytes(const unsigned char *image) {
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    size_t size = header.e_shoff + (size_t)header.e_shnum * header.e_shentsize;
    for (int i = 0; i < header.e_shnum; i++) {
        Elf64_Shdr section;
        memcpy(&section, image + header.e_shoff + (size_t)i * sizeof section, sizeof section);
        size_t last = section.sh_type == SHT_NOBITS ? 0 : section.sh_offset + section.sh_size;
        size = last > size ? last : size;
    }
    return size;
}

API cuModuleLoadData(CUmodule *module, const void *image) {
    USABLE;
    long wrong = setting("EMULATED_GPU_LOAD", 0);
    if (wrong) return (CUresult)wrong;
    if (memcmp(image, ELFMAG, SELFMAG)) return INVALID_IMAGE;
    char path[64];
    int file = memfd_create("kernels", MFD_CLOEXEC);
    if (file < 0 || write(file, image, elf_bytes(image)) < 0) return INVALID_IMAGE;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    CUmodule loaded = calloc(1, sizeof *loaded);
    loaded->library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* by this name for as long as the file is open */
    if (!loaded->library) return fprintf(stderr, "emulated GPU: %s\n", dlerror()), INVALID_IMAGE;
    loaded->entry = dlsym(loaded->library, "emulated_module");
    return *module = loaded, loaded->entry ? CUDA_SUCCESS : INVALID_IMAGE;
}

API cuModuleUnload(CUmodule module) { return (void)module, CUDA_SUCCESS; }

API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    USABLE;
    for (const kernel_entry *kernel = module->entry->kernels; kernel->name; kernel++) {
        if (strcmp(kernel->name, name)) continue;
        module->functions[module->count] = (struct CUfunc_st){module->entry, kernel, 48 << 10};
        return *function = &module->functions[module->count++], CUDA_SUCCESS;
    }
    return NOT_FOUND;
}

API cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
    (void)attribute;
    return *value = (int)(function->module->shared_end - function->module->shared), CUDA_SUCCESS;
}
API cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    (void)attribute;
    return function->shared_bytes = value, value > 227 << 10 ? INVALID_VALUE : CUDA_SUCCESS;
}

static size_t capacity(void) { return (size_t)setting("EMULATED_GPU_MEMORY", (long)ROOM); }

API cuMemGetInfo_v2(size_t *left, size_t *all) {
    USABLE;
    *all = capacity(), *left = *all > in_use ? *all - in_use : 0;
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    USABLE;
    if (recording) return IN_CAPTURE;
    if (!bytes) return INVALID_VALUE;
    chunk *chunk = in_use + bytes <= capacity() && bytes < ROOM ? find_room(bytes) : NULL;
    if (!chunk) return CUDA_ERROR_OUT_OF_MEMORY;
    chunk->device = (int)(current() - contexts), in_use += bytes;
    memset(backing + chunk->at, 0xff, bytes), memset(backing + chunk->at + bytes, 0xfb, GAP);
    return *address = (CUdeviceptr)(uintptr_t)(addresses + chunk->at), CUDA_SUCCESS;
}

API cuMemFree_v2(CUdeviceptr address) {
    USABLE;
    chunk *chunk = chunk_at((void *)(uintptr_t)address);
    if (recording) return IN_CAPTURE;
    if (!chunk || addresses + chunk->at != (void *)(uintptr_t)address) return INVALID_VALUE;
    return release(chunk), CUDA_SUCCESS;
}

API cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    USABLE;
    (void)flags;
    if (recording) return IN_CAPTURE;
    pinned *made = malloc(sizeof *made);
    *made = (pinned){aligned_alloc(4096, (bytes + 4095) / 4096 * 4096), bytes, all_pinned};
    all_pinned = made;
    return *memory = memset(made->memory, 0xff, bytes), CUDA_SUCCESS;
}

API cuMemFreeHost(void *memory) {
    USABLE;
    for (pinned **at = &all_pinned; *at; at = &(*at)->next) {
        pinned *found = *at;
        if (found->memory != memory) continue;
        *at = found->next, memset(found->memory, 0xfe, found->bytes);
        free(found->memory), free(found);
        return CUDA_SUCCESS;
    }
    return INVALID_VALUE;
}

API cuPointerGetAttributes(unsigned count, int *wanted, void **found, CUdeviceptr address) {
    USABLE;
    void *pointer = (void *)(uintptr_t)address;
    chunk *chunk = is_device(pointer) ? chunk_at(pointer) : NULL;
    for (unsigned i = 0; i < count; i++)
        if (wanted[i] == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
            *(unsigned *)found[i] = chunk ? CU_MEMORYTYPE_DEVICE : is_pinned(pointer) ? CU_MEMORYTYPE_HOST : 0;
        else
            *(int *)found[i] = chunk ? chunk->device : -2;
    return CUDA_SUCCESS;
}

API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    USABLE;
    return is_device((void *)(uintptr_t)to) && !is_device(from) ? copy((void *)(uintptr_t)to, from, bytes, stream) : INVALID_VALUE;
}
API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    USABLE;
    return is_device((void *)(uintptr_t)from) && !is_device(to) ? copy(to, (void *)(uintptr_t)from, bytes, stream) : INVALID_VALUE;
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    USABLE;
    bool both = is_device((void *)(uintptr_t)to) && is_device((void *)(uintptr_t)from);
    return both ? copy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes, stream) : INVALID_VALUE;
}

API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    USABLE;
    op *op = new_op(SET);
    op->to = (void *)(uintptr_t)to, op->value = value, op->bytes = bytes;
    return chunk_at(op->to) ? add(stream_of(stream), op) : INVALID_VALUE;
}

API cuStreamCreate(CUstream *stream, unsigned flags) {
    USABLE;
    (void)flags;
    *stream = calloc(1, sizeof **stream);
    (*stream)->context = current(), (*stream)->last = &(*stream)->first;
    return CUDA_SUCCESS;
}

/* It stays, for events that were recorded in it. */
API cuStreamDestroy_v2(CUstream stream) {
    USABLE;
    return finish(stream);
}

API cuStreamSynchronize(CUstream given) {
    USABLE;
    CUstream stream = stream_of(given);
    return stream->recording ? IN_CAPTURE : finish(stream);
}

API cuStreamWaitEvent(CUstream given, CUevent event, unsigned flags) {
    USABLE;
    (void)flags;
    if (!event->stream) return CUDA_SUCCESS;
    op *op = new_op(AFTER);
    op->other = event->stream, op->until = event->at;
    return add(stream_of(given), op);
}

API cuEventCreate(CUevent *event, unsigned flags) {
    USABLE;
    (void)flags;
    return *event = calloc(1, sizeof **event), CUDA_SUCCESS;
}

API cuEventRecord(CUevent event, CUstream given) {
    USABLE;
    CUstream stream = stream_of(given);
    if (stream->recording) return IN_CAPTURE;
    event->stream = stream, event->at = stream->added;
    return CUDA_SUCCESS;
}

API cuEventSynchronize(CUevent event) {
    USABLE;
    if (event->stream) run_until(event->stream, event->at);
    return current()->lost;
}

API cuEventDestroy_v2(CUevent event) {
    LOCKED;
    free(event);
    return CUDA_SUCCESS;
}

API cuStreamBeginCapture_v2(CUstream given, int mode) {
    USABLE;
    CUstream stream = stream_of(given);
    if (stream == &legacy || stream->recording || mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return IN_CAPTURE;
    stream->recording = calloc(1, sizeof *stream->recording);
    stream->recording->last = &stream->recording->first;
    return recording = stream, CUDA_SUCCESS;
}

API cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    USABLE;
    if (recording != stream) return IN_CAPTURE;
    *graph = stream->recording, stream->recording = NULL, recording = NULL;
    return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    USABLE;
    (void)flags;
    *exec = calloc(1, sizeof **exec);
    (*exec)->first = graph->first, graph->first = NULL;
    return CUDA_SUCCESS;
}

API cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    USABLE;
    op *op = new_op(GRAPH);
    op->graph = exec, counts[1]++;
    return exec->destroyed ? INVALID_VALUE : add(stream_of(stream), op);
}

API cuGraphDestroy(CUgraph graph) {
    LOCKED;
    free(graph);
    return CUDA_SUCCESS;
}

API cuGraphExecDestroy(CUgraphExec exec) { return exec->destroyed = true, CUDA_SUCCESS; }

static CUresult launch(CUfunction function, triple grid, triple block, unsigned shared_bytes, CUstream stream, void **params) {
    bool fits = grid.x && grid.y && grid.z && grid.y < 65536 && grid.z < 65536 && block.x && block.y && block.z;
    fits = fits && (size_t)block.x * block.y * block.z <= MOST_THREADS && shared_bytes <= (unsigned)function->shared_bytes;
    if (!fits) return INVALID_VALUE;
    op *op = new_op(LAUNCH);
    op->function = function, op->grid = grid, op->block = block, op->bytes = shared_bytes;
    for (int i = 0; i < function->kernel->count; i++) memcpy(op->params[i], params[i], function->kernel->sizes[i]);
    counts[0]++;
    return add(stream_of(stream), op);
}

API cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, CUstream stream, void **params, void **extra) {
    USABLE;
    (void)extra;
    return launch(function, (triple){gx, gy, gz}, (triple){bx, by, bz}, shared_bytes, stream, params);
}

API cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **params, void **extra) {
    USABLE;
    (void)extra;
    triple grid = {c->grid[0], c->grid[1], c->grid[2]}, block = {c->block[0], c->block[1], c->block[2]};
    return launch(function, grid, block, c->shared_bytes, c->stream, params);
}

/* Only instructions that are not emulated read such a description, so it is none. */
API cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, CUdeviceptr address, const uint64_t *extents,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave, int swizzle,
                           int promotion, int fill) {
    USABLE;
    (void)map, (void)type, (void)rank, (void)address, (void)extents, (void)strides, (void)box, (void)steps;
    (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    return 801; /* CUDA_ERROR_NOT_SUPPORTED */
}

/* For tests: kernels launched one by one (0), graphs launched (1), kernels run (2), bytes in use (3). */
__attribute__((visibility("default"))) uint64_t emulated_gpu_count(int what) { return what < 3 ? counts[what] : in_use; }
