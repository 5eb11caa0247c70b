/* pool.c: a thread pool for one session.
 *
 * The launching thread works too and waits only for helpers that have entered: a helper that is asleep or not
 * scheduled costs nothing, so a busy machine is slow but never stuck.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TASKS_PER_THREAD = 4, SPIN_NANOSECONDS = 50000 };
static const uint64_t OPEN = 1, HELPER = 2, HELPERS = 0xfffffffeULL, GENERATION = 1ULL << 32;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static uint64_t gate_of(pool *pool) { return atomic_load(&pool->gate); }
static bool occupied(pool *pool) { return gate_of(pool) & HELPERS; }
static bool inviting(pool *pool, uint64_t seen) {
    uint64_t gate = gate_of(pool);
    return ((gate & OPEN) && gate / GENERATION != seen) || atomic_load(&pool->stopping);
}

static void work(pool *pool, worker *self) {
    size_t used = self->used;
    worker *outer = coil_worker;
    coil_worker = self;
    self->inside = true;
    for (int task; (task = atomic_fetch_add(&pool->next, 1)) < pool->group.count;) {
        int code = pool->function(task, &pool->group, pool->data);
        self->used = used; /* a task that failed may not have released its scratch */
        if (code) atomic_store(&pool->failure, code);
    }
    self->inside = false;
    coil_worker = outer;
}

/* Enter the open gate, unless it shuts first. */
static bool enter(pool *pool) {
    uint64_t gate = gate_of(pool);
    while (gate & OPEN)
        if (atomic_compare_exchange_weak(&pool->gate, &gate, gate + HELPER)) return true;
    return false;
}

static void leave(pool *pool) {
    atomic_fetch_sub(&pool->gate, HELPER);
    if (!atomic_load(&pool->launcher_sleeps)) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_signal(&pool->emptied);
    pthread_mutex_unlock(&pool->mutex);
}

static void await_job(pool *pool, uint64_t seen) {
    for (int64_t start = nanoseconds(); nanoseconds() - start < SPIN_NANOSECONDS;) {
        for (int i = 0; i < 16; i++, relax())
            if (inviting(pool, seen)) return;
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!inviting(pool, seen)) pthread_cond_wait(&pool->opened, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *helper(void *argument) {
    worker *self = argument;
    pool *pool = self->pool;
    uint64_t seen = 0;
    for (;;) {
        await_job(pool, seen);
        if (atomic_load(&pool->stopping)) return NULL;
        seen = gate_of(pool) / GENERATION;
        if (!enter(pool)) continue;
        work(pool, self);
        leave(pool);
    }
}

static void await_helpers(pool *pool) {
    for (int64_t start = nanoseconds(); nanoseconds() - start < SPIN_NANOSECONDS;) {
        for (int i = 0; i < 16; i++, relax())
            if (!occupied(pool)) return;
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->launcher_sleeps, true);
    while (occupied(pool)) pthread_cond_wait(&pool->emptied, &pool->mutex);
    atomic_store(&pool->launcher_sleeps, false);
    pthread_mutex_unlock(&pool->mutex);
}

static void open_gate(pool *pool) {
    atomic_store(&pool->gate, ((gate_of(pool) / GENERATION + 1) * GENERATION) | OPEN);
    if (!atomic_load(&pool->sleepers)) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->opened);
    pthread_mutex_unlock(&pool->mutex);
}

static int run_here(task_function *function, void *data, int tasks) {
    task_group group = {NULL, tasks > 0 ? tasks : 1};
    int failure = 0;
    for (int task = 0; task < group.count && !failure; task++) failure = function(task, &group, data);
    return failure;
}

/* Before every run: forget old messages, notice a fork. */
void coil_pool_begin(pool *pool) {
    atomic_store(&pool->has_message, false);
    pool->forked = pool->process != getpid();
}

/* Run `tasks` tasks (0: as many as suit the threads) and return the code of a failed one, or 0. */
int coil_pool_launch(pool *pool, worker *caller, task_function *function, void *data, int tasks) {
    if (pool->threads == 1 || pool->forked || caller->inside) return run_here(function, data, tasks);
    pool->function = function;
    pool->data = data;
    pool->group = (task_group){NULL, tasks > 0 ? tasks : pool->threads * TASKS_PER_THREAD};
    atomic_store(&pool->next, 0);
    atomic_store(&pool->failure, 0);
    open_gate(pool);
    work(pool, caller);
    atomic_fetch_and(&pool->gate, ~OPEN);
    await_helpers(pool);
    return atomic_load(&pool->failure);
}

/* Keep the first message of a run. */
void coil_pool_report(pool *pool, const char *text) {
    if (atomic_exchange(&pool->has_message, true)) return;
    strncpy(pool->message, text, sizeof pool->message - 1);
}

/* Helpers leave signals to the program's own threads. */
static int start_helpers(pool *pool) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = 0;
    for (; pool->started < pool->threads - 1 && !code; pool->started += !code)
        code = pthread_create(&pool->handles[pool->started], NULL, helper, &pool->workers[pool->started + 1]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code ? coil_fail(COIL_THREADS, "could not start %d threads: %s", pool->threads, strerror(code)) : COIL_OK;
}

int coil_pool_open(pool *pool, int threads, size_t scratch_bytes) {
    pool->process = getpid();
    pool->threads = threads;
    pool->scratch_capacity = round_up(scratch_bytes, pool->scratch ? ALIGNMENT : 4096);
    if (!pool->scratch) {
        pool->scratch = coil_map(pool->scratch_capacity * (size_t)threads);
        pool->mapped = pool->scratch != NULL;
    }
    if (!pool->scratch)
        return coil_fail(COIL_MEMORY, "could not reserve scratch for %d threads of %zu bytes each", threads,
                         pool->scratch_capacity);
    for (int i = 0; i < threads; i++)
        pool->workers[i] = (worker){pool, pool->scratch + pool->scratch_capacity * (size_t)i, 0, false};
    if (threads == 1) return COIL_OK;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->opened, NULL);
    pthread_cond_init(&pool->emptied, NULL);
    pool->ready = true;
    return start_helpers(pool);
}

static void stop_helpers(pool *pool) {
    atomic_store(&pool->stopping, true);
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->opened);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->handles[i], NULL);
    pthread_cond_destroy(&pool->emptied);
    pthread_cond_destroy(&pool->opened);
    pthread_mutex_destroy(&pool->mutex);
}

void coil_pool_close(pool *pool) {
    if (pool->ready && pool->process == getpid()) stop_helpers(pool);
    if (pool->mapped) coil_unmap(pool->scratch, pool->scratch_capacity * (size_t)pool->threads);
}
