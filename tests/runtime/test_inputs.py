"""What may be given to a model, and the sentence about what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from coilc.runtime import InputError, Model, load
from coilc.runtime.arrays import address, empty, to_numpy, to_torch
from coilc.runtime.signature import Entry, Tensor

F32 = np.float32
ROWS = {"name": "x", "dtype": "f32", "dims": ["B", "L", 64]}


@pytest.fixture(scope="module")
def model(artifact: Path) -> Model:
    return load(artifact, threads=1)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({}, "entry 'main' needs the input 'x': f32[B, L, 64]"),
    "name": ({"X": 1}, "entry 'main' has no input 'X'; it takes x"),
    "dtype": (
        {"x": np.zeros((1, 1, 64))},
        "has dtype float64, the model takes f32[B, L, 64]: convert it with .astype('float32')",
    ),
    "rank": (
        {"x": np.zeros((1, 64), F32)},
        "input 'x' has rank 2, the model takes f32[B, L, 64]; if it lacks the batch, give x[None]",
    ),
    "extent": ({"x": np.zeros((1, 1, 63), F32)}, "input 'x' has extent 63 at axis 2; f32[B, L, 64] needs 64"),
    "too small": ({"x": np.zeros((0, 1, 64), F32)}, "extent 0 at axis 0; f32[B, L, 64] takes B from 1 to 8"),
    "too large": ({"x": np.zeros((9, 1, 64), F32)}, "extent 9 at axis 0; f32[B, L, 64] takes B from 1 to 8"),
    "object": ({"x": object()}, "is a object that cannot be read as a CPU array"),
    "text": ({"x": "abc"}, "is a str that cannot be read"),
    "ragged": ({"x": [[1.0], [1.0, 2.0]]}, "no rectangular list of numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs(model: Model, case: str) -> None:
    inputs, message = BAD[case]
    with pytest.raises(InputError) as caught:
        model(**inputs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_close_name_is_suggested() -> None:
    entry = Entry(0, "main", {"inputs": [{**ROWS, "name": "input_ids"}], "outputs": [], "symbols": [], "calls": []})
    with pytest.raises(InputError, match=r"no input 'inputs_ids', did you mean 'input_ids'\?"):
        entry.order({"inputs_ids": 1})


def test_an_unknown_entry(model: Model) -> None:
    with pytest.raises(InputError, match=r"no entry 'mian', did you mean 'main'\? it takes main, refuse, hungry"):
        model.run("mian", {})


def two_inputs(second: list[int | str], scale: int = 1, offset: int = 0) -> Entry:
    symbol = {"name": "L", "low": 1, "high": None, "input": 0, "axis": 0, "scale": scale, "offset": offset}
    first = f"{scale}*L + {offset}" if scale != 1 or offset else "L"
    inputs = [{"name": "a", "dtype": "f32", "dims": [first]}, {"name": "b", "dtype": "f32", "dims": second}]
    return Entry(0, "main", {"inputs": inputs, "outputs": inputs[1:], "symbols": [symbol], "calls": []})


def test_inputs_that_disagree() -> None:
    entry = two_inputs(["L"])
    assert entry.bind([(5,), (5,)]).outputs == ((5,),)
    with pytest.raises(InputError, match=r"input 'b' has extent 6 at axis 0; f32\[L\] needs 5 \(L = 5 from 'a'\)"):
        entry.bind([(5,), (6,)])


def test_affine_extents_are_solved() -> None:
    entry = two_inputs(["L*L", "((L + 3)//4)"], scale=4, offset=1)
    assert entry.bind([(21,), (25, 2)]).values == (5,)
    with pytest.raises(InputError, match="extent 22 at axis 0"):
        entry.bind([(22,), (25, 2)])


def test_the_memory_of_shapes_is_bounded() -> None:
    entry = two_inputs(["L"])
    for length in range(1, 1000):
        entry.bind([(length,), (length,)])
    assert len(entry._bindings) <= 256


@pytest.mark.parametrize("text", ["L**2", "L if L else 1", "f(L)", "'x'", "L/2", "[1]"])
def test_a_manifest_cannot_smuggle_code_into_dims(text: str) -> None:
    with pytest.raises(InputError, match="where a dim should be"):
        Tensor.read({"dtype": "f32", "dims": [text]})


# --- layouts and libraries ------------------------------------------------------------------------------------------


def test_dense_arrays_are_used_where_they_are(x: np.ndarray) -> None:
    assert to_numpy(x, Tensor.read(ROWS)) is x


@pytest.mark.parametrize("view", ["transposed", "strided", "reversed", "byteshifted", "read-only"])
def test_other_layouts_give_the_same_numbers(model: Model, x: np.ndarray, view: str) -> None:
    raw = np.empty(x.nbytes + 1, np.uint8)
    shifted = raw[1:].view(F32).reshape(x.shape)
    shifted[:] = x
    frozen = x.copy()
    frozen.setflags(write=False)
    given = {
        "transposed": np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0),
        "strided": np.repeat(x, 2, axis=1)[:, ::2],
        "reversed": np.ascontiguousarray(x[:, ::-1])[:, ::-1],
        "byteshifted": shifted,
        "read-only": frozen,
    }[view]
    assert np.array_equal(model(x=given)["y"], x)


def test_numbers_and_lists(model: Model) -> None:
    assert model(x=[[[1.0] * 64]])["y"].shape == (1, 1, 64)
    scalar = Tensor.read({"name": "n", "dtype": "i64", "dims": []})
    assert to_numpy(3, scalar).dtype == np.int64
    with pytest.raises(InputError, match="values that i64 cannot hold"):
        to_numpy(2.5, scalar)


def test_bf16_comes_typed_or_as_bits() -> None:
    tensor = Tensor.read({"name": "h", "dtype": "bf16", "dims": [3]})
    typed = np.array([1, 2, 3], ml_dtypes.bfloat16)
    assert to_numpy(typed, tensor) is typed
    assert to_numpy(typed.view(np.uint16), tensor).dtype == np.uint16
    with pytest.raises(InputError, match="has dtype int16"):
        to_numpy(typed.view(np.int16), tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5, 7), (4, 0)])
@pytest.mark.parametrize("dtype", ["f32", "i64", "bool", "bf16"])
def test_new_arrays_are_aligned(shape: tuple[int, ...], dtype: str) -> None:
    array = empty(shape, dtype)
    assert array.shape == shape
    assert address(array) % 64 == 0 if array.size else address(array)
    assert array.flags.c_contiguous


def test_torch_in_torch_out(model: Model, x: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    given = torch.from_numpy(x).requires_grad_()
    outputs = model(x=given)
    assert isinstance(outputs["y"], torch.Tensor)
    assert torch.equal(outputs["y"], given)
    assert torch.equal(model(x=given.transpose(0, 1).contiguous().transpose(0, 1))["z"], given)
    with pytest.raises(InputError, match=r"has dtype float64.*convert it with \.to\(torch\.float32\)"):
        model(x=given.double())


def test_torch_bf16() -> None:
    torch = pytest.importorskip("torch")
    tensor = Tensor.read({"name": "h", "dtype": "bf16", "dims": [3]})
    given = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    array = to_numpy(given, tensor)
    assert array.dtype == ml_dtypes.bfloat16
    assert array.ctypes.data == given.data_ptr()
    assert torch.equal(to_torch(array, "bf16"), given)


def test_a_tensor_that_is_not_on_the_cpu(model: Model) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="cannot be read as a CPU array"):
        model(x=torch.empty((1, 1, 64), device="meta"))
