"""Everything that can be wrong with an artifact's files: one sentence, before any of its code is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coilc.runtime import ArtifactError, load
from coilc.runtime.artifact import seal

FILES = ("manifest.json", "code.so", "weights.safetensors", "graph.py")


def cut(share: float) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


def edit(share: float) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[min(int(len(data) * share), len(data) - 1)] ^= 1
        file.write_bytes(data)

    return apply


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": cut(0),
    "cut in half": cut(0.5),
    "last byte gone": lambda file: os.truncate(file, file.stat().st_size - 1),
    "a byte too many": lambda file: file.write_bytes(file.read_bytes() + b" ") and None,
    "first byte changed": edit(0),
    "middle byte changed": edit(0.5),
    "last byte changed": edit(1),
    "deleted": Path.unlink,
}


@pytest.fixture(autouse=True)
def no_code_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the library was loaded")

    monkeypatch.setattr("coilc.runtime.model.NativeModel", refuse)


def fails(folder: Path, *fragments: str, verify: bool = True) -> None:
    with pytest.raises(ArtifactError) as caught:
        load(folder, verify=verify)
    message = str(caught.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named(damaged: Path, file: str, kind: str) -> None:
    DAMAGE[kind](damaged / file)
    fails(damaged, file)


@pytest.mark.parametrize("position", range(0, 100, 3))
def test_no_byte_of_the_manifest_can_change(damaged: Path, position: int) -> None:
    edit(position / 100)(damaged / "manifest.json")
    fails(damaged)


@pytest.mark.parametrize("file", FILES[1:])
def test_sizes_are_checked_without_verification(damaged: Path, file: str) -> None:
    cut(0.5)(damaged / file)
    fails(damaged, file, "bytes instead of", verify=False)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["seal"]
    change(manifest)
    (folder / "manifest.json").write_bytes(seal(manifest))
    return folder


def test_a_newer_format(damaged: Path) -> None:
    fails(rewritten(damaged, lambda m: m.update(format=2)), "has format 2", "up to 1", "upgrade coilc")


def test_another_architecture(damaged: Path) -> None:
    fails(
        rewritten(damaged, lambda m: m["target"].update(triple="riscv64-linux-gnu")),
        "compiled for riscv64",
        os.uname().machine,
        "--target native",
    )


def test_a_missing_cpu_feature(damaged: Path) -> None:
    folder = rewritten(damaged, lambda m: m["target"].update(features=["sve9", "amx_int3"]))
    fails(folder, "needs the CPU features sve9, amx_int3", "recompile")


def test_no_folder(tmp_path: Path) -> None:
    fails(tmp_path / "absent.coil", "absent.coil", "no such folder")


def test_another_folder(tmp_path: Path) -> None:
    fails(tmp_path, "not an artifact", "manifest.json")


def test_a_manifest_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "web extension"}')
    fails(tmp_path, "manifest.json")
