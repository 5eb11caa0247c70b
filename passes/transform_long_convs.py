"""Run long convolutions through Fourier transforms where that takes less work than one product per tap."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import log2
from typing import Any

from coilc.ir import Dim, Module, Node, Value, dims, ops
from coilc.ir.ops.fourier import Transform, Wave, by_tables, convenient, matrix_rows, transform, turn

from .recognise_long_convs import SHORT
from .rewrite import on, rewrite_module
from .timeline import replace_at
from .trace import Declined, no

QUARTER = -0.25  # of a turn over a block: what wraps around then lands in the imaginary part
LENGTH = 2048  # steps that a symbolic length stands for
BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)  # lengths of transforms, besides that of the whole sequence
CACHED = 8192  # a transform of this length fits a cache of 2 MB with its 16 lanes
PASS_COST = 24  # reading and writing a spectrum once, in products per element


def transform_long_convs(module: Module, claims: Collection[str] = ()) -> Module:
    """Cut a long convolution into blocks, which are multiplied as spectra.

    Before::

        v0: f32[B, L, 4] = long_conv(x, k, optional=())  # k: f32[4096, 4]

    After, for blocks of Q = 512 steps, each turned by a quarter over its length (n blocks of x, 8 of k)::

        spectra of x: c64[B, n, Q * 4], of k: c64[8, Q * 4]
        v0: c64[B, n, Q * 4] = long_conv(spectra of x, spectra of k, optional=())
        blocks of the result: real part, plus the imaginary part of the block before

    A product of spectra wraps around after Q steps. Turning every block by exp(i pi t / 2 Q) first makes what wraps
    imaginary (the right-angle convolution: Crandall and Fagin, 1994), so that nothing is padded to twice its length. Where
    one block holds the whole sequence, the imaginary part is the future's.

    Needs: nothing. Guarantees: equal up to rounding; spectra of weights are constants.
    """
    by = by_tables if "dft" in claims else transform

    @on("long_conv")
    def long_conv_by_transforms(node: Node) -> Value | Declined | None:
        """A convolution with many taps is a product of spectra"""
        plan, reason = choose_plan(node, claims)
        return no(reason) if plan.block is None else _planned(node, plan, by)

    return rewrite_module(module, many_taps_after_a_state, long_conv_by_transforms)


@on("causal_conv1d")
def many_taps_after_a_state(node: Node) -> tuple[Value, ...] | None:
    """A piece of a sequence with many taps, not one step, is a long convolution of what came before and the piece"""
    given = dict(zip(("x", "w", *node.attrs["optional"]), node.inputs, strict=True))
    x, w = given["x"], given["w"]
    taps, length = w.dims[0], x.dims[1]
    if "state" not in given or not isinstance(taps, int) or taps <= SHORT or length == 1:
        return None
    window = ops.concat(given["state"], x, axis=1)
    y = ops.slice_axis(ops.long_conv(window, ops.flip(w, axes=(0,))), 1, taps - 1, length + taps - 1)
    y = ops.add(y, given["bias"]) if "bias" in given else y
    y = ops.silu(y) if node.attrs["activation"] == "silu" else y
    return y, ops.slice_axis(window, 1, length, length + taps - 1)


def _planned(node: Node, plan: Plan, by: Transform) -> Value:
    x, k, *future = node.inputs
    assert plan.block is not None
    if plan.whole:
        return _in_one_block(x, k, future, plan.block, by)
    y = _in_blocks(x, _cut(k, x.dims[1]), plan.block, by)
    if not future:
        return y
    late = ops.pad(future[0], low=(1, 0), high=(0, 0), value=0.0)
    ahead = _in_blocks(ops.flip(x, axes=(1,)), _cut(late, x.dims[1]), plan.block, by)
    return ops.add(y, ops.flip(ahead, axes=(1,)))


# --- the choice -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Products per element, and the length of a block; no block is one product per tap."""

    cost: float
    block: int | None = None
    whole: bool = False


def choose_plan(node: Node, claims: Collection[str]) -> tuple[Plan, str]:
    """The plan of a ``long_conv`` with the least work, and why."""
    direct, *others = _plans(node, products_by_tables if "dft" in claims else products)
    if node.types[0].dtype.name not in ("f32", "f64"):
        return direct, f"there are no transforms of {node.types[0].dtype}"
    best = min(others, key=lambda plan: plan.cost, default=direct)
    if direct.cost <= best.cost:
        return direct, f"one product per tap is cheaper: {direct.cost:.0f} per element"
    what = f"one transform of {best.block}" if best.whole else f"transforms of blocks of {best.block}"
    place = f"at length {_representative(node.inputs[0].dims[1])}"
    return best, f"{what}: {best.cost:.0f} products per element {place}, {direct.cost:.0f} with one per tap"


def describe_transforms(module: Module, claims: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """One row per ``long_conv``, in the order of the entries, as ``describe_choices`` has them for recurrences."""
    for entry, graph in module.entries.items():
        for node in graph.nodes:
            if node.op is ops.long_conv:
                plan, reason = choose_plan(node, claims)
                scope = node.location.scope if node.location else ""
                name = "direct" if plan.block is None else "transforms"
                yield {
                    "entry": entry, "op": node.op.name, "scope": scope,
                    "algorithm": name, "value": plan.block, "reason": reason,
                }  # fmt: skip


def _plans(node: Node, work: Callable[[int], float]) -> Iterator[Plan]:
    x, *kernels = node.inputs
    length = _representative(x.dims[1])
    taps = [min(_representative(k.dims[0]), length) for k in kernels]
    yield Plan(sum(t * (1 - t / (2 * length)) for t in taps))
    moving = any(not isinstance(k.dims[0], int) for k in kernels)
    whole = convenient(length)
    if isinstance(x.dims[1], int):
        yield Plan((2 + moving) * work(whole) * whole / length, whole, whole=True)
    for block in BLOCKS:
        if block < length:
            count = -(-length // block) * block / length
            products = sum(2 * -(-t // block) * (1 - t / (2 * length)) for t in taps)
            yield Plan(((2 + moving) * work(block) * len(taps) + products + PASS_COST) * count, block)


def products(n: int) -> float:
    """What a transform of length n costs per element as products with small matrices."""
    return 2 * matrix_rows(n) + PASS_COST


def products_by_tables(n: int) -> float:
    """The same for the kernel of ``dft``, whose scratch memory leaves the cache at some length."""
    return 3 * log2(n) + PASS_COST * (2 if n > CACHED else 1)


def _representative(dim: Dim) -> int:
    return dim if isinstance(dim, int) else LENGTH


def _cut(k: Value, length: Dim) -> Value:
    """Taps before the first step are never used."""
    whole, steps = k.dims[0], length
    longer = isinstance(whole, int) and isinstance(steps, int) and whole > steps
    return ops.slice_axis(k, 0, 0, length) if longer else k


# --- the rewrite ------------------------------------------------------------------------------------------------------


def _in_one_block(x: Value, k: Value, future: list[Value], n: int, by: Transform) -> Value:
    """One transform over the whole sequence; the future wraps around to the end of the kernel, a quarter turn behind."""
    batch, length, channels = x.dims
    kernel = ops.reshape(_padded(_cut(k, length), 0, n), dims=(1, 1, n, channels))
    if future:
        ahead = ops.flip(_padded(_cut(future[0], length - 1), 0, n), axes=(0,))
        kernel = ops.concat(kernel, ops.neg(ops.reshape(ahead, dims=kernel.dims)), axis=1)
    spectrum = by(kernel, Wave(-1, before=QUARTER))
    signal = ops.reshape(_padded(x, 1, n), dims=(batch, 1, n, channels))
    product = turn(by(signal, Wave(-1, before=QUARTER)), spectrum)
    y = by(product, Wave(1, after=QUARTER), scale=1 / n, parts=1)
    return ops.slice_axis(ops.reshape(y, dims=(batch, n, channels)), 1, 0, length)


def _in_blocks(x: Value, k: Value, n: int, by: Transform) -> Value:
    """Blocks of n steps and n taps: their spectra are convolved from block to block."""
    batch, length, channels = x.dims
    count, taps = (length + n - 1) // n, (k.dims[0] + n - 1) // n
    signals = _spectra(_padded(x, 1, count * n), (batch, count), n, by)
    kernels = _spectra(_padded(k, 0, taps * n), (taps,), n, by)
    product = ops.long_conv(signals, kernels)
    both = ops.concat(
        *(ops.reshape(part(product), dims=(batch * count, 1, n, channels)) for part in (ops.real, ops.imag)), axis=1
    )
    y = by(both, Wave(1, after=QUARTER), scale=1 / n)
    here, wrapped = (ops.reshape(ops.slice_axis(y, 1, i, i + 1), dims=(batch, count * n, channels)) for i in (0, 1))
    late = ops.slice_axis(ops.pad(wrapped, low=(0, n, 0), high=(0, 0, 0), value=0.0), 1, 0, length)
    return ops.add(ops.slice_axis(here, 1, 0, length), late)


def _spectra(x: Value, lead: tuple[Dim, ...], n: int, by: Transform) -> Value:
    """The turned spectra of [*lead * n, channels], complex [*lead, n * channels]."""
    channels = x.dims[-1]
    blocks = by(ops.reshape(x, dims=(dims.size(lead), 1, n, channels)), Wave(-1, before=QUARTER))
    re, im = (ops.reshape(ops.slice_axis(blocks, 1, i, i + 1), dims=(*lead, n * channels)) for i in (0, 1))
    joined: Value = ops.complex(re, im)
    return joined


def _padded(x: Value, axis: int, to: Dim) -> Value:
    """Zeros at the end of an axis."""
    if x.dims[axis] == to:
        return x
    none = (0,) * x.type.rank
    return ops.pad(x, low=none, high=replace_at(none, axis, to - x.dims[axis]), value=0.0)
