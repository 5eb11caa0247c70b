"""``coilc.export``: a PyTorch module as IR, from one trace, or from two where Python code fixes the length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram

from .caches import opened
from .frontend import torch_export as frontend
from .frontend.convert import to_numpy
from .frontend.dynamic_shapes import Arguments, parse_dynamic
from .frontend.two_lengths import TwoLengths, two_lengths
from .ir import CoilError, Module
from .ir.states import begin_states, declare_states
from .passes.unify_lengths import Length, unify_modules

Lengths: TypeAlias = "Sequence[int] | Mapping[str, Sequence[int]]"


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    lengths: Lengths | None = None,
    states: Mapping[str, str] | None = None,
    initial: Mapping[str, Any] | None = None,
) -> Module:
    """A module as IR, traced in eval mode and without gradients; the entry is ``main``.

    Buffers that the module updates become states: further inputs and outputs, which a session keeps. They start with the
    values that they have now.

    Args:
        args, kwargs: example arguments. On dynamic axes any extent will do.
        dynamic_shapes: as ``torch.export`` has it, with names for dimensions: ``{"input_ids": {0: "B", 1: "L:1..8192"}}``.
        lengths: for a model with a Python loop over a dynamic axis, which a trace unrolls: two lengths to trace at, for
            instance ``{"L": (7, 11)}``, or ``(7, 11)`` if only one dimension of ``dynamic_shapes`` is no batch ("B" or
            "batch"). The example arguments are cut, or repeated, along the axes of that dimension. Both traces are rolled
            up again and become one program, in which every number that differs is a linear function of the length. What
            the model does at certain lengths only, other than those two, is not seen. If torch can trace the dimension as
            a dynamic one, that is what happens instead.
        states: names of inputs, and of the outputs that take their places in the next call: the module's own cache, which
            a session keeps. Names of nested ones may be left out from some point on: ``{"past": "present"}``. A state keeps its
            size, or grows along an axis whose extent is a dimension of its own, as keys and values of attention do.
            transformers' cache objects among the arguments need no declaration.
        initial: tensors or arrays that states begin with, by name of the input; by default zeros.

    Raises:
        UnsupportedError: the model uses what coilc cannot express; all places are listed.
        CoilError: the model branches on values, or fixes a dynamic dimension; or its traces at two lengths differ in more
            than the length, and the message names the first operation that does.
        InputError: the arguments, ``dynamic_shapes``, ``lengths``, ``states`` or ``initial`` do not fit the model.
    """
    with opened(module, args, kwargs or {}, dynamic_shapes) as call:
        found = _traced(module, args, call.kwargs, call.dynamic_shapes, lengths)
    declared = found.map(lambda graph: declare_states(graph, {**call.states, **(states or {})}))
    return begin_states(declared, {name: to_numpy(torch.as_tensor(x)) for name, x in (initial or {}).items()})


def _traced(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    lengths: Lengths | None,
) -> Module:
    if lengths is None:
        return frontend.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
    arguments = Arguments(module, args, dict(kwargs or {}))
    pair = two_lengths(parse_dynamic(arguments, dynamic_shapes), lengths)
    with suppress(CoilError):  # if the reason is another one than the length, the traces below meet it again
        return frontend.export(module, *_resized(arguments, dynamic_shapes, pair), dynamic_shapes=dynamic_shapes)
    first, second = (
        frontend.import_program(frontend.trace(module, args, kwargs, dynamic_shapes, held={pair.symbol: length}))
        for length in (pair.first, pair.second)
    )
    return unify_modules(first, second, Length(pair.symbol, pair.range, pair.first, pair.second))


def _resized(arguments: Arguments, dynamic_shapes: Any, pair: TwoLengths) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example at the shorter length, since an unrolled trace takes time in proportion."""
    values, _ = parse_dynamic(arguments, dynamic_shapes).held(arguments.values, {pair.symbol: pair.first})
    return arguments.call(values)


def trace_example(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    lengths: Lengths | None,
) -> ExportedProgram:
    """What ``export`` traces, at the example's own length: a value whose name does not depend on the length has it here."""
    if lengths is None:
        return frontend.trace(module, args, kwargs, dynamic_shapes)
    pair = two_lengths(parse_dynamic(Arguments(module, args, kwargs), dynamic_shapes), lengths)
    with suppress(CoilError):
        return frontend.trace(module, args, kwargs, dynamic_shapes)
    return frontend.trace(module, args, kwargs, dynamic_shapes, held={pair.symbol: None})
