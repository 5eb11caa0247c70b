"""Loops whose step never changes: a state space with constant matrices becomes ``lti_scan``, or a convolution if it shifts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from coilc.ir import DTYPES, Dim, DType, Graph, Node, TensorType, Value, dims, ops
from coilc.ir.core import topological_order
from coilc.ir.opdef import MOVEMENT

from .fold_constants import WeightTable, weight_of
from .linear_bodies import BATCH, Evaluation, Linear, NotLinear, shape
from .loop_parts import Loop, from_front
from .match import is_zero
from .realise import Array, Eigen, NotDiagonal, diagonalise
from .recognise_long_convs import SHORT, last_inputs
from .replace_values import replace_values
from .rewrite import Rule, on
from .timeline import filled
from .trace import Declined, no
from .vectorise_time import NotParallel, Parallel, Timed

Reads = Mapping[Value, Array]  # by which numbers a value reads the state before and after the update
SAME = 1e-10  # relative to the largest: two linear maps that agree so well on a random argument are one
ELEMENTS = 2**26  # of all channels' matrices: more are not looked at


def loops_without_change(table: WeightTable) -> Rule:
    """The rule over modules with these weights; matrices of what it finds are added to them.

    Before, with weights A, b and c of [4, 3]::

        def step(h: f32[B, 4, 3], x: f32[B, 4], A, b, c):
            after = add(mul(A, h), mul(b, x))
            return {"h": after, "y": sum(mul(c, after), axes=(2,))}
        last, y = scan(h0, x, A, b, c, body=step)

    After::

        y, g = lti_scan(x, A, c * b)  # [states, channels], computed once
        last = b * g

    A matrix A is diagonalised (``realise.diagonalise`` says when not); one that only shifts is a kernel of as many taps.
    The matrices are found by evaluating the body, which is linear op by op, and hold for a random argument too.
    """

    @on("scan")
    def loop_is_time_invariant(node: Node) -> tuple[Value, ...] | Declined | None:
        """h = A h + b x, y = c h with constant A, b, c, for every channel by itself"""
        loop = Loop(node)
        if loop.carries != 1 or not loop.outputs or _is_counter(loop):
            return None
        try:
            return _Parts(loop, table).rewritten()
        except NotLinear as reason:
            return no(str(reason))
        except NotParallel as broken:
            return no(f"{broken.reason} ('{broken.node.op.name}')")
        except NotDiagonal as reason:
            return no(f"its constant matrix has no stable diagonal form: {reason}")

    return loop_is_time_invariant


def _is_counter(loop: Loop) -> bool:
    carry = loop.body_carries[0]
    return carry.type.dtype.kind not in ("float", "complex") or carry.type.rank < 2


@dataclass(frozen=True)
class Layout:
    """Which axes of the state are batch, channels and states."""

    dims: tuple[Dim, ...]
    batch: tuple[int, ...]
    channels: tuple[int, ...]
    states: int

    @property
    def perm(self) -> tuple[int, ...]:
        """To [batch, states, channels]."""
        return (*self.batch, self.states, *self.channels)

    @property
    def sizes(self) -> tuple[Dim, int, int]:
        """Batch, states and channels as one axis each."""
        return (
            dims.size(self.dims[a] for a in self.batch),
            self._known(self.states),
            prod(map(self._known, self.channels)),
        )

    def _known(self, axis: int) -> int:
        extent = self.dims[axis]
        assert isinstance(extent, int)
        return extent

    def gathered(self, state: Value) -> Value:
        return ops.reshape(ops.transpose(state, perm=self.perm), dims=self.sizes)

    def scattered(self, state: Value) -> Value:
        split = ops.reshape(state, dims=tuple(self.dims[a] for a in self.perm))
        return ops.transpose(split, perm=tuple(self.perm.index(a) for a in range(len(self.dims))))

    def array(self, of: np.ndarray) -> np.ndarray:
        """[B, N, D] of an array in the state's dims."""
        _, states, channels = self.sizes
        return of.transpose(self.perm).reshape(-1, states, channels)

    def spread(self, of: np.ndarray) -> np.ndarray:
        """The reverse, the same for all of a batch."""
        extents = [d if isinstance(d := self.dims[a], int) else BATCH for a in self.perm]
        wide = np.broadcast_to(of, (prod(extents[: len(self.batch)]), *of.shape[-2:])).reshape(extents)
        return wide.transpose([self.perm.index(a) for a in range(len(self.dims))])


def layouts(state: TensorType) -> Iterator[Layout]:
    """The last axis counts states more often than others do."""
    batch = (0,) if state.rank > 2 or not isinstance(state.dims[0], int) else ()
    rest = [a for a in range(state.rank) if a not in batch]
    if all(isinstance(state.dims[a], int) for a in rest):
        for axis in reversed(rest):
            yield Layout(state.dims, batch, tuple(a for a in rest if a != axis), axis)


class _Parts:
    """A loop's matrices, found by trying unit vectors."""

    def __init__(self, loop: Loop, table: WeightTable) -> None:
        self.loop, self.table = loop, table
        (self.before,), (after,) = loop.body_carries, loop.next_carries
        if after == self.before:
            raise NotLinear("the state never changes")
        linear = Linear([self.before], loop.sequences)
        linear.of(after)
        names = loop.fresh_names("now")
        self.now: Value = ops.input_(name=next(names), type=after.type)
        known = {
            v: Value(ops.input_.node(name=next(names), type=v.type)) for v in linear.inputs if v.op is not ops.input_
        }
        self.signals = {known.get(v, v): v for v in linear.inputs}
        inputs = (*loop.body.inputs, *known.values(), self.now)
        self.after = replace_values(Graph("after", inputs, (("after", after),)), known).results[0]
        outputs = Graph("outputs", inputs, loop.body.outputs[1:])
        self.outputs = replace_values(outputs, {**known, after: self.now}).results
        self.linear = Linear([self.before, self.now], self.signals)
        if not set(self.signals) & self.linear.of(self.after) or self.before not in self.linear.of(self.after):
            raise NotLinear("the state does not both remember and take in")
        self.evaluate = Evaluation(loop.consts, table.arrays)
        self.stem = next((name for v in loop.consts.values() if (name := weight_of(v))), "constant")
        self.rng = np.random.default_rng(0)

    def rewritten(self) -> tuple[Value, ...]:
        reasons = []
        for layout in layouts(self.before.type):
            try:
                return _Rewrite(self, layout).results()
            except NotLinear as reason:
                reasons.append(str(reason))
        raise NotLinear("; ".join(dict.fromkeys(reasons)) or "its state has two axes of unknown extent")

    def over_time(self, value: Value, known: Mapping[Value, Value]) -> Value:
        """What a value is at all steps, [T, ...], given those that depend on states."""
        time = Parallel(self.loop)
        time.known |= {inner: time.value(v) for inner, v in self.signals.items()}
        time.known |= {inner: Timed(outer, varies=True) for inner, outer in known.items()}
        return time.full(time.value(value))

    def reads_state(self, value: Value) -> bool:
        states = {self.before.node, self.now.node}
        return any(node in states for node in topological_order([value.node]))

    def random(self, *extents: int, dtype: DType) -> np.ndarray:
        drawn = self.rng.standard_normal(extents)
        return drawn + 1j * self.rng.standard_normal(extents) if dtype.is_complex else drawn


class _Rewrite:
    """A loop as a state space whose channels are independent, in one layout. Arrays: [D, N], or [D, M] in modes."""

    def __init__(self, parts: _Parts, layout: Layout) -> None:
        self.parts, self.layout, self.loop = parts, layout, parts.loop
        _, self.states, self.channels = layout.sizes
        self.dtype = parts.before.type.dtype
        self.zero_start = is_zero(self.loop.inits[0])

    def results(self) -> tuple[Value, ...]:
        parts = self.parts
        feeding = [s for s in parts.signals if s in parts.linear.of(parts.after)]
        for signal in feeding:
            self.require_one_per_channel(signal, "an input")
        b = {s: self.inflow(s) for s in feeding}
        read: dict[Value, Reads] = {}
        for y in parts.outputs:
            self.find_readouts(y, read)
        A = self.transition()
        space = self.shift(A, b) or self.modes(A, b)
        known = {y: self.output(y, c, space) for y, c in read.items()}
        ys = [from_front(parts.over_time(y, known), self.loop.axis) for y in parts.outputs]
        return (ops.cast(self.layout.scattered(space.last()), dtype=self.dtype), *ys)

    def find_readouts(self, value: Value, found: dict[Value, Reads]) -> None:
        """The last values on the way to an output that are linear in one channel's states."""
        if value in found or not self.parts.reads_state(value):
            return
        try:
            states = [h for h in (self.parts.before, self.parts.now) if h in self.parts.linear.of(value)]
            self.require_one_per_channel(value, "an output")
            found[value] = {h: self.readout(value, h) for h in states}
        except NotLinear:
            if not value.node.inputs or value in (self.parts.before, self.parts.now):
                raise
            for operand in value.node.inputs:
                self.find_readouts(operand, found)

    def require_one_per_channel(self, value: Value, what: str) -> None:
        extents = [d for d in value.dims if d != 1]
        wanted = [d for a in (*self.layout.batch, *self.layout.channels) if (d := self.layout.dims[a]) != 1]
        if extents != wanted:
            raise NotLinear(
                f"{what} is not one number per channel: {value.type} for states of {self.parts.before.type}"
            )
        if value.type.dtype.is_complex and what == "an output":
            raise NotLinear("an output is complex")

    # --- matrices --------------------------------------------------------------------------------------------------

    def transition(self) -> Array:
        """A: [D, N] if it is diagonal, [D, N, N] else."""
        before, after = self.parts.before, self.parts.after
        argument = self.parts.random(*shape(before), dtype=self.dtype)
        h, found = self.layout.array(argument), self.layout.array(self.parts.evaluate(after, {before: argument}))
        diagonal = self.next_state(np.ones((self.states, self.channels)))
        if _same(found, diagonal * h):
            return diagonal.T
        if self.channels * self.states**2 > ELEMENTS:
            raise NotLinear(f"its matrices have more than {ELEMENTS} elements")
        A = np.stack([self.next_state(unit) for unit in self.units()], axis=-1).transpose(1, 0, 2)
        if not _same(found, np.einsum("dmn,bnd->bmd", A, h)):
            raise NotLinear("a channel's state depends on other channels, or on its place in the batch")
        return A

    def units(self) -> Iterator[np.ndarray]:
        """One state at a time is 1, in every channel."""
        for n in range(self.states):
            yield np.broadcast_to((np.arange(self.states) == n)[:, None], (self.states, self.channels)).astype(float)

    def next_state(self, state: np.ndarray) -> np.ndarray:
        """The state after [N, D] without an input."""
        given = {self.parts.before: self.layout.spread(state)}
        return self.layout.array(self.parts.evaluate(self.parts.after, given))[0]

    def inflow(self, sequence: Value) -> Array:
        """b: what one input of 1 adds to each state."""
        argument = self.parts.random(*shape(sequence), dtype=sequence.type.dtype)
        ones = self.parts.evaluate(self.parts.after, {sequence: np.ones_like(argument)})
        b = self.layout.array(ones)[0]
        found = self.layout.array(self.parts.evaluate(self.parts.after, {sequence: argument}))
        if not _same(found, b * self.rows(argument)[:, None]):
            raise NotLinear("a state takes in more than its channel's input")
        return b.T

    def readout(self, y: Value, state: Value) -> Array:
        """c: y = Re(sum of c h)."""

        nothing = self.parts.evaluate(y, {})

        def read(h: np.ndarray) -> np.ndarray:
            return self.rows(self.parts.evaluate(y, {state: h}) - nothing)

        units = [self.layout.spread(unit) for unit in self.units()]
        c = np.stack([read(unit)[0] for unit in units], axis=-1)
        if self.dtype.is_complex:
            c = c - 1j * np.stack([read(1j * unit)[0] for unit in units], axis=-1)
        argument = self.parts.random(*shape(state), dtype=self.dtype)
        if not _same(read(argument), np.einsum("dn,bnd->bd", c, self.layout.array(argument)).real):
            raise NotLinear("an output reads other channels' states")
        return c

    def rows(self, array: np.ndarray) -> np.ndarray:
        """[B, D]."""
        return array.reshape(-1, self.channels)

    # --- the loop without its body ---------------------------------------------------------------------------------

    def modes(self, A: Array, b: Mapping[Value, Array]) -> _Modes:
        unit = np.broadcast_to(np.eye(self.states), (self.channels, self.states, self.states))
        eigen = Eigen(A, unit, unit) if A.ndim == 2 else diagonalise(A)
        gains = {self.signal(s): np.einsum("dmn,dn->dm", eigen.W, gain) for s, gain in b.items()}
        start = None if self.zero_start else self.layout.gathered(self.loop.inits[0])
        return _Modes(self, eigen, gains, start, diagonal=A.ndim == 2)

    def shift(self, A: Array, b: Mapping[Value, Array]) -> _Shift | None:
        if A.ndim == 2 or np.any(np.linalg.matrix_power(A, self.states)):
            return None
        if not self.zero_start:
            raise NotLinear("it shifts, and starts from a given state")
        return _Shift(self, [(self.signal(s), powers(A, gain)) for s, gain in b.items()])

    def signal(self, sequence: Value) -> Value:
        """[B, T, D], forwards in time."""
        x = real_value(self.parts.over_time(sequence, {}))
        batch, length = self.layout.sizes[0], self.loop.length
        rows = ops.transpose(ops.reshape(x, dims=(length, batch, self.channels)), perm=(1, 0, 2))
        return ops.flip(rows, axes=(1,)) if self.loop.reverse else rows

    def output(self, y: Value, read: Reads, space: _Modes | _Shift) -> Value:
        """The states' part [T, ...], and what comes from the inputs directly."""
        parts = [self.delayed(space.output(c)) if h == self.parts.before else space.output(c) for h, c in read.items()]
        total = ops.flip(sum_of(parts), axes=(1,)) if self.loop.reverse else sum_of(parts)
        rows = ops.transpose(ops.cast(total, dtype=y.type.dtype), perm=(1, 0, 2))
        found = ops.reshape(rows, dims=(self.loop.length, *y.dims))
        direct: Value | None = y
        for state in read:
            direct = direct and self.parts.linear.rest(direct, state)
        return found if direct is None else ops.add(found, self.parts.over_time(direct, {}))

    def delayed(self, y: Value) -> Value:
        """One step later, in the place of the state before an update."""
        if not self.zero_start:
            raise NotLinear("an output reads the state before the update, and that starts from a given value")
        late = ops.pad(y, low=(0, 1, 0), high=(0, 0, 0), value=0.0)
        return ops.slice_axis(late, 1, 0, self.loop.length)

    def weight(self, array: np.ndarray, dtype: DType) -> Value:
        return self.parts.table.add(array.astype(dtype.numpy), self.parts.stem)


@dataclass(frozen=True)
class _Modes:
    """States as modes: ``h = Re(V g)``, each mode of each input runs by itself with a gain of 1."""

    of: _Rewrite
    eigen: Eigen
    gains: Mapping[Value, Array]
    start: Value | None
    diagonal: bool

    @property
    def dtype(self) -> DType:
        real = "f64" if self.of.dtype.name in ("f64", "c128") else "f32"
        return DTYPES[{"f64": "c128", "f32": "c64"}[real] if np.iscomplexobj(self.eigen.a) else real]

    def output(self, c: Array) -> Value:
        read = np.einsum("dn,dnm->dm", c, self.eigen.V)
        parts = [self.run(x, read * gain)[0] for x, gain in self.gains.items()]
        if self.start is not None:
            parts.append(self.run(self.silence(), read, self.modes_of_start())[0])
        return sum_of(parts)

    def last(self) -> Value:
        parts = [self.states(self.run(x, gain)[1], gain) for x, gain in self.gains.items()]
        if self.start is not None:
            one = np.ones_like(self.eigen.a)
            parts.append(self.states(self.run(self.silence(), one, self.modes_of_start())[1], one))
        return sum_of(parts)

    def run(self, x: Value, c: Array, *start: Value) -> tuple[Value, Value]:
        a, readout = (self.of.weight(part.T, self.dtype) for part in (self.eigen.a, c))
        y, last = ops.lti_scan(x, a, readout, *start, optional=("h0",)[: len(start)])
        return y, last

    def silence(self) -> Value:
        return filled(next(iter(self.gains)).type, 0)

    def modes_of_start(self) -> Value:
        assert self.start is not None
        start = ops.cast(self.start, dtype=self.dtype)
        if self.diagonal:
            return start
        W = self.of.weight(self.eigen.W.transpose(1, 2, 0), self.dtype)
        found: Value = ops.einsum(W, start, equation="mnd,bnd->bmd")
        return found

    def states(self, last: Value, gain: Array) -> Value:
        """Re(V gain g), or all of it if the states are complex."""
        if self.diagonal:
            return ops.mul(last, self.of.weight(gain.T, self.dtype))
        V = self.of.weight((self.eigen.V * gain[:, None]).transpose(1, 2, 0), self.dtype)
        found: Value = ops.einsum(V, last, equation="nmd,bmd->bnd")
        return ops.real(found) if self.dtype.is_complex and not self.of.dtype.is_complex else found


@dataclass(frozen=True)
class _Shift:
    """States that hold the last inputs: ``powers`` A^j b [N, D, N] per input."""

    of: _Rewrite
    inputs: list[tuple[Value, Array]]

    def output(self, c: Array) -> Value:
        return sum_of([self.convolved(x, np.einsum("dn,jdn->jd", c, moved).real) for x, moved in self.inputs])

    def convolved(self, x: Value, taps: Array) -> Value:
        """Few taps can go on from a state."""
        if len(taps) > SHORT:
            return ops.long_conv(x, self.of.weight(taps, x.type.dtype))
        y: Value = ops.causal_conv1d(x, self.of.weight(taps[::-1], x.type.dtype))[0]
        return y

    def last(self) -> Value:
        parts = []
        for x, moved in self.inputs:
            window = last_inputs(x, len(moved))
            gains = self.of.weight(moved[::-1].transpose(0, 2, 1), self.of.dtype)
            parts.append(ops.einsum(gains, ops.cast(window, dtype=self.of.dtype), equation="jnd,bjd->bnd"))
        return sum_of(parts)


def powers(A: Array, b: Array) -> Array:
    """A^j b for every j below the number of states: [N, D, N]."""
    found = [b]
    for _ in range(A.shape[1] - 1):
        found.append(np.einsum("dmn,dn->dm", A, found[-1]))
    return np.stack(found)


def sum_of(parts: Sequence[Value]) -> Value:
    total, *others = parts
    for part in others:
        total = ops.add(total, part)
    return total


def real_value(value: Value) -> Value:
    """A complex value that was cast from a real one and moved, without the cast.

    Raises:
        NotLinear: it may have an imaginary part.
    """
    if not value.type.dtype.is_complex:
        return value
    if value.op is ops.cast:
        return value.node.inputs[0]
    if MOVEMENT not in value.op.traits or len(value.node.inputs) != 1:
        raise NotLinear("an input is complex")
    return Value(Node.make(value.op, (real_value(value.node.inputs[0]),), value.node.attrs), value.index)


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    return bool(np.abs(x - y).max() <= SAME * max(np.abs(x).max(), np.abs(y).max(), 1e-300))
