"""Steps of general scans: which dims tasks have apart, memory of symbolic size, weights inside bodies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from textwrap import dedent

import pytest

from coilc.ir import OPS, Module, Node, parse_graph
from coilc.ir.text import parse_type
from coilc.passes import give_memory_to_steps, pack_weights
from coilc.passes.independent_axes import narrowed

Check = Callable[..., Module]


def scan_of(text: str) -> Node:
    graph = parse_graph(dedent(text).strip())
    return next(node for node in graph.nodes if node.op.name == "scan")


# Lines of a body over h: f32[B, 3, D], and the dims that tasks have apart. What remains must be in one piece per task.
BODIES = {
    "tanh(h)": ["B", "D", "3"],
    "cumsum(h, axis=1, reverse=True)": ["B", "D"],
    "cumsum(h, axis=2, reverse=False)": ["B", "3"],
    "flip(h, axes=(0,))": [],
    "transpose(t, perm=(0, 1, 2))": ["B", "D", "3"],
}


@pytest.mark.parametrize("step", BODIES)
def test_dims_that_nothing_mixes(step: str) -> None:
    node = scan_of(f"""
        def main(h0: f32[B, 3, D], x: f32[L, B, 3, D]):
            def body(h: f32[B, 3, D], x: f32[B, 3, D]):
                t = add(h, x)
                s = {step}
                n = exp(s)
                return {{"h": n, "y": n}}
            h, y = scan(h0, x, body=body, carries=1, sequences=1, axis=0, reverse=False)
            return {{"h": h, "y": y}}
        """)
    _, cuts, _ = narrowed(node.attrs["body"], 1)
    assert [str(cut.extent) for cut in cuts] == BODIES[step]


def test_a_carry_that_turns_mixes_its_axes() -> None:
    node = scan_of("""
        def main(h0: f32[N, N], x: f32[L, N, N]):
            def body(h: f32[N, N], x: f32[N, N]):
                t = transpose(h, perm=(1, 0))
                s = add(t, x)
                return {"h": s}
            h = scan(h0, x, body=body, carries=1, sequences=1, axis=0, reverse=False)
            return {"h": h}
        """)
    assert narrowed(node.attrs["body"], 1)[1] == []


def test_batch_stays_apart_through_nested_loops() -> None:
    node = scan_of("""
        def main(h0: f32[B, W], x: f32[L, B, W]):
            def body(h: f32[B, W], x: f32[B, W]):
                def inner(c: f32[B], x: f32[B]):
                    s = add(c, x)
                    return {"c": s, "y": s}
                zero = constant(value=array(f32, [0.0]))
                c0 = broadcast(zero, dims=(B,))
                t = mul(h, x)
                c, y = scan(c0, t, body=inner, carries=1, sequences=1, axis=1, reverse=False)
                return {"h": y}
            h = scan(h0, x, body=body, carries=1, sequences=1, axis=0, reverse=False)
            return {"h": h}
        """)
    body, cuts, _ = narrowed(node.attrs["body"], 1)
    assert [str(cut.extent) for cut in cuts] == ["B"]
    assert str(body.results[0].type) == "f32[1, W]"


@pytest.mark.parametrize("op", ["wkv", "gated_delta_rule", "generalized_delta_rule", "gated_linear_attention"])
def test_batch_leads_every_operand_of_a_recurrence_that_has_it(op: str) -> None:
    """What ``independent_axes`` takes for granted: sequences and states have the batch first, weights do not have it."""
    for example in OPS[op].examples:
        types = [parse_type(text) for text in example.types]
        outcomes = OPS[op].infer_types(tuple(types), example.attrs)
        batch = types[next(i for i, t in enumerate(types) if t.rank == max(u.rank for u in types))].dims[0]
        assert all(t.dims[0] == batch for t in (*outcomes, *(t for t in types if t.rank >= 3)))


def test_memory_of_symbolic_size_is_a_carry(check: Check) -> None:
    check(
        give_memory_to_steps,
        """
        def main(row0: f32[L], x: f32[T, L], *, L: dim[1:], T: dim[1:]):
            def body_0(row: f32[L], x: f32[L]):
                v0: f32[L] = add(row, x)
                v1: f32[L] = cumsum(v0, axis=0, reverse=False)
                return {"row": v1}
            v2: f32[L] = scan(row0, x, body=body_0, carries=1, sequences=1, axis=0, reverse=False)
            return {"y": v2}
        """,
        """
        def main(row0: f32[L], x: f32[T, L], *, L: dim[1:], T: dim[1:]):
            v0: f32[()] = constant(value=array(f32, 0.0))
            v1: f32[L] = broadcast(v0, dims=(L,))
            def body_0(row: f32[L], memory0: f32[L], x: f32[L]):
                v0: f32[L] = add(row, x)
                v1: f32[L] = cumsum(v0, axis=0, reverse=False)
                return {"row": v1, "memory1": v1}
            v2, v3 = scan(row0, v1, x, body=body_0, carries=2, sequences=1, axis=0, reverse=False)
            return {"y": v2}
        """,
    )


def test_weights_of_a_body_are_packed_before_the_loop(check: Check) -> None:
    check(
        partial(pack_weights, panel=32, claims={"packed_matmul"}),
        """
        def main(h0: f32[B, 4], x: f32[T, B, 4], *, B: dim[1:], T: dim[1:]):
            v0: f32[4, 4] = weight(name="u", type=f32[4, 4])
            v1: f32[4, 4] = transpose(v0, perm=(1, 0))
            def body_0(h: f32[B, 4], x: f32[B, 4], u: f32[4, 4]):
                v0: f32[B, 4] = matmul(h, u)
                v1: f32[B, 4] = add(v0, x)
                return {"h": v1}
            v2: f32[B, 4] = scan(h0, x, v1, body=body_0, carries=1, sequences=1, axis=0, reverse=False)
            return {"y": v2}
        """,
        """
        def main(h0: f32[B, 4], x: f32[T, B, 4], *, B: dim[1:], T: dim[1:]):
            v0: f32[4, 4] = weight(name="u", type=f32[4, 4])
            v1: f32[4, 4] = transpose(v0, perm=(1, 0))
            v2: f32[1, 4, 16] = pack_panels(v1, panel=16)
            def body_0(h: f32[B, 4], x: f32[B, 4], weight0: f32[1, 4, 16]):
                v0: f32[B, 4] = packed_matmul(h, weight0, columns=4)
                v1: f32[B, 4] = add(v0, x)
                return {"h": v1}
            v3: f32[B, 4] = scan(h0, x, v2, body=body_0, carries=1, sequences=1, axis=0, reverse=False)
            return {"y": v3}
        """,
    )
