"""State spaces from the numbers of a kernel: as few states as give it back, in the form that rounding hurts least.

A kernel of K taps is the response of N states if the matrix of its taps k_(i+j) has rank N; the subspace of its columns is
shifted by the state matrix (Kung 1978, "A new identification and model reduction algorithm via singular value
decompositions"). Eigenvalues of such a matrix may be useless: those of S4 are 1e9 times as sensitive as the kernel. The
lattice is not: it is a chain of plane rotations, which neither grow nor shrink what they turn (Gray and Markel 1975, "A
normalized digital filter structure"), and one step takes 5 N products. Slow states turn by little, so a rotation is kept
as its sine and ``1 - cosine``, whose rounding is as small as they are.

A kernel that has not died away over its taps may leave the shift matrix unstable. Then its taps are fitted by a Laguerre
network, a delay line of equal all-pass sections: more states, but they decay whatever the kernel, and are orthonormal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FIT = 2.0**-20  # how far a response may be from a kernel, of its largest tap; single precision is as far off itself
SINGLE = 2.0**-18  # the same for the response in single precision, of their norms; any recurrence rounds once a step
GROWTH = 16.0  # how many times a state may grow over the taps, and its rounding errors with it
READOUT = 4.0  # how large a network's readout may be, of the norm of the taps; it has no end, they have
LARGEST = 1e3  # that a power of a state matrix may become on the way
STATES = 160  # that are looked for at most
SPARE = 16  # further columns of a sketch of the matrix of taps, which make it as good as the matrix
DECAYS = (32, 64, 128, 256)  # of a section's response over the taps, as exponents of e
MORE = 8  # states that are tried beyond the rank, which is blurred by the kernel's rounding


class NotRealised(Exception):
    """A kernel without a state space; the message says what is missing."""


@dataclass(frozen=True)
class Lattice:
    """Chains of N rotations for D channels, from the end of each chain to its beginning.

    One step turns the states g and an input x into new states and an output::

        v_0 = g_0,  z = (g_1, ..., g_(N-1), x)
        g_n = gain (v_n + (sine_n z_n - versine_n v_n)),  v_(n+1) = z_n - (sine_n v_n + versine_n z_n)
        y = sum over n of readout_n g_n

    Attributes:
        sine, versine, readout: [N, D]; a versine is 1 - cosine.
        gain: [D]; 1 where the states decay, and a number of single precision.
    """

    sine: Array
    versine: Array
    readout: Array
    gain: Array

    @property
    def states(self) -> int:
        return len(self.sine)

    def response(self, taps: int, dtype: Any) -> Array:
        """The outputs [taps, D] for an input of 1 and then zeros."""
        numbers = [x.astype(dtype) for x in (self.sine, self.versine, self.readout, self.gain)]
        s, w, readout, gain = numbers
        g = np.zeros_like(s)
        y: Array = np.zeros((taps, s.shape[1]), dtype)
        for t in range(taps):
            v, z = g[0], np.concatenate([g[1:], np.full_like(g[:1], t == 0)])
            for n in range(self.states):
                g[n], v = gain * (v + (s[n] * z[n] - w[n] * v)), z[n] - (s[n] * v + w[n] * z[n])
            y[t] = np.sum(readout * g, axis=0)
        return y


_NOTHING = np.zeros((1, 1))
SILENT = Lattice(_NOTHING, _NOTHING, _NOTHING, np.ones(1))  # one channel without a response


def realise(kernel: Array, most: int = STATES) -> tuple[Lattice, Array]:
    """The lattice whose response is ``kernel`` [K, D], and the channels that have none: there its response is 0.

    Args:
        most: states per channel.

    Raises:
        NotRealised: no channel has such a form, or all lose too much in single precision.
    """
    kernel = kernel.astype(np.float64)
    chains, reasons = dict[int, Lattice](), dict[int, str]()
    for channel, taps in enumerate(kernel.T):
        try:
            chains[channel] = _chain(taps, most)
        except NotRealised as reason:
            chains[channel], reasons[channel] = SILENT, str(reason)
    for channel, error in enumerate(_single_precision_errors(_side_by_side(list(chains.values())), kernel)):
        if channel not in reasons and not error <= SINGLE:
            chains[channel] = SILENT
            reasons[channel] = f"single precision loses {error:.1e} of it, more than {SINGLE:.1e}"
    if len(reasons) == len(chains):
        raise NotRealised(reasons[0])
    return _side_by_side(list(chains.values())), np.array(list(reasons), int)


def _single_precision_errors(lattice: Lattice, kernel: Array) -> Array:
    """Of every channel: the norm of what its response is off, over its kernel's."""
    errors: Array = _norms(lattice.response(len(kernel), np.float32) - kernel) / np.maximum(_norms(kernel), 1e-300)
    return errors


def _norms(columns: Array) -> Array:
    norms: Array = np.linalg.norm(columns, axis=0)
    return norms


def _side_by_side(chains: list[Lattice]) -> Lattice:
    """Channels together; shorter chains get states in front that stay zero."""
    length = max(chain.states for chain in chains)

    def joined(name: str, fill: float) -> Array:
        parts = [getattr(chain, name) for chain in chains]
        return np.concatenate([np.pad(x, ((length - len(x), 0), (0, 0)), constant_values=fill) for x in parts], axis=1)

    gain = np.concatenate([chain.gain for chain in chains])
    return Lattice(joined("sine", 0), joined("versine", 0), joined("readout", 0), gain)


# --- one channel ------------------------------------------------------------------------------------------------------


def _chain(taps: Array, most: int) -> Lattice:
    largest = np.abs(taps).max()
    if largest == 0:
        return SILENT
    reason = f"its taps are not the response of {most} states or fewer"
    for A, b, c in _spaces(taps, most):
        error = np.abs(_powers(A, b, len(taps)) @ c - taps).max() / largest
        gain = float(np.float32(max(1.0, 1.0001 * np.abs(np.linalg.eigvals(A)).max())))
        if error > FIT:
            reason = f"{len(b)} states give it back with an error of {error:.1e}, more than {FIT:.1e}"
        elif gain ** len(taps) > GROWTH:
            reason = f"{len(b)} states that give it back grow {gain ** len(taps):.1e} times over its taps"
        else:
            return _rotations(*_balanced(A / gain, b, c / gain), gain)
    network = _smallest_network(taps, most)
    if network is None:
        raise NotRealised(reason)
    return _rotations(*network, 1.0)


def _smallest_network(taps: Array, most: int) -> tuple[Array, Array, Array] | None:
    """The Laguerre network ``A, b, c`` with the fewest states that gives the taps back, if its readout is not too large."""
    found = []
    for A, b, basis, corner in _networks(len(taps), most):
        parts = basis.T @ taps
        errors = np.abs(taps[:, None] - np.cumsum(basis * parts, axis=1)).max(axis=0)
        for n in np.flatnonzero(errors <= FIT * np.abs(taps).max())[:1] + 1:
            c = np.linalg.solve(corner[:n, :n], parts[:n])
            if _norms(c) <= READOUT * _norms(taps):
                found.append((A[:n, :n], b[:n], c))
    return min(found, key=lambda space: len(space[1]), default=None)


@lru_cache(maxsize=1)
def _networks(taps: int, states: int) -> tuple[tuple[Array, Array, Array, Array], ...]:
    """Networks ``A, b`` of each decay, and their states over the taps as an orthonormal basis times a corner."""
    spaces = [_network(np.exp(-decay / taps), states) for decay in DECAYS]
    return tuple((A, b, *np.linalg.qr(_powers(A, b, taps))) for A, b in spaces)


def _network(pole: float, states: int) -> tuple[Array, Array]:
    """``A, b`` of a Laguerre network, whose first n states are the network of n; ``A A^T + b b^T = 1``."""
    behind = np.subtract.outer(np.arange(states), np.arange(states))
    gains = (-pole) ** np.maximum(behind - 1, 0)
    A = np.where(behind > 0, (1 - pole**2) * gains, pole * np.eye(states))
    return A, np.sqrt(1 - pole**2) * (-pole) ** np.arange(states)


def _spaces(taps: Array, most: int) -> Iterator[tuple[Array, Array, Array]]:
    """State spaces ``A, b, c`` of one kernel with more and more states, from about the rank of the matrix of taps."""
    rows = len(taps) // 2 + 1
    matrix = np.lib.stride_tricks.sliding_window_view(taps, len(taps) - rows + 1)
    columns, sizes, rank = _directions(matrix, most)
    for states in range(rank, min(rank + MORE, most, len(sizes) - 1) + 1):
        basis = columns[:, :states]
        A, b = np.linalg.lstsq(basis[:-1], basis[1:], rcond=None)[0].T, basis[0]
        with np.errstate(all="ignore"):
            powers = _powers(A, b, len(taps))
        if np.abs(powers).max() < LARGEST:
            yield A, b, np.linalg.lstsq(powers, taps, rcond=None)[0]


def _directions(matrix: Array, most: int) -> tuple[Array, Array, int]:
    """Left singular vectors, singular values and rank of a matrix, from sketches of more and more columns."""
    for width in (32, 64, 128, most):
        if 2 * (width + SPARE) > matrix.shape[1]:
            break
        columns, sizes = _sketched(matrix, width + SPARE)
        rank = _rank(sizes)
        if rank < width - MORE or width == most:
            return columns, sizes, rank
    columns, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    return columns, sizes, _rank(sizes)


def _rank(sizes: Array) -> int:
    return int(np.sum(sizes > FIT * sizes[0]))


def _sketched(matrix: Array, width: int) -> tuple[Array, Array]:
    """The largest singular values and their left vectors (Halko, Martinsson and Tropp 2011, algorithm 4.4)."""
    sketch = matrix @ np.random.default_rng(0).standard_normal((matrix.shape[1], width))
    for _ in range(2):
        sketch = matrix @ (matrix.T @ np.linalg.qr(sketch)[0])
    basis = np.linalg.qr(sketch)[0]
    columns, sizes, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ columns, sizes


def _powers(A: Array, b: Array, taps: int) -> Array:
    """``A^j b`` for every tap j: [taps, N]."""
    found, power = b[None], A.T
    while len(found) < taps:
        found, power = np.concatenate([found, found @ power]), power @ power
    return found[:taps]


def _balanced(A: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """The same state space with ``A A^T + b b^T = 1``: inputs of any kind leave equal traces in all states."""
    reached, power = np.outer(b, b), A
    for _ in range(64):
        more = power @ reached @ power.T
        reached, power = reached + more, power @ power
        if np.abs(more).max() <= 1e-17 * np.abs(reached).max():
            break
    try:
        root = np.linalg.cholesky(reached)
    except np.linalg.LinAlgError:
        raise NotRealised("its states cannot be told apart in double precision") from None
    return np.linalg.solve(root, A @ root), np.linalg.solve(root, b), c @ root


def _rotations(A: Array, b: Array, c: Array, gain: float) -> Lattice:
    """[b A] as a product of rotations: first made zero below its diagonal by reflections, then unwound from the end."""
    both, c, states = np.column_stack([b, A]), c.copy(), len(b)
    for n in range(states - 1):
        v = both[n:, n].copy()
        v[0] += np.copysign(np.linalg.norm(v), v[0])
        v /= max(float(np.linalg.norm(v)), 1e-300)
        both[n:] -= 2 * np.outer(v, v @ both[n:])
        both[:, n + 1 :] -= 2 * np.outer(both[:, n + 1 :] @ v, v)
        c[n:] -= 2 * v * (c[n:] @ v)
    turns = []
    for n in reversed(range(states)):
        sine, cosine = both[n, n : n + 2] / np.linalg.norm(both[n, n : n + 2])
        both[:, n] = cosine * both[:, n] - sine * both[:, n + 1]
        turns.append((sine, 1 - cosine))
    sines, versines = np.array(turns).T[:, :, None]
    return Lattice(sines, versines, c[::-1, None], np.array([gain]))
