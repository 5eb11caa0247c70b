/* Any logits, NaN and infinities among them, and any options in their range: the token is one of them. */
#include "fuzz.h"
#include "sampling.h"

enum { MOST = 64 };

static double real(stream *from) { /* of all magnitudes, at least 0 */
    static const double EDGES[] = {0, 5e-324, 1e-300, 1e-30, 0.5, 1, 2, 1000000};
    uint8_t byte = next_byte(from);
    return byte < 8 ? EDGES[byte] : byte / 128.0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    stream from = {data, data + size};
    double temperature = real(&from), top_p = real(&from);
    int64_t top_k = next_number(&from), seed = next_number(&from);
    int32_t count = 1 + next_byte(&from) % MOST;
    float *logits = malloc((size_t)count * sizeof *logits);
    sampler sampler = {temperature, top_p > 0 && top_p <= 1 ? top_p : 1, top_k < 0 || top_k > INT32_MAX ? 0 : top_k,
                       generator_seed((uint64_t)seed), malloc((size_t)count * 4), malloc((size_t)count * 8)};
    for (int32_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)next_bytes(&from, 4);
        memcpy(&logits[i], &bits, sizeof bits);
    }
    for (int i = 0; i < 4; i++) {
        int32_t token = sample(&sampler, logits, count);
        REQUIRE(token >= 0 && token < count);
    }
    double next = generator_next(&sampler.random);
    REQUIRE(next >= 0 && next < 1);
    free(logits), free(sampler.order), free(sampler.total);
    return 0;
}
