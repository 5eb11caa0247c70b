"""A time axis in chunks of equal size: what every chunked algorithm does before and after its own arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from coilc.ir import Dim, Value, ops


@dataclass(frozen=True)
class Chunks:
    """``length`` steps on ``axis`` as ``count`` chunks of ``size`` steps; steps past the end are filled in.

    One of ``count`` and ``size`` is a number, the other may depend on the length.
    """

    axis: int
    length: Dim
    count: Dim
    size: Dim

    @staticmethod
    def of_size(axis: int, length: Dim, size: int) -> Chunks:
        """As many chunks as it takes."""
        return Chunks(axis, length, (length + (size - 1)) // size, size)

    @staticmethod
    def so_many(axis: int, length: Dim, count: int) -> Chunks:
        """A fixed number of chunks, as long as it takes."""
        return Chunks(axis, length, count, (length + (count - 1)) // count)

    def split(self, x: Value, fill: float = 0.0) -> Value:
        """``[.., length, ..]`` to ``[.., count, size, ..]``; ``fill`` is a step that changes nothing."""
        missing = self.count * self.size - self.length
        if missing != 0:
            high = tuple(missing if i == self.axis else 0 for i in range(x.type.rank))
            x = ops.pad(x, low=(0,) * x.type.rank, high=high, value=fill)
        return ops.reshape(x, dims=(*x.dims[: self.axis], self.count, self.size, *x.dims[self.axis + 1 :]))

    def join(self, x: Value) -> Value:
        """``[.., count, size, ..]`` to ``[.., length, ..]``."""
        axis = self.axis
        x = ops.reshape(x, dims=(*x.dims[:axis], self.count * self.size, *x.dims[axis + 2 :]))
        return x if x.dims[axis] == self.length else ops.slice_axis(x, axis, 0, self.length)

    def entering(self, first: Value, after: Value, reverse: bool = False) -> Value:
        """The state in front of every chunk, from the first one and those ``after`` each chunk, ``[.., count, ..]``."""
        first = ops.expand_dims(first, self.axis)
        start, stop = (1, self.count) if reverse else (0, self.count - 1)
        rest = ops.slice_axis(after, self.axis, start, stop)
        return ops.concat(*((rest, first) if reverse else (first, rest)), axis=self.axis)
