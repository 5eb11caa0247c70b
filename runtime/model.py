"""A compiled model in Python: arrays in, arrays out. NumPy and the artifact are all it needs."""

from __future__ import annotations

import copy
import ctypes
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import address, empty, is_torch, storage_dtype, to_numpy, to_torch
from .artifact import LIBRARY, WEIGHTS, Artifact, read_artifact
from .errors import InputError, RunError
from .library import NativeModel, NativeSession, NativeState, TraceFunction
from .on_device import DeviceArray, device_of, empty_on, to_device_array
from .session import Session
from .signature import Binding, Entry, Tensor, suggestion

_Array = np.ndarray[Any, Any]
_Run = Callable[[NativeSession, int, list[int], list[int]], None]  # an entry on addresses


def load(
    path: str | os.PathLike[str], threads: int | None = None, verify: bool = True, device: int | None = None
) -> Model:
    """Open an artifact.

    Args:
        path: the folder that ``coilc compile`` wrote.
        threads: how many threads a call uses; by default ``COILC_THREADS``, else every CPU this process may use. A model
            for a GPU uses none of them.
        verify: compare the sha256 of every file before its code is loaded (about 1 s per GB of weights).
        device: which GPU a model for one runs on, by default the first.

    Raises:
        ArtifactError: the artifact is missing, damaged, or made for another machine or a newer coilc; a model for a GPU
            finds no driver, no device, or one that does not fit.
        InputError: ``threads`` is not a positive number, or ``device`` is given for a model that runs on the CPU.
    """
    return Model(read_artifact(path, verify), _thread_count(threads), device)


def _thread_count(threads: int | None) -> int:
    if threads is None:
        text = os.environ.get("COILC_THREADS") or str(len(os.sched_getaffinity(0)))
        threads = int(text) if text.isdecimal() else 0
    if not 1 <= threads <= 1024:
        raise InputError(f"the number of threads must be between 1 and 1024, not {threads}")
    return threads


@dataclass(frozen=True)
class Traced:
    """One intermediate result, seen while a model runs.

    Attributes:
        call: position in the plan.
        kernel: name of the kernel that computed it; empty for a copy to an output.
        result: its type, and the name (``source``) and module path (``scope``) of the model's value that it equals.
        array: the values, valid only during the callback; copy what you keep.
    """

    call: int
    kernel: str
    result: Tensor
    array: _Array


@dataclass(frozen=True)
class _Request:
    """A checked call: everything the native runtime needs, and what keeps its memory alive."""

    entry: Entry
    binding: Binding
    inputs: list[_Array | DeviceArray]
    outputs: list[_Array | DeviceArray]

    @property
    def addresses(self) -> tuple[list[int], list[int]]:
        return list(map(_address, self.inputs)), list(map(_address, self.outputs))

    @property
    def stream(self) -> int:
        """Of a GPU, where whoever owns its arrays goes on; 0: nobody does."""
        return next((a.stream for a in (*self.outputs, *self.inputs) if isinstance(a, DeviceArray)), 0)


def _address(array: _Array | DeviceArray) -> int:
    return array.address if isinstance(array, DeviceArray) else address(array)


class Model:
    """An open artifact. Calls from several threads run at the same time, each on a session of its own."""

    def __init__(self, artifact: Artifact, threads: int, device: int | None = None) -> None:
        self.path, self.threads = artifact.path, threads
        self._on_device = artifact.manifest["target"].get("kind", "cpu") != "cpu"
        if device is not None and not self._on_device:
            raise InputError(f"'{self.path}' runs on the CPU, so there is no device {device} for it; leave it out")
        self._manifest = artifact.manifest
        rows = artifact.manifest["entries"].items()
        self._entries = {name: Entry(i, name, row) for i, (name, row) in enumerate(rows)}
        self._native = NativeModel(artifact.path / LIBRARY, artifact.path / WEIGHTS, device or 0)
        self._idle: list[NativeSession] = []
        self._batches: list[NativeState] = []  # room of ``step_all`` that nobody uses now

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Run the entry ``main``, or the only one there is; see ``run``."""
        return self.run(self._default_entry(), inputs)

    def run(self, entry: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one entry.

        Args:
            inputs: arrays by name: NumPy, torch on the CPU, anything with DLPack, or Python numbers. Dense memory is
                used where it is, other layouts are copied once. A model for a GPU takes arrays of that GPU too.

        Returns:
            New arrays by output name; torch tensors if a torch tensor came in. If one on a GPU did, they are there, and
            ready on torch's current stream.

        Raises:
            InputError: a name, dtype, rank or extent that does not fit.
            RunError: memory for these dims could not be reserved.
        """
        request = self._request(entry, inputs)
        with self._session(request) as session:
            session.run(request.entry.index, *request.addresses)
        return _results(request, inputs)

    def trace(
        self, inputs: Mapping[str, Any], callback: Callable[[Traced], None], entry: str | None = None
    ) -> dict[str, Any]:
        """Run one entry and show every intermediate result to ``callback``, in order; otherwise like ``run``."""
        request = self._request(entry or self._default_entry(), inputs)
        calls, raised = request.entry.calls, []

        def observe(_: Any, index: int, addresses: Any, count: int) -> int:
            try:
                for result, start in zip(calls[index].results, addresses[:count], strict=True):
                    array = _array_at(start, result, request.binding.symbols)
                    callback(Traced(index, calls[index].kernel, result, array))
            except BaseException as error:  # an exception cannot pass through C
                raised.append(error)
            return len(raised)

        with self._session(request) as session:
            try:
                session.trace(request.entry.index, *request.addresses, TraceFunction(observe))
            except RunError:
                if raised:
                    raise raised[0] from None
                raise
        return _results(request, inputs)

    def session(self, history: int = 1) -> Session:
        """The start of a sequence that is run piece by piece; see ``Session``.

        Args:
            history: how many calls ``rewind`` can undo; each costs the memory of one state.

        Raises:
            InputError: the artifact has no entries with states, or ``history`` is not positive.
        """
        stateful = [entry for entry in self._entries.values() if entry.state_count]
        if not stateful:
            raise InputError(
                f"'{self.path}' keeps no state between calls; compile it with the entries 'prefill' and 'step'"
            )
        if not 1 <= history <= 1 << 20:
            raise InputError(f"the history must be between 1 and {1 << 20} calls, not {history}")
        return Session(self._advance, NativeState.open(self._native, history))

    def step_all(self, sessions: Sequence[Session], **inputs: Any) -> dict[str, Any]:
        """Run the next element of several sequences in one call, so that the weights are read once for all of them.

        Each session has been prefilled. The states are copied into one batch and back;
        a model whose caches are long pays for their copies.

        Args:
            sessions: one or more of this model, each once. A session may itself have several rows.
            inputs: as for ``step``, with the rows of the first session, then those of the second, and so on.

        Returns:
            Outputs with the rows in the same order.

        Raises:
            InputError: an input that does not fit.
            RunError: the rows are not those of the sessions, a session is at its start, or the sequences must be equally
                long because a position is one for all rows.
        """
        if not sessions:
            raise InputError("step_all needs at least one session")
        states = [session.state for session in sessions]
        batch = self._batches.pop() if self._batches else NativeState.open(self._native, 1)

        def run(native: NativeSession, entry: int, given: list[int], wanted: list[int]) -> None:
            native.advance_all(entry, states, batch, given, wanted)

        try:
            return self._with_states("step", inputs, run)
        finally:
            self._batches.append(batch)

    def describe(self) -> dict[str, Any]:
        """The manifest: entries with their inputs, outputs and symbols, target, sizes, options, versions."""
        return copy.deepcopy(dict(self._manifest))

    @property
    def memory_bytes(self) -> int:
        """What idle sessions have reserved besides the weights: arenas and scratch."""
        return sum(session.memory_bytes for session in self._idle)

    def _default_entry(self) -> str:
        return next(iter(self._entries)) if len(self._entries) == 1 else "main"

    def _advance(self, name: str, state: NativeState, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one entry on a state that the native runtime keeps."""

        def run(native: NativeSession, entry: int, given: list[int], wanted: list[int]) -> None:
            native.advance(entry, state, given, wanted)

        return self._with_states(name, inputs, run)

    def _with_states(self, name: str, inputs: Mapping[str, Any], run: _Run) -> dict[str, Any]:
        entry = self._entry(name)
        if not entry.state_count:
            raise InputError(f"entry '{name}' keeps no state; run it with the model instead of a session")
        request = self._checked(entry.in_session, inputs)
        given, wanted = request.addresses
        outputs = [0] * len(entry.outputs)
        for place, start in zip(entry.results, wanted, strict=True):
            outputs[place] = start
        with self._session(request) as session:
            run(session, entry.index, [*given, *[0] * entry.state_count], outputs)
        return _results(request, inputs)

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise InputError(f"'{self.path}' has no entry '{name}'{suggestion(name, self._entries)}")
        return entry

    def _request(self, name: str, given: Mapping[str, Any]) -> _Request:
        return self._checked(self._entry(name), given)

    def _checked(self, entry: Entry, given: Mapping[str, Any]) -> _Request:
        values = entry.order(given)
        inputs = [self._operand(value, tensor) for value, tensor in zip(values, entry.inputs, strict=True)]
        binding = entry.bind([array.shape for array in inputs])
        device = next((a.device for a in inputs if isinstance(a, DeviceArray) and is_torch(a.owner)), None)
        outputs = [
            empty(shape, t.dtype) if device is None else empty_on(device, shape, t.dtype)
            for shape, t in zip(binding.outputs, entry.outputs, strict=True)
        ]
        return _Request(entry, binding, inputs, outputs)

    def _operand(self, value: Any, tensor: Tensor) -> _Array | DeviceArray:
        device = device_of(value) if self._on_device else None
        return to_numpy(value, tensor) if device is None else to_device_array(value, device, tensor)

    @contextmanager
    def _session(self, request: _Request) -> Iterator[NativeSession]:
        """An idle session, or a new one when all are in use, bound to the request's dims."""
        try:
            session = self._idle.pop()
        except IndexError:
            session = NativeSession(self._native, self.threads)
        try:
            session.bind(request.entry.index, request.binding.values)
            session.use_stream(request.stream)
            yield session
        finally:
            self._idle.append(session)


def _results(request: _Request, given: Mapping[str, Any]) -> dict[str, Any]:
    torch = any(map(is_torch, given.values()))
    results = {}
    for tensor, array in zip(request.entry.outputs, request.outputs, strict=True):
        if isinstance(array, DeviceArray):
            results[tensor.name] = array.owner
        else:
            results[tensor.name] = to_torch(array, tensor.dtype) if torch else array
    return results


def _array_at(start: int, tensor: Tensor, symbols: Mapping[str, int]) -> _Array:
    """The values of a traced result, where they lie."""
    shape, dtype = tensor.shape(symbols), storage_dtype(tensor.dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = memoryview((ctypes.c_uint8 * size).from_address(start))
    return np.frombuffer(memory, np.uint8).view(dtype).reshape(shape)
