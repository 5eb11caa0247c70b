/* sampling.c: see sampling.h. */
#include "sampling.h"

#include <math.h>
#include <stdbool.h>

/* --- the generator ------------------------------------------------------------------------------------------------ */

enum { POOL = 4 };

/* How NumPy's SeedSequence stirs a seed: a hash whose constant changes with every use. */
static uint32_t stir(uint32_t value, uint32_t *constant, uint32_t multiplier) {
    value ^= *constant;
    *constant *= multiplier;
    value *= *constant;
    return value ^ value >> 16;
}

static uint32_t mix(uint32_t a, uint32_t b) {
    uint32_t mixed = 0xca01f9ddu * a - 0x4973f715u * b;
    return mixed ^ mixed >> 16;
}

static void expand_seed(uint64_t seed, uint64_t words[POOL]) {
    uint32_t pool[POOL] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, constant = 0x43b0d7e5u;
    for (int i = 0; i < POOL; i++) pool[i] = stir(pool[i], &constant, 0x931e8875u);
    for (int from = 0; from < POOL; from++)
        for (int to = 0; to < POOL; to++)
            if (from != to) pool[to] = mix(pool[to], stir(pool[from], &constant, 0x931e8875u));
    constant = 0x8b51f9ddu;
    for (int i = 0; i < POOL; i++) {
        uint64_t low = stir(pool[2 * i % POOL], &constant, 0x58f38dedu);
        words[i] = low | (uint64_t)stir(pool[(2 * i + 1) % POOL], &constant, 0x58f38dedu) << 32;
    }
}

static void step(generator *random) {
    const unsigned __int128 multiplier = (unsigned __int128)UINT64_C(2549297995355413924) << 64 | UINT64_C(4865540595714422341);
    random->state = random->state * multiplier + random->increment;
}

generator generator_seed(uint64_t seed) {
    uint64_t words[POOL];
    expand_seed(seed, words);
    generator random = {.increment = ((unsigned __int128)words[2] << 64 | words[3]) << 1 | 1};
    step(&random);
    random.state += (unsigned __int128)words[0] << 64 | words[1];
    step(&random);
    return random;
}

double generator_next(generator *random) {
    step(random);
    uint64_t folded = (uint64_t)(random->state >> 64) ^ (uint64_t)random->state;
    int turn = (int)(random->state >> 122);
    return (double)((folded >> turn | folded << (-turn & 63)) >> 11) * 0x1p-53;
}

/* --- the choice --------------------------------------------------------------------------------------------------- */

static int32_t likeliest(const float *logits, int32_t size) {
    int32_t best = 0;
    for (int32_t i = 1; i < size; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static bool before(const float *logits, int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
}

/* The first of `size` ascending numbers that is at least (or, strictly, more than) `bound`; `size` when none is. */
static int32_t search(const double *numbers, int32_t size, double bound, bool strictly) {
    int32_t low = 0, high = size;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (numbers[middle] < bound || (strictly && numbers[middle] == bound))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* A heap with the unlikeliest at its root, from which sorting takes the last places first. */
static void sift(int32_t *order, const float *logits, int32_t root, int32_t size) {
    for (int32_t child; (child = 2 * root + 1) < size; root = child) {
        if (child + 1 < size && before(logits, order[child], order[child + 1])) child++;
        if (before(logits, order[child], order[root])) return;
        int32_t moved = order[root];
        order[root] = order[child], order[child] = moved;
    }
}

/* All indices, the likeliest first; equal ones in their order. */
static void sort(int32_t *order, const float *logits, int32_t size) {
    for (int32_t i = 0; i < size; i++) order[i] = i;
    for (int32_t root = size / 2; root-- > 0;) sift(order, logits, root, size);
    for (int32_t last = size - 1; last > 0; last--) {
        int32_t moved = order[0];
        order[0] = order[last], order[last] = moved;
        sift(order, logits, 0, last);
    }
}

int32_t sample(sampler *sampler, const float *logits, int32_t size) {
    if (sampler->temperature == 0) return likeliest(logits, size);
    sort(sampler->order, logits, size);
    int32_t count = sampler->top_k && sampler->top_k < size ? (int32_t)sampler->top_k : size;
    double largest = (double)logits[sampler->order[0]] / sampler->temperature, sum = 0;
    for (int32_t i = 0; i < count; i++)
        sampler->total[i] = sum += exp((double)logits[sampler->order[i]] / sampler->temperature - largest);
    int32_t kept = search(sampler->total, count, sampler->top_p * sum, false) + 1;
    count = kept < count ? kept : count;
    int32_t place = search(sampler->total, count, generator_next(&sampler->random) * sampler->total[count - 1], true);
    return sampler->order[place < count ? place : count - 1];
}
