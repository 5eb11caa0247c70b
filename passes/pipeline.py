"""The page: everything that happens to a model between a frontend and the code generator, in order."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from coilc.ir import Module
from coilc.ir import verify as promises

from .canonicalise_reductions import canonicalise_reductions
from .choose_algorithms import choose_algorithms
from .classify_kernels import classify_kernels
from .classify_scans import classify_scans
from .convolve_channels_last import convolve_channels_last
from .cost_model import Machine
from .decompose import decompose
from .extract_state import extract_state
from .fold_constants import fold_constants
from .fuse_groups import fuse_groups
from .lay_out_weights import lay_out_weights
from .lower_complex import lower_complex
from .narrow_precision import narrow_precision
from .pack_weights import pack_weights, share_tied_weights
from .plan_transforms import plan_transforms
from .quantize_weights import quantize_weights
from .reassociate_products import reassociate_products
from .recognise_activations import recognise_activations
from .recognise_attention import recognise_attention
from .recognise_causal_sums import recognise_causal_sums
from .recognise_convolutions import recognise_convolutions
from .recognise_long_convs import recognise_long_convs
from .recognise_masks import recognise_masks
from .recognise_norms import recognise_norms
from .reroll_scans import reroll_loops, reroll_scans
from .schedule_steps import give_memory_to_steps
from .simplify import simplify
from .sink_transposes import sink_transposes
from .stages import Observer, Stage, on_every_graph, run_stages, up_to
from .tabulate_routes import tabulate_routes
from .transform_long_convs import transform_long_convs

ANY_MACHINE = Machine()
FULL_PRECISION = "fp32"  # types as the program has them


def pipeline(
    claims: Collection[str],
    panel: int,
    entries: Collection[str] = (),
    context: int | None = None,
    machine: Machine = ANY_MACHINE,
    algorithm: str | None = None,
    precision: str = FULL_PRECISION,
    quantize: str | None = None,
) -> tuple[Stage, ...]:
    """The stages for a target that has kernels for the composites ``claims`` and packs weights in ``panel`` columns.

    ``entries`` are those to build, some derived; none named: those that there are. ``context`` is for ``extract_state``, ``algorithm`` is for
    ``choose_algorithms``, and so is ``machine``, which ``fuse_groups`` wants too. ``precision`` is for ``narrow_precision``,
    ``quantize`` for ``quantize_weights``.
    """
    return (
        # 1. One language. In: whatever a frontend built. Out: constants computed, no trivial ops.
        Stage("clean", promises.any_graph, (reroll_loops, recognise_long_convs, fold_constants, simplify)),
        # 2. Structure. Out: loops are scans, written-out layers are one op each, layouts meet without transposes.
        Stage(
            "recognise",
            promises.any_graph,
            (
                on_every_graph(reroll_scans),
                recognise_norms,
                recognise_activations,
                classify_scans,
                recognise_causal_sums,
                recognise_attention,
                recognise_masks,
                reassociate_products,
                recognise_convolutions,
                sink_transposes,
                recognise_convolutions,
                recognise_long_convs,
                classify_kernels,
                fold_constants,
            ),
        ),
        # 3. Entries. Out: those that were asked for; a sequence may come in pieces, with states from piece to piece.
        Stage(
            "specialise",
            promises.any_graph,
            (partial(extract_state, entries=entries, context=context),),
        ),
        # 4. What the target wants. Out: recurrences in the form that suits it, real numbers only, weights in the layout of
        # the kernels.
        Stage(
            "choose",
            promises.any_graph,
            (
                convolve_channels_last,
                tabulate_routes,
                partial(transform_long_convs, claims=claims),
                partial(plan_transforms, claims=claims),
                partial(choose_algorithms, machine=machine, algorithm=algorithm),
                lower_complex,
                partial(pack_weights, panel=panel, claims=claims),
                *([partial(quantize_weights, quantize=quantize, claims=claims)] if quantize else []),
                share_tied_weights,
                sink_transposes,
            ),
        ),
        # 5. Few ops. Out: core ops, and the composites that the target has kernels for.
        Stage(
            "decompose",
            promises.core_or_claimed(claims),
            (
                partial(decompose, keep=claims),
                canonicalise_reductions,
                sink_transposes,
                fold_constants,
                partial(lay_out_weights, machine=machine),
            ),
        ),
        # 6. Kernels. Out: every computation in a group that becomes one kernel.
        Stage("fuse", promises.scheduled, (give_memory_to_steps, partial(fuse_groups, machine=machine))),
        # 7. Memory. Out: what is stored is as narrow as was asked for; kernels widen and round it.
        Stage(
            "narrow",
            promises.scheduled,
            (partial(narrow_precision, precision=precision),) if precision != FULL_PRECISION else (),
        ),
    )


def run_pipeline(
    module: Module,
    claims: Collection[str] = frozenset(),
    *,
    panel: int = 32,
    entries: Collection[str] = (),
    context: int | None = None,
    machine: Machine = ANY_MACHINE,
    algorithm: str | None = None,
    precision: str = FULL_PRECISION,
    quantize: str | None = None,
    stop_after: str | None = None,
    observe: Observer | None = None,
) -> Module:
    """Take a module to the form that the code generator lowers.

    Args:
        claims: names of the composites that the target has kernels for.
        panel: columns per panel of packed weights.
        entries: which entries to build; ``prefill`` and ``step`` can be derived. By default those of ``module``.
        context: how many elements a cache of attention has room for (``extract_state``).
        machine: what the cost model knows of the target.
        algorithm: how every recurrence runs (``choose_algorithms.ALGORITHMS``); by default the cost model chooses.
        precision: what weights and values between kernels are stored as (``narrow_precision``).
        quantize: the format of the weights of products (``quantize_weights.FORMATS``); None leaves them as they are.
        stop_after: the last stage to run, by name.
        observe: called with ``"input"`` and the module, then with each stage's name and result.

    Raises:
        VerifyError: a stage broke its promise; the message starts with the stage.
        InputError: ``stop_after`` names no stage, ``algorithm`` does not fit every recurrence, or a weight does not fit
            ``precision``.
    """
    promises.any_graph(module)
    stages = up_to(pipeline(claims, panel, entries, context, machine, algorithm, precision, quantize), stop_after)
    for name, result in run_stages(stages, module):
        module = result
        if observe:
            observe(name, module)
    return module
