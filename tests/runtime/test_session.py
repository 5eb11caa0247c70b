"""Sessions: pieces equal the whole, bit-equal continuations after save, load, fork and rewind, one sentence per error."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from coilc.codegen.compile import compile
from coilc.ir import Module, parse_graph
from coilc.runtime import InputError, Model, RunError, StateError, load

PROGRAM = """
def main(x: f32[B, L, 8], *, B: dim[1:4], L: dim[1:64]):
    w: f32[3, 8] = weight(name="taps", type=f32[3, 8])
    v0, v1 = causal_conv1d(x, w, optional=(), activation="silu")  # model.py:1 in block.0
    z: f32[()] = constant(value=array(f32, 1.0))
    h: f32[B, 8] = broadcast(z, dims=(B, 8))
    a: f32[B, L, 8] = sigmoid(v0)
    v2, v3 = linear_scan(a, x, h, axis=1, reverse=False)  # model.py:2 in block.0
    return {"y": v2}
"""
ATTENTION = """
def main(x: f32[B, L, 8], *, B: dim[1:4], L: dim[1:64]):
    v0: f32[B, L, 2, 4] = reshape(x, dims=(B, L, 2, 4))
    v1: f32[B, 2, L, 4] = transpose(v0, perm=(0, 2, 1, 3))
    v2: f32[L, 4] = iota(dims=(L, 4), axis=0, dtype=f32)
    v3: f32[L, 4] = cos(v2)
    v4: f32[L, 4] = sin(v2)
    q: f32[B, 2, L, 4] = rotary(v1, v3, v4)
    k: f32[B, 1, L, 4] = slice(q, starts=(0, 0, 0, 0), stops=(B, 1, L, 4), steps=(1, 1, 1, 1))
    all: f32[B, 2, L, 4] = attention(q, k, k, causal=True, window=None)
    near: f32[B, 2, L, 4] = attention(all, k, k, causal=True, window=5)
    v5: f32[B, L, 2, 4] = transpose(near, perm=(0, 2, 1, 3))
    y: f32[B, L, 8] = reshape(v5, dims=(B, L, 8))
    return {"y": y}
"""
LENGTH = 37
X = np.random.default_rng(3).standard_normal((2, LENGTH, 8), dtype=np.float32)
HEADER = 104  # bytes before the table of sizes


def build(path: Path, scale: float = 1.0) -> Path:
    taps = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8) * np.float32(scale)
    module = Module({"main": parse_graph(PROGRAM)}, {"taps": taps})
    return compile(module, path, entries=("main", "prefill", "step"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "m.coil")


@pytest.fixture(scope="module")
def model(built: Path) -> Model:
    return load(built, threads=1)


@pytest.fixture(scope="module")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of rotary positions, a cache of everything and one of a window."""
    path = tmp_path_factory.mktemp("attending") / "m.coil"
    compile(Module({"main": parse_graph(ATTENTION)}), path, entries=("main", "prefill", "step"))
    return load(path, threads=1)


@pytest.fixture(scope="module")
def whole(model: Model) -> np.ndarray:
    return model(x=X)["y"]


def test_states_are_described(model: Model) -> None:
    described = model.describe()
    assert [(s["name"], s["dtype"], s["dims"], s["bytes"]) for s in described["states"]] == [
        ("block.0.conv", "f32", ["B", 2, 8], "64*B"),
        ("block.0.scan", "f32", ["B", 8], "32*B"),
        ("position", "i64", [], 8),
    ]
    assert len(described["entries"]["step"]["states"]) == 3
    assert described["entries"]["main"]["states"] == []


@pytest.mark.parametrize("cut", range(1, LENGTH))
def test_every_split_equals_the_whole(model: Model, whole: np.ndarray, cut: int) -> None:
    session = model.session()
    parts = [session.prefill(x=X[:, :cut])["y"], session.prefill(x=X[:, cut:])["y"]]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-6)


def test_step_by_step_equals_the_whole(model: Model, whole: np.ndarray) -> None:
    session = model.session()
    parts = [session.step(x=X[:, t : t + 1])["y"] for t in range(LENGTH)]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-6)


def test_states_may_still_be_passed_by_hand(model: Model, whole: np.ndarray) -> None:
    zeros = {"block_0_conv": np.zeros((2, 2, 8), "f4"), "block_0_scan": np.zeros((2, 8), "f4"), "position": 0}
    first = model.run("prefill", {"x": X[:, :9], **zeros})
    states = {name: first[name.replace("block_0_", "block.0.")] for name in zeros}
    second = model.run("prefill", {"x": X[:, 9:], **states})
    found = np.concatenate([first["y"], second["y"]], 1)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


def test_sessions_are_independent(model: Model) -> None:
    one, two = model.session(), model.session()
    one.prefill(x=X[:, :20])
    np.testing.assert_array_equal(two.step(x=X[:, :1])["y"], model.session().step(x=X[:, :1])["y"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["model", "attending"])
def test_threads_with_a_session_each_disturb_no_other(kind: str, threads: int, request: pytest.FixtureRequest) -> None:
    shared = load(request.getfixturevalue(kind).path, threads=threads)

    def run(seed: int) -> list[np.ndarray]:
        x, session = np.random.default_rng(seed).standard_normal(X.shape, dtype=np.float32), shared.session()
        found = [session.prefill(x=x[:, :9])["y"]]
        for t in range(9, LENGTH):
            session = session.fork() if t % 7 == seed % 7 else session
            found.append(session.step(x=x[:, t : t + 1])["y"])
        return found

    alone = [run(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(8)))
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.concatenate(found, 1), np.concatenate(expected, 1))


@pytest.mark.parametrize("kind", ["model", "attending"])
def test_sessions_step_as_one_as_they_do_alone(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    batch, alone = [[model.session() for _ in range(3)] for _ in range(2)]
    rows = np.concatenate([X, X[:1, ::-1]])
    for sessions in (batch, alone):
        for row, session in enumerate(sessions):
            session.prefill(x=rows[row : row + 1, :5])
    for t in range(5, 15):
        found = model.step_all(batch, x=rows[:, t : t + 1])["y"]
        expected = [s.step(x=rows[i : i + 1, t : t + 1])["y"] for i, s in enumerate(alone)]
        np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-6, atol=1e-7)


def test_a_session_outlives_its_model(built: Path) -> None:
    session = load(built, threads=1).session()
    session.step(x=X[:, :1])
    session.fork().step(x=X[:, 1:2])


def test_memory_is_that_of_the_history(model: Model) -> None:
    session = model.session(history=3)
    assert session.memory_bytes == 0
    session.step(x=X[:, :1])
    assert session.memory_bytes == 4 * (128 + 64 + 64)


def test_a_failed_call_changes_nothing(model: Model) -> None:
    session = model.session()
    session.step(x=X[:, :1])
    twin = session.fork()
    with pytest.raises(RunError, match="bound to other dims than the state was made for"):
        session.step(x=X[:1, :1])
    np.testing.assert_array_equal(session.step(x=X[:, 1:2])["y"], twin.step(x=X[:, 1:2])["y"])


def test_reset_allows_another_batch(model: Model) -> None:
    session = model.session()
    session.prefill(x=X)
    session.reset()
    one = session.prefill(x=X[:1])["y"]
    np.testing.assert_array_equal(one, model.session().prefill(x=X[:1])["y"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.rewind(2), "cannot go back 2 calls: the last 1 are kept"),
        (lambda s: s.rewind(-1), "cannot go back -1 calls"),
    ],
)
def test_refusals(model: Model, call: Callable[..., None], message: str) -> None:
    session = model.session()
    session.step(x=X[:, :1])
    session.step(x=X[:, 1:2])
    with pytest.raises(RunError, match=message):
        call(session)


def test_wrong_inputs_are_named(model: Model) -> None:
    session = model.session()
    with pytest.raises(InputError, match="entry 'main' keeps no state"):
        session.run("main", x=X)
    with pytest.raises(InputError, match="has no input 'position'"):
        session.step(x=X[:, :1], position=3)
    with pytest.raises(InputError, match="extent 2 at axis 1"):
        session.step(x=X[:, :2])
    with pytest.raises(InputError, match="history must be between 1"):
        model.session(history=0)


def test_a_model_without_states_has_no_sessions(artifact: Path) -> None:
    with pytest.raises(InputError, match="keeps no state between calls"):
        load(artifact).session()


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda b: b"", "no saved state"),
    "foreign": (lambda b: b"PK" + b, "no saved state"),
    "newer": (lambda b: b[:8] + b"\x07" + b[9:], "version 7"),
    "cut in the header": (lambda b: b[:50], "cut off"),
    "cut in the states": (lambda b: b[:-1], "cut off"),
    "longer": (lambda b: b + b"\0", "bytes too many"),
    "flipped bit": (lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:], "checksum"),
    "other sizes": (lambda b: b[:HEADER] + b"\x40" + b[HEADER + 1 :], "checksum"),
    "other model": (lambda b: b[:20] + b"x" + b[21:], "another model"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_unusable_states_are_refused(model: Model, tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    session, path = model.session(), tmp_path / "s.state"
    session.prefill(x=X[:, :5])
    session.save(path)
    path.write_bytes(damage(path.read_bytes()))
    twin = session.fork()
    with pytest.raises(StateError, match=message):
        session.load(path)
    np.testing.assert_array_equal(session.step(x=X[:, 5:6])["y"], twin.step(x=X[:, 5:6])["y"])


def test_states_belong_to_their_weights(model: Model, tmp_path: Path) -> None:
    other = load(build(tmp_path / "other.coil", scale=2.0), threads=1)
    session, path = other.session(), tmp_path / "s.state"
    session.step(x=X[:, :1])
    session.save(path)
    with pytest.raises(StateError, match=r"s\.state' cannot be continued: it is the state of another model"):
        model.session().load(path)


def test_unreachable_files(model: Model, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read the state"):
        model.session().load(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(StateError, match="it is not a file"):
            model.session().load(endless)
    with pytest.raises(StateError, match="cannot write the state"):
        model.session().save(tmp_path / "no" / "folder")


def test_save_leaves_one_file(model: Model, tmp_path: Path) -> None:
    session = model.session()
    session.save(tmp_path / "s.state")  # of a session that has not begun
    model.session().load(tmp_path / "s.state")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StateError, match="cannot write the state"):
        session.save(tmp_path / "folder")
    assert {p.name for p in tmp_path.iterdir()} == {"s.state", "folder"}


class Continuations(RuleBasedStateMachine):
    """A session against the list of pieces it has seen: whatever happens, the next result is bit-equal."""

    model: Model
    history = 3

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.session, self.seen, self.undo = self.model.session(self.history), [], 0
        self.saved: list[tuple[Path, list[int]]] = []

    def check(self, length: int) -> None:
        start = sum(self.seen)
        entry = "step" if length == 1 else "prefill"
        found = self.session.run(entry, x=X[:, start : start + length])["y"]
        again = self.model.session()
        expected = found
        self.seen = [*self.seen, length]
        for piece, at in zip(self.seen, np.cumsum([0, *self.seen]), strict=False):
            expected = again.run("step" if piece == 1 else "prefill", x=X[:, at : at + piece])["y"]
        np.testing.assert_array_equal(found, expected)
        self.undo = min(self.undo + 1, self.history)

    @precondition(lambda self: sum(self.seen) <= LENGTH - 5)
    @rule(length=st.integers(1, 5))
    def advance(self, length: int) -> None:
        self.check(length)

    @rule(calls=st.integers(1, 3))
    def rewind(self, calls: int) -> None:
        if calls <= self.undo:
            self.session.rewind(calls)
            self.seen, self.undo = self.seen[:-calls], self.undo - calls
        else:
            with pytest.raises(RunError):
                self.session.rewind(calls)

    @rule()
    def fork(self) -> None:
        self.session, self.undo = self.session.fork(), 0

    @rule()
    def reset(self) -> None:
        self.session.reset()
        self.seen, self.undo = [], 0

    @rule()
    def save(self) -> None:
        path = self.folder / str(len(self.saved))
        self.session.save(path)
        self.saved.append((path, self.seen))

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 99))
    def load(self, which: int) -> None:
        path, seen = self.saved[which % len(self.saved)]
        self.session.load(path)
        self.seen, self.undo = seen, 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


@pytest.mark.parametrize("kind", ["model", "attending"])
def test_continuations(kind: str, request: pytest.FixtureRequest) -> None:
    case = type("Case", (Continuations,), {"model": request.getfixturevalue(kind)}).TestCase
    case.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
    case().runTest()
