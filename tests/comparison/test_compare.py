"""A comparison finds what it should: agreement, and the first value that is wrong, with its module and source line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import coilc
from coilc.comparison import Report


class Block(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(size)
        self.inner = torch.nn.Linear(size, 2 * size)
        self.outer = torch.nn.Linear(2 * size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.nn.functional.silu(self.inner(self.norm(x))))


class Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(8) for _ in range(3))
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 40)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.blocks:
            x = self.dropout(block(x))
        return {"logits": self.head(x), "kept": mask & (x.sum(-1) > 0)}


SHAPES = {"x": {0: "B", 1: "L:1..64"}, "mask": {0: "B", 1: "L"}}


def inputs(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    return torch.randn(batch, length, 8, generator=generator), torch.rand(batch, length, generator=generator) > 0.5


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower()


@pytest.fixture(scope="module")
def artifact(tower: Tower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = coilc.export(tower, inputs(2, 5), dynamic_shapes=SHAPES)
    return coilc.compile(program, tmp_path_factory.mktemp("tower") / "tower.coil")


@pytest.fixture(scope="module")
def report(tower: Tower, artifact: Path) -> Report:
    return coilc.compare(tower, artifact, inputs(3, 7), dynamic_shapes=SHAPES, runs=2, threads=1)


def test_an_artifact_agrees_with_its_model_though_that_is_in_training_mode(tower: Tower, report: Report) -> None:
    assert report.ok
    assert tower.training
    assert report.first_failure is None
    assert report["logits"].relative_error < 1e-5
    assert report["logits"].argmax_agreement == 1
    assert report["kept"].relative_error == 0


def test_values_inside_the_model_are_compared_with_their_places(report: Report) -> None:
    scopes = [row.scope for row in report.layers]
    assert {"blocks.0", "blocks.2"} <= {".".join(scope.split(".")[:2]) for scope in scopes}
    assert scopes.index("head") > next(i for i, s in enumerate(scopes) if s.startswith("blocks.2"))
    assert all("test_compare.py:" in row.place or "torch" in row.place for row in report.layers)


def test_speed_and_sizes_are_measured(report: Report) -> None:
    assert report.speed is not None
    assert len(report.speed.eager) == len(report.speed.artifact) == 2
    assert report.speed.threads == 1
    assert report.sizes["eager_weights"] == sum(p.nbytes for p in Tower().parameters())
    assert report.sizes["arena"] > 0


def test_the_first_wrong_value_is_named(tower: Tower, artifact: Path) -> None:
    changed = Tower()
    changed.load_state_dict(tower.state_dict())
    with torch.no_grad():
        changed.blocks[1].outer.bias += 0.1
    report = coilc.compare(changed, artifact, inputs(2, 5), dynamic_shapes=SHAPES, runs=0)
    assert not report.ok
    assert report.first_failure is not None
    assert report.first_failure.scope.startswith("blocks.1")
    assert "The first value outside its tolerance is" in str(report)
    assert "blocks.1" in str(report)


def test_a_wider_tolerance_can_be_asked_for(tower: Tower, artifact: Path) -> None:
    tight = coilc.compare(tower, artifact, inputs(2, 5), dynamic_shapes=SHAPES, runs=0, layers=False, tolerance=0.0)
    assert not tight.ok
    assert tight.layers == ()
    assert coilc.compare(tower, artifact, inputs(2, 5), dynamic_shapes=SHAPES, runs=0, tolerance=0.5).ok


def test_narrow_values_are_compared_within_what_their_type_allows(tower: Tower, tmp_path: Path) -> None:
    program = coilc.export(tower, inputs(2, 5), dynamic_shapes=SHAPES)
    path = coilc.compile(program, tmp_path / "tower.coil", precision="bf16")
    report = coilc.compare(tower, path, inputs(3, 9), dynamic_shapes=SHAPES, runs=0)
    assert report.ok
    assert len(report.layers) > 3
    assert {row.tolerance for row in (*report.outputs, *report.layers) if row.dtype == "float32"} == {3e-2}
    assert report["logits"].relative_error > 1e-4


def test_an_exported_program_can_be_compared(tower: Tower, tmp_path: Path) -> None:
    program = torch.export.export(tower.eval(), inputs(2, 5))
    try:
        path = coilc.compile(program, tmp_path / "program.coil")
        report = coilc.compare(program, path, inputs(2, 5), runs=0)
    finally:
        tower.train()
    assert report.ok
    assert report.layers


def test_groups_of_values_that_do_not_fit_together_are_compared_in_turn(
    tower: Tower, artifact: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coilc.comparison.side_by_side.VALUES_AT_ONCE", 1)
    again = coilc.compare(tower, artifact, inputs(3, 7), dynamic_shapes=SHAPES, runs=0)
    assert again.layers == report.layers


@pytest.mark.parametrize(
    ("args", "entry", "sentence"),
    [
        ((torch.zeros(2, 5, 8),), "main", "the model got 1 tensors, the artifact takes 2: x, mask"),
        (inputs(2, 5), "step", "the artifact has no entry 'step'; it has main"),
    ],
)
def test_another_signature_is_refused(
    tower: Tower, artifact: Path, args: tuple[torch.Tensor, ...], entry: str, sentence: str
) -> None:
    with pytest.raises(coilc.InputError) as caught:
        coilc.compare(tower, artifact, args, entry=entry)
    assert str(caught.value) == sentence


def test_an_unknown_output_lists_those_there_are(report: Report) -> None:
    with pytest.raises(KeyError, match="the outputs are logits, kept"):
        report["scores"]


def test_reports_are_written(report: Report, tmp_path: Path) -> None:
    report.to_json(tmp_path / "report.json")
    report.to_html(tmp_path / "report.html")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["ok"]
    assert found["outputs"][0]["relative_error"] == report["logits"].relative_error
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "blocks.1" in page
    assert "currentColor" in page


def test_values_print_in_order_with_their_shapes(report: Report) -> None:
    text = str(report)
    assert "3 x 7 x 40" in text
    assert "time per run, 1 thread" in text
    assert np.isfinite(report["logits"].cosine)


class Amplifier(torch.nn.Module):
    """Turns the rounding of a sum into an error of every digit but the first few."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = torch.nn.Linear(400, 8), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.factor * self.inner(x))


def test_float64_tells_rounding_from_errors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other, x = Amplifier(1e4), Amplifier(1e4 + 1), torch.randn(3, 400)
    other.load_state_dict(model.state_dict())
    right, wrong = (coilc.compile(coilc.export(m, (x,)), tmp_path / f"{m.factor}.coil") for m in (model, other))
    assert not coilc.compare(model, right, (x,), layers=False, runs=0).ok
    report = coilc.compare(model, right, (x,), float64=True, runs=0)
    (row,) = report.outputs
    assert report.ok
    assert row.rounding is not None
    assert 1e-5 < row.rounding[0] < 1e-1
    assert "differ by their rounding" in str(report)
    assert "artifact to float64" in str(report)
    assert not coilc.compare(model, wrong, (x,), layers=False, float64=True, runs=0).ok
