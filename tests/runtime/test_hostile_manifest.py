"""Manifests that somebody wrote with intent and sealed: one sentence, or a signature that holds; never unverified code."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coilc.runtime import ArtifactError, InputError, load
from coilc.runtime.artifact import seal
from coilc.runtime.signature import Entry

HOSTILE = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 1.5, float("nan"), float("inf"), "", "L", "Q", "L//0",
    "L//B", "L**L", "-L", "(" * 300, "1+" * 3000 + "1", "9" * 5000, "L" * 5000, "__import__('os')", "f()", "a\nb", "\0",
    "\ud800", "../code.so", "/etc/passwd", "0" * 64, [], {}, [[]], {"": 0}, ["B"], ["B"] * 100,
)  # fmt: skip
Place = tuple[Any, ...]


class LoadedError(Exception):
    """Every check has passed, and the code would now be loaded."""


@pytest.fixture(autouse=True)
def no_code_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LoadedError

    monkeypatch.setattr("coilc.runtime.model.NativeModel", refuse)


@pytest.fixture
def manifest(damaged: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((damaged / "manifest.json").read_text())
    del found["seal"]
    return found


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """The way to every field."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*here, key))


def changed(manifest: dict[str, Any], place: Place, kind: str, value: Any) -> dict[str, Any]:
    """The manifest with one field replaced, removed, renamed or given twice in its list."""
    result = copy.deepcopy(manifest)
    holder: Any = result
    for key in place[:-1]:
        holder = holder[key]
    key = place[-1]
    if kind == "replace":
        holder[key] = value
    elif kind == "remove":
        del holder[key]
    elif isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[str(value)] = holder.pop(key)
    return result


def outcome(folder: Path, manifest: dict[str, Any]) -> str:
    """What ``load`` says about the sealed manifest; "" when it would load the code."""
    (folder / "manifest.json").write_bytes(seal(manifest))
    try:
        load(folder)
    except ArtifactError as error:
        return str(error)
    except LoadedError:
        return ""
    raise AssertionError("there is no library to load")


def check_usable(manifest: dict[str, Any]) -> None:
    """A signature that was accepted solves any shapes, or says why not."""
    for index, (name, row) in enumerate(manifest["entries"].items()):
        entry = Entry(index, name, row)
        assert entry.calls is not None
        for extent in (0, 1, 7, 2**40):
            try:
                binding = entry.bind([(extent,) * len(tensor.dims) for tensor in entry.inputs])
            except InputError:
                continue
            assert len(binding.outputs) == len(entry.outputs)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changes_are_refused_or_harmless(damaged: Path, manifest: dict[str, Any], data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([p for p in places(manifest) if p]))
        kind = data.draw(st.sampled_from(("replace", "replace", "remove", "again")))
        manifest = changed(manifest, place, kind, data.draw(st.sampled_from(HOSTILE)))
    said = outcome(damaged, manifest)
    assert "\n" not in said
    assert len(said) < 2000
    if not said:
        check_usable(manifest)
        assert manifest["files"]["code.so"]["bytes"] == (damaged / "code.so").stat().st_size


@given(text=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(damaged: Path, text: bytes) -> None:
    (damaged / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load(damaged)


ENTRY = ("entries", "main")
CHANGES: dict[str, tuple[Place, Any, str]] = {
    "a file outside the folder": (("files",), {"../x": {"bytes": 0, "sha256": "0" * 64}}, "file in this folder"),
    "code that nobody verifies": (("files",), {}, "'files' lack code.so"),
    "a sha256 that is none": (("files", "code.so", "sha256"), "", "is not a sha256"),
    "a negative extent": ((*ENTRY, "inputs", 0, "dims", 0), -4, "is not a dim"),
    "an extent beyond 64 bits": ((*ENTRY, "inputs", 0, "dims", 0), 2**64, "is not a dim"),
    "a division by zero": ((*ENTRY, "outputs", 0, "dims", 0), "L//0", "is not a dim"),
    "a call in a dim": ((*ENTRY, "outputs", 0, "dims", 0), "exit()", "is not a dim"),
    "another entry's symbol": ((*ENTRY, "outputs", 0, "dims", 0), "N", "over its own symbols"),
    "an axis that is not there": ((*ENTRY, "symbols", 0, "axis"), 3, "axes of its inputs"),
    "a scale of zero": ((*ENTRY, "symbols", 0, "scale"), 0, "an integer from 1"),
    "an unknown element type": ((*ENTRY, "inputs", 0, "dtype"), "f33", "an element type"),
    "one name for two outputs": ((*ENTRY, "outputs", 0, "name"), "z", "a list of different names"),
    "a state without an input": ((*ENTRY, "states"), [{"input": 9, "output": 0}], "a list of the last inputs"),
    "no entries": (("entries",), {}, "it has no entries"),
    "no target": (("target",), None, "is not an object"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_wrong_is_said(damaged: Path, manifest: dict[str, Any], case: str) -> None:
    place, value, expected = CHANGES[case]
    said = outcome(damaged, changed(manifest, place, "replace", value))
    assert expected in said
    assert "manifest.json" in said


TEXTS: dict[str, bytes] = {
    "deep nesting": b"[" * 100_000,
    "a list": b"[1, 2]",
    "an empty seal": b'{"format": 1, "seal": ""}',
    "a short seal": b'{"format": 1, "seal": "0"}',
    "names given twice": b'{"format": 1, "format": 1, "seal": "0"}',
    "a huge number": b'{"format": 1' + b"0" * 5000 + b"}",
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_no_manifest(damaged: Path, case: str) -> None:
    (damaged / "manifest.json").write_bytes(TEXTS[case])
    with pytest.raises(ArtifactError, match=r"manifest\.json' is damaged"):
        load(damaged)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("name", ["manifest.json", "code.so"])
@pytest.mark.parametrize("make", [pipe, lambda path: (path.unlink(), path.mkdir())], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_opened(damaged: Path, name: str, make: Callable[[Path], object]) -> None:
    make(damaged / name)
    with pytest.raises(ArtifactError, match=name):
        load(damaged)


def test_a_link_to_the_right_content_is_fine(damaged: Path) -> None:
    """Caches of downloads store artifacts as links; the content is what is verified."""
    link(damaged / "code.so")
    with pytest.raises(LoadedError):
        load(damaged)
    (damaged / "elsewhere").write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"code\.so"):
        load(damaged)
