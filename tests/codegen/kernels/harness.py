"""Runs the kernel of a body in this process and compares it with the reference, on outputs that start as NaN."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import tvm

from coilc.codegen.lower import lower_body
from coilc.codegen.target import Target, parse_target
from coilc.codegen.tir_passes import build_module
from coilc.ir import Graph, parse_graph
from coilc.ir import dims as d
from coilc.ir.interpret import bind_symbols, evaluate_body

# Relative to the largest magnitude of the result, or to a tenth where everything cancels.
TOLERANCE = {"f64": 1e-12, "f32": 4e-6, "f16": 2e-3, "bf16": 2e-2}


class Compiled:
    """The kernel of one body, callable on arrays."""

    def __init__(self, body: Graph | str, target: Target | None = None) -> None:
        self.body = parse_graph(body) if isinstance(body, str) else body
        function = lower_body(self.body, "kernel", target or parse_target("native"))
        self.symbols = [str(p.name) for p in function.params[len(self.body.inputs) + len(self.body.results) :]]
        description = tvm.target.Target(dict((target or parse_target("native")).tvm))
        self.library = build_module(tvm.IRModule({"kernel": function}), description)

    @cached_property
    def function(self) -> Callable[..., None]:
        """Loads the machine code, which only works for this machine's."""
        return self.library["kernel"]

    def bindings(self, arrays: Sequence[np.ndarray]) -> Mapping[str, int]:
        return bind_symbols({f"x{i}": (v.type, a.shape) for i, (v, a) in enumerate(zip(self.body.inputs, arrays))})

    def prepare(self, arrays: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Callable[[], None]]:
        """Outputs full of NaN (or of a conspicuous number) and the call that fills them."""
        assert all(a.flags.c_contiguous for a in arrays)
        bindings = self.bindings(arrays)
        shapes = [[d.evaluate(dim, bindings) for dim in v.dims] for v in self.body.results]
        outputs = [np.empty(s, v.type.dtype.numpy) for s, v in zip(shapes, self.body.results, strict=True)]
        for output in outputs:
            output.fill(np.nan if output.dtype.kind in "fV" else 77)
        memory = (*arrays, *outputs)  # kept alive by the call
        extents = [bindings[name] for name in self.symbols]
        return outputs, lambda: self.function(*(ctypes.c_void_p(a.ctypes.data) for a in memory), *extents)

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        outputs, call = self.prepare(arrays)
        call()
        return outputs

    def expected(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The reference in float64."""
        wide = [a.astype(np.float64) if a.dtype.kind in "fV" else a for a in arrays]
        return evaluate_body(self.body.substitute(self.bindings(arrays)), wide)

    def check(self, *arrays: np.ndarray) -> None:
        results = zip(self(*arrays), self.expected(arrays), self.body.results, strict=True)
        for actual, expected, value in results:
            name = value.type.dtype.name
            if name in TOLERANCE:
                scale = max(float(np.abs(expected).max(initial=0.0)), 0.1)
                error = np.abs(actual.astype(np.float64) - expected).max(initial=0.0) / scale
                assert error <= TOLERANCE[name], f"{self.body.name}: {error:.2e} of {scale:.2e}"
            else:
                np.testing.assert_array_equal(actual, expected)

    def check_random(
        self, seed: int = 0, ranges: Mapping[str, tuple[float, float]] | None = None, **symbols: int
    ) -> None:
        """Check on random arrays; ``ranges`` bounds the values of inputs by name."""
        self.check(*self.draw(seed, ranges or {}, symbols))

    def draw(
        self, seed: int, ranges: Mapping[str, tuple[float, float]], symbols: Mapping[str, int]
    ) -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        arrays = []
        for value in self.body.inputs:
            low, high = ranges.get(value.node.attrs["name"], (-1.0, 1.0) if value.type.dtype.is_float else (-9, 9))
            shape = [d.evaluate(dim, symbols) for dim in value.dims]
            numbers = generator.uniform(low, high, shape)
            if value.type.dtype.kind == "bool":
                numbers = numbers > 0
            arrays.append(np.round(numbers) if value.type.dtype.is_integer else numbers)
        return [a.astype(v.type.dtype.numpy) for a, v in zip(arrays, self.body.inputs, strict=True)]
