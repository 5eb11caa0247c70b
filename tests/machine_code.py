"""Machine code of kernels for a GPU, as the toolkit's disassembler shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_FOUND = sorted(Path(sysconfig.get_path("platlib")).glob("nvidia/*/bin/cuobjdump"))
needs_disassembler = pytest.mark.skipif(
    shutil.which("nvcc") is None or not _FOUND, reason="needs nvcc and the test extra"
)


@dataclass(frozen=True)
class Code:
    """One kernel: its instructions in their order, its registers, and its bytes of stack."""

    instructions: tuple[str, ...]
    registers: int
    stack: int

    def has(self, *names: str) -> bool:
        return all(any(i.startswith(name) for i in self.instructions) for name in names)

    def at_a_time(self, name: str) -> int:
        """The most instructions of this name between two that wait: arithmetic with floats, and barriers."""
        parts = re.split(r"^(?:F(?:FMA|ADD|MUL)|WARPSYNC|BAR).*$", "\n".join(self.instructions), flags=re.M)
        return max(len(re.findall(rf"^{re.escape(name)}", part, re.M)) for part in parts)

    def before(self, name: str) -> tuple[str, ...]:
        """The instructions ahead of the first of this name."""
        return self.instructions[: next(i for i, x in enumerate(self.instructions) if x.startswith(name))]


def machine_code(fatbin: Path) -> Mapping[str, Code]:
    """Every kernel of a file, by name."""
    dump = subprocess.run(
        [_FOUND[-1], "-sass", "-res-usage", fatbin],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": str(_FOUND[-1].parent)},
    ).stdout
    usage = {m[1]: (int(m[2]), int(m[3])) for m in re.finditer(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", dump)}
    codes = {}
    for part in re.split(r"\bFunction : ", dump)[1:]:
        name = part.split()[0]
        instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", part)
        codes[name] = Code(tuple(instructions), *usage[name])
    return codes
