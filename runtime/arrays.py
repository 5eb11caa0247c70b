"""Tensors of other libraries in and out, without copies where memory allows: NumPy, torch, anything with DLPack."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .errors import InputError
from .signature import Shape, Tensor

_NUMPY = {
    "f16": "float16", "f32": "float32", "f64": "float64", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "bool": "bool", "c64": "complex64", "c128": "complex128",
}  # fmt: skip
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(numpy) for name, numpy in _NUMPY.items()}
_ALIGNMENT = 64


def storage_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype that holds elements of an IR dtype; bf16 is held as its 16 bits unless ml_dtypes is installed."""
    if name == "bf16" and name not in DTYPES:
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            return np.dtype(np.uint16)
        DTYPES[name] = np.dtype(bfloat16)
    return DTYPES[name]


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor; torch is never imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def torch_dtype(name: str) -> Any:
    """Torch's dtype of elements of an IR dtype. Torch must be loaded."""
    return getattr(sys.modules["torch"], "bfloat16" if name == "bf16" else _NUMPY[name])


def to_numpy(value: Any, tensor: Tensor) -> np.ndarray[Any, Any]:
    """A dense, aligned array with the values of one input; memory is shared whenever it is already like that.

    Args:
        value: an array, a torch tensor, an object with DLPack, or a Python number or list.

    Raises:
        InputError: another dtype, or memory that is not the CPU's.
    """
    array = _view(value, tensor)
    expected = storage_dtype(tensor.dtype)
    if array.dtype != expected and not _same_bits(array.dtype, tensor):
        fix = f"convert it with .to(torch.{expected})" if is_torch(value) else f"convert it with .astype('{expected}')"
        raise InputError(f"input '{tensor.name}' has dtype {array.dtype}, the model takes {tensor}: {fix}")
    return np.require(array, requirements=("C", "A"))


def _view(value: Any, tensor: Tensor) -> np.ndarray[Any, Any]:
    if isinstance(value, np.ndarray):
        return value
    if is_torch(value):
        return _from_torch(value, tensor)
    if isinstance(value, bool | int | float | complex | list | tuple):
        return _from_python(value, tensor)
    return _from_dlpack(value, tensor)


def _from_torch(value: Any, tensor: Tensor) -> np.ndarray[Any, Any]:
    torch = sys.modules["torch"]
    value = value.detach().resolve_conj().resolve_neg()
    if value.dtype == torch.bfloat16:
        return _from_dlpack(value.view(torch.int16), tensor).view(storage_dtype("bf16"))
    return _from_dlpack(value, tensor)


def _from_python(value: Any, tensor: Tensor) -> np.ndarray[Any, Any]:
    """Numbers and lists have no dtype of their own, so they take the input's, if that keeps every value."""
    try:
        plain = np.asarray(value)
        array = plain.astype(storage_dtype(tensor.dtype))
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"input '{tensor.name}' is no rectangular list of numbers; the model takes {tensor}") from None
    if plain.size and array.dtype.kind in "iub" and not np.array_equal(plain, array):
        raise InputError(f"input '{tensor.name}' has values that {tensor.dtype} cannot hold; the model takes {tensor}")
    return array


def _from_dlpack(value: Any, tensor: Tensor) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.from_dlpack(value)
    except Exception as error:  # exporters raise whatever they like
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"input '{tensor.name}' is a {type(value).__name__} that cannot be read as a CPU array ({reason}); "
            "give a NumPy array or a CPU tensor"
        ) from None
    return array


def _same_bits(found: np.dtype[Any], tensor: Tensor) -> bool:
    """bf16 may come as raw bits, whether or not ml_dtypes is installed."""
    return tensor.dtype == "bf16" and found == np.uint16


def empty(shape: Shape, dtype: str) -> np.ndarray[Any, Any]:
    """Uninitialised memory that starts at a multiple of 64 bytes, so that vector stores never straddle cache lines."""
    kind = storage_dtype(dtype)
    size = kind.itemsize
    for extent in shape:
        size *= extent
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -address(raw) % _ALIGNMENT
    return raw[start : start + size].view(kind).reshape(shape)


def address(array: np.ndarray[Any, Any]) -> int:
    """Where the first element lies."""
    return int(array.__array_interface__["data"][0])


def to_torch(array: np.ndarray[Any, Any], dtype: str) -> Any:
    """A torch tensor over the array's memory. Torch must be loaded."""
    torch = sys.modules["torch"]
    if dtype == "bf16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)
