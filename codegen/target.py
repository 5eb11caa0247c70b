"""The machines that code is generated for.

A target is a level (``x86-64-v3``), a level with extensions (``aarch64+dotprod+fp16``) or a preset, which is a board's
processor by name (``rpi5``).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coilc.ir import CoilError, InputError
from coilc.passes.cost_model import Machine

_X86_V2 = ("sse4_2", "popcnt")
_X86_V3 = ("avx2", "fma", "f16c", "bmi2", "movbe")
_X86_V4 = (*_X86_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

# Composites that have a kernel, or a row of scalar code, of their own on CPUs; all others are decomposed.
_CPU_CLAIMS = frozenset(
    {
        "exp2",
        "softplus",
        "packed_matmul",
        "quantized_matmul",
        "linear_scan",
        "selective_scan",
        "causal_conv1d",
        "depthwise_conv",
        "long_conv",
        "dft",
        "gated_linear_attention",
        "gated_delta_rule",
        "generalized_delta_rule",
        "attention",
    }
)


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Attributes:
        kind: the family, which is also TVM's name of it.
        arch: the compiler's name of the architecture, such as ``sm_90a``.
        shared_bytes: the memory that the threads of a block can share.
        multiprocessors: how many blocks run at a time, at least.
        warpgroups: whether tensor cores read shared memory themselves, and bulk copies fill it (``wgmma``, TMA).
    """

    kind: str
    arch: str
    shared_bytes: int
    multiprocessors: int
    warpgroups: bool = False

    @property
    def capability(self) -> int:
        """The architecture as a number, 10*major + minor."""
        return int("".join(filter(str.isdigit, self.arch)))

    @property
    def early_launch(self) -> bool:
        """Whether a kernel can be launched before the one ahead of it has ended, and wait for that itself."""
        return self.capability >= 90

    @property
    def exact(self) -> bool:
        """Whether code for it runs on this one alone, and not on later ones of the same major number."""
        return not self.arch[-1].isdigit()

    @property
    def tvm(self) -> Mapping[str, Any]:
        """The compiler's description of the device."""
        return {
            "kind": self.kind,
            "arch": self.arch,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": self.shared_bytes,
            "thread_warp_size": 32,
        }


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
        cores: how many the cost model of recurrences counts on; a processor's own number, where that is known.
        claims: names of composite ops that this target has a kernel for.
        attributes: LLVM's names of extensions beyond ``cpu``.
        device: the accelerator that runs the kernels, which this processor only launches; its threads are scalar.
    """

    name: str
    triple: str
    cpu: str
    vector_bits: int
    registers: int
    features: frozenset[str]
    cores: int = 4
    claims: frozenset[str] = _CPU_CLAIMS
    attributes: tuple[str, ...] = ()
    device: Device | None = None

    @property
    def kind(self) -> str:
        """What runs the kernels: ``cpu``, or the device's."""
        return self.device.kind if self.device else "cpu"

    @property
    def tvm(self) -> Mapping[str, Any]:
        """The compiler's description of the target."""
        attributes = {"mattr": list(self.attributes)} if self.attributes else {}
        processor = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu} | attributes
        return {**self.device.tvm, "host": processor} if self.device else processor

    @property
    def device_type(self) -> int:
        """DLPack's number of what runs the kernels."""
        return {"cpu": 1, "cuda": 2}[self.kind]

    @property
    def extensions(self) -> tuple[str, ...]:
        """What may follow its name, each after a ``+``."""
        return tuple(EXTENSIONS) if self is _NEON else ()

    @property
    def memory_operands(self) -> bool:
        """Whether arithmetic takes an operand from memory; elsewhere constants and loads occupy registers."""
        return self.triple.startswith("x86_64")

    @property
    def machine(self) -> Machine:
        """The target as the cost model of recurrences sees it."""
        return Machine(cores=self.cores, lanes=self.lanes(32), inner_first=self.device is not None)

    def lanes(self, bits: int) -> int:
        """How many elements of this width one vector holds."""
        return max(1, self.vector_bits // bits)


# On a GPU, products of matrices go through its own templates, and attention is products and a softmax.
_GPU_CLAIMS = _CPU_CLAIMS - {"packed_matmul", "quantized_matmul", "attention"}


def _cuda(arch: str, shared_kilobytes: int, multiprocessors: int, warpgroups: bool = False) -> Target:
    """A GPU in a machine of the oldest x86-64 level that artifacts run on."""
    device = Device("cuda", arch, shared_kilobytes * 1024, multiprocessors, warpgroups)
    features = frozenset(_X86_V2)
    return Target(f"cuda:{arch}", _X86, "x86-64-v2", 32, 64, features, multiprocessors * 4, _GPU_CLAIMS, device=device)


_X86, _ARM = "x86_64-linux-gnu", "aarch64-linux-gnu"
_NEON = Target("aarch64", _ARM, "generic", 128, 32, frozenset({"asimd"}), attributes=("+neon",))
TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("x86-64-v3", _X86, "x86-64-v3", 256, 16, frozenset(_X86_V3)),
        Target("x86-64-v4", _X86, "x86-64-v4", 512, 32, frozenset(_X86_V4)),
        Target(
            "x86-64-v4+vnni",
            _X86,
            "x86-64-v4",
            512,
            32,
            frozenset((*_X86_V4, "avx512_vnni")),
            attributes=("+avx512vnni",),
        ),
        _NEON,
        _cuda("sm_80", 163, 108),
        _cuda("sm_90a", 227, 132, warpgroups=True),
    )
}

# What may follow aarch64: LLVM's name of the extension, and the kernel's names of what a CPU must have for it.
EXTENSIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "dotprod": ("+dotprod", ("asimddp",)),
    "fp16": ("+fullfp16", ("fphp", "asimdhp")),
    "i8mm": ("+i8mm", ("i8mm",)),
    "bf16": ("+bf16", ("bf16",)),
}


def _preset(name: str, cpu: str, *features: str, cores: int = 4) -> Target:
    """A known processor, whose LLVM name implies its extensions; ``features`` are those that its code may use."""
    return replace(_NEON, name=name, cpu=cpu, features=_NEON.features.union(features), cores=cores)


_V8_2 = ("asimddp", "asimdhp", "asimdrdm", "fphp")
_APPLE = (*_V8_2, "asimdfhm", "fcma", "sha3")
PRESETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        _preset("rpi4", "cortex-a72"),
        _preset("rpi5", "cortex-a76", *_V8_2),
        _preset("jetson-orin", "cortex-a78ae", *_V8_2, cores=8),
        _preset("graviton", "neoverse-n1", *_V8_2),  # Graviton 2, and so every later one
        replace(
            _preset("graviton3", "neoverse-v1", *_V8_2, "i8mm", "bf16"),
            attributes=(*_NEON.attributes, "-sve"),  # LLVM would write vectors of unknown length where it chooses them
        ),
        _preset("apple-m", "apple-m1", *_APPLE, cores=8),  # Linux, such as in a container on a Mac
        _preset("apple-m2", "apple-m2", *_APPLE, "i8mm", "bf16", cores=8),  # and later ones
    )
}


def parse_target(name: str) -> Target:
    """The target called ``name``; ``native`` is the best one that this machine can run.

    Raises:
        CoilError: there is no such target or extension, or this machine is none of them.
    """
    if name == "native":
        return replace(_native(), cores=len(os.sched_getaffinity(0)))
    known = {**TARGETS, **PRESETS}
    if name in known:
        return known[name]
    level, *extensions = name.split("+")
    if level != _NEON.name or not extensions:
        raise InputError(f"there is no target '{name}'; known targets: native, {', '.join(known)}")
    unknown = [extension for extension in extensions if extension not in EXTENSIONS]
    if unknown:
        raise InputError(f"target '{name}': {level} has no extension '{unknown[0]}'; it has {', '.join(EXTENSIONS)}")
    return _extended(frozenset(extensions))


def _extended(extensions: frozenset[str]) -> Target:
    """The level ``aarch64`` with extensions; its name lists them in the order of the table."""
    chosen = [name for name in EXTENSIONS if name in extensions]
    return replace(
        _NEON,
        name="+".join((_NEON.name, *chosen)),
        features=_NEON.features.union(*(EXTENSIONS[name][1] for name in chosen)),
        attributes=(*_NEON.attributes, *(EXTENSIONS[name][0] for name in chosen)),
    )


def _native() -> Target:
    machine = platform.machine().replace("arm64", "aarch64")
    present = cpu_features()
    fitting = [t for t in TARGETS.values() if not t.device and t.triple.startswith(machine) and t.features <= present]
    if not fitting:
        raise CoilError(f"no target fits this {machine} machine; name one of {', '.join(TARGETS)}")
    if fitting[-1] is _NEON:
        return _extended(frozenset(name for name, (_, needed) in EXTENSIONS.items() if present.issuperset(needed)))
    return fitting[-1]


def cpu_features() -> frozenset[str]:
    """What this machine's processor can do, in the words of /proc/cpuinfo (empty where that does not exist)."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(word for line in lines if line.startswith(("flags", "Features")) for word in line.split()[2:])
