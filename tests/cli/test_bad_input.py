"""Every command on bad input: one sentence on stderr, the right exit code, and nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from .conftest import Cli


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["compile", "nothing.pt2"], "nothing.pt2: no such file; MODEL is"),
        (["compile", "nothing.py:f"], "nothing.py: no such file"),
        (["compile", "{zoo}:nothing"], "has no function 'nothing'; it has"),
        (["compile", "{zoo}:wrong"], "must return (module, args[, kwargs[, dynamic_shapes]]), not Scale"),
        (["compile", "{zoo}:raises"], "raised RuntimeError: no weights here"),
        (["compile", "{zoo}:fixed", "-o", "name"], "an artifact's name ends in .coil"),
        (["compile", "{zoo}:fixed", "--dynamic", "x=L"], "--dynamic x=L: write INPUT.AXIS=NAME"),
        (["compile", "{zoo}:fixed", "--dynamic", "y.0=L"], "'y'"),
        (["compile", "{zoo}:loop", "--lengths", "L"], "--lengths L: write NAME=A,B with two lengths"),
        (["compile", "{text}", "--state", "h"], "--state h: write INPUT=OUTPUT, as in h=h_next"),
        (["compile", "{text}", "--state", "h=y"], "there is no input 'h' to be a state; it has"),
        (["compile", "{text}", "--lengths", "7,11"], "--lengths applies while exporting"),
        (["compile", "{zoo}:fixed", "--target", "vax"], "there is no target 'vax'"),
        (["compile", "{zoo}:fixed", "--entries", "step"], "entry 'main' has no symbol 'L'"),
        (["run", "{scale}"], "needs the input 'x'"),
        (["run", "{scale}", "--random", "--entry", "step"], "no entry 'step'"),
        (["run", "{scale}", "--random", "--dim", "L=3"], "there is no such dim; the dynamic dims are B"),
        (["run", "{scale}", "--random", "--dim", "B=65"], "takes B from 1 to 64"),
        (["run", "{scale}", "--input", "x"], "write --input name=file.npy"),
        (["run", "{scale}", "--input", "x={zoo}"], "not a .npy file"),
        (["run", "{scale}", "--input", "x=nothing.npy"], "nothing.npy: no such file"),
        (["compare", "nothing.pt2", "{scale}"], "nothing.pt2: no such file"),
        (["compare", "{text}", "{scale}"], "compare needs a .pt2, or file.py:function"),
        (["opt", "nothing", "{text}"], "there is no pass 'nothing'; the passes are"),
        (["opt", "simplify", "{zoo}"], "expected a graph"),
        (["explain", "{text}", "nothing"], "no stage, pass or rule 'nothing' ran on this model"),
        (["inspect", "{text}", "--stage", "nothing"], "there is no stage 'nothing'; the stages are"),
        (["ops", "nothing"], "there is no op 'nothing'"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    cli: Cli, models: Path, scale: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str],
    sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = cli(*(arg.format(zoo=models, scale=scale, text=text) for arg in args))
    assert sentence in done.err
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_control_flow_on_values_is_unsupported(cli: Cli, models: Path, tmp_path: Path) -> None:
    done = cli("compile", f"{models}:branches", "-o", tmp_path / "b.coil")
    assert done.code == 3
    assert "zoo.py" in done.err
    assert "graph" not in done.err.lower()  # nothing of torch's own
    assert "return x if x.sum() > 0 else -x" in done.err
    assert not (tmp_path / "b.coil").exists()


def test_a_wrong_array_is_refused_before_anything_is_written(cli: Cli, scale: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), np.float32))
    done = cli("run", scale, "-i", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "out")
    assert done.code == 2
    assert "'x'" in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_replaced(cli: Cli, scale: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    done = cli("run", scale, "--random", "-o", tmp_path / "out")
    assert done.code == 2
    assert "holds more than .npy files" in done.err
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_damaged_artifact_is_code_4(cli: Cli, scale: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(scale, tmp_path / "damaged.coil")
    (damaged / "code.so").write_bytes((damaged / "code.so").read_bytes()[:-1])
    done = cli("run", damaged, "--random")
    assert done.code == 4
    assert "code.so' is damaged" in done.err


def test_a_bug_says_so_and_debug_shows_where(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("coilc.codegen.target.parse_target", broken)
    done = cli("targets")
    assert done.code == 70
    assert done.err == ("coilc: ZeroDivisionError: oh\n  this is a bug in coilc; COILC_DEBUG=1 shows the traceback\n")
    monkeypatch.setenv("COILC_DEBUG", "1")
    assert "Traceback" in cli("targets").err


def test_an_unknown_option_is_code_2(cli: Cli) -> None:
    done = cli("run", "--nothing")
    assert done.code == 2
    assert "No such option" in done.err
