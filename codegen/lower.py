"""From a fused body to a kernel: which lowering it takes."""

from __future__ import annotations

from tvm import tirx

from coilc.ir import Graph

from .collapse import collapse_axes
from .kernel import build_kernel
from .kernels import ANCHORS
from .pointwise import emit_pointwise
from .target import Target


def lower_body(body: Graph, name: str, target: Target) -> tirx.PrimFunc:
    """The kernel called ``name``.

    Raises:
        UnsupportedError: no lowering takes this body; the fusion pass does not make such bodies.
    """
    anchor = next((node for node in body.nodes if node.op in ANCHORS), None)
    if anchor is not None:
        return build_kernel(body, name, target, ANCHORS[anchor.op])
    return build_kernel(collapse_axes(body), name, target, emit_pointwise)
