"""coil-run for a GPU: a program that needs the driver and the C library, with weights beside it or inside."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from emulation.gpu import EmulatedGPU

from coilc.codegen.bundle import link_device_program, write_static_library
from coilc.runtime.artifact import read_manifest

from .block import Block
from .conftest import compiles

pytestmark = compiles


@pytest.fixture(scope="module", params=[False, True], ids=["weights beside it", "weights inside"])
def program(path: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    link_device_program(path, read_manifest(path), folder / "coil-run", embed_weights=request.param)
    if not request.param:
        (folder / "weights.safetensors").symlink_to(path / "weights.safetensors")
    return folder / "coil-run"


def run(program: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **settings}, timeout=120, cwd=program.parent
    )


@pytest.fixture
def driver(gpu: EmulatedGPU | None) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(gpu.path.parent)} if gpu else {}


def test_it_runs(program: Path, block: Block, x: np.ndarray, driver: dict[str, str]) -> None:
    np.save(program.parent / "x.npy", x)
    done = run(program, "run", "--input", "x=x.npy", "--output", "results", **driver)
    assert done.returncode == 0, done.stderr
    found = np.load(program.parent / "results" / "out.npy")
    np.testing.assert_allclose(found, block(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_it_measures(program: Path, driver: dict[str, str]) -> None:
    done = run(program, "bench", "--entry", "step", "--dim", "B=2", "--runs", "5", **driver)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_without_a_driver_it_says_so(program: Path, gpu: EmulatedGPU | None) -> None:
    if gpu is None:
        pytest.skip("this machine has a driver")
    done = run(program, "bench", "--dim", "B=2", "--dim", "L=3")
    assert done.returncode == 4
    assert "this model runs on an NVIDIA GPU and its driver is not installed here" in done.stderr


def test_a_static_library_links_with_the_loader_of_libraries(
    path: Path, driver: dict[str, str], tmp_path: Path
) -> None:
    write_static_library(path, tmp_path, embed_weights=True)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "coil.h"\nint main(void) {\n'
        "    coil_options options = {.size = sizeof options};\n    coil_model *model;\n"
        '    int code = coil_open(&options, &model);\n    puts(code ? coil_error_message() : "ok");\n'
        "    coil_close(code ? NULL : model);\n    return code;\n}\n"
    )
    command = ["gcc", "-I.", "main.c", f"lib{path.stem}.a", "-lm", "-ldl", "-pthread", "-o", "main"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    done = subprocess.run(
        [str(tmp_path / "main")], capture_output=True, text=True, env={**os.environ, **driver}, timeout=60
    )
    assert done.stdout == "ok\n"
