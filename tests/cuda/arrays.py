"""Arrays on the emulated GPU, as any library with DLPack would have them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from emulation.gpu import EmulatedGPU


class _ManagedTensor(ctypes.Structure):
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
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


def call(gpu: EmulatedGPU, name: str, *arguments: Any) -> None:
    """A function of the driver, in the context of device 0."""
    assert getattr(gpu.native, name)(*arguments) == 0, name


class Context:
    """The primary context of a device, current while the block runs."""

    def __init__(self, gpu: EmulatedGPU, device: int = 0) -> None:
        self.gpu, self.device, self.handle = gpu, device, ctypes.c_void_p()

    def __enter__(self) -> Context:
        call(self.gpu, "cuInit", 0)
        call(self.gpu, "cuDevicePrimaryCtxRetain", ctypes.byref(self.handle), self.device)
        call(self.gpu, "cuCtxPushCurrent_v2", self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        call(self.gpu, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        call(self.gpu, "cuDevicePrimaryCtxRelease_v2", self.device)


class GPUArray:
    """A float32 array on the GPU; ``offset`` bytes from where memory was reserved, with steps of ``stride`` rows."""

    def __init__(self, gpu: EmulatedGPU, content: np.ndarray, offset: int = 0, device: int = 0) -> None:
        self.gpu, self.content, self.offset, self.device = gpu, content, offset, device
        address = ctypes.c_uint64()
        call(gpu, "cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(content.nbytes + offset + 1))
        self.memory = address.value
        start, source = ctypes.c_uint64(self.memory + offset), content.ctypes.data_as(ctypes.c_void_p)
        call(gpu, "cuMemcpyHtoDAsync_v2", start, source, ctypes.c_size_t(content.nbytes), None)
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(self, stream: int | None = None) -> object:
        self.streams.append(stream or 0)
        self.dims = (ctypes.c_int64 * self.content.ndim)(*self.content.shape)
        strides = [step // self.content.itemsize for step in self.content.strides]
        self.steps = (ctypes.c_int64 * self.content.ndim)(*strides)
        self.tensor = _ManagedTensor(
            self.memory,
            2,
            self.device,
            self.content.ndim,
            2,
            8 * self.content.itemsize,
            1,
            self.dims,
            self.steps,
            self.offset,
        )
        new: Callable[..., object] = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]  # type: ignore[attr-defined]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)
