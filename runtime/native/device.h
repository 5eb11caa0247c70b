/* device.h: where kernels run and where their memory is.
 *
 * A library is linked with one implementation, which its target chooses: the folder cpu or cuda. What lies above hands
 * addresses through and neither reads nor writes what is there.
 */
#ifndef COIL_DEVICE_H
#define COIL_DEVICE_H

#include <stdbool.h>

#include "plan.h"

typedef struct device device; /* what everything of a model shares */
typedef struct queue queue;   /* what one session does, in order */

/* Open the device that the options name, with the weights at `*weights` on the host, which becomes where kernels find them. */
int coil_device_open(const coil_options *options, const unsigned char **weights, device **opened);
void coil_device_close(device *device, const unsigned char *weights);

/* Whether memory of the caller can be an arena or a state; a failure where it cannot. */
int coil_device_accepts_memory(void);

/* How many threads of the host the kernels use of those that the caller allows. */
int32_t coil_device_threads(int32_t allowed);

/* `purpose` is for the sentence of a failure. */
int coil_device_allocate(device *device, size_t bytes, bool zeros, const char *purpose, void **memory);
void coil_device_free(device *device, void *memory, size_t bytes);

/* These have happened when they return. Zeros, or a copy within the device, to it, or from it. */
int coil_device_clear(device *device, void *memory, size_t bytes);
int coil_device_copy(device *device, void *to, const void *from, size_t bytes);
int coil_device_write(device *device, void *to, const void *host, size_t bytes);
int coil_device_read(device *device, void *host, const void *from, size_t bytes);

/* When some memory was last used, by whichever queue. Starts as zeros. */
typedef struct moment {
    void *event, *stream;
} moment;

int coil_moment_await(device *device, const moment *moment); /* until then */
void coil_moment_close(device *device, moment *moment);
int coil_queue_after(queue *queue, const moment *moment); /* what follows in the queue comes later */
int coil_queue_mark(queue *queue, moment *moment);        /* it is now, in the queue */

/* One input or output of a run. */
typedef struct operand {
    const char *name;
    const void *given;   /* the caller's, on the host or on the device; NULL: no call uses it */
    const void *address; /* where kernels find it */
    size_t bytes;
    bool output, ours;   /* ours: a state, on the device for sure */
    int32_t way;         /* how it gets there; of the implementation */
    size_t place;
} operand;

typedef struct job {
    int32_t entry, symbol_count, operand_count;
    const int64_t *symbols;
    operand *operands;
    int32_t watched; /* an output of one integer that the host wants to know too; -1: none */
    int64_t seen;    /* its value after a run that the host has waited for, if `has_seen` */
    bool has_seen;
} job;

int coil_queue_open(device *device, queue **opened);
void coil_queue_close(queue *queue);
int coil_queue_stream(queue *queue, void *stream); /* NULL: its own */
int coil_queue_wait(queue *queue);                 /* until it has done everything */
void coil_queue_forget(queue *queue);              /* addresses in memory that is going to be freed; it is done with it */
uint64_t coil_queue_memory(const queue *queue);    /* that it has reserved */

/* A run: `begin` finds the operands' addresses; `play` brings inputs there, makes the calls, or repeats what they did the
 * last time when `again` allows that, and brings outputs back; `end`, in any case, says how it went. */
int coil_queue_begin(queue *queue, job *job);
int coil_queue_play(queue *queue, job *job, bool again, int (*calls)(void *), void *context);
int coil_queue_end(queue *queue, job *job, int code);

/* In the queue: a copy within the device; results of a call, in place of their addresses where the host can read them. */
int coil_queue_copy(queue *queue, void *to, const void *from, size_t bytes);
int coil_queue_show(queue *queue, const void **results, const size_t *bytes, int32_t count);

#endif
