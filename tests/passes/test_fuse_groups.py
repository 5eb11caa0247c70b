"""What shares a kernel, and why not more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import dedent, indent

import numpy as np
import pytest

from coilc.ir import DTYPES, Graph, Module, TensorType, Value, VerifyError, ops, parse_graph, symbol, type_of
from coilc.passes import explain, fuse_groups, plan_memory, run_pipeline
from coilc.passes.build_bodies import Group, Schedule

from .conftest import assert_same_results

Check = Callable[..., Module]
CLAIMS = frozenset({"packed_matmul", "causal_conv1d", "selective_scan"})


def kernels(module: Module) -> list[str]:
    """The names of the bodies in order."""
    return [node.attrs["body"].name for node in module.entries["main"].nodes if node.op.name == "fused"]


def test_pointwise_chain(check: Check) -> None:
    check(
        fuse_groups,
        """
        def main(x: f32[B, 4], y: f32[4], *, B: dim[1:]):
            v0: f32[B, 4] = exp(x)
            v1: f32[B, 4] = broadcast(y, dims=(B, 4))
            v2: f32[B, 4] = mul(v0, v1)
            return {"z": v2}
        """,
        """
        def main(x: f32[B, 4], y: f32[4], *, B: dim[1:]):
            def exp_mul_0(x0: f32[B, 4], x1: f32[4]):
                v0: f32[B, 4] = exp(x0)
                v1: f32[B, 4] = broadcast(x1, dims=(B, 4))
                v2: f32[B, 4] = mul(v0, v1)
                return {"y0": v2}
            v0: f32[B, 4] = fused(x, y, body=exp_mul_0)
            return {"z": v0}
        """,
    )


def test_residual_and_norm_are_one_kernel_with_two_results(check: Check) -> None:
    check(
        fuse_groups,
        """
        def main(x: f32[B, 4], r: f32[B, 4], *, B: dim[1:]):
            v0: f32[B, 4] = add(x, r)
            v1: f32[B, 1] = max(v0, axes=(1,), keepdims=True)
            v2: f32[B, 4] = broadcast(v1, dims=(B, 4))
            v3: f32[B, 4] = sub(v0, v2)
            return {"h": v0, "n": v3}
        """,
        """
        def main(x: f32[B, 4], r: f32[B, 4], *, B: dim[1:]):
            def max_add_sub_0(x0: f32[B, 4], x1: f32[B, 4]):
                v0: f32[B, 4] = add(x0, x1)
                v1: f32[B, 1] = max(v0, axes=(1,), keepdims=True)
                v2: f32[B, 4] = broadcast(v1, dims=(B, 4))
                v3: f32[B, 4] = sub(v0, v2)
                return {"y0": v0, "y1": v3}
            v0, v1 = fused(x, r, body=max_add_sub_0)
            return {"h": v0, "n": v1}
        """,
    )


def test_epilogue_and_prologue_of_a_product(check: Check) -> None:
    check(
        fuse_groups,
        """
        def main(x: f32[B, 8], w: f32[4, 4], r: f32[B, 4], *, B: dim[1:]):
            v0: f32[B, 4] = slice(x, starts=(0, 4), stops=(B, 8), steps=(1, 1))
            v1: f32[B, 4] = matmul(v0, w)
            v2: f32[B, 4] = sigmoid(v1)
            v3: f32[B, 4] = mul(v1, v2)
            v4: f32[B, 4] = add(v3, r)
            return {"y": v4}
        """,
        """
        def main(x: f32[B, 8], w: f32[4, 4], r: f32[B, 4], *, B: dim[1:]):
            def matmul_sigmoid_mul_add_0(x0: f32[B, 8], x1: f32[4, 4], x2: f32[B, 4]):
                v0: f32[B, 4] = slice(x0, starts=(0, 4), stops=(B, 8), steps=(1, 1))
                v1: f32[B, 4] = matmul(v0, x1)
                v2: f32[B, 4] = sigmoid(v1)
                v3: f32[B, 4] = mul(v1, v2)
                v4: f32[B, 4] = add(v3, x2)
                return {"y0": v4}
            v0: f32[B, 4] = fused(x, w, r, body=matmul_sigmoid_mul_add_0)
            return {"y": v0}
        """,
    )


def test_outputs_get_memory_of_their_own(check: Check) -> None:
    check(
        fuse_groups,
        """
        def main(x: f32[2]):
            return {"a": x, "b": x}
        """,
        """
        def main(x: f32[2]):
            def copy_0(x0: f32[2]):
                v0: f32[2] = reshape(x0, dims=(2,))
                return {"y0": v0}
            v0: f32[2] = fused(x, body=copy_0)
            v1: f32[2] = fused(v0, body=copy_0)
            return {"a": v0, "b": v1}
        """,
    )


REASONS = {
    "2 kernels would compute it": """
        v0: f32[4, 4] = exp(x)
        v1: f32[1, 4] = sum(v0, axes=(0,), keepdims=True)
        v2: f32[4, 1] = sum(v0, axes=(1,), keepdims=True)
        v3: f32[4, 4] = broadcast(v1, dims=(4, 4))
        v4: f32[4, 4] = broadcast(v2, dims=(4, 4))
        y: f32[4, 4] = sub(v3, v4)""",
    "a kernel would compute it several times": """
        v0: f32[4, 1] = slice(x, starts=(0, 0), stops=(4, 1), steps=(1, 1))
        v1: f32[4, 1] = exp(v0)
        v2: f32[4, 4] = broadcast(v1, dims=(4, 4))
        y: f32[4, 4] = mul(x, v2)""",
    "a kernel that reads it computes nothing on the way to this operand": """
        v0: f32[4, 4] = exp(x)
        y: f32[4, 4] = matmul(v0, x)""",
    "'slice' cannot follow inside a kernel of kind 'anchor'": """
        v0: f32[4, 4] = matmul(x, x)
        v1: f32[4, 4] = slice(v0, starts=(0, 0), stops=(4, 4), steps=(1, 1))
        y: f32[4, 4] = exp(v1)""",
    "it already belongs to another kernel": """
        v0: f32[4, 4] = matmul(x, x)
        v1: f32[4, 4] = cumsum(x, axis=0)
        y: f32[4, 4] = add(v0, v1)""",
}


@pytest.mark.parametrize("reason", REASONS)
def test_why_not_fused(reason: str) -> None:
    text = "\n".join(["def main(x: f32[4, 4]):", indent(dedent(REASONS[reason]), "    "), '    return {"y": y}'])
    found = {event.reason for event in explain(Module({"main": parse_graph(text)}), "fuse_groups").declined}
    assert reason in found


def test_kernels_have_a_longest_length() -> None:
    x = value = ops.input_(name="x", type=TensorType(DTYPES["f32"], (8,)))
    for number in range(600):
        value = ops.sin(ops.add(value, float(number)))
    module = fuse_groups(Module({"main": Graph("main", (x,), (("y", value),))}))
    assert 4 <= len(kernels(module)) <= 16


def test_groups_that_wait_for_one_another_are_refused() -> None:
    graph = parse_graph("""
def main(x: f32[2]):
    v0: f32[2] = exp(x)
    v1: f32[2] = sin(v0)
    v2: f32[2] = cos(v1)
    return {"y": v2}
""")
    _, first, middle, last = graph.nodes
    with pytest.raises(VerifyError, match=r"fused groups wait for one another: .*sin"):
        Schedule(graph, [Group((first, last)), Group((middle,))]).build()


# --- a Mamba model as an import builds it ------------------------------------------------------------------------------

WIDTH, INNER, STATE, RANK, TAPS, WORDS = 8, 16, 4, 2, 4, 40


class Weights(dict[str, np.ndarray]):
    def __call__(self, name: str, *dims: int) -> Value:
        self.setdefault(name, np.random.default_rng(len(self)).standard_normal(dims).astype(np.float32) * 0.1)
        return ops.weight(name=name, type=type_of(self[name]))


def swapped(x: Value) -> Value:
    return ops.transpose(x, perm=(0, 2, 1))


def norm(x: Value, w: Value) -> Value:
    power = ops.mean(ops.pow(x, 2.0), axes=(2,), keepdims=True)
    return ops.mul(w, ops.mul(x, ops.rsqrt(ops.add(power, 1e-5))))


def split(x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    ends = np.cumsum(sizes)
    return [ops.slice_axis(x, axis, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]


def layer(h: Value, weights: Weights, name: str) -> Value:
    """Channels before time, as PyTorch's Mamba writes it; time-major at the recurrent ops."""
    x, z = split(
        swapped(ops.linear(norm(h, weights(f"{name}.norm", WIDTH)), weights(f"{name}.in", 2 * INNER, WIDTH))),
        1,
        [INNER] * 2,
    )
    taps = swapped_matrix(ops.reshape(weights(f"{name}.conv", INNER, 1, TAPS), dims=(INNER, TAPS)))
    y, _ = ops.causal_conv1d(swapped(x), taps, weights(f"{name}.bias", INNER), optional=("bias",), activation="silu")
    x = swapped(y)
    dt, b, c = split(ops.linear(swapped(x), weights(f"{name}.x", RANK + 2 * STATE, INNER)), 2, [RANK, STATE, STATE])
    steps = ops.matmul(ops.broadcast(weights(f"{name}.dt", INNER, RANK), dims=(x.dims[0], INNER, RANK)), swapped(dt))
    decay = swapped_matrix(ops.neg(ops.exp(weights(f"{name}.A_log", INNER, STATE))))
    b, c = (ops.expand_dims(m, 2) for m in (b, c))
    y, _ = ops.selective_scan(
        swapped(x), swapped(steps), decay, b, c, weights(f"{name}.D", INNER), swapped(z), weights(f"{name}.dt_bias", INNER),
        optional=("D", "z", "dt_bias"), softplus=True,
    )  # fmt: skip
    return ops.add(h, ops.linear(swapped(swapped(y)), weights(f"{name}.out", WIDTH, INNER)))


def swapped_matrix(x: Value) -> Value:
    return ops.transpose(x, perm=(1, 0))


def mamba(layers: int) -> Module:
    weights, ids = Weights(), ops.input_(name="ids", type=TensorType(DTYPES["i64"], (symbol("B"), symbol("L"))))
    h = ops.take(weights("words", WORDS, WIDTH), ids, axis=0)
    for index in range(layers):
        h = layer(h, weights, f"layers.{index}")
    logits = ops.linear(norm(h, weights("norm", WIDTH)), weights("words", WORDS, WIDTH))
    return Module({"main": Graph("main", (ids,), (("logits", logits),), (("B", (1, None)), ("L", (1, None))))}, weights)


LAYER = ["packed_matmul", "causal_conv", "packed_matmul", "packed_matmul", "selective_scan", "packed_matmul_add"]


def shape_of(name: str) -> str:
    """Body names without what their arithmetic is called."""
    return "norm" if name.startswith("sum") else name.replace("causal_conv1d", "causal_conv")


def test_a_mamba_layer_is_seven_kernels(rng: np.random.Generator) -> None:
    module = mamba(3)
    result = run_pipeline(module, CLAIMS)
    assert_same_results(module, result, rng)
    found = [shape_of(name) for name in kernels(result)]
    assert found[1:] == ["norm", *LAYER[:-1], found[7], "norm", *LAYER, "norm", *LAYER, "norm", "packed_matmul"]


def test_no_transpose_and_no_state_per_step_is_left() -> None:
    graph = run_pipeline(mamba(2), CLAIMS).entries["main"]
    bodies = {node.attrs["body"] for node in graph.nodes if node.op.name == "fused"}
    assert not any(node.op.name == "transpose" for body in bodies for node in body.nodes)
    assert max(v.type.rank for v in plan_memory(graph).placement) <= 3


def test_equal_layers_share_their_kernels() -> None:
    names = [{node.attrs["body"] for node in run_pipeline(mamba(n), CLAIMS).entries["main"].nodes if node.op.name == "fused"} for n in (3, 9)]  # fmt: skip
    assert names[0] == names[1]


def test_memory_does_not_grow_with_depth() -> None:
    plans = [plan_memory(run_pipeline(mamba(n), CLAIMS).entries["main"]) for n in (3, 9)]
    assert plans[0].slots == plans[1].slots
    assert plans[0].bytes({"B": 2, "L": 64}) < 2 * 64 * 4 * 150


LOOP = """
def main(x: f32[B, L, 8], *, B: dim[1:], L: dim[1:]):
    v0: f32[()] = constant(value=array(f32, 0.0))
    v1: f32[B, 8] = broadcast(v0, dims=(B, 8))
    v2: f32[B, L, 8] = exp(x)
    v3: f32[L, B, 8] = transpose(v2, perm=(1, 0, 2))
    def body_0(h: f32[B, 8], x: f32[B, 8]):
        v0: f32[B, 8] = tanh(h)
        v1: f32[B, 8] = add(v0, x)
        return {"h": v1, "y": v1}
    v4, v5 = scan(v1, v3, body=body_0, carries=1, sequences=1, axis=0, reverse=False)
    return {"y": v5}
"""


def test_a_loop_reads_its_operands_through_what_leads_to_them(preserves: Callable[..., Module]) -> None:
    assert kernels(preserves(fuse_groups, LOOP)) == ["scan_exp"]


def test_a_step_with_a_product_reads_rows_of_memory(preserves: Callable[..., Module]) -> None:
    body = LOOP.replace("tanh(h)", "matmul(h, w)").replace("x: f32[B, 8]):", "x: f32[B, 8], w: f32[8, 8]):")
    text = body.replace("main(x: f32[B, L, 8],", "main(x: f32[B, L, 8], w: f32[8, 8],").replace(
        "(v1, v3, body", "(v1, v3, w, body"
    )
    assert kernels(preserves(fuse_groups, text)) == ["exp", "scan"]
