"""Where a traced operation stands in the user's source."""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from traceback import StackSummary
from types import TracebackType
from typing import Any

import sympy
import torch
from torch.fx.proxy import TracerBase

from coilc.ir import Location

_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+)', re.MULTILINE)
_OURS = str(Path(__file__).resolve().parent)
_TORCH = str(Path(torch.__file__).resolve().parent)
_SYMPY = str(Path(sympy.__file__).resolve().parent)  # torch decides about symbolic sizes in it


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


@contextmanager
def whole_stacks() -> Iterator[None]:
    """While tracing, keep every frame of the model: torch itself keeps only functions called ``forward``."""
    original = TracerBase._filter_traceback_frames
    TracerBase._filter_traceback_frames = _frames_of_model
    try:
        yield
    finally:
        TracerBase._filter_traceback_frames = original


def _frames_of_model(_: TracerBase, stack: StackSummary) -> StackSummary:
    """Frames from the outermost ``forward`` on, without torch's and coilc's."""
    start = next((i for i, frame in enumerate(stack) if frame.name == "forward"), len(stack))
    return StackSummary.from_list([frame for frame in stack[start:] if _is_users(frame.filename)])


@cache
def _is_users(file: str) -> bool:
    path = os.path.realpath(file)
    theirs = (_TORCH + os.sep, _OURS + os.sep, _SYMPY + os.sep)
    return not path.startswith(theirs) and not file.startswith("<")  # "<string>": code that torch generated


@cache
def _short(file: str) -> str:
    """The path below the folder of an installed package or below the working directory: the same on every machine."""
    installed = re.split(r"[/\\](?:site|dist)-packages[/\\]", file)
    roots = sorted(filter(None, sys.path), key=len, reverse=True)
    below = (os.path.relpath(file, r) for r in (os.getcwd(), *roots) if file.startswith(r.rstrip(os.sep) + os.sep))
    return installed[-1] if len(installed) > 1 else next(below, file)


def location_of_error(traceback: TracebackType | None) -> tuple[Location | None, str]:
    """The user's line that an exception passed through last, and the text of that line."""
    found: tuple[Location | None, str] = (None, "")
    while traceback is not None:
        file, line = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        if _is_users(file):
            found = Location(_short(file), line), linecache.getline(file, line).strip()
        traceback = traceback.tb_next
    return found


def raised_by_torch(error: BaseException) -> bool:
    """Whether torch's own code raised it, not the model's."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and not _is_users(traceback.tb_frame.f_code.co_filename)
