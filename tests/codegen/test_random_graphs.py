"""Compiled code agrees with the interpreter on random graphs of core ops, at several sizes from one artifact."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from random_graphs import graphs

from coilc.codegen.compile import compile
from coilc.comparison.metrics import TOLERANCE
from coilc.ir import Graph, Module, interpret
from coilc.runtime import load


@pytest.mark.slow
@settings(max_examples=40)
@given(graphs())
def test_compiled_graphs_agree_with_the_interpreter(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((4, 4)).astype(np.float32) for i in range(2)}
    module = Module({"main": graph}, weights)
    with tempfile.TemporaryDirectory() as folder:
        model = load(compile(module, Path(folder) / "random.coil"), threads=2)
        for batch, length in ((1, 1), (3, 7), (2, 33)):
            inputs = {f"x{i}": rng.standard_normal((batch, length, 4)).astype(np.float32) for i in range(2)}
            expected = interpret(module, inputs, wide=True)
            for name, found in model(**inputs).items():
                error = np.linalg.norm(found - expected[name]) / max(np.linalg.norm(expected[name]), 1.0)
                assert error <= TOLERANCE["float32"], f"{name} at B={batch}, L={length}"
