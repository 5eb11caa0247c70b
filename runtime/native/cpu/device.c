/* device.c: the processor that the program runs on. Kernels run where they are called, on memory that everyone sees. */
#include "internal.h"

#include <string.h>

int coil_device_open(const coil_options *options, const unsigned char **weights, device **opened) {
    (void)options, (void)weights;
    *opened = NULL;
    return COIL_OK;
}

void coil_device_close(device *device, const unsigned char *weights) { (void)device, (void)weights; }

int coil_device_accepts_memory(void) { return COIL_OK; }

int32_t coil_device_threads(int32_t allowed) { return allowed; }

/* Memory. */

int coil_device_allocate(device *device, size_t bytes, bool zeros, const char *purpose, void **memory) {
    (void)device, (void)zeros; /* pages are */
    *memory = coil_map(bytes);
    return *memory ? COIL_OK : coil_fail(COIL_MEMORY, "could not reserve %zu bytes for %s", bytes, purpose);
}

void coil_device_free(device *device, void *memory, size_t bytes) {
    (void)device;
    coil_unmap(memory, bytes);
}

int coil_device_clear(device *device, void *memory, size_t bytes) {
    (void)device;
    if (bytes) memset(memory, 0, bytes);
    return COIL_OK;
}

int coil_device_copy(device *device, void *to, const void *from, size_t bytes) {
    (void)device;
    if (bytes && to != from) memcpy(to, from, bytes);
    return COIL_OK;
}

int coil_device_write(device *device, void *to, const void *host, size_t bytes) {
    return coil_device_copy(device, to, host, bytes);
}

int coil_device_read(device *device, void *host, const void *from, size_t bytes) {
    return coil_device_copy(device, host, from, bytes);
}

/* A queue is always done. */

int coil_moment_await(device *device, const moment *moment) { return (void)device, (void)moment, COIL_OK; }
void coil_moment_close(device *device, moment *moment) { (void)device, (void)moment; }
int coil_queue_after(queue *queue, const moment *moment) { return (void)queue, (void)moment, COIL_OK; }
int coil_queue_mark(queue *queue, moment *moment) { return (void)queue, (void)moment, COIL_OK; }
int coil_queue_open(device *device, queue **opened) { return (void)device, *opened = NULL, COIL_OK; }
void coil_queue_close(queue *queue) { (void)queue; }
int coil_queue_wait(queue *queue) { return (void)queue, COIL_OK; }
void coil_queue_forget(queue *queue) { (void)queue; }
uint64_t coil_queue_memory(const queue *queue) { return (void)queue, 0; }

int coil_queue_stream(queue *queue, void *stream) {
    (void)queue;
    return stream ? coil_fail(COIL_ARGUMENT, "a model for the CPU has no streams") : COIL_OK;
}

int coil_queue_begin(queue *queue, job *job) {
    (void)queue;
    for (int32_t i = 0; i < job->operand_count; i++) job->operands[i].address = job->operands[i].given;
    return COIL_OK;
}

int coil_queue_play(queue *queue, job *job, bool again, int (*calls)(void *), void *context) {
    (void)queue, (void)job, (void)again;
    return calls(context);
}

int coil_queue_end(queue *queue, job *job, int code) { return (void)queue, (void)job, code; }

int coil_queue_copy(queue *queue, void *to, const void *from, size_t bytes) {
    (void)queue;
    return coil_device_copy(NULL, to, from, bytes);
}

int coil_queue_show(queue *queue, const void **results, const size_t *bytes, int32_t count) {
    return (void)queue, (void)results, (void)bytes, (void)count, COIL_OK;
}
