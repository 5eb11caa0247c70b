"""IR text: Python syntax, printed and parsed. ``print_graph(parse_graph(text)) == text``; the grammar is in docs/ir.md."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np

from . import dims as d
from .core import Array, Graph, Module, Node, Value
from .errors import CoilError, ParseError
from .location import Location, at
from .opdef import OPS
from .types import DTYPES, TensorType

# --- printing -------------------------------------------------------------------------------------------------------


def print_graph(graph: Graph, *, locations: bool = True, indent: str = "") -> str:
    """The text of one graph. Location comments (``# file.py:12``) can be left out, as golden tests do."""
    return "\n".join(_Printer(graph, locations, indent).lines) + "\n"


def print_module(module: Module, *, locations: bool = True) -> str:
    """The text of every entry; weights appear by name and type, never as numbers."""
    return "\n".join(print_graph(graph, locations=locations) for graph in module.entries.values())


def _named_types(graph: Graph) -> list[tuple[str, TensorType]]:
    """Name and type of every input."""
    return [(v.node.attrs["name"], v.type) for v in graph.inputs]


def _quoted(name: str) -> str:
    return repr(name).replace("'", '"')


class _Printer:
    def __init__(self, graph: Graph, locations: bool, indent: str) -> None:
        self.locations, self.indent = locations, indent + "    "
        self.names: dict[Value, str] = {v: v.node.attrs["name"] for v in graph.inputs}
        self.bodies: dict[Graph, str] = {}
        taken = set(self.names.values())
        self.fresh = (name for name in map("v{}".format, count()) if name not in taken)
        self.lines = [indent + self.header(graph)]
        for node in graph.nodes:
            if node.results[0] not in self.names:
                self.statement(node)
        outputs = ", ".join(f"{_quoted(name)}: {self.names[v]}" for name, v in graph.outputs)
        self.lines.append(f"{self.indent}return {{{outputs}}}")

    def header(self, graph: Graph) -> str:
        states = dict(graph.states)
        parameters = [f"{n}: {t}" + (f" = {_quoted(states[n])}" if n in states else "") for n, t in _named_types(graph)]
        if graph.symbols:
            parameters += ["*", *(f"{name}: dim[{lo}:{'' if hi is None else hi}]" for name, (lo, hi) in graph.symbols)]
        return f"def {graph.name}({', '.join(parameters)}):"

    def statement(self, node: Node) -> None:
        for value in node.attrs.values():
            if isinstance(value, Graph) and value not in self.bodies:
                self.body(value)
        targets = [next(self.fresh) for _ in node.types]
        self.names.update(zip(node.results, targets, strict=True))
        left = f"{targets[0]}: {node.types[0]}" if len(targets) == 1 else ", ".join(targets)
        arguments = [self.names[v] for v in node.inputs]
        arguments += [f"{name}={self.attribute(value)}" for name, value in node.attrs.items()]
        comment = f"  # {node.location}" if self.locations and node.location else ""
        self.lines.append(f"{self.indent}{left} = {node.op.name}({', '.join(arguments)}){comment}")

    def body(self, graph: Graph) -> None:
        self.bodies[graph] = f"{graph.name}_{len(self.bodies)}"
        inner = _Printer(graph, self.locations, self.indent)
        inner.lines[0] = inner.lines[0].replace(f"def {graph.name}(", f"def {self.bodies[graph]}(", 1)
        self.lines += inner.lines

    def attribute(self, value: Any) -> str:
        match value:
            case Graph():
                return self.bodies[value]
            case tuple():
                return f"({', '.join(map(self.attribute, value))}{',' if len(value) == 1 else ''})"
            case str():
                return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
            case _:
                return repr(value)


# --- parsing --------------------------------------------------------------------------------------------------------

_COMMENT = re.compile(r"  # (?P<file>[^:]+):(?P<line>\d+)(?: in (?P<scope>\S+))?$")


def parse_graph(text: str) -> Graph:
    """Read one graph.

    Raises:
        ParseError: naming the line and column, and what was expected there.
        TypeRuleError: an op refuses its operands.
    """
    graphs = parse_graphs(text)
    if len(graphs) != 1:
        raise ParseError(f"expected one graph, found {len(graphs)}")
    return graphs[0]


def parse_graphs(text: str) -> tuple[Graph, ...]:
    """Read every top-level graph of ``text``."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ParseError(f"not Python syntax: {error.msg}", Location("<text>", error.lineno or 0)) from None
    lines = text.splitlines()
    return tuple(_Parser(lines).function(_expect(s, ast.FunctionDef, "a graph 'def name(...):'")) for s in tree.body)


def parse_type(text: str) -> TensorType:
    """Read a tensor type, ``f32[B, L, 16]``."""
    try:
        return _type(ast.parse(text, mode="eval").body)
    except SyntaxError:
        raise ParseError(f"expected a type such as f32[B, 4], found '{text}'") from None


def _expect(node: ast.AST, kind: type, what: str) -> Any:
    if not isinstance(node, kind):
        raise _error(node, f"expected {what}, found '{ast.unparse(node)}'")
    return node


def _error(node: ast.AST, message: str) -> ParseError:
    column = getattr(node, "col_offset", 0) + 1
    return ParseError(f"{message} (column {column})", Location("<text>", getattr(node, "lineno", 0)))


def _type(node: ast.AST) -> TensorType:
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in DTYPES:
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            try:
                return TensorType(DTYPES[name], tuple(map(d.dim_from_ast, items)))
            except ParseError as error:
                raise _error(node, error.message) from None
    raise _error(node, f"expected a type such as f32[B, 4], found '{ast.unparse(node)}'")


class _Parser:
    def __init__(self, lines: list[str], bodies: Mapping[str, Graph] | None = None) -> None:
        self.lines = lines
        self.values: dict[str, Value] = {}
        self.bodies: dict[str, Graph] = dict(bodies or {})

    def function(self, tree: ast.FunctionDef) -> Graph:
        for parameter in tree.args.args:
            annotation = parameter.annotation or parameter
            self.define(parameter, parameter.arg, OPS["input"](name=parameter.arg, type=_type(annotation)))
        inputs = tuple(self.values.values())
        symbols = tuple((p.arg, self.range(p.annotation or p)) for p in tree.args.kwonlyargs)
        for statement in tree.body[:-1]:
            self.statement(statement)
        last = _expect(tree.body[-1], ast.Return, "'return {...}' at the end")
        mapping = _expect(last.value or last, ast.Dict, "a dict from output name to value")
        outputs = tuple(
            (self.text(k or mapping), self.value(v)) for k, v in zip(mapping.keys, mapping.values, strict=True)
        )
        defaults = tree.args.defaults
        states = zip(tree.args.args[len(inputs) - len(defaults) :], map(self.text, defaults), strict=True)
        return Graph(tree.name, inputs, outputs, symbols, tuple((p.arg, output) for p, output in states))

    def define(self, tree: ast.AST, name: str, value: Value) -> None:
        if name in self.values:
            raise _error(tree, f"'{name}' is defined twice")
        self.values[name] = value

    def text(self, tree: ast.AST) -> str:
        match tree:
            case ast.Constant(value=str(text)):
                return text
        raise _error(tree, f"expected an output name in quotes, found '{ast.unparse(tree)}'")

    def range(self, tree: ast.AST) -> tuple[int, int | None]:
        match tree:
            case ast.Subscript(
                value=ast.Name(id="dim"),
                slice=ast.Slice(
                    lower=ast.Constant(value=int(low)), upper=None | ast.Constant(value=int()) as high, step=None
                ),
            ):
                return low, int(ast.literal_eval(high)) if high else None
        raise _error(tree, f"expected a range such as dim[1:64], found '{ast.unparse(tree)}'")

    def statement(self, tree: ast.stmt) -> None:
        match tree:
            case ast.FunctionDef(name=name):
                body = _Parser(self.lines, self.bodies).function(tree)
                bare = re.sub(r"_\d+$", "", name)
                self.bodies[name] = Graph(bare, body.inputs, body.outputs, body.symbols)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.Call() as call):
                value = self.single(call)
                if value.type != _type(annotation):
                    raise _error(annotation, f"{name} has type {value.type}, not {ast.unparse(annotation)}")
                self.define(tree, name, value)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                self.define(tree, name, self.single(call))
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Call() as call):
                results = self.call(call)
                if len(names) != len(results):
                    raise _error(call, f"{len(results)} results for {len(names)} names")
                for target, value in zip(names, results, strict=True):
                    self.define(target, _expect(target, ast.Name, "a name").id, value)
            case _:
                raise _error(tree, f"expected 'name: type = op(...)', found '{ast.unparse(tree)}'")

    def single(self, tree: ast.Call) -> Value:
        value, *more = self.call(tree)
        if more:
            raise _error(tree, f"{len(more) + 1} results for 1 name")
        return value

    def call(self, tree: ast.Call) -> tuple[Value, ...]:
        name = _expect(tree.func, ast.Name, "the name of an op").id
        if name not in OPS:
            raise _error(tree, f"there is no op '{name}'; 'coilc ops' lists them")
        comment = _COMMENT.search(self.lines[tree.lineno - 1]) if tree.lineno <= len(self.lines) else None
        location = Location(comment["file"], int(comment["line"]), comment["scope"] or "") if comment else None
        try:
            attrs = {str(k.arg): self.attribute(k.value) for k in tree.keywords}
            with at(location):
                return OPS[name].node(*map(self.value, tree.args), **attrs).results
        except CoilError as error:
            raise error.at(Location("<text>", tree.lineno)) from None

    def value(self, tree: ast.expr) -> Value:
        name = _expect(tree, ast.Name, "the name of a value").id
        if name not in self.values:
            raise _error(tree, f"'{name}' is not defined above this line")
        return self.values[name]

    def attribute(self, tree: ast.expr) -> Any:
        match tree:
            case ast.Tuple(elts=items):
                return tuple(map(self.attribute, items))
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value) | float(value))):
                return -value
            case ast.Name(id="inf" | "nan" as name) | ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf" as name)):
                return -math.inf if isinstance(tree, ast.UnaryOp) else getattr(math, name)
            case ast.Name(id=name) if name in DTYPES:
                return DTYPES[name]
            case ast.Name(id=name) if name in self.bodies:
                return self.bodies[name]
            case ast.Subscript():
                return _type(tree)
            case ast.Call(func=ast.Name(id="array"), args=[ast.Name(id=dtype), items]) if dtype in DTYPES:
                return Array(np.array(self.items(items), DTYPES[dtype].numpy))
            case ast.Call(func=ast.Name(id="array"), args=[ast.Subscript() as empty]):
                return Array(np.empty(tuple(map(int, map(str, _type(empty).dims))), _type(empty).dtype.numpy))
            case _:
                return d.dim_from_ast(tree)

    def items(self, tree: ast.expr) -> Any:
        """Nested lists of numbers, complex ones as Python prints them."""
        match tree:
            case ast.List(elts=items):
                return [self.items(item) for item in items]
            case ast.BinOp() | ast.UnaryOp(operand=ast.Constant(value=complex())):
                return complex(ast.unparse(tree).replace(" ", ""))
            case _:
                return self.attribute(tree)
