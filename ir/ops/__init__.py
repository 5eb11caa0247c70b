"""Every op of the IR, listed: nothing registers itself by being found on disk."""

from .attention import attention, rotary
from .convolution import conv, conv_transpose, depthwise_conv, pool
from .delta import gated_delta_rule, generalized_delta_rule
from .elementwise import (
    abs,
    add,
    atan,
    atan2,
    bitwise_and,
    bitwise_not,
    bitwise_or,
    bitwise_xor,
    cast,
    ceil,
    clamp,
    complex,
    conj,
    cos,
    div,
    elu,
    eq,
    erf,
    exp,
    exp2,
    expm1,
    floor,
    floor_div,
    fmod,
    ge,
    gelu,
    gt,
    hardsigmoid,
    hardswish,
    imag,
    isfinite,
    isinf,
    isnan,
    le,
    leaky_relu,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    logsigmoid,
    lt,
    maximum,
    minimum,
    mish,
    mod,
    mul,
    ne,
    neg,
    pow,
    real,
    reciprocal,
    relu,
    round,
    rsqrt,
    shift_left,
    shift_right,
    sigmoid,
    sign,
    silu,
    sin,
    softplus,
    sqrt,
    square,
    sub,
    tan,
    tanh,
    trunc,
    where,
)  # fmt: skip
from .fourier import dft, fft, ifft, irfft, rfft
from .indexing import gather, index_put, scatter, take, update_slice
from .layout import pack_panels
from .linalg import einsum, linear, matmul, packed_matmul
from .lti import long_conv, lti_scan
from .movement import (
    broadcast,
    concat,
    dim_value,
    expand_dims,
    extent,
    flip,
    iota,
    pad,
    reshape,
    slice,
    slice_axis,
    transpose,
)
from .norm import batch_norm, group_norm, layer_norm, log_softmax, rms_norm, softmax
from .prefix import cummax, cumprod, cumsum, logcumsumexp, sort, topk
from .quantized import quantize_panels, quantized_matmul
from .recurrence import body_input, causal_conv1d, gated_linear_attention, linear_scan, scan, selective_scan
from .reduce import all, any, argmax, argmin, logsumexp, max, mean, min, prod, sum, var
from .structural import constant, fused, input_, weight, zeros
from .while_loop import while_loop
from .wkv import wkv
