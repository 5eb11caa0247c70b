/* coil.h: the C API of a compiled model.
 *
 * One shared (or static) library holds one model: kernels, plan and this runtime. A model is opened over its weights,
 * a session runs it. The library has no mutable globals; every object is independent, and sessions of one model may
 * run at the same time in different threads. One session is used by one thread at a time.
 *
 *     coil_model *model;  coil_session *session;
 *     coil_options options = {.size = sizeof options, .weights_path = "m.coil/weights.safetensors"};
 *     if (coil_open(&options, &model) || coil_session_open(model, 2, &session)) puts(coil_error_message());
 *     int64_t symbols[] = {1, 512};                       // in the order of coil_describe()->entries[0].symbols
 *     coil_session_bind(session, 0, symbols);             // may grow memory; a run never does
 *     coil_session_run(session, 0, inputs, outputs);      // allocates nothing
 *
 * Functions that can fail return a coil_status; coil_error_message() then has one sentence about it.
 */
#ifndef COIL_H
#define COIL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COIL_ABI_VERSION 4
#define COIL_MODEL_BYTES 64
#define COIL_API __attribute__((visibility("default")))

typedef enum coil_status {
    COIL_OK = 0,
    COIL_ARGUMENT = 1, /* an argument is out of its range */
    COIL_WEIGHTS = 2,  /* the weights cannot be read or do not belong to this library */
    COIL_MEMORY = 3,   /* memory could not be reserved */
    COIL_THREADS = 4,  /* threads could not be started */
    COIL_UNBOUND = 5,  /* coil_session_bind has not succeeded for this entry */
    COIL_BUSY = 6,     /* another thread is using the session */
    COIL_KERNEL = 7,   /* a kernel refused its operands or ran out of scratch */
    COIL_STOPPED = 8,  /* the trace callback asked to stop */
    COIL_STATE = 9,    /* a saved state is damaged, another model's or from a newer version */
    COIL_DEVICE = 10   /* the device or its driver is missing, does not fit, or its context was lost */
} coil_status;

/* What a library computes. Every pointer is constant and lives as long as the library. */
typedef struct coil_symbol {
    const char *name;
    int64_t low, high;   /* inclusive; INT64_MAX is unbounded */
    int32_t input, axis; /* where it is found: extent of inputs[input] at axis = scale * symbol + offset */
    int64_t scale, offset;
} coil_symbol;

typedef struct coil_tensor {
    const char *name;
    const char *dtype; /* "f32", "i64", "bool", ... */
    const char *type;  /* with dims over the entry's symbols: "f32[B, L, 1536]"; dense, row-major */
    int32_t rank;
} coil_tensor;

typedef struct coil_link {
    int32_t input, output; /* what the output gives, the input takes in the next call */
    int32_t kept;          /* it only grows: both are the same memory, and what is there stays */
    int32_t rows;          /* 1: a row per sequence; 0: the same for all sequences of a call; -1: neither */
} coil_link;

typedef struct coil_entry {
    const char *name;
    int32_t symbol_count, input_count, output_count, call_count;
    const coil_symbol *symbols;
    const coil_tensor *inputs, *outputs;
    int32_t state_count; /* 0, or the model's: entries with states have the same ones in the same order */
    const coil_link *states;
} coil_entry;

typedef struct coil_description {
    uint32_t abi_version;
    int32_t entry_count;
    const coil_entry *entries;
    uint64_t weights_bytes; /* exact size of the weights file; 0: the model has no weights */
    uint64_t scratch_bytes; /* per thread */
    int32_t state_count;
    const char *identity; /* 64 hexadecimal digits: models with equal ones can continue each other's states */
} coil_description;

typedef struct coil_options {
    size_t size;              /* sizeof(coil_options), so that fields can be added */
    const char *weights_path; /* mapped read-only; or */
    const void *weights;      /* the file's content in memory, 64-byte aligned, kept alive by the caller */
    uint64_t weights_bytes;   /* size of that memory */
    void *memory;             /* COIL_MODEL_BYTES for the model, 64-byte aligned, kept by the caller; NULL: malloc */
    int32_t device;           /* which GPU, if the model is for one */
    int32_t no_graphs;        /* 1: launch every kernel of every run, record nothing; to find out what is slow or wrong */
} coil_options;

typedef struct coil_model coil_model;
typedef struct coil_session coil_session;
typedef struct coil_state coil_state;

/* COIL_ABI_VERSION of the library; a program built against another one must not use it. */
COIL_API uint32_t coil_abi_version(void);

/* The library's entries, their inputs, outputs and symbols. */
COIL_API const coil_description *coil_describe(void);

/* The sentence about the last failure in this thread, or "". Valid until the next call in this thread. */
COIL_API const char *coil_error_message(void);

/* Map and check the weights; without a path or memory, take those that were linked in (`--embed-weights`). COIL_ARGUMENT, COIL_WEIGHTS, COIL_MEMORY. */
COIL_API int coil_open(const coil_options *options, coil_model **model);

/* Unmap the weights; every session and state must be closed before. NULL is allowed. */
COIL_API void coil_close(coil_model *model);

/* A session over all entries, with `threads` threads (1: everything in the calling thread; no pinning).
 * COIL_ARGUMENT, COIL_MEMORY, COIL_THREADS. */
COIL_API int coil_session_open(const coil_model *model, int32_t threads, coil_session **session);

/* Stop the threads and release the memory. NULL is allowed. */
COIL_API void coil_session_close(coil_session *session);

/* Fix the entry's symbols, plan its memory and grow the arena when needed; the entry stays bound until the next bind that
 * succeeds.
 * COIL_ARGUMENT (a symbol outside its range, sizes that overflow), COIL_MEMORY, COIL_BUSY. */
COIL_API int coil_session_bind(coil_session *session, int32_t entry, const int64_t *symbols);

/* The same, with the symbols found from the dims of the inputs: a list per input, as long as its rank (NULL for rank 0,
 * and for a state, whose dims follow from the others).
 * Also COIL_ARGUMENT when a dim does not fit the input's type, or two inputs disagree. */
COIL_API int coil_session_bind_shapes(coil_session *session, int32_t entry, const int64_t *const *dims);

/* For programs without malloc, threads or files: a session in memory that the caller gives, 64-byte aligned. It runs in
 * the calling thread, never grows and never calls the allocator; closing it is not needed. */

/* Bytes for such a session. `symbols` has, per entry of coil_describe(), the values with the largest arena that it will be
 * bound to, or NULL for an entry that will not be bound. COIL_ARGUMENT. */
COIL_API int coil_session_bytes(const int64_t *const *symbols, uint64_t *bytes);

/* A session in `memory`; what it does not need for itself becomes the arena. coil_session_bind then fails with COIL_MEMORY
 * where that is too small. COIL_ARGUMENT, COIL_MEMORY. */
COIL_API int coil_session_open_in(const coil_model *model, void *memory, uint64_t bytes, coil_session **session);

/* Concrete dims of input `index` (output != 0: of output `index`) of a bound entry; `dims` has room for its rank. */
COIL_API int coil_session_dims(const coil_session *session, int32_t entry, int output, int32_t index, int64_t *dims);

/* Bytes the session has reserved: the arena and the scratch of every thread. */
COIL_API uint64_t coil_session_memory(const coil_session *session);

/* Run a bound entry. Pointers in the order of coil_describe(), each aligned to its element, outputs disjoint from
 * everything else. Allocates nothing. COIL_ARGUMENT, COIL_UNBOUND, COIL_BUSY, COIL_KERNEL. */
COIL_API int coil_session_run(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs);

/* Called after call `call` of the plan with pointers to its results, valid during the callback; non-zero stops. */
typedef int (*coil_trace)(void *user, int32_t call, const void *const *results, int32_t result_count);

/* coil_session_run with a look at every intermediate result. Also COIL_STOPPED. */
COIL_API int coil_session_trace(coil_session *session, int32_t entry, const void *const *inputs, void *const *outputs,
                                coil_trace callback, void *user);

/* For models of a GPU. A pointer of a run may be on the host or on the device, each for itself. A run returns when its
 * outputs on the host are there; with all of them on the device it may return before, and what is wrong then comes out of
 * a later call. */

/* Run on a stream of the caller (CUstream, cudaStream_t; the default stream is CU_STREAM_LEGACY) from now on, after what
 * the session still has to do; NULL: on its own. COIL_ARGUMENT (also: the model is not for a GPU), COIL_BUSY, COIL_DEVICE. */
COIL_API int coil_session_stream(coil_session *session, void *stream);

/* Until everything that the session was given is done. COIL_DEVICE. */
COIL_API int coil_session_wait(coil_session *session);

/* States: what a sequence leaves behind for the next piece of it. A session is the machinery (threads, arena), a state
 * is data: any number of states can take turns on one session. A state is used by one thread at a time. */

/* A state at the start of a sequence, all zeros. The last `history` calls (1 or more) can be undone; each costs the
 * memory of one state. COIL_ARGUMENT (also: the model has no states), COIL_MEMORY. */
COIL_API int coil_state_open(const coil_model *model, int32_t history, coil_state **state);

/* Release the memory, unless it is the caller's. NULL is allowed. */
COIL_API void coil_state_close(coil_state *state);

/* Run a bound entry that has states: those come from `state` and go back to it when the run succeeds, without copies;
 * their pointers in `inputs` and `outputs` are ignored. The first call reserves memory, later ones allocate nothing.
 * Also COIL_ARGUMENT when the entry is bound to other dims of states. */
COIL_API int coil_session_advance(coil_session *session, int32_t entry, coil_state *state, const void *const *inputs,
                                  void *const *outputs);

/* coil_session_advance for several states at once: `inputs` and `outputs` have the rows of the first state, then those of
 * the second, and so on. Each state has run before; what is not per row (a position) must be equal. The states are copied
 * into `batch`, any state that is not one of them, and back; for each it counts as a call. Also COIL_MEMORY. */
COIL_API int coil_session_advance_all(coil_session *session, int32_t entry, coil_state *const *states, int32_t count,
                                      coil_state *batch, const void *const *inputs, void *const *outputs);

/* The same in memory that the caller gives, as for sessions: bytes for a state of `entry` at these symbols, and the state.
 * COIL_ARGUMENT, COIL_MEMORY. */
COIL_API int coil_state_bytes(int32_t entry, const int64_t *symbols, int32_t history, uint64_t *bytes);
COIL_API int coil_state_open_in(const coil_model *model, int32_t history, void *memory, uint64_t bytes,
                                coil_state **state);

/* Back to the start of a sequence. */
COIL_API int coil_state_reset(coil_state *state);

/* Undo the last `calls` successful runs. Copies nothing. COIL_ARGUMENT when fewer are kept. */
COIL_API int coil_state_rewind(coil_state *state, int32_t calls);

/* A second state that continues from here; one copy, without the history. */
COIL_API int coil_state_fork(const coil_state *state, coil_state **copy);

/* Write the state to `memory` of `*bytes` bytes; `*bytes` becomes what it needs, and with NULL nothing is written. */
COIL_API int coil_state_save(const coil_state *state, void *memory, uint64_t *bytes);

/* Continue a saved state. COIL_STATE when it cannot be used; the state is then what it was. */
COIL_API int coil_state_load(coil_state *state, const void *memory, uint64_t bytes);

/* Bytes that the state and its history have reserved. */
COIL_API uint64_t coil_state_memory(const coil_state *state);

#ifdef __cplusplus
}
#endif
#endif
