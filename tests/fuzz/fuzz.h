/* fuzz.h: what the fuzz targets share. Each defines LLVMFuzzerTestOneInput; fuzz.c has the rest. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                                        \
    do {                                                                                                          \
        if (!(condition)) fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), abort();                \
    } while (0)

/* The input as a stream of decisions; at its end everything is 0. */
typedef struct stream {
    const uint8_t *at, *end;
} stream;

static inline uint8_t next_byte(stream *from) { return from->at < from->end ? *from->at++ : 0; }

static inline size_t left(const stream *from) { return (size_t)(from->end - from->at); }

uint64_t next_bytes(stream *from, int count);

/* Mostly small, sometimes at the edges of 32 and 64 bits, sometimes anything. */
int64_t next_number(stream *from);

/* Reads every byte, so that the sanitizer sees it. */
void touch(const void *memory, size_t bytes);

/* A weights file's content of the fuzzed model, 64-byte aligned: `bytes` of them. */
void *make_weights(uint64_t bytes);

/* Recompute the checksum of a saved state, so that the mutator gets past it. */
void repair_checksum(uint8_t *data, size_t size);

enum { CHECKSUM_AT = 96, CHECKSUM_END = 104 };

#endif
