"""Matrix products on a device: which kernel runs, by what is known of the operands here and by their size there."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...scalar import Expr, inside_loop
from ..anchor import Anchor
from ..loops import i64, product
from ..matmul import X
from .few_rows import emit_few_rows
from .simt_matmul import LARGE, SMALL, emit_simt, grid

FEW = 8  # rows that are multiplied while the right operand is read


def emit_matmul(k: Anchor) -> bool:
    """Write the launches of x[..., M, K] @ y[..., K, N] with its epilogue; the host picks one."""
    if inside_loop():
        return False
    rows = k.extent(k.dims(X)[-2])
    few = [lambda: emit_few_rows(k, 1), lambda: emit_few_rows(k, FEW)]
    either(rows <= i64(FEW), lambda: either(rows <= i64(1), *few), lambda: _many_rows(k))
    return True


def _many_rows(k: Anchor) -> None:
    """Tiles so large that there is one for each multiprocessor."""
    multiprocessors = k.target.cores // 4
    enough = product(grid(k, LARGE)) >= i64(multiprocessors)
    either(enough, lambda: emit_simt(k, LARGE), lambda: emit_simt(k, SMALL))


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
