"""Runs artifacts for AArch64: the program that a device gets, natively or under qemu."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coilc.codegen.bundle import link_device_program
from coilc.runtime.artifact import read_manifest

EMULATOR = [] if platform.machine() == "aarch64" else ["qemu-aarch64"]


class Device:
    """An artifact's static program."""

    def __init__(self, artifact: Path) -> None:
        self.artifact, self.program = artifact, artifact.with_suffix(".run")
        link_device_program(artifact, read_manifest(artifact), self.program)

    def __call__(self, *args: object) -> Any:
        """The JSON that ``coil-run ARGS`` prints."""
        weights = self.artifact / "weights.safetensors"
        command = [*EMULATOR, str(self.program), *map(str, args), "--weights", str(weights)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def run(self, inputs: Mapping[str, np.ndarray], folder: Path, entry: str = "main") -> dict[str, np.ndarray]:
        """Outputs by name, by way of files in ``folder``."""
        args: list[object] = []
        for name, array in inputs.items():
            np.save(folder / f"{name}.npy", array)
            args += ["--input", f"{name}={folder / name}.npy"]
        found = self("run", "--entry", entry, "--threads", 2, "--output", folder / "out", *args)
        return {row["name"]: np.load(folder / "out" / f"{row['name']}.npy") for row in found["outputs"]}
