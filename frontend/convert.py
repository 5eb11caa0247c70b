"""An exported program's FX graph, node by node through the table, into an IR module."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from coilc.ir import CoilError, Graph, Location, Module, TensorType, UnsupportedError, Value, at, literal, ops
from coilc.ir.location import current_location
from coilc.ir.states import begin_states
from coilc.ir.types import type_of

from .aten import Call, dtype_from
from .buffer_states import BufferStates
from .higher_order import HIGHER_ORDER
from .locations import location_of
from .scalars import scalar
from .symbols import symbols_of
from .table import IGNORED, row_of


@dataclass
class Scope:
    """The graph or loop body under construction.

    Attributes:
        captured: values of the graph around it that it reads, and its inputs for them.
        conditions: booleans of its own that must all be true for what is being converted to run in the model.
    """

    captured: dict[Value, Value] = field(default_factory=dict)
    conditions: list[Value] = field(default_factory=list)


_SMALL = 16  # elements; a constant tensor up to this size stands in the graph, a larger one in the weight table


def convert(program: ExportedProgram, names: Mapping[str, str]) -> Module:
    """The IR of a lowered program, entry ``main``; buffers that it updates are states.

    Args:
        names: torch's symbol names to the user's.
    """
    return Converter(program, names).module()


class Converter:
    def __init__(self, program: ExportedProgram, names: Mapping[str, str]) -> None:
        self.program = program
        self.weights: dict[str, np.ndarray] = {}
        self.shared: dict[tuple[Any, ...], str] = {}
        self.refused: list[tuple[str, Location | None]] = []
        self.scopes = [Scope()]
        self.around: list[Location | None] = []  # of the higher-order ops whose blocks are being converted
        self.inputs = self._input_names()
        self.states = BufferStates(program, self.inputs)
        fakes = {
            self.inputs[n.name]: n.meta["val"]
            for n in program.graph.nodes
            if n.op == "placeholder" and n.name in self.inputs
        }
        self.symbols = symbols_of(program, names, {k: v for k, v in fakes.items() if isinstance(v, torch.Tensor)})

    def module(self) -> Module:
        env = {node: self.placeholder(node) for node in self.program.graph.nodes if node.op == "placeholder"}
        results = self.block(self.program.graph_module, env)
        if self.refused:
            raise UnsupportedError("the model uses what coilc cannot express yet:", list(dict.fromkeys(self.refused)))
        given = [n for n in env if n.name in self.inputs and n.name not in self.states.given]
        inputs = tuple(v for v in (env[n] for n in given) if isinstance(v, Value))
        outputs = self.outputs(results)
        inputs, outputs = (*inputs, *self.states.before.values()), (*outputs, *self.states.after.items())
        graph = Graph("main", inputs, outputs, tuple(self.symbols.ranges.items()), self.states.links)
        used = {node.attrs["name"] for node in graph.nodes if node.op.name == "weight"}
        module = Module({"main": graph}, {name: array for name, array in self.weights.items() if name in used})
        return begin_states(module, self.states.initial)

    # --- inputs and weights -------------------------------------------------------------------------------------------

    def _input_names(self) -> dict[str, str]:
        """Placeholder name to the user's argument name; nested arguments join the path with underscores."""
        specs = [s for s in self.program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
        paths = _argument_names(self.program, len(specs))
        return {spec.arg.name: name for spec, name in zip(specs, paths, strict=True)}

    def placeholder(self, node: Node) -> Any:
        spec = next(s for s in self.program.graph_signature.input_specs if s.arg.name == node.name)
        if spec.kind != InputKind.USER_INPUT:
            return None if isinstance(spec.arg, ConstantArgument) else self.stored(spec)
        if isinstance(spec.arg, ConstantArgument):
            return spec.arg.value
        if not isinstance(spec.arg, TensorArgument):
            raise CoilError(f"argument '{self.inputs[node.name]}' is a dynamic number; pass it as a tensor")
        value = ops.input_(name=self.inputs[node.name], type=self.type_of(node.meta["val"]))
        if node.name in self.states.given:
            self.states.before[self.inputs[node.name]] = value
        return value

    def stored(self, spec: Any) -> Value:
        tensor = self.program.state_dict.get(spec.target)
        tensor = self.program.constants[spec.target] if tensor is None else tensor
        if spec.target not in self.states.updated:
            return self.weight(spec.target, tensor)
        return self.states.enter(spec.target, self.type_of(tensor), to_numpy(tensor))

    def weight(self, name: str, tensor: torch.Tensor) -> Value:
        """A weight by its qualified name; tensors that share storage are one weight, under the first name."""
        if tensor.numel() <= _SMALL and not isinstance(tensor, torch.nn.Parameter):
            return literal(to_numpy(tensor))
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        name = self.shared.setdefault(key, name)
        if name not in self.weights:
            self.weights[name] = to_numpy(tensor)
        return ops.weight(name=name, type=type_of(self.weights[name]))

    def type_of(self, fake: torch.Tensor) -> TensorType:
        return TensorType(dtype_from(fake.dtype), self.symbols.dims(fake.shape))

    # --- nodes --------------------------------------------------------------------------------------------------------

    def inline(self, block: GraphModule, operands: Sequence[Any], condition: Value | None = None) -> Any:
        """What a block of a higher-order op returns, computed in the open graph; it runs if ``condition`` is true."""
        conditions = self.scopes[-1].conditions
        conditions += [] if condition is None else [condition]
        results = self.block(block, dict(zip(block.graph.find_nodes(op="placeholder"), operands, strict=True)))
        del conditions[len(conditions) - (condition is not None) :]
        return results

    def body(
        self, name: str, block: GraphModule, types: Sequence[TensorType], rest: Sequence[Any]
    ) -> tuple[Graph, list[Value]]:
        """A block as the body of a loop, over inputs of these types and ``rest``.

        Returns the body, and the values that the loop takes as its last operands, for the inputs of the body after
        ``types``: those of ``rest`` (dims are no inputs), and what the block reads from outside.
        """
        inputs = [ops.input_(name=f"x{i}", type=type_) for i, type_ in enumerate(types)]
        self.scopes.append(Scope())
        operands = [*inputs, *(self.capture(x) if isinstance(x, Value) else x for x in rest)]
        results = self.inline(block, operands)
        captured = self.scopes.pop().captured
        outputs = tuple((f"r{i}", value) for i, value in enumerate(pytree.tree_leaves(results)))
        for _, value in outputs:
            if not isinstance(value, Value):
                raise UnsupportedError("a loop that returns a number; make it a tensor", ())
        return Graph(name, (*inputs, *captured.values()), outputs), list(captured)

    def capture(self, value: Value, scope: int = -1) -> Value:
        """The input of an open body for a value of the graph around it."""
        captured = self.scopes[scope].captured
        return captured.setdefault(value, ops.input_(name=f"c{len(captured)}", type=value.type))

    def condition(self) -> Value | None:
        """Whether the model runs what is being converted, as a value of the open graph; ``None``: always."""
        found: Value | None = None
        for level, scope in enumerate(self.scopes):
            found = found and self.capture(found, level)
            for value in scope.conditions:
                found = value if found is None else ops.logical_and(found, value)
        return found

    def block(self, graph_module: GraphModule, env: dict[Node, Any]) -> Any:
        """Convert a graph; its placeholders are in ``env``. Returns what its output node holds."""
        needed = _needed(graph_module)
        for node in graph_module.graph.nodes:
            if node.op == "get_attr":
                env[node] = self.attribute(graph_module, str(node.target))
            elif node.op == "call_function" and node in needed:
                env[node] = self.call(node, env)
            elif node.op == "output":
                return torch.fx.map_arg(node.args[0], lambda n: env[n])
        raise CoilError("the program has no output")

    def attribute(self, graph_module: GraphModule, target: str) -> Any:
        owner: Any = graph_module
        for part in target.split("."):
            owner = getattr(owner, part)
        if not isinstance(owner, torch.Tensor):
            return owner
        value = self.weight(target, owner)
        if value.op is ops.weight:
            for level in range(1, len(self.scopes)):
                value = self.capture(value, level)
        return value

    def call(self, node: Node, env: dict[Node, Any]) -> Any:
        location = location_of(node)
        if self.around:  # a block's names are its own
            location = (location and location.interior()) or self.around[-1]
        with at(location and location.interior()):
            try:
                result = self.result(node, env)
            except UnsupportedError as error:
                return self.refuse(node, error.message, location)
            except CoilError as error:
                return self.refuse(node, f"{node.target}: {error.message}", location)
        _claim(result, location)
        return result

    def result(self, node: Node, env: dict[Node, Any]) -> Any:
        fake = node.meta.get("val")
        if isinstance(fake, torch.SymInt | int) and not isinstance(fake, bool):
            return self.symbols.dim(fake)
        if isinstance(fake, torch.SymFloat):
            return scalar(self.symbols, fake.node.expr)
        if isinstance(fake, torch.SymBool | bool) or str(node.target) in IGNORED:
            return None
        args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: env[n])
        if node.target is operator.getitem:
            return args[0][args[1]]
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self.higher_order(node, args)
        row = row_of(str(node.target))
        if row is None:
            raise UnsupportedError(str(node.target), ())
        call = Call(str(node.target), self.types(fake), self.symbols)
        return row(call, *_plain(args), **{name: _plain(value) for name, value in kwargs.items()})

    def types(self, fake: Any) -> tuple[TensorType, ...]:
        return tuple(self.type_of(t) for t in pytree.tree_leaves(fake) if isinstance(t, torch.Tensor))

    def higher_order(self, node: Node, args: Any) -> Any:
        rule = HIGHER_ORDER.get(str(node.target))
        if rule is None:
            raise UnsupportedError(f"higher-order op {node.target}", ())
        self.around.append(current_location())
        try:
            return rule(self, args)
        finally:
            self.around.pop()

    def refuse(self, node: Node, why: str, location: Location | None) -> Any:
        """Remember the node, and go on with made-up values of its type so that later nodes are looked at too."""
        self.refused.append((why, location and location.interior()))
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat):
            return 2
        try:
            return pytree.tree_map_only(
                torch.Tensor, lambda t: ops.input_(name=f"?{node.name}", type=self.type_of(t)), node.meta.get("val")
            )
        except UnsupportedError:  # not even the type can be expressed
            raise UnsupportedError(
                "the model uses what coilc cannot express yet:", list(dict.fromkeys(self.refused))
            ) from None

    # --- outputs ------------------------------------------------------------------------------------------------------

    def outputs(self, results: Any) -> tuple[tuple[str, Value], ...]:
        specs = self.program.graph_signature.output_specs
        flat = pytree.tree_leaves(results, is_leaf=lambda x: x is None)
        names = iter(_output_names(self.program, sum(s.kind == OutputKind.USER_OUTPUT for s in specs)))
        kept = []
        for spec, value in zip(specs, flat, strict=True):
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                target = str(spec.target)
                self.states.after[self.inputs.get(target, target)] = value
                continue
            name = next(names)
            if isinstance(spec.arg, TensorArgument):
                kept.append((name, value))
            elif not isinstance(spec.arg, ConstantArgument):
                raise CoilError(f"output '{name}' is a dynamic number; return it as a tensor")
        return tuple(kept)


def _claim(result: Any, location: Location | None) -> None:
    """Name the FX node as the source of the IR node that equals it.

    Rows build helper nodes first, so only the finished result is known to be the value of the FX node. A location
    plays no part in a node's identity, and the node is younger than anyone who could have seen it without.
    """
    if location is None or not isinstance(result, Value) or result.index:
        return
    if result.node.location == location.interior():
        result.node.location = location


def _plain(value: Any) -> Any:
    """torch's dtypes as ours, FX's immutable lists as lists."""
    if isinstance(value, torch.dtype):
        return dtype_from(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A dense array; shares memory where the tensor is dense already."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if dense.dtype == torch.bfloat16:
        return dense.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    dtype_from(dense.dtype)
    return dense.numpy()


def _needed(graph_module: GraphModule) -> set[Node]:
    """Nodes that the results depend on. What only a check reads need not be expressible."""
    needed: set[Node] = set()
    for node in reversed(graph_module.graph.nodes):
        if node.op == "output" or not needed.isdisjoint(node.users):
            needed.add(node)
    return needed


def _argument_names(program: ExportedProgram, count: int) -> list[str]:
    """One name per leaf of the arguments, in the order of the placeholders."""
    signature = program.module_call_graph[0].signature
    spec = program.call_spec.in_spec
    if spec is None or signature is None:
        return [f"x{i}" for i in range(count)]
    args, kwargs = pytree.tree_unflatten(list(range(count)), spec)
    names = list(signature.forward_arg_names or [])
    named = {names[i] if i < len(names) else f"x{i}": value for i, value in enumerate(args)} | dict(kwargs)
    return _unique([_join(path, "_") for path in _leaf_paths(named, count)])


def _output_names(program: ExportedProgram, count: int) -> list[str]:
    """``out`` for a lone tensor, ``out.0`` for a tuple's, field names for a dict's or dataclass's."""
    spec = program.call_spec.out_spec
    if spec is None:
        return [f"out.{i}" for i in range(count)]
    paths = _leaf_paths(pytree.tree_unflatten(list(range(count)), spec), count)
    return [".".join(["out"] * (not path or isinstance(path[0], int)) + [str(key) for key in path]) for path in paths]


def _leaf_paths(tree: Any, count: int) -> list[tuple[Any, ...]]:
    """For each leaf, in order of its number, the keys that lead to it."""
    paths: dict[int, tuple[Any, ...]] = {}
    for keys, leaf in pytree.tree_flatten_with_path(tree)[0]:
        paths[leaf] = tuple(_key(k) for k in keys)
    return [paths[i] for i in range(count)]


def _key(entry: Any) -> Any:
    match entry:
        case pytree.SequenceKey(idx=key) | pytree.MappingKey(key=key) | pytree.GetAttrKey(name=key):
            return key
    return str(entry)


def _join(path: tuple[Any, ...], separator: str) -> str:
    text = separator.join(map(str, path))
    return "".join(c if c.isalnum() or c == "_" else "_" for c in text)


def _unique(names: list[str]) -> list[str]:
    """A reserved or repeated name gets a number."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        result.append(f"{name}_{seen[name]}" if seen[name] else name)
    return result
