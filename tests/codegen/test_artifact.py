"""Artifacts as files: aligned weights, folders that are complete or absent, honest manifests, linking."""

from __future__ import annotations

import hashlib
import json
import platform
import stat
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from coilc.codegen.artifact import new_artifact
from coilc.codegen.compile import compile
from coilc.codegen.link import link_library
from coilc.codegen.weights import ALIGNMENT, plan_layout, write_weights
from coilc.ir import CoilError, InputError, Module, interpret, parse_graph, parse_graphs
from coilc.runtime import ArtifactError, load

TEXT = """
def main(x: f32[B, L, 8], y: f32[8], *, B: dim[1:4], L: dim[1:]):
    v0: f32[8] = weight(name="w", type=f32[8])
    v1: f32[8] = mul(y, v0)
    v2: f32[B, L, 8] = broadcast(v1, dims=(B, L, 8))
    v3: f32[B, L, 8] = add(x, v2)
    v4: f32[B*L, 8] = reshape(v3, dims=(B*L, 8))
    return {"out": v4, "x": x}
"""


@pytest.fixture(scope="module")
def module() -> Module:
    main = parse_graph(TEXT)
    step = parse_graph('def step(h: f32[3]):\n    v0: f32[3] = mul(h, h)\n    return {"h": v0}\n')
    return Module({"main": main, "step": step}, {"w": np.arange(8, dtype=np.float32), "unused": np.ones(5)})


@pytest.fixture(scope="module")
def compiled(module: Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(module, tmp_path_factory.mktemp("artifact") / "m.coil")


# --- weights --------------------------------------------------------------------------------------------------------

ARRAYS = {
    "a": np.arange(5, dtype=np.float32),
    "b.empty": np.zeros((0, 3), np.float64),
    "c.scalar": np.array(3, np.int64),
    "d.bool": np.array([True, False]),
    "e.bf16": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "f.transposed": np.arange(12, dtype=np.int8).reshape(3, 4).T,
    "g.full": np.ones(16, np.float32),
    "h.é": np.ones(1, np.float16),
}


def test_every_tensor_is_aligned_and_other_readers_agree(tmp_path: Path) -> None:
    layout = plan_layout(ARRAYS)
    digest = write_weights(tmp_path / "w.safetensors", ARRAYS, layout)
    data = (tmp_path / "w.safetensors").read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert len(data) == layout.total_bytes
    for name, (offset, size) in layout.spans.items():
        assert offset % ALIGNMENT == 0
        assert data[offset : offset + size] == ARRAYS[name].tobytes()
    read = load_file(tmp_path / "w.safetensors")
    assert {n for n in read if not n.startswith("coilc.padding.")} == set(ARRAYS)
    assert all(np.array_equal(read[name], array) for name, array in ARRAYS.items())


def test_no_weights_are_a_valid_file(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", {}, plan_layout({}))
    assert load_file(tmp_path / "w.safetensors") == {}


def test_writing_does_not_double_the_weights(tmp_path: Path) -> None:
    arrays = {str(i): np.ones(1 << 20, np.float32) for i in range(8)}
    tracemalloc.start()
    write_weights(tmp_path / "w.safetensors", arrays, plan_layout(arrays))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# --- complete or not at all -----------------------------------------------------------------------------------------


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.coil"
    with new_artifact(path) as folder:
        (folder / "manifest.json").write_text("1")
        assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == ["m.coil"]
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode)


@pytest.mark.parametrize("before", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "m.coil"
    if before:
        path.mkdir()
        (path / "manifest.json").write_text("old")

    def fail() -> None:
        with new_artifact(path) as folder:
            (folder / "manifest.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["m.coil"] * before
    assert not before or (path / "manifest.json").read_text() == "old"


def test_an_artifact_is_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with new_artifact(tmp_path / "m.coil") as folder:
            (folder / "manifest.json").write_text(text)
    assert (tmp_path / "m.coil" / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["m.coil"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_an_artifact_is_left_alone(tmp_path: Path, kind: str, module: Module) -> None:
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
        (path / "chapter1.tex").write_text("...")
    else:
        path.write_text("...")
    with pytest.raises(InputError, match="thesis' exists and is not an artifact, so it is left alone"):
        compile(module, path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_a_parent_that_cannot_be_written(module: Module) -> None:
    with pytest.raises(InputError, match=r"cannot write beside '/proc/x/m\.coil'"):
        compile(module, "/proc/x/m.coil")


# --- the whole way --------------------------------------------------------------------------------------------------


def test_compiled_code_agrees_with_the_interpreter(module: Module, compiled: Path, rng: np.random.Generator) -> None:
    model = load(compiled, threads=2)
    for batch, length in ((1, 1), (3, 7), (4, 300)):
        inputs = {
            "x": rng.standard_normal((batch, length, 8), dtype=np.float32),
            "y": rng.standard_normal(8, dtype=np.float32),
        }
        expected = interpret(module, inputs)
        found = model.run("main", inputs)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-6)
    h = np.arange(3, dtype=np.float32)
    assert np.array_equal(model.run("step", {"h": h})["h"], h * h)


def test_the_manifest_says_what_the_artifact_is(compiled: Path) -> None:
    manifest = load(compiled).describe()
    main = manifest["entries"]["main"]
    assert list(manifest["entries"]) == ["main", "step"]
    assert [s["name"] for s in main["symbols"]] == ["B", "L"]
    assert main["symbols"][1]["high"] is None
    assert main["inputs"][0] == {"name": "x", "dtype": "f32", "dims": ["B", "L", 8]}
    assert main["outputs"][0] == {"name": "out", "dtype": "f32", "dims": ["B*L", 8]}
    assert set(manifest["files"]) == {"code.so", "graph.py", "kernels.o", "plan.c", "weights.safetensors"}
    assert manifest["options"] == {
        "target": "native", "entries": ["main", "step"], "algorithm": None, "context": None, "precision": "fp32",
        "quantize": None,
    }  # fmt: skip
    assert manifest["weights"]["count"] == 1
    assert {call["kernel"] for call in main["calls"]} <= set(manifest["kernels"])
    assert "apache-tvm" in manifest["tools"]


def test_the_text_in_the_artifact_parses(compiled: Path) -> None:
    assert [graph.name for graph in parse_graphs((compiled / "graph.py").read_text())] == ["main", "step"]


def test_entries_can_be_chosen(module: Module, tmp_path: Path) -> None:
    compile(module, tmp_path / "m.coil", entries=["step"])
    assert json.loads((tmp_path / "m.coil" / "manifest.json").read_text())["entries"].keys() == {"step"}
    with pytest.raises(InputError, match="the program has no entry 'decode'; it has main, step"):
        compile(module, tmp_path / "n.coil", entries=["decode"])
    assert not (tmp_path / "n.coil").exists()


def test_progress_names_every_stage(module: Module, tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []
    compile(module, tmp_path / "m.coil", progress=lambda stage, seconds: seen.append((stage, seconds is None)))
    stages = ["import", "passes", "plan", "kernels", "write", "link"]
    assert seen == [(stage, starts) for stage in stages for starts in (True, False)]


def test_compiling_twice_gives_the_same_files(module: Module, compiled: Path, tmp_path: Path) -> None:
    again = compile(module, tmp_path / "again.coil")
    for file in compiled.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_another_architecture_compiles_and_is_refused_here(module: Module, tmp_path: Path) -> None:
    other = "x86-64-v3" if platform.machine() == "aarch64" else "aarch64"
    path = compile(module, tmp_path / "m.coil", target=other)
    assert (path / "code.so").stat().st_size < 100_000
    with pytest.raises(ArtifactError, match="was compiled for"):
        load(path)


# --- linking --------------------------------------------------------------------------------------------------------


def link(tmp_path: Path, source: str, compiler: str = "") -> None:
    (tmp_path / "plan.c").write_text(source)
    link_library(tmp_path / "plan.c", [], tmp_path / "code.so", "x86_64-linux-gnu", compiler)


def test_a_compiler_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CoilError, match="the C compiler 'no-such-cc' was not found; install it or unset COILC_CC"):
        link(tmp_path, "", "no-such-cc -m64")


def test_what_the_compiler_said_is_shown(tmp_path: Path) -> None:
    with pytest.raises(CoilError, match=r"linking failed: .*(?s:.*)plan\.c:1.*"):
        link(tmp_path, "this is not C\n")


def test_the_system_compiler_can_be_asked_for(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("COILC_CC", "cc")
    h = rng.standard_normal(3, dtype=np.float32)
    path = compile(module, tmp_path / "m.coil", entries=["step"])
    assert np.array_equal(load(path)(h=h)["h"], h * h)
