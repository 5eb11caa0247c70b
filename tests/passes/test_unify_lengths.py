"""Two imports at two lengths become one module that takes any length; what else differs is an error."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, InputError, Module, Node, TensorType, interpret, ops
from coilc.ir.types import f32
from coilc.passes.unify_lengths import Length, unify_modules

LENGTH = Length("L", (1, None), 7, 11)


def imported(length: int, weight: float = 0.5, twice: bool = False) -> Module:
    """``h = tanh(w * h + x_t)`` unrolled, and a bias per step counted by an iota."""
    x = ops.input_(name="x", type=TensorType(f32, (2, length, 3)))
    w = ops.weight(name="w", type=TensorType(f32, (3,)))
    state, outputs = ops.zeros(TensorType(f32, (2, 3))), []
    for t in range(length):
        step = ops.slice(x, starts=(0, t, 0), stops=(2, t + 1, 3), steps=(1, 1, 1))
        state = ops.tanh(ops.add(ops.mul(w, state), ops.reshape(step, dims=(2, 3))))
        outputs.append(ops.reshape(state, dims=(2, 1, 3)))
    y = ops.add(ops.concat(*outputs, axis=1), ops.iota(dims=(1, length, 1), axis=1, dtype=f32))
    y = ops.exp(y) if twice else y
    return Module({"main": Graph("main", (x,), (("y", y),))}, {"w": np.full(3, weight, np.float32)})


def test_one_module_takes_any_length() -> None:
    first = imported(7)
    Node.forget_all()  # as a second import does
    both = unify_modules(first, imported(11), LENGTH)
    assert both.entries["main"].symbols == (("L", (1, None)),)
    for length in (1, 2, 7, 20):
        feed = {"x": np.random.default_rng(0).standard_normal((2, length, 3)).astype(np.float32)}
        np.testing.assert_allclose(interpret(both, feed)["y"], interpret(imported(length), feed)["y"], rtol=1e-6)


def test_other_weights_are_refused() -> None:
    with pytest.raises(InputError, match="weight 'w' is not the same"):
        unify_modules(imported(7), imported(11, weight=0.25), LENGTH)


def test_other_structure_is_refused() -> None:
    with pytest.raises(InputError, match="different structure"):
        unify_modules(imported(7), imported(11, twice=True), LENGTH)
