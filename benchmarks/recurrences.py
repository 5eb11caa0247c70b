"""Recurrences against eager PyTorch, ``torch.compile`` and C++: ``taskset -c 0 python benchmarks/recurrences.py [name ...]``.

``generated`` is coilc without its hand-tuned kernel for the op: the kernel that the code generator makes of the op's
decomposition. Every candidate is checked against the op's definition before it is timed; times are medians of interleaved
rounds, and outputs of coilc and C++ lie in memory that is there already, the same for all: what kind of pages it has may
make a third of the time.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from timing import random, report  # first: it sets the number of threads

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from tests.codegen.kernels.harness import Compiled

import coilc
from coilc.codegen.target import parse_target
from coilc.ir import Graph, Module, interpret, parse_graph
from coilc.ir import dims as d
from coilc.ir.interpret import bind_symbols
from coilc.passes import run_pipeline

Call = Callable[[], Any]


@cache
def output(index: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The memory of the ``index``-th array of a shape that a candidate writes."""
    return np.empty(shape, dtype)


class Prepared:
    """A scheduled graph as calls of its kernels on arrays that are allocated once."""

    def __init__(
        self, text: str | Module, arrays: Sequence[np.ndarray], without: Sequence[str] = (), algorithm: str = ""
    ) -> None:
        source = Module({"main": parse_graph(text)}, {}) if isinstance(text, str) else text
        target = parse_target("native")
        start = time.perf_counter()
        module = run_pipeline(source, target.claims - {*without}, algorithm=algorithm or None)
        self.graph: Graph = module.entries["main"]
        named = {v.node.attrs["name"]: a for v, a in zip(self.graph.inputs, arrays, strict=True)}
        shapes = {name: (v.type, named[name].shape) for v in self.graph.inputs if (name := v.node.attrs["name"])}
        self.symbols, self.calls, self.memory = (
            bind_symbols(shapes),
            [],
            dict(zip(self.graph.inputs, arrays, strict=True)),
        )
        self.written: Counter[Any] = Counter()
        for node in self.graph.nodes:
            if node.op.name == "weight":
                self.memory[node.results[0]] = np.ascontiguousarray(module.weights[node.attrs["name"]])
            elif node.op.name == "reshape":
                self.memory[node.results[0]] = self.memory[node.inputs[0]].reshape(self._shape(node.results[0]))
            elif node.op.name == "fused":
                self._add(node)
        self.seconds = time.perf_counter() - start
        self.source, self.named = source, named

    def _shape(self, value: Any) -> list[int]:
        return [d.evaluate(dim, self.symbols) for dim in value.dims]

    def _output(self, value: Any) -> np.ndarray:
        key = (*self._shape(value),), value.type.dtype.numpy
        self.written[key] += 1
        return output(self.written[key], *key)

    def _add(self, node: Any) -> None:
        kernel = Compiled(node.attrs["body"])
        outputs = [self._output(v) for v in node.results]
        self.memory.update(zip(node.results, outputs, strict=True))
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*(self.memory[v] for v in node.inputs), *outputs)]
        extents = [self.symbols[name] for name in kernel.symbols]
        self.calls.append(lambda: kernel.function(*pointers, *extents))

    def __call__(self) -> list[np.ndarray]:
        for call in self.calls:
            call()
        return [self.memory[v] for v in self.graph.results]

    def check(self, *others: Call) -> None:
        """This and every other candidate against the definition, in double precision."""
        expected = list(interpret(self.source, self.named, wide=True).values())
        for candidate in (self, *others):
            found = candidate()
            for wanted, array in zip(expected, found if isinstance(found, list | tuple) else [found]):
                error = np.abs(np.asarray(array, np.float64) - wanted).max() / np.abs(wanted).max()
                assert error < 1e-5, f"{error:.1e}"


def candidates(
    text: str | Module,
    arrays: Sequence[np.ndarray],
    templates: Sequence[str],
    eager: Callable[..., Any],
    *more: str,
    compiled: bool = True,
) -> dict[str, Call]:
    """coilc as it is, without its ``templates``, by other algorithms, then PyTorch."""
    tensors = [torch.from_numpy(a) for a in arrays]
    found: dict[str, Call] = {"coilc": Prepared(text, arrays)}
    if templates:
        found["generated"] = Prepared(text, arrays, without=templates)
    found |= {name: Prepared(text, arrays, algorithm=name) for name in more}
    found["eager"] = lambda: eager(*tensors)
    if compiled:
        optimised = torch.compile(eager, dynamic=False)
        found["torch.compile"] = lambda: optimised(*tensors)
    first, *others = found.values()
    first.check(*others)  # type: ignore[attr-defined]
    for name, call in found.items():
        if isinstance(call, Prepared):
            print(f"{name}: {len(call.calls)} kernels in {call.seconds:.1f} s")
    return found


SCAN_CPP = r"""
#include <cmath>
#include <algorithm>
extern "C" void selective_scan(long L, long D, const float* x, const float* dt, const float* a, const float* b,
    const float* c, const float* skip, const float* z, const float* bias, const float* h0, float* y, float* h) {
  constexpr int N = 16, DB = BLOCK;
  for (long d0 = 0; d0 < D; d0 += DB) {
    alignas(64) float state[N][DB], rate[N][DB];
    for (int n = 0; n < N; n++)
      for (int d = 0; d < DB; d++) { state[n][d] = h0[n * D + d0 + d]; rate[n][d] = a[n * D + d0 + d]; }
    for (long t = 0; t < L; t++) {
      alignas(64) float s[DB], u[DB], o[DB];
      for (int d = 0; d < DB; d++) {
        float v = dt[t * D + d0 + d] + bias[d0 + d];
        s[d] = std::max(v, 0.f) + logf(1.f + expf(-std::abs(v)));
        u[d] = s[d] * x[t * D + d0 + d];
        o[d] = skip[d0 + d] * x[t * D + d0 + d];
      }
      for (int n = 0; n < N; n++)
        for (int d = 0; d < DB; d++) {
          state[n][d] = expf(s[d] * rate[n][d]) * state[n][d] + u[d] * b[t * N + n];
          o[d] += state[n][d] * c[t * N + n];
        }
      for (int d = 0; d < DB; d++) {
        float g = z[t * D + d0 + d];
        y[t * D + d0 + d] = o[d] * g / (1.f + expf(-g));
      }
    }
    for (int n = 0; n < N; n++)
      for (int d = 0; d < DB; d++) h[n * D + d0 + d] = state[n][d];
  }
}
"""


def selective_scan() -> None:
    """S6 with everything around it; eager discretises everything, then loops over time, as models do without CUDA."""
    length, channels, states = 2048, 1536, 16
    text = f"""def main(
    x: f32[B, L, {channels}], dt: f32[B, L, {channels}], a: f32[{states}, {channels}],
    b: f32[B, L, 1, {states}], c: f32[B, L, 1, {states}], skip: f32[{channels}], z: f32[B, L, {channels}],
    bias: f32[{channels}], h0: f32[B, {states}, {channels}], *, B: dim[1:], L: dim[1:]
):
    y, h = selective_scan(
        x, dt, a, b, c, skip, z, bias, h0, optional=("D", "z", "dt_bias", "h0"), softplus=True
    )
    return {{"y": y, "h": h}}
"""
    rows = (1, length, channels)
    a = -np.tile(np.arange(1, states + 1, dtype=np.float32)[:, None], (1, channels))
    arrays = [random(*rows), random(*rows), a, random(1, length, 1, states), random(1, length, 1, states)]
    arrays += [random(channels), random(*rows), random(channels) - 3, np.zeros((1, states, channels), np.float32)]

    def eager(x, dt, a, b, c, skip, z, bias, h):  # type: ignore[no-untyped-def]
        step = torch.nn.functional.softplus(dt + bias)
        decay = torch.exp(step[:, :, None, :] * a)
        inflow = (step * x)[:, :, None, :] * b[:, :, 0, :, None]
        ys = []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + inflow[:, t]
            ys.append((h * c[:, t, 0, :, None]).sum(1))
        return (torch.stack(ys, 1) + skip * x) * torch.nn.functional.silu(z), h

    # torch.compile unrolls the loop, which takes hours at this length.
    found = candidates(text, arrays, ["selective_scan"], eager, compiled=False)
    found |= {f"C++ block {block}": cpp_scan(arrays, block) for block in (16, 32, 64, 128)}
    report(f"selective scan L={length} D={channels} N={states}", found, length * channels * states, "Gstep/s", 3)


def cpp_scan(arrays: list[np.ndarray], block: int) -> Call:
    """The same loop in C++, the best that a compiler makes of it, with ``block`` channels at a time."""
    folder = Path(tempfile.mkdtemp())
    (folder / "scan.cc").write_text(SCAN_CPP)
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", f"-DBLOCK={block}"]
    subprocess.run(["g++", *flags, "scan.cc", "-o", "scan.so"], cwd=folder, check=True)
    function = ctypes.CDLL(str(folder / "scan.so")).selective_scan
    memory = (*arrays, *(output(1, a.shape, a.dtype) for a in (arrays[0], arrays[-1])))
    extents = [ctypes.c_long(n) for n in arrays[0].shape[1:]]
    return lambda: function(*extents, *(ctypes.c_void_p(v.ctypes.data) for v in memory))


def causal_conv1d() -> None:
    length, channels = 2048, 1536
    text = f"""def main(x: f32[B, L, {channels}], w: f32[4, {channels}], bias: f32[{channels}], *, B: dim[1:], L: dim[1:]):
    y, last = causal_conv1d(x, w, bias, optional=("bias",), activation="silu")
    return {{"y": y, "last": last}}
"""
    x, w, bias = random(1, length, channels), random(4, channels), random(channels)

    native = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)))  # torch's layout has time innermost

    def eager(x, w, bias):  # type: ignore[no-untyped-def]
        y = torch.nn.functional.conv1d(native, w.T[:, None], bias, padding=3, groups=channels)
        return torch.nn.functional.silu(y[..., :length]).transpose(1, 2), x[:, -3:]

    found = candidates(text, [x, w, bias], ["causal_conv1d"], eager)
    report(f"causal conv K=4 L={length} D={channels}", found, 8 * x.size, "GB/s")


def linear_scan() -> None:
    for batch, length, channels in ((1, 2048, 1536), (8, 1024, 512), (1, 16384, 16)):
        text = """def main(a: f32[B, L, D], b: f32[B, L, D], h: f32[B, D], *, B: dim[1:], L: dim[1:]):
    y, last = linear_scan(a, b, h, axis=1)
    return {"y": y, "last": last}
""".replace("D]", f"{channels}]")
        arrays = [random(batch, length, channels), random(batch, length, channels), random(batch, channels)]
        arrays[0] = 1 / (1 + np.exp(-arrays[0]))

        def eager(a, b, h):  # type: ignore[no-untyped-def]
            ys = []
            for t in range(a.shape[1]):
                h = a[:, t] * h + b[:, t]
                ys.append(h)
            return torch.stack(ys, 1), h

        found = candidates(text, arrays, ["linear_scan"], eager, "associative", compiled=False)
        report(f"linear scan {batch}x{length}x{channels}", found, 12 * arrays[0].size, "GB/s", 3)


def gated_linear_attention() -> None:
    """SSD; eager is the form with matrix products (arXiv 2405.21060, section 6), at its best chunk."""
    length, heads, size, states = 2048, 24, 64, 128
    text = f"""def main(
    q: f32[B, L, 1, {states}], k: f32[B, L, 1, {states}], v: f32[B, L, {heads}, {size}], decay: f32[B, L, {heads}],
    *, B: dim[1:], L: dim[1:]
):
    o, s = gated_linear_attention(q, k, v, decay, optional=(), scale=1.0)
    return {{"o": o, "s": s}}
"""
    decay = -np.abs(random(1, length, heads))
    arrays = [random(1, length, 1, states), random(1, length, 1, states), random(1, length, heads, size), decay]
    found = candidates(text, arrays, ["gated_linear_attention"], chunked_attention, "chunked")
    work = 6 * length * heads * size * states
    report(f"gated linear attention L={length} H={heads} P={size} N={states}", found, work, "GFLOP/s", 3)


def chunked_attention(q, k, v, decay, chunk=64):  # type: ignore[no-untyped-def]
    """The form with matrix products (SSD, arXiv 2405.21060, section 6), one group."""
    batch, length, heads, size = v.shape
    q, k = (x[:, :, 0].reshape(batch, -1, chunk, x.shape[-1]) for x in (q, k))
    v = v.reshape(batch, -1, chunk, heads, size)
    total = decay.reshape(batch, -1, chunk, heads).cumsum(2)
    between = (total[:, :, :, None] - total[:, :, None]).permute(0, 1, 4, 2, 3)
    within = torch.exp(between.masked_fill(~torch.ones(chunk, chunk, dtype=torch.bool).tril(), -torch.inf))
    out = torch.einsum("bchij,bcjhp->bcihp", (q @ k.transpose(-1, -2))[:, :, None] * within, v)
    to_end = torch.exp(total[:, :, -1:] - total)
    added = torch.einsum("bcjn,bcjhp->bchnp", k, v * to_end[..., None])
    state, states = torch.zeros_like(added[:, 0]), []
    for c in range(added.shape[1]):
        states.append(state)
        state = torch.exp(total[:, c, -1])[:, :, None, None] * state + added[:, c]
    carried = torch.einsum("bcin,bchnp->bcihp", q, torch.stack(states, 1)) * torch.exp(total)[..., None]
    return (out + carried).reshape(batch, length, heads, size), state


def gated_delta_rule() -> None:
    """Gated DeltaNet; eager is the loop over tokens."""
    length, heads, size = 512, 8, 128
    text = f"""def main(
    q: f32[B, L, {heads}, {size}], k: f32[B, L, {heads}, {size}], v: f32[B, L, {heads}, {size}],
    decay: f32[B, L, {heads}], beta: f32[B, L, {heads}], *, B: dim[1:], L: dim[1:]
):
    o, s = gated_delta_rule(q, k, v, decay, beta, optional=(), scale=1.0)
    return {{"o": o, "s": s}}
"""

    def eager(q, k, v, decay, beta):  # type: ignore[no-untyped-def]
        state, outputs = torch.zeros(1, heads, size, size), []
        for t in range(length):
            key = k[:, t, :, :, None]
            state = state * decay[:, t].exp()[..., None, None]
            error = v[:, t] - (state * key).sum(-2)
            state = state + key * (beta[:, t, :, None] * error)[:, :, None]
            outputs.append((state * q[:, t, :, :, None]).sum(-2))
        return torch.stack(outputs, 1), state

    q, k, v = (random(1, length, heads, size) for _ in range(3))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    rates = [-np.abs(random(1, length, heads)), 1 / (1 + np.exp(-random(1, length, heads)))]
    templates = ["gated_delta_rule", "generalized_delta_rule"]
    found = candidates(text, [q, k, v, *rates], templates, eager, compiled=False)
    report(f"gated delta rule L={length} H={heads} P=N={size}", found, 7 * length * heads * size**2, "GFLOP/s", 3)


class Cells(torch.nn.Module):
    """A recurrent network as its user writes it, so that coilc finds the loop."""

    def __init__(self, kind: str, inputs: int, cells: int) -> None:
        super().__init__()
        self.kind, count = kind, {"lstm": 4, "gru": 3}[kind]
        self.enter = torch.nn.Linear(inputs, count * cells)
        self.recur = torch.nn.Linear(cells, count * cells)

    def forward(self, x):  # type: ignore[no-untyped-def]
        h = c = torch.zeros(x.shape[0], self.recur.in_features)
        ys = []
        for t in range(x.shape[1]):
            entered, kept = self.enter(x[:, t]), self.recur(h)
            if self.kind == "lstm":
                i, f, g, o = (entered + kept).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (r, z, n), (hr, hz, hn) = entered.chunk(3, -1), kept.chunk(3, -1)
                z = torch.sigmoid(z + hz)
                h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
            ys.append(h)
        return torch.stack(ys, 1)

    def library(self) -> torch.nn.Module:
        """torch's own, with the same weights."""
        kind = torch.nn.LSTM if self.kind == "lstm" else torch.nn.GRU
        twin = kind(self.enter.in_features, self.recur.in_features, batch_first=True)
        weights = (self.enter.weight, self.recur.weight, self.enter.bias, self.recur.bias)
        for name, weight in zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), weights, strict=True):
            getattr(twin, name).copy_(weight)
        return twin


def recurrent_network(kind: str) -> None:
    for batch, length, size in ((1, 256, 256), (8, 256, 256), (16, 256, 256)):
        torch.manual_seed(0)
        model, x = Cells(kind, size, size).eval(), random(batch, length, size)
        program = coilc.export(model, (torch.from_numpy(x),))
        ours, twin, tensor = Prepared(program, [x]), model.library(), torch.from_numpy(x)
        found: dict[str, Call] = {
            "coilc": ours,
            "eager loop": lambda model=model, x=tensor: model(x),
            "torch.nn": lambda twin=twin, x=tensor: twin(x)[0],
        }
        ours.check(found["eager loop"], found["torch.nn"])
        gates = {"lstm": 4, "gru": 3}[kind]
        report(f"{kind} {batch}x{length}x{size}", found, 4 * batch * length * size * gates * size, "GFLOP/s", 3)


def lstm() -> None:
    recurrent_network("lstm")


def gru() -> None:
    recurrent_network("gru")


BENCHMARKS = (selective_scan, causal_conv1d, linear_scan, gated_linear_attention, gated_delta_rule, lstm, gru)

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        if len(sys.argv) == 1 or benchmark.__name__ in sys.argv[1:]:
            benchmark()
