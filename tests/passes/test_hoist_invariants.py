"""What leaves a loop, what stays in it, and what is dropped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coilc.ir import Graph, Module, Node
from coilc.passes.hoist_invariants import hoist_invariants

CELL = """
    def main(h0: f32[B, 4], c0: f32[B, 4], x: f32[L, B, 3], w: f32[3, 8], u: f32[4, 8], out: f32[4, 5], *, B: dim[1:], L: dim[1:]):
        def step(h: f32[B, 4], c: f32[B, 4], x: f32[B, 3], w: f32[3, 8], u: f32[4, 8], out: f32[4, 5]):
            v0: f32[B, 8] = matmul(x, w)
            v1: f32[B, 8] = matmul(h, u)
            v2: f32[B, 8] = add(v0, v1)
            v3: f32[B, 8] = sigmoid(v2)
            i: f32[B, 4] = slice(v3, starts=(0, 0), stops=(B, 4), steps=(1, 1))
            o: f32[B, 4] = slice(v3, starts=(0, 4), stops=(B, 8), steps=(1, 1))
            v4: f32[B, 4] = mul(i, c)
            v5: f32[B, 4] = add(v4, i)
            v6: f32[B, 4] = tanh(v5)
            v7: f32[B, 4] = mul(o, v6)
            v8: f32[B, 5] = matmul(v7, out)
            v9: f32[B, 5] = exp(v8)
            return {"h": v7, "c": v5, "y": v9}
        h, c, y = scan(h0, c0, x, w, u, out, body=step, carries=2, sequences=1, axis=0, reverse=False)
        return {"y": y, "h": h}
"""


def scan_of(module: Module) -> Node:
    (scan,) = (n for n in module.entries["main"].nodes if n.op.name == "scan")
    return scan


def ops_in(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes if n.op.name != "input"]


def test_projections_leave_the_loop(preserves: Callable[..., Module]) -> None:
    after = preserves(hoist_invariants, CELL)
    assert ops_in(scan_of(after).attrs["body"]).count("matmul") == 1
    assert "exp" not in ops_in(scan_of(after).attrs["body"])


def test_reverse_and_inner_axis(preserves: Callable[..., Module]) -> None:
    text = CELL.replace("x: f32[L, B, 3]", "x: f32[B, L, 3]").replace("axis=0, reverse=False", "axis=1, reverse=True")
    after = preserves(hoist_invariants, text)
    assert ops_in(scan_of(after).attrs["body"]).count("matmul") == 1


def test_what_grows_stays(preserves: Callable[..., Module]) -> None:
    after = preserves(
        hoist_invariants,
        """
        def main(h0: f32[4, 6], dt: f32[L, 6], a: f32[4, 6], *, L: dim[1:]):
            def step(h: f32[4, 6], dt: f32[6], a: f32[4, 6]):
                v0: f32[6] = exp(dt)
                v1: f32[4, 6] = broadcast(v0, dims=(4, 6))
                v2: f32[4, 6] = mul(v1, a)
                v3: f32[4, 6] = mul(v2, h)
                v4: f32[4, 6] = tanh(v3)
                return {"h": v4}
            h = scan(h0, dt, a, body=step, carries=1, sequences=1, axis=0, reverse=False)
            return {"h": h}
        """,
    )
    assert ops_in(scan_of(after).attrs["body"]) == ["broadcast", "mul", "mul", "tanh"]


def test_dead_carries_outputs_and_inputs_go(preserves: Callable[..., Module]) -> None:
    after = preserves(
        hoist_invariants,
        """
        def main(a0: f32[4], b0: f32[4], c0: f32[4], x: f32[L, 4], z: f32[L, 4], *, L: dim[1:]):
            def step(a: f32[4], b: f32[4], c: f32[4], x: f32[4], z: f32[4]):
                v0: f32[4] = mul(a, x)
                v1: f32[4] = add(v0, c)
                v2: f32[4] = tanh(v1)
                v3: f32[4] = add(b, z)
                v4: f32[4] = exp(x)
                return {"a": v2, "b": v3, "c": c, "y": v2, "dead": v3, "early": v4}
            a, b, c, y, dead, early = scan(a0, b0, c0, x, z, body=step, carries=3, sequences=2, axis=0, reverse=False)
            return {"y": y, "c": c, "early": early}
        """,
    )
    scan = scan_of(after)
    assert (scan.attrs["carries"], scan.attrs["sequences"], len(scan.inputs), len(scan.types)) == (1, 1, 3, 2)


@pytest.mark.parametrize("length", [1, 4])
def test_loop_without_carry_is_no_loop(preserves: Callable[..., Module], length: int) -> None:
    text = """
        def main(x: f32[T, 3, 4], w: f32[4, 2]):
            def step(x: f32[3, 4], w: f32[4, 2]):
                v0: f32[3, 2] = matmul(x, w)
                v1: f32[4, 3] = transpose(x, perm=(1, 0))
                v2: f32[3] = sum(v0, axes=(1,), keepdims=False)
                v3: f32[4, 3] = broadcast(v2, dims=(4, 3))
                v4: f32[4, 3] = div(v3, v1)
                v5: f32[4, 6] = concat(v4, v1, axis=1)
                return {"y": v5}
            y = scan(x, w, body=step, carries=0, sequences=1, axis=0, reverse=False)
            return {"y": y}
        """
    after = preserves(hoist_invariants, text.replace("T,", f"{length},"))
    assert "scan" not in ops_in(after.entries["main"])
