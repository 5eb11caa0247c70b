"""The parts of a ``scan`` node by name, and scans built from parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from coilc.ir import Dim, Graph, Node, Value, ops

Parameters = Mapping[Value, Value]  # an input of the body to what the scan is given for it


@dataclass(frozen=True)
class Loop:
    """The parts of a ``scan`` node by name."""

    node: Node

    @property
    def body(self) -> Graph:
        body: Graph = self.node.attrs["body"]
        return body

    @property
    def carries(self) -> int:
        return int(self.node.attrs["carries"])

    @property
    def body_carries(self) -> tuple[Value, ...]:
        return self.body.inputs[: self.carries]

    @property
    def next_carries(self) -> tuple[Value, ...]:
        return self.body.results[: self.carries]

    @property
    def outputs(self) -> tuple[Value, ...]:
        return self.body.results[self.carries :]

    @property
    def inits(self) -> tuple[Value, ...]:
        return self.node.inputs[: self.carries]

    @property
    def axis(self) -> int:
        return int(self.node.attrs["axis"])

    @property
    def reverse(self) -> bool:
        return bool(self.node.attrs["reverse"])

    @property
    def length(self) -> Dim:
        return self.node.inputs[self.carries].dims[self.axis]

    @property
    def sequences(self) -> Parameters:
        return self._parameters(self.carries, self.carries + int(self.node.attrs["sequences"]))

    @property
    def consts(self) -> Parameters:
        return self._parameters(self.carries + int(self.node.attrs["sequences"]), None)

    def _parameters(self, first: int, last: int | None) -> Parameters:
        return dict(zip(self.body.inputs[first:last], self.node.inputs[first:last], strict=True))

    def fresh_names(self, prefix: str) -> Iterator[str]:
        """Names for new inputs of the body."""
        taken = {v.node.attrs["name"] for v in self.body.inputs}
        return (name for name in map(f"{prefix}{{}}".format, count()) if name not in taken)

    def rebuilt(
        self,
        outputs: Iterable[tuple[str, Value]],
        carries: Parameters | None = None,
        sequences: Parameters | None = None,
        consts: Parameters | None = None,
    ) -> tuple[Value, ...]:
        """Results of a loop with other outputs (next carries first) and other parameters, less what it does not read.

        One sequence always stays: it sets the length.
        """
        carries = dict(zip(self.body_carries, self.inits, strict=True)) if carries is None else carries
        sequences = self.sequences if sequences is None else sequences
        outputs = tuple(outputs)
        read = set(Graph("step", (), outputs).nodes)
        moving = {v: x for v, x in sequences.items() if v.node in read} or dict([next(iter(sequences.items()))])
        fixed = {v: x for v, x in (self.consts if consts is None else consts).items() if v.node in read}
        parameters = {**carries, **moving, **fixed}
        return ops.scan.node(
            *parameters.values(),
            body=Graph(self.body.name, tuple(parameters), outputs),
            carries=len(carries),
            sequences=len(moving),
            axis=self.axis,
            reverse=self.reverse,
        ).results


def to_front(x: Value, axis: int) -> Value:
    """Move ``axis`` to the front."""
    return x if axis == 0 else ops.transpose(x, perm=(axis, *(i for i in range(x.type.rank) if i != axis)))


def from_front(x: Value, axis: int) -> Value:
    """Move the first axis to ``axis``."""
    rest = tuple(range(1, x.type.rank))
    return x if axis == 0 else ops.transpose(x, perm=(*rest[:axis], 0, *rest[axis:]))
