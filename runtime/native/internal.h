/* internal.h: what the runtime's files share. */
#ifndef COIL_INTERNAL_H
#define COIL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "plan.h"

enum { ALIGNMENT = 64, MESSAGE_BYTES = 512 };

/* errors.c */
int coil_fail(coil_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* memory.c */
void *coil_map(size_t bytes); /* zeroed pages, or NULL */
void coil_unmap(void *memory, size_t bytes);

static inline size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/* pool.c: threads that run the tasks of one kernel at a time, each with its own scratch. */
typedef struct task_group {
    void *sync;
    int32_t count;
} task_group;
typedef int task_function(int task, task_group *group, void *data);

typedef struct worker {
    struct pool *pool;
    unsigned char *scratch;
    size_t used;
    bool inside; /* a task is running: a nested launch stays in this thread */
} worker;

typedef struct pool {
    /* The job. Written only while the gate is shut and nobody is inside. */
    task_function *function;
    void *data;
    task_group group;
    _Atomic int next, failure;

    /* bit 0: open; bits 1-31: helpers inside; bits 32-63: generation. Helpers that wake too late find it shut. */
    _Atomic uint64_t gate;
    _Atomic int sleepers;
    _Atomic bool launcher_sleeps, stopping, has_message;
    pthread_mutex_t mutex;
    pthread_cond_t opened, emptied;

    int threads, started;
    pid_t process;
    bool forked; /* threads do not survive a fork: everything runs in the child's own thread */
    size_t scratch_capacity;
    unsigned char *scratch;
    pthread_t *handles;
    worker *workers;
    char message[MESSAGE_BYTES]; /* the first error of a kernel, from any thread */
} pool;

int pool_open(pool *pool, int threads, size_t scratch_bytes);
void pool_close(pool *pool);
void pool_begin(pool *pool);
int pool_launch(pool *pool, worker *caller, task_function *function, void *data, int tasks);
void pool_report(pool *pool, const char *text);

/* The worker that is running a kernel in this thread; kernels have no context argument. */
extern _Thread_local worker *coil_worker;

/* session.c */
int64_t coil_session_quantity(const coil_session *session, int32_t entry, int32_t index); /* of a bound entry */

/* check.c: indices and offsets of the plan's tables; the sizes of an entry for evaluated quantities. */
int check_plan(void);
int check_sizes(int32_t entry, const int64_t *quantities);

/* model.c */
struct coil_model {
    const unsigned char *weights;
    size_t mapped_bytes; /* 0: the caller's memory */
};

#endif
