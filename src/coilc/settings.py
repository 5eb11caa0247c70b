"""Every switch that the environment can set, one typed row each. This file imports nothing of ours.

A setting is read when it is asked for, so a test or a notebook may change ``os.environ`` at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One environment variable.

    Attributes:
        name: the variable, ``COILC_...``.
        default: the value when the variable is unset or empty.
        read: from the variable's text to a value; raises ``ValueError`` for text that makes no sense.
        doc: one sentence for ``coilc doctor`` and docs/debugging.md.
    """

    name: str
    default: T
    read: Callable[[str], T]
    doc: str

    def get(self) -> T:
        """The value now in force.

        Raises:
            ValueError: naming the variable, when its text makes no sense.
        """
        text = os.environ.get(self.name, "")
        if not text:
            return self.default
        try:
            return self.read(text)
        except ValueError as error:
            raise ValueError(f"{self.name}={text!r}: {error}") from None


def _switch(text: str) -> bool:
    """``1``, ``true``, ``yes``, ``on`` and their opposites."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("write 1 or 0")
    return words[text.lower()]


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise ValueError("write a number of threads, 1 or more")
    return number


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coilc"


DUMP = Setting("COILC_DUMP", "", str, "write IR text per stage: 'all' or the name of one stage")
DUMP_DIR = Setting("COILC_DUMP_DIR", Path("coilc-dump"), Path, "folder that COILC_DUMP writes into")
DIFF = Setting("COILC_DIFF", False, _switch, "print what each pass changed, as a diff of IR text")
TRACE = Setting("COILC_TRACE", False, _switch, "print each rewrite rule as it fires, with the node")
DEBUG = Setting("COILC_DEBUG", False, _switch, "show Python tracebacks on the command line")
CC = Setting("COILC_CC", "", str, "C compiler that links artifacts; empty means the ziglang package")
NVCC = Setting("COILC_NVCC", "", str, "compiler of CUDA code; empty means nvcc on the PATH")
THREADS = Setting(
    "COILC_THREADS", len(os.sched_getaffinity(0)), _count, "threads of a loaded artifact unless the call says"
)
CACHE = Setting("COILC_CACHE", _cache_home(), Path, "folder of artifacts that torch.compile(backend='coilc') built")

SETTINGS: tuple[Setting[str] | Setting[bool] | Setting[int] | Setting[Path], ...] = (
    DUMP, DUMP_DIR, DIFF, TRACE, DEBUG, CC, NVCC, THREADS, CACHE,
)  # fmt: skip
