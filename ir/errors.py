"""Every exception coilc raises on purpose; each carries one sentence that says what, where and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .location import Location


class CoilError(Exception):
    """An error made for a person to read.

    ``message`` is one sentence; ``location``, when known, is the line of the model that caused it and is printed
    once, after an arrow.
    """

    def __init__(self, message: str, location: Location | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.location = location

    def __str__(self) -> str:
        return self.message if not self.location else f"{self.message}\n  --> {self.location}"

    def at(self, location: Location | None) -> CoilError:
        """Attach ``location`` unless an inner frame already knew a better one."""
        self.location = self.location or location
        return self


class TypeRuleError(CoilError):
    """An op was applied to types or attributes that its type rule refuses."""


class ParseError(CoilError):
    """IR text is not in the grammar of ``docs/ir.md``."""


class VerifyError(CoilError):
    """A graph breaks what its stage promises."""


class UnsupportedError(CoilError):
    """A model uses something that coilc cannot represent or lower; lists every such place at once."""

    def __init__(self, what: str, places: Sequence[tuple[str, Location | None]], fix: str = "") -> None:
        lines = [f"  {name}" + (f"  --> {location}" if location else "") for name, location in places]
        super().__init__("\n".join([what, *lines, *([fix] if fix else [])]))
        self.places = tuple(places)


class InputError(CoilError):
    """A value, file or option given by the user does not fit; the message names it and the fix."""
