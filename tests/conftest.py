"""What every test shares: one thread per process, seeded arrays, and devices that are visibly skipped when missing."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests run beside each other

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)  # a gate says the same every time
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected text of golden tests")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test whose device is missing is skipped, and the summary says so."""
    missing = {
        "gpu": None if shutil.which("nvidia-smi") else "no NVIDIA GPU here",
        "arm": None
        if shutil.which("qemu-aarch64") or os.uname().machine == "aarch64"
        else "no AArch64 and no qemu here",
    }
    for item in items:
        for mark, reason in missing.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
