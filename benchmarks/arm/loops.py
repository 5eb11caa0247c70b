"""The inner loops of AArch64 assembly: what is in them, and what llvm-mca says they take."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_JUMP = re.compile(r"(?:b\b|b\.|[ct]bn?z)")
_ARITHMETIC = re.compile(
    r"(?:[su]dot|[su]mmla|[su]?ml[as]l?2?|[su]?mull?2?|f(?:ml[as]|mul|add|sub|div|neg|abs|max\w*|min\w*|sqrt|rint\w|cm\w+|cvt\w+)|[su]cvtf)\s+v\d+\.\d[dsh]"
)
_MULTIPLY_ADD = re.compile(r"(?:fml[as]|[su]dot|[su]mmla)\s+v")


@dataclass(frozen=True)
class Loop:
    """A loop that holds no other loop.

    Attributes:
        code: its instructions.
        framed: x29 points to the function's stack frame; otherwise it is a register like any other.
    """

    code: tuple[str, ...]
    framed: bool

    @cached_property
    def spills(self) -> list[str]:
        """Loads and stores of the stack at a fixed place: registers that did not suffice. Others are of arrays there."""
        base = r"\[(?:sp|x29)(?:\]|, #)" if self.framed else r"\[sp(?:\]|, #)"
        return [text for text in self.code if re.match(r"(?:ld|st)", text) and re.search(base, text)]

    @cached_property
    def calls(self) -> list[str]:
        """Calls of functions, libm's among them."""
        return [text for text in self.code if re.match(r"blr?\s", text)]

    def count(self, pattern: str | re.Pattern[str]) -> int:
        return sum(bool(re.match(pattern, text)) for text in self.code)

    @property
    def operations(self) -> tuple[str, ...]:
        """The instructions without their operands."""
        return tuple(text.split()[0] for text in self.code)

    @property
    def arithmetic(self) -> int:
        """Vector instructions of floating point, and products of integers."""
        return self.count(_ARITHMETIC)

    @property
    def multiply_adds(self) -> int:
        return self.count(_MULTIPLY_ADD)

    @property
    def memory(self) -> int:
        return self.count(r"(?:ld|st)")

    @property
    def vector(self) -> int:
        """Instructions on whole vectors, without loads and stores."""
        return self.count(r"(?!ld|st)\S+\s+v\d+\.\d+[bhsd]")

    @property
    def width(self) -> int:
        """Bits of the widest vector."""
        return (
            128 if self.count(r".*(?:\bq\d|\.(?:16b|8h|4s|2d)\b)") else 64 if self.count(r".*\.(?:8b|4h|2s)\b") else 32
        )

    def lanes(self, pattern: str) -> int:
        """Elements of fp32 in the vectors of the matching instructions; a pair has two."""
        found = [text for text in self.code if re.match(pattern, text)]
        return sum(4 * max(1, len(re.findall(r"\bq\d+", text))) for text in found)


def inner_loops(assembly: str) -> list[Loop]:
    """The inner loops of every function, once each: copies for one and for several threads differ in registers only."""
    found = [loop for function in _functions(assembly) for loop in _loops(function)]
    return list({(loop.operations, len(loop.spills)): loop for loop in found}.values())


def hot_loops(assembly: str, least: int = 12) -> list[Loop]:
    """Those with at least so many multiply-adds, where the time goes."""
    return [loop for loop in inner_loops(assembly) if loop.multiply_adds >= least]


def _functions(assembly: str) -> Iterator[list[str]]:
    """The lines of each function."""
    lines: list[str] = []
    for line in assembly.splitlines():
        if re.match(r"[A-Za-z_][\w.$]*:", line):
            yield lines
            lines = []
        lines.append(line.split("//")[0].rstrip())
    yield lines


def _loops(lines: list[str]) -> Iterator[Loop]:
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in lines:
        if match := re.match(r"([.\w$]+):", line):
            labels[match[1]] = len(code)
        elif re.match(r"\t[a-z]", line):
            code.append(re.sub(r"\s+", " ", line.strip()))
    framed = any(re.match(r"(?:mov x29, sp|add x29, sp)", text) for text in code)
    jumps = [(labels.get(text.split()[-1], len(code)), i) for i, text in enumerate(code) if _JUMP.match(text)]
    spans = [(first, last) for first, last in jumps if first <= last]
    for first, last in spans:
        if not any(o != (first, last) and first <= o[0] and o[1] <= last for o in spans):
            yield Loop(tuple(re.sub(r"\.L\w+", "loop", text) for text in code[first : last + 1]), framed)


def analyzer() -> str | None:
    """The newest llvm-mca; older ones know neither processor."""
    names = [f"llvm-mca-{version}" for version in range(22, 16, -1)] + ["llvm-mca"]
    return next((name for name in names if shutil.which(name)), None)


def cycles(loop: Loop, cpu: str, tool: str, iterations: int = 200) -> float:
    """Cycles per iteration in a steady state, with every load a hit in the nearest cache."""
    command = [tool, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", f"-iterations={iterations}", "-instruction-info=0"]
    text = "\n".join(loop.code) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1]) / iterations
