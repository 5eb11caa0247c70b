"""Recurrences with a matrix of state per head (gated linear attention, delta rules) on a device.

A block takes neighbouring columns of one head. A warp has all of these columns and some rows of the state, in registers, so
that the operands over the rows are the same for its threads, and accesses to the state are of neighbours. Operands come by
tiles of steps through shared memory, the next tile's on their way in registers. Sums over the rows are made in shared
memory: those that are outputs once per tile, what a delta rule removes in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir import ops
from coilc.ir.dims import Dim

from ...math import exp
from ...scalar import Expr, bind, dtype_name
from ...threads import WARP, shared, wait_for_block
from ..anchor import Anchor
from ..delta_rule import BETA, ERASE, WRITE
from ..gated_linear_attention import LOG_DECAY, K, Q, V
from ..loops import ceildiv, i64, local, serial, unrolled, when
from .blocks import blocks
from .registers import Registers

ROWS = 16  # of the state that a thread has
ROWS_OF_STEP = 4  # the same where there is one step, which takes as long as the loads of its state
MOST_ROWS = 32
MOST_WARPS = 16
SHARED_NUMBERS = 10240  # of all operands and sums: what a block may have without asking
TILES = (16, 8, 4, 2)  # steps


def emit_state_matrix(k: Anchor) -> bool:
    """Write the body of the kernel: o[B, L, H, P] and, if used, the last state h[B, H, N, P]."""
    length, heads = k.dims(V)[1:3]
    groups, states = k.dims(Q)[2:]
    per_group = d.divide_exactly(heads, groups)
    floats = all(k.compute_dtype(i) == "float32" for i in range(len(k.node.inputs)))
    if not isinstance(states, int) or per_group is None or not floats:
        return False
    forms = [(rows, warps_of(states, rows)) for rows in (ROWS_OF_STEP, ROWS)]
    if any(warps is None or tile_of(k, states, warps) is None for _, warps in forms):
        return False
    (_, step), (_, sequence) = forms
    if isinstance(length, int):
        _emit(k, per_group, states, step if length == 1 else sequence)
        return True
    with T.If(k.extent(length) > i64(1)):
        with T.Then():
            _emit(k, per_group, states, sequence)
        with T.Else():
            _emit(k, per_group, states, step)
    return True


def warps_of(states: int, rows: int) -> int | None:
    """Over how many warps the rows of a state are spread, to have about ``rows`` each."""
    fitting = [n for n in (1, 2, 4, 8, MOST_WARPS) if states % n == 0 and states // n <= MOST_ROWS]
    return next((n for n in fitting if states // n <= rows), fitting[-1] if fitting else None)


def tile_of(k: Anchor, states: int, warps: int | None) -> int | None:
    """How many steps of the operands fit into shared memory, with the sums of every warp."""
    vectors = sum(len(k.dims(i)) == 4 and i != V for i in range(len(k.node.inputs) - len(k.node.attrs["optional"])))
    step = vectors * states + WARP + 2 + (warps or 0) * WARP
    return next((n for n in TILES if n * step + 2 * (warps or 0) * WARP <= SHARED_NUMBERS), None)


def _emit(k: Anchor, per_group: Dim, states: int, warps: int | None) -> None:
    assert warps is not None
    batch, _, heads, size = k.dims(V)
    extents = [k.extent(batch), k.extent(heads), ceildiv(k.extent(size), WARP)]
    with blocks(extents, warps * WARP) as ((b, head, part), thread):
        group = T.Bind(tirx.truncdiv(head, k.extent(per_group)))
        work = Columns(k, b, head, group, T.Bind(part * i64(WARP)), thread, warps, states)
        Steps(work).emit()


@dataclass(frozen=True)
class Columns:
    """What a block works on: the columns from ``start`` on of one head's state.

    Attributes:
        states: rows of the state.
    """

    k: Anchor
    b: Expr
    head: Expr
    group: Expr
    start: Expr
    thread: Expr
    warps: int
    states: int

    def column(self, i: Expr) -> Expr:
        """The number of the block's i-th column, or of the last one of the head."""
        return T.Bind(tirx.min(self.start + i, self.k.extent(self.k.dims(V)[3]) - i64(1)))

    def has(self, i: Expr) -> Expr:
        """Whether the head has the block's i-th column."""
        return self.start + i < self.k.extent(self.k.dims(V)[3])


class Staged:
    """An operand in shared memory, a tile of steps at a time.

    Args:
        width: its numbers per step.
        place: their indices, from the step and the number.
    """

    def __init__(
        self,
        work: Columns,
        operand: int,
        tile: int,
        width: int,
        place: Callable[[Expr, Expr], Sequence[Expr]],
    ) -> None:
        self.work, self.operand, self.width, self.place = work, operand, width, place
        self.count, threads = tile * width, work.warps * WARP
        self.length = work.k.extent(work.k.dims(V)[1])
        self.buffer = shared((tile, width), "float32")
        self.items = [i * threads for i in range(-(-self.count // threads))]
        self.registers = Registers(work.k, operand, len(self.items))

    def _index(self, item: int) -> list[Expr]:
        i = tirx.min(self.work.thread + i64(item), i64(self.count - 1))  # what there is too much of is moved twice
        return [T.Bind(tirx.truncdiv(i, i64(self.width))), T.Bind(tirx.truncmod(i, i64(self.width)))]

    def load(self, first: Expr) -> None:
        """Start loading the steps from ``first`` on; those after the last one are that one again."""
        for register, item in enumerate(self.items):
            step, i = self._index(item)
            t = T.Bind(tirx.min(first + step, self.length - i64(1)))
            self.registers.load(register, *self.place(t, i))

    def stage(self) -> None:
        """Into shared memory, decays as numbers to multiply with."""
        for register, item in enumerate(self.items):
            x = self.registers[register]
            T.buffer_store(self.buffer, exp(x) if self.operand == LOG_DECAY else x, self._index(item))


class Steps:
    """The code of a block."""

    def __init__(self, work: Columns) -> None:
        self.work, self.k = work, work.k
        self.rows = work.states // work.warps
        self.lane = T.Bind(tirx.truncmod(work.thread, i64(WARP)))
        self.warp = T.Bind(tirx.truncdiv(work.thread, i64(WARP)))
        self.column = work.column(self.lane)
        self.length = self.k.extent(self.k.dims(V)[1])
        self.per_channel = len(self.k.dims(LOG_DECAY)) == 4
        self.general = self.k.node.op is ops.generalized_delta_rule
        self.delta = self.k.node.op is not ops.gated_linear_attention
        tile = tile_of(self.k, work.states, work.warps)
        assert tile is not None
        self.tile = min(tile, self.length.value) if isinstance(self.length, tirx.IntImm) else tile
        self.tile = max(self.tile, 1)

    def emit(self) -> None:
        """Write the loop over the tiles and what comes before and after it."""
        self._allocate()
        self._each_row(lambda s, n: T.buffer_store(self.h, self._initial(n), [s]))
        with when(self.length > i64(0)):
            self._load(i64(0))
        with serial(ceildiv(self.length, self.tile)) as tile:
            first = T.Bind(tile * i64(self.tile))
            wait_for_block()  # until the last tile's sums are read
            for operand in self.staged.values():
                operand.stage()
            wait_for_block()
            with when(first + i64(self.tile) < self.length):
                self._load(first + i64(self.tile))
            with serial(tirx.min(i64(self.tile), self.length - first)) as t:
                self._advance(t)
            wait_for_block()
            self._store_outputs(first)
        with when(self.work.has(self.lane)):
            self._each_row(lambda s, n: self.k.store(1, [self.work.b, self.work.head, n, self.column], self.h[s]))

    def _allocate(self) -> None:
        work, states = self.work, self.work.states
        by_group = lambda t, n: (work.b, t, work.group, n)
        by_head = lambda t, n: (work.b, t, work.head, n)
        alone = lambda t, _: (work.b, t, work.head)

        def staged(operand: int, width: int, place: Callable[[Expr, Expr], Sequence[Expr]]) -> Staged:
            return Staged(work, operand, self.tile, width, place)

        self.staged = {
            Q: staged(Q, states, by_group),
            K: staged(K, states, by_group),
            V: staged(V, WARP, lambda t, i: (work.b, t, work.head, work.column(i))),
            LOG_DECAY: staged(LOG_DECAY, *((states, by_head) if self.per_channel else (1, alone))),
        }
        if self.general:
            self.staged |= {i: staged(i, states, by_head) for i in (ERASE, WRITE)}
        elif self.delta:
            self.staged[BETA] = staged(BETA, 1, alone)
        self.h = local((self.rows,), "float32")
        self.outputs = shared((self.tile, work.warps, WARP), "float32")
        if self.delta:
            self.held = shared((2, work.warps, WARP), "float32")
        if self.k.has("bonus"):
            self.bonus = local((self.rows,), "float32")
            self._each_row(
                lambda s, n: T.buffer_store(self.bonus, self.k.read("bonus", work.head, n, dtype="float32"), [s])
            )

    def _each_row(self, body: Callable[[Expr, Expr], None]) -> None:
        """Run ``body(s, n)`` for the rows of this thread: their numbers here, and in the state."""
        with unrolled(self.rows) as s:
            body(s, self.warp * i64(self.rows) + s)

    def _initial(self, n: Expr) -> Expr:
        place = (self.work.b, self.work.head, n, self.column)
        return self.k.read("h0", *place) if self.k.has("h0") else tirx.const(0.0, "float32")

    def _load(self, first: Expr) -> None:
        for operand in self.staged.values():
            operand.load(first)

    def _store_outputs(self, first: Expr) -> None:
        """The sums over all rows of a tile, by all threads of the block."""
        scale = tirx.const(self.k.node.attrs["scale"], "float32")
        with serial(-(-self.tile // self.work.warps)) as part:
            step = T.Bind(part * i64(self.work.warps) + self.warp)
            t = T.Bind(first + step)
            with when(tirx.all(step < i64(self.tile), t < self.length, self.work.has(self.lane))):
                total = _sum(self.outputs[step, i64(w), self.lane] for w in range(self.work.warps))
                self.k.store(0, [self.work.b, t, self.work.head, self.column], bind(total * scale))

    # --- a step -------------------------------------------------------------------------------------------------------

    def _at(self, operand: int, t: Expr, n: Expr) -> Expr:
        return self.staged[operand].buffer[t, n]

    def _decay(self, t: Expr, n: Expr) -> Expr:
        return self._at(LOG_DECAY, t, n if self.per_channel else i64(0))

    def _advance(self, t: Expr) -> None:
        """h = decay h - write held + key inflow; the rows' part of the output is query . h."""
        inflow, out = _named(self._at(V, t, self.lane)), Sum()
        held = self._held(t) if self.delta else None
        if held is not None and not self.general:
            inflow = _named(self._at(BETA, t, i64(0)) * (inflow - held))

        def row(s: Expr, n: Expr) -> None:
            added = bind(self._at(K, t, n) * inflow)
            if self.k.has("bonus"):  # outputs see the state before, and the step's own inflow times the bonus
                seen = self.h[s] + self.bonus[s] * added
                out.add(self._at(Q, t, n) * seen)
            kept = self._decay(t, n) * self.h[s]
            if self.general:
                kept = kept - self._at(WRITE, t, n) * held
            T.buffer_store(self.h, kept + added, [s])
            if not self.k.has("bonus"):
                out.add(self._at(Q, t, n) * self.h[s])

        self._each_row(row)
        T.buffer_store(self.outputs, out.value, [t, self.warp, self.lane])

    def _held(self, t: Expr) -> Expr:
        """What the state holds under the erased vector, which is the key in the decayed state for the plain delta rule.

        Two buffers take turns, so that one wait per step is enough.
        """
        part, turn = Sum(), T.Bind(tirx.truncmod(t, i64(2)))

        def row(s: Expr, n: Expr) -> None:
            erased = self._at(ERASE, t, n) if self.general else self._decay(t, n) * self._at(K, t, n)
            part.add(erased * self.h[s])

        self._each_row(row)
        T.buffer_store(self.held, part.value, [turn, self.warp, self.lane])
        wait_for_block()
        return _named(_sum(self.held[turn, i64(w), self.lane] for w in range(self.work.warps)))


def _sum(parts: Iterable[Expr]) -> Expr:
    return reduce(lambda total, part: total + part, parts)


class Sum:
    """A running sum in a register."""

    def __init__(self) -> None:
        self.buffer = local((1,), "float32")
        T.buffer_store(self.buffer, tirx.const(0.0, "float32"), [0])

    @property
    def value(self) -> Expr:
        return self.buffer[0]

    def add(self, x: Expr) -> None:
        T.buffer_store(self.buffer, self.value + x, [0])


def _named(x: Expr) -> Expr:
    """The value in a register, whatever its frame."""
    buffer = local((1,), dtype_name(x))
    T.buffer_store(buffer, x, [0])
    return buffer[0]
