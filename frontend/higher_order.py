"""Rows for torch's higher-order ops: functions over traced blocks, one per op.

``scan``, ``associative_scan``, ``map`` and ``while_loop`` become loops of the IR, whose bodies are graphs. Blocks that only
set a mode are converted in place. So are both branches of ``cond``, with a selection after them: branches are pure, every op
of the IR is defined on every input (a division of integers by zero and an index out of bounds included), and selecting
copies elements, so that a NaN of the other branch stays there. It costs both branches; in exchange they fuse with what is
around them. A ``while_loop`` in a branch that is not taken does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from coilc.ir import Graph, Node, OpDef, TensorType, UnsupportedError, Value, at, ops

from .aten import broadcast, concat, slice_axis, truth

if TYPE_CHECKING:
    from .convert import Converter

Rule: TypeAlias = Callable[["Converter", Sequence[Any]], Any]


def _refuse(why: str) -> UnsupportedError:
    return UnsupportedError(why, ())


# --- loops ------------------------------------------------------------------------------------------------------------


def _scan(converter: Converter, args: Sequence[Any]) -> list[Value]:
    """``scan(combine, init, xs, additional)``: time is axis 0 of ``xs`` and of the stacked outputs."""
    block, init, xs, rest = args
    slices = [x.type.with_dims(x.dims[1:]) for x in xs]
    return _loop(converter, block, init, xs, rest, [*(v.type for v in init), *slices])


def _associative_scan(converter: Converter, args: Sequence[Any]) -> list[Value]:
    """``associative_scan(combine, xs, additional)``: the first result is the first element, then left to right."""
    block, xs, rest = args
    single = _single_op(converter, block, xs, rest)
    if single in _PREFIX:
        return [_PREFIX[single](xs[0], axis=0)]
    heads = [slice_axis(x, 0, 0, 1) for x in xs]
    init = [ops.reshape(head, dims=x.dims[1:]) for head, x in zip(heads, xs, strict=True)]
    tails = [slice_axis(x, 0, 1, x.dims[0]) for x in xs]
    results = _loop(converter, block, init, tails, rest, [v.type for v in init] * 2, outputs=True)
    return [concat([head, ys], 0) for head, ys in zip(heads, results[len(xs) :], strict=True)]


def _map(converter: Converter, args: Sequence[Any]) -> list[Value]:
    """``map_impl(f, xs, rest)``: a scan that carries nothing; a pass computes it for all steps at once."""
    block, xs, rest = args
    return _loop(converter, block, [], xs, rest, [x.type.with_dims(x.dims[1:]) for x in xs])


def _loop(
    converter: Converter, block: GraphModule, init: Sequence[Value], xs: Sequence[Value], rest: Sequence[Any],
    types: Sequence[TensorType], *, outputs: bool = False,
) -> list[Value]:  # fmt: skip
    """A scan over axis 0. ``outputs``: every carry is an output too."""
    body, captured = converter.body("step", block, types, rest)
    if outputs:
        body = Graph(body.name, body.inputs, (*body.outputs, *((f"y{i}", v) for i, (_, v) in enumerate(body.outputs))))
    _require_same_types([v.type for v in init], body)
    operands = (*init, *xs, *captured)
    return list(ops.scan.node(*operands, body=body, carries=len(init), sequences=len(xs), axis=0).results)


def _while_loop(converter: Converter, args: Sequence[Any]) -> list[Value]:
    """``while_loop(condition, body, carries, rest)``."""
    condition, block, init, rest = args[:4]
    if not all(isinstance(x, Value) for x in init):
        raise _refuse("a while_loop that carries a number; carry a tensor, such as torch.zeros((), dtype=torch.int64)")
    taken = converter.condition()  # of the branch around the loop, in which it might never end
    types = [v.type for v in init]
    body, read = converter.body("body", block, types, rest)
    asked, asked_of = converter.body("condition", condition, types, rest)
    operands = list(dict.fromkeys((*read, *asked_of, *([] if taken is None else [taken]))))
    inputs = {v: ops.input_(name=f"c{i}", type=v.type) for i, v in enumerate(operands)}
    body, asked = _with_inputs(body, read, inputs), _with_inputs(asked, asked_of, inputs)
    if taken is not None:
        asked = asked.with_results([ops.logical_and(inputs[taken], asked.results[0])])
    _require_same_types(types, body)
    loop = ops.while_loop.node(*init, *operands, condition=asked, body=body, carries=len(init))
    return list(loop.results)


def _with_inputs(body: Graph, read: Sequence[Value], inputs: Mapping[Value, Value]) -> Graph:
    """The body with inputs for all of ``inputs``, where it reads only some of these values."""
    carries = body.inputs[: len(body.inputs) - len(read)]
    renamed = dict(zip(body.inputs, (*carries, *(inputs[v] for v in read)), strict=True))
    for node in body.nodes:
        if node.op is not ops.input_:
            with at(node.location):
                rebuilt = Node.make(node.op, tuple(renamed[v] for v in node.inputs), node.attrs)
            renamed.update(zip(node.results, rebuilt.results, strict=True))
    return Graph(body.name, (*carries, *inputs.values()), tuple((name, renamed[v]) for name, v in body.outputs))


def _require_same_types(carried: Sequence[TensorType], body: Graph) -> None:
    for number, (before, (_, after)) in enumerate(zip(carried, body.outputs, strict=False)):
        if before != after.type:
            raise _refuse(f"carry {number} starts as {before} and a step makes it {after.type}; make them the same")


def _single_op(converter: Converter, block: GraphModule, xs: Sequence[Value], rest: Sequence[Any]) -> OpDef | None:
    """The op, if combining is that op on both elements and nothing else."""
    if len(xs) != 1 or rest:
        return None
    element = xs[0].type.with_dims(xs[0].dims[1:])
    body, captured = converter.body("step", block, [element, element], rest)
    (result,) = body.results
    inner = result.op if set(result.node.inputs) == set(body.inputs) else None
    return inner if not captured and inner is not None and not result.node.attrs else None


_PREFIX: Mapping[OpDef | None, OpDef] = {ops.add: ops.cumsum, ops.mul: ops.cumprod, ops.maximum: ops.cummax}


# --- branches ---------------------------------------------------------------------------------------------------------


def _cond(converter: Converter, args: Sequence[Any]) -> list[Any]:
    """``cond(predicate, true, false, operands)``."""
    predicate, *blocks, operands = args
    if not isinstance(predicate, Value):
        raise _refuse("a condition on sizes; ask for it outside the model, or make the size static")
    chosen = truth(ops.reshape(predicate, dims=()))
    taken = converter.inline(blocks[0], operands, chosen)
    other = converter.inline(blocks[1], operands, ops.logical_not(chosen))
    pairs = zip(pytree.tree_leaves(taken), pytree.tree_leaves(other), strict=True)
    return [_chosen(chosen, a, b) for a, b in pairs]


def _chosen(condition: Value, a: Any, b: Any) -> Any:
    if not isinstance(a, Value) or not isinstance(b, Value):
        if a != b:
            raise _refuse(f"the branches of a condition return the numbers {a} and {b}; return tensors")
        return a
    if a.type != b.type:
        raise _refuse(f"the branches of a condition return {a.type} and {b.type}; make them the same")
    return a if a == b else ops.where(broadcast(condition, a.dims), a, b)


def _mode(block: int) -> Rule:
    """Converted in place; the block is this argument, and its operands follow."""
    return lambda converter, args: converter.inline(args[block], args[block + 1 :])


HIGHER_ORDER: Mapping[str, Rule] = {
    "scan": _scan,
    "associative_scan": _associative_scan,
    "map_impl": _map,
    "while_loop": _while_loop,
    "cond": _cond,
    "wrap_with_set_grad_enabled": _mode(1),
    "wrap_with_autocast": _mode(4),
}
