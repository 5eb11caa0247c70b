"""Kernels against torch and a C++ loop, one thread: ``taskset -c 0 python benchmarks/kernels.py [name ...]``.

Every candidate is checked against the reference before it is timed; times are medians of interleaved rounds.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.codegen.kernels.harness import Compiled

from coilc.ir import DTYPES, Dims, Graph, TensorType, Value, ops, symbol

torch.set_num_threads(1)
torch.set_grad_enabled(False)

Candidates = Mapping[str, Callable[[], object]]


def medians(candidates: Candidates, rounds: int = 7, calls: int = 3) -> dict[str, float]:
    """Median seconds of each candidate; the rounds alternate, so that a noisy neighbour hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            call()
            for _ in range(calls):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, candidates: Candidates, work: float, unit: str, rounds: int = 7) -> None:
    """Print milliseconds, rate, and how many times faster the first candidate (ours) is."""
    found = medians(candidates, rounds)
    ours = next(iter(found.values()))
    print(title)
    for name, seconds in found.items():
        print(
            f"  {name:12} {seconds * 1e3:9.3f} ms  {work / seconds / 1e9:8.1f} {unit}  coilc is {seconds / ours:6.2f}x"
        )


def compiled(text: str | Graph, arrays: list[np.ndarray], *, check: bool = True) -> Callable[[], object]:
    start = time.perf_counter()
    kernel = Compiled(text)
    print(f"compiled in {time.perf_counter() - start:.2f} s; ", end="")
    if check:
        kernel.check(*arrays)
    return kernel.prepare(arrays)[1]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def gemm() -> None:
    for rows, inner, columns in ((512, 768, 3072), (2048, 1536, 768), (1, 2048, 8192), (1, 768, 3072), (7, 768, 3072)):
        x, w = random(rows, inner), random(inner, columns)
        packed = np.ascontiguousarray(w.reshape(inner, -1, 32).transpose(1, 0, 2))
        text = f"""def kernel(x: f32[M, {inner}], w: f32[{columns // 32}, {inner}, 32]):
    y: f32[M, {columns}] = packed_matmul(x, w, columns={columns})
    return {{"y": y}}
"""
        ours = compiled(text, [x, packed])
        a, b = torch.from_numpy(x), torch.from_numpy(w)
        by_rows = torch.from_numpy(np.ascontiguousarray(w.T))
        candidates = {
            "coilc": ours,
            "torch.mm": lambda a=a, b=b: torch.mm(a, b),
            "torch linear": lambda a=a, w=by_rows: torch.nn.functional.linear(a, w),
        }
        report(f"GEMM {rows}x{inner}x{columns}", candidates, 2 * rows * inner * columns, "GFLOP/s")


def products() -> None:
    for rows, keys in ((512, 512), (1, 2048)):
        q, k = random(12, rows, 64), random(12, keys, 64)
        text = """def kernel(q: f32[H, L, 64], k: f32[H, S, 64]):
    t: f32[H, 64, S] = transpose(k, perm=(0, 2, 1))
    y: f32[H, L, S] = matmul(q, t)
    return {"y": y}
"""
        a, b = torch.from_numpy(q), torch.from_numpy(k).transpose(1, 2)
        candidates = {"coilc": compiled(text, [q, k]), "torch": lambda a=a, b=b: torch.matmul(a, b)}
        report(f"scores 12x{rows}x64x{keys}", candidates, 2 * 12 * rows * 64 * keys, "GFLOP/s")
        p, v = random(12, rows, keys), random(12, keys, 64)
        text = """def kernel(p: f32[H, L, S], v: f32[H, S, 64]):
    y: f32[H, L, 64] = matmul(p, v)
    return {"y": y}
"""
        a, b = torch.from_numpy(p), torch.from_numpy(v)
        candidates = {"coilc": compiled(text, [p, v]), "torch": lambda a=a, b=b: torch.matmul(a, b)}
        report(f"values 12x{rows}x{keys}x64", candidates, 2 * 12 * rows * 64 * keys, "GFLOP/s")


def attention() -> None:
    for rows, keys, causal in ((512, 512, True), (2048, 2048, True), (512, 512, False), (1, 2048, False)):
        q, k, v = random(1, 12, rows, 64), random(1, 4, keys, 64), random(1, 4, keys, 64)
        text = f"""def kernel(q: f32[B, 12, L, 64], k: f32[B, 4, S, 64], v: f32[B, 4, S, 64]):
    o = attention(q, k, v, causal={causal})
    return {{"o": o}}
"""
        ours = compiled(text, [q, k, v], check=rows < 2048)
        a, b, c = map(torch.from_numpy, (q, k, v))

        def eager(a=a, b=b, c=c, causal=causal) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=causal, enable_gqa=True)

        work = 4 * 12 * rows * keys * 64 / (2 if causal else 1)
        report(f"attention 12x{rows}x{keys} causal={causal}", {"coilc": ours, "torch": eager}, work, "GFLOP/s", 4)


SCAN_CPP = r"""
#include <cmath>
#include <algorithm>
extern "C" void selective_scan(long L, long D, const float* x, const float* dt, const float* a, const float* b,
    const float* c, const float* skip, const float* z, const float* bias, const float* h0, float* y, float* h) {
  constexpr int N = 16, DB = 64;
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
    length, channels, states = 2048, 1536, 16
    text = f"""def kernel(
    x: f32[B, L, {channels}], dt: f32[B, L, {channels}], a: f32[{states}, {channels}],
    b: f32[B, L, 1, {states}], c: f32[B, L, 1, {states}], skip: f32[{channels}], z: f32[B, L, {channels}],
    bias: f32[{channels}], h0: f32[B, {states}, {channels}]
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
    ours = compiled(text, arrays)
    tensors = [torch.from_numpy(v) for v in arrays]
    candidates = {"coilc": ours, "eager": lambda: eager_scan(*tensors), "C++": cpp_scan(arrays)}
    report(f"selective scan L={length} D={channels} N={states}", candidates, length * channels * states, "Gstep/s", 3)


def eager_scan(x, dt, a, b, c, skip, z, bias, h0):  # type: ignore[no-untyped-def]
    """What a model's Python code does without custom kernels: discretise everything, then loop over time."""
    step = torch.nn.functional.softplus(dt + bias)
    decay = torch.exp(step[:, :, None, :] * a)
    inflow = (step * x)[:, :, None, :] * b[:, :, 0, :, None]
    h, ys = h0, []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + inflow[:, t]
        ys.append((h * c[:, t, 0, :, None]).sum(1))
    return (torch.stack(ys, 1) + skip * x) * torch.nn.functional.silu(z), h


def cpp_scan(arrays: list[np.ndarray]) -> Callable[[], object]:
    """The same loop in C++, the best that a compiler makes of it."""
    folder = Path(tempfile.mkdtemp())
    (folder / "scan.cc").write_text(SCAN_CPP)
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "scan.cc", "-o", "scan.so"], cwd=folder, check=True)
    function = ctypes.CDLL(str(folder / "scan.so")).selective_scan
    memory = (*arrays, np.empty_like(arrays[0]), np.empty_like(arrays[-1]))  # kept alive by the call
    extents = [ctypes.c_long(n) for n in arrays[0].shape[1:]]
    return lambda: function(*extents, *(ctypes.c_void_p(v.ctypes.data) for v in memory))


def causal_conv1d() -> None:
    length, channels = 2048, 1536
    text = f"""def kernel(x: f32[B, L, {channels}], w: f32[4, {channels}], bias: f32[{channels}]):
    y, last = causal_conv1d(x, w, bias, optional=("bias",), activation="silu")
    return {{"y": y, "last": last}}
"""
    x, w, bias = random(1, length, channels), random(4, channels), random(channels)
    ours = compiled(text, [x, w, bias])
    channels_first = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1)))
    taps, b = torch.from_numpy(np.ascontiguousarray(w.T)[:, None]), torch.from_numpy(bias)

    def eager() -> torch.Tensor:
        y = torch.nn.functional.conv1d(channels_first, taps, b, padding=3, groups=channels)[..., :length]
        return torch.nn.functional.silu(y)

    report(f"causal conv K=4 L={length} D={channels}", {"coilc": ours, "torch": eager}, 8 * x.size, "GB/s")


def gated_linear_attention() -> None:
    length, heads, size, states = 2048, 24, 64, 128
    text = f"""def kernel(
    q: f32[B, L, 1, {states}], k: f32[B, L, 1, {states}], v: f32[B, L, {heads}, {size}], decay: f32[B, L, {heads}]
):
    o, s = gated_linear_attention(q, k, v, decay, optional=(), scale=1.0)
    return {{"o": o, "s": s}}
"""
    decay = -np.abs(random(1, length, heads))
    arrays = [random(1, length, 1, states), random(1, length, 1, states), random(1, length, heads, size), decay]
    ours = compiled(text, arrays)
    tensors = [torch.from_numpy(a) for a in arrays]
    expected = ours_result(text, arrays)
    found = chunked_attention(*tensors).numpy()
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    candidates = {"coilc": ours, "chunked": lambda: chunked_attention(*tensors)}
    work = 6 * length * heads * size * states
    report(f"gated linear attention L={length} H={heads} P={size} N={states}", candidates, work, "GFLOP/s", 3)


def ours_result(text: str, arrays: list[np.ndarray]) -> np.ndarray:
    return Compiled(text)(*arrays)[0]


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
    return (out + carried).reshape(batch, length, heads, size)


def scan() -> None:
    """General bodies: a spiking neuron (by element) and an Elman network (matrix products)."""
    batch, length, cells = symbol("B"), symbol("L"), 512
    v, x, v0, xs = _inputs((batch, cells), (batch, cells), (batch, cells), (batch, length, cells))
    u = ops.add(ops.mul(v, 0.75), x)
    spike = ops.gt(u, 1.0)
    body = Graph(
        "body", (v, x), (("v", ops.where(spike, ops.sub(u, 1.0), u)), ("y", ops.cast(spike, dtype=v.type.dtype)))
    )
    last, spikes = ops.scan(v0, xs, body=body, carries=1, sequences=1, axis=1)
    arrays = [random(8, cells), random(8, 1024, cells)]
    ours = compiled(Graph("kernel", (v0, xs), (("last", last), ("y", spikes))), arrays, check=False)
    start, inputs = map(torch.from_numpy, arrays)

    def spiking() -> torch.Tensor:
        v, ys = start, []
        for t in range(inputs.shape[1]):
            u = v * 0.75 + inputs[:, t]
            spike = u > 1
            v = torch.where(spike, u - 1, u)
            ys.append(spike.float())
        return torch.stack(ys, 1)

    report("scan, spiking neuron 8x1024x512", {"coilc": ours, "eager": spiking}, 8 * 8 * 1024 * 512, "GB/s", 3)

    h, x, w, r, h0, xs = _inputs((batch, 256), (batch, 64), (64, 256), (256, 256), (batch, 256), (length, batch, 64))
    after = ops.tanh(ops.add(ops.matmul(h, r), ops.matmul(x, w)))
    body = Graph("body", (h, x, w, r), (("h", after), ("y", after)))
    last, states = ops.scan(h0, xs, w, r, body=body, carries=1, sequences=1, axis=0)
    arrays = [random(8, 256), random(256, 8, 64), random(64, 256) / 8, random(256, 256) / 32]
    ours = compiled(Graph("kernel", (h0, xs, w, r), (("last", last), ("y", states))), arrays)
    start, inputs, w_t, r_t = map(torch.from_numpy, arrays)

    def elman() -> torch.Tensor:
        h, ys = start, []
        for x in inputs:
            h = torch.tanh(h @ r_t + x @ w_t)
            ys.append(h)
        return torch.stack(ys)

    report("scan, Elman network 256x8x256", {"coilc": ours, "eager": elman}, 2 * 256 * 8 * 256 * 320, "GFLOP/s", 3)


def _inputs(*shapes: Dims) -> list[Value]:
    return [ops.input_(name=f"x{i}", type=TensorType(DTYPES["f32"], dims)) for i, dims in enumerate(shapes)]


BENCHMARKS = (gemm, products, attention, selective_scan, causal_conv1d, gated_linear_attention, scan)

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        if len(sys.argv) == 1 or benchmark.__name__ in sys.argv[1:]:
            benchmark()
