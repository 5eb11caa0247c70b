"""Thousands of steps of one session: memory stays, errors do not pile up (``benchmarks/endurance.py`` does 100,000)."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_steps_stay_as_right_as_one_and_take_no_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import endurance

    grown, errors = endurance.endure(endurance.MODELS[name](), 3 * endurance.CHUNK, tmp_path)
    assert grown <= 0  # the system may take a page back
    assert errors.max() <= endurance.BOUND
