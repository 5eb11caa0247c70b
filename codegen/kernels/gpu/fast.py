"""Exponentials for inner loops: the hardware's own, in places where an error of two units in the last place is accounted for."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from ...math import LOG2_E, LOG2_E_LOW, polynomial
from ...scalar import Expr, bind, const, intrinsic, select

_SOURCE = """
static __forceinline__ __device__ float {name}(float x) {{
#ifdef __CUDACC__
    float y;
    asm("{instruction}.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return {plain};
#endif
}}
"""

LN2 = 0.6931471805599453
MOST = 126.0  # of an exponent whose power of two is a normal number
# log(1 + u) / z over z^2 for z = u / (2 + u), u in [0, 1]; relative error 4e-9
LOG1P = (2.817833502e-01, 2.796060273e-01, 4.002491028e-01, 6.666631468e-01, 2.000000008e00)


def _call(name: str, instruction: str, plain: str, x: Expr) -> Expr:
    source = _SOURCE.format(name=name, instruction=instruction, plain=plain)
    return bind(T.cuda.func_call(name, x, source_code=source, return_type="float32"))


def exp2(x: Expr) -> Expr:
    """2**x for fp32; zero where that is no normal number."""
    return _call("coil_exp2", "ex2", "exp2f(x)", x)


def reciprocal(x: Expr) -> Expr:
    """1 / x for fp32; zero where that is no normal number."""
    return _call("coil_reciprocal", "rcp", "1 / x", x)


def silu(x: Expr) -> Expr:
    """x * sigmoid(x) for fp32."""
    return bind(x * reciprocal(bind(const(1.0, x) + exp2(bind(x * const(-LOG2_E, x))))))


def softplus(x: Expr) -> Expr:
    """log(1 + e**x) for fp32: x if positive, plus log(1 + u) for u = e**-|x| by the series of the area tangent."""
    size = bind(intrinsic("fmin", intrinsic("fabs", x), const(MOST * LN2, x)))
    exponent = bind(size * const(-LOG2_E, x))
    rest = bind(intrinsic("fma", size, const(-LOG2_E, x), -exponent) - size * const(LOG2_E_LOW, x))
    u = exp2(exponent)
    u = bind(u + u * (rest * const(LN2, x)))
    z = bind(u * reciprocal(bind(const(2.0, x) + u)))
    positive = select(x < const(0.0, x), const(0.0, x), x)
    return bind(positive + z * polynomial(LOG1P, bind(z * z)))
