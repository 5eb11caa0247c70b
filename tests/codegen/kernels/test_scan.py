"""The general scan: bodies by element and op by op, integer and boolean carries, reverse, several outputs."""

from __future__ import annotations

import pytest

from coilc.ir import UnsupportedError

from .harness import Compiled

# A leaky integrate-and-fire neuron: comparison, a spike count and a boolean carry.
SPIKING = """def kernel(v0: f32[B, 5], n0: i64[B, 5], f0: bool[B, 5], x: f32[B, L, 5], gain: f32[5]):
    def body(v: f32[B, 5], n: i64[B, 5], fired: bool[B, 5], x: f32[B, 5], gain: f32[5]):
        g = broadcast(gain, dims=(B, 5))
        decay = constant(value=array(f32, [0.75]))
        decay1 = broadcast(decay, dims=(B, 5))
        one = constant(value=array(f32, [0.4]))
        one1 = broadcast(one, dims=(B, 5))
        gx = mul(g, x)
        vd = mul(v, decay1)
        u = add(vd, gx)
        spike = gt(u, one1)
        rest = sub(u, one1)
        v1 = where(spike, rest, u)
        s = cast(spike, dtype=i64)
        n1 = add(n, s)
        both = logical_and(spike, fired)
        out = cast(both, dtype=f32)
        return {{"v": v1, "n": n1, "fired": spike, "u": u, "out": out}}
    v, n, f, u, out = scan(v0, n0, f0, x, gain, body=body, carries=3, sequences=1, axis=1, reverse={reverse})
    return {{"v": v, "n": n, "f": f, "u": u, "out": out}}
"""
SCALAR = """def kernel(a0: f32[()], x: f32[L]):
    def body(a: f32[()], x: f32[()]):
        a1 = mul(a, x)
        a2 = add(a1, x)
        return {"a": a2, "y": a2}
    a, y = scan(a0, x, body=body, carries=1, sequences=1, axis=0, reverse=False)
    return {"a": a, "y": y}
"""
# An Elman network: a matrix product with a computed operand, then a norm clip, per batch element.
RECURRENT = """def kernel(h0: f32[B, {d}], x: f32[L, B, 3], w: f32[3, {d}], u: f32[{d}, {d}]):
    def body(h: f32[B, {d}], x: f32[B, 3], w: f32[3, {d}], u: f32[{d}, {d}]):
        a = tanh(h)
        hu = matmul(a, u)
        xw = matmul(x, w)
        s = add(hu, xw)
        sq = mul(s, s)
        n = sum(sq, axes=(1,), keepdims=True)
        r = rsqrt(n)
        one = constant(value=array(f32, [[1.0]]))
        one1 = broadcast(one, dims=(B, 1))
        c = minimum(r, one1)
        c1 = broadcast(c, dims=(B, {d}))
        h1 = mul(s, c1)
        m = max(h1, axes=(1,), keepdims=False)
        return {{"h": h1, "y": h1, "m": m}}
    h, y, m = scan(h0, x, w, u, body=body, carries=1, sequences=1, axis=0, reverse={reverse})
    return {{"h": h, "y": y, "m": m}}
"""
# The state-space scan written out: the state is larger than what a step reads.
STATE_SPACE = """def kernel(h0: f32[B, 4, 6], x: f32[B, L, 6], b: f32[B, L, 4], a: f32[4, 6]):
    def body(h: f32[B, 4, 6], x: f32[B, 6], b: f32[B, 4], a: f32[4, 6]):
        x1 = reshape(x, dims=(B, 1, 6))
        x2 = broadcast(x1, dims=(B, 4, 6))
        b1 = reshape(b, dims=(B, 4, 1))
        b2 = broadcast(b1, dims=(B, 4, 6))
        a1 = broadcast(a, dims=(B, 4, 6))
        ah = mul(a1, h)
        bx = mul(b2, x2)
        h1 = add(ah, bx)
        y = sum(h1, axes=(1,), keepdims=False)
        return {"h": h1, "y": y}
    h, y = scan(h0, x, b, a, body=body, carries=1, sequences=2, axis=1, reverse=False)
    return {"h": h, "y": y}
"""
SWAPPED = """def kernel(p0: f64[7], q0: f64[7], x: f64[7, L]):
    def body(p: f64[7], q: f64[7], x: f64[7]):
        s = add(p, x)
        return {"p": q, "q": s, "y": p}
    p, q, y = scan(p0, q0, x, body=body, carries=2, sequences=1, axis=1, reverse=False)
    return {"p": p, "q": q, "y": y}
"""
MIXED = """def kernel(h0: f32[B], x: f32[L, B]):
    def body(h: f32[B], x: f32[B]):
        s = sum(h, axes=(0,), keepdims=True)
        s1 = broadcast(s, dims=(B,))
        h1 = add(s1, x)
        return {"h": h1, "y": h1}
    h, y = scan(h0, x, body=body, carries=1, sequences=1, axis=0, reverse=False)
    return {"h": h, "y": y}
"""
LENGTHS = (1, 2, 7, 37)


@pytest.mark.parametrize("reverse", [False, True])
def test_integer_and_boolean_carries(reverse: bool) -> None:
    kernel = Compiled(SPIKING.format(reverse=reverse))
    for length in LENGTHS:
        kernel.check_random(B=3, L=length)


def test_scalar_carry() -> None:
    kernel = Compiled(SCALAR)
    for length in LENGTHS:
        kernel.check_random(L=length)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("d", [1, 5, 64])
def test_matrix_products_and_norms(d: int, reverse: bool) -> None:
    kernel = Compiled(RECURRENT.format(d=d, reverse=reverse))
    for batch, length in ((1, 1), (3, 2), (2, 7)):
        kernel.check_random(B=batch, L=length)


def test_state_larger_than_a_step() -> None:
    kernel = Compiled(STATE_SPACE)
    for length in LENGTHS:
        kernel.check_random(B=2, L=length)


def test_carries_trade_places_and_time_is_the_last_axis() -> None:
    kernel = Compiled(SWAPPED)
    for length in LENGTHS:
        kernel.check_random(L=length)


def test_memory_of_symbolic_size_comes_from_a_pass() -> None:
    with pytest.raises(UnsupportedError, match="no result has room for it"):
        Compiled(MIXED)
