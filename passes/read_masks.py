"""Masks and positions as conditions on indices, and where movement ops read their operands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coilc.ir import Dim, Dims, Node, Value, dims, ops

from .index_algebra import NotExact, Space, mixed
from .match import scalar

MOVES = ("broadcast", "transpose", "reshape", "slice", "flip")
COMPARISONS = ("gt", "ge", "lt", "le", "eq")


@dataclass
class Masks:
    """Reads masks.

    Attributes:
        arrays: what the weights are; a mask may be among them.
    """

    space: Space
    arrays: Mapping[str, np.ndarray]

    def moved(self, node: Node, index: Dims) -> Dims:
        """The index of a movement op's operand."""
        (x,) = node.inputs
        match node.op.name:
            case "broadcast":
                kept = index[len(index) - x.type.rank :]
                return tuple(0 if extent == 1 else e for e, extent in zip(kept, x.dims, strict=True))
            case "transpose":
                places = {source: index[i] for i, source in enumerate(node.attrs["perm"])}
                return tuple(places[i] for i in range(len(places)))
            case "slice":
                starts, steps = node.attrs["starts"], node.attrs["steps"]
                return tuple(start + step * e for e, start, step in zip(index, starts, steps, strict=True))
            case "flip":
                return tuple(n - 1 - e if i in node.attrs["axes"] else e for i, (e, n) in enumerate(zip(index, x.dims)))
        return self._reshaped(x.dims, node.types[0].dims, index)

    def _reshaped(self, before: Dims, after: Dims, index: Dims) -> Dims:
        found: list[Dim] = []
        for old, new in dims.matching_groups(before, after):
            if before[old]:
                found += self.space.digits(mixed(index[new], after[new]), before[old])
        return tuple(found)

    def guards(self, mask: Value, index: Dims) -> tuple[Dim, ...]:
        """What must not be negative where the mask is true."""
        node = mask.node
        match node.op.name:
            case name if name in MOVES:
                return self.guards(node.inputs[0], self.moved(node, index))
            case "constant" | "weight":
                return triangle(constant_array(node, self.arrays), index)
            case "logical_not" | "bitwise_not":
                return (-1 - self.guard(node.inputs[0], index),)
            case "where" if scalar(node.inputs[1]) is not None:
                condition, x, y = node.inputs
                if scalar(x) and scalar(y) == 0:
                    return self.guards(condition, index)
                if scalar(x) == 0:
                    return (-1 - self.guard(condition, index), *self.guards(y, index))
            case "logical_and" | "bitwise_and" | "mul":
                return tuple(g for x in node.inputs for g in self.guards(x, index))
            case name if name in COMPARISONS:
                a, b = (self.number(v, index) for v in node.inputs)
                before, same = (b - a - 1,), (a - b, b - a)
                return {"gt": (a - b - 1,), "ge": (a - b,), "lt": before, "le": (b - a,), "eq": same}[name]
        raise NotExact(f"a mask made by '{node.op.name}'")

    def guard(self, mask: Value, index: Dims) -> Dim:
        guards = self.guards(mask, index)
        if len(guards) != 1:
            raise NotExact("a mask of several conditions is inverted")
        return guards[0]

    def number(self, value: Value, index: Dims) -> Dim:
        """An integer made of indices."""
        node, known = value.node, scalar(value)
        if known is not None and known == int(known):
            return int(known)
        match node.op.name:
            case "iota":
                return index[node.attrs["axis"]]
            case "extent":
                found: Dim = node.attrs["dim"]
                return found
            case "cast":
                return self.number(node.inputs[0], index)
            case "add" | "sub" | "mul":
                x, y = (self.number(v, index) for v in node.inputs)
                return x + y if node.op is ops.add else x - y if node.op is ops.sub else x * y
            case "neg":
                return -self.number(node.inputs[0], index)
            case name if name in MOVES:
                return self.number(node.inputs[0], self.moved(node, index))
            case "constant":
                array = node.attrs["value"].value
                if array.ndim == 1 and array.size > 1 and np.array_equal(array - array[0], np.arange(array.size)):
                    return int(array[0]) + index[0]
        raise NotExact(f"'{node.op.name}' is no position")


def constant_array(node: Node, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The elements of a constant or a weight."""
    array: np.ndarray = node.attrs["value"].value if node.op is ops.constant else arrays[node.attrs["name"]]
    return array


def triangle(array: np.ndarray, index: Dims) -> tuple[Dim, ...]:
    """The condition behind a constant mask of 0 and 1: one triangle of its two long axes.

    Raises:
        NotExact: it is something else.
    """
    mask = array != 0
    if not np.array_equal(mask, array):
        raise NotExact("a constant that is no mask of 0 and 1")
    if mask.all():
        return ()
    long = [i for i, n in enumerate(array.shape) if n > 1]
    if len(long) == 2:
        (i, j), matrix = long, mask.reshape([array.shape[a] for a in long])
        distance = np.subtract.outer(*map(np.arange, matrix.shape))
        least, most = int(distance[matrix].min(initial=matrix.size)), int(distance[matrix].max(initial=-matrix.size))
        if np.array_equal(matrix, distance >= least):
            return (index[i] - index[j] - least,)
        if np.array_equal(matrix, distance <= most):
            return (most - index[i] + index[j],)
    if not mask.any():
        return (-1,)
    raise NotExact("a constant mask that is no triangle")


def is_triangle(node: Node, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a constant or weight is a causal mask."""
    rank = node.types[0].rank
    if rank < 2 or node.types[0].dtype.is_complex or sum(n != 1 for n in node.types[0].dims) != 2:
        return False
    array = constant_array(node, arrays)
    if not np.isin(array.flat[:64], (0, 1)).all():  # most weights, at no cost
        return False
    try:
        return len(triangle(array, (0,) * rank)) == 1
    except NotExact:
        return False


def powers(array: np.ndarray) -> tuple[np.ndarray, int] | None:
    """The logarithm of the decay behind a constant ``decay ** (i - j - first)`` for i - j >= first, else 0, over the last
    two axes; and ``first``, which is 0 or 1."""
    if array.ndim >= 2 and array.shape[-1] == array.shape[-2] and array.size and not array[..., 0, 0].any():
        found = _powers(array[..., 1:, :-1])
        lowest = np.concatenate([array[..., 0, :], array[..., :, -1]], axis=-1)
        return None if found is None or lowest.any() else (found, 1)
    found = _powers(array)
    return None if found is None else (found, 0)


def _powers(array: np.ndarray) -> np.ndarray | None:
    if array.ndim < 2 or array.dtype.kind != "f" or array.shape[-1] != array.shape[-2] or array.shape[-1] < 3:
        return None
    if not (np.all(array[..., 0, 0] == 1) and np.all(array[..., 1, 0] > 0)):
        return None
    wide = array.astype(np.float64)
    distance = np.subtract.outer(*map(np.arange, array.shape[-2:]))
    # The last element that is no denormal number has the decay with the least rounding.
    far = np.maximum(1, (wide[..., :, 0] > 1e-30).sum(-1) - 1)
    logarithm = np.log(np.take_along_axis(wide[..., :, 0], far[..., None], -1)[..., 0]) / far
    expected = np.where(distance >= 0, np.exp(np.maximum(distance, 0) * logarithm[..., None, None]), 0)
    return logarithm if np.allclose(wide, expected, rtol=1e-4, atol=1e-30) else None


def is_power(node: Node, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a constant or weight is a decay to the power of the distance in time."""
    square = node.types[0].rank >= 2 and node.types[0].dims[-1] == node.types[0].dims[-2]
    return square and powers(constant_array(node, arrays)) is not None
