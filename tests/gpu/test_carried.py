"""What ``carry.py`` packed, run where there is a GPU: no compiler, no torch, NumPy and pytest alone.

COILC_CARRIED=FOLDER PYTHONPATH=src pytest -q --noconftest tests/gpu/test_carried.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

import coilc.runtime

FOLDER = os.environ.get("COILC_CARRIED", "")
CASES = sorted(path.parent for path in Path(FOLDER).glob("*/about.json")) if FOLDER else []
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CASES, reason="COILC_CARRIED names no folder of carried cases")]

Arrays = Mapping[str, np.ndarray]
ALLOWED = {"laws": {"f64": 1e-12, "f32": 1e-5, "f16": 2e-3, "bf16": 2e-2}, "model": 1e-4}
NARROW_MARGIN = 1.5  # times what eager PyTorch loses in the same precision


class Carried:
    """One packed artifact and the runs to check."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "about.json").read_text())
        self.model = coilc.runtime.load(folder / "model.coil", threads=1)
        with np.load(folder / "cases.npz") as stored:
            self.stored = dict(stored)

    @cached_property
    def arrays(self) -> dict[tuple[int, str], dict[str, np.ndarray]]:
        found: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        for key, array in self.stored.items():
            number, side, name, dtype = key.split("|")
            found.setdefault((int(number), side), {})[name] = array if dtype != "bfloat16" else array.view(np.uint16)
        return found

    def runs(self) -> list[tuple[str, Arrays, Arrays]]:
        return [
            (entry, self.arrays.get((i, "in"), {}), self.arrays.get((i, "out"), {}))
            for i, entry in enumerate(self.about["entries"])
        ]

    def allowed(self, output: str) -> float:
        """The relative error that an output of a model may have."""
        if self.about["precision"] == "fp32":
            return ALLOWED["model"]
        narrow = self.about["narrow_error"]  # none: eager PyTorch cannot compute it in this precision
        return NARROW_MARGIN * narrow[output] if narrow else ALLOWED["laws"]["bf16"]


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.name)
def carried(request: pytest.FixtureRequest) -> Carried:
    return Carried(request.param)


def widened(array: np.ndarray) -> np.ndarray:
    """bf16, which comes as its bits, and everything else in double precision."""
    if array.dtype.name in ("bfloat16", "uint16"):
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative Frobenius error; a NaN that is not expected is infinitely wrong."""
    a, e = widened(actual), widened(expected)
    distance = float(np.linalg.norm(a - e) / (np.linalg.norm(e) or 1.0))
    return distance if np.isfinite(distance) else np.inf


def test_it_computes_what_is_expected(carried: Carried) -> None:
    wrong = []
    for number, (entry, inputs, expected) in enumerate(carried.runs()):
        found = carried.model.run(entry, inputs)
        for name, wanted in expected.items():
            problem = disagreement(carried, name, found[name], wanted)
            if problem:
                wrong.append(f"{entry}[{number}].{name}: {problem}")
    assert not wrong, "\n" + "\n".join(wrong)


def disagreement(carried: Carried, name: str, actual: np.ndarray, wanted: np.ndarray) -> str:
    if carried.about["kind"] == "model":
        off, allowed = error(actual, wanted), carried.allowed(name)
        return "" if off <= allowed else f"off by {off:.1e}, {allowed:.1e} is allowed"
    dtype = {"float64": "f64", "float32": "f32", "float16": "f16", "uint16": "bf16", "bfloat16": "bf16"}.get(
        wanted.dtype.name
    )
    if dtype is None:
        return "" if np.array_equal(actual, wanted) else f"{np.mean(actual != wanted):.1%} of the elements differ"
    a, e, allowed = widened(actual), widened(wanted), ALLOWED["laws"][dtype]
    scale = min(float(np.abs(e[np.isfinite(e)]).max(initial=0.0)), 1.0)
    close = np.isclose(a, e, rtol=allowed, atol=allowed * scale, equal_nan=True)
    if close.all():
        return ""
    place = tuple(map(int, np.argwhere(~close)[0]))
    return f"{np.mean(~close):.1%} differ, first at {place}: {a[place]!r} for {e[place]!r}"


def test_step_by_step_is_the_whole(carried: Carried) -> None:
    length = carried.about.get("steps")
    if not length:
        pytest.skip("it runs all at once")
    _, inputs, expected = carried.runs()[-1]
    session = carried.model.session()
    ends = [(0, 5), *((t, t + 1) for t in range(5, length))]
    parts = [
        (session.prefill if start == 0 else session.step)(**{name: x[:, start:end] for name, x in inputs.items()})
        for start, end in ends
    ]
    for name, whole in expected.items():
        wanted = whole[:, :length]
        joined = np.concatenate([part[name] for part in parts], 1)[:, -wanted.shape[1] :]  # without time: the last
        problem = disagreement(carried, name, joined, wanted)
        assert not problem, f"{name}: {problem}"
