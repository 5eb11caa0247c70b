"""Accumulators of reductions: a vector of partial results, and the step that combines two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import DType, OpDef, ops

from .elementwise import maximum, minimum
from .loops import lanes
from .reader import index
from .scalar import Expr, allocate, bind, compute_dtype, on_device
from .team import Team


def _lowest(dtype: DType) -> float:
    return -np.inf if dtype.is_float else 0 if dtype.kind == "bool" else int(np.iinfo(dtype.numpy).min)


def _highest(dtype: DType) -> float:
    return np.inf if dtype.is_float else 1 if dtype.kind == "bool" else int(np.iinfo(dtype.numpy).max)


# op: the neutral element, and how two partial results combine
STEPS: Mapping[OpDef, tuple[Callable[[DType], float], Callable[[Expr, Expr], Expr]]] = {
    ops.sum: (lambda _: 0, lambda a, b: a + b),
    ops.prod: (lambda _: 1, lambda a, b: a * b),
    ops.max: (_lowest, maximum),
    ops.min: (_highest, minimum),
}


def register_dtype(dtype: DType) -> str:
    """The type of an accumulator: bools are bytes, half precision is fp32."""
    return "uint8" if dtype.kind == "bool" else compute_dtype(dtype)


@dataclass(frozen=True)
class Accumulator:
    """``width`` partial results of one reduction in local memory, which the compiler keeps in registers."""

    op: OpDef
    dtype: DType
    width: int
    buffer: tirx.Buffer

    @staticmethod
    def open(op: OpDef, dtype: DType, width: int) -> Accumulator:
        """Allocate in the open frame and fill with the neutral element."""
        buffer = allocate((width,), register_dtype(dtype))
        total = Accumulator(op, dtype, width, buffer)
        total.clear()
        return total

    def clear(self) -> None:
        """Fill with the neutral element."""
        start = tirx.const(STEPS[self.op][0](self.dtype), register_dtype(self.dtype))
        lanes(self.width, lambda lane: T.buffer_store(self.buffer, start, [lane]))

    def add(self, lane: Expr, value: Expr) -> None:
        """Combine a value, in its compute type, into one lane."""
        if self.dtype.kind == "bool":
            value = T.Cast("uint8", value)
        T.buffer_store(self.buffer, STEPS[self.op][1](self.buffer[lane], value), [lane])

    def merge(self, other: Expr) -> None:
        """Combine what another accumulator has, as it is kept, into the first lane."""
        T.buffer_store(self.buffer, STEPS[self.op][1](self.buffer[index(0)], other), [index(0)])

    def lane(self, lane: Expr) -> Expr:
        """One partial result, in the compute type."""
        return self._typed(self.buffer[lane])

    def total(self, team: Team | None = None) -> Expr:
        """All lanes combined, halving the vector at each step; on a device, over the threads of the team."""
        width = self.width
        if team is not None:
            step = STEPS[self.op][1]
            (total,) = team.combine([self.buffer[index(0)]], lambda x, y: [step(x[0], y[0])])
            return bind(self._typed(total))
        if width == 1:
            return bind(self._typed(self.buffer[index(0)]))
        if on_device():
            step = STEPS[self.op][1]
            return bind(self._typed(reduce(step, (self.buffer[index(lane)] for lane in range(width)))))
        vector = bind(self.buffer[tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), width)])
        while width > 2:
            width //= 2
            dtype = f"{register_dtype(self.dtype)}x{width}"
            vector = bind(STEPS[self.op][1](T.vectorlow(dtype, vector), T.vectorhigh(dtype, vector)))
        first, second = (bind(tirx.Shuffle([vector], [i])) for i in (0, 1))
        return bind(self._typed(STEPS[self.op][1](first, second)))

    def _typed(self, value: Expr) -> Expr:
        return T.Cast("bool", value) if self.dtype.kind == "bool" else value
