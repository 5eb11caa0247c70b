"""Type rules that many ops share; each raises ``TypeRuleError`` with the rule that failed."""

from __future__ import annotations

from collections.abc import Iterable

from .. import dims as d
from ..errors import TypeRuleError
from ..types import Kind, TensorType

FLOAT = frozenset[Kind]({"float"})
FLOATING = frozenset[Kind]({"float", "complex"})
INTEGER = frozenset[Kind]({"int", "uint"})
BITS = frozenset[Kind]({"int", "uint", "bool"})
BOOL = frozenset[Kind]({"bool"})
REAL = frozenset[Kind]({"float", "int", "uint"})
NUMBER = REAL | frozenset[Kind]({"complex"})
ORDERED = REAL | BOOL
ANY = NUMBER | BOOL


def require(condition: bool, message: str) -> None:
    """Refuse the operands with ``message`` unless ``condition`` holds."""
    if not condition:
        raise TypeRuleError(message)


def show(dims: Iterable[d.Dim]) -> str:
    """Dims as they appear in a type: ``[B, L, 4]``."""
    return f"[{', '.join(map(str, dims)) or '()'}]"


def of_kind(kinds: frozenset[Kind], *operands: TensorType) -> None:
    """Every operand's element type is of one of ``kinds``."""
    for operand in operands:
        wanted = " or ".join(sorted(kinds))
        require(operand.dtype.kind in kinds, f"takes {wanted} operands, not {operand.dtype}; cast first")


def same_type(*operands: TensorType) -> TensorType:
    """All operands have one type, which is the result's."""
    require(
        all(t == operands[0] for t in operands), "operands must have one dtype and equal dims; cast or broadcast first"
    )
    return operands[0]


def same_dtype(*operands: TensorType) -> None:
    """All operands have one element type."""
    require(len({t.dtype for t in operands}) <= 1, "operands must have one dtype; cast first")


def ranked(name: str, operand: TensorType, letters: Iterable[str]) -> d.Dims:
    """The operand's dims when its rank is the number of ``letters`` (``"BLD"``)."""
    letters = tuple(letters)
    wanted = f"[{', '.join(letters)}]"
    require(operand.rank == len(letters), f"{name} must be {wanted}, not {show(operand.dims)}")
    return operand.dims


def shaped(name: str, operand: TensorType, dims: d.Dims) -> None:
    """The operand has exactly these dims."""
    require(operand.dims == dims, f"{name} must have dims {show(dims)}, not {show(operand.dims)}")


def axis_of(operand: TensorType, *axes: int) -> None:
    """Axes are counted from the front, within the rank, increasing and distinct."""
    for axis in axes:
        fits = isinstance(axis, int) and 0 <= axis < operand.rank
        require(fits, f"axis {axis} is not in 0..{operand.rank - 1}; axes count from the front")
    require(list(axes) == sorted(set(axes)), f"axes {axes} must be increasing and distinct")


def per_axis(operand: TensorType, **attributes: tuple[object, ...]) -> None:
    """Each attribute has one entry per axis."""
    for name, value in attributes.items():
        require(len(value) == operand.rank, f"{name} has {len(value)} entries for {operand.rank} axes")


def known(what: str, *dims: d.Dim) -> tuple[int, ...]:
    """The dims as integers; they must not be symbolic."""
    sizes = tuple(dim for dim in dims if isinstance(dim, int))
    require(len(sizes) == len(dims), f"{what} must be known, not {show(dims)}")
    return sizes


def replace_dim(operand: TensorType, axis: int, *dims: d.Dim) -> TensorType:
    """The type with the extent at ``axis`` replaced by ``dims`` (none removes the axis)."""
    return operand.with_dims((*operand.dims[:axis], *dims, *operand.dims[axis + 1 :]))


def at_most(low: d.Dim, high: d.Dim) -> bool:
    """Whether ``low <= high`` is possible; a symbol may be any size from 0."""
    largest = d.bounds(high - low, {})[1]
    return largest is None or largest >= 0


def divided(what: str, dividend: d.Dim, divisor: d.Dim) -> d.Dim:
    """``dividend / divisor``, which must be exact."""
    quotient = d.divide_exactly(dividend, divisor)
    if quotient is None:
        raise TypeRuleError(f"{what}: {dividend} is not a multiple of {divisor}")
    return quotient


def broadcasts_to(name: str, operand: TensorType, dims: d.Dims) -> None:
    """The operand's dims, aligned on the right, are 1 or equal to ``dims``."""
    kept = dims[len(dims) - operand.rank :]
    fits = operand.rank <= len(dims) and all(a in (1, b) for a, b in zip(operand.dims, kept, strict=True))
    require(fits, f"{name} {show(operand.dims)} cannot be broadcast to {show(dims)}: a dim must be 1 or equal")


def optional_operands(
    values: tuple[TensorType, ...], optional: tuple[str, ...], known: tuple[str, ...]
) -> dict[str, TensorType]:
    """Operands that follow the fixed ones, by the names in attribute ``optional``, in the order of ``known``."""
    require(list(optional) == [n for n in known if n in optional], f"optional must be some of {known}, in this order")
    require(len(values) == len(optional), f"{len(values)} optional operands for {len(optional)} names")
    return dict(zip(optional, values, strict=True))
