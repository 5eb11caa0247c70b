"""Where a node comes from in the user's model. Locations travel with nodes and never take part in equality."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Location:
    """A place in the model's source.

    ``scope`` is the path of the module that ran the line (``backbone.layers.3.mixer``). ``source`` is the name of
    the value in the imported program that the node *computes*; only a node that equals that value carries it, which
    is what lets ``compare`` line an artifact up with eager PyTorch.
    """

    file: str
    line: int
    scope: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" in {self.scope}" if self.scope else "")

    def interior(self) -> Location:
        """The location of a helper node created while rewriting: same place, but not the source's value."""
        return replace(self, source="") if self.source else self


_current: ContextVar[Location | None] = ContextVar("coilc_location", default=None)


def current_location() -> Location | None:
    """The location that newly built nodes receive."""
    return _current.get()


@contextmanager
def at(location: Location | None) -> Iterator[None]:
    """Give every node built inside the block this location."""
    token = _current.set(location)
    try:
        yield
    finally:
        _current.reset(token)
