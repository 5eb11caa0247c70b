"""What the user says about dynamic dimensions, and examples large enough to trace with.

A specification follows torch's: a dict by argument name (or a tuple by position) of, per tensor, ``{axis: dim}`` or one
dim per axis. A dim is a name ``"L"``, a name with limits ``"L:1..8192"``, a multiple ``"4*C"``, or ``torch.export.Dim``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
        return _mapped(arguments, lambda path, x: _resized(x, {a: dims.evaluate(d, chosen) for a, d in self.axes.get(path, {}).items()}))

    def _extents(self, arguments: Mapping[str, Any]) -> dict[str, int]:
        found: dict[str, int] = {}
        for path, tensor in leaves(arguments):
            for axis, dim in self.axes.get(path, {}).items():
                names = list(dims.symbols(dim))
                if len(names) == 1 and dim == dims.symbol(names[0]):
                    found.setdefault(names[0], tensor.shape[axis])
        return {name: self._usable(name, found.get(name, 2)) for name in self.ranges}

    def _usable(self, name: str, extent: int) -> int:
        low, high = self.ranges[name]
        at_least = max(extent, low, 2)
        return at_least if high is None else min(at_least, high)


def parse_dynamic(arguments: Mapping[str, Any], specification: Any) -> Dynamic:
    """Read a specification against the arguments.

    Raises:
        InputError: a name that is no argument, an axis that the tensor lacks, or one symbol with two ranges.
    """
    result = Dynamic()
    by_name = _by_name(arguments, specification or {})
    for name, spec in by_name.items():
        if spec is None:
            continue
        if name not in arguments:
            raise InputError(f"dynamic_shapes names '{name}', the model's arguments are {', '.join(arguments)}")
        _read(result, (name,), arguments[name], spec)
    return result


def arguments_of(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by parameter name, ``*args`` as a tuple, as torch.export counts them.

    Raises:
        InputError: the arguments do not fit ``forward``.
    """
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"the example arguments do not fit {type(module).__name__}.forward: {error}") from None
    arguments = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments


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
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in pairs:
        inner = spec.get(key) if isinstance(spec, Mapping) else spec[key] if key < len(spec) else None
        if inner is not None:
            _read(result, (*path, key), item, inner)


def _read_axis(result: Dynamic, path: tuple[Any, ...], tensor: torch.Tensor, axis: int, dim: Any) -> None:
    shown = ".".join(map(str, path))
    if dim is None or isinstance(dim, int):
        return
    if not isinstance(axis, int) or not -tensor.dim() <= axis < tensor.dim():
        raise InputError(f"dynamic_shapes gives axis {axis} of '{shown}', which has {tensor.dim()} axes")
    axis %= tensor.dim()
    if not isinstance(dim, str) and not hasattr(dim, "__name__"):
        result.hints.setdefault(path, {})[axis] = dim
        return
    polynomial, limits = _parsed(dim)
    result.axes.setdefault(path, {})[axis] = polynomial
    for name in dims.symbols(polynomial):
        _state_range(result, name, limits)


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
        text, limits = (found["name"], (int(found["low"]), int(found["high"]) if found["high"] else None)) if found else (dim, None)
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
        CoilError: the model cannot take the dimension as it was asked for.
    """
    suggestions = dict(_SUGGESTION.findall(complaint.partition("Suggested fixes:")[2]))
    changed = False
    for name, (low, high) in list(dynamic.ranges.items()):
        suggestion = suggestions.get(name)
        if suggestion is None:
            continue
        found = _SUGGESTED_DIM.match(suggestion)
        if found is None:
            raise CoilError(_refusal(name, suggestion))
        limits = (max(low, int(found[1] or low)), int(found[2]) if found[2] else high)
        if limits == (low, high):
            continue
        if name in dynamic.stated:
            raise CoilError(f"the model takes '{name}' only in {limits[0]}..{limits[1] or ''}, dynamic_shapes asks for {low}..{high or ''}")
        dynamic.ranges[name], changed = limits, True
    return changed


def _refusal(name: str, suggestion: str) -> str:
    if suggestion.isdigit():
        return (
            f"dimension '{name}' is fixed to {suggestion} by the model's Python code (a loop or an if over it); "
            f"make it static, or write the loop as an operation over the whole axis"
        )
    return f"the model takes dimension '{name}' only as {suggestion}; name the factor instead, for instance \"{suggestion}\""


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
    """The tensor repeated cyclically along axes whose extent must grow."""
    if not isinstance(x, torch.Tensor):
        return x
    for axis, extent in extents.items():
        if x.shape[axis] != extent:
            if x.shape[axis] == 0:
                raise InputError("an example with an empty dynamic axis cannot be traced")
            x = x.index_select(axis, torch.arange(extent, device=x.device) % x.shape[axis])
    return x
