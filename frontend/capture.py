"""Capture hooks: while a model is traced, the known scan functions are replaced by custom ops that the IR has.

Models call these functions through globals of their own module: transformers' modelling files (which fetch a kernel
from the hub or a package, and fall back to slow torch code), mamba_ssm and causal_conv1d. One row per function; the
model itself is not touched, and everything is put back when the block ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch._higher_order_ops.utils as hop
from torch import Tensor
from torch._dynamo.exc import InternalTorchDynamoError
from torch.nn import functional
from torch.utils import _pytree as pytree

from coilc.ir import InputError

from . import recurrence_ops as rec

Function = Callable[..., Any]

# As attributes of their package these names are the functions in them.
associative = import_module("torch._higher_order_ops.associative_scan")
scan = import_module("torch._higher_order_ops.scan")


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False, **_: object,
) -> Any:  # fmt: skip
    """mamba_ssm's layout: u, delta, z [B, D, L]; A [D, N]; B, C [B, N, L], [B, G, N, L] or [D, N] without time."""
    time_major = lambda x: x.transpose(1, 2)
    y, last = rec.selective_scan(
        time_major(u), time_major(delta), A.t(), _grouped(B, u), _grouped(C, u), D,
        None if z is None else time_major(z), delta_bias, None, delta_softplus,
    )  # fmt: skip
    y = time_major(y)
    return (y, last.transpose(1, 2)) if return_last_state else y


def _grouped(m: Tensor, u: Tensor) -> Tensor:
    """B or C as [B, L, G, N]."""
    if m.dim() == 2:  # constant in time: one group per channel
        return m[None, None].expand(u.shape[0], u.shape[2], -1, -1)
    return m.transpose(1, 2)[:, :, None] if m.dim() == 3 else m.permute(0, 3, 1, 2)


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False, **_: object,
) -> Tensor:  # fmt: skip
    """One step of the scan, in place on ``state`` [B, D, N] or, with heads, [B, H, P, N]."""
    flat = lambda m: m.reshape(*m.shape[:-2], -1) if x.dim() == 3 else m  # merge heads and head size
    step = lambda m: flat(m)[:, None]
    groups = lambda m: m[:, None] if m.dim() == 3 else m[:, None, None]
    last = lambda m, lead: m.reshape(*lead, -1, m.shape[-1]).transpose(-1, -2)
    y, new = rec.selective_scan(
        step(x), step(dt), last(A, ()), groups(B), groups(C), None if D is None else flat(D.expand(x.shape[1:])),
        None if z is None else step(z), None if dt_bias is None else flat(dt_bias.expand(x.shape[1:])),
        last(state, (state.shape[0],)).to(A.dtype), dt_softplus,
    )  # fmt: skip
    state.copy_(new.transpose(1, 2).reshape(state.shape))
    return y[:, 0].reshape(x.shape)


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None, return_final_states: bool = False, final_states_out: Tensor | None = None,
    activation: str | None = None, **_: object,
) -> Any:  # fmt: skip
    """causal_conv1d's layout: x [B, D, L]; weight [D, K]; initial_states [B, D, K-1]."""
    before = None if initial_states is None else initial_states.transpose(1, 2)
    fused = "silu" if activation in ("silu", "swish") else "none"
    y, state = rec.causal_conv1d(x.to(weight.dtype).transpose(1, 2), weight.t(), bias, before, fused)
    y = y.transpose(1, 2).to(x.dtype)
    y = y if activation is None or fused == "silu" else _activation(activation)(y)
    return (y, state.transpose(1, 2)) if return_final_states else y


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_: object,
) -> Tensor:
    """One or a few steps, in place on ``conv_state`` [B, D, S] with S >= K - 1."""
    taps = weight.shape[-1]
    steps = x if x.dim() == 3 else x[..., None]
    before = conv_state[..., conv_state.shape[-1] - (taps - 1) :]
    y: Tensor = causal_conv1d_fn(steps, weight, bias, initial_states=before.to(weight.dtype), activation=activation)
    conv_state.copy_(torch.cat([conv_state, steps], -1)[..., -conv_state.shape[-1] :])
    return y if x.dim() == 3 else y[..., 0]


def mamba_chunk_scan_combined(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, initial_states: Tensor | None = None,
    dt_softplus: bool = False, dt_limit: tuple[float, float] = (0.0, float("inf")), return_final_states: bool = False,
    **_: object,
) -> Any:  # fmt: skip
    """SSD as in mamba_ssm: x [B, L, H, P]; dt [B, L, H]; A [H]; B, C [B, L, G, N]; states [B, H, P, N].

    The chunk size is an implementation's choice and changes nothing.
    """
    step = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    step = functional.softplus(step) if dt_softplus else step
    step = step if dt_limit == (0.0, float("inf")) else torch.clamp(step, *dt_limit)
    step = step.float() if step.dtype.itemsize < 4 else step
    before = None if initial_states is None else initial_states.transpose(2, 3).to(step.dtype)
    value = x * step[..., None]
    y, last = rec.gated_linear_attention(C.to(value.dtype), B.to(value.dtype), value, A * step, before)
    y = y if D is None else y + (D if D.dim() == 2 else D[:, None]) * x
    y = y if z is None else y * functional.silu(z)
    return (y, last.transpose(2, 3)) if return_final_states else y


def mamba_inner_fn(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, A: Tensor, B: Tensor | None = None, C: Tensor | None = None,
    D: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = True, **_: object,
) -> Tensor:  # fmt: skip
    """mamba_ssm's whole mixer after the input projection, written out; xz [B, 2D, L] to [B, L, E]."""
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.reshape(conv1d_weight.shape[0], -1), conv1d_bias, activation="silu")
    state, rank = A.shape[1], delta_proj_weight.shape[1]
    delta, keys, queries = functional.linear(x.transpose(1, 2), x_proj_weight).split(
        [rank, 0 if B is not None else state, 0 if C is not None else state], dim=-1
    )
    delta = functional.linear(delta, delta_proj_weight).transpose(1, 2)
    keys = keys.transpose(1, 2) if B is None else B
    queries = queries.transpose(1, 2) if C is None else C
    y = selective_scan_fn(x, delta, A, keys, queries, D, z, delta_bias, delta_softplus)
    return functional.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None, **_: object,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """fla's layout: q, k [B, L, G, N]; v [B, L, H, P]; g [B, L, H], or [B, L, H, N] for KDA; beta [B, L, H].

    Chunked and recurrent forms are one definition.

    Raises:
        InputError: several sequences are packed into one.
    """
    if cu_seqlens is not None:
        raise InputError("the gated delta rule is captured for whole sequences: export without 'cu_seqlens'")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    decay = g.to(torch.promote_types(g.dtype, torch.float32))
    if use_qk_l2norm_in_kernel:
        q, k = (_unit(m.to(decay.dtype)) for m in (q, k))
    before = None if initial_state is None else initial_state.to(decay.dtype)
    y, last = rec.gated_delta_rule(q, k, v, decay, beta, before, scale)
    return y, last if output_final_state else None


def _unit(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Vectors of length one, as fla's kernels make them."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + epsilon)


def rwkv_linear_attention(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, state: Sequence[Tensor] | None = None,
    return_state: bool = False,
) -> tuple[Tensor, Sequence[Tensor] | None]:  # fmt: skip
    """transformers' RWKV-4: key, value [B, L, D]; the state is numerator, denominator and largest exponent, [B, D] each."""
    decay = -torch.exp(time_decay.float())
    zero = torch.zeros_like(key[:, 0], dtype=decay.dtype)
    before = (zero, zero, zero - 1e38) if state is None else state
    y, *after = rec.wkv(key, value, decay, time_first.to(decay.dtype), *before)
    return y, after if return_state or state is not None else None


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    from transformers.activations import ACT2FN

    return ACT2FN[name]


# Name of the global in the model's file -> its replacement.
HOOKS: Mapping[str, Function] = {
    "selective_scan_fn": selective_scan_fn,
    "mamba_selective_scan": selective_scan_fn,
    "selective_state_update": selective_state_update,
    "mamba_selective_state_update": selective_state_update,
    "mamba2_selective_state_update": selective_state_update,
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "mamba2_chunk_scan": mamba_chunk_scan_combined,
    "mamba_inner_fn": mamba_inner_fn,
    "chunk_gated_delta_rule": gated_delta_rule,
    "fused_recurrent_gated_delta_rule": gated_delta_rule,
    "chunk_kda": gated_delta_rule,
    "fused_recurrent_kda": gated_delta_rule,
    "torch_chunk_gated_delta_rule": gated_delta_rule,
    "torch_recurrent_gated_delta_rule": gated_delta_rule,
    "chunk_kimi_delta_attention": gated_delta_rule,
    "recurrent_kimi_delta_attention": gated_delta_rule,
    "rwkv_linear_attention": rwkv_linear_attention,
}


# transformers asks these of its own masks; a traced program answers for every length at once.
MASK_HOOKS: Mapping[str, Function] = {
    # Whether SDPA's own causal flag will do: yes for whole sequences without padding or window. Example lengths are at
    # least 2 and a causal row of one element is right too, so the flag holds for every length.
    "_ignore_causal_mask_sdpa": lambda padding_mask, query_length, kv_length, q_offset=0, kv_offset=0, window=None, **_: (
        padding_mask is None and window is None and _same_extent(query_length, kv_length)
    ),
    # Whether rows hold several packed sequences: positions that the model counts itself never restart.
    "find_packed_sequence_indices": lambda position_ids: None,
}


def _same_extent(a: object, b: object) -> bool:
    return str(a) == str(b)  # comparing symbolic sizes would add a guard


def associative_scan(
    combine_fn: Function, xs: Any, dim: int, reverse: bool = False, combine_mode: str = "pointwise"
) -> Any:
    """torch's, as one op in every mode: its mode for CPUs writes out a tree, whose shape fixes the length.

    torch has that op for pointwise functions alone; others become its ``scan``, whose first step takes
    the element as it is.
    """
    leaves, structure = pytree.tree_flatten(xs)
    axis = dim % leaves[0].dim()
    leaves = [x.movedim(axis, 0) for x in leaves]
    leaves = [x.flip([0]) for x in leaves] if reverse else leaves
    combine = partial(associative.wrap_combine_fn_flat, combine_fn=combine_fn, spec=structure, num_leaves=len(leaves))

    def run(combine: Function, elements: list[Tensor]) -> Any:
        return associative.associative_scan_op(combine, elements, additional_inputs=())

    def step(before: tuple[Tensor, ...], element: list[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        first, *done = before
        combined = pytree.tree_leaves(combine(*done, *element))
        after = [torch.where(first, x, y) for x, y in zip(element, combined, strict=True)]
        return (torch.zeros_like(first), *after), [y.clone() for y in after]

    try:
        results = pytree.tree_leaves(hop._maybe_compile_and_run_fn(run, combine, leaves))
    except (InternalTorchDynamoError, RuntimeError):  # not pointwise
        start = (torch.ones((), dtype=torch.bool), *(x.new_zeros(x.shape[1:]) for x in leaves))
        _, results = scan.scan(step, start, leaves)
    results = [y.flip([0]) for y in results] if reverse else results
    return pytree.tree_unflatten([y.movedim(0, axis) for y in results], structure)


def compile_anew(compile: Function, function: FunctionType, args: Any, kwargs: Any = None) -> Any:
    """How torch traces (``compile``) what it gives to a higher-order op, without what it remembers of such functions.

    Having traced one with a static size, it would fix the size of the next one too.
    """
    code, names = function.__code__.replace(), function.__globals__
    fresh = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    return compile(fresh, args, kwargs)


# Functions of torch, wherever a model's file has them under whatever name.
TORCH_HOOKS: Mapping[Function, Function] = {associative.associative_scan: associative_scan}


@contextmanager
def capture(module: torch.nn.Module, given: Collection[str] = ()) -> Iterator[None]:
    """Replace the known functions in every Python module that defines a class of ``module``.

    Args:
        given: names of the arguments that the user passes; explicit ``position_ids`` may hold packed sequences.
    """
    masks = sys.modules.get("transformers.masking_utils")
    rows: list[tuple[ModuleType, Mapping[str, Function]]] = [(home, HOOKS) for home in _homes(module)]
    rows.append((hop, {"_hop_compile_and_call": partial(compile_anew, hop._hop_compile_and_call)}))
    if masks is not None and "position_ids" not in given:
        rows.append((masks, MASK_HOOKS))
    for part in module.modules():
        if hasattr(
            part, "_rescale_layers"
        ):  # transformers' RwkvModel scales its weights when it first runs in eval mode
            part._rescale_layers()
    for home in (*_homes(module), associative):
        found = {name: value for name, value in vars(home).items() if isinstance(value, FunctionType)}
        rows.append((home, {name: TORCH_HOOKS[value] for name, value in found.items() if value in TORCH_HOOKS}))
    saved: list[tuple[ModuleType, str, Any]] = []
    try:
        for home, hooks in rows:
            for name in hooks.keys() & vars(home).keys():
                if callable(vars(home)[name]):
                    saved.append((home, name, vars(home)[name]))
                    setattr(home, name, hooks[name])
        yield
    finally:
        for home, name, original in saved:
            setattr(home, name, original)


def _homes(module: torch.nn.Module) -> list[ModuleType]:
    names = {cls.__module__ for part in module.modules() for cls in type(part).__mro__}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules and not name.startswith("torch.")]
