"""What a stage of the pipeline is, and how stages run: pass after pass, then the stage's promise is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps

from coilc.ir import CoilError, Graph, InputError, Module
from coilc.ir.verify import Spec

from .dump import dump_stage, run_pass

Pass = Callable[[Module], Module]
Observer = Callable[[str, Module], None]


@dataclass(frozen=True)
class Stage:
    """Passes in order, and what holds of the module after the last."""

    name: str
    promise: Spec
    passes: tuple[Pass, ...]


def on_every_graph(transform: Callable[[Graph], Graph]) -> Pass:
    """A pass over modules from one over graphs."""

    @wraps(transform)
    def apply(module: Module) -> Module:
        return module.map(transform)

    return apply


def run_stages(stages: Sequence[Stage], module: Module) -> Iterator[tuple[str, Module]]:
    """The module as it came in, named ``input``, and after each stage.

    Raises:
        VerifyError: a stage broke its promise; the message starts with the stage.
    """
    dump_stage(0, "input", module)
    yield "input", module
    for number, stage in enumerate(stages, start=1):
        module = run_stage(stage, module)
        dump_stage(number, stage.name, module)
        yield stage.name, module


def run_stage(stage: Stage, module: Module) -> Module:
    """Run one stage and check its promise."""
    for step in stage.passes:
        module = run_pass(step, module)
    try:
        stage.promise(module)
    except CoilError as error:
        error.message = f"after stage '{stage.name}': {error.message}"
        raise
    return module


def up_to(stages: Sequence[Stage], last: str | None) -> Sequence[Stage]:
    """The stages up to and including the one called ``last``; all of them for ``None``.

    Raises:
        InputError: there is no such stage.
    """
    names = [stage.name for stage in stages]
    if last not in (None, *names):
        raise InputError(f"there is no stage '{last}'; the stages are {', '.join(names)}")
    return stages[: names.index(last) + 1] if last else stages
