"""What the passes did: which rules fired where, and why others declined. Off unless a block asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from coilc.ir import Location, Node, Value


@dataclass(frozen=True)
class Declined:
    """A rule recognised a node and left it alone, for a reason that a person can act on."""

    reason: str


def no(reason: str) -> Declined:
    """What a rule returns when it declines: ``return no("the state is used twice")``."""
    return Declined(reason)


@dataclass(frozen=True)
class Event:
    """One firing (``reason`` is empty) or one refusal of a rule."""

    rule: str
    before: str
    after: str
    reason: str
    location: Location | None

    def __str__(self) -> str:
        outcome = f"-> {self.after}" if not self.reason else f"declined: {self.reason}"
        return f"{self.rule}: {self.before} {outcome}" + (f"  # {self.location}" if self.location else "")


@dataclass
class Trace:
    """The events of a block, in order."""

    events: list[Event] = field(default_factory=list)

    @property
    def fired(self) -> list[Event]:
        return [event for event in self.events if not event.reason]

    @property
    def declined(self) -> list[Event]:
        return [event for event in self.events if event.reason]


_trace: ContextVar[Trace | None] = ContextVar("coilc_trace", default=None)


@contextmanager
def tracing() -> Iterator[Trace]:
    """Record what every rule does inside the block.

    >>> with tracing() as trace:
    ...     simplify(module)
    >>> print(*trace.declined, sep="\\n")
    """
    trace = Trace()
    token = _trace.set(trace)
    try:
        yield trace
    finally:
        _trace.reset(token)


def record_firing(rule: str, node: Node, results: tuple[Value | None, ...]) -> None:
    """Note that ``rule`` replaced ``node``."""
    trace = _trace.get()
    if trace is not None:
        after = ", ".join(_show(v.node) for v in results if v is not None)
        trace.events.append(Event(rule, _show(node), after, "", node.location))


def record_refusal(rule: str, node: Node, reason: str) -> None:
    """Note that ``rule`` looked at ``node`` and declined."""
    trace = _trace.get()
    if trace is not None:
        trace.events.append(Event(rule, _show(node), "", reason, node.location))


def _show(node: Node) -> str:
    name = node.attrs["name"] if node.op.name in ("input", "weight") else node.op.name
    return f"{name}({', '.join(str(v.type) for v in node.inputs)})"
