"""Recognise convolutions as long as the sequence, however they are written: by Fourier transform or as a convolution."""

from __future__ import annotations

from dataclasses import dataclass

from coilc.ir import Dim, Graph, Module, Node, Value, dims, ops

from .match import both_orders, scalar, unspread
from .rewrite import Rule, on, rewrite_module
from .timeline import replace_at
from .trace import Declined, no

SHORT = 64  # a causal_conv1d keeps this many taps: it unrolls them and can go on from a state


def recognise_long_convs(module: Module) -> Module:
    """Turn a product of spectra into ``long_conv``, whatever the layout, and a convolution with many taps as well.

    Before::

        v0: f32[B, 4, 2*L] = pad(x, low=(0, 0, 0), high=(0, 0, L), value=0.0)
        v1: c64[B, 4, L + 1] = rfft(v0, axis=2)
        v2: f32[4, 2*L] = pad(k, low=(0, 0), high=(0, L), value=0.0)
        v3: c64[4, L + 1] = rfft(v2, axis=1)
        v4: c64[B, 4, L + 1] = broadcast(v3, dims=(B, 4, L + 1))
        v5: c64[B, 4, L + 1] = mul(v1, v4)
        v6: f32[B, 4, 2*L] = irfft(v5, axis=2, n=2*L)
        v7: f32[B, 4, L] = slice(v6, starts=(0, 0, 0), stops=(B, 4, L), steps=(1, 1, 1))

    After::

        v0: f32[B, L, 4] = transpose(x, perm=(0, 2, 1))
        v1: f32[L, 4] = transpose(k, perm=(1, 0))
        v2: f32[B, L, 4] = long_conv(v0, v1, optional=())
        v3: f32[B, 4, L] = transpose(v2, perm=(0, 2, 1))

    Needs: spectra are not folded to constants yet. Guarantees: equal up to rounding; nothing wraps around unless the
    kernel is written to, which makes it a kernel for the future.
    """
    return rewrite_module(module, *RULES)


@dataclass(frozen=True)
class Signal:
    """A real sequence [..., T, ...] that aligns with the product of spectra; ``axis`` is time, other axes may be 1."""

    value: Value
    axis: int

    @property
    def length(self) -> Dim:
        return self.value.dims[self.axis]


# --- products of spectra ----------------------------------------------------------------------------------------------


@on("slice")
def product_of_spectra(node: Node) -> Value | Declined | None:
    """The first steps of irfft(rfft(x) * rfft(k)) are a convolution"""
    number, spectrum = _unscaled(node.inputs[0])
    if spectrum.op is not ops.irfft:
        return None
    axis, n = spectrum.node.attrs["axis"], spectrum.node.attrs["n"]
    length = node.attrs["stops"][axis]
    kept = replace_at(spectrum.dims, axis, length)
    if node.attrs["stops"] != kept or any(node.attrs["starts"]) or set(node.attrs["steps"]) != {1}:
        return no("is not cut to its first steps")
    factor, parts = _factors(spectrum.node.inputs[0])
    signals = [_signal(part, axis, n) for part in parts]
    known = [s for s in signals if s is not None]
    if len(known) != 2 or len(signals) != 2:
        return no(f"is made of {len(known)} spectra of sequences among {len(signals)} factors, not of 2")
    k, x = sorted(known, key=_likely_signal)
    y = _convolved(x, k, kept, axis, n)
    if isinstance(y, Declined) or number * factor == 1:
        return y
    return ops.mul(y, number * factor)


def _unscaled(value: Value) -> tuple[float, Value]:
    """A number times a value."""
    if value.op is ops.mul:
        for x, y in both_orders(value.node):
            number = scalar(y)
            if number is not None:
                return number, x
    return 1.0, value


def _likely_signal(sequence: Signal) -> tuple[bool, int]:
    """An order in which kernels come first: they depend on weights alone, or are equal for all of a batch."""
    nodes = Graph("sequence", (), (("x", sequence.value),)).nodes
    return any(n.op is ops.input_ for n in nodes), sum(d != 1 for d in sequence.value.dims)


def _factors(value: Value) -> tuple[float, list[Value]]:
    """The factors of a complex product, numbers apart."""
    if value.op is ops.broadcast and value.node.inputs[0].op in (ops.mul, ops.div):
        number, parts = _factors(value.node.inputs[0])
        return number, [_spread_to(part, value.dims) for part in parts]
    if value.op is ops.mul:
        (a, left), (b, right) = map(_factors, value.node.inputs)
        return a * b, [*left, *right]
    if value.op is ops.div and (divisor := _complex_scalar(value.node.inputs[1])):
        number, parts = _factors(value.node.inputs[0])
        return number / divisor, parts
    known = _complex_scalar(value)
    return (1.0, [value]) if known is None else (known, [])


def _complex_scalar(value: Value) -> float | None:
    value = unspread(value)
    while value.op is ops.cast:
        value = unspread(value.node.inputs[0])
    if value.op is ops.constant and value.type.size == 1 and value.type.dtype.is_complex:
        number = complex(value.node.attrs["value"].value.item())
        return number.real if number.imag == 0 else None
    return scalar(value)


def _signal(spectrum: Value, axis: int, n: Dim) -> Signal | None:
    """The sequence whose transform this is, seen through movement; frequency is at ``axis``."""
    chain: list[Node] = []
    places = [axis]
    value = spectrum
    while value.op in (ops.broadcast, ops.reshape, ops.transpose):
        place = _place_before(value.node, places[-1])
        if place is None:
            return None
        chain.append(value.node)
        places.append(place)
        value = value.node.inputs[0]
    if value.op is not ops.rfft or value.node.attrs["axis"] != places[-1] or value.node.inputs[0].dims[places[-1]] != n:
        return None
    source: Value | None = _unpadded(value.node.inputs[0], places[-1])
    for node, place in zip(reversed(chain), reversed(places[:-1]), strict=True):
        source = source and _replayed(node, source, place)
    return None if source is None else Signal(source, axis)


def _place_before(node: Node, axis: int) -> int | None:
    """Where an axis of a moved value was before the movement."""
    (x,) = node.inputs
    if node.op is ops.transpose:
        return int(node.attrs["perm"][axis])
    if node.op is ops.broadcast:
        place = axis - (node.results[0].type.rank - x.type.rank)
        return place if place >= 0 and x.dims[place] == node.results[0].dims[axis] else None
    outer, extent = dims.size(node.results[0].dims[:axis]), node.results[0].dims[axis]
    places = (a for a in range(x.type.rank) if dims.size(x.dims[:a]) == outer and x.dims[a] == extent)
    return next(places, None)


def _unpadded(x: Value, axis: int) -> Value:
    """The sequence before zeros were put after it."""
    if x.op is not ops.pad or x.node.attrs["value"] != 0:
        return x
    low, high = x.node.attrs["low"], x.node.attrs["high"]
    others = [*low, *(h for a, h in enumerate(high) if a != axis)]
    return x if any(others) else x.node.inputs[0]


def _replayed(node: Node, x: Value, axis: int) -> Value | None:
    """The movement of a spectrum, on its sequence; a broadcast is left to those who read the sequence."""
    (before,), after = (v.dims for v in node.inputs), node.results[0].dims
    if node.op is ops.transpose:
        return ops.transpose(x, perm=node.attrs["perm"])
    if node.op is ops.broadcast:
        return ops.reshape(x, dims=((1,) * (len(after) - len(before)) + x.dims))
    if [d for d in before if d != 1] == [d for d in after if d != 1]:  # axes of 1 come and go
        kept = iter(d for d, wanted in zip(x.dims, before, strict=True) if wanted != 1)
        return ops.reshape(x, dims=tuple(1 if wanted == 1 else next(kept) for wanted in after))
    place = _place_before(node, axis)
    whole = place is not None and x.dims == replace_at(before, place, x.dims[place])
    return ops.reshape(x, dims=replace_at(after, axis, x.dims[place or 0])) if whole else None


def _convolved(x: Signal, k: Signal, kept: tuple[Dim, ...], axis: int, n: Dim) -> Value | Declined:
    """The convolution of a signal with a kernel; the result has dims ``kept``."""
    rank, length = len(kept), kept[axis]
    channels = [a for a in range(rank) if a != axis and k.value.dims[a] != 1] or [_innermost(kept, axis)]
    batch = [a for a in range(rank) if a != axis and a not in channels]
    wraps = dims.bounds(k.length + x.length - 1 - n, {})[1]
    kernel = _kernel(k, kept, axis, channels)
    if wraps is None or wraps > 0:
        if x.length != length or k.length != n:
            return no(f"wraps around: {x.length} steps and {k.length} taps do not fit into {n}")
        future = ops.slice_axis(ops.flip(kernel, axes=(0,)), 0, 0, length - 1)
        kernels = {"k": ops.slice_axis(kernel, 0, 0, length), "future": future}
    else:
        kernels = {"k": kernel}
    perm = (*batch, axis, *channels)
    wide = _fitted(x, length, kept, axis)
    rows = dims.size(kept[a] for a in batch), length, dims.size(kept[a] for a in channels)
    moved = ops.reshape(ops.transpose(wide, perm=perm), dims=rows)
    y = ops.long_conv(moved, *kernels.values(), optional=tuple(kernels)[1:])
    back = tuple(perm.index(a) for a in range(rank))
    return ops.transpose(ops.reshape(y, dims=tuple(kept[a] for a in perm)), perm=back)


def _innermost(kept: tuple[Dim, ...], axis: int) -> int:
    """The last axis that is not time; a kernel that all channels share is repeated along it."""
    return max(a for a in range(len(kept)) if a != axis)


def _kernel(k: Signal, kept: tuple[Dim, ...], axis: int, channels: list[int]) -> Value:
    """[taps, channels]."""
    axes = sorted((axis, *channels))
    slim = ops.reshape(k.value, dims=tuple(k.value.dims[a] for a in axes))
    wide = _spread_to(slim, tuple(k.length if a == axis else kept[a] for a in axes))
    ordered = ops.transpose(wide, perm=tuple(axes.index(a) for a in (axis, *channels)))
    return ops.reshape(ordered, dims=(k.length, dims.size(kept[a] for a in channels)))


def _spread_to(x: Value, to: tuple[Dim, ...]) -> Value:
    return x if x.dims == to else ops.broadcast(x, dims=to)


def _fitted(x: Signal, length: Dim, kept: tuple[Dim, ...], axis: int) -> Value:
    """The signal with as many steps as the result has: what comes later is not read, what is missing is zero."""
    value = _spread_to(x.value, replace_at(kept, axis, x.length))
    if x.length == length:
        return value
    if dims.bounds(x.length - length, {})[0] >= 0:
        return ops.slice_axis(value, axis, 0, length)
    none = (0,) * len(kept)
    return ops.pad(value, low=none, high=replace_at(none, axis, length - x.length), value=0.0)


@on("einsum")
def product_as_einsum(node: Node) -> Value | None:
    """einsum("bhl,hl->bhl") of spectra is a product"""
    terms, _, result = node.attrs["equation"].partition("->")
    if not node.types[0].dtype.is_complex or set(terms) - {","} != set(result) or terms.count(",") != 1:
        return None
    x, y = (_aligned(v, term, result) for v, term in zip(node.inputs, terms.split(","), strict=True))
    product: Value = ops.mul(x, y)
    return product


def _aligned(x: Value, letters: str, result: str) -> Value:
    """Axes in the order of the result, 1 where there is none."""
    ordered = ops.transpose(x, perm=tuple(letters.index(c) for c in result if c in letters))
    extents = dict(zip(letters, x.dims, strict=True))
    return ops.reshape(ordered, dims=tuple(extents.get(c, 1) for c in result))


# --- convolutions with many taps --------------------------------------------------------------------------------------


@on("long_conv")
def few_taps(node: Node) -> Value | None:
    """A long convolution with few taps is a causal_conv1d"""
    x, k = node.inputs[:2]
    if not isinstance(k.dims[0], int) or not 1 <= k.dims[0] <= SHORT or node.attrs["optional"]:
        return None
    if x.type.dtype.is_complex or x.dims[1] == k.dims[0]:
        return None
    y: Value = ops.causal_conv1d(x, ops.flip(k, axes=(0,)))[0]
    return y


@on("causal_conv1d")
def many_taps(node: Node) -> tuple[Value, ...] | Declined | None:
    """causal_conv1d with many taps is a long convolution"""
    x, w, *_ = node.inputs
    if not isinstance(w.dims[0], int) or w.dims[0] <= SHORT or "state" in node.attrs["optional"]:
        return None
    y = ops.long_conv(x, ops.flip(w, axes=(0,)))
    y = ops.add(y, node.inputs[2]) if "bias" in node.attrs["optional"] else y
    y = ops.silu(y) if node.attrs["activation"] == "silu" else y
    return y, last_inputs(x, w.dims[0] - 1)


def last_inputs(x: Value, count: int) -> Value:
    """The last steps of [B, L, D], zeros before the first."""
    before = ops.pad(x, low=(0, count, 0), high=(0, 0, 0), value=0.0)
    return ops.slice_axis(before, 1, x.dims[1], x.dims[1] + count)


@on("conv")
def as_long_as_the_sequence(node: Node) -> Value | None:
    """A depthwise convolution with a symbolic number of taps after as many zeros, less one"""
    x, w = node.inputs
    attrs = node.attrs
    if x.type.rank != 3 or isinstance(w.dims[2], int) or w.dims[1] != 1 or attrs["groups"] != x.dims[1]:
        return None
    plain = attrs["strides"] == attrs["dilation"] == (1,) and attrs["padding"] == ((0, 0),)
    before = (0, 0, w.dims[2] - 1)
    if not plain or x.op is not ops.pad or (x.node.attrs["low"], any(x.node.attrs["high"])) != (before, False):
        return None
    taps = ops.flip(ops.transpose(ops.reshape(w, dims=(w.dims[0], w.dims[2])), perm=(1, 0)), axes=(0,))
    y = ops.long_conv(ops.transpose(x.node.inputs[0], perm=(0, 2, 1)), taps)
    return ops.transpose(y, perm=(0, 2, 1))


@on("long_conv")
def kernel_cut_to_the_sequence(node: Node) -> Value | None:
    """Taps that reach before the first step are never used, so a kernel need not be cut to the length"""
    x, k = node.inputs[:2]
    if k.op is not ops.slice or k.dims[0] != x.dims[1] or node.attrs["optional"]:
        return None
    whole = k.node.inputs[0]
    starts = (0, 0), (1, 1)
    cut = (k.node.attrs["starts"], k.node.attrs["steps"]) == starts and whole.dims[1] == k.dims[1]
    return ops.long_conv(x, whole) if cut and isinstance(whole.dims[0], int) else None


RULES: tuple[Rule, ...] = (
    product_as_einsum, product_of_spectra, few_taps, many_taps, as_long_as_the_sequence, kernel_cut_to_the_sequence,
)  # fmt: skip
