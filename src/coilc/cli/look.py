"""``coilc inspect``, ``opt`` and ``explain``: the model as IR text, and what the passes did to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from coilc.ir import InputError, Module, print_module
from coilc.ir.opdef import MIXER
from coilc.units import show_bytes

from .console import console, emit, emit_json
from .options import Dynamic, Entries, Json, Lengths, Model, Target
from .sources import load_program, load_text

if TYPE_CHECKING:
    from coilc.passes.stages import Pass, Stage


def inspect_command(
    model: Model,
    stage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Print the IR text after this stage; 'input' is the model as imported."),
    ] = None,
    target: Target = "native",
    dynamic: Dynamic = None,
    lengths: Lengths = None,
    calls: Annotated[bool, typer.Option("--calls", help="List the kernel calls of an artifact.")] = False,
    json: Json = False,
) -> None:
    """Show what a model or an artifact is made of."""
    if Path(model).is_dir() and stage is None:
        inspect_artifact(Path(model), calls, json)
        return
    program = load_program(model, dynamic or (), lengths=lengths)
    if stage != "input":
        from coilc.codegen.target import parse_target
        from coilc.passes import run_pipeline

        chosen = parse_target(target)
        program = run_pipeline(program, chosen.claims, machine=chosen.machine, stop_after=stage or "recognise")
    if stage is None:
        inspect_program(program, json)
    else:
        typer.echo(print_module(program), nl=False)


def mixers(program: Module) -> list[dict[str, Any]]:
    """The recurrences, attentions and convolutions along time, those of equal layers in one row."""
    nodes = [node for graph in program.entries.values() for node in graph.nodes if MIXER in node.op.traits]
    rows: dict[tuple[str, str, str], list[str]] = {}
    for node in nodes:
        place, _, scope = str(node.location or "").partition(" in ")
        key = (node.op.name, str(node.types[0]), place)
        rows.setdefault(key, []).append(scope)
    return [
        {"op": op, "count": len(scopes), "result": type_, "place": place, "scopes": list(dict.fromkeys(scopes))}
        for (op, type_, place), scopes in rows.items()
    ]


def inspect_program(program: Module, as_json: bool) -> None:
    """Entries, dynamic dims, weights, where the model mixes tokens, and how often each op occurs.

    Args:
        program: after the stage ``recognise``.
    """
    ops = Counter(n.op.name for g in program.entries.values() for n in g.nodes if n.op.name not in ("input", "weight"))
    found = mixers(program)
    weights = sum(array.nbytes for array in program.weights.values())
    if as_json:
        entries = {
            name: {
                "inputs": {v.node.attrs["name"]: str(v.type) for v in graph.inputs},
                "outputs": {out: str(v.type) for out, v in graph.outputs},
                "symbols": {symbol: list(limits) for symbol, limits in graph.symbols},
            }
            for name, graph in program.entries.items()
        }
        counts = {"weights": len(program.weights), "weight_bytes": weights, "mixers": found, "ops": dict(ops)}
        emit_json({"entries": entries, **counts})
        return
    for name, graph in program.entries.items():
        inputs = [(v.node.attrs["name"], str(v.type)) for v in graph.inputs]
        show_signature(name, inputs, [(out, str(v.type)) for out, v in graph.outputs], graph.ranges)
    console().print(f"weights: {len(program.weights)} arrays, {show_bytes(weights)}\n", markup=False)
    if found:
        shown = [{**row, "scopes": " ".join(row["scopes"])} for row in found]
        columns = {
            "op": "along the sequence",
            "count": "count",
            "result": "result",
            "place": "line",
            "scopes": "module",
        }
        emit(shown, columns, as_json=False)
        console().print()
    others = [{"op": op, "count": count} for op, count in ops.most_common() if op not in {row["op"] for row in found}]
    emit(others, {"op": "other ops", "count": "count"}, as_json=False)


def show_signature(
    entry: str,
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[tuple[str, str]],
    symbols: Mapping[str, tuple[int, int | None]],
) -> None:
    """Print an entry like a function: inputs, outputs, and the ranges of its dynamic dims."""
    out = console()
    out.print(f"[bold]{entry}[/bold]")
    for label, tensors in (("in ", inputs), ("out", outputs)):
        for name, type_ in tensors:
            out.print(f"  {label} {name}: {type_}", markup=False)
    for name, (low, high) in symbols.items():
        out.print(f"  dim {name}: {low} to {'any' if high is None else high}", markup=False)


def inspect_artifact(path: Path, calls: bool, as_json: bool) -> None:
    """The manifest: entries, target, sizes, and the calls if asked."""
    from coilc.runtime.artifact import read_manifest

    manifest = read_manifest(path)
    if as_json:
        emit_json(manifest)
        return
    for name, entry in manifest["entries"].items():
        show_entry(name, entry)
        distinct = len({call["kernel"] for call in entry["calls"]})
        console().print(f"  kernel calls: {len(entry['calls'])}, of {distinct} distinct kernels", markup=False)
    target, options = manifest["target"], manifest["options"]
    stored = f"precision {options.get('precision', 'fp32')}"
    stored += f", {options['quantize']} weights" if options.get("quantize") else ""
    console().print(f"target {target['name']} ({target['triple']}), {stored}", markup=False)
    for name, file in manifest["files"].items():
        console().print(f"  {name:<22} {show_bytes(file['bytes']):>10}", markup=False)
    if manifest.get("recurrences"):
        columns = {"op": "recurrence", "algorithm": "algorithm", "reason": "why", "scope": "where"}
        console().print()
        emit(manifest["recurrences"], columns, as_json=False)
    if calls:
        show_calls(manifest)


def show_entry(name: str, entry: dict[str, Any]) -> None:
    """An entry of the manifest; states, which are both inputs and outputs, are listed once and last."""
    states = entry["states"]
    tensors = {}
    for side in ("input", "output"):
        kept = set(range(len(entry[f"{side}s"]))) - {state[side] for state in states}
        tensors[side] = [(t["name"], type_text(t)) for i, t in enumerate(entry[f"{side}s"]) if i in kept]
    show_signature(
        name, tensors["input"], tensors["output"], {s["name"]: (s["low"], s["high"]) for s in entry["symbols"]}
    )
    for state in states:
        tensor = entry["outputs"][state["output"]]
        console().print(f"  state {tensor['name']}: {type_text(tensor)}", markup=False)


def type_text(tensor: dict[str, Any]) -> str:
    """``f32[B, L, 1536]`` from a row of the manifest."""
    return f"{tensor['dtype']}[{', '.join(map(str, tensor['dims'])) or '()'}]"


def show_calls(manifest: dict[str, Any]) -> None:
    """One row per kernel call: which kernel, what it writes, and where in the model that comes from."""
    for name, entry in manifest["entries"].items():
        rows = [
            {
                "call": index,
                "kernel": call["kernel"],
                "writes": ", ".join(map(type_text, call["results"])),
                "scope": next((r.get("scope", "") for r in call["results"] if r.get("scope")), ""),
            }
            for index, call in enumerate(entry["calls"])
        ]
        columns = {"call": "call", "kernel": "kernel", "writes": "writes", "scope": "where"}
        console().print()
        emit(rows, columns, as_json=False, title=f"calls of {name}")


def steps(target: str, entries: Sequence[str] = ()) -> Iterator[tuple[Stage, Pass]]:
    """Every pass of the pipeline for a target and some entries, with its stage."""
    from coilc.codegen.target import parse_target
    from coilc.passes.pipeline import pipeline

    chosen = parse_target(target)
    for stage in pipeline(chosen.claims, panel=32, entries=entries, machine=chosen.machine):
        yield from ((stage, step) for step in stage.passes)


def find_pass(name: str, target: str) -> Pass:
    """A pass by name: as the pipeline of the target uses it, or else with its default options."""
    from coilc.passes import PASSES
    from coilc.passes.dump import name_of

    known = {**PASSES, **{name_of(step): step for _, step in steps(target)}}
    if name not in known:
        raise InputError(f"there is no pass '{name}'; the passes are {', '.join(sorted(known))}")
    return known[name]


def opt_command(
    passes: Annotated[str, typer.Argument(metavar="PASS[,PASS...]", help="Passes to apply, in order.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="IR text, or a .coil folder.")],
    target: Target = "native",
    locations: Annotated[bool, typer.Option(help="Print where in the model each line comes from.")] = True,
) -> None:
    """Apply passes to IR text and print the result."""
    program = load_text(file)
    for name in passes.split(","):
        program = find_pass(name.strip(), target)(program)
    typer.echo(print_module(program, locations=locations), nl=False)


def explain_command(
    model: Model,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A stage, a pass, or a rule.")],
    target: Target = "native",
    dynamic: Dynamic = None,
    lengths: Lengths = None,
    entries: Entries = None,
    fired: Annotated[bool, typer.Option("--fired", help="List what fired as well as what declined.")] = False,
    json: Json = False,
) -> None:
    """List why a pass or rule left parts of the model alone."""
    from coilc.passes.dump import name_of
    from coilc.passes.trace import tracing

    program = load_program(model, dynamic or (), lengths=lengths)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for stage, step in steps(target, entries.split(",") if entries else ()):
        with tracing() as trace:
            program = step(program)
        names = {stage.name, name_of(step)}
        seen |= names | {event.rule for event in trace.events}
        chosen = [e for e in trace.events if (fired or e.reason) and name in {*names, e.rule}]
        rows += [
            {
                "rule": e.rule,
                "outcome": e.reason or f"became {e.after}",
                "node": e.before,
                "place": str(e.location or ""),
            }
            for e in chosen
        ]
    if name not in seen:
        raise InputError(f"no stage, pass or rule '{name}' ran on this model; these did: {', '.join(sorted(seen))}")
    columns = {"rule": "rule", "outcome": "reason", "node": "node", "place": "where"}
    emit(rows, columns, as_json=json, note="" if rows else f"nothing that '{name}' looked at was declined")
