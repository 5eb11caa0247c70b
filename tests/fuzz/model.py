"""The model that is fuzzed: every kind of table that a plan can have, over the kernels of ``kernels.c``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coilc.codegen.emit_plan import emit_plan
from coilc.codegen.plan import COPY, UNBOUNDED, Call, EntryPlan, Plan, Ref, Result, Room, Symbol
from coilc.codegen.weights import plan_layout, write_weights
from coilc.ir import Graph
from coilc.ir.dims import Dim, symbol
from coilc.ir.text import parse_type

B, L, SCRATCH_BYTES, ROOM = symbol("B"), symbol("L"), 256, 16
X, FLAT = parse_type("f32[B, 2*L + 1, 4]"), parse_type("i64[B*L]")
TOKENS, LOGITS, STATE, CLOCK, CACHE = map(
    parse_type, ("i64[B, L]", "f32[B, L, 4]", "f32[B, 4]", "i64[()]", f"f32[B, {ROOM}, 4]")
)


def _call(kernel: str, args: tuple[Ref, ...], dims: tuple[Dim, ...], results: int) -> Call:
    return Call(kernel, args, dims, (Result(STATE, None),) * results)


def _main() -> EntryPlan:
    """``y = x*w`` through a slot, and ``z``, a copy of it; ``flat`` is only looked at."""
    x, flat, w, slot, y, z = Ref("input", 0), Ref("input", 1), Ref("weight", 0), Ref("slot", 0), *_outputs(2)
    calls = (
        _call("look", (flat, slot), (B, L), 1),
        _call("scale", (x, w, y), (B, L), 1),
        _call(COPY, (y, z), (X.bytes,), 1),
    )
    symbols = (Symbol("B", 1, 8, 0, 0), Symbol("L", 0, UNBOUNDED, 0, 1, 2, 1))
    slots = ((B * L * 8, B * 4),)
    return EntryPlan("main", symbols, (("x", X), ("flat", FLAT)), (("y", X), ("z", X)), slots, calls)


def _outputs(count: int) -> tuple[Ref, ...]:
    return tuple(Ref("output", i) for i in range(count))


def _piece(name: str, low: int, high: int) -> EntryPlan:
    """Counts how often each of four tokens came, and all of them; keeps what came in a cache."""
    tokens, total, clock, cache = (Ref("input", i) for i in range(4))
    y, after, count, kept = _outputs(4)
    calls = (
        _call(COPY, (cache, kept), (CACHE.bytes,), 1),
        _call("piece", (tokens, total, clock, y, after, count, kept), (B, L), 4),
    )
    symbols = (Symbol("B", 1, UNBOUNDED, 0, 0), Symbol("L", low, high, 0, 1))
    states = (("total", STATE), ("clock", CLOCK), ("cache", CACHE))
    inputs, outputs = (("tokens", TOKENS), *states), (("y", LOGITS), *((f"{n}'", t) for n, t in states))
    links = ((1, 1), (2, 2), (3, 3))
    return EntryPlan(name, symbols, inputs, outputs, (), calls, links, frozenset({2}), Room(1, ROOM, L))


def write(folder: Path) -> None:
    """``plan.c`` and ``weights`` in ``folder``."""
    kernels = dict.fromkeys(("look", "scale", "piece"), Graph("by_hand", (), ()))
    entries = (_main(), _piece("prefill", 0, UNBOUNDED), _piece("step", 1, 1))
    plan = Plan(entries, {"w": np.arange(4, dtype=np.float32), "v": np.ones(3, np.float32)}, kernels)
    layout = plan_layout(plan.weights)
    (folder / "plan.c").write_text(emit_plan(plan, layout, SCRATCH_BYTES, "0123456789abcdef" * 4))
    write_weights(folder / "weights", plan.weights, layout)
