"""Everything that the C runtime reads from outside, under sanitizers: the corpus, and a few seconds of new inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import build

SECONDS = 3


@pytest.fixture(scope="module")
def compiler() -> tuple[str, ...]:
    command = build.compiler()
    if command is None:
        pytest.skip("neither clang nor gcc builds sanitized programs that start here")
    return command


@pytest.mark.slow
@pytest.mark.parametrize("target", build.TARGETS)
def test_nothing_is_found(target: str, compiler: tuple[str, ...], tmp_path: Path) -> None:
    program = build.build(target, tmp_path, compiler)
    (tmp_path / "new").mkdir()
    limits = [f"-max_total_time={SECONDS}", "-max_len=1024", "-seed=1", "-print_final_stats=1"]
    command = [program, *limits, "new", build.CORPUS / target]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=120)
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said[-4000:]
    executions = re.search(r"number_of_executed_units: (\d+)", said)
    assert executions
    assert int(executions[1]) > len(list((build.CORPUS / target).iterdir()))
