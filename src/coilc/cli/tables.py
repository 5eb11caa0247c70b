"""``coilc ops`` and ``coilc targets``: what the compiler knows, as tables."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Optional

import typer

from coilc.ir import OPS, CoilError, Graph, InputError, OpDef, Value, print_graph
from coilc.ir.text import parse_type

from .console import cell, console, emit, emit_json
from .options import Json


def ops_command(
    name: Annotated[Optional[str], typer.Argument(metavar="[NAME]", help="One op, in full.")] = None,  # noqa: UP045
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/ir.md.")] = False,
    json: Json = False,
) -> None:
    """List the ops of the IR, or show everything about one."""
    if name is None:
        rows = [op_row(op) for op in sorted(OPS.values(), key=lambda op: op.name)]
        columns = {"name": "op", "kind": "kind", "attributes": "attributes", "doc": "what it computes"}
        if markdown:
            typer.echo(markdown_table(rows, columns), nl=False)
        else:
            emit(rows, columns, as_json=json)
        return
    if name not in OPS:
        near = [known for known in OPS if name in known or known in name]
        raise InputError(f"there is no op '{name}'" + (f"; did you mean {', '.join(near)}?" if near else ""))
    card = op_card(OPS[name])
    if json:
        emit_json(card)
    else:
        show_card(card)


def op_row(op: OpDef) -> dict[str, Any]:
    """An op in one line."""
    attributes = [n if p.default is p.empty else f"{n}={p.default!r}" for n, p in op.attributes.items()]
    doc = (op.doc or inspect.getdoc(op.infer) or "").split("\n")[0]
    return {"name": op.name, "kind": kind_of(op), "attributes": ", ".join(attributes), "doc": doc}


def kind_of(op: OpDef) -> str:
    """``structural``, ``core`` (every target lowers it) or ``composite`` (it decomposes)."""
    return "structural" if "structural" in op.traits else "core" if op.is_core else "composite"


def markdown_table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(columns.values())} |", "|" + " --- |" * len(columns)]
    escaped = ([str(row[key]).replace("|", "\\|").replace("*", "\\*") for key in columns] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in escaped)]) + "\n"


def op_card(op: OpDef) -> dict[str, Any]:
    """Everything about an op: signature, definition, decomposition as IR text, importers, claims."""
    return {
        **op_row(op),
        "doc": op.doc or inspect.getdoc(op.infer) or "",
        "traits": sorted(op.traits),
        "aliases": {importer: list(names) for importer, names in op.aliases.items()},
        "claimed_by": [target.name for target in all_targets() if op.name in target.claims],
        "example": example_text(op, decomposed=False),
        "decomposition": example_text(op, decomposed=True) if op.decompose else "",
    }


def example_text(op: OpDef, *, decomposed: bool) -> str:
    """The op's first example as IR text, as it is or decomposed one step; empty where it has no example."""
    if not op.examples or "structural" in op.traits:
        return ""
    example = op.examples[0]
    inputs = tuple(OPS["input"](name=f"x{i}", type=parse_type(text)) for i, text in enumerate(example.types))
    built = op.node(*inputs, **example.attrs)
    try:
        results = op.decompose(*built.inputs, **built.attrs) if op.decompose and decomposed else built.results
    except CoilError:
        return ""
    results = (results,) if isinstance(results, Value) else results
    outputs = tuple((f"y{i}", value) for i, value in enumerate(results))
    return print_graph(Graph(op.name, inputs, outputs), locations=False)


def show_card(card: dict[str, Any]) -> None:
    """Print an op card for people."""
    out = console()
    out.print(
        f"[bold]{card['name']}[/bold]  {card['kind']}" + (f"  ({', '.join(card['traits'])})" if card["traits"] else "")
    )
    out.print(f"\n{card['doc']}\n", markup=False)
    facts = {"attributes": card["attributes"], "claimed by": cell(card["claimed_by"])}
    facts |= {f"in {importer}": cell(names) for importer, names in card["aliases"].items() if names}
    for label, text in facts.items():
        if text:
            out.print(f"{label + ':':<12} {text}", markup=False)
    for label, text in {"example": card["example"], "decomposes to": card["decomposition"]}.items():
        if text:
            out.print(f"\n{label}:\n\n{text.rstrip()}", markup=False)


def all_targets() -> list[Any]:
    """The known targets, the native one first."""
    from coilc.codegen.target import PRESETS, TARGETS, parse_target

    native = parse_target("native")
    return [native, *(target for target in (*TARGETS.values(), *PRESETS.values()) if target.name != native.name)]


def targets_command(json: Json = False) -> None:
    """List what coilc compiles for, and which of these run on this machine."""
    from coilc.runtime.artifact import cpu_features

    features = cpu_features()
    rows = [
        {
            "name": target.name,
            "kind": target.kind,
            "triple": target.triple,
            "vector_bits": target.vector_bits,
            "runs_here": runs_here(target, features),
            "extensions": [f"+{name}" for name in target.extensions],
            "features": sorted(target.features),
            "claims": sorted(target.claims),
        }
        for target in all_targets()
    ]
    columns = {"name": "target", "triple": "triple", "vector_bits": "vector bits", "runs_here": "runs here"}
    emit(rows, {**columns, "extensions": "may add", "features": "needs CPU features"}, as_json=json)


def runs_here(target: Any, features: frozenset[str]) -> bool:
    """Whether this CPU is of the target's kind and has all its features; a GPU needs its driver's library."""
    import platform
    from ctypes.util import find_library

    if target.device is not None and find_library(target.device.kind) is None:
        return False
    return target.triple.split("-")[0] == platform.machine() and set(target.features) <= features
