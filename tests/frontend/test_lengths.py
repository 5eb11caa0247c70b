"""``lengths=``: a model with a Python loop over time becomes one program that is right at every length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import coilc
from coilc.comparison.metrics import difference, tolerance_for
from coilc.ir import CoilError, InputError, interpret, print_module
from coilc.runtime.errors import InputError as RunError

from . import loops

SHAPES = {"x": {0: "B", 1: "L"}}
LOOPS = ("LSTM", "GRU", "LIF", "RWKV4", "S4", "NoState", "Stack", "TwoWays")
LENGTHS = (1, 2, 3, 7, 20, 200)


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(loops, name)().eval()
    return model


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, loops.D, generator=torch.Generator().manual_seed(length))


def shapes_of(model: nn.Module) -> Any:
    (name,) = set(model.forward.__annotations__) - {"return"}
    return {name: {0: "B", 1: "L"}}


def agree(found: dict[str, np.ndarray], expected: Any) -> None:
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for actual, tensor in zip(found.values(), wanted, strict=True):
        assert difference(actual, tensor.numpy()).relative_error <= tolerance_for(actual)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_right_at_every_length(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    program = coilc.export(model, (tokens(2, 9),), dynamic_shapes=shapes_of(model), lengths=(7, 11))
    graph = program.entries["main"]
    assert graph.ranges == {"B": (1, None), "L": (1, None)}
    assert sum(node.op.name == "scan" for node in graph.nodes) == (3 if name == "TwoWays" else 1)
    artifact = coilc.load(coilc.compile(program, tmp_path / "loop.coil"))
    (feed,) = (value.node.attrs["name"] for value in graph.inputs)
    for length in LENGTHS:
        x = tokens(3, length)
        with torch.no_grad():
            expected = model(x)
        agree(interpret(program, {feed: x.numpy()}), expected)
        agree(artifact(**{feed: x.numpy()}), expected)


class Numbers(nn.Module):
    """Time comes first, states begin as Python's numbers, and numbers of the steps and of the length are in the formulas."""

    def __init__(self, weigh: str) -> None:
        super().__init__()
        self.weigh = weigh

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        factor = {
            "mean": lambda t: 1,
            "part": lambda t: t / n,
            "rest": lambda t: (n - t) / (n + 1),
            "back": lambda t: 2 * (n - t) + 0.0,
            "step": lambda t: t,
        }[self.weigh]
        a = b = c = 0.0
        for t in range(n):
            a = a * 0.5 + x[t] * factor(t)
            b = b * 0.75 + a
            c = c + b
        return c / n


@pytest.mark.parametrize(("weigh", "least"), [("mean", 1), ("part", 1), ("rest", 1), ("back", 1), ("step", 2)])
def test_numbers_that_grow_with_the_length(weigh: str, least: int, tmp_path: Path) -> None:
    """torch leaves out ``* 1``: the second step that counts is no longer like the others, and has to be there."""
    model = Numbers(weigh)
    program = coilc.export(model, (torch.randn(7, 3),), dynamic_shapes={"x": {0: "L"}}, lengths=(7, 11))
    assert program.entries["main"].ranges == {"L": (least, None)}
    assert sum(node.op.name == "scan" for node in program.entries["main"].nodes) == 1
    artifact = coilc.load(coilc.compile(program, tmp_path / "loop.coil"))
    for length in range(least, 14):
        x = torch.randn(length, 3, generator=torch.Generator().manual_seed(length))
        agree(interpret(program, {"x": x.numpy()}), model(x))
        agree(artifact(x=x.numpy()), model(x))
    if least > 1:
        with pytest.raises(RunError, match="takes L from 2 or more"):
            artifact(x=np.zeros((1, 3), np.float32))


class Uneven(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x[0] * 0
        for t in range(len(x)):
            y = torch.tanh(y) + x[t] * t**2
        return y


def test_other_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="neither uniform nor consecutive integers"):
        coilc.export(Uneven(), (torch.randn(7, 3),), dynamic_shapes={"x": {0: "L"}}, lengths=(7, 11))


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def test_a_dimension_that_torch_can_trace_is_traced_once() -> None:
    program = coilc.export(Cumulative(), (tokens(2, 9),), dynamic_shapes=SHAPES, lengths=(7, 11))
    plain = coilc.export(Cumulative(), (tokens(2, 9),), dynamic_shapes=SHAPES)
    assert print_module(program) == print_module(plain)


def test_without_lengths_the_error_says_what_to_do() -> None:
    with pytest.raises(CoilError, match=r"dimension 'L' is fixed to 9 .*give lengths=\(7, 11\)"):
        coilc.export(model_of("LSTM"), (tokens(2, 9),), dynamic_shapes=SHAPES)


def test_every_operation_keeps_its_line() -> None:
    program = coilc.export(model_of("GRU"), (tokens(2, 9),), dynamic_shapes=SHAPES, lengths=(7, 11))
    places = [n.location for n in program.entries["main"].nodes if n.op.name not in ("input", "weight", "constant")]
    assert all(place and place.file.endswith("loops.py") for place in places)


class OtherAtTen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[:, t])
        return torch.exp(h) if x.shape[1] > 10 else h


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[:, t])
        return h * x.shape[1] ** -0.5  # the scale


class OddStep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[:, t])
            if t == 5:
                h = torch.sin(h)  # the odd step
            outputs.append(h)
        return torch.stack(outputs, 1)


def test_a_loop_with_an_odd_step_is_refused_with_its_line() -> None:
    with pytest.raises(
        InputError, match=r"different structure.*step 6 of 11 breaks the loop: it has 'sin' where the last"
    ) as caught:
        coilc.export(OddStep(), (tokens(2, 9),), dynamic_shapes=SHAPES, lengths=(7, 11))
    assert "test_lengths.py" in str(caught.value)


@pytest.mark.parametrize(("model", "message"), [(OtherAtTen(), "different structure"), (Root(), "constant")])
def test_what_depends_on_the_length_in_another_way_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        coilc.export(model, (tokens(2, 9),), dynamic_shapes=SHAPES, lengths=(7, 11))


@pytest.mark.parametrize(
    ("shapes", "lengths", "message"),
    [
        (SHAPES, {"T": (7, 11)}, "'T', which is no dimension of dynamic_shapes; these are: B, L"),
        (SHAPES, (7, 7), "two different numbers from 5 on"),
        (SHAPES, (2, 9), "two different numbers from 5 on"),
        (SHAPES, {"L": (7, 11), "B": (5, 6)}, "give it for one dimension"),
        ({"x": {0: "B"}}, (7, 11), "it names none"),
        ({"x": {0: "B", 1: "L", 2: "D"}}, (7, 11), "it names L, D"),
        ({"x": {1: "L:1..10"}}, (7, 11), r"outside the range of 'L', 1..10"),
    ],
)
def test_wrong_lengths(shapes: Any, lengths: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        coilc.export(Cumulative(), (tokens(2, 9),), dynamic_shapes=shapes, lengths=lengths)
