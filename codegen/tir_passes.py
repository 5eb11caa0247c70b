"""The compiler passes that turn our TIR into LLVM's input.

TVM's default pipeline has fifty passes, most of them for schedules and for GPUs. Those that carry TVM's arithmetic analyzer
re-analyse every binding of the long scalar code in our kernels, which takes seconds each; the code is already simple.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx import compilation_pipeline

PIPELINE = "coilc"
WORTH_IT = "coilc.worth_it"  # annotates a parallel loop with the condition under which it is one


def _show_ramp(sum_: tirx.Add) -> tvm.ir.Expr:
    """``broadcast(a) + ramp(b)`` as the ramp that it is: only an index of that form is one vector access."""
    a, b = sum_.a, sum_.b
    if isinstance(a, tirx.Broadcast) and isinstance(b, tirx.Ramp):
        return tirx.Ramp(b.base if _is_zero(a.value) else a.value + b.base, b.stride, b.lanes)
    return sum_


def _is_zero(x: tvm.ir.Expr) -> bool:
    return isinstance(x, tirx.IntImm) and int(x.value) == 0


def _only_if_worth_it(loop: tirx.For) -> tvm.ir.Node:
    """The loop on the thread pool if its condition holds, on this thread otherwise."""
    condition = loop.annotations.get(WORTH_IT)
    if condition is None:
        return loop
    both = [
        tirx.For(loop.loop_var, loop.min, loop.extent, kind, loop.body) for kind in (loop.kind, tirx.ForKind.SERIAL)
    ]
    return tirx.IfThenElse(condition, *both)


@tvm.transform.module_pass(opt_level=0)
def _test_parallel_loops(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Write parallel loops twice whose worth is known at run time only; the copies then need names of their own."""
    return tirx.transform.ConvertSSA()(tvm_ffi.structural_map(module, (tirx.For, _only_if_worth_it)))


@tvm.transform.module_pass(opt_level=0)
def _show_ramps(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Undo what ``FlattenBuffer`` does to explicit vector indices: it adds a broadcast zero."""
    return tvm_ffi.structural_map(module, (tirx.Add, _show_ramp))


_PASSES = (
    _test_parallel_loops,
    tirx.transform.FlattenBuffer(),
    _show_ramps,
    tirx.transform.VectorizeLoop(True),
    tirx.transform.UnrollLoop(),
    tirx.transform.VerifyMemory(),
    tirx.transform.AnnotateEntryFunc(),
    tirx.transform.SplitHostDevice(),
    tirx.transform.MakePackedAPI(),
)


def build_module(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """Machine code of every function of ``module``."""
    return tirx.build(module, target=target, pipeline=PIPELINE)


@tvm.transform.module_pass(opt_level=0)
def _lower(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    return tvm.transform.Sequential(list(_PASSES))(module)


compilation_pipeline.register_tir_pipeline(PIPELINE, lambda: (_lower, finalize_host_passes, finalize_device_passes))
