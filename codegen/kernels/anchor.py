"""The view that a kernel template has of its fused body: operands, results with their epilogue, dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tvm.script.ir_builder import tirx as T

from coilc.ir import Node, UnsupportedError, Value, ops
from coilc.ir import dims as d
from coilc.ir.core import topological_order
from coilc.ir.dims import Dim, Dims
from coilc.ir.opdef import MOVEMENT

from ..kernel import Kernel
from ..reader import Prefetcher
from ..scalar import Expr, compute_dtype, dtype_name, on_device, prefetch
from ..target import Target
from .loops import i64

LINE = 512  # bits of a cache line
AHEAD = 8  # steps of a recurrence that its rows are prefetched before their time; most take over 100 ns each


@dataclass(frozen=True)
class Anchor:
    """An anchor op of a body while its kernel is being written.

    Operands are read by position or, when optional, by name, through the reader: a prologue costs a template nothing.
    ``store`` evaluates the epilogue of a result in registers and writes every output that depends on it.

    Attributes:
        launched: how many anchors the kernel has, whose tasks are one launch.
    """

    node: Node
    kernel: Kernel
    launched: int = 1

    @property
    def target(self) -> Target:
        return self.kernel.target

    @cached_property
    def operands(self) -> Mapping[str | int, Value]:
        """Operands by position, and the optional ones (which come last) by name too."""
        optional = self.node.attrs.get("optional", ())
        named = zip(reversed(optional), reversed(self.node.inputs), strict=False)
        return {**dict(enumerate(self.node.inputs)), **dict(named)}

    @cached_property
    def outputs_of(self) -> Mapping[int, tuple[int, ...]]:
        """For each result of the anchor, the body outputs that are computed from it."""
        found: dict[int, tuple[int, ...]] = {}
        for position, value in enumerate(self.kernel.body.results):
            needed = _needed_by(value, self.node)
            result = next((r.index for r in self.node.results if r in needed), None)
            if result is not None:
                found[result] = (*found.get(result, ()), position)
        return found

    def require_no_epilogue(self) -> None:
        """For templates that build their first result in the memory of the output.

        Raises:
            UnsupportedError: an output is computed from the first result.
        """
        followed = [v for i in self.outputs_of.get(0, ()) if (v := self.kernel.body.results[i]).node is not self.node]
        if followed:
            where = [(value.op.name, value.location) for value in followed]
            raise UnsupportedError(f"nothing can be computed in the kernel of '{self.node.op.name}':", where)

    def has(self, operand: str) -> bool:
        return operand in self.operands

    def dims(self, operand: str | int) -> Dims:
        return self.operands[operand].dims

    def compute_dtype(self, operand: str | int) -> str:
        """TIR's name of the type that the operand's elements have in registers."""
        return compute_dtype(self.operands[operand].type.dtype)

    def is_computed(self, operand: str | int) -> bool:
        """Whether reading an element takes more than a load."""
        value = self.operands[operand]
        while MOVEMENT in value.op.traits and value.node.inputs:
            value = value.node.inputs[0]
        return value.op is not ops.input_

    def prefetch(self, operand: str | int, ahead: int, count: int, *indices: Expr) -> None:
        """Start loading ``count`` elements ``ahead`` bytes behind an element, if the operand lies in memory as it is."""
        value = self.operands[operand]
        value = value.node.inputs[0] if value.op is ops.cast else value
        if value not in self.kernel.reader.buffers:
            return
        bits = value.type.dtype.bits
        place = self.kernel.reader.offset(indices, value.dims) + i64(8 * ahead // bits)
        for line in range(-(-count * bits // LINE)):
            prefetch(self.kernel.reader.buffers[value], place + i64(line * LINE // bits))

    @cached_property
    def _prefetcher(self) -> Prefetcher:
        reader = self.kernel.reader
        return Prefetcher(reader.body, reader.buffers, reader.dims, reader.views)

    def prefetch_row(self, operand: str | int, width: int, place: Callable[[Expr], Sequence[Expr]]) -> None:
        """Start loading the elements ``place(0)`` to ``place(width - 1)``, which are neighbours, or what they need.

        For tasks that take a part of every row: the processor itself looks no further than the end of a page.
        """
        if not on_device():
            for first in range(0, width, LINE // 32):
                self._prefetcher.read(self.operands[operand], place(i64(first)))

    def extent(self, dim: Dim) -> Expr:
        """A dimension as an int64 expression."""
        return self.kernel.extent(dim)

    def fixed(self, dim: Dim) -> int:
        """A dimension that the op's type rule makes a number."""
        assert isinstance(dim, int), dim
        return dim

    def read(self, operand: str | int, *indices: Expr | int, dtype: str | None = None) -> Expr:
        """The operand's element in its compute type, or converted to ``dtype``."""
        element = self.kernel.reader.read(self.operands[operand], [i64(i) for i in indices])
        return element if dtype in (None, dtype_name(element)) else T.Cast(dtype, element)

    def read_member(
        self,
        operand: str | int,
        lead: Sequence[Expr],
        group: Expr,
        member: Expr,
        size: Dim,
        *,
        dtype: str | None = None,
    ) -> Expr:
        """An element of an operand whose last axis holds groups of ``size`` channels.

        An operand that is ``[..., groups, size]`` reshaped is read there: no division tells the groups apart again.
        """
        value = self.operands[operand]
        apart = value.node.inputs[0] if value.op.name == "reshape" else value
        if apart.dims[:-1] == (*value.dims[:-1], d.divide_exactly(value.dims[-1], size)) and apart.dims[-1] == size:
            element = self.kernel.reader.read(apart, [*lead, group, member])
            return element if dtype in (None, dtype_name(element)) else T.Cast(dtype, element)
        return self.read(operand, *lead, group * self.extent(size) + member, dtype=dtype)

    def store(self, result: int, indices: Sequence[Expr | int], value: Expr) -> None:
        """Write every output that depends on ``result``, whose element at ``indices`` is ``value``."""
        at = [i64(i) for i in indices]
        dtype = compute_dtype(self.node.types[result].dtype)
        value = value if dtype_name(value) == dtype else T.Cast(dtype, value)
        for position in self.outputs_of.get(result, ()):
            output = self.kernel.body.results[position]
            element = self.kernel.reader.read(output, at, {self.node.results[result]: value})
            self.kernel.store(position, at, element)


def _needed_by(value: Value, anchor: Node) -> set[Value]:
    """Values that ``value`` is computed from, itself included, down to the anchor's results."""
    nodes = topological_order([value.node], leaves=lambda node: node is anchor)
    return {value} | {operand for node in nodes if node is not anchor for operand in node.inputs}
