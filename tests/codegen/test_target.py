"""Targets by name: levels, extensions, presets, and the machine at hand."""

from __future__ import annotations

import pytest

from coilc.codegen import target as targets
from coilc.codegen.target import EXTENSIONS, PRESETS, TARGETS, Target, parse_target
from coilc.ir import InputError


def test_extensions_are_named_in_one_order() -> None:
    target = parse_target("aarch64+fp16+dotprod")
    assert target.name == "aarch64+dotprod+fp16"
    assert target.features == {"asimd", "asimddp", "fphp", "asimdhp"}
    assert target.tvm["mattr"] == ["+neon", "+dotprod", "+fullfp16"]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_a_preset_is_a_processor(preset: Target) -> None:
    assert parse_target(preset.name) is preset
    assert preset.triple == TARGETS["aarch64"].triple
    assert TARGETS["aarch64"].features <= preset.features


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "arm7",
            "there is no target 'arm7'; known targets: native, x86-64-v3, x86-64-v4, x86-64-v4\\+vnni, aarch64, cuda:sm_80, cuda:sm_90a, rpi4",
        ),
        ("aarch64+sve", r"target 'aarch64\+sve': aarch64 has no extension 'sve'; it has dotprod, fp16, i8mm, bf16"),
        ("aarch64+", r"target 'aarch64\+': aarch64 has no extension ''"),
        ("x86-64-v3+fp16", r"there is no target 'x86-64-v3\+fp16'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_target(name)


def test_native_on_arm_takes_every_extension_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"fp", "asimd", "aes", "asimddp", "i8mm", "fphp"}  # fp16 needs asimdhp as well
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset(present))
    assert parse_target("native").name == "aarch64+dotprod+i8mm"
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset({"asimd"}))
    assert parse_target("native").name == "aarch64"


def test_every_extension_is_one_the_code_generator_knows() -> None:
    import tvm

    known = tvm.get_global_func("target.llvm_get_cpu_features")
    for extension, (attribute, _) in EXTENSIONS.items():
        description = dict(parse_target(f"aarch64+{extension}").tvm)
        assert attribute.removeprefix("+") in known(tvm.target.Target(description))
