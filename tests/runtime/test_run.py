"""Running an artifact: numbers, threads, memory, lifetimes, and what the process needs."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import handmade
import numpy as np
import pytest

from coilc.runtime import InputError, RunError, Traced, load


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 37), (8, 64), (1, 0)])
def test_numbers(artifact: Path, rng: np.random.Generator, threads: int, batch: int, length: int) -> None:
    x = rng.standard_normal((batch, length, 64), dtype=np.float32)
    outputs = load(artifact, threads)(x=x)
    assert list(outputs) == ["y", "z"]
    assert np.array_equal(outputs["y"], x)
    assert np.array_equal(outputs["z"], x)


def test_one_model_in_several_threads(artifact: Path, rng: np.random.Generator) -> None:
    model = load(artifact, threads=2)
    inputs = [rng.standard_normal((1 + i % 4, 1 + i, 64), dtype=np.float32) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: model(x=x)["y"], inputs))
    assert all(map(np.array_equal, results, inputs))
    assert len(model._idle) <= 4


@pytest.mark.parametrize("threads", [0, -1, 2000])
def test_a_silly_number_of_threads(artifact: Path, threads: int) -> None:
    with pytest.raises(InputError, match="between 1 and 1024"):
        load(artifact, threads)


def test_threads_from_the_environment(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COILC_THREADS", "3")
    assert load(artifact).threads == 3


def test_trace_shows_every_call(artifact: Path, x: np.ndarray) -> None:
    seen: list[tuple[Traced, np.ndarray]] = []
    outputs = load(artifact, 2).trace({"x": x}, lambda traced: seen.append((traced, traced.array.copy())))
    assert [(t.call, t.kernel, t.result.source, str(t.result)) for t, _ in seen] == [
        (0, "scale", "mul", "f32[B, L, 64]"),
        (1, "double_rows", "add", "f32[B, L, 64]"),
        (2, "", "", "f32[B, L, 64]"),
    ]
    assert seen[0][0].result.scope == "block.0"
    assert np.array_equal(seen[0][1], x / 2)
    assert np.array_equal(outputs["z"], seen[2][1])


def test_an_exception_in_the_callback_comes_through(artifact: Path, x: np.ndarray) -> None:
    model = load(artifact, 1)
    with pytest.raises(ZeroDivisionError):
        model.trace({"x": x}, lambda traced: 1 / 0)
    assert np.array_equal(model(x=x)["y"], x)


def test_a_kernel_that_refuses(artifact: Path) -> None:
    model = load(artifact, 2)
    with pytest.raises(RunError, match="kernel refuse failed: ValueError: element is negative"):
        model.run("refuse", {"x": np.full(100, -1, np.float32)})
    assert model.run("refuse", {"x": np.ones(3, np.float32)})["y"].sum() == 3


def test_scratch_that_is_too_small(artifact: Path) -> None:
    model = load(artifact, 2)
    with pytest.raises(RunError, match="kernel hungry failed: needs 16384 bytes of scratch, the plan left"):
        model.run("hungry", {"x": np.ones(4096, np.float32)})
    assert model.run("hungry", {"x": np.ones(64, np.float32)})["y"].sum() == 64


def test_an_arena_that_cannot_be_reserved(artifact: Path) -> None:
    """Binding alone: no array of that size could be given."""
    model = load(artifact, 1)
    request = model._request("main", {"x": np.zeros((1, 1, 64), np.float32)})
    with model._session(request) as session:
        with pytest.raises(RunError, match="bytes for the arena"):
            session.bind(0, (8, 1 << 50))
        with pytest.raises(InputError, match="sizes overflow"):
            session.bind(0, (8, 1 << 60))
        with pytest.raises(InputError, match="B = 9 is outside 1 to 8"):
            session.bind(0, (9, 1))
        session.run(0, *request.addresses)  # what failed left the entry bound as it was
    assert model(x=np.zeros((1, 1, 64), np.float32))["y"].sum() == 0


def test_memory_does_not_grow(artifact: Path, rng: np.random.Generator) -> None:
    model = load(artifact, 2)
    x = rng.standard_normal((4, 64, 64), dtype=np.float32)
    request = model._request("main", {"x": x})
    with model._session(request) as session:
        addresses = request.addresses
        for _ in range(100):
            session.run(0, *addresses)
        before, reserved = resident_kilobytes(), session.memory_bytes
        for _ in range(5000):
            session.run(0, *addresses)
        assert session.memory_bytes == reserved == 4 * 64 * 64 * 4 + 2 * 4096
    assert resident_kilobytes() - before < 256


def resident_kilobytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0])


def test_a_recompiled_artifact_at_the_same_path_is_new(tmp_path: Path, x: np.ndarray) -> None:
    path = handmade.write(tmp_path / "m.coil", weight=0.5)
    first = load(path, 1)
    handmade.write(path, weight=2.0)
    second = load(path, 1)
    assert np.array_equal(first(x=x)["y"], x)
    assert np.array_equal(second(x=x)["y"], 4 * x)
    assert first._native.library is not second._native.library


def test_the_same_file_is_loaded_once_and_unloaded(artifact: Path) -> None:
    gc.collect()  # what other tests left
    before = mapped(artifact)
    models = [load(artifact, 2) for _ in range(3)]
    assert models[0]._native.library is models[2]._native.library
    models[1](x=np.zeros((1, 1, 64), np.float32))
    descriptors = len(os.listdir("/proc/self/fd"))
    models.clear()
    gc.collect()
    assert mapped(artifact) == before == 0
    assert len(os.listdir("/proc/self/fd")) < descriptors


def mapped(artifact: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(artifact))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_runs_without_helpers(artifact: Path, x: np.ndarray) -> None:
    model = load(artifact, 2)
    model(x=x)
    child = os.fork()
    if child == 0:
        right = np.array_equal(model(x=x)["y"], x)
        del model
        gc.collect()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_many_threads_start_and_stop(artifact: Path, x: np.ndarray) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        load(artifact, 8, verify=False)(x=x)
    gc.collect()
    assert len(os.listdir("/proc/self/task")) <= before
    assert threading.active_count() >= 1


PROGRAM = """
import sys
for name in ("torch", "tvm", "tvm_ffi", "networkx", "ml_dtypes", "transformers", "onnx"):
    sys.modules[name] = None
import numpy as np
from coilc.runtime import load
outputs = load(sys.argv[1], threads=2)(x=np.ones((1, 3, 64), np.float32))
print(outputs["y"].sum())
ours = [m for m in sys.modules if m.startswith("coilc.") and not m.startswith("coilc.runtime")]
print(ours)
"""


def test_nothing_but_numpy_is_needed(artifact: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, artifact], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["192.0", "[]"], done.stderr
