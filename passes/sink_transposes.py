"""Move transposes and reshapes towards the outputs until they meet their inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coilc.ir import Dims, Module, Node, Value, ops
from coilc.ir.dims import matching_groups
from coilc.ir.opdef import ELEMENTWISE, REDUCTION

from .match import scalar, transposed
from .rewrite import Rule, on, rewrite_module
from .simplify import RULES as IDENTITIES
from .simplify import suffix_of_size
from .trace import Declined, no


def sink_transposes(module: Module) -> Module:
    """Let ops work on the layout that their operands have in memory, and move what remains of the layout change after them.

    Before::

        v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))
        v1: f32[B, 8, L] = exp(v0)
        v2: f32[B, L, 8] = transpose(v1, perm=(0, 2, 1))

    After::

        v0: f32[B, L, 8] = exp(x)

    Needs: nothing. Guarantees: every value is bit for bit what it was, but for the order of sums in convolutions of one
    tap; a transpose is never added where none was.
    """
    return rewrite_module(module, *IDENTITIES, *RULES)


@dataclass(frozen=True)
class View:
    """How an operand shows another value: ``apply(source)`` is the operand, ``undo`` brings its dims back.

    Views with one ``key`` do the same to values of the same dims.
    """

    source: Value
    apply: Callable[[Value], Value]
    undo: Callable[[Value], Value]
    key: tuple[object, ...]

    @property
    def transposes(self) -> bool:
        return self.key[0] is ops.transpose


def view_of(value: Value) -> View | None:
    """The transpose or reshape behind an operand."""
    if value.op is ops.transpose:
        (source,) = value.node.inputs
        perm = value.node.attrs["perm"]
        return View(
            source,
            lambda v: ops.transpose(v, perm=perm),
            lambda v: ops.transpose(v, perm=inverse(perm)),
            (ops.transpose, perm),
        )
    if value.op is ops.reshape:
        (source,) = value.node.inputs
        dims, back = value.dims, source.dims
        return View(
            source, lambda v: ops.reshape(v, dims=dims), lambda v: ops.reshape(v, dims=back), (ops.reshape, back, dims)
        )
    return None


def inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes ``perm``."""
    return tuple(perm.index(axis) for axis in range(len(perm)))


def elementwise_of_view(node: Node) -> Value | Declined | None:
    """f(view(x), view(y), c) = view(f(x, y, c))"""
    if ELEMENTWISE not in node.op.traits:
        return None
    views = [view_of(v) for v in node.inputs]
    view = next((v for v in views if v is not None and worth_sinking(v)), None)
    if view is None:
        return None
    operands = []
    for value, own in zip(node.inputs, views, strict=True):
        if own is not None and own.key == view.key:
            operands.append(own.source)
        elif is_free(value, view):
            operands.append(view.undo(value))
        else:
            return no(f"operand {value.type} has another layout and would need a transpose of its own")
    return view.apply(node.op(*operands, **node.attrs))


def worth_sinking(view: View) -> bool:
    """Reshaped inputs and weights stay: the reshape costs nothing there and other readers may want it."""
    return view.transposes or view.source.op not in (ops.input_, ops.weight, ops.constant)


def is_free(value: Value, view: View) -> bool:
    """Whether ``value`` can be had in the layout of ``view.source`` without moving a whole tensor."""
    if scalar(value) is not None:
        return True
    if view.transposes:
        return value.op in (ops.broadcast, ops.weight, ops.constant, ops.iota)
    return value.op is ops.broadcast and repeats_whole(value, view.source.dims)


def repeats_whole(value: Value, dims: Dims) -> bool:
    """Whether ``value`` repeats a smaller tensor as a whole, and does so too when reshaped to ``dims``."""
    (inner,) = value.node.inputs
    whole = value.dims[value.type.rank - inner.type.rank :] == inner.dims
    return whole and suffix_of_size(dims, inner.type.size) is not None


@on("slice")
def slice_of_transpose(node: Node) -> Value | None:
    """slice(transpose(x)) = transpose(slice(x))"""
    return under_transpose(node, "starts", "stops", "steps")


@on("pad")
def pad_of_transpose(node: Node) -> Value | None:
    """pad(transpose(x)) = transpose(pad(x))"""
    return under_transpose(node, "low", "high")


def under_transpose(node: Node, *per_axis: str) -> Value | None:
    """Apply an op with one attribute entry per axis below the transpose."""
    (x,) = node.inputs
    if x.op is not ops.transpose:
        return None
    perm = x.node.attrs["perm"]
    moved = {name: tuple(node.attrs[name][i] for i in inverse(perm)) for name in per_axis}
    return ops.transpose(node.op(x.node.inputs[0], **{**node.attrs, **moved}), perm=perm)


@on("flip")
def flip_of_transpose(node: Node) -> Value | None:
    """flip(transpose(x)) = transpose(flip(x))"""
    (x,) = node.inputs
    if x.op is not ops.transpose:
        return None
    perm = x.node.attrs["perm"]
    axes = tuple(sorted(perm[axis] for axis in node.attrs["axes"]))
    return ops.transpose(ops.flip(x.node.inputs[0], axes=axes), perm=perm)


@on("concat")
def concat_of_transposes(node: Node) -> Value | None:
    """concat(transpose(x), transpose(y)) = transpose(concat(x, y))"""
    if any(v.op is not ops.transpose for v in node.inputs):
        return None
    perms = {v.node.attrs["perm"] for v in node.inputs}
    if len(perms) > 1:
        return None
    (perm,) = perms
    joined = ops.concat(*(v.node.inputs[0] for v in node.inputs), axis=perm[node.attrs["axis"]])
    return ops.transpose(joined, perm=perm)


def reduction_of_transpose(node: Node) -> Value | None:
    """sum(transpose(x), axes) = transpose(sum(x, moved axes))"""
    if REDUCTION not in node.op.traits or not node.attrs["keepdims"] or node.inputs[0].op is not ops.transpose:
        return None
    transposed = node.inputs[0].node
    perm = transposed.attrs["perm"]
    axes = tuple(sorted(perm[axis] for axis in node.attrs["axes"]))
    return ops.transpose(node.op(transposed.inputs[0], **{**node.attrs, "axes": axes}), perm=perm)


@on("softmax", "log_softmax", "cumsum", "cumprod")
def along_axis_of_transpose(node: Node) -> Value | None:
    """cumsum(transpose(x), axis) = transpose(cumsum(x, moved axis))"""
    (x,) = node.inputs
    if x.op is not ops.transpose:
        return None
    perm = x.node.attrs["perm"]
    moved = {**node.attrs, "axis": perm[node.attrs["axis"]]}
    return ops.transpose(node.op(x.node.inputs[0], **moved), perm=perm)


@on("linear", "packed_matmul", "rms_norm", "layer_norm")
def last_axis_of_transpose(node: Node) -> Value | None:
    """linear(transpose(x)) = transpose(linear(x)) when the last axis stays last"""
    x, *rest = node.inputs
    if x.op is not ops.transpose or x.node.attrs["perm"][-1] != x.type.rank - 1:
        return None
    perm = x.node.attrs["perm"]
    return ops.transpose(node.op(x.node.inputs[0], *rest, **node.attrs), perm=perm)


@on("conv")
def one_tap_of_transpose(node: Node) -> Value | None:
    """conv(transpose(x), w) = transpose(linear(x, w)) for channels that are innermost in x and a kernel of one tap"""
    x, w = node.inputs
    to_first = (0, x.type.rank - 1, *range(1, x.type.rank - 1))
    if x.op is not ops.transpose or x.node.attrs["perm"] != to_first or node.attrs["groups"] != 1:
        return None
    padded = any(n != 0 for pair in node.attrs["padding"] for n in pair)
    if padded or any(n != 1 for n in (*w.dims[2:], *node.attrs["strides"])):
        return None
    return ops.transpose(ops.linear(x.node.inputs[0], ops.reshape(w, dims=w.dims[:2])), perm=to_first)


@on("reshape")
def unit_dims_of_transpose(node: Node) -> Value | None:
    """reshape(transpose(x)) = transpose(reshape(x)) when the reshape only adds or drops dims of extent 1"""
    (x,) = node.inputs
    dims = node.types[0].dims
    if x.op is not ops.transpose or [n for n in x.dims if n != 1] != [n for n in dims if n != 1]:
        return None
    (source,) = x.node.inputs
    order = [axis for axis in x.node.attrs["perm"] if source.dims[axis] != 1]
    places = [axis for axis, n in enumerate(dims) if n != 1]
    ranked = sorted(range(len(order)), key=order.__getitem__)  # long axes of the result, in the source's order
    below = list(dims)
    for place, rank in zip(places, ranked, strict=True):
        below[place] = dims[places[rank]]
    perm = list(range(len(dims)))
    for position, rank in enumerate(ranked):
        perm[places[rank]] = places[position]
    moved = ops.transpose(ops.reshape(source, dims=tuple(below)), perm=tuple(perm))
    return moved if moved.dims == dims else None


@on("reshape")
def axes_of_transpose(node: Node) -> Value | None:
    """reshape(transpose(x)) = transpose(reshape(x)); axes merged out of order keep a transpose among themselves"""
    (x,) = node.inputs
    if x.op is not ops.transpose:
        return None
    (source,), perm, result = x.node.inputs, x.node.attrs["perm"], node.types[0].dims
    groups = [(perm[here], result[there]) for here, there in matching_groups(x.dims, result)]
    if not all(axes and cut for axes, cut in groups):
        return None
    order = sorted(range(len(groups)), key=lambda i: max(groups[i][0]))  # what is innermost stays innermost
    among = tuple(axis for i in order for axis in groups[i][0])
    if order == sorted(order) and among != tuple(range(len(among))):
        return None
    below = tuple(extent for i in order for extent in groups[i][1])
    place = {i: sum(len(groups[j][1]) for j in order[: order.index(i)]) for i in order}
    axes = tuple(place[i] + k for i, (_, cut) in enumerate(groups) for k in range(len(cut)))
    return transposed(ops.reshape(transposed(source, among), dims=below), axes)


RULES: tuple[Rule, ...] = (
    slice_of_transpose, pad_of_transpose, flip_of_transpose, concat_of_transposes, along_axis_of_transpose,
    last_axis_of_transpose, one_tap_of_transpose, unit_dims_of_transpose, axes_of_transpose, reduction_of_transpose, elementwise_of_view,
)  # fmt: skip
