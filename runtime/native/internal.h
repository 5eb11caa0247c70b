/* internal.h: what the runtime's files share. */
#ifndef COIL_INTERNAL_H
#define COIL_INTERNAL_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "device.h"
#include "plan.h"

enum { ALIGNMENT = 64, MESSAGE_BYTES = 512, MOST_ON_STACK = 1 << 14, MOST_PARAMS = 128 };

/* errors.c */
int coil_fail(coil_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* memory.c */
void *coil_map(size_t bytes); /* zeroed pages, or NULL */
void coil_unmap(void *memory, size_t bytes);

/* region.c: one block of memory, handed out from its start in aligned, zeroed parts. Without a block it hands out NULL and
 * only counts, so that the function which places an object also says how large it is. */
typedef struct region {
    unsigned char *memory;
    size_t used;
} region;

void *coil_take(region *region, size_t count, size_t bytes);

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
    size_t scratch_capacity; /* per thread */
    unsigned char *scratch;
    bool mapped; /* the scratch; otherwise it is the caller's */
    bool ready;  /* mutex and conditions exist; with one thread they never do */
    pthread_t *handles;
    worker *workers;
    char message[MESSAGE_BYTES]; /* the first error of a kernel, from any thread */
} pool;

/* `pool` has its handles and workers, and its scratch unless that is to be mapped. With one thread no function of pthread
 * is called. */
int coil_pool_open(pool *pool, int threads, size_t scratch_bytes);
void coil_pool_close(pool *pool);
void coil_pool_begin(pool *pool);
int coil_pool_launch(pool *pool, worker *caller, task_function *function, void *data, int tasks);
void coil_pool_report(pool *pool, const char *text);

/* The worker that is running a kernel in this thread; kernels have no context argument. */
extern _Thread_local worker *coil_worker;

/* session.c */
const int64_t *coil_session_quantities(const coil_session *session, int32_t entry); /* NULL: it is not bound */
int coil_refuse_stack(int32_t entry); /* has more quantities than MOST_ON_STACK */
int coil_evaluate(int32_t entry, const int64_t *symbols, int64_t *quantities);      /* checks the symbols */
queue *coil_session_queue(const coil_session *session);
bool coil_session_seen(const coil_session *session, int32_t entry, int64_t *clock); /* the clock after it, if known */
/* coil_session_run whose states are on the device. */
int coil_session_run_on(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs);

/* check.c: indices and offsets of the plan's tables; the sizes of an entry for evaluated quantities. */
int coil_check_plan(void);
int coil_check_sizes(int32_t entry, const int64_t *quantities);
size_t coil_room_of(int32_t entry, plan_arg arg, const int64_t *quantities); /* bytes at an argument that is a pointer */

/* model.c */
struct coil_model {
    const unsigned char *weights; /* where kernels find them */
    device *device;
    void *mapping; /* of their file; NULL: the caller's memory, the program's own, or they are on a device */
    size_t mapped_bytes;
    bool given; /* this object lies in the caller's memory */
};
static_assert(sizeof(struct coil_model) <= COIL_MODEL_BYTES, "coil.h promises less");

#endif
