"""Replace complex tensors by pairs of real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from coilc.ir import DTYPES, Array, DType, Graph, Module, Node, TensorType, UnsupportedError, Value, ops
from coilc.ir.opdef import MOVEMENT

from .rewrite import Rule, on, rewrite_graph, rewrite_module
from .timeline import unused

Pair = tuple[Value, Value]  # real part, imaginary part
PARTS: Mapping[str, DType] = {"c64": DTYPES["f32"], "c128": DTYPES["f64"]}


def lower_complex(module: Module) -> Module:
    """Compute with real and imaginary parts; at the graph's boundary they lie next to each other, as in memory.

    Before::

        def main(x: c64[4]):
            v0: c64[4] = mul(x, x)
            return {"y": v0}

    After (the bytes of ``x`` and ``y`` are the same)::

        def main(x: f32[4, 2]):
            ...
            return {"y": v9}  # f32[4, 2]

    Needs: nothing. Guarantees: no complex type is left. Composites over complex operands are decomposed on the way.
    """
    if not any(map(has_complex, every_node(module.entries.values()))):
        return module
    split = rewrite_module(replace(module, weights=dict(map(_real_view, module.weights.items()))), *RULES)
    return refuse_the_rest(split.map(real_boundary))


def refuse_the_rest(module: Module) -> Module:
    """The module, if nothing complex is left in it.

    Raises:
        UnsupportedError: listing every op that has no form over real numbers.
    """
    nodes = filter(has_complex, every_node(module.entries.values()))
    places = [(f"{node.op.name} of complex numbers", node.location) for node in nodes]
    if places:
        raise UnsupportedError("these ops work on real numbers only:", places)
    return module


def every_node(graphs: Iterable[Graph]) -> Iterator[Node]:
    """The nodes of graphs and of the bodies inside them."""
    for graph in graphs:
        for node in graph.nodes:
            yield node
            yield from every_node(a for a in node.attrs.values() if isinstance(a, Graph))


def has_complex(node: Node) -> bool:
    """Whether the node reads or makes complex values."""
    return any(t.dtype.is_complex for t in (*node.types, *(v.type for v in node.inputs)))


def _real_view(weight: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
    name, array = weight
    if array.dtype.kind != "c":
        return name, array
    return name, np.ascontiguousarray(array).view(array.real.dtype).reshape(*array.shape, 2)


def real_boundary(graph: Graph) -> Graph:
    """Declare complex inputs as real with a last axis of 2, and join the parts of complex outputs along one."""
    outputs = tuple((name, _joined(v) if v.type.dtype.is_complex else v) for name, v in graph.outputs)
    split = rewrite_graph(replace(graph, outputs=outputs), part_of_complex, part_of_input)
    return replace(split, inputs=tuple(_boundary_input(v) for v in graph.inputs))


def _boundary_type(type_: TensorType) -> TensorType:
    return TensorType(PARTS[type_.dtype.name], (*type_.dims, 2)) if type_.dtype.is_complex else type_


def _boundary_input(value: Value) -> Value:
    """A real input is itself."""
    if not value.type.dtype.is_complex:
        return value
    return ops.input_(name=value.node.attrs["name"], type=_boundary_type(value.type))


def _joined(value: Value) -> Value:
    """Real and imaginary parts side by side on a new last axis."""
    stacked = [ops.reshape(part, dims=(*value.dims, 1)) for part in parts(value)]
    return ops.concat(*stacked, axis=value.type.rank)


@on("real", "imag")
def part_of_input(node: Node) -> Value | None:
    """The real part of a complex input is one half of its real form"""
    (x,) = node.inputs
    return _split(_boundary_input(x))[node.op is ops.imag] if x.op is ops.input_ else None


def _split(joined: Value) -> Pair:
    rank = joined.type.rank - 1
    halves = (ops.slice_axis(joined, rank, index, index + 1) for index in (0, 1))
    re, im = (ops.reshape(half, dims=joined.dims[:-1]) for half in halves)
    return re, im


def parts(value: Value) -> Pair:
    """Both parts of a complex value."""
    if value.op is ops.complex:
        re, im = value.node.inputs
        return re, im
    return ops.real(value), ops.imag(value)


# --- rules: when a node is reached, its complex operands are complex(re, im) or inputs -------------------------------


@on("weight")
def weight_parts(node: Node) -> Value | None:
    """A complex weight is a real one with a last axis of 2"""
    if not node.types[0].dtype.is_complex:
        return None
    return ops.complex(*_split(ops.weight(name=node.attrs["name"], type=_boundary_type(node.types[0]))))


@on("constant")
def constant_parts(node: Node) -> Value | None:
    """A complex constant is two real ones"""
    array = node.attrs["value"].value
    if array.dtype.kind != "c":
        return None
    return ops.complex(ops.constant(value=Array(array.real)), ops.constant(value=Array(array.imag)))


@on("real", "imag")
def part_of_complex(node: Node) -> Value | None:
    """real(complex(x, y)) = x"""
    (x,) = node.inputs
    return x.node.inputs[node.op is ops.imag] if x.op is ops.complex else None


@on("abs")
def abs_of_complex(node: Node) -> Value | None:
    """abs(x + iy) = sqrt(x*x + y*y), scaled so that squares do not overflow"""
    if not node.inputs[0].type.dtype.is_complex:
        return None
    re, im = (ops.abs(part) for part in parts(node.inputs[0]))
    large, small = ops.maximum(re, im), ops.minimum(re, im)
    zero_or_inf = ops.logical_or(ops.eq(large, 0), ops.isinf(large))
    ratio = ops.div(small, ops.where(zero_or_inf, 1, large))
    return ops.where(zero_or_inf, large, ops.mul(large, ops.sqrt(ops.add(1, ops.mul(ratio, ratio)))))


@on("eq", "ne")
def compare_parts(node: Node) -> Value | None:
    """x == y when both parts agree"""
    if not node.inputs[0].type.dtype.is_complex:
        return None
    (a, b), (c, d) = map(parts, node.inputs)
    join = ops.logical_and if node.op is ops.eq else ops.logical_or
    return join(node.op(a, c), node.op(b, d))


@on("cast")
def cast_parts(node: Node) -> Value | None:
    """Casts between complex types cast the parts; a real number gets a zero imaginary part"""
    dtype = node.attrs["dtype"]
    if not dtype.is_complex:
        return None
    (x,) = node.inputs
    part = PARTS[dtype.name]
    if x.type.dtype.is_complex:
        return ops.complex(*(ops.cast(p, dtype=part) for p in parts(x)))
    real = ops.cast(x, dtype=part)
    return ops.complex(real, ops.zeros(real.type))


def _mul(x: Pair, y: Pair) -> Pair:
    (a, b), (c, d) = x, y
    return ops.sub(ops.mul(a, c), ops.mul(b, d)), ops.add(ops.mul(a, d), ops.mul(b, c))


def _div(x: Pair, y: Pair) -> Pair:
    """Smith's formula: divide by the larger part first, so that nothing overflows early."""
    (a, b), (c, d) = x, y
    real_larger = ops.ge(ops.abs(c), ops.abs(d))
    large, small = ops.where(real_larger, c, d), ops.where(real_larger, d, c)
    ratio = ops.div(small, large)
    scale = ops.add(large, ops.mul(small, ratio))
    first, second = ops.where(real_larger, a, b), ops.where(real_larger, b, a)
    im = ops.where(real_larger, ops.sub(b, ops.mul(a, ratio)), ops.sub(ops.mul(b, ratio), a))
    return ops.div(ops.add(first, ops.mul(second, ratio)), scale), ops.div(im, scale)


def _exp(x: Pair) -> Pair:
    size = ops.exp(x[0])
    return ops.mul(size, ops.cos(x[1])), ops.mul(size, ops.sin(x[1]))


def _log(x: Pair) -> Pair:
    return ops.log(ops.abs(ops.complex(*x))), ops.atan2(x[1], x[0])


def _sqrt(x: Pair) -> Pair:
    """Half the angle, root of the size; the part that would cancel comes from a division."""
    size = ops.abs(ops.complex(*x))
    half = ops.sqrt(ops.mul(0.5, ops.add(size, ops.abs(x[0]))))
    other = ops.div(x[1], ops.where(ops.eq(half, 0), 1, ops.mul(2.0, half)))
    right = ops.ge(x[0], 0)
    signed = ops.where(ops.lt(x[1], 0), ops.neg(half), half)
    return ops.where(right, half, ops.abs(other)), ops.where(right, other, signed)


def _tanh(x: Pair) -> Pair:
    """From t = tanh(re) and s = tan(im), so that nothing overflows."""
    t, s = ops.tanh(x[0]), ops.tan(x[1])
    s2, t2 = ops.mul(s, s), ops.mul(t, t)
    below = ops.add(1, ops.mul(t2, s2))
    return ops.div(ops.mul(t, ops.add(1, s2)), below), ops.div(ops.mul(s, ops.sub(1, t2)), below)


ARITHMETIC: Mapping[str, Callable[..., Pair]] = {
    "neg": lambda x: (ops.neg(x[0]), ops.neg(x[1])),
    "conj": lambda x: (x[0], ops.neg(x[1])),
    "add": lambda x, y: (ops.add(x[0], y[0]), ops.add(x[1], y[1])),
    "sub": lambda x, y: (ops.sub(x[0], y[0]), ops.sub(x[1], y[1])),
    "mul": _mul,
    "div": _div,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "sin": lambda x: (
        ops.mul(ops.sin(x[0]), _cosh(x[1])),
        ops.mul(ops.cos(x[0]), _sinh(x[1])),
    ),
    "cos": lambda x: (
        ops.mul(ops.cos(x[0]), _cosh(x[1])),
        ops.neg(ops.mul(ops.sin(x[0]), _sinh(x[1]))),
    ),
    "tanh": _tanh,
}


def _cosh(x: Value) -> Value:
    return ops.mul(0.5, ops.add(ops.exp(x), ops.exp(ops.neg(x))))


def _sinh(x: Value) -> Value:
    return ops.mul(0.5, ops.sub(ops.expm1(x), ops.expm1(ops.neg(x))))


@on(*ARITHMETIC)
def arithmetic_on_parts(node: Node) -> Value | None:
    """Complex arithmetic written out"""
    if not node.types[0].dtype.is_complex:
        return None
    return ops.complex(*ARITHMETIC[node.op.name](*map(parts, node.inputs)))


@on("matmul", "conv", "long_conv")
def bilinear_on_parts(node: Node) -> Value | None:
    """(a + ib)(c + id) as four real products"""
    if not node.types[0].dtype.is_complex:
        return None
    (a, b), *others = map(parts, node.inputs)
    re, im = ([other[i] for other in others] for i in (0, 1))
    ac, bd, ad, bc = (node.op(x, *y, **node.attrs) for x, y in ((a, re), (b, im), (a, im), (b, re)))
    return ops.complex(ops.sub(ac, bd), ops.add(ad, bc))


LINEAR = ("sum", "cumsum", "where", "pack_panels", "scatter", "index_put")


def is_linear(node: Node) -> bool:
    """Whether the op treats real and imaginary parts alike and apart."""
    return (MOVEMENT in node.op.traits or node.op.name in LINEAR) and node.attrs.get("reduce", "set") in ("set", "add")


def linear_on_parts(node: Node) -> Value | None:
    """Movement, sums and choices act on each part alone"""
    if not node.types[0].dtype.is_complex or not is_linear(node) or not node.inputs:
        return None
    pairs = [parts(v) if v.type.dtype.is_complex else (v, v) for v in node.inputs]
    attrs = [dict(node.attrs), dict(node.attrs)]
    if node.op is ops.pad:
        attrs[1]["value"] = 0.0
    re, im = (node.op(*(pair[i] for pair in pairs), **attrs[i]) for i in (0, 1))
    return ops.complex(re, im)


@on("scan")
def scan_of_parts(node: Node) -> tuple[Value, ...] | None:
    """A scan over complex values carries both parts"""
    body: Graph = node.attrs["body"]
    carries = node.attrs["carries"]
    counts = [1 + v.type.dtype.is_complex for v in body.inputs]
    if not has_complex(node):
        return None
    operands = [p for v in node.inputs for p in (parts(v) if v.type.dtype.is_complex else (v,))]
    sequences = sum(counts[carries : carries + node.attrs["sequences"]])
    attrs = {**node.attrs, "body": _split_body(body), "carries": sum(counts[:carries]), "sequences": sequences}
    results = iter(ops.scan.node(*operands, **attrs).results)
    return tuple(ops.complex(next(results), next(results)) if t.dtype.is_complex else next(results) for t in node.types)


@on("while_loop")
def while_loop_of_parts(node: Node) -> tuple[Value, ...] | None:
    """A loop over complex values carries both parts"""
    if not has_complex(node):
        return None
    carries = sum(1 + v.type.dtype.is_complex for v in node.inputs[: node.attrs["carries"]])
    operands = [p for v in node.inputs for p in (parts(v) if v.type.dtype.is_complex else (v,))]
    body, condition = _split_body(node.attrs["body"]), _split_body(node.attrs["condition"])
    results = iter(ops.while_loop.node(*operands, condition=condition, body=body, carries=carries).results)
    return tuple(ops.complex(next(results), next(results)) if t.dtype.is_complex else next(results) for t in node.types)


def _split_body(body: Graph) -> Graph:
    inputs: list[Value] = []
    mapping: dict[Value, Value] = {}
    taken = {value.node.attrs["name"] for value in body.inputs}
    for value in body.inputs:
        type_ = value.type
        if type_.dtype.is_complex:
            part = TensorType(PARTS[type_.dtype.name], type_.dims)
            pair = [ops.input_(name=name, type=part) for name in _names_of_parts(value.node.attrs["name"], taken)]
            inputs += pair
            mapping[value] = ops.complex(*pair)
        else:
            inputs.append(value)
            mapping[value] = value
    for node in body.nodes:
        if node.op is not ops.input_:
            rebuilt = Node.make(node.op, tuple(mapping[v] for v in node.inputs), node.attrs)
            mapping.update(zip(node.results, rebuilt.results, strict=True))
    outputs: list[tuple[str, Value]] = []
    taken = {name for name, _ in body.outputs}
    for name, value in body.outputs:
        result = mapping[value]
        if value.type.dtype.is_complex:
            outputs += zip(_names_of_parts(name, taken), parts(result), strict=True)
        else:
            outputs.append((name, result))
    return Graph(body.name, tuple(inputs), tuple(outputs), body.symbols)


def _names_of_parts(name: str, taken: set[str]) -> tuple[str, str]:
    """``NAME_re`` and ``NAME_im``, numbered if they are taken."""
    real, imaginary = (unused(f"{name}_{suffix}", taken) for suffix in ("re", "im"))
    taken |= {real, imaginary}
    return real, imaginary


def composite_of_complex(node: Node) -> Value | tuple[Value, ...] | None:
    """What has no rule of its own is decomposed"""
    if node.op.decompose is None or not has_complex(node) or node.op.name in ARITHMETIC:
        return None
    return node.op.decompose(*node.inputs, **node.attrs)


RULES: tuple[Rule, ...] = (
    weight_parts, constant_parts, part_of_complex, abs_of_complex, compare_parts, cast_parts, arithmetic_on_parts, bilinear_on_parts,
    scan_of_parts, while_loop_of_parts, linear_on_parts, composite_of_complex,
)  # fmt: skip
