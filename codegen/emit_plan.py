"""The plan as a C file: constant tables, and one function per entry that evaluates its dims and sizes.

The tables are those of ``runtime/native/plan.h``. Arithmetic is checked: an overflow is reported, never computed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

from coilc.ir import Dim, SymDim, TensorType
from coilc.ir.dims import Atom

from .plan import COPY, Call, EntryPlan, Plan
from .weights import Layout

if TYPE_CHECKING:
    from .build import Launch
    from .target import Device

_KINDS = {"input": "PLAN_INPUT", "output": "PLAN_OUTPUT", "weight": "PLAN_WEIGHT", "slot": "PLAN_SLOT"}
DEVICE_CODE = "coil_device_code"  # the symbol; with _end behind it where it ends
_TAGS = {
    **{f"blockIdx.{axis}": f"TAG_GRID_{axis.upper()}" for axis in "xyz"},
    **{f"threadIdx.{axis}": f"TAG_BLOCK_{axis.upper()}" for axis in "xyz"},
    **{f"clusterCtaIdx.{axis}": f"TAG_CLUSTER_{axis.upper()}" for axis in "xyz"},
    "tirx.use_dyn_shared_memory": "TAG_SHARED",
    "tirx.use_cooperative_launch": "TAG_COOPERATIVE",
    "tirx.use_programtic_dependent_launch": "TAG_DEPENDENT",
}  # TVM's names
_ABI_NAME = "__tvm_ffi_{}".format  # how TVM names the packed function of a kernel


def emit_plan(
    plan: Plan,
    layout: Layout,
    scratch_bytes: int,
    identity: str = "0" * 64,
    device: Device | None = None,
    launches: Sequence[Launch] = (),
    driver: int = 0,
) -> str:
    """C source of the plan.

    Args:
        layout: where each weight lies in the weights file.
        scratch_bytes: what one thread needs while it runs any kernel.
        identity: sha256 of what a saved state depends on.
        device: what the kernels launch their other half on, if anything.
        launches: those halves.
        driver: the oldest driver that loads them.
    """
    source = _Source(['#include "plan.h"\n'])
    source.parts += [f"extern kernel_function {_ABI_NAME(name)};" for name in plan.kernels]
    rows = [_Entry(entry, str(i), source).rows() for i, entry in enumerate(plan.entries)]
    entries = source.table("coil_entry", "entries", [public for public, _ in rows])
    plans = source.table("plan_entry", "plans", [private for _, private in rows])
    spans = [_row(*layout.spans[name]) for name in plan.weights]
    weights = source.table("plan_weight", "weights", spans)
    size = layout.total_bytes if spans else 0
    memory = (f"{size}ULL", f"{scratch_bytes}ULL")
    states = max((len(entry.states) for entry in plan.entries), default=0)
    description = _row("COIL_ABI_VERSION", len(rows), entries, *memory, states, _string(identity))
    place = _device(device, launches, driver, source) if device else _row("NULL", 0, 0, 0, 0, "NULL", "NULL")
    source.parts.append(f"const plan coil_plan = {_row(description, plans, weights, len(spans), place)};\n")
    return "\n".join(source.parts)


def _device(device: Device, launches: Sequence[Launch], driver: int, source: _Source) -> str:
    rows = []
    for i, launch in enumerate(launches):
        tags = source.table("uint8_t", f"tags_{i}", [_TAGS[tag] for tag in launch.tags])
        maps = f"{sum(1 << i for i in launch.maps)}ULL"
        rows.append(_row(_string(launch.name), launch.params, len(launch.tags), tags, maps))
    code = ("NULL", "NULL")
    if rows:
        code = (DEVICE_CODE, f"{DEVICE_CODE}_end")
        source.parts.append(f"extern const unsigned char {DEVICE_CODE}[], {DEVICE_CODE}_end[];")
    table = source.table("plan_launch", "launches", rows)
    return _row(table, len(rows), device.capability, int(device.exact), driver, *code)


class _Source:
    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def table(self, ctype: str, name: str, rows: Sequence[str]) -> str:
        """Define a constant array and return the expression that names it; C has no empty arrays."""
        if not rows:
            return "NULL"
        self.parts.append(f"static const {ctype} {name}[] = {{\n    " + ",\n    ".join(rows) + "};\n")
        return name


class _Quantities:
    """Numbers every distinct dim and size of an entry; ``of(a, b)`` is the larger of the two."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = {name: f"s[{i}]" for i, name in enumerate(symbols)}
        self.index: dict[tuple[Dim, ...], int] = {}

    def of(self, *alternatives: Dim) -> int:
        return self.index.setdefault(alternatives, len(self.index))

    def function(self, name: str) -> str:
        lines = [f"q[{i}] = {reduce(_call('plan_max'), map(self.expression, key))};" for key, i in self.index.items()]
        body = "\n    ".join(["int bad = 0;", "(void)s, (void)q;", *lines, "return bad;"])
        return f"static int {name}(const int64_t *s, int64_t *q) {{\n    {body}\n}}\n"

    def expression(self, dim: Dim) -> str:
        if not isinstance(dim, SymDim):
            return f"INT64_C({dim})"
        terms = (reduce(_call("plan_mul", "&bad"), map(self.atom, m), f"INT64_C({f})") for m, f in dim.terms)
        return reduce(_call("plan_add", "&bad"), terms)

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, str):
            return self.symbols[atom]
        return f"plan_div({self.expression(atom.numerator)}, {atom.divisor})"


def _call(function: str, *first: str):  # type: ignore[no-untyped-def]
    return lambda a, b: f"{function}({', '.join((*first, a, b))})"


class _Entry:
    def __init__(self, entry: EntryPlan, suffix: str, source: _Source) -> None:
        self.entry, self.suffix, self.source = entry, suffix, source
        self.quantities = _Quantities([s.name for s in entry.symbols])
        self.args: list[str] = []

    def table(self, ctype: str, name: str, rows: Sequence[str]) -> str:
        return self.source.table(ctype, f"{name}_{self.suffix}", rows)

    def rows(self) -> tuple[str, str]:
        """Emit the entry's tables; returns its rows of the public and of the private table of entries."""
        entry, count = self.entry, self.quantities.index.__len__
        symbols = [
            _row(_string(s.name), s.low, f"INT64_C({s.high})", s.input, s.axis, s.scale, s.offset)
            for s in entry.symbols
        ]
        calls = self.table("plan_call", "calls", [self.call(call) for call in entry.calls])
        slots = self.table("int32_t", "slots", [str(self.quantities.of(*sizes)) for sizes in entry.slots])
        dims = [self.dims("input", entry.inputs), self.dims("output", entry.outputs)]
        args = self.table("plan_arg", "args", self.args)
        room, rules = self.room(), self.table("plan_rule", "rules", [self.rule(dim) for dim in entry.required])
        public = _row(
            _string(entry.name), len(symbols), len(entry.inputs), len(entry.outputs), len(entry.calls),
            self.table("coil_symbol", "symbols", symbols), self.tensors("inputs", entry.inputs),
            self.tensors("outputs", entry.outputs), len(entry.states),
            self.table("coil_link", "states", [_row(*pair, int(i in entry.kept), entry.rows(i)) for i, pair in enumerate(entry.states)]),
        )  # fmt: skip
        self.source.parts.append(self.quantities.function(f"evaluate_{self.suffix}"))
        private = _row(
            f"evaluate_{self.suffix}", *dims, slots, args, calls, count(), len(entry.slots), len(self.args), room, rules,
            len(entry.required),
        )  # fmt: skip
        return public, private

    def room(self) -> str:
        room = self.entry.room
        if room is None:
            return _row(-1, 0, 0)
        return _row(room.clock, self.quantities.of(room.capacity), self.quantities.of(room.elements))

    def rule(self, dim: Dim) -> str:
        return _row(self.quantities.of(dim), _string(str(dim)))

    def call(self, call: Call) -> str:
        first = len(self.args)
        self.args += [_row(_KINDS[ref.kind], ref.index) for ref in call.args]
        self.args += [_row("PLAN_QUANTITY", self.quantities.of(dim)) for dim in call.dims]
        function = "NULL" if call.kernel == COPY else _ABI_NAME(call.kernel)
        count = len(self.args) - first
        return _row(_string(call.kernel or "copy"), function, first, count, call.first_result, len(call.results))

    def tensors(self, name: str, tensors: Sequence[tuple[str, TensorType]]) -> str:
        rows = [_row(_string(n), _string(t.dtype.name), _string(str(t)), t.rank) for n, t in tensors]
        return self.table("coil_tensor", name, rows)

    def dims(self, name: str, tensors: Sequence[tuple[str, TensorType]]) -> str:
        """A table of tables: the quantities of every tensor's dims."""
        lists = [
            self.table("int32_t", f"{name}_{i}_dims", [str(self.quantities.of(dim)) for dim in type_.dims])
            for i, (_, type_) in enumerate(tensors)
        ]
        return self.table("int32_t *const", f"{name}_dims", lists)


def _row(*fields: object) -> str:
    return "{" + ", ".join(map(str, fields)) + "}"


def _string(text: str) -> str:
    """A C string literal; everything but plain ASCII is written as octal escapes, which cannot run on."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(plain) + '"'
