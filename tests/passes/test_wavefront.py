"""Nested scans over diagonals: the definition and the rewrite equal the nest, at every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coilc
from coilc.ir import InputError, Module, interpret, ops, parse_graph
from coilc.passes.choose_algorithms import choose_algorithms, describe_choices
from coilc.passes.cost_model import Machine
from coilc.passes.wavefront import wavefront_in_numpy, why_not

SIZES = [(1, 1), (1, 6), (6, 1), (3, 3), (5, 7), (7, 4)]
CELL = """
        def cell(left: f32[B, 3], above: f32[B, 3], x: f32[B, 3]):
            mixed = add(left, above)
            driven = add(mixed, x)
            after = tanh(driven)
            y = mul(after, left)
            return {"left": after, "down": after, "y": y}
"""
GRID = f"""def main(x: f32[H, B, W, 3], first: f32[W, B, 3], *, H: dim[1:], W: dim[1:], B: dim[1:]):
    def row(above: f32[W, B, 3], x: f32[B, W, 3]):
        half = constant(value=array(f32, 0.5))
        halves = broadcast(half, dims=(W, B, 3))
        faded = mul(above, halves)
        turned = transpose(x, perm=(1, 0, 2))
        zero = broadcast(half, dims=(B, 3)){CELL}
        last, down, y = scan(zero, faded, turned, body=cell, carries=1, sequences=2, axis=0, reverse=False)
        placed = transpose(y, perm=(1, 2, 0))
        return {{"down": down, "y": placed}}
    down, y = scan(first, x, body=row, carries=1, sequences=1, axis=0, reverse=False)
    return {{"y": y, "down": down}}
"""


LINEAR = """def main(a: f32[H, W, 3], x: f32[H, W, 3], first: f32[W, 3], *, H: dim[1:], W: dim[1:]):
    def row(above: f32[W, 3], a: f32[W, 3], x: f32[W, 3]):
        zero = constant(value=array(f32, 0.0))
        start = broadcast(zero, dims=(3,))
        driven = add(above, x)
        y, last = linear_scan(a, driven, start, axis=0, reverse=False)
        return {"down": y, "y": driven}
    down, y = scan(first, a, x, body=row, carries=1, sequences=2, axis=0, reverse=False)
    return {"y": y, "down": down}
"""


def arrays(height: int, width: int, channels: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(height * 10 + width)
    x, first = rng.standard_normal((height, 2, width, channels)), rng.standard_normal((width, 2, channels))
    return {"x": x.astype(np.float32), "first": first.astype(np.float32)}


def nest(text: str = GRID) -> Module:
    return Module({"main": parse_graph(text)})


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_definition(height: int, width: int) -> None:
    given = arrays(height, width)

    def cell(x: Any, above: Any, left: Any) -> tuple[Any, Any, Any]:
        after = np.tanh(left + above * 0.5 + x)
        return after, after, after * left

    x = given["x"].transpose(0, 2, 1, 3)
    start = np.full((height, 2, 3), 0.5, np.float32)
    down, y = wavefront_in_numpy(cell, x, given["first"], start)
    expected = interpret(nest(), given)
    np.testing.assert_allclose(down, expected["down"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y.transpose(0, 2, 3, 1), expected["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_one_rewrite_at_every_size(height: int, width: int) -> None:
    module = nest()
    after = choose_algorithms(module, Machine(), "wavefront")
    (scan,) = (node for node in after.entries["main"].nodes if node.op is ops.scan)
    assert not any(node.op is ops.scan for node in scan.attrs["body"].nodes)
    expected, found = (interpret(m, arrays(height, width)) for m in (module, after))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("faded = mul(above, halves)", "faded = cumsum(above, axis=0, reverse=False)"), "more than the cell above"),
        (("placed = transpose(y, perm=(1, 2, 0))", "placed = reshape(last, dims=(B, 3))"), "not along the row"),
        (("axis=0, reverse=False)\n        placed", "axis=0, reverse=True)\n        placed"), "backwards"),
    ],
)
def test_what_is_no_grid_says_why(change: tuple[str, str], reason: str) -> None:
    assert change[0] in GRID
    (node,) = (n for n in parse_graph(GRID.replace(*change)).nodes if n.op is ops.scan)
    assert reason in why_not(node)
    with pytest.raises(InputError, match="does not fit every recurrence"):
        choose_algorithms(nest(GRID.replace(*change)), Machine(), "wavefront")


def test_a_row_of_linear_scans() -> None:
    """As Chimera's rows are: the scan along a row has been recognised."""
    module = nest(LINEAR)
    after = choose_algorithms(module, Machine(), "wavefront")
    rng = np.random.default_rng(0)
    given = {"a": rng.random((4, 6, 3)), "x": rng.standard_normal((4, 6, 3)), "first": rng.standard_normal((6, 3))}
    given = {name: array.astype(np.float32) for name, array in given.items()}
    expected, found = interpret(module, given), interpret(after, given)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


def test_the_choice_has_a_reason() -> None:
    (row,) = describe_choices(nest(), Machine())
    assert row["algorithm"] == "sequential"
    assert row["reason"].startswith("wavefront (diagonals) would take")
    (row,) = describe_choices(nest(), Machine(), "wavefront")
    assert row["algorithm"] == "wavefront"
    assert row["reason"].startswith("asked for; diagonals:")


@pytest.mark.parametrize("algorithm", ["sequential", "wavefront"])
def test_compiled_at_every_size(algorithm: str, tmp_path: Path) -> None:
    module = nest(GRID.replace("3]", "64]").replace("3))", "64))"))  # wide enough that tasks have channels apart
    session = coilc.load(coilc.compile(module, tmp_path / "grid.coil", algorithm=algorithm), threads=1)
    for height, width in SIZES:
        given = arrays(height, width, 64)
        expected = interpret(module, given)
        for name, found in session(**given).items():
            np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-5)
