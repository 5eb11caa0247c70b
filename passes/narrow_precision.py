"""Keep weights and what flows between kernels in half precision; compute, remember and accumulate in f32."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coilc.ir import DTYPES, DType, Graph, InputError, Module, Node, Value, at, ops
from coilc.ir.opdef import ELEMENTWISE, MOVEMENT, REDUCTION

from .plan_memory import root

NARROW: Mapping[str, DType] = {"bf16": DTYPES["bf16"], "fp16": DTYPES["f16"]}

# Functions that turn a relative error of what they are given into a larger one.
MAGNIFYING = frozenset({"exp", "expm1", "log", "log1p", "pow", "sin", "cos", "tan"})

# The operands, by position or by name if optional, that an op with a kernel of its own wants in full: decays, step sizes,
# states. An op that is not listed here, and is neither elementwise nor movement nor a reduction, wants everything in full and
# gives its results in full.
FULL: Mapping[str, Collection[int | str]] = {
    "matmul": (),
    "packed_matmul": (),
    "quantized_matmul": (),
    "conv": (),
    "depthwise_conv": (),
    "pool": (),
    "causal_conv1d": ("state",),
    "long_conv": (),
    "attention": (),
    "linear_scan": (0, 2),
    "selective_scan": (1, 2, "dt_bias", "h0"),
    "gated_linear_attention": (3, "h0"),
    "gated_delta_rule": (3, "h0"),
    "generalized_delta_rule": (3, "h0"),
}


def narrow_precision(module: Module, precision: str) -> Module:
    """Store f32 weights, and f32 values between kernels, in the type that ``precision`` names.

    Before::

        v0: f32[1, 6, 32] = weight(name="w", type=f32[1, 6, 32])
        def packed_matmul_0(x0: f32[B, 6], x1: f32[1, 6, 32]):
            v0: f32[B, 32] = packed_matmul(x0, x1, columns=32)
            return {"y0": v0}
        v1: f32[B, 32] = fused(x, v0, body=packed_matmul_0)

    After, where ``v1`` is not an output::

        v0: bf16[1, 6, 32] = weight(name="w", type=bf16[1, 6, 32])
        def packed_matmul_0(x0: f32[B, 6], x1: bf16[1, 6, 32]):
            v0: f32[1, 6, 32] = cast(x1, dtype=f32)
            v1: f32[B, 32] = packed_matmul(x0, v0, columns=32)
            v2: bf16[B, 32] = cast(v1, dtype=bf16)
            return {"y0": v2}
        v1: bf16[B, 32] = fused(x, v0, body=packed_matmul_0)

    What stays in f32: inputs and outputs, so states too; decays and step sizes, and what they, an exponential or a logarithm
    are computed from; statistics of norms; weights that are vectors; all arithmetic.

    Needs: a scheduled module. Guarantees: ``verify.scheduled``.

    Raises:
        InputError: there is no such precision, or a weight has values that it cannot hold.
    """
    if precision not in NARROW:
        raise InputError(f"there is no precision '{precision}'; there are fp32, {', '.join(NARROW)}")
    dtype = NARROW[precision]
    full = {name: wanted_in_full(graph) for name, graph in module.entries.items()}
    kept = {v.node.attrs["name"] for values in full.values() for v in values if v.op is ops.weight}
    names = {n for n, a in module.weights.items() if n not in kept and a.dtype == np.float32 and is_matrix(a)}
    entries = {name: Narrowing(graph, full[name], names, dtype).result() for name, graph in module.entries.items()}
    return Module(entries, {n: narrowed(n, a, dtype) if n in names else a for n, a in module.weights.items()})


def is_matrix(array: np.ndarray) -> bool:
    return sum(extent > 1 for extent in array.shape) > 1


def narrowed(name: str, array: np.ndarray, dtype: DType) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = array.astype(dtype.numpy)
    if np.isinf(result.astype(np.float32)).sum() > np.isinf(array).sum():
        largest = np.abs(array[np.isfinite(array)]).max()
        raise InputError(
            f"weight '{name}' has the value {largest:g}, which {dtype} cannot hold; compile with bf16 or fp32"
        )
    return result


# --- what stays in f32 ------------------------------------------------------------------------------------------------


def wanted_in_full(graph: Graph, results: Collection[Value] = ()) -> set[Value]:
    """Values whose rounding some op would magnify or carry through time, if ``results`` are such."""
    found = set(results)
    for node in reversed(graph.nodes):
        found.update(operands_in_full(node, found))
    return found


def operands_in_full(node: Node, found: set[Value]) -> Iterator[Value]:
    """The operands of ``node`` that are wanted in full; which of its results are is in ``found``."""
    if node.op.traits & {ELEMENTWISE, MOVEMENT}:
        return iter(node.inputs if node.op.name in MAGNIFYING or found & set(node.results) else ())
    if node.op in (ops.fused, ops.scan):
        return operands_of_body(node, node.attrs["body"], found)
    optional = node.attrs.get("optional", ())
    names = dict(zip(range(len(node.inputs) - len(optional), len(node.inputs)), optional, strict=True))
    wanted = () if REDUCTION in node.op.traits else FULL.get(node.op.name, range(len(node.inputs)))
    return (v for i, v in enumerate(node.inputs) if i in wanted or names.get(i) in wanted)


def operands_of_body(node: Node, body: Graph, found: Collection[Value]) -> Iterator[Value]:
    """What the body of a group, or of a scan, wants in full; the carries of a scan are."""
    carries = node.attrs.get("carries", 0)
    results = [y for i, y in enumerate(body.results) if i < carries or node.results[i] in found]
    inside = wanted_in_full(body, results)
    return (v for i, (x, v) in enumerate(zip(body.inputs, node.inputs, strict=True)) if i < carries or x in inside)


def roundable(body: Graph) -> set[Value]:
    """Values of a kernel that it can round when it writes them, statistics of rows excepted."""
    statistics: set[Value] = set()
    for node in body.nodes:
        inherits = ELEMENTWISE in node.op.traits and not statistics.isdisjoint(node.inputs)
        if REDUCTION in node.op.traits or inherits:
            statistics.update(node.results)
    return {
        v
        for v in body.results
        if v.type.dtype == DTYPES["f32"]
        and v not in statistics
        and (v.op.traits & {ELEMENTWISE, MOVEMENT} or (v.op.name in FULL and v.index == 0))
    }


# --- narrowing --------------------------------------------------------------------------------------------------------


class Narrowing:
    """One scheduled graph on its way: what every value has become.

    Args:
        full: values that stay in f32.
        names: of the weights that are ``dtype``.
    """

    def __init__(self, graph: Graph, full: Collection[Value], names: Collection[str], dtype: DType) -> None:
        self.graph, self.names, self.dtype = graph, names, dtype
        self.full = {*full, *map(root, graph.results)}
        self.after: dict[Value, Value] = {}

    def result(self) -> Graph:
        for node in self.graph.nodes:
            with at(node.location):
                self.after.update(zip(node.results, self.rebuilt(node).results, strict=True))
        return self.graph.with_results(self.after[v] for v in self.graph.results)

    def rebuilt(self, node: Node) -> Node:
        if node.op is ops.weight and node.attrs["name"] in self.names:
            return ops.weight.node(name=node.attrs["name"], type=node.types[0].with_dtype(self.dtype))
        operands = tuple(self.after[v] for v in node.inputs)
        attrs = {**node.attrs, "body": self.body(node, operands)} if node.op is ops.fused else node.attrs
        return Node.make(node.op, operands, attrs)

    def body(self, node: Node, operands: Sequence[Value]) -> Graph:
        """The group's body: it widens what it reads and rounds what it writes."""
        body: Graph = node.attrs["body"]
        inputs = [
            ops.input_(name=x.node.attrs["name"], type=v.type) for x, v in zip(body.inputs, operands, strict=True)
        ]
        wide = {
            x: ops.cast(y, dtype=x.type.dtype) if x.type != y.type else y
            for x, y in zip(body.inputs, inputs, strict=True)
        }
        for inner in body.nodes:
            if inner.inputs:
                with at(inner.location):
                    wide.update(zip(inner.results, widened_last(inner, [wide[v] for v in inner.inputs]), strict=True))
            elif inner.op is not ops.input_:
                wide[inner.results[0]] = inner.results[0]
        short = roundable(body) - {y for y, v in zip(body.results, node.results, strict=True) if v in self.full}
        outputs = ((n, ops.cast(wide[v], dtype=self.dtype) if v in short else wide[v]) for n, v in body.outputs)
        return replace(body, inputs=tuple(inputs), outputs=tuple(outputs))


def widened_last(node: Node, operands: Sequence[Value]) -> Sequence[Value]:
    """The node on other operands; a reshape, which the memory it reads allows for free, goes before a cast."""
    (x, *_) = operands
    if node.op is ops.reshape and x.op is ops.cast and x.node.inputs[0].op in (ops.input_, ops.reshape):
        return (ops.cast(ops.reshape(*x.node.inputs, **node.attrs), dtype=x.type.dtype),)
    return Node.make(node.op, tuple(operands), node.attrs).results
