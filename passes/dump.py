"""Looking inside a compilation: ``COILC_DUMP``, ``COILC_DIFF`` and ``COILC_TRACE``."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable

from coilc.ir import Module, print_module
from coilc.settings import DIFF, DUMP, DUMP_DIR, TRACE

from .trace import tracing


def dump_stage(number: int, name: str, module: Module) -> None:
    """Write ``NN-name.py`` if ``COILC_DUMP`` is this stage's name or ``all``."""
    if DUMP.get() in ("all", name):
        folder = DUMP_DIR.get()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}-{name}.py").write_text(print_module(module))


def run_pass(step: Callable[[Module], Module], module: Module) -> Module:
    """Run one pass; on request, print every rule that fired and the change as a diff, both to stderr."""
    if not (DIFF.get() or TRACE.get()):
        return step(module)
    with tracing() as trace:
        result = step(module)
    if TRACE.get():
        print(*trace.fired, sep="\n", file=sys.stderr)
    if DIFF.get():
        print_difference(name_of(step), module, result)
    return result


def print_difference(name: str, before: Module, after: Module) -> None:
    """The change in IR text, with the pass's name in the header."""
    old, new = (print_module(m, locations=False).splitlines() for m in (before, after))
    print(
        *difflib.unified_diff(old, new, f"before {name}", f"after {name}", lineterm="", n=2), sep="\n", file=sys.stderr
    )


def name_of(step: object) -> str:
    """The function's name, also of one whose options are bound."""
    return getattr(getattr(step, "func", step), "__name__", type(step).__name__)
