"""Quantise the weights of products: small integers, and activations rounded to eight bits row by row as they come."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from coilc.ir import DTYPES, InputError, Module, Node, Value, ops
from coilc.ir.ops.quantized import rows_of, together

from .rewrite import Rule, on, rewrite_module
from .trace import Declined, no

# Bits per weight and how many of a column share a scale; None: all of them.
FORMATS: Mapping[str, tuple[int, int | None]] = {"int8": (8, None), "int4": (4, 32)}
FEWEST_ROWS = 64  # a smaller matrix is kept: it is read in no time, and often makes step sizes
LARGEST = 127  # of a quantised activation
TINY = 1e-30  # what a row of zeros is divided by


def quantize_weights(module: Module, quantize: str, claims: Collection[str]) -> Module:
    """Turn products with packed weights into products of integers.

    Before::

        v0: f32[64, 40] = weight(name="w", type=f32[64, 40])
        v1: f32[2, 64, 32] = pack_panels(v0, panel=32)
        v2: f32[B, 40] = packed_matmul(x, v1, columns=40)

    After, where ``q`` is ``x`` in steps of ``s = max(abs(x)) / 127`` per row (folding then stores ``v1`` and ``v2``)::

        v0: f32[64, 40] = weight(name="w", type=f32[64, 40])
        v1, v2 = quantize_panels(v0, panel=32, bits=8, groups=1)
        v3: f32[B, 40] = quantized_matmul(q, v1, v2, columns=40)
        v4: f32[B, 40] = mul(v3, broadcast(s, dims=(B, 40)))

    Needs: weights packed. Guarantees: nothing else changes; weights that bodies of loops are given stay.

    Raises:
        InputError: there is no such format, or the target has no kernel for it.
    """
    if quantize not in FORMATS:
        raise InputError(f"there is no format '{quantize}' for weights; there are {', '.join(FORMATS)}")
    if "quantized_matmul" not in claims:
        raise InputError(f"{quantize} weights need a target with kernels for them, which this one is not; CPUs are")
    return rewrite_module(module, product_of_integers(*FORMATS[quantize]))


def product_of_integers(bits: int, shared: int | None) -> Rule:
    @on("packed_matmul")
    def quantized_product(node: Node) -> Value | Declined | None:
        x, panels = node.inputs
        if panels.op is not ops.pack_panels:
            return no("its weight is given to a body of a loop")
        (w,) = panels.node.inputs
        rows, width = w.dims[0], panels.dims[2]
        assert isinstance(rows, int)
        if rows < FEWEST_ROWS or rows % (shared or 4):
            return no(f"{rows} rows are not {FEWEST_ROWS} or more, in groups of {shared or 4}")
        groups = rows // shared if shared else 1
        integers, scales = ops.quantize_panels(w, panel=width, bits=bits, groups=groups)
        q, step = rounded_rows(x)
        product = ops.quantized_matmul(q, integers, scales, columns=node.attrs["columns"])
        result: Value = ops.mul(product, step)
        return result

    return quantized_product


def rounded_rows(x: Value) -> tuple[Value, Value]:
    """``x`` in integers of -127..127, and the step [..., 1] of each row."""
    top = ops.max(ops.abs(x), axes=(x.type.rank - 1,), keepdims=True)
    per_step = ops.div(float(LARGEST), ops.maximum(top, TINY))
    return ops.cast(ops.round(ops.mul(x, per_step)), dtype=DTYPES["i8"]), ops.mul(top, 1 / LARGEST)


# --- rows of a quantised table ------------------------------------------------------------------------------------------


def take_quantized_rows(integers: Value, scales: Value, place: Value, column: Value) -> Value:
    """Columns of what was quantised, which are rows of a table: number ``column`` of panel ``place``, both [..., 1]."""
    _, fours, panel, groups = (dim for dim in (*integers.dims[:3], scales.dims[1]) if isinstance(dim, int))
    rows, in_four = rows_of(integers.type), together(integers.type)
    k = ops.iota(dims=(rows,), axis=0, dtype=DTYPES["i64"])
    steps = ops.add(ops.mul(ops.floor_div(k, in_four), 4 * panel), ops.bitwise_and(k, 3))
    found = taken(integers, ops.add(ops.mul(place, 4 * fours * panel), ops.mul(column, 4)), steps)
    if in_four == 8:
        half = ops.cast(ops.bitwise_and(k, 4), dtype=DTYPES["u8"])
        found = ops.sub(ops.cast(ops.bitwise_and(ops.shift_right(found, half), 15), dtype=DTYPES["i8"]), 8)
    shared = ops.mul(ops.floor_div(k, rows // groups), panel)
    scale = taken(scales, ops.add(ops.mul(place, groups * panel), column), shared)
    return ops.mul(ops.cast(found, dtype=DTYPES["f32"]), ops.cast(scale, dtype=DTYPES["f32"]))


def taken(table: Value, first: Value, steps: Value) -> Value:
    """The elements of a table, in the order of memory, at ``first`` [..., 1] plus ``steps`` [K]."""
    found: Value = ops.take(ops.reshape(table, dims=(table.type.size,)), ops.add(first, steps), axis=0)
    return found
