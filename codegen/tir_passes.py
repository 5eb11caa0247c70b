"""The compiler passes that turn our TIR into LLVM's input.

TVM's default pipeline has fifty passes, most of them for schedules and for GPUs. Those that carry TVM's arithmetic analyzer
re-analyse every binding of the long scalar code in our kernels, which takes seconds each; the code is already simple.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx import compilation_pipeline
from tvm.tirx.build import codegen_build, split_host_device_mods

from .vector_instructions import in_registers

PIPELINE = "coilc"
WORTH_IT = "coilc.worth_it"  # annotates a parallel loop with the condition under which it is one
_COMPILE = "tvm_callback_cuda_compile"
ONE_LAUNCH = "coilc.one_launch"  # annotates parallel loops that follow one another and may run side by side


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


def _side_by_side(block: tirx.SeqStmt) -> tvm.ir.Node:
    """Neighbouring loops marked ``ONE_LAUNCH`` as one loop over the tasks of all."""
    found: list[tirx.Stmt] = []
    for statement in block.seq:
        if found and _is_marked(found[-1]) and _is_marked(statement):
            statement = _joined(found.pop(), statement)
        found.append(statement)
    return block if len(found) == len(block.seq) else tirx.SeqStmt(found) if len(found) > 1 else found[0]


def _is_marked(statement: tirx.Stmt) -> bool:
    if isinstance(statement, tirx.IfThenElse):  # two forms of one loop
        return _is_marked(statement.then_case) and statement.else_case is not None and _is_marked(statement.else_case)
    return isinstance(statement, tirx.For) and ONE_LAUNCH in statement.annotations


def _joined(first: tirx.Stmt, second: tirx.Stmt) -> tirx.Stmt:
    """The tasks of two marked statements, those of ``first`` first."""
    if isinstance(first, tirx.IfThenElse):
        cases = ((first.then_case, second.then_case), (first.else_case, second.else_case))
        return tirx.IfThenElse(first.condition, *(_joined(*case) for case in cases))
    task = tirx.Var("task", first.loop_var.ty)
    mine = tirx.SeqStmt([tirx.Bind(first.loop_var, task), first.body])
    other = tirx.SeqStmt([tirx.Bind(second.loop_var, task - first.extent), second.body])
    both = tirx.IfThenElse(task < first.extent, mine, other)
    return tirx.For(task, first.min, first.extent + second.extent, first.kind, both, annotations=first.annotations)


@tvm.transform.module_pass(opt_level=0)
def _join_launches(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Run the tasks of several anchors of one kernel in one launch."""
    return tvm_ffi.structural_map(module, (tirx.SeqStmt, _side_by_side))


@tvm.transform.module_pass(opt_level=0)
def _test_parallel_loops(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Write parallel loops twice whose worth is known at run time only; the copies then need names of their own."""
    return tirx.transform.ConvertSSA()(tvm_ffi.structural_map(module, (tirx.For, _only_if_worth_it)))


@tvm.transform.module_pass(opt_level=0)
def _show_ramps(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Undo what ``FlattenBuffer`` does to explicit vector indices: it adds a broadcast zero."""
    return tvm_ffi.structural_map(module, (tirx.Add, _show_ramp))


@tvm.transform.module_pass(opt_level=0)
def _fit_registers(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Cut calls of instructions into vectors that the processor has."""
    return tvm_ffi.structural_map(module, (tvm.ir.Call, in_registers))


_PASSES = (
    _join_launches,
    _test_parallel_loops,
    tirx.transform.FlattenBuffer(),
    _show_ramps,
    tirx.transform.VectorizeLoop(True),
    _fit_registers,
    tirx.transform.UnrollLoop(),
    tirx.transform.VerifyMemory(),
    tirx.transform.AnnotateEntryFunc(),
    tirx.transform.SplitHostDevice(),
    tirx.transform.MakePackedAPI(),
)


_DEVICE_PASSES = (
    tirx.transform.FlattenBuffer(),
    tirx.transform.VectorizeLoop(True),
    tirx.transform.UnrollLoop(),
    tirx.transform.StmtSimplify(),
    tirx.transform.VerifyMemory(),
    tirx.transform.AnnotateEntryFunc(),
    s_tir.transform.MergeSharedMemoryAllocations(),
    tirx.transform.SplitHostDevice(),
    tirx.transform.MakePackedAPI(),
)


def build_module(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """Machine code of every function of ``module``."""
    return tirx.build(module, target=target, pipeline=PIPELINE)


def build_launchers(
    module: tvm.IRModule, target: tvm.target.Target, *, early: bool
) -> tuple[tvm.runtime.Module, tvm.IRModule, tvm.runtime.Module]:
    """For a device: the host's functions, which launch; the device's kernels as TIR, and as source.

    Args:
        early: kernels are launched before the one ahead has ended, and wait for that themselves.
    """
    bound = tirx.transform.BindTarget(target)(module)
    host, by_target = split_host_device_mods(tvm.transform.Sequential(list(_DEVICE_PASSES))(bound))
    (device,) = (finalize_device_passes()(kernels) for kernels in by_target.values())
    host = finalize_host_passes()(host)
    if early:
        device = _may_alias(device)
    with _only_source():
        source = codegen_build(device, target)
    return codegen_build(host, target.host), device, source


@tirx.transform.prim_func_pass(opt_level=0)
def _may_alias(kernel: tirx.PrimFunc, *_: object) -> tirx.PrimFunc:
    """A kernel whose pointers are not ``__restrict__``.

    What is only read through such a pointer the compiler takes to be constant while the kernel runs, and moves the loads
    ahead of its wait for the kernel that writes it.
    """
    return kernel.with_attr("tirx.noalias", False)


@contextmanager
def _only_source() -> Iterator[None]:
    """Where TVM finds a driver it compiles the source of a device at once; here that comes later, and for all kernels."""
    before = tvm_ffi.get_global_func(_COMPILE)
    tvm_ffi.register_global_func(_COMPILE, lambda code, *_: code.encode(), override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_COMPILE, before, override=True)


@tvm.transform.module_pass(opt_level=0)
def _lower(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    return tvm.transform.Sequential(list(_PASSES))(module)


compilation_pipeline.register_tir_pipeline(PIPELINE, lambda: (_lower, finalize_host_passes, finalize_device_passes))
