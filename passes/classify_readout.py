"""A loop whose outputs see its state only through a contraction: the parts that a first-class recurrence needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coilc.ir import Dim, Node, Value, ops

from .classify_affine import Affine, AffineIn, NotAffine
from .classify_factors import Axes, Factor, factors_of, product, removed
from .loop_parts import Loop, from_front
from .rewrite import on, rewrite_graph
from .split_products import split_product
from .vectorise_time import Parallel, Timed

Groups = Sequence[Sequence[int]]
Named = tuple[Value, Value, Groups, Groups]  # an op's outputs and last state, and the axes in each dim of them
TIME = 0  # axis numbers: time, then axis i of the state is i + 1


@dataclass(frozen=True, kw_only=True)
class Decaying:
    """``state = decay * state + update; out = sum(query * state, contracted)``, each a product of factors.

    Attributes:
        origin: the node that computes it, for messages.
        start: the state before the first step; axis i of it is axis i + 1 of the factors.
        added: not ``None`` if the outputs read the state before its update; what they add to it first, if anything.
    """

    origin: Node
    length: Dim
    reverse: bool
    start: Value
    decay: tuple[Factor, ...]
    update: tuple[Factor, ...]
    query: tuple[Factor, ...]
    contracted: frozenset[int]
    added: tuple[Factor, ...] | None = None

    @property
    def extent(self) -> Mapping[int, Dim]:
        return {TIME: self.length, **{i + 1: n for i, n in enumerate(self.start.dims)}}

    @property
    def rest(self) -> tuple[int, ...]:
        """State axes that are not contracted."""
        return tuple(i + 1 for i in range(self.start.type.rank) if i + 1 not in self.contracted)

    def arranged(self, factors: Sequence[Factor], *groups: Iterable[int]) -> Value:
        """The product of ``factors`` with one dim per group of axes, in the order of time that the op runs in."""
        result = product(factors, tuple(map(tuple, groups)), self.extent, like=self.start)
        return self.in_order(result, [TIME in group for group in map(tuple, groups)])

    def in_order(self, value: Value, is_time: Sequence[bool]) -> Value:
        axes = tuple(i for i, moving in enumerate(is_time) if moving)
        return ops.flip(value, axes=axes) if self.reverse and axes else value

    def initial(self, *groups: Iterable[int]) -> Value:
        return self.arranged((Factor(self.start, tuple(range(1, self.start.type.rank + 1))),), *groups)


@dataclass(frozen=True, kw_only=True)
class Contraction(Decaying):
    """A loop that does so.

    Attributes:
        out: the body's value that is the contraction, and ``out_axes`` the state axis of each of its dims.
        epilogue: factors of the query that do not depend on a contracted axis.
    """

    loop: Loop
    time: Parallel
    epilogue: tuple[Factor, ...]
    out: Value
    out_axes: Axes

    def results(self, out: Value, last: Value, out_groups: Groups, last_groups: Groups) -> tuple[Value, ...]:
        """The scan's results, from those of the op, whose dims are groups of axes."""
        out = self.in_order(out, [TIME in group for group in out_groups])
        axes = tuple(axis for axis in self.out_axes if axis is not None)
        lifted = product(
            [*split_axes(out, out_groups, self.extent), *self.epilogue],
            [(TIME,), *((axis,) for axis in axes)],
            self.extent,
            like=out,
        )
        lifted = ops.reshape(lifted, dims=(self.loop.length, *self.out.dims))
        self.time.known[self.out] = Timed(_as(lifted, self.out), True)
        ys = [self.time.full(self.time.value(y)) for y in self.loop.outputs]
        groups = [(i + 1,) for i in range(self.start.type.rank)]
        state = product(split_axes(last, last_groups, self.extent), groups, self.extent, like=last)
        return (_as(state, self.start), *(from_front(y, self.loop.axis) for y in ys))


def _as(value: Value, like: Value) -> Value:
    return value if value.type.dtype is like.type.dtype else ops.cast(value, dtype=like.type.dtype)


def split_axes(value: Value, groups: Groups, extent: Mapping[int, Dim]) -> tuple[Factor, ...]:
    """A tensor with one dim per group as a factor with one dim per axis."""
    axes = tuple(axis for group in groups for axis in group)
    dims = tuple(extent[axis] for axis in axes)
    whole = value if value.dims == dims else ops.reshape(value, dims=dims)
    return (Factor(whole, tuple(None if n == 1 else axis for axis, n in zip(axes, dims, strict=True))),)


def contraction_of(node: Node) -> Contraction:
    """Read a scan as one carry that its outputs contract.

    Raises:
        NotAffine, NotParallel: it is something else; the exception has the node and the reason.
    """
    loop = one_carry(node)
    time = Parallel(loop)
    update = AffineIn(time, loop.body_carries[0])
    step = update.of(loop.next_carries[0])
    if step.view != update.state:
        raise NotAffine(loop.next_carries[0].node, "the state does not come back in its own layout")
    return read_out(loop, time, step)


def one_carry(node: Node) -> Loop:
    """The loop, with its contractions as sums of products.

    Raises:
        NotAffine: it carries more than one value.
    """
    loop = Loop(node)
    if loop.carries != 1:
        raise NotAffine(node, f"it carries {loop.carries} values")
    return Loop(_with_sums(node))


def read_out(loop: Loop, time: Parallel, step: Affine) -> Contraction:
    """How the outputs of a loop see its state, which each step makes ``step.scale * state + step.shift``."""
    reader = AffineIn(time, loop.next_carries[0])
    out, added = _the_contraction(reader, loop), None
    if out is None:  # the state before the update, and something of this step besides
        reader = AffineIn(time, loop.body_carries[0])
        out, added = _the_contraction(reader, loop), ()
    if out is None:
        raise NotAffine(loop.node, "the outputs do not read the state")
    contracted, query, out_axes, shift = query_of(reader, out)
    if shift is not None and added is None:
        raise NotAffine(out.node, "something is added to the state before it is contracted")
    return Contraction(
        origin=loop.node,
        length=loop.length,
        reverse=loop.reverse,
        start=loop.inits[0],
        decay=() if step.scale is None else over_time(step.scale),
        update=() if step.shift is None else over_time(step.shift),
        query=tuple(f for f in query if f.support & contracted),
        contracted=contracted,
        added=added if shift is None else shift,
        loop=loop,
        time=time,
        epilogue=tuple(f for f in query if not f.support & contracted),
        out=out,
        out_axes=out_axes,
    )


def over_time(x: Timed) -> tuple[Factor, ...]:
    """Factors of a value of the loop: axis 0 is time, axis i of the body's value is i + 1."""
    return factors_of(x.value, tuple(range(0 if x.varies else 1, x.value.type.rank + (not x.varies))))


def _the_contraction(reader: AffineIn, loop: Loop) -> Value | None:
    """The only value of the body through which the outputs see the state, or ``None`` if they do not."""
    found: dict[Value, None] = {}
    stack = [y for y in loop.outputs]
    while stack:
        value = stack.pop()
        if reader.is_free(value):
            continue
        if value == reader.base:
            raise NotAffine(value.node, "the whole state leaves the loop")
        if value.op is ops.sum:
            found[value] = None
        else:
            stack += value.node.inputs
    if len(found) > 1:
        raise NotAffine(loop.node, f"the outputs contract the state {len(found)} times")
    return next(iter(found), None)


def query_of(
    reader: AffineIn, out: Value
) -> tuple[frozenset[int], tuple[Factor, ...], Axes, tuple[Factor, ...] | None]:
    """Contracted axes, the factors that multiply the state before the sum, the axis of each dim of the sum, and the factors
    of what is added to the state, if anything, all of which the query multiplies."""
    (operand,) = out.node.inputs
    read = reader.of(operand)
    if read.view is None:
        raise NotAffine(out.node, "the state is not read")
    (whole, *more) = factors_of(read.view)
    if more or whole.value != reader.state:
        raise NotAffine(out.node, "the state is read in another shape")
    axis_of = {dim: axis + 1 for axis, dim in enumerate(whole.axes) if dim is not None}
    axes = tuple(axis_of.get(i) for i in range(operand.type.rank))
    if any(axis is None and extent != 1 for axis, extent in zip(axes, operand.dims, strict=True)):
        raise NotAffine(out.node, "several queries read the state at once")
    summed = out.node.attrs["axes"]
    contracted = frozenset(axis for i in summed if (axis := axes[i]) is not None)
    if not contracted:
        raise NotAffine(out.node, "the contracted axis has extent 1")

    def factors(x: Timed) -> tuple[Factor, ...]:
        return factors_of(x.value, ((TIME, *axes) if x.varies else axes))

    query = () if read.scale is None else factors(read.scale)
    added = None
    if read.shift is not None:
        added = removed(factors(read.shift), query)
        if added is None:
            raise NotAffine(out.node, "something is added to the state before it is contracted")
    return contracted, query, tuple(axis for i, axis in enumerate(axes) if i not in summed), added


# --- contractions in one form ----------------------------------------------------------------------------------------


def _with_sums(scan: Node) -> Node:
    """The scan with every product of its state with a vector written as ``sum(mul(...))``."""
    body = scan.attrs["body"]
    carried, known = _Reach([v.node for v in body.inputs[: scan.attrs["carries"]]]), Loop(scan).consts

    @on("matmul", "einsum", "linear")
    def product_with_state(node: Node) -> Value | None:
        if not carried.reach(node):
            return None
        if node.op is ops.linear:
            assert node.op.decompose is not None
            result: Value = node.op.decompose(*node.inputs, **node.attrs)
            return result
        if node.op is ops.einsum:
            return einsum_as_sum(node)
        left, right = (carried.reach(v.node) for v in node.inputs)
        by_vector = vector_product(node)
        return split_product(node, left=right, known=known) if by_vector is None and left != right else by_vector

    return scan.op.node(*scan.inputs, **{**scan.attrs, "body": rewrite_graph(body, product_with_state)})


def vector_product(node: Node) -> Value | None:
    """A matmul with a row or column vector as a sum of products; with an inner dim of 1 it is an outer product."""
    x, y = node.inputs
    if x.dims[-1] == 1:
        return ops.mul(x, y)
    swap = (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)
    if y.dims[-1] == 1:
        return ops.sum(ops.mul(x, ops.transpose(y, perm=swap)), axes=(x.type.rank - 1,), keepdims=True)
    if x.dims[-2] == 1:
        return ops.sum(ops.mul(ops.transpose(x, perm=swap), y), axes=(x.type.rank - 2,), keepdims=True)
    return None


def reaches(root: Node, value: Value) -> bool:
    """Whether ``value`` depends on ``root``."""
    return _Reach([root]).reach(value.node)


def einsum_as_sum(node: Node) -> Value:
    """An einsum as the sum of a product in which every letter has an axis, so that no axes are merged."""
    given, result = node.attrs["equation"].split("->")
    terms = given.split(",")
    letters = result + "".join(sorted(set(given) - set(result) - {","}))
    extent = {c: n for term, x in zip(terms, node.inputs, strict=True) for c, n in zip(term, x.dims, strict=True)}
    axes = {c: i for i, c in enumerate(letters)}
    factors = [Factor(x, tuple(axes[c] for c in term)) for term, x in zip(terms, node.inputs, strict=True)]
    groups = [(axis,) for axis in axes.values()]
    total = product(factors, groups, {axes[c]: n for c, n in extent.items()}, like=node.inputs[0])
    summed = tuple(range(len(result), len(letters)))
    return ops.sum(total, axes=summed, keepdims=False) if summed else total


class _Reach:
    """Which nodes depend on some given ones."""

    def __init__(self, roots: Iterable[Node]) -> None:
        self.known: dict[Node, bool] = dict.fromkeys(roots, True)

    def reach(self, node: Node) -> bool:
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [v.node for v in top.inputs if v.node not in self.known]
            if top in self.known or not missing:
                stack.pop()
                if top not in self.known:
                    self.known[top] = any(self.known[v.node] for v in top.inputs)
            else:
                stack += missing
        return self.known[node]
