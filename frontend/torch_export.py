"""PyTorch models into the IR: ``trace`` a module, ``import_program`` what torch exported, ``export`` for both at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException, UserError
from torch.export import ExportedProgram, _trace
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from coilc.ir import CoilError, InputError, Module, Node, dims
from coilc.settings import DEBUG

from .buffer_states import name_constants
from .capture import capture
from .convert import convert
from .dynamic_shapes import Arguments, Dynamic, broken_assumption, leaves, narrowed, parse_dynamic, refusal
from .locations import location_of_error, raised_by_torch, whole_stacks
from .table import decompositions, is_convertible

_SYMBOLS = "coilc.symbols"  # in a program's metadata: torch's symbol names to the user's
_ATTEMPTS = 4


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Module:
    """A module as IR: ``trace`` and ``import_program`` in one step; the entry is ``main``."""
    return import_program(trace(module, args, kwargs, dynamic_shapes))


def trace(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    held: Mapping[str, int | None] = MappingProxyType({}),
) -> ExportedProgram:
    """Trace ``module`` in eval mode, without gradients and cache, into a program of ops that ``import_program`` knows.

    Args:
        args, kwargs: example arguments. On dynamic axes any extent will do: tracing uses at least 2 there, and the
            program takes every extent from 1.
        dynamic_shapes: as torch's, with names for dimensions: ``{"input_ids": {0: "B", 1: "L:1..8192"}}``.
        held: dimensions of ``dynamic_shapes`` that are fixed after all, and to what (``None``: as in the example). The
            example arguments are cut, or repeated, along their axes.

    Raises:
        CoilError: the model's Python code branches on values of tensors, or fixes a dynamic dimension.
        InputError: the arguments or ``dynamic_shapes`` do not fit the model.
    """
    kwargs = dict(kwargs or {})
    arguments = Arguments(module, args, kwargs)
    dynamic = parse_dynamic(arguments, dynamic_shapes)
    if held:
        arguments.values, dynamic = dynamic.held(arguments.values, held)
    with (
        evaluating(module, kwargs),
        capture(module, arguments.values),
        torch.no_grad(),
        whole_stacks(),
        _quiet(),
        _plain_errors(module),
    ):
        program = _in_known_ops(name_constants(_export(module, arguments, dynamic)))
    program.graph_module.meta[_SYMBOLS] = _symbol_names(program, dynamic, arguments)
    return program


def import_program(program: ExportedProgram | str | os.PathLike[str]) -> Module:
    """An exported program, or the path of one (``.pt2``), as IR; weights share memory with the program.

    Buffers that the program updates become states of the entry.

    Raises:
        UnsupportedError: with every op that the IR cannot express, and its source line.
        CoilError: the program updates an input in place.
        InputError: the file is missing or is no exported program.
    """
    program = program if isinstance(program, ExportedProgram) else load_program(Path(program))
    if _SYMBOLS not in program.graph_module.meta:
        program = lower(program)
    Node.forget_all()  # another model that happens to compute the same has other source lines
    return convert(program, program.graph_module.meta[_SYMBOLS])


def lower(program: ExportedProgram) -> ExportedProgram:
    """The program in ops that have a row; its node names are the ``source`` of locations. ``trace`` has done this.

    Raises:
        CoilError: the program checks at run time what is not true of every size.
    """
    if _SYMBOLS in program.graph_module.meta:
        return program
    if broken := broken_assumption(program):
        raise CoilError(f"the program checks {broken} when it runs, which not every size in its ranges fulfils")
    with torch.no_grad():
        lowered = _in_known_ops(program)
    lowered.graph_module.meta[_SYMBOLS] = {}
    return lowered


def _in_known_ops(program: ExportedProgram) -> ExportedProgram:
    return program if is_convertible(program) else program.run_decompositions(decompositions())


def load_program(path: Path) -> ExportedProgram:
    """What ``torch.export.save`` wrote.

    Raises:
        InputError: the file is missing or is no exported program.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".onnx":
        raise InputError(f"{path}: ONNX files are not supported yet; export the model to .pt2")
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever its reader meets first
        raise InputError(f"{path} is no exported program of this torch version ({error})") from error


def _export(module: torch.nn.Module, arguments: Arguments, dynamic: Dynamic) -> ExportedProgram:
    """torch.export; again with narrower ranges, or with unproven conditions on sizes deferred, if the model needs it."""
    complaint = ""
    for _ in range(_ATTEMPTS):
        args, kwargs = arguments.call(dynamic.examples(arguments.values))
        shapes = dynamic.torch_shapes(arguments.values)
        try:
            program = torch.export.export(
                module, args, kwargs, dynamic_shapes=shapes, strict=False,
                prefer_deferred_runtime_asserts_over_guards=bool(complaint),
            )  # fmt: skip
        except UserError as error:
            if not narrowed(dynamic, str(error)):
                if complaint or "Constraints violated" not in str(error):
                    raise
                complaint = str(error)
            continue
        broken = broken_assumption(program) if complaint else None
        if broken:
            raise refusal(dynamic, complaint, broken)
        return program
    raise CoilError('the model keeps narrowing its dynamic dimensions; give their ranges, like "L:1..512"')


@contextmanager
def evaluating(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Eval mode, and transformers' caches off unless the caller asks for one; both are put back."""
    training = [part for part in module.modules() if part.training]
    configs = {id(c): c for part in module.modules() if (c := getattr(part, "config", None)) is not None}
    cached = [c for c in configs.values() if getattr(c, "use_cache", None) and "use_cache" not in kwargs]
    module.eval()
    for config in cached:
        config.use_cache = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for config in cached:
            config.use_cache = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging an error and printing its partial graph before it raises; ``COILC_DEBUG=1`` shows them."""
    if DEBUG.get():
        yield
        return
    loggers = [logging.getLogger(name) for name in ("torch.export._trace", "torch.fx.experimental.symbolic_shapes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    vars(_trace)["print"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(_trace)["print"]
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _plain_errors(module: torch.nn.Module) -> Iterator[None]:
    """torch's tracing errors as one sentence with the user's line; what the model raises itself passes through."""
    try:
        yield
    except GuardOnDataDependentSymNode as error:
        location, line = location_of_error(error.__traceback__)
        raise CoilError(
            f"{type(module).__name__} decides in Python by the values of a tensor (`{line}`), which a traced program "
            f"cannot; use torch.where or torch.cond, or pass the decision as an argument",
            location,
        ) from error
    except (TorchDynamoException, torch._export.error.ExportError, NotImplementedError, AssertionError) as error:
        if isinstance(error, AssertionError) and not raised_by_torch(error):
            raise
        location, line = location_of_error(error.__traceback__)
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at_line = f" (`{line}`)" if line else ""
        raise CoilError(f"{type(module).__name__} cannot be traced{at_line}: {first}", location) from error


def _symbol_names(program: ExportedProgram, dynamic: Dynamic, arguments: Arguments) -> dict[str, str]:
    """torch's symbols by the user's names, read off the axes that the user named."""
    fakes = [
        n.meta["val"]
        for n in program.graph.nodes
        if n.op == "placeholder" and n.name in program.graph_signature.user_inputs
    ]
    tensors = [fake for fake in fakes if isinstance(fake, torch.Tensor)]
    names: dict[str, str] = {}
    for (path, _), fake in zip(leaves(arguments.values), tensors, strict=False):
        for axis, dim in dynamic.axes.get(path, {}).items():
            free = [] if isinstance(fake.shape[axis], int) else list(fake.shape[axis].node.expr.free_symbols)
            if len(free) == 1:
                names[free[0].name] = next(dims.symbols(dim))
    return names
