"""Kernels for a device: every core op and claimed composite becomes machine code of every GPU architecture."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from laws.ops import draw
from laws.test_kernels import CASES, body_of
from machine_code import machine_code, needs_disassembler

import coilc
from coilc.codegen.build import EARLY, Launch, build_object, compile_device_code
from coilc.codegen.target import TARGETS
from coilc.ir import CoilError, Module, parse_graph

DEVICES = [name for name, target in TARGETS.items() if target.device is not None]
ASKS = "CCTL.E.PF2"  # for a line in the L2 cache
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@needs_disassembler
@pytest.mark.parametrize("name", DEVICES)
def test_every_kernel_becomes_machine_code(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    known = [case for case in CASES if case[0].is_core or case[0].name in target.claims]
    bodies = {f"k{i}": body_of(case, draw(case[1])) for i, case in enumerate(known)}
    info = build_object(bodies, target, tmp_path / "kernels.o")
    assert {launch.name.split("_")[0] for launch in info.launches} == set(bodies)
    assert (tmp_path / "kernels.fatbin").stat().st_size > 1000 * len(bodies)
    if target.device and target.device.early_launch:
        _memory_is_left_alone_until_the_kernel_ahead_has_ended(tmp_path / "kernels.fatbin")


def _memory_is_left_alone_until_the_kernel_ahead_has_ended(fatbin: Path) -> None:
    for name, code in machine_code(fatbin).items():
        touched = [
            x
            for x in code.before("ACQBULK")
            if x.startswith(("LD.", "LDG", "ST.", "STG", "ATOM", "RED", "UTMA", "UBLKCP"))
        ]
        assert not touched, f"{name}: {touched}"


@needs_disassembler
@pytest.mark.parametrize("name", DEVICES)
def test_small_inputs_are_asked_for_before_the_wait(name: str, tmp_path: Path) -> None:
    """Where kernels wait for the one ahead, and only by those that leave room for others."""
    target = TARGETS[name]
    bodies = {
        name: parse_graph(f"def body({head}):\n    {op}\n    return {{'y': y}}\n")
        for name, head, op in (
            ("sum", "x0: f32[B, 300], x1: f32[B, 300], *, B: dim[1:]", "y: f32[B, 300] = add(x0, x1)"),
            ("product", "x0: f32[99, 99], x1: f32[99, 99]", "y: f32[99, 99] = matmul(x0, x1)"),
        )
    }
    build_object(bodies, target, tmp_path / "kernels.o")
    codes = machine_code(tmp_path / "kernels.fatbin")
    assert not codes["product_kernel"].has(ASKS)
    if target.device and target.device.early_launch:
        assert sum(x.startswith(ASKS) for x in codes["sum_kernel"].before("ACQBULK")) == 2
    else:
        assert not codes["sum_kernel"].has(ASKS)


@needs_nvcc
def test_a_launch_says_what_it_takes(tmp_path: Path) -> None:
    body = parse_graph("def body(x0: f32[B, 3]):\n    y0: f32[B, 3] = exp(x0)\n    return {'y0': y0}\n")
    info = build_object({"k": body}, TARGETS["cuda:sm_90a"], tmp_path / "kernels.o")
    assert info.launches == (Launch("k_kernel", 3, ("blockIdx.x", "threadIdx.x", EARLY)),)


def test_without_a_compiler_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COILC_NVCC", "no-such-nvcc")
    module, stages = Module({"main": parse_graph("def main(x: f32[3]):\n    return {'y': x}\n")}), []
    with pytest.raises(CoilError, match="'no-such-nvcc' was not found: install the CUDA toolkit, whose nvcc compiles"):
        coilc.compile(module, tmp_path / "m.coil", "cuda:sm_80", progress=lambda stage, _: stages.append(stage))
    assert not stages
    assert not list(tmp_path.iterdir())


@needs_nvcc
def test_what_the_compiler_refuses_is_shown(tmp_path: Path) -> None:
    device = TARGETS["cuda:sm_80"].device
    assert device is not None
    with pytest.raises(CoilError, match=r"compiling for sm_80 failed: '.*nvcc' ended with code \d+\n.*error"):
        compile_device_code("no C", device, tmp_path / "kernels.fatbin")
