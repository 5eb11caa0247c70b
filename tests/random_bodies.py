"""Random loop bodies: several carries of different ranks and types, products, sorts, look-ups, loops in the loop.

Decisions (comparisons, argmax) are made on inputs and integers only, which no rounding moves; all else is continuous.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from coilc.ir import Dim, Dims, Graph, TensorType, Value, ops, symbol
from coilc.ir.types import DTYPES, DType

D, N = 5, 3
f32, i64, flag = DTYPES["f32"], DTYPES["i64"], DTYPES["bool"]
Pool = dict[str, list[Value]]


def value(name: str, dtype: DType, *dims: Dim) -> Value:
    return ops.input_(name=name, type=TensorType(dtype, dims))


def loops(batch: Dim) -> st.SearchStrategy[Graph]:
    """Graphs of one scan over ``L``: its carries at every step and at the end."""
    return _loops(batch)


@st.composite
def _loops(draw: st.DrawFn, batch: Dim) -> Graph:
    axis, length = draw(st.integers(0, 1)), symbol("L")
    carries = [value("v0", f32, batch, D), value("m0", f32, batch, D, N), value("n0", i64, batch, D)]
    carries += [value("v1", f32, batch, D)] * draw(st.booleans())
    sequences = [value("x", f32, batch, D), value("k", f32, batch, N), value("c", i64, batch, D)]
    consts = [value("w", f32, D, D), value("u", f32, N, N)]
    pool = _pool(carries, sequences, consts, batch)
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(sorted(STEPS)))
        target, step = STEPS[kind]
        pool[target].append(step(draw, pool))
    after = [_next(draw, carry, pool) for carry in carries]
    outputs = [*after, *after, draw(st.sampled_from(pool["flag"])), ops.add(after[0], carries[0])]
    body = Graph("body", (*carries, *sequences, *consts), tuple((f"o{i}", v) for i, v in enumerate(outputs)))
    outer = [value(f"s_{v.node.attrs['name']}", v.type.dtype, *_with(v.dims, axis, length)) for v in sequences]
    operands = (*carries, *outer, *consts)
    node = ops.scan.node(
        *operands, body=body, carries=len(carries), sequences=3, axis=axis, reverse=draw(st.booleans())
    )
    results = tuple((f"y{i}", v) for i, v in enumerate(node.results))
    limits = (("L", (1, None)), *((str(s), (1, None)) for s in [batch] if not isinstance(s, int)))
    return Graph("main", operands, results, limits)


def _with(dims: Dims, axis: int, length: Dim) -> Dims:
    return (*dims[:axis], length, *dims[axis:])


def _pool(carries: list[Value], sequences: list[Value], consts: list[Value], batch: Dim) -> Pool:
    x, k, c = sequences
    vectors = [v for v in carries if v.type.dtype is f32 and v.type.rank == 2]
    column = ops.reshape(k, dims=(batch, 1, N))
    return {
        "vector": [*vectors, x],
        "matrix": [carries[1], ops.broadcast(column, dims=(batch, D, N))],
        "count": [carries[2], c],
        "flag": [ops.gt(x, ops.zeros(x.type)), ops.gt(carries[2], ops.zeros(c.type))],
        "input": [x],
        "weights": consts,
    }


def _next(draw: st.DrawFn, carry: Value, pool: Pool) -> Value:
    if carry.type.dtype is i64:
        return ops.minimum(draw(st.sampled_from(pool["count"])), 9)
    kind = "vector" if carry.type.rank == 2 else "matrix"
    candidate = draw(st.sampled_from(pool[kind]))
    return candidate if candidate is carry else ops.tanh(candidate)


def _one(kind: str) -> Callable[[st.DrawFn, Pool], Value]:
    return lambda draw, pool: draw(st.sampled_from(pool[kind]))


_vector, _matrix, _count, _flag, _input = map(_one, ("vector", "matrix", "count", "flag", "input"))


def _batch(pool: Pool) -> Dim:
    return pool["input"][0].dims[0]


def _shifted(draw: st.DrawFn, pool: Pool) -> Value:
    """A register: the oldest element leaves, one of the input enters."""
    batch = _batch(pool)
    old, new = ops.slice_axis(_vector(draw, pool), 1, 1, D), ops.slice_axis(_input(draw, pool), 1, 0, 1)
    assert old.dims == (batch, D - 1)
    return ops.concat(old, new, axis=1)


def _looked_up(draw: st.DrawFn, pool: Pool) -> Value:
    where = ops.argmax(_input(draw, pool), axis=1, keepdims=True)
    return ops.broadcast(ops.gather(_vector(draw, pool), where, axis=1), dims=(_batch(pool), D))


def _written(draw: st.DrawFn, pool: Pool) -> Value:
    where = ops.argmin(_input(draw, pool), axis=1, keepdims=True)
    update = ops.max(_vector(draw, pool), axes=(1,), keepdims=True)
    return ops.scatter(_vector(draw, pool), where, update, axis=1, reduce=draw(st.sampled_from(["set", "add"])))


def _inner_loop(draw: st.DrawFn, pool: Pool) -> Value:
    """A loop over the columns of a matrix."""
    carry, column = value("inner", f32, _batch(pool), D), value("column", f32, _batch(pool), D)
    after = ops.tanh(ops.add(ops.mul(carry, 0.5), column))
    product = draw(st.booleans())
    w = value("weight", f32, D, D)
    after = ops.tanh(ops.matmul(after, w)) if product else after
    body = Graph("inner", (carry, column, *[w] * product), (("after", after),))
    operands = (_vector(draw, pool), _matrix(draw, pool), *[pool["weights"][0]] * product)
    return ops.scan(*operands, body=body, carries=1, sequences=1, axis=2, reverse=draw(st.booleans()))


def _turned(draw: st.DrawFn, pool: Pool) -> Value:
    u = ops.broadcast(pool["weights"][1], dims=(_batch(pool), N, N))
    return ops.mul(ops.matmul(_matrix(draw, pool), u), 0.5)


def _column(v: Value) -> Value:
    return ops.broadcast(ops.reshape(v, dims=(*v.dims, 1)), dims=(*v.dims, N))


STEPS: dict[str, tuple[str, Callable[[st.DrawFn, Pool], Value]]] = {
    "mix": ("vector", lambda draw, pool: ops.sub(_vector(draw, pool), ops.mul(_vector(draw, pool), 0.5))),
    "largest": ("vector", lambda draw, pool: ops.maximum(_vector(draw, pool), _vector(draw, pool))),
    "choose": ("vector", lambda draw, pool: ops.where(_flag(draw, pool), _vector(draw, pool), _input(draw, pool))),
    "product": ("vector", lambda draw, pool: ops.mul(ops.matmul(_vector(draw, pool), pool["weights"][0]), 0.5)),
    "softmax": ("vector", lambda draw, pool: ops.softmax(_vector(draw, pool), axis=1)),
    "running": ("vector", lambda draw, pool: ops.mul(ops.cumsum(_vector(draw, pool), axis=1), 0.25)),
    "sorted": ("vector", lambda draw, pool: ops.sort(_vector(draw, pool), axis=1)[0]),
    "shift": ("vector", _shifted),
    "look_up": ("vector", _looked_up),
    "write": ("vector", _written),
    "flip": ("vector", lambda draw, pool: ops.flip(_vector(draw, pool), axes=(1,))),
    "read": ("vector", lambda draw, pool: ops.sum(ops.mul(_matrix(draw, pool), _matrix(draw, pool)), axes=(2,))),
    "loop": ("vector", _inner_loop),
    "decay": ("matrix", lambda draw, pool: ops.mul(_matrix(draw, pool), _column(ops.sigmoid(_vector(draw, pool))))),
    "add": ("matrix", lambda draw, pool: ops.add(_matrix(draw, pool), _column(_vector(draw, pool)))),
    "turn": ("matrix", _turned),
    "count": ("count", lambda draw, pool: ops.add(_count(draw, pool), ops.cast(_flag(draw, pool), dtype=i64))),
    "fire": ("flag", lambda draw, pool: ops.gt(_count(draw, pool), _count(draw, pool))),
    "reset": ("count", lambda draw, pool: ops.where(_flag(draw, pool), pool["count"][1], _count(draw, pool))),
    "either": ("flag", lambda draw, pool: ops.logical_xor(_flag(draw, pool), _flag(draw, pool))),
}  # fmt: skip
