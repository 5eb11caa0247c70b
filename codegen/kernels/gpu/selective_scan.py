"""Selective scan (S6) on a device: the state of a channel is spread over lanes of a warp, and time goes by in tiles.

A block takes some channels of one batch element. It brings the operands of a tile of steps into shared memory, with the
bias, softplus and mask of dt applied, while those of the next tile are on their way into registers. Then every lane takes
its few states through the tile; the sums over the states are made by exchanges in which every lane ends with other steps.
Neighbouring threads load and store neighbouring channels. What bounds it is one exponential per state and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import e, log2

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir.dims import Dim

from ...scalar import Expr, bind, const, dtype_name, reinterpret, select
from ...threads import WARP, from_lane, shared, wait_for_block
from ..anchor import Anchor
from ..loops import ceildiv, i64, local, serial, unrolled, when
from .blocks import blocks
from .fast import exp2, silu, softplus
from .registers import Registers

X, DT, A, B, C = range(5)
QUAD = 4  # steps that are one access to shared memory
MOST_STATES = 8  # of one lane
MOST_LANES = 16
SHARED_BYTES = 48 << 10  # that a block may have without asking
TOGETHER = 2  # groups of steps whose code is one, so that exchanges between lanes do not hold up what follows


@dataclass(frozen=True)
class Form:
    """How the work is cut.

    Attributes:
        lanes: that share the state of a channel.
        tile: steps in shared memory; enough for every thread to load one quad, so that no two load the same.
        threads: of a block.
    """

    lanes: int
    tile: int
    threads: int

    @property
    def channels(self) -> int:
        """Of a block."""
        return self.threads // self.lanes

    @property
    def group(self) -> int:
        """Steps whose sums are made together: at least one per lane."""
        return max(self.lanes, QUAD)

    @property
    def row(self) -> int:
        """Numbers between two rows of shared memory, so that a column is in different banks."""
        return self.tile + QUAD

    def bytes(self, states: int) -> int:
        """Shared memory: dt, inflow and y of the channels, B and C of the states."""
        return 4 * self.row * (3 * self.channels + 2 * states)


def forms_of(states: int) -> list[Form]:
    """From few lanes, with about four states each, to as many as there are: more threads, but more exchanges as well."""
    lanes = next((n for n in (1, 2, 4, 8, 16) if states % n == 0 and states // n <= 4), None)
    lanes = lanes or next((n for n in (16, 8) if states % n == 0 and states // n <= MOST_STATES), None)
    few = [Form(lanes, 64 if lanes > 8 else 32, 256 if lanes > 8 else 128)] if lanes else []
    many = [Form(MOST_LANES, 128, 256)] if states % MOST_LANES == 0 and lanes != MOST_LANES else []
    return [form for form in (*few, *many) if form.bytes(states) <= SHARED_BYTES]


def emit_selective_scan(k: Anchor) -> bool:
    """Write the body of the kernel; y[B, L, D] and, if used, the last state h[B, N, D]."""
    length, (groups, states) = k.dims(X)[1], k.dims(B)[2:]
    size = d.divide_exactly(k.dims(X)[2], groups)
    floats = all(k.compute_dtype(operand) == "float32" for operand in (X, DT, A, B, C))
    forms = forms_of(states) if isinstance(states, int) else []
    if not forms or size is None or not floats:
        return False
    if isinstance(length, int):
        _step(k, size) if length == 1 else _sequences(k, forms, size)
        return True
    with T.If(k.extent(length) > i64(1)):
        with T.Then():
            _sequences(k, forms, size)
        with T.Else():
            _step(k, size)
    return True


def _sequences(k: Anchor, forms: list[Form], size: Dim) -> None:
    """The first form, unless it has too few threads: less than a warp for everything that runs warps at once."""
    first, *others = forms
    batch, _, channels = k.dims(X)
    enough = k.extent(batch * channels) * i64(first.lanes) >= i64(WARP * k.target.cores)
    if not others:
        return _tiles(k, first, size)
    with T.If(enough):
        with T.Then():
            _tiles(k, first, size)
        with T.Else():
            _sequences(k, others, size)


def _tiles(k: Anchor, form: Form, size: Dim) -> None:
    """The kernel for sequences."""
    with _blocks(k, size, form.channels, form.threads) as work:
        Tiles(work, form).emit()


@contextmanager
def _blocks(k: Anchor, size: Dim, width: int, threads: int) -> Iterator[Block]:
    """A kernel with a block per batch element and ``width`` channels of a group."""
    extents = [k.extent(k.dims(X)[0]), k.extent(k.dims(B)[2]), ceildiv(k.extent(size), width)]
    with blocks(extents, threads) as ((b, g, part), thread):
        yield Block(k, b, g, T.Bind(part * i64(width)), width, size, thread)


@dataclass(frozen=True)
class Block:
    """What one block works on: ``width`` channels of group ``g``, which has ``size``, from its channel ``start`` on."""

    k: Anchor
    b: Expr
    g: Expr
    start: Expr
    width: int
    size: Dim
    thread: Expr

    def channel(self, i: Expr) -> Expr:
        """The number of the i-th channel of the block, or of the last one of the group if that is before it."""
        extent, inside = self.k.extent(self.size), self.start + i
        return T.Bind(self.g * extent + (inside if self.whole else tirx.min(inside, extent - i64(1))))

    @property
    def whole(self) -> bool:
        """Whether all blocks of a group are full."""
        return isinstance(self.size, int) and self.size % self.width == 0

    def has(self, i: Expr) -> Expr:
        """Whether the group has the i-th channel of the block."""
        return T.bool(True) if self.whole else self.start + i < self.k.extent(self.size)

    def step_size(self, dt: Expr, bias: Expr | None, t: Expr) -> Expr:
        """dt with its bias, softplus and mask."""
        dt = dt if bias is None else bind(dt + bias)
        dt = softplus(dt) if self.k.node.attrs["softplus"] else dt
        return dt * self.k.read("mask", self.b, t, dtype="float32") if self.k.has("mask") else dt

    def vector(self, name: str, channel: Expr) -> Expr | None:
        """A number per channel, if the op has that operand."""
        return _named(self.k.read(name, channel, dtype="float32")) if self.k.has(name) else None


def _named(x: Expr) -> Expr:
    """The value in a register that later code finds, whatever its frame."""
    buffer = local((1,), dtype_name(x))
    T.buffer_store(buffer, x, [0])
    return buffer[0]


class Tiles:
    """The code of a block that works on sequences."""

    def __init__(self, work: Block, form: Form) -> None:
        self.work, self.k, self.form = work, work.k, form
        self.states = self.k.fixed(self.k.dims(B)[3])
        self.own = self.states // self.form.lanes
        self.lane = T.Bind(tirx.truncmod(work.thread, i64(self.form.lanes)))
        self.row = T.Bind(tirx.truncdiv(work.thread, i64(self.form.lanes)))
        self.length = self.k.extent(self.k.dims(X)[1])
        self.wanted = 0 in self.k.outputs_of  # y; otherwise only the state that is left

    def emit(self) -> None:
        """Write the loop over the tiles and what comes before and after it."""
        self._allocate()
        self._start()
        self._if_whole(i64(0), self._load_sequences)
        with serial(ceildiv(self.length, self.form.tile)) as tile:
            first = T.Bind(tile * i64(self.form.tile))
            self._if_whole(first, self._stage)
            wait_for_block()
            if "z" in self.loaded:
                self._if_whole(first, partial(self._load, ("z",)))
            following = T.Bind(first + i64(self.form.tile))
            with when(following < self.length):
                self._if_whole(following, self._load_sequences)
            self._if_whole(first, self._pass)
            wait_for_block()
            if self.wanted:
                self._if_whole(first, self._store)
        with when(self.work.has(self.row)), unrolled(self.own) as s:
            self.k.store(1, [self.work.b, self._state(s), self.channel], self.h[s])

    def _if_whole(self, first: Expr, body: Callable[[Expr, Expr | None], None]) -> None:
        """Run ``body(first, end)`` for the tile from ``first`` on; there is no ``end`` to mind if all its steps exist."""
        with T.If(first + i64(self.form.tile) <= self.length):
            with T.Then():
                body(first, None)
            with T.Else():
                body(first, self.length)

    def _allocate(self) -> None:
        form, k = self.form, self.k
        rows = lambda count: shared((count, form.row), "float32")
        self.dt, self.inflow = rows(form.channels), rows(form.channels)
        self.h, self.rates = local((self.own,), "float32"), local((self.own,), "float32")
        self.columns = form.channels * form.tile // QUAD // form.threads
        self.rows = -(-self.states * form.tile // QUAD // form.threads)
        wanted: tuple[str | int, ...] = ("z",) * (self.wanted and k.has("z")) + (C,) * self.wanted
        operands: tuple[str | int, ...] = (X, DT, B, *wanted)
        self.loaded = {o: Registers(k, o, QUAD * (self.rows if o in (B, C) else self.columns)) for o in operands}
        if self.wanted:
            self.y = rows(form.channels)
        # With many lanes, accesses to shared memory are what bounds: two bf16 are one.
        self.packed = self.wanted and form.lanes == MOST_LANES and all(self.loaded[o].is_bf16 for o in (B, C))
        if self.packed:
            self.both = shared((self.states, form.row), "uint32")
        else:
            self.per_state = {o: rows(self.states) for o in ((B, C) if self.wanted else (B,))}

    def _state(self, s: Expr) -> Expr:
        return s * i64(self.form.lanes) + self.lane

    def _start(self) -> None:
        """What does not change with time: of the channel whose states this thread has, and of the one that it loads."""
        k, work = self.k, self.work
        self.channel = work.channel(self.row)
        self.column = T.Bind(tirx.truncmod(work.thread, i64(self.form.channels)))
        self.loads = work.channel(self.column)
        self.bias, self.skip = work.vector("dt_bias", self.loads), work.vector("D", self.loads)
        with unrolled(self.own) as s:
            h0 = k.read("h0", work.b, self._state(s), self.channel) if k.has("h0") else tirx.const(0.0, "float32")
            T.buffer_store(self.h, h0, [s])
            rate = k.read(A, self._state(s), self.channel) * tirx.const(log2(e), "float32")
            T.buffer_store(self.rates, rate, [s])

    # --- between memory and shared memory -----------------------------------------------------------------------------

    def _load_sequences(self, first: Expr, end: Expr | None) -> None:
        """Start loading the tile of steps from ``first`` on; steps after the last one are that one again."""
        self._load((X, DT), first, end)
        self._load((B, C) if self.wanted else (B,), first, end)

    def _load(self, operands: tuple[str | int, ...], first: Expr, end: Expr | None) -> None:
        work, per_state = self.work, B in operands
        for item in range(self.rows if per_state else self.columns):
            index, quad = self._item(item, self.states if per_state else self.form.channels)
            for v in range(QUAD):
                t = T.Bind(_within(first + quad * i64(QUAD) + i64(v), end))
                place = (work.b, t, work.g, index) if per_state else (work.b, t, self.loads)
                for operand in operands:
                    self.loaded[operand].load(item * QUAD + v, *place)

    def _item(self, item: int, rows: int) -> tuple[Expr, Expr]:
        """Row and quad of the tile that this thread moves: neighbouring threads have neighbouring rows."""
        place = self.work.thread + i64(item * self.form.threads)
        quad = tirx.truncdiv(place, i64(rows))
        if rows * self.form.tile // QUAD % self.form.threads:  # what there is too much of is moved twice
            quad = tirx.min(quad, i64(self.form.tile // QUAD - 1))
        return T.Bind(tirx.truncmod(place, i64(rows))), T.Bind(quad)

    def _stage(self, first: Expr, end: Expr | None) -> None:
        """Into shared memory, with zeros after the last step; y begins as D x."""
        dt, inflow, y = (local((QUAD,), "float32") for _ in range(3))
        for item in range(self.columns):
            column, quad = self._item(item, self.form.channels)
            for v in range(QUAD):
                t = T.Bind(first + quad * i64(QUAD) + i64(v))
                x = _named(self.loaded[X][item * QUAD + v])
                size = self.work.step_size(self.loaded[DT][item * QUAD + v], self.bias, _within(t, end))
                T.buffer_store(dt, _or_zero(size, t, end), [i64(v)])
                T.buffer_store(inflow, dt[i64(v)] * x, [i64(v)])
                if self.skip is not None:
                    T.buffer_store(y, self.skip * x, [i64(v)])
            _put(self.dt, column, quad, dt)
            _put(self.inflow, column, quad, inflow)
            if self.skip is not None and self.wanted:
                _put(self.y, column, quad, y)
        for item in range(self.rows):
            self._stage_states(first, end, item)

    def _stage_states(self, first: Expr, end: Expr | None, item: int) -> None:
        row, quad = self._item(item, self.states)
        steps = [T.Bind(first + quad * i64(QUAD) + i64(v)) for v in range(QUAD)]
        if self.packed:
            words = local((QUAD,), "uint32")
            for v, t in enumerate(steps):
                b, c = (T.Cast("uint32", self.loaded[o].raw(item * QUAD + v)) for o in (B, C))
                both = tirx.bitwise_or(b, tirx.shift_left(c, tirx.const(16, "uint32")))
                T.buffer_store(words, _or_zero(both, t, end), [i64(v)])
            return _put(self.both, row, quad, words)
        values = local((QUAD,), "float32")
        for operand, buffer in self.per_state.items():
            for v, t in enumerate(steps):
                T.buffer_store(values, _or_zero(self.loaded[operand][item * QUAD + v], t, end), [i64(v)])
            _put(buffer, row, quad, values)
        return None

    def _get_states(self, n: Expr, quad: Expr) -> tuple[list[Expr], list[Expr]]:
        """B and C of a state for four steps; without C where y is not wanted."""
        if self.packed:
            words = local((QUAD,), "uint32")
            _get(words, self.both, n, quad)
            low = [tirx.shift_left(words[v], tirx.const(16, "uint32")) for v in range(QUAD)]
            high = [tirx.bitwise_and(words[v], tirx.const(0xFFFF0000, "uint32")) for v in range(QUAD)]
            return [reinterpret("float32", x) for x in low], [reinterpret("float32", x) for x in high]
        found = []
        for buffer in self.per_state.values():
            values = local((QUAD,), "float32")
            _get(values, buffer, n, quad)
            found.append([values[v] for v in range(QUAD)])
        return found[0], found[-1]

    def _store(self, first: Expr, end: Expr | None) -> None:
        """Give y its gate and write it."""
        k, values = self.k, local((QUAD,), "float32")
        for item in range(self.columns):
            column, quad = self._item(item, self.form.channels)
            _get(values, self.y, column, quad * i64(QUAD))
            for v in range(QUAD):
                t, y = T.Bind(first + quad * i64(QUAD) + i64(v)), values[i64(v)]
                y = bind(y * silu(self.loaded["z"][item * QUAD + v])) if "z" in self.loaded else y
                exists = T.bool(True) if end is None else t < end
                with when(tirx.all(exists, self.work.has(self.column))):
                    k.store(0, [self.work.b, t, self.loads], y)

    # --- the recurrence -----------------------------------------------------------------------------------------------

    def _pass(self, first: Expr, end: Expr | None) -> None:
        """Take the states through a tile, or through what is left of the sequence."""
        size = self.form.group
        if end is None:  # the sums of one group are made while the steps of the next one go on
            together = min(TOGETHER, self.form.tile // size)
            with serial(self.form.tile // size // together) as part:
                for i in range(together):
                    self._advance(T.Bind((part * i64(together) + i64(i)) * i64(size)))
        else:
            left = T.Bind(end - first)
            with serial(ceildiv(left, size)) as group:
                self._advance(T.Bind(group * i64(size)), left)

    def _advance(self, first: Expr, end: Expr | None = None) -> None:
        """The steps of one group: h = 2**(dt * rates) * h + dt * x * B, and the sums C . h; no step from ``end`` on."""
        dt, inflow = local((QUAD,), "float32"), local((QUAD,), "float32")
        sums = local((self.form.group,), "float32")
        for part in range(0, self.form.group, QUAD):
            quad = first + i64(part)
            _get(dt, self.dt, self.row, quad)
            _get(inflow, self.inflow, self.row, quad)
            for s in map(i64, range(self.own)):
                b, c = self._get_states(self._state(s), quad)
                for v in map(i64, range(QUAD)):
                    after = exp2(bind(dt[v] * self.rates[s])) * self.h[s] + inflow[v] * b[int(v)]
                    T.buffer_store(self.h, after if end is None else select(quad + v < end, after, self.h[s]), [s])
                    if self.wanted:
                        at = i64(part) + v
                        product = self.h[s] * c[int(v)]
                        T.buffer_store(sums, sums[at] + product if int(s) else product, [at])
        if self.wanted:
            self._sum_over_lanes(first, sums)

    def _sum_over_lanes(self, first: Expr, sums: tirx.Buffer) -> None:
        """Each exchange halves the steps that a lane is left with."""
        half, offset = self.form.group // 2, self.form.lanes // 2
        while offset:
            upper = _named(tirx.bitwise_and(self.lane, i64(offset)) > i64(0))
            for j in map(i64, range(half)):
                kept = select(upper, sums[j + i64(half)], sums[j])
                given = select(upper, sums[j], sums[j + i64(half)])
                got = _named(from_lane(given, offset))
                T.buffer_store(sums, kept + got, [j])
            half, offset = half // 2, offset // 2
        steps = self.form.group // self.form.lanes
        for j in range(steps):
            t = first + self.lane * i64(steps) + i64(j)
            y = sums[i64(j)]
            T.buffer_store(self.y, y if self.skip is None else self.y[self.row, t] + y, [self.row, t])


def _within(t: Expr, end: Expr | None) -> Expr:
    """A step that exists."""
    return t if end is None else tirx.min(t, end - i64(1))


def _or_zero(x: Expr, t: Expr, end: Expr | None) -> Expr:
    return x if end is None else select(t < end, x, const(0.0, x))


def _get(values: tirx.Buffer, buffer: tirx.Buffer, row: Expr, at: Expr) -> None:
    """A quad of shared memory, in one access."""
    with T.vectorized(i64(0), i64(QUAD)) as v:
        T.buffer_store(values, buffer[row, at + v], [v])


def _put(buffer: tirx.Buffer, row: Expr, quad: Expr, values: tirx.Buffer) -> None:
    with T.vectorized(i64(0), i64(QUAD)) as v:
        T.buffer_store(buffer, values[v], [row, quad * i64(QUAD) + v])


# --- one step ---------------------------------------------------------------------------------------------------------


def _warps(k: Anchor) -> int:
    """Over which the states are spread in a single step."""
    states = k.fixed(k.dims(B)[3])
    return next(n for n in (8, 4, 2, 1) if states % n == 0)


def _step(k: Anchor, size: Dim) -> None:
    """The kernel for single steps."""
    with _blocks(k, size, WARP, WARP * _warps(k)) as work:
        _one_step(work)


def _one_step(work: Block) -> None:
    """A warp has neighbouring channels, and a part of their states, so that all accesses are of neighbours.

    All that is read is asked for before anything is waited for or stored.
    """
    k, b, g, t, warps = work.k, work.b, work.g, i64(0), _warps(work.k)
    lane, warp = T.Bind(tirx.truncmod(work.thread, i64(WARP))), T.Bind(tirx.truncdiv(work.thread, i64(WARP)))
    channel, own = work.channel(lane), k.fixed(k.dims(B)[3]) // warps
    states = [warp * i64(own) + i64(s) for s in range(own)]
    rates = [_named(k.read(A, n, channel)) for n in states]
    before = [_named(k.read("h0", b, n, channel)) for n in states] if k.has("h0") else None
    enters, leaves = ([_named(k.read(i, b, t, g, n, dtype="float32")) for n in states] for i in (B, C))
    x, skip = _named(k.read(X, b, t, channel, dtype="float32")), work.vector("D", channel)
    z = _named(k.read("z", b, t, channel, dtype="float32")) if k.has("z") else None
    dt = _named(work.step_size(k.read(DT, b, t, channel, dtype="float32"), work.vector("dt_bias", channel), t))
    total = local((1,), "float32")
    T.buffer_store(total, tirx.const(0.0, "float32"), [0])
    for s, n in enumerate(states):
        h = _named(dt * x * enters[s])
        if before is not None:
            h = _named(exp2(bind(dt * (rates[s] * tirx.const(log2(e), "float32")))) * before[s] + h)
        with when(work.has(lane)):
            k.store(1, [b, n, channel], h)
        T.buffer_store(total, total[0] + h * leaves[s], [0])
    if 0 in k.outputs_of:
        parts = shared((warps, WARP), "float32")
        T.buffer_store(parts, total[0], [warp, lane])
        wait_for_block()
        with when(tirx.all(tirx.EQ(warp, i64(0)), work.has(lane))):
            y = _named(sum((parts[i64(w), lane] for w in range(1, warps)), parts[i64(0), lane]))
            y = y if skip is None else _named(y + skip * x)
            k.store(0, [b, t, channel], y if z is None else y * silu(z))
