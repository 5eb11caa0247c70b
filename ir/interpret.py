"""The NumPy interpreter: runs a graph with the ops' references. Slow, and the definition of what is right.

Sixteen-bit floats are computed in float32 and rounded after every op, as kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from . import dims as d
from .core import Graph, Module, Node, Value, substitute_attr
from .errors import CoilError, InputError
from .types import DTYPES, DType, TensorType

Observer = Callable[[Value, np.ndarray], None]

_WIDE: ContextVar[bool] = ContextVar("coilc_wide", default=False)  # so that bodies run as their graph does
_WIDER = {DTYPES["f16"]: "f64", DTYPES["bf16"]: "f64", DTYPES["f32"]: "f64", DTYPES["c64"]: "c128"}


def interpret(
    module: Module,
    inputs: Mapping[str, np.ndarray],
    entry: str = "main",
    *,
    wide: bool = False,
    observe: Observer | None = None,
) -> dict[str, np.ndarray]:
    """Run one entry.

    Args:
        wide: compute in float64 and complex128 whatever the graph says; the yardstick for numerics.
        observe: called with every value and its array as it is computed.

    Raises:
        InputError: an input is missing or does not fit its type.
    """
    graph = module.entries[entry]
    arrays = [_input_array(value, inputs, wide) for value in graph.inputs]
    bindings = bind_symbols(
        {v.node.attrs["name"]: (v.type, a.shape) for v, a in zip(graph.inputs, arrays, strict=True)}
    )
    for name, (low, high) in graph.symbols:
        if name in bindings and not low <= bindings[name] <= (high or bindings[name]):
            raise InputError(f"{name} is {bindings[name]}; the model takes {low} to {high or 'any'}")
    token = _WIDE.set(wide)
    try:
        results = _Run(bindings, module.weights, observe).graph(graph, arrays)
    finally:
        _WIDE.reset(token)
    return dict(zip((name for name, _ in graph.outputs), results, strict=True))


def evaluate_body(body: Graph, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Run a body graph (of a scan or a fused group) whose symbols are already replaced by integers."""
    return tuple(_Run({}, {}, None).graph(body, arrays))


def bind_symbols(shapes: Mapping[str, tuple[TensorType, Sequence[int]]]) -> dict[str, int]:
    """Solve for the symbols from concrete shapes.

    Raises:
        InputError: a rank or a fixed dim differs, or two inputs disagree about a symbol.
    """
    bindings: dict[str, int] = {}
    for name, (type_, shape) in shapes.items():
        if len(shape) != type_.rank:
            raise InputError(f"input '{name}' has rank {len(shape)}; the model takes {type_}")
    extents = [pair for type_, shape in shapes.values() for pair in zip(type_.dims, shape, strict=True)]
    for dim, extent in extents * 2:  # the second time, symbols found in other inputs are known
        found = d.solve(d.substitute(dim, bindings), extent)
        if found:
            bindings.setdefault(*found)
    for name, (type_, shape) in shapes.items():
        for axis, (dim, extent) in enumerate(zip(type_.dims, shape, strict=True)):
            if d.substitute(dim, bindings) != extent:
                raise InputError(f"input '{name}' has {extent} at axis {axis}; {type_} needs {_needed(dim, bindings)}")
    return bindings


def _needed(dim: d.Dim, bindings: Mapping[str, int]) -> str:
    known = ", ".join(f"{name} = {bindings[name]}" for name in sorted(set(d.symbols(dim))) if name in bindings)
    return f"{dim}" + (f" with {known}" if known else "")


def _input_array(value: Value, inputs: Mapping[str, np.ndarray], wide: bool) -> np.ndarray:
    name, wanted = value.node.attrs["name"], value.type.dtype
    if name not in inputs:
        raise InputError(f"input '{name}' is missing; the graph takes {value.type}")
    array = np.asarray(inputs[name])
    fits = array.dtype == wanted.numpy or (wide and array.dtype in (np.float64, np.complex128) and wanted in _WIDER)
    if not fits:
        raise InputError(f"input '{name}' is {array.dtype}; the graph takes {value.type}")
    return array


class _Run:
    def __init__(
        self, bindings: Mapping[str, int], weights: Mapping[str, np.ndarray], observe: Observer | None
    ) -> None:
        self.bindings, self.weights, self.observe = bindings, weights, observe
        self.wide = _WIDE.get()

    def graph(self, graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        values = {v: self.stored(a, v.type.dtype) for v, a in zip(graph.inputs, arrays, strict=True)}
        for node in graph.nodes:
            if node.results[0] in values:
                continue
            results = self.node(node, [values[v] for v in node.inputs])
            for value, array in zip(node.results, results, strict=True):
                values[value] = array
                if self.observe:
                    self.observe(value, array)
        return [values[v] for v in graph.results]

    def node(self, node: Node, operands: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        if node.op.name == "weight":
            return (self.stored(np.asarray(self.weights[node.attrs["name"]]), node.types[0].dtype),)
        attrs = {name: self.attribute(value) for name, value in node.attrs.items()}
        try:
            with np.errstate(all="ignore"):
                results: Any = node.op.reference(*map(_computed, operands), **attrs)
        except CoilError as error:
            raise error.at(node.location) from None
        results = results if isinstance(results, tuple) else (results,)
        return tuple(self.stored(np.asarray(r), t.dtype) for r, t in zip(results, node.types, strict=True))

    def attribute(self, value: Any) -> Any:
        if isinstance(value, DType):
            return self.dtype(value)
        return substitute_attr(value, self.bindings)

    def stored(self, array: np.ndarray, dtype: DType) -> np.ndarray:
        """The array as the graph keeps it between ops: in its type, or in the widest of its kind."""
        with np.errstate(all="ignore"):
            return array.astype(self.dtype(dtype).numpy, copy=False)

    def dtype(self, dtype: DType) -> DType:
        return DTYPES[_WIDER.get(dtype, dtype.name)] if self.wide else dtype


def _computed(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype in (np.float16, DTYPES["bf16"].numpy) else array
