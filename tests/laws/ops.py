"""Cases for the laws over the op registry: every op with each of its examples, and values to run them on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from inspect import signature

import numpy as np

from coilc.ir import OPS, Graph, Module, OpDef, Value, interpret, ops, type_of
from coilc.ir.opdef import ELEMENTWISE, Example
from coilc.ir.text import parse_type
from coilc.ir.types import TensorType

# One tolerance per element type: relative to the largest magnitude of the result, and to each element.
TOLERANCE = {"f64": 1e-12, "c128": 1e-12, "f32": 4e-6, "c64": 4e-6, "f16": 2e-3, "bf16": 2e-2}

Case = tuple[OpDef, Example]

AWKWARD = (0.0, -0.0, 1e-30, -1e-30, 1.1754944e-38, 1e-3, -1e-3, 0.5, -0.5, 1.5, -1.5, 2.5, 20.0, -20.0)
AWKWARD += (88.0, -88.0, 100.0, -100.0, np.inf, -np.inf, np.nan)


def cases() -> list[Case]:
    return [(op, example) for op in OPS.values() for example in op.examples]


def name(case: object) -> str:
    return f"{case[0].name}-{','.join(case[1].types)}" if isinstance(case, tuple) else getattr(case, "name", "")


def in_f64(example: Example) -> Example:
    """The example with every float operand as f64 and every complex one as c128."""
    wider = {"f16": "f64", "bf16": "f64", "f32": "f64", "c64": "c128"}
    split = [text.partition("[") for text in example.types]
    return replace(example, types=tuple(wider.get(dtype, dtype) + "[" + dims for dtype, _, dims in split))


def draw(example: Example, seed: int = 0) -> list[np.ndarray]:
    """Random operands inside the example's ranges."""
    generator = np.random.default_rng(seed)
    arrays = []
    for position, text in enumerate(example.types):
        if position in example.values:
            arrays.append(np.array(example.values[position], parse_type(text).dtype.numpy))
            continue
        low, high = example.ranges.get(position, (example.low, example.high))
        arrays.append(_random(generator, parse_type(text), low, high))
    return arrays


def _random(generator: np.random.Generator, type_: TensorType, low: float, high: float) -> np.ndarray:
    shape, dtype = type_.dims, type_.dtype
    if dtype.kind == "bool":
        return generator.integers(0, 2, shape).astype(np.bool_)
    if dtype.is_integer:
        return generator.integers(int(low), int(high), shape, endpoint=True).astype(dtype.numpy)
    values = generator.uniform(low, high, shape)
    return (values + 1j * generator.uniform(low, high, shape) if dtype.is_complex else values).astype(dtype.numpy)


def awkward(op: OpDef, example: Example) -> list[np.ndarray] | None:
    """Every combination of awkward values, for float elementwise ops."""
    types = [parse_type(t).dtype for t in example.types]
    if ELEMENTWISE not in op.traits or not op.awkward or any(not t.is_float for t in types) or not types:
        return None
    grid = np.meshgrid(*[np.array(AWKWARD)] * len(types), indexing="ij")
    with np.errstate(all="ignore"):
        return [g.ravel().astype(t.numpy) for g, t in zip(grid, types, strict=True)]


def edges(op: OpDef, example: Example) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Named operands at the edge of what the formula of a composite survives: nothing at all, and states that are forgotten."""
    yield "zeros", [np.zeros_like(array) for array in draw(example)]
    operands = list(signature(op.infer).parameters)
    exponent = "a" if op is ops.selective_scan else "log_decay"
    if exponent in operands:
        place = operands.index(exponent)
        for edge, chance in (("forget all", 1.0), ("forget some", 0.3)):
            arrays = draw(example)
            arrays[place][np.random.default_rng(1).random(arrays[place].shape) < chance] = -np.inf
            yield edge, arrays


def graph_of(
    op: OpDef, types: Iterator[TensorType] | list[TensorType], attrs: dict, *, decomposed: bool = False
) -> Module:
    """A module whose entry applies the op, or its decomposition, to inputs of these types."""
    inputs = tuple(ops.input_(name=f"x{i}", type=t) for i, t in enumerate(types))
    node = op.node(*inputs, **attrs)
    results = node.results
    if decomposed:
        found = op.decompose(*node.inputs, **node.attrs)
        results = found if isinstance(found, tuple) else (found,)
    outputs: tuple[tuple[str, Value], ...] = tuple((f"y{i}", v) for i, v in enumerate(results))
    return Module({"main": Graph("main", inputs, outputs)})


def inputs_of(arrays: list[np.ndarray]) -> list[Value]:
    return [ops.input_(name=f"x{i}", type=type_of(a)) for i, a in enumerate(arrays)]


def agree(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within the tolerance of the expected array's type, or exactly for integers and bools."""
    dtype = type_of(expected).dtype.name
    assert actual.shape == expected.shape
    if dtype not in TOLERANCE:
        np.testing.assert_array_equal(actual, expected)
        return
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    actual, expected = actual.astype(wide), expected.astype(wide)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = min(float(finite.max(initial=0.0)), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


def run(case: Case, arrays: list[np.ndarray], *, decomposed: bool = False) -> list[np.ndarray]:
    """What the interpreter makes of the op, or of its decomposition."""
    module = graph_of(case[0], [type_of(a) for a in arrays], dict(case[1].attrs), decomposed=decomposed)
    return list(interpret(module, {f"x{i}": a for i, a in enumerate(arrays)}).values())
