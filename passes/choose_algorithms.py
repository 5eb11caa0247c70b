"""Choose how each recurrence runs: step by step, or in chunks that run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from coilc.ir import Dim, Graph, InputError, Module, Node, OpDef, Value, at, ops
from coilc.ir import dims as d
from coilc.ir.ops.precision import in_f32

from .chunk_gated_linear_attention import chunk_gated_linear_attention
from .cost_model import GatedLinearAttention, LinearScan, Machine, SelectiveScan, Shape, Work, cycles
from .replace_values import replace_values
from .split_linear_scan import split_cumsum, split_linear_scan
from .split_selective_scan import split_selective_scan
from .wavefront import grid_cost, grid_extents, wavefront
from .wavefront import why_not as not_a_grid

SEQUENTIAL = "sequential"
ALGORITHMS = (SEQUENTIAL, "chunked", "associative", "wavefront")
LENGTH = 2048  # steps that a symbolic length stands for
GAIN = 1.2  # how many times fewer cycles the model must promise before the plain loop is left


@dataclass(frozen=True)
class Form:
    """Another algorithm for an op.

    Attributes:
        name: one of ``ALGORITHMS``.
        parameter: what its number is, in words; empty where it has none.
        values: the numbers to try.
        rewrite: from operands, attributes and the number to the results.
    """

    name: str
    parameter: str
    values: tuple[int, ...]
    rewrite: Callable[..., Value | tuple[Value, ...]]


FORMS: Mapping[OpDef, Form] = {
    ops.gated_linear_attention: Form("chunked", "chunk", (16, 32, 64, 128), chunk_gated_linear_attention),
    ops.linear_scan: Form("associative", "chunks", (4, 8, 16, 64), split_linear_scan),
    ops.cumsum: Form("associative", "chunks", (4, 8, 16, 64), split_cumsum),
    ops.selective_scan: Form("associative", "chunks", (4, 8, 16, 64), split_selective_scan),
    ops.scan: Form("wavefront", "", (0,), wavefront),
}
RECURRENCES = frozenset({*FORMS} - {ops.cumsum})  # what --algorithm is about


@dataclass(frozen=True)
class Choice:
    """How one recurrence runs, and why; ``value`` is the number of its ``Form`` that goes with the algorithm."""

    algorithm: str
    value: int | None
    reason: str


def choose_algorithms(module: Module, machine: Machine, algorithm: str | None = None) -> Module:
    """Rewrite the recurrences for which the cost model promises a gain over the plain loop.

    Before (one sequence, four channels, eight cores)::

        v0, v1 = linear_scan(a, b, h, axis=1, reverse=False)

    After: see the rewrites, one file each: ``split_linear_scan``, ``split_selective_scan``, ``chunk_gated_linear_attention``,
    ``wavefront``.

    Args:
        machine: the target, as the model sees it.
        algorithm: one of ``ALGORITHMS`` for every recurrence, whatever the model says.

    Needs: recurrences are recognised. Guarantees: what stays a recurrence runs step by step.

    Raises:
        InputError: ``algorithm`` is unknown, or a recurrence has no such form.
    """
    return module.map(lambda graph: _rewritten(graph, choices(graph, machine, algorithm)))


def choices(graph: Graph, machine: Machine, algorithm: str | None = None) -> Mapping[Node, Choice]:
    """What ``choose_algorithms`` decides about every recurrence of a graph."""
    if algorithm not in (None, *ALGORITHMS):
        raise InputError(f"there is no algorithm '{algorithm}'; there are {', '.join(ALGORITHMS)}")
    nodes = [node for node in graph.nodes if node.op in RECURRENCES or node.op is ops.cumsum]
    forced = {node: algorithm if node.op in RECURRENCES else None for node in nodes}
    unfit = [node for node in nodes if (name := forced[node]) and _why_not(node, name) not in ("", ONE_STEP)]
    if unfit:
        found = ", ".join(dict.fromkeys(f"{node.op.name}: {_why_not(node, str(algorithm))}" for node in unfit))
        raise InputError(f"--algorithm {algorithm} does not fit every recurrence of '{graph.name}' ({found})")
    return {node: _choice(graph, node, machine, forced[node]) for node in nodes}


def _rewritten(graph: Graph, chosen: Mapping[Node, Choice]) -> Graph:
    replaced: dict[Value, Value] = {}
    for node, choice in chosen.items():
        if choice.value is not None:
            form = FORMS[node.op]
            with at(node.location and node.location.interior()):
                rewrite = form.rewrite
                if form.parameter:
                    rewrite = in_f32(node.op.infer, partial(rewrite, **{form.parameter: choice.value}))
                results = rewrite(*node.inputs, **node.attrs)
            results = (results,) if isinstance(results, Value) else results
            replaced.update(zip(node.results, results, strict=True))
    return replace_values(graph, replaced) if replaced else graph


ONE_STEP = "one step needs no other"


def _why_not(node: Node, algorithm: str) -> str:
    """Why a recurrence cannot run so; empty if it can."""
    if algorithm == SEQUENTIAL:
        return ""
    if FORMS[node.op].name != algorithm:
        return f"it has no {algorithm} form"
    if any(v.type.dtype.is_complex for v in node.inputs):
        return "its numbers are complex"
    if "bonus" in node.attrs.get("optional", ()):
        return "its outputs read the state before the update"
    if _length(node) == 1:
        return ONE_STEP
    return not_a_grid(node) if node.op is ops.scan else ""


def _length(node: Node) -> Dim:
    operand = node.inputs[node.attrs["carries"]] if node.op is ops.scan else node.inputs[0]
    return operand.dims[node.attrs.get("axis", 1)]


def _lengths(node: Node) -> tuple[Dim, ...]:
    """The extents along which a recurrence runs."""
    if node.op is ops.scan and not not_a_grid(node):
        return grid_extents(node)
    return (_length(node),)


def _choice(graph: Graph, node: Node, machine: Machine, forced: str | None) -> Choice:
    form = FORMS[node.op]
    if why := _why_not(node, form.name):
        return Choice(SEQUENTIAL, None, why)
    sizes = representative(graph, node)
    loop, others = _works(node, sizes, machine, form)
    cost, value = min((cycles(works, machine), value) for value, works in others.items())
    gain = cycles(loop, machine) / cost
    asked = "asked for; " if forced else ""
    name = f"{form.parameter} {value}" if form.parameter else "diagonals"
    place = f"at length {d.evaluate(_length(node), sizes)} on {machine.cores} cores by the model"
    if forced == form.name or (forced is None and gain >= GAIN):
        return Choice(form.name, value, f"{asked}{name}: {_times(gain)} cycles than sequential {place}")
    return Choice(SEQUENTIAL, None, f"{asked}{form.name} ({name}) would take {_times(gain)} cycles {place}")


def _times(gain: float) -> str:
    return f"{gain:.2g}x fewer" if gain >= 1 else f"{1 / gain:.2g}x more"


def representative(graph: Graph, node: Node) -> Mapping[str, int]:
    """A number for every symbol: those of the length multiply to ``LENGTH``, others are as small as they get."""
    lengths = {name for dim in _lengths(node) for name in d.symbols(dim)}
    sizes = {}
    for name, (low, high) in graph.ranges.items():
        wanted = round(LENGTH ** (1 / len(lengths))) if name in lengths else 1
        sizes[name] = max(low, min(wanted, wanted if high is None else high))
    return sizes


def _works(node: Node, sizes: Mapping[str, int], m: Machine, form: Form) -> tuple[list[Work], dict[int, list[Work]]]:
    """The kernels of the loop, and those of the other form by its number."""
    shape = measured(node, sizes)
    assert shape is not None, "what cannot run otherwise has no choice"
    return shape.sequential(m), {n: shape.otherwise(m, n) for n in form.values}


def measured(node: Node, sizes: Mapping[str, int]) -> Shape | None:
    """A node as the cost model sees it; ``None`` for what it knows nothing of: ops without other forms, loops over no grid."""
    if node.op not in FORMS or (node.op is ops.scan and not_a_grid(node)):
        return None

    if node.op is ops.scan:
        return grid_cost(node, sizes)

    def known(value: Value) -> list[int]:
        return [d.evaluate(dim, sizes) for dim in value.dims]

    if node.op in (ops.linear_scan, ops.cumsum):
        axis, dims = node.attrs["axis"], known(node.inputs[0])
        outer, inner = _product(dims[:axis]), dims[axis + 1 :] or [1]
        return LinearScan(outer * _product(inner[:-1]), dims[axis], inner[-1])
    if node.op is ops.selective_scan:
        (batch, length, channels), (_, _, groups, states) = known(node.inputs[0]), known(node.inputs[3])
        return SelectiveScan(batch, length, groups, channels // groups, states)
    (batch, length, groups, states), (_, _, heads, size) = known(node.inputs[0]), known(node.inputs[2])
    return GatedLinearAttention(batch, length, groups, heads, states, size, node.inputs[3].type.rank == 4)


def _product(numbers: list[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def describe_choices(module: Module, machine: Machine, algorithm: str | None = None) -> Iterator[Mapping[str, Any]]:
    """One row per recurrence that has a choice, in the order of the entries."""
    for entry, graph in module.entries.items():
        for node, choice in choices(graph, machine, algorithm).items():
            if node.op in RECURRENCES and not (node.op is ops.scan and not_a_grid(node)):
                scope = node.location.scope if node.location else ""
                yield {"entry": entry, "op": node.op.name, "scope": scope, **asdict(choice)}
