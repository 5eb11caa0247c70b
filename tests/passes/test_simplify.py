"""Exact identities: each case is one rule, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coilc.ir import parse_graph, print_graph
from coilc.ir.core import Module
from coilc.passes import simplify

F, INTEGERS = "x: f32[3, 4]", "x: i64[3, 4]"
CASES = {
    "mul_by_one": (F, ["c = constant(value=array(f32, 1.0))", "b = broadcast(c, dims=(3, 4))", "y = mul(b, x)"], "x"),
    "add_zero": (INTEGERS, ["c = constant(value=array(i64, 0))", "b = broadcast(c, dims=(3, 4))", "y = add(x, b)"], "x"),
    "sub_zero": (F, ["c = constant(value=array(f32, 0.0))", "b = broadcast(c, dims=(3, 4))", "y = sub(x, b)"], "x"),
    "div_by_one": (F, ["c = constant(value=array(f32, 1.0))", "b = broadcast(c, dims=(3, 4))", "y = div(x, b)"], "x"),
    "double_negation": (F, ["a = neg(x)", "y = neg(a)"], "x"),
    "cast_to_same": (F, ["y = cast(x, dtype=f32)"], "x"),
    "cast_there_and_back": (F, ["a = cast(x, dtype=f64)", "y = cast(a, dtype=f32)"], "x"),
    "move_to_same_dims": (F, ["y = reshape(x, dims=(3, 4))"], "x"),
    "reshape_of_reshape": (F, ["a = reshape(x, dims=(12,))", "y = reshape(a, dims=(3, 4))"], "x"),
    "transpose_of_transpose": (F, ["a = transpose(x, perm=(1, 0))", "y = transpose(a, perm=(1, 0))"], "x"),
    "transpose_of_nothing": (F, ["y = transpose(x, perm=(0, 1))"], "x"),
    "slice_of_whole": (F, ["y = slice(x, starts=(0, 0), stops=(3, 4), steps=(1, 1))"], "x"),
    "flip_of_flip": (F, ["a = flip(x, axes=(0,))", "y = flip(a, axes=(0,))"], "x"),
    "concat_of_one": (F, ["y = concat(x, axis=0)"], "x"),
    "pad_by_nothing": (F, ["y = pad(x, low=(0, 0), high=(0, 0), value=1.0)"], "x"),
    "pow_by_small_constant": (
        F,
        ["c = constant(value=array(f32, 2.0))", "b = broadcast(c, dims=(3, 4))", "y = pow(x, b)"],
        "mul(x, x)",
    ),
    "reduction_of_one": (
        "x: f32[3, 1, 4]",
        ["y = max(x, axes=(1,), keepdims=False)"],
        "reshape(x, dims=(3, 4))",
    ),
    "where_of_equal": ("m: bool[3], x: f32[3]", ["y = where(m, x, x)"], "x"),
    "slice_of_concat": (
        F,
        ["a = concat(x, x, axis=0)", "y = slice(a, starts=(4, 0), stops=(6, 4), steps=(1, 1))"],
        "slice(x, starts=(1, 0), stops=(3, 4), steps=(1, 1))",
    ),
    "slice_of_slice": (
        F,
        [
            "a = slice(x, starts=(1, 0), stops=(3, 4), steps=(1, 1))",
            "y = slice(a, starts=(1, 2), stops=(2, 4), steps=(1, 1))",
        ],
        "slice(x, starts=(2, 2), stops=(3, 4), steps=(1, 1))",
    ),
    "transpose_of_unit_dims": (
        "x: f32[3, 1, 4]",
        ["y = transpose(x, perm=(1, 0, 2))"],
        "reshape(x, dims=(1, 3, 4))",
    ),
    "broadcast_of_unit_reshape": (
        "x: f32[4]",
        ["a = reshape(x, dims=(1, 4))", "y = broadcast(a, dims=(3, 4))"],
        "broadcast(x, dims=(3, 4))",
    ),
}  # fmt: skip


def text_of(parameters: str, lines: list[str]) -> str:
    return "\n".join([f"def main({parameters}):", *(f"    {line}" for line in lines), '    return {"y": y}'])


@pytest.mark.parametrize("rule", CASES)
def test_identity(rule: str, preserves: Callable[..., Module]) -> None:
    parameters, lines, expected = CASES[rule]
    text = "\n".join(add_types(text_of(parameters, lines)))
    found = print_graph(preserves(simplify, text).entries["main"], locations=False)
    assert expected in found.splitlines()[-1 if expected == "x" else 1], found


def add_types(text: str) -> list[str]:
    """IR text wants a type on every line; the cases leave it out, so take it from the op."""
    lines = text.splitlines()
    for index, line in enumerate(lines[1:-1], start=1):
        name, _, call = line.strip().partition(" = ")
        known = "\n".join([*lines[:index], f"    {name}, = {call}", f'    return {{"y": {name}}}'])
        lines[index] = f"    {name}: {parse_graph(known).results[0].type} = {call}"
    return lines


@pytest.mark.parametrize(
    ("op", "number"),
    [("add", "0.0"), ("sub", "-0.0"), ("mul", "0.0"), ("div", "3.0"), ("pow", "0.5")],
)
def test_what_would_change_a_zero_or_a_nan_stays(op: str, number: str) -> None:
    lines = [f"c = constant(value=array(f32, {number}))", "b = broadcast(c, dims=(3, 4))", f"y = {op}(x, b)"]
    graph = parse_graph("\n".join(add_types(text_of(F, lines))))
    assert simplify(Module({"main": graph})).entries["main"] == graph


def test_the_sum_of_one_number_is_that_number(check: Callable[..., Module]) -> None:
    """But for -0.0: a sum starts from 0.0."""
    check(
        simplify,
        """
        def main(x: f32[B, 1], *, B: dim[1:]):
            v0: f32[B] = sum(x, axes=(1,), keepdims=False)
            return {"y": v0}
        """,
        """
        def main(x: f32[B, 1], *, B: dim[1:]):
            v0: f32[B] = reshape(x, dims=(B,))
            v1: f32[()] = constant(value=array(f32, 0.0))
            v2: f32[B] = broadcast(v1, dims=(B,))
            v3: f32[B] = add(v0, v2)
            return {"y": v3}
        """,
    )


def test_division_by_a_power_of_two_becomes_a_product(check: Callable[..., Module]) -> None:
    check(
        simplify,
        """
        def main(x: f32[B], *, B: dim[1:]):
            v0: f32[()] = constant(value=array(f32, 8.0))
            v1: f32[B] = broadcast(v0, dims=(B,))
            v2: f32[B] = div(x, v1)
            return {"y": v2}
        """,
        """
        def main(x: f32[B], *, B: dim[1:]):
            v0: f32[()] = constant(value=array(f32, 0.125))
            v1: f32[B] = broadcast(v0, dims=(B,))
            v2: f32[B] = mul(x, v1)
            return {"y": v2}
        """,
        exact=True,
    )
