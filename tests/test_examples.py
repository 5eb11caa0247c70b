"""The examples run as a user would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
def test_the_quick_start_agrees_with_pytorch(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--layers", "1", "--runs", "1", "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == 5 + 5  # stages, and rows of the table
    assert "Warning" not in done.stderr
    assert {path.name for path in (tmp_path / "quickstart").iterdir()} == {"mamba.coil"}
