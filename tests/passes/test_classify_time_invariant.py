"""Loops with constant matrices, in the ways that people write them, become convolutions or diagonal recurrences."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan

import coilc
from coilc.ir import Module, interpret
from coilc.passes import classify_scans, explain, reroll_scans, run_pipeline
from coilc.passes.realise import NotDiagonal, diagonalise
from coilc.passes.stages import on_every_graph

D, N = 5, 4
Check = Callable[..., Module]


def drawn(seed: int, *extents: int) -> Tensor:
    return torch.randn(*extents, generator=torch.Generator().manual_seed(seed))


def waves(seed: int, *extents: int) -> Tensor:
    return torch.complex(drawn(seed, *extents), drawn(seed + 100, *extents))


class Loop(nn.Module):
    """A step written in Python, over [B, L, D]."""

    def __init__(self, **weights: Tensor) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))

    def start(self, u: Tensor) -> Tensor:
        return u.new_zeros(u.shape[0], D, N)

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, u: Tensor) -> Tensor:
        h, ys = self.start(u), []
        for t in range(u.shape[1]):
            h, y = self.step(h, u[:, t])
            ys.append(y)
        return torch.stack(ys, 1)


class Average(Loop):
    """Mega's damped average: a real diagonal."""

    def __init__(self) -> None:
        super().__init__(q=drawn(0, D, N).sigmoid(), p=drawn(1, D, N), eta=drawn(2, D, N))

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.q * h + self.p * u[..., None]
        return h, (h * self.eta).sum(-1)


class Waves(Loop):
    """S4D: a complex diagonal, with a skip."""

    def __init__(self) -> None:
        A = torch.complex(-drawn(0, D, N).sigmoid(), drawn(1, D, N))
        super().__init__(A=A, B=waves(2, D, N), C=waves(3, D, N), skip=drawn(4, D))

    def start(self, u: Tensor) -> Tensor:
        return u.new_zeros(u.shape[0], D, N, dtype=torch.promote_types(u.dtype, torch.complex64))

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.exp(0.3 * self.A) * h + self.B * u[..., None]
        return h, 2 * torch.einsum("dn,bdn->bd", self.C, h).real + self.skip * u


class Dense(Loop):
    """A matrix for every channel."""

    def __init__(self, A: Tensor) -> None:
        super().__init__(A=A, B=drawn(1, D, N), C=drawn(2, D, N), skip=drawn(4, D))

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.einsum("dmn,bdn->bdm", self.A, h) + self.B * u[..., None]
        return h, (self.C * h).sum(-1) + self.skip * u


class Shared(Dense):
    """One matrix for all channels."""

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = h @ self.A.T + u[..., None] * self.B
        return h, (h * self.C).sum(-1)


class Early(Average):
    """The output reads the state before the update."""

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.q * h + self.p * u[..., None], (h * self.eta).sum(-1) - u


class Backwards(Average):
    def forward(self, u: Tensor) -> Tensor:
        return super().forward(u.flip(1)).flip(1)


class Two(Average):
    """Two inputs with gains of their own, and the state in another layout."""

    def start(self, u: Tensor) -> Tensor:
        return u.new_zeros(u.shape[0], N, D)

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.q.T * h + self.p.T * u[:, None] + 0.5 * torch.tanh(u)[:, None]
        return h, torch.einsum("bnd,dn->bd", h, self.eta)


class Resumed(Average):
    def start(self, u: Tensor) -> Tensor:
        return torch.ones(u.shape[0], D, N, dtype=u.dtype) * u[:, 0, :, None]


class DenseResumed(Shared):
    start = Resumed.start


class Layer(Dense):
    """An activation and a mixing of channels in the step."""

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h, y = super().step(h, u)
        return h, torch.nn.functional.gelu(y) @ self.A[:, :, 0] + torch.tanh(u)[:, :N]


class EarlyResumed(Early):
    start = Resumed.start


class WithLast(Dense):
    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        h, ys = self.start(u), []
        for t in range(u.shape[1]):
            h, y = self.step(h, u[:, t])
            ys.append(y)
        return torch.stack(ys, 1), h


RANDOM = 0.4 * drawn(0, D, N, N)
SHIFT = torch.diag(torch.ones(N - 1), -1)
COMPANION = SHIFT + torch.tensor([0.2, 0.3, -0.1, 0.4])[:, None] * torch.eye(N)[N - 1]
MODELS = {
    "average": (Average(), "lti_scan", 1), "waves": (Waves(), "lti_scan", 1), "dense": (Dense(RANDOM), "lti_scan", 1),
    "shared": (Shared(RANDOM[0]), "lti_scan", 1), "shift": (Shared(SHIFT), "causal_conv1d", 1),
    "companion": (Dense(COMPANION.repeat(D, 1, 1)), "lti_scan", 1), "early": (Early(), "lti_scan", 1),
    "backwards": (Backwards(), "lti_scan", 1), "two": (Two(), "lti_scan", 2), "resumed": (Resumed(), "lti_scan", 2),
    "dense resumed": (DenseResumed(RANDOM[0]), "lti_scan", 2), "last": (WithLast(RANDOM), "lti_scan", 2),
    "layer": (Layer(RANDOM), "lti_scan", 1), "last of a shift": (WithLast(SHIFT.repeat(D, 1, 1)), "causal_conv1d", 1),
}  # fmt: skip


@cache
def exported(model: nn.Module) -> Module:
    dynamic = [{0: "B", 1: "L"}]
    return coilc.export(model.eval(), (torch.randn(2, 5, D),), lengths=(5, 7), dynamic_shapes=dynamic)


@pytest.mark.parametrize("name", MODELS)
def test_written_as_a_loop(name: str) -> None:
    model, op, count = MODELS[name]
    program = exported(model)
    stages: dict[str, Module] = {}
    run_pipeline(program, observe=stages.__setitem__, stop_after="recognise")
    found = [node.op.name for node in stages["recognise"].entries["main"].nodes]
    assert found.count(op) == count
    assert not {"scan", "linear_scan"} & set(found)
    for length in (1, 2, 13):
        u = drawn(length, 3, length, D)
        with torch.no_grad():
            expected = Copy(model)(u.double())
        for actual, wanted in zip(interpret(stages["recognise"], {"u": u.numpy()}).values(), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


class Copy:
    """A model in double precision, with a tuple of arrays for its results."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).double()
        for name, weight in model.named_parameters():
            if weight.is_complex():
                setattr(self.model, name, nn.Parameter(weight.to(torch.complex128)))

    def __call__(self, u: Tensor) -> tuple[np.ndarray, ...]:
        found = self.model(u)
        return tuple(y.numpy() for y in (found if isinstance(found, tuple) else (found,)))


@pytest.mark.parametrize("name", ["average", "waves", "dense", "shift", "companion"])
def test_piece_by_piece(name: str, tmp_path: Path) -> None:
    model = MODELS[name][0]
    compiled = coilc.load(coilc.compile(exported(model), tmp_path / "m.coil", entries=("prefill", "step")))
    u = drawn(0, 2, 40, D)
    with torch.no_grad():
        (expected,) = Copy(model)(u.double())
    session = compiled.session()
    pieces = [session.prefill(u=u[:, :17].numpy()), *(session.step(u=u[:, t : t + 1].numpy()) for t in range(17, 40))]
    actual = np.concatenate([next(iter(piece.values())) for piece in pieces], 1)
    assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected)


class Defective(Dense):
    """Jordan blocks have one eigenvector each."""

    def __init__(self) -> None:
        super().__init__((0.5 * torch.eye(N) + SHIFT).repeat(D, 1, 1))


class Mixed(Shared):
    """Channels that read each other."""

    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.einsum("de,ben->bdn", self.skip[:, None] * self.skip, h) + u[..., None] * self.B
        return h, (h * self.C).sum(-1)


class Bent(Average):
    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.q * torch.tanh(h) + self.p * u[..., None]
        return h, (h * self.eta).sum(-1)


class Moving(Average):
    def step(self, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        h = self.q * u[..., None] * h + self.p * u[..., None]
        return h, (h * self.eta).sum(-1)


@pytest.mark.parametrize(("model", "reason"), [
    (Defective(), "eigenvectors have a condition of .* more than"),
    (Mixed(RANDOM[0]), "depends on other channels"),
    (EarlyResumed(), "starts from a given value"),
    (Bent(), "'tanh' of the state is not linear"),
    (Moving(), "'mul' of the state is not linear"),
])  # fmt: skip
def test_other_loops_stay_and_say_why(model: nn.Module, reason: str) -> None:
    stages: dict[str, Module] = {}
    run_pipeline(exported(model), observe=stages.__setitem__, stop_after="clean")
    rolled = on_every_graph(reroll_scans)(stages["clean"])
    events = explain(rolled, "classify_scans").events
    assert any(re.search(reason, str(event.reason)) for event in events if event.rule == "loop_is_time_invariant")
    assert "lti_scan" not in {node.op.name for node in classify_scans(rolled).entries["main"].nodes}


class Associative(nn.Module):
    """S5 (arXiv 2208.04933) as its authors run it: all states by an associative scan of (a, b) pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.complex(-drawn(0, N).sigmoid(), drawn(1, N)))
        self.B, self.C = nn.Parameter(waves(2, N, D)), nn.Parameter(waves(3, D, N))

    def forward(self, u: Tensor) -> Tensor:
        def combine(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return first[0] * second[0], second[0] * first[1] + second[1]

        b = u.to(self.B.dtype) @ self.B.T
        a = torch.exp(0.3 * self.A).expand(b.shape)
        _, states = associative_scan(combine, (a, b), 1, combine_mode="generic")
        return 2 * (states @ self.C.T).real


def test_an_associative_scan_is_linear() -> None:
    model = Associative().eval()
    program = coilc.export(model, (torch.randn(2, 9, D),), dynamic_shapes=[{0: "B", 1: "L"}])
    stages: dict[str, Module] = {}
    run_pipeline(program, observe=stages.__setitem__, stop_after="recognise")
    found = [node.op.name for node in stages["recognise"].entries["main"].nodes]
    assert found.count("linear_scan") == 1
    assert "scan" not in found
    for length in (1, 2, 33):
        u = drawn(length, 3, length, D)
        (actual,) = interpret(stages["recognise"], {"u": u.numpy()}).values()
        with torch.no_grad():
            (wanted,) = Copy(model)(u.double())
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_modes_of_a_matrix(size: int, rng: np.random.Generator) -> None:
    A = rng.standard_normal((3, size, size)) / size
    found = diagonalise(A)
    np.testing.assert_allclose(((found.V * found.a[:, None]) @ found.W).real, A, atol=1e-10)
    kept = found.a[found.a != 0]
    assert not np.iscomplexobj(found.a) or np.all(kept.imag >= 0)


def test_a_jordan_block_has_no_modes() -> None:
    with pytest.raises(NotDiagonal, match="condition"):
        diagonalise(np.array([[[0.5, 1.0], [0.0, 0.5]]]))
