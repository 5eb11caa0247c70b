"""The NumPy interpreter: runs a graph with the ops' references. Slow, and the definition of what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import dims as d
from .core import Graph, Module, Node, Value, substitute_attr
from .errors import CoilError, InputError
from .types import TensorType

Observer = Callable[[Value, np.ndarray], None]


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
    for value in graph.inputs:
        if value.node.attrs["name"] not in inputs:
            raise InputError(f"input '{value.node.attrs['name']}' of entry '{entry}' is missing")
    arrays = [np.asarray(inputs[v.node.attrs["name"]]) for v in graph.inputs]
    bindings = bind_symbols({v.node.attrs["name"]: (v.type, a.shape) for v, a in zip(graph.inputs, arrays, strict=True)})
    results = _Run(bindings, module.weights, wide, observe).graph(graph, arrays)
    return dict(zip((name for name, _ in graph.outputs), results, strict=True))


def evaluate_body(body: Graph, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Run a body graph (of a scan or a fused group) whose symbols are already replaced by integers.

    Wide evaluation is inherited through the arrays: references keep the dtype they are given.
    """
    wide = any(a.dtype in (np.float64, np.complex128) for a in arrays) and not any(
        v.type.dtype.name in ("f64", "c128") for v in body.inputs
    )
    return tuple(_Run({}, {}, wide, None).graph(body, arrays))


def bind_symbols(shapes: Mapping[str, tuple[TensorType, Sequence[int]]]) -> dict[str, int]:
    """Solve for the symbols from concrete shapes.

    Raises:
        InputError: a rank or a fixed dim differs, or two inputs disagree about a symbol.
    """
    bindings: dict[str, int] = {}
    for name, (type_, shape) in shapes.items():
        if len(shape) != type_.rank:
            raise InputError(f"input '{name}' has rank {len(shape)}; the model takes {type_}")
        for dim, extent in zip(type_.dims, shape, strict=True):
            names = set(d.symbols(dim))
            if isinstance(dim, d.SymDim) and dim == d.symbol(next(iter(names))):
                bindings.setdefault(next(iter(names)), extent)
    for name, (type_, shape) in shapes.items():
        for axis, (dim, extent) in enumerate(zip(type_.dims, shape, strict=True)):
            if set(d.symbols(dim)) <= set(bindings) and d.evaluate(dim, bindings) != extent:
                raise InputError(f"input '{name}' has {extent} at axis {axis}; {type_} needs {d.evaluate(dim, bindings)}")
    return bindings


class _Run:
    def __init__(
        self, bindings: Mapping[str, int], weights: Mapping[str, np.ndarray], wide: bool, observe: Observer | None
    ) -> None:
        self.bindings, self.weights, self.wide, self.observe = bindings, weights, wide, observe

    def graph(self, graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        values = {v: self.widen(a) for v, a in zip(graph.inputs, arrays, strict=True)}
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
            return (self.widen(np.asarray(self.weights[node.attrs["name"]])),)
        attrs = {name: substitute_attr(value, self.bindings) for name, value in node.attrs.items()}
        try:
            with np.errstate(all="ignore"):
                results: Any = node.op.reference(*operands, **attrs)
        except CoilError as error:
            raise error.at(node.location) from None
        results = results if isinstance(results, tuple) else (results,)
        return tuple(
            self.widen(np.asarray(r)) if self.wide else np.asarray(r, dtype=t.dtype.numpy)
            for r, t in zip(results, node.types, strict=True)
        )

    def widen(self, array: np.ndarray) -> np.ndarray:
        if not self.wide:
            return array
        kind = {"f": np.float64, "V": np.float64, "c": np.complex128}.get(array.dtype.kind)
        return array.astype(kind) if kind else array
