"""What an op is: one ``OpDef`` per op, declared once in ``ir/ops``; everything else is derived from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import dims as d
from .core import Array, Graph, Node, Value
from .errors import CoilError, TypeRuleError
from .types import DType, TensorType

Infer = Callable[..., "TensorType | tuple[TensorType, ...]"]

ELEMENTWISE = "elementwise"  # result[i] depends on operands[i] only; operands broadcast and share a dtype
MOVEMENT = "movement"  # every result element is a copy of one operand element or a constant
REDUCTION = "reduction"  # attrs ``axes``, ``keepdims``
COMMUTATIVE = "commutative"
MIXER = "mixer"  # what a token takes from others: recurrences, attention, convolutions along time
IN_PLACE = "in place"  # the result is the first operand but for what is written: kernels find that operand there
STRUCTURAL = "structural"  # input, weight, constant, fused: handled by name in every layer


@dataclass(frozen=True)
class Example:
    """Operands for the generated tests: types in IR text, attributes, and the range that values are drawn from.

    ``low``/``high`` bound random floats and integers of every operand; ``ranges`` overrides them per operand index, and
    ``values`` gives operands that cannot be drawn at random.
    """

    types: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    low: float = -2.0
    high: float = 2.0
    ranges: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    values: Mapping[int, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class BadExample:
    """Operands that inference must refuse, with a fragment of the message."""

    types: tuple[str, ...]
    attrs: Mapping[str, Any]
    message: str


@dataclass(frozen=True, eq=False)
class OpDef:
    """An operation of the IR.

    Attributes:
        name: the name in IR text.
        infer: operand types and keyword-only attributes to the result type(s); its keywords *are* the op's attributes.
        reference: NumPy arrays and attributes to the result array(s). This is the definition of the op.
        decompose: values and attributes to value(s) in simpler ops; absent for a core op, which every target lowers.
        flops: operand types and attributes to a count of floating-point operations (a dimension).
        traits: see the constants of this module.
        aliases: importer name to the names it uses, for instance ``{"aten": ("aten.exp.default",)}``.
        awkward: every elementwise law also runs on 0, tiny, +-88, +-100, infinities and NaN unless this is false.
    """

    name: str
    infer: Infer
    reference: Callable[..., Any]
    decompose: Callable[..., Any] | None = None
    flops: Callable[..., Any] | None = None
    traits: frozenset[str] = frozenset()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    bad_examples: tuple[BadExample, ...] = ()
    awkward: bool = True
    doc: str = ""

    def __post_init__(self) -> None:
        if self.name in OPS:
            raise ValueError(f"op '{self.name}' is declared twice")
        OPS[self.name] = self

    @property
    def is_core(self) -> bool:
        return self.decompose is None

    @cached_property
    def attributes(self) -> Mapping[str, inspect.Parameter]:
        """The op's attributes: the keyword-only parameters of ``infer``."""
        parameters = inspect.signature(self.infer).parameters.items()
        return {name: p for name, p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def infer_types(self, types: tuple[TensorType, ...], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
        """Result types.

        Raises:
            TypeRuleError: naming the op, its operand types and the rule that failed.
        """
        try:
            result = self.infer(*types, **attrs)
        except CoilError as error:
            raise TypeRuleError(f"{self._call(types)}: {error.message}", error.location) from None
        except TypeError:
            raise TypeRuleError(
                f"{self._call(types)}: does not fit {self.usage}; given {dict(attrs) or 'no attributes'}"
            ) from None
        return result if isinstance(result, tuple) else (result,)

    @property
    def usage(self) -> str:
        """The op's operands and attributes, ``sum(x, axes, keepdims=False)``."""
        parts = []
        for name, parameter in inspect.signature(self.infer).parameters.items():
            star = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else ""
            default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
            parts.append(f"{star}{name}{default}")
        return f"{self.name}({', '.join(parts)})"

    def _call(self, types: tuple[TensorType, ...]) -> str:
        return f"{self.name}({', '.join(map(str, types))})"

    def node(self, *inputs: Value | bool | float, **attrs: Any) -> Node:
        """Build the node; attributes left out take their defaults. Elementwise operands are broadcast explicitly."""
        defaults = {n: p.default for n, p in self.attributes.items() if p.default is not inspect.Parameter.empty}
        given = defaults | attrs
        ordered = {name: given.pop(name) for name in self.attributes if name in given} | given
        ordered = {name: _canonical(name, value) for name, value in ordered.items()}
        operands = self._broadcast(inputs) if ELEMENTWISE in self.traits else inputs
        return Node.make(self, tuple(v if isinstance(v, Value) else literal(v) for v in operands), ordered)

    def _broadcast(self, inputs: tuple[Any, ...]) -> tuple[Value, ...]:
        try:
            return _broadcast(inputs)
        except CoilError as error:
            raise TypeRuleError(f"{self.name}: {error.message}") from None

    def __call__(self, *inputs: Value | bool | float, **attrs: Any) -> Any:
        """The node's value, or a tuple of values when the op has several results."""
        results = self.node(*inputs, **attrs).results
        return results[0] if len(results) == 1 else results

    def __repr__(self) -> str:
        return f"<op {self.name}>"


_PLAIN = (int, float, str, d.SymDim, DType, TensorType, Graph, Array)


def _canonical(name: str, value: Any) -> Any:
    """Lists become tuples and NumPy numbers Python's, so that equal attributes are equal and all of them print."""
    if isinstance(value, tuple | list):
        return tuple(_canonical(name, item) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, _PLAIN):
        raise TypeRuleError(f"attribute '{name}' cannot hold a {type(value).__name__}")
    return value


OPS: dict[str, OpDef] = {}


def literal(value: Any, dtype: DType | None = None) -> Value:
    """A constant from a Python number or small array."""
    array = np.asarray(value)
    if dtype is not None:
        exact = dtype.kind in ("float", "complex") or np.array_equal(array, array.astype(dtype.numpy))
        if not exact:
            raise TypeRuleError(f"{value} is not a value of {dtype}; cast the other operand first")
        array = array.astype(dtype.numpy)
    return Value(OPS["constant"].node(value=Array(array)))


def _broadcast(inputs: tuple[Any, ...]) -> tuple[Value, ...]:
    """Turn numbers into constants of the operands' dtype and expand every operand to the common dims."""
    values = [v for v in inputs if isinstance(v, Value)]
    dtype = next((v.type.dtype for v in reversed(values)), None)
    operands = [v if isinstance(v, Value) else literal(v, dtype) for v in inputs]
    dims = broadcast_dims([v.dims for v in operands])
    return tuple(v if v.dims == dims else OPS["broadcast"](v, dims=dims) for v in operands)


def broadcast_dims(shapes: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """NumPy's broadcasting rule over symbolic dims: right-aligned, 1 expands, anything else must be equal."""
    result: list[Any] = []
    for position in range(1, max(map(len, shapes), default=0) + 1):
        found = [s[-position] for s in shapes if len(s) >= position and s[-position] != 1]
        if any(dim != found[0] for dim in found):
            shown = " and ".join(f"[{', '.join(map(str, s))}]" for s in shapes)
            raise TypeRuleError(f"dims {shown} do not broadcast together")
        result.append(found[0] if found else 1)
    return tuple(reversed(result))
