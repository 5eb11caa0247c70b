"""Everything that is carried to a real GPU, as far as the emulated one is quick enough: every op, and whole models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from emulation.gpu import EmulatedGPU
from gpu import carry, test_carried

from .conftest import emulated

pytestmark = [emulated, pytest.mark.slow]
NAMES = ("laws", "mamba")
BUILD: dict[str, Callable[..., None]] = dict(carry.everything())


@pytest.fixture(scope="module", params=NAMES)
def carried(
    gpu: EmulatedGPU, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> test_carried.Carried:
    folder = tmp_path_factory.mktemp("carried")
    BUILD[request.param](folder, "cuda:sm_90a")
    return test_carried.Carried(folder)


def test_it_computes_what_is_expected(carried: test_carried.Carried) -> None:
    test_carried.test_it_computes_what_is_expected(carried)


def test_step_by_step_is_the_whole(carried: test_carried.Carried) -> None:
    test_carried.test_step_by_step_is_the_whole(carried)
