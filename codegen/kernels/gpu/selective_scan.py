"""Selective scan (S6) on a device: the state of a channel is spread over lanes of a warp, and time goes by in tiles.

A block takes some channels of one batch element. Its last warps do nothing but the recurrence: every lane takes its few
states through a tile of steps in shared memory; the sums over the states are made by exchanges in which every lane ends
with other steps. Meanwhile the movers store y of the tile before, with its gate, and bring the operands of the next one
into the same half of shared memory, with the bias, softplus and mask of dt applied; those of the one after it are then on
their way into registers. Neighbouring threads load and store neighbouring channels. What bounds it is one exponential per
state and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import e, log2

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir.dims import Dim

from ...ahead import inputs
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
HALVES = 2  # of shared memory
TOGETHER = 2  # groups of steps whose code is one, so that exchanges between lanes do not hold up what follows


@dataclass(frozen=True)
class Form:
    """How the work is cut.

    Attributes:
        lanes: that share the state of a channel.
        channels: of a block; whole warps of lanes.
        tile: steps in a half of shared memory.
        movers: threads that bring operands and store y; every one has quads of its own.
    """

    lanes: int
    channels: int
    tile: int
    movers: int

    @property
    def threads(self) -> int:
        """Of a block: the movers, then those that compute."""
        return self.movers + self.channels * self.lanes

    @property
    def group(self) -> int:
        """Steps whose sums are made together: at least one per lane."""
        return max(self.lanes, QUAD)


def forms_of(states: int) -> list[Form]:
    """One with few states per lane, about four, and one with half of them: more exchanges, for where channels are few."""
    lanes = next((n for n in (1, 2, 4, 8, 16) if states % n == 0 and states // n <= 4), None)
    lanes = lanes or next((n for n in (16, 8) if states % n == 0 and states // n <= MOST_STATES), None)
    if lanes is None:
        return []
    tile = 64 if states // lanes <= 4 else 32
    if lanes == MOST_LANES:
        return [Form(lanes, 16, tile, 128)]
    cut = (128, 256) if states == 16 else (64, 128)  # other numbers of states leave too few registers
    few = [Form(2 * lanes, 16, *cut)] if states % (2 * lanes) == 0 else []
    return [Form(lanes, 32, tile, 128), *few]


@dataclass(frozen=True)
class Rows:
    """Rows of shared memory, in both halves, of what belongs to channels or states; a quad of steps is one access."""

    memory: tirx.Buffer
    start: int

    def get(self, half: Expr, row: Expr, at: Expr) -> tirx.Buffer:
        values = local((QUAD,), "float32")
        with T.vectorized(i64(0), i64(QUAD)) as v:
            T.buffer_store(values, self.memory[half, row + i64(self.start), at + v], [v])
        return values

    def put(self, half: Expr, row: Expr, at: Expr, values: tirx.Buffer) -> None:
        with T.vectorized(i64(0), i64(QUAD)) as v:
            T.buffer_store(self.memory, values[v], [half, row + i64(self.start), at + v])

    def at(self, half: Expr, row: Expr, at: Expr) -> Expr:
        return self.memory[half, row + i64(self.start), at]

    def set(self, half: Expr, row: Expr, at: Expr, x: Expr) -> None:
        T.buffer_store(self.memory, x, [half, row + i64(self.start), at])


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
    """The last form where each multiprocessor has one block at most, else the first."""
    assert k.target.device is not None
    (batch, _, channels), most, few = k.dims(X), forms[0], forms[-1]
    if most is few:
        return _tiles(k, most, size)
    with T.If(k.extent(batch * channels) <= i64(few.channels * k.target.device.multiprocessors)):
        with T.Then():
            _tiles(k, few, size)
        with T.Else():
            _tiles(k, most, size)


def _tiles(k: Anchor, form: Form, size: Dim) -> None:
    """The kernel for sequences; it runs long, so that hints only take registers."""
    with inputs(()), _blocks(k, size, form.channels, form.threads) as work:
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
        self.own = self.states // form.lanes
        self.length = self.k.extent(self.k.dims(X)[1])
        self.tiles = T.Bind(ceildiv(self.length, form.tile))
        self.row, self.lane = _split(work.thread - i64(form.movers), form.lanes)
        self.channel = work.channel(self.row)
        self.column = T.Bind(tirx.truncmod(work.thread, i64(form.channels)))
        self.moved = work.channel(self.column)
        self.bias, self.skip = work.vector("dt_bias", self.moved), work.vector("D", self.moved)
        self.wanted = 0 in self.k.outputs_of  # y; otherwise only the state that is left

    def emit(self) -> None:
        """Write both loops over the tiles, that of the movers a tile ahead, and what comes before and after them."""
        self._allocate()
        with T.If(self.work.thread >= i64(self.form.movers)):
            with T.Then():
                self._start()
                with self._each_tile() as tile:
                    self._if_whole(tile - i64(1), self._pass)
                with when(self.work.has(self.row)), unrolled(self.own) as s:
                    self.k.store(1, [self.work.b, self._state(s), self.channel], self.h[s])
            with T.Else():
                with self._each_tile() as tile:
                    self._move(tile)

    @contextmanager
    def _each_tile(self) -> Iterator[Expr]:
        """A loop over the tiles, and one before and two after them, in which all threads of the block go on together."""
        with serial(self.tiles + i64(1 + HALVES)) as turn:
            yield T.Bind(turn - i64(1))
            wait_for_block()

    def _if_whole(self, tile: Expr, body: Callable[[Expr, Expr | None], None]) -> None:
        """Run ``body(first, end)`` for a tile that exists; there is no ``end`` to mind if all its steps exist."""
        first = T.Bind(tile * i64(self.form.tile))
        with when(tirx.all(tile >= i64(0), tile < self.tiles)), T.If(first + i64(self.form.tile) <= self.length):
            with T.Then():
                body(first, None)
            with T.Else():
                body(first, self.length)

    def _allocate(self) -> None:
        form, k = self.form, self.k
        self.h, self.rates = local((self.own,), "float32"), local((self.own,), "float32")
        self.columns = form.channels * form.tile // QUAD // form.movers
        self.rows = -(-self.states * form.tile // QUAD // form.movers)
        wanted: tuple[str | int, ...] = ("z",) * (self.wanted and k.has("z")) + (C,) * self.wanted
        operands: tuple[str | int, ...] = (X, DT, B, *wanted)
        self.loaded = {o: Registers(k, o, QUAD * (self.rows if o in (B, C) else self.columns)) for o in operands}
        # Accesses to shared memory are next to bound it: two bf16 are one.
        self.packed = self.wanted and all(self.loaded[o].is_bf16 for o in (B, C))
        counts: dict[int | str, int] = dict.fromkeys(["dt", "inflow", "y"][: 2 + self.wanted], form.channels)
        self.per_state = (B, C) if self.wanted and not self.packed else (B,)
        counts |= dict.fromkeys(self.per_state, self.states)
        shape = (HALVES, sum(counts.values()), form.tile + QUAD)  # a column is in different banks
        memory = T.alloc_buffer(shape, "float32", scope="shared.dyn", align=16)
        starts = accumulate(counts.values(), initial=0)
        self.shared = {name: Rows(memory, start) for name, start in zip(counts, starts, strict=False)}

    def _state(self, s: Expr) -> Expr:
        return s * i64(self.form.lanes) + self.lane

    def _half(self, first: Expr) -> Expr:
        """Where the tile of steps from ``first`` on is."""
        return T.Bind(tirx.truncmod(tirx.truncdiv(first, i64(self.form.tile)), i64(HALVES)))

    # --- between memory and shared memory -----------------------------------------------------------------------------

    def _move(self, tile: Expr) -> None:
        """What the movers do while the tile before ``tile`` is computed."""
        if self.wanted:
            self._if_whole(tile - i64(HALVES), self._store)
        if "z" in self.loaded:
            self._if_whole(tile - i64(1), partial(self._load, ("z",)))
        self._if_whole(tile, self._stage)
        self._if_whole(tile + i64(1), self._load_sequences)

    def _load_sequences(self, first: Expr, end: Expr | None) -> None:
        """Start loading the tile of steps from ``first`` on; steps after the last one are that one again."""
        self._load((X, DT), first, end)
        self._load((B, C) if self.wanted else (B,), first, end)

    def _load(self, operands: tuple[str | int, ...], first: Expr, end: Expr | None) -> None:
        work, per_state = self.work, B in operands
        for item in range(self.rows if per_state else self.columns):
            index, quad = self._item(item, self.states if per_state else self.form.channels)
            for v in range(QUAD):
                t = T.Bind(_within(first + quad + i64(v), end))
                place = (work.b, t, work.g, index) if per_state else (work.b, t, self.moved)
                for operand in operands:
                    self.loaded[operand].load(item * QUAD + v, *place)

    def _item(self, item: int, rows: int) -> tuple[Expr, Expr]:
        """Row of the tile that this thread moves, and where its quad begins: neighbouring threads have neighbouring rows."""
        quad, row = _split(self.work.thread + i64(item * self.form.movers), rows)
        if rows * self.form.tile // QUAD % self.form.movers:  # what there is too much of is moved twice
            quad = T.Bind(tirx.min(quad, i64(self.form.tile // QUAD - 1)))
        return row, T.Bind(quad * i64(QUAD))

    def _stage(self, first: Expr, end: Expr | None) -> None:
        """Into shared memory, with zeros after the last step; y begins as D x."""
        half = self._half(first)
        dt, inflow, y = (local((QUAD,), "float32") for _ in range(3))
        for item in range(self.columns):
            column, quad = self._item(item, self.form.channels)
            for v in range(QUAD):
                t = T.Bind(first + quad + i64(v))
                x = _named(self.loaded[X][item * QUAD + v])
                size = self.work.step_size(self.loaded[DT][item * QUAD + v], self.bias, _within(t, end))
                T.buffer_store(dt, _or_zero(size, t, end), [i64(v)])
                T.buffer_store(inflow, dt[i64(v)] * x, [i64(v)])
                if self.skip is not None:
                    T.buffer_store(y, self.skip * x, [i64(v)])
            self.shared["dt"].put(half, column, quad, dt)
            self.shared["inflow"].put(half, column, quad, inflow)
            if self.skip is not None and self.wanted:
                self.shared["y"].put(half, column, quad, y)
        for item in range(self.rows):
            self._stage_states(first, end, item)

    def _stage_states(self, first: Expr, end: Expr | None, item: int) -> None:
        half, (row, quad) = self._half(first), self._item(item, self.states)
        values = local((QUAD,), "float32")
        for operand in self.per_state:
            for v in range(QUAD):
                place = item * QUAD + v
                value = self._packed(place) if self.packed else self.loaded[operand][place]
                T.buffer_store(values, _or_zero(value, first + quad + i64(v), end), [i64(v)])
            self.shared[operand].put(half, row, quad, values)

    def _packed(self, place: int) -> Expr:
        """B and C, both in bf16, as one number."""
        b, c = (T.Cast("uint32", self.loaded[o].raw(place)) for o in (B, C))
        return reinterpret("float32", bind(tirx.bitwise_or(b, tirx.shift_left(c, tirx.const(16, "uint32")))))

    def _get_states(self, half: Expr, n: Expr, quad: Expr) -> tuple[list[Expr], list[Expr]]:
        """B and C of a state for four steps; without C where y is not wanted."""
        found = [self.shared[operand].get(half, n, quad) for operand in self.per_state]
        if not self.packed:
            return [found[0][v] for v in range(QUAD)], [found[-1][v] for v in range(QUAD)]
        words = [bind(reinterpret("uint32", found[0][v])) for v in range(QUAD)]
        low = [tirx.shift_left(word, tirx.const(16, "uint32")) for word in words]
        high = [tirx.bitwise_and(word, tirx.const(0xFFFF0000, "uint32")) for word in words]
        return [reinterpret("float32", x) for x in low], [reinterpret("float32", x) for x in high]

    def _store(self, first: Expr, end: Expr | None) -> None:
        """Give y its gate and write it."""
        k, half = self.k, self._half(first)
        for item in range(self.columns):
            column, quad = self._item(item, self.form.channels)
            values = self.shared["y"].get(half, column, quad)
            for v in range(QUAD):
                t, y = T.Bind(first + quad + i64(v)), values[i64(v)]
                y = bind(y * silu(self.loaded["z"][item * QUAD + v])) if "z" in self.loaded else y
                exists = T.bool(True) if end is None else t < end
                with when(tirx.all(exists, self.work.has(self.column))):
                    k.store(0, [self.work.b, t, self.moved], y)

    # --- the recurrence -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """What does not change with time, and the state before it."""
        k, work = self.k, self.work
        with unrolled(self.own) as s:
            h0 = k.read("h0", work.b, self._state(s), self.channel) if k.has("h0") else tirx.const(0.0, "float32")
            T.buffer_store(self.h, h0, [s])
            rate = k.read(A, self._state(s), self.channel) * tirx.const(log2(e), "float32")
            T.buffer_store(self.rates, rate, [s])

    def _pass(self, first: Expr, end: Expr | None) -> None:
        """Take the states through a tile, or through what is left of the sequence."""
        size, half = self.form.group, self._half(first)
        if end is None:
            together = min(TOGETHER, self.form.tile // size)
            with serial(self.form.tile // size // together) as part:
                starts = [T.Bind((part * i64(together) + i64(i)) * i64(size)) for i in range(together)]
                sums = [self._advance(half, start) for start in starts]
                for start, each in zip(starts, sums, strict=True):
                    self._sum_over_lanes(half, start, each)
        else:
            left = T.Bind(end - first)
            with serial(ceildiv(left, size)) as group:
                start = T.Bind(group * i64(size))
                self._sum_over_lanes(half, start, self._advance(half, start, left))

    def _advance(self, half: Expr, first: Expr, end: Expr | None = None) -> tirx.Buffer:
        """The steps of one group: h = 2**(dt * rates) * h + dt * x * B, and the lane's part of C . h; no step from ``end`` on."""
        sums = local((self.form.group,), "float32")
        for part in range(0, self.form.group, QUAD):
            quad = T.Bind(first + i64(part))
            dt, inflow = self.shared["dt"].get(half, self.row, quad), self.shared["inflow"].get(half, self.row, quad)
            for s in map(i64, range(self.own)):
                b, c = self._get_states(half, self._state(s), quad)
                for v in map(i64, range(QUAD)):
                    after = exp2(bind(dt[v] * self.rates[s])) * self.h[s] + inflow[v] * b[int(v)]
                    T.buffer_store(self.h, after if end is None else select(quad + v < end, after, self.h[s]), [s])
                    if self.wanted:
                        at = i64(part) + v
                        product = self.h[s] * c[int(v)]
                        T.buffer_store(sums, sums[at] + product if int(s) else product, [at])
        return sums

    def _sum_over_lanes(self, half: Expr, first: Expr, sums: tirx.Buffer) -> None:
        """Add y, if wanted: each exchange halves the steps that a lane is left with."""
        if not self.wanted:
            return
        left, offset = self.form.group // 2, self.form.lanes // 2
        while offset:
            upper = _named(tirx.bitwise_and(self.lane, i64(offset)) > i64(0))
            for j in map(i64, range(left)):
                kept = select(upper, sums[j + i64(left)], sums[j])
                given = select(upper, sums[j], sums[j + i64(left)])
                got = _named(from_lane(given, offset))
                T.buffer_store(sums, kept + got, [j])
            left, offset = left // 2, offset // 2
        steps = self.form.group // self.form.lanes
        for j in range(steps):
            at = T.Bind(first + self.lane * i64(steps) + i64(j))
            y = sums[i64(j)]
            self.shared["y"].set(
                half, self.row, at, y if self.skip is None else self.shared["y"].at(half, self.row, at) + y
            )


def _split(x: Expr, size: int) -> tuple[Expr, Expr]:
    """Quotient and remainder."""
    return T.Bind(tirx.truncdiv(x, i64(size))), T.Bind(tirx.truncmod(x, i64(size)))


def _within(t: Expr, end: Expr | None) -> Expr:
    """A step that exists."""
    return t if end is None else tirx.min(t, end - i64(1))


def _or_zero(x: Expr, t: Expr, end: Expr | None) -> Expr:
    return x if end is None else select(t < end, x, const(0.0, x))


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
