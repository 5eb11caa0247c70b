"""coilc brings its compiler: with nothing on PATH, a model becomes a program for another architecture."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

MODEL = """
import torch
from torch import nn


class Smooth(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        return torch.cumsum(self.mix(x), 1)


def build():
    torch.manual_seed(0)
    return Smooth().eval(), (torch.zeros(1, 4, 8),), {}, {"x": {1: "L"}}
"""


@pytest.mark.slow
def test_nothing_of_the_system_is_needed(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "COILC_CC")}
    environment["PATH"] = str(tmp_path / "empty")

    def coilc(*args: str) -> None:
        command = [sys.executable, "-m", "coilc", *args]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    library = ("--emit", "static-lib", "--embed-weights")
    coilc("compile", "model.py:build", "--target", "aarch64", "-o", "smooth.coil", *library)
    coilc("bundle", "smooth.coil")
    with tarfile.open(tmp_path / "smooth.tar.gz") as packed:
        program = packed.extractfile("smooth/coil-run")
        assert program
        header = program.read(20)
    assert header[:5] == b"\x7fELF\x02"
    assert int.from_bytes(header[18:20], "little") == 183  # AArch64
    assert {path.name for path in (tmp_path / "smooth-lib").iterdir()} == {"libsmooth.a", "coil.h"}
