"""Opening a kernel: parameters, buffers, reader. Every lowering writes its loops into a ``Kernel``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from coilc.ir import Graph
from coilc.ir import dims as d
from coilc.ir.dims import Dim

from . import ahead
from .plan import kernel_symbols
from .reader import Indices, Reader, index, store_element
from .scalar import Expr, code_of, storage_dtype
from .target import Target


@dataclass(frozen=True)
class Kernel:
    """One PrimFunc while its body is being written.

    Attributes:
        reader: evaluates the values of the body.
        outputs: the buffer of each result, with the result's dims (a scalar has one element).
    """

    body: Graph
    target: Target
    reader: Reader
    outputs: Sequence[tirx.Buffer]

    def extent(self, dim: Dim) -> Expr:
        """A dimension as an int64 expression."""
        return self.reader.dim(dim)

    def store(self, output: int, indices: Indices, value: Expr) -> None:
        """Round to the output's type and write."""
        store_element(self.outputs[output], indices, value, self.body.results[output].type.dtype)


def build_kernel(body: Graph, name: str, target: Target, emit: Callable[[Kernel], None]) -> tirx.PrimFunc:
    """The PrimFunc ``name``: pointers to the inputs, to the outputs, then the symbols by name; ``emit`` writes the loops."""
    with IRBuilder() as builder, code_of(body, target):
        with T.prim_func(s_tir=True):
            T.func_name(name)
            inputs = [_pointer(f"x{i}", v.type.dtype) for i, v in enumerate(body.inputs)]
            outputs = [_pointer(f"y{i}", v.type.dtype) for i, v in enumerate(body.results)]
            dims = {symbol: T.arg(symbol, T.int64()) for symbol in kernel_symbols(body)}
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            reader = Reader(body, {}, dims)
            # Without a device the lowering of parallel loops fails.
            with T.attr("default", "device_id", 0), T.attr("default", "device_type", target.device_type):
                for value, data in zip(body.inputs, inputs, strict=True):
                    size = [reader.dim(value.type.size)]
                    reader.buffers[value] = T.decl_buffer(size, storage_dtype(value.type.dtype), data=data)
                buffers = [
                    T.decl_buffer(
                        [reader.dim(dim) for dim in value.dims] or [index(1)],
                        storage_dtype(value.type.dtype),
                        data=data,
                    )
                    for value, data in zip(body.results, outputs, strict=True)
                ]
                read = [
                    (reader.buffers[v], d.bounds(v.type.size, body.ranges)[0], v.type.dtype.bytes) for v in body.inputs
                ]
                with ahead.inputs(read):
                    emit(Kernel(body, target, reader, buffers))
    return builder.get()


def _pointer(name: str, dtype: object) -> tirx.Var:
    return T.arg(name, T.handle(storage_dtype(dtype)))  # type: ignore[arg-type]
