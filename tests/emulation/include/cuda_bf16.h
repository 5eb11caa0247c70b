// cuda_bf16.h: bfloat16, as cuda_fp16.h.
#pragma once

#include "cuda_fp16.h"

// What the compiler calls on processors without the instruction, and its library lacks: to the nearest, ties to even.
extern "C" __attribute__((weak, visibility("hidden"))) __bf16 __truncsfbf2(float x) {
    unsigned bits = __builtin_bit_cast(unsigned, x);
    bits = x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    return __builtin_bit_cast(__bf16, static_cast<unsigned short>(bits >> 16));
}
EMULATED_NARROW(nv_bfloat16, __bf16)
using __nv_bfloat16 = nv_bfloat16;
struct nv_bfloat162 {
    nv_bfloat16 x, y;
};
using __nv_bfloat162 = nv_bfloat162;
inline float __bfloat162float(nv_bfloat16 x) { return x; }
inline nv_bfloat16 __float2bfloat16(float x) { return x; }
inline nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
