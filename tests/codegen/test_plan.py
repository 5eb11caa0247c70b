"""From a scheduled graph to a plan: one kernel per distinct body, a home for every value, symbols from input axes."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from coilc.codegen.emit_plan import emit_plan
from coilc.codegen.link import NATIVE
from coilc.codegen.plan import COPY, EntryPlan, Plan, Ref, Symbol, make_plan
from coilc.codegen.weights import plan_layout
from coilc.ir import CoilError, Dim, Graph, Location, Module, at, dims, ops, parse_graph, symbol
from coilc.ir.text import parse_type

LAYERS = """
def main(x: f32[B, L, 8], *, B: dim[1:4], L: dim[1:]):
    def layer(x0: f32[B, L, 8], x1: f32[8]):
        v0: f32[B, L, 8] = broadcast(x1, dims=(B, L, 8))
        v1: f32[B, L, 8] = add(x0, v0)
        return {"y0": v1}
    v0: f32[8] = weight(name="layers.0.bias", type=f32[8])  # model.py:1
    v1: f32[8] = weight(name="layers.1.bias", type=f32[8])  # model.py:1
    v2: f32[8] = weight(name="layers.2.bias", type=f32[8])  # model.py:1
    v3: f32[B, L, 8] = fused(x, v0, body=layer)
    v4: f32[B, L, 8] = fused(v3, v1, body=layer)
    v5: f32[B*L, 8] = reshape(v4, dims=(B*L, 8))
    v6: f32[B, L, 8] = reshape(v5, dims=(B, L, 8))
    v7: f32[B, L, 8] = fused(v6, v2, body=layer)
    return {"out": v7}
"""


def planned(text: str, **weights: np.ndarray) -> Plan:
    return make_plan(Module({"main": parse_graph(text)}, weights))


def layers() -> Plan:
    return planned(LAYERS, **{f"layers.{i}.bias": np.full(8, i, np.float32) for i in (2, 0, 1)})


def test_equal_bodies_share_a_kernel() -> None:
    plan = layers()
    (entry,) = plan.entries
    assert list(plan.kernels) == ["k0_layer"]
    assert [call.kernel for call in entry.calls] == ["k0_layer"] * 3
    assert [call.dims for call in entry.calls] == [(symbol("B"), symbol("L"))] * 3


def test_values_have_homes_and_reshapes_are_aliases() -> None:
    first, second, third = layers().entries[0].calls
    assert first.args == (Ref("input", 0), Ref("weight", 0), Ref("slot", 0))
    assert second.args == (Ref("slot", 0), Ref("weight", 1), Ref("slot", 1))
    assert third.args == (Ref("slot", 1), Ref("weight", 2), Ref("output", 0))


def test_weights_are_in_name_order() -> None:
    assert list(layers().weights) == ["layers.0.bias", "layers.1.bias", "layers.2.bias"]


def test_outputs_that_compute_nothing_are_copied() -> None:
    plan = planned("""
def main(x: f32[3]):
    def double(x0: f32[3]):
        v0: f32[3] = add(x0, x0)
        return {"y0": v0}
    v0: f32[3] = fused(x, body=double)
    v1: f32[3, 1] = reshape(v0, dims=(3, 1))
    v2: f32[2] = constant(value=array(f32, [1.0, 2.0]))
    return {"a": v1, "b": v0, "c": x, "d": v2}
""")
    calls = plan.entries[0].calls
    assert [(c.kernel, c.args) for c in calls] == [
        ("k0_double", (Ref("input", 0), Ref("output", 0))),
        (COPY, (Ref("output", 0), Ref("output", 1))),
        (COPY, (Ref("input", 0), Ref("output", 2))),
        (COPY, (Ref("weight", 0), Ref("output", 3))),
    ]
    assert calls[1].dims == (12,)
    assert list(plan.weights) == ["coilc.constant.0"]


def test_every_result_of_a_group_has_its_own_source() -> None:
    text = """
def two(x0: f32[3]):
    v0: f32[3] = add(x0, x0)
    v1: f32[3] = mul(v0, x0)
    return {"y0": v0, "y1": v1}
"""
    x = ops.input_(name="x", type=parse_type("f32[3]"))
    with at(Location("model.py", 7, "block", "sum,")):
        first, second = ops.fused(x, body=parse_graph(text))
    graph = Graph("main", (x,), (("a", first), ("b", second)))
    (call,) = make_plan(Module({"main": graph})).entries[0].calls
    assert [(r.location.source, r.location.scope) for r in call.results if r.location] == [
        ("sum", "block"),
        ("", "block"),
    ]


# --- symbols --------------------------------------------------------------------------------------------------------


def identity(signature: str, symbols: str) -> str:
    return f"""
def main({signature}, *, {symbols}):
    return {{"y": x}}
"""


@pytest.mark.parametrize(
    ("signature", "symbols", "expected"),
    [
        ("x: f32[L]", "L: dim[1:9]", Symbol("L", 1, 9, 0, 0)),
        ("x: f32[L]", "L: dim[1:]", Symbol("L", 1, 2**63 - 1, 0, 0)),
        ("x: f32[2*L + 1, L]", "L: dim[1:9]", Symbol("L", 1, 9, 0, 1)),
        ("x: f32[4*L + 3]", "L: dim[1:9]", Symbol("L", 1, 9, 0, 0, 4, 3)),
        ("x: f32[L*L], y: f32[5, L + 1]", "L: dim[1:9]", Symbol("L", 1, 9, 1, 1, 1, 1)),
    ],
)
def test_symbols_are_solved_from_the_plainest_axis(signature: str, symbols: str, expected: Symbol) -> None:
    assert planned(identity(signature, symbols)).entries[0].symbols == (expected,)


@pytest.mark.parametrize("dims_", ["L*L", "((L + 3)//4)", "B*L, B"])
def test_a_symbol_that_no_axis_determines(dims_: str) -> None:
    with pytest.raises(CoilError, match="entry 'main': no input axis has the extent 'L'"):
        planned(identity(f"x: f32[{dims_}]", "B: dim[1:9], L: dim[1:9]"))


def test_a_symbol_that_nothing_uses_is_dropped() -> None:
    assert planned(identity("x: f32[3]", "L: dim[1:9]")).entries[0].symbols == ()


def test_complex_tensors_keep_their_type_at_the_boundary() -> None:
    declared = Module({"main": parse_graph('def main(x: c64[L], *, L: dim[1:]):\n    return {"y": x}\n')})
    lowered = Module({"main": parse_graph('def main(x: f32[L, 2], *, L: dim[1:]):\n    return {"y": x}\n')})
    (entry,) = make_plan(lowered, declared).entries
    assert [str(type_) for _, type_ in (*entry.inputs, *entry.outputs)] == ["c64[L]", "c64[L]"]
    assert entry.calls[0].dims == (8 * symbol("L"),)


# --- the generated C ------------------------------------------------------------------------------------------------

SIZES = ("B", "B*L + 1", "4*B - 7*L", "((L + 63)//64)", "((5*B*L - 3)//4)*B", "B*B*L", "0", "-5")
PROBE = """
#include "plan.h"
int evaluate(const int64_t *symbols, int64_t *quantities);
int evaluate(const int64_t *symbols, int64_t *quantities) { return coil_plan.entries[0].evaluate(symbols, quantities); }
"""


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library that evaluates the slot ``max(B, L, 3)``, then ``SIZES``."""
    folder = tmp_path_factory.mktemp("probe")
    x = parse_type(f"f32[{', '.join(SIZES)}]")
    slot: tuple[Dim, ...] = (symbol("B"), symbol("L"), 3)
    symbols = (Symbol("B", 1, 9, 0, 0), Symbol("L", 1, 9, 0, 0))
    plan = Plan((EntryPlan('ma"in\n', symbols, (("x", x),), (), (slot,), ()),), {}, {})
    (folder / "plan.c").write_text(emit_plan(plan, plan_layout({}), 0) + PROBE)
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
    subprocess.run([*command, folder / "plan.c", "-o", folder / "probe.so"], check=True, timeout=300)
    return ctypes.CDLL(str(folder / "probe.so"))


def quantities_of(evaluate: ctypes.CDLL, b: int, length: int) -> list[int] | None:
    """What the generated function computes, or ``None`` for an overflow."""
    quantities = (ctypes.c_int64 * (len(SIZES) + 1))()
    return None if evaluate.evaluate((ctypes.c_int64 * 2)(b, length), quantities) else list(quantities)


@pytest.mark.parametrize(("b", "length"), [(1, 1), (3, 7), (2, 64), (1, 65), (0, 5), (12345, 67890)])
def test_dims_are_evaluated_in_c_as_in_python(evaluate: ctypes.CDLL, b: int, length: int) -> None:
    expected = [dims.evaluate(dims.parse_dim(size), {"B": b, "L": length}) for size in SIZES]
    assert quantities_of(evaluate, b, length) == [max(b, length, 3), *expected]


@pytest.mark.parametrize(("b", "length"), [(1 << 32, 1), (1 << 31, 1 << 31), (1, 1 << 61)])
def test_an_overflow_is_reported(evaluate: ctypes.CDLL, b: int, length: int) -> None:
    assert quantities_of(evaluate, b, length) is None
