/* queue.c: what a session does on a stream: operands to the device and back, and runs, which are recorded the second time
 * and repeated from then on. */
#include "cuda.h"

#include <stdlib.h>
#include <string.h>

/* How an operand gets to the device: it is there; through pinned memory, as part of the run; or by a copy of its own. */
enum way { DIRECT, PINNED_INPUT, PINNED_OUTPUT, FROM_DEVICE, FROM_HOST, WAY_COUNT };

enum {
    OPERAND_ALIGNMENT = 16, /* kernels read and write vectors of this size */
    STAGING_ALIGNMENT = 256,
    MOST_PINNED = 4 << 20, /* pinned memory is scarce, and large copies gain little by it */
};

int coil_queue_open(device *device, queue **opened) {
    queue *queue = calloc(1, sizeof *queue);
    if (!queue) return coil_fail(COIL_MEMORY, "out of memory");
    queue->device = device, *opened = queue;
    int code = coil_cuda_enter(device);
    if (code) return code; /* the session is closed, and its queue with it */
    CUresult result = device->cu.stream_create(&queue->own, CU_STREAM_NON_BLOCKING);
    if (!result) result = device->cu.event_create(&queue->order, CU_EVENT_DISABLE_TIMING);
    if (!result) result = device->cu.event_create(&queue->read, CU_EVENT_DISABLE_TIMING);
    queue->stream = queue->target = queue->own;
    coil_cuda_leave(device);
    return coil_cuda_check(device, result, "opening a stream");
}

static void release_staging(queue *queue) {
    const driver *cu = &queue->device->cu;
    if (queue->staging) (void)cu->free(queue->staging);
    if (queue->pinned) (void)cu->free_host(queue->pinned);
    queue->staging = 0, queue->staging_bytes = 0, queue->pinned = NULL, queue->pinned_bytes = 0;
}

void coil_queue_close(queue *queue) {
    if (!queue) return;
    const driver *cu = &queue->device->cu;
    if (!coil_cuda_enter(queue->device)) {
        if (queue->stream) (void)cu->stream_wait(queue->stream);
        coil_graphs_clear(queue->device, &queue->graphs);
        release_staging(queue);
        if (queue->order) (void)cu->event_destroy(queue->order);
        if (queue->read) (void)cu->event_destroy(queue->read);
        if (queue->own) (void)cu->stream_destroy(queue->own);
        coil_cuda_leave(queue->device);
    }
    free(queue->shown);
    free(queue);
}

int coil_queue_stream(queue *queue, void *stream) {
    const driver *cu = &queue->device->cu;
    CUstream next = stream ? stream : queue->own;
    if (next == queue->stream) return COIL_OK;
    int code = coil_cuda_enter(queue->device);
    if (code) return code;
    CUresult result = cu->event_record(queue->order, queue->stream);
    if (!result) result = cu->stream_after(next, queue->order, 0);
    if (!result) queue->stream = queue->target = next;
    coil_cuda_leave(queue->device);
    return coil_cuda_check(queue->device, result, "changing the stream");
}

int coil_queue_wait(queue *queue) {
    int code = coil_cuda_enter(queue->device);
    if (code) return code;
    code = coil_cuda_check(queue->device, queue->device->cu.stream_wait(queue->stream), "a run");
    coil_cuda_leave(queue->device);
    return code;
}

void coil_queue_forget(queue *queue) {
    if (coil_queue_wait(queue) || coil_cuda_enter(queue->device)) return;
    coil_graphs_clear(queue->device, &queue->graphs);
    coil_cuda_leave(queue->device);
}

uint64_t coil_queue_memory(const queue *queue) { return queue->staging_bytes + queue->pinned_bytes; }

int coil_queue_after(queue *queue, const moment *moment) {
    if (!moment->event || moment->stream == queue->stream) return COIL_OK;
    int code = coil_cuda_enter(queue->device);
    if (code) return code;
    code = coil_cuda_check(queue->device, queue->device->cu.stream_after(queue->stream, moment->event, 0), "waiting for a run");
    coil_cuda_leave(queue->device);
    return code;
}

int coil_queue_mark(queue *queue, moment *moment) {
    const driver *cu = &queue->device->cu;
    int code = coil_cuda_enter(queue->device);
    if (code) return code;
    CUresult result = CUDA_SUCCESS;
    if (!moment->event) result = cu->event_create((CUevent *)&moment->event, CU_EVENT_DISABLE_TIMING);
    if (!result) result = cu->event_record(moment->event, queue->stream);
    moment->stream = queue->stream;
    coil_cuda_leave(queue->device);
    return coil_cuda_check(queue->device, result, "marking the end of a run");
}

/* Operands. */

/* Where the caller's pointer leads. Unknown ones are the host's. */
static int find_way(const device *device, operand *operand) {
    unsigned kind = 0;
    int ordinal = -1, wanted[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL};
    void *found[] = {&kind, &ordinal};
    if (device->cu.pointer_attributes(2, wanted, found, device_address(operand->given))) kind = 0;
    if (kind != CU_MEMORYTYPE_DEVICE) {
        int32_t pinned = operand->output ? PINNED_OUTPUT : PINNED_INPUT;
        operand->way = operand->bytes <= MOST_PINNED ? pinned : FROM_HOST;
        return COIL_OK;
    }
    operand->way = (uintptr_t)operand->given % OPERAND_ALIGNMENT ? FROM_DEVICE : DIRECT;
    if (ordinal == device->ordinal) return COIL_OK;
    return coil_fail(COIL_ARGUMENT, "%s '%s' is on device %d, the model on device %d: copy it there, or open the model here",
                     operand->output ? "output" : "input", operand->name, ordinal, device->ordinal);
}

/* Places in the staging memory, one way after the other; returns its size. */
static size_t place_operands(queue *queue, job *job) {
    size_t used = 0, ends[WAY_COUNT] = {0};
    for (int32_t way = PINNED_INPUT; way < WAY_COUNT; ends[way++] = used)
        for (int32_t i = 0; i < job->operand_count; i++) {
            if (job->operands[i].way != way || !job->operands[i].given) continue;
            job->operands[i].place = used;
            used += round_up(job->operands[i].bytes, STAGING_ALIGNMENT);
        }
    queue->in_bytes = ends[PINNED_INPUT], queue->out_bytes = ends[PINNED_OUTPUT] - ends[PINNED_INPUT];
    queue->seen_at = queue->in_bytes + queue->out_bytes;
    return used + STAGING_ALIGNMENT; /* so that what is empty has an address too */
}

static int reserve_staging(queue *queue, size_t bytes) {
    device *device = queue->device;
    size_t pinned = queue->seen_at + STAGING_ALIGNMENT;
    void *memory = NULL;
    if (bytes <= queue->staging_bytes && pinned <= queue->pinned_bytes) return COIL_OK;
    coil_queue_forget(queue);
    release_staging(queue);
    int code = coil_cuda_allocate(device, bytes, "the copy of the operands", &queue->staging);
    if (!code) queue->staging_bytes = bytes;
    if (!code) code = coil_cuda_check(device, device->cu.allocate_host(&memory, pinned, 0), "reserving pinned memory");
    if (!code) queue->pinned = memory, queue->pinned_bytes = pinned;
    return code;
}

/* The device has read the inputs of the last run. */
static int await_reads(queue *queue) {
    if (!queue->reading) return COIL_OK;
    queue->reading = false;
    return coil_cuda_check(queue->device, queue->device->cu.event_wait(queue->read), "a run");
}

static int prepare(queue *queue, job *job) {
    int code = COIL_OK;
    for (int32_t i = 0; i < job->operand_count && !code; i++) {
        operand *operand = &job->operands[i];
        operand->way = DIRECT;
        if (operand->given && !operand->ours) code = find_way(queue->device, operand);
    }
    if (!code) code = reserve_staging(queue, place_operands(queue, job));
    if (!code) code = await_reads(queue);
    for (int32_t i = 0; i < job->operand_count && !code; i++) {
        operand *operand = &job->operands[i];
        operand->address = operand->way == DIRECT ? operand->given : (void *)(uintptr_t)(queue->staging + operand->place);
        if (operand->way == PINNED_INPUT && operand->given)
            memcpy(queue->pinned + operand->place, operand->given, operand->bytes);
    }
    return code;
}

int coil_queue_begin(queue *queue, job *job) {
    int code = coil_cuda_enter(queue->device);
    if (code) return code;
    code = prepare(queue, job);
    if (code) coil_cuda_leave(queue->device);
    return code;
}

/* Playing. */

static int copies(queue *queue, const job *job, bool output) {
    const driver *cu = &queue->device->cu;
    CUresult result = CUDA_SUCCESS;
    bool wait = false;
    for (int32_t i = 0; i < job->operand_count && !result; i++) {
        operand operand = job->operands[i];
        CUdeviceptr staged = device_address(operand.address), given = device_address(operand.given);
        if (operand.way < FROM_DEVICE || operand.output != output || !operand.bytes) continue;
        if (operand.way == FROM_DEVICE)
            result = cu->within(output ? given : staged, output ? staged : given, operand.bytes, queue->stream);
        else if (output)
            result = cu->to_host((void *)(uintptr_t)operand.given, staged, operand.bytes, queue->stream);
        else
            result = cu->to_device(staged, operand.given, operand.bytes, queue->stream);
        wait |= operand.way == FROM_HOST && !output;
    }
    if (wait && !result) result = cu->stream_wait(queue->stream); /* the caller may change its memory after the run */
    return coil_cuda_check(queue->device, result, "copying operands");
}

/* The watched output, to the host as well. */
static int watch(queue *queue, const operand *operand, CUstream stream) {
    const driver *cu = &queue->device->cu;
    CUresult result = cu->to_host(queue->pinned + queue->seen_at, device_address(operand->address), sizeof(int64_t), stream);
    return coil_cuda_check(queue->device, result, "copying outputs");
}

/* The calls, between the copies of what goes through pinned memory, on a stream. */
static int issue(queue *queue, const job *job, CUstream stream, int (*calls)(void *), void *context) {
    device *device = queue->device;
    queue->target = stream;
    struct queue *outer = coil_cuda_queue;
    coil_cuda_queue = queue;
    CUresult result = queue->in_bytes ? device->cu.to_device(queue->staging, queue->pinned, queue->in_bytes, stream) : 0;
    int code = coil_cuda_check(device, result, "copying inputs");
    if (!code) code = calls(context);
    if (!code && queue->out_bytes)
        code = coil_cuda_check(device, device->cu.to_host(queue->pinned + queue->in_bytes, queue->staging + queue->in_bytes,
                                                          queue->out_bytes, stream), "copying outputs");
    if (!code && job->watched >= 0) code = watch(queue, &job->operands[job->watched], stream);
    coil_cuda_queue = outer;
    queue->target = queue->stream;
    return code;
}

static int record(queue *queue, const job *job, graph *graph, int (*calls)(void *), void *context) {
    device *device = queue->device;
    CUgraph recorded = NULL;
    CUresult result = device->cu.capture_begin(queue->own, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    if (result) return coil_cuda_check(device, result, "recording a run");
    int code = issue(queue, job, queue->own, calls, context);
    result = device->cu.capture_end(queue->own, &recorded);
    if (!code && !result) result = device->cu.graph_instantiate(&graph->exec, recorded, 0);
    if (recorded) (void)device->cu.graph_destroy(recorded);
    return code ? code : coil_cuda_check(device, result, "recording a run");
}

static int repeat(queue *queue, const job *job, int (*calls)(void *), void *context) {
    graph *graph;
    bool fresh;
    int code = coil_graph_find(queue->device, &queue->graphs, job, (uint64_t[]){queue->in_bytes, queue->out_bytes}, &graph,
                               &fresh);
    if (!code && fresh) return issue(queue, job, queue->stream, calls, context);
    if (!code && !graph->exec) code = record(queue, job, graph, calls, context);
    return code ? code : coil_cuda_check(queue->device, queue->device->cu.graph_launch(graph->exec, queue->stream), "a run");
}

int coil_queue_play(queue *queue, job *job, bool again, int (*calls)(void *), void *context) {
    int code = copies(queue, job, false);
    if (code) return code;
    if (again && !queue->device->no_graphs)
        code = repeat(queue, job, calls, context);
    else
        code = issue(queue, job, queue->stream, calls, context);
    return code ? code : copies(queue, job, true);
}

/* What the host waits for is there; the rest may go on. */
static int finish(queue *queue, job *job) {
    const driver *cu = &queue->device->cu;
    bool wait = false;
    for (int32_t i = 0; i < job->operand_count; i++)
        wait |= job->operands[i].output && (job->operands[i].way == PINNED_OUTPUT || job->operands[i].way == FROM_HOST);
    queue->reading = !wait && queue->in_bytes;
    CUresult result = CUDA_SUCCESS;
    if (wait) result = cu->stream_wait(queue->stream);
    if (queue->reading) result = cu->event_record(queue->read, queue->stream);
    int code = coil_cuda_check(queue->device, result, "a run");
    for (int32_t i = 0; i < job->operand_count && !code; i++)
        if (job->operands[i].way == PINNED_OUTPUT)
            memcpy((void *)(uintptr_t)job->operands[i].given, queue->pinned + job->operands[i].place, job->operands[i].bytes);
    job->has_seen = wait && !code && job->watched >= 0;
    if (job->has_seen) memcpy(&job->seen, queue->pinned + queue->seen_at, sizeof job->seen);
    return code;
}

int coil_queue_end(queue *queue, job *job, int code) {
    if (code)
        (void)queue->device->cu.stream_wait(queue->stream); /* it may have begun */
    else
        code = finish(queue, job);
    coil_cuda_leave(queue->device);
    return code && atomic_load(&queue->device->lost) ? coil_cuda_refuse(queue->device) : code;
}

int coil_queue_copy(queue *queue, void *to, const void *from, size_t bytes) {
    if (!bytes || to == from) return COIL_OK;
    int code = coil_cuda_enter(queue->device);
    if (code) return code;
    CUresult result = queue->device->cu.within(device_address(to), device_address(from), bytes, queue->target);
    coil_cuda_leave(queue->device);
    return coil_cuda_check(queue->device, result, "copying");
}

int coil_queue_show(queue *queue, const void **results, const size_t *bytes, int32_t count) {
    size_t all = 0, at = 0;
    for (int32_t i = 0; i < count; i++) all += round_up(bytes[i] + 1, ALIGNMENT);
    if (all > queue->shown_bytes) {
        free(queue->shown);
        queue->shown = aligned_alloc(ALIGNMENT, all);
        queue->shown_bytes = queue->shown ? all : 0;
        if (!queue->shown) return coil_fail(COIL_MEMORY, "out of memory");
    }
    CUresult result = CUDA_SUCCESS;
    for (int32_t i = 0; i < count && !result; at += round_up(bytes[i++] + 1, ALIGNMENT)) {
        if (bytes[i]) result = queue->device->cu.to_host(queue->shown + at, device_address(results[i]), bytes[i], queue->stream);
        results[i] = queue->shown + at;
    }
    if (!result) result = queue->device->cu.stream_wait(queue->stream);
    return coil_cuda_check(queue->device, result, "reading results");
}
