"""Language models say the same on both architectures: what coil-run generates here and under emulation, token by token."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from models import zoo

from coilc.codegen.bundle import link_device_program
from coilc.codegen.compile import compile
from coilc.frontend.torch_export import export
from coilc.ir import Module
from coilc.runtime.artifact import read_manifest

from .emulate import EMULATOR, Device

pytestmark = pytest.mark.arm
ENTRIES = ("main", "prefill", "step")
STEPS = 200
TOLERANCE = 1e-5  # of the largest magnitude
TRAINED = Path(__file__).resolve().parents[2] / "examples" / "models" / "stdlib-mamba"


def trained() -> zoo.Case:
    """Python source, byte by byte."""
    from transformers import MambaForCausalLM

    like = zoo.mamba()
    return zoo.Case(
        MambaForCausalLM.from_pretrained(TRAINED).eval(), like.dynamic_shapes, like.make_inputs, like.sizes, "logits"
    )


MODELS = {"mamba": zoo.mamba, "mamba2": zoo.mamba2, "trained": trained}


def export_case(case: zoo.Case) -> Module:
    return export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)


def tokens_of(command: list[str], artifact: Path, prompt: list[int]) -> list[int]:
    """Greedy ones."""
    ids = ",".join(map(str, prompt))
    flags = ["--ids", ids, "--tokens", str(STEPS), "--temperature", "0", "--threads", "1"]
    weights = ["--weights", str(artifact / "weights.safetensors")]
    done = subprocess.run([*command, "generate", *flags, *weights], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr)["tokens"] == STEPS
    return list(map(int, done.stdout.split()))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() == "aarch64", reason="both programs would be for this machine")
@pytest.mark.parametrize("name", MODELS)
def test_both_architectures_say_the_same(name: str, tmp_path: Path) -> None:
    case = MODELS[name]()
    module, prompt = export_case(case), list(b"def read(" if name == "trained" else b"\x05\x11\x03\x2a")
    here = compile(module, tmp_path / "here.coil", entries=ENTRIES)
    link_device_program(here, read_manifest(here), tmp_path / "here")
    device = Device(compile(module, tmp_path / "device.coil", target="aarch64", entries=ENTRIES))
    expected = tokens_of([str(tmp_path / "here")], here, prompt)
    assert len(expected) == STEPS
    assert tokens_of([*EMULATOR, str(device.program)], device.artifact, prompt) == expected
    if name != "trained":
        check_against_eager(device, case, [*prompt, *expected], tmp_path)


def check_against_eager(device: Device, case: zoo.Case, tokens: list[int], folder: Path) -> None:
    """All logits of the text; eager in float64 is the yardstick."""
    ids = np.array([tokens], np.int64)
    eager = case.module.double()(input_ids=torch.from_numpy(ids), use_cache=False).logits.detach().numpy()
    found = device.run({"input_ids": ids}, folder)["logits"]
    assert np.abs(found - eager).max() <= TOLERANCE * np.abs(eager).max()
