"""Recurrences along random routes: kernels that read through tables against the definition, composed as written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_routes import RECURRENCES, drawn_weights, scanned_routes

from coilc.codegen.compile import write_artifact
from coilc.codegen.plan import make_plan
from coilc.codegen.target import parse_target
from coilc.comparison.metrics import TOLERANCE
from coilc.ir import Module, interpret
from coilc.passes import Machine, run_pipeline
from coilc.runtime import load

EAGER = Machine(cores=64, launch=0.0)  # recurrences of their own share a launch wherever they can


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENCES)
@settings(max_examples=12)
@given(data=st.data())
def test_compiled_routes_agree_with_the_definition(name: str, data: st.DataObject) -> None:
    graph, rng = data.draw(scanned_routes(name)), np.random.default_rng(0)
    module = Module({"main": graph}, drawn_weights(graph, rng))
    x = rng.standard_normal(graph.inputs[0].dims).astype(np.float32)  # type: ignore[arg-type]
    expected = interpret(module, {"x": x}, wide=True)
    native = parse_target("native")
    plan = make_plan(run_pipeline(module, native.claims, machine=EAGER), module)
    with tempfile.TemporaryDirectory() as folder:
        for key, found in load(write_artifact(plan, native, Path(folder) / "routes.coil"), threads=2)(x=x).items():
            error = np.linalg.norm(found - expected[key]) / max(np.linalg.norm(expected[key]), 1.0)
            assert error <= TOLERANCE["float32"], f"'{key}' is off by {error:.1e}"
