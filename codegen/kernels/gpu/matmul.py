"""Matrix products on a device: which kernel runs, by what is known of the operands here and by their size there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...scalar import Expr, inside_loop
from ...target import Device
from ..anchor import Anchor
from ..loops import ceildiv, i64, product
from ..matmul import X, Y
from . import mma_matmul, simt_matmul, wgmma_matmul
from .few_rows import emit_few_rows
from .mma_matmul import emit_mma
from .operand import strided
from .simt_matmul import emit_simt
from .wgmma_matmul import Tile, emit_wgmma, fits

FEW = 8  # rows that are multiplied while the right operand is read


def emit_matmul(k: Anchor) -> bool:
    """Write the launches of x[..., M, K] @ y[..., K, N] with its epilogue; the host picks one."""
    device = k.target.device
    if inside_loop() or device is None:
        return False
    rows, emit = k.extent(k.dims(X)[-2]), _by_warpgroups(k, device)
    if emit:
        either(rows <= i64(1), lambda: emit_few_rows(k, 1), lambda: _many_rows(k, device, emit))
        return True
    many = _on_tensor_cores if mma_matmul.is_narrow(k) else _on_ordinary_cores
    few = [lambda: emit_few_rows(k, 1), lambda: emit_few_rows(k, FEW)]
    either(rows <= i64(FEW), lambda: either(rows <= i64(1), *few), lambda: many(k, device))
    return True


def _on_ordinary_cores(k: Anchor, device: Device) -> None:
    large, small = simt_matmul.LARGE, simt_matmul.SMALL
    enough = tiles(k, large.side, large.side) >= i64(device.multiprocessors)
    either(enough, lambda: emit_simt(k, large), lambda: emit_simt(k, small))


def _on_tensor_cores(k: Anchor, device: Device) -> None:
    large, small = mma_matmul.LARGE, mma_matmul.SMALL
    enough = tiles(k, large.side, large.side) >= i64(device.multiprocessors)
    either(enough, lambda: emit_mma(k, large), lambda: emit_mma(k, small))


Emit = Callable[[Tile], None]


def _by_warpgroups(k: Anchor, device: Device) -> Emit | None:
    """A launch of tiles of one size, where the device has bulk copies and both operands lie in memory as these want."""
    left, right = (strided(mma_matmul.narrow(k.operands[i])) for i in (X, Y))
    if not (device.warpgroups and mma_matmul.is_narrow(k) and left and right):
        return None
    right = right.transposed()
    return partial(emit_wgmma, k, left, right) if fits(left) and fits(right) else None


def _many_rows(k: Anchor, device: Device, emit: Emit, choice: Sequence[Tile] = wgmma_matmul.TILES) -> None:
    """Tiles of the size that takes the least time, of those which the rows fill by more than half; the last one else.

    Every multiprocessor computes one tile at a time.
    """
    first, *others = choice
    if not others:
        emit(first)
        return
    time, *times = (ceildiv(tiles(k, t.rows, t.columns), device.multiprocessors) * i64(t.time) for t in choice)
    best = tirx.all(k.extent(k.dims(X)[-2]) > i64(first.rows // 2), time <= reduce(tirx.min, times))
    either(best, lambda: emit(first), lambda: _many_rows(k, device, emit, others))


def tiles(k: Anchor, rows: int, columns: int) -> Expr:
    """How many tiles of this size the result has."""
    *batch, m, _ = map(k.extent, k.dims(X))
    return product([*batch, ceildiv(m, rows), ceildiv(k.extent(k.dims(Y)[-1]), columns)])


def either(condition: Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """One of two pieces of code, chosen now if the condition is known."""
    if isinstance(condition, tirx.IntImm | bool):
        (then if bool(condition) else otherwise)()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()
