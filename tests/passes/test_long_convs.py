"""Long convolutions: recognised in every writing, turned into a recurrence or a constant, and run through transforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import coilc
from coilc.ir import Graph, Module, UnsupportedError, Value, interpret, ops, type_of
from coilc.ir.ops.fourier import Transform, by_tables, transform
from coilc.passes import PASSES, classify_kernels, explain, fold_constants, recognise_long_convs, run_pipeline
from coilc.passes.extract_state import extract_state
from coilc.passes.transform_long_convs import _in_blocks, _in_one_block, describe_transforms, transform_long_convs

Check = Callable[..., Module]

SPECTRA = """
    def main(x: f32[B, 4, L], k: f32[4, L], *, B: dim[1:], L: dim[1:]):
        v0: f32[B, 4, 2*L] = pad(x, low=(0, 0, 0), high=(0, 0, L), value=0.0)
        v1: c64[B, 4, L + 1] = rfft(v0, axis=2)
        v2: f32[4, 2*L] = pad(k, low=(0, 0), high=(0, L), value=0.0)
        v3: c64[4, L + 1] = rfft(v2, axis=1)
        v4: c64[B, 4, L + 1] = broadcast(v3, dims=(B, 4, L + 1))
        v5: c64[B, 4, L + 1] = mul(v1, v4)
        v6: f32[B, 4, 2*L] = irfft(v5, axis=2, n=2*L)
        v7: f32[B, 4, L] = slice(v6, starts=(0, 0, 0), stops=(B, 4, L), steps=(1, 1, 1))
        return {"y": v7}
    """


def test_product_of_spectra(check: Check) -> None:
    check(
        lambda module: PASSES["simplify"](recognise_long_convs(module)),
        SPECTRA,
        """
        def main(x: f32[B, 4, L], k: f32[4, L], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, L, 4] = transpose(x, perm=(0, 2, 1))
            v1: f32[L, 4] = transpose(k, perm=(1, 0))
            v2: f32[B, L, 4] = long_conv(v0, v1, optional=())
            v3: f32[B, 4, L] = transpose(v2, perm=(0, 2, 1))
            return {"y": v3}
        """,
    )


def _fft(u: torch.Tensor, k: torch.Tensor, n: int) -> torch.Tensor:
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)


def channels_last(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    length, n = u.shape[1], 2 * u.shape[1]
    u_f, k_f = torch.fft.rfft(u, n=n, dim=1), torch.fft.rfft(k.T, n=n, dim=0)
    return torch.fft.irfft(u_f * k_f[None], n=n, dim=1)[:, :length]


def several_heads(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """S4's product of one signal with several kernels per channel."""
    u, length = u.transpose(1, 2), u.shape[1]
    k = torch.stack([k, 2 * k])
    u_f, k_f = torch.fft.rfft(u, n=2 * length), torch.fft.rfft(k, n=2 * length)
    y = torch.fft.irfft(torch.einsum("bhl,chl->bchl", u_f, k_f), n=2 * length)[..., :length]
    return y.flatten(1, 2).transpose(1, 2)


def scaled_spectrum(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    u, n = u.transpose(1, 2), 2 * u.shape[1]
    spectrum = torch.fft.rfft(u, n=n) * (torch.fft.rfft(k, n=n) / n)
    return torch.fft.irfft(spectrum, n=n, norm="forward")[..., : n // 2].transpose(1, 2)


def skip_and_flip(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Against the arrow of time."""
    u, length = u.transpose(1, 2).flip(-1), u.shape[1]
    y = (_fft(u, k, 2 * length)[..., :length] + 3 * u).flip(-1)
    return y.transpose(1, 2)


def both_directions(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    pad = torch.nn.functional.pad
    u, length = u.transpose(1, 2), u.shape[1]
    both = pad(k, (0, length)) + pad(0.5 * k.flip(-1), (length, 0))
    return _fft(u, both, 2 * length)[..., :length].transpose(1, 2)


def as_convolution(u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    length = u.shape[1]
    padded = torch.nn.functional.pad(u.transpose(1, 2), (length - 1, 0))
    return torch.nn.functional.conv1d(padded, k.flip(-1)[:, None], groups=k.shape[0]).transpose(1, 2)


WRITINGS = (
    channels_last, several_heads, scaled_spectrum, skip_and_flip, both_directions, as_convolution,
)  # fmt: skip


class Written(torch.nn.Module):
    def __init__(self, convolve: Callable[..., torch.Tensor], length: int) -> None:
        super().__init__()
        self.convolve = convolve
        self.k = torch.nn.Parameter(torch.randn(3, length, generator=torch.Generator().manual_seed(0)))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.convolve(u, self.k)


@pytest.mark.parametrize("writing", WRITINGS)
@pytest.mark.parametrize("length", [70, 97])
def test_writings(writing: Callable[..., torch.Tensor], length: int) -> None:
    model, u = Written(writing, length), torch.randn(2, length, 3, generator=torch.Generator().manual_seed(1))
    program = coilc.export(model, (u,), dynamic_shapes={"u": {0: "B"}})
    stages: dict[str, Module] = {}
    scheduled = run_pipeline(program, observe=stages.__setitem__)
    found = [node.op.name for node in stages["recognise"].entries["main"].nodes]
    assert found.count("long_conv") == 1
    assert not {"fft", "rfft", "irfft"} & set(found)
    (actual,) = interpret(scheduled, {"u": u.numpy()}).values()
    expected = model.double()(u.double()).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_what_wraps_around_is_left(preserves: Check) -> None:
    text = SPECTRA.replace("high=(0, 0, L)", "high=(0, 0, 2)").replace("high=(0, L)", "high=(0, 2)")
    text = text.replace("2*L", "L + 2").replace("L + 1]", "(L + 2)//2 + 1]").replace("L + 1)", "(L + 2)//2 + 1)")
    module = preserves(recognise_long_convs, text)
    assert "irfft" in {node.op.name for node in module.entries["main"].nodes}
    reasons = [event.reason for event in explain(module, "recognise_long_convs").events if event.reason]
    assert any("wraps around: L steps and L taps do not fit into L + 2" in reason for reason in reasons)


# --- kernels ----------------------------------------------------------------------------------------------------------


EXPONENTIALS = """
    def main(x: f32[B, L, 4], a: f32[3, 4], c: f32[3, 4], *, B: dim[1:], L: dim[1:]):
        v0: f32[L] = iota(dims=(L,), axis=0, dtype=f32)
        v1: f32[L, 1] = reshape(v0, dims=(L, 1))
        v2: f32[3, L, 4] = broadcast(v1, dims=(3, L, 4))
        a0: f32[3, 4] = square(a)
        a1: f32[3, 4] = neg(a0)
        v3: f32[3, 1, 4] = reshape(a1, dims=(3, 1, 4))
        v4: f32[3, L, 4] = broadcast(v3, dims=(3, L, 4))
        v5: f32[3, L, 4] = mul(v2, v4)
        v6: f32[3, L, 4] = exp(v5)
        v7: f32[L, 4] = einsum(c, v6, equation="nd,nld->ld")
        v8: f32[B, L, 4] = long_conv(x, v7, optional=())
        return {"y": v8}
    """


def test_a_kernel_of_exponentials_is_a_recurrence(preserves: Check) -> None:
    module = preserves(classify_kernels, EXPONENTIALS)
    nodes = module.entries["main"].nodes
    assert [n.op.name for n in nodes].count("lti_scan") == 1
    assert not any(
        coilc.ir.symbol("L") in t.dims for n in nodes for t in n.types if n.op.name not in ("input", "lti_scan")
    )


@pytest.mark.parametrize(("was", "becomes", "reason"), [
    ("exp(v5)", "tanh(v5)", "'tanh' of it"),
    ("mul(v2, v4)", "mul(v2, v2)", "a product of what runs over the taps"),
    ("iota(dims=(L,), axis=0, dtype=f32)", "reshape(p, dims=(L,))", "does not run over its taps"),
])  # fmt: skip
def test_other_kernels_stay(was: str, becomes: str, reason: str, preserves: Check) -> None:
    text = EXPONENTIALS.replace(was, becomes)
    text = text.replace("c: f32[3, 4], *", "c: f32[3, 4], p: f32[L], *") if "p, " in becomes else text
    module = preserves(classify_kernels, text)
    assert any(node.op is ops.long_conv for node in module.entries["main"].nodes)
    assert any(reason in str(e.reason) for e in explain(module, "classify_kernels").events)


def test_a_kernel_of_known_length_is_a_constant() -> None:
    x, rate = (ops.input_(name="x", type=type_of(np.zeros((1, 90, 4), np.float32))), np.full((4, 1), -0.1, np.float32))
    w = ops.weight(name="rate", type=type_of(rate))
    taps = ops.cast(ops.iota(dims=(1, 90), axis=1, dtype=coilc.ir.DTYPES["i64"]), dtype=coilc.ir.DTYPES["f32"])
    kernel = ops.transpose(ops.exp(ops.mul(w, taps)), perm=(1, 0))
    module = Module({"main": Graph("main", (x,), (("y", ops.long_conv(x, kernel)),))}, {"rate": rate})
    folded = fold_constants(module)
    assert {node.op.name for node in folded.entries["main"].nodes} <= {"input", "weight", "reshape", "long_conv"}
    (array,) = folded.weights.values()
    np.testing.assert_allclose(array.reshape(90, 4)[:, 0], np.exp(-0.1 * np.arange(90)), rtol=1e-6)


# --- states -----------------------------------------------------------------------------------------------------------


def test_a_short_kernel_keeps_a_window_and_a_long_one_is_refused() -> None:
    module = PASSES["simplify"](recognise_long_convs(_module(SPECTRA)))
    with pytest.raises(UnsupportedError, match="no sum of exponentials"):
        extract_state(module, ("step",))
    x, k = np.ones((1, 9, 2), np.float32), np.arange(10, dtype=np.float32).reshape(5, 2)
    sequence = type_of(x).with_dims((1, coilc.ir.symbol("L"), 2))
    value, taps = ops.input_(name="x", type=sequence), ops.weight(name="k", type=type_of(k))
    graph = Graph("main", (value,), (("y", ops.long_conv(value, taps)),), (("L", (1, None)),))
    step = extract_state(Module({"main": graph}, {"k": k}), ("main", "step"))
    (whole,) = interpret(step, {"x": x}, "main").values()
    state = {name: np.zeros((1, 4, 2), np.float32) for _, name in step.entries["step"].states}
    (given_name,) = [n for n, _ in step.entries["step"].states]
    for t in range(9):
        found = interpret(step, {"x": x[:, t : t + 1], **{given_name: next(iter(state.values()))}}, "step")
        np.testing.assert_allclose(found["y"], whole[:, t : t + 1], rtol=1e-6)
        state = {name: found[name] for name in state}


def _module(text: str) -> Module:
    from textwrap import dedent

    graph = coilc.ir.parse_graph(dedent(text).strip())
    return Module({"main": graph})


# --- transforms -------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 90),
    st.integers(1, 100),
    st.integers(0, 100),
    st.sampled_from([1, 2, 16, 24]),
    st.sampled_from([transform, by_tables]),
)
def test_blocks_and_one_block_are_the_convolution(
    length: int, taps: int, ahead: int, block: int, by: Transform
) -> None:
    rng = np.random.default_rng(length)
    arrays = {"x": rng.standard_normal((2, length, 3)), "k": rng.standard_normal((taps, 3))}
    arrays["future"] = rng.standard_normal((ahead, 3))
    x, k, future = (ops.input_(name=n, type=type_of(a)) for n, a in arrays.items())

    def run(y: Value) -> np.ndarray:
        return interpret(Module({"main": Graph("main", (x, k, future), (("y", y),))}), arrays)["y"]

    whole = run(ops.long_conv(x, k, future, optional=("future",)))
    np.testing.assert_allclose(run(_in_one_block(x, k, [future], 96, by)), whole, atol=1e-11)
    np.testing.assert_allclose(run(_in_blocks(x, k, block, by)), run(ops.long_conv(x, k)), atol=1e-11)


def test_the_choice() -> None:
    def becomes(length: coilc.ir.Dim, taps: int) -> str:
        x = ops.input_(name="x", type=type_of(np.zeros(1, np.float32)).with_dims((1, length, 4)))
        k = ops.weight(name="k", type=type_of(np.zeros((taps, 4), np.float32)))
        graph = Graph("main", (x,), (("y", ops.long_conv(x, k)),), (("L", (1, None)),))
        names = [n.op.name for n in transform_long_convs(Module({"main": graph})).entries["main"].nodes]
        return "direct" if "matmul" not in names else "blocks" if "long_conv" in names else "one block"

    symbol = coilc.ir.symbol("L")
    assert becomes(symbol, 65) == "direct"
    assert becomes(symbol, 4096) == "blocks"
    assert becomes(4096, 4096) in ("one block", "blocks")


def test_the_choice_is_described() -> None:
    x, k = (
        ops.input_(name=n, type=type_of(np.zeros((*d, 4), np.float32))) for n, d in (("x", (1, 4096)), ("k", (4096,)))
    )
    graph = Graph("main", (x, k), (("y", ops.long_conv(x, k)),))
    (row,) = describe_transforms(Module({"main": graph}), {"dft"})
    assert (row["entry"], row["op"], row["algorithm"]) == ("main", "long_conv", "transforms")
    assert "products per element at length 4096, 2048 with one per tap" in row["reason"]


def test_many_taps_after_a_state() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((2, 9, 3)),
        "w": rng.standard_normal((70, 3)),
        "s": rng.standard_normal((2, 69, 3)),
    }
    operands = [ops.input_(name=n, type=type_of(a)) for n, a in arrays.items()]
    results = ops.causal_conv1d(*operands, optional=("state",), activation="silu")
    before = Module({"main": Graph("main", tuple(operands), (("y", results[0]), ("last", results[1])))})
    after = transform_long_convs(before)
    assert any(node.op is ops.long_conv for node in after.entries["main"].nodes)
    for name, expected in interpret(before, arrays).items():
        np.testing.assert_allclose(interpret(after, arrays)[name], expected, atol=1e-12)
