"""Where a traced operation stands in the user's source."""

from __future__ import annotations

import linecache
import os
import re
import sys
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from coilc.ir import Location

_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)
_OURS = str(Path(__file__).resolve().parent)
_TORCH = str(Path(torch.__file__).resolve().parent)


def location_of(node: torch.fx.Node) -> Location | None:
    """The deepest frame of ``node`` outside torch and coilc, with the module path as scope and the node as source."""
    frames = [(m["file"], int(m["line"])) for m in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    frame = next((f for f in reversed(frames) if _is_users(f[0])), None)
    scope = _scope(node)
    if frame is None and not scope:
        return None
    file, line = frame or ("?", 0)
    return Location(_short(file), line, scope, node.name)


def _scope(node: torch.fx.Node) -> str:
    """Path of the innermost module, ``backbone.layers.0.mixer``; empty for the root."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("",))[0]
    return re.sub(r"^L\['self'\]\.?", "", path).split("@")[0]


@cache
def _is_users(file: str) -> bool:
    path = os.path.realpath(file)
    return not path.startswith((_TORCH + os.sep, _OURS + os.sep)) and not file.startswith("<eval_with_key>")


@cache
def _short(file: str) -> str:
    """The path below the working directory or the import root that holds it: the same on every machine."""
    roots = sorted({os.getcwd(), *filter(None, sys.path)}, key=len, reverse=True)
    return next((os.path.relpath(file, root) for root in roots if file.startswith(root.rstrip(os.sep) + os.sep)), file)


def location_of_error(traceback: TracebackType | None) -> tuple[Location | None, str]:
    """The user's line that an exception passed through last, and the text of that line."""
    found: tuple[Location | None, str] = (None, "")
    while traceback is not None:
        file, line = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        if _is_users(file) and not file.startswith("<") and "site-packages" + os.sep + "sympy" not in file:
            found = Location(_short(file), line), linecache.getline(file, line).strip()
        traceback = traceback.tb_next
    return found
