"""Matrix products with fp32 sums, of every form: one row, few, some, many; both layouts, batches, parts of a wider operand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import EmulatedGPU

import coilc
from coilc.ir import Graph, Module, interpret, parse_graph
from coilc.runtime import Model

TEXTS = {
    "plain": """x: f32[M, 20], w: f32[20, 24], b: f32[24]
        v0: f32[M, 24] = matmul(x, w)
        v1: f32[M, 24] = broadcast(b, dims=(M, 24))
        y: f32[M, 24] = add(v0, v1)""",
    "turned": """x: f32[M, 20], w: f32[24, 20], r: f32[M, 24]
        v0: f32[20, 24] = transpose(w, perm=(1, 0))
        v1: f32[M, 24] = matmul(x, v0)
        v2: f32[M, 24] = sigmoid(v1)
        y: f32[M, 24] = mul(v2, r)""",
    "narrow": """x: bf16[M, 40], w: f32[24, 40]
        v0: f32[M, 40] = cast(x, dtype=f32)
        v1: f32[40, 24] = transpose(w, perm=(1, 0))
        y: f32[M, 24] = matmul(v0, v1)""",
    "odd": """x: f32[3, M, 5], w: f32[3, 5, 7]
        v0: f32[3, M, 5] = exp(x)
        y: f32[3, M, 7] = matmul(v0, w)""",
    "part": """x: f32[M, 40], w: f32[40, 66]
        v0: f32[M, 20] = slice(x, starts=(0, 4), stops=(M, 24), steps=(1, 1))
        v1: f32[20, 33] = slice(w, starts=(20, 33), stops=(40, 66), steps=(1, 1))
        y: f32[M, 33] = matmul(v0, v1)""",
}


def graph(text: str) -> Graph:
    given, *lines = (line.strip() for line in text.splitlines())
    body = "".join(f"    {line}\n" for line in lines)
    return parse_graph(f"def main({given}, *, M: dim[1:]):\n{body}    return {{'y': y}}\n")


GRAPHS = {name: graph(text) for name, text in TEXTS.items()}


@pytest.fixture(scope="module")
def products(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("products") / "m.coil"
    return coilc.load(coilc.compile(Module(GRAPHS), path, "cuda:sm_90a"))


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 70])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_product_is_that_of_its_definition(products: Model, rng: np.random.Generator, name: str, rows: int) -> None:
    inputs = {
        value.node.attrs["name"]: rng.standard_normal([d if isinstance(d, int) else rows for d in value.dims]).astype(
            value.type.dtype.numpy
        )
        for value in GRAPHS[name].inputs
    }
    expected = interpret(Module({"main": GRAPHS[name]}), inputs, wide=True)["y"]
    found = products.run(name, inputs)["y"]
    np.testing.assert_allclose(found, expected, rtol=4e-6, atol=4e-6 * np.abs(expected).max())


THIN = """
def main(x: f32[M, {k}], w: f32[{w}], *, M: dim[1:]{symbol}):
    v: f32[{k}, {n}] = {v}
    y: f32[M, {n}] = matmul(x, v)
    return {{"y": y}}
"""


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("k", "n"),
    [(20, 2115), (128, 2116), (132, 1058), (1300, 1060), (2600, 33), (4228, 1056), (("K", 1), 8), (("K", 1030), 8)],
    ids=str,
)
def test_thin_products_divide_the_inner_dimension(
    gpu: EmulatedGPU | None, tmp_path: Path, rng: np.random.Generator, k: int | tuple[str, int], n: int, turned: bool
) -> None:
    """Less than a step of it, whole steps, and a part of one behind them; a warp may have several columns."""
    name, size = (k, k) if isinstance(k, int) else k
    v = "transpose(w, perm=(1, 0))" if turned else "cast(w, dtype=f32)"
    symbol = "" if isinstance(k, int) else f", {name}: dim[0:]"
    module = Module(
        {
            "main": parse_graph(
                THIN.format(k=name, n=n, w=f"{n}, {name}" if turned else f"{name}, {n}", v=v, symbol=symbol)
            )
        }
    )
    model = coilc.load(coilc.compile(module, tmp_path / "m.coil", "cuda:sm_90a"))
    for rows in (1, 2):
        inputs = {
            "x": rng.standard_normal((rows, size)).astype("f"),
            "w": rng.standard_normal((n, size) if turned else (size, n)).astype("f"),
        }
        expected, found = interpret(module, inputs, wide=True)["y"], model(**inputs)["y"]
        np.testing.assert_allclose(found, expected, rtol=4e-6, atol=4e-6 * np.abs(expected).max())
