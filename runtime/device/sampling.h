/* sampling.h: from logits to a token, as `coilc generate` does it: equal seeds give equal tokens. */
#ifndef COIL_SAMPLING_H
#define COIL_SAMPLING_H

#include <stdint.h>

/* PCG64 (M. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms", 2014), seeded like
 * NumPy's default_rng. */
typedef struct generator {
    unsigned __int128 state, increment;
} generator;

generator generator_seed(uint64_t seed);
double generator_next(generator *random); /* uniform in [0, 1) */

typedef struct sampler {
    double temperature, top_p; /* temperature 0: the likeliest */
    int64_t top_k;             /* 0: all */
    generator random;
    int32_t *order; /* room for `size` */
    double *total;  /* room for `size` */
} sampler;

/* Choose one index of `logits`, which has `size` elements. */
int32_t sample(sampler *sampler, const float *logits, int32_t size);

#endif
