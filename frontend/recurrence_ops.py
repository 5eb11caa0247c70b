"""The IR's recurrences as torch custom ops in namespace ``coilc``: what capture hooks call while exporting.

Each op has the operands, layout (time-major, channels innermost) and results of the IR op of its name, a fake kernel
for tracing, and an eager reference, the plain loop, for running an ExportedProgram in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional

NAMESPACE = "coilc"


@custom_op(f"{NAMESPACE}::selective_scan", mutates_args=())
def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    dt_bias: Tensor | None = None, h0: Tensor | None = None, softplus: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x, dt, z [B, L, D]; A [N, D]; B, C [B, L, G, N]; D, dt_bias [D]; h0 [B, N, D] to y [B, L, D], h [B, N, D]."""
    step = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    step = functional.softplus(step) if softplus else step
    step = step.to(A.dtype)
    state = torch.zeros(x.shape[0], *A.shape, dtype=A.dtype) if h0 is None else h0
    per_group = x.shape[2] // B.shape[2]
    keys, queries = (m.to(A.dtype).repeat_interleave(per_group, 2).transpose(2, 3) for m in (B, C))  # [B, L, N, D]
    outputs = []
    for t in range(x.shape[1]):
        state = torch.exp(step[:, t, None] * A) * state + keys[:, t] * (step[:, t] * x[:, t])[:, None]
        outputs.append((queries[:, t] * state).sum(1))
    y = torch.stack(outputs, 1)
    y = y if D is None else y + x * D
    y = y if z is None else y * functional.silu(z)
    return y.to(x.dtype), state.clone()


@selective_scan.register_fake
def _(x, dt, A, B, C, D=None, z=None, dt_bias=None, h0=None, softplus=False):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), A.new_empty(x.shape[0], *A.shape)


@custom_op(f"{NAMESPACE}::causal_conv1d", mutates_args=())
def causal_conv1d(
    x: Tensor, w: Tensor, bias: Tensor | None = None, state: Tensor | None = None, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """x [B, L, D]; w [K, D]; bias [D]; state [B, K-1, D], the inputs before x, to y [B, L, D] and the last inputs."""
    taps, channels = w.shape
    before = x.new_zeros(x.shape[0], taps - 1, channels) if state is None else state
    window = torch.cat([before, x], 1)
    y = functional.conv1d(window.transpose(1, 2), w.t()[:, None], bias, groups=channels).transpose(1, 2)
    y = functional.silu(y) if activation == "silu" else y
    return y.contiguous(), window[:, x.shape[1] :].clone()


@causal_conv1d.register_fake
def _(x, w, bias=None, state=None, activation="none"):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), x.new_empty(x.shape[0], w.shape[0] - 1, x.shape[2])


@custom_op(f"{NAMESPACE}::gated_linear_attention", mutates_args=())
def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, h0: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """q, k [B, L, G, N]; v [B, L, H, P]; log_decay [B, L, H] or [B, L, H, N]; h0 [B, H, N, P] to o and h."""
    heads, dtype = v.shape[2], log_decay.dtype
    queries, keys = (m.to(dtype).repeat_interleave(heads // m.shape[2], 2) for m in (q, k))
    decay = torch.exp(log_decay if log_decay.dim() == 4 else log_decay[..., None])
    state = torch.zeros(v.shape[0], heads, q.shape[3], v.shape[3], dtype=dtype) if h0 is None else h0
    outputs = []
    for t in range(v.shape[1]):
        state = decay[:, t, :, :, None] * state + keys[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(scale * (queries[:, t, :, :, None] * state).sum(2))
    return torch.stack(outputs, 1).to(v.dtype), state.clone()


@gated_linear_attention.register_fake
def _(q, k, v, log_decay, h0=None, scale=1.0):  # type: ignore[no-untyped-def]
    return torch.empty_like(v), log_decay.new_empty(v.shape[0], v.shape[2], q.shape[3], v.shape[3])


@custom_op(f"{NAMESPACE}::gated_delta_rule", mutates_args=())
def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, h0: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """As gated_linear_attention, with a rate beta [B, L, H] at which a value replaces what its key has in the state."""
    heads, dtype = v.shape[2], log_decay.dtype
    queries, keys = (m.to(dtype).repeat_interleave(heads // m.shape[2], 2) for m in (q, k))
    decay = torch.exp(log_decay if log_decay.dim() == 4 else log_decay[..., None])
    state = torch.zeros(v.shape[0], heads, q.shape[3], v.shape[3], dtype=dtype) if h0 is None else h0
    outputs = []
    for t in range(v.shape[1]):
        key = keys[:, t, :, :, None]
        state = decay[:, t, :, :, None] * state
        error = v[:, t, :, None] - (key * state).sum(2, keepdim=True)
        state = state + key * (beta[:, t, :, None, None] * error)
        outputs.append(scale * (queries[:, t, :, :, None] * state).sum(2))
    return torch.stack(outputs, 1).to(v.dtype), state.clone()


@gated_delta_rule.register_fake
def _(q, k, v, log_decay, beta, h0=None, scale=1.0):  # type: ignore[no-untyped-def]
    return torch.empty_like(v), log_decay.new_empty(v.shape[0], v.shape[2], q.shape[3], v.shape[3])


@custom_op(f"{NAMESPACE}::wkv", mutates_args=())
def wkv(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, num: Tensor, den: Tensor, max: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """k, v [B, L, D]; w, u [D]; states [B, D] to y [B, L, D] and the states."""
    outputs = []
    for t in range(k.shape[1]):
        key, value = k[:, t].to(w.dtype), v[:, t].to(w.dtype)
        high = torch.maximum(max, key + u)
        past, now = torch.exp(max - high), torch.exp(key + u - high)
        outputs.append((past * num + now * value) / (past * den + now))
        high = torch.maximum(max + w, key)
        past, now = torch.exp(max + w - high), torch.exp(key - high)
        num, den, max = past * num + now * value, past * den + now, high
    return torch.stack(outputs, 1).to(v.dtype), num.clone(), den.clone(), max.clone()


@wkv.register_fake
def _(k, v, w, u, num, den, max):  # type: ignore[no-untyped-def]
    return torch.empty_like(v), torch.empty_like(num), torch.empty_like(den), torch.empty_like(max)
