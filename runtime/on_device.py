"""Arrays that lie on a GPU, torch tensors and anything else with DLPack: used where they are, on the stream of their owner."""

from __future__ import annotations

import ctypes
import math
import sys
from dataclasses import dataclass
from typing import Any

from .arrays import is_torch, torch_dtype
from .errors import InputError
from .signature import Shape, Tensor

CUDA, CUDA_MANAGED = 2, 13  # DLPack's numbers of kinds of memory
DEFAULT_STREAM = 1  # CU_STREAM_LEGACY: the one that other streams wait for
_CODES = {0: "i", 1: "u", 2: "f", 4: "bf", 5: "c"}  # DLPack's kinds of elements, as in the names of our types


@dataclass(frozen=True)
class DeviceArray:
    """A dense array on a GPU.

    Attributes:
        owner: what the memory belongs to.
        device: number of the GPU.
        stream: on which its content is ready, and whoever uses it works.
    """

    owner: Any
    shape: Shape
    address: int
    device: int
    stream: int


def device_of(value: Any) -> int | None:
    """The number of the GPU that a value lies on, or ``None``: it is the host's."""
    if is_torch(value):
        return int(value.device.index) if value.is_cuda else None
    if not hasattr(value, "__dlpack_device__"):
        return None
    kind, number = value.__dlpack_device__()
    return int(number) if kind in (CUDA, CUDA_MANAGED) else None


def to_device_array(value: Any, device: int, tensor: Tensor) -> DeviceArray:
    """One input where it is; torch tensors with another layout are copied once.

    Raises:
        InputError: another dtype, or a layout with gaps.
    """
    return _from_torch(value, device, tensor) if is_torch(value) else _from_dlpack(value, device, tensor)


def _from_torch(value: Any, device: int, tensor: Tensor) -> DeviceArray:
    expected = torch_dtype(tensor.dtype)
    if value.dtype != expected:
        fix = f"convert it with .to({expected})"
        raise InputError(f"input '{tensor.name}' has dtype {value.dtype}, the model takes {tensor}: {fix}")
    dense = value.detach().resolve_conj().resolve_neg().contiguous()
    return DeviceArray(dense, tuple(dense.shape), dense.data_ptr(), device, _torch_stream(device))


def _torch_stream(device: int) -> int:
    return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream) or DEFAULT_STREAM


def empty_on(device: int, shape: Shape, dtype: str) -> DeviceArray:
    """An uninitialised torch tensor on a GPU, ready on torch's current stream. Torch must be loaded."""
    made = sys.modules["torch"].empty(shape, dtype=torch_dtype(dtype), device=f"cuda:{device}")
    return DeviceArray(made, shape, made.data_ptr(), device, _torch_stream(device))


class _DLTensor(ctypes.Structure):
    """The start of a DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(value: Any, device: int, tensor: Tensor) -> DeviceArray:
    capsule = value.__dlpack__(stream=DEFAULT_STREAM)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    shape = tuple(found.shape[i] for i in range(found.ndim))
    dtype = "bool" if found.code == 6 else f"{_CODES.get(found.code, '?')}{found.bits}"
    if dtype != tensor.dtype or found.lanes != 1:
        raise InputError(f"input '{tensor.name}' has elements of type {dtype}, the model takes {tensor}: convert it")
    steps = [math.prod(shape[i + 1 :]) for i in range(found.ndim)]
    if found.strides and any(n > 1 and found.strides[i] != steps[i] for i, n in enumerate(shape)):
        raise InputError(f"input '{tensor.name}' is not dense in memory: give a contiguous copy of it")
    # The capsule owns the memory; nobody has taken it out, so it goes back when the capsule does.
    return DeviceArray(capsule, shape, (found.data or 0) + found.byte_offset, device, DEFAULT_STREAM)
