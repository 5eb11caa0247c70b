"""How a value of a causal graph runs over time, and what the rules of ``extract_state`` work with.

The full sequence has ``L`` elements; a call sees a chunk of it. A value is steady (the same at every time), a stream
(one axis is time) or final (computed from the end of the sequence, so right when the chunk is the last one).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from coilc.ir import Dim, Graph, Location, Node, TensorType, Value, dims, literal, ops
from coilc.ir.types import DTYPES

from .match import is_zero

# Of recurrences and convolutions along axis 1, the operands that have an element per time: by position, or by name.
SEQUENCES: Mapping[str, Sequence[int | str]] = {
    "long_conv": (0,), "lti_scan": (0,), "causal_conv1d": (0,), "wkv": (0, 1),
    "selective_scan": (0, 1, 3, 4, "z", "mask"), "gated_linear_attention": (0, 1, 2, 3),
    "gated_delta_rule": (0, 1, 2, 3, 4), "generalized_delta_rule": (0, 1, 2, 3, 4, 5),
}  # fmt: skip


class Mixes(Exception):
    """An op that needs more of the sequence than the past; the message completes 'op ...'."""


@dataclass(frozen=True)
class Timed:
    """A value of the full sequence and what stands for it in a chunk.

    Attributes:
        value: the chunk's value. Of a stream, element ``i`` of a chunk that starts at ``t`` is element ``t + i`` of
            the full sequence's.
        axis: where time runs, ``None`` unless this is a stream. Its extent is ``outer * (L + history) * inner``.
        inner: extent of the axes merged into the time axis after it; ``None`` if every element along it is equal.
        history: how many elements more than the chunk: the first of them come from earlier chunks.
        excess: how many elements the full sequence has after the last one of ``value``; negative: fewer.
        final: from the end of the sequence.
    """

    value: Value
    axis: int | None = None
    inner: Dim | None = 1
    history: int = 0
    excess: int = 0
    final: bool = False

    @property
    def steady(self) -> bool:
        return self.axis is None and not self.final

    @property
    def plain(self) -> bool:
        """One axis is exactly time, element for element."""
        return self.axis is not None and (self.inner, self.history, self.excess) in ((1, 0, 0), (None, 0, 0))

    def over(self, value: Value, axis: int | None) -> Timed:
        """Another value that runs over time in the same way."""
        return replace(self, value=value, axis=axis)


@dataclass(frozen=True)
class State:
    """What one op remembers between calls."""

    name: str
    before: Value
    after: Value


class Timeline:
    """The symbol that counts time, and the states found so far.

    ``context`` is how many elements a cache has room for that keeps them all.
    """

    def __init__(self, symbol: str, taken: Iterable[str], context: int) -> None:
        self.length: Dim = dims.symbol(symbol)
        self.context = context
        self.symbol = symbol
        self.taken = set(taken)
        self.states: list[State] = []
        self.clock: Value | None = None

    def runs(self, dim: Dim) -> bool:
        """Whether an extent depends on the length."""
        return self.symbol in dims.symbols(dim)

    def refuse_length_in(self, *bodies: Graph) -> None:
        """A body that could tell a chunk from the full sequence has no place in either."""
        for node in (node for body in bodies for node in body.nodes):
            dims_ = [dim for type_ in node.types for dim in type_.dims]
            if any(map(self.runs, [*dims_, node.attrs["dim"]] if node.op is ops.extent else dims_)):
                raise Mixes("has a body that depends on the length")
            self.refuse_length_in(*(attr for attr in node.attrs.values() if isinstance(attr, Graph)))

    def beyond(self, dim: Dim) -> int | None:
        """``k`` when ``dim`` is ``L + k``."""
        rest = dim - self.length
        return rest if isinstance(rest, int) else None

    def remember(self, kind: str, type_: TensorType, initial: Value | None, location: Location | None) -> Value:
        """A new state's value before this chunk; ``keep`` must be called with the one after it.

        Args:
            initial: its value at the start of the sequence, ``None`` for zero. States always start as zero, so another
                one is chosen where the position is 0.
        """
        if any(map(self.runs, type_.dims)):
            raise Mixes("would need a state as long as the sequence")
        scope = location.scope + "." if location and location.scope else ""
        name = unused(scope + kind, self.taken)
        before = ops.input_(name=unused(identifier(name), self.taken), type=type_)
        self.taken |= {name, before.node.attrs["name"]}
        self.states.append(State(name, before, before))
        if initial is None or is_zero(initial):
            return before
        return ops.where(ops.eq(self.position(), 0), initial, before)

    def keep(self, before: Value, after: Value) -> None:
        """Say what the newest state whose value before was ``before`` becomes."""
        found = before.node.inputs[2] if before.op is ops.where else before
        self.states = [replace(s, after=after) if s.before == found else s for s in self.states]

    def position(self) -> Value:
        """How many elements earlier chunks had, as a state of its own."""
        if self.clock is None:
            self.clock = self.remember("position", TensorType(DTYPES["i64"], ()), None, None)
            self.keep(self.clock, ops.add(self.clock, ops.extent(dim=self.length, dtype=DTYPES["i64"])))
        return self.clock


def unused(name: str, taken: set[str]) -> str:
    """``name``, numbered if it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number, candidate = number + 1, f"{name}_{number + 1}"
    return candidate


def identifier(name: str) -> str:
    """A name of the language: dots and dashes become underscores."""
    text = "".join(c if c.isalnum() else "_" for c in name)
    return f"state_{text}" if not text.isidentifier() or not text.isascii() else text


def rebuilt(node: Node, values: Iterable[Value]) -> tuple[Value, ...]:
    """The node's op on other operands."""
    return Node.make(node.op, tuple(values), node.attrs).results


def filled(type_: TensorType, number: float) -> Value:
    """A tensor of one number."""
    return ops.broadcast(literal(number, type_.dtype), dims=type_.dims)


def replace_at(items: tuple[Dim, ...], axis: int, item: Dim) -> tuple[Dim, ...]:
    """A copy of a tuple with one item replaced."""
    return (*items[:axis], item, *items[axis + 1 :])


def outer_extent(length: Dim, value: Timed) -> Dim | None:
    """Extent of the axes merged into the time axis before it."""
    assert value.axis is not None
    assert value.inner is not None
    return dims.divide_exactly(value.value.dims[value.axis], (length + value.history) * value.inner)
