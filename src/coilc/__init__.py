"""coilc: PyTorch in, a small native artifact out, and proof that it is right.

::

    program = coilc.export(model, args=(ids,), dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
    coilc.compile(program, "mamba.coil")
    outputs = coilc.load("mamba.coil")(input_ids=ids)

Names are resolved when first used: ``import coilc`` loads neither torch nor tvm, and ``coilc.load`` never does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .codegen.bundle import bundle
    from .codegen.compile import compile
    from .comparison import Report, compare
    from .exporting import export
    from .frontend.torch_export import import_program
    from .ir import CoilError, Module, UnsupportedError
    from .runtime import ArtifactError, InputError, RunError, Session, StateError, load

__version__ = "0.1.0"

__all__ = [
    "ArtifactError", "CoilError", "InputError", "Module", "Report", "RunError", "Session", "StateError",
    "UnsupportedError", "bundle", "compare", "compile", "export", "import_program", "load",
]  # fmt: skip

_HOME = {
    "ArtifactError": "runtime",
    "CoilError": "ir",
    "InputError": "runtime",
    "Module": "ir",
    "Report": "comparison",
    "RunError": "runtime",
    "Session": "runtime",
    "StateError": "runtime",
    "UnsupportedError": "ir",
    "bundle": "codegen.bundle",
    "compare": "comparison",
    "compile": "codegen.compile",
    "export": "exporting",
    "import_program": "frontend.torch_export",
    "load": "runtime",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'coilc' has no attribute '{name}'")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
