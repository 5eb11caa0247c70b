"""What a model remembers by itself: inputs, and the outputs that take their places in the next call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from . import dims as d
from . import ops
from .core import Graph, Module, Node, Value
from .errors import CoilError, InputError
from .location import at
from .opdef import literal
from .types import DTYPES, TensorType, type_of

STARTED = "started"  # the state that is true after the first call
SMALL = 16  # elements of an initial value that stands in the graph; a larger one is a weight


@dataclass(frozen=True)
class Growth:
    """How a state grows from call to call: along ``axis``, whose extent is ``symbol``, by ``step``."""

    axis: int
    symbol: str
    step: d.Dim


def growth(before: TensorType, after: TensorType) -> Growth | None:
    """The growth from an input to the output that takes its place, if the extent of one axis is all that differs."""
    if before.dtype != after.dtype or before.rank != after.rank:
        return None
    axes = [a for a in range(before.rank) if before.dims[a] != after.dims[a]]
    if len(axes) != 1:
        return None
    old, new = before.dims[axes[0]], after.dims[axes[0]]
    (*names,) = d.symbols(old)
    if len(names) != 1 or old != d.symbol(names[0]) or names[0] in d.symbols(new - old):
        return None
    return Growth(axes[0], names[0], new - old)


def declare_states(graph: Graph, pairs: Mapping[str, str]) -> Graph:
    """The graph with more states: inputs, which become the last ones, and the outputs that follow them.

    Names of nested inputs and outputs may be left out from some point on: ``{"past": "present"}`` pairs ``past_0_keys`` with
    ``present.0.keys``.

    Raises:
        InputError: there is no such input or output, or their types do not fit.
    """
    inputs, outputs = {str(v.node.attrs["name"]): v for v in graph.inputs}, dict(graph.outputs)
    pairs = {b: a for pair in pairs.items() for b, a in _nested(*pair, inputs, outputs).items()}
    for before, after in pairs.items():
        given, returned = inputs[before].type, outputs[after].type
        if given != returned and growth(given, returned) is None:
            raise InputError(
                f"the input '{before}' is {given} and the output '{after}' {returned}: a state keeps its size, or grows "
                f"along one axis whose extent is a symbol of its own"
            )
    states = (*graph.states, *pairs.items())
    last = [inputs.pop(name) for name, _ in states]
    return replace(graph, inputs=(*inputs.values(), *last), states=states)


def _nested(before: str, after: str, inputs: Collection[str], outputs: Collection[str]) -> dict[str, str]:
    """The pairs that a pair of names stands for."""
    if before in inputs and after in outputs:
        return {before: after}
    flat = {name.replace(".", "_"): name for name in outputs}
    rests = [name.removeprefix(before) for name in inputs if name.startswith(before + "_")]
    found = {before + rest: flat[after + rest] for rest in rests if after + rest in flat}
    if found and len(found) == len(rests):
        return found
    kind, name, known = ("output", after, outputs) if before in inputs or rests else ("input", before, inputs)
    raise InputError(f"there is no {kind} '{name}' to be a state; it has {', '.join(known)}")


def begin_states(module: Module, initial: Mapping[str, np.ndarray]) -> Module:
    """Let states of every entry begin with ``initial`` values, by name of the input, instead of zeros.

    Before::

        def main(x: f32[4], h: f32[4] = "h"):
            v0: f32[4] = add(x, h)
            return {"h": v0}

    After::

        def main(x: f32[4], h: f32[4] = "h", started: bool[()] = "started"):
            v0: f32[4] = weight(name="h.initial", type=f32[4])
            v1: f32[4] = where(started, h, v0)
            v2: f32[4] = add(x, v1)
            v3: bool[()] = constant(value=array(bool, True))
            return {"h": v2, "started": v3}

    Raises:
        InputError: no state has the name, or the value cannot be broadcast to it.
    """
    weights = {f"{name}.initial": array for name, array in initial.items() if array.size > SMALL}
    entries = {name: _begun(graph, initial) for name, graph in module.entries.items()}
    return Module(entries, {**module.weights, **weights}) if initial else module


def _begun(graph: Graph, initial: Mapping[str, np.ndarray]) -> Graph:
    inputs, states = {str(v.node.attrs["name"]): v for v in graph.inputs}, dict(graph.states)
    if unknown := [name for name in initial if name not in states]:
        raise InputError(
            f"'{unknown[0]}' is no state that could begin with a value; there are {', '.join(states) or 'none'}"
        )
    name = STARTED
    while name in {*inputs, *dict(graph.outputs)}:
        name += "_state"
    started = ops.input_(name=name, type=TensorType(DTYPES["bool"], ()))
    first = {
        inputs[k]: ops.where(started, inputs[k], _spread(k, array, inputs[k].type)) for k, array in initial.items()
    }
    outputs = (*_replaced(graph, first), (name, literal(True, DTYPES["bool"])))
    return replace(graph, inputs=(*graph.inputs, started), outputs=outputs, states=(*graph.states, (name, name)))


def _spread(name: str, array: np.ndarray, type_: TensorType) -> Value:
    """An initial value in every place of a state."""
    value = ops.weight(name=f"{name}.initial", type=type_of(array)) if array.size > SMALL else literal(array)
    try:
        return value if value.type == type_ else ops.broadcast(value, dims=type_.dims)
    except CoilError:
        raise InputError(f"the state '{name}' is {type_} and cannot begin with {value.type}") from None


def _replaced(graph: Graph, known: dict[Value, Value]) -> tuple[tuple[str, Value], ...]:
    """The outputs with some values replaced by others in everything that reads them."""
    for node in graph.nodes:
        operands = tuple(known.get(v, v) for v in node.inputs)
        if operands != node.inputs:
            with at(node.location):
                made = Node.make(node.op, operands, node.attrs)
            known.update(zip(node.results, made.results, strict=True))
    return tuple((name, known.get(value, value)) for name, value in graph.outputs)
