"""State spaces as numbers: their matrices brought to the form that runs fastest, if the numbers allow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CONDITION = 1e3  # of the eigenvectors: as many times may rounding grow, from 6e-8 in single precision
RECONSTRUCTION = 1e-9  # how far the product of the factors may be from the matrix, in double precision


class NotDiagonal(Exception):
    """A matrix without well-conditioned eigenvectors; the message says how far it is off."""


@dataclass(frozen=True)
class Eigen:
    """``A = Re(V diag(a) W)`` for every channel: a [D, M], V [D, N, M], W [D, M, N].

    Of a real matrix, one mode of each conjugate pair is kept, and V is doubled there; channels with fewer modes than M
    have zeros. Without complex pairs, everything is real.
    """

    a: Array
    V: Array
    W: Array


def diagonalise(A: Array) -> Eigen:
    """Eigenvalues and eigenvectors of [D, N, N], in double precision.

    Raises:
        NotDiagonal: the eigenvectors' condition exceeds ``CONDITION``, or they do not give the matrix back.
    """
    a, V = np.linalg.eig(A)
    condition = float(np.max(np.linalg.cond(V)))
    if not condition <= CONDITION:
        raise NotDiagonal(f"its eigenvectors have a condition of {condition:.1e}, more than {CONDITION:.0e}")
    W = np.linalg.inv(V)
    error = float(np.abs((V * a[:, None]) @ W - A).max() / max(np.abs(A).max(), 1e-300))
    if not error <= RECONSTRUCTION:
        raise NotDiagonal(f"its eigenvalues give it back with an error of {error:.1e}, more than {RECONSTRUCTION:.0e}")
    return Eigen(a, V, W) if np.iscomplexobj(A) else _without_conjugates(a, V, W)


def _without_conjugates(a: Array, V: Array, W: Array) -> Eigen:
    if not np.iscomplexobj(a) or not np.any(a.imag):
        return Eigen(a.real, V.real, W.real)
    modes = int((a.imag >= 0).sum(1).max())
    order = np.argsort(a.imag < 0, axis=1, kind="stable")[:, :modes]
    kept = np.take_along_axis(a, order, 1)
    weight = np.where(kept.imag > 0, 2.0, np.where(kept.imag == 0, 1.0, 0.0))
    return Eigen(
        np.where(weight > 0, kept, 0),
        np.take_along_axis(V, order[:, None, :], 2) * weight[:, None, :],
        np.take_along_axis(W, order[:, :, None], 1),
    )
