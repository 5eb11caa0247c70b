"""The page: everything that happens to a model between a frontend and the code generator, in order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from coilc.ir import CoilError, InputError, Module
from coilc.ir import verify as promises

from .canonicalise_reductions import canonicalise_reductions
from .decompose import decompose
from .fold_constants import fold_constants
from .fuse_groups import fuse_groups
from .lower_complex import lower_complex
from .pack_weights import pack_weights
from .recognise_activations import recognise_activations
from .recognise_attention import recognise_attention
from .recognise_convolutions import recognise_convolutions
from .recognise_norms import recognise_norms
from .reroll_scans import reroll_scans
from .simplify import simplify
from .sink_transposes import sink_transposes

Pass = Callable[[Module], Module]
Observer = Callable[[str, Module], None]


@dataclass(frozen=True)
class Stage:
    """Passes in order, and what holds of the module after the last."""

    name: str
    promise: promises.Spec
    passes: tuple[Pass, ...]


def pipeline(claims: Collection[str], panel: int) -> tuple[Stage, ...]:
    """The stages for a target that has kernels for the composites ``claims`` and packs weights in ``panel`` columns."""
    return (
        Stage("clean", promises.any_graph, (fold_constants, simplify)),
        Stage(
            "recognise",
            promises.any_graph,
            (
                partial(Module.map, transform=reroll_scans),
                recognise_norms,
                recognise_activations,
                recognise_attention,
                recognise_convolutions,
                sink_transposes,
                recognise_convolutions,
            ),
        ),
        Stage(
            "choose",
            promises.any_graph,
            (lower_complex, partial(pack_weights, panel=panel, claims=claims), sink_transposes),
        ),
        Stage(
            "decompose",
            promises.core_or_claimed(claims),
            (partial(decompose, keep=claims), canonicalise_reductions, sink_transposes, fold_constants),
        ),
        Stage("fuse", promises.scheduled, (fuse_groups,)),
    )


def run_pipeline(
    module: Module,
    claims: Collection[str] = frozenset(),
    *,
    panel: int = 32,
    stop_after: str | None = None,
    observe: Observer | None = None,
) -> Module:
    """Take a module to the form that the code generator lowers.

    Args:
        claims: names of the composites that the target has kernels for.
        panel: columns per panel of packed weights.
        stop_after: the last stage to run, by name.
        observe: called with ``"input"`` and the module, then with each stage's name and result.

    Raises:
        VerifyError: a stage broke its promise; the message starts with the stage.
        InputError: ``stop_after`` names no stage.
    """
    stages = pipeline(claims, panel)
    names = [stage.name for stage in stages]
    if stop_after not in (None, *names):
        raise InputError(f"there is no stage '{stop_after}'; the stages are {', '.join(names)}")
    promises.any_graph(module)
    report = observe or (lambda name, module: None)
    report("input", module)
    for stage in stages[: names.index(stop_after) + 1 if stop_after else None]:
        module = run_stage(stage, module)
        report(stage.name, module)
    return module


def run_stage(stage: Stage, module: Module) -> Module:
    """Run one stage and check its promise."""
    for step in stage.passes:
        module = step(module)
    try:
        stage.promise(module)
    except CoilError as error:
        error.message = f"after stage '{stage.name}': {error.message}"
        raise
    return module
