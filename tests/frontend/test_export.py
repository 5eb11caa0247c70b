"""Dynamic dimensions, names of inputs and outputs, weights, saved programs, and every refusal with its line."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from coilc.frontend.convert import to_numpy
from coilc.frontend.torch_export import export, import_program, trace
from coilc.ir import CoilError, InputError, Module, UnsupportedError, interpret


class Wrapped(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Wrapped2(Wrapped):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


def export_function(function: Callable[..., Any], *operands: Tensor, shapes: Any = None) -> Module:
    wrapper = Wrapped(function) if len(operands) == 1 else Wrapped2(function)
    return export(wrapper, operands, dynamic_shapes=shapes)


def line_of(function: Callable[..., Any], text: str) -> int:
    """The line in this file of ``text`` inside ``function``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


# --- dynamic dimensions -----------------------------------------------------------------------------------------------

DYNAMIC: dict[str, tuple[Callable[..., Any], int]] = {
    "flatten": (lambda x: x.flatten(), 2),
    "split heads": (lambda x: x.view(x.shape[0], x.shape[1], 2, 3).transpose(1, 2), 2),
    "mean over a dynamic axis": (lambda x: x.mean(1), 2),
    "var": (lambda x: x.var(0, correction=0), 2),
    "causal mask": (lambda x: torch.tril(torch.ones(x.shape[1], x.shape[1])), 2),
    "positions": (lambda x: x + torch.arange(x.shape[1])[None, :, None], 2),
    "last step": (lambda x: x[:, -1], 2),
    "flip": (lambda x: x.flip(1), 2),
    "concatenate with itself": (lambda x: torch.cat([x, x], 1), 2),
    "pad": (lambda x: nn.functional.pad(x, (0, 0, 3, 0)), 2),
    "roll": (lambda x: x.roll(1, 1), 2),
    "repeat": (lambda x: x.repeat(2, 1, 1), 2),
    "every second": (lambda x: x[:, ::2], 2),
    "half the length": (lambda x: x[:, : (x.shape[1] + 1) // 2], 2),
    "scale by the length": (lambda x: x / x.shape[1] + x.numel(), 2),
    "scale by a power of the length": (lambda x: x * (0.3 / x.shape[1]) ** 0.5 + 1 / x.shape[0], 2),
    "divide by the root of the length": (lambda x: x / torch.sym_sqrt(x.shape[1] + 1), 2),
    "softmax over the length": (lambda x: x.softmax(1), 2),
    "cumsum": (lambda x: x.cumsum(1), 2),
    "outer product over time": (lambda x: x @ x.transpose(1, 2), 2),
    "einsum": (lambda x: torch.einsum("bld,bmd->blm", x, x), 2),
    "expand": (lambda x: x.mean(1, keepdim=True).expand(-1, x.shape[1], -1), 2),
    "stack of batches": (lambda x: torch.stack([x, x]), 2),
    "sort": (lambda x: x.sort(1)[0], 2),
    "gather of positions": (lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.int64)), 2),
    "upsample": (lambda x: nn.functional.interpolate(x.transpose(1, 2), scale_factor=2.0), 2),
    "conv": (lambda x: nn.functional.conv1d(x.transpose(1, 2), torch.ones(4, 6, 3), padding=1), 2),
    "zeros of the length": (lambda x: x.new_zeros(x.shape[0], x.shape[1] + 2), 2),
    "unfold windows": (lambda x: nn.functional.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1), 2),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_one_import_serves_every_size(name: str) -> None:
    function, _ = DYNAMIC[name]
    module = export_function(function, torch.randn(2, 5, 6), shapes={"x": {0: "B", 1: "L"}})
    assert module.entries["main"].symbols == (("B", (1, None)), ("L", (1, None)))
    for batch, length in ((1, 1), (1, 4), (3, 2), (2, 9)):
        x = torch.randn(batch, length, 6, generator=torch.Generator().manual_seed(length))
        (found,) = interpret(module, {"x": x.numpy()}).values()
        expected = function(x).numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_a_grid_that_is_halved_flattened_and_a_grid_again() -> None:
    """torch notes checks on this way, one of them a remainder by a dynamic extent, which no dimension can express."""
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def function(x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, kernel, stride=2, padding=1)
        y = nn.functional.conv1d(x.flatten(2), torch.ones(4, 4, 1)).reshape(x.shape[0], 4, x.shape[2], x.shape[3])
        return nn.functional.conv2d(y, torch.ones(4, 1, 3, 3), padding=1, groups=4)

    module = export_function(function, torch.randn(2, 3, 8, 10), shapes={"x": {0: "B", 2: "H", 3: "W"}})
    for height, width in ((1, 1), (1, 6), (7, 2), (9, 4)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        (found,) = interpret(module, {"x": x.numpy()}).values()
        np.testing.assert_allclose(found, function(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        ("L", (1, None)),
        ("L:1..8192", (1, 8192)),
        ("L:4..", (4, None)),
        (Dim("L", min=1, max=99), (1, 99)),
        (Dim("L"), (1, None)),
    ],
)
def test_a_dimension_is_written_in_any_of_these_ways(dim: Any, expected: tuple[int, int | None]) -> None:
    module = export_function(torch.relu, torch.ones(7, 2), shapes={"x": {0: dim}})
    assert module.entries["main"].ranges == {"L": expected}


def test_an_example_of_extent_one_is_enough() -> None:
    module = export_function(lambda x: x + x.shape[0], torch.ones(1, 3), shapes={"x": {0: "B"}})
    np.testing.assert_array_equal(interpret(module, {"x": np.ones((4, 3), np.float32)})["out"], np.full((4, 3), 5))


def test_multiples_and_shared_symbols() -> None:
    module = export_function(
        lambda x, y: x.view(-1, 4) + y[:, None], torch.ones(8), torch.ones(2), shapes={"x": {0: "4*C"}, "y": {0: "C"}}
    )
    assert [str(v.type) for v in module.entries["main"].inputs] == ["f32[4*C]", "f32[C]"]
    assert str(module.entries["main"].results[0].type) == "f32[C, 4]"


def test_shapes_by_position_per_axis() -> None:
    module = export(Wrapped2(torch.add), (torch.ones(3, 2), torch.ones(3, 2)), dynamic_shapes=(("N", None), {0: "N"}))
    assert [str(v.type) for v in module.entries["main"].inputs] == ["f32[N, 2]", "f32[N, 2]"]


def test_the_model_bounds_what_the_user_left_open() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table[: x.shape[0]]

    module = export(Positions(), (torch.ones(5, 3),), dynamic_shapes={"x": {0: "L"}})
    assert module.entries["main"].ranges == {"L": (1, 16)}
    with pytest.raises(CoilError, match=r"takes 'L' only in 1\.\.16, dynamic_shapes asks for 1\.\.99"):
        export(Positions(), (torch.ones(5, 3),), dynamic_shapes={"x": {0: "L:1..99"}})


def test_foreign_programs_name_symbols_after_their_inputs() -> None:
    program = torch.export.export(Wrapped(torch.relu), (torch.ones(4, 3),), dynamic_shapes={"x": {0: Dim.AUTO}})
    module = import_program(program)
    assert module.entries["main"].ranges == {"x_0": (1, None)}


def test_foreign_programs_with_checks_that_can_fail() -> None:
    program = torch.export.export(
        Wrapped(lambda x: x + 1 if (x.shape[0] + 3) // 2 != 9 else x), (torch.ones(8),),
        dynamic_shapes={"x": {0: Dim("L", min=1)}}, prefer_deferred_runtime_asserts_over_guards=True,
    )  # fmt: skip
    with pytest.raises(CoilError, match=r"checks .* when it runs"):
        import_program(program)


# --- inputs and outputs -----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pair:
    first: Tensor
    second: tuple[Tensor, Tensor]


torch.export.register_dataclass(Pair, serialized_type_name="coilc_tests.Pair")


class Named(NamedTuple):
    low: Tensor
    high: Tensor


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "tensor": (lambda x: x + 1, ["out"]),
    "tuple": (lambda x: (x, x + 1), ["out.0", "out.1"]),
    "list of one": (lambda x: [x + 1], ["out.0"]),
    "nested": (lambda x: (x + 1, (x + 2, x + 3)), ["out.0", "out.1.0", "out.1.1"]),
    "dict": (lambda x: {"b": x + 1, "a": (x + 2, x + 3)}, ["b", "a.0", "a.1"]),
    "dataclass": (lambda x: Pair(x + 1, (x + 2, x + 3)), ["first", "second.0", "second.1"]),
    "named tuple": (lambda x: Named(x + 1, x + 2), ["low", "high"]),
    "with none and numbers": (lambda x: (x + 1, None, 3), ["out.0"]),
    "an input as it is": (lambda x: x, ["out"]),
    "the same twice": (lambda x: (y := x + 1, y), ["out.0", "out.1"]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_named_by_their_path(name: str) -> None:
    function, names = OUTPUTS[name]
    module = export_function(function, torch.ones(3))
    assert [n for n, _ in module.entries["main"].outputs] == names
    found = interpret(module, {"x": np.arange(3, dtype=np.float32)})
    leaves = [t for t in torch.utils._pytree.tree_leaves(function(torch.arange(3.0))) if isinstance(t, Tensor)]
    for array, tensor in zip(found.values(), leaves, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


def test_inputs_are_named_by_their_arguments() -> None:
    class Model(nn.Module):
        def forward(
            self, input: Tensor, pair: tuple[Tensor, Tensor], flag: bool, *, extra: dict[str, Tensor]
        ) -> Tensor:
            return input + pair[0] * pair[1] + extra["bias"] if flag else input

    one = torch.ones(2)
    module = export(Model(), (one, (one, one), True), {"extra": {"bias": one}})
    assert [v.node.attrs["name"] for v in module.entries["main"].inputs] == ["input", "pair_0", "pair_1", "extra_bias"]


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool", "complex64"]
)
def test_every_dtype_passes_through(dtype: str) -> None:
    x = torch.ones(3).to(getattr(torch, dtype))
    module = export_function(lambda x: (x, x.reshape(3, 1), x == x), x)
    for array in list(interpret(module, {"x": to_numpy(x)}).values())[:2]:
        assert array.dtype == to_numpy(x).dtype


# --- weights ----------------------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.twin = nn.Linear(8, 8)
        self.twin.weight = self.inner.weight
        self.unused = nn.Linear(8, 8)
        self.register_buffer("offset", torch.randn(8, 8))
        self.register_buffer("step", torch.tensor(2.0))
        self.plain = torch.randn(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(self.inner(x)) * self.step + self.offset + self.plain


def test_weights_are_named_by_their_path_shared_once_and_used() -> None:
    model = Weighted().eval()
    module = export(model, (torch.ones(8, 8),))
    assert set(module.weights) == {"inner.weight", "inner.bias", "twin.bias", "offset", "plain"}
    x = torch.randn(8, 8)
    np.testing.assert_allclose(
        interpret(module, {"x": x.numpy()})["out"], model(x).detach().numpy(), rtol=1e-5, atol=1e-5
    )


def test_half_precision_weights() -> None:
    model = nn.Linear(8, 4).to(torch.bfloat16).eval()
    module = export(model, (torch.ones(2, 8, dtype=torch.bfloat16),))
    assert {str(a.dtype) for a in module.weights.values()} == {"bfloat16"}
    x = torch.randn(2, 8).to(torch.bfloat16)
    found = interpret(module, {"input": to_numpy(x)})["out"].astype(np.float32)
    np.testing.assert_allclose(found, model(x).detach().float().numpy(), rtol=2e-2, atol=2e-2)


def test_saved_programs(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    model = Weighted().eval()
    torch.export.save(torch.export.export(model, (torch.ones(8, 8),)), path)
    module = import_program(path)
    assert "inner.weight" in module.weights
    x = torch.randn(8, 8)
    np.testing.assert_allclose(
        interpret(module, {"x": x.numpy()})["out"], model(x).detach().numpy(), rtol=1e-5, atol=1e-5
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


def unsupported(x: Tensor) -> Tensor:
    y = torch.linalg.eigvals(x)  # first
    z = torch.linalg.svdvals(x)  # second
    return y.real.sum() + z.sum() + torch.special.zeta(x, x).sum()  # third


def test_unsupported_ops_are_reported_together_with_their_lines() -> None:
    with pytest.raises(UnsupportedError) as caught:
        export_function(unsupported, torch.randn(4, 4))
    found = [(name, place.line if place else None) for name, place in caught.value.places]
    assert [line for _, line in found] == [line_of(unsupported, f"# {n}") for n in ("first", "second", "third")]
    assert all(place.file.endswith("tests/frontend/test_export.py") for _, place in caught.value.places)
    assert "eig" in found[0][0]
    assert "test_export.py" in str(caught.value)


def branches(x: Tensor) -> Tensor:
    if x.sum() > 0:  # the branch
        return x
    return -x


def loops(x: Tensor) -> Tensor:
    for _ in range(x.shape[0]):
        x = x + 1
    return x


def sized_by_values(x: Tensor) -> Tensor:
    return x[x > 0]  # the mask


def test_a_branch_on_values_names_the_line_and_the_fix() -> None:
    with pytest.raises(
        CoilError, match=r"decides in Python by the values .*if x.sum\(\) > 0.*use torch.where"
    ) as caught:
        export_function(branches, torch.ones(3))
    assert caught.value.location.line == line_of(branches, "# the branch")


def test_a_loop_over_a_dynamic_axis() -> None:
    with pytest.raises(CoilError, match="dimension 'L' is fixed to 3 by the model's Python code"):
        export_function(loops, torch.ones(3), shapes={"x": {0: "L"}})


def test_a_dynamic_axis_that_must_be_a_multiple() -> None:
    with pytest.raises(CoilError, match=r"takes dimension 'L' only as 4\*_L"):
        export_function(
            lambda x: x.view(-1, 4).sum() if x.shape[0] % 4 == 0 else x, torch.ones(8), shapes={"x": {0: "L"}}
        )


def test_results_sized_by_values() -> None:
    with pytest.raises(CoilError, match="depends on the values") as caught:
        export_function(sized_by_values, torch.randn(5))
    places = getattr(caught.value, "places", ())
    assert any(place and place.line == line_of(sized_by_values, "# the mask") for _, place in places)


def scaled_by_a_value(x: Tensor) -> Tensor:
    return x * x.max().item()  # the number


def test_numbers_read_from_tensors() -> None:
    with pytest.raises(CoilError) as caught:
        export_function(scaled_by_a_value, torch.randn(5))
    places = getattr(caught.value, "places", ())
    assert any(place and place.line == line_of(scaled_by_a_value, "# the number") for _, place in places)


def test_updated_buffers_and_inputs() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            return x + self.count

    graph = export(Counter(), (torch.ones(3),)).entries["main"]
    assert graph.states == (("count", "count"),)
    graph = export_function(lambda x: x.add_(1), torch.ones(3)).entries["main"]
    assert graph.states == (("x", "x"),)
    counter = Counter()
    counter.count = nn.Parameter(counter.__dict__["_buffers"].pop("count"), requires_grad=False)
    with pytest.raises(CoilError, match="updates parameter 'count' in place") as caught:
        export(counter, (torch.ones(3),))
    assert caught.value.location.file.endswith("test_export.py")


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": {0: "L"}}, "dynamic_shapes names 'z', the model's arguments are x"),
        ({"x": {2: "L"}}, "dynamic_shapes gives axis 2 of 'x', which has 2 axes"),
        ({"x": {0: "L:1..4", 1: "L:1..8"}}, "dimension 'L' has two ranges"),
        ({"x": {0: "x"}}, "'x' names both a dimension and an argument"),
        ({"x": {0: "3"}}, "'3' is not a dynamic dimension"),
        ({"x": {0: "B*L"}}, "is not a dynamic dimension"),
        (({0: "L"}, {0: "L"}), "2 entries for 1 arguments"),
    ],
)
def test_wrong_dynamic_shapes(shapes: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        export_function(torch.relu, torch.ones(3, 3), shapes=shapes)
    assert message in caught.value.message


def test_wrong_arguments_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"do not fit Wrapped\.forward"):
        export(Wrapped(torch.relu), ())
    with pytest.raises(InputError, match="no such file"):
        import_program(tmp_path / "none.pt2")
    (tmp_path / "bad.pt2").write_bytes(b"not a program")
    with pytest.raises(InputError, match="is no exported program"):
        import_program(tmp_path / "bad.pt2")


def test_the_models_own_errors_pass_through() -> None:
    def raises(x: Tensor) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        export_function(raises, torch.ones(3))


def test_tracing_twice_gives_the_same_program() -> None:
    program = trace(Weighted(), (torch.ones(8, 8),))
    again = trace(Weighted(), (torch.ones(8, 8),))
    assert [n.name for n in program.graph.nodes] == [n.name for n in again.graph.nodes]
