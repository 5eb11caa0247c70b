"""Running a model piece by piece: a session holds what it remembers, and all sessions share the weights."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .errors import RunError, StateError
from .library import NativeState

Advance = Callable[[str, NativeState, dict[str, Any]], dict[str, Any]]


class Session:
    """One sequence on its way through a model. Used by one thread at a time; sessions are independent of each other.

    ``prefill`` takes any number of elements, ``step`` one; both continue where the last call ended, and together they
    give what the model gives for the whole sequence. A call that fails changes nothing.

    Attributes:
        state: what the native runtime keeps of the sequence.
    """

    def __init__(self, advance: Advance, state: NativeState) -> None:
        self._advance, self.state = advance, state

    def prefill(self, **inputs: Any) -> dict[str, Any]:
        """Run the next piece of the sequence; inputs and results are those of ``Model.run``, without the states."""
        return self.run("prefill", **inputs)

    def step(self, **inputs: Any) -> dict[str, Any]:
        """Run the next element; its axis is there and has extent 1."""
        return self.run("step", **inputs)

    def run(self, entry: str, **inputs: Any) -> dict[str, Any]:
        """Run any entry that has states.

        Raises:
            InputError: an input that does not fit, or an entry without states.
            RunError: other dims than those of the calls before; ``reset`` starts a new sequence.
        """
        return self._advance(entry, self.state, inputs)

    def reset(self) -> None:
        """Start a new sequence."""
        self.state.reset()

    def rewind(self, calls: int = 1) -> None:
        """Undo the last calls. Takes no time; ``Model.session(history=...)`` says how many are kept.

        Raises:
            RunError: fewer are kept.
        """
        self.state.rewind(calls)

    def fork(self) -> Session:
        """Another session that continues from here. One copy of the state; the history stays here."""
        return Session(self._advance, self.state.fork())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, complete or not at all.

        Raises:
            StateError: the file cannot be written.
        """
        place = Path(path)
        try:
            with TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as scratch:
                written = Path(scratch) / "state"
                written.write_bytes(self.state.save())
                os.replace(written, place)
        except OSError as error:
            raise StateError(f"cannot write the state to '{place}': {error.strerror}") from None

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from a saved state, of this model, at any batch size; the history starts anew.

        Raises:
            StateError: the file cannot be read, is damaged, or another model wrote it; the session is then unchanged.
        """
        try:
            data = _read(Path(path))
        except OSError as error:
            raise StateError(f"cannot read the state '{path}': {error.strerror}") from None
        try:
            self.state.load(data)
        except RunError as error:
            raise StateError(f"'{path}' cannot be continued: {error}") from None

    @property
    def memory_bytes(self) -> int:
        """What the state and its history have reserved."""
        return self.state.memory_bytes


def _read(path: Path) -> bytes:
    """A regular file; a pipe or a device might never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is not a file")
    return path.read_bytes()
