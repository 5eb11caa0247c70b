"""Kernels that are sums of exponentials: their convolution is a diagonal recurrence, which needs no length and can go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from coilc.ir import Dim, DType, Module, Node, Value, dims, literal, ops
from coilc.ir.core import topological_order
from coilc.ir.opdef import ELEMENTWISE

from .match import scalar
from .rewrite import on, rewrite_module
from .timeline import replace_at
from .trace import Declined, no


def classify_kernels(module: Module) -> Module:
    """Turn a long convolution whose kernel is Re(sum of c_n a_n^j), of no fixed length, into ``lti_scan``.

    Before::

        v0: i64[L] = iota(dims=(L,), axis=0, dtype=i64)
        v1: f32[4, 3, L] = exp(mul(rate, cast(v0, dtype=f32)))  # spread to [4, 3, L]
        v2: f32[4, L] = einsum(c, v1, equation="dn,dnl->dl")
        v3: f32[B, L, 4] = long_conv(x, transpose(v2, perm=(1, 0)))

    After::

        v0: f32[3, 4] = exp(rate)  # transposed
        v1: f32[B, L, 4], v2 = lti_scan(x, v0, c)

    Needs: long convolutions are recognised. Guarantees: equal up to rounding; no tensor of [states, L] is left. A kernel
    of known length stays: it is computed once, at compile time.
    """
    return rewrite_module(module, kernel_of_exponentials)


@on("long_conv")
def kernel_of_exponentials(node: Node) -> Value | Declined | None:
    """A convolution with Re(sum over n of c_n a_n^j) is a diagonal recurrence"""
    x, k = node.inputs[:2]
    if isinstance(k.dims[0], int):
        return None
    if k.dims[0] != x.dims[1]:
        return no(f"the kernel has {k.dims[0]} taps for {x.dims[1]} steps")
    if node.attrs["optional"]:
        return no("the kernel reads the future")
    try:
        modes = _Kernel().of(k)
    except NotExponential as broken:
        return no(f"the kernel is not a sum of exponentials: {broken}")
    if not isinstance(modes, Modes) or modes.axis != 0 or (modes.decay.type.dtype.is_complex and not modes.real):
        return no("the kernel does not run over its taps")
    states, channels = modes.scale.dims[0], k.dims[1]
    a, c = (ops.reshape(_to(v, (states, 1, channels)), dims=(states, channels)) for v in (modes.decay, modes.scale))
    y: Value = ops.lti_scan(x, a, c)[0]
    return y


class NotExponential(Exception):
    """A kernel that is something else; the message says where that shows."""


@dataclass(frozen=True)
class Ramp:
    """``slope * j + offset`` along an axis; both have extent 1 there."""

    slope: Value
    offset: Value
    axis: int


@dataclass(frozen=True)
class Modes:
    """``sum over n of scale_n * decay_n ** j`` along an axis, n being a first axis of its own; the real part if ``real``.

    Both have extent 1 or the value's in each axis, and 1 at ``axis``.
    """

    scale: Value
    decay: Value
    axis: int
    real: bool = False


Timed = Ramp | Modes
Known = Timed | Value  # a value that does not run over the taps is itself


class _Kernel:
    """Values of a kernel's expression as functions of the tap number, found operands first."""

    def __init__(self) -> None:
        self.known: dict[Value, Known] = {}

    def of(self, kernel: Value) -> Known:
        for node in topological_order([kernel.node], lambda _: False):
            operands = [self.known[v] for v in node.inputs]
            for value in node.results:
                self.known[value] = self.rule(value, operands)
        return self.known[kernel]

    def rule(self, value: Value, operands: list[Known]) -> Known:
        node = value.node
        if node.op is ops.iota and not isinstance(value.dims[node.attrs["axis"]], int):
            return _count(value, node.attrs["axis"])
        if not any(isinstance(o, Ramp | Modes) for o in operands):
            return value
        if node.op.name in RULES:
            return RULES[node.op.name](node, operands)
        if node.op.decompose is not None and ELEMENTWISE not in node.op.traits:
            return self.of_definition(node)
        raise NotExponential(f"'{node.op.name}' of it")

    def of_definition(self, node: Node) -> Known:
        assert node.op.decompose is not None
        result = node.op.decompose(*node.inputs, **node.attrs)
        for part in topological_order([result.node], self._is_known):
            if not self._is_known(part):
                operands = [self.known[v] for v in part.inputs]
                self.known.update({v: self.rule(v, operands) for v in part.results})
        return self.known[result]

    def _is_known(self, node: Node) -> bool:
        return node.results[0] in self.known


def _count(value: Value, axis: int) -> Ramp:
    ones = tuple(1 for _ in value.dims)
    one, zero = (ops.reshape(literal(n, value.type.dtype), dims=ones) for n in (1, 0))
    return Ramp(one, zero, axis)


def _refuse(what: str) -> NotExponential:
    return NotExponential(what)


def _steady(known: Known, axis: int) -> Value:
    """A value that does not run over the taps, with extent 1 there."""
    if not isinstance(known, Value):
        raise _refuse("two factors that run over the taps")
    return _one_at(known, axis)


def _one_at(value: Value, axis: int) -> Value:
    """One slice along an axis along which all slices are equal."""
    if value.dims[axis] == 1:
        return value
    if value.op is ops.broadcast:
        (source,) = value.node.inputs
        place = axis - (value.type.rank - source.type.rank)
        if place < 0 or source.dims[place] == 1:
            return ops.broadcast(source, dims=replace_at(value.dims, axis, 1))
    raise _refuse(f"'{value.op.name}' that is not the same for every tap")


def _to(value: Value, to: tuple[Dim, ...]) -> Value:
    return value if value.dims == to else ops.broadcast(value, dims=to)


def _with_modes(value: Value) -> Value:
    return ops.expand_dims(value, 0)


# --- elementwise ------------------------------------------------------------------------------------------------------


def _mul(node: Node, operands: list[Known]) -> Known:
    x, y = operands
    if isinstance(x, Value):
        x, y = y, x
    match x, y:
        case Modes(), Modes():
            return _product(x, y)
        case Ramp(slope, offset, axis), Value():
            factor = _steady(y, axis)
            return Ramp(ops.mul(slope, factor), offset if scalar(offset) == 0 else ops.mul(offset, factor), axis)
        case Modes(), Value():
            factor = _steady(y, x.axis)
            if x.real and factor.type.dtype.is_complex:
                raise _refuse("a complex factor of a real part")
            wide = ops.cast(factor, dtype=x.scale.type.dtype) if x.real else factor
            return replace(x, scale=ops.mul(x.scale, _with_modes(wide)))
    raise _refuse("a product of what runs over the taps")


def _product(x: Modes, y: Modes) -> Modes:
    """A real factor may be moved into a real part."""
    x, y = (y, x) if y.real else (x, y)
    waves = x.real and (y.real or y.scale.type.dtype.is_complex)
    if x.axis != y.axis or waves or 1 not in (x.scale.dims[0], y.scale.dims[0]):
        raise _refuse("a product of sums")
    dtype = x.scale.type.dtype
    scale, decay = (ops.cast(v, dtype=dtype) if x.real else v for v in (y.scale, y.decay))
    return Modes(ops.mul(x.scale, scale), ops.mul(x.decay, decay), x.axis, x.real)


def _div(node: Node, operands: list[Known]) -> Known:
    x, y = operands
    if not isinstance(x, Ramp | Modes):
        raise _refuse("division by it")
    return _mul(node, [x, ops.reciprocal(_steady(y, x.axis))])


def _add(node: Node, operands: list[Known]) -> Known:
    x, y = operands
    if isinstance(x, Value):
        x, y = y, x
    match x, y:
        case Ramp(slope, offset, axis), Ramp() if axis == y.axis:
            return Ramp(ops.add(slope, y.slope), ops.add(offset, y.offset), axis)
        case Ramp(slope, offset, axis), Value():
            return Ramp(slope, ops.add(offset, _steady(y, axis)), axis)
        case Modes(), Modes() if x.axis == y.axis and x.real == y.real:
            rows = [replace_at(_common(x, y), 0, part.scale.dims[0]) for part in (x, y)]
            scale, decay = (
                ops.concat(*(_to(v, row) for v, row in zip(pair, rows, strict=True)), axis=0)
                for pair in ((x.scale, y.scale), (x.decay, y.decay))
            )
            return replace(x, scale=scale, decay=decay)
    raise _refuse("a sum with something else")


def _common(x: Modes, y: Modes) -> tuple[Dim, ...]:
    pairs = zip(x.scale.dims, x.decay.dims, y.scale.dims, y.decay.dims, strict=True)
    return tuple(next((d for d in extents if d != 1), 1) for extents in pairs)


def _neg(node: Node, operands: list[Known]) -> Known:
    (x,) = operands
    if isinstance(x, Ramp):
        return Ramp(ops.neg(x.slope), ops.neg(x.offset), x.axis)
    assert isinstance(x, Modes)
    return replace(x, scale=ops.neg(x.scale))


def _sub(node: Node, operands: list[Known]) -> Known:
    x, y = operands
    return _add(node, [x, ops.neg(y) if isinstance(y, Value) else _neg(node, [y])])


def _cast(node: Node, operands: list[Known]) -> Known:
    (x,), dtype = operands, node.attrs["dtype"]
    if isinstance(x, Ramp):
        return Ramp(_converted(x.slope, dtype), _converted(x.offset, dtype), x.axis)
    if not isinstance(x, Modes) or dtype.name not in ("f32", "f64", "c64", "c128") or (x.real and dtype.is_complex):
        raise _refuse(f"a cast to {dtype}")
    if x.real:
        return x
    return replace(x, scale=ops.cast(x.scale, dtype=dtype), decay=ops.cast(x.decay, dtype=dtype))


def _converted(value: Value, dtype: DType) -> Value:
    """A cast that keeps a number a number."""
    number = scalar(value)
    return ops.cast(value, dtype=dtype) if number is None else ops.reshape(literal(number, dtype), dims=value.dims)


def _exp(node: Node, operands: list[Known]) -> Known:
    (x,) = operands
    if not isinstance(x, Ramp):
        raise _refuse("an exponential of a sum")
    scale = _ones(x.offset) if scalar(x.offset) == 0 else ops.exp(x.offset)
    return Modes(_with_modes(scale), _with_modes(ops.exp(x.slope)), x.axis)


def _wave(node: Node, operands: list[Known]) -> Known:
    """cos z = Re exp(i z), and sin z = Re(-i exp(i z))."""
    (x,) = operands
    if not isinstance(x, Ramp):
        raise _refuse(f"'{node.op.name}' of a sum")
    scale, decay = (ops.complex(ops.cos(v), ops.sin(v)) for v in (x.offset, x.slope))
    if node.op is ops.sin:
        scale = ops.complex(ops.imag(scale), ops.neg(ops.real(scale)))
    return Modes(_with_modes(scale), _with_modes(decay), x.axis, real=True)


def _pow(node: Node, operands: list[Known]) -> Known:
    """``a ** j``."""
    base, power = operands
    if not isinstance(base, Value) or not isinstance(power, Ramp) or scalar(power.slope) != 1:
        raise _refuse("a power of it")
    base = _one_at(base, power.axis)
    if scalar(power.offset) == 0:
        return Modes(ops.expand_dims(_ones(base), 0), _with_modes(base), power.axis)
    return Modes(_with_modes(ops.pow(base, power.offset)), _with_modes(base), power.axis)


def _ones(like: Value) -> Value:
    return ops.broadcast(literal(1, like.type.dtype), dims=like.dims)


def _real(node: Node, operands: list[Known]) -> Known:
    (x,) = operands
    if not isinstance(x, Modes) or x.real:
        raise _refuse("a real part of it")
    return replace(x, real=True)


# --- movement and sums ------------------------------------------------------------------------------------------------


def _transpose(node: Node, operands: list[Known]) -> Known:
    (x,), perm = operands, node.attrs["perm"]
    assert isinstance(x, Ramp | Modes)
    axis = perm.index(x.axis)
    if isinstance(x, Ramp):
        return Ramp(ops.transpose(x.slope, perm=perm), ops.transpose(x.offset, perm=perm), axis)
    whole = (0, *(p + 1 for p in perm))
    return replace(x, scale=ops.transpose(x.scale, perm=whole), decay=ops.transpose(x.decay, perm=whole), axis=axis)


def _broadcast(node: Node, operands: list[Known]) -> Known:
    (x,), target = operands, node.attrs["dims"]
    assert isinstance(x, Ramp | Modes)
    lead = len(target) - node.inputs[0].type.rank
    return _regrown(x, x.axis + lead, lambda v, skip: (*v.dims[:skip], *(1,) * lead, *v.dims[skip:]))


def _reshape(node: Node, operands: list[Known]) -> Known:
    (x,), target = operands, node.attrs["dims"]
    assert isinstance(x, Ramp | Modes)
    before = node.inputs[0].dims
    places = [
        a for a, d in enumerate(target) if d == before[x.axis] and dims.size(target[:a]) == dims.size(before[: x.axis])
    ]
    if not places:
        raise _refuse("taps merged with another axis")
    axis = places[-1]
    full = replace_at(before, x.axis, 1)
    return _regrown(x, axis, lambda v, _: (*v.dims[: v.type.rank - len(before)], *replace_at(target, axis, 1)), full)


def _regrown(
    x: Timed, axis: int, dims_of: Callable[[Value, int], tuple[Dim, ...]], full: tuple[Dim, ...] | None = None
) -> Known:
    """Both parts in other dims, spread to ``full`` before that if given."""

    def grow(v: Value, skip: int) -> Value:
        v = v if full is None else _to(v, (*v.dims[:skip], *full))
        return ops.reshape(v, dims=dims_of(v, skip))

    if isinstance(x, Ramp):
        return Ramp(grow(x.slope, 0), grow(x.offset, 0), axis)
    return replace(x, scale=grow(x.scale, 1), decay=grow(x.decay, 1), axis=axis)


def _sum(node: Node, operands: list[Known]) -> Known:
    """Summed axes become modes."""
    (x,), axes = operands, node.attrs["axes"]
    if not isinstance(x, Modes) or x.axis in axes:
        raise _refuse("a sum over the taps")
    before = node.inputs[0].dims
    full = (x.scale.dims[0], *replace_at(before, x.axis, 1))
    summed = [a + 1 for a in axes]
    kept = [a for a in range(1, len(full)) if a not in summed]
    modes = dims.size([full[0], *(full[a] for a in summed)])
    rest = [1 if a in summed else full[a] for a in range(1, len(full)) if node.attrs["keepdims"] or a not in summed]

    def gather(v: Value) -> Value:
        return ops.reshape(ops.transpose(_to(v, full), perm=(0, *summed, *kept)), dims=(modes, *rest))

    axis = x.axis if node.attrs["keepdims"] else x.axis - len([a for a in axes if a < x.axis])
    return replace(x, scale=gather(x.scale), decay=gather(x.decay), axis=axis)


def _matmul(node: Node, operands: list[Known]) -> Known:
    """[.., M, K] @ [.., K, N] is a sum over K of products."""
    left, right = operands
    rank = node.results[0].type.rank
    wide = [_between(left, node.inputs[0], rank), _between(right, node.inputs[1], rank - 2)]
    product = _mul(node, wide)
    x, y = (v.dims for v in node.inputs)
    inner = ops.input_(name="products", type=node.types[0].with_dims((*x[:-1], x[-1], y[-1])))
    return _sum(ops.sum.node(inner, axes=(rank - 1,)), [product])


def _between(known: Known, value: Value, axis: int) -> Known:
    """The operand with a new axis of 1."""
    expanded = ops.expand_dims(value, axis)
    if isinstance(known, Value):
        return expanded
    return _reshape(expanded.node, [known])


RULES: Mapping[str, Callable[[Node, list[Known]], Known]] = {
    "mul": _mul, "div": _div, "add": _add, "sub": _sub, "neg": _neg, "cast": _cast, "exp": _exp, "cos": _wave, "sin": _wave, "pow": _pow,
    "real": _real, "transpose": _transpose, "broadcast": _broadcast, "reshape": _reshape, "sum": _sum, "matmul": _matmul,
}  # fmt: skip
