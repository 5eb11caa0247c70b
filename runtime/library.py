"""The native runtime through ctypes: the declarations of ``native/coil.h``, and loading each library exactly once."""

from __future__ import annotations

import ctypes
import os
import weakref
from _ctypes import dlclose
from collections import deque
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from threading import Lock

from .errors import ArtifactError, InputError, RunError

ABI_VERSION = 4
_ARGUMENT = 1  # the status COIL_ARGUMENT
TraceFunction = ctypes.CFUNCTYPE(c_int, c_void_p, c_int32, POINTER(c_void_p), c_int32)
_Pointers = Sequence[int]


class _Options(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("weights_path", c_char_p),
        ("weights", c_void_p),
        ("weights_bytes", c_uint64),
        ("memory", c_void_p),
        ("device", c_int32),
        ("no_graphs", c_int32),
    )


class Library:
    """A loaded ``code.so``. Loading the same file again gives the same object; a file written anew is another library.

    dlopen knows a library by the name it was opened with, so a recompiled artifact at the same path would silently be
    the old one. The name used here is the descriptor of the open file, which stays open as long as the library is
    loaded; two files never share it.
    """

    _loaded: dict[tuple[int, int], Library] = {}
    _released: deque[Library] = deque()
    _lock = Lock()

    @staticmethod
    def load(path: Path) -> Library:
        """Load a library, or find it loaded; ``release`` it once per ``load``.

        Raises:
            ArtifactError: the system's loader refuses the file.
        """
        with Library._lock:
            Library._unload_released()
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(descriptor)
            key = (status.st_dev, status.st_ino)
            if key in Library._loaded:
                os.close(descriptor)
            else:
                Library._loaded[key] = Library(path, descriptor, key)
            Library._loaded[key].users += 1
            return Library._loaded[key]

    def __init__(self, path: Path, descriptor: int, key: tuple[int, int]) -> None:
        self.descriptor, self.key, self.users = descriptor, key, 0
        try:
            self.native = ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        except OSError as error:
            os.close(descriptor)
            raise ArtifactError(f"'{path}' cannot be loaded: {error}") from None
        found = self.native.coil_abi_version()
        if found != ABI_VERSION:
            raise ArtifactError(f"'{path}' has ABI {found}, this coilc needs {ABI_VERSION}: recompile the artifact")
        _declare(self.native)

    def release(self) -> None:
        """Give back one ``load``. Called by finalizers, which may run anywhere, so it never waits for the lock."""
        Library._released.append(self)
        if Library._lock.acquire(blocking=False):
            try:
                Library._unload_released()
            finally:
                Library._lock.release()

    @staticmethod
    def _unload_released() -> None:
        while Library._released:
            library = Library._released.popleft()
            library.users -= 1
            if not library.users:
                del Library._loaded[library.key]
                dlclose(library.native._handle)
                os.close(library.descriptor)

    def message(self) -> str:
        """The sentence about this thread's last failure."""
        return str(self.native.coil_error_message().decode(errors="replace"))

    def check(self, code: int) -> None:
        """Turn a status of the C API into an exception."""
        if code:
            raise RunError(self.message())


def _declare(native: ctypes.CDLL) -> None:
    pointers = POINTER(c_void_p)
    signatures: dict[str, tuple[object, list[object]]] = {
        "coil_abi_version": (c_uint32, []),
        "coil_error_message": (c_char_p, []),
        "coil_open": (c_int, [POINTER(_Options), pointers]),
        "coil_close": (None, [c_void_p]),
        "coil_session_open": (c_int, [c_void_p, c_int32, pointers]),
        "coil_session_close": (None, [c_void_p]),
        "coil_session_bind": (c_int, [c_void_p, c_int32, POINTER(c_int64)]),
        "coil_session_memory": (c_uint64, [c_void_p]),
        "coil_session_stream": (c_int, [c_void_p, c_void_p]),
        "coil_session_run": (c_int, [c_void_p, c_int32, pointers, pointers]),
        "coil_session_trace": (c_int, [c_void_p, c_int32, pointers, pointers, TraceFunction, c_void_p]),
        "coil_state_open": (c_int, [c_void_p, c_int32, pointers]),
        "coil_state_close": (None, [c_void_p]),
        "coil_state_reset": (c_int, [c_void_p]),
        "coil_state_rewind": (c_int, [c_void_p, c_int32]),
        "coil_state_fork": (c_int, [c_void_p, pointers]),
        "coil_state_save": (c_int, [c_void_p, c_void_p, POINTER(c_uint64)]),
        "coil_state_load": (c_int, [c_void_p, c_char_p, c_uint64]),
        "coil_state_memory": (c_uint64, [c_void_p]),
        "coil_session_advance": (c_int, [c_void_p, c_int32, c_void_p, pointers, pointers]),
        "coil_session_advance_all": (c_int, [c_void_p, c_int32, pointers, c_int32, c_void_p, pointers, pointers]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments


class NativeModel:
    """An open model: a library and its mapped weights."""

    def __init__(self, library: Path, weights: Path, device: int = 0) -> None:
        self.library = Library.load(library)
        handle = c_void_p()
        options = _Options(ctypes.sizeof(_Options), os.fsencode(weights), None, 0, None, device, 0)
        code = self.library.native.coil_open(byref(options), byref(handle))
        # Not at exit: a daemon thread may still be running, and the process gives everything back anyway.
        weakref.finalize(self, _close_model, self.library, handle).atexit = False
        if code:
            raise ArtifactError(self.library.message())
        self.handle = handle


def _close_model(library: Library, handle: c_void_p) -> None:
    library.native.coil_close(handle)
    library.release()


class NativeSession:
    """Threads, arena and bound entries. Used by one thread at a time."""

    def __init__(self, model: NativeModel, threads: int) -> None:
        self.library = model.library
        handle = c_void_p()
        self.library.check(self.library.native.coil_session_open(model.handle, threads, byref(handle)))
        self.handle = handle
        self.bound: dict[int, tuple[int, ...]] = {}
        self.stream = 0
        weakref.finalize(self, _close_session, model, handle).atexit = False  # and keeps the model until then

    @property
    def memory_bytes(self) -> int:
        """What the session has reserved: the arena and the scratch of every thread."""
        return int(self.library.native.coil_session_memory(self.handle))

    def bind(self, entry: int, symbols: tuple[int, ...]) -> None:
        """Fix the symbols of an entry, unless they are what they were.

        Raises:
            InputError: values outside their range, or that do not fit together.
            RunError: no memory for an arena of that size.
        """
        if self.bound.get(entry) != symbols:
            self.bound.pop(entry, None)
            values = (c_int64 * len(symbols))(*symbols)
            code = self.library.native.coil_session_bind(self.handle, entry, values)
            if code == _ARGUMENT:
                raise InputError(self.library.message())
            self.library.check(code)
            self.bound[entry] = symbols

    def use_stream(self, stream: int) -> None:
        """Run on a stream of a GPU from now on, or on the session's own (0), which is what happens on a CPU."""
        if self.stream != stream:
            self.library.check(self.library.native.coil_session_stream(self.handle, stream))
            self.stream = stream

    def run(self, entry: int, inputs: _Pointers, outputs: _Pointers) -> None:
        """Run a bound entry on addresses."""
        native = self.library.native
        self.library.check(native.coil_session_run(self.handle, entry, _array(inputs), _array(outputs)))

    def advance(self, entry: int, state: NativeState, inputs: _Pointers, outputs: _Pointers) -> None:
        """Run a bound entry that has states; the addresses of states are ignored."""
        native, arrays = self.library.native, (_array(inputs), _array(outputs))
        self.library.check(native.coil_session_advance(self.handle, entry, state.handle, *arrays))

    def advance_all(
        self, entry: int, states: Sequence[NativeState], batch: NativeState, inputs: _Pointers, outputs: _Pointers
    ) -> None:
        """Run a bound entry on the rows of several states; ``batch`` is room for all of them together."""
        native, arrays = self.library.native, (_array(inputs), _array(outputs))
        handles = (c_void_p * len(states))(*(state.handle for state in states))
        code = native.coil_session_advance_all(self.handle, entry, handles, len(states), batch.handle, *arrays)
        self.library.check(code)

    def trace(self, entry: int, inputs: _Pointers, outputs: _Pointers, callback: object) -> None:
        """Run a bound entry and call ``callback(user, call, results, count)`` after each call."""
        native, arrays = self.library.native, (_array(inputs), _array(outputs))
        self.library.check(native.coil_session_trace(self.handle, entry, *arrays, callback, None))


def _close_session(model: NativeModel, handle: c_void_p) -> None:
    model.library.native.coil_session_close(handle)


class NativeState:
    """What a sequence leaves behind for its next piece. Used by one thread at a time."""

    def __init__(self, model: NativeModel, handle: c_void_p) -> None:
        self.model, self.library, self.handle = model, model.library, handle
        weakref.finalize(self, _close_state, model, handle).atexit = False  # and keeps the model until then

    @staticmethod
    def open(model: NativeModel, history: int) -> NativeState:
        """A state at the start of a sequence; the last ``history`` calls can be undone."""
        handle = c_void_p()
        model.library.check(model.library.native.coil_state_open(model.handle, history, byref(handle)))
        return NativeState(model, handle)

    @property
    def memory_bytes(self) -> int:
        """What the state and its history have reserved."""
        return int(self.library.native.coil_state_memory(self.handle))

    def reset(self) -> None:
        """Back to the start of a sequence."""
        self.library.check(self.library.native.coil_state_reset(self.handle))

    def rewind(self, calls: int) -> None:
        """Undo the last calls."""
        self.library.check(self.library.native.coil_state_rewind(self.handle, calls))

    def fork(self) -> NativeState:
        """A second state that continues from here."""
        handle = c_void_p()
        self.library.check(self.library.native.coil_state_fork(self.handle, byref(handle)))
        return NativeState(self.model, handle)

    def save(self) -> bytes:
        """The state as bytes."""
        size = c_uint64()
        self.library.check(self.library.native.coil_state_save(self.handle, None, byref(size)))
        memory = ctypes.create_string_buffer(size.value)
        self.library.check(self.library.native.coil_state_save(self.handle, memory, byref(size)))
        return memory.raw

    def load(self, data: bytes) -> None:
        """Continue a saved state."""
        self.library.check(self.library.native.coil_state_load(self.handle, data, len(data)))


def _close_state(model: NativeModel, handle: c_void_p) -> None:
    model.library.native.coil_state_close(handle)


def _array(addresses: _Pointers) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(addresses))(*addresses)
