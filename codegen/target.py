"""The machines that code is generated for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coilc.ir import CoilError, InputError

_X86_V3 = ("avx2", "fma", "f16c", "bmi2", "movbe")
_X86_V4 = (*_X86_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

# Composites that have a kernel of their own on CPUs; all others are decomposed.
_CPU_CLAIMS = frozenset(
    {"packed_matmul", "linear_scan", "selective_scan", "causal_conv1d", "gated_linear_attention", "attention"}
)


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    Attributes:
        name: what the user writes.
        triple: the linker's target.
        cpu: LLVM's name of the processor or level.
        vector_bits: width of the widest vectors worth using.
        registers: how many such vectors there are.
        features: what /proc/cpuinfo must list for the code to run.
        claims: names of composite ops that this target has a kernel for.
    """

    name: str
    triple: str
    cpu: str
    vector_bits: int
    registers: int
    features: frozenset[str]
    claims: frozenset[str] = _CPU_CLAIMS

    @property
    def tvm(self) -> Mapping[str, Any]:
        """The compiler's description of the target."""
        attributes = [] if self.triple.startswith("x86_64") else ["+neon"]
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu} | (
            {"mattr": attributes} if attributes else {}
        )

    def lanes(self, bits: int) -> int:
        """How many elements of this width one vector holds."""
        return self.vector_bits // bits


_X86, _ARM = "x86_64-linux-gnu", "aarch64-linux-gnu"
TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("x86-64-v3", _X86, "x86-64-v3", 256, 16, frozenset(_X86_V3)),
        Target("x86-64-v4", _X86, "x86-64-v4", 512, 32, frozenset(_X86_V4)),
        Target("aarch64", _ARM, "generic", 128, 32, frozenset({"asimd"})),
    )
}


def parse_target(name: str) -> Target:
    """The target called ``name``; ``native`` is the best one that this machine can run.

    Raises:
        CoilError: there is no such target, or this machine is none of them.
    """
    if name == "native":
        return _native()
    if name not in TARGETS:
        raise InputError(f"there is no target '{name}'; known targets: native, {', '.join(TARGETS)}")
    return TARGETS[name]


def _native() -> Target:
    machine = platform.machine().replace("arm64", "aarch64")
    present = cpu_features()
    fitting = [t for t in TARGETS.values() if t.triple.startswith(machine) and t.features <= present]
    if not fitting:
        raise CoilError(f"no target fits this {machine} machine; name one of {', '.join(TARGETS)}")
    return fitting[-1]


def cpu_features() -> frozenset[str]:
    """What this machine's processor can do, in the words of /proc/cpuinfo (empty where that does not exist)."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(word for line in lines if line.startswith(("flags", "Features")) for word in line.split()[2:])
