"""Sums of four products of bytes per lane: the step that products of quantised weights are made of."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .scalar import Expr, bind, intrinsic
from .target import Target


def wants_unsigned(target: Target) -> bool:
    """Whether the first factor of ``dot`` has bytes in 0..255."""
    return "avx512_vnni" in target.features


def has_dot(target: Target) -> bool:
    """Whether ``dot`` is one instruction."""
    return wants_unsigned(target) or "asimddp" in target.features


def dot(target: Target, sums: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
    """``sums[j] + sum over t < 4 of x[j, t] * w[j, t]`` for int32 ``sums``, and ``x``, ``w`` four bytes per lane.

    The bytes of ``w`` are in -127..127, so are those of ``x`` unless the target wants it unsigned; sums are exact.
    """
    if wants_unsigned(target):
        return intrinsic(f"x86.avx512.vpdpbusd.{32 * lanes}", sums, T.reinterpret(f"uint8x{4 * lanes}", x), w)
    if "asimddp" in target.features:
        return intrinsic("aarch64.neon.sdot", sums, T.reinterpret(f"int8x{4 * lanes}", x), w)
    if "asimd" in target.features and lanes == 4:
        return sums + _neon_sums(bind(T.reinterpret("int8x16", x)), w)
    return sums + _pair_sums(_halves(x, lanes), _halves(w, lanes), lanes)


def has_dot_of_pairs(target: Target) -> bool:
    """Whether there is ``dot_of_pairs``."""
    return "i8mm" in target.features


def dot_of_pairs(sums: Expr, x: Expr, w: Expr) -> Expr:
    """``sums[2 i + j] + sum over t < 8 of x[8 i + t] * w[8 j + t]`` for i, j < 2: int32x4 and vectors of 16 bytes."""
    return intrinsic("aarch64.neon.smmla", sums, x, w)


def _neon_sums(x: Expr, w: Expr) -> Expr:
    """Products of 8 bytes (``smull``), sums of two in int16 (``addp``), and of two of those in int32 (``sadalp``)."""
    wide = "int16x8"
    low, high = (
        T.Cast(wide, half("int8x8", x)) * T.Cast(wide, half("int8x8", w)) for half in (T.vectorlow, T.vectorhigh)
    )
    return intrinsic("aarch64.neon.saddlp", intrinsic("aarch64.neon.addp", low, high), dtype="int32x4")


def _halves(x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """The even and the odd bytes as int16."""
    wide = bind(T.reinterpret(f"int16x{2 * lanes}", x))
    eight = tirx.Broadcast(tirx.const(8, "int16"), 2 * lanes)
    return tirx.shift_right(tirx.shift_left(wide, eight), eight), tirx.shift_right(wide, eight)


def _pair_sums(x: tuple[Expr, Expr], w: tuple[Expr, Expr], lanes: int) -> Expr:
    """Two products of bytes in -127..127 fit int16; pairs of those are added as int32."""
    pairs = bind(T.reinterpret(f"int32x{lanes}", x[0] * w[0] + x[1] * w[1]))
    sixteen = tirx.Broadcast(tirx.const(16, "int32"), lanes)
    return tirx.shift_right(tirx.shift_left(pairs, sixteen), sixteen) + tirx.shift_right(pairs, sixteen)
