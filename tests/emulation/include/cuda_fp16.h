// cuda_fp16.h: half precision; every operation is one in float, rounded.
#pragma once

#include "cuda.h"

#define EMULATED_NARROW(name, storage)                                                                                 \
    struct name {                                                                                                      \
        storage value;                                                                                                 \
        name() = default;                                                                                              \
        template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> name(T x) : value(storage(x)) {}         \
        operator float() const { return float(value); }                                                                \
    };                                                                                                                 \
    inline name operator+(name a, name b) { return float(a) + float(b); }                                              \
    inline name operator-(name a, name b) { return float(a) - float(b); }                                              \
    inline name operator*(name a, name b) { return float(a) * float(b); }                                              \
    inline name operator/(name a, name b) { return float(a) / float(b); }                                              \
    inline name operator-(name a) { return -float(a); }                                                                \
    inline bool operator<(name a, name b) { return float(a) < float(b); }                                              \
    inline bool operator>(name a, name b) { return float(a) > float(b); }                                              \
    inline bool operator<=(name a, name b) { return float(a) <= float(b); }                                            \
    inline bool operator>=(name a, name b) { return float(a) >= float(b); }                                            \
    inline bool operator==(name a, name b) { return float(a) == float(b); }                                            \
    inline bool operator!=(name a, name b) { return float(a) != float(b); }                                            \
    inline bool __hgt(name a, name b) { return a > b; }                                                                \
    inline bool __hlt(name a, name b) { return a < b; }

EMULATED_NARROW(half, _Float16)
using __half = half;
struct half2 {
    half x, y;
};
using __half2 = half2;
inline float __half2float(half x) { return x; }
inline half __float2half(float x) { return x; }
inline half __float2half_rn(float x) { return x; }
inline half __ushort_as_half(unsigned short x) { return same_bits<half>(x); }
inline unsigned short __half_as_ushort(half x) { return same_bits<unsigned short>(x); }
