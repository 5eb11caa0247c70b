// cuda_bf16.h: bfloat16, as cuda_fp16.h.
#pragma once

#include "cuda_fp16.h"

EMULATED_NARROW(nv_bfloat16, __bf16)
using __nv_bfloat16 = nv_bfloat16;
struct nv_bfloat162 {
    nv_bfloat16 x, y;
};
using __nv_bfloat162 = nv_bfloat162;
inline float __bfloat162float(nv_bfloat16 x) { return x; }
inline nv_bfloat16 __float2bfloat16(float x) { return x; }
inline nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
