"""Compute what depends on weights and constants alone, once, at compile time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from coilc.ir import Graph, Module, Node, SymDim, Value, interpret, literal, ops, type_of
from coilc.ir.core import topological_order
from coilc.ir.interpret import evaluate_body

from .rewrite import on, rewrite_module

TEMPORARY = "#"  # separates a weight's name from a number while folding is under way
INLINE_ELEMENTS = 16  # results up to this size become constants in the text, larger ones weights
GROWTH_BYTES = 4096  # a result may exceed its operands by this much; more is cheaper to recompute than to store


def fold_constants(module: Module) -> Module:
    """Replace every expression over weights and constants by its value.

    Before::

        v0: f32[16, 8] = weight(name="A_log", type=f32[16, 8])
        v1: f32[16, 8] = exp(v0)
        v2: f32[16, 8] = neg(v1)

    After::

        v0: f32[16, 8] = weight(name="A_log.folded", type=f32[16, 8])

    Needs: weights are present. Guarantees: values are those of the references; weights that nothing uses any more are
    dropped from the table; names are derived from the first weight involved and do not depend on the process.
    """
    table = WeightTable(module.weights)
    whole = rewrite_module(module, table.fold_kernel)  # before its parts are rounded one by one
    folded = rewrite_module(whole, table.fold_constant)
    return with_final_names(drop_unused_weights(replace(folded, weights=table.arrays)))


def drop_unused_weights(module: Module) -> Module:
    """Forget weights that no entry refers to."""
    nodes = (node for graph in module.entries.values() for node in graph.nodes)
    used = {node.attrs["name"] for node in nodes if node.op is ops.weight}
    return replace(module, weights={name: array for name, array in module.weights.items() if name in used})


def with_final_names(module: Module) -> Module:
    """Name the folded weights that remain, now that intermediate results are gone: ``w.folded``, ``w.folded1``, ..."""
    names: dict[str, str] = {}
    for name in module.weights:
        stem, temporary, _ = name.partition(TEMPORARY)
        candidates = (f"{stem}.folded{n or ''}" for n in range(len(module.weights) + 1))
        taken = {*module.weights, *names.values()}
        names[name] = next(c for c in candidates if c not in taken) if temporary else name

    @on("weight")
    def weight_by_final_name(node: Node) -> Value | None:
        name = node.attrs["name"]
        return ops.weight(name=names[name], type=node.types[0]) if TEMPORARY in name else None

    renamed = {names[name]: array for name, array in module.weights.items()}
    return replace(rewrite_module(module, weight_by_final_name), weights=renamed)


class WeightTable:
    """A weight table that grows while passes compute values."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(weights)

    def fold_constant(self, node: Node) -> tuple[Value, ...] | None:
        """The rule: every operand is a weight or a constant, and nothing depends on a symbol or grows without need."""
        if node.op in (ops.weight, ops.constant, ops.input_, ops.broadcast) or not is_foldable(node):
            return None
        if node.op is ops.reshape and source(node.inputs[0]).op is ops.weight:
            return None  # it costs nothing, and the weight may be read in both forms
        arrays = interpret_node(node, self.array)
        stem = self.stem(node)
        return tuple(self.store(value, array, stem) for value, array in zip(node.results, arrays, strict=True))

    def fold_kernel(self, node: Node) -> tuple[Value, ...] | None:
        """The kernel of a long convolution is stored however small its generator: to compute it costs far more"""
        if node.op is not ops.long_conv:
            return None
        x, *kernels = node.inputs
        stored = [self.evaluated(k) if _is_generated(k) else k for k in kernels]
        return node.op.node(x, *stored, **node.attrs).results if stored != kernels else None

    def evaluated(self, value: Value) -> Value:
        """The value of an expression without inputs, computed in double precision and rounded once."""
        graph = Graph("kernel", (), (("k", value),))
        (array,) = interpret(Module({"main": graph}, self.arrays), {}, wide=True).values()
        return self.store(value, np.asarray(array, value.type.dtype.numpy), weight_of(value) or "constant")

    def array(self, value: Value) -> np.ndarray:
        if value.op is ops.broadcast:
            return np.broadcast_to(self.array(value.node.inputs[0]), known_dims(value))
        if value.op is ops.reshape:
            return self.array(value.node.inputs[0]).reshape(known_dims(value))
        if value.op is ops.constant:
            return value.node.attrs["value"].value
        return np.asarray(self.arrays[value.node.attrs["name"]])

    def store(self, value: Value, array: np.ndarray, stem: str) -> Value:
        return self.add(array, stem, contiguous=value.op is not ops.transpose)

    def add(self, array: np.ndarray, stem: str, *, contiguous: bool = True) -> Value:
        """A constant if it is small, else a weight with a temporary name, for ``with_final_names``."""
        if array.size <= INLINE_ELEMENTS:
            return literal(array)
        name = self.temporary_name(stem)
        self.arrays[name] = np.ascontiguousarray(array) if contiguous else array
        return ops.weight(name=name, type=type_of(array))

    def stem(self, node: Node) -> str:
        """The name of the first weight involved."""
        sources = map(source, node.inputs)
        return next((v.node.attrs["name"] for v in sources if v.op is ops.weight), "constant")

    def temporary_name(self, base: str) -> str:
        stem = base.partition(TEMPORARY)[0].partition(".folded")[0]
        return f"{stem}{TEMPORARY}{len(self.arrays)}"


def weight_of(value: Value) -> str | None:
    """The name of a weight that ``value`` is computed from."""
    nodes = topological_order([value.node])
    return next((n.attrs["name"] for n in nodes if n.op is ops.weight), None)


def is_foldable(node: Node) -> bool:
    """Whether the node is constant, concrete, and no larger than what it replaces.

    A broadcast is never stored: it is read as the smaller tensor that it repeats.
    """
    sources = list(map(source, node.inputs))
    if any(v.op not in (ops.weight, ops.constant) for v in sources):
        return False
    if has_symbols(node) or any(has_symbols(v.node) for v in (*node.inputs, *sources)):
        return False
    operands = sum(_bytes(v) for v in sources)
    return sum(_bytes(v) for v in node.results) <= max(2 * operands, GROWTH_BYTES)


def _is_generated(value: Value) -> bool:
    """Whether the value is known and not stored yet."""
    return source(value).op not in (ops.weight, ops.constant) and is_known(value)


def is_known(value: Value) -> bool:
    """Whether the value depends on weights and constants alone, and its size is known."""
    nodes = Graph("value", (), (("v", value),)).nodes
    return not any(n.op is ops.input_ or has_symbols(n) for n in nodes)


def source(value: Value) -> Value:
    """The value whose elements ``value`` shows: reshapes and broadcasts store nothing."""
    while value.op in (ops.reshape, ops.broadcast):
        (value,) = value.node.inputs
    return value


def has_symbols(node: Node) -> bool:
    """Whether a dim or an attribute of the node is symbolic."""
    return any(isinstance(dim, SymDim) for t in node.types for dim in t.dims) or any(
        map(_is_symbolic, node.attrs.values())
    )


def _is_symbolic(attr: object) -> bool:
    if isinstance(attr, tuple):
        return any(map(_is_symbolic, attr))
    if isinstance(attr, Graph):
        return any(has_symbols(node) for node in attr.nodes)
    return isinstance(attr, SymDim)


def known_dims(value: Value) -> tuple[int, ...]:
    """The dims of a value that has no symbols."""
    return tuple(dim for dim in value.dims if isinstance(dim, int))


def _bytes(value: Value) -> int:
    size = value.type.bytes
    assert isinstance(size, int)
    return size


def interpret_node(node: Node, array: Callable[[Value], np.ndarray]) -> tuple[np.ndarray, ...]:
    """Run one node as the interpreter does."""
    inputs = tuple(ops.input_(name=f"x{i}", type=v.type) for i, v in enumerate(node.inputs))
    alone = Node.make(node.op, inputs, node.attrs)
    outputs = tuple((f"y{i}", value) for i, value in enumerate(alone.results))
    return evaluate_body(Graph("node", inputs, outputs), [array(v) for v in node.inputs])
