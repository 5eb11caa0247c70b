"""torch's higher-order ops: loops and branches that a model writes as such, eager against interpreter and artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import coilc
from coilc.comparison.metrics import difference, tolerance_for
from coilc.ir import Module, UnsupportedError, interpret, parse_graphs, print_graph, print_module
from coilc.passes import run_pipeline

D = 3
SIZES = ((1, 1), (2, 2), (3, 9), (2, 64))


def tokens(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(batch + length))


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    """torch traces these ops by what it remembers of earlier ones, and trips over it when they are nested."""
    torch._dynamo.reset()


class Function(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.table = nn.Linear(D, D), nn.Buffer(torch.randn(20, D))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def recurrent(model: Any, x: Tensor) -> Any:
    def step(state: dict[str, Tensor], x_t: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        h = torch.tanh(model.linear(state["h"]) + x_t)
        return {"h": h, "steps": state["steps"] + 1}, (h * 2, h.sum(-1))

    start = {"h": torch.zeros_like(x[:, 0]), "steps": torch.zeros((), dtype=torch.int64)}
    return scan(step, start, x, dim=1)


def backwards(_: Any, x: Tensor) -> Any:
    def step(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.9 * h + x_t
        return h, h.clone()

    return scan(step, torch.ones_like(x[:, 0]), x, dim=1, reverse=True)


def nested(_: Any, x: Tensor) -> Any:
    def inner(total: Tensor, element: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.tanh(total + element)
        return total, total.clone()

    def outer(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h, ys = scan(inner, h, x_t, dim=1)
        return h, ys.clone()

    return scan(outer, torch.zeros_like(x[:, 0, 0]), x, dim=1)


def affine(_: Any, x: Tensor) -> Any:
    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return associative_scan(combine, (x.sigmoid(), x), 1, combine_mode="generic")


def last_first(_: Any, x: Tensor) -> Any:
    def combine(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"best": torch.maximum(left["best"], right["best"]), "sum": left["sum"] + right["sum"]}

    return associative_scan(combine, {"best": x, "sum": x}, 1, reverse=True, combine_mode="generic")


def products(model: Any, x: Tensor) -> Any:
    turns = torch.eye(D) + 0.1 * x[..., None] * model.linear.weight
    return associative_scan(lambda a, b: b @ a, turns, 1, combine_mode="generic")


def sums(_: Any, x: Tensor) -> Any:
    return associative_scan(torch.add, x, 1, combine_mode="generic")


def mapped(model: Any, x: Tensor) -> Any:
    return map_over(lambda row, weight: (row.softmax(-1) @ weight).tanh(), x, model.linear.weight)


def branches(model: Any, x: Tensor) -> Any:
    return torch.cond(x[0, 0, 0] > 0, lambda y: model.linear(y) + model.table[0], lambda y: (y * y).cos(), (x,))


def unsafe(model: Any, x: Tensor) -> Any:
    """Each branch is harmful where the other one is taken."""
    size = (x[0, 0, 0] > 0).long() * 4
    whole = x.round().long()
    safe = torch.cond(size > 0, lambda a, n: a // n, lambda a, n: a * 1, (whole, size))
    where = torch.cond(size > 0, lambda n: n + 0, lambda n: n - 1, (size[None],))
    row = torch.cond(
        size > 0, lambda n: model.table.index_select(0, n), lambda n: model.table.index_select(0, n * n + 1), (where,)
    )
    root = torch.cond(x.min() >= 0, torch.sqrt, lambda y: y * 2, (x,))
    return safe, row, root


def branch_per_step(model: Any, x: Tensor) -> Any:
    def step(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cond(
            x_t[0, 0] > 0, lambda h, x_t: torch.tanh(model.linear(h) + x_t), lambda h, x_t: h * 0.5, (h, x_t)
        )
        return h, h.clone()

    return scan(step, torch.zeros_like(x[:, 0]), x, dim=1)


def loop_per_branch(_: Any, x: Tensor) -> Any:
    def step(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.9 * h + x_t
        return h, h.clone()

    def looped(y: Tensor) -> Tensor:
        return scan(step, y[0] * 0, y)[1]

    return torch.cond(x.sum() > 0, looped, lambda y: y * 2, (x.transpose(0, 1).contiguous(),))


def doubled(_: Any, x: Tensor) -> Any:
    """How often ``x`` is doubled before its sum is large: another number of steps for other values."""
    return while_loop(
        lambda count, y: (y.abs().sum() < 500) & (count < 40),
        lambda count, y: (count + 1, y * 2 + count),
        (torch.zeros((), dtype=torch.int64), x),
    )


def newton(model: Any, x: Tensor) -> Any:
    """Square roots, until no element changes by much; a module's weight is read inside."""
    wanted = x.abs() + model.linear.weight[0].abs() + 0.1

    def step(root: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        after = 0.5 * (root + wanted / root)
        return after, (after - root).abs().max()

    return while_loop(lambda _, change: change > 1e-3, step, (wanted.clone(), torch.full((), 1.0)))[0]


def turning(_: Any, x: Tensor) -> Any:
    """A complex carry."""
    z = torch.complex(x, torch.ones_like(x))
    found = while_loop(
        lambda n, z: n < 5, lambda n, z: (n + 1, z * (0.6 + 0.8j)), (torch.zeros((), dtype=torch.int64), z)
    )[1]
    return torch.view_as_real(found)


def only_where_taken(_: Any, x: Tensor) -> Any:
    """The loop would never end where the other branch is taken."""

    def looped(y: Tensor) -> Tensor:
        return while_loop(lambda y: y[0, 0, 0] < 100, lambda y: (y * 2,), (y,))[0]

    return torch.cond(x[0, 0, 0] > 0, looped, lambda y: y * 3, (x,))


def loop_per_step(_: Any, x: Tensor) -> Any:
    def step(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = while_loop(lambda h: h.abs().max() > 0.5, lambda h: (h * 0.5,), (h + x_t,))[0]
        return h, h.clone()

    return scan(step, torch.zeros_like(x[:, 0]), x, dim=1)


def scan_per_loop(_: Any, x: Tensor) -> Any:
    def add(total: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        total = total * 0.5 + row
        return total, total.clone()

    rows = x[0, :1].expand(4, -1).contiguous()
    return while_loop(
        lambda y: y.abs().sum() < 50, lambda y: (scan(add, torch.ones_like(y[0]), y)[1] * 2 + 1,), (rows,)
    )[0]


BATCHED = (recurrent, backwards, affine, last_first, products, sums, mapped, branches, unsafe, doubled, newton, turning)
SINGLE = (
    nested,
    branch_per_step,
    loop_per_branch,
    only_where_taken,
    loop_per_step,
    scan_per_loop,
)  # these mix the batch inside a step, so it is static


def signature(program: Module, x: Tensor) -> dict[str, np.ndarray]:
    (value,) = program.entries["main"].inputs
    return {value.node.attrs["name"]: x.numpy()}


def agree(found: dict[str, np.ndarray], expected: Any) -> None:
    tensors = torch.utils._pytree.tree_leaves(expected)
    for actual, tensor in zip(found.values(), tensors, strict=True):
        assert difference(actual, tensor.numpy()).relative_error <= tolerance_for(actual)


@pytest.mark.parametrize("function", [*BATCHED, *SINGLE], ids=lambda f: f.__name__)
def test_agrees_with_eager(function: Callable[[Any, Tensor], Any], tmp_path: Path) -> None:
    model = Function(function).eval()
    dims = {1: "L"} if function in SINGLE else {0: "B", 1: "L"}
    example = tokens(2, 5) if function is not nested else tokens(2, 5)[..., None].expand(-1, -1, -1, 4).clone()
    program = coilc.export(model, (example,), dynamic_shapes={"x": dims})
    artifact = coilc.load(coilc.compile(program, tmp_path / "f.coil"))
    for batch, length in SIZES:
        x = tokens(2 if function in SINGLE else batch, length)
        x = x[..., None] * torch.arange(4) if function is nested else x
        for signed in (x, -x):
            with torch.no_grad():
                expected = model(signed)
            agree(interpret(program, signature(program, signed)), expected)
            agree(artifact(**signature(program, signed)), expected)


@pytest.mark.parametrize(
    ("function", "op"), [(sums, "cumsum"), (affine, "linear_scan"), (backwards, "linear_scan"), (mapped, "matmul")],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_what_a_loop_is_recognised_as(function: Callable[[Any, Tensor], Any], op: str) -> None:
    program = coilc.export(Function(function), (tokens(2, 5),), dynamic_shapes={"x": {0: "B", 1: "L"}})
    recognised = run_pipeline(program, {"linear_scan"}, stop_after="recognise").entries["main"]
    names = [node.op.name for node in recognised.nodes]
    assert op in names
    assert "scan" not in names


def test_operations_inside_a_loop_know_their_line() -> None:
    program = coilc.export(Function(recurrent), (tokens(2, 5),))
    (loop,) = (node for node in program.entries["main"].nodes if node.op.name == "scan")
    places = [node.location for node in loop.attrs["body"].nodes if node.inputs]
    assert all(place and place.file.endswith("test_higher_order.py") and not place.source for place in places)


def test_a_program_from_a_file(tmp_path: Path) -> None:
    model = Function(recurrent).eval()
    with torch.no_grad():  # with gradients, torch 2.13 refuses a carry of integers
        torch.export.save(torch.export.export(model, (tokens(2, 5),)), tmp_path / "m.pt2")
        agree(
            interpret(program := coilc.import_program(tmp_path / "m.pt2"), signature(program, tokens(2, 5))),
            model(tokens(2, 5)),
        )


def counted(_: Any, x: Tensor) -> Any:
    return while_loop(lambda n, y: n < 3, lambda n, y: (n + 1, y * 2), (0, x))[1]  # a number


def test_a_loop_that_carries_a_number_is_refused_with_its_line() -> None:
    with pytest.raises(UnsupportedError, match=r"carries a number; carry a tensor.*test_higher_order.py:\d+"):
        coilc.export(Function(counted), (tokens(2, 5),))


def test_a_loop_prints_and_parses() -> None:
    program = coilc.export(Function(doubled), (tokens(2, 5),), dynamic_shapes={"x": {0: "B", 1: "L"}})
    text = print_module(program)
    (graph,) = parse_graphs(text)
    assert print_graph(graph) == text
