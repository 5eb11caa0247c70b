"""Recurrences that are written as masks, running sums and chunks, and programs that nearly are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor

from coilc.frontend.torch_export import import_program
from coilc.ir import Module, interpret
from coilc.passes import classify_scans, run_pipeline, simplify, tracing
from coilc.passes.recognise_causal_sums import recognise_causal_sums

Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # q, k [B, L, H, N], v [B, L, H, P], log decay [B, L, H]


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def decay_mask(g: Tensor) -> Tensor:
    """[B, H, L, L]: exp of the decay after j, up to i."""
    sums = g.cumsum(1).mT
    return torch.exp((sums[..., :, None] - sums[..., None, :]).masked_fill(~causal(g.shape[1]), -torch.inf))


def masked(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bhij,bjhp->bihp", torch.einsum("bihn,bjhn->bhij", q, k) * decay_mask(g), v)


def masked_by_matmuls(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    q, k, v = (m.transpose(1, 2) for m in (q, k, v))
    return ((decay_mask(g) * 0.5 * (q @ k.mT)) @ v).transpose(1, 2)


def mask_after_exp(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    sums = g.cumsum(1)
    distance = torch.exp(sums[:, :, None] - sums[:, None]) * causal(g.shape[1])[:, :, None].float()
    return torch.einsum("bihn,bjhn,bijh,bjhp->bihp", q, k, distance, v)


def scaled_sides(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    sums = g.cumsum(1)[..., None]
    q, k, v = ((q * sums.exp()).transpose(1, 2), (k / sums.exp()).transpose(1, 2), v.transpose(1, 2))
    return (torch.tril(q @ k.mT) @ v).transpose(1, 2)


def constant_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    i = torch.arange(g.shape[1])
    distance = (i[:, None] - i)[None]
    rate = torch.tensor([-0.1, -0.7])[: g.shape[2], None, None]
    decay = torch.exp(torch.where(distance >= 0, distance * rate, -torch.inf))
    return torch.einsum("bihn,bjhn,hij,bjhp->bihp", q, k, decay, v)


def no_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bihn,bjhn,ij,bjhp->bihp", q, k, causal(g.shape[1]).float(), v)


def running_sum(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("blhn,blhnp->blhp", q, torch.einsum("blhn,blhp->blhnp", k, v).cumsum(1))


def decayed_running_sum(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    sums = g.cumsum(1)[..., None]
    states = ((k * torch.exp(-sums))[..., None] * v[..., None, :]).cumsum(1) * sums[..., None].exp()
    return (q[..., None] * states).sum(3)


def before(length: int) -> Tensor:
    return torch.ones(length, length).tril(-1)


def strict(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Tokens see those before them, not themselves."""
    weights = torch.einsum("bihn,bjhn->bhij", q, k) * before(g.shape[1])
    return torch.einsum("bhij,bjhp->bihp", weights, v)


def strict_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """q_i sum over j < i of exp(g_(j + 1) + ... + g_i) k_j v_j"""
    weights = torch.einsum("bihn,bjhn->bhij", q, k) * decay_mask(g) * before(g.shape[1])
    return torch.einsum("bhij,bjhp->bihp", weights, v)


def strict_decay_until_before(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """q_i sum over j < i of exp(g_(j + 1) + ... + g_(i - 1)) k_j v_j"""
    sums = g.cumsum(1).mT
    distance = (sums - g.mT)[..., :, None] - sums[..., None, :]
    now_or_later = torch.ones(g.shape[1], g.shape[1], dtype=torch.bool).triu()
    decay = torch.exp(distance.masked_fill(now_or_later, -torch.inf))
    return torch.einsum("bhij,bjhp->bihp", torch.einsum("bihn,bjhn->bhij", q, k) * decay, v)


def strict_constant_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    i = torch.arange(g.shape[1])
    distance = i[:, None] - i
    decay = torch.exp(torch.where(distance > 0, (distance - 1) * -0.3, -torch.inf))
    return torch.einsum("bihn,bjhn,ij,bjhp->bihp", q, k, decay, v)


FORMS = [
    masked,
    masked_by_matmuls,
    mask_after_exp,
    scaled_sides,
    constant_decay,
    no_decay,
    running_sum,
    decayed_running_sum,
    strict,
    strict_decay,
    strict_decay_until_before,
    strict_constant_decay,
]


class Wrapped(torch.nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        return self.form(q, k, v, g)


def operands(length: int, heads: int = 2, batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, length, heads, n, generator=generator) for n in (3, 3, 5))
    return q, k, v, -torch.rand(batch, length, heads, generator=generator)


def imported(form: Form, length: int, dynamic: bool = False, heads: int = 2) -> Module:
    auto = torch.export.Dim.AUTO
    shapes = {"q": {1: auto}, "k": {1: auto}, "v": {1: auto}, "g": {1: auto}} if dynamic else None
    return import_program(torch.export.export(Wrapped(form), operands(length, heads), dynamic_shapes=shapes))


def recognised(module: Module) -> Module:
    return run_pipeline(module, stop_after="recognise")


def assert_attention(module: Module, form: Form, length: int, heads: int = 2) -> None:
    names = [node.op.name for node in module.entries["main"].nodes]
    assert names.count("gated_linear_attention") == 1, names
    assert not set(names) & {"matmul", "einsum", "cumsum", "iota", "concat"}, names
    given_ = operands(length, heads)
    feed = dict(zip("qkvg", (x.numpy() for x in given_), strict=True))
    expected = form(*(x.double() for x in given_)).numpy()
    (found,) = interpret(module, feed).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_written_form_is_attention_at_any_length(form: Form) -> None:
    module = recognised(imported(form, 7, dynamic=True))
    for length in (1, 2, 12):
        assert_attention(module, form, length)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_written_form_is_attention_at_one_length(form: Form) -> None:
    assert_attention(recognised(imported(form, 5)), form, 5)


# --- chunks ----------------------------------------------------------------------------------------------------------


def in_chunks(size: int, unrolled: bool, mask_first: bool = False) -> Form:
    """Attention inside each chunk, one state per chunk, and a loop or a masked product over the states."""

    def form(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        length = q.shape[1]
        after = (-length) % size
        q, k, v, g = (torch.nn.functional.pad(m, (*(0,) * 2 * (m.dim() - 2), 0, after)) for m in (q, k, v, g))
        q, k, v, g = (m.unflatten(1, (-1, size)).transpose(2, 3) for m in (q, k, v, g[..., None]))  # [B, C, H, Q, ..]
        sums = g.cumsum(3)
        inside = (sums - sums.mT).masked_fill(~causal(size), -torch.inf).exp() * (q @ k.mT) @ v
        end = sums[..., -1:, :]
        inflow = (k * (end - sums).exp()).mT @ v
        between = carried if unrolled else weighted
        y = inside + (q * sums.exp()) @ between(inflow, end)
        return y.transpose(2, 3).flatten(1, 2)[:, :length]

    return form


def carried(inflow: Tensor, end: Tensor) -> Tensor:
    state, before = torch.zeros_like(inflow[:, 0]), []
    for c in range(inflow.shape[1]):
        before.append(state)
        state = end[:, c].exp() * state + inflow[:, c]
    return torch.stack(before, 1)


def weighted(inflow: Tensor, end: Tensor) -> Tensor:
    total = end[..., 0, 0].cumsum(1).mT  # [B, H, C]
    until = torch.nn.functional.pad(total, (1, 0))[..., :-1]
    above = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool).triu()
    weights = (until[..., :, None] - total[..., None, :]).masked_fill(above, -torch.inf).exp()
    return torch.einsum("bhcz,bzhnp->bchnp", weights, inflow)


@settings(max_examples=8, deadline=None)
@given(size=st.integers(2, 5), chunks=st.integers(2, 4), cut=st.integers(0, 1), heads=st.integers(1, 3))
def test_chunked_form_is_attention(size: int, chunks: int, cut: int, heads: int) -> None:
    length, form = size * chunks - cut, in_chunks(size, unrolled=False)
    assert_attention(recognised(imported(form, length, heads=heads)), form, length, heads)


@pytest.mark.parametrize("length", [16, 19])
def test_loop_over_chunks_is_attention(length: int) -> None:
    form = in_chunks(4, unrolled=True)
    assert_attention(recognised(imported(form, length)), form, length)


# --- other recurrences -----------------------------------------------------------------------------------------------


def selective(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Mamba's recurrence as running sums: v[:, :, 0, 0] is B, k is A, g the channels' step."""
    exponent = torch.einsum("bld,dn->bldn", -g, -k[0, 0].abs()).cumsum(1)
    inflow = torch.einsum("bld,bln,bld->bldn", -g, q[:, :, 0], g)
    return torch.einsum("bldn,bln->bld", (inflow * torch.exp(-exponent)).cumsum(1) * exponent.exp(), q[:, :, 1])


def average(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bhij,bjh->bih", decay_mask(g), v[..., 0])


def strict_normaliser(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return (torch.einsum("bihn,bjhn->bhij", q, k) * decay_mask(g)).tril(-1).sum(-1)


def strict_average(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bhij,bjh->bih", decay_mask(g).tril(-1), v[..., 0])


def normaliser(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bihn,bjhn->bhij", q, k).tril().sum(-1)


@pytest.mark.parametrize(
    ("form", "op"),
    [
        (selective, "selective_scan"),
        (average, "linear_scan"),
        (normaliser, "cumsum"),
        (strict_normaliser, "linear_scan"),
        (strict_average, "linear_scan"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_written_form_is_another_recurrence(form: Form, op: str) -> None:
    module = recognised(imported(form, 6))
    names = [node.op.name for node in module.entries["main"].nodes]
    assert names.count(op) == 1, names
    assert not any(6 in v.dims[i + 1 :] for n in module.entries["main"].nodes for v in n.results
                   for i, d in enumerate(v.dims) if d == 6)  # fmt: skip
    given_ = operands(6)
    expected = form(*(x.double() for x in given_)).numpy()
    feed = dict(zip("qkvg", (x.numpy() for x in given_), strict=True))
    entry = module.entries["main"]
    used = {v.node.attrs["name"]: feed[v.node.attrs["name"]] for v in entry.inputs}
    (found,) = interpret(module, used).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_of_scores_that_sum_to_one() -> None:
    """The quotient of two recurrences, though the scores are divided before the values enter."""

    def form(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        scores = torch.einsum("bihn,bjhn->bhij", q.exp(), k.exp()) * decay_mask(g)
        return torch.einsum("bhij,bjhp->bihp", scores / scores.sum(-1, keepdim=True), v)

    module = recognised(imported(form, 7, dynamic=True))
    names = [node.op.name for node in module.entries["main"].nodes]
    assert (names.count("gated_linear_attention"), names.count("linear_scan")) == (1, 1), names
    assert not set(names) & {"matmul", "einsum", "iota"}, names
    for length in (1, 2, 12):
        given_ = operands(length)
        (found,) = interpret(module, dict(zip("qkvg", (x.numpy() for x in given_), strict=True))).values()
        np.testing.assert_allclose(found, form(*(x.double() for x in given_)).numpy(), rtol=1e-4, atol=1e-5)


# --- near misses -----------------------------------------------------------------------------------------------------


def future(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    weights = torch.einsum("bihn,bjhn->bhij", q, k) * torch.ones(g.shape[1], g.shape[1]).triu()
    return torch.einsum("bhij,bjhp->bihp", weights, v)


def window(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    near = causal(g.shape[1]) & torch.ones(g.shape[1], g.shape[1], dtype=torch.bool).triu(-2)
    return torch.einsum("bhij,bjhp->bihp", torch.einsum("bihn,bjhn->bhij", q, k) * near, v)


def not_a_product(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    weights = torch.tanh(torch.einsum("bihn,bjhn->bhij", q, k)) * decay_mask(g)
    return torch.einsum("bhij,bjhp->bihp", weights, v)


def decays_twice(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bihn,bjhn,bhij,bjh,bjhp->bihp", q, k, decay_mask(g), g.cumsum(1).exp(), v)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (future, "a mask that does not compare moments"),
        (not_a_product, "'tanh' compares two moments and is no product"),
        (decays_twice, "the exponent does not add up to the decay from then to now"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_near_miss_says_why(form: Form, reason: str) -> None:
    module = simplify(classify_scans(imported(form, 6, dynamic=True)))
    with tracing() as trace:
        after = recognise_causal_sums(module)
    assert "gated_linear_attention" not in {n.op.name for n in after.entries["main"].nodes}
    assert any(reason in event.reason for event in trace.declined), [e.reason for e in trace.declined]


def test_a_window_stays() -> None:
    module = recognised(imported(window, 6))
    assert "gated_linear_attention" not in {n.op.name for n in module.entries["main"].nodes}
