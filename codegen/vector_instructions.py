"""Instructions of one processor, which LLVM knows by the width of their vectors only.

Kernels are written for single elements, with ``of_elements``. What the vectoriser makes of that, a call of the widest form on
vectors of any width, becomes calls that LLVM has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .scalar import Expr

FRACTION = "x86.avx512.mask.reduce.ps"  # x - floor(x)
TIMES_POWER = "x86.avx512.mask.scalef.ps"  # x * 2**floor(y)
_IMMEDIATES: Mapping[str, tuple[int, ...]] = {FRACTION: (1,), TIMES_POWER: ()}  # 1: whole numbers are rounded down
NARROWEST, WIDEST = 4, 16  # elements


def _number(name: str, width: int) -> int:
    return T.llvm_lookup_intrinsic_id(f"llvm.{name}.{32 * width}")


_BY_NUMBER = {_number(name, WIDEST): name for name in _IMMEDIATES}


def of_elements(name: str, *operands: Expr) -> Expr:
    """One of these instructions on elements."""
    return T.call_llvm_pure_intrin("float32", _number(name, WIDEST), *operands)


def in_registers(call: tvm.ir.Call) -> Expr:
    """The call on vectors that LLVM has an intrinsic for, where it is one of ours."""
    if not call.op.same_as(tvm.ir.Op.get("tirx.call_llvm_pure_intrin")):
        return call
    name = _BY_NUMBER.get(int(call.args[0]))
    lanes = tvm.DataType(str(call.ty.dtype)).lanes
    return call if name is None else _by_width(name, call.args[1:], lanes)


def _by_width(name: str, operands: Sequence[Expr], lanes: int) -> Expr:
    width = min(max(lanes, NARROWEST), WIDEST)
    starts = range(0, lanes, width)
    parts = [_call(name, width, [_take(x, lanes, start, width) for x in operands]) for start in starts]
    return tirx.Shuffle(parts, list(range(lanes)))


def _take(x: Expr, lanes: int, start: int, width: int) -> Expr:
    """Neighbouring elements of a vector, which is repeated where it has too few."""
    if lanes == 1:
        return tirx.Broadcast(x, width)
    return x if lanes == width else tirx.Shuffle([x] * -(-width // lanes), list(range(start, start + width)))


def _call(name: str, width: int, operands: Sequence[Expr]) -> Expr:
    """The instruction on whole vectors: no lane is masked, and results are rounded as always."""
    numbers = [tirx.const(number, "int32") for number in _IMMEDIATES[name]]
    mask = tirx.const(-1, "int16" if width == WIDEST else "int8")
    rounding = [tirx.const(4, "int32")] if width == WIDEST else []
    arguments = (*operands, *numbers, operands[0], mask, *rounding)
    return T.call_llvm_pure_intrin(f"float32x{width}", _number(name, width), *arguments)
