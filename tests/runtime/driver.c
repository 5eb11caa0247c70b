/* Uses every function of coil.h from several threads; run under sanitizers. Prints "ok", or the first thing that is wrong. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coil.h"

enum { BATCH = 3, COLUMNS = 64, SESSIONS = 2, ROUNDS = 40 };
static const char *path;

#define REQUIRE(condition)                                                                        \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            printf("line %d: %s (%s)\n", __LINE__, #condition, coil_error_message());             \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

static int count(void *user, int32_t call, const void *const *results, int32_t number) {
    int *calls = user;
    REQUIRE(call == *calls && number == 1 && results[0]);
    return ++*calls == 100;
}

static int stop(void *user, int32_t call, const void *const *results, int32_t number) {
    (void)user, (void)results, (void)number;
    return call == 1;
}

static void run_rows(coil_session *session, int64_t length) {
    size_t size = (size_t)length * BATCH * COLUMNS;
    float *x = malloc(size * sizeof *x + 1), *y = malloc(size * sizeof *y + 1), *z = malloc(size * sizeof *z + 1);
    for (size_t i = 0; i < size; i++) x[i] = (float)i;
    const void *inputs[] = {x};
    void *outputs[] = {y, z};
    int64_t dims[3], symbols[] = {BATCH, length};
    REQUIRE(coil_session_bind(session, 0, symbols) == COIL_OK);
    REQUIRE(coil_session_dims(session, 0, 1, 1, dims) == COIL_OK && dims[0] == BATCH && dims[1] == length);
    int calls = 0;
    REQUIRE(coil_session_run(session, 0, inputs, outputs) == COIL_OK && !memcmp(x, z, size * sizeof *x));
    REQUIRE(coil_session_trace(session, 0, inputs, outputs, count, &calls) == COIL_OK && calls == 3);
    REQUIRE(coil_session_trace(session, 0, inputs, outputs, stop, NULL) == COIL_STOPPED);
    void *none[] = {y, NULL};
    REQUIRE(coil_session_run(session, 0, inputs, none) == COIL_ARGUMENT);
    free(x), free(y), free(z);
}

static void bind_shapes(coil_session *session) {
    int64_t good[] = {BATCH, 5, COLUMNS}, wide[] = {BATCH, 5, COLUMNS + 1}, large[] = {9, 5, COLUMNS}, found[3];
    const int64_t *dims[] = {good}, *wrong[] = {wide}, *outside[] = {large}, *none[] = {NULL};
    REQUIRE(coil_session_bind_shapes(session, 0, wrong) == COIL_ARGUMENT);
    REQUIRE(!strcmp(coil_error_message(), "input 'x' has extent 65 at axis 2; f32[B, L, 64] needs 64 here"));
    REQUIRE(coil_session_bind_shapes(session, 0, outside) == COIL_ARGUMENT && strstr(coil_error_message(), "B = 9"));
    REQUIRE(coil_session_bind_shapes(session, 0, none) == COIL_ARGUMENT);
    REQUIRE(coil_session_bind_shapes(session, 0, NULL) == COIL_ARGUMENT);
    REQUIRE(coil_session_bind_shapes(session, 0, dims) == COIL_OK);
    REQUIRE(coil_session_dims(session, 0, 1, 0, found) == COIL_OK && found[0] == BATCH && found[1] == 5);
}

static void run_failures(coil_session *session) {
    float x[64] = {0}, y[64];
    const void *inputs[] = {x};
    void *outputs[] = {y};
    for (int32_t entry = 1; entry < 3; entry++) {
        int64_t n = 64, zero = 0;
        REQUIRE(coil_session_bind(session, entry, &zero) == COIL_ARGUMENT);
        REQUIRE(coil_session_bind(session, entry, NULL) == COIL_ARGUMENT);
        REQUIRE(coil_session_bind(session, entry, &n) == COIL_OK);
        REQUIRE(coil_session_run(session, entry, inputs, outputs) == COIL_OK);
    }
    for (int i = 0; i < 64; i++) x[i] = -1;
    REQUIRE(coil_session_run(session, 1, inputs, outputs) == COIL_KERNEL);
    REQUIRE(coil_session_run(session, 3, inputs, outputs) == COIL_ARGUMENT);
    REQUIRE(strstr(coil_error_message(), "entry 3 does not exist"));
}

static void *use(void *argument) {
    coil_session *session;
    REQUIRE(coil_session_open(argument, 3, &session) == COIL_OK);
    REQUIRE(coil_session_run(session, 0, NULL, NULL) == COIL_UNBOUND);
    bind_shapes(session);
    for (int i = 0; i < ROUNDS; i++) {
        run_rows(session, (i * 7) % 23);
        run_failures(session);
    }
    REQUIRE(coil_session_memory(session) > 0);
    coil_session_close(session);
    return NULL;
}

static void open_badly(void) {
    coil_model *model;
    coil_session *session;
    coil_options none = {.size = sizeof none}, absent = {.size = sizeof absent, .weights_path = "/absent"};
    coil_options other = {.size = sizeof other, .weights_path = "/proc/self/exe"}, small = {.weights_path = path};
    REQUIRE(coil_open(&none, &model) == COIL_ARGUMENT && coil_open(&small, &model) == COIL_ARGUMENT);
    REQUIRE(coil_open(&absent, &model) == COIL_WEIGHTS && coil_open(&other, &model) == COIL_WEIGHTS && !model);
    REQUIRE(coil_session_open(NULL, 1, &session) == COIL_ARGUMENT);
    coil_close(NULL);
    coil_session_close(NULL);
}

/* Weights that the caller holds in memory. */
static void open_memory(void) {
    const coil_description *all = coil_describe();
    void *memory = aligned_alloc(64, (all->weights_bytes + 63) / 64 * 64);
    FILE *file = fopen(path, "rb");
    REQUIRE(file && fread(memory, 1, all->weights_bytes, file) == all->weights_bytes);
    fclose(file);
    coil_options options = {.size = sizeof options, .weights = memory, .weights_bytes = all->weights_bytes};
    coil_model *model;
    REQUIRE(coil_open(&options, &model) == COIL_OK);
    use(model);
    coil_close(model);
    options.weights_bytes--;
    REQUIRE(coil_open(&options, &model) == COIL_WEIGHTS);
    free(memory);
}

int main(int argc, char **argv) {
    REQUIRE(argc == 2);
    path = argv[1];
    REQUIRE(coil_abi_version() == COIL_ABI_VERSION && !*coil_error_message());
    const coil_entry *entry = coil_describe()->entries;
    REQUIRE(entry->symbol_count == 2 && !strcmp(entry->symbols[1].name, "L") && entry->symbols[1].high == INT64_MAX);
    REQUIRE(!strcmp(entry->inputs[0].type, "f32[B, L, 64]") && entry->inputs[0].rank == 3);
    open_badly();
    coil_options options = {.size = sizeof options, .weights_path = path};
    coil_model *model;
    REQUIRE(coil_open(&options, &model) == COIL_OK);
    pthread_t threads[SESSIONS];
    for (int i = 0; i < SESSIONS; i++) REQUIRE(!pthread_create(&threads[i], NULL, use, model));
    for (int i = 0; i < SESSIONS; i++) pthread_join(threads[i], NULL);
    coil_close(model);
    open_memory();
    puts("ok");
    return 0;
}
