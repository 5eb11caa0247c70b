"""What a repeated step costs the host, on a GPU: the time until a call returns, with every operand on the device.

    python benchmarks/gpu/host_cost.py model.coil --entry step --dim B=1

NumPy, the artifact and the driver are all it needs. Calls are issued a few at a time, so that the device's queue never
fills, and the host then waits for them outside of the measurement. Prints microseconds as JSON: the median and the extremes
of the rounds' means, and the same for calls whose operands are on the host, which wait for their results.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from coilc.runtime import load
from coilc.runtime.arrays import storage_dtype
from coilc.runtime.library import NativeSession, NativeState
from coilc.runtime.signature import Entry

WARM, ROUNDS, CALLS = 8, 50, 20


class Driver:
    """Device memory, for as long as the process runs."""

    def __init__(self, device: int) -> None:
        self.native, self.context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
        self.check(self.native.cuInit(0))
        self.check(self.native.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), device))
        self.check(self.native.cuCtxPushCurrent_v2(self.context))

    def check(self, code: int) -> None:
        if code:
            raise SystemExit(f"the driver answered {code}")

    def zeros(self, nbytes: int) -> int:
        address = ctypes.c_uint64()
        self.check(self.native.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1))))
        self.check(self.native.cuMemsetD8Async(address, 0, ctypes.c_size_t(max(nbytes, 1)), None))
        self.check(self.native.cuStreamSynchronize(None))
        return address.value


def sizes(entry: Entry, dims: dict[str, int]) -> tuple[list[int], list[int]]:
    """Bytes of the inputs and of the outputs that are no states, 0 for the others."""
    states = entry.in_session
    taken = {tensor.name for tensor in (*states.inputs, *states.outputs)}

    def of(tensors: tuple) -> list[int]:
        shapes = [(t, t.shape(dims)) for t in tensors]
        return [int(np.prod(s)) * storage_dtype(t.dtype).itemsize if t.name in taken else 0 for t, s in shapes]

    return of(entry.inputs), of(entry.outputs)


def measure(call: Callable[[], None], wait: Callable[[], None]) -> dict[str, float]:
    """Microseconds per call."""
    for _ in range(WARM):
        call()
    wait()
    means = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        means.append((time.perf_counter() - start) / CALLS * 1e6)
        wait()
    return {"median": statistics.median(means), "least": min(means), "most": max(means)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--entry", default="step")
    parser.add_argument("--dim", action="append", default=[], help="NAME=NUMBER")
    parser.add_argument("--device", type=int, default=0)
    asked = parser.parse_args()
    dims = {name: int(number) for name, number in (pair.split("=") for pair in asked.dim)}
    model = load(asked.artifact, threads=1, device=asked.device)
    entry, driver = model._entries[asked.entry], Driver(asked.device)
    session = NativeSession(model._native, 1)
    session.bind(entry.index, tuple(dims[symbol.name] for symbol in entry.symbols))
    found = {}
    for place in ("device", "host"):
        state = NativeState.open(model._native, 1) if entry.state_count else None
        held = [np.zeros(max(n, 1), np.uint8) for side in sizes(entry, dims) for n in side]
        address = [a.ctypes.data for a in held] if place == "host" else [driver.zeros(a.nbytes) for a in held]
        count = len(entry.inputs)
        arrays = [(ctypes.c_void_p * len(side))(*side) for side in (address[:count], address[count:])]
        found[place] = measure(*calls_of(session, entry.index, state, arrays))
    print(json.dumps(found))


def calls_of(
    session: NativeSession, entry: int, state: NativeState | None, arrays: list[ctypes.Array[ctypes.c_void_p]]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One run, and waiting for it at the start of a new sequence."""
    library, native, handle = session.library, session.library.native, session.handle

    def call() -> None:
        if state is None:
            library.check(native.coil_session_run(handle, entry, *arrays))
        else:
            library.check(native.coil_session_advance(handle, entry, state.handle, *arrays))

    def wait() -> None:
        library.check(native.coil_session_wait(handle))
        if state is not None:
            state.reset()

    return call, wait


if __name__ == "__main__":
    main()
