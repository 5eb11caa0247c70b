"""Weights of products become integers: golden text, how near it stays, and what is left alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from coilc.ir import InputError, Module, interpret
from coilc.passes import explain, fold_constants, pack_weights, run_pipeline, share_tied_weights
from coilc.passes.quantize_weights import quantize_weights

from .conftest import module_of

CLAIMS = {"packed_matmul", "quantized_matmul"}
WORST = {"int8": 0.02, "int4": 0.2}  # relative error of one product of Gaussian numbers
TO_INT8 = partial(quantize_weights, quantize="int8", claims=CLAIMS)
TIED = """
    def main(ids: i64[B, L], *, B: dim[1:], L: dim[1:]):
        v0: f32[40, 64] = weight(name="w", type=f32[40, 64])
        v1: f32[B, L, 64] = take(v0, ids, axis=0)
        v2: f32[B, L, 40] = linear(v1, v0)
        return {"y": v2, "rows": v1}
    """


def quantized(module: Module, form: str) -> Module:
    packed = pack_weights(module, panel=32, claims=CLAIMS)
    return fold_constants(share_tied_weights(quantize_weights(packed, form, CLAIMS)))


def test_a_product_becomes_one_of_integers() -> None:
    product = TO_INT8(
        module_of(
            """
            def main(x: f32[B, 64], *, B: dim[1:]):
                v0: f32[64, 40] = weight(name="w", type=f32[64, 40])
                v1: f32[2, 64, 32] = pack_panels(v0, panel=32)
                v2: f32[B, 40] = packed_matmul(x, v1, columns=40)
                return {"y": v2}
            """,
            np.random.default_rng(0),
        )
    ).entries["main"]
    assert [node.op.name for node in product.nodes if node.op.name not in ("constant", "broadcast")] == [
        "input", "abs", "max", "maximum", "div", "mul", "round", "cast", "weight", "quantize_panels", "quantized_matmul",
        "mul", "mul",
    ]  # fmt: skip


@pytest.mark.parametrize("form", WORST)
def test_tied_embeddings_are_stored_once_and_read_from_the_integers(form: str) -> None:
    module = module_of(TIED, np.random.default_rng(0))
    after = quantized(module, form)
    stored = [array.dtype.name for array in after.weights.values() if array.ndim > 1]  # the rest is for addresses
    assert sorted(stored) == sorted(["int8" if form == "int8" else "uint8", "float16"])
    ids = {"ids": np.array([[0, 39, 7], [-1, 32, 31]])}
    found, expected = interpret(after, ids), interpret(module, ids)
    for name in ("rows", "y"):
        error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert 0 < error < WORST[form]


@pytest.mark.parametrize("form", WORST)
def test_the_whole_pipeline_stays_near(form: str) -> None:
    rng = np.random.default_rng(1)
    module = module_of(
        """
        def main(x: f32[B, 96], *, B: dim[1:]):
            v0: f32[40, 96] = weight(name="w", type=f32[40, 96])
            v1: f32[40] = weight(name="b", type=f32[40])
            v2: f32[B, 40] = linear(x, v0, v1)
            return {"y": v2}
        """,
        rng,
    )
    after = run_pipeline(module, CLAIMS, quantize=form)
    assert "quantized_matmul" in {n.op.name for g in bodies(after) for n in g.nodes}
    x = rng.standard_normal((3, 96)).astype(np.float32)
    x[1] = 0  # a row without a step
    found, expected = interpret(after, {"x": x})["y"], interpret(module, {"x": x})["y"]
    assert np.linalg.norm(found - expected) < WORST[form] * np.linalg.norm(expected)
    np.testing.assert_array_equal(found[1], expected[1])


def bodies(module: Module) -> list:
    return [node.attrs["body"] for node in module.entries["main"].nodes if node.op.name == "fused"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(48, "48 rows are not 64 or more, in groups of 4"), (66, "66 rows are not 64 or more, in groups of 4")],
)
def test_small_and_odd_matrices_stay(rows: int, reason: str) -> None:
    text = f"""
        def main(x: f32[2, {rows}]):
            v0: f32[{rows}, 32] = weight(name="w", type=f32[{rows}, 32])
            v1: f32[1, {rows}, 32] = pack_panels(v0, panel=32)
            v2: f32[2, 32] = packed_matmul(x, v1, columns=32)
            return {{"y": v2}}
        """
    trace = explain(module_of(text, np.random.default_rng(0)), "quantize_weights")
    assert [event.reason for event in trace.events if event.reason] == [reason]


def test_what_cannot_be_is_refused() -> None:
    module = module_of(TIED, np.random.default_rng(0))
    with pytest.raises(InputError, match="there is no format 'int3' for weights; there are int8, int4"):
        run_pipeline(module, CLAIMS, quantize="int3")
    with pytest.raises(InputError, match="int8 weights need a target with kernels for them"):
        run_pipeline(module, {"packed_matmul"}, quantize="int8")
