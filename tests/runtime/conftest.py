"""The handmade artifact: written once, copied for tests that damage it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import handmade


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.write(tmp_path_factory.mktemp("artifact") / "handmade.coil")


@pytest.fixture
def damaged(artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may destroy."""
    return Path(shutil.copytree(artifact, tmp_path / "copy.coil"))


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 37, 64), dtype=np.float32)
