"""Nothing outside of a tensor is read or written, whatever the dims: empty operands lie in front of memory that faults."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import coilc
from coilc.codegen import reader
from coilc.codegen.kernels import place
from coilc.codegen.lower import lower_body
from coilc.codegen.plan import with_ranges
from coilc.codegen.requirements import requirements
from coilc.codegen.target import parse_target
from coilc.ir import Graph, Module, parse_graph, print_graph
from coilc.runtime import InputError

sys.path.insert(0, str(Path(__file__).parent / "kernels"))

from harness import Compiled

WIDE = 4096  # so that an element of an inner axis lies pages away
CASES = {
    "concat": (f"x0: f32[M, {WIDE}], x1: f32[2, {WIDE}]", f"f32[M + 2, {WIDE}] = concat(x0, x1, axis=0)"),
    "pad": (f"x0: f32[M, {WIDE}]", f"f32[M + 2, {WIDE}] = pad(x0, low=(1, 0), high=(1, 0), value=7.0)"),
    "take": (f"x0: f32[M, {WIDE}], x1: i64[2]", f"f32[2, {WIDE}] = take(x0, x1, axis=0)"),
    "gather": (f"x0: f32[M, {WIDE}], x1: i64[1, {WIDE}]", f"f32[1, {WIDE}] = gather(x0, x1, axis=0)"),
    "scatter": (
        f"x0: f32[M, {WIDE}], x1: i64[1, {WIDE}], x2: f32[1, {WIDE}]",
        f'f32[M, {WIDE}] = scatter(x0, x1, x2, axis=0, reduce="add")',
    ),
    "index_put": (
        f"x0: f32[M, {WIDE}], x1: f32[2, {WIDE}], x2: i64[2]",
        f"f32[M, {WIDE}] = index_put(x0, x1, x2, accumulate=True)",
    ),
    "pool": (
        "x0: f32[1, 1, M]",
        'f32[1, 1, M + 4] = pool(x0, window=(1,), strides=(1,), padding=((2, 2),), dilation=(1,), kind="sum")',
    ),
    "conv": (
        "x0: f32[1, 1, M], x1: f32[1, 1, 3]",
        "f32[1, 1, M + 2] = conv(x0, x1, strides=(1,), padding=((2, 2),), dilation=(1,), groups=1)",
    ),
}


@pytest.fixture(scope="module")
def cliff() -> Iterator[mmap.mmap]:
    """A page in front of one that may not be touched."""
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert not protect(ctypes.c_void_p(address), mmap.PAGESIZE, 0)
    yield memory
    assert not protect(ctypes.c_void_p(address), mmap.PAGESIZE, 3)


def body_of(case: str, ranges: str) -> Graph:
    takes, makes = CASES[case]
    text = f"def body({takes}, *, M: dim[{ranges}]):\n    v0: {makes}\n    return {{'y': v0}}\n"
    graph = parse_graph(text.replace("'", '"'))
    return with_ranges(graph, graph)


def operands(body: Graph, extent: int, cliff: mmap.mmap) -> Sequence[np.ndarray]:
    """Ones; what has no elements ends where the page does."""
    shapes = [tuple(extent if not isinstance(dim, int) else dim for dim in value.dims) for value in body.inputs]
    return [
        np.ones(shape, v.type.dtype.numpy)
        if np.prod(shape)
        else np.ndarray(shape, v.type.dtype.numpy, buffer=cliff, offset=mmap.PAGESIZE)
        for shape, v in zip(shapes, body.inputs, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_an_axis_without_elements_is_not_read(case: str, cliff: mmap.mmap) -> None:
    kernel = Compiled(body_of(case, "0:"))
    empty, full = operands(kernel.body, 0, cliff), operands(kernel.body, 3, cliff)
    assert np.isfinite(kernel(*empty)[0]).all()
    for found, expected in zip(kernel(*full), kernel.expected(full), strict=True):
        np.testing.assert_array_equal(found, expected)
    if case in ("concat", "pad", "pool", "conv"):  # the others have no result that is right
        np.testing.assert_array_equal(kernel(*empty)[0], kernel.expected(empty)[0])


@pytest.mark.parametrize("case", CASES)
def test_an_axis_that_always_has_elements_is_not_asked(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, trusted = (str(lower_body(body_of(case, r), "kernel", parse_target("native"))) for r in ("0:", "1:"))
    for module in (reader, place):
        monkeypatch.setattr(module, "may_be_empty", lambda extent: False)
    assert trusted == str(lower_body(body_of(case, "0:"), "kernel", parse_target("native"))) != asked


SLICES = """
def main(x: f32[L, 4], y: f32[M], *, L: dim[0:], M: dim[2:]):
    v0: f32[2, 4] = slice(x, starts=(1, 0), stops=(3, 4), steps=(1, 1))
    v1: f32[1] = slice(y, starts=(M - 1,), stops=(M,), steps=(1,))
    v2: f32[M - 2] = slice(y, starts=(0,), stops=(M - 2,), steps=(1,))
    return {"a": v0, "b": v1, "c": v2}
"""


def test_what_the_ranges_leave_open_is_required() -> None:
    graph = parse_graph(SLICES)
    assert [str(dim) for dim in requirements(graph)] == ["L - 3"], print_graph(graph)


def test_a_slice_outside_of_its_tensor_is_refused(tmp_path: Path) -> None:
    graph = parse_graph(SLICES)
    model = coilc.load(coilc.compile(Module({"main": graph}, {}), tmp_path / "m.coil"))
    y = np.arange(3, dtype=np.float32)
    with pytest.raises(InputError, match=r"entry 'main' needs L - 3 to be at least 0, it is -1 here"):
        model(x=np.ones((2, 4), np.float32), y=y)
    found = model(x=np.arange(12, dtype=np.float32).reshape(3, 4), y=y)
    np.testing.assert_array_equal(found["a"], np.arange(4, 12).reshape(2, 4))
    assert (found["b"], found["c"]) == (2, 0)
