"""The step of a scan as a scheduled graph, and memory for what such a step keeps.

A general scan runs its body like a small model: as kernels, one after another (``codegen/kernels/step.py``). Each task has one
index of every symbolic dim along which nothing mixes. What a step keeps has then a static size, and is local to the task; the
rest, such as a row of a grid whose width is symbolic, lives in results of the scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from coilc.ir import Dim, Graph, Module, Node, Value, ops

from .build_bodies import Schedule
from .fuse_groups import group
from .independent_axes import Cut, narrowed
from .loop_parts import Loop
from .rewrite import on, rewrite_module


@dataclass(frozen=True)
class Step:
    """A body as one task sees it.

    Attributes:
        body: with one index of each dim that tasks have apart.
        cuts: these dims, and for inputs and results of the original body the axes that they are.
        graph: the body scheduled; it computes every result once.
        results: for each result of the body, the value of ``graph``.
        sources: for each value that the kernels of the step write, the value of the original body.
    """

    body: Graph
    cuts: Sequence[Cut]
    graph: Graph
    results: Sequence[Value]
    sources: Mapping[Value, Value]

    @property
    def calls(self) -> list[Node]:
        """The kernels, in order."""
        return [node for node in self.graph.nodes if node.op is ops.fused]

    @property
    def kept(self) -> list[Value]:
        """What the kernels write."""
        return [value for node in self.calls for value in node.results]

    def unread(self, carry: int) -> bool:
        """Whether no step reads a carry: its result is memory."""
        return self.body.inputs[carry] not in self.body.uses

    def result_for(self, value: Value, carries: int) -> int | None:
        """The carry in whose result a value lives that the kernels of the step write."""
        return next((i for i in range(carries) if self.results[i] == value and self.unread(i)), None)


def schedule_step(node: Node, rows: Dim = 1) -> Step:
    """The step of a scan; ``rows`` as in ``narrowed``."""
    body, cuts, became = narrowed(node.attrs["body"], node.attrs["carries"], rows)
    return _scheduled(body, cuts, {part: value for value, part in became.items()})


def schedule_whole(body: Graph) -> Step:
    """A body that is one task, or a condition."""
    return _scheduled(body, (), {value: value for node in body.nodes for value in node.results})


def _scheduled(body: Graph, cuts: Sequence[Cut], before: Mapping[Value, Value]) -> Step:
    """``before``: values of ``body`` to those of the original one."""
    results = tuple(dict.fromkeys(body.results))
    unique = replace(body, outputs=tuple((f"r{i}", v) for i, v in enumerate(results)))
    schedule = Schedule(unique, group(unique))
    graph = schedule.build()
    written = {**schedule.built, **dict(zip(results, graph.results, strict=True))}
    sources = {to: before[value] for value, to in written.items() if to.op is ops.fused}
    return Step(body, cuts, graph, [written[v] for v in body.results], sources)


# --- memory ----------------------------------------------------------------------------------------------------------


def give_memory_to_steps(module: Module) -> Module:
    """Make what a step keeps without a static size a carry that no step reads, so that it has memory in a result.

    Before::

        def body(row: f32[W, 4], x: f32[W, 4]):
            after = cumsum(add(row, x), axis=0)
            return {"row": after}
        last = scan(row0, xs, body=body, carries=1)

    After::

        def body(row: f32[W, 4], memory: f32[W, 4], x: f32[W, 4]):
            after = cumsum(add(row, x), axis=0)
            return {"row": after, "memory": after}
        last, memory = scan(row0, zeros, xs, body=body, carries=2)

    Needs: core ops and claimed composites. Guarantees: a step's kernels write to local memory or to a carry of their own.
    """
    return rewrite_module(module, memory_in_carries, memory_in_carries_of_while)


@on("scan")
def memory_in_carries(node: Node) -> tuple[Value, ...] | None:
    """A scan carries what its step keeps and does not know the size of"""
    loop, step = Loop(node), schedule_step(node)
    memory = _memory(step, loop.body, loop.carries)
    if not memory:
        return None
    carries = {**dict(zip(loop.body_carries, loop.inits, strict=True)), **{v: ops.zeros(v.type) for v in memory}}
    outputs = loop.body.outputs
    extra = [(f"memory{i}", value) for i, value in enumerate(memory.values(), len(outputs))]
    results = loop.rebuilt((*outputs[: loop.carries], *extra, *outputs[loop.carries :]), carries)
    return (*results[: loop.carries], *results[loop.carries + len(extra) :])


@on("while_loop")
def memory_in_carries_of_while(node: Node) -> tuple[Value, ...] | None:
    """A loop carries what its step keeps and does not know the size of"""
    body, carries, condition = (node.attrs[name] for name in ("body", "carries", "condition"))
    memory = _memory(schedule_whole(body), body, carries)
    if not memory:
        return None
    extra = tuple((f"memory{i}", value) for i, value in enumerate(memory.values(), len(body.outputs)))

    def widened(graph: Graph) -> Graph:
        return replace(graph, inputs=(*graph.inputs[:carries], *memory, *graph.inputs[carries:]))

    results = ops.while_loop.node(
        *node.inputs[:carries],
        *(ops.zeros(v.type) for v in memory),
        *node.inputs[carries:],
        condition=widened(condition),
        body=replace(widened(body), outputs=(*body.outputs, *extra)),
        carries=carries + len(memory),
    ).results
    return results[:carries]


def _memory(step: Step, body: Graph, carries: int) -> dict[Value, Value]:
    """A new input of the body for each of its values that is kept and has neither a static size nor a carry."""
    homeless = [
        value
        for kept, value in step.sources.items()
        if not isinstance(kept.type.size, int) and step.result_for(kept, carries) is None
    ]
    names = {v.node.attrs["name"] for v in body.inputs}
    fresh = (name for name in map("memory{}".format, count()) if name not in names)
    return {ops.input_(name=name, type=value.type): value for name, value in zip(fresh, homeless, strict=False)}
