"""The whole pipeline keeps meaning, whatever the graph; its stages can be watched and stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import graphs

from coilc.ir import CoilError, Graph, InputError, Module, Value, verify
from coilc.ir.opdef import ELEMENTWISE, MOVEMENT, REDUCTION, STRUCTURAL
from coilc.passes import plan_memory, run_pipeline
from coilc.passes.plan_memory import MemoryPlan, root, slot_bytes

from .conftest import SIZES, assert_same_results, module_of

CLAIMS = frozenset({"packed_matmul", "causal_conv1d", "selective_scan"})


@given(graphs(), st.sampled_from((frozenset(), CLAIMS)))
def test_random_graphs_keep_their_meaning(graph: Graph, claims: frozenset[str]) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((4, 4)).astype(np.float32) for i in range(2)}
    module = Module({"main": graph}, weights)
    result = run_pipeline(module, claims)
    assert_same_results(module, result, rng)
    for node in result.entries["main"].nodes:
        if node.op.name == "fused":
            check_body(node.attrs["body"])
    check_plan(result.entries["main"])


def check_body(body: Graph) -> None:
    """A fused body has one of the forms that the code generator lowers."""
    assert [v.node.attrs["name"] for v in body.inputs] == [f"x{i}" for i in range(len(body.inputs))]
    assert [name for name, _ in body.outputs] == [f"y{i}" for i in range(len(body.outputs))]
    nodes = [node for node in body.nodes if STRUCTURAL not in node.op.traits]
    assert not any(node.op.name == "weight" for node in body.nodes)
    heavy = [n for n in nodes if not n.op.traits & {ELEMENTWISE, MOVEMENT}]
    if not heavy:
        assert len({v.dims for v in body.results}) == 1
    elif all(REDUCTION in n.op.traits for n in heavy):
        spaces = {(n.inputs[0].dims, n.attrs["axes"], n.types[0].dims) for n in heavy}
        assert len(spaces) == 1
        ((space, axes, rows),) = spaces
        trailing = axes == tuple(range(len(space) - len(axes), len(space)))
        assert len(heavy) == 1 or trailing
        allowed = {space, rows} if trailing else {rows}
        assert {v.dims for v in body.results} <= allowed
    else:
        assert len(heavy) == 1


def check_plan(graph: Graph) -> MemoryPlan:
    """Run the plan's life times: no value may be overwritten before its last reader."""
    plan = plan_memory(graph)
    content: dict[int, Value] = {}
    stored = {v for v in plan.placement if v.op.name == "fused"}
    for node in graph.nodes:
        if node.op.name != "fused":
            continue
        for value in node.inputs:
            base = root(value)
            assert base not in stored or content[plan.placement[base]] == base
        for value in node.results:
            if value in plan.placement:
                slot = plan.placement[value]
                content[slot] = value
                size = value.type.substitute(SIZES).bytes
                assert isinstance(size, int)
                assert size <= slot_bytes(plan.slots[slot], SIZES)
        assert len({plan.placement[v] for v in node.results if v in plan.placement}) == sum(
            v in plan.placement for v in node.results
        )
    assert not set(plan.placement) & set(graph.results)
    return plan


VIEW = """
def main(x: f32[B, L, 4], *, B: dim[1:], L: dim[1:]):
    w: f32[4, 4] = weight(name="w", type=f32[4, 4])
    v0: f32[B*L, 4] = reshape(x, dims=(B*L, 4))
    v1: f32[B*L, 4] = matmul(v0, w)
    v2: f32[B, L, 4] = reshape(v1, dims=(B, L, 4))
    return {"y": v2}
"""


def test_an_output_that_is_a_view_is_written_where_it_is_wanted() -> None:
    graph = run_pipeline(module_of(VIEW, np.random.default_rng(0))).entries["main"]
    assert graph.results[0].op.name == "reshape"
    assert check_plan(graph).slots == ()


SMALL = """
def main(x: f32[B, 4], *, B: dim[1:]):
    v0: f32[B, 4] = silu(x)
    return {"y": v0}
"""


def test_stages_can_be_watched_and_stopped() -> None:
    module = module_of(SMALL, np.random.default_rng(0))
    seen: list[str] = []
    run_pipeline(module, stop_after="recognise", observe=lambda name, _: seen.append(name))
    assert seen == ["input", "clean", "recognise"]


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(InputError, match="there is no stage 'fusion'; the stages are clean, recognise, "):
        run_pipeline(module_of(SMALL, np.random.default_rng(0)), stop_after="fusion")


def test_a_broken_promise_names_its_stage() -> None:
    from coilc.passes.stages import Stage, run_stage

    stage = Stage("decompose", verify.core_or_claimed(()), ())
    with pytest.raises(CoilError, match="after stage 'decompose': composite op 'silu' is left"):
        run_stage(stage, module_of(SMALL, np.random.default_rng(0)))


def test_stages_are_written_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COILC_DUMP", "all")
    monkeypatch.setenv("COILC_DUMP_DIR", str(tmp_path))
    run_pipeline(module_of(SMALL, np.random.default_rng(0)), stop_after="clean")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00-input.py", "01-clean.py"]
    assert "silu(x)" in (tmp_path / "00-input.py").read_text()


def test_rules_and_changes_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COILC_DIFF", "1")
    monkeypatch.setenv("COILC_TRACE", "1")
    run_pipeline(module_of(SMALL, np.random.default_rng(0)), stop_after="decompose")
    printed = capsys.readouterr().err
    assert "definition: silu(f32[B, 4]) -> mul(f32[B, 4], f32[B, 4])" in printed
    assert "+++ after decompose" in printed
