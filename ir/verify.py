"""What must hold of a graph: structure always, and what a pipeline stage has promised."""

from __future__ import annotations

from collections.abc import Callable, Collection
from keyword import iskeyword

from .core import Graph, Module, Node, symbols_in
from .errors import CoilError, VerifyError
from .opdef import STRUCTURAL
from .states import growth

Spec = Callable[[Module], None]


def any_graph(module: Module) -> None:
    """Inputs are distinct ``input`` nodes, every other input is declared, symbols have ranges, weights exist, types agree."""
    for graph in module.entries.values():
        _structure(graph, set(graph.ranges))
        for node in graph.nodes:
            if node.op.name == "weight":
                _weight(module, node)


def core_or_claimed(claims: Collection[str]) -> Spec:
    """Only core ops remain, and composites that the target has a kernel for."""

    def spec(module: Module) -> None:
        any_graph(module)
        for graph in module.entries.values():
            for node in graph.nodes:
                if not node.op.is_core and node.op.name not in claims:
                    raise VerifyError(
                        f"composite op '{node.op.name}' is left and the target has no kernel", node.location
                    )

    return spec


def scheduled(module: Module) -> None:
    """Every computation sits in a ``fused`` group; outside are inputs, weights, and ``reshape`` as an alias."""
    any_graph(module)
    for graph in module.entries.values():
        for node in graph.nodes:
            if STRUCTURAL not in node.op.traits and node.op.name != "reshape":
                raise VerifyError(f"op '{node.op.name}' is outside every fused group", node.location)


def _structure(graph: Graph, symbols: set[str], *, body: bool = False) -> None:
    _names(graph)
    _states(graph)
    declared = {v.node for v in graph.inputs}
    for node in graph.nodes:
        if node.op.name == "input" and node not in declared:
            raise VerifyError(f"graph '{graph.name}' uses input '{node.attrs['name']}' without declaring it")
        if body and node.op.name == "weight":
            raise VerifyError(
                f"body '{graph.name}' reads weight '{node.attrs['name']}'; pass it as an operand", node.location
            )
        unknown = set(symbols_in((*node.types, *node.attrs.values()))) - symbols
        if unknown:
            raise VerifyError(f"graph '{graph.name}': symbol '{min(unknown)}' has no range", node.location)
        _types_agree(node)
        for value in node.attrs.values():
            if isinstance(value, Graph):
                _structure(value, symbols, body=True)


def _names(graph: Graph) -> None:
    if any(v.op.name != "input" for v in graph.inputs):
        raise VerifyError(f"graph '{graph.name}': inputs must be 'input' nodes")
    for what, names in (
        ("input", [str(v.node.attrs["name"]) for v in graph.inputs]),
        ("output", [name for name, _ in graph.outputs]),
        ("symbol", [name for name, _ in graph.symbols]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise VerifyError(f"graph '{graph.name}': {what} '{name}' appears twice")
            if what != "output" and (not name.isidentifier() or iskeyword(name)):
                raise VerifyError(
                    f"graph '{graph.name}': {what} '{name}' is not a Python name, so it cannot be printed"
                )


def _states(graph: Graph) -> None:
    """The last inputs, in order, each paired with an output of the same type, or one that has grown."""
    if not graph.states:
        return
    names = [str(v.node.attrs["name"]) for v in graph.inputs]
    if names[len(names) - len(graph.states) :] != [name for name, _ in graph.states]:
        raise VerifyError(f"graph '{graph.name}': states must be its last inputs, in order")
    inputs, outputs = dict(zip(names, graph.inputs, strict=True)), dict(graph.outputs)
    for name, output in graph.states:
        before, after = inputs[name].type, outputs[output].type if output in outputs else None
        if after is None or (before != after and growth(before, after) is None):
            raise VerifyError(f"graph '{graph.name}': state '{name}' needs an output '{output}' of its type")


def _types_agree(node: Node) -> None:
    try:
        inferred = node.op.infer_types(tuple(v.type for v in node.inputs), node.attrs)
    except CoilError as error:
        raise VerifyError(error.message, node.location) from None
    if inferred != node.types:
        raise VerifyError(f"op '{node.op.name}' has types {node.types}, its rule says {inferred}", node.location)


def _weight(module: Module, node: Node) -> None:
    name = node.attrs["name"]
    array = module.weights.get(name)
    if array is None:
        raise VerifyError(f"weight '{name}' is not in the module's table", node.location)
    expected = node.types[0]
    if array.shape != expected.dims or array.dtype != expected.dtype.numpy:
        raise VerifyError(
            f"weight '{name}' is {array.dtype}{list(array.shape)}, the graph says {expected}", node.location
        )
