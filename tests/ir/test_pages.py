"""The pages about the language are true: their graph parses, and their op obeys the laws it names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from coilc.ir import OPS, Module, interpret, ops, parse_graph, print_graph
from coilc.ir.text import parse_type
from coilc.ir.types import DTYPES
from coilc.ir.verify import any_graph

DOCS = Path(__file__).resolve().parents[2] / "docs"


def code(page: str) -> str:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)[0]


def test_the_example_graph_round_trips_and_runs() -> None:
    text = code("ir.md")
    graph = parse_graph(text)
    assert print_graph(graph) == text
    any_graph(Module({"main": graph}))
    x, gain, h = (np.ones(dims, np.float32) for dims in ((2, 5, 6), (6,), (2, 6)))
    assert interpret(Module({"main": graph}), {"x": x, "gain": gain, "h": h})["y"].shape == (2, 5, 3)


def test_the_grammar_lists_every_element_type() -> None:
    listed = re.search(r"^dtype +=(.*)$", (DOCS / "ir.md").read_text(), re.MULTILINE)
    assert listed
    assert [name.strip() for name in listed[1].split("|")] == list(DTYPES)


def test_the_declared_op_works() -> None:
    names: dict[str, object] = {}
    try:
        exec(code("adding-an-op.md"), names)
    finally:
        declared = OPS.pop("softsign")
    x = ops.input_(name="x", type=parse_type("f32[3]"))
    assert declared.decompose
    assert declared(x).type == declared.decompose(x).type
