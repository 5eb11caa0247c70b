"""Whole models piece by piece: attention caches, windows and recurrences in one session, whatever is undone or copied."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers")

from models import zoo

import coilc
from coilc.comparison.metrics import TOLERANCE, difference
from coilc.runtime import RunError

# RecurrentGemma keeps its last state in an attribute, which torch.export puts back.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute.*assigned during export")

LENGTH, CONTEXT = 37, 40


@pytest.fixture(scope="module", params=zoo.DECODERS)
def case(request: pytest.FixtureRequest) -> zoo.Case:
    return (zoo.MODELS | zoo.HYBRIDS)[request.param]()


@pytest.fixture(scope="module")
def compiled(case: zoo.Case, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    program = coilc.export(
        case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes, lengths=case.lengths
    )
    path = tmp_path_factory.mktemp("decoder") / "model.coil"
    coilc.compile(program, path, entries=("main", "prefill", "step"), context=CONTEXT)
    inputs = case.make_inputs(B=2, L=LENGTH)
    return coilc.load(path, threads=2), inputs["input_ids"].numpy(), case.eager(inputs)["logits"].numpy(), path.parent


def check(found: list[np.ndarray], expected: np.ndarray) -> None:
    assert difference(np.concatenate(found, 1), expected).relative_error <= TOLERANCE["float32"]


def test_one_artifact_serves_every_size(case: zoo.Case, compiled: tuple) -> None:
    error, place = case.worst(compiled[0])
    assert error <= TOLERANCE["float32"], place


def test_every_split_equals_the_whole(compiled: tuple) -> None:
    model, ids, logits, _ = compiled
    for cut in range(1, LENGTH):
        session = model.session()
        parts = [session.prefill(input_ids=piece)["logits"] for piece in np.split(ids, [cut], axis=1)]
        check(parts, logits)


def test_steps_that_are_undone_forked_and_saved(compiled: tuple) -> None:
    model, ids, logits, folder = compiled
    session, found = model.session(history=3), []
    for t in range(LENGTH):
        step = session.step(input_ids=ids[:, t : t + 1])["logits"]
        if t % 5 == 3:
            session.rewind(2)
            session.prefill(input_ids=ids[:, t - 1 : t])
            np.testing.assert_array_equal(session.step(input_ids=ids[:, t : t + 1])["logits"], step)
        if t % 10 == 5:
            other = session.fork()
            session.save(folder / "state")
            session.prefill(input_ids=ids[:, :3])  # must not be seen by the copies
            session = other
        if t % 10 == 0:
            session.save(folder / "state")
            session = model.session(history=3)
            session.load(folder / "state")
        found.append(step)
    check(found, logits)


def test_several_sessions_step_as_one(compiled: tuple) -> None:
    model, ids, logits, _ = compiled
    both = [model.session(), model.session(history=2)]
    for row, session in enumerate(both):
        session.prefill(input_ids=ids[row : row + 1, :20])
    found = [model.step_all(both, input_ids=ids[:, t : t + 1])["logits"] for t in range(20, 30)]
    check(found, logits[:, 20:30])
    with pytest.raises(RunError, match="bound to other dims than the states have together"):
        model.step_all(both, input_ids=ids[:1, :1])
    both[1].rewind(2)
    alone = [both[1].step(input_ids=ids[1:, t : t + 1])["logits"] for t in range(28, LENGTH)]
    check(alone, logits[1:, 28:])
    with pytest.raises(RunError, match="state 2 is NULL, in use, or given twice"):
        model.step_all([*both, both[0]], input_ids=np.concatenate([ids, ids])[:3, :1])
    with pytest.raises(RunError, match="state 0 is at the start of its sequence"):
        model.step_all([model.session()], input_ids=ids[:1, :1])
    if any(state["name"] == "position" for state in model.describe()["states"]):
        with pytest.raises(RunError, match="the sequences differ in 'position'"):
            model.step_all(both, input_ids=ids[:, :1])


def test_a_full_context_is_refused_and_leaves_the_session_as_it_was(compiled: tuple) -> None:
    model, ids, _, _ = compiled
    if not any(state["kept"] for state in model.describe()["states"]):
        pytest.skip("keeps a window only")
    session = model.session(history=2)
    session.prefill(input_ids=ids)
    with pytest.raises(RunError, match=f"has {LENGTH} elements and would get 4 more, the model has room for {CONTEXT}"):
        session.prefill(input_ids=ids[:, :4])
    last = session.prefill(input_ids=ids[:, :3])["logits"]
    session.reset()
    again = [session.prefill(input_ids=piece)["logits"] for piece in (ids, ids[:, :3])][1]
    np.testing.assert_array_equal(last, again)
