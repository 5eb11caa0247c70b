"""Vim's two directions: one launch for both scans and one for both convolutions, where the cores are there."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import coilc
from coilc.codegen.compile import write_artifact
from coilc.codegen.plan import make_plan
from coilc.codegen.target import parse_target
from coilc.passes import Machine, run_pipeline

SERVER = Machine(cores=64, lanes=16, memory_bytes=64.0)
FOLDER = Path(__file__).resolve().parents[2] / "examples" / "zoo"


@pytest.fixture(scope="module")
def block() -> torch.nn.Module:
    sys.path.insert(0, str(FOLDER))
    try:
        import vim
    finally:
        sys.path.remove(str(FOLDER))
    torch.manual_seed(0)
    return vim.Block(192, 16).eval()


@pytest.mark.slow
def test_two_directions_are_one_launch(block: torch.nn.Module, tmp_path: Path) -> None:
    x, native = torch.randn(1, 16, 192), parse_target("native")
    program = coilc.export(block, (x,))

    def calls(machine: Machine) -> tuple[list[str], np.ndarray]:
        scheduled = run_pipeline(program, native.claims, machine=machine)
        path = write_artifact(make_plan(scheduled, program), native, tmp_path / f"{machine.cores}.coil")
        manifest = json.loads((path / "manifest.json").read_text())
        (result,) = coilc.load(path, threads=2)(tokens=x.numpy()).values()
        return [call["kernel"] for call in manifest["entries"]["main"]["calls"]], result

    (apart, one_by_one), (merged, together) = calls(Machine()), calls(SERVER)
    for op in ("selective_scan", "causal_conv1d"):
        assert sum(op in kernel for kernel in apart) == 2
        assert [op + "s" in kernel for kernel in merged if op in kernel] == [True]
    assert len(merged) < len(apart)
    exact = copy.deepcopy(block).double()(x.double()).detach().numpy()
    for found in (one_by_one, together):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
