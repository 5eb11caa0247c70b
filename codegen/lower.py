"""From a fused body to a kernel: which lowering it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from tvm import tirx

from coilc.ir import Graph, UnsupportedError, Value
from coilc.ir.opdef import ELEMENTWISE, MOVEMENT, REDUCTION, STRUCTURAL

from .collapse import collapse_axes
from .kernel import Kernel, build_kernel
from .kernels import ANCHORS
from .pointwise import emit_pointwise
from .reduce import emit_reduce
from .rows import emit_rows, is_row
from .target import Target


def lower_body(body: Graph, name: str, target: Target) -> tirx.PrimFunc:
    """The kernel called ``name``.

    Raises:
        UnsupportedError: no lowering takes this body; the fusion pass does not make such bodies.
    """
    chosen, emit = choose(body)
    return build_kernel(replace(chosen, symbols=body.symbols), name, target, emit)


def choose(body: Graph, strided: Collection[Value] = ()) -> tuple[Graph, Callable[[Kernel], None]]:
    """The body in the form that its lowering wants, and that lowering; ``strided`` inputs are not dense in memory."""
    anchors = [node for node in body.nodes if not node.op.traits & {ELEMENTWISE, MOVEMENT, STRUCTURAL}]
    if not anchors:
        return collapse_axes(body, strided), emit_pointwise
    if is_row(body):
        return collapse_axes(body, strided), emit_rows
    if len(anchors) == 1 and REDUCTION in anchors[0].op.traits:
        return collapse_axes(body, strided), emit_reduce
    if len({node.op for node in anchors}) == 1 and anchors[0].op in ANCHORS:
        return body, ANCHORS[anchors[0].op]
    raise UnsupportedError("no kernel does these together:", [(node.op.name, node.location) for node in anchors])
