"""Threads of a device that share a row."""

from __future__ import annotations

import pytest

from coilc.codegen.lower import lower_body
from coilc.codegen.target import TARGETS
from coilc.codegen.team import LARGEST, WARP, team_size
from coilc.ir import parse_graph

SOFTMAX = """
def body(x0: f32[B, {n}]):
    m: f32[B, 1] = max(x0, axes=(1,), keepdims=True)
    mb: f32[B, {n}] = broadcast(m, dims=(B, {n}))
    s: f32[B, {n}] = sub(x0, mb)
    e: f32[B, {n}] = exp(s)
    t: f32[B, 1] = sum(e, axes=(1,), keepdims=True)
    tb: f32[B, {n}] = broadcast(t, dims=(B, {n}))
    y0: f32[B, {n}] = div(e, tb)
    return {{'y0': y0}}
"""


@pytest.mark.parametrize("length", [*range(70), 511, 512, 2560, 10**5])
def test_a_team_has_no_idle_threads(length: int) -> None:
    size = team_size(length)
    assert size & (size - 1) == 0
    assert 1 <= size <= min(LARGEST, max(length, 1))
    assert size >= min(WARP, length) // 2


@pytest.mark.parametrize(("n", "teams", "shared"), [("5", 1, 0), ("300", 1, 0), ("4096", 1, 2), ("N", 2, 2)])
def test_rows_are_shared_by_teams(n: str, teams: int, shared: int) -> None:
    """A warp needs shuffles only, a block shared memory for each reduction; a length that is a symbol has both forms."""
    script = lower_body(parse_graph(SOFTMAX.format(n=n)), "k", TARGETS["cuda:sm_90a"]).script()
    assert script.count('T.launch_thread("blockIdx.x"') == teams
    assert script.count("T.alloc_shared") == shared
    assert "__shfl_xor_sync" in script


def test_processors_have_no_teams() -> None:
    assert "shfl" not in lower_body(parse_graph(SOFTMAX.format(n="300")), "k", TARGETS["x86-64-v3"]).script()
