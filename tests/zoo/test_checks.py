"""The checks of the zoo fail on what they are there to find."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import numpy as np
from zoo.checks import held, materialised, unrolled

from coilc.ir import Module, TensorType, ops, parse_graph
from coilc.ir.core import Graph
from coilc.ir.types import f32


def module_of(text: str, **weights: tuple[int, ...]) -> Module:
    graph = parse_graph(dedent(text).strip())
    return Module({"main": graph}, {name: np.zeros(shape, np.float32) for name, shape in weights.items()})


def of_length(length: int, text: str) -> str:
    """The same graph with a fixed length."""
    return re.sub(r"\bL\b", str(length), text.replace(", L: dim[1:]", ""))


def loop(steps: int) -> Graph:
    """``h = tanh(h + x_t)`` step by step."""
    x = ops.input_(name="x", type=TensorType(f32, (2, steps, 3)))
    h, outputs = ops.zeros(TensorType(f32, (2, 1, 3))), []
    for t in range(steps):
        h = ops.tanh(ops.add(h, ops.slice_axis(x, 1, t, t + 1)))
        outputs.append(h)
    return Graph("main", (x,), (("y", ops.concat(*outputs, axis=1)),))


def test_a_loop_that_is_still_a_loop_is_found() -> None:
    assert unrolled(loop(3)) is None  # three parts, as queries, keys and values are
    assert unrolled(loop(20)) == "f32[2, 20, 3] is cut into 20 slices"


def test_gluing_alone_is_found() -> None:
    x = ops.input_(name="x", type=TensorType(f32, (2, 1, 3)))
    parts = [ops.mul(x, float(i)) for i in range(12)]
    graph = Graph("main", (x,), (("y", ops.concat(*parts, axis=1)),))
    assert unrolled(graph) == "f32[2, 12, 3] is glued from 12 parts"


WIDE = """
    def main(x: f32[B, L, 6], *, B: dim[1:], L: dim[1:]):
        v0: f32[B, L, 6, 1] = reshape(x, dims=(B, L, 6, 1))
        v1: f32[B, L, 6, 16] = broadcast(v0, dims=(B, L, 6, 16))
        v2: f32[B, L, 6, 16] = exp(v1)
        return {"y": v2}
"""


def test_a_state_per_token_is_found() -> None:
    module = module_of(WIDE, A=(6, 16))
    assert materialised(module, module, "L") == ("f32[B, L, 6, 16] has 96 elements per token; the widest layer has 16")
    wider = module_of(WIDE, up=(48, 6))  # a model whose own layers are as wide does not mind
    assert materialised(wider, wider, "L") is None


def test_a_fixed_length_is_counted_too() -> None:
    module = module_of(of_length(12, WIDE), A=(6, 16))
    assert materialised(module, module, 12) == "f32[B, 12, 6, 16] has 96 elements per token; the widest layer has 16"


SQUARE = """
    def main(q: f32[B, L, 4], *, B: dim[1:], L: dim[1:]):
        v0: f32[B, 4, L] = transpose(q, perm=(0, 2, 1))
        v1: f32[B, L, L] = matmul(q, v0)
        v2: f32[B, L, 4] = matmul(v1, q)
        return {"y": v2}
"""


def test_a_matrix_of_all_pairs_is_found() -> None:
    module = module_of(SQUARE, w=(400, 400))
    assert materialised(module, module, "L") == "f32[B, L, L] grows with the square of the length"
    fixed = module_of(of_length(9, SQUARE), w=(400, 400))
    assert materialised(fixed, fixed, 9) == "f32[B, 9, 9] grows with the square of the length"


def test_ops_are_counted() -> None:
    assert held(loop(3), ("tanh", "scan")) == {"tanh": 3, "scan": 0}


def test_the_readme_lists_every_model() -> None:
    folder = Path(__file__).resolve().parents[2] / "examples" / "zoo"
    listed = re.findall(r"^\| \[\w+\]\((\w+)\.py\)", (folder / "README.md").read_text(), flags=re.M)
    assert sorted(listed) == sorted(path.stem for path in folder.glob("*.py"))
