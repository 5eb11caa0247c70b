// cuda.h: what generated CUDA C++ needs, for an ordinary compiler. Threads are the fibers of grid.c.
#pragma once

#include <cmath>
#include <cstdint>
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../grid.h"

extern "C" __attribute__((visibility("default"))) thread *emulated_now;

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ static __attribute__((section("emulated_shared")))
#define __constant__ static
#define threadIdx (emulated_now->index)
#define blockIdx (emulated_now->block)
#define blockDim (emulated_now->block_dim)
#define gridDim (emulated_now->grid_dim)

using std::max;
using std::min;
inline float max(float a, float b) { return fmaxf(a, b); } // not NaN, if one of them is a number
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
template <class T, class U> inline auto max(T a, U b) -> decltype(a + b) { return a < b ? b : a; }
template <class T, class U> inline auto min(T a, U b) -> decltype(a + b) { return b < a ? b : a; }

template <class To, class From> inline To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline long long __double_as_longlong(double x) { return same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return same_bits<double>(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
template <class T> inline T __ldg(const T *x) { return *x; }

// Threads with each other.
constexpr int warpSize = LANES;
inline unsigned lane_of(const thread &t) {
    return (t.index.x + t.block_dim.x * (t.index.y + t.block_dim.y * t.index.z)) % LANES;
}
inline void __syncthreads() { emulated_now->barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { emulated_now->meet(0, mask); }
inline void __threadfence() {}
inline void cudaTriggerProgrammaticLaunchCompletion() {} // kernels run one after another
inline void cudaGridDependencySynchronize() {}
inline void __threadfence_block() {}
inline unsigned __activemask() { return ~0u; }

template <class T> inline T value_of(unsigned mask, T mine, unsigned source) {
    uint64_t bits = 0;
    std::memcpy(&bits, &mine, sizeof mine);
    emulated_now->meet(bits, mask);
    if (!(emulated_now->present >> source & 1)) return mine;
    T result;
    std::memcpy(&result, &emulated_now->met[source], sizeof result);
    return result;
}
template <class T> inline T __shfl_sync(unsigned mask, T x, int source, int width = LANES) {
    unsigned lane = lane_of(*emulated_now);
    return value_of(mask, x, lane / unsigned(width) * unsigned(width) + unsigned(source) % unsigned(width));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T x, int with, int width = LANES) {
    unsigned lane = lane_of(*emulated_now), other = lane ^ unsigned(with);
    return value_of(mask, x, other / unsigned(width) > lane / unsigned(width) ? lane : other);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = LANES) {
    unsigned lane = lane_of(*emulated_now);
    return value_of(mask, x, lane % unsigned(width) + by < unsigned(width) ? lane + by : lane);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = LANES) {
    unsigned lane = lane_of(*emulated_now);
    return value_of(mask, x, lane % unsigned(width) >= by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    unsigned result = 0;
    emulated_now->meet(vote != 0, mask);
    for (unsigned lane = 0; lane < LANES; lane++)
        if (emulated_now->present >> lane & 1) result |= unsigned(emulated_now->met[lane]) << lane;
    return result;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }

template <class T> inline T atomicAdd(T *at, T x) { T before = *at; *at = T(before + x); return before; }
template <class T> inline T atomicMax(T *at, T x) { T before = *at; *at = max(before, x); return before; }
template <class T> inline T atomicMin(T *at, T x) { T before = *at; *at = min(before, x); return before; }
template <class T> inline T atomicExch(T *at, T x) { T before = *at; *at = x; return before; }
template <class T> inline T atomicCAS(T *at, T old, T x) { T before = *at; if (before == old) *at = x; return before; }

// Vectors.
#define EMULATED_VECTOR(T, name)                                                                                       \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                                                 \
    struct name##3 { T x, y, z; };                                                                                     \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };                                 \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                         \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTOR(float, float)
EMULATED_VECTOR(double, double)
EMULATED_VECTOR(int, int)
EMULATED_VECTOR(unsigned, uint)
EMULATED_VECTOR(short, short)
EMULATED_VECTOR(unsigned short, ushort)
EMULATED_VECTOR(signed char, char)
EMULATED_VECTOR(unsigned char, uchar)
EMULATED_VECTOR(long long, longlong)
EMULATED_VECTOR(unsigned long long, ulonglong)

// Kernels, as the driver calls them.
template <class... A, size_t... I>
inline void call_with(void (*kernel)(A...), void **params, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A> *>(params[I])...);
}
template <auto kernel> struct Entry;
template <class... A, void (*kernel)(A...)> struct Entry<kernel> {
    static void call(void **params) { call_with(kernel, params, std::index_sequence_for<A...>()); }
    static kernel_entry row(const char *name) { return {name, call, int(sizeof...(A)), {sizeof(A)...}}; }
};
