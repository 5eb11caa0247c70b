"""Scans whose step is a program: every op is legal in a body, and independent dims run apart."""

from __future__ import annotations

import pytest

from coilc.codegen.target import parse_target
from coilc.ir import Module, parse_graph
from coilc.passes.canonicalise_reductions import canonicalise_reductions
from coilc.passes.decompose import decompose

from .harness import Compiled

# Name: inputs, body, and the call; every one has a batch dim that nothing mixes and odd channels.
BODIES: dict[str, str] = {
    # A register of the last three inputs, filtered by a convolution.
    "shift_register": """def kernel(r0: f32[B, 3, 5], x: f32[B, L, 5], w: f32[2, 3, 1]):
    def body(r: f32[B, 3, 5], x: f32[B, 5], w: f32[2, 3, 1]):
        row = reshape(x, dims=(B, 1, 5))
        old = slice(r, starts=(0, 1, 0), stops=(B, 3, 5), steps=(1, 1, 1))
        next = concat(old, row, axis=1)
        y = conv(next, w, strides=(1,), padding=((0, 0),), dilation=(1,), groups=1)
        turned = flip(next, axes=(2,))
        return {"r": next, "y": y, "turned": turned}
    r, y, z = scan(r0, x, w, body=body, carries=1, sequences=1, axis=1, reverse=False)
    return {"r": r, "y": y, "z": z}
""",
    # Best-first: the largest element is taken out and its place counted.
    "argmax": """def kernel(h0: f32[B, 5], n0: i64[B, 5], x: f32[L, B, 5]):
    def body(h: f32[B, 5], n: i64[B, 5], x: f32[B, 5]):
        s = add(h, x)
        where0 = argmax(s, axis=1, keepdims=True)
        one = constant(value=array(i64, [[1]]))
        ones = broadcast(one, dims=(B, 1))
        n1 = scatter(n, where0, ones, axis=1, reduce="add")
        top = gather(s, where0, axis=1)
        wide = broadcast(top, dims=(B, 5))
        h1 = sub(s, wide)
        return {"h": h1, "n": n1, "top": top, "at": where0}
    h, n, top, at = scan(h0, n0, x, body=body, carries=2, sequences=1, axis=0, reverse=False)
    return {"h": h, "n": n, "top": top, "at": at}
""",
    "sort_and_cumsum": """def kernel(h0: f64[B, 7], x: f64[B, L, 7]):
    def body(h: f64[B, 7], x: f64[B, 7]):
        s = add(h, x)
        v, i = sort(s, axis=1, descending=True)
        c = cumsum(v, axis=1, reverse=False)
        p = cumprod(x, axis=1, reverse=True)
        t = tanh(c)
        return {"h": t, "i": i, "p": p}
    h, i, p = scan(h0, x, body=body, carries=1, sequences=1, axis=1, reverse=True)
    return {"h": h, "i": i, "p": p}
""",
    # A tape: the head moves by data, cells are written where it stands; the tape is shared by nobody.
    "tape": """def kernel(m0: f32[B, 6], at0: i64[B], x: f32[L, B], move: i64[L, B]):
    def body(m: f32[B, 6], at: i64[B], x: f32[B], move: i64[B]):
        there = add(at, move)
        six = constant(value=array(i64, [6]))
        n = broadcast(six, dims=(B,))
        turns = floor_div(there, n)
        whole = mul(turns, n)
        place = sub(there, whole)
        column = reshape(place, dims=(B, 1))
        cell = gather(m, column, axis=1)
        new = reshape(x, dims=(B, 1))
        both = add(cell, new)
        m1 = scatter(m, column, both, axis=1, reduce="set")
        y = reshape(cell, dims=(B,))
        return {"m": m1, "at": place, "y": y}
    m, at, y = scan(m0, at0, x, move, body=body, carries=2, sequences=2, axis=0, reverse=False)
    return {"m": m, "at": at, "y": y}
""",
    # A loop in the loop, over the rows of a matrix.
    "nested": """def kernel(h0: f32[B, 3], x: f32[B, L, 4, 3]):
    def body(h: f32[B, 3], x: f32[B, 4, 3]):
        def inner(h: f32[B, 3], x: f32[B, 3]):
            s = add(h, x)
            t = tanh(s)
            return {"h": t, "y": t}
        last, rows = scan(h, x, body=inner, carries=1, sequences=1, axis=1, reverse=True)
        return {"h": last, "y": rows}
    h, y = scan(h0, x, body=body, carries=1, sequences=1, axis=1, reverse=False)
    return {"h": h, "y": y}
""",
    "recurrences_inside": """def kernel(h0: f32[B, 3], x: f32[B, L, 4, 3]):
    def body(h: f32[B, 3], x: f32[B, 4, 3]):
        a = sigmoid(x)
        states, last = linear_scan(a, x, h, axis=1, reverse=False)
        s = softmax(last, axis=1)
        return {"h": s, "y": states}
    h, y = scan(h0, x, body=body, carries=1, sequences=1, axis=1, reverse=False)
    return {"h": h, "y": y}
""",
    # An associative memory written by outer products, normalised, read by a product.
    "matrix_memory": """def kernel(s0: f32[B, 5, 3], n0: f32[B, 1, 3], k: f32[B, L, 3], v: f32[B, L, 5]):
    def body(s: f32[B, 5, 3], n: f32[B, 1, 3], k: f32[B, 3], v: f32[B, 5]):
        row = reshape(k, dims=(B, 1, 3))
        column = reshape(v, dims=(B, 5, 1))
        outer = matmul(column, row)
        s1 = add(s, outer)
        n1 = maximum(n, row)
        norm = mul(n1, row)
        total = sum(norm, axes=(2,), keepdims=True)
        k1 = reshape(k, dims=(B, 3, 1))
        read = matmul(s1, k1)
        size = abs(total)
        one = constant(value=array(f32, [[[1.0]]]))
        ones = broadcast(one, dims=(B, 1, 1))
        safe = maximum(size, ones)
        wide = broadcast(safe, dims=(B, 5, 1))
        y = div(read, wide)
        square = mul(s1, s1)
        norms = sum(square, axes=(1, 2), keepdims=True)
        root = add(norms, ones)
        rootw = broadcast(root, dims=(B, 5, 3))
        s2 = div(s1, rootw)
        return {"s": s2, "n": n1, "y": y}
    s, n, y = scan(s0, n0, k, v, body=body, carries=2, sequences=2, axis=1, reverse=False)
    return {"s": s, "n": n, "y": y}
""",
    # Carries that trade places, one that only counts, one of another rank; the sequence is not read.
    "carries": """def kernel(p0: f32[B, 4], q0: f32[B, 4], n0: i32[B], f0: bool[B, 4], x: f32[L, B, 4]):
    def body(p: f32[B, 4], q: f32[B, 4], n: i32[B], f: bool[B, 4], x: f32[B, 4]):
        one = constant(value=array(i32, [1]))
        ones = broadcast(one, dims=(B,))
        n1 = add(n, ones)
        g = gt(p, q)
        f1 = logical_xor(f, g)
        kind = cast(n1, dtype=f32)
        column = reshape(kind, dims=(B, 1))
        wide = broadcast(column, dims=(B, 4))
        any0 = max(f1, axes=(1,), keepdims=False)
        return {"p": q, "q": p, "n": n1, "f": f1, "y": wide, "old": p, "any": any0}
    p, q, n, f, y, old, any1 = scan(p0, q0, n0, f0, x, body=body, carries=4, sequences=1, axis=0, reverse=False)
    return {"p": p, "q": q, "n": n, "f": f, "y": y, "old": old, "any": any1}
""",
    # Softmax over a state, with what follows the loop computed in its kernel.
    "epilogue": """def kernel(h0: f32[B, 5], x: f32[B, L, 5], w: f32[5, 5]):
    def body(h: f32[B, 5], x: f32[B, 5], w: f32[5, 5]):
        u = matmul(h, w)
        s = add(u, x)
        p = softmax(s, axis=1)
        return {"h": p, "y": s}
    h, y = scan(h0, x, w, body=body, carries=1, sequences=1, axis=1, reverse=False)
    z = exp(y)
    return {"h": h, "z": z}
""",
}


@pytest.mark.parametrize("name", BODIES)
def test_any_op_in_a_body(name: str) -> None:
    target = parse_target("native")
    module = decompose(Module({"main": parse_graph(BODIES[name])}), keep=target.claims)
    kernel = Compiled(canonicalise_reductions(module).entries["main"])
    for batch, length in ((1, 1), (3, 2), (2, 7), (1, 40)):
        kernel.check_random(B=batch, L=length)
