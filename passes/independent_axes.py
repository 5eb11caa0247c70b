"""Which axes of the values in a body belong together and are never mixed: along them, tasks need nothing of each other.

Every op links axes of its operands to axes of its results where element i of one only ever meets element i of the other;
all other axes are mixed. Linked axes form classes. A class without a mixed axis, such as the batch dim of most bodies, can be
cut into parts that are computed apart: ``Classes.narrow`` is the body as a part sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coilc.ir import Graph, Node, Value, ops
from coilc.ir.dims import Dim, matching_groups
from coilc.ir.opdef import ELEMENTWISE, MOVEMENT, REDUCTION, STRUCTURAL

Path = tuple[Node, ...]  # the scans around a value: bodies share input nodes of equal name and type
Axis = tuple[Path, Value, int]
Link = tuple[int, int, int, int]  # operand, its axis, result, its axis


LANES = 32  # indices of an innermost axis that a task has: whole vectors on every target, and its states stay in the nearest cache


@dataclass(frozen=True)
class Cut:
    """A dim that tasks have apart.

    Attributes:
        extent: of the whole.
        rows: of a task's part: a symbol of at most ``ROWS``, or a number. If that does not divide the extent, the last part
            starts early, so that it ends at the extent.
        axes: the axes of inputs and results of the body that are this dim.
    """

    extent: Dim
    rows: Dim
    axes: Mapping[Value, tuple[int, ...]]


@dataclass
class Classes:
    """The classes of axes of one scan body, nested bodies included. The time of the scan ``along`` is not mixed."""

    body: Graph
    carries: int
    along: Node | None = None
    parent: dict[Axis, Axis] = field(default_factory=dict)
    mixed: set[Axis] = field(default_factory=set)

    @staticmethod
    def of(body: Graph, carries: int, along: Node | None = None) -> Classes:
        classes = Classes(body, carries, along)
        classes._add(body, carries, ())
        return classes

    def find(self, axis: Axis) -> Axis:
        """The representative of an axis's class."""
        root = axis
        while (above := self.parent.get(root, root)) != root:
            root = above
        while axis != root:
            self.parent[axis], axis = root, self.parent[axis]
        return root

    def independent(self) -> dict[Axis, Dim]:
        """Classes of carried axes that nothing mixes and that no value has twice, and their extent."""
        mixed = {self.find(axis) for axis in self.mixed} | {self.find(axis) for axis in self._repeated()}
        carried = [((), v, a) for v in self.body.inputs[: self.carries] for a in range(v.type.rank)]
        roots = dict.fromkeys(map(self.find, carried))
        return {root: root[1].dims[root[2]] for root in roots if root not in mixed and root[1].dims[root[2]] != 1}

    def axes(self, value: Value, root: Axis, path: Path = ()) -> Iterator[int]:
        """The axes of a value that belong to a class."""
        return (a for a in range(value.type.rank) if self.find((path, value, a)) == root)

    def narrow(self, root: Axis, extent: Dim) -> tuple[Graph, Mapping[Value, Value]]:
        """The body with every axis of a class of this extent, and what each value has become."""
        return self._narrowed(self.body, (), root, extent)

    # --- finding the classes ------------------------------------------------------------------------------------------

    def _link(self, a: Axis, b: Axis) -> None:
        self.parent[self.find(a)] = self.find(b)

    def _add(self, body: Graph, carries: int, path: Path) -> None:
        for node in body.nodes:
            if node.op is ops.scan:
                self._nested(node, path)
            elif node.inputs or node.op is ops.iota:
                self._node(node, path)
        for before, after in zip(body.inputs[:carries], body.results, strict=False):
            for axis in range(before.type.rank):
                self._link((path, before, axis), (path, after, axis))

    def _node(self, node: Node, path: Path) -> None:
        linked: set[tuple[Value, int]] = set()
        for operand, axis, result, there in links(node):
            x, y = node.inputs[operand], node.results[result]
            self._link((path, x, axis), (path, y, there))
            linked |= {(x, axis), (y, there)}
        created = node.op in (ops.broadcast, ops.iota)
        for value in (*node.inputs, *(() if created else node.results)):
            self.mixed |= {(path, value, a) for a in range(value.type.rank) if (value, a) not in linked}
        if node.op is ops.iota:
            self.mixed.add((path, node.results[0], node.attrs["axis"] % node.results[0].type.rank))

    def _nested(self, node: Node, path: Path) -> None:
        """A scan: its operands are its body's inputs, but for the axis of time, which stays whole."""
        body, carries, time = node.attrs["body"], node.attrs["carries"], node.attrs["axis"]
        inside = (*path, node)
        self._add(body, carries, inside)
        outer = (*node.inputs, *node.results)
        inner = (*body.inputs, *body.results)
        moving = {*range(carries, carries + node.attrs["sequences"])}
        moving |= {*range(len(node.inputs) + carries, len(outer))}
        for i, (value, part) in enumerate(zip(outer, inner, strict=True)):
            for axis in range(part.type.rank):
                self._link((path, value, axis + (i in moving and axis >= time)), (inside, part, axis))
            if i in moving and node is self.along:
                self._link((path, outer[carries], time), (path, value, time))
            elif i in moving:
                self.mixed.add((path, value, time))

    def _repeated(self) -> Iterator[Axis]:
        """Classes that some value has at two axes."""
        seen: set[tuple[Path, Value, Axis]] = set()
        for axis in list(self.parent):
            path, value, _ = axis
            root = self.find(axis)
            if (path, value, root) in seen:
                yield root
            seen.add((path, value, root))

    # --- narrowing ----------------------------------------------------------------------------------------------------

    def _narrowed(self, body: Graph, path: Path, root: Axis, extent: Dim) -> tuple[Graph, Mapping[Value, Value]]:
        mapping: dict[Value, Value] = {}
        for node in body.nodes:
            attrs = {name: self._attr(node, name, value, path, root, extent) for name, value in node.attrs.items()}
            rebuilt = Node.make(node.op, tuple(mapping[v] for v in node.inputs), attrs)
            rebuilt.location = rebuilt.location or node.location
            mapping.update(zip(node.results, rebuilt.results, strict=True))
        outputs = tuple((name, mapping[v]) for name, v in body.outputs)
        return Graph(body.name, tuple(mapping[v] for v in body.inputs), outputs), mapping

    def _attr(self, node: Node, name: str, value: Any, path: Path, root: Axis, extent: Dim) -> Any:
        if isinstance(value, Graph):
            return self._narrowed(value, (*path, node), root, extent)[0]
        if name not in ("dims", "stops", "type"):
            return value
        axes = tuple(self.axes(node.results[0], root, path))
        dims = value.dims if name == "type" else value
        narrowed = tuple(extent if a in axes else dim for a, dim in enumerate(dims))
        return value.with_dims(narrowed) if name == "type" else narrowed


# --- what tasks have apart --------------------------------------------------------------------------------------------


def narrowed(
    body: Graph, carries: int, rows: Dim = 1, lanes: int | None = None
) -> tuple[Graph, list[Cut], Mapping[Value, Value]]:
    """The body as a task sees it, where the tasks are, and what each value became.

    Args:
        rows: extent of a dim whose indices read the same matrix (``shares_a_matrix``); of all others, a task has one index.
        lanes: the most indices of an innermost axis of the carries that a task has; parts may overlap then, so the carries
            must be local. By default, parts of ``LANES`` that do not overlap.
    """
    cuts: list[Cut] = []
    inside = body
    became = {v: v for node in body.nodes for v in node.results}
    while (found := _next_cut(Classes.of(inside, carries), rows, lanes)) is not None:
        classes, root, part, inside, mapping = found
        ends = (*body.inputs, *body.results)
        axes = {v: tuple(classes.axes(became[v], root)) for v in ends}
        cuts.append(Cut(root[1].dims[root[2]], part, axes))
        became = {v: mapping[part] for v, part in became.items()}
    return inside, cuts, became


def _next_cut(
    classes: Classes, rows: Dim, lanes: int | None
) -> tuple[Classes, Axis, Dim, Graph, Mapping[Value, Value]] | None:
    """A class of symbolic extent along which every value that cannot be local has its part in one piece."""
    for root, extent in classes.independent().items():
        if isinstance(extent, int) or extent == rows:
            continue
        inside, mapping = classes.narrow(root, 1)
        if not _in_one_piece(classes, root, mapping):
            continue
        stored = any(not isinstance(part.type.size, int) for part in mapping.values())
        if rows == 1 or stored or not shares_a_matrix(classes, root):
            return classes, root, 1, inside, mapping
        return classes, root, rows, *classes.narrow(root, rows)
    for root, extent in classes.independent().items():
        part = _static_part(classes, root, extent, lanes)
        if isinstance(extent, int) and 0 < part < extent:
            inside, mapping = classes.narrow(root, part)
            if _in_one_piece(classes, root, mapping):
                return classes, root, part, inside, mapping
    return None


def _in_one_piece(classes: Classes, root: Axis, mapping: Mapping[Value, Value]) -> bool:
    """Whether a task's part of every value that cannot be local, because its size is not known, is one piece of memory."""
    stored = [v for v, part in mapping.items() if not isinstance(part.type.size, int)]
    return all(v.dims[:axis] == (1,) * axis for v in stored for axis in classes.axes(v, root))


def _static_part(classes: Classes, root: Axis, extent: Dim, lanes: int | None) -> int:
    """How many indices of a class of known extent a task has: few enough that its states stay in the nearest cache.

    Zero where tasks apart would do more, because all need some work or matrix that does not vary along the class, and where
    a table in the body does vary.
    """
    if not isinstance(extent, int) or shares_a_matrix(classes, root):
        return 0
    for node in classes.body.nodes:
        varies = any(True for v in node.results for _ in classes.axes(v, root))
        heavy = not node.op.traits & {ELEMENTWISE, MOVEMENT, STRUCTURAL}
        if (heavy and not varies) or (node.op is ops.constant and varies):
            return 0
    carried = classes.body.inputs[: classes.carries]
    in_lanes = any(v.type.rank - 1 in classes.axes(v, root) for v in carried)
    if not in_lanes:
        return 1
    if lanes is not None:
        return part_in_lanes(extent, lanes)
    return LANES if extent % LANES == 0 else 0


def part_in_lanes(extent: int, widest: int) -> int:
    """The widest power of two, at most ``widest``, whose parts overlap by less than a quarter of the extent."""
    width = widest
    while width > 1 and (width > extent or -(-extent // width) * width * 4 > extent * 5):
        width //= 2
    return width


def shares_a_matrix(classes: Classes, root: Axis) -> bool:
    """Whether some product has the class among the rows of its left operand only: doing many rows reads the right one once."""
    for node in classes.body.nodes:
        if node.op in (ops.matmul, ops.packed_matmul):
            x, w = ({*classes.axes(v, root)} for v in node.inputs)
            if x and not w:
                return True
    return False


LOOPS = frozenset({ops.scan, ops.while_loop})


def carries_in_results(node: Node) -> list[int]:
    """The carries of a loop that live in the memory of its results, because a task's part has no static size."""
    body: Graph = node.attrs["body"]
    if node.op is ops.scan:
        body, _, _ = narrowed(body, node.attrs["carries"])
    return [i for i in range(node.attrs["carries"]) if not isinstance(body.results[i].type.size, int)]


# --- the links of each op ---------------------------------------------------------------------------------------------


def links(node: Node) -> Iterator[Link]:
    if ELEMENTWISE in node.op.traits:
        return ((i, a, 0, a) for i in range(len(node.inputs)) for a in range(node.results[0].type.rank))
    if REDUCTION in node.op.traits:
        return _without(node, [a % node.inputs[0].type.rank for a in node.attrs["axes"]])
    return _RULES[node.op.name](node) if node.op.name in _RULES else iter(())


def _without(node: Node, axes: list[int]) -> Iterator[Link]:
    kept = [a for a in range(node.inputs[0].type.rank) if a not in axes]
    return ((0, a, 0, a if node.attrs["keepdims"] else i) for i, a in enumerate(kept))


def _same_but(node: Node, axes: list[int], operands: int = 1) -> Iterator[Link]:
    """Axes of all operands and results but those that the op works along."""
    kept = [a for a in range(node.inputs[0].type.rank) if a not in axes]
    return ((i, a, j, a) for i in range(operands) for j in range(len(node.results)) for a in kept)


def _along(node: Node) -> Iterator[Link]:
    return _same_but(node, [node.attrs["axis"] % node.inputs[0].type.rank], len(node.inputs))


def _argument(node: Node) -> Iterator[Link]:
    return _without(node, [node.attrs["axis"] % node.inputs[0].type.rank])


def _broadcast(node: Node) -> Iterator[Link]:
    (x,), y = node.inputs, node.results[0]
    new = y.type.rank - x.type.rank
    return ((0, a, 0, a + new) for a in range(x.type.rank) if x.dims[a] == y.dims[a + new])


def _reshape(node: Node) -> Iterator[Link]:
    x, y = node.inputs[0].dims, node.results[0].dims
    for here, there in matching_groups(x, y):
        before = [a for a in range(here.start, here.stop) if x[a] != 1]
        after = [a for a in range(there.start, there.stop) if y[a] != 1]
        if len(before) == len(after) == 1:
            yield 0, before[0], 0, after[0]


def _transpose(node: Node) -> Iterator[Link]:
    return ((0, source, 0, axis) for axis, source in enumerate(node.attrs["perm"]))


def _slice(node: Node) -> Iterator[Link]:
    (x,), attrs = node.inputs, node.attrs
    cuts = zip(attrs["starts"], attrs["stops"], attrs["steps"], strict=True)
    return _same_but(node, [a for a, cut in enumerate(cuts) if cut != (0, x.dims[a], 1)])


def _pad(node: Node) -> Iterator[Link]:
    ends = zip(node.attrs["low"], node.attrs["high"], strict=True)
    return _same_but(node, [a for a, end in enumerate(ends) if end != (0, 0)])


def _flip(node: Node) -> Iterator[Link]:
    return _same_but(node, [a % node.inputs[0].type.rank for a in node.attrs["axes"]])


def _gather(node: Node) -> Iterator[Link]:
    yield from _along(node)
    axis = node.attrs["axis"] % node.inputs[0].type.rank
    yield 1, axis, 0, axis


def _take(node: Node) -> Iterator[Link]:
    x, where = node.inputs
    axis = node.attrs["axis"] % x.type.rank
    for a in range(x.type.rank):
        if a != axis:
            yield 0, a, 0, a if a < axis else a + where.type.rank - 1
    for a in range(where.type.rank):
        yield 1, a, 0, axis + a


def _matmul(node: Node) -> Iterator[Link]:
    rank = node.results[0].type.rank
    for a in range(rank - 2):
        yield from ((0, a, 0, a), (1, a, 0, a))
    yield from ((0, rank - 2, 0, rank - 2), (1, rank - 1, 0, rank - 1))


def _packed_matmul(node: Node) -> Iterator[Link]:
    return ((0, a, 0, a) for a in range(node.results[0].type.rank - 1))


def _linear_scan(node: Node) -> Iterator[Link]:
    """a, b and the states have time at one axis; the first and the last state do not have it."""
    time = node.attrs["axis"]
    for a in range(node.inputs[2].type.rank):
        moving = a + (a >= time)
        yield from ((0, moving, 0, moving), (1, moving, 0, moving), (2, a, 0, moving), (2, a, 1, a))


def _batch(node: Node) -> Iterator[Link]:
    """The leading axis of all operands that have it; known by its symbol, since a weight may have the same extent."""
    batch = node.results[0].dims[0]
    if isinstance(batch, int):
        return
    results = [j for j, y in enumerate(node.results) if y.type.rank and y.dims[0] == batch]
    for i, x in enumerate(node.inputs):
        if x.type.rank and x.dims[0] == batch:
            yield from ((i, 0, j, 0) for j in results)


_RULES: Mapping[str, Callable[[Node], Iterator[Link]]] = {
    "broadcast": _broadcast, "reshape": _reshape, "transpose": _transpose, "slice": _slice, "pad": _pad, "flip": _flip,
    "concat": _along, "gather": _gather, "scatter": _along, "take": _take, "cumsum": _along, "cumprod": _along,
    "sort": _along, "argmax": _argument, "argmin": _argument, "matmul": _matmul, "packed_matmul": _packed_matmul,
    "linear_scan": _linear_scan, "conv": _batch, "pool": _batch, "attention": _batch, "causal_conv1d": _batch,
    "depthwise_conv": _batch, "selective_scan": _batch, "gated_linear_attention": _batch, "gated_delta_rule": _batch,
    "generalized_delta_rule": _batch, "wkv": _batch,
}  # fmt: skip
