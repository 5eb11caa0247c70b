"""Graph to graph: the rewrite engine, the passes, and the pipeline that orders them."""

from collections.abc import Callable, Mapping
from functools import partial

from coilc.ir import Module

from .canonicalise_reductions import canonicalise_reductions
from .choose_algorithms import choose_algorithms, describe_choices
from .classify_kernels import classify_kernels
from .classify_scans import classify_scans
from .cost_model import Machine
from .decompose import decompose
from .fold_constants import fold_constants
from .fuse_groups import fuse_groups
from .hoist_invariants import hoist_invariants
from .lower_complex import lower_complex
from .narrow_precision import narrow_precision
from .pack_weights import pack_weights, share_tied_weights
from .pipeline import pipeline, run_pipeline
from .plan_memory import MemoryPlan, plan_memory
from .quantize_weights import quantize_weights
from .reassociate_products import reassociate_products
from .recognise_activations import recognise_activations
from .recognise_attention import recognise_attention
from .recognise_convolutions import recognise_convolutions
from .recognise_long_convs import recognise_long_convs
from .recognise_masks import recognise_masks
from .recognise_norms import recognise_norms
from .reroll_scans import reroll_scans
from .rewrite import Rule, on, rewrite_graph, rewrite_module
from .schedule_steps import give_memory_to_steps
from .simplify import simplify
from .sink_transposes import sink_transposes
from .stages import Observer, Stage, on_every_graph
from .tabulate_routes import tabulate_routes
from .trace import Event, Trace, no, tracing
from .transform_long_convs import transform_long_convs

PASSES: Mapping[str, Callable[[Module], Module]] = {
    "canonicalise_reductions": canonicalise_reductions,
    "choose_algorithms": partial(choose_algorithms, machine=Machine()),
    "classify_kernels": classify_kernels,
    "classify_scans": classify_scans,
    "decompose": decompose,
    "fold_constants": fold_constants,
    "fuse_groups": fuse_groups,
    "give_memory_to_steps": give_memory_to_steps,
    "hoist_invariants": hoist_invariants,
    "lower_complex": lower_complex,
    "narrow_precision": partial(narrow_precision, precision="bf16"),
    "pack_weights": partial(pack_weights, panel=32, claims={"packed_matmul"}),
    "quantize_weights": partial(quantize_weights, quantize="int8", claims={"quantized_matmul"}),
    "reassociate_products": reassociate_products,
    "recognise_activations": recognise_activations,
    "recognise_attention": recognise_attention,
    "recognise_convolutions": recognise_convolutions,
    "recognise_long_convs": recognise_long_convs,
    "recognise_masks": recognise_masks,
    "recognise_norms": recognise_norms,
    "reroll_scans": on_every_graph(reroll_scans),
    "share_tied_weights": share_tied_weights,
    "simplify": simplify,
    "sink_transposes": sink_transposes,
    "tabulate_routes": tabulate_routes,
    "transform_long_convs": partial(transform_long_convs, claims={"dft"}),
}
"""Every pass by name, with default options: what ``coilc opt`` and ``coilc explain`` offer."""


def explain(module: Module, name: str) -> Trace:
    """What the pass ``name`` does to ``module`` and why its rules decline elsewhere."""
    with tracing() as trace:
        PASSES[name](module)
    return trace


__all__ = [
    "PASSES", "Event", "Machine", "MemoryPlan", "Observer", "Rule", "Stage", "Trace", "canonicalise_reductions",
    "choose_algorithms", "classify_kernels", "classify_scans", "decompose", "describe_choices", "explain",
    "fold_constants", "fuse_groups", "give_memory_to_steps", "hoist_invariants", "lower_complex", "narrow_precision", "no", "on",
    "pack_weights", "pipeline", "plan_memory", "reassociate_products", "recognise_activations", "recognise_attention",
    "recognise_convolutions", "recognise_long_convs", "recognise_masks", "recognise_norms", "reroll_scans",
    "rewrite_graph", "rewrite_module", "run_pipeline", "simplify", "sink_transposes", "tracing",
]  # fmt: skip
