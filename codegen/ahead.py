"""What a kernel that is launched early asks for before it waits for the one ahead: its small inputs (``loops.grid``).

Asking is a hint, which brings memory into the L2 cache and is no access: there, what the kernel ahead writes is seen too. A
step of decoding reads so many weights that the cache holds none of the small ones when their kernel starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .scalar import Expr

SMALL = 512 << 10  # bytes; what is larger takes bandwidth from the kernel ahead
LINE = 128  # bytes that come at a time

Input = tuple[tirx.Buffer, int, int]  # what is read, how many elements it has at least, and the bytes of one
_inputs: ContextVar[Sequence[Input]] = ContextVar("inputs", default=())

_PREFETCH = """
static __forceinline__ __device__ void coil_prefetch(const void *x) {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(x)));
#endif
}
"""


@contextmanager
def inputs(found: Sequence[Input]) -> Iterator[None]:
    """The launches written inside read these."""
    token = _inputs.set(found)
    try:
        yield
    finally:
        _inputs.reset(token)


def ask_for_inputs(thread: Expr) -> None:
    """A line of every small input; ``thread`` counts the threads of all blocks. What exists only perhaps is left alone."""
    for buffer, least, size in _inputs.get():
        if LINE <= least * size <= SMALL:
            place = thread * tirx.const(LINE // size, "int64")
            with T.If(place < tirx.const(least, "int64")), T.Then():
                T.evaluate(T.cuda.func_call("coil_prefetch", T.address_of(buffer[place]), source_code=_PREFETCH))
