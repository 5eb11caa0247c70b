"""What the user says about dynamic dimensions, and examples large enough to trace with.

A specification follows torch's: a dict by argument name (or a tuple by position) of, per tensor, ``{axis: dim}`` or one
dim per axis. A dim is a name ``"L"``, a name with limits ``"L:1..8192"``, a multiple ``"4*C"``, or ``torch.export.Dim``.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.export import Dim as TorchDim

from coilc.ir import CoilError, Dim, InputError, dims
from coilc.ir.core import Range
from coilc.ir.dims import parse_dim

_LIMITS = re.compile(r"^(?P<name>[^:]+):(?P<low>\d+)\.\.(?P<high>\d*)$")


@dataclass
class Dynamic:
    """Dynamic axes of the arguments, ready for ``torch.export``.

    Attributes:
        axes: per leaf tensor, by its path in the arguments, axis to dimension.
        ranges: symbol to (low, high); a high of None that the user did not state may be narrowed by the model.
        hints: per leaf, axis to what torch takes itself (``Dim.AUTO`` and the like).
    """

    axes: dict[tuple[Any, ...], dict[int, Dim]] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    stated: set[str] = field(default_factory=set)
    hints: dict[tuple[Any, ...], dict[int, Any]] = field(default_factory=dict)

    def torch_shapes(self, arguments: Mapping[str, Any]) -> Any:
        """The specification for ``torch.export.export``."""
        symbols = {name: TorchDim(name, min=low, max=high) for name, (low, high) in self.ranges.items()}
        return _mapped(arguments, lambda path, _: self._leaf(path, symbols))

    def _leaf(self, path: tuple[Any, ...], symbols: Mapping[str, Any]) -> dict[int, Any] | None:
        ours = {axis: _torch_dim(dim, symbols) for axis, dim in self.axes.get(path, {}).items()}
        return {**ours, **self.hints.get(path, {})} or None

    def examples(self, arguments: Mapping[str, Any]) -> Any:
        """The arguments with dynamic extents of at least 2, because torch takes an extent of 1 for a constant."""
        chosen = self._extents(arguments)
        return _mapped(
            arguments,
            lambda path, x: _resized(x, {a: dims.evaluate(d, chosen) for a, d in self.axes.get(path, {}).items()}),
        )

    def held(self, arguments: Mapping[str, Any], extents: Mapping[str, int | None]) -> tuple[Any, Dynamic]:
        """Arguments in which some symbols have the given extents (``None``: the one they have), and the other dims."""
        chosen = {name: extent or self._given(arguments)[name] for name, extent in extents.items()}
        mine = {
            path: {a: d for a, d in axes.items() if {*dims.symbols(d)} <= {*chosen}} for path, axes in self.axes.items()
        }
        rest = {path: {a: d for a, d in axes.items() if a not in mine[path]} for path, axes in self.axes.items()}
        resized = _mapped(
            arguments, lambda path, x: _resized(x, {a: dims.evaluate(d, chosen) for a, d in mine.get(path, {}).items()})
        )
        ranges = {name: limits for name, limits in self.ranges.items() if name not in chosen}
        return resized, Dynamic(rest, ranges, self.stated, self.hints)

    def _extents(self, arguments: Mapping[str, Any]) -> dict[str, int]:
        found = self._given(arguments)
        return {name: self._usable(name, found.get(name, 2)) for name in self.ranges}

    def _given(self, arguments: Mapping[str, Any]) -> dict[str, int]:
        """The extents of the symbols in the user's example, where an axis is exactly the symbol."""
        found: dict[str, int] = {}
        for path, tensor in leaves(arguments):
            for axis, dim in self.axes.get(path, {}).items():
                names = list(dims.symbols(dim))
                if len(names) == 1 and dim == dims.symbol(names[0]):
                    found.setdefault(names[0], tensor.shape[axis])
        return found

    def _usable(self, name: str, extent: int) -> int:
        low, high = self.ranges[name]
        at_least = max(extent, low, 2)
        return at_least if high is None else min(at_least, high)


class Arguments:
    """A call's arguments by parameter name, ``*args`` as a tuple and ``**kwargs`` as a dict, as torch.export counts them.

    Raises:
        InputError: the arguments do not fit ``forward``.
    """

    def __init__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        try:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"the example arguments do not fit {type(module).__name__}.forward: {error}") from None
        self.values: dict[str, Any] = dict(bound.arguments)
        self.parameters = bound.signature.parameters

    def path(self, name: str) -> tuple[Any, ...]:
        """Where the argument called ``name`` is.

        Raises:
            InputError: the call has no such argument.
        """
        if name in self.values:
            return (name,)
        rest = self._named(inspect.Parameter.VAR_KEYWORD)
        if rest and name in self.values.get(rest, {}):
            return (rest, name)
        raise InputError(f"dynamic_shapes names '{name}', the model's arguments are {', '.join(self.values)}")

    def call(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Other values of the same structure as positional and keyword arguments, passed as the user passes them."""
        positional: list[Any] = []
        for name, parameter in self.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional += values.get(name, ())
            elif name in values and len(positional) < len(self.args):
                positional.append(values[name])
        rest = values.get(self._named(inspect.Parameter.VAR_KEYWORD) or "", {})
        return tuple(positional[: len(self.args)]), {name: values.get(name, rest.get(name)) for name in self.kwargs}

    def _named(self, kind: Any) -> str | None:
        return next((name for name, parameter in self.parameters.items() if parameter.kind is kind), None)


def parse_dynamic(arguments: Arguments, specification: Any) -> Dynamic:
    """Read a specification against the arguments.

    Raises:
        InputError: a name that is no argument or that is one already, an axis that the tensor lacks, one symbol with
            two ranges.
    """
    result = Dynamic()
    for name, spec in _by_name(arguments.values, specification or {}).items():
        if spec is not None:
            path = arguments.path(name)
            _read(result, path, functools.reduce(operator.getitem, path, arguments.values), spec)
    for name in result.ranges.keys() & arguments.values.keys():
        raise InputError(f"'{name}' names both a dimension and an argument; call the dimension something else")
    return result


def _by_name(arguments: Mapping[str, Any], specification: Any) -> dict[str, Any]:
    if isinstance(specification, Mapping):
        return dict(specification)
    names = list(arguments)
    if len(specification) > len(names):
        raise InputError(f"dynamic_shapes has {len(specification)} entries for {len(names)} arguments")
    return dict(zip(names, specification, strict=False))


def _read(result: Dynamic, path: tuple[Any, ...], value: Any, spec: Any) -> None:
    if isinstance(value, torch.Tensor):
        axes = spec if isinstance(spec, Mapping) else dict(enumerate(spec))
        for axis, dim in axes.items():
            _read_axis(result, path, value, axis, dim)
        return
    if not isinstance(value, Mapping | list | tuple):
        raise InputError(f"dynamic_shapes gives axes of '{_shown(path)}', which is no tensor")
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in pairs:
        inner = spec.get(key) if isinstance(spec, Mapping) else spec[key] if key < len(spec) else None
        if inner is not None:
            _read(result, (*path, key), item, inner)


def _read_axis(result: Dynamic, path: tuple[Any, ...], tensor: torch.Tensor, axis: int, dim: Any) -> None:
    if dim is None or isinstance(dim, int):
        return
    if not isinstance(axis, int) or not -tensor.dim() <= axis < tensor.dim():
        raise InputError(f"dynamic_shapes gives axis {axis} of '{_shown(path)}', which has {tensor.dim()} axes")
    axis %= tensor.dim()
    if not isinstance(dim, str) and not hasattr(dim, "__name__"):
        result.hints.setdefault(path, {})[axis] = dim
        return
    polynomial, limits = _parsed(dim)
    result.axes.setdefault(path, {})[axis] = polynomial
    for name in dims.symbols(polynomial):
        _state_range(result, name, limits)


def _shown(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _state_range(result: Dynamic, name: str, limits: Range | None) -> None:
    if limits is None:
        result.ranges.setdefault(name, (1, None))
        return
    if name in result.stated and result.ranges[name] != limits:
        raise InputError(f"dimension '{name}' has two ranges, {result.ranges[name]} and {limits}")
    result.ranges[name] = limits
    result.stated.add(name)


def _parsed(dim: Any) -> tuple[Dim, Range | None]:
    """The dimension, and its range if the user states one."""
    if isinstance(dim, str):
        found = _LIMITS.match(dim)
        text, limits = (
            (found["name"], (int(found["low"]), int(found["high"]) if found["high"] else None))
            if found
            else (dim, None)
        )
        return _polynomial(text), limits
    root = getattr(dim, "root", dim)
    low, high = getattr(root, "min", 1), getattr(root, "max", None)
    unbounded = not isinstance(high, int) or high >= 2**31
    polynomial = _polynomial(dim.__name__)
    if low <= 1 and unbounded:
        return polynomial, None
    return polynomial, (max(int(low), 1), None if unbounded else high)


def _polynomial(text: str) -> Dim:
    polynomial = parse_dim(text)
    if isinstance(polynomial, int) or len(set(dims.symbols(polynomial))) != 1:
        raise InputError(f"'{text}' is not a dynamic dimension; use a name, or a multiple of one like 4*C")
    return polynomial


def _torch_dim(dim: Dim, symbols: Mapping[str, Any]) -> Any:
    """``a*S + b`` as torch writes derived dimensions."""
    name = next(iter(dims.symbols(dim)))
    offset = dims.evaluate(dim, {name: 0})
    factor = dims.evaluate(dim, {name: 1}) - offset
    if dim != factor * dims.symbol(name) + offset:
        raise InputError(f"torch can only trace dimensions of the form a*{name} + b, not {dim}")
    scaled = symbols[name] if factor == 1 else factor * symbols[name]
    return scaled + offset if offset else scaled


_SUGGESTION = re.compile(r"^\s+(\w+) = (.+)$", re.MULTILINE)
_SUGGESTED_DIM = re.compile(r"^Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)$")


def narrowed(dynamic: Dynamic, complaint: str) -> bool:
    """Narrow the ranges that the user left open to what torch says the model can do; whether that changed anything.

    Raises:
        CoilError: the model fixes a dimension, or takes less than the range that the user states.
    """
    changed = False
    for name, suggestion in _suggestions(dynamic, complaint):
        low, high = dynamic.ranges[name]
        if suggestion.isdigit():
            raise CoilError(
                f"dimension '{name}' is fixed to {suggestion} by the model's Python code (a loop or an if over it); "
                f"give lengths=(7, 11) to export it at two lengths and make one program of both, make it static, "
                f"or write the loop as an operation over the whole axis"
            )
        found = _SUGGESTED_DIM.match(suggestion)
        if found is None:
            continue
        limits = (max(low, int(found[1] or low)), int(found[2]) if found[2] else high)
        if limits != (low, high) and name in dynamic.stated:
            asked, possible = (f"{a}..{'' if b is None else b}" for a, b in ((low, high), limits))
            raise CoilError(f"the model takes '{name}' only in {possible}, dynamic_shapes asks for {asked}")
        changed |= limits != (low, high)
        dynamic.ranges[name] = limits
    return changed


def _suggestions(dynamic: Dynamic, complaint: str) -> list[tuple[str, str]]:
    found = _SUGGESTION.findall(complaint.partition("Suggested fixes:")[2])
    return [(name, suggestion) for name, suggestion in found if name in dynamic.ranges]


def refusal(dynamic: Dynamic, complaint: str, assumption: str) -> CoilError:
    """Why the dimensions cannot be what the user asks for, from torch's complaint or a condition that does not hold."""
    for name, suggestion in _suggestions(dynamic, complaint):
        if not _SUGGESTED_DIM.match(suggestion):
            return CoilError(
                f"the model takes dimension '{name}' only as {suggestion}; "
                f'write that in dynamic_shapes, for instance "{suggestion.replace("_", "")}"'
            )
    return CoilError(
        f"the model was traced for sizes where {assumption}, which not every size in dynamic_shapes fulfils"
    )


def broken_assumption(program: torch.export.ExportedProgram) -> str | None:
    """A condition on sizes that the trace relies on and that some size breaks.

    torch can defer what it cannot prove to checks at run time. Each is evaluated here at small extents and near the
    limits of the ranges instead, so that the artifact needs none. A condition that excludes an extent of 1 is torch's
    way of saying that it was not treated specially, which is right at 1 too; other inequalities are tried from extent 2
    on.
    """
    ranges = {symbol: (max(int(r.lower), 1), r.upper) for symbol, r in program.range_constraints.items()}
    for node in program.graph.nodes:
        condition = node.args[0].meta.get("val") if str(node.target) == "aten._assert_scalar.default" else None
        if isinstance(condition, torch.SymBool) and not _holds(condition.node.expr, ranges):
            return str(condition.node.expr)
    return None


def _holds(condition: sympy.Basic, ranges: Mapping[Any, tuple[int, Any]]) -> bool:
    symbols = sorted(condition.free_symbols, key=str)
    if _excludes_an_extent_of_one(condition):
        return True
    if any(symbol not in ranges for symbol in symbols):
        return True  # about values, not sizes
    start = 2 if isinstance(condition, sympy.Ne) else 1
    extents = [_tried(*ranges[symbol], start) for symbol in symbols]
    return all(
        condition.subs(dict(zip(symbols, values, strict=True))) != sympy.false for values in itertools.product(*extents)
    )


def _excludes_an_extent_of_one(condition: sympy.Basic) -> bool:
    """``n != 1``, ``n > 1``, and the same of two strides, ``m != m*n``; emptiness, ``n != 0``, is excluded anyway."""
    if isinstance(condition, sympy.Gt):
        return condition.rhs == 1
    if not isinstance(condition, sympy.Ne):
        return False
    return bool({0, 1} & set(condition.args)) or 1 in (condition.rhs / condition.lhs).as_numer_denom()


def _tried(low: int, high: Any, start: int) -> list[int]:
    """Extents to try: the smallest ones, and large ones up to the limit."""
    top = int(high) if isinstance(high, sympy.Integer | int) else 1 << 20
    wanted = [*range(max(low, start), 20), 63, 64, 65, 127, 128, 1000, top - 1, top]
    return sorted({n for n in wanted if max(low, start) <= n <= top}) or [low]


# --- nested arguments -------------------------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            yield from leaves(item, (*path, key))


def _mapped(value: Any, function: Any, path: tuple[Any, ...] = ()) -> Any:
    """The same structure with ``function(path, leaf)`` at the leaves."""
    if isinstance(value, Mapping):
        return {key: _mapped(item, function, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_mapped(item, function, (*path, i)) for i, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(path, value)


def _resized(x: Any, extents: Mapping[int, int]) -> Any:
    """A copy of the tensor, repeated cyclically along axes whose extent must grow.

    Dense, or torch takes its strides to matter; and not the tensor itself, which could be two arguments at once.
    """
    if not isinstance(x, torch.Tensor):
        return x
    for axis, extent in extents.items():
        if x.shape[axis] != extent:
            if x.shape[axis] == 0:
                raise InputError("an example with an empty dynamic axis cannot be traced")
            x = x.index_select(axis, torch.arange(extent, device=x.device) % x.shape[axis])
    return x.clone(memory_format=torch.contiguous_format)
