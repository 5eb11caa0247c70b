"""Compiled loops whose steps mix elements along dims of any extent, from one artifact for all sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coilc.codegen.build import build_object
from coilc.codegen.compile import compile
from coilc.codegen.target import parse_target
from coilc.comparison.metrics import TOLERANCE
from coilc.ir import Module, UnsupportedError, interpret, parse_graph
from coilc.ir import dims as d
from coilc.runtime import load

PROGRAMS = {
    # Every element of a row of any width sees the whole row.
    "mixed": """def main(h0: f32[B, W, 3], x: f32[L, B, W, 3], *, B: dim[1:], L: dim[1:], W: dim[1:]):
    def body(h: f32[B, W, 3], x: f32[B, W, 3]):
        s = add(h, x)
        p = softmax(s, axis=1)
        q = cumsum(p, axis=1, reverse=True)
        return {"h": q, "y": p}
    h, y = scan(h0, x, body=body, carries=1, sequences=1, axis=0, reverse=False)
    return {"h": h, "y": y}
""",
    # A grid: every cell from the one above and the one to the left.
    "grid": """def main(x: f32[B, H, W, 5], *, B: dim[1:], H: dim[1:], W: dim[1:]):
    zero = constant(value=array(f32, [0.0]))
    top = broadcast(zero, dims=(B, W, 5))
    def row(above: f32[B, W, 5], x: f32[B, W, 5]):
        def cell(left: f32[B, 5], up: f32[B, 5], x: f32[B, 5]):
            a = sub(up, left)
            b = tanh(a)
            c = add(b, x)
            return {"left": c, "cell": c}
        none = constant(value=array(f32, [0.0]))
        start = broadcast(none, dims=(B, 5))
        last, cells = scan(start, above, x, body=cell, carries=1, sequences=2, axis=1, reverse=False)
        return {"above": cells, "y": cells, "last": last}
    end, y, last = scan(top, x, body=row, carries=1, sequences=1, axis=1, reverse=False)
    return {"y": y, "end": end, "last": last}
""",
    # The same with a product per cell, so that the inner loop runs kernels too.
    "grid_of_products": """def main(x: f32[B, H, W, 5], w: f32[5, 5], *, B: dim[1:], H: dim[1:], W: dim[1:]):
    zero = constant(value=array(f32, [0.0]))
    top = broadcast(zero, dims=(B, W, 5))
    def row(above: f32[B, W, 5], x: f32[B, W, 5], w: f32[5, 5]):
        def cell(left: f32[B, 5], up: f32[B, 5], x: f32[B, 5], w: f32[5, 5]):
            a = add(up, left)
            p = matmul(a, w)
            c = add(p, x)
            e = tanh(c)
            return {"left": e, "cell": e}
        none = constant(value=array(f32, [0.0]))
        start = broadcast(none, dims=(B, 5))
        last, cells = scan(start, above, x, w, body=cell, carries=1, sequences=2, axis=1, reverse=True)
        return {"above": cells, "y": cells}
    end, y = scan(top, x, w, body=row, carries=1, sequences=1, axis=1, reverse=False)
    return {"y": y}
""",
    # A table in the code of a body, and carries of symbolic size that trade places.
    "swap": """def main(p0: f32[W], q0: f32[W], x: f32[L, 3], *, L: dim[1:], W: dim[1:]):
    def body(p: f32[W], q: f32[W], x: f32[3]):
        t = constant(value=array(f32, [0.5, 0.25, 0.125]))
        y = mul(t, x)
        s = sum(p, axes=(0,), keepdims=True)
        z = slice(y, starts=(0,), stops=(1,), steps=(1,))
        m = add(s, z)
        n = tanh(m)
        w = broadcast(n, dims=(W,))
        return {"p": q, "q": w, "y": y}
    p, q, y = scan(p0, q0, x, body=body, carries=2, sequences=1, axis=0, reverse=False)
    return {"p": p, "q": q, "y": y}
""",
    # A complex carry, which turns by an angle of its own size.
    "complex": """def main(re: f32[L, B, 5], im: f32[L, B, 5], *, B: dim[1:], L: dim[1:]):
    x = complex(re, im)
    zero = constant(value=array(f32, [0.0]))
    none = broadcast(zero, dims=(B, 5))
    start = complex(none, none)
    def body(h: c64[B, 5], x: c64[B, 5]):
        m = abs(h)
        a = cos(m)
        b = sin(m)
        turn = complex(a, b)
        t = mul(h, turn)
        half = constant(value=array(f32, [0.5]))
        halves = broadcast(half, dims=(B, 5))
        none = sub(halves, halves)
        scale = complex(halves, none)
        f = mul(t, scale)
        n = add(f, x)
        return {"h": n, "y": n}
    h, y = scan(start, x, body=body, carries=1, sequences=1, axis=0, reverse=False)
    a = real(y)
    b = imag(y)
    c = imag(h)
    return {"a": a, "b": b, "c": c}
""",
    # Two loops over one sequence, as two stacked outputs of one loop leave them: each runs the other's steps.
    "twice": """def main(x: f32[L, B, 5], h0: f32[B, 5], c0: f32[B, 5], *, B: dim[1:], L: dim[1:]):
    def first(h: f32[B, 5], c: f32[B, 5], x: f32[B, 5]):
        a = add(h, x)
        b = tanh(a)
        e = mul(b, c)
        f = sub(x, e)
        return {"h": f, "c": b, "y": b}
    def second(h: f32[B, 5], c: f32[B, 5], x: f32[B, 5]):
        a = add(h, x)
        b = tanh(a)
        e = mul(b, c)
        f = sub(x, e)
        return {"h": f, "c": b, "y": e}
    h, c, y = scan(h0, c0, x, body=first, carries=2, sequences=1, axis=0, reverse=False)
    k, d, z = scan(h0, c0, x, body=second, carries=2, sequences=1, axis=0, reverse=False)
    return {"y": y, "z": z, "h": h, "d": d}
""",
}
SIZES = ({"B": 1, "H": 1, "W": 1, "L": 1}, {"B": 2, "H": 1, "W": 7, "L": 3}, {"B": 3, "H": 5, "W": 1, "L": 2},
         {"B": 2, "H": 6, "W": 11, "L": 20})  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_loops_of_symbolic_state(name: str, tmp_path: Path) -> None:
    module = Module({"main": parse_graph(PROGRAMS[name])})
    model = load(compile(module, tmp_path / "loop.coil"), threads=2)
    rng = np.random.default_rng(0)
    for sizes in SIZES:
        inputs = {
            v.node.attrs["name"]: rng.standard_normal([d.evaluate(n, sizes) for n in v.dims]).astype(np.float32)
            for v in module.entries["main"].inputs
        }
        expected = interpret(module, inputs, wide=True)
        for output, found in model(**inputs).items():
            error = np.linalg.norm(found - expected[output]) / max(float(np.linalg.norm(expected[output])), 1.0)
            assert error <= TOLERANCE["float32"], (output, sizes)


def test_a_body_that_cannot_be_lowered_is_named(tmp_path: Path) -> None:
    """Which node, at which line of the model, and what is wrong: here without the pass that gives steps their memory."""
    text = PROGRAMS["mixed"].replace("softmax(s, axis=1)", "cumsum(s, axis=1, reverse=False)  # model.py:7 in cell")
    with pytest.raises(UnsupportedError, match=r"size is not known(.|\n)*cumsum: f32\[B, W, 3\].*model.py:7 in cell"):
        build_object({"k": parse_graph(text)}, parse_target("native"), tmp_path / "kernels.o")
