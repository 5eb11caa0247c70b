"""Golden text of the passes that do one thing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from coilc.ir import Module, UnsupportedError, parse_graph, print_module
from coilc.passes import (
    canonicalise_reductions,
    decompose,
    explain,
    fold_constants,
    lower_complex,
    pack_weights,
    share_tied_weights,
    sink_transposes,
)

Check = Callable[..., Module]
PACKING = partial(pack_weights, panel=32, claims={"packed_matmul"})


def test_decompose(check: Check) -> None:
    check(
        decompose,
        """
        def main(x: f32[B, 4], *, B: dim[1:]):
            v0: f32[B, 4] = silu(x)
            return {"y": v0}
        """,
        """
        def main(x: f32[B, 4], *, B: dim[1:]):
            v0: f32[B, 4] = sigmoid(x)
            v1: f32[B, 4] = mul(x, v0)
            return {"y": v1}
        """,
    )


def test_claimed_composites_stay(check: Check) -> None:
    text = """
        def main(x: f32[B, 4], *, B: dim[1:]):
            v0: f32[B, 4] = silu(x)
            return {"y": v0}
        """
    check(partial(decompose, keep={"silu"}), text, text)


def test_canonicalise_reductions(check: Check) -> None:
    check(
        canonicalise_reductions,
        """
        def main(x: f32[B, 4, 2], *, B: dim[1:]):
            v0: f32[B] = sum(x, axes=(1, 2), keepdims=False)
            return {"y": v0}
        """,
        """
        def main(x: f32[B, 4, 2], *, B: dim[1:]):
            v0: f32[B, 1, 1] = sum(x, axes=(1, 2), keepdims=True)
            v1: f32[B] = reshape(v0, dims=(B,))
            return {"y": v1}
        """,
    )


def test_pack_weights(check: Check) -> None:
    check(
        PACKING,
        """
        def main(x: f32[B, L, 6], *, B: dim[1:], L: dim[1:]):
            v0: f32[40, 6] = weight(name="w", type=f32[40, 6])
            v1: f32[40] = weight(name="b", type=f32[40])
            v2: f32[B, L, 40] = linear(x, v0, v1)
            return {"y": v2}
        """,
        """
        def main(x: f32[B, L, 6], *, B: dim[1:], L: dim[1:]):
            v0: f32[40, 6] = weight(name="w", type=f32[40, 6])
            v1: f32[6, 40] = transpose(v0, perm=(1, 0))
            v2: f32[2, 6, 32] = pack_panels(v1, panel=32)
            v3: f32[B, L, 40] = packed_matmul(x, v2, columns=40)
            v4: f32[40] = weight(name="b", type=f32[40])
            v5: f32[B, L, 40] = broadcast(v4, dims=(B, L, 40))
            v6: f32[B, L, 40] = add(v3, v5)
            return {"y": v6}
        """,
    )


def test_a_weight_on_the_left_moves_to_the_right(preserves: Check) -> None:
    found = preserves(
        PACKING,
        """
        def main(x: f32[B, 6, L], *, B: dim[1:], L: dim[1:]):
            v0: f32[40, 6] = weight(name="w", type=f32[40, 6])
            v1: f32[B, 40, 6] = broadcast(v0, dims=(B, 40, 6))
            v2: f32[B, 40, L] = matmul(v1, x)
            return {"y": v2}
        """,
    )
    assert "packed_matmul" in {node.op.name for node in found.entries["main"].nodes}


def test_rows_folded_for_a_product_unfold(preserves: Check) -> None:
    found = preserves(
        PACKING,
        """
        def main(x: f32[B, L, 6], *, B: dim[1:], L: dim[1:]):
            v0: f32[6, 40] = weight(name="w", type=f32[6, 40])
            v1: f32[B*L, 6] = reshape(x, dims=(B*L, 6))
            v2: f32[B*L, 40] = matmul(v1, v0)
            v3: f32[B, L, 40] = reshape(v2, dims=(B, L, 40))
            return {"y": v3}
        """,
    )
    assert "reshape" not in {node.op.name for node in found.entries["main"].nodes}


def test_tied_embeddings_are_stored_once(preserves: Check) -> None:
    found = preserves(
        lambda module: fold_constants(share_tied_weights(PACKING(module))),
        """
        def main(ids: i64[B, L], *, B: dim[1:], L: dim[1:]):
            v0: f32[40, 6] = weight(name="w", type=f32[40, 6])
            v1: i64[()] = constant(value=array(i64, 38))
            v2: i64[B, L] = broadcast(v1, dims=(B, L))
            v3: i64[B, L] = sub(ids, v2)
            v4: f32[B, L, 6] = take(v0, v3, axis=0)
            v5: f32[B, L, 40] = linear(v4, v0)
            return {"y": v5}
        """,
    )
    assert [array.shape for array in found.weights.values()] == [(2, 6, 32)]


def test_why_a_product_is_not_packed() -> None:
    graph = parse_graph("""
def main(x: f32[3, 6], w: f32[6, 40]):
    v0: f32[3, 40] = matmul(x, w)
    return {"y": v0}
""")
    (event,) = explain(Module({"main": graph}), "pack_weights").declined
    assert str(event).endswith("declined: the right operand is computed by the model, not a weight")


SUNK = {
    "elementwise": (
        "v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))",
        "v1: f32[B, 8, L] = exp(v0)",
        "v2: f32[B, L, 8] = transpose(v1, perm=(0, 2, 1))",
    ),
    "weight per channel": (
        "w0: f32[8, 1] = weight(name='w', type=f32[8, 1])".replace("'", '"'),
        "w1: f32[B, 8, L] = broadcast(w0, dims=(B, 8, L))",
        "v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))",
        "v1: f32[B, 8, L] = mul(v0, w1)",
        "v2: f32[B, L, 8] = transpose(v1, perm=(0, 2, 1))",
    ),
    "slice, pad and concat": (
        "v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))",
        "v1: f32[B, 3, L] = slice(v0, starts=(0, 2, 0), stops=(B, 5, L), steps=(1, 1, 1))",
        "v3: f32[B, 5, L] = pad(v1, low=(0, 1, 0), high=(0, 1, 0), value=1.0)",
        "v4: f32[B, 13, L] = concat(v0, v3, axis=1)",
        "v5: f32[B, 13, L] = flip(v4, axes=(2,))",
        "v2: f32[B, L, 13] = transpose(v5, perm=(0, 2, 1))",
    ),
    "norm over channels": (
        "v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))",
        "v1: f32[B, 1, L] = sum(v0, axes=(1,), keepdims=True)",
        "v3: f32[B, 8, L] = broadcast(v1, dims=(B, 8, L))",
        "v4: f32[B, 8, L] = sub(v0, v3)",
        "v2: f32[B, L, 8] = transpose(v4, perm=(0, 2, 1))",
    ),
    "unit dims": (
        "v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))",
        "v1: f32[B, 8, 1, L] = reshape(v0, dims=(B, 8, 1, L))",
        "v3: f32[B, 8, 1, L] = exp(v1)",
        "v4: f32[B, 8, L] = reshape(v3, dims=(B, 8, L))",
        "v2: f32[B, L, 8] = transpose(v4, perm=(0, 2, 1))",
    ),
    "cumulative sum": (
        "v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))",
        "v1: f32[B, 8, L] = cumsum(v0, axis=2)",
        "v2: f32[B, L, 8] = transpose(v1, perm=(0, 2, 1))",
    ),
}


@pytest.mark.parametrize("case", SUNK)
def test_transposes_meet_their_inverse(case: str, preserves: Check) -> None:
    lines = "\n    ".join(SUNK[case])
    text = f'def main(x: f32[B, L, 8], *, B: dim[1:], L: dim[1:]):\n    {lines}\n    return {{"y": v2}}'
    found = preserves(sink_transposes, text)
    assert "transpose" not in {node.op.name for node in found.entries["main"].nodes}


ONE_TAP = """
    def main(x: f32[B, L, M, 8], w: f32[6, 8, 1, 1], *, B: dim[1:], L: dim[1:], M: dim[1:]):
        v0: f32[B, 8, L, M] = transpose(x, perm=(0, 3, 1, 2))
        v1: f32[B, 6, {rows}, M] = conv(v0, w, strides=({stride}, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)
        v2: f32[B, {rows}, M, 6] = transpose(v1, perm=(0, 2, 3, 1))
        return {{"y": v2}}
"""


@pytest.mark.parametrize(("stride", "expected"), [(1, ["reshape", "linear"]), (2, ["transpose", "conv", "transpose"])])
def test_a_convolution_of_one_tap_is_a_product(stride: int, expected: list[str], preserves: Check) -> None:
    found = preserves(sink_transposes, ONE_TAP.format(stride=stride, rows="L" if stride == 1 else "(L + 1)//2"))
    assert [node.op.name for node in found.entries["main"].nodes if node.op.name != "input"] == expected


def test_a_transpose_is_not_added_where_none_was() -> None:
    graph = parse_graph("""
def main(x: f32[4, 4], y: f32[4, 4]):
    v0: f32[4, 4] = transpose(x, perm=(1, 0))
    v1: f32[4, 4] = add(v0, y)
    return {"y": v1}
""")
    module = Module({"main": graph})
    assert sink_transposes(module).entries["main"] == graph
    (event,) = explain(module, "sink_transposes").declined
    assert "would need a transpose of its own" in event.reason


COMPLEX = {
    "arithmetic": "v0: c64[B, 3] = mul(x, y)\n    v1: c64[B, 3] = sub(v0, x)\n    r: c64[B, 3] = div(v1, y)",
    "functions": "v0: c64[B, 3] = exp(x)\n    v1: c64[B, 3] = log(v0)\n    r: c64[B, 3] = sqrt(v1)",
    "waves": "v0: c64[B, 3] = sin(x)\n    v1: c64[B, 3] = cos(y)\n    r: c64[B, 3] = add(v0, v1)",
    "to real": "r: f32[B, 3] = abs(x)",
    "from real": "v0: f32[B, 3] = imag(x)\n    r: c64[B, 3] = cast(v0, dtype=c64)",
    "movement": "v0: c64[3, B] = transpose(x, perm=(1, 0))\n    r: c64[5, B] = pad(v0, low=(1, 0), high=(1, 0), value=2.0)",
    "product": "v0: c64[3, B] = transpose(y, perm=(1, 0))\n    r: c64[B, B] = matmul(x, v0)",
    "composite": "v0: c64[B, 3] = conj(x)\n    r: c64[B] = mean(v0, axes=(1,))",
    "scatter": "i: i64[B, 3] = iota(dims=(B, 3), axis=0, dtype=i64)\n"
    '    r: c64[B, 3] = scatter(x, i, y, axis=0, reduce="add")',
    "sum": "r: c64[B] = sum(x, axes=(1,))",
    "comparison": "r: bool[B, 3] = eq(x, y)",
    "constant": "v0: c64[3] = constant(value=array(c64, [1.0, 2.0, 3.0]))\n    v1: c64[B, 3] = broadcast(v0, dims=(B, 3))\n"
    "    r: c64[B, 3] = mul(x, v1)",
}  # fmt: skip


@pytest.mark.parametrize("case", COMPLEX)
def test_complex_tensors_become_pairs(case: str, preserves: Check) -> None:
    text = f'def main(x: c64[B, 3], y: c64[B, 3], *, B: dim[1:]):\n    {COMPLEX[case]}\n    return {{"y": r}}'
    found = preserves(lower_complex, text)
    assert not any(t.dtype.is_complex for node in found.entries["main"].nodes for t in node.types)


def test_complex_scans_carry_pairs(preserves: Check) -> None:
    found = preserves(
        lower_complex,
        """
        def main(a: c64[L, 3], b: c64[L, 3], h: c64[3], *, L: dim[1:]):
            v0, v1 = linear_scan(a, b, h, axis=0, reverse=False)
            return {"h": v1, "y": v0}
        """,
    )
    assert not any(t.dtype.is_complex for node in found.entries["main"].nodes for t in node.types)


def test_complex_numbers_inside_a_body_alone_are_lowered(preserves: Check) -> None:
    found = preserves(
        lower_complex,
        """
        def main(h: f32[3], xs: f32[L, 3], *, L: dim[1:]):
            def step_0(h: f32[3], x: f32[3]):
                v0: c64[3] = complex(h, x)
                v1: c64[3] = mul(v0, v0)
                v2: f32[3] = imag(v1)
                return {"h": v2}
            v0: f32[3] = scan(h, xs, body=step_0, carries=1, sequences=1, axis=0, reverse=False)
            return {"h": v0}
        """,
    )
    assert "c64" not in print_module(found)


def test_parts_get_names_that_are_free(preserves: Check) -> None:
    found = preserves(
        lower_complex,
        """
        def main(h: c64[3], r: f32[3], xs: f32[L, 3], *, L: dim[1:]):
            def step_0(h: c64[3], h_re: f32[3], x: f32[3]):
                v0: c64[3] = cast(x, dtype=c64)
                v1: c64[3] = mul(h, v0)
                v2: f32[3] = real(v1)
                v3: f32[3] = add(h_re, v2)
                return {"h": v1, "h_re": v3}
            v0, v1 = scan(h, r, xs, body=step_0, carries=2, sequences=1, axis=0, reverse=False)
            return {"h": v0, "r": v1}
        """,
    )
    (loop,) = (node for node in found.entries["main"].nodes if node.op.name == "scan")
    assert [v.node.attrs["name"] for v in loop.attrs["body"].inputs] == ["h_re_2", "h_im", "h_re", "x"]


@pytest.mark.parametrize("made_by", [
    "r: c64[()] = prod(x, axes=(0,), keepdims=False)",
    'r: c64[3] = scatter(x, i, x, axis=0, reduce="mul")',
])  # fmt: skip
def test_what_has_no_real_form_is_refused_with_its_place(made_by: str) -> None:
    graph = parse_graph(f"""
def main(x: c64[3], i: i64[3]):
    {made_by}  # model.py:12 in layer
    return {{"y": r}}
""")
    with pytest.raises(UnsupportedError, match=r"(?s)real numbers only:.*of complex numbers  --> model.py:12"):
        lower_complex(Module({"main": graph}))


def test_an_einsum_over_the_last_axis_is_packed(preserves: Check) -> None:
    found = preserves(
        PACKING,
        """
        def main(x: f32[B, L, 6], *, B: dim[1:], L: dim[1:]):
            v0: f32[4, 9, 6] = weight(name="w", type=f32[4, 9, 6])
            v1: f32[B, L, 4, 9] = einsum(x, v0, equation="bld,kcd->blkc")
            return {"y": v1}
        """,
    )
    assert "packed_matmul" in {node.op.name for node in found.entries["main"].nodes}
