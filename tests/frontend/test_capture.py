"""Each capture hook computes what the function it stands for computes, states included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.mamba import modeling_mamba as mamba
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.qwen3_next import modeling_qwen3_next as qwen
from transformers.models.rwkv import modeling_rwkv as rwkv

from coilc.frontend import capture as hooks
from coilc.ir import InputError

B, D, L, N, H, P, G, K = 2, 6, 9, 4, 4, 3, 2, 3


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def agree(found: Any, expected: Any) -> None:
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


SCAN: dict[str, dict[str, Any]] = {
    "plain": {},
    "skip and gate": {"D": rand(D), "z": rand(B, D, L)},
    "step bias": {"delta_bias": rand(D), "delta_softplus": True},
    "with its state": {"delta_bias": rand(D), "delta_softplus": True, "D": rand(D), "return_last_state": True},
}


@pytest.mark.parametrize("name", SCAN)
def test_selective_scan(name: str) -> None:
    args = (rand(B, D, L), rand(B, D, L).abs(), -rand(D, N).abs(), rand(B, N, L), rand(B, N, L) + 1)
    agree(hooks.selective_scan_fn(*args, **SCAN[name]), mamba.mamba_selective_scan(*args, **SCAN[name]))


def test_selective_scan_with_groups_and_constants() -> None:
    x, dt, a, b = rand(B, D, L), rand(B, D, L).abs(), -rand(D, N).abs(), rand(B, N, L)
    agree(hooks.selective_scan_fn(x, dt, a, b[:, None], b[:, None]), hooks.selective_scan_fn(x, dt, a, b, b))
    grouped = torch.stack([b, 2 * b], 1)
    half = D // 2
    parts = [
        hooks.selective_scan_fn(x[:, s], dt[:, s], a[s], m, m)
        for s, m in ((slice(0, half), b), (slice(half, D), 2 * b))
    ]
    agree(hooks.selective_scan_fn(x, dt, a, grouped, grouped), torch.cat(parts, 1))
    constant = rand(D, N)
    per_channel = constant[None, :, :, None].expand(B, D, N, L)
    agree(
        hooks.selective_scan_fn(x, dt, a, constant, constant),
        hooks.selective_scan_fn(x, dt, a, per_channel, per_channel),
    )


def stepped(function: Callable[..., Tensor], state: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    own = state.clone()
    return function(own, *args, **options), own


def test_selective_state_update() -> None:
    args = (rand(B, D), rand(B, D), -rand(D, N).abs(), rand(B, N), rand(B, N) + 1)
    options = {"D": rand(D), "z": rand(B, D), "dt_bias": rand(D), "dt_softplus": True}
    state = rand(B, D, N)
    agree(
        stepped(hooks.selective_state_update, state, *args, **options),
        stepped(mamba.mamba_selective_state_update, state, *args, **options),
    )


def test_selective_state_update_with_heads() -> None:
    a = -rand(H).abs()[:, None, None].expand(-1, P, N)
    args = (rand(B, H, P), rand(B, H, 1).expand(-1, -1, P), a, rand(B, G, N), rand(B, G, N) + 1)
    options = {"D": rand(H)[:, None].expand(-1, P), "dt_bias": rand(H)[:, None].expand(-1, P), "dt_softplus": True}
    state = rand(B, H, P, N)
    agree(
        stepped(hooks.selective_state_update, state, *args, **options),
        stepped(mamba2.mamba2_selective_state_update, state, *args, **options),
    )


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_causal_conv1d(activation: str | None) -> None:
    args = (rand(B, D, L), rand(D, K), rand(D))
    agree(hooks.causal_conv1d_fn(*args, activation=activation), mamba.causal_conv1d_fn(*args, activation=activation))


def test_causal_conv1d_continues_from_a_state() -> None:
    x, w = rand(B, D, L), rand(D, K)
    _, state = hooks.causal_conv1d_fn(x[:, :, :5], w, return_final_states=True)
    later = hooks.causal_conv1d_fn(x[:, :, 5:], w, initial_states=state)
    agree(later, hooks.causal_conv1d_fn(x, w)[:, :, 5:])


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kept", [K - 1, K])
def test_causal_conv1d_update(steps: int, kept: int) -> None:
    x, state, w, bias = rand(B, D, steps), rand(B, D, kept), rand(D, K), rand(D)
    own, theirs = state.clone(), state.clone()
    found = hooks.causal_conv1d_update(x, own, w, bias, activation="silu")
    agree((found, own), (mamba.causal_conv1d_update(x, theirs, w, bias, activation="silu"), theirs))


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.1, 0.8)])
@pytest.mark.parametrize("resumed", [False, True])
def test_chunk_scan(limit: tuple[float, float], resumed: bool) -> None:
    args = (rand(B, L, H, P), rand(B, L, H), -rand(H).abs(), rand(B, L, G, N), rand(B, L, G, N) + 1)
    options = {
        "chunk_size": 4, "D": rand(H), "dt_bias": rand(H), "dt_softplus": True, "dt_limit": limit,
        "return_final_states": True, "initial_states": rand(B, H, P, N) if resumed else None,
    }  # fmt: skip
    agree(hooks.mamba_chunk_scan_combined(*args, **options), mamba2.mamba2_chunk_scan(*args, **options))


@pytest.mark.parametrize("form", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
@pytest.mark.parametrize("resumed", [False, True])
def test_gated_delta_rule(form: str, resumed: bool) -> None:
    args = (rand(B, L, G, N), rand(B, L, G, N) + 1, rand(B, L, H, P), -rand(B, L, H).abs(), rand(B, L, H).sigmoid())
    before = rand(B, H, N, P) if resumed else None
    options = {"initial_state": before, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    agree(hooks.gated_delta_rule(*args, **options), getattr(qwen, form)(*args, **options))


@pytest.mark.parametrize("form", ["chunk_kimi_delta_attention", "recurrent_kimi_delta_attention"])
def test_delta_rule_with_a_decay_per_channel(form: str) -> None:
    args = (rand(B, L, H, N), rand(B, L, H, N) + 1, rand(B, L, H, P), -rand(B, L, H, N).abs(), rand(B, L, H).sigmoid())
    options = {"initial_state": None, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    agree(hooks.gated_delta_rule(*args, **options), getattr(kimi, form)(*args, **options))


def test_delta_rule_refuses_packed_sequences() -> None:
    q, v, rate = rand(1, L, H, N), rand(1, L, H, P), rand(1, L, H)
    with pytest.raises(InputError, match="export without 'cu_seqlens'"):
        hooks.gated_delta_rule(q, q, v, rate, rate, cu_seqlens=torch.tensor([0, 4, L]))


@pytest.mark.parametrize("resumed", [False, True])
def test_rwkv(resumed: bool) -> None:
    state = (rand(B, D), rand(B, D).abs() + 1, rand(B, D)) if resumed else None
    args = (rand(D), rand(D), rand(B, L, D), rand(B, L, D) + 1, state, True)
    y, after = hooks.rwkv_linear_attention(*args)
    expected, kept = rwkv.rwkv_linear_attention_cpu(*args)
    agree((y, *after), (expected, *kept))


def test_inner_function_is_the_mixer_written_out() -> None:
    from transformers import MambaConfig

    torch.manual_seed(0)
    mixer = mamba.MambaMixer(MambaConfig(hidden_size=8, state_size=4), 0).eval()
    x = rand(B, L, 8)
    with torch.no_grad():
        projected = mixer.in_proj(x).transpose(1, 2)
        found = hooks.mamba_inner_fn(
            projected, mixer.conv1d.weight, mixer.conv1d.bias, mixer.x_proj.weight, mixer.dt_proj.weight,
            mixer.out_proj.weight, None, -torch.exp(mixer.A_log), D=mixer.D, delta_bias=mixer.dt_proj.bias,
        )  # fmt: skip
        agree(found, mixer(x))


def test_hooks_are_removed_when_tracing_fails() -> None:
    from transformers import MambaConfig

    original, mixer = mamba.mamba_selective_scan, mamba.MambaMixer(MambaConfig(hidden_size=8), 0)

    def trace() -> None:
        with hooks.capture(mixer):
            assert mamba.mamba_selective_scan is hooks.selective_scan_fn
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        trace()
    assert mamba.mamba_selective_scan is original
