"""IR text: what is printed is what is parsed, and what cannot be parsed is pointed at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coilc.ir import (
    DTYPES,
    Array,
    Graph,
    ParseError,
    TypeRuleError,
    ops,
    parse_graph,
    parse_graphs,
    print_graph,
    symbol,
)
from coilc.ir.text import parse_type

TEXT = """\
def main(x: f32[B, L, 3], v0: f32[3], *, B: dim[1:64], L: dim[1:]):
    v1: f32[B, 3] = max(x, axes=(1,), keepdims=False)
    def body_0(h: f32[B, 3], x: f32[B, 3], gain: f32[3]):
        v0: f32[B, 3] = broadcast(gain, dims=(B, 3))
        v1: f32[B, 3] = mul(x, v0)
        v2: f32[B, 3] = add(h, v1)
        return {"h": v2, "y": v2}
    v2, v3 = scan(v1, x, v0, body=body_0, carries=1, sequences=1, axis=1, reverse=False)  # model.py:12 in layers.0.mixer
    v4: f32[B, (L + 1)//2, 3] = slice(v3, starts=(0, 0, 0), stops=(B, L, 3), steps=(1, 2, 1))
    v5: f32[B, (L + 1)//2, 3] = exp(v4)
    v6: f32[3*B*((L + 1)//2)] = reshape(v5, dims=(3*B*((L + 1)//2),))
    return {"last": v2, "every other": v6}
"""


def test_printing_inverts_parsing() -> None:
    graph = parse_graph(TEXT)
    assert print_graph(graph) == TEXT
    assert parse_graph(print_graph(graph)) == graph
    assert "#" not in print_graph(graph, locations=False)


@given(st.data())
def test_random_graphs_round_trip(data: st.DataObject) -> None:
    values = [ops.input_(name=name, type=parse_type(text)) for name, text in (("x", "f32[B, L]"), ("v1", "f32[L]"))]
    inputs = tuple(values)
    for _ in range(data.draw(st.integers(1, 12))):
        step = data.draw(st.sampled_from(STEPS))
        values.append(step(data.draw(st.sampled_from(values)), data.draw(st.sampled_from(values))))
    kept = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    outputs = tuple((f"y{i}", value) for i, value in enumerate(kept))
    graph = Graph("main", inputs, outputs, (("B", (1, 8)), ("L", (1, None))))
    assert parse_graph(print_graph(graph)) == graph


@pytest.mark.parametrize(
    "value",
    [
        np.float32(2.5),
        np.array([math.inf, -math.inf, math.nan, -0.0, 1e-45], np.float32),
        np.array([1 + 2j, -3.5j, complex(0, -1), complex(math.nan, -math.inf)], np.complex64),
        np.array([1.5, -2], DTYPES["bf16"].numpy),
        np.array([[True], [False]]),
        np.zeros((0, 3), np.int64),
    ],
    ids=str,
)
def test_constants_round_trip(value: np.ndarray) -> None:
    graph = Graph("main", (), (("y", ops.constant(value=Array(value))),))
    (found,) = parse_graph(print_graph(graph)).results
    assert found.node.attrs["value"] == Array(value)


@pytest.mark.parametrize("attrs", [{"value": -math.inf}, {"value": 1e-300}, {"value": 3}])
def test_numbers_round_trip(attrs: dict[str, float]) -> None:
    x = ops.input_(name="x", type=parse_type("f32[L]"))
    graph = Graph("main", (x,), (("y", ops.pad(x, low=(symbol("L") * 2,), high=(0,), **attrs)),), (("L", (1, None)),))
    assert parse_graph(print_graph(graph)) == graph


STEPS = (
    lambda x, _: ops.exp(x),
    lambda x, _: ops.mul(x, 0.5),
    lambda x, y: ops.add(x, y) if x.dims == y.dims else x,
    lambda x, _: ops.cumsum(x, axis=0),
    lambda x, _: ops.flip(x, axes=tuple(range(x.type.rank))),
    lambda x, y: ops.concat(x, x, axis=0),
    lambda x, _: ops.sort(x, axis=0)[0],
    lambda x, _: ops.reshape(x, dims=(x.type.size,)),
)
HEAD = "def main(x: f32[3]):\n"


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("def main(x: f32[3]:\n", "not Python syntax", 1),
        ("x = 3\n", "expected a graph 'def name(...):', found 'x = 3' (column 1)", 1),
        ("def main(x):\n    return {}\n", "expected a type such as f32[B, 4], found 'x' (column 10)", 1),
        ("def main(x: f99[3]):\n    return {}\n", "expected a type such as f32[B, 4], found 'f99[3]' (column 13)", 1),
        ("def main(x: f32[3], x: f32[3]):\n    return {}\n", "'x' is defined twice (column 21)", 1),
        ("def main(*, L: 3):\n    return {}\n", "expected a range such as dim[1:64], found '3' (column 16)", 1),
        ("def main(x: f32[a.b]):\n    return {}\n", "'a.b' is not a dimension; write an integer", 1),
        (HEAD + "    return x\n", "expected a dict from output name to value, found 'x' (column 12)", 2),
        (HEAD + '    return {x: "y"}\n', "expected an output name in quotes, found 'x' (column 13)", 2),
        (HEAD + "    v0: f32[3] = exp(x)\n", "expected 'return {...}' at the end", 2),
        (HEAD + "    v0: f32[4] = exp(x)\n    return {}\n", "v0 has type f32[3], not f32[4] (column 9)", 2),
        (
            HEAD + "    v0: f32[3] = exq(x)\n    return {}\n",
            "there is no op 'exq'; 'coilc ops' lists them (column 18)",
            2,
        ),
        (HEAD + "    v0: f32[3] = exp(z)\n    return {}\n", "'z' is not defined above this line (column 22)", 2),
        (HEAD + "    v0: f32[3] = exp(exp(x))\n    return {}\n", "expected the name of a value", 2),
        (HEAD + "    x: f32[3] = exp(x)\n    return {}\n", "'x' is defined twice (column 5)", 2),
        (HEAD + "    v0, v1 = exp(x)\n    return {}\n", "1 results for 2 names", 2),
        (HEAD + "    v0 = sort(x, axis=0)\n    return {}\n", "2 results for 1 name", 2),
        (HEAD + "    exp(x)\n    return {}\n", "expected 'name: type = op(...)', found 'exp(x)' (column 5)", 2),
        (HEAD + "    v0: f32[3] = flip(x, axes=[0])\n    return {}\n", "'[0]' is not a dimension", 2),
    ],
)
def test_parse_errors_point(text: str, message: str, line: int) -> None:
    with pytest.raises(ParseError) as error:
        parse_graph(text)
    assert message in error.value.message
    assert error.value.location is not None
    assert error.value.location.line == line


def test_type_errors_point_at_the_line() -> None:
    with pytest.raises(TypeRuleError) as error:
        parse_graph(HEAD + "\n    v0: f32[3] = flip(x, axes=(1,))\n    return {}\n")
    assert str(error.value) == "flip(f32[3]): axis 1 is not in 0..0; axes count from the front\n  --> <text>:3"


def test_unknown_attributes_show_the_usage() -> None:
    with pytest.raises(TypeRuleError) as error:
        parse_graph(HEAD + "    v0: f32[3] = sum(x, axis=0)\n    return {}\n")
    assert "does not fit sum(x, axes, keepdims=False)" in error.value.message


def test_one_graph_is_expected() -> None:
    with pytest.raises(ParseError, match="expected one graph, found 0"):
        parse_graph("")
    assert [g.name for g in parse_graphs(TEXT + TEXT.replace("main", "step"))] == ["main", "step"]


@pytest.mark.parametrize("text", ["f32", "f32[", "f33[2]", "f32[a.b]"])
def test_bad_types(text: str) -> None:
    with pytest.raises(ParseError):
        parse_type(text)
