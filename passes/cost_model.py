"""What a recurrence costs under each of its algorithms, in cycles of one core.

The model is a sum over kernels. A kernel is a number of equal tasks; a task is a number of steps of vector instructions,
and a step cannot start before the last one's results are there. Tasks go to cores, bytes to memory, and the slower of
the two counts. It is meant to order algorithms, not to predict times: constants are rounded to what one could defend.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Protocol


@dataclass(frozen=True)
class Machine:
    """What the model knows of a target.

    Attributes:
        cores: how many tasks run at once.
        lanes: f32 elements per vector.
        issue: arithmetic vector instructions per cycle; two on every core that coilc has a target for.
        latency: cycles until the result of a multiply-add can be used; four on the same cores.
        core_bytes: bytes per cycle between memory and one core, a stream of 15 GB/s at 3.7 GHz.
        memory_bytes: the same for all cores together.
        products: the rate of the small matrix products of chunks, of vector multiply-adds: above 1 with matrix units.
        launch: cycles to hand a kernel's tasks to the cores, about a microsecond.
        inner_first: whether matrix products read a weight along the inner dimension (``lay_out_weights``).
    """

    cores: int = 1
    lanes: int = 8
    issue: float = 2.0
    latency: float = 4.0
    core_bytes: float = 4.0
    memory_bytes: float = 12.0
    products: float = 0.6
    launch: float = 4000.0
    inner_first: bool = False


@dataclass(frozen=True)
class Work:
    """One kernel: ``tasks`` of ``steps`` steps with ``instructions`` each, moving ``bytes`` in all."""

    tasks: int
    steps: int
    instructions: float
    bytes: float
    efficiency: float = 1.0

    def cycles(self, m: Machine) -> float:
        step = max(self.instructions / (m.issue * self.efficiency), m.latency)
        compute = ceil(self.tasks / m.cores) * self.steps * step
        width = min(m.core_bytes * min(self.tasks, m.cores), m.memory_bytes)
        return max(compute, self.bytes / width) + (m.launch if self.tasks > 1 else 0)


def cycles(works: Iterable[Work], m: Machine) -> float:
    """All kernels, one after another."""
    return sum(work.cycles(m) for work in works)


class Shape(Protocol):
    """The extents of one recurrence."""

    def sequential(self, m: Machine) -> list[Work]:
        """The kernels of the plain loop."""

    def otherwise(self, m: Machine, number: int) -> list[Work]:
        """Those of its other form, with that form's number."""


EXP = 12  # instructions of the polynomial exponential, its clamps included
S6_STEP = 20  # per vector of states in a selective scan: an exponential, two multiply-adds, loads and a store
GATED_STEP = 3  # per vector of states in gated linear attention: k v, the decayed sum, and q S


@dataclass(frozen=True)
class LinearScan:
    """[outer, length, inner]: ``inner`` is in lanes."""

    outer: int
    length: int
    inner: int

    def vectors(self, m: Machine) -> int:
        return min(4, ceil(self.inner / m.lanes))

    def tasks(self, m: Machine) -> int:
        return self.outer * ceil(self.inner / (self.vectors(m) * m.lanes))

    @property
    def elements(self) -> int:
        return self.outer * self.length * self.inner

    def sequential(self, m: Machine) -> list[Work]:
        return [Work(self.tasks(m), self.length, 3 * self.vectors(m), 12 * self.elements)]

    def otherwise(self, m: Machine, chunks: int) -> list[Work]:
        tasks, size, vectors = self.tasks(m), ceil(self.length / chunks), self.vectors(m)
        return [
            Work(tasks * chunks, size, 3 * vectors, 8 * self.elements),  # what each chunk adds
            Work(tasks * chunks, size, 2 * vectors, 4 * self.elements),  # what it multiplies with
            Work(tasks, chunks, 3 * vectors, 12 * self.outer * chunks * self.inner),
            Work(tasks * chunks, size, 3 * vectors, 12 * self.elements),
        ]


@dataclass(frozen=True)
class SelectiveScan:
    """One state of ``states`` numbers for each of ``channels`` in each of ``groups``."""

    batch: int
    length: int
    groups: int
    channels: int
    states: int

    def sequential(self, m: Machine, chunks: int = 1) -> list[Work]:
        vectors = min(4, ceil(self.channels / m.lanes))
        tasks = self.batch * self.groups * ceil(self.channels / (vectors * m.lanes))
        moved = 16 * self.batch * self.length * self.groups * self.channels
        step = (S6_STEP * self.states + 3 * EXP) * vectors
        return [Work(tasks * chunks, ceil(self.length / chunks), step, moved)]

    def otherwise(self, m: Machine, chunks: int) -> list[Work]:
        inner = self.groups * self.channels
        pass_ = self.sequential(m, chunks)
        steps = Work(self.batch * chunks, 1, 2 * EXP * self.length * inner / m.lanes / chunks, 8 * self.length * inner)
        carry = LinearScan(self.batch * self.states, chunks, inner).sequential(m)
        return [steps, *pass_, *carry, *pass_]


NEST_STEP = 180  # instructions per cell of a nest for its loops and what passes through memory; 25 ns, as measured
DIAGONAL = 40  # per number of a diagonal, which moves by a lane in every step, element by element; 10 ns, as measured


@dataclass(frozen=True)
class Nest:
    """A loop over the cells of a grid: ``instructions`` on each of the ``numbers`` of a cell, which touches ``bytes``."""

    rows: int
    columns: int
    numbers: int
    instructions: int
    bytes: int

    def sequential(self, m: Machine) -> list[Work]:
        step = NEST_STEP + self.instructions * ceil(self.numbers / m.lanes)
        return [Work(1, self.rows * self.columns, step, self.rows * self.columns * self.bytes)]

    def otherwise(self, m: Machine, _: int) -> list[Work]:
        """By diagonals. Up to half of the cells of the diagonals are outside the grid, which is copied on the way in and out."""
        count, numbers = self.rows + self.columns - 1, self.rows * self.numbers
        step = NEST_STEP + self.instructions * ceil(numbers / m.lanes) + DIAGONAL * numbers
        moved = 2 * count * self.rows * self.bytes
        return [Work(1, count, 0, moved), Work(1, count, step, moved // 2), Work(1, count, 0, moved)]


@dataclass(frozen=True)
class GatedLinearAttention:
    """A state of ``states`` x ``size`` per head; groups of heads share q and k."""

    batch: int
    length: int
    groups: int
    heads: int
    states: int
    size: int
    per_channel: bool

    def sequential(self, m: Machine) -> list[Work]:
        vectors = min(2, ceil(self.size / m.lanes))
        tasks = self.batch * self.heads * ceil(self.size / (vectors * m.lanes))
        decays = EXP * self.states / m.lanes if self.per_channel else 0
        moved = 4 * self.batch * self.length * (2 * self.heads * self.size + 2 * self.groups * self.states)
        return [Work(tasks, self.length, GATED_STEP * self.states * vectors + decays, moved)]

    def otherwise(self, m: Machine, chunk: int) -> list[Work]:
        chunks = self.batch * ceil(self.length / chunk)
        q, n, p = chunk, self.states, self.size
        heads = chunks * self.heads

        def product(count: int, rows: int, inner: int, columns: int, extra: int = 0) -> Work:
            """``count`` products [rows, inner] @ [inner, columns], and ``extra`` more numbers per product."""
            moved = 4 * count * (rows * inner + inner * columns + rows * columns + extra)
            return Work(count, 1, rows * inner * ceil(columns / m.lanes), moved, m.products)

        pairs = q * q * (n if self.per_channel else 1)
        return [
            *([] if self.per_channel else [product(chunks * self.groups, q, n, q)]),
            Work(heads, 1, 2 * EXP * pairs / m.lanes, 8 * heads * q * q),  # decays between steps, as f64 and f32
            product(heads, n, q, p),
            *LinearScan(self.batch * self.heads * n, ceil(self.length / chunk), p).sequential(m),
            product(heads, q, n, p),
            product(heads, q, q, p, extra=2 * q * p),
        ]
