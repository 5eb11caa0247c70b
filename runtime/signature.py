"""What an entry takes and gives: tensor types over symbolic dims, and solving the symbols from concrete shapes."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import InputError

Shape = tuple[int, ...]
_Evaluate = Callable[[Mapping[str, int]], int]
LONGEST_DIM, MOST_TERMS = 4096, 400  # characters; nodes of its syntax tree
_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}


def parse_dim(dim: int | str) -> _Evaluate:
    """A function from symbol values to the extent that ``"B*L + 1"`` denotes.

    Raises:
        InputError: it is no such expression, or one so long that evaluating it could exhaust the stack.
    """
    return _evaluator(_tree(dim))


def dim_symbols(dim: int | str) -> frozenset[str]:
    """The names of the symbols in a dim."""
    return frozenset(node.id for node in ast.walk(_tree(dim)) if isinstance(node, ast.Name))


def _tree(dim: int | str) -> ast.expr:
    text = str(dim)
    try:
        tree = ast.parse(text[: LONGEST_DIM + 1], mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _no_dim(text) from None
    if len(text) > LONGEST_DIM or sum(1 for _ in ast.walk(tree)) > MOST_TERMS:
        raise _no_dim(text)
    return tree


def _no_dim(text: str) -> InputError:
    return InputError(f"the manifest has {text[:60]!r} where a dim should be; recompile the artifact")


def _evaluator(tree: ast.expr) -> _Evaluate:
    match tree:
        case ast.Constant(value=value) if type(value) is int:
            return lambda _: value
        case ast.Name(id=name):
            return lambda symbols: symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _evaluator(operand)
            return lambda symbols: -inner(symbols)
        case ast.BinOp(op=ast.FloorDiv(), right=divisor) if not _is_positive(divisor):
            pass
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            apply, a, b = _BINARY[type(op)], _evaluator(left), _evaluator(right)
            return lambda symbols: apply(a(symbols), b(symbols))
    raise _no_dim(ast.unparse(tree))


def _is_positive(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Constant) and type(tree.value) is int and tree.value > 0


@dataclass(frozen=True)
class Tensor:
    """A named, typed tensor of an entry; ``source`` and ``scope`` say which value of the model it equals, if any."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    evaluators: tuple[_Evaluate, ...]
    source: str = ""
    scope: str = ""

    @staticmethod
    def read(row: Mapping[str, Any]) -> Tensor:
        dims = tuple(row["dims"])
        known = {key: row[key] for key in ("source", "scope") if key in row}
        return Tensor(row.get("name", ""), row["dtype"], dims, tuple(map(parse_dim, dims)), **known)

    def shape(self, symbols: Mapping[str, int]) -> Shape:
        """The dims as integers."""
        return tuple(evaluate(symbols) for evaluate in self.evaluators)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.dims)) or '()'}]"


@dataclass(frozen=True)
class Symbol:
    """A named dim: its range, and the input axis whose extent is ``scale*symbol + offset``."""

    name: str
    low: int
    high: int | None
    input: int
    axis: int
    scale: int
    offset: int

    @property
    def range(self) -> str:
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"

    def solve(self, extent: int) -> int | None:
        """The symbol's value, or ``None`` when no value in range gives this extent."""
        value, rest = divmod(extent - self.offset, self.scale)
        return value if not rest and self.low <= value and (self.high is None or value <= self.high) else None


@dataclass(frozen=True)
class Call:
    """One call of the plan, for tracing."""

    kernel: str
    results: tuple[Tensor, ...]


@dataclass(frozen=True)
class Binding:
    """Concrete dims: values of the symbols in order, by name, and the shapes of the outputs."""

    values: tuple[int, ...]
    symbols: Mapping[str, int]
    outputs: tuple[Shape, ...]


class Entry:
    """One entry's signature."""

    def __init__(self, index: int, name: str, row: Mapping[str, Any]) -> None:
        self.index, self.name = index, name
        self.inputs = tuple(map(Tensor.read, row["inputs"]))
        self.outputs = tuple(map(Tensor.read, row["outputs"]))
        self.symbols = tuple(Symbol(**symbol) for symbol in row["symbols"])
        states = row.get("states", ())
        self.state_count = len(states)  # they are the last inputs
        after = {state["output"] for state in states}
        self.results = tuple(i for i in range(len(self.outputs)) if i not in after)
        self._call_rows = row["calls"]
        self._bindings: dict[tuple[Shape, ...], Binding] = {}

    @cached_property
    def in_session(self) -> Entry:
        """The entry as a session sees it: states are neither given nor returned."""
        seen = copy.copy(self)
        seen.inputs = self.inputs[: len(self.inputs) - self.state_count]
        seen.outputs = tuple(self.outputs[i] for i in self.results)
        seen._bindings = {}
        return seen

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(Call(row["kernel"], tuple(map(Tensor.read, row["results"]))) for row in self._call_rows)

    def order(self, given: Mapping[str, Any]) -> list[Any]:
        """The inputs in the entry's order.

        Raises:
            InputError: a name that the entry does not take, or an input that is missing.
        """
        names = [tensor.name for tensor in self.inputs]
        unknown = [name for name in given if name not in names]
        if unknown:
            raise InputError(f"entry '{self.name}' has no input '{unknown[0]}'{suggestion(unknown[0], names)}")
        missing = [str(t) for t in self.inputs if t.name not in given]
        absent = [name for name in names if name not in given]
        if absent:
            raise InputError(f"entry '{self.name}' needs the input '{absent[0]}': {missing[0]}")
        return [given[name] for name in names]

    def bind(self, shapes: Sequence[Shape]) -> Binding:
        """Solve the symbols; remembered per combination of shapes.

        Raises:
            InputError: a rank or extent that does not fit, a symbol out of range, two inputs that disagree.
        """
        key = tuple(shapes)
        binding = self._bindings.get(key)
        if binding is None:
            if len(self._bindings) >= 256:  # a stream of ever new lengths must not grow without end
                self._bindings.clear()
            binding = self._bindings[key] = self._solve(key)
        return binding

    def _solve(self, shapes: Sequence[Shape]) -> Binding:
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(tensor.dims):
                fix = _change_of_rank(tensor.name, len(shape), len(tensor.dims))
                raise InputError(f"input '{tensor.name}' has rank {len(shape)}, the model takes {tensor}; {fix}")
        symbols = {symbol.name: self._solve_symbol(symbol, shapes) for symbol in self.symbols}
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            for axis, (found, expected) in enumerate(zip(shape, tensor.shape(symbols), strict=True)):
                if found != expected:
                    raise InputError(self._disagreement(tensor, axis, found, expected, symbols))
        return Binding(tuple(symbols.values()), symbols, tuple(tensor.shape(symbols) for tensor in self.outputs))

    def _solve_symbol(self, symbol: Symbol, shapes: Sequence[Shape]) -> int:
        extent = shapes[symbol.input][symbol.axis]
        value = symbol.solve(extent)
        if value is None:
            tensor = self.inputs[symbol.input]
            raise InputError(
                f"input '{tensor.name}' has extent {extent} at axis {symbol.axis}; "
                f"{tensor} takes {symbol.name} from {symbol.range}"
            )
        return value

    def _disagreement(self, tensor: Tensor, axis: int, found: int, expected: int, symbols: Mapping[str, int]) -> str:
        text = f"input '{tensor.name}' has extent {found} at axis {axis}; {tensor} needs {expected}"
        used = dim_symbols(tensor.dims[axis])
        origins = [
            f"{s.name} = {symbols[s.name]} from '{self.inputs[s.input].name}'" for s in self.symbols if s.name in used
        ]
        return text + (f" ({', '.join(origins)})" if origins else "")


def _change_of_rank(name: str, found: int, wanted: int) -> str:
    if found == wanted - 1:
        return f"if it lacks the batch, give {name}[None], and for another axis numpy.expand_dims"
    if found == wanted + 1:
        return f"if it has a batch of one too many, give {name}[0], and for another axis numpy.squeeze"
    return f"reshape it to {wanted} axes"


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the closest known one, and all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    return (f", did you mean '{close[0]}'?" if close else ";") + f" it takes {', '.join(names) or 'none'}"
