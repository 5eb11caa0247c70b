"""Random graphs for the property tests: what the pipeline and the compiled code must not change the meaning of."""

from __future__ import annotations

from hypothesis import strategies as st

from coilc.ir import Graph, Value, ops, symbol
from coilc.ir.types import DTYPES, TensorType

UNARY = ("exp", "tanh", "neg", "sigmoid", "abs", "silu")
BINARY = ("add", "sub", "mul", "maximum")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs over f32[B, L, 4]: arithmetic, movement, reductions, products, outputs anywhere."""
    batch, length = symbol("B"), symbol("L")
    type_ = TensorType(DTYPES["f32"], (batch, length, 4))
    inputs = tuple(ops.input_(name=f"x{i}", type=type_) for i in range(2))
    weights = tuple(ops.weight(name=f"w{i}", type=TensorType(DTYPES["f32"], (4, 4))) for i in range(2))
    values: list[Value] = [*inputs, ops.mul(inputs[0], 0.5)]
    for _ in range(draw(st.integers(1, 14))):
        x, y = (draw(st.sampled_from(values)) for _ in range(2))
        values.append(draw_step(draw, x, y, weights))
    count = draw(st.integers(1, 3))
    outputs = tuple((f"y{i}", draw(st.sampled_from(values[-6:]))) for i in range(count))
    return Graph("main", inputs, outputs, (("B", (1, None)), ("L", (1, 64))))


def draw_step(draw: st.DrawFn, x: Value, y: Value, weights: tuple[Value, ...]) -> Value:
    """One more value of the same type."""
    kind = draw(
        st.sampled_from(("unary", "binary", "norm", "softmax", "shift", "transpose", "linear", "length", "conv"))
    )
    if kind == "unary":
        return getattr(ops, draw(st.sampled_from(UNARY)))(ops.mul(x, 0.5))
    if kind == "binary":
        return getattr(ops, draw(st.sampled_from(BINARY)))(x, y)
    if kind == "norm":
        spread = ops.sqrt(ops.add(ops.mean(ops.mul(x, x), axes=(2,), keepdims=True), 1.0))
        return ops.div(y, spread)
    if kind == "softmax":
        return ops.softmax(x, axis=draw(st.integers(0, 2)))
    if kind == "shift":
        padded = ops.pad(x, low=(0, 1, 0), high=(0, 0, 0), value=0.0)
        return ops.slice_axis(padded, 1, 0, x.dims[1])
    if kind == "transpose":
        swapped = ops.exp(ops.neg(ops.abs(ops.transpose(x, perm=(0, 2, 1)))))
        return ops.transpose(swapped, perm=(0, 2, 1))
    if kind == "linear":
        rows = ops.reshape(x, dims=(x.dims[0] * x.dims[1], 4))
        product = ops.linear(rows, draw(st.sampled_from(weights)))
        return ops.mul(ops.reshape(product, dims=x.dims), 0.25)
    if kind == "length":
        return ops.sub(x, ops.mean(y, axes=(1,), keepdims=True))
    taps = ops.mul(draw(st.sampled_from(weights)), 0.5)
    convolved, state = ops.causal_conv1d(x, taps, optional=(), activation="silu")
    return ops.add(convolved, ops.sum(state, axes=(1,), keepdims=True)) if draw(st.booleans()) else convolved
