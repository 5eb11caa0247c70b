/* generate.c: a text continued by a language model, which runs piece by piece. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "json.h"
#include "machine.h"
#include "npy.h"
#include "program.h"
#include "sampling.h"

enum { BYTES = 256 };

/* An entry from tokens i64[B, L] to logits f32[B, L, V]. */
typedef struct stage {
    int32_t entry, tokens, logits;
    const void **inputs;
    void **outputs;
} stage;

static bool is_tokens(coil_tensor tensor) { return tensor.rank == 2 && !strcmp(tensor.dtype, "i64"); }
static bool is_logits(coil_tensor tensor) { return tensor.rank == 3 && !strcmp(tensor.dtype, "f32"); }

/* The one tensor of an entry besides its states that has this form, or -1. */
static int32_t find(const program *p, int output, bool (*fits)(coil_tensor)) {
    int32_t count = output ? p->entry->output_count : p->entry->input_count, found = -1, others = 0;
    for (int32_t i = 0; i < count; i++) {
        if (in_state(p, output, i)) continue;
        if (found < 0 && fits((output ? p->entry->outputs : p->entry->inputs)[i])) found = i;
        others++;
    }
    return output || others == 1 ? found : -1;
}

_Noreturn static void refuse(void) {
    die(EXIT_INPUT, "this is no language model that runs step by step: that takes entries 'prefill' and 'step' with one input "
        "of tokens i64[B, L] and logits f32[B, L, V]");
}

static void choose_stage(program *p, const char *name) {
    const coil_description *all = coil_describe();
    for (p->index = 0; p->index < all->entry_count; p->index++) {
        p->entry = &all->entries[p->index];
        if (!strcmp(p->entry->name, name) && p->entry->state_count) return;
    }
    p->entry = NULL;
}

static stage open_stage(program *p, const char *name) {
    stage s = {-1, -1, -1, NULL, NULL};
    choose_stage(p, name);
    if (p->entry) s = (stage){p->index, find(p, 0, is_tokens), find(p, 1, is_logits), NULL, NULL};
    if (s.tokens < 0 || s.logits < 0) refuse();
    s.inputs = reserve((size_t)p->entry->input_count, sizeof *s.inputs);
    s.outputs = reserve((size_t)p->entry->output_count, sizeof *s.outputs);
    return s;
}

/* Fix the length, and reserve the outputs. */
static void bind_stage(program *p, stage *s, int64_t length) {
    p->index = s->entry, p->entry = &coil_describe()->entries[s->entry];
    int64_t dims[NPY_MAX_RANK], given[] = {1, length};
    const int64_t **all = reserve((size_t)p->entry->input_count, sizeof *all);
    all[s->tokens] = given;
    check(coil_session_bind_shapes(p->session, s->entry, all));
    for (int32_t i = 0; i < p->entry->output_count; i++)
        if (!in_state(p, 1, i)) s->outputs[i] = pages(bytes_of(p, 1, i, dims));
    free(all);
}

/* The logits after the last of `length` tokens. */
static const float *advance(program *p, stage *s, const int64_t *tokens, int64_t length, int32_t size) {
    s->inputs[s->tokens] = tokens;
    check(coil_session_advance(p->session, s->entry, p->state, s->inputs, s->outputs));
    return (const float *)s->outputs[s->logits] + (length - 1) * size;
}

static int32_t vocabulary(const program *p, const stage *s) {
    int64_t dims[NPY_MAX_RANK];
    bytes_of(p, 1, s->logits, dims);
    if (dims[2] < 1 || dims[2] > INT32_MAX) die(EXIT_INPUT, "the model knows %lld tokens", (long long)dims[2]);
    return (int32_t)dims[2];
}

/* --- tokens ------------------------------------------------------------------------------------------------------- */

static int64_t *from_text(const char *text, int64_t *count) {
    *count = (int64_t)strlen(text);
    int64_t *tokens = reserve((size_t)*count, sizeof *tokens);
    for (int64_t i = 0; i < *count; i++) tokens[i] = (unsigned char)text[i];
    return tokens;
}

static int64_t *from_ids(const char *text, int64_t *count) {
    int64_t *tokens = reserve(strlen(text), sizeof *tokens);
    for (*count = 0; *text; text += *text == ',') {
        char *end;
        tokens[(*count)++] = strtoll(text, &end, 10);
        if (end == text || (*end && *end != ',')) die(EXIT_INPUT, "--ids takes numbers with commas between them");
        text = end;
    }
    return tokens;
}

static int64_t *read_prompt(const options *given, int64_t *count) {
    if (!given->prompt == !given->ids) die(EXIT_INPUT, "generate takes either --prompt TEXT or --ids NUMBER,...");
    if (given->ids && given->stop) die(EXIT_INPUT, "--stop is for text; --ids has none");
    if (given->prompt && coil_tokenizer)
        die(EXIT_INPUT, "this model's text is cut by its tokenizer.json, which this program does not read: give --ids");
    if (!(given->top_p > 0)) die(EXIT_INPUT, "--top-p lies above 0 and at most at 1");
    int64_t *tokens = given->ids ? from_ids(given->ids, count) : from_text(given->prompt, count);
    if (!*count) die(EXIT_INPUT, "the prompt is empty; give at least one token");
    return tokens;
}

static void check_tokens(const options *given, const int64_t *tokens, int64_t count, int32_t size) {
    if (!given->ids && size < BYTES)
        die(EXIT_INPUT, "this model knows %d tokens, so text cannot be cut into bytes: give --ids", size);
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= size)
            die(EXIT_INPUT, "token %lld is outside 0 to %d", (long long)tokens[i], size - 1);
}

/* The end of the text so far, as long as --stop, which it is compared with. */
typedef struct tail {
    char *bytes;
    size_t size, held;
} tail;

static bool ends_text(tail *tail, const char *stop, int64_t token) {
    if (!stop || !*stop) return false;
    if (tail->held == tail->size) memmove(tail->bytes, tail->bytes + 1, --tail->held);
    tail->bytes[tail->held++] = (char)token;
    return tail->held == tail->size && !memcmp(tail->bytes, stop, tail->size);
}

static void show(const options *given, int64_t token) {
    if (given->ids)
        printf("%lld\n", (long long)token);
    else if (token < BYTES)
        putchar((int)token);
    fflush(stdout);
}

/* --- the command -------------------------------------------------------------------------------------------------- */

static void report(int64_t prompt, int64_t tokens, const double *times) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    json_to(stderr);
    json_open(NULL, '{');
    json_integer("prompt_tokens", prompt);
    json_number("prompt_per_s", (double)prompt / (times[2] - times[1]));
    json_integer("tokens", tokens);
    json_number("tokens_per_s", tokens > 1 ? (double)(tokens - 1) / (times[3] - times[2]) : 0);
    json_number("open_seconds", times[1] - times[0]);
    json_number("first_token_seconds", times[2] - times[0]);
    json_integer("peak_resident_bytes", 1024 * (int64_t)usage.ru_maxrss);
    json_close('}');
}

void generate(program *p) {
    const options *given = &p->options;
    int64_t length, count = 1;
    int64_t *prompt = read_prompt(given, &length);
    if (!coil_describe()->state_count) refuse();
    double times[4] = {seconds()};
    open_session(p);
    check(coil_state_open(p->model, 1, &p->state));
    stage prefill = open_stage(p, "prefill"), step = open_stage(p, "step");
    bind_stage(p, &step, 1);
    bind_stage(p, &prefill, length);
    int32_t size = vocabulary(p, &prefill);
    check_tokens(given, prompt, length, size);
    sampler sampler = {given->temperature, given->top_p, given->top_k, generator_seed((uint64_t)given->seed),
                       pages((size_t)size * sizeof *sampler.order), pages((size_t)size * sizeof *sampler.total)};
    size_t stop = given->stop ? strlen(given->stop) : 0;
    tail tail = {reserve(stop, 1), stop, 0};
    times[1] = seconds();
    int64_t token = sample(&sampler, advance(p, &prefill, prompt, length, size), size);
    times[2] = seconds();
    for (show(given, token); count < given->tokens && !ends_text(&tail, given->stop, token); count++) {
        token = sample(&sampler, advance(p, &step, &token, 1, size), size);
        show(given, token);
    }
    times[3] = seconds();
    if (!given->ids) putchar('\n');
    fflush(stdout); /* the text comes before its report */
    report(length, count, times);
}
