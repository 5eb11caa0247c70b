"""``coilc bench``: sides, numbers that fit together, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coilc.benchmark import benchmark
from coilc.ir import InputError
from coilc.runtime import load

from .conftest import Cli


def test_it_times_the_artifact_beside_its_rivals(cli: Cli, models: Path) -> None:
    done = cli("bench", f"{models}:scale", "--runs", 3, "--threads", 1, "--against", "eager", "--json")
    assert done.code == 0
    assert [side["name"] for side in done.json["sides"]] == ["coilc", "eager"]
    ours = done.json["sides"][0]["median"]
    for side in done.json["sides"]:
        assert side["runs"] == 3
        assert 0 < side["best"] <= side["median"] <= side["worst"]
        assert side["ratio"] == side["median"] / ours


def test_its_table_says_who_is_faster(cli: Cli, models: Path) -> None:
    done = cli("bench", f"{models}:scale", "--runs", 1)
    assert done.code == 0
    assert done.out.splitlines()[0].split() == ["name", "median", "best", "worst", "runs", "coilc", "is"]
    assert done.out.splitlines()[2].endswith(("faster", "slower"))


def test_what_it_cannot_time(cli: Cli, models: Path) -> None:
    done = cli("bench", f"{models}:scale", "--against", "magic")
    assert (done.code, "there is no rival 'magic'; there are eager, inductor" in done.err) == (2, True)
    done = cli("bench", f"{models}:scale", "--entry", "step")
    assert (done.code, "the artifact has no entry 'step'; it has main" in done.err) == (2, True)
    done = cli("bench", "model.pt2")
    assert (done.code, "bench needs file.py:function" in done.err) == (2, True)


def test_arguments_that_are_no_tensors(scale: Path) -> None:
    with pytest.raises(InputError, match="among the model's arguments: 0; inputs of the entry: x"):
        benchmark(load(scale), torch.nn.Identity(), {"x": [torch.ones(2, 4)]})
