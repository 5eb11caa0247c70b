"""What narrows and what does not: golden text, and laws over every op."""

from __future__ import annotations

from functools import partial
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import graphs

from coilc.ir import DTYPES, Graph, InputError, Module, interpret, parse_graph, print_module, verify
from coilc.ir.opdef import MIXER, OPS
from coilc.passes import run_pipeline
from coilc.passes.narrow_precision import FULL, narrow_precision

from .conftest import module_of, random_array

TO_BF16 = partial(narrow_precision, precision="bf16")
CLAIMS = frozenset({"packed_matmul", "causal_conv1d", "selective_scan"})


def narrowed(text: str, precision: str = "bf16") -> str:
    module = narrow_precision(module_of(text, np.random.default_rng(0)), precision)
    verify.scheduled(module)
    return print_module(module, locations=False).strip()


def test_weights_and_what_kernels_pass_on_are_narrow() -> None:
    before = """
        def main(x: f32[B, 6], *, B: dim[1:]):
            v0: f32[1, 6, 32] = weight(name="w", type=f32[1, 6, 32])
            def packed_matmul_0(x0: f32[B, 6], x1: f32[1, 6, 32]):
                v0: f32[B, 32] = packed_matmul(x0, x1, columns=32)
                return {"y0": v0}
            v1: f32[B, 32] = fused(x, v0, body=packed_matmul_0)
            v2: f32[B*32] = reshape(v1, dims=(B*32,))
            v3: f32[1] = weight(name="b", type=f32[1])
            def sigmoid_1(x0: f32[B*32], x1: f32[1]):
                v0: f32[B*32, 1] = reshape(x0, dims=(B*32, 1))
                v1: f32[B*32, 1] = sigmoid(v0)
                v2: f32[1, 1] = reshape(x1, dims=(1, 1))
                v3: f32[B*32, 1] = broadcast(v2, dims=(B*32, 1))
                v4: f32[B*32, 1] = add(v1, v3)
                return {"y0": v4}
            v4: f32[B*32, 1] = fused(v2, v3, body=sigmoid_1)
            return {"y": v4}
        """
    after = """
        def main(x: f32[B, 6], *, B: dim[1:]):
            v0: bf16[1, 6, 32] = weight(name="w", type=bf16[1, 6, 32])
            def packed_matmul_0(x0: f32[B, 6], x1: bf16[1, 6, 32]):
                v0: f32[1, 6, 32] = cast(x1, dtype=f32)
                v1: f32[B, 32] = packed_matmul(x0, v0, columns=32)
                v2: bf16[B, 32] = cast(v1, dtype=bf16)
                return {"y0": v2}
            v1: bf16[B, 32] = fused(x, v0, body=packed_matmul_0)
            v2: bf16[32*B] = reshape(v1, dims=(32*B,))
            v3: f32[1] = weight(name="b", type=f32[1])
            def sigmoid_1(x0: bf16[32*B], x1: f32[1]):
                v0: bf16[32*B, 1] = reshape(x0, dims=(32*B, 1))
                v1: f32[32*B, 1] = cast(v0, dtype=f32)
                v2: f32[32*B, 1] = sigmoid(v1)
                v3: f32[1, 1] = reshape(x1, dims=(1, 1))
                v4: f32[32*B, 1] = broadcast(v3, dims=(32*B, 1))
                v5: f32[32*B, 1] = add(v2, v4)
                return {"y0": v5}
            v4: f32[32*B, 1] = fused(v2, v3, body=sigmoid_1)
            return {"y": v4}
        """
    assert narrowed(before) == dedent(after).strip()


DELICATE = {
    "an exponential": "exp(v0)",
    "a logarithm of a sum": "log(v0)",
    "a power": "pow(v0, v0)",
    "a running sum": "cumsum(v0, axis=1)",
    "a decay": "linear_scan(v0, x0, h0, axis=0, reverse=False)",
}


@pytest.mark.parametrize("what", DELICATE)
@pytest.mark.parametrize("kernels_between", [0, 1])
def test_what_would_be_magnified_stays(what: str, kernels_between: int) -> None:
    """Also where it is handed on by kernels between; and what the op itself gives, if that is not a sum, narrows."""
    results = "v1, v2" if "scan" in DELICATE[what] else "v1"
    hops = "\n".join(
        f"""
            def neg_{i}(x0: f32[4, 8]):
                v0: f32[4, 8] = neg(x0)
                return {{"y0": v0}}
            v{i}: f32[4, 8] = fused(v{i - 1}, body=neg_{i})"""
        for i in range(1, kernels_between + 1)
    )
    text = f"""
        def main(x: f32[4, 8], h: f32[8]):
            def add_0(x0: f32[4, 8]):
                v0: f32[4, 8] = add(x0, x0)
                return {{"y0": v0}}
            v0: f32[4, 8] = fused(x, body=add_0){hops}
            def delicate(x0: f32[4, 8], h0: f32[8]):
                v0: f32[4, 8] = sigmoid(x0)
                {results} = {DELICATE[what]}
                v3: f32[4, 8] = mul(v1, x0)
                return {{"y0": v3}}
            v8: f32[4, 8] = fused(v{kernels_between}, h, body=delicate)
            def last(x0: f32[4, 8]):
                v0: f32[4, 8] = neg(x0)
                return {{"y0": v0}}
            v9: f32[4, 8] = fused(v8, body=last)
            return {{"y": v9}}
        """
    after = TO_BF16(module_of(text, np.random.default_rng(0))).entries["main"]
    *before, delicate, last = (node for node in after.nodes if node.op.name == "fused")
    assert {node.types[0].dtype.name for node in (*before, last)} == {"f32"}
    assert delicate.types[0].dtype.name == "bf16"


def test_states_statistics_and_integers_stay() -> None:
    text = narrowed("""
        def main(x: f32[B, 8], ids: i64[B, 1], h: f32[B, 8] = "h", *, B: dim[1:]):
            def sum_0(x0: f32[B, 8], x1: i64[B, 1]):
                v0: f32[B, 1] = sum(x0, axes=(1,), keepdims=True)
                v1: f32[B, 1] = rsqrt(v0)
                return {"y0": v1}
            v0: f32[B, 1] = fused(x, ids, body=sum_0)
            def add_1(x0: i64[B, 1]):
                v0: i64[B, 1] = add(x0, x0)
                return {"y0": v0}
            v1: i64[B, 1] = fused(ids, body=add_1)
            def mul_2(x0: f32[B, 8], x1: f32[B, 1], x2: i64[B, 1], x3: f32[B, 8]):
                v0: f32[B, 8] = broadcast(x1, dims=(B, 8))
                v1: f32[B, 1] = cast(x2, dtype=f32)
                v2: f32[B, 8] = broadcast(v1, dims=(B, 8))
                v3: f32[B, 8] = add(x3, v2)
                v4: f32[B, 8] = mul(v3, v0)
                return {"y0": v4}
            v2: f32[B, 8] = fused(x, v0, v1, h, body=mul_2)
            return {"y": v2, "h": v2}
        """)
    assert "bf16" not in text


def test_a_scan_keeps_its_carries_and_narrows_the_matrices_in_its_body() -> None:
    found = narrowed("""
        def main(x: f32[5, 8], h: f32[8, 8]):
            v0: f32[8, 8] = weight(name="w", type=f32[8, 8])
            v1: f32[8, 8] = weight(name="gain", type=f32[8, 8])
            def scan_0(x0: f32[5, 8], x1: f32[8, 8], x2: f32[8, 8], x3: f32[8, 8]):
                def body(h: f32[8, 8], x: f32[8], w: f32[8, 8], gain: f32[8, 8]):
                    v0: f32[8, 8] = matmul(h, w)
                    v1: f32[8, 8] = mul(v0, gain)
                    return {"h": v1, "y": v1}
                v0, v1 = scan(x1, x0, x2, x3, body=body, carries=1, sequences=1, axis=0, reverse=False)
                return {"y0": v1}
            v2: f32[5, 8, 8] = fused(x, h, v0, v1, body=scan_0)
            def neg_1(x0: f32[5, 8, 8]):
                v0: f32[5, 8, 8] = neg(x0)
                return {"y0": v0}
            v3: f32[5, 8, 8] = fused(v2, body=neg_1)
            return {"y": v3}
        """)
    assert 'bf16[8, 8] = weight(name="w"' in found
    assert ' f32[8, 8] = weight(name="gain"' in found
    assert ": bf16[5, 8, 8]" not in found


def test_a_weight_that_fp16_cannot_hold_is_refused() -> None:
    module = module_of(
        """
        def main(x: f32[2, 2]):
            v0: f32[2, 2] = weight(name="w", type=f32[2, 2])
            def add_0(x0: f32[2, 2], x1: f32[2, 2]):
                v0: f32[2, 2] = add(x0, x1)
                return {"y0": v0}
            v1: f32[2, 2] = fused(x, v0, body=add_0)
            return {"y": v1}
        """,
        np.random.default_rng(0),
    )
    module.weights["w"][0, 1] = 7e4
    TO_BF16(module)
    with pytest.raises(InputError, match="weight 'w' has the value 70000, which f16 cannot hold; compile with bf16"):
        narrow_precision(module, "fp16")


def test_an_unknown_precision_lists_those_there_are() -> None:
    with pytest.raises(InputError, match="there is no precision 'fp8'; there are fp32, bf16, fp16"):
        run_pipeline(Module({"main": parse_graph('def main(x: f32[2]):\n    return {"y": x}')}), precision="fp8")


def test_every_op_that_mixes_tokens_says_what_it_wants_in_full() -> None:
    """An op with a kernel of its own that says nothing keeps everything in full, which is safe and slow."""
    silent = {op.name for op in OPS.values() if MIXER in op.traits} - FULL.keys()
    assert silent == {"scan", "while_loop", "lti_scan", "wkv"} & silent


@given(graphs(), st.sampled_from(("bf16", "fp16")))
def test_random_graphs_keep_their_signature(graph: Graph, precision: str) -> None:
    rng = np.random.default_rng(0)
    module = Module({"main": graph}, {f"w{i}": rng.standard_normal((4, 4)).astype(np.float32) for i in range(2)})
    result = run_pipeline(module, CLAIMS, precision=precision)
    assert [v.type for v in result.entries["main"].inputs] == [v.type for v in graph.inputs]
    assert [v.type for v in result.entries["main"].results] == [v.type for v in graph.results]
    inputs = {v.node.attrs["name"]: random_array(rng, v.type) for v in graph.inputs}
    stored = {a.dtype for a in result.weights.values() if a.dtype.itemsize == 2}
    assert stored <= {DTYPES["bf16" if precision == "bf16" else "f16"].numpy}
    for found, expected in zip(interpret(result, inputs).values(), interpret(module, inputs).values(), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
