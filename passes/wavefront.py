"""Two nested scans as one over diagonals: a recurrence along both axes of a grid, all cells of a diagonal side by side.

A cell reads the one before it in its row and the one above it in its column. The cells of a diagonal, ``row + column``
being equal, read earlier diagonals only (Lamport 1974, "The parallel execution of DO loops"). The grid is skewed so that
diagonals become columns, one scan runs over them with a lane per row, and its outputs are skewed back:
``rows + columns - 1`` steps in place of ``rows * columns``, each with work for all rows, also where a diagonal is shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from coilc.ir import Dim, Graph, Node, Value, literal, ops
from coilc.ir import dims as d
from coilc.ir.cost import graph_flops
from coilc.ir.types import f32

from .cost_model import Nest
from .independent_axes import Axis, Classes
from .loop_parts import Loop, from_front, to_front
from .match_loops import rebuild
from .vectorise_time import NotParallel, Parallel, Timed


class NotAGrid(Exception):
    """Why a scan cannot run over diagonals."""


def wavefront_in_numpy(cell: Callable[..., tuple[Any, Any, Any]], x: Any, above: Any, left: Any) -> tuple[Any, Any]:
    """The definition of the algorithm, on arrays.

    Args:
        cell: ``(x, above, left)`` to ``(down, right, y)``, on any number of cells at once.
        x: ``[rows, columns, ...]``.
        above: what the first row reads from above, ``[columns, ...]``.
        left: what each row reads from the left at its start, ``[rows, ...]``.

    Returns:
        What the last row hands down, ``[columns, ...]``, and y, ``[rows, columns, ...]``.
    """
    rows, columns = x.shape[:2]
    lane = np.arange(rows)
    down, last, y = np.zeros((rows, *above.shape[1:]), above.dtype), np.empty_like(above), None
    for diagonal in range(rows + columns - 1):
        column = diagonal - lane
        valid = (column >= 0) & (column < columns)
        inside = np.clip(column, 0, columns - 1)
        down = np.concatenate([above[inside[:1]], down[:-1]])
        down, right, out = cell(x[lane, inside], down, left)
        left = np.where(valid.reshape(-1, *(1,) * (left.ndim - 1)), right, left)
        y = np.empty((rows, columns, *out.shape[1:]), out.dtype) if y is None else y
        y[lane[valid], column[valid]] = out[valid]
        if valid[-1]:
            last[column[-1]] = down[-1]
    return last, y


@dataclass(frozen=True)
class Cell:
    """The body of a scan over rows with one column of everything.

    Attributes:
        inputs: of the body.
        starts: what a row starts from on its left, written with ``inputs``.
        left: inputs in place of that.
        right: what takes the place of ``left`` in the next cell.
        results: of the body, what is handed down first.
    """

    inputs: list[Value]
    starts: list[Value]
    left: list[Value]
    right: list[Value]
    results: list[Value]


@dataclass(frozen=True)
class Grid:
    """A scan over rows around one over columns, as a cell.

    Attributes:
        rows: the outer scan.
        columns: the inner one.
        classes: which axes of the outer body are columns: those of ``root``.
    """

    rows: Loop
    columns: Loop
    classes: Classes
    root: Axis

    @staticmethod
    def of(node: Node) -> Grid:
        """Raises: NotAGrid."""
        rows = Loop(_with_plain_scans(node))
        scans = [n for n in rows.body.nodes if n.op is ops.scan]
        if len(scans) != 1:
            raise NotAGrid("its body is not one loop along a row")
        (inner,) = scans
        columns = Loop(inner)
        if rows.reverse or columns.reverse:
            raise NotAGrid("it runs backwards")
        classes = Classes.of(rows.body, rows.carries, along=inner)
        root = classes.find(((), inner.inputs[columns.carries], columns.axis))
        grid = Grid(rows, columns, classes, root)
        if root in {classes.find(axis) for axis in classes.mixed}:
            raise NotAGrid("a cell reads more than the cell above and the cell before it")
        if any(len([*grid.axes(v)]) > 1 for n in rows.body.nodes for v in n.results):
            raise NotAGrid("a row has the same axis twice")
        if any(True for v in columns.body.inputs for _ in classes.axes(v, root, (inner,))):
            raise NotAGrid("a cell reads a whole row")
        if any(grid.axis(v) is None for v in (*rows.body_carries, *rows.body.results)):
            raise NotAGrid("a row hands on something that is not along the row")
        return grid

    def axes(self, value: Value) -> Iterator[int]:
        return self.classes.axes(value, self.root)

    def axis(self, value: Value) -> int | None:
        """The axis of a value of the outer body that is columns."""
        return next(self.axes(value), None)

    def cell(self) -> Cell:
        """One cell."""
        body, became = self.classes.narrow(self.root, 1)
        inner = became[Value(self.columns.node)].node
        loop = Loop(inner)
        left = [ops.input_(name=f"left of the cell, {i}", type=v.type) for i, v in enumerate(loop.inits)]
        inside: dict[Value, Value] = dict(zip(loop.body_carries, left, strict=True))
        inside |= {v: ops.reshape(x, dims=v.dims) for v, x in loop.sequences.items()}
        inside |= loop.consts
        made = rebuild(loop.body.results, inside)
        stacked = [ops.reshape(v, dims=t.dims) for v, t in zip(made[loop.carries :], inner.results[loop.carries :])]
        results = [*made[: loop.carries], *stacked]
        outside: dict[Value, Value] = dict(zip(inner.results, results, strict=True))
        return Cell(list(body.inputs), list(loop.inits), left, results[: loop.carries], rebuild(body.results, outside))


def _with_plain_scans(node: Node) -> Node:
    """The same, linear scans in its body being scans like any other."""
    body: Graph = node.attrs["body"]
    plain: dict[Value, Value] = {v: v for v in body.inputs}
    for inner in body.nodes:
        if inner.op is ops.linear_scan:
            rebuild([v for v in inner.inputs], plain)
            assert ops.linear_scan.decompose is not None
            parts = ops.linear_scan.decompose(*(plain[v] for v in inner.inputs), **inner.attrs)
            plain.update(zip(inner.results, parts, strict=True))
    results = rebuild(body.results, plain)
    return Node.make(node.op, node.inputs, {**node.attrs, "body": body.with_results(results)})


def why_not(node: Node) -> str:
    """Why a scan cannot run over diagonals; empty if it can."""
    try:
        _rewritten(node)
    except NotAGrid as found:
        return str(found)
    except NotParallel as found:
        return f"cells cannot run side by side: {found.reason}"
    return ""


def grid_extents(node: Node) -> tuple[Dim, Dim]:
    """Rows and columns."""
    grid = Grid.of(node)
    return grid.rows.length, grid.columns.length


def grid_cost(node: Node, sizes: Mapping[str, int]) -> Nest:
    """The nest as the cost model sees it, with these numbers for symbols."""
    grid = Grid.of(node)
    cell = grid.cell()
    roots = [*cell.right, *cell.results]
    work = d.evaluate(graph_flops(Graph("cell", (*cell.inputs, *cell.left), _named(roots))), sizes)
    numbers = max(d.evaluate(v.type.size, sizes) for v in roots)
    rows, columns = (d.evaluate(dim, sizes) for dim in (grid.rows.length, grid.columns.length))
    touched = sum(d.evaluate(v.type.bytes, sizes) for v in (*cell.inputs, *cell.results))
    return Nest(rows, columns, numbers, ceil(work / numbers), touched)


def _named(values: Sequence[Value]) -> tuple[tuple[str, Value], ...]:
    return tuple((f"y{i}", v) for i, v in enumerate(values))


def wavefront(*operands: Value, **attrs: Any) -> tuple[Value, ...]:
    """A scan over diagonals in place of a scan over rows around one over columns.

    Before (``f`` is a cell)::

        def row(above: f32[W, 4], x: f32[W, 4]):
            last, ys = scan(zero, above, x, body=f, carries=1)
            return {"above": ys, "y": ys}
        above, y = scan(first, x, body=row, carries=1)              # x: f32[H, W, 4]

    After::

        def diagonal(down: f32[H, 4], left: f32[H, 4], above0: f32[1, 4], x: f32[H, 4], valid: bool[H, 1]):
            above = concat(above0, down[:-1])
            left1, y = f(left, above, x)                            # of all rows
            return {"down": y, "left": where(valid, left1, left), "y": y}
        _, _, ys = scan(zeros, zeros, skewed(first), skewed(x), skewed(ones) > 0, body=diagonal, carries=2)
        y = unskewed(ys)                                            # H + W - 1 steps

    Raises:
        NotAGrid: it is not such a nest.
        NotParallel: an op of the cell has no form over rows.
    """
    return _rewritten(ops.scan.node(*operands, **attrs))


def _rewritten(node: Node) -> tuple[Value, ...]:
    return _Diagonals(Grid.of(node)).results()


class _Diagonals:
    """Builds the scan over diagonals."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.rows = grid, grid.rows
        self.height, self.width = grid.rows.length, grid.columns.length
        self.cell = grid.cell()
        self.carries = grid.rows.carries

    def results(self) -> tuple[Value, ...]:
        carries = self.carries
        lefts = [self._start(v) for v in self.cell.starts]
        downs = [ops.zeros(v.type.with_dims((self.height, *v.dims))) for v in self.cell.results[:carries]]
        moving = {
            **{f"first{i}": self._first(i) for i in range(carries)},
            **{f"x{i}": self._moving(i) for i in self._sequences()},
            "valid": self._valid(),
        }
        fixed = {f"c{i}": v for i, v in self._fixed()}
        names = [f"down{i}" for i in range(carries)] + [f"left{i}" for i in range(len(lefts))]
        inputs = {name: ops.input_(name=name, type=v.type) for name, v in zip(names, (*downs, *lefts), strict=True)}
        inputs |= {n: ops.input_(name=n, type=v.type.with_dims(v.dims[1:])) for n, v in moving.items()}
        inputs |= {n: ops.input_(name=n, type=v.type) for n, v in fixed.items()}
        body = Graph("diagonal", tuple(inputs.values()), tuple(self._step(inputs)))
        found = ops.scan.node(
            *downs, *lefts, *moving.values(), *fixed.values(),
            body=body, carries=len(names), sequences=len(moving), axis=0, reverse=False,
        ).results[len(names) :]  # fmt: skip
        lasts = [self._last_row(i, v) for i, v in enumerate(found[:carries])]
        return (*lasts, *(self._unskewed(i, v) for i, v in enumerate(found[carries:], carries)))

    # --- the step ---------------------------------------------------------------------------------------------------

    def _step(self, given: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
        """Named outputs: what each row hands down, its left states, and what is stacked."""
        height, carries = self.height, self.carries
        known = {self.cell.inputs[i]: Timed(self._from_above(i, given), True) for i in range(carries)}
        for i in self._sequences():
            known[self.cell.inputs[i]] = Timed(given[f"x{i}"], True)
        for i, _ in self._fixed():
            known[self.cell.inputs[i]] = Timed(given[f"c{i}"], False)
        known |= {v: Timed(given[f"left{i}"], True) for i, v in enumerate(self.cell.left)}
        cells = Parallel.over(height, known)
        down = [cells.full(cells.value(v)) for v in self.cell.results]
        right = [cells.full(cells.value(v)) for v in self.cell.right]
        yield from ((f"down{i}", v) for i, v in enumerate(down[:carries]))
        for i, v in enumerate(right):
            valid = ops.reshape(given["valid"], dims=(height, *(1 for _ in v.dims[1:])))
            yield f"left{i}", ops.where(ops.broadcast(valid, dims=v.dims), v, given[f"left{i}"])
        yield from ((f"last{i}", ops.slice_axis(v, 0, height - 1, height)) for i, v in enumerate(down[:carries]))
        yield from ((f"y{i}", v) for i, v in enumerate(down[carries:]))

    def _from_above(self, i: int, given: Mapping[str, Value]) -> Value:
        """What each row reads of a carry: the first one its first value, others what the row above left a step ago."""
        return ops.concat(given[f"first{i}"], ops.slice_axis(given[f"down{i}"], 0, 0, self.height - 1), axis=0)

    def _start(self, init: Value) -> Value:
        """What each row starts from on its left."""
        known = {
            self.cell.inputs[i]: Timed(self._per_row(i), True) for i in self._sequences() if self._column(i) is None
        }
        known |= {self.cell.inputs[i]: Timed(v, False) for i, v in self._fixed()}
        rows = Parallel.over(self.height, known)
        return rows.full(rows.value(init))

    # --- operands -----------------------------------------------------------------------------------------------------

    def _column(self, i: int) -> int | None:
        """The axis of columns of an input of the outer body."""
        return self.grid.axis(self.rows.body.inputs[i])

    def _sequences(self) -> Iterator[int]:
        """Inputs of the cell that differ from row to row or from column to column."""
        count = self.rows.node.attrs["sequences"]
        for i in range(self.carries, len(self.rows.node.inputs)):
            if i < self.carries + count or self._column(i) is not None:
                yield i

    def _fixed(self) -> Iterator[tuple[int, Value]]:
        moving = {*self._sequences()}
        operands = enumerate(self.rows.node.inputs)
        return ((i, v) for i, v in operands if i >= self.carries and i not in moving)

    def _per_row(self, i: int) -> Value:
        """``[H, ...]``, of an operand of the outer scan."""
        value = self.rows.node.inputs[i]
        if i < self.carries + self.rows.node.attrs["sequences"]:
            return to_front(value, self.rows.axis)
        return ops.broadcast(value, dims=(self.height, *value.dims))

    def _moving(self, i: int) -> Value:
        """``[D, H, ...]`` with one column."""
        rows, column = self._per_row(i), self._column(i)
        if column is None:
            return ops.broadcast(rows, dims=(self._count, *rows.dims))
        front = to_front(rows, column + 1)
        skewed = self._skewed(ops.transpose(front, perm=(1, 0, *range(2, front.type.rank))))
        return self._with_column(skewed, 2 + column)

    @staticmethod
    def _with_column(x: Value, axis: int) -> Value:
        return ops.reshape(x, dims=(*x.dims[:axis], 1, *x.dims[axis:]))

    @property
    def _count(self) -> Dim:
        return self.height + self.width - 1

    def _skewed(self, x: Value) -> Value:
        """``[H, W, ...]`` to ``[D, H, ...]``: rows that are one longer than they are cut into move on by one each time."""
        height, count, rest = self.height, self._count, x.dims[2:]
        zeros = (0,) * len(rest)
        wide = ops.pad(x, low=(0, 0, *zeros), high=(0, height, *zeros), value=0.0)
        flat = ops.slice_axis(ops.reshape(wide, dims=(height * (count + 1), *rest)), 0, 0, height * count)
        return to_front(ops.reshape(flat, dims=(height, count, *rest)), 1)

    def _valid(self) -> Value:
        ones = ops.broadcast(literal(1.0, f32), dims=(self.height, self.width))
        return ops.gt(self._skewed(ones), 0.5)

    def _first(self, i: int) -> Value:
        """``[D, 1, ...]``: what the first row reads of a carry, column by column."""
        value, column = self.rows.inits[i], self.grid.axis(self.rows.body.inputs[i])
        assert column is not None
        front = to_front(value, column)
        zeros = (0,) * (front.type.rank - 1)
        padded = ops.pad(front, low=(0, *zeros), high=(self.height - 1, *zeros), value=0.0)
        return self._with_column(self._with_column(padded, 1), 2 + column)

    # --- results ------------------------------------------------------------------------------------------------------

    def _last_row(self, i: int, stacked: Value) -> Value:
        """``[D, 1, ...]`` to what the last row hands on."""
        column = self.grid.axis(self.rows.body.inputs[i])
        assert column is not None
        row = ops.slice_axis(stacked, 0, self.height - 1, self._count)
        dims = list(row.dims[2:])
        del dims[column]
        return from_front(ops.reshape(row, dims=(self.width, *dims)), column)

    def _unskewed(self, i: int, stacked: Value) -> Value:
        """``[D, H, ...]`` to an output of the scan over rows."""
        column = self.grid.axis(self.rows.body.results[i])
        assert column is not None
        height, width, count = self.height, self.width, self._count
        rest = list(stacked.dims[2:])
        del rest[column]
        zeros = (0,) * len(rest)
        rows = ops.reshape(to_front(stacked, 1), dims=(height * count, *rest))
        padded = ops.pad(rows, low=(0, *zeros), high=(height, *zeros), value=0.0)
        cells = ops.slice_axis(ops.reshape(padded, dims=(height, count + 1, *rest)), 1, 0, width)
        after = range(2, cells.type.rank)
        placed = ops.transpose(cells, perm=(0, *after[:column], 1, *after[column:]))
        return from_front(placed, self.rows.axis)
