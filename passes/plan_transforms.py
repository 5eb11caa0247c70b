"""Give Fourier transforms of known lengths the tables that the target's kernel wants."""

from __future__ import annotations

from collections.abc import Collection

from coilc.ir import Module, Node, Value
from coilc.ir.ops import fourier

from .rewrite import on, rewrite_module
from .trace import Declined, no


def plan_transforms(module: Module, claims: Collection[str]) -> Module:
    """Turn fft, ifft, rfft and irfft into ``dft``, if the target has a kernel for it.

    Before::

        v0: c64[B, 33, 4] = rfft(x, axis=1)

    After (the tables are constants; the unwanted half is cut off)::

        v0: f32[B, 1, 64, 4] = reshape(x, dims=(B, 1, 64, 4))
        v1: f32[B, 2, 64, 4] = dft(v0, roots, before, after, parts=2)

    Needs: nothing. Guarantees: equal up to rounding; a length with a large prime factor, or a symbolic one, is left to the
    op's definition.
    """
    return rewrite_module(module, transform_by_tables) if "dft" in claims else module


@on("fft", "ifft", "rfft", "irfft")
def transform_by_tables(node: Node) -> Value | Declined | None:
    """A transform of known length is one kernel"""
    (x,), axis = node.inputs, node.attrs["axis"]
    n = node.attrs.get("n", x.dims[axis])
    if not isinstance(n, int):
        return no(f"its length is {n}")
    match node.op.name:
        case "rfft":
            return fourier.real_transform(x, axis=axis, by=fourier.by_tables)
        case "irfft":
            return fourier.inverse_real_transform(x, axis=axis, n=n, by=fourier.by_tables)
    return fourier.complex_transform(x, axis=axis, sign=-1 if node.op.name == "fft" else 1, by=fourier.by_tables)
