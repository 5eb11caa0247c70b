"""The examples run as a user would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(script: str, *options: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *options]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_quick_start_agrees_with_pytorch(tmp_path: Path) -> None:
    printed = run("quickstart.py", "--layers", "1", "--runs", "1", "--threads", "1", cwd=tmp_path)
    assert printed.count("✓") == 6 + 5  # stages, and rows of the table
    assert "def read_file(path):\n    with open(path" in printed
    assert {path.name for path in (tmp_path / "quickstart").iterdir()} == {"mamba.coil", "stdlib-mamba.coil"}


@pytest.mark.slow
def test_a_series_is_forecast_value_by_value(tmp_path: Path) -> None:
    assert "102 forecasts" in run("streaming.py", "--steps", "2", cwd=tmp_path)


@pytest.mark.slow
def test_digits_are_read(tmp_path: Path) -> None:
    printed = run("digits.py", cwd=tmp_path)
    accuracy = float(printed.split("accuracy ")[1].split("%")[0])
    assert accuracy >= 96
